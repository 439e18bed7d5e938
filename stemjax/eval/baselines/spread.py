"""Forecasts beside which a model's spread is read: what the spread costs without a model.

Each is a `stemjax.eval.metrics.Forecast`. The other two come with their rows: the neighbours of
`neighbours.embedding_knn` as draws, and the quantiles of `perceptron.perceptron`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from stemjax.eval import metrics
from stemjax.eval.baselines import masks

QUANTILE_LEVELS: tuple[float, ...] = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)
"""Levels of the quantile forecasts: the ends of every interval of `metrics.LEVELS`, and between."""

_LEAST_STD = 1e-3  # a normal law needs a width; this one scores as its centre alone does


def climatology(y: Float[np.ndarray, "n g"], mask: np.ndarray, *, spots: int) -> metrics.Quantiles:
    """The quantiles of each gene over the training spots, the same for every test spot.

    It knows the genes and nothing of the spot: the floor of every spread metric, as the constant
    mean is of the others. Forecasters call it climatology. Genes that no row measured are NaN.
    """
    values = np.full((len(QUANTILE_LEVELS), y.shape[1]), np.nan)
    for genes, rows in masks.measured_alike(mask):
        known = np.asarray(y, np.float64)[np.ix_(rows, genes)]
        # The rule that is unbiased for coverage, as for draws (`metrics.Draws.quantile`).
        values[:, genes] = np.quantile(known, QUANTILE_LEVELS, axis=0, method="weibull")
    shape = (len(QUANTILE_LEVELS), spots, y.shape[1])
    return metrics.Quantiles(levels=QUANTILE_LEVELS, values=np.broadcast_to(values[:, None], shape))


def normal_residuals(
    prediction: Float[np.ndarray, "l g"],
    held_out: Float[np.ndarray, "n g"],
    y: Float[np.ndarray, "n g"],
    mask: np.ndarray,
) -> metrics.Normal:
    """A normal law about the prediction, as wide as the held-out residuals of its gene.

    The width is the root mean square of y - held_out over the training spots that were predicted by
    a fit without their fold. Training residuals would be too small, the more so the more columns
    the embedding has. The mean residual is not taken off: being off by a level on a new slide is
    part of the error. A gene without held-out predictions has its deviation over all training
    spots.

    Args:
      prediction: mean of the law for the test spots.
      held_out: `linear.ridge_held_out`; NaN where there is none.
      y: values of the training spots.
      mask: not 0 where measured, [n g].
    """
    measured = np.asarray(mask) != 0
    values = np.where(measured, np.asarray(y, np.float64), 0.0)
    n = np.maximum(measured.sum(axis=0), 1)
    deviation = np.where(measured, values - values.sum(axis=0) / n, 0.0)
    scored = measured & ~np.isnan(held_out)
    residual = np.where(scored, values - held_out, 0.0)
    some = scored.sum(axis=0)
    square = np.where(
        some > 0,
        np.sum(residual**2, axis=0) / np.maximum(some, 1),
        np.sum(deviation**2, axis=0) / n,
    )
    std = np.where(measured.any(axis=0), np.maximum(np.sqrt(square), _LEAST_STD), np.nan)
    return metrics.Normal(
        mean=np.asarray(prediction, np.float64), std=np.broadcast_to(std, prediction.shape)
    )
