"""Spots as pixels: one a place of the array, or discs of their true size on a fine grid."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.spatial
from jaxtyping import Float, Int

from stemjax import errors
from stemjax.integrations import prediction as predictions

NOTHING = -1
"""Pixel of no spot."""

ACROSS = 8
"""Pixels across a spot's diameter, where the slide is not too large for it."""

LONGEST = 4096
"""Pixels of an image's longer side, at most, where no pixel size is asked for."""

_ROWS = 256


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Which spot each pixel shows.

    Attributes:
      spots: row of the prediction, or `NOTHING`, [h w].
      origin: level-0 pixels of the centre of the upper left pixel (x, y).
      step: level-0 pixels between the centres of neighbouring pixels.
    """

    spots: Int[np.ndarray, "h w"]
    origin: tuple[float, float]
    step: float


def paint(spots: Int[np.ndarray, "h w"], values: Float[np.ndarray, " l"]) -> np.ndarray:
    """Returns one value a spot as an image, float32 [h w], NaN where there is no spot."""
    painted = np.asarray(values, np.float32)[spots]
    return np.where(spots == NOTHING, np.float32(np.nan), painted)


def array_places(prediction: predictions.Prediction) -> Int[np.ndarray, "h w"]:
    """Returns the spot at each place of the array, rows as ``array_row``, `NOTHING` elsewhere.

    A row of a hexagonal array uses every other column: there a pixel is two columns wide, so that
    rows have no gaps, and every second row should be seen half a pixel to the right.

    Raises:
      PredictionError: there are no array positions, or two spots have the same.
    """
    obs = prediction.data.obs
    if not {"array_row", "array_col"} <= set(obs.columns):
        raise _no_array("the prediction has no array positions", "array_row and array_col in obs")
    row, col = (
        np.rint(np.asarray(obs[name], np.float64)).astype(np.int64)
        for name in ("array_row", "array_col")
    )
    parity = (row + col) % 2
    if (parity == parity[0]).all() and len(np.unique(row % 2)) == 2:
        col = col // 2
    row, col = row - row.min(), col - col.min()
    spots = np.full((row.max() + 1, col.max() + 1), NOTHING, np.int64)
    spots[row, col] = np.arange(len(row))
    if (spots != NOTHING).sum() < len(row):
        raise _no_array("two spots have the same place on the array", "each place once")
    return spots


def discs(
    prediction: predictions.Prediction,
    *,
    step: float | None = None,
    radius: float | None = None,
) -> Grid:
    """Returns a grid over the spots on which each is a disc; of two that overlap the nearer shows.

    Args:
      prediction: of one slide.
      step: level-0 pixels a pixel; None takes `ACROSS` of them a spot, fewer where the longer side
        would have more than `LONGEST`.
      radius: of the discs, in level-0 pixels; None takes the spots' own.

    Raises:
      ConfigError: a size that is not above 0, or an image of more than 16 times `LONGEST` squared.
    """
    radius = prediction.diameter / 2 if radius is None else radius
    low, high = prediction.xy.min(axis=0) - radius, prediction.xy.max(axis=0) + radius
    extent = float((high - low).max())
    if step is None:
        step = max(prediction.diameter / ACROSS, extent / LONGEST)
    if not (step > 0 and radius > 0):
        raise errors.ConfigError(
            "sizes of a pixel and of a spot", expected="above 0", found=f"{step:g} and {radius:g}"
        )
    width, height = (int(side) for side in np.ceil((high - low) / step - 1e-9))
    if width * height > 16 * LONGEST**2:
        raise errors.ConfigError(
            f"an image of {width} x {height} pixels",
            expected=f"at most {16 * LONGEST**2} pixels",
            fix="ask for a larger pixel",
        )
    origin = low + step / 2
    tree = scipy.spatial.KDTree(prediction.xy)
    spots = np.empty((height, width), np.int32)
    x = origin[0] + step * np.arange(width)
    for start in range(0, height, _ROWS):
        y = origin[1] + step * np.arange(start, min(start + _ROWS, height))
        centres = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)
        _, nearest = tree.query(centres, distance_upper_bound=radius)
        # Pixels without a spot within the radius get the number of spots.
        spots[start : start + len(y)] = np.where(nearest == tree.n, NOTHING, nearest)
    return Grid(spots=spots, origin=(float(origin[0]), float(origin[1])), step=float(step))


def _no_array(what: str, expected: str) -> errors.PredictionError:
    return errors.PredictionError(
        what, expected=expected, fix="write figures or OME-Zarr, which need no array"
    )
