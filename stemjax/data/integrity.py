"""Folders that are whole or absent, and a list of SHA-256 sums that shows damage.

array_record notices a flipped bit, but names no file and only when the record is read; a truncated
or missing file even opens. So every file of a folder is listed with its size and its hash.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import socket
import time
from collections.abc import Iterator

MANIFEST = "SHA256SUMS.json"

ABANDONED_SECONDS = 24 * 3600.0
"""After so long without a write, a temporary folder whose writer cannot be asked is taken for dead.

A slide's folder is written in seconds to minutes: its embeddings are made before.
"""

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def sha256(path: pathlib.Path) -> str:
    """Hash of a file as hexadecimal digits; the file is streamed, never held."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file so that `path` is at every moment the old text or the new one."""
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_once(path: pathlib.Path, text: str) -> bool:
    """Write a text file unless it is there; of several processes that do so at once, one does.

    Returns:
      Whether this process wrote it.
    """
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        temporary.write_text(text, encoding="utf-8")
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Without hard links (object stores): two processes within a moment can both write.
            if path.exists():
                return False
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def write_manifest(folder: pathlib.Path) -> None:
    """Write size and hash of every file under `folder` into `folder`/SHA256SUMS.json."""
    listed = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    write_text(folder / MANIFEST, json.dumps(listed, indent=1) + "\n")


def damage(folder: pathlib.Path, *, unhashed: str | None = None) -> list[str]:
    """What is wrong with the files that the manifest lists: "NAME: what", empty if nothing is.

    Args:
      folder: a folder with a manifest.
      unhashed: files with this in their name are compared by size only; hashing takes about 1 s a
        GB.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wanted = {
            name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in listed.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST}: missing or unreadable ({type(error).__name__})"]
    found = []
    for name, (size, digest) in wanted.items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name}: missing")
        elif file.stat().st_size != size:
            found.append(f"{name}: {file.stat().st_size} bytes instead of {size}")
        elif unhashed is not None and unhashed in name:
            continue
        elif (now := sha256(file)) != digest:
            found.append(f"{name}: sha256 {now[:12]}... instead of {digest[:12]}...")
    return found


@contextlib.contextmanager
def published_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `target`, which takes its place when the block ends without error.

    A process that is killed in the block leaves `target` as it was, and a temporary folder that
    `remove_stale` clears away.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _locked_folder(target)
    try:
        yield temporary
        while not _moved(temporary, target):
            # A folder cannot replace one that is not empty in one step.
            old = _beside(target, "old")
            with contextlib.suppress(FileNotFoundError):  # another process moved it just now
                os.rename(target, old)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def remove_stale(parent: pathlib.Path) -> int:
    """Remove what killed runs left in `parent`; what a live one is writing stays.

    Runs on this host are asked by their locks. Those of another host may not be seen from here
    (whether they are depends on the file system), so what they left goes when nothing was written
    to it for `ABANDONED_SECONDS`.

    Returns:
      The number of folders removed.
    """
    removed = 0
    stale = [*parent.glob(".*.tmp-*"), *parent.glob(".*.old-*")] if parent.is_dir() else []
    for folder in stale:
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # a file, or another run was faster
            continue
        try:
            if _is_dead(folder, lock):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        finally:
            os.close(lock)
    return removed


def _moved(temporary: pathlib.Path, target: pathlib.Path) -> bool:
    """Whether `temporary` is `target` now; not where a folder that is not empty is in the way."""
    try:
        os.replace(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _is_dead(folder: pathlib.Path, lock: int) -> bool:
    """Whether no process writes the folder; where there are locks, `lock` then holds it."""
    if f"-{_host()}-" in folder.name:
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


def _locked_folder(target: pathlib.Path) -> tuple[pathlib.Path, int]:
    """A new folder beside `target` and a file descriptor that holds a lock on it.

    Without the lock on file systems that have none for folders (some of network mounts).
    """
    while True:
        folder = _beside(target, "tmp")
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another run took it for stale between the lines above
            pass
        except OSError:
            return folder, lock
        else:
            if folder.exists():
                return folder, lock
        os.close(lock)


def _beside(target: pathlib.Path, kind: str) -> pathlib.Path:
    """A new name beside `target`, hidden, that tells on which host it was made."""
    return target.with_name(f".{target.name}.{kind}-{_host()}-{secrets.token_hex(4)}")


@functools.cache
def _host() -> str:
    """Names this host until it is started anew.

    By its kernel, within which locks are seen, and by its name: containers may have the kernel in
    common and not the mount.
    """
    try:
        kernel = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    except OSError:
        kernel = ""
    return hashlib.sha256(f"{kernel}/{socket.gethostname()}".encode()).hexdigest()[:8]
