"""What every score does first: float64, masks, finite values, deviations from a gene's mean."""

from __future__ import annotations

import numpy as np

# A deviation this small beside the values themselves is the rounding of equal numbers.
ROUNDING = 1e-12


def measured(
    pred: np.ndarray, true: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both arrays in float64, zero where not measured, and the boolean [l g] of what is."""
    pred, true = np.asarray(pred, np.float64), np.asarray(true, np.float64)
    if pred.shape != true.shape or true.ndim != 2:
        raise ValueError(
            f"prediction and truth must be [spots genes] alike: {pred.shape}, {true.shape}"
        )
    if mask is None:
        used = np.ones(true.shape, bool)
    else:
        used = np.broadcast_to(np.asarray(mask) != 0, true.shape)
    pred, true = np.where(used, pred, 0.0), np.where(used, true, 0.0)
    # A NaN would make its gene "undefined" and so be left out of the mean unseen.
    for name, values in (("prediction", pred), ("truth", true)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds {np.sum(~np.isfinite(values))} NaN or infinite values")
    return pred, true, used


def centred(values: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deviations from each gene's mean (0 where unused), and which genes are constant."""
    n = np.maximum(used.sum(axis=0), 1)
    deviation = np.where(used, values - values.sum(axis=0) / n, 0.0)
    constant = np.sum(deviation**2, axis=0) <= ROUNDING**2 * np.sum(values**2, axis=0)
    return np.where(constant, 0.0, deviation), constant
