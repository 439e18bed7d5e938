"""Slides in the layout of HEST-1k, which Stem's own data folders share.

Layout, for a slide such as ``MEND145``::

    st/MEND145.h5ad         X raw counts; obsm["spatial"] spot centres in level-0 pixels (x, y);
                            obs in_tissue, array_row, array_col (where there), and labels of
                            spots under one of the names that
                            `stemjax.data.layouts.anndata_table.LABELS` lists
    wsis/MEND145.tif        pyramidal TIFF
    metadata/MEND145.json   patient, pixel_size_um_embedded, pixel_size_um_estimated,
                            inter_spot_dist and spot_diameter in um (optional)

Only the parts needed are read from the h5ad, and no pickle that such folders may hold. Source:
Jaume et al., NeurIPS 2024 (arXiv 2406.16192).
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from stemjax import errors
from stemjax.data import gene_names, images, pixel_size, raw_counts, slides
from stemjax.data.layouts import anndata_table, places, reduced
from stemjax.foreign import json_text

_SAME = 1.1
"""Pixel sizes that differ by less than this factor count as one."""


def list_slides(folder: str | os.PathLike[str]) -> list[str]:
    """Ids of the slides whose counts are in ``folder``, sorted.

    Raises:
      SlideError: there is no ``st`` in the folder.
    """
    counts = pathlib.Path(folder) / "st"
    if not counts.is_dir():
        raise errors.SlideError(
            f"{folder} is no folder of HEST slides",
            expected="the folders st, wsis and metadata in it",
            found=f"no {counts}",
            fix="Give the folder that holds st",
        )
    return sorted(path.stem for path in counts.glob("*.h5ad"))


def read_slide(
    folder: str | os.PathLike[str],
    slide_id: str,
    *,
    mpp: float | None = None,
    need_image: bool = True,
    duplicate_genes: gene_names.Duplicates = "error",
) -> slides.Slide:
    """One slide: its spots under tissue.

    The pixel size is the argument, else the one embedded in the image, else the estimated one
    (both from the metadata), else it follows from the known distance between spots. Where the
    first two contradict each other, as they do in many slides of HEST-1k, the distance between
    spots decides.

    Args:
      folder: the folder that holds ``st``.
      slide_id: the slide, such as ``MEND145``.
      mpp: micrometres per level-0 pixel.
      need_image: whether a missing image is an error; otherwise ``image`` is then None.
      duplicate_genes: what becomes of genes that share a name: ``sum``, ``first`` or an ``error``.

    Returns:
      The slide, in the order of the h5ad. Without ``array_row`` and ``array_col``, ``array_xy`` is
      ``pixel_xy`` in units of the distance between neighbouring spots.

    Raises:
      SlideError: a file is missing or damaged, the counts are no raw counts, or positions or the
        spot diameter are missing.
      ImageError: the image is missing or unreadable, or does not hold the spots.
      PixelSizeError: the pixel size is unknown or contradictory, and ``mpp`` is not given.
    """
    slides.require_id(slide_id)
    folder = pathlib.Path(folder)
    path, metadata_path = (
        folder / "st" / f"{slide_id}.h5ad",
        folder / "metadata" / f"{slide_id}.json",
    )
    if not path.is_file():
        raise errors.SlideError(
            f"there are no counts of slide {slide_id}",
            expected=str(path),
            found=f"slides {', '.join(list_slides(folder)[:10]) or 'none'}",
            fix="Ask for one of these, or copy the file there",
        )
    image_path = _image_path(folder / "wsis", slide_id, need_image)
    image = images.open_image(image_path) if image_path else None
    table = anndata_table.read_h5ad(path, duplicates=duplicate_genes)
    metadata = _read_metadata(metadata_path)
    pixel_xy, array_xy, notes = table.pixel_xy, table.array_xy, table.notes
    assert pixel_xy is not None
    diameter_px = _factor(table.libraries, "spot_diameter_fullres")
    if array_xy is None:
        array_xy = pixel_xy / anndata_table.spacing(pixel_xy)
    told = mpp or _number(metadata, "pixel_size_um_embedded")  # apart from the positions
    if mpp is None:
        mpp, how = _pixel_size(slide_id, metadata, array_xy, pixel_xy)
        notes += how
    diameter = _number(metadata, "spot_diameter")
    if diameter is None and diameter_px is not None:
        diameter = diameter_px * mpp
    if diameter is None:
        raise errors.SlideError(
            f"slide {slide_id}: the spot diameter is unknown",
            expected=f"spot_diameter (um) in {metadata_path.name}, or spot_diameter_fullres (px) "
            f"among the scalefactors of {path.name}",
            fix="Add it to the metadata (55 for Visium)",
        )
    notes += reduced.require_full(
        path.name,
        pixel_xy,
        image,
        scale=_factor(table.libraries, "tissue_hires_scalef"),
        width_px=diameter_px or (diameter / told if told else None),
    )
    keep, stray = slides.inside_or_few(pixel_xy, image, table.barcodes.tolist())
    counts = table.counts[np.flatnonzero(keep)]
    paths = [p for p in (path, metadata_path, image_path) if p and p.is_file()]
    return slides.Slide(
        id=slide_id,
        patient=_patient(metadata),
        counts=counts,
        genes=table.genes,
        barcodes=tuple(table.barcodes[keep]),
        array_xy=array_xy[keep],
        pixel_xy=pixel_xy[keep],
        image=image,
        mpp=mpp,
        spot_diameter_um=diameter,
        sources={p.name: slides.sha256(p) for p in paths},
        notes=notes + stray + raw_counts.silent_spots(counts),
        gene_ids=table.gene_ids,
        labels={name: tuple(values[keep]) for name, values in table.labels.items()},
    )


def _factor(libraries: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    """A scale factor of the first library that has it."""
    for library in libraries.values():
        factors = library.get("scalefactors", {})
        if name in factors:
            return _number(factors, name)
    return None


def _read_metadata(path: pathlib.Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json_text.parse(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise errors.SlideError(
            f"metadata {path.name} is no JSON", found=str(error), fix="Copy the file again"
        ) from error
    if not isinstance(values, dict):
        raise errors.SlideError(
            f"metadata {path.name} is no table", expected="a JSON object of fields"
        )
    return values


def _number(values: Mapping[str, Any], field: str) -> float | None:
    """A positive, finite number, or None: metadata mark the unknown by null, NaN, 0 or ''."""
    try:
        number = float(values.get(field, math.nan))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _patient(metadata: Mapping[str, Any]) -> str | None:
    value = metadata.get("patient")
    text = "" if value is None or value != value else str(value).strip()  # NaN is not itself
    return text or None


def _pixel_size(
    slide_id: str,
    metadata: Mapping[str, Any],
    array_xy: Float[np.ndarray, "l 2"],
    pixel_xy: Float[np.ndarray, "l 2"],
) -> tuple[float, tuple[str, ...]]:
    """Micrometres per pixel from the metadata, and a note where that took a choice."""
    pitch, measured = _number(metadata, "inter_spot_dist"), None
    if pitch:
        with contextlib.suppress(errors.PixelSizeError):  # of a spot alone, say: then it is unknown
            measured = slides.pixel_size_from_pitch(array_xy, pixel_xy, pitch)
    fields = ("pixel_size_um_embedded", "pixel_size_um_estimated")
    known = {f: v for f in fields if (v := _number(metadata, f)) is not None}
    if not known and measured is None:
        raise errors.PixelSizeError(
            f"slide {slide_id}: the pixel size is unknown",
            expected=f"{', '.join(fields)} or inter_spot_dist in metadata/{slide_id}.json",
            found=", ".join(sorted(metadata)[:8]) or "no metadata",
            fix=pixel_size.ask(pixel_xy),
        )
    if not known:
        assert measured is not None
        return measured, (f"pixel size {measured:.4g} um from the spot pitch of {pitch:g} um",)
    values = list(known.values())
    if max(values) < _SAME * min(values):
        return values[0], ()
    told = " and ".join(f"{field} {value:g}" for field, value in known.items())
    agree = [v for v in values if measured and max(v, measured) < _SAME * min(v, measured)]
    if len(agree) != 1:
        raise errors.PixelSizeError(
            f"slide {slide_id}: metadata give contradictory pixel sizes",
            expected="one size, or two of which the spot pitch confirms one",
            found=told + (f"; {measured:.4g} from the spot pitch" if measured else ""),
            fix="Say which is right, in um per level-0 pixel: --mpp (in Python mpp=)",
        )
    return agree[0], (f"pixel size {agree[0]:g} um: of {told}, it agrees with the spot pitch",)


def _image_path(folder: pathlib.Path, slide_id: str, needed: bool) -> pathlib.Path | None:
    paths = [folder / f"{slide_id}{suffix}" for suffix in (".tif", ".tiff")]
    for path in paths:
        if path.is_file():
            return path
    if needed:
        raise errors.ImageError(
            f"there is no image of slide {slide_id}",
            expected=" or ".join(map(str, paths)),
            found=_beside(folder),
            fix="Copy the image there" + places.NO_IMAGE,
            case="D13",
        )
    return None


def _beside(folder: pathlib.Path) -> str:
    """The first names in the folder of images."""
    if not folder.is_dir():
        return f"no folder {folder.name}"
    names = sorted(path.name for path in folder.iterdir())
    return (
        ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
    )
