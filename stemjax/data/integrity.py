"""Files and folders that are whole or absent, and a list of SHA-256 sums that shows damage.

array_record notices a flipped bit, but names no file and only when the record is read; a truncated
or missing file even opens. So every file of a folder is listed with its size and its hash.

What is moved into its place is on the disk before that: a rename can survive a loss of power that
the data before it does not.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from stemjax.data import disk, leftovers
from stemjax.foreign import json_text

MANIFEST = "SHA256SUMS.json"

FREE_SPACE = "Free space there, or name another place; what stood there before is as it was"

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)

_THREADS = min(8, os.cpu_count() or 1)
"""That hash files: hashlib and reading let other threads run."""


def sha256(path: pathlib.Path) -> str:
    """Hash of a file as hexadecimal digits; the file is streamed, never held."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def published_file(target: pathlib.Path, *, needed: int | None = None) -> Iterator[pathlib.Path]:
    """A path beside `target`, whose file takes its place when the block ends without error.

    It has `target`'s name, in a hidden folder of its own. A process that is killed in the block
    leaves `target` as it was and that folder, which the next writer of `target` removes, or
    `remove_stale`. A folder can be made there, too, where `target` is absent or an empty folder.

    Args:
      target: where the file is to be.
      needed: bytes that it takes, where that is known.

    Raises:
      ResourceError: the disk is full.
    """
    with _folder_beside(target, needed) as folder:
        made = folder / target.name
        yield made
        if made.is_dir():
            sync_folder(made)
        else:
            _sync(made)
        os.replace(made, target)
        _sync(target.parent)


def json_digest(value: Any) -> str:
    """SHA-256 of a value of JSON, the same before it is written and after it is read."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file so that `path` is at every moment the old text or the new one.

    Raises:
      ResourceError: the disk is full.
    """
    with _temporary(path, text) as temporary:
        os.replace(temporary, path)
        _sync(path.parent)


def write_once(path: pathlib.Path, text: str) -> bool:
    """Write a text file unless it is there; of several processes that do so at once, one does.

    Returns:
      Whether this process wrote it.

    Raises:
      ResourceError: the disk is full.
    """
    with _temporary(path, text) as temporary:
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
        _sync(path.parent)
    return True


