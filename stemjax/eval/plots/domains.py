"""Categories over the tissue: domains and labels side by side, in colours that go together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.optimize

from stemjax import errors
from stemjax.eval.plots import canvas, tissue

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
    "#f0e442", "#4b1e2d", "#000f96", "#960000", "#695a69", "#b4d2a5",
)  # fmt: skip
"""Okabe and Ito's seven colours, and five more as far from them as the first from each other.

No two are nearer than 10 in CIEDE2000, nor any to the paper, for the usual three cones and where
one of them is missing (Machado, Oliveira and Fernandes 2009).
"""

MARKS = (None, "#ffffff", "#000000")
"""Dot in the middle of a spot: after twelve categories the colours come again with another."""

MOST = len(COLOURS) * len(MARKS)
"""Most categories that a map can show."""

_DOT = 0.4  # diameter of the dot, of the spot's
_LONGEST = 26  # letters of a category in the legend
_KEY = 2.2  # inches that a legend takes beside its map


@canvas.own_style
def domain_maps(
    panels: Mapping[str, Sequence[str | None]],
    place: tissue.Tissue,
    *,
    title: str = "",
    dpi: int = canvas.DPI,
) -> bytes:
    """PNG of `domain_figure`.

    Args:
      panels: category of each spot by the panel's name; None where it has none.
      place: where the spots lie.
      title: above all panels.
      dpi: pixels an inch.

    Raises:
      ConfigError: too many categories.
    """
    return canvas.png(domain_figure(panels, place, title=title, dpi=dpi), dpi, palette=True)


@canvas.own_style
def write_domain_maps(
    panels: Mapping[str, Sequence[str | None]],
    place: tissue.Tissue,
    path: str | os.PathLike[str],
    *,
    title: str = "",
) -> None:
    """Writes `domain_figure` as PNG, PDF or SVG by the suffix.

    Raises:
      ConfigError: too many categories, or matplotlib cannot write this kind of file.
    """
    canvas.save(domain_figure(panels, place, title=title, dpi=canvas.DPI), path)


def domain_figure(
    panels: Mapping[str, Sequence[str | None]], place: tissue.Tissue, *, title: str, dpi: int
) -> Figure:
    """One map a panel with its legend, which counts the spots of each category.

    Spots have their true diameter, over the H&E where there is one. A category of a later panel
    has the colour of the first panel's that it shares most spots with, one to one, so that maps
    can be compared at a glance whatever the categories are called. A spot without one is an empty
    ring.

    Raises:
      ConfigError: a panel has more categories than can be told apart.
    """
    width = min(4.2 + _KEY, 15.0 / len(panels))
    place = tissue.fit_image(place, round((width - _KEY) * dpi))
    view = tissue.drawn_area(place)
    across, down = view[1] - view[0], view[3] - view[2]
    looks = _looks(panels)
    entries = 1 + max(len(look) for look in looks)
    height = float(np.clip((width - _KEY) * down / across, 0.24 * entries + 0.4, 12.0))
    figure = canvas.new_figure(width * len(panels), height + 0.3 + 0.35 * bool(title))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, categories), look in zip(axes, panels.items(), looks, strict=True):
        _draw(axis, categories, look, place)
        axis.set(xlim=view[:2], ylim=(view[3], view[2]))
        axis.set_title(canvas.label(name, 48))
        _legend(axis, categories, look)
    tissue.draw_scale_bar(axes[0], place)
    if title:
        figure.suptitle(canvas.label(title, 90))
    return figure


def _looks(panels: Mapping[str, Sequence[str | None]]) -> list[dict[str, int]]:
    """Number of the look (colour and dot) of each category, in order, for each panel."""
    looks: list[dict[str, int]] = []
    first: Sequence[str | None] = ()
    for name, categories in panels.items():
        present = ordered({c for c in categories if c is not None})
        if len(present) > MOST:
            raise errors.ConfigError(
                f"a map of {name}",
                expected=f"at most {MOST} categories, which can be told apart",
                found=str(len(present)),
            )
        if not looks:
            first = categories
            looks.append({category: i for i, category in enumerate(present)})
            continue
        taken = _matched(first, categories, looks[0], present)
        free = (i for i in range(2 * MOST) if i not in set(taken.values()) | set(looks[0].values()))
        looks.append(
            {category: taken[category] if category in taken else next(free) for category in present}
        )
    return [{category: number % MOST for category, number in look.items()} for look in looks]


def ordered(categories: set[str]) -> list[str]:
    """Whole numbers in their order, then names in the alphabet's."""
    return sorted(categories, key=lambda c: (0, int(c), c) if c.isdecimal() else (1, 0, c))


