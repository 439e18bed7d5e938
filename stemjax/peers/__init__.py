"""When a process of a run of several is gone, the others end, in one plain sentence.

Without this a collective waits for ever for what a frozen process will never send, and where JAX
notices it aborts with pages of its own. `begin` is called once the processes are connected
(`stemjax.distributed.start`), `end` where a command ends, and `explain` where an error may come
from a collective that lost a partner. A run of one process starts nothing, and all three are free.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from stemjax import errors
from stemjax.peers.relay import Relay
from stemjax.peers.watch import GRACE_S, LIMIT_S, ORDERLY, RESTART, Peer, Watch, me

__all__ = [
    "GRACE_S",
    "LIMIT_S",
    "ORDERLY",
    "RESTART",
    "Relay",
    "Watch",
    "begin",
    "end",
    "explain",
    "saved",
]

_KEY = "stemjax/peers"
_MEET_S, _SHUTDOWN_S, _STOP_S, _END_S = 60, 30.0, 30.0, 300.0
_BACKLOG = 1024
_log = logging.getLogger(__name__)


class _State:
    watch: Watch | None = None
    shutdown: _Shutdown | None = None
    limit_s: float = LIMIT_S
    crashed: BaseException | None = None


_state = _State()


def begin(
    store: Any,
    *,
    index: int,
    count: int,
    host: str,
    shutdown: Callable[[], None],
    limit_s: float = LIMIT_S,
) -> None:
    """Starts the thread that watches the others of this run; with one process it does nothing.

    All processes call it, and return together. Where the network carries JAX's own port alone all
    go without, and say so: JAX's heartbeats remain.

    Args:
      store: JAX's client, through which the first process tells the others its port.
      index: which process this is.
      count: processes in all.
      host: where the others reach the first one.
      shutdown: leaves JAX's coordination, when all processes are done.
      limit_s: silence after which a process counts as lost.
    """
    if count == 1 or _state.watch is not None:
        return
    watch, trouble = None, ""
    try:
        watch = _connect(store, index, count, host, limit_s)
        watch.start()
    except (OSError, RuntimeError, ValueError) as error:
        trouble = f"{type(error).__name__}: {error}"
    try:
        if trouble:
            store.key_value_set(f"{_KEY}/without/{index}", trouble)
        store.wait_at_barrier(f"{_KEY}/begin", 2 * _MEET_S * 1000)
        without = store.key_value_dir_get(f"{_KEY}/without")
    except RuntimeError as error:
        without = [("", f"{type(error).__name__}: {error}")]
    if without or watch is None:
        if watch is not None:
            watch.stop()
        _log.warning(
            "the processes cannot watch each other (%s): one that dies will be noticed later, in"
            " JAX's words",
            without[0][1],
        )
        return
    _state.watch, _state.shutdown, _state.limit_s = watch, _Shutdown(shutdown), limit_s
    _catch_crashes()
    atexit.register(_end_unasked)


def _connect(store: Any, index: int, count: int, host: str, limit_s: float) -> Watch:
    if index == 0:
        token, listener = secrets.token_hex(16), _listen()
        told = [listener.getsockname()[1], token, *me(index)]
        store.key_value_set(_KEY, json.dumps(told))
        return Watch(index=index, count=count, token=token, listener=listener, limit_s=limit_s)
    port, token, *first = json.loads(store.blocking_key_value_get(_KEY, _MEET_S * 1000))
    link = socket.create_connection((host.strip("[]"), port), timeout=_MEET_S)
    return Watch(
        index=index, count=count, token=token, link=link, first=Peer(*first), limit_s=limit_s
    )


def saved(step: int) -> None:
    """Notes the step that the processes would go on from, for whoever reads how they ended."""
    if _state.watch is not None:
        _state.watch.restart = f" to go on from step {step}"


def explain(error: BaseException) -> errors.StemjaxError | None:
    """Returns which other process is gone, if that is why this one failed, else None.

    A collective that lost a partner fails at once, with a text that says nothing, or the partner
    is frozen and this process waits: so this waits as long as it takes to know. Whoever gets the
    error prints it and calls `end`; otherwise the process ends by itself some seconds later, with
    the error on its stderr.

    Args:
      error: what was raised.

    Returns:
      PeerLostError: a process was killed, or does not answer. DisagreementError: it ended with an
      error of its own, which is quoted.
    """
    watch = _state.watch
    if watch is None or isinstance(error, errors.StemjaxError | KeyboardInterrupt | SystemExit):
        return None
    return watch.knows(_state.limit_s + GRACE_S if _is_of_others(error) else 0.0)


def end(code: int, said: str = "") -> None:
    """Ends this process's part in the run; the last thing that a command does.

    With exit code 0 it waits for the others to be done and returns, and JAX's coordination is over.
    With another it tells the others why, gives them some seconds to end too (half a minute where
    this one was told to stop, as they were), and does not return: at its usual end JAX would wait
    for them for minutes. Without others it returns.

    Args:
      code: the exit code to be.
      said: the error, as ``[SJ-D06] ...``, if there was one.
    """
    _end(code, said, None)


def _end(code: int, said: str, seconds: float | None) -> None:
    watch, _state.watch = _state.watch, None
    if watch is None:
        return
    atexit.unregister(_end_unasked)
    if code:
        seconds = _STOP_S if code in ORDERLY else GRACE_S + 2
    in_order = watch.leave(code, said, seconds)
    if in_order and code == 0 and _state.shutdown is not None and _state.shutdown.is_done():
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class _Shutdown:
    """Leaves JAX's coordination in a thread, which Python lets nobody start at a program's end."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._wanted, self._done = threading.Event(), threading.Event()
        threading.Thread(target=self._wait, name="stemjax-shutdown", daemon=True).start()

    def is_done(self) -> bool:
        """Does it, in time: all have said that they are done, but one may die even now."""
        self._wanted.set()
        return self._done.wait(_SHUTDOWN_S)

    def _wait(self) -> None:
        self._wanted.wait()
        with contextlib.suppress(RuntimeError):
            self._function()
        self._done.set()


def _end_unasked() -> None:
    """At the end of a program that does not call `end` itself."""
    error = _state.crashed
    code, said = (70, f"{type(error).__name__}: {error}") if error is not None else (0, "")
    _end(code, said, _END_S)


def _catch_crashes() -> None:
    """Looks at errors that nobody catches: they may be a collective's, and others have to hear."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        found = explain(error)
        if found is None:
            _state.crashed = error
            usual(kind, error, trace)
            return
        print(found, file=sys.stderr, flush=True)  # noqa: T201
        if _state.watch is not None:
            _state.watch.leave(RESTART, "", 0.0)
        os._exit(RESTART)

    sys.excepthook = hook


def _is_of_others(error: BaseException) -> bool:
    if type(error).__name__ not in {"JaxRuntimeError", "XlaRuntimeError", "ValueError"}:
        return False
    text = str(error)
    return not any(own in text for own in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")) and (
        not isinstance(error, ValueError) or any(word in text.lower() for word in _NETWORK)
    )


_NETWORK = ("gloo", "nccl", "unavailable", "deadline", "connection", "barrier")


def _listen() -> socket.socket:
    try:
        return socket.create_server(
            ("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
        )
    except (OSError, ValueError):
        return socket.create_server(("", 0), backlog=_BACKLOG)
