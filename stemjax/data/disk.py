"""Full disks: what is free, and an error that says how much is missing.

Libraries say it in their own ways: an ``OSError`` with its number, HDF5's without one, orbax's
``RESOURCE_EXHAUSTED``. `writing` makes one typed error of all.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from stemjax import errors

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAID = ("No space left on device", "Disk quota exceeded")


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        text = str(error)
        if any(said in text for said in _SAID):
            return True
        # XLA says the same of its memory.
        if "RESOURCE_EXHAUSTED" in text and "memory" not in text.lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def free_bytes(path: pathlib.Path) -> int:
    """Bytes free where ``path`` is or will be."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def full(path: pathlib.Path, needed: int | None, *, fix: str) -> errors.ResourceError:
    """The error of a disk that is full.

    Args:
      path: what could not be written.
      needed: bytes that it takes, where that is known.
      fix: what to do, beside freeing space.
    """
    free = free_bytes(path)
    # What was reckoned can be too little, and others can have made room since.
    return errors.ResourceError(
        f"{path} could not be written: no space left",
        expected=f"{in_words(needed)} free" if needed is not None and needed > free else None,
        found=f"{in_words(free)} free",
        fix=fix,
    )


def in_words(count: int) -> str:
    """Bytes as people read them: 1.2 GB."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], needed: int | None = None, *, fix: str) -> Iterator[None]:
    """Turns what a library says of a full disk into a `ResourceError` that names the file.

    Args:
      path: what the block writes.
      needed: bytes that it takes, where that is known.
      fix: what to do, beside freeing space.

    Raises:
      ResourceError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, errors.StemjaxError) or not is_full(error):
            raise
        raise full(pathlib.Path(path), needed, fix=fix) from error


class _Swallowing(io.RawIOBase):
    """A file that keeps the first error of a write to itself, and takes all later writes for done.

    Args:
      path: of the file.
      new: whether it must not be there, or must.
    """

    def __init__(self, path: pathlib.Path, *, new: bool) -> None:
        self._file = path.open("x+b" if new else "r+b", buffering=0)
        self.error: OSError | None = None

    def write(self, given: Any) -> int:
        """Writes all, or nothing after the first error."""
        left = memoryview(given).cast("B")
        size = len(left)
        with self._kept():
            while left and self.error is None:
                left = left[self._file.write(left) :]
        return size

    def readinto(self, buffer: Any) -> int:
        """Reads; zeros where nothing could be written."""
        found = self._file.readinto(buffer)
        if self.error is not None:
            memoryview(buffer).cast("B")[found:] = bytes(len(buffer) - found)
            found = len(buffer)
        return found

    def truncate(self, size: int | None = None) -> int:
        """Makes the file so long."""
        with self._kept():
            self._file.truncate(size)
        return self._file.tell() if size is None else size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place."""
        return self._file.tell()

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Closes the file, which can tell an error of an earlier write."""
        if not self.closed:
            with self._kept():
                self._file.close()
        super().close()

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error


@contextlib.contextmanager
def opened_for_hdf5(path: pathlib.Path, *, new: bool = True) -> Iterator[io.RawIOBase]:
    """A file for ``h5py.File(file, "w")``, or "r+" where it is not new, to be closed in the block.

    When a write fails, the HDF5 library is left with objects that it can neither write nor close:
    it says so many times, and ends the process by a segmentation fault. Here it never learns of it.

    Raises:
      OSError: the first write that failed, at the end of the block.
    """
    file = _Swallowing(path, new=new)
    try:
        yield file
    except Exception as error:
        if file.error is not None:
            raise file.error from error
        raise
    finally:
        file.close()
    if file.error is not None:
        raise file.error
