"""The thread that knows which processes of a run are alive, and ends this one if one is not.

Every process but the first holds a connection to the first, and both ends say every two seconds
that they are there. A killed process closes its connections: that is noticed at once. One that is
frozen, or that the network has lost, is silent: that is noticed after `LIMIT_S`. What the first
process learns it tells the others, and then all end, each in its own words on its own stderr.

The thread says that this process is alive for as long as it gets Python's lock. XLA gives the lock
away while it compiles, runs and waits for others, numpy and HDF5 while they work on large arrays;
pure Python hands it over two hundred times a second. So a long step is not a dead process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from stemjax import errors

LIMIT_S = 20.0
"""Seconds of silence after which a process counts as lost."""

BEATS = 10
"""Signs of life in that time."""

GRACE_S = 10.0
"""Seconds that a process has to end by itself after another ended with an error."""

RESTART = 75
"""Exit code of a process that ends because another is gone: starting again may mend it."""

ORDERLY = (0, 130, 143)
"""Exit codes of processes that are done, or were told to stop: the others may have work left."""

_AS_THEY_ARE = (1, 2, 70)
_HAND_OVER_S, _SAY_S, _FAREWELL_S, _HELLO_S = 5.0, 2.0, 2.0, 10.0
_LONGEST, _MOST_SAID = 2**16, 500


class Peer(NamedTuple):
    """A process of the run."""

    number: int
    host: str
    pid: int


def me(index: int) -> Peer:
    """Returns this process."""
    return Peer(index, socket.gethostname(), os.getpid())


class Left(NamedTuple):
    """How a process took its leave: its exit code, and the error if any."""

    peer: Peer
    code: int
    said: str


class Link:
    """A connection to another process, of lines of JSON."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.end, self.silent_s, self._read = end, 0.0, b""
        self.peer: Peer | None = None

    def send(self, *message: Any) -> None:
        """Sends a message; whether it arrived will be seen elsewhere."""
        with contextlib.suppress(OSError):
            self.end.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> tuple[list[list[Any]], bool]:
        """Returns the messages that have come, and whether the connection is open."""
        is_open = True
        try:
            while data := self.end.recv(_LONGEST):
                self._read += data
                if len(self._read) > _LONGEST:
                    break
            is_open = False
        except BlockingIOError:
            pass
        except OSError:
            is_open = False
        *lines, self._read = self._read.split(b"\n")
        try:
            return [list(json.loads(line)) for line in lines], is_open
        except (ValueError, TypeError):
            return [], False


