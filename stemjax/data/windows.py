"""Windows: the spots of one slide that a network sees together, of fixed length and with a mask.

    rows of a table  --neighbourhoods / consecutive-->  Windows (row numbers, -1 where none is)
    arrays with a row a spot  --inputs-->  what a network takes, [b l ...]

A neighbourhood is a spot and the measured spots nearest to it, whatever the array: the spot itself
stands first and is the only one that is asked for. Consecutive rows are what HisToSGE is published
with: every token is asked for, and what is near on the slide may be far apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.spatial
from jaxtyping import Bool, Float, Int

from stemjax import errors
from stemjax.data import records as records_lib

KINDS = ("neighbours", "rows")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Windows over the rows of a table.

    Attributes:
      index: row of each token, -1 where a window has none, [w l] int32.
      asked: tokens whose expression is asked for, [w l].
    """

    index: Int[np.ndarray, "w l"]
    asked: Bool[np.ndarray, "w l"]

    @property
    def n(self) -> int:
        """Windows."""
        return len(self.index)

    def place_of(self, rows: int) -> Int[np.ndarray, "r 2"]:
        """Window and token where each of ``rows`` rows is asked for, [r 2].

        Raises:
          ValueError: a row is asked for nowhere, or twice.
        """
        window, token = np.nonzero(self.asked)
        row = self.index[window, token]
        if len(row) != rows or len(np.unique(row)) != rows:
            raise ValueError(f"{len(row)} tokens are asked for, of {rows} rows")
        out = np.empty((rows, 2), np.int64)
        out[row] = np.stack([window, token], axis=1)
        return out


def neighbourhoods(
    xy_um: Float[np.ndarray, "q 2"],
    slide: Int[np.ndarray, " q"],
    context: Int[np.ndarray, " m"],
    *,
    length: int,
    queries: Int[np.ndarray, " w"] | None = None,
) -> Windows:
    """A window for each query: the spot, then the nearest other spots of the context.

    The nearest come first; of two equally near ones the lower row. A spot of the context is never
    its own neighbour.

    Args:
      xy_um: where all rows lie, in um.
      slide: number of each row's slide; windows do not reach over to another slide.
      context: rows that may be neighbours: the measured spots.
      length: tokens in a window, the spot itself included.
      queries: rows that get a window; all of them by default.
    """
    queries = np.arange(len(xy_um)) if queries is None else np.asarray(queries)
    index = np.full((len(queries), length), -1, np.int32)
    index[:, 0] = queries
    for number in np.unique(slide[queries]):
        near, at = context[slide[context] == number], np.flatnonzero(slide[queries] == number)
        if not len(near) or length < 2:
            continue
        # As many as the window is long, since the spot itself may be among the nearest.
        distance, found = _nearest(xy_um[near], xy_um[queries[at]], length)
        rows = near[found]
        own = rows == queries[at][:, None]
        order = np.lexsort((rows, distance, own))[:, : length - 1]
        kept = np.take_along_axis(rows, order, axis=1)
        missing = np.take_along_axis(own, order, axis=1)
        index[at, 1 : 1 + kept.shape[1]] = np.where(missing, -1, kept)
    asked = np.zeros(index.shape, bool)
    asked[:, 0] = True
    return Windows(index=index, asked=asked)


def _nearest(places: np.ndarray, asked: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the nearest places and which those are, [r k].

    Among them are all that are as near as the last of ``number``: on a lattice many are equally
    far, and which of them a tree finds first rests on how it was built.
    """
    tree, last, k = scipy.spatial.KDTree(places), min(number, len(places)) - 1, number + 8
    while True:
        k = min(k, len(places))
        distance, found = (part.reshape(len(asked), k) for part in tree.query(asked, k=k))
        # Equal distances may differ in their last bits.
        distance = np.round(distance, 3)
        if k == len(places) or (distance[:, -1] > distance[:, last]).all():
            return distance, found
        k *= 2


def consecutive(slide: Int[np.ndarray, " q"], *, length: int) -> Windows:
    """Windows of consecutive rows, each row once; no window reaches over to another slide.

    Args:
      slide: number of each row's slide, rows of a slide together.
      length: tokens in a window; the last of a slide is filled up with -1.
    """
    parts = []
    for number in np.unique(slide):
        rows = np.flatnonzero(slide == number)
        padded = np.full(-(-len(rows) // length) * length, -1, np.int32)
        padded[: len(rows)] = rows
        parts.append(padded.reshape(-1, length))
    index = np.concatenate(parts)
    return Windows(index=index, asked=index >= 0)


def make_windows(
    kind: str,
    xy_um: Float[np.ndarray, "q 2"],
    slide: Int[np.ndarray, " q"],
    *,
    length: int,
    context: Int[np.ndarray, " m"] | None = None,
    queries: Int[np.ndarray, " w"] | None = None,
) -> Windows:
    """The windows of a kind over some rows; arguments as `neighbourhoods`.

    Consecutive rows take all rows as they come and know no context: their network sees no
    measurement.

    Raises:
      ConfigError: there is no such kind.
    """
    if kind == "neighbours":
        every = np.arange(len(xy_um)) if context is None else context
        return neighbourhoods(xy_um, slide, every, length=length, queries=queries)
    if kind == "rows":
        return consecutive(slide, length=length)
    raise errors.ConfigError("kind of window", expected=" or ".join(KINDS), found=repr(kind))


def positions_um(
    table: records_lib.Table, slides: Mapping[str, records_lib.SlideInfo]
) -> Float[np.ndarray, "n 2"]:
    """Spot centres in um, each slide from its own first pixel."""
    mpp = np.array([slides[slide].mpp for slide in table.slides])
    return np.asarray(table.pixel_xy, np.float64) * mpp[table.slide_index][:, None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Taken:
    """Rows of an array, taken by row number only when they are asked for.

    A slide's windows hold every spot many times over; what a device works on is a few of them.

    Attributes:
      values: [n ...].
      index: row of each token, -1 for none, [w l].
    """

    values: np.ndarray
    index: Int[np.ndarray, "w l"]

    def __getitem__(self, windows: Any) -> np.ndarray:
        """The rows of some windows, [b l ...]; zeros where there is none."""
        return take(self.values, self.index[windows])

    def __len__(self) -> int:
        return len(self.index)


def take(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Rows by number; zeros for -1."""
    out = values[np.maximum(index, 0)]
    out[index < 0] = 0
    return out


def inputs(
    windows: Windows, arrays: Mapping[str, np.ndarray], measured: Bool[np.ndarray, " n"]
) -> dict[str, Any]:
    """What a network of windows predicts from: a tree of `Taken` with a row a window.

    Args:
      windows: of the spots asked for.
      arrays: ``cond`` [n c], ``x0`` [n g], ``mask`` [n g], ``xy`` [n 2] in um, ``place`` [n 2].
      measured: rows whose expression may be shown; a token that is asked for never is.
    """
    tree: dict[str, Any] = {
        name: Taken(values=values, index=windows.index) for name, values in arrays.items()
    }
    present = windows.index >= 0
    shown = present & ~windows.asked & take(measured, windows.index)
    return tree | {
        "present": present.astype(np.float32),
        "asked": (windows.asked & present).astype(np.float32),
        "shown": shown.astype(np.float32),
    }
