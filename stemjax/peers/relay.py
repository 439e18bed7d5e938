"""A way to JAX's coordinator that does not end when the coordinator does.

JAX's client in every process holds a connection to the first one. When that process is killed the
connection breaks, and the client prints pages of its own and aborts the process a tenth of a second
later: there is no time to say anything better, nor an exit code to choose. So the others connect to
the first through a port of their own, which passes every byte on. When the first is gone that port
falls silent in place of closing; whoever watches (`watch.Watch`) ends the process in words, and if
nobody does JAX's client notices the silence when its heartbeats have failed for long enough.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

_CHUNK = 2**16
_AGAIN_S, _CONNECT_S = 0.2, 5.0


class Relay:
    """Passes bytes between a port of this process and one elsewhere.

    Attributes:
      address: ``HOST:PORT`` to connect to, on this machine alone.
      trouble: why the other side could not be reached the last time, if ever.

    Args:
      host: where the bytes go.
      port: likewise.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = host.strip("[]"), port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._holding = self._closed = False
        self.trouble: OSError | None = None
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        _start(self._accept)

    def is_reached(self, seconds: float) -> bool:
        """Returns whether the other side takes connections, or does within so many seconds."""
        until = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(self._target, timeout=_CONNECT_S).close()
            except OSError as error:
                self.trouble = error
                if time.monotonic() > until:
                    return False
                time.sleep(_AGAIN_S)
            else:
                return True

    def hold(self) -> None:
        """From here on a connection that the other side closes stays open on this side."""
        self._holding = True

    def close(self) -> None:
        """Takes no more connections."""
        self._closed = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            _start(self._serve, near)

    def _serve(self, near: socket.socket) -> None:
        far = self._reach(near)
        if far is None:
            near.close()
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _start(_pass_on, near, far)
        _pass_on(far, near, hold=lambda: self._holding)

    def _reach(self, near: socket.socket) -> socket.socket | None:
        """Connects to the other side as long as somebody on this side waits for it."""
        while not self._closed and not _has_closed(near):
            try:
                far = socket.create_connection(self._target, timeout=_CONNECT_S)
            except OSError as error:
                self.trouble = error
                time.sleep(_AGAIN_S)
            else:
                far.settimeout(None)
                return far
        return None


def _start(function, *given) -> None:  # noqa: ANN001, ANN002 - any function
    threading.Thread(target=function, args=given, name="stemjax-relay", daemon=True).start()


def _has_closed(end: socket.socket) -> bool:
    try:
        return not end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _pass_on(source: socket.socket, to: socket.socket, hold=lambda: False) -> None:  # noqa: ANN001
    """Passes on what comes from one side until it closes; then closes the other, unless held."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            to.sendall(data)
    if hold():
        return
    for end in (source, to):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
