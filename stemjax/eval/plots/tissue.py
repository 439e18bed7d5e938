"""Genes over the tissue: measured, predicted and spread, spot by spot in their true size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from stemjax.eval import metrics
from stemjax.eval.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FADE = 0.55  # share of white laid over the H&E, so that the colours of the spots stand out
_UNITS = {"um": "µm", "px": "px"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tissue:
    """Where the spots of one slide lie, as `stemjax.eval.truth.Truth` has it.

    Attributes:
      xy: spot centres (x to the right, y down), [l 2], in ``unit``.
      diameter: of a spot, in ``unit``.
      unit: ``um``, or ``px`` where the pixel size is unknown.
      image: the H&E whose upper left corner is the origin, uint8 [h w 3], and its pixels per
        ``unit``; None for white.
    """

    xy: Float[np.ndarray, "l 2"]
    diameter: float
    unit: str = "um"
    image: tuple[UInt8[np.ndarray, "h w 3"], float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """What the prediction was given of the slide's own measurements.

    Attributes:
      xy: centres of these spots, [m 2], in the unit of the tissue.
      diameter: of a spot, in that unit.
      values: what was measured there, value space, [m g] as the genes of the map.
    """

    xy: Float[np.ndarray, "m 2"]
    diameter: float
    values: Float[np.ndarray, "m g"]


@canvas.own_style
def maps(
    genes: Sequence[str],
    measured: Float[np.ndarray, "l g"] | None,
    predicted: Float[np.ndarray, "l g"],
    tissue: Tissue,
    *,
    units: str,
    spread: Float[np.ndarray, "l g"] | None = None,
    shown: Shown | None = None,
    dpi: int = canvas.DPI,
) -> tuple[bytes, ...]:
    """One PNG a gene, as wide as the page: measured, predicted and the spread, as far as given.

    With ``shown`` the first panel is what the prediction was given; the others are of spots that
    were hidden from it, or of points between. The spots of the one are rings in the other.

    Spots have their true diameter. Measured and predicted share one colour scale, from the 1st to
    the 99th percentile of the two together; values beyond it are shown by the colour bar's arrows.
    A spot without a finite value is a grey disc. The PCC over spots stands in the title, where
    there is a measurement.

    Args:
      genes: names of the genes, [g].
      measured: the value space of ``units``; None where nothing was measured.
      predicted: the same.
      tissue: the spots, in the order of the rows.
      units: of the values, as the colour bar prints them.
      spread: standard deviation of each entry, the same units.
      shown: the spots that the prediction was given, where it was some.
      dpi: pixels an inch.

    Returns:
      The figures, in the order of the genes; none for no genes.
    """
    tissue = fit_image(tissue, round(canvas.WIDE * dpi / 2))
    return tuple(
        canvas.png(
            spot_figure(
                gene,
                None if measured is None else measured[:, column],
                predicted[:, column],
                None if spread is None else spread[:, column],
                tissue,
                units=units,
                title=canvas.label(gene)
                + ("" if measured is None else f": {correlation(measured, predicted, column)}"),
                width=canvas.WIDE,
                shown=None
                if shown is None
                else dataclasses.replace(shown, values=shown.values[:, column]),
            ),
            dpi,
            palette=True,
        )
        for column, gene in enumerate(genes)
    )


def spot_figure(
    gene: str,
    measured: Float[np.ndarray, " l"] | None,
    predicted: Float[np.ndarray, " l"],
    spread: Float[np.ndarray, " l"] | None,
    tissue: Tissue,
    *,
    units: str,
    title: str,
    width: float,
    shown: Shown | None = None,
) -> Figure:
    """The figure of one gene, at most ``width`` inches wide; see `maps`.

    The values of ``shown`` are those of the gene, [m].
    """
    from matplotlib import colors

    hidden = "hidden: " if shown is not None and measured is not None else ""
    shared: dict[str, np.ndarray] = {}
    if shown is not None:
        shared["shown" if hidden else "measured"] = shown.values
    if measured is not None:
        shared[f"{hidden}measured"] = measured
    shared[f"{hidden}predicted"] = predicted
    both = np.concatenate(list(shared.values()))
    both = both[np.isfinite(both)]
    low, high = (float(v) for v in np.quantile(both, [0.01, 0.99])) if both.size else (0.0, 1.0)
    scale = colors.Normalize(low, high if high > low else low + 1.0)
    panels: list[tuple[str, np.ndarray, Any]] = [(*item, scale) for item in shared.items()]
    if spread is not None:
        panels.append(("predicted spread", spread, colors.Normalize(0.0, _top(spread))))

    given = (
        None if shown is None else dataclasses.replace(tissue, xy=shown.xy, diameter=shown.diameter)
    )
    whole = tissue if given is None else _both(tissue, given)
    view = drawn_area(whole)
    across, down = view[1] - view[0], view[3] - view[2]
    # 1.6 inches are for the colour bars, whose labels need 2.6 in height.
    panel = min((width - 1.6) / len(panels), 4.2)
    width = panel * len(panels) + 1.6
    height = float(np.clip(panel * down / across, 2.6, 1.75 * panel))
    figure = canvas.new_figure(width, height + 0.35 * len(title.splitlines()) + 0.3)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, values, norm) in zip(axes, panels, strict=True):
        filled, rings = tissue, given if hidden else None
        if given is not None and axis is axes[0]:
            filled, rings = given, tissue if hidden else None
        draw_image(axis, tissue)
        _draw_spots(axis, filled, values, norm, "viridis" if norm is scale else "magma")
        if rings is not None:
            _draw_rings(axis, rings)
        axis.set(xlim=view[:2], ylim=(view[3], view[2]))
        axis.set_title(name)
    draw_scale_bar(axes[0], whole)
    bar = figure.colorbar(
        axes[0].collections[0],
        ax=list(axes[: len(shared)]),
        extend=_beyond(both, scale),
        fraction=0.03,
        pad=0.02,
        shrink=0.9,
    )
    bar.set_label(f"{canvas.label(gene, 20)}, {units}")
    if spread is not None:
        bar = figure.colorbar(
            axes[-1].collections[0], ax=axes[-1], fraction=0.06, pad=0.02, shrink=0.9
        )
        bar.set_label(f"standard deviation, {units}")
    figure.suptitle(title)
    return figure


def correlation(
    measured: Float[np.ndarray, "l g"], predicted: Float[np.ndarray, "l g"], column: int
) -> str:
    """The PCC of one gene over spots, in words."""
    true, pred = measured[:, [column]], predicted[:, [column]]
    if not (np.isfinite(true).all() and np.isfinite(pred).all()):
        return "PCC undefined (some values are missing)"
    pcc = metrics.pcc_per_gene(pred, true)[0]
    return "PCC undefined (measured values are all equal)" if np.isnan(pcc) else f"PCC {pcc:.2f}"


def fit_image(tissue: Tissue, pixels: int) -> Tissue:
    """The tissue with an image that has less than twice so many pixels across the drawn area."""
    if tissue.image is None:
        return tissue
    image, scale = tissue.image
    left, right, *_ = drawn_area(tissue)
    factor = int((right - left) * scale // pixels)
    if factor < 2:
        return tissue
    # Blocks count from the origin, so that the image stays where it was.
    smaller = np.asarray(Image.fromarray(image).reduce(factor))
    return dataclasses.replace(tissue, image=(smaller, scale / factor))


def _top(values: np.ndarray) -> float:
    """Upper end of a colour scale that starts at 0."""
    top = float(np.max(values[np.isfinite(values)], initial=0.0))
    return top if top > 0 else 1.0


def _beyond(values: np.ndarray, scale: Any) -> str:
    """Which ends of the colour bar get an arrow, because values lie beyond them."""
    below, above = bool((values < scale.vmin).any()), bool((values > scale.vmax).any())
    return {(0, 0): "neither", (0, 1): "max", (1, 0): "min", (1, 1): "both"}[below, above]


def drawn_area(tissue: Tissue) -> tuple[float, ...]:
    """Left, right, top and bottom of the drawing, in the tissue's unit: the spots and a margin.

    The margin below has room for the scale bar, so that it covers no spot.
    """
    (left, top), (right, bottom) = tissue.xy.min(axis=0), tissue.xy.max(axis=0)
    margin = tissue.diameter + 0.02 * max(right - left, bottom - top)
    below = margin + 0.10 * max(right - left, bottom - top)
    return left - margin, right + margin, top - margin, bottom + below


def draw_image(axis: Axes, tissue: Tissue) -> None:
    """The faded H&E in the tissue's unit; nothing where there is none."""
    if tissue.image is None:
        return
    image, scale = tissue.image
    height, width = (side / scale for side in image.shape[:2])
    faded = image * (1 - _FADE) + 255.0 * _FADE
    # The extent is the outer border of the pixels: spot centres need no half-pixel shift.
    axis.imshow(
        faded.astype(np.uint8), extent=(0.0, width, height, 0.0), interpolation="antialiased"
    )