def _matched(
    first: Sequence[str | None],
    other: Sequence[str | None],
    look: Mapping[str, int],
    present: Sequence[str],
) -> dict[str, int]:
    """Looks of the first panel's categories for those of another that lie where they do."""
    rows, columns = {c: i for i, c in enumerate(look)}, {c: i for i, c in enumerate(present)}
    shared = np.zeros((len(rows), len(columns)))
    for a, b in zip(first, other, strict=True):
        if a is not None and b is not None:
            shared[rows[a], columns[b]] += 1
    pairs = zip(*scipy.optimize.linear_sum_assignment(shared, maximize=True), strict=True)
    names = list(look)
    return {present[int(j)]: look[names[int(i)]] for i, j in pairs if shared[i, j] > 0}


def _draw(
    axis: Axes,
    categories: Sequence[str | None],
    look: Mapping[str, int],
    place: tissue.Tissue,
) -> None:
    """The faded H&E, a disc a spot, its dot, and a ring where there is no category."""
    none = np.array([c is None for c in categories])
    tissue.draw_image(axis, place)
    numbers = np.array([-1 if c is None else look[c] for c in categories])
    faces = [COLOURS[number % len(COLOURS)] for number in numbers[~none]]
    _discs(axis, place.xy[~none], place.diameter, facecolors=faces, linewidths=0.0)
    for i, mark in enumerate(MARKS):
        dotted = ~none & (numbers // len(COLOURS) == i)
        if mark is not None and dotted.any():
            _discs(axis, place.xy[dotted], _DOT * place.diameter, facecolors=mark, linewidths=0.0)
    if none.any():
        _discs(
            axis, place.xy[none], 0.8 * place.diameter,
            facecolors="none", edgecolors=canvas.GREY, linewidths=0.8,
        )  # fmt: skip
    axis.set_aspect("equal", anchor="N")  # beside the head of a long legend
    axis.set_axis_off()


def _discs(axis: Axes, xy: np.ndarray, diameter: float, **style: object) -> None:
    from matplotlib import collections

    sides = np.full(len(xy), diameter)
    axis.add_collection(
        collections.EllipseCollection(
            sides,
            sides,
            np.zeros(len(xy)),
            units="xy",
            offsets=xy,
            offset_transform=axis.transData,
            **style,
        )
    )


def _legend(axis: Axes, categories: Sequence[str | None], look: Mapping[str, int]) -> None:
    """The categories with their looks and numbers of spots, beside the map."""
    from matplotlib import lines

    counts: dict[str, int] = dict.fromkeys(look, 0)
    for category in categories:
        if category is not None:
            counts[category] += 1
    handles, names = [], []
    for category, number in look.items():
        disc = lines.Line2D([], [], ls="", marker="o", ms=9, mew=0)
        disc.set_color(COLOURS[number % len(COLOURS)])
        mark = MARKS[number // len(COLOURS)]
        dot = lines.Line2D([], [], ls="", marker="o", ms=9 * _DOT, mew=0, color=mark or "none")
        handles.append((disc, dot))
        names.append(f"{canvas.label(category, _LONGEST)} ({counts[category]})")
    if missing := len(categories) - sum(counts.values()):
        ring = lines.Line2D([], [], ls="", marker="o", ms=7, mfc="none", mec=canvas.GREY, mew=0.8)
        handles.append((ring, ring))
        names.append(f"none ({missing})")
    axis.legend(
        handles, names, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False,
        handletextpad=0.2, borderaxespad=0.2,
    )  # fmt: skip
