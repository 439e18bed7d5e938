"""Figures over the genes of a panel: their PCC, variation, Moran's I and correlation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance
from jaxtyping import Float, Int

from stemjax.eval import metrics
from stemjax.eval.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELLED = 50
"""Gene names stand beside the correlation heat maps up to this many genes: more are not legible."""

_OPTIMAL = 300  # genes up to which the tree's leaves are put in the optimal order: it is O(g³)
_BIN = 0.05


@canvas.own_style
def pcc_histogram(
    pcc: Float[np.ndarray, " g"],
    reference: Mapping[str, Float[np.ndarray, " g"]],
    *,
    name: str = "model",
    dpi: int = canvas.DPI,
) -> bytes | None:
    """The model's PCC per gene as a filled histogram, what it is compared with as outlines.

    The triangles above are the medians. Genes whose PCC is undefined (NaN) are left out and
    counted in the legend; a reference that is undefined throughout is left out.

    Args:
      pcc: of the model.
      reference: PCC per gene of rivals and the noise ceiling, by name; at most 5.
      name: of the model.
      dpi: pixels an inch.

    Returns:
      A PNG as wide as the page, or None where the model's PCC is undefined for every gene.
    """
    if len(reference) > len(canvas.RIVALS):
        raise ValueError(f"{len(reference)} references, at most {len(canvas.RIVALS)}")
    groups = [(name, pcc), *reference.items()]
    defined = [values[np.isfinite(values)] for _, values in groups]
    if not defined[0].size:
        return None
    everything = np.concatenate(defined)
    low = _BIN * np.floor(everything.min() / _BIN)
    bins = max(1, int(np.ceil((everything.max() - low) / _BIN)))
    edges = low + _BIN * np.arange(bins + 1)
    figure = canvas.new_figure(canvas.WIDE, 3.8)
    axis = figure.subplots()
    entries = []
    for i, ((key, all_genes), values) in enumerate(zip(groups, defined, strict=True)):
        if not values.size:
            continue
        # Rounding may leave the outermost value outside the outermost edge by one bit.
        height, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        colour = canvas.PREDICTED if i == 0 else canvas.RIVALS[i - 1]
        if i == 0:
            drawn = axis.stairs(height, edges, color=colour, alpha=0.45, fill=True)
        else:
            drawn = axis.stairs(height, edges, color=colour, lw=2, ls=canvas.DASHES[i - 1])
        median, lost = float(np.median(values)), len(all_genes) - len(values)
        over = axis.get_xaxis_transform()
        axis.plot(median, 1.03, "v", color=colour, ms=8, clip_on=False, transform=over)
        text = f"{canvas.shorten(key)}: median {median:.2f}" + (
            f", {lost} undefined" if lost else ""
        )
        entries.append((text, drawn))
    axis.set_xlabel("PCC of a gene over spots")
    axis.set_ylabel(f"genes (of {len(pcc)})")
    canvas.whole_ticks(axis, "y")
    canvas.legend_below(figure, entries, 3)
    return canvas.png(figure, dpi)


@canvas.own_style
def variation_curves(
    predicted: Float[np.ndarray, "l g"],
    measured: Float[np.ndarray, "l g"],
    *,
    units: str,
    mask: np.ndarray | None = None,
    draw: Float[np.ndarray, "l g"] | None = None,
    name: str = "predicted mean",
    dpi: int = canvas.DPI,
) -> bytes:
    """The gene variation curves of Stem: mean and variance over spots, absolute and normalised.

    Genes stand in the order of the truth's value; the truth is the line, the prediction the dots
    (as in Stem's figure). A single draw, if given, stands in the variance panels: the average of
    draws varies less than the truth by construction, one draw should not.

    Args:
      predicted: the value space of ``units``.
      measured: the same.
      units: as the axes print them.
      mask: 1 where the slide measured the gene, [g] or [l g].
      draw: one draw.
      name: of the prediction.
      dpi: pixels an inch.

    Returns:
      A PNG as wide as the page.
    """
    figure = variation_figure(predicted, measured, mask=mask, draw=draw, name=name, units=units)
    return canvas.png(figure, dpi)


def variation_figure(
    predicted: Float[np.ndarray, "l g"],
    measured: Float[np.ndarray, "l g"],
    *,
    mask: np.ndarray | None,
    draw: Float[np.ndarray, "l g"] | None,
    name: str,
    units: str,
) -> Figure:
    """The figure of `variation_curves`."""
    curves = metrics.gene_variation_curve(predicted, measured, mask)
    single = None if draw is None else metrics.gene_variation_curve(draw, measured, mask)
    figure = canvas.new_figure(canvas.WIDE, 7.0)
    panels = ("mean", "variance", "mean_normalised", "variance_normalised")
    entries: dict[str, Any] = {}
    for axis, panel in zip(figure.subplots(2, 2).ravel(), panels, strict=True):
        curve, quantity = curves[panel], panel.split("_")[0]
        x = np.arange(1, len(curve.true) + 1)
        # A line through one gene would not be seen.
        line = {"marker": "_"} if len(x) == 1 else {}
        (entries["measured"],) = axis.plot(
            x, curve.true, "-", color=canvas.MEASURED, lw=1.6, zorder=1.5, label="measured", **line
        )
        (entries[name],) = axis.plot(x, curve.pred, ".", color=canvas.PREDICTED, ms=5, label=name)
        if single is not None and quantity == "variance":
            (entries["one draw"],) = axis.plot(
                x, single[panel].pred, "x", color=canvas.RIVALS[0], ms=4, label="one draw"
            )
        axis.set_xlabel(f"genes, by measured {quantity}")
        share = panel.endswith("normalised")
        square = " squared" if quantity == "variance" else ""
        axis.set_ylabel(
            f"share of the {quantity}s' sum" if share else f"{quantity}, {units}{square}"
        )
        axis.set_title(f"{quantity} over spots{', normalised' if share else ''}")
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        canvas.whole_ticks(axis, "x")
    canvas.legend_below(figure, list(entries.items()), 3)
    return figure


@canvas.own_style
def morans(
    predicted: Float[np.ndarray, " g"],
    measured: Float[np.ndarray, " g"],
    *,
    dpi: int = canvas.DPI,
) -> bytes | None:
    """Moran's I of each gene's prediction against its measurement, with the diagonal.

    The title gives the correlation over genes and the mean absolute difference. Genes for which
    either is undefined are left out.

    Returns:
      A PNG half as wide as the page, or None where no gene has both.
    """
    both = np.isfinite(predicted) & np.isfinite(measured)
    if not both.any():
        return None
    x, y = measured[both], predicted[both]
    r = metrics.pcc_per_gene(y[:, None], x[:, None])[0]
    low, high = _span(np.concatenate([x, y]))
    figure = canvas.new_figure(canvas.HALF, 4.6)
    axis = figure.subplots()
    axis.plot([low, high], [low, high], "--", color=canvas.GREY, lw=1.2, zorder=1)
    axis.plot(x, y, "o", color=canvas.PREDICTED, ms=5, alpha=0.6, mec="none")
    axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axis.set_xlabel("Moran's I, measured")
    axis.set_ylabel("Moran's I, predicted")
    said = "undefined" if np.isnan(r) else f"{r:.2f}"
    genes = f"{len(x)} gene{'s' * (len(x) != 1)}"
    axis.set_title(f"{genes}: r {said}, mean |difference| {np.mean(np.abs(y - x)):.2f}")
    return canvas.png(figure, dpi)


@canvas.own_style
def gene_correlation(
    measured: Float[np.ndarray, "g g"],
    predicted: Float[np.ndarray, "g g"],
    names: Sequence[str],
    *,
    dpi: int = canvas.DPI,
) -> bytes | None:
    """Correlations of each pair of genes over spots, measured and predicted, side by side.

    Both panels have the genes in one order, that of the measured panel's tree (average linkage of
    1 - r, undefined r taken as 0), and one colour scale from -1 to 1. Undefined pairs are grey.
    Names stand beside the measured panel for at most `LABELLED` genes.

    Returns:
      A PNG as wide as the page, or None for fewer than two genes.
    """
    import matplotlib

    if len(names) < 2:
        return None
    order = clustered(measured)
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad="#b0b0b0")
    figure = canvas.new_figure(canvas.WIDE, 5.0 if len(names) > LABELLED / 2 else 4.6)
    axes = figure.subplots(1, 2)
    for axis, title, values in zip(
        axes, ("measured", "predicted"), (measured, predicted), strict=True
    ):
        shown = np.ma.masked_invalid(values[np.ix_(order, order)])
        axis.imshow(shown, cmap=colours, vmin=-1.0, vmax=1.0, interpolation="antialiased")
        axis.set_title(title)
        axis.set_xlabel(f"{len(names)} genes, in the measured panel's order")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    if len(names) <= LABELLED:
        size = min(9.0, 250 / len(names))
        labels = [canvas.label(names[int(i)], 16) for i in order]
        axes[0].set_yticks(range(len(names)), labels, fontsize=size)
        axes[0].tick_params(length=0)
    bar = figure.colorbar(axes[0].images[0], ax=list(axes), fraction=0.03, pad=0.02, shrink=0.8)
    bar.set_label("Pearson correlation over spots")
    return canvas.png(figure, dpi, palette=True)


def clustered(corr: Float[np.ndarray, "g g"]) -> Int[np.ndarray, " g"]:
    """Order of the genes in which those that go together stand together, [g].

    The leaves of a tree of 1 - r by average linkage (scipy), undefined r taken as 0.
    """
    distance = 1.0 - np.nan_to_num(corr)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0.0)
    condensed = scipy.spatial.distance.squareform(np.maximum(distance, 0.0), checks=False)
    tree = scipy.cluster.hierarchy.linkage(
        condensed, "average", optimal_ordering=len(corr) <= _OPTIMAL
    )
    return scipy.cluster.hierarchy.leaves_list(tree)


def _span(values: np.ndarray) -> tuple[float, float]:
    """The values' range with a margin."""
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.1
    return low - margin, high + margin
