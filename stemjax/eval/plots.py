"""Figures of a prediction: a marker gene measured beside predicted, and the gene variation curves.

The only module that uses matplotlib, through Figure objects drawn by Agg: no display, no pyplot,
nothing global. Values are in the prediction's value space.
"""

from __future__ import annotations

import difflib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stemjax import errors
from stemjax.eval import joining, metrics

if TYPE_CHECKING:
    import anndata
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stemjax.data import records as spot_records

MARKERS = (
    "ERBB2",
    "KRT19",
    "CD24",
    "MUC1",
    "KRT8",
    "EPCAM",
    "COL1A1",
    "COL1A2",
    "IGKC",
    "CD74",
    "VIM",
    "ACTA2",
)
"""Genes that a pathologist knows, in the order in which `default_marker` looks for them."""

_DPI = 150
_COLOURS = ("#c8c8c8", "#d95f02", "#2166ac", "#1b7837")
_FADE = 0.55  # share of white laid over the H&E, so that the colours of the spots stand out
_MODES = {"mean": "mean token", "pair": "antithetic pair", "draws": "average of draws"}


def default_marker(genes: Sequence[str], predicted: np.ndarray | None = None) -> str:
    """A gene worth drawing: the first of `MARKERS` in the panel.

    Without one, the gene whose prediction [l g] has the highest variance over spots, or the first
    gene when no prediction is given.
    """
    for gene in MARKERS:
        if gene in genes:
            return gene
    return genes[0 if predicted is None else int(np.argmax(np.var(predicted, axis=0)))]


def marker_figure(
    prediction: anndata.AnnData,
    records: spot_records.Records,
    gene: str,
    path: str | os.PathLike[str],
) -> None:
    """Writes one gene, measured beside predicted over the H&E, as PNG, PDF or SVG by the suffix.

    Spots have their true diameter, both panels one colour scale (1st to 99th percentile of the two
    together). A prediction with a spread gets a third panel: the standard deviation of its draws.
    A slide prepared without an image is drawn on white.

    Raises:
      PredictionError: as `joining.join`.
      GenePanelError: the gene is not in the panel or was not measured on the slide.
      ConfigError: matplotlib cannot write this kind of file.
    """
    from matplotlib import colors
    from matplotlib.figure import Figure

    joined = joining.join(prediction, records)
    column = _column(joined, gene)
    measured, predicted = joined.true[:, column], joined.mean[:, column]
    units = joining.VALUE_SPACES[str(joined.about["value_space"])]
    both = np.concatenate([measured, predicted])
    low, high = (float(v) for v in np.quantile(both, [0.01, 0.99]))
    scale = colors.Normalize(low, high if high > low else low + 1.0)
    panels: list[tuple[str, np.ndarray, Any]] = [
        ("measured", measured, scale),
        ("predicted", predicted, scale),
    ]
    if joined.std is not None:
        spread = joined.std[:, column]
        panels.append(("spread of the draws", spread, colors.Normalize(0.0, _top(spread))))

    view = _view(joined, records)
    width, height = view[1] - view[0], view[3] - view[2]
    # Panels 4 inches wide, at most 7 high, at least 2.6 for the colour bar's labels.
    figure = Figure(
        figsize=(4.0 * len(panels) + 1.6, float(np.clip(4.0 * height / width, 2.6, 7.0)) + 1.2),
        layout="constrained",
    )
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, values, norm) in zip(axes, panels, strict=True):
        _draw_spots(axis, joined, records, values, norm, "viridis" if norm is scale else "magma")
        axis.set(xlim=view[:2], ylim=(view[3], view[2]))
        axis.set_title(title, fontsize=12)
    _scale_bar(axes[0], width)
    over = _beyond(both, scale)
    bar = figure.colorbar(
        axes[1].collections[0], ax=list(axes[:2]), extend=over, fraction=0.03, pad=0.02, shrink=0.9
    )
    bar.set_label(f"{gene}, {units}", fontsize=10)
    if joined.std is not None:
        bar = figure.colorbar(
            axes[2].collections[0], ax=axes[2], fraction=0.06, pad=0.02, shrink=0.9
        )
        bar.set_label(f"standard deviation, {units}", fontsize=10)
    figure.suptitle(_title(joined, gene, column), fontsize=13)
    _save(figure, path)