def write_manifest(folder: pathlib.Path) -> None:
    """Write size and hash of every file under `folder` into `folder`/SHA256SUMS.json."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != MANIFEST]
    listed = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, _in_threads(sha256, files), strict=True)
    }
    write_text(folder / MANIFEST, json.dumps(listed, indent=1) + "\n")


class Listed(NamedTuple):
    """What a manifest says of a file.

    Attributes:
      size: bytes.
      sha256: hexadecimal digits.
    """

    size: int
    sha256: str


def read_manifest(folder: pathlib.Path) -> dict[str, Listed]:
    """The files that a folder's manifest lists, by their paths from the folder.

    Raises:
      OSError, ValueError, KeyError, TypeError, AttributeError: it is missing or no manifest.
    """
    listed = json_text.parse((folder / MANIFEST).read_text(encoding="utf-8"))
    found = {name: Listed(v["bytes"], str(v["sha256"])) for name, v in listed.items()}
    for name in found:
        if type(found[name].size) is not int:
            raise ValueError(f"{name!r} of no number of bytes")
        path = pathlib.PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{name!r} would lie elsewhere")
    return found


def damage(folder: pathlib.Path, *, unhashed: str | None = None) -> list[str]:
    """What is wrong with the files that the manifest lists: "NAME: what", empty if nothing is.

    Args:
      folder: a folder with a manifest.
      unhashed: files with this in their name are compared by size only; hashing takes about 1 s a
        GB.
    """
    try:
        wanted = read_manifest(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST}: missing or unreadable ({type(error).__name__})"]

    def wrong(name: str) -> str | None:
        file, (size, digest) = folder / name, wanted[name]
        try:
            if not file.is_file():
                return f"{name}: missing"
            if file.stat().st_size != size:
                return f"{name}: {file.stat().st_size} bytes instead of {size} in {MANIFEST}"
            if unhashed is not None and unhashed in name:
                return None
            if (now := sha256(file)) != digest:
                return f"{name}: sha256 {now[:12]}... instead of {digest[:12]}... in {MANIFEST}"
        except OSError as error:  # a bad sector, say
            return f"{name}: {error.strerror or error}"
        return None

    return [found for found in _in_threads(wrong, wanted) if found is not None]


def unlisted(folder: pathlib.Path) -> list[str]:
    """Files under a folder that its manifest does not list, sorted; of a damaged one all."""
    try:
        listed = read_manifest(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        listed = {}
    there = (file for file in folder.rglob("*") if file.is_file())
    names = {file.relative_to(folder).as_posix() for file in there} - {MANIFEST}
    return sorted(names - set(listed))


@contextlib.contextmanager
def published_folder(target: pathlib.Path, *, needed: int | None = None) -> Iterator[pathlib.Path]:
    """A temporary folder beside `target`, which takes its place when the block ends without error.

    A process that is killed in the block leaves `target` as it was, and a temporary folder that
    the next writer of `target` removes, or `remove_stale`.

    Args:
      target: where the folder is to be.
      needed: bytes that it takes, where that is known.

    Raises:
      ResourceError: the disk is full.
    """
    with _folder_beside(target, needed) as temporary:
        yield temporary
        sync_folder(temporary)
        while not _moved(temporary, target):
            # A folder cannot replace one that is not empty in one step.
            old = leftovers.beside(target, "old")
            with contextlib.suppress(FileNotFoundError):  # another process moved it just now
                os.rename(target, old)
            shutil.rmtree(old, ignore_errors=True)
        _sync(target.parent)


def remove_stale(parent: pathlib.Path) -> int:
    """Remove what killed runs left in `parent`; what a live one is writing stays.

    Runs on this host are asked by their locks. Those of another host may not be seen from here
    (whether they are depends on the file system), so what they left goes when nothing was written
    to it for `leftovers.ABANDONED_SECONDS`.

    Returns:
      The number of folders removed.
    """
    if not parent.is_dir():
        return 0
    return leftovers.remove_dead([*parent.glob(".*.tmp-*"), *parent.glob(".*.old-*")])


def sync_folder(folder: pathlib.Path) -> None:
    """Waits until all that is under a folder is on the disk.

    Raises:
      OSError: it could not be written: some file systems say so only now.
    """
    inside = [path for path in folder.rglob("*") if path.is_file() or path.is_dir()]
    for _ in _in_threads(_sync, [*inside, folder]):
        pass


def _in_threads[T, R](work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results of a function in the order of the items; several threads call it."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(work, items)


@contextlib.contextmanager
def _folder_beside(target: pathlib.Path, needed: int | None) -> Iterator[pathlib.Path]:
    """A locked folder beside ``target``, without what earlier writers left; gone at the end."""
    with disk.writing(target, needed, fix=FREE_SPACE):
        target.parent.mkdir(parents=True, exist_ok=True)
        leftovers.remove_leftovers(target)
        folder, lock = leftovers.locked_folder(target)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


@contextlib.contextmanager
def _temporary(path: pathlib.Path, text: str) -> Iterator[pathlib.Path]:
    """A file beside ``path`` with a text, on the disk; gone at the end of the block."""
    with disk.writing(path, len(text.encode()), fix=FREE_SPACE):
        leftovers.remove_leftovers(path)
        temporary, lock = leftovers.locked_file(path)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                _sync(temporary)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
            os.close(lock)


def _sync(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk, where that can be asked."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def _moved(temporary: pathlib.Path, target: pathlib.Path) -> bool:
    """Whether `temporary` is `target` now; not where a folder that is not empty is in the way."""
    try:
        os.replace(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
