"""Scores of predicted gene expression, as pure functions on numpy arrays.

All arrays are in one value space (for example log2(count + 1)); everything is computed in float64.
``mask`` is 1 where the slide measured the gene, [g] or [l g], None for all; what lies outside it
takes no part in any score. PCC-k, MSE, MAE and RVD are those of Stem (Zhu et al., ICLR 2025, arXiv
2501.15598). Energy distance: Székely and Rizzo 2013
(J. Stat. Plan. Inference 143); energy score: Gneiting and Raftery 2007 (JASA 102).
"""

from stemjax.eval.metrics.correlation import pcc_per_gene, pcc_top
from stemjax.eval.metrics.draws import draw_standard_error, energy_distance, energy_score
from stemjax.eval.metrics.forecasts import LEVELS, Draws, Forecast, Normal, Quantiles, central
from stemjax.eval.metrics.pointwise import mae, mse
from stemjax.eval.metrics.resampling import Resampled, block_bootstrap, interval, spatial_blocks
from stemjax.eval.metrics.scores import DrawSummary, Scores, describe_draws, score
from stemjax.eval.metrics.variation import VariationCurve, gene_variation_curve, rvd, rvd_of_draws

__all__ = [
    "LEVELS",
    "Draws",
    "Forecast",
    "Normal",
    "Quantiles",
    "central",
    "DrawSummary",
    "Resampled",
    "Scores",
    "VariationCurve",
    "block_bootstrap",
    "describe_draws",
    "draw_standard_error",
    "energy_distance",
    "energy_score",
    "gene_variation_curve",
    "interval",
    "mae",
    "mse",
    "pcc_per_gene",
    "pcc_top",
    "rvd",
    "rvd_of_draws",
    "score",
    "spatial_blocks",
]
