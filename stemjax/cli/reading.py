"""Flags that say how slides are read: their layout, pixel size, and what some layouts ask."""

from __future__ import annotations

import argparse
import functools
import inspect
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stemjax import errors, names

if TYPE_CHECKING:
    from stemjax.data import slides

AUTO = "auto"

_OF_LAYOUT = ("pitch_um", "spot_um", "grid", "tissue", "whole", "min_tissue", "min_cells")
_OF_LAYOUT += ("bin_um", "image", "table", "region", "duplicate_genes")
"""Flags that only some layouts take; each is a parameter of their ``read_slide``."""


def add_flags(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Adds ``--layout`` and the flags of reading; `reader` reads them.

    Args:
      parser: of the command.
      default: the layout where none is given.
    """
    group = parser.add_argument_group("slides", "how they are read")
    text = f"(default: {default})" if default else ""
    group.add_argument(
        "--layout",
        choices=(AUTO, *names.LAYOUTS),
        default=default,
        help=f"how the slides are laid out; auto looks at what is there {text}".strip(),
    )
    group.add_argument(
        "--mpp",
        type=float,
        metavar="UM",
        help="pixel size in um/px, where the files do not say it (default: metadata, spot pitch)",
    )
    group.add_argument(
        "--pitch-um",
        type=float,
        metavar="UM",
        help="distance between spots laid over an image alone, or between pseudo-spots of Xenium "
        "(default: 100)",
    )
    group.add_argument(
        "--spot-um",
        type=float,
        metavar="UM",
        help="diameter of those spots (default: 55, Visium's)",
    )
    group.add_argument(
        "--grid", choices=("square", "hexagonal"), help="of spots over an image (default: square)"
    )
    group.add_argument(
        "--tissue",
        type=pathlib.Path,
        metavar="FILE",
        help="GeoJSON of the tissue in level-0 pixels, for an image alone (default: detected)",
    )
    group.add_argument(
        "--whole",
        action="store_true",
        default=None,
        help="take the whole image for tissue",
    )
    group.add_argument(
        "--min-tissue",
        type=float,
        metavar="SHARE",
        help="share of a spot's tile that has to be tissue (default: .5)",
    )
    group.add_argument(
        "--min-cells", type=int, metavar="N", help="of a pseudo-spot of Xenium (default: 1)"
    )
    group.add_argument(
        "--bin-um", type=int, choices=(8, 16), help="bins of Visium HD (default: 16)"
    )
    group.add_argument(
        "--image",
        metavar="hires|FILE|NAME",
        help="of an h5ad: the file of its image, or hires, the reduced one inside; of SpatialData: "
        "the name of the H&E",
    )
    group.add_argument(
        "--duplicate-genes",
        choices=("sum", "first", "error"),
        help="what becomes of columns that share a gene's name: their counts are added up, the "
        "first is taken, or the slide is refused (default: sum for Visium, else error)",
    )
    group.add_argument("--table", metavar="NAME", help="of SpatialData with several tables")
    group.add_argument("--region", metavar="NAME", help="of a table that annotates several shapes")


def find(path: pathlib.Path, layout: str | None) -> str:
    """Returns the layout of a path: the one named, or what is there."""
    if layout not in (None, AUTO):
        return str(layout)
    from stemjax.data.layouts import find as finding

    return finding.find_layout(path)


def reader(
    args: argparse.Namespace, path: pathlib.Path, *, need_image: bool
) -> tuple[Callable[[], list[str]], Callable[[str], slides.Slide]]:
    """Returns what lists the slides at a path, and what reads one of them.

    Args:
      args: of the command.
      path: a folder or file of slides.
      need_image: whether a missing image is an error.

    Raises:
      ConfigError: a flag that this layout does not take.
      SlideError: there is no slide.
    """
    from stemjax.data import layouts

    name = find(path, args.layout)
    module = layouts.layout(name)
    takes = inspect.signature(module.read_slide).parameters
    given: dict[str, Any] = {
        flag: value for flag in _OF_LAYOUT if (value := getattr(args, flag, None)) is not None
    }
    for flag in given:
        if flag not in takes:
            raise errors.ConfigError(
                f"--{flag.replace('_', '-')}",
                expected="a layout that takes it",
                found=f"layout {name}",
                fix="leave it out",
            )

    def read(slide: str) -> slides.Slide:
        return module.read_slide(path, slide, mpp=args.mpp, need_image=need_image, **given)

    return functools.partial(module.list_slides, path), read
