"""One job a workdir: a lock of the kernel's, and a sign of life for hosts that do not see it.

    WORKDIR/.job/lock     held by the job's first process; the kernel drops it with the process
    WORKDIR/.job/holder   who that is, and a counter that goes up every few seconds

Jobs on one host, and on hosts whose file system passes locks on, are told apart by the lock. On
other file systems every host gets the lock: there the counter tells. It is watched, not compared
with a clock, since hosts' clocks differ.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from stemjax import errors
from stemjax.data import integrity

FOLDER = ".job"
BEAT_SECONDS = 5.0
"""Time from one sign of life to the next."""

WATCH_SECONDS = 3 * BEAT_SECONDS
"""So long a job of another host has to give none, before its workdir is taken over."""


@contextlib.contextmanager
def held(
    workdir: pathlib.Path,
    *,
    steal: bool = False,
    beat: float = BEAT_SECONDS,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Holds the workdir for this job while the block runs.

    Args:
      workdir: exists.
      steal: take it whoever has it: for a job that is known to be dead and does not look it.
      beat: seconds from one sign of life to the next.
      say: told when another host's job is being watched.

    Raises:
      WorkdirInUseError: another live job has it.
    """
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    path = folder / "holder"
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "token": secrets.token_hex(8)}
    try:
        if not steal:
            if not _locked(lock):
                raise _in_use(workdir, _read(path), "its lock is held")
            theirs = _read(path)
            if theirs and theirs.get("host") != mine["host"]:
                _require_dead(workdir, theirs, beat, say)
        else:
            _locked(lock)
        _write(path, mine, 0)
        ended = threading.Event()
        thread = threading.Thread(
            target=_beat, args=(path, mine, beat, ended), daemon=True, name="workdir"
        )
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if _read(path).get("token") == mine["token"]:
                path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    """Takes the lock, unless another process has it; true where there are no locks, too."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # none on this file system: the counter decides
        pass
    return True


def _require_dead(
    workdir: pathlib.Path, theirs: dict[str, Any], beat: float, say: Callable[[str], None]
) -> None:
    """Watches another host's job for a while.

    Raises:
      WorkdirInUseError: it lives.
    """
    watch = WATCH_SECONDS / BEAT_SECONDS * beat
    say(
        f"{workdir} was last held by pid {theirs.get('pid')} on host {theirs.get('host')}: "
        f"watching {watch:.0f} s for a sign of life"
    )
    until = time.monotonic() + watch
    while time.monotonic() < until:
        time.sleep(min(0.5, beat / 4))
        now = _read(workdir / FOLDER / "holder")
        if not now:  # it ended in order
            return
        if (now.get("token"), now.get("beats")) != (theirs.get("token"), theirs.get("beats")):
            raise _in_use(workdir, now, "it gave a sign of life just now")


def _beat(path: pathlib.Path, mine: dict[str, Any], beat: float, ended: threading.Event) -> None:
    count = 0
    while not ended.wait(beat):
        count += 1
        # A full disk is the checkpoints' to report; another job's file is left to it.
        with contextlib.suppress(OSError):
            if _read(path).get("token") == mine["token"]:
                _write(path, mine, count)


def _write(path: pathlib.Path, mine: dict[str, Any], beats: int) -> None:
    integrity.write_text(path, json.dumps({**mine, "beats": beats}) + "\n")


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _in_use(workdir: pathlib.Path, theirs: dict[str, Any], why: str) -> errors.WorkdirInUseError:
    return errors.WorkdirInUseError(
        f"workdir {workdir} is in use by another job",
        expected="no live job in it",
        found=f"pid {theirs.get('pid', '?')} on host {theirs.get('host', '?')} ({why})",
        fix="use another --workdir, or end that job; if it is dead and only looks alive, "
        "--steal-lock",
    )
