"""Structure that single entries do not show: how genes go together, over spots and in space."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from jaxtyping import Float

from stemjax.eval.metrics import arrays, correlation, spatial


def gene_correlation(
    values: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> Float[np.ndarray, "g g"]:
    """Pearson's r of every pair of genes over the spots where both are measured.

    Returns:
      [g g], symmetric, 1 on the diagonal; NaN in a pair of which one gene is constant (over those
      spots) or not measured.

    Raises:
      ValueError: not [l g], or a measured entry is not finite.
    """
    values, used = arrays.measured_values(values, mask)
    x, _ = arrays.centred(values, used)
    both = used.astype(np.float64)
    # Row i, column j: sums of gene i over the spots where j is measured too.
    n, total, squares = both.T @ both, x.T @ both, (x**2).T @ both
    count = np.maximum(n, 1.0)
    power = squares - total**2 / count
    flat = power <= arrays.ROUNDING * squares
    undefined = flat | flat.T
    scale = np.sqrt(np.where(undefined, 1.0, power * power.T))
    r = np.clip((x.T @ x - total * total.T / count) / scale, -1.0, 1.0)
    np.fill_diagonal(r, 1.0)
    return np.where(undefined, np.nan, r)


def gsc(
    pred: Float[np.ndarray, "l g"], true: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> float:
    """Gene Structural Correlation of FLAG (Si and others, ICML 2026, arXiv 2605.18055).

    Pearson's r of the predicted with the measured gene-gene correlations, over the pairs of genes
    (the upper triangle without the diagonal). The paper says that it compares the two correlation
    matrices in the gene dimension; its released code does not hold the metric, so that this is
    Pearson's r of the pairs is our reading of the text.

    A mean over many draws, or any smooth prediction, has correlations too strong: this is a score
    for single draws as well as for means, and the report says which it was given.

    Returns:
      r in [-1, 1]. Genes constant in truth are left out; one constant in the prediction goes with
      no other, its correlations count as 0. NaN with fewer than three genes, 0 where all
      predicted correlations are equal.

    Raises:
      ValueError: shapes differ, or a measured entry is not finite.
    """
    pred, true, used = arrays.measured(pred, true, mask)
    pairs = np.triu_indices(true.shape[1], k=1)
    y, x = gene_correlation(true, used)[pairs], gene_correlation(pred, used)[pairs]
    defined = ~np.isnan(y)
    x = np.where(np.isnan(x), 0.0, x)
    return float(correlation.pcc_per_gene(x[defined, None], y[defined, None])[0])


def ssc(
    pred: Float[np.ndarray, "l g"],
    true: Float[np.ndarray, "l g"],
    weights: scipy.sparse.csr_array,
    mask: np.ndarray | None = None,
) -> float:
    """Spatial Structural Correlation of FLAG (Si and others, ICML 2026, arXiv 2605.18055).

    Pearson's r, over genes, of the predicted with the measured Moran's I: `spatial.Agreement.r`.
    The paper says that it uses Moran's I of each gene; its released code does not hold the metric
    or the spatial weights, so that this is our reading of the text. r does not see a Moran's I
    that is too high for all genes alike, as that of smooth predictions is:
    `spatial.morans_agreement` gives the mean difference beside it.

    Args:
      pred: prediction.
      true: truth.
      weights: spatial weights, as of `spatial.neighbours`.
      mask: as everywhere.

    Raises:
      ValueError: shapes differ, or a measured entry is not finite.
    """
    return spatial.morans_agreement(pred, true, weights, mask).r
