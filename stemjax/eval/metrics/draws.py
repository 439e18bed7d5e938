"""Scores of draws: their standard error, energy score and energy distance."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial import distance

from stemjax.eval.metrics import arrays

_DISTANCE_ROWS = 512  # rows of a distance matrix held at once: 512 x 20,000 float64 = 82 MB


def draw_standard_error(
    draws: Float[np.ndarray, "n l g"], *, antithetic: bool = False
) -> Float[np.ndarray, "l g"]:
    """Standard error of the average of the draws, std / √n with the divisor n - 1 in std.

    Antithetic draws (2i and 2i + 1 a pair) are not independent: there the n / 2 pair means are the
    independent units, and the error is theirs.

    Raises:
      ValueError: fewer than two independent units, or an odd number of antithetic draws.
    """
    units = np.asarray(draws, np.float64)
    if antithetic:
        if len(units) % 2:
            raise ValueError(f"antithetic draws come in pairs, found {len(units)}")
        units = (units[0::2] + units[1::2]) / 2
    if len(units) < 2:
        raise ValueError(f"a standard error needs two independent draws or pairs: {len(units)}")
    return units.std(axis=0, ddof=1) / np.sqrt(len(units))


def _distance_sum(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of the Euclidean distances of every row of x to every row of y."""
    starts = range(0, len(x), _DISTANCE_ROWS)
    return float(sum(distance.cdist(x[i : i + _DISTANCE_ROWS], y).sum() for i in starts))


def energy_distance(x: Float[np.ndarray, "n g"], y: Float[np.ndarray, "m g"]) -> float:
    """Energy distance of two samples, 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Székely and Rizzo).

    The unbiased U-statistic: pairs of a point with itself are left out, so the value is 0 on
    average for samples of one law and can fall below 0. (scipy's one-dimensional one is the square
    root of the biased V-statistic.)

    Raises:
      ValueError: a sample has fewer than two rows.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, m = len(x), len(y)
    if n < 2 or m < 2:
        raise ValueError(f"energy distance needs two rows in each sample, found {n} and {m}")
    within_x = _distance_sum(x, x) / (n * (n - 1))
    within_y = _distance_sum(y, y) / (m * (m - 1))
    return 2 * _distance_sum(x, y) / (n * m) - within_x - within_y


def energy_score(
    draws: Float[np.ndarray, "n l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
) -> float:
    """Mean over spots of the energy score E|X - y| - E|X - X'| / 2.

    Proper for whole gene profiles: lower is better, least for draws from the true law. Pairs of a
    draw with itself are left out, which makes it unbiased for independent draws; a single draw
    (n = 1) gives E|X - y|. Antithetic pairs lie further apart than independent draws, so their
    score comes out a little too low: compare like with like.
    """
    draws = np.stack([arrays.measured(draw, true, mask)[0] for draw in draws])
    true = arrays.measured(draws[0], true, mask)[1]
    n = len(draws)
    score = np.mean([np.linalg.norm(draw - true, axis=-1).mean() for draw in draws])
    pairs = [
        np.linalg.norm(draws[i] - draws[i + 1 :], axis=-1).mean(axis=1).sum() for i in range(n - 1)
    ]
    return float(score - (sum(pairs) / (n * (n - 1)) if n > 1 else 0.0))