def gene_variation_figure(
    prediction: anndata.AnnData, records: spot_records.Records, path: str | os.PathLike[str]
) -> None:
    """Writes the gene variation curves: mean and variance over spots, absolute and normalised.

    Genes stand in the order of the truth's value; the truth is the line, the prediction the dots
    (as in Stem's figure). Where there are single draws, the variance panels show theirs too: the
    average of draws varies less than the truth by construction, one draw should not.

    Raises:
      PredictionError: as `joining.join`.
      ConfigError: matplotlib cannot write this kind of file.
    """
    from matplotlib.figure import Figure

    joined = joining.join(prediction, records)
    curves = metrics.gene_variation_curve(joined.mean, joined.true, joined.mask)
    single = None
    if joined.draws is not None:
        single = metrics.gene_variation_curve(joined.draws[0], joined.true, joined.mask)
    figure = Figure(figsize=(10.0, 7.2), layout="constrained")
    panels = ("mean", "variance", "mean_normalised", "variance_normalised")
    for axis, name in zip(figure.subplots(2, 2).ravel(), panels, strict=True):
        curve, quantity = curves[name], name.split("_")[0]
        x = np.arange(1, len(curve.true) + 1)
        if single is not None and quantity == "variance":
            axis.plot(x, single[name].pred, ".", color="#d95f02", ms=5, label="one draw")
        label = f"predicted, {joined.label}"
        axis.plot(x, curve.pred, ".", color="#2166ac", ms=5, label=label)
        axis.plot(x, curve.true, "-", color="black", lw=1.5, zorder=1.5, label="measured")
        axis.set_xlabel(f"genes, by measured {quantity}", fontsize=10)
        share = name.endswith("normalised")
        axis.set_ylabel(f"share of the {quantity}s' sum" if share else quantity, fontsize=10)
        axis.set_title(f"{quantity} over spots{', normalised' if share else ''}", fontsize=12)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="upper left", framealpha=0.8, edgecolor="none", fontsize=10)
    units = joining.VALUE_SPACES[str(joined.about["value_space"])]
    figure.suptitle(f"Gene variation on slide {joined.slide}, {units}", fontsize=13)
    _save(figure, path)


def density_figure(
    groups: Mapping[str, np.ndarray], path: str | os.PathLike[str], *, title: str, xlabel: str
) -> None:
    """Writes the densities of some groups of numbers as outlines over one another.

    Bins, 60 of equal width, span all groups; each outline is scaled to its own peak, so that a
    narrow group does not flatten a broad one.

    Args:
      groups: numbers by the name that the legend gives them.
      path: the file; the suffix says its kind.
      title: the figure's.
      xlabel: what the numbers are.

    Raises:
      ConfigError: matplotlib cannot write this kind of file.
    """
    from matplotlib.figure import Figure

    values = {name: np.ravel(numbers) for name, numbers in groups.items()}
    everything = np.concatenate(list(values.values()))
    edges = np.linspace(everything.min(), everything.max(), 61)
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axis = figure.subplots()
    for colour, (name, numbers) in zip(_COLOURS, values.items(), strict=False):
        height, _ = np.histogram(numbers, edges)
        axis.stairs(
            height / height.max(),
            edges,
            color=colour,
            fill=colour == _COLOURS[0],
            lw=1.8,
            label=name,
        )
    axis.set_xlabel(xlabel, fontsize=10)
    axis.set_ylabel("density, relative to its peak", fontsize=10)
    axis.set_title(title, fontsize=13)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    _save(figure, path)


def write_figures(
    prediction: anndata.AnnData,
    records: spot_records.Records,
    folder: str | os.PathLike[str],
    *,
    gene: str | None = None,
) -> tuple[pathlib.Path, ...]:
    """Writes ``marker_<gene>.png`` and ``gene_variation.png``; returns their paths.

    Args:
      prediction: the prediction.
      records: must hold its slide.
      folder: made if absent.
      gene: the gene to draw; None for `default_marker`.

    Raises:
      PredictionError, GenePanelError: as `marker_figure`.
    """
    folder = pathlib.Path(folder)
    gene = gene or default_marker(list(prediction.var_names), np.asarray(prediction.X))
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", gene)
    marker, variation = folder / f"marker_{name}.png", folder / "gene_variation.png"
    marker_figure(prediction, records, gene, marker)
    gene_variation_figure(prediction, records, variation)
    return marker, variation


def _column(joined: joining.Joined, gene: str) -> int:
    """Column of the gene, if it is in the panel and was measured."""
    if gene not in joined.genes:
        near = difflib.get_close_matches(gene, joined.genes, n=3)
        raise errors.GenePanelError(
            f"gene {gene!r} is not among the {len(joined.genes)} genes of the prediction",
            fix=f"Did you mean {' or '.join(near)}?" if near else "See the panel's gene list",
        )
    column = joined.genes.index(gene)
    if not joined.mask[:, column].all():
        raise errors.GenePanelError(
            f"gene {gene} was not measured on slide {joined.slide}",
            fix="Draw another gene: there is nothing to set beside the prediction",
        )
    return column


