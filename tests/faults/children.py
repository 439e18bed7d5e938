"""Commands of stemjax as processes of their own, forked from one that has imported everything.

Importing takes seven seconds and forking milliseconds. The process that forks has one thread and no
JAX backend, so that a child starts as a fresh one does. Every child leads a process group, which
can be killed whole, and dies with the process that forked it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from tests.faults import verdicts

LIMIT_S = 120.0
"""Seconds that a command may take before it counts as hanging; it takes about two."""

MARK = "STEMJAX_FAULTS"
"""Environment variable by which programs that a command started are found when they are left."""

_POLL_S = 0.0005
_PR_SET_PDEATHSIG = 1
_HEAVY = (
    "jax", "orbax.checkpoint", "anndata", "h5py", "zarr", "tensorflow_datasets", "scipy.stats",
    "array_record.python.array_record_data_source", "ml_collections.config_flags",
    "stemjax.cli", "stemjax.configfile", "stemjax.terminal", "stemjax.compilation",
    "stemjax.train.loop", "stemjax.export.bundle", "stemjax.export.program",
    "stemjax.eval.cohort", "stemjax.eval.evaluate", "stemjax.eval.shares", "stemjax.eval.calibrate",
    "stemjax.data.prepare", "stemjax.data.layouts.hest", "stemjax.data.embedding_files.own",
    "stemjax.integrations.qupath", "stemjax.integrations.ome_zarr", "stemjax.integrations.loupe",
)  # fmt: skip


def import_all() -> None:
    """Imports what commands use, and checks that no device was touched."""
    for name in _HEAVY:
        importlib.import_module(name)
    from jax._src import xla_bridge

    if xla_bridge.backends_are_initialized():
        raise RuntimeError("importing touched a device: children forked now would hang")


class Child:
    """A command under way.

    Args:
      argv: arguments of ``stemjax``.
      cwd: its working directory.
      logs: its output goes to files of this name with .out, .err and .json behind.
      env: environment variables; None takes one away.
      patches: called in the child before the command.
      after: called in the child after a command that ended with 0; its plain value is ``extra``.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: pathlib.Path,
        logs: pathlib.Path,
        env: Mapping[str, str | None] | None = None,
        patches: Sequence[Callable[[], None]] = (),
        after: Callable[[], Any] | None = None,
    ) -> None:
        self.argv, self._logs, self.code = list(argv), logs, None
        sys.stdout.flush()
        sys.stderr.flush()
        self.started = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            _become(self.argv, cwd, logs, env or {}, patches, after)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # both sides: no race
            os.setpgid(self.pid, self.pid)

    def poll(self) -> int | None:
        """Returns the exit code, or None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def send(self, number: int) -> bool:
        """Sends a signal to the process alone; returns whether it was still there."""
        if self.poll() is not None:
            return False
        os.kill(self.pid, number)
        return True

    def kill(self) -> None:
        """Kills the process and what it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        while self.poll() is None:
            time.sleep(_POLL_S)

    def until(self, event: Callable[[], bool], limit: float = LIMIT_S) -> bool:
        """Waits for an event; returns False if the process ended, or the time, before it."""
        end = time.monotonic() + limit
        while not event():
            if self.poll() is not None or time.monotonic() > end:
                return event()
            time.sleep(_POLL_S)
        return True

    def wait(self, limit: float = LIMIT_S) -> verdicts.Done:
        """Returns how it ended; kills it if it does not within the limit."""
        end, late = time.monotonic() + limit, False
        while self.poll() is None:
            if time.monotonic() > end:
                late = True
                self.send(signal.SIGUSR1)  # it says where it hangs (`_become`)
                time.sleep(0.5)
                self.kill()
            time.sleep(2 * _POLL_S)
        seconds = time.monotonic() - self.started
        self.kill()  # what it may have started
        code = self.code
        assert code is not None
        extra = self._logs.with_suffix(".json")
        return verdicts.Done(
            argv=self.argv, code=code, seconds=seconds, late=late,
            out=self._logs.with_suffix(".out").read_text(errors="replace"),
            err=self._logs.with_suffix(".err").read_text(errors="replace"),
            extra=json.loads(extra.read_text()) if extra.exists() else None,
        )  # fmt: skip


@contextlib.contextmanager
def ending(*children: Child) -> Iterator[None]:
    """Kills children that still run when the block ends, however it does."""
    try:
        yield
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGCONT)
            child.kill()


def descendants(pid: int) -> list[int]:
    """Returns the processes that a process started, and those that they did, parents first."""
    parents: dict[int, list[int]] = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found = list(parents.get(pid, ()))
    for child in found:  # grows while it is read
        found += parents.get(child, ())
    return found


def kill_left(mark: str) -> int:
    """Kills every program that was started with this mark; returns how many there were.

    Commands themselves are forked, show the environment of the first process, and die with theirs.
    """
    wanted, killed = f"{MARK}={mark}".encode(), 0
    for entry in pathlib.Path("/proc").glob("[0-9]*/environ"):
        pid = int(entry.parent.name)
        with contextlib.suppress(OSError):
            if pid != os.getpid() and wanted in entry.read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


def _become(
    argv: list[str],
    cwd: pathlib.Path,
    logs: pathlib.Path,
    env: Mapping[str, str | None],
    patches: Sequence[Callable[[], None]],
    after: Callable[[], Any] | None,
) -> NoReturn:
    """Is the command, and ends as the interpreter does; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _redirect(logs)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        for name, value in env.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        os.chdir(cwd)
        sys.argv = ["stemjax", *argv]
        code = _run(argv, patches)
        if code == 0 and after is not None:
            logs.with_suffix(".json").write_text(json.dumps(after()))
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001 - nothing may return into the process that forked
        traceback.print_exc()
        code = code or 70
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(argv: list[str], patches: Sequence[Callable[[], None]]) -> int:
    for patch in patches:
        patch()
    from stemjax import cli

    try:
        return cli.main(argv) if argv else 0
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)


def _redirect(logs: pathlib.Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(logs.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
