"""Cases of training: killed, told to end, or disturbed by a second job."""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.faults import artefacts, children, digests, patched, verdicts
from tests.faults.scene import (
    Scene,
    last_committed,
    last_logged,
    last_start,
    lines_of,
    unfinished,
)

ENDED = {signal.SIGTERM: 143, signal.SIGINT: 130}
_SIGNAL_LIMIT_S = 60.0
_TERM_INT = (signal.SIGTERM, signal.SIGINT)


def _begin(scene: Scene, *more: str, name: str = "first", **given: Any) -> children.Child:
    argv = artefacts.train_argv(scene.folder / "run", scene.art.records, *more)
    return scene.start(argv, name, **given)


def go_on(
    scene: Scene, workdir: pathlib.Path, *before: verdicts.Done, name: str = "again", **given: Any
) -> verdicts.Done:
    """Gives the same command again, to the end, and checks what came of it.

    Raises:
      Lost: it failed, or began before the newest step that was committed.
      Silent: its arrays or losses are not the undisturbed run's.
    """
    committed = last_committed(workdir)
    argv = artefacts.train_argv(workdir, scene.art.records)
    after = functools.partial(digests.of_run, workdir)
    done = scene.run(argv, name, after=after, **given)
    verdicts.require_done(done)
    started = last_start(workdir)
    if started is not None and started < committed < artefacts.STEPS:
        why = f"went on from step {started}, though step {committed} was committed"
        raise verdicts.Lost(why, *before, done)
    require_undisturbed(scene, done, *before)
    for folder in ("checkpoints", "best"):
        if left := unfinished(workdir / folder):
            raise verdicts.Lost(f"left over in {folder}: {', '.join(left[:3])}", *before, done)
    return done


def require_undisturbed(scene: Scene, done: verdicts.Done, *before: verdicts.Done) -> None:
    """Checks that a run ended with the undisturbed one's arrays and losses.

    Raises:
      Silent: it did not.
    """
    wanted = scene.art.facts["train"]
    found = done.extra if isinstance(done.extra, dict) else {}
    for part in ("step", "state", "best", "losses"):
        if found.get(part) != wanted[part]:
            differ = _first_difference(found.get(part), wanted[part])
            raise verdicts.Silent(f"{part} of the run differs: {differ}", *before, done)


def _first_difference(found: Any, wanted: Any) -> str:
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        at = next(i for i, (a, b) in enumerate(zip(found, wanted)) if a != b)
        return f"{found[at]} instead of {wanted[at]}"
    return f"{str(found)[:100]} instead of {str(wanted)[:100]}"


def _require_little_lost(workdir: pathlib.Path, done: verdicts.Done) -> None:
    logged, committed = last_logged(workdir), last_committed(workdir)
    if not verdicts.within_one_save(logged, committed, artefacts.SAVE_EVERY):
        why = f"killed at step {logged}, and only step {committed} is saved"
        raise verdicts.Lost(why, done)


def _require_ended(
    workdir: pathlib.Path, done: verdicts.Done, numbers: Sequence[int], *, saved: bool
) -> str:
    """Checks how a run ended that was told to, and that nothing that it logged is lost.

    Raises:
      Lost: another exit code than a signal's, or steps are lost.
    """
    if done.code < 0 and -done.code in numbers and not (workdir / "runs.jsonl").exists():
        return "before the run began"
    verdicts.require_plain(done, {0, *(ENDED[signal.Signals(number)] for number in numbers)})
    if done.code == 0:
        return "after the run ended"
    logged, committed = last_logged(workdir), last_committed(workdir)
    if saved and committed < logged:
        raise verdicts.Lost(f"ended at step {logged}, and saved step {committed}", done)
    return f"at step {committed}"


def _moment(scene: Scene, workdir: pathlib.Path) -> tuple[Callable[[], bool], str]:
    """A moment of a run: some time, a step, or the writing of a checkpoint."""
    what = scene.pick("time", "step", "saving", "beginning")
    if what == "time":
        seconds = scene.rng.random() * 1.05 * scene.art.seconds("train")
        end = time.monotonic() + seconds
        return lambda: time.monotonic() >= end, f"after {seconds:.2f} s"
    if what == "step":
        step = int(scene.rng.integers(1, artefacts.STEPS))
        return lambda: lines_of(workdir / "metrics.jsonl") >= step, f"after {step} lines"
    if what == "saving":
        return _saving(scene, workdir, "checkpoints")
    return (workdir / "runs.jsonl").exists, "as it began"


def _saving(scene: Scene, workdir: pathlib.Path, folder: str) -> tuple[Callable[[], bool], str]:
    """The moment at which one of the first saves is under way."""
    number = int(scene.rng.integers(1, 3 if folder == "best" else 6))
    seen: set[str] = set()

    def under_way() -> bool:
        try:
            names = os.listdir(workdir / folder)
        except FileNotFoundError:
            return False
        seen.update(name for name in names if "tmp" in name)
        return len(seen) >= number

    return under_way, f"while save {number} of {folder} is written"


def _jitter(scene: Scene, most: float = 0.08) -> None:
    time.sleep(scene.rng.random() * most)


