"""All scores of one row of a table."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from stemjax.eval.metrics import arrays, correlation, pointwise, resampling, variation
from stemjax.eval.metrics import draws as draw_scores


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
    resampled: resampling.Resampled | None


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
    pcc = [correlation.pcc_per_gene(pred, true, mask) for pred in preds]
    resampled = None
    if resamples >= 2 and blocks.max() >= 1:
        each = [
            resampling.block_bootstrap(
                pred, true, mask, blocks=blocks, resamples=resamples, seed=seed
            )
            for pred in preds
        ]
        resampled = resampling.Resampled(
            pcc_all=np.mean([one.pcc_all for one in each], axis=0),
            mse=np.mean([one.mse for one in each], axis=0),
        )
    return Scores(
        pcc_10=float(np.mean([correlation.pcc_top(r, 10) for r in pcc])),
        pcc_50=float(np.mean([correlation.pcc_top(r, 50) for r in pcc])),
        pcc_all=float(np.mean([correlation.pcc_top(r) for r in pcc])),
        mse=float(np.mean([pointwise.mse(pred, true, mask) for pred in preds])),
        mae=float(np.mean([pointwise.mae(pred, true, mask) for pred in preds])),
        rvd=variation.rvd_of_draws(preds, true, mask),
        resampled=resampled,
    )


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
        each = draw_scores.draw_standard_error(draws, antithetic=antithetic)
        error = float(np.sqrt(np.mean(each[arrays.measured(each, true, mask)[2]] ** 2)))
    score = draw_scores.energy_score(draws, true, mask)
    return DrawSummary(n=n, antithetic=antithetic, standard_error=error, energy_score=score)
