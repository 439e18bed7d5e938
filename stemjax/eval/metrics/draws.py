"""Scores of draws and of samples: standard error, energy and variogram score, distances of laws."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial import distance

from stemjax.eval.metrics import arrays, resampling

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
    """Energy distance of two samples, 2 E|X - Y| - E|X - X'| - E|Y - Y'|.

    Székely and Rizzo 2013 (J. Stat. Plan. Inference 143), as the unbiased
    U-statistic: pairs of a point with itself are left out, so the value is 0 on average for samples
    of one law and can fall below 0. (scipy's one-dimensional one is the square root of the biased
    V-statistic.)

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


def energy_score_per_spot(
    draws: Float[np.ndarray, "n l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
    *,
    antithetic: bool = False,
) -> Float[np.ndarray, " l"]:
    """Energy score of each spot's profile, E|X - y| - E|X - X'| / 2, with Euclidean norms.

    Gneiting and Raftery 2007 (JASA 102), eq. 22 with beta 1. Proper for whole gene profiles: lower
    is better, least for draws from the true law; in one dimension it is the CRPS. Pairs of a draw
    with itself are left out, which makes it unbiased for independent draws (the "fair" estimate);
    a single draw (n = 1) gives E|X - y|. The two of an antithetic pair (draws 2i and 2i + 1) are
    not independent and lie further apart: their distance is left out (of one pair alone it cannot).

    Returns:
      [l], in units of the value space, growing as the root of the number of genes; NaN for a spot
      without a measured gene.

    Raises:
      ValueError: shapes differ, or a measured entry is not finite.
    """
    draws, true, used = arrays.measured_draws(draws, true, mask)
    n, spots = len(draws), len(true)
    if antithetic and n % 2:
        raise ValueError(f"antithetic draws come in pairs, found {n}")
    score = np.full(spots, np.nan)
    # Spot by spot: all pairs of draws at once, as scoringrules forms them, are n times the draws.
    for spot in np.flatnonzero(used.any(axis=1)):
        mine = draws[:, spot]
        within = distance.pdist(mine).mean() if n > 1 else 0.0
        if antithetic and n > 2:
            partners = np.linalg.norm(mine[0::2] - mine[1::2], axis=1).mean()
            within = ((n - 1) * within - partners) / (n - 2)
        score[spot] = distance.cdist(mine, true[None, spot]).mean() - within / 2
    return score


def energy_score(
    draws: Float[np.ndarray, "n l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
    *,
    antithetic: bool = False,
) -> float:
    """Mean over spots of `energy_score_per_spot`; NaN when nothing is measured."""
    each = energy_score_per_spot(draws, true, mask, antithetic=antithetic)
    return float(resampling.mean_defined(each))


def variogram_score_per_spot(
    draws: Float[np.ndarray, "n l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
    *,
    p: float = 0.5,
) -> Float[np.ndarray, " l"]:
    """Variogram score of each spot: how genes differ from one another, forecast against measured.

    Mean over pairs of genes i < j of (|y_i - y_j|^p - E|X_i - X_j|^p)² (Scheuerer and Hamill 2015,
    Monthly Weather Review 143, with equal weights that sum to 1; scoringrules sums over
    ordered pairs). Proper and lower is better. It sees wrong dependence between genes, to which the
    energy score is nearly blind, and does not see an error that all genes share.

    The square of an average of n draws is too large by their variance / n, which is taken off
    (scoringrules' "fair"), so that scores of few and of many draws compare; a single draw (n = 1)
    has no variance to take off.

    Args:
      draws: single draws.
      true: truth.
      mask: as everywhere; a pair counts where both genes are measured.
      p: order, above 0.

    Returns:
      [l], in units of the value space to the power 2 p; NaN for a spot with fewer than two measured
      genes.

    Raises:
      ValueError: shapes differ, a measured entry is not finite, or p is not above 0.
    """
    draws, true, used = arrays.measured_draws(draws, true, mask)
    if not p > 0:
        raise ValueError(f"p must be above 0, found {p}")
    n, spots, genes = draws.shape
    total, weight = np.zeros(spots), used.T.astype(np.float64)
    # Gene by gene: all pairs of genes of all draws at once would be hundreds of gigabytes.
    for part in arrays.portions(spots, n * genes):
        x = np.ascontiguousarray(draws[:, part].transpose(2, 0, 1))
        y, w, room = true[part].T, weight[:, part], np.empty_like(x)
        for i in range(genes - 1):
            forecast = np.subtract(x[i + 1 :], x[i], out=room[i + 1 :])
            np.abs(forecast, out=forecast)
            forecast **= p
            mean = forecast.mean(axis=1)
            loss = (np.abs(y[i + 1 :] - y[i]) ** p - mean) ** 2
            if n > 1:
                forecast -= mean[:, None]
                loss -= np.einsum("gnl,gnl->gl", forecast, forecast) / (n * (n - 1))
            total[part] += w[i] * np.sum(loss * w[i + 1 :], axis=0)
    count = used.sum(axis=1)
    pairs = count * (count - 1) / 2
    return np.divide(total, pairs, out=np.full(spots, np.nan), where=pairs > 0)


def variogram_score(
    draws: Float[np.ndarray, "n l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
    *,
    p: float = 0.5,
) -> float:
    """Mean over spots of `variogram_score_per_spot`; NaN when no spot has two measured genes."""
    return float(resampling.mean_defined(variogram_score_per_spot(draws, true, mask, p=p)))


def wasserstein_per_gene(
    pred: Float[np.ndarray, "l g"], true: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> Float[np.ndarray, " g"]:
    """1-Wasserstein distance of each gene's values over spots, wherever on the slide they are.

    W1 = ∫ |F_pred - F_true| dx, which is the mean of |x_(i) - y_(i)| over the sorted values as both
    sides have equally many. 0 when the predicted values are the measured ones in any order; at
    most the mean absolute error.

    Returns:
      [g], in units of the value space; NaN for a gene measured nowhere.

    Raises:
      ValueError: shapes differ, or a measured entry is not finite.
    """
    pred, true, used = arrays.measured(pred, true, mask)
    n = used.sum(axis=0)
    # What is not measured goes to the end of the order, on both sides alike.
    x, y = (np.sort(np.where(used, side, np.inf), axis=0) for side in (pred, true))
    counted = np.arange(len(true))[:, None] < n
    apart = np.abs(np.where(counted, x, 0.0) - np.where(counted, y, 0.0)).sum(axis=0)
    return np.divide(apart, n, out=np.full(n.shape, np.nan), where=n > 0)
