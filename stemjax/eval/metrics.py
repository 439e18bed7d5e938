"""Scores of predicted gene expression, as pure functions on numpy arrays.

All arrays are in one value space (for example log2(count + 1)); everything is computed in float64.
``mask`` is 1 where the slide measured the gene, [g] or [l g], None for all; what lies outside it
takes no part in any score. PCC-k, MSE, MAE and RVD are those of Stem (Zhu et al., ICLR 2025, arXiv
2501.15598). Energy distance: Székely and Rizzo 2013
(J. Stat. Plan. Inference 143); energy score: Gneiting and Raftery 2007 (JASA 102).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import distance

# A deviation this small beside the values themselves is the rounding of equal numbers.
_ROUNDING = 1e-12
_DISTANCE_ROWS = 512  # rows of a distance matrix held at once: 512 x 20,000 float64 = 82 MB


def _measured(
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


def _centred(values: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deviations from each gene's mean (0 where unused), and which genes are constant."""
    n = np.maximum(used.sum(axis=0), 1)
    deviation = np.where(used, values - values.sum(axis=0) / n, 0.0)
    constant = np.sum(deviation**2, axis=0) <= _ROUNDING**2 * np.sum(values**2, axis=0)
    return np.where(constant, 0.0, deviation), constant


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
    pred, true, used = _measured(pred, true, mask)
    x, _ = _centred(pred, used)
    y, constant = _centred(true, used)
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