def _title(joined: joining.Joined, gene: str, column: int) -> str:
    """Gene, slide, correlation; below it how the prediction was made."""
    pcc = metrics.pcc_per_gene(joined.mean[:, [column]], joined.true[:, [column]])[0]
    score = "PCC undefined (measured values are all equal)" if np.isnan(pcc) else f"PCC {pcc:.2f}"
    mode, cost = str(joined.about["mode"]), joined.about.get("evaluations_per_spot")
    made = _MODES.get(mode, mode)
    if joined.draws is not None:
        made = f"average of {len(joined.draws)} draws"
    made += "" if cost is None else f", {cost} network evaluation{'s' * (int(cost) != 1)} a spot"
    return f"{gene}, slide {joined.slide}: {score}\n{made}"


def _top(values: np.ndarray) -> float:
    """Upper end of a colour scale that starts at 0."""
    top = float(values.max())
    return top if top > 0 else 1.0


def _beyond(values: np.ndarray, scale: Any) -> str:
    """Which ends of the colour bar get an arrow, because values lie beyond them."""
    below, above = bool((values < scale.vmin).any()), bool((values > scale.vmax).any())
    return {(0, 0): "neither", (0, 1): "max", (1, 0): "min", (1, 1): "both"}[below, above]


def _view(joined: joining.Joined, records: spot_records.Records) -> tuple[float, ...]:
    """Left, right, top and bottom of the drawing in um: the spots and a margin.

    The margin below has room for the scale bar, so that it covers no spot.
    """
    info = records.slides[joined.slide]
    xy = joined.table.pixel_xy.astype(np.float64) * info.mpp
    (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
    margin = info.spot_diameter_um + 0.02 * max(right - left, bottom - top)
    below = margin + 0.10 * max(right - left, bottom - top)
    return left - margin, right + margin, top - margin, bottom + below


def _draw_spots(
    axis: Axes,
    joined: joining.Joined,
    records: spot_records.Records,
    values: np.ndarray,
    norm: Any,
    colours: str,
) -> None:
    """The faded H&E and over it one disc a spot, in um."""
    from matplotlib import collections

    info = records.slides[joined.slide]
    if info.thumbnail_scale is not None:
        image, scale = records.thumbnail(joined.slide)
        height, width = (side / scale * info.mpp for side in image.shape[:2])
        faded = image * (1 - _FADE) + 255.0 * _FADE
        # The extent is the outer border of the pixels: spot centres need no half-pixel shift.
        axis.imshow(
            faded.astype(np.uint8), extent=(0.0, width, height, 0.0), interpolation="antialiased"
        )
    diameter = np.full(len(values), info.spot_diameter_um)
    axis.add_collection(
        collections.EllipseCollection(
            diameter,
            diameter,
            np.zeros(len(values)),
            units="xy",
            offsets=joined.table.pixel_xy.astype(np.float64) * info.mpp,
            offset_transform=axis.transData,
            array=values,
            norm=norm,
            cmap=colours,
            linewidths=0.0,
        )
    )
    axis.set_aspect("equal")
    axis.set_axis_off()


def _scale_bar(axis: Axes, width_um: float) -> None:
    """A bar of 1, 2 or 5 times a power of ten um, at most a quarter of the drawing's width."""
    from matplotlib import font_manager
    from mpl_toolkits.axes_grid1 import anchored_artists

    length = max(
        m * 10.0**e for e in range(-2, 7) for m in (1, 2, 5) if m * 10.0**e <= width_um / 4
    )
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    axis.add_artist(
        anchored_artists.AnchoredSizeBar(
            axis.transData,
            length,
            label,
            "lower left",
            borderpad=0.8,
            frameon=False,
            size_vertical=max(1, round(length / 25)),
            label_top=True,
            fontproperties=font_manager.FontProperties(size=10),
        )
    )


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the figure, whole or not at all, in the format of the suffix."""
    from matplotlib.backends import backend_agg

    path = pathlib.Path(path)
    kinds = backend_agg.FigureCanvasAgg(figure).get_supported_filetypes()
    kind = path.suffix[1:].lower()
    if kind not in kinds:
        raise errors.ConfigError(
            f"cannot write a figure to {path}",
            expected="a name ending in .png, .pdf or .svg",
            found=path.suffix or "no suffix",
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(partial, format=kind, dpi=_DPI)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
