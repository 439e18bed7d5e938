"""What beats what: the model, its rivals, floors and ceilings with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from stemjax.eval.plots import canvas

KINDS = {
    "model": ("o", canvas.PREDICTED, "model"),
    "baseline": ("s", canvas.RIVALS[0], "baseline"),
    "floor": ("D", "#5a5a5a", "floor: knows no image"),
    "oracle": ("*", canvas.RIVALS[2], "oracle: sees the test slide's measurements"),
}
"""Marker, colour and legend entry of each kind of row."""


@canvas.own_style
def forest(
    names: Sequence[str],
    kinds: Sequence[str],
    points: Float[np.ndarray, "r m"],
    intervals: Float[np.ndarray, "r m 2"],
    quantities: Sequence[str],
    *,
    dpi: int = canvas.DPI,
) -> bytes | None:
    """Each row's score with its interval, one panel a score, the rows in the order given.

    The line and band down each panel are the first row of kind ``model``. A row without a score
    (NaN) says so; one without an interval has none.

    Args:
      names: of the rows.
      kinds: of the rows, each one of `KINDS`.
      points: scores; NaN where undefined.
      intervals: lower and upper end; NaN where unknown.
      quantities: names of the scores, say ``PCC-all (higher is better)``.
      dpi: pixels an inch.

    Returns:
      A PNG as wide as the page, or None where no row has a score.
    """
    if not np.isfinite(points).any():
        return None
    figure = canvas.new_figure(canvas.WIDE, 1.5 + 0.34 * len(names))
    axes = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
    entries: dict[str, Any] = {}
    lead = list(kinds).index("model") if "model" in kinds else None
    for column, axis in enumerate(axes):
        if lead is not None and np.isfinite(points[lead, column]):
            _draw_lead(axis, points[lead, column], intervals[lead, column])
        top = _top(points[:, column])
        for row, kind in enumerate(kinds):
            marker, colour, entry = KINDS[kind]
            x, (low, high) = points[row, column], intervals[row, column]
            if x > top:
                where = axis.get_yaxis_transform()
                text = f"{x:.2f} \u25b6"  # beyond the axis
                axis.text(1.0, row, text, transform=where, va="center", ha="right", color=colour)
                continue
            if not np.isfinite(x):
                where = axis.get_yaxis_transform()
                axis.text(0.02, row, "undefined", transform=where, va="center", color="#5a5a5a")
                continue
            if np.isfinite(low) and np.isfinite(high):
                axis.plot([low, high], [row, row], "-", color=colour, lw=2, solid_capstyle="butt")
            size = 13 if marker == "*" else 7
            (entries[entry],) = axis.plot(x, row, marker, color=colour, ms=size, mec="none")
        axis.set_xlabel(quantities[column])
        axis.grid(axis="x", color="#e2e2e2", lw=0.8)
        axis.set_axisbelow(True)
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(names)), [canvas.label(name) for name in names])
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    if lead is not None:
        axes[0].get_yticklabels()[lead].set_fontweight("bold")
    shown = [(text, entries[text]) for _, _, text in KINDS.values() if text in entries]
    canvas.legend_below(figure, shown, 4)
    return canvas.png(figure, dpi)


def _top(points: np.ndarray) -> float:
    """Highest score worth an axis that reaches it: one far off would squeeze all others."""
    known = points[np.isfinite(points)]
    return float(2.0 * np.median(known)) if known.size and np.median(known) > 0 else np.inf


def _draw_lead(axis: Any, point: float, interval: np.ndarray) -> None:
    """The model's score down the whole panel."""
    axis.axvline(point, color=canvas.PREDICTED, lw=1, zorder=0.5)
    if np.isfinite(interval).all():
        axis.axvspan(*interval, color=canvas.PREDICTED, alpha=0.10, lw=0, zorder=0.4)
