"""Errors of single entries."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from stemjax.eval.metrics import arrays


def mse(
    pred: Float[np.ndarray, "l g"], true: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> float:
    """Mean squared error over all measured entries, in squared units of the value space."""
    pred, true, used = arrays.measured(pred, true, mask)
    return float(np.mean((pred - true)[used] ** 2)) if used.any() else float("nan")


def mae(
    pred: Float[np.ndarray, "l g"], true: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> float:
    """Mean absolute error over all measured entries, in units of the value space."""
    pred, true, used = arrays.measured(pred, true, mask)
    return float(np.mean(np.abs(pred - true)[used])) if used.any() else float("nan")


def mse_per_gene(
    pred: Float[np.ndarray, "l g"], true: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> Float[np.ndarray, " g"]:
    """Mean squared error of each gene over its measured spots; NaN for one measured nowhere."""
    pred, true, used = arrays.measured(pred, true, mask)
    n = used.sum(axis=0)
    squared = np.sum((pred - true) ** 2, axis=0)
    return np.divide(squared, n, out=np.full(n.shape, np.nan), where=n > 0)


def r2_per_gene(
    pred: Float[np.ndarray, "l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
    *,
    baseline: Float[np.ndarray, " g"] | None = None,
) -> Float[np.ndarray, " g"]:
    """Explained share of each gene: 1 - Σ(y - pred)² / Σ(y - baseline)².

    1 is exact, 0 as good as the baseline, below 0 worse. The default baseline is the gene's mean
    on the test slide itself (scikit-learn's ``r2_score``), which no model has seen: a model that
    gets every pattern right and the slide's level wrong falls below 0. With the training means as
    ``baseline`` it is the gain over what was known before.

    Returns:
      [g]. NaN where the baseline is exact (with the default: where the truth is constant) or the
      gene is not measured.

    Raises:
      ValueError: shapes differ, or a measured entry, or its baseline, is not finite.
    """
    pred, true, used = arrays.measured(pred, true, mask)
    if baseline is None:
        rest, _ = arrays.centred(true, used)
    else:
        level = np.asarray(baseline, np.float64)
        if level.shape != true.shape[1:]:
            raise ValueError(f"baseline must be [genes] {true.shape[1:]}, found {level.shape}")
        arrays.require_finite("baseline", level, used.any(axis=0))
        rest = np.where(used, true - level, 0.0)
    floor = np.sum(rest**2, axis=0)
    defined = floor > arrays.ROUNDING**2 * np.sum(true**2, axis=0)
    error = np.sum((pred - true) ** 2, axis=0)
    return 1 - np.divide(error, floor, out=np.full(floor.shape, np.nan), where=defined)
