"""Which layout a path has, from the names of the files and folders that are there."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

from stemjax import errors
from stemjax.data.layouts import (
    image,
    places,
    spatialdata_zarr,
    visium,
    visium_hd,
    xenium,
)

LOOKED_FOR = {
    "st": "the folder ST-cnts",
    "hest": "the folder st with files .h5ad",
    "visium": "spatial and filtered_feature_bc_matrix.h5 in outs",
    "visium-hd": "binned_outputs in outs",
    "xenium": "experiment.xenium",
    "h5ad": "files .h5ad",
    "spatialdata": "zarr stores with tables, shapes or images",
    "image": "images, and nothing of the above",
}
"""What tells each layout, in words."""


def find_layout(path: str | os.PathLike[str]) -> str:
    """Returns the name of the layout of a file or folder, one of `stemjax.names.LAYOUTS`.

    Raises:
      SlideError: it has none, or the marks of more than one.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise errors.SlideError(
            f"there is no {path}",
            expected="an image, an .h5ad, or a folder of slides",
            fix="Check the path",
        )
    if path.is_file():
        found = ["h5ad"] if path.suffix == ".h5ad" else ["image"] if _is_image(path) else []
    else:
        found = [name for name, has in _MARKS.items() if path.is_dir() and has(path)]
        if not found and path.is_dir() and any(_is_image(inner) for inner in path.iterdir()):
            found = ["image"]
    if len(found) == 1:
        return found[0]
    if found:
        raise errors.SlideError(
            f"{path} has the marks of more than one layout",
            expected="one layout",
            found="; ".join(f"{name} ({LOOKED_FOR[name]})" for name in found),
            fix="Say which: --layout " + " or --layout ".join(found),
        )
    raise errors.SlideError(
        f"{path} has no layout that is known",
        expected="; ".join(f"{name}: {mark}" for name, mark in LOOKED_FOR.items()),
        found=_contents(path),
        fix="Give the folder that holds these, or say --layout",
    )


def _is_image(path: pathlib.Path) -> bool:
    return path.is_file() and path.name.lower().endswith(image.SUFFIXES)


def _has_visium(path: pathlib.Path) -> bool:
    """A folder with Visium slides; a Visium HD slide has a folder ``spatial``, too."""

    def is_slide(place: pathlib.Path) -> bool:
        counted = any(place.glob("*filtered_feature_bc_matrix*"))
        counted |= (place / "spatial").is_dir()
        return counted and visium.is_slide(place) and not visium.is_hd(place)

    return bool(places.find_slides(path, is_slide))


_MARKS: dict[str, Callable[[pathlib.Path], bool]] = {
    "st": lambda path: (path / "ST-cnts").is_dir(),
    "hest": lambda path: any((path / "st").glob("*.h5ad")),
    "visium": _has_visium,
    "visium-hd": lambda path: bool(places.find_slides(path, visium_hd.is_slide)),
    "xenium": lambda path: bool(places.find_slides(path, xenium.is_slide)),
    "h5ad": lambda path: any(path.glob("*.h5ad")),
    "spatialdata": lambda path: (
        spatialdata_zarr.is_store(path)
        or any(spatialdata_zarr.is_store(inner) for inner in path.iterdir())
    ),
}


def _contents(path: pathlib.Path) -> str:
    if path.is_file():
        return f"a file {path.suffix or 'without suffix'}"
    if not path.is_dir():
        return "neither a file nor a folder"
    return ", ".join(sorted(inner.name for inner in path.iterdir())[:8]) or "an empty folder"
