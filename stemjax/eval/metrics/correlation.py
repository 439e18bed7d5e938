"""Correlations of predicted and measured expression."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from stemjax.eval.metrics import arrays


def pcc_per_gene(
    pred: Float[np.ndarray, "l g"], true: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> Float[np.ndarray, " g"]:
    """Pearson's r of each gene over the measured spots.

    A gene whose truth is constant (or not measured) has no correlation: it is NaN, and `pcc_top`
    leaves it out. A gene whose prediction is constant scores 0, as the field prints it for the
    constant baseline.

    Raises:
      ValueError: shapes differ, or a measured entry is not finite.
    """
    pred, true, used = arrays.measured(pred, true, mask)
    x, _ = arrays.centred(pred, used)
    y, constant = arrays.centred(true, used)
    scale = np.sqrt(np.sum(x**2, axis=0)) * np.sqrt(np.sum(y**2, axis=0))
    r = np.divide(np.sum(x * y, axis=0), scale, out=np.zeros(scale.shape), where=scale > 0)
    return np.where(constant, np.nan, np.clip(r, -1.0, 1.0))


def pcc_top(pcc: Float[np.ndarray, " g"], k: int | None = None) -> float:
    """Mean of the k highest defined correlations: PCC-k, ranked on the test slide as published.

    With k None or above the number of defined genes, the mean of all. NaN when none is defined.
    """
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    ranked = np.sort(pcc[~np.isnan(pcc)])[::-1][:k]
    return float(ranked.mean()) if ranked.size else float("nan")
