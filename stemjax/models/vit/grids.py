"""Position embeddings at another number of patches, in numpy, when weights are read.

Bicubic interpolation as PyTorch has it, which is what the published encoders were run with. Where
it only samples, the kernel is Keys' cubic with a = -0.75 on the four nearest rows, rows beyond the
border repeated. Where it averages (``antialias``), a = -0.5, the kernel is as wide as the scale,
and what lies beyond the border is left out (Keys 1981, eq. 15, has the kernel).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32


def resize(
    position: Float32[np.ndarray, "n d"], *, prefix: int, grid: int, antialias: bool
) -> Float32[np.ndarray, "m d"]:
    """Returns position embeddings for ``grid`` x ``grid`` patches.

    Args:
      position: those of the first tokens, then of a square of patches row by row.
      prefix: how many belong to the first tokens; they stay as they are.
      grid: patches along a side of the result.
      antialias: average where the new grid is smaller.

    Raises:
      ValueError: the rest is no square.
    """
    rest = len(position) - prefix
    side = round(max(rest, 0) ** 0.5)
    if side == 0 or side * side != rest:
        raise ValueError(f"{rest} patches are no square")
    if side == grid:
        return position
    weights = _weights(side, grid, antialias=antialias)
    square = position[prefix:].astype(np.float64).reshape(side, side, -1)
    moved = np.einsum("ys,xt,std->yxd", weights, weights, square, optimize=True)
    moved = moved.reshape(grid * grid, -1).astype(np.float32)
    return np.concatenate([position[:prefix], moved])


def _weights(old: int, new: int, *, antialias: bool) -> Float[np.ndarray, "new old"]:
    """What each old row gives to each new one; rows of the result sum to 1."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    if antialias:
        stretch = max(scale, 1.0)
        distance = (np.arange(old)[None, :] - centres[:, None]) / stretch
        weights = _keys(distance, a=-0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    weights = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        source = np.floor(centres) + offset
        given = _keys(centres - source, a=-0.75)
        np.add.at(weights, (np.arange(new), np.clip(source, 0, old - 1).astype(int)), given)
    return weights


def _keys(distance: Float[np.ndarray, "*n"], *, a: float) -> Float[np.ndarray, "*n"]:
    """Keys' cubic convolution kernel; 0 from a distance of 2 on."""
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
