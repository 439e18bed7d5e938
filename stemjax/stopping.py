"""What a process does about SIGINT and SIGTERM.

Python runs its handlers between two of its own instructions, so a signal waits while a compiler or
a program of minutes runs. Here the signal also wakes a thread, which can end the process when the
main thread does not come back to Python.

    listening()           a signal raises `Stopped` in the main thread: files half written go
    deferred()            in a block that has something to save: a signal is only noted, and the
                          block asks (`Stop.check`) where it can stop with nothing lost
    Stop.interruptible()  inside such a block: raise at once after all, as in waiting for data
    Stop.abandonable()    likewise where the main thread may not come back for long, with what the
                          thread has to do first

A second signal changes nothing: what is being saved is saved. ``kill -9`` ends at once, and what is
committed stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

GRACE_SECONDS = 3.0
"""How long the main thread has to come back to Python before the thread ends an abandonable block.

Schedulers send SIGKILL 30 seconds after SIGTERM (Kubernetes, Cloud TPU, SLURM's default).
"""


class Stopped(KeyboardInterrupt):
    """A signal ended the work; what was to be saved is saved.

    A ``KeyboardInterrupt``, which notebooks and debuggers know how to take.

    Args:
      number: the signal.
      said: what is saved, and how to go on, in a sentence or two.
    """

    def __init__(self, number: signal.Signals, said: str = "") -> None:
        self.number, self.said = number, said
        super().__init__(str(self))

    @property
    def exit_code(self) -> int:
        """What shells and schedulers expect: 130 of SIGINT, 143 of SIGTERM."""
        return 128 + self.number

    def __str__(self) -> str:
        said = f": {self.said}" if self.said else ""
        return f"{self.number.name} received{said}"


class Stop:
    """Signals that came, and what is to be done about them. Made by `listening` or `deferred`.

    Attributes:
      asked: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._deferred = 0
        self._at_once = False
        self._leave: Callable[[], str] | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def check(self) -> None:
        """Raises if a signal came.

        Raises:
          Stopped: without a word on what is saved: whoever catches it knows.
        """
        if self.asked is not None:
            raise Stopped(self.asked)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A signal in this block raises at once; for waiting.

        Raises:
          Stopped: a signal came, before or within.
        """
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    @contextlib.contextmanager
    def abandonable(self, leave: Callable[[], str]) -> Iterator[None]:
        """A block whose main thread may stay outside Python for minutes.

        Args:
          leave: saves what there is to save, in another thread, and says so in a sentence. The
            process ends after it.
        """
        self.check()
        with self._lock:
            self._leave = leave
        try:
            yield
        finally:
            with self._lock:  # waits here while the thread is leaving: the process ends
                self._leave = None

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Handles a signal in the main thread."""
        del frame
        if self.asked is not None:
            say(f"{signal.Signals(number).name}: already stopping; what is begun is finished")
            return
        self.asked = signal.Signals(number)
        if self._at_once or not self._deferred:
            raise Stopped(self.asked)
        say(f"{self.asked.name} received: stopping")

    def watch(self, woken: socket.socket) -> None:
        """Ends an abandonable block whose main thread does not come back; runs in a thread."""
        while (number := _read(woken)) is not None:
            if number not in SIGNALS:
                continue
            came = signal.Signals(number)
            if self._ended.wait(GRACE_SECONDS):
                return
            with self._lock:
                if self._leave is not None:
                    _end(came, self._leave)
            if not self._deferred and self.asked is None and not self._ended.wait(GRACE_SECONDS):
                _end(came, lambda: "what was finished is kept")

    def end(self) -> None:
        """Tells the thread that nobody listens any more."""
        self._ended.set()


_listener: Stop | None = None


@contextlib.contextmanager
def listening(*, ending: bool = False) -> Iterator[Stop]:
    """Takes SIGINT and SIGTERM in this block; outside the main thread nothing is taken.

    Within another such block it is that one.

    Args:
      ending: the process ends after the block. If a signal came, later ones are passed over then:
        they would end it before it has told its exit code.
    """
    global _listener
    if _listener is not None or threading.current_thread() is not threading.main_thread():
        yield _listener or Stop()
        return
    stop, (ours, woken) = Stop(), socket.socketpair()
    ours.setblocking(False)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    earlier = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=stop.watch, args=(woken,), daemon=True, name="signals")
    thread.start()
    for number in SIGNALS:
        signal.signal(number, stop.note)
    _listener = stop
    try:
        yield stop
    finally:
        _listener = None
        stop.end()
        for number in SIGNALS:
            # A handler that was not set by Python cannot be set again by it.
            usual = before[number] or signal.SIG_DFL
            over = ending and stop.asked is not None
            signal.signal(number, signal.SIG_IGN if over else usual)
        signal.set_wakeup_fd(earlier)
        ours.close()
        thread.join()
        woken.close()


@contextlib.contextmanager
def deferred() -> Iterator[Stop]:
    """As `listening`, but a signal only raises where the block asks or allows it."""
    with listening() as stop:
        stop._deferred += 1
        try:
            yield stop
        finally:
            stop._deferred -= 1


def say(text: str) -> None:
    """Prints a line on standard error, past whatever shows progress there."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _read(woken: socket.socket) -> int | None:
    """The next signal's number; None when the other end is closed."""
    try:
        found = woken.recv(1)
    except OSError:
        return None
    return found[0] if found else None


def _end(number: signal.Signals, leave: Callable[[], str]) -> None:
    """Ends the process, whose main thread is elsewhere."""
    started = time.perf_counter()
    try:
        said = leave()
    except BaseException as error:  # noqa: BLE001 - the main thread may still come back and save
        say(f"{number.name}: {type(error).__name__}: {error}")
        return
    say(str(Stopped(number, f"{said} ({time.perf_counter() - started:.1f} s)")))
    os._exit(128 + number)
