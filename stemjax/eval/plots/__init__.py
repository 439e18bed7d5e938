"""Figures, the only room that uses matplotlib.

`slide` writes figures of a prediction and its truth to files. The others take plain arrays and
return PNG bytes for the report: `tissue` genes over the tissue, `panel` what there is to see over
genes, `spread` whether the predicted spread is right, `rivals` what beats what. `canvas` is what
they share.
"""

from stemjax.eval.plots.canvas import DPI
from stemjax.eval.plots.panel import (
    gene_correlation,
    morans,
    pcc_histogram,
    variation_curves,
)
from stemjax.eval.plots.rivals import KINDS, forest
from stemjax.eval.plots.slide import (
    MARKERS,
    default_marker,
    density_figure,
    gene_variation_figure,
    marker_figure,
    shown_of,
    write_figures,
)
from stemjax.eval.plots.spread import pit_histogram, rank_histogram, reliability
from stemjax.eval.plots.tissue import Shown, Tissue, maps

__all__ = [
    "DPI",
    "KINDS",
    "MARKERS",
    "Shown",
    "Tissue",
    "default_marker",
    "density_figure",
    "forest",
    "gene_correlation",
    "gene_variation_figure",
    "maps",
    "marker_figure",
    "morans",
    "pcc_histogram",
    "pit_histogram",
    "rank_histogram",
    "reliability",
    "shown_of",
    "variation_curves",
    "write_figures",
]