def mse(
    pred: Float[np.ndarray, "l g"], true: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> float:
    """Mean squared error over all measured entries, in squared units of the value space."""
    pred, true, used = _measured(pred, true, mask)
    return float(np.mean((pred - true)[used] ** 2)) if used.any() else float("nan")


def mae(
    pred: Float[np.ndarray, "l g"], true: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> float:
    """Mean absolute error over all measured entries, in units of the value space."""
    pred, true, used = _measured(pred, true, mask)
    return float(np.mean(np.abs(pred - true)[used])) if used.any() else float("nan")


def rvd(
    pred: Float[np.ndarray, "l g"], true: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> float:
    """Relative variance distance: mean over genes of (var_pred - var_true)² / var_true².

    Variances are over spots (the divisor n or n - 1 cancels). 0 is the right spread, 1 a constant
    prediction. Genes constant in truth are left out. The RVD of an average of draws falls short by
    construction; that of one draw is `rvd_of_draws`.
    """
    pred, true, used = _measured(pred, true, mask)
    spread_pred = np.sum(_centred(pred, used)[0] ** 2, axis=0)
    deviation, constant = _centred(true, used)
    if constant.all():
        return float("nan")
    ratio = spread_pred[~constant] / np.sum(deviation**2, axis=0)[~constant]
    return float(np.mean((ratio - 1.0) ** 2))


def rvd_of_draws(
    draws: Float[np.ndarray, "n l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
) -> float:
    """Mean over draws of the RVD of a single draw."""
    return float(np.mean([rvd(draw, true, mask) for draw in draws]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariationCurve:
    """One panel of the gene variation figure: genes sorted by the truth's value, rising.

    Attributes:
      order: index of each gene in the panel it came from, [k] of the k measured genes.
      true: the truth's value, rising, [k].
      pred: the prediction's value of the same genes, [k].
    """

    order: Int[np.ndarray, " k"]
    true: Float[np.ndarray, " k"]
    pred: Float[np.ndarray, " k"]


def gene_variation_curve(
    pred: Float[np.ndarray, "l g"], true: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> dict[str, VariationCurve]:
    """The gene variation curves of Stem: mean and variance over spots, truth beside prediction.

    Returns:
      ``mean``, ``variance`` (absolute, divisor n) and ``mean_normalised``,
      ``variance_normalised`` (each curve divided by its own sum, so that it sums to 1; a curve
      that sums to 0 stays 0).
    """
    pred, true, used = _measured(pred, true, mask)
    genes = np.flatnonzero(used.any(axis=0))
    n = used.sum(axis=0)[genes]
    curves = {}
    for name in ("mean", "variance"):
        sides = []
        for values in (true, pred):
            if name == "mean":
                sides.append(values.sum(axis=0)[genes] / n)
            else:
                sides.append(np.sum(_centred(values, used)[0] ** 2, axis=0)[genes] / n)
        rank = np.argsort(sides[0], kind="stable")
        y, x = sides[0][rank], sides[1][rank]
        curves[name] = VariationCurve(order=genes[rank], true=y, pred=x)
        y, x = (v / v.sum() if v.sum() != 0 else v for v in (y, x))
        curves[f"{name}_normalised"] = VariationCurve(order=genes[rank], true=y, pred=x)
    return curves


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
    pred, true, used = _measured(pred, true, mask)
    n_blocks = int(blocks.max()) + 1
    drawn = np.random.default_rng(seed).integers(n_blocks, size=(resamples, n_blocks))
    times = np.stack([np.bincount(row, minlength=n_blocks) for row in drawn]).astype(np.float64)

    membership = (blocks[None, :] == np.arange(n_blocks)[:, None]).astype(np.float64)

    def resampled(values: np.ndarray) -> np.ndarray:
        """Sum over the spots of each resample, [r g]."""
        return times @ (membership @ values)

    # Centred once on the whole slide, so that sums of squares lose no digits below.
    x, y = _centred(pred, used)[0], _centred(true, used)[0]
    n = resampled(used.astype(np.float64))
    count = np.maximum(n, 1.0)
    sum_x, sum_y, sum_xx, sum_yy = (resampled(v) for v in (x, y, x * x, y * y))
    var_x, var_y = sum_xx - sum_x**2 / count, sum_yy - sum_y**2 / count
    flat_x, flat_y = var_x <= _ROUNDING * sum_xx, var_y <= _ROUNDING * sum_yy
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Every score of one row of a table; NaN where it is not defined.

    Attributes:
      pcc_10, pcc_50, pcc_all: mean of the 10 or 50 highest correlations, of all that are defined.
      mse, mae, rvd: as the functions of these names.
      resampled: PCC of all genes and MSE on the resamples, or None without resamples.
    """

    pcc_10: float
    pcc_50: float
    pcc_all: float
    mse: float
    mae: float
    rvd: float
    resampled: Resampled | None


def score(
    preds: Float[np.ndarray, "n l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
    *,
    blocks: Int[np.ndarray, " l"],
    resamples: int,
    seed: int,
) -> Scores:
    """All scores of a prediction (n = 1), or the mean over n single draws of each draw's score.

    There are no resamples with fewer than two of them or of blocks.
    """
    pcc = [pcc_per_gene(pred, true, mask) for pred in preds]
    resampled = None
    if resamples >= 2 and blocks.max() >= 1:
        each = [
            block_bootstrap(pred, true, mask, blocks=blocks, resamples=resamples, seed=seed)
            for pred in preds
        ]
        resampled = Resampled(
            pcc_all=np.mean([one.pcc_all for one in each], axis=0),
            mse=np.mean([one.mse for one in each], axis=0),
        )
    return Scores(
        pcc_10=float(np.mean([pcc_top(r, 10) for r in pcc])),
        pcc_50=float(np.mean([pcc_top(r, 50) for r in pcc])),
        pcc_all=float(np.mean([pcc_top(r) for r in pcc])),
        mse=float(np.mean([mse(pred, true, mask) for pred in preds])),
        mae=float(np.mean([mae(pred, true, mask) for pred in preds])),
        rvd=rvd_of_draws(preds, true, mask),
        resampled=resampled,
    )


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
    draws = np.stack([_measured(draw, true, mask)[0] for draw in draws])
    true = _measured(draws[0], true, mask)[1]
    n = len(draws)
    score = np.mean([np.linalg.norm(draw - true, axis=-1).mean() for draw in draws])
    pairs = [
        np.linalg.norm(draws[i] - draws[i + 1 :], axis=-1).mean(axis=1).sum() for i in range(n - 1)
    ]
    return float(score - (sum(pairs) / (n * (n - 1)) if n > 1 else 0.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawSummary:
    """What single draws tell beyond their average.

    Attributes:
      n: number of draws.
      antithetic: whether draws 2i and 2i + 1 are a pair.
      standard_error: of the average, root mean square over measured entries; None where undefined.
      energy_score: mean over spots.
    """

    n: int
    antithetic: bool
    standard_error: float | None
    energy_score: float


def describe_draws(
    draws: Float[np.ndarray, "n l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
    *,
    antithetic: bool = False,
) -> DrawSummary:
    """Standard error of the draws' average, and their energy score."""
    n, error = len(draws), None
    if n >= 4 and n % 2 == 0 if antithetic else n >= 2:
        each = draw_standard_error(draws, antithetic=antithetic)
        error = float(np.sqrt(np.mean(each[_measured(each, true, mask)[2]] ** 2)))
    score = energy_score(draws, true, mask)
    return DrawSummary(n=n, antithetic=antithetic, standard_error=error, energy_score=score)
