"""Figures of a predicted spread: does it cover what was measured as often as it says?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from stemjax.eval.plots import canvas

_MARKS = "osD^v"


@canvas.own_style
def reliability(
    nominal: Float[np.ndarray, " k"],
    coverage: Mapping[str, Float[np.ndarray, " k"]],
    *,
    intervals: Mapping[str, Float[np.ndarray, "k 2"]] | None = None,
    dpi: int = canvas.DPI,
) -> bytes | None:
    """Share of measurements inside the central interval against the share that it promises.

    On the diagonal the spread is right, below it too narrow, above it too wide.

    Args:
      nominal: levels between 0 and 1.
      coverage: shares between 0 and 1 by name, say before and after calibration; at most 5. A name
        whose shares are all NaN is left out.
      intervals: lower and upper end of each share, by the same names where there are any.
      dpi: pixels an inch.

    Returns:
      A PNG half as wide as the page, or None where no coverage is known.
    """
    if len(coverage) > len(_MARKS):
        raise ValueError(f"{len(coverage)} curves, at most {len(_MARKS)}")
    known = {name: shares for name, shares in coverage.items() if np.isfinite(shares).any()}
    if not known:
        return None
    figure = canvas.new_figure(canvas.HALF, 4.8)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], "--", color=canvas.GREY, lw=1.2, zorder=1)
    entries = []
    colours = (canvas.PREDICTED, *canvas.RIVALS)
    for i, (name, shares) in enumerate(known.items()):
        # Names stand beside each other where they would hide one another.
        x = nominal + 0.012 * (i - (len(known) - 1) / 2)
        low = high = shares
        if intervals is not None and name in intervals:
            low, high = intervals[name].T
        drawn = axis.errorbar(
            x,
            shares,
            # An interval that leaves its own estimate out still needs lengths from 0 up.
            yerr=np.maximum([shares - low, high - shares], 0.0),
            fmt=_MARKS[i],
            color=colours[i],
            ms=7,
            mfc="white" if i == 0 and len(known) > 1 else colours[i],
            mew=1.8,
            capsize=3,
        )
        entries.append((canvas.shorten(name), drawn))
    axis.set(xlim=(0.4 if nominal.min() > 0.45 else 0.0, 1.02), aspect="equal")
    found = np.concatenate([s[np.isfinite(s)] for s in known.values()])
    axis.set_ylim(min(axis.get_xlim()[0], max(0.0, float(found.min()) - 0.05)), 1.02)
    axis.set_xticks(nominal)
    for which in (axis.xaxis, axis.yaxis):
        which.set_major_formatter(lambda share, _: f"{100 * share:g}")
    axis.set_xlabel("nominal coverage, %")
    axis.set_ylabel("measurements inside, %")
    canvas.legend_below(figure, entries, 1 if max(len(name) for name, _ in entries) > 20 else 2)
    return canvas.png(figure, dpi)


@canvas.own_style
def rank_histogram(
    counts: Float[np.ndarray, " k"],
    *,
    band: tuple[float, float] | None = None,
    dpi: int = canvas.DPI,
) -> bytes | None:
    """How often the measurement takes each rank among the draws, relative to equally often.

    A flat histogram is a right spread, a U one too narrow, a dome one too wide, a slope a bias.

    Args:
      counts: of each of the n + 1 ranks among n draws.
      band: the counts between which a calibrated forecast lies, or None.
      dpi: pixels an inch.

    Returns:
      A PNG half as wide as the page, or None where nothing was counted.
    """
    edges = np.arange(len(counts) + 1) - 0.5  # ranks are whole numbers, so are their ticks
    return _flatness(counts, edges, band, f"rank among {len(counts) - 1} draws", dpi)


@canvas.own_style
def pit_histogram(
    counts: Float[np.ndarray, " k"],
    *,
    band: tuple[float, float] | None = None,
    dpi: int = canvas.DPI,
) -> bytes | None:
    """The probability integral transform of the measurements, relative to the uniform law.

    Args:
      counts: in bins of equal width from 0 to 1.
      band: as for `rank_histogram`, which tells how to read the shape.
      dpi: pixels an inch.

    Returns:
      A PNG half as wide as the page, or None where nothing was counted.
    """
    edges = np.linspace(0.0, 1.0, len(counts) + 1)
    return _flatness(counts, edges, band, "predicted probability of less than measured", dpi)


def _flatness(
    counts: np.ndarray,
    edges: np.ndarray,
    band: tuple[float, float] | None,
    xlabel: str,
    dpi: int,
) -> bytes | None:
    """Counts in equal bins, as multiples of their mean."""
    expected = float(np.sum(counts)) / len(counts) if len(counts) else 0.0
    if expected == 0:
        return None
    figure = canvas.new_figure(canvas.HALF, 3.6)
    axis = figure.subplots()
    bars = axis.stairs(counts / expected, edges, fill=True, color=canvas.PREDICTED, alpha=0.6)
    entries = [("found", bars), ("calibrated", axis.axhline(1.0, color=canvas.MEASURED, lw=1.4))]
    if band is not None:
        low, high = (end / expected for end in band)
        drawn = axis.axhspan(low, high, color=canvas.GREY, alpha=0.35, lw=0)
        entries.append(("calibrated, 95 %", drawn))
    axis.set_xlim(edges[0], edges[-1])
    if edges[0] < 0:
        canvas.whole_ticks(axis, "x")
    axis.set_ylim(0.0, 1.12 * max(1.0, float(counts.max()) / expected))
    axis.set_xlabel(xlabel)
    axis.set_ylabel("frequency, relative to uniform")
    canvas.legend_below(figure, entries, 3)
    return canvas.png(figure, dpi)
