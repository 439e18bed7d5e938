"""Rows of slides as the bytes that lie in their shards, and the error that names what fails.

row -> row that is not left out -> shard, record -> bytes
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_data_source
from jaxtyping import Int

from stemjax import errors
from stemjax.data import builder, record_files, shards

# It takes anything with the attributes of `_Whole`, and its annotations do not say so.
_library: Any = array_record_data_source


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideFiles:
    """Where the rows of a slide lie.

    Attributes:
      info: what is known of the slide.
      folder: its version folder.
      shards: its shards, in the order of the rows.
      left_out: rows that are left out, ascending.
    """

    info: builder.SlideInfo
    folder: pathlib.Path
    shards: tuple[shards.Shard, ...]
    left_out: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Whole:
    """All of a shard, as array_record is asked for it: it opens the file when it is read."""

    filename: str
    take: int
    examples_in_shard: int
    skip: int = 0


class RawRows:
    """Random access to the serialised records of some slides.

    Attributes:
      ends: rows up to the end of each slide.

    Args:
      slides: where the rows lie, in row order.
      fix: what to do about a shard that is damaged later.
    """

    def __init__(self, slides: Sequence[SlideFiles], *, fix: str) -> None:
        self._slides, self._fix = slides, fix
        self._shards = [(slide, shard) for slide in slides for shard in slide.shards]
        self._source = _library.ArrayRecordDataSource(
            [
                _Whole(
                    filename=str(of.folder / shard.name), take=shard.n, examples_in_shard=shard.n
                )
                for of, shard in self._shards
            ]
        )
        self._starts = np.cumsum([0, *(shard.n for _, shard in self._shards)])
        stored = [sum(shard.n for shard in slide.shards) for slide in slides]
        left = [len(slide.left_out) for slide in slides]
        self.ends = np.cumsum(stored) - np.cumsum(left)
        self._kept = None
        if any(left):
            starts = np.cumsum([0, *stored])
            gone = [row + start for of, start in zip(slides, starts) for row in of.left_out]
            self._kept = np.delete(np.arange(starts[-1]), gone)

    def read(self, rows: Int[np.ndarray, " n"]) -> list[bytes]:
        """The rows' records, in the order asked for.

        Raises:
          RecordsError: a shard was damaged since it was checked.
        """
        try:
            return self._source.__getitems__(self._stored(rows))
        except (RuntimeError, ValueError, OSError) as error:
            raise self.damaged(rows, error) from error

    def damaged(self, rows: Int[np.ndarray, " n"], error: Exception) -> errors.RecordsError:
        """The error of rows that could not be read, which names the first record that fails."""
        wanted = np.asarray(self._stored(rows))
        place = np.searchsorted(self._starts, wanted, side="right") - 1
        for at in dict.fromkeys(place.tolist()):
            slide, shard = self._shards[at]
            numbers = (wanted[place == at] - self._starts[at]).tolist()
            if found := shards.failing(slide.folder, shard, numbers):
                number, why = found
                wrong = f"{shard.name}: record {number} of 0-{shard.n - 1} cannot be read any more"
                return record_files.damaged(
                    slide.info.id, slide.folder, [f"{wrong} ({why})"], fix=self._fix
                )
        return errors.RecordsError(
            f"Reading slides {', '.join(slide.info.id for slide in self._slides)} failed",
            found=f"{type(error).__name__}: {error}",
            fix=self._fix,
        )

    def _stored(self, rows: Int[np.ndarray, " n"]) -> list[int]:
        """Numbers of the rows among all that the shards hold."""
        return np.asarray(rows if self._kept is None else self._kept[rows]).tolist()