def _draw_spots(axis: Axes, tissue: Tissue, values: np.ndarray, norm: Any, colours: str) -> None:
    """One disc a spot."""
    import matplotlib
    from matplotlib import collections

    diameter = np.full(len(values), tissue.diameter)
    axis.add_collection(
        collections.EllipseCollection(
            diameter,
            diameter,
            np.zeros(len(values)),
            units="xy",
            offsets=tissue.xy,
            offset_transform=axis.transData,
            array=np.ma.masked_invalid(values),
            norm=norm,
            cmap=matplotlib.colormaps[colours].with_extremes(bad=canvas.GREY),
            linewidths=0.0,
        )
    )
    axis.set_aspect("equal")
    axis.set_axis_off()


def _draw_rings(axis: Axes, tissue: Tissue) -> None:
    """Spots that have no value here: where they lie, as thin rings."""
    from matplotlib import collections

    diameter = np.full(len(tissue.xy), tissue.diameter)
    axis.add_collection(
        collections.EllipseCollection(
            diameter,
            diameter,
            np.zeros(len(diameter)),
            units="xy",
            offsets=tissue.xy,
            offset_transform=axis.transData,
            facecolors="none",
            edgecolors=canvas.GREY,
            linewidths=0.4,
        )
    )


def _both(tissue: Tissue, other: Tissue) -> Tissue:
    """The tissue with the spots of both, as wide as the wider."""
    return dataclasses.replace(
        tissue,
        xy=np.concatenate([tissue.xy, other.xy]),
        diameter=max(tissue.diameter, other.diameter),
    )


def draw_scale_bar(axis: Axes, tissue: Tissue) -> None:
    """A bar of 1, 2 or 5 times a power of ten, at most a quarter of the drawn area's width."""
    from matplotlib import font_manager
    from mpl_toolkits.axes_grid1 import anchored_artists

    left, right, *_ = drawn_area(tissue)
    width, unit = right - left, _UNITS[tissue.unit]
    length = max(m * 10.0**e for e in range(-2, 7) for m in (1, 2, 5) if m * 10.0**e <= width / 4)
    millimetres = unit == "µm" and length >= 1000
    axis.add_artist(
        anchored_artists.AnchoredSizeBar(
            axis.transData,
            length,
            f"{length / 1000:g} mm" if millimetres else f"{length:g} {unit}",
            "lower left",
            borderpad=0.8,
            frameon=False,
            size_vertical=max(1, round(length / 25)),
            label_top=True,
            fontproperties=font_manager.FontProperties(size=10),
        )
    )