def kill(scene: Scene, what: str = "") -> str:
    """``kill -9`` at some moment; then the same command again, to the end."""
    workdir, cache = scene.folder / "run", None
    if what == "compiling":
        cache = scene.folder / "cache"  # empty: it compiles, and may be killed writing a program
        seconds = scene.rng.random() * 4
        started: list[float] = []

        def event() -> bool:
            if (workdir / "runs.jsonl").exists() and not started:
                started.append(time.monotonic())
            return bool(started) and time.monotonic() - started[0] >= seconds

        said = f"{seconds:.2f} s into compiling"
    elif what:
        event, said = _saving(scene, workdir, what)
    else:
        event, said = _moment(scene, workdir)
    scene.notes.append(f"kill -9 {said}")
    child = _begin(scene, cache=cache)
    with children.ending(child):
        if child.until(event) and what != "compiling":
            _jitter(scene, 0.03 if what else 0.08)
        child.send(signal.SIGKILL)
        done = child.wait()
    if done.code not in (0, -signal.SIGKILL):
        verdicts.require_done(done)
    _require_little_lost(workdir, done)
    logged = last_logged(workdir)
    go_on(scene, workdir, done, cache=cache)
    return f"killed {said}, at step {logged}"


def tell(scene: Scene) -> str:
    """SIGTERM or SIGINT at some moment: saved at the step that it was at, and exit 143 or 130."""
    workdir, number = scene.folder / "run", scene.pick(*_TERM_INT)
    event, said = _moment(scene, workdir)
    scene.notes.append(said)
    child = _begin(scene, patches=[functools.partial(patched.pace, 0.01)])
    with children.ending(child):
        child.until(event)
        _jitter(scene)
        child.send(number)
        done = child.wait(_SIGNAL_LIMIT_S)
    where = _require_ended(workdir, done, [number], saved=True)
    go_on(scene, workdir, done)
    return f"{signal.Signals(number).name} {said}, ended {where}"


def tell_twice(scene: Scene) -> str:
    """Two signals within moments: the second may cut the saving short, and corrupts nothing."""
    workdir, numbers = scene.folder / "run", [scene.pick(*_TERM_INT), scene.pick(*_TERM_INT)]
    event, said = _moment(scene, workdir)
    pause = scene.rng.random() * 0.25
    scene.notes.append(said)
    child = _begin(scene, patches=[functools.partial(patched.pace, 0.01)])
    with children.ending(child):
        child.until(event)
        child.send(numbers[0])
        time.sleep(pause)
        child.send(numbers[1])
        done = child.wait(_SIGNAL_LIMIT_S)
    where = _require_ended(workdir, done, numbers, saved=False)
    _require_little_lost(workdir, done)
    go_on(scene, workdir, done)
    return f"two signals {pause:.2f} s apart {said}, ended {where}"


def tell_and_kill(scene: Scene) -> str:
    """A signal, and ``kill -9`` while it may be saving."""
    workdir, number = scene.folder / "run", scene.pick(*_TERM_INT)
    event, said = _moment(scene, workdir)
    pause = scene.rng.random() * 0.3
    scene.notes.append(said)
    child = _begin(scene, patches=[functools.partial(patched.pace, 0.01)])
    with children.ending(child):
        child.until(event)
        child.send(number)
        time.sleep(pause)
        child.send(signal.SIGKILL)
        done = child.wait(_SIGNAL_LIMIT_S)
    if done.code != -signal.SIGKILL:
        _require_ended(workdir, done, [number], saved=True)
    _require_little_lost(workdir, done)
    go_on(scene, workdir, done)
    return f"{signal.Signals(number).name} {said}, killed {pause:.2f} s later"


def validating(scene: Scene) -> str:
    """Ended or killed while it validates."""
    workdir, mark = scene.folder / "run", scene.folder / "validating"
    number = scene.pick(signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    child = _begin(scene, patches=[functools.partial(patched.mark_validation, mark, 0.4)])
    with children.ending(child):
        child.until(mark.exists)
        _jitter(scene, 0.6)
        child.send(number)
        done = child.wait(_SIGNAL_LIMIT_S)
    if number == signal.SIGKILL:
        _require_little_lost(workdir, done)
        where = "killed"
    else:
        where = _require_ended(workdir, done, [number], saved=True)
    go_on(scene, workdir, done)
    return f"{signal.Signals(number).name} while validating, {where}"


def two_jobs(scene: Scene) -> str:
    """A second job on the workdir is refused, and the first one goes on to the right result."""
    workdir = scene.folder / "run"
    after = functools.partial(digests.of_run, workdir)
    step = int(scene.rng.integers(0, 4))
    child = _begin(scene, patches=[functools.partial(patched.pace, 0.3)], after=after)
    with children.ending(child):
        child.until(lambda: lines_of(workdir / "metrics.jsonl") >= step and workdir.exists())
        second = scene.run(artefacts.train_argv(workdir, scene.art.records), "second")
        running = child.poll() is None
        first = child.wait()
    verdicts.require_done(first)
    require_undisturbed(scene, first, second)
    if running:
        verdicts.require_plain(second, {1})
        if second.typed != "SJ-T03":
            raise verdicts.Lost(f"the second job got {second.typed}, not SJ-T03", second)
    go_on(scene, workdir, first, second)
    return "refused" if running else "the first had ended"
