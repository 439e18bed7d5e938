"""The scores that tables hold: what each is called, which way is better, and what it means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

type Better = Literal["high", "low", "level", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One score.

    Attributes:
      title: as tables print it.
      better: ``high`` or ``low``; ``level``: nearest to ``target``; ``none``: no side is better.
      meaning: one or two sentences.
      target: the best value, for ``level``.
      digits: after the point.
    """

    title: str
    better: Better
    meaning: str
    target: float | None = None
    digits: int = 3


def _coverage(level: int, what: str) -> Column:
    return Column(
        title=f"coverage {level} %{what}",
        better="level",
        target=level / 100,
        meaning=f"Share of measured values inside the {level} % interval"
        f"{' after conformal calibration' if what else ' as predicted'}; right is {level / 100:g}.",
    )


def _width(level: int, what: str) -> Column:
    return Column(
        title=f"width {level} %{what}",
        better="low",
        meaning=f"Mean width of the {level} % interval{what}, in units of the value space; "
        "narrower is better at equal coverage.",
    )


def _top(k: int) -> Column:
    return Column(
        title=f"PCC-{k}",
        better="high",
        meaning=f"Mean Pearson correlation over spots of the {k} best genes: those with the "
        "highest correlation on the test slide itself, as published, and choosing them there "
        "flatters it.",
    )


def _top_train(k: int) -> Column:
    return Column(
        title=f"PCC-{k}, train rank",
        better="high",
        meaning=f"As PCC-{k}, for the {k} genes that a ridge predicts best on held-out training "
        "slides: nothing is chosen on the test slide.",
    )


COLUMNS: Mapping[str, Column] = {
    **{f"pcc_{k}": _top(k) for k in (10, 50, 200)},
    "pcc_all": Column(
        title="PCC-all",
        better="high",
        meaning="Mean over all genes of Pearson's correlation over the slide's spots. Genes "
        "constant in truth have none.",
    ),
    **{f"pcc_{k}_train": _top_train(k) for k in (10, 50, 200)},
    "pcc_depth": Column(
        title="PCC given depth",
        better="high",
        meaning="Mean over genes of the partial correlation, after the spot's depth (log2 of its "
        "total count) is regressed out of both sides: what is left beyond sequencing depth.",
    ),
    "spearman": Column(
        title="Spearman",
        better="high",
        meaning="Mean over genes of Spearman's rank correlation over spots.",
    ),
    "pcc_spot": Column(
        title="PCC per spot",
        better="high",
        meaning="Mean over spots of Pearson's correlation over genes, each gene's training mean "
        "taken off first (the test slide's own where training is unknown).",
    ),
    "mse": Column(
        title="MSE",
        better="low",
        meaning="Mean squared error over spots and genes, in squared units of the value space.",
    ),
    "mae": Column(
        title="MAE",
        better="low",
        meaning="Mean absolute error over spots and genes, in units of the value space.",
    ),
    "r2": Column(
        title="R²",
        better="high",
        meaning="Mean over genes of 1 - SSE / SSE of the test slide's own gene means: 0 needs to "
        "know each gene's mean on this very slide.",
    ),
    "r2_train": Column(
        title="R² from training means",
        better="high",
        meaning="Mean over genes of 1 - SSE / SSE of the training spots' gene means: 0 is the "
        "constant baseline.",
    ),
    "rvd": Column(
        title="RVD",
        better="low",
        meaning="Relative variance distance: mean over genes of (variance over spots, predicted "
        "less measured, over measured)². 1 is a constant map; a mean falls short by construction.",
    ),
    "gsc": Column(
        title="GSC",
        better="high",
        meaning="Gene structural correlation (FLAG): correlation of the predicted with the "
        "measured gene-gene correlations.",
    ),
    "ssc": Column(
        title="SSC",
        better="high",
        meaning="Spatial structural correlation (FLAG): correlation over genes of the predicted "
        "map's Moran's I with the measured one's.",
    ),
    "moran_error": Column(
        title="|Moran's I error|",
        better="low",
        meaning="Mean over genes of the absolute difference of Moran's I, predicted and measured.",
    ),
    "ssim": Column(
        title="SSIM",
        better="high",
        meaning="Mean over genes of the structural similarity of the gene's map on the array.",
    ),
    "wasserstein": Column(
        title="Wasserstein-1",
        better="low",
        meaning="Mean over genes of the distance between the distributions of predicted and "
        "measured values over spots, in units of the value space. Blind to where they lie.",
    ),
    "crps": Column(
        title="CRPS",
        better="low",
        meaning="Continuous ranked probability score, mean over spots and genes, in units of the "
        "value space: the proper score of each gene's spread. A mean alone has its MAE.",
    ),
    "energy": Column(
        title="energy score",
        better="low",
        meaning="Proper score of draws of whole profiles, mean over spots.",
    ),
    "variogram": Column(
        title="variogram score",
        better="low",
        meaning="Proper score of how genes go together within a draw (order 0.5), mean over spots "
        "and pairs of genes.",
    ),
    "calibration_error": Column(
        title="calibration error",
        better="low",
        meaning="Mean over probabilities p of |share of measured values below the predicted "
        "p-quantile - p|.",
    ),
    "sharpness": Column(
        title="sharpness",
        better="none",
        meaning="Mean predicted standard deviation, in units of the value space: to be read beside "
        "coverage.",
    ),
    **{f"coverage_{level}": _coverage(level, "") for level in (50, 80, 90, 95)},
    **{f"width_{level}": _width(level, "") for level in (50, 80, 90, 95)},
    **{
        f"coverage_{level}_calibrated": _coverage(level, ", calibrated")
        for level in (50, 80, 90, 95)
    },
    **{f"width_{level}_calibrated": _width(level, ", calibrated") for level in (50, 80, 90, 95)},
}
"""Every score by key, in the order of tables. docs/metrics.md has formulas and sources."""