class Watch:
    """What this process knows of the others of its run.

    Args:
      index: which process this is.
      count: processes in all.
      listener: where the others connect to; the first process's alone.
      link: the connection to the first process; all others'.
      first: that process; all others'.
      token: what a process says to show that it belongs to the run.
      limit_s: silence after which a process counts as lost.
      leave: ends this process with an exit code; `os._exit`.

    Attributes:
      lost: the error that this process ends with, once another is gone.
      restart: what to do then, after "start them again with the same command".
    """

    def __init__(
        self,
        *,
        index: int,
        count: int,
        token: str,
        listener: socket.socket | None = None,
        link: socket.socket | None = None,
        first: Peer | None = None,
        limit_s: float = LIMIT_S,
        grace_s: float = GRACE_S,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self._me = me(index)
        self._count, self._token, self._listener = count, token, listener
        self._limit_s, self._beat_s, self._grace_s = limit_s, limit_s / BEATS, grace_s
        self._exit, self._left, self._links = leave, dict[int, Left](), list[Link]()
        self._failed: tuple[Left, float] | None = None
        self._changed = threading.Condition()
        self._expected = self._stopped = self._parted = False
        self._code: int | None = None  # that this process is ending with
        self._selector = selectors.DefaultSelector()
        self.lost: errors.PeerLostError | None = None
        self.restart = ""
        if listener is not None:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, None)
        if link is not None:
            added = self._add(link)
            added.peer = first
            added.send("hello", token, *self._me)
        self._thread = threading.Thread(target=self._work, name="stemjax-peers", daemon=True)
        # Speaks in a thread of its own, as nobody may be reading; Python starts none at its end.
        self._speaker, self._has_said = queue.SimpleQueue[str | None](), threading.Event()

    def start(self) -> None:
        """Starts the thread."""
        threading.Thread(target=self._speak, name="stemjax-farewell", daemon=True).start()
        self._thread.start()

    def stop(self) -> None:
        """Watches no more, and lets the others go."""
        self._stopped = True
        self._thread.join(2 * self._beat_s)

    def knows(self, seconds: float) -> errors.StemjaxError | None:
        """Returns why another process is gone, as soon as that is known, or None after a while.

        The caller has some seconds then to end this process, which the thread does otherwise.
        """
        with self._changed:
            self._expected = True
            try:
                found = self._changed.wait_for(self._why, seconds)
            finally:
                self._expected = self.lost is not None
        return found

    def leave(self, code: int, said: str, seconds: float | None) -> bool:
        """Tells the others that this process ends, and waits until they end too.

        Args:
          code: its exit code.
          said: its error, if it failed.
          seconds: how long to wait; None is for as long as the others are alive.

        Returns:
          Whether all others have left in order, as this one.
        """
        with self._changed:
            self._code = code
            self._note(Left(self._me, code, said[:_MOST_SAID]))
            until = time.monotonic() + (math.inf if seconds is None else seconds)

            def is_over() -> bool:
                return len(self._left) == self._count or self._why() is not None

            while not is_over() and self._thread.is_alive() and time.monotonic() < until:
                self._changed.wait(min(1.0, max(0.0, until - time.monotonic())))
            if self.lost is not None:
                self._changed.wait_for(lambda: self._parted, _FAREWELL_S + 1)
            codes = [left.code for left in self._left.values()]
            return len(codes) == self._count and all(one in ORDERLY for one in codes)

    def _why(self) -> errors.StemjaxError | None:
        if self.lost is not None:
            return self.lost
        if self._failed is not None:
            return self._explain_failure(self._failed[0])
        return None

    def _work(self) -> None:
        try:
            self._watch()
        finally:
            for link in list(self._links):
                self._drop(link)
            self._selector.close()
            if self._listener is not None:
                self._listener.close()
            self._speaker.put(None)

    def _watch(self) -> None:
        last, beat = time.monotonic(), 0.0
        while not self._stopped:
            ready = self._selector.select(max(0.0, beat - time.monotonic()))
            now = time.monotonic()
            # While this process itself stood still it cannot tell whether others were silent.
            passed, last = min(now - last, self._beat_s), now
            with self._changed:
                for key, _ in ready:
                    self._accept() if key.data is None else self._hear(key.data)
                if now >= beat:
                    beat = now + self._beat_s
                    self._tell("beat")
                for link in list(self._links):
                    link.silent_s += passed
                    if link.peer is None and link.silent_s > _HELLO_S:
                        self._drop(link)
                    elif link.peer is not None and link.silent_s > self._limit_s:
                        self._lose(link.peer, f"stopped answering {link.silent_s:.0f} s ago")
                late = self._failed is not None and now > self._failed[1]
            if self.lost is not None:
                self._finish(self.lost, RESTART)
                return
            if late and self._failed is not None and self._code is None:
                left = self._failed[0]
                code = left.code if left.code in _AS_THEY_ARE else RESTART
                self._finish(self._explain_failure(left), code)
                return

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            end, _ = self._listener.accept()
            if len(self._links) > 2 * self._count + 16:
                end.close()
                return
            self._add(end)

    def _add(self, end: socket.socket) -> Link:
        link = Link(end)
        self._links.append(link)
        self._selector.register(end, selectors.EVENT_READ, link)
        return link

    def _drop(self, link: Link) -> None:
        self._selector.unregister(link.end)
        self._links.remove(link)
        link.end.close()

    def _hear(self, link: Link) -> None:
        messages, is_open = link.receive()
        for message in messages:
            if link.peer is None:
                if len(message) != 5 or message[:2] != ["hello", self._token]:
                    is_open = False  # a stranger
                    break
                link.peer = Peer(*message[2:])
                for left in self._left.values():
                    link.send("left", *left)
                continue
            link.silent_s = 0.0
            kind, *given = message
            if kind == "left":
                self._note(Left(Peer(*given[0]), *given[1:]))
            elif kind == "lost":
                self._lose(Peer(*given[0]), given[1])
        if is_open:
            return
        self._drop(link)
        left = self._left.get(link.peer.number) if link.peer is not None else None
        if link.peer is not None and left is None:
            self._lose(link.peer, "was killed or crashed")
        elif left is not None and left.code != 0:
            # It was stopped and is gone: whoever does not stop too waits for it in vain.
            self._fail(left)

    def _note(self, left: Left) -> None:
        if left.peer.number in self._left:
            return
        self._left[left.peer.number] = left
        if left.peer != self._me and left.code not in ORDERLY:
            self._fail(left)
        if left.peer == self._me or self._listener is not None:
            self._tell("left", *left)
        self._changed.notify_all()

    def _fail(self, left: Left) -> None:
        if self._failed is None:
            self._failed = left, time.monotonic() + self._grace_s
            self._changed.notify_all()

    def _lose(self, peer: Peer, how: str) -> None:
        if self.lost is not None or peer.number in self._left:
            return
        if self._listener is not None:
            self._tell("lost", peer, how)
        what = f"{self._named(peer)} {how}"
        if peer.number == self._me.number:
            what = f"{self._named(peer)} did not answer for so long that the others have ended"
        self.lost = errors.PeerLostError(
            what,
            fix=f"All processes end; start them again with the same command{self.restart}",
        )
        self._changed.notify_all()

    def _tell(self, *message: Any) -> None:
        for link in self._links:
            if link.peer is not None:
                link.send(*message)

    def _named(self, peer: Peer) -> str:
        return f"Process {peer.number} of {self._count} (host {peer.host}, pid {peer.pid})"

    def _explain_failure(self, left: Left) -> errors.DisagreementError | errors.PeerLostError:
        is_own_fault = left.code in _AS_THEY_ARE
        kind = errors.DisagreementError if is_own_fault else errors.PeerLostError
        how = f"error {left.said}" if left.said else f"exit code {left.code}"
        fix = "mend that, and start them again" if is_own_fault else "start them again"
        return kind(
            f"{self._named(left.peer)} ended with {how}",
            fix=f"All processes end; {fix} with the same command{self.restart}",
        )

    def _finish(self, error: errors.StemjaxError, code: int) -> None:
        """Ends this process: whoever has the error in hand may say so, and if not, this does."""
        with self._changed:
            if self.lost is None:
                self._note(Left(self._me, code, ""))
        self._say_farewell()
        with self._changed:
            self._parted = True
            self._changed.notify_all()
            if self._expected:
                self._changed.wait_for(lambda: self._code is not None, _HAND_OVER_S)
            if self._code is not None and self._code not in ORDERLY:
                return  # it ends already, with what it has to say itself
        self._speaker.put(str(error))
        self._has_said.wait(_SAY_S)
        self._exit(code)

    def _say_farewell(self) -> None:
        """Makes sure that what was told has arrived: a connection closed too early loses it."""
        if self._listener is None:
            return
        until = time.monotonic() + _FAREWELL_S
        for link in self._links:
            with contextlib.suppress(OSError):
                link.end.shutdown(socket.SHUT_WR)
        while self._links and time.monotonic() < until:
            for key, _ in self._selector.select(0.1):
                if key.data is not None and not key.data.receive()[1]:
                    self._drop(key.data)

    def _speak(self) -> None:
        text = self._speaker.get()
        if text is None:
            return
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="replace") + b"\n")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        self._has_said.set()
