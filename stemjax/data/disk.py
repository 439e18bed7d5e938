"""Full disks: what is free, and an error that says how much is missing.

Libraries say it in their own ways: an ``OSError`` with its number, HDF5's without one, orbax's
``RESOURCE_EXHAUSTED``. `writing` makes one typed error of all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator

from stemjax import errors

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID = ("No space left on device", "Disk quota exceeded", "RESOURCE_EXHAUSTED")


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(said in str(error) for said in _SAID):
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
    return errors.ResourceError(
        f"{path} could not be written: no space left",
        expected=None if needed is None else f"{in_words(needed)} free",
        found=f"{in_words(free_bytes(path))} free",
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
