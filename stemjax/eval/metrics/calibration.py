"""Calibration: whether intervals hold what they promise, and how wide they are.

"Maximise the sharpness of the predictive distributions subject to calibration" (Gneiting,
Balabdaoui and Raftery 2007, J. R. Statist. Soc. B 69): both are given, neither alone is a score.
All arrays are [l g] in the value space; ``mask`` as everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from stemjax.eval.metrics import arrays
from stemjax.eval.metrics import forecasts as forecasts_lib

GRID = tuple(i / 20 for i in range(1, 20))
"""Probabilities at which `calibration_error` compares: .05, .10, ... .95."""


def covered(
    lower: Float[np.ndarray, "l g"],
    upper: Float[np.ndarray, "l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
) -> Bool[np.ndarray, "l g"]:
    """Whether the truth lies in its interval, both ends counted; False where not measured.

    Since the ends count, an interval that ends at a value which many spots have (0 counts) covers
    more than its level even where the forecast is right.

    Raises:
      ValueError: shapes differ, a measured entry is not finite, or an interval is upside down.
    """
    lower, upper, used = _interval(lower, upper, mask)
    true = arrays.measured(lower, true, used)[1]
    return used & (lower <= true) & (true <= upper)


def coverage(
    lower: Float[np.ndarray, "l g"],
    upper: Float[np.ndarray, "l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
) -> float:
    """Share of the measured entries whose truth lies in its interval (`covered`); NaN with none."""
    inside = covered(lower, upper, true, mask)
    return _share(inside, arrays.used_entries(mask, inside.shape))


def width(
    lower: Float[np.ndarray, "l g"],
    upper: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
) -> float:
    """Mean width of the measured entries' intervals, in units of the value space; NaN with none.

    Raises:
      ValueError: shapes differ, a measured entry is not finite, or an interval is upside down.
    """
    lower, upper, used = _interval(lower, upper, mask)
    return _share(upper - lower, used)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharpness:
    """How concentrated a forecast is, in units of the value space; less is sharper.

    Attributes:
      std: mean standard deviation over measured entries.
      levels: levels of the central intervals.
      widths: mean width of each of them.
    """

    std: float
    levels: tuple[float, ...]
    widths: tuple[float, ...]


def sharpness(
    forecast: forecasts_lib.Forecast,
    mask: np.ndarray | None = None,
    *,
    levels: Sequence[float] = forecasts_lib.LEVELS,
) -> Sharpness:
    """Mean width of the central intervals and mean standard deviation (Gneiting and others 2007).

    It is a property of the forecast alone: a sharp forecast that misses is worthless.

    Raises:
      ValueError: a level is not in (0, 1), or a measured entry is not finite.
    """
    std = forecast.std
    used = arrays.used_entries(mask, std.shape)
    arrays.require_finite("the forecast's std", std, used)
    return Sharpness(
        std=_share(std, used),
        levels=tuple(levels),
        widths=tuple(width(*forecasts_lib.central(forecast, level), used) for level in levels),
    )


def pit_histogram(
    pit: Float[np.ndarray, "l g"], mask: np.ndarray | None = None, *, bins: int = 10
) -> Int[np.ndarray, " bins"]:
    """Number of measured PIT values (`Forecast.pit`) in each of equal bins of [0, 1].

    Flat where the forecast is calibrated; a valley in the middle: too narrow; a hill: too wide; a
    slope: biased (Gneiting and others 2007). PIT values of n draws come in n + 1 steps,
    which fill other numbers of bins unevenly: take a divisor of n + 1, or `rank_histogram`.

    Raises:
      ValueError: a measured value is not in [0, 1].
    """
    return np.histogram(_measured_pit(pit, mask), bins=bins, range=(0, 1))[0]


def rank_histogram(
    draws: Float[np.ndarray, "n l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
    *,
    seed: int,
) -> Int[np.ndarray, " n+1"]:
    """How often the truth has each rank among its draws: 0 below all of n, n above all.

    Read as `pit_histogram` is. A truth equal to some draws (counts of 0) gets one of the ranks it
    could have at random, by ``seed`` alone (Hamill 2001, Monthly Weather Review 129), so that the
    histogram is flat for a law with atoms too. Antithetic draws are not exchangeable with the
    truth, and theirs need not be flat.

    Raises:
      ValueError: shapes differ, or a measured entry is not finite.
    """
    # Compared as the draws are stored: a truth in float64 would miss its tie in float32.
    compared = np.asarray(true).astype(np.asarray(draws).dtype)
    draws, true, used = arrays.measured_draws(draws, compared, mask)
    ties = np.sum(draws == true, axis=0)
    rank = np.sum(draws < true, axis=0) + np.random.default_rng(seed).integers(0, ties + 1)
    return np.bincount(rank[used], minlength=len(draws) + 1)


def calibration_curve(
    pit: Float[np.ndarray, "l g"],
    levels: Sequence[float] = GRID,
    mask: np.ndarray | None = None,
) -> Float[np.ndarray, " p"]:
    """Share of the measured PIT values at or below each probability: itself, if calibrated.

    The reliability of the quantiles (Gneiting and others 2007, section 3.1, probabilistic
    calibration; Kuleshov and others 2018, ICML). For n draws take levels k / (n + 1), at
    which alone their PIT can be exact.

    Returns:
      [p]; NaN when nothing is measured.

    Raises:
      ValueError: a measured value is not in [0, 1].
    """
    values = np.sort(_measured_pit(pit, mask))
    if not values.size:
        return np.full(len(levels), np.nan)
    return np.searchsorted(values, np.asarray(levels), side="right") / values.size


def calibration_error(
    pit: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
    *,
    levels: Sequence[float] = GRID,
) -> float:
    """Mean over a grid of probabilities p of |share of PIT at or below p - p|.

    The expected calibration error of a regression's quantiles (after Kuleshov and others 2018, who
    square): 0 is calibrated, at most about 1/2, the value for a forecast that is always too high
    or too low. It averages over entries: errors of opposite sign in two genes cancel, so also look
    at it gene by gene.

    Raises:
      ValueError: a measured value is not in [0, 1].
    """
    return float(np.mean(np.abs(calibration_curve(pit, levels, mask) - np.asarray(levels))))


def _interval(
    lower: np.ndarray, upper: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lower, upper = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    if lower.shape != upper.shape or lower.ndim != 2:
        raise ValueError(f"ends must be [spots genes] alike: {lower.shape}, {upper.shape}")
    used = arrays.used_entries(mask, lower.shape)
    for name, values in (("lower end", lower), ("upper end", upper)):
        arrays.require_finite(name, values, used)
    lower, upper = np.where(used, lower, 0.0), np.where(used, upper, 0.0)
    if (lower > upper).any():
        raise ValueError(f"{np.count_nonzero(lower > upper)} intervals end below their start")
    return lower, upper, used


def _measured_pit(pit: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    values = np.asarray(pit, np.float64)[arrays.used_entries(mask, np.shape(pit))]
    wrong = np.count_nonzero(~((values >= 0) & (values <= 1)))
    if wrong:
        raise ValueError(f"{wrong} PIT values are NaN or outside [0, 1]")
    return values


def _share(values: np.ndarray, used: np.ndarray) -> float:
    return float(np.mean(values[used])) if used.any() else float("nan")
