"""Scores of predicted gene expression, as pure functions on numpy arrays.

All arrays are in one value space (for example log2(count + 1)); everything is computed in float64.
``mask`` is 1 where the slide measured the gene, [g] or [l g], None for all; what lies outside it
takes no part in any score. An undefined score is NaN by a rule that its function states; a NaN or
infinity in a measured entry is a ValueError. docs/metrics.md has one table of all of them, with
formula, direction, units and source.
"""

from stemjax.eval.metrics.arrays import ROUNDING
from stemjax.eval.metrics.calibration import (
    GRID,
    Sharpness,
    calibration_curve,
    calibration_error,
    coverage,
    covered,
    pit_histogram,
    rank_histogram,
    sharpness,
    width,
)
from stemjax.eval.metrics.correlation import (
    partial_pcc_per_gene,
    pcc_per_gene,
    pcc_per_spot,
    pcc_top,
    spearman_per_gene,
)
from stemjax.eval.metrics.draws import (
    draw_standard_error,
    energy_distance,
    energy_score,
    energy_score_per_spot,
    variogram_score,
    variogram_score_per_spot,
    wasserstein_per_gene,
)
from stemjax.eval.metrics.forecasts import LEVELS, Draws, Forecast, Normal, Quantiles, central
from stemjax.eval.metrics.pointwise import mae, mse, mse_per_gene, r2_per_gene
from stemjax.eval.metrics.resampling import (
    BLOCK,
    Resamples,
    interval,
    mean_defined,
    resample,
    spatial_blocks,
)
from stemjax.eval.metrics.spatial import (
    Agreement,
    morans_agreement,
    morans_i,
    neighbours,
    ssim_map,
    ssim_per_gene,
)
from stemjax.eval.metrics.structure import gene_correlation, gsc, ssc
from stemjax.eval.metrics.variation import VariationCurve, gene_variation_curve, rvd, rvd_of_draws

__all__ = [
    "BLOCK",
    "GRID",
    "LEVELS",
    "ROUNDING",
    "Agreement",
    "Draws",
    "Forecast",
    "Normal",
    "Quantiles",
    "Resamples",
    "Sharpness",
    "VariationCurve",
    "calibration_curve",
    "calibration_error",
    "central",
    "coverage",
    "covered",
    "draw_standard_error",
    "energy_distance",
    "energy_score",
    "energy_score_per_spot",
    "gene_correlation",
    "gene_variation_curve",
    "gsc",
    "interval",
    "mae",
    "mean_defined",
    "morans_agreement",
    "morans_i",
    "mse",
    "mse_per_gene",
    "neighbours",
    "partial_pcc_per_gene",
    "pcc_per_gene",
    "pcc_per_spot",
    "pcc_top",
    "pit_histogram",
    "r2_per_gene",
    "rank_histogram",
    "resample",
    "rvd",
    "rvd_of_draws",
    "sharpness",
    "spatial_blocks",
    "spearman_per_gene",
    "ssc",
    "ssim_map",
    "ssim_per_gene",
    "variogram_score",
    "variogram_score_per_spot",
    "wasserstein_per_gene",
    "width",
]
