"""Signals to a run, of one process or of several.

Several processes have to stop at the same step, since none can do a step without the others. JAX's
runtime takes SIGTERM in each of them and lets them agree on one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import jax

from stemjax import stopping


class Asked(Protocol):
    """Whether the run has to stop: of `stopping.Stop`, what a loop uses."""

    def check(self) -> None:
        """Raises `stopping.Stopped` at a step where the run has to stop."""
        ...

    def interruptible(self) -> contextlib.AbstractContextManager[None]:
        """A block that a signal interrupts."""
        ...

    def abandonable(self, leave: Callable[[], str]) -> contextlib.AbstractContextManager[None]:
        """A block that another thread ends with the process, where the main thread stays away."""
        ...


class Together:
    """The same of several processes, which stop at one step and nowhere else."""

    def __init__(self) -> None:
        self._calls = itertools.count()

    def check(self) -> None:
        """Raises at the step that all processes agree on; all have to call it, at every step."""
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(next(self._calls)):
            raise stopping.Stopped(signal.SIGTERM)

    def interruptible(self) -> contextlib.AbstractContextManager[None]:
        """Nothing: one process alone cannot stop."""
        return contextlib.nullcontext()

    def abandonable(self, leave: Callable[[], str]) -> contextlib.AbstractContextManager[None]:
        """Nothing, likewise."""
        del leave
        return contextlib.nullcontext()


@contextlib.contextmanager
def watched() -> Iterator[Asked]:
    """Takes the signals of this run while the block is at work."""
    if jax.process_count() == 1:
        with stopping.deferred() as stop:
            yield stop
        return
    if threading.current_thread() is not threading.main_thread():
        yield Together()
        return
    # Ctrl-C in one terminal stops all, as SIGTERM does.
    before = signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        yield Together()
    finally:
        signal.signal(signal.SIGINT, before)
