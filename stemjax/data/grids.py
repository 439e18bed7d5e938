"""Full grids of spots, as arrays for spatial transcriptomics have them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from stemjax import errors

type Kind = Literal["hexagonal", "square"]


def grid_xy(
    kind: Kind, rows: int, columns: int, pitch_um: float
) -> tuple[Float[np.ndarray, "l 2"], Float[np.ndarray, "l 2"]]:
    """(array_xy, xy_um) of a full grid, both float32, row by row, one pitch from the corner.

    "square" is the array of Spatial Transcriptomics. "hexagonal" is Visium's: array columns of the
    row's parity, two apart, every spot with six neighbours at the pitch.

    Raises:
      ConfigError: another kind, or a grid without spots.
    """
    known = kind in ("hexagonal", "square")
    if not known or min(rows, columns) < 1 or not pitch_um > 0:
        raise errors.ConfigError(
            "a grid of spots cannot be made",
            expected="hexagonal or square, at least one row and column, a pitch above 0 um",
            found=f"{kind}, {rows} rows, {columns} columns, {pitch_um} um",
        )
    column, row = (v.reshape(-1) for v in np.meshgrid(np.arange(columns), np.arange(rows)))
    step = np.array([pitch_um, pitch_um])
    if kind == "hexagonal":
        column, step = 2 * column + row % 2, step * [0.5, np.sqrt(0.75)]
    array_xy = np.stack([column, row], axis=1)
    return array_xy.astype(np.float32), (pitch_um + array_xy * step).astype(np.float32)
