"""What all figures share: size, colours, letters, and how they become a file.

Figures are objects drawn by Agg: no display, no pyplot. A figure does not depend on the reader's
matplotlibrc and carries no date: the same numbers give the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.spatial
from PIL import Image

from stemjax import errors
from stemjax.data import integrity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 144
"""Pixels an inch, half as fine again as a page's 96, so that figures stay sharp when enlarged."""

WIDE, HALF = 10.0, 4.8
"""Widths in inches: the page's column (960 px), and two figures side by side in it."""

MEASURED, PREDICTED = "#000000", "#0072b2"
RIVALS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, which colour-blind readers tell apart; dashes tell them apart too."""

GREY = "#8a8a8a"
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (9, 2)))

_STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.unicode_minus": True,
    "figure.titlesize": 12,
    "font.size": 10,
    "legend.fontsize": 10,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}
_MAX_LABEL = 32


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's own defaults and the house's sizes, whatever the reader's matplotlibrc says."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def own_style[**P, T](draw: Callable[P, T]) -> Callable[P, T]:
    """Decorator: the function draws in the house's style and leaves matplotlib's as it was."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> T:
        with _style():
            return draw(*args, **kwargs)

    return styled


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts make room for one another."""
    from matplotlib import layout_engine
    from matplotlib.figure import Figure

    room = layout_engine.ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    return Figure(figsize=(width, height), layout=room, facecolor="white")


def label(text: str, longest: int = _MAX_LABEL) -> str:
    """The text as matplotlib can show it: short, on one line, without formulas.

    Gene and model names are other people's: a ``$`` would start a formula, a leading ``_`` hide
    the entry of a legend, a letter that the font lacks raise a warning. What cannot be shown
    becomes the replacement character; what is too long loses its middle.
    """
    text = shorten(text, longest)
    text = "".join(letter if ord(letter) in _letters() else "\ufffd" for letter in text)
    text = text.replace("$", r"\$")
    return f"\u200a{text}" if text.startswith("_") else text


def shorten(text: str, longest: int = _MAX_LABEL) -> str:
    """The text on one line, without its middle where it is too long."""
    text = " ".join(text.split())
    if len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


@functools.cache
def _letters() -> frozenset[int]:
    """Code points of DejaVu Sans, which comes with matplotlib."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())


def png(figure: Figure, dpi: int = DPI, *, palette: bool = False) -> bytes:
    """The figure as PNG, without the name and version of the program.

    With a palette of 256 colours a figure of photographs or many shades is a fifth of the size; a
    shade is then off by about 2 of 255.
    """
    from matplotlib.backends import backend_agg

    buffer = io.BytesIO()
    backend_agg.FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    if not palette:
        return buffer.getvalue()
    with Image.open(buffer) as opened:
        full = opened.convert("RGB")
    pixels = np.asarray(full)
    # Of Pillow's methods this one errs least in the few bright colours of the spots. It is slow:
    # every third pixel of every third row is enough to choose the colours.
    some = Image.fromarray(np.ascontiguousarray(pixels[::3, ::3]))
    chosen = some.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1).getpalette() or []
    shades = np.array(chosen, np.uint8).reshape(-1, 3)
    shades[shades.sum(axis=1, dtype=int).argmax()] = 255  # paper stays white
    # Pillow finds the nearest shade by a coarse table; this is the nearest.
    packed, where = np.unique(
        pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32), return_inverse=True
    )
    each = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    _, nearest = scipy.spatial.KDTree(shades).query(each)
    nearest = np.asarray(nearest, np.uint8)
    few = Image.fromarray(nearest[where].reshape(pixels.shape[:2]), "L")
    few.putpalette(shades.tobytes())
    smaller = io.BytesIO()
    few.save(smaller, format="png", optimize=True, dpi=(dpi, dpi))
    return smaller.getvalue()


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the figure, whole or not at all, in the format of the suffix.

    Raises:
      ConfigError: matplotlib cannot write this kind of file.
      ResourceError: the disk is full.
    """
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
    with integrity.published_file(path) as partial:
        figure.savefig(partial, format=kind, dpi=DPI)


def legend_below(figure: Figure, entries: Sequence[tuple[str, Any]], columns: int) -> None:
    """One legend under the figure, in the order given: it never covers what is drawn."""
    figure.legend(
        [drawn for _, drawn in entries],
        [label(text, 60) for text, _ in entries],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )


def whole_ticks(axis: Axes, which: str) -> None:
    """Ticks of the axis ``x`` or ``y`` at whole numbers only: it counts."""
    from matplotlib import ticker

    getattr(axis, f"{which}axis").set_major_locator(ticker.MaxNLocator(integer=True))
