"""What writers put beside their target while they write, and what killed ones have left there.

.NAME.tmp-<host>-<token>   written now, under a lock that goes with the process; or left
.NAME.old-<host>-<token>   a folder that was replaced just now; or left
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import hashlib
import os
import pathlib
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable

ABANDONED_SECONDS = 24 * 3600.0
"""After so long without a write, a temporary folder whose writer cannot be asked is taken for dead.

A slide's folder is written in seconds to minutes: its embeddings are made before.
"""


def remove_leftovers(target: pathlib.Path) -> None:
    """Removes what killed writers of `target` have left beside it."""
    name = glob.escape(target.name)
    remove_dead(f for kind in ("tmp", "old") for f in target.parent.glob(f".{name}.{kind}-*"))


def remove_dead(left: Iterable[pathlib.Path]) -> int:
    """Removes those temporary folders and files whose writers are dead; returns how many."""
    removed = 0
    for one in left:
        try:
            lock = os.open(one, os.O_RDONLY)
        except OSError:  # another run was faster
            continue
        try:
            if _is_dead(one, lock):
                shutil.rmtree(one, ignore_errors=True)
                with contextlib.suppress(OSError):
                    one.unlink(missing_ok=True)
                removed += 1
        finally:
            os.close(lock)
    return removed


def _is_dead(folder: pathlib.Path, lock: int) -> bool:
    """Whether no process writes the folder; where there are locks, `lock` then holds it."""
    if f"-{host()}-" in folder.name:
        try:
            # The kernel drops a lock with the process that held it, however that one ended.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no locks on this file system
            pass
        else:
            return True
    return time.time() - _last_write(folder) > ABANDONED_SECONDS


def _last_write(folder: pathlib.Path) -> float:
    """When something under the folder was written last, seconds since the epoch."""
    times = [0.0]
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def locked_folder(target: pathlib.Path) -> tuple[pathlib.Path, int]:
    """Returns a new folder beside `target` and a file descriptor that holds a lock on it."""

    def made(folder: pathlib.Path) -> int:
        folder.mkdir()
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    return _locked(target, made)


def locked_file(target: pathlib.Path) -> tuple[pathlib.Path, int]:
    """Returns a new empty file beside `target` and a file descriptor that holds a lock on it."""

    def made(path: pathlib.Path) -> int:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o666)

    return _locked(target, made)


def _locked(target: pathlib.Path, make: Callable[[pathlib.Path], int]) -> tuple[pathlib.Path, int]:
    """Something new beside `target` and a file descriptor that holds a lock on it.

    Without the lock on file systems that have none (some of network mounts).
    """
    while True:
        made = beside(target, "tmp")
        lock = make(made)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another run took it for stale between the lines above
            pass
        except OSError:
            return made, lock
        else:
            if made.exists():
                return made, lock
        os.close(lock)


def beside(target: pathlib.Path, kind: str) -> pathlib.Path:
    """Returns a new name beside `target`, hidden, that tells on which host it was made."""
    return target.with_name(f".{target.name}.{kind}-{host()}-{secrets.token_hex(4)}")


@functools.cache
def host() -> str:
    """Names this host until it is started anew.

    By its kernel, within which locks are seen, and by its name: containers may have the kernel in
    common and not the mount.
    """
    try:
        kernel = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    except OSError:
        kernel = ""
    return hashlib.sha256(f"{kernel}/{socket.gethostname()}".encode()).hexdigest()[:8]
