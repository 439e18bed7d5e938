"""The scores of one row: on the slide (entry 0) and on each of its resamples (the rest)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float

from stemjax.eval import metrics
from stemjax.eval.scoring.ground import Ground, about_mean, deviations

_TOP = (10, 50, 200)
_GRID = 96  # points at which two distributions are compared in a resample
_PARTS = 20  # of probability, between which a law other than draws is looked at
_VARIOGRAM_SPOTS = 512  # all pairs of genes of all draws: seconds a thousand spots
_DRAWS_OF_STRUCTURE = 4  # single draws whose structure is looked at: it hardly differs among them


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """One row's scores.

    Attributes:
      values: by the keys of `COLUMNS`: the slide's and each resample's, [1+r]; NaN where undefined.
      genes: per gene, on the slide: ``pcc`` and ``mse``, [g] each.
    """

    values: Mapping[str, Float[np.ndarray, " r"]]
    genes: Mapping[str, Float[np.ndarray, " g"]]


def score(
    ground: Ground,
    mean: Float[np.ndarray, "l g"],
    *,
    forecast: metrics.Forecast | None = None,
    draws: Float[np.ndarray, "n l g"] | None = None,
    antithetic: bool = False,
    intervals: Mapping[float, tuple[np.ndarray, np.ndarray]] | None = None,
    structure: bool = True,
    ranks: bool = True,
) -> Scored:
    """Every score that a prediction allows.

    Args:
      ground: the truth.
      mean: the prediction.
      forecast: the predicted law of each entry, for CRPS, coverage and calibration.
      draws: whole profiles, for energy and variogram score.
      antithetic: whether draws 2i and 2i + 1 are a pair.
      intervals: calibrated central intervals by level.
      structure: whether to score gene-gene and spatial structure, most of the time.
      ranks: whether to score ranks and single spots.
    """
    mean = np.asarray(mean, np.float64)
    pcc = ground.correlation(mean)
    values = _tops(ground, pcc) | {"pcc_all": metrics.mean_defined(pcc)}
    values["pcc_depth"] = metrics.mean_defined(_given_depth(ground, mean, pcc))
    values |= _errors(ground, mean)
    if ranks:
        ranked = scipy.stats.rankdata(mean, axis=0)
        values["spearman"] = metrics.mean_defined(ground.ranks.correlation(ranked))
        values["pcc_spot"] = _per_spot(ground, mean)
    genes = {"pcc": pcc[0], "mse": np.mean((mean - ground.true) ** 2, axis=0)}
    if structure:
        values |= _structure(ground, mean)
    if forecast is not None:
        values |= _spread(ground, forecast)
    if draws is not None:
        energy = metrics.energy_score_per_spot(draws, ground.true, antithetic=antithetic)
        values["energy"] = ground.resamples.mean(energy)
        values["variogram"] = _variogram(ground, draws)
    for level, (low, high) in (intervals or {}).items():
        values |= _interval(ground, low, high, f"{level * 100:g}_calibrated")
    return Scored(values=values, genes=genes)


def score_draws(ground: Ground, draws: Float[np.ndarray, "n l g"]) -> Scored:
    """Mean over draws of the scores of each single draw; structure over the first four."""
    each = [
        score(ground, draw, structure=i < _DRAWS_OF_STRUCTURE, ranks=False)
        for i, draw in enumerate(draws)
    ]
    first = each[0]
    return Scored(
        values={
            key: np.mean([one.values[key] for one in each if key in one.values], axis=0)
            for key in first.values
        },
        genes={key: np.mean([one.genes[key] for one in each], axis=0) for key in first.genes},
    )


def score_ceiling(
    ground: Ground, halves: Sequence[tuple[np.ndarray, np.ndarray]], poisson: np.ndarray
) -> Scored:
    """The noise ceiling: correlations from split halves of the counts, MSE of a Poisson resample.

    The correlation r of two halves of the counts, averaged over the splits and stepped up to the
    whole by Spearman and Brown's 2r / (1 + r), is the share of variance that is not noise; its
    root is the correlation that the true rates would have (`baselines.noise_ceiling`). Resamples
    reuse the halves.

    Args:
      ground: the truth.
      halves: pairs of halves, value space, [l g] each.
      poisson: the counts drawn again with themselves as rates, value space, [l g].
    """
    each = [dataclasses.replace(ground, true=second).correlation(first) for first, second in halves]
    r = np.maximum(np.mean([np.where(np.isnan(one), 0.0, one) for one in each], axis=0), 0.0)
    pcc = np.where(ground.defined, np.sqrt(2 * r / (1 + r)), np.nan)
    square = (poisson - ground.true) ** 2
    values = _tops(ground, pcc) | {"pcc_all": metrics.mean_defined(pcc)}
    values |= {"mse": ground.resamples.mean(square).mean(axis=1)}
    values |= {"mae": ground.resamples.mean(np.sqrt(square)).mean(axis=1)}
    return Scored(values=values, genes={"pcc": pcc[0], "mse": square.mean(axis=0)})


def _tops(ground: Ground, pcc: np.ndarray) -> dict[str, np.ndarray]:
    """PCC-k for every k below the number of genes with a correlation.

    The genes stay those ranked on the slide itself: ranking each resample anew would choose its
    luckiest genes each time.
    """
    defined = int((~np.isnan(pcc[0])).sum())
    order = np.argsort(np.where(np.isnan(pcc[0]), -np.inf, pcc[0]), kind="stable")[::-1]
    found = {f"pcc_{k}": metrics.mean_defined(pcc[:, order[:k]]) for k in _TOP if k < defined}
    if ground.ranking is not None:
        score = np.where(np.isnan(ground.ranking) | np.isnan(pcc[0]), -np.inf, ground.ranking)
        order = np.argsort(score, kind="stable")[::-1]
        for k in _TOP:
            if k < defined:
                found[f"pcc_{k}_train"] = metrics.mean_defined(pcc[:, order[:k]])
    return found


def _given_depth(ground: Ground, pred: np.ndarray, pcc: np.ndarray) -> Float[np.ndarray, "r g"]:
    """Partial correlation given the depth, from the three plain ones."""
    with_true, with_pred = ground.with_depth, ground.of_depth.correlation(pred)
    with_pred = np.where(np.isnan(with_pred), 0.0, with_pred)  # one depth for all: nothing to take
    left = (1 - with_true**2) * (1 - with_pred**2)
    fine = left > metrics.ROUNDING
    found = (pcc - with_true * with_pred) / np.sqrt(np.where(fine, left, 1.0))
    # A prediction (or gene) that is the depth and nothing else has nothing beyond it.
    return np.where(np.isnan(pcc), np.nan, np.where(fine, np.clip(found, -1.0, 1.0), 0.0))


def _errors(ground: Ground, pred: np.ndarray) -> dict[str, np.ndarray]:
    """MSE, MAE, R² with both baselines, RVD."""
    error, sums = pred - ground.true, ground.resamples.sums
    square, n = sums(error**2), ground.n
    x = deviations(pred)
    spread = about_mean(sums(x), sums(x * x), n)
    some = np.where(ground.defined, ground.variance, 1.0)
    found = {
        "mse": (square / n).mean(axis=1),
        "mae": (sums(np.abs(error)) / n).mean(axis=1),
        "r2": metrics.mean_defined(np.where(ground.defined, 1 - square / some, np.nan)),
        "rvd": metrics.mean_defined(np.where(ground.defined, (spread / some - 1) ** 2, np.nan)),
    }
    if ground.train_mean is not None:
        base = sums((ground.true - ground.train_mean) ** 2)
        ratio = 1 - square / np.where(base > 0, base, 1.0)
        found["r2_train"] = metrics.mean_defined(np.where(base > 0, ratio, np.nan))
    return found


def _per_spot(ground: Ground, pred: np.ndarray) -> np.ndarray:
    centre = ground.true.mean(axis=0) if ground.train_mean is None else ground.train_mean
    return _mean_known(ground, metrics.pcc_per_spot(pred, ground.true, centre=centre))


def _mean_known(ground: Ground, each: Float[np.ndarray, " l"]) -> Float[np.ndarray, " r"]:
    """Mean over the spots whose score is defined."""
    known = ~np.isnan(each)
    count = ground.resamples.sums(known.astype(np.float64))
    total = ground.resamples.sums(np.where(known, each, 0.0))
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _variogram(ground: Ground, draws: np.ndarray) -> Float[np.ndarray, " r"]:
    """Variogram score of at most `_VARIOGRAM_SPOTS` spots, evenly spread over the slide's order."""
    step = -(-len(ground.true) // _VARIOGRAM_SPOTS)
    each = np.full(len(ground.true), np.nan)
    each[::step] = metrics.variogram_score_per_spot(draws[:, ::step], ground.true[::step])
    return _mean_known(ground, each)


def _structure(ground: Ground, pred: np.ndarray) -> dict[str, np.ndarray]:
    """GSC, SSC, the error of Moran's I, SSIM, Wasserstein-1; constant predictions as `metrics`."""
    # A constant prediction has no spatial order, and goes with no other gene.
    moran = ground.moran_of(pred)
    moran = np.where(np.isnan(moran), -1.0 / np.maximum(ground.n - 1, 1.0), moran)
    pairs = np.nan_to_num(ground.gene_correlation_of(pred), nan=0.0)
    found = {
        "gsc": _pearson_rows(pairs, ground.gene_correlation),
        "ssc": _pearson_rows(moran, ground.moran),
        "moran_error": metrics.mean_defined(np.abs(moran - ground.moran)),
        "wasserstein": _wasserstein(ground, pred),
    }
    if ground.is_gridded:
        local = metrics.ssim_map(pred, ground.true, ground.array_xy)
        found["ssim"] = metrics.mean_defined(ground.resamples.mean(local))
    return found


def _pearson_rows(x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, " r"]:
    """Pearson's r of each row of x with that of y, where y is defined; 0 for a constant x."""
    out = np.full(len(x), np.nan)
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        known = ~np.isnan(b)
        if known.any():
            columns = (v[known, None].astype(np.float64) for v in (a, b))
            out[i] = metrics.pcc_per_gene(*columns)[0]
    return out


def _wasserstein(ground: Ground, pred: np.ndarray) -> Float[np.ndarray, " r"]:
    """Mean over genes of the 1-Wasserstein distance; resamples by distribution functions on a grid.

    The resamples' values are scaled so that the grid's rounding leaves the slide's own right.
    """
    exact = float(np.mean(metrics.wasserstein_per_gene(pred, ground.true)))
    both = np.concatenate([pred, ground.true])
    grid = np.quantile(both, np.linspace(0, 1, _GRID), axis=0)
    spots, genes = pred.shape
    blocks = ground.resamples.times.shape[1]
    # Counts of each block, gene and bin, prediction less truth.
    place = (ground.resamples.blocks[:, None] * genes + np.arange(genes)) * _GRID
    counts = np.zeros(blocks * genes * _GRID, np.float32)
    for values, sign in ((pred, 1), (ground.true, -1)):
        bins = [np.searchsorted(grid[1:, g], values[:, g]) for g in range(genes)]
        flat = (place + np.stack(bins, axis=1)).ravel()
        counts += sign * np.bincount(flat, minlength=len(counts)).astype(np.float32)
    ahead = np.cumsum(counts.reshape(blocks, genes, _GRID)[..., :-1], axis=2)
    ahead = np.abs(ground.resamples.add_up(ahead))
    rough = np.einsum("rgm,mg->r", ahead, np.diff(grid, axis=0).astype(np.float32))
    rough = rough / (ground.resamples.spots * genes)
    return rough * (exact / rough[0]) if rough[0] > 0 else np.full(len(rough), exact)


def _spread(ground: Ground, forecast: metrics.Forecast) -> dict[str, np.ndarray]:
    """CRPS, calibration error, sharpness, coverage and width as predicted."""
    mean = ground.resamples.mean
    pit = forecast.pit(ground.true)
    # n draws give PIT values between these n probabilities, so none falls on one.
    n = len(forecast.values) + 1 if isinstance(forecast, metrics.Draws) else _PARTS
    levels = np.arange(1, n) / n
    below = np.stack([(pit <= p).mean(axis=1) for p in levels], axis=1)
    found = {
        "crps": mean(forecast.crps(ground.true)).mean(axis=1),
        "calibration_error": np.abs(mean(below) - levels).mean(axis=1),
        "sharpness": mean(forecast.std).mean(axis=1),
    }
    for level in metrics.LEVELS:
        found |= _interval(ground, *metrics.central(forecast, level), f"{level * 100:g}")
    return found


def _interval(
    ground: Ground, low: np.ndarray, high: np.ndarray, name: str
) -> dict[str, np.ndarray]:
    """Coverage and width of an interval over the genes that have one."""
    have = ~np.isnan(low).any(axis=0) & ~np.isnan(high).any(axis=0)
    if not have.any():
        return {}
    low, high, true = low[:, have], high[:, have], ground.true[:, have]
    inside = ((true >= low) & (true <= high)).astype(np.float64)
    return {
        f"coverage_{name}": ground.resamples.mean(inside).mean(axis=1),
        f"width_{name}": ground.resamples.mean(high - low).mean(axis=1),
    }
