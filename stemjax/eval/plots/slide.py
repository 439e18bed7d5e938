"""Figures of a prediction and its truth as files: a marker gene, the gene variation curves."""

from __future__ import annotations

import difflib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stemjax import errors
from stemjax.eval import joining
from stemjax.eval.plots import canvas, panel, tissue

if TYPE_CHECKING:
    pass

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

_MODES = {"mean": "mean", "pair": "antithetic pair", "draws": "average of draws"}


def default_marker(genes: Sequence[str], predicted: np.ndarray | None = None) -> str:
    """A gene worth drawing: the first of `MARKERS` in the panel.

    Without one, the gene whose prediction [l g] has the highest variance over spots, or the first
    gene when no prediction is given.
    """
    for gene in MARKERS:
        if gene in genes:
            return gene
    return genes[0 if predicted is None else int(np.argmax(np.var(predicted, axis=0)))]


@canvas.own_style
def marker_figure(
    joined: joining.Joined,
    gene: str,
    path: str | os.PathLike[str],
) -> None:
    """Writes one gene, measured beside predicted over the H&E, as PNG, PDF or SVG by the suffix.

    Spots have their true diameter, both panels one colour scale (1st to 99th percentile of the two
    together). A prediction with a spread gets a third panel: the standard deviation of its draws.
    Of a prediction that was shown some of the slide's spots a further panel is what it was shown.
    A slide without an image is drawn on white.

    Raises:
      GenePanelError: the gene is not in the panel or was not measured on the slide.
      ConfigError: matplotlib cannot write this kind of file.
    """
    column = _column(joined, gene)
    spread = None if joined.std is None else joined.std[:, column]
    shown = shown_of(joined, column)
    figure = tissue.spot_figure(
        gene,
        joined.true[:, column],
        joined.mean[:, column],
        spread,
        tissue.Tissue(
            xy=joined.truth.xy,
            diameter=joined.truth.diameter,
            unit=joined.truth.unit,
            image=joined.truth.image,
        ),
        units=joining.VALUE_SPACES[str(joined.about["value_space"])],
        title=_title(joined, gene, column),
        width=4.0 * (2 + (spread is not None) + (shown is not None)) + 1.6,
        shown=shown,
    )
    canvas.save(figure, path)


@canvas.own_style
def gene_variation_figure(
    joined: joining.Joined,
    path: str | os.PathLike[str],
) -> None:
    """Writes the gene variation curves of the prediction; see `panel.variation_curves`.

    Where there are single draws, the variance panels show the first.

    Raises:
      ConfigError: matplotlib cannot write this kind of file.
    """
    units = joining.VALUE_SPACES[str(joined.about["value_space"])]
    figure = panel.variation_figure(
        joined.mean,
        joined.true,
        mask=joined.mask,
        draw=None if joined.draws is None else joined.draws[0],
        name=f"predicted, {joined.label}",
        units=units,
    )
    figure.suptitle(f"Gene variation on slide {canvas.label(joined.slide)}, {units}")
    canvas.save(figure, path)


@canvas.own_style
def density_figure(
    groups: Mapping[str, np.ndarray], path: str | os.PathLike[str], *, title: str, xlabel: str
) -> None:
    """Writes the densities of some groups of numbers as outlines over one another.

    Bins, 60 of equal width, span all groups; each outline is scaled to its own peak, so that a
    narrow group does not flatten a broad one. The first group is filled.

    Args:
      groups: numbers by the name that the legend gives them, at most 6.
      path: the file; the suffix says its kind.
      title: the figure's.
      xlabel: what the numbers are.

    Raises:
      ConfigError: matplotlib cannot write this kind of file.
    """
    values = {name: np.ravel(numbers) for name, numbers in groups.items()}
    everything = np.concatenate(list(values.values()))
    edges = np.linspace(everything.min(), everything.max(), 61)
    figure = canvas.new_figure(7.0, 4.2)
    axis = figure.subplots()
    entries = []
    colours = ("#c8c8c8", *canvas.RIVALS)
    for i, (name, numbers) in enumerate(values.items()):
        height, _ = np.histogram(numbers, edges)
        outline = axis.stairs(height / height.max(), edges, color=colours[i], fill=i == 0, lw=1.8)
        entries.append((name, outline))
    axis.set_xlabel(xlabel)
    axis.set_ylabel("density, relative to its peak")
    axis.set_title(title)
    canvas.legend_below(figure, entries, 2)
    canvas.save(figure, path)


def shown_of(joined: joining.Joined, columns: int | Sequence[int]) -> tissue.Shown | None:
    """What the prediction was shown of some genes, or of one, for the maps; None where nothing."""
    if joined.context is None:
        return None
    values = joined.context.values(str(joined.about["value_space"]))
    return tissue.Shown(
        xy=joined.context.xy, diameter=joined.context.diameter, values=values[:, columns]
    )


def write_figures(
    joined: joining.Joined,
    folder: str | os.PathLike[str],
    *,
    gene: str | None = None,
) -> tuple[pathlib.Path, ...]:
    """Writes ``marker_<gene>.png`` and ``gene_variation.png``; returns their paths.

    Args:
      joined: the prediction and the truth.
      folder: made if absent.
      gene: the gene to draw; None for `default_marker`.

    Raises:
      GenePanelError: as `marker_figure`.
    """
    folder = pathlib.Path(folder)
    gene = gene or default_marker(list(joined.genes), joined.mean)
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", gene)
    marker, variation = folder / f"marker_{name}.png", folder / "gene_variation.png"
    marker_figure(joined, gene, marker)
    gene_variation_figure(joined, variation)
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
    score = tissue.correlation(joined.true, joined.mean, column)
    mode, cost = str(joined.about["mode"]), joined.about.get("evaluations_per_spot")
    made = canvas.label(_MODES.get(mode, mode))
    if joined.draws is not None:
        made = f"average of {len(joined.draws)} draws"
    made += "" if cost is None else f", {cost} network evaluation{'s' * (int(cost) != 1)} a spot"
    return f"{canvas.label(gene)}, slide {canvas.label(joined.slide)}: {score}\n{made}"
