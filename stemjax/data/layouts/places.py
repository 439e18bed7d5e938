"""Where the slides of a folder are, which picture is a slide's H&E, and small files of numbers.

What layouts with a folder for each slide share: Visium, Visium HD and Xenium. Such a folder may be
called ``outs``, as 10x Genomics' programs do; then the slide has the name of the folder around it.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from stemjax import errors
from stemjax.foreign import json_text

PICTURES = (".tif", ".tiff", ".btf", ".jpg", ".jpeg", ".png")
"""Suffixes of images, in lower case, that a slide's H&E may have beside 10x Genomics' output."""

NO_IMAGE = (
    "; with embeddings made earlier none is needed: `stemjax prepare --embeddings PATH`, or "
    "`stemjax predict --embeddings PATH`"
)
"""How to do without an image: the end of what to do about one that is missing."""

COARSE = (
    "tissue_hires_image",
    "tissue_lowres_image",
    "aligned_fiducials",
    "aligned_tissue_image",
    "detected_tissue_image",
    "cytassist_image",
)
"""Parts of the names of Space Ranger's own pictures, none of which is of full resolution."""


def find_slides(
    folder: str | os.PathLike[str], is_slide: Callable[[pathlib.Path], bool]
) -> dict[str, pathlib.Path]:
    """The folders of the slides by id: ``folder`` itself, or one or two steps below it.

    Args:
      folder: one slide's folder, or a folder with one for each slide, with or without ``outs``.
      is_slide: whether a folder holds a slide.
    """
    top = pathlib.Path(os.path.abspath(folder))  # "." has no name
    if is_slide(top):
        return {top.parent.name if top.name == "outs" else top.name: top}
    if is_slide(top / "outs"):
        return {top.name: top / "outs"}
    found: dict[str, pathlib.Path] = {}
    for inner in sorted(top.iterdir()) if top.is_dir() else ():
        for place in (inner / "outs", inner):
            if is_slide(place):
                found.setdefault(inner.name, place)
    return found


def require_slides(
    folder: str | os.PathLike[str],
    is_slide: Callable[[pathlib.Path], bool],
    *,
    kind: str,
    expected: str,
) -> dict[str, pathlib.Path]:
    """What `find_slides` finds.

    Raises:
      SlideError: that is nothing; ``kind`` and ``expected`` say what was looked for.
    """
    if found := find_slides(folder, is_slide):
        return found
    raise errors.SlideError(
        f"{folder} is no folder of {kind} slides",
        expected=f"{expected}, or a folder of such folders",
        found="neither" if pathlib.Path(folder).is_dir() else "no folder",
        fix="Give the folder that holds them",
    )


def choose[T](found: Mapping[str, T], slide_id: str, folder: str | os.PathLike[str]) -> T:
    """The slide asked for.

    Raises:
      SlideError: it is not among those found.
    """
    if slide_id in found:
        return found[slide_id]
    raise errors.SlideError(
        f"there is no slide {slide_id} in {folder}",
        found=f"slides {', '.join(sorted(found)[:10]) or 'none'}",
        fix="Ask for one of these",
    )


def find_picture(
    folders: Sequence[pathlib.Path],
    slide_id: str,
    *,
    needed: bool,
    fix: str,
    wanted: Callable[[pathlib.Path], bool] = lambda path: True,
    suffixes: Collection[str] = PICTURES,
) -> pathlib.Path | None:
    """The one picture of full resolution in the folders; None where there is none.

    Args:
      folders: where to look.
      slide_id: for messages.
      needed: whether having none is an error.
      fix: what to do about it.
      wanted: which pictures count.
      suffixes: in lower case.

    Raises:
      ImageError: there are several, or there is none and one is needed.
    """
    pictures = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in suffixes
        and not any(word in path.name for word in COARSE)
        and wanted(path)
    ]
    if len(pictures) == 1:
        return pictures[0]
    if pictures or needed:
        what = "which image" if pictures else "there is no full-resolution image"
        raise errors.ImageError(
            f"slide {slide_id}: {what}",
            expected=f"one file {' '.join(suffixes)} in {' or '.join(map(str, folders))}",
            found=", ".join(path.name for path in pictures) or "none",
            fix=fix if pictures else fix + NO_IMAGE,
            case="D13",
        )
    return None


def read_json(path: pathlib.Path, holds: str) -> Mapping[str, Any]:
    """The fields of a JSON file; none where there is no file.

    Args:
      path: the file.
      holds: what it should hold, for messages.

    Raises:
      SlideError: it is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        values = json_text.parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise errors.SlideError(
            f"{path} is no JSON", found=str(error), fix="Copy the file again"
        ) from error
    if not isinstance(values, dict):
        raise errors.SlideError(
            f"{path} is no table",
            expected=f"a JSON object with {holds}",
            found=type(values).__name__,
            fix="Copy the file again",
        )
    return values


def positive(values: Mapping[str, Any], name: str) -> float | None:
    """A field, where it is a positive and finite number; None where it is anything else."""
    value: Any = values.get(name)
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
