"""What every score does first: float64, masks, finite values, deviations from a gene's mean."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# A deviation this small beside the values themselves is the rounding of equal numbers.
ROUNDING = 1e-12
# The same where something is subtracted first that a prediction, held in float32, may equal.
SINGLE_ROUNDING = 1e-6
_PORTION = 2**18  # numbers of an array worked on at once: 2 MB of float64 stay in the cache


def used_entries(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """The boolean [l g] of what the slide measured, from a mask [g] or [l g] or None for all."""
    if mask is None:
        return np.ones(shape, bool)
    return np.broadcast_to(np.asarray(mask) != 0, shape)


def require_finite(name: str, values: np.ndarray, used: np.ndarray) -> None:
    """Refuses NaN and infinity in the entries that are used.

    A NaN would make its gene "undefined" and so be left out of the mean unseen.

    Raises:
      ValueError: some are not finite.
    """
    wrong = np.count_nonzero(~np.isfinite(values) & used)
    if wrong:
        raise ValueError(f"{name} holds {wrong} NaN or infinite values")


def measured(
    pred: np.ndarray, true: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both arrays in float64, zero where not measured, and the boolean [l g] of what is.

    Raises:
      ValueError: shapes differ, or a measured entry is not finite.
    """
    pred, true = np.asarray(pred, np.float64), np.asarray(true, np.float64)
    if pred.shape != true.shape or true.ndim != 2:
        raise ValueError(
            f"prediction and truth must be [spots genes] alike: {pred.shape}, {true.shape}"
        )
    used = used_entries(mask, true.shape)
    for name, values in (("prediction", pred), ("truth", true)):
        require_finite(name, values, used)
    return np.where(used, pred, 0.0), np.where(used, true, 0.0), used


def measured_values(values: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """As `measured`, of one array alone."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2:
        raise ValueError(f"values must be [spots genes], found {values.shape}")
    used = used_entries(mask, values.shape)
    require_finite("the array", values, used)
    return np.where(used, values, 0.0), used


def measured_draws(
    draws: np.ndarray, true: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `measured`, with the draws [n l g] in the prediction's place.

    Raises:
      ValueError: shapes differ, there is no draw, or a measured entry is not finite.
    """
    draws, true = np.asarray(draws, np.float64), np.asarray(true, np.float64)
    if draws.ndim != 3 or draws.shape[1:] != true.shape or not len(draws):
        raise ValueError(
            f"draws [n spots genes] and truth [spots genes] do not fit: {draws.shape}, {true.shape}"
        )
    used = used_entries(mask, true.shape)
    require_finite("the array of draws", draws, used)
    require_finite("truth", true, used)
    return np.where(used, draws, 0.0), np.where(used, true, 0.0), used


def centred(values: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deviations from each gene's mean (0 where unused), and which genes are constant."""
    n = np.maximum(used.sum(axis=0), 1)
    deviation = np.where(used, values - values.sum(axis=0) / n, 0.0)
    constant = np.sum(deviation**2, axis=0) <= ROUNDING**2 * np.sum(values**2, axis=0)
    return np.where(constant, 0.0, deviation), constant


def portions(spots: int, per_spot: int) -> Iterator[slice]:
    """Slices of the spots, so many at once that ``per_spot`` numbers of each take 2 MB."""
    step = max(1, _PORTION // max(per_spot, 1))
    return (slice(start, start + step) for start in range(0, spots, step))
