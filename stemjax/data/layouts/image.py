"""H&E images alone: whole-slide images that nothing was measured on.

Layout: one file, or a folder of files, of the kinds of `SUFFIXES`; each is a slide, called as the
file is without its ending ("TCGA-A1.svs", "biopsy.ome.tif"). Pictures that go with slides
(thumbnails, labels, macros, masks) and the parts of slides of several files are no slides.

Spots are laid over the tissue (`stemjax.data.tiles`) so that an image can be predicted as a
measured slide is. Nothing but their places depends on the grid.
"""

from __future__ import annotations

import os
import pathlib
import re

import numpy as np
import scipy.sparse

from stemjax import errors
from stemjax.data import grids, images, pixel_size, slides, tiles, wsi

SUFFIXES = (".svs", ".tif", ".tiff", ".btf", ".jpg", ".jpeg", ".png", *wsi.BY_OPENSLIDE)
"""What the name of an image of a slide ends in."""

BESIDE = ("thumb", "thumbnail", "label", "macro", "overview", "preview", "mask", "lowres", "hires")
"""Words of names, between ``. _ -`` and spaces, of pictures that are no slides."""

_SAME = 1.1  # a pixel size given and one told by the file that differ by less agree


def list_slides(path: str | os.PathLike[str]) -> list[str]:
    """Ids of the images at ``path``, sorted: of the file, or of those in the folder.

    Raises:
      SlideError: there is no image, or two have one name.
    """
    return sorted(_files(path))


def read_slide(
    path: str | os.PathLike[str],
    slide_id: str,
    *,
    mpp: float | None = None,
    need_image: bool = True,
    pitch_um: float = 100.0,
    grid: grids.Kind = "square",
    spot_um: float = 55.0,
    min_tissue: float = 0.5,
    tissue: str | os.PathLike[str] | None = None,
    whole: bool = False,
) -> slides.Slide:
    """One image as a slide without counts, its spots on a grid over the tissue.

    Args:
      path: the image, or a folder of images.
      slide_id: the slide.
      mpp: micrometres per level-0 pixel; by default what the file tells.
      need_image: changes nothing: without its image such a slide has no spots.
      pitch_um: distance between neighbouring spots.
      grid: "square", or "hexagonal" as Visium's.
      spot_um: diameter of a spot; 55 is Visium's. Encoders without a field of view of their own
        look at patches at least as large.
      min_tissue: least share of a spot's tile (a square of one pitch) that has to be tissue.
      tissue: GeoJSON of the tissue's outlines; by default it is detected.
      whole: take the whole image for tissue.

    Returns:
      The slide: not measured, no gene, barcodes such as "12x7" (column x row), ``patient`` None.

    Raises:
      SlideError: there is no such slide, its id cannot be used, or the outlines cannot.
      ImageError: the image cannot be read, needs OpenSlide, or no tissue is seen.
      PixelSizeError: the file does not tell the pixel size, or contradicts itself, and ``mpp`` is
        not given.
      ConfigError: the grid cannot be laid.
    """
    slides.require_id(slide_id)
    found = _files(path)
    if slide_id not in found:
        raise errors.SlideError(
            f"there is no image {slide_id} at {path}",
            found=f"images {', '.join(sorted(found)[:10])}",
            fix="Ask for one of these",
        )
    file = found[slide_id]
    image = images.open_image(file)
    mpp, notes = _pixel_size(file, mpp)
    laid = tiles.tissue_grid(
        image,
        mpp,
        pitch_um=pitch_um,
        kind=grid,
        min_tissue=min_tissue,
        tissue_geojson=tissue,
        whole=whole,
    )
    read = [*_parts(file), *([pathlib.Path(tissue)] if tissue is not None else [])]
    return slides.Slide(
        id=slide_id,
        patient=None,
        counts=scipy.sparse.csr_array((len(laid.names), 0), dtype=np.int32),
        genes=(),
        barcodes=laid.names,
        array_xy=laid.array_xy,
        pixel_xy=laid.pixel_xy,
        image=image,
        mpp=mpp,
        spot_diameter_um=spot_um,
        sources={part.name: slides.sha256(part) for part in read},
        notes=notes + laid.notes,
        measured=False,
    )


def _files(path: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    """The images, by id."""
    path = pathlib.Path(path)
    if path.is_file():
        return {_id(path): path}
    files = sorted(p for p in path.iterdir() if _is_slide(p)) if path.is_dir() else []
    # A .vms is a list of JPEG files beside it, whose names begin with its own.
    lists = [p for p in files if p.suffix.lower() in (".vms", ".vmu")]
    found: dict[str, pathlib.Path] = {}
    for file in files:
        if any(file != index and file.name.startswith(index.stem) for index in lists):
            continue
        if (other := found.setdefault(_id(file), file)) != file:
            raise errors.SlideError(
                f"two images in {path} have one name",
                found=f"{other.name} and {file.name}",
                fix="Rename one of them, or move it elsewhere",
            )
    if not found:
        raise errors.SlideError(
            f"there is no image of a slide at {path}",
            expected=f"a file {' '.join(SUFFIXES)}, or a folder of such files",
            found="a folder without" if path.is_dir() else "neither a file nor a folder",
            fix="Give the image, or the folder that holds images",
        )
    return found


def _is_slide(path: pathlib.Path) -> bool:
    words = re.split(r"[._\- ]", path.name.lower())
    known = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return known and path.is_file() and not any(word in BESIDE for word in words)


def _id(path: pathlib.Path) -> str:
    return pathlib.Path(path.stem).stem if path.stem.lower().endswith(".ome") else path.stem


def _parts(path: pathlib.Path) -> list[pathlib.Path]:
    """All files of a slide: a .mrxs has a folder of its name, a .vms JPEG files beside it."""
    beside: list[pathlib.Path] = []
    if path.suffix.lower() == ".mrxs" and path.with_suffix("").is_dir():
        beside = [p for p in path.with_suffix("").iterdir() if p.is_file()]
    elif path.suffix.lower() in (".vms", ".vmu"):
        named = path.parent.iterdir()
        beside = [p for p in named if p.is_file() and p.name.startswith(path.stem) and p != path]
    return [path, *sorted(beside)]


def _pixel_size(path: pathlib.Path, given: float | None) -> tuple[float, tuple[str, ...]]:
    """Micrometres per pixel, and how they were found."""
    if given is not None:
        note = f"pixel size {given:g} um, as given"
        try:
            told = pixel_size.read_mpp(path)
        except errors.PixelSizeError as error:
            return given, (f"{note}; {error.what}",)
        if told is None or max(told.mpp, given) < _SAME * min(told.mpp, given):
            return given, (note,)
        return given, (f"{note}, though {path.name} tells {told.mpp:.4g} um ({told.source})",)
    told = pixel_size.read_mpp(path)
    if told is None:
        raise errors.PixelSizeError(
            f"{path.name} does not tell its pixel size",
            expected="a size in its header, as .svs, OME-TIFF and most scanners' files have",
            found="none",
            fix=pixel_size.ask(),
        )
    return told.mpp, (f"pixel size {told.mpp:.4g} um from {told.source}", *told.notes)
