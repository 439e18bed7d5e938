"""Random fields for drawing: smooth noise, periodic tiles of texture and ways to sample them.

Filtering a whole section's pixels takes seconds. Smooth fields are therefore drawn on a coarse grid
and enlarged, and fine texture is drawn once on a periodic tile and looked up at warped coordinates.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num
from PIL import Image

SIDE = 1024
"""Rows and columns of a tile: a power of two, so that wrapping around is a bit mask."""


def smooth(
    rng: np.random.Generator, shape: tuple[int, int], reach: float
) -> Float[np.ndarray, "y x"]:
    """Unit normal noise, float32, smoothed by a Gaussian of standard deviation ``reach`` entries.

    Opposite borders are independent. The variance is 1 over many fields: a single field that
    varies slowly may be high all over, as a section may be.

    Args:
      rng: draws the field.
      shape: rows and columns.
      reach: standard deviation of the kernel; the field's correlation at distance r is
        exp(-r^2 / (4 reach^2)).
    """
    # Where it is smooth it is drawn coarsely: two entries a standard deviation are enough.
    step = max(1, int(reach / 2))
    # Larger than needed by four deviations: the transform wraps around.
    border = int(np.ceil(4 * reach / step))
    rows, columns = (int(np.ceil(n / step)) + 2 for n in shape)
    grid = _filtered(rng, (rows + border, columns + border), (reach / step, reach / step))
    # Cubic: the borders between linear pieces would show as kinks in fibres.
    return enlarge(grid[:rows, :columns], shape, step=1 / step, how=Image.Resampling.BICUBIC)


def tile(rng: np.random.Generator, across: float, along: float) -> Float[np.ndarray, "y x"]:
    """Periodic unit normal noise [SIDE SIDE], float32, smoothed over rows and columns.

    Args:
      rng: draws the tile.
      across: standard deviation of the Gaussian kernel over rows, in entries.
      along: the same over columns.
    """
    return _filtered(rng, (SIDE, SIDE), (across, along))


def _filtered(
    rng: np.random.Generator, shape: tuple[int, int], reach: tuple[float, float]
) -> np.ndarray:
    y = np.fft.fftfreq(shape[0])[:, None] * reach[0]
    x = np.fft.fftfreq(shape[1])[None, :] * reach[1]
    kernel = np.exp(-2 * np.pi**2 * (y**2 + x**2))
    half = kernel[:, : shape[1] // 2 + 1]
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * half, shape)
    # Divided by the deviation that the kernel leaves (Parseval), not by the sample's.
    return (noise / np.sqrt((kernel**2).mean())).astype(np.float32)


def enlarge(
    field: Float[np.ndarray, "y x"],
    shape: tuple[int, int],
    *,
    step: float,
    top: float = 0.0,
    how: Image.Resampling = Image.Resampling.BILINEAR,
) -> Float[np.ndarray, "h w"]:
    """``field`` interpolated at every ``step`` <= 1 of an entry, from row ``top`` and column 0 on.

    Entry i of the field lies at coordinate i; entry j of the result at (j + 1/2) step.

    Args:
      field: what is interpolated, at least one entry larger than what is read.
      shape: rows and columns of the result.
      step: distance of the result's entries, in entries of the field.
      top: coordinate where the result begins.
      how: the interpolation.
    """
    height, width = shape
    # Pillow counts from the corner of entry 0, whose middle is 1/2.
    box = (0.5, 0.5 + top, 0.5 + width * step, 0.5 + top + height * step)
    picture = Image.fromarray(np.ascontiguousarray(field, np.float32))
    return np.asarray(picture.resize((width, height), how, box=box))


def window(
    pattern: Float[np.ndarray, "y x"], top: int, left: int, shape: tuple[int, int]
) -> Float[np.ndarray, "h w"]:
    """A tile from (top, left) on, repeated to ``shape``."""
    rows, columns = np.arange(top, top + shape[0]), np.arange(left, left + shape[1])
    return pattern.take(rows, 0, mode="wrap").take(columns, 1, mode="wrap")


def look_up(
    pattern: Float[np.ndarray, "y x"],
    row: Num[np.ndarray, "h w"],
    column: Num[np.ndarray, "h w"],
) -> Float[np.ndarray, "h w"]:
    """A tile's entries at these coordinates, rounded down and wrapped around."""
    place = (np.floor(row).astype(np.int32) & (SIDE - 1)) * SIDE
    place += np.floor(column).astype(np.int32) & (SIDE - 1)
    return pattern.reshape(-1)[place]
