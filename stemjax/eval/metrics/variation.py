"""How much genes vary over spots: RVD and the gene variation curves of Stem.

Stem: Zhu and others, ICLR 2025, arXiv 2501.15598.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from stemjax.eval.metrics import arrays


def rvd(
    pred: Float[np.ndarray, "l g"], true: Float[np.ndarray, "l g"], mask: np.ndarray | None = None
) -> float:
    """Relative variance distance: mean over genes of (var_pred - var_true)² / var_true².

    Variances are over spots (the divisor n or n - 1 cancels). 0 is the right spread, 1 a constant
    prediction. Genes constant in truth are left out. The RVD of an average of draws falls short by
    construction; that of one draw is `rvd_of_draws`.
    """
    pred, true, used = arrays.measured(pred, true, mask)
    spread_pred = np.sum(arrays.centred(pred, used)[0] ** 2, axis=0)
    deviation, constant = arrays.centred(true, used)
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
    pred, true, used = arrays.measured(pred, true, mask)
    genes = np.flatnonzero(used.any(axis=0))
    n = used.sum(axis=0)[genes]
    curves = {}
    for name in ("mean", "variance"):
        sides = []
        for values in (true, pred):
            if name == "mean":
                sides.append(values.sum(axis=0)[genes] / n)
            else:
                sides.append(np.sum(arrays.centred(values, used)[0] ** 2, axis=0)[genes] / n)
        rank = np.argsort(sides[0], kind="stable")
        y, x = sides[0][rank], sides[1][rank]
        curves[name] = VariationCurve(order=genes[rank], true=y, pred=x)
        y, x = (v / v.sum() if v.sum() != 0 else v for v in (y, x))
        curves[f"{name}_normalised"] = VariationCurve(order=genes[rank], true=y, pred=x)
    return curves
