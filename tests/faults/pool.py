"""Workers: processes that play cases one after another, forked once everything is imported."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from multiprocessing import connection
from typing import Any

from tests.faults import cases, playing


class _Left(BaseException):
    """The run is over: a signal came. No case takes it for its own failure."""


def play_all(
    todo: Iterable[cases.Case], stage: playing.Stage, jobs: int
) -> Iterator[playing.Verdict]:
    """Yields the verdicts of cases as they come; no worker is left when it ends.

    Args:
      todo: the cases.
      stage: what they have in common.
      jobs: workers.
    """
    context, waiting = multiprocessing.get_context("fork"), iter(todo)
    workers: dict[Any, Any] = {}
    try:
        for _ in range(jobs):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, stage))
            process.start()
            theirs.close()
            workers[ours] = process
            ours.send(next(waiting, None))
        idle: set[Any] = set()
        while len(idle) < len(workers):
            for pipe in connection.wait([pipe for pipe in workers if pipe not in idle]):
                assert isinstance(pipe, connection.Connection)
                try:
                    verdict = pipe.recv()
                except EOFError as error:
                    raise RuntimeError("a worker of the harness died") from error
                if verdict is None:
                    idle.add(pipe)
                    continue
                yield verdict
                pipe.send(next(waiting, None))
    finally:
        for process in workers.values():
            if process.is_alive():
                process.terminate()
            process.join()


def _work(pipe: Any, stage: playing.Stage) -> None:
    """Plays what comes through the pipe until None does."""
    os.setpgid(0, 0)  # Ctrl-C goes to the first process, which ends this one in order

    def leave(*_: object) -> None:
        raise _Left

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(_Left, EOFError, BrokenPipeError):
        while (case := pipe.recv()) is not None:
            pipe.send(playing.play(case, stage))
        pipe.send(None)
