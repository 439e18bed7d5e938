"""Cases of training in trouble: numbers that are not finite, full disks, lost peers, restarts."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import shutil
import signal
import socket
import time
from typing import Any

from tests.faults import artefacts, children, digests, patched, training, verdicts
from tests.faults.scene import Scene, last_committed, last_start, lines_of

_PEER_LIMIT_S = 40.0
_SAID = ("not finite", "not applied", "skipped", "NaN", "infinit", "rolled back", "went back")


def not_finite(scene: Scene, where: str) -> str:
    """Some updates are not finite: none is committed, and the user is told."""
    workdir, first = scene.folder / "run", int(scene.rng.integers(1, artefacts.STEPS - 1))
    count = int(scene.pick(1, 1, 2, 3, 6))
    patch = {
        "batch": functools.partial(patched.poison_batch, first, count),
        "gradient": functools.partial(patched.poison_gradient, first, count),
        "params": functools.partial(patched.poison_params, first),
    }[where]
    argv = artefacts.train_argv(workdir, scene.art.records)
    after = functools.partial(digests.of_run, workdir)
    done = scene.run(argv, "first", patches=[patch], after=after)
    verdicts.require_plain(done, {0, 1})
    if done.code and done.typed != "SJ-T01":
        raise verdicts.Lost(f"error {done.typed}, not SJ-T01", done)
    found = scene.call(functools.partial(_not_finite_in, workdir), "finite")
    if found.extra:
        raise verdicts.Lost(f"committed what is not finite: {found.extra}", done)
    if not done.says(*_SAID):
        raise verdicts.Silent("updates were not finite, and nothing was said of it", done)
    if where == "params" and done.code == 0:  # once, by chance: going back undoes it
        training.require_undisturbed(scene, done)
    again = scene.run(argv, "again", after=functools.partial(digests.of_run, workdir))
    verdicts.require_done(again)
    step = again.extra["step"] if isinstance(again.extra, dict) else None
    if step != artefacts.STEPS:
        raise verdicts.Lost(f"the same command without the fault ended at step {step}", done, again)
    found = scene.call(functools.partial(_not_finite_in, workdir), "finite-again")
    if found.extra:
        raise verdicts.Lost(f"what is not finite came later: {found.extra}", done, again)
    said = "went on" if done.code == 0 else "stopped"
    return f"{where} from step {first}, {count} of them: {said}"


def _not_finite_in(workdir: pathlib.Path) -> list[str]:
    """Arrays of a run's checkpoints and best weights that hold NaN or infinity."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    found = []
    with ocp.StandardCheckpointer() as reader:
        for folder, item in (("checkpoints", "state"), ("best", "ema")):
            for step in digests.of_steps(workdir / folder):
                tree = reader.restore((workdir / folder / str(step) / item).absolute())
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                    array = np.asarray(leaf)
                    if array.dtype.kind == "f" and not np.isfinite(array).all():
                        found.append(f"{folder}/{step}{jax.tree_util.keystr(path)}")
    return found


def full(scene: Scene) -> str:
    """The disk fills while the run saves: older steps load, and the error says what it needs."""
    size = _bytes_of(scene.art.folder / "run")
    room = int(size * (0.25 + 0.65 * scene.rng.random()))
    disk = scene.folder / "disk"
    if not scene.can_mount:
        # The largest file that a save writes is what decides.
        limit = int(4096 + scene.rng.random() * 60_000)
        disk.mkdir()
        return _full(scene, disk, lambda: None, [functools.partial(patched.limit_file_size, limit)])
    with scene.small_disk(disk, room) as grow:
        return f"{room // 1024} kB: " + _full(scene, disk, grow, [])


