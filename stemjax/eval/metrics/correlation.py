"""Correlations of predicted and measured expression."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import stats

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
    return np.where(constant, np.nan, _cosine(x, y))


def pcc_top(
    pcc: Float[np.ndarray, " g"],
    k: int | None = None,
    *,
    ranking: Float[np.ndarray, " g"] | None = None,
) -> float:
    """PCC-k: mean of the correlations of k genes, of all defined ones with k None or too large.

    Without ``ranking`` they are the k highest on the test slide itself, as published (Stem and the
    papers before it). That chooses the genes by the result: for k well below the number of genes
    it is positive even for a prediction without any skill.

    With ``ranking`` they are the first k by scores known before the test slide was looked at: PCC
    in cross-validation on the training slides, or variance there. Genes undefined on the test
    slide are passed over (that depends on the truth alone, so every model gets the same genes);
    NaN ranks last, ties in the panel's order.

    Returns:
      The mean; NaN when no gene is defined.

    Raises:
      ValueError: k below 1, or a ranking of another length.
    """
    pcc = np.asarray(pcc, np.float64)
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    ranking = pcc if ranking is None else np.asarray(ranking, np.float64)
    if ranking.shape != pcc.shape:
        raise ValueError(f"ranking has shape {ranking.shape}, the correlations {pcc.shape}")
    ranked = pcc[np.argsort(-ranking, kind="stable")]
    ranked = ranked[~np.isnan(ranked)][:k]
    return float(ranked.mean()) if ranked.size else float("nan")


def pcc_per_spot(
    pred: Float[np.ndarray, "l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray | None = None,
    *,
    centre: Float[np.ndarray, " g"] | None = None,
) -> Float[np.ndarray, " l"]:
    """Pearson's r of each spot over its measured genes.

    Some genes are high everywhere and others low, so without ``centre`` this measures the genes'
    means: a constant prediction of the training means already scores about 0.9 on real slides.
    ``centre``, such as those means, is subtracted from both sides first; what remains is how well
    the spot's own profile is told from the average one.

    Returns:
      [l]. NaN where the truth is constant over the genes, or fewer than two are measured; 0 where
      the prediction is constant. After centring, what is within float32's rounding of the centre
      counts as equal to it.

    Raises:
      ValueError: shapes differ, or a measured entry, or its centre, is not finite.
    """
    pred, true, used = arrays.measured(pred, true, mask)
    middle = np.zeros(true.shape[1]) if centre is None else np.asarray(centre, np.float64)
    if middle.shape != true.shape[1:]:
        raise ValueError(f"centre must be [genes] {true.shape[1:]}, found {middle.shape}")
    arrays.require_finite("centre", middle, used.any(axis=0))
    sides, flat = [], []
    for values in (pred, true):
        shifted = np.where(used, values - np.where(used, middle, 0.0), 0.0)
        deviation, constant = arrays.centred(shifted.T, used.T)
        if centre is not None:
            constant = constant | _is_rounding(deviation, values.T)
        sides.append(np.where(constant, 0.0, deviation))
        flat.append(constant)
    return np.where(flat[1], np.nan, _cosine(*sides))


def spearman_per_gene(
    pred: Float[np.ndarray, "l g"], true: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> Float[np.ndarray, " g"]:
    """Spearman's rho of each gene: Pearson's r of the ranks, ties at their mean rank.

    It does not change under monotone transforms, so it is the same for counts and their log.
    Undefined and constant genes as in `pcc_per_gene`.

    Raises:
      ValueError: shapes differ, or a measured entry is not finite.
    """
    pred, true, used = arrays.measured(pred, true, mask)
    sides, flat = [], []
    for values in (pred, true):
        # Asked of the values: ranks would turn the rounding of a constant into an order.
        _, constant = arrays.centred(values, used)
        ranks = stats.rankdata(np.where(used, values, np.nan), axis=0, nan_policy="omit")
        deviation, _ = arrays.centred(np.where(used, ranks, 0.0), used)
        sides.append(np.where(constant, 0.0, deviation))
        flat.append(constant)
    return np.where(flat[1], np.nan, _cosine(*sides))


def partial_pcc_per_gene(
    pred: Float[np.ndarray, "l g"],
    true: Float[np.ndarray, "l g"],
    depth: Float[np.ndarray, " l"],
    mask: np.ndarray | None = None,
) -> Float[np.ndarray, " g"]:
    """Pearson's r of each gene with the spots' depth partialled out: library-size partialled PCC.

    A spot's total count predicts most of its genes, so much of a PCC can be depth. Here ``depth``
    is regressed out of both sides (least squares with an intercept, over the gene's measured
    spots) and the residuals are correlated: (r_xy - r_xz r_yz) / √((1 - r_xz²)(1 - r_yz²)).

    Args:
      pred: prediction.
      true: truth.
      depth: one number a spot, such as log2(1 + total count). A constant one changes nothing.
      mask: as everywhere.

    Returns:
      [g]. NaN where the truth is constant or a linear function of depth, 0 where the prediction
      is, each within float32's rounding.

    Raises:
      ValueError: shapes differ, or a measured entry or a depth is not finite.
    """
    pred, true, used = arrays.measured(pred, true, mask)
    depth = np.asarray(depth, np.float64)
    if depth.shape != true.shape[:1]:
        raise ValueError(f"depth must be [spots] {true.shape[:1]}, found {depth.shape}")
    arrays.require_finite("depth", depth, used.any(axis=1))
    z, _ = arrays.centred(np.where(used, depth[:, None], 0.0), used)
    power = np.sum(z**2, axis=0)
    sides, flat = [], []
    for values in (pred, true):
        deviation, constant = arrays.centred(values, used)
        slope = np.divide(np.sum(z * deviation, axis=0), power, out=0 * power, where=power > 0)
        residual = deviation - slope * z
        constant = constant | _is_rounding(residual, values)
        sides.append(np.where(constant, 0.0, residual))
        flat.append(constant)
    return np.where(flat[1], np.nan, _cosine(*sides))


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosine of the columns of x and y; 0 where one of them is 0."""
    scale = np.sqrt(np.sum(x**2, axis=0)) * np.sqrt(np.sum(y**2, axis=0))
    r = np.divide(np.sum(x * y, axis=0), scale, out=np.zeros(scale.shape), where=scale > 0)
    return np.clip(r, -1.0, 1.0)


def _is_rounding(rest: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Columns where what is left of the values is their rounding in float32."""
    limit = arrays.SINGLE_ROUNDING**2 * np.sum(values**2, axis=0)
    return np.sum(rest**2, axis=0) <= limit
