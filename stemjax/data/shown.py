"""The rows that a run trains on: all spots of its slides, or of some slides only those not hidden.

    Records + slides + Hiding  --Shown-->  tables, one table, or rows at random

A slide that is to be recovered trains with its measured spots; the hidden ones are in no table that
comes from here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from stemjax.data import records as records_lib
from stemjax.data import windows
from stemjax.data.hiding import Hiding, spot_distance


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """Training rows of some slides.

    Attributes:
      records: the record folders.
      slides: the slides.
      hiding: what is hidden; None is nothing.
      partly: slides among them that it is hidden of.
    """

    records: records_lib.Records
    slides: Sequence[str]
    hiding: Hiding | None = None
    partly: Sequence[str] = ()

    @functools.cached_property
    def n(self) -> int:
        """Rows."""
        return int(self.kept.size)

    def __len__(self) -> int:
        return self.n

    @functools.cached_property
    def kept(self) -> Int[np.ndarray, " n"]:
        """Their numbers among all rows of the slides, ascending."""
        parts, start = [], 0
        for slide in sorted(self.slides):
            spots = self.records.require(slide).n_spots
            parts.append(start + self._cut.get(slide, np.arange(spots)))
            start += spots
        return np.concatenate(parts)

    @functools.cached_property
    def _cut(self) -> dict[str, Int[np.ndarray, " k"]]:
        """The rows that are left of each slide that some are hidden of."""
        if self.hiding is None:
            return {}
        tables = {slide: self.records.load([slide]) for slide in self.partly}
        return {k: np.flatnonzero(~hidden_rows(v, self.hiding)) for k, v in tables.items()}

    def tables(self, part: tuple[int, int] = (0, 1)) -> Iterator[records_lib.Table]:
        """The rows a slide at a time, sorted by id.

        Args:
          part: (i, n) gives slides i, i + n, ... alone.
        """
        for slide in sorted(self.slides)[part[0] :: part[1]]:
            table = self.records.load([slide])
            yield take_rows(table, self._cut[slide]) if slide in self._cut else table

    def load(self) -> records_lib.Table:
        """All rows in RAM."""
        table = self.records.load(self.slides)
        return table if self.hiding is None else take_rows(table, self.kept)

    def gather(self, rows: Int[np.ndarray, " b"]) -> records_lib.Table:
        """Some rows, read from the shards; a row may be asked for more than once."""
        return self._source.gather(self.kept[rows])

    @functools.cached_property
    def _source(self) -> records_lib.RowSource:
        return self.records.source(self.slides)

    @functools.cached_property
    def positions(self) -> Positions:
        """Where the rows lie; read slide by slide."""
        parts = [
            (windows.positions_um(table, self.records.slides), table.array_xy, table.n)
            for table in self.tables()
        ]
        return Positions(
            xy_um=np.concatenate([xy for xy, _, _ in parts]),
            place=np.concatenate([place for _, place, _ in parts]),
            slide=np.repeat(np.arange(len(parts)), [n for _, _, n in parts]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Positions:
    """Where rows lie.

    Attributes:
      xy_um: spot centres in um, [n 2].
      place: array columns and rows, [n 2].
      slide: number of each row's slide, [n].
    """

    xy_um: Float[np.ndarray, "n 2"]
    place: Float[np.ndarray, "n 2"]
    slide: Int[np.ndarray, " n"]


def hidden_rows(table: records_lib.Table, hiding: Hiding) -> Bool[np.ndarray, " n"]:
    """Which rows of one slide's table are hidden."""
    pixels = np.asarray(table.pixel_xy, np.float64)
    return hiding.hidden(table.slides[0], table.barcodes, pixels, spot_distance(pixels))


def take_rows(table: records_lib.Table, rows: Int[np.ndarray, " r"]) -> records_lib.Table:
    """Some rows of a table, in the order asked for."""
    rows = np.asarray(rows)
    arrays = ("embeddings", "counts", "total", "mask", "slide_index", "array_xy", "pixel_xy")
    return dataclasses.replace(
        table,
        barcodes=tuple(table.barcodes[row] for row in rows),
        **{name: getattr(table, name)[rows] for name in arrays},
    )
