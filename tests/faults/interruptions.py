"""One long run, interrupted many times: ``python -m tests.faults.interruptions``.

A run of 300 steps is interrupted 100 times by SIGTERM, SIGINT and ``kill -9``, as it begins,
between steps and while it saves, and goes on each time by the same command. Its last line is
``interruptions 100 digest same`` where weights, EMA, optimiser state, best weights and all losses
are those of the run that nothing interrupted.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

import numpy as np

from tests.faults import __main__ as program
from tests.faults import artefacts, cases, children, digests, patched, verdicts
from tests.faults.scene import Scene, last_committed, last_logged

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
_PACE_S = 0.004
"""Longer for each update: the steps of the tiny run take a millisecond, and none could be met."""


def main(argv: Sequence[str] | None = None) -> int:
    """Interrupts a run as often as asked for; returns 0 if it ends as the undisturbed one."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.interruptions")
    parser.add_argument("--times", type=int, default=100, metavar="N")
    parser.add_argument("--steps", type=int, default=300, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=pathlib.Path, help="work here, and reuse the artefacts")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    children.import_all()
    with program.workplace(args.folder) as (folder, mark):
        scene = Scene(
            case=cases.Case(seed=args.seed, number=0, kind="interruptions"),
            rng=np.random.default_rng([args.seed, 2]),
            folder=folder / "interruptions",
            art=artefacts.make(folder / "artefacts", mark),
            mark=mark,
        )
        artefacts.clear(scene.folder)
        try:
            done, differ = _play(scene, args.times, args.steps)
        except verdicts.Failed as failed:
            program.say("\n".join([failed.why, *(one.describe() for one in failed.evidence)]))
            done, differ = 0, "lost"
    program.say(f"interruptions {done} digest {differ or 'same'}")
    return 0 if done == args.times and not differ else 1


def _play(scene: Scene, times: int, steps: int) -> tuple[int, str]:
    """Returns how often the run was interrupted, and in what its end differs."""
    rhythm = ["--config.train.save_every=5", "--config.train.validate_every=25"]
    more = [f"--config.train.steps={steps}", *rhythm]
    wanted = _finish(scene, scene.folder / "undisturbed", more)
    workdir, done = scene.folder / "run", 0
    for number in range(times):
        if not _interrupt(scene, workdir, more, times - number, steps):
            break
        done += 1
        where = f"at step {last_logged(workdir)}, saved {last_committed(workdir)}"
        program.say(f"[{number + 1}/{times}] {where}")
    found = _finish(scene, workdir, more)
    differ = [name for name in wanted if found.get(name) != wanted[name]]
    return done, ", ".join(differ)


def _finish(scene: Scene, workdir: pathlib.Path, more: Sequence[str]) -> dict[str, object]:
    argv = artefacts.train_argv(workdir, scene.art.records, *more)
    after = functools.partial(digests.of_run, workdir)
    done = verdicts.require_done(scene.run(argv, workdir.name, after=after))
    assert isinstance(done.extra, dict)
    return done.extra


def _interrupt(
    scene: Scene, workdir: pathlib.Path, more: Sequence[str], left: int, steps: int
) -> bool:
    """Starts the run and interrupts it; returns whether it was still under way."""
    at, number = last_logged(workdir), scene.pick(*_NUMBERS)
    # So many steps a time on average that the last interruption still meets the run.
    room = max(1, int(1.6 * (steps - 4 - at) / left))
    target = at + int(scene.rng.integers(0, room + 1))
    early, wait_s = scene.chance(0.15), scene.rng.random() * 0.8
    argv = artefacts.train_argv(workdir, scene.art.records, *more)
    child = scene.start(argv, "run", patches=[functools.partial(patched.pace, _PACE_S)])
    with children.ending(child):
        begun = itertools.count()
        if early:
            end = time.monotonic() + wait_s
            child.until(lambda: time.monotonic() >= end)
        else:
            child.until(lambda: next(begun) % 4 == 0 and last_logged(workdir) > target)
        sent = child.send(number)
        done = child.wait()
    if not sent:
        verdicts.require_plain(done, {0})
        return False
    logged, committed = last_logged(workdir), last_committed(workdir)
    codes = {-number} if early or number == signal.SIGKILL else set()
    if number != signal.SIGKILL:
        codes |= {143 if number == signal.SIGTERM else 130}
    if done.code != -signal.SIGKILL:
        verdicts.require_plain(done, codes)
    if done.code in (130, 143) and committed < logged:
        raise verdicts.Lost(f"ended at step {logged}, and saved step {committed}", done)
    if not verdicts.within_one_save(logged, committed, 5):
        raise verdicts.Lost(f"killed at step {logged}, and only step {committed} is saved", done)
    return True


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
