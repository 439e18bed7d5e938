"""Requests that wait, and the one thread that takes them to the device in batches.

A batch is of one order (`menu.Order`): the oldest request that waits and the others of its order,
as many spots as fit. A request of more spots than that is taken in parts and goes to the end of the
queue after each, so that small ones need not wait for all of it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from stemjax.serving import refusals

SLOWEST = 60
"""Most seconds that a client is told to wait before it tries again."""

_log = logging.getLogger(__name__)


class Spots(Protocol):
    """Spots of one request, as `engine.Rows`."""

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> Any:
        """Returns some of the spots."""
        ...


class Batch(NamedTuple):
    """What was computed at a time, for whoever counts it."""

    spots: int
    requests: int
    seconds: float


@dataclasses.dataclass(kw_only=True, eq=False)
class Job:
    """An accepted request on its way.

    Attributes:
      order: what it wants; jobs of equal orders share batches.
      rows: its spots.
      entered: when it was accepted, seconds of the clock.
      future: the arrays, spots first, or why there are none.
      taken: spots that a batch has taken.
      parts: arrays of the batches so far.
      abandoned: nobody waits for it any more.
    """

    order: Hashable
    rows: Spots
    entered: float
    future: concurrent.futures.Future[dict[str, np.ndarray]] = dataclasses.field(
        default_factory=concurrent.futures.Future
    )
    taken: int = 0
    parts: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    abandoned: bool = False


class Batcher:
    """A bounded queue of jobs, and the thread that works on them.

    Args:
      run: (order, parts) -> arrays of the parts' spots, one after the other.
      capacity: most spots of an order in a batch.
      warm: called in the thread before any job.
      queue: most jobs that wait.
      max_wait_s: how long a batch that is not full waits for company.
      observe: told of every batch.
      on_failed: called if ``warm`` fails; nothing will be accepted then.
    """

    def __init__(
        self,
        run: Callable[[Any, Sequence[Any]], dict[str, np.ndarray]],
        *,
        capacity: Callable[[Any], int],
        warm: Callable[[], None],
        queue: int,
        max_wait_s: float,
        observe: Callable[[Batch], None] = lambda batch: None,
        on_failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._run, self._capacity, self._warm, self._observe = run, capacity, warm, observe
        self._queue, self._max_wait_s, self._on_failed = queue, max_wait_s, on_failed
        self._waiting: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._ready = self._stopping = False
        self._seconds_a_spot = 0.0
        self._thread = threading.Thread(target=self._work, name="stemjax-device", daemon=True)
        self.failure: Exception | None = None

    def start(self) -> None:
        """Starts the thread, which warms up first."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether jobs are accepted, as long as there is room."""
        return self._ready and not self._stopping

    @property
    def length(self) -> int:
        """Jobs that wait, those of which a part was computed too."""
        return len(self._waiting)

    def submit(self, order: Hashable, rows: Spots) -> Job:
        """Returns the job of some spots, which is computed whatever happens, unless abandoned.

        Raises:
          BusyError: the queue is full, or nothing is accepted yet, or any more.
        """
        with self._changed:
            if not self.ready:
                found = "it is stopping" if self._stopping else "programs are being compiled"
                raise _busy("the service is not ready", found=found, seconds=5)
            self._drop_abandoned()
            if len(self._waiting) >= self._queue:
                raise _busy(
                    "the queue is full", found=f"{self._queue} requests that wait",
                    seconds=self._backlog_seconds(),
                )  # fmt: skip
            job = Job(order=order, rows=rows, entered=time.monotonic())
            # From here on nobody can cancel it: the thread alone sets the result.
            job.future.set_running_or_notify_cancel()
            self._waiting.append(job)
            self._changed.notify()
        return job

    def stop(self) -> None:
        """Accepts no more jobs, and returns when all that were accepted are done."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _backlog_seconds(self) -> float:
        spots = sum(len(job.rows) - job.taken for job in self._waiting)
        return spots * self._seconds_a_spot

    def _work(self) -> None:
        try:
            self._warm()
        except Exception as error:  # noqa: BLE001 - the server hands it on and ends
            _log.exception("the service cannot start")
            self.failure = error
            self._on_failed()
            return
        self._ready = True
        while taken := self._take():
            self._compute(taken)

    def _take(self) -> list[tuple[Job, int, int]]:
        """The next batch, as jobs with the spots taken of them; none when it is time to end."""
        with self._changed:
            while True:
                self._drop_abandoned()
                if not self._waiting:
                    if self._stopping:
                        return []
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                alike = [job for job in self._waiting if job.order == first.order]
                room = self._capacity(first.order)
                left = first.entered + self._max_wait_s - time.monotonic()
                full = sum(len(job.rows) - job.taken for job in alike) >= room
                if full or self._stopping or left <= 0:
                    return self._take_of(alike, room)
                self._changed.wait(left)

    def _take_of(self, alike: Sequence[Job], room: int) -> list[tuple[Job, int, int]]:
        taken = []
        for job in alike:
            if not room:
                break
            start = job.taken
            job.taken = min(len(job.rows), start + room)
            room -= job.taken - start
            taken.append((job, start, job.taken))
            self._waiting.remove(job)
            if job.taken < len(job.rows):
                self._waiting.append(job)
        return taken

    def _drop_abandoned(self) -> None:
        for job in [job for job in self._waiting if job.abandoned]:
            self._waiting.remove(job)

    def _compute(self, taken: Sequence[tuple[Job, int, int]]) -> None:
        spots = sum(stop - start for _, start, stop in taken)
        began = time.monotonic()
        try:
            order = taken[0][0].order
            found = self._run(order, [job.rows.part(start, stop) for job, start, stop in taken])
        except Exception as error:  # noqa: BLE001 - goes to those who asked; others go on
            _log.exception("a batch of %d spots failed", spots)
            self._fail([job for job, _, _ in taken], error)
            return
        seconds = time.monotonic() - began
        # A mean over about the last ten batches.
        before = self._seconds_a_spot or seconds / spots
        self._seconds_a_spot = 0.9 * before + 0.1 * seconds / spots
        self._observe(Batch(spots=spots, requests=len(taken), seconds=seconds))
        row = 0
        for job, start, stop in taken:
            rows = slice(row, row + stop - start)
            row = rows.stop
            job.parts.append({name: array[rows] for name, array in found.items()})
            if stop == len(job.rows):
                parts = job.parts
                whole = {name: np.concatenate([part[name] for part in parts]) for name in found}
                job.future.set_result(whole)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        with self._changed:
            for job in jobs:
                if job in self._waiting:
                    self._waiting.remove(job)
                job.future.set_exception(error)


def _busy(what: str, *, found: str, seconds: float) -> refusals.BusyError:
    wait = min(SLOWEST, max(1, math.ceil(seconds)))
    return refusals.BusyError(
        what, found=found, fix=f"try again in {wait} s", headers={"Retry-After": str(wait)}
    )
