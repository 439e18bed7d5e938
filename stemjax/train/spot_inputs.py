"""What a model predicts a slide's spots from: embeddings, or windows of spots.

table of spots asked for, table of measured spots --Inputs--> tree with a row a spot or a window
what the task returns for that tree --of_spots--> [n l ...], a row a spot
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from stemjax import tasks
from stemjax.data import records, windows
from stemjax.data.hiding import Hiding
from stemjax.data.shown import hidden_rows
from stemjax.train import checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Inputs of some spots, for a task's ``predict``.

    Attributes:
      tree: array or tree of arrays with a row a spot, or a row a window.
      table: the spots asked for.
      asking: the spot of the table that each row of the tree stands for; of a window that asks for
        several the first.
      place: window and token of each spot, [l 2], where a window asks for several; else None.
    """

    tree: Any
    table: records.Table
    asking: Int[np.ndarray, " w"]
    place: Int[np.ndarray, "l 2"] | None

    def keys(self, seed: int) -> Key[Array, " w"]:
        """Returns a key for each row of the tree, a function of (seed, slide, barcode)."""
        keys = tasks.row_keys(seed, self.table)
        return keys if self.place is None else keys[self.asking]

    def of_spots(self, made: Float[np.ndarray, "n w ..."]) -> Float[np.ndarray, "n l g"]:
        """Returns what a predictor made of the tree with a row a spot, in the table's order."""
        return made if self.place is None else made[:, self.place[:, 0], self.place[:, 1]]


def make_inputs(
    card: checkpoint.Card,
    table: records.Table,
    source: records.Records,
    *,
    measured: Bool[np.ndarray, " n"] | None = None,
) -> Inputs:
    """Returns what a model takes for every spot of a table.

    A model of windows sees the expression of other measured spots, never that of the spot itself.

    Args:
      card: the model's.
      table: the spots asked for.
      source: records of their slides, for the pixel size.
      measured: which of them are measured and may be shown to others; all by default.
    """
    window, fitted = card.experiment.window, card.space
    if window.kind == "none":
        cond = fitted.encode_condition(table.embeddings[:, 0])
        return Inputs(tree=cond, table=table, asking=np.arange(table.n), place=None)
    shown = np.ones(table.n, bool) if measured is None else np.asarray(measured)
    xy = windows.positions_um(table, source.slides)
    arrays = {
        "cond": fitted.encode_condition(table.embeddings[:, 0]),
        "x0": fitted.encode_expression(table.counts, table.total, table.mask),
        "xy": xy.astype(np.float32),
        "place": np.asarray(table.array_xy, np.float32),
    }
    if window.kind == "rows":
        # No measurement is seen, so points and spots lie in windows of their own: points, which no
        # array counted, would else be in the last window of the spots.
        point = (table.total == 0) & ~table.mask.astype(bool).any(axis=1)
        made = windows.consecutive(2 * table.slide_index + point, length=window.length)
        place = made.place_of(table.n)
    else:
        made = windows.neighbourhoods(
            xy,
            table.slide_index,
            np.flatnonzero(shown),
            length=window.length,
        )
        place = None
    return Inputs(
        tree=windows.inputs(made, arrays, shown),
        table=table,
        asking=made.index[:, 0],
        place=place,
    )


def measured_spots(card: checkpoint.Card, table: records.Table) -> Bool[np.ndarray, " l"]:
    """Returns which spots of one slide's table the model was given as measured.

    All of them, or for a slide that it recovers those that were not hidden; of an image alone none.
    """
    known = np.asarray(table.mask != 0).any(axis=1)
    hiding = hiding_of(card, table.slides[0])
    return known if hiding is None else known & ~hidden_rows(table, hiding)


def hiding_of(card: checkpoint.Card, slide: str) -> Hiding | None:
    """Returns what was hidden of a slide when the model was trained, or None."""
    if slide not in card.split.get("recover", ()):
        return None
    return Hiding(**card.split["hiding"])


def joined_tables(first: records.Table, second: records.Table) -> records.Table:
    """Returns the rows of two tables, the first's first; slides are matched by id."""
    slides = tuple(sorted({*first.slides, *second.slides}))

    def renumbered(table: records.Table) -> np.ndarray:
        number = np.array([slides.index(slide) for slide in table.slides], np.int32)
        return number[table.slide_index]

    arrays = ("counts", "total", "mask", "array_xy", "pixel_xy")
    parts = (first, second)
    return dataclasses.replace(
        first,
        slides=slides,
        barcodes=first.barcodes + second.barcodes,
        slide_index=np.concatenate([renumbered(part) for part in parts]),
        # The original patch alone: it is what predictions are made from.
        embeddings=np.concatenate([part.embeddings[:, :1] for part in parts]),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays},
    )
