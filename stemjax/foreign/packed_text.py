"""Tables that are compressed by gzip, read up to what an honest one unpacks to.

A gzip file of a megabyte may unpack to a gigabyte of nothing, and a table of that to all memory.
"""

from __future__ import annotations

import gzip
import io
import os
import pathlib
from typing import IO

FREE_BYTES, MOST_TIMES = 64 * 2**20, 200
"""A file may unpack to `FREE_BYTES`, and to `MOST_TIMES` its size beyond.

Tables of HER2ST unpack to 8 to 14 times their size, one of which a 200th is not 0 to 120 times;
gzip's most is 1,032.
"""

LIST_TIMES = 25
"""The same for lists of counts, of names and of places, which unpack to 3 to 8 times their size."""


class _Limited(io.RawIOBase):
    """What a gzip file unpacks to; a ValueError where that is more than an honest one has."""

    def __init__(self, path: pathlib.Path, times: int) -> None:
        self._file = gzip.open(path, "rb")  # noqa: SIM115 - closed by `close`
        self._packed = path.stat().st_size
        self._most = FREE_BYTES + times * self._packed

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Unpacks the next bytes."""
        found = self._file.read(len(buffer))
        if self._file.tell() > self._most:
            raise ValueError(
                f"made to fill the memory: its {self._packed:,} bytes unpack to more than "
                f"{self._most:,}"
            )
        buffer[: len(found)] = found
        return len(found)

    def seekable(self) -> bool:
        """It is, slowly."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Goes to a place of what it unpacks to."""
        return self._file.seek(offset, whence)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def open_text(path: str | os.PathLike[str], *, times: int = MOST_TIMES) -> IO[str]:
    """Opens a text file in UTF-8, one that ends in ``.gz`` unpacked.

    Reading raises what `gzip` does on damaged files, and a ValueError on one that is made to fill
    the memory.

    Args:
      path: the file.
      times: its size that it may unpack to, beyond `FREE_BYTES`.
    """
    path = pathlib.Path(path)
    if path.suffix != ".gz":
        return path.open(encoding="utf-8")
    return io.TextIOWrapper(io.BufferedReader(_Limited(path, times), 2**20), encoding="utf-8")
