"""Intervals: resamples of whole blocks of spots."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from stemjax.eval.metrics import arrays


def spatial_blocks(
    array_xy: Float[np.ndarray, "l 2"], *, size: float = 5.0
) -> Int[np.ndarray, " l"]:
    """Number of the square block of ``size`` x ``size`` array units that each spot lies in."""
    xy = np.asarray(array_xy, np.float64)
    # Half a unit of margin, so that whole array positions never sit on a border.
    cell = np.floor((xy - xy.min(axis=0) + 0.5) / size).astype(np.int64)
    return np.unique(cell, axis=0, return_inverse=True)[1].reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampled:
    """Scores of the block bootstrap's resamples.

    Attributes:
      pcc_all: mean correlation over the genes defined in the resample, [r]; NaN where none is.
      mse: mean squared error, [r].
    """

    pcc_all: Float[np.ndarray, " r"]
    mse: Float[np.ndarray, " r"]


def block_bootstrap(
    pred: Float[np.ndarray, "l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
    *,
    blocks: Int[np.ndarray, " l"],
    resamples: int,
    seed: int,
) -> Resampled:
    """PCC (mean of all genes) and MSE on resamples of whole blocks of spots.

    Neighbouring spots are alike, so resampling single spots would give intervals too narrow: whole
    blocks (`spatial_blocks`) are drawn with replacement, as many as there are. The draw depends
    on ``seed`` and the blocks alone, so two predictions of one slide see the same resamples and
    their differences are paired.
    """
    pred, true, used = arrays.measured(pred, true, mask)
    n_blocks = int(blocks.max()) + 1
    drawn = np.random.default_rng(seed).integers(n_blocks, size=(resamples, n_blocks))
    times = np.stack([np.bincount(row, minlength=n_blocks) for row in drawn]).astype(np.float64)

    membership = (blocks[None, :] == np.arange(n_blocks)[:, None]).astype(np.float64)

    def resampled(values: np.ndarray) -> np.ndarray:
        """Sum over the spots of each resample, [r g]."""
        return times @ (membership @ values)

    # Centred once on the whole slide, so that sums of squares lose no digits below.
    x, y = arrays.centred(pred, used)[0], arrays.centred(true, used)[0]
    n = resampled(used.astype(np.float64))
    count = np.maximum(n, 1.0)
    sum_x, sum_y, sum_xx, sum_yy = (resampled(v) for v in (x, y, x * x, y * y))
    var_x, var_y = sum_xx - sum_x**2 / count, sum_yy - sum_y**2 / count
    flat_x, flat_y = var_x <= arrays.ROUNDING * sum_xx, var_y <= arrays.ROUNDING * sum_yy
    scale = np.sqrt(np.where(flat_x | flat_y, 1.0, var_x * var_y))
    r = np.where(flat_x, 0.0, (resampled(x * y) - sum_x * sum_y / count) / scale)
    defined = ~flat_y
    pcc = np.full(resamples, np.nan)
    some = defined.any(axis=1)
    pcc[some] = np.sum(np.where(defined, r, 0.0), axis=1)[some] / defined.sum(axis=1)[some]
    squared = resampled((pred - true) ** 2).sum(axis=1) / np.maximum(n.sum(axis=1), 1.0)
    return Resampled(pcc_all=pcc, mse=squared)


def interval(values: Float[np.ndarray, " r"], *, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of resampled scores; None when fewer than two are defined."""
    values = values[~np.isnan(values)]
    if values.size < 2:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