def _full(scene: Scene, disk: pathlib.Path, grow: Any, patches: list[Any]) -> str:
    workdir = disk / "run"
    argv = artefacts.train_argv(workdir, scene.art.records)
    done = scene.run(argv, "first", patches=patches)
    verdicts.require_plain(done, {0, 1, 75})
    if done.code and done.typed != "SJ-R01":
        raise verdicts.Lost(f"a full disk is error {done.typed}, not SJ-R01", done)
    if not done.says("no space left", "No space left", "space"):
        raise verdicts.Silent("the disk was full, and nothing was said of it", done)
    if done.code and " free" not in done.err:
        raise verdicts.Lost("the error does not say how much space is needed or free", done)
    committed = last_committed(workdir)
    if committed:
        loaded = scene.call(functools.partial(_load, workdir), "load")
        if verdicts.require_plain(loaded, {0}).extra != committed:
            raise verdicts.Lost(f"step {committed} does not load", done, loaded)
    grow()
    training.go_on(scene, workdir, done)
    return f"full at step {committed}, code {done.code}"


def _load(workdir: pathlib.Path) -> int:
    from stemjax.train import checkpoint

    return checkpoint.load(workdir, weights="last").step


def _bytes_of(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def restarts(scene: Scene) -> str:
    """``--max-restarts`` starts a killed child again, which goes on to the right result."""
    workdir = scene.folder / "run"
    step = int(scene.rng.integers(1, artefacts.STEPS // 2))
    after = functools.partial(digests.of_run, workdir)
    argv = artefacts.train_argv(workdir, scene.art.records, "--max-restarts", "3")
    child = scene.start(argv, "first", after=after)
    with children.ending(child):
        reached = child.until(lambda: lines_of(workdir / "metrics.jsonl") >= step)
        killed = [pid for pid in children.descendants(child.pid)[:1] if reached]
        for pid in killed:
            _kill(pid)
        done = child.wait()
    verdicts.require_done(done)
    if not killed:
        raise verdicts.Lost("the supervisor had no child to be killed", done)
    training.require_undisturbed(scene, done)
    started = last_start(workdir)
    return f"child killed after step {step}, went on from {started}"


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def lose_peer(scene: Scene, how: str) -> str:
    """One of two processes is stopped or killed: the other ends soon, with a plain sentence."""
    workdir, victim = scene.folder / "run", int(scene.rng.integers(2))
    step = int(scene.rng.integers(2, artefacts.STEPS - 6))
    argv = artefacts.train_argv(workdir, scene.art.records)
    argv += ["--coordinator", f"127.0.0.1:{_free_port()}", "--process-count", "2"]
    slow = [functools.partial(patched.pace, 0.2)]
    pair = [
        scene.start([*argv, "--process-index", str(i)], f"process{i}", patches=slow)
        for i in range(2)
    ]
    with children.ending(*pair):
        pair[0].until(lambda: lines_of(workdir / "metrics.jsonl") >= step)
        if any(child.poll() is not None for child in pair):
            raise verdicts.Lost("the two processes did not train", *(c.wait(1) for c in pair))
        pair[victim].send(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        told = time.monotonic()
        left = pair[1 - victim].wait(_PEER_LIMIT_S + 5)
        seconds = time.monotonic() - told
    if left.code != 75 or left.late or not left.says("rocess"):  # the sentence needs no code then
        verdicts.require_plain(left, {1, 75})
    if verdicts.shows_traceback(left):
        raise verdicts.Lost("it showed a traceback", left)
    if seconds > _PEER_LIMIT_S:
        raise verdicts.Lost(f"the other process took {seconds:.0f} s to end", left)
    shutil.copytree(workdir, scene.folder / "as-it-was")
    committed = last_committed(workdir)
    argv = artefacts.train_argv(workdir, scene.art.records)
    done = scene.run(argv, "again", after=functools.partial(digests.of_run, workdir))
    verdicts.require_done(done)
    started = last_start(workdir)
    if started is None or started < committed:
        raise verdicts.Lost(f"went on from {started}, not from step {committed}", left, done)
    return f"process {victim} {how} after step {step}: code {left.code} in {seconds:.0f} s"


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]
