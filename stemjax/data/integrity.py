"""Folders that are whole or absent, and a list of SHA-256 sums that shows damage.

array_record notices a flipped bit, but names no file and only when the record is read; a truncated
or missing file even opens. So every file of a folder is listed with its size and its hash.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

MANIFEST = "SHA256SUMS.json"


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
        if target.exists():
            # A folder cannot replace one that is not empty in one step.
            old = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
            os.rename(target, old)
            os.replace(temporary, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def remove_stale(parent: pathlib.Path) -> int:
    """Remove what killed runs left in `parent`; what a live one is writing stays.

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
            # The kernel drops a lock with the process that held it, however that one ended.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
    return removed


def _locked_folder(target: pathlib.Path) -> tuple[pathlib.Path, int]:
    """A new folder beside `target` and a file descriptor that holds a lock on it."""
    while True:
        folder = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists():
                return folder, lock
        except BlockingIOError:  # another run took it for stale between the two lines above
            pass
        os.close(lock)
