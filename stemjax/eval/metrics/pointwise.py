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
