"""Visium slides as Space Ranger writes them, versions 1 to 3.

Layout of a slide's ``outs``::

    filtered_feature_bc_matrix.h5       or LIBRARY_filtered_feature_bc_matrix.h5, or the folder
    spatial/tissue_positions.csv        barcode, in_tissue, array_row, array_col,
                                        pxl_row_in_fullres, pxl_col_in_fullres
    spatial/tissue_positions_list.csv   the same of Space Ranger 1, as a rule without header
    spatial/scalefactors_json.json      spot_diameter_fullres (px), tissue_hires_scalef
    spatial/tissue_hires_image.png      2,000 or 4,000 px wide: tells the image's size, no more
    *.tif *.tiff *.btf *.jpg *.png      the full-resolution H&E, which Space Ranger does not copy

Counts (`stemjax.data.layouts.feature_matrix`) and positions (`stemjax.data.layouts.visium_array`)
are joined by barcode. Source: 10x Genomics, Space Ranger's documentation of its outputs.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from stemjax import errors
from stemjax.data import gene_names, images, pixel_size, raw_counts, slides
from stemjax.data.layouts import feature_matrix, joining, places, reduced, visium_array

FULLRES_DIAMETER_UM = 65.0
"""What ``spot_diameter_fullres`` spans: a theoretical spot, larger than the real ones of 55 um."""

_POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv")
_HD = (
    "binned_outputs",
    "segmented_outputs",
    "feature_slice.h5",
    "spatial/tissue_positions.parquet",
)


def list_slides(folder: str | os.PathLike[str]) -> list[str]:
    """Ids of the slides in ``folder``, sorted.

    ``folder`` is one slide's ``outs``, which has the folder's name (its parent's where it is
    called ``outs``), or holds a folder for each slide, with or without ``outs`` in it.

    Raises:
      SlideError: there is no slide.
    """
    return sorted(_slides(folder))


def read_slide(
    folder: str | os.PathLike[str],
    slide_id: str,
    *,
    mpp: float | None = None,
    need_image: bool = True,
    duplicate_genes: gene_names.Duplicates = "sum",
) -> slides.Slide:
    """One slide: its spots under tissue, all genes measured.

    Args:
      folder: one slide's ``outs``, or a folder of slides, see `list_slides`.
      slide_id: the slide.
      mpp: micrometres per level-0 pixel; by default from the spot pitch of 100 um.
      need_image: whether a missing image is an error; otherwise ``image`` is then None.
      duplicate_genes: what becomes of genes that share a symbol: ``sum``, ``first``, ``error``.

    Returns:
      The slide; rows in the order of the counts, ``array_xy`` the integers (array_col, array_row).
      ``patient`` is None: no file names it.

    Raises:
      SlideError: a file is missing or damaged, files do not fit together, or it is Visium HD.
      ImageError: the image is missing, unreadable or not the one of full resolution, or does not
        hold the spots.
      PixelSizeError: the pixel size cannot be derived, and ``mpp`` is not given.
    """
    slides.require_id(slide_id)
    place = places.choose(_slides(folder), slide_id, folder)
    _refuse_hd(place)
    image_path = places.find_picture(
        (place, place.parent) if place.name == "outs" else (place,),
        slide_id,
        needed=need_image,
        fix="Put the H&E image that Space Ranger was given there, and no other; "
        "spatial/tissue_hires_image.png is too coarse for patches",
    )
    image = images.open_image(image_path) if image_path else None
    matrix = feature_matrix.read_matrix(
        feature_matrix.find_matrix(place), duplicates=duplicate_genes
    )
    positions = visium_array.read_positions(_positions_path(place))
    factors_path = place / "spatial" / "scalefactors_json.json"
    factors = places.read_json(factors_path, "tissue_hires_scalef and spot_diameter_fullres")
    hires_path = check_size(image, place, factors)
    if mpp is None:
        mpp, notes = _pixel_size(slide_id, positions, factors)
    else:
        notes = visium_array.measure_pixels(positions)[1]
    rows, spots, left = joining.join(matrix, positions)
    notes += reduced.require_full(
        str(positions.source),
        positions.pixel_xy,
        image,
        scale=places.positive(factors, "tissue_hires_scalef"),
        width_px=places.positive(factors, "spot_diameter_fullres"),
        fix="pxl_row_in_fullres and pxl_col_in_fullres",
    )
    keep, stray = slides.inside_or_few(
        positions.pixel_xy[spots], image, [matrix.barcodes[i] for i in rows]
    )
    rows, spots = rows[keep], spots[keep]
    counts = matrix.counts[rows]
    maybe = (p for p in (factors_path, hires_path, image_path) if p and p.is_file())
    return slides.Slide(
        id=slide_id,
        patient=None,
        counts=counts,
        genes=matrix.genes,
        gene_ids=matrix.gene_ids,
        barcodes=tuple(matrix.barcodes[i] for i in rows),
        array_xy=positions.array_xy[spots],
        pixel_xy=positions.pixel_xy[spots],
        image=image,
        mpp=mpp,
        spot_diameter_um=visium_array.SPOT_DIAMETER_UM,
        sources={p.name: slides.sha256(p) for p in (*matrix.paths, positions.source, *maybe)},
        notes=matrix.notes + notes + left + stray + raw_counts.silent_spots(counts),
    )


def _slides(folder: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    return places.require_slides(
        folder,
        is_slide,
        kind="Visium",
        expected="Space Ranger's outs (filtered_feature_bc_matrix.h5 and spatial in it)",
    )


def is_slide(place: pathlib.Path) -> bool:
    """Whether a folder holds any part of a slide; what it lacks is told when it is read."""
    named = any((place / name).exists() for name in ("spatial", *_HD))
    return named or any(place.glob("*filtered_feature_bc_matrix*"))


def is_hd(place: pathlib.Path) -> bool:
    """Whether a folder holds parts of Visium HD."""
    return any((place / name).exists() for name in _HD)


def _refuse_hd(place: pathlib.Path) -> None:
    if found := [name for name in _HD if (place / name).exists()]:
        raise errors.SlideError(
            f"{place} is Visium HD",
            expected="Visium: spots on a hexagonal array",
            found=", ".join(found),
            fix="Read it with the layout visium-hd",
        )


def _positions_path(place: pathlib.Path) -> pathlib.Path:
    for name in _POSITIONS:
        if (path := place / "spatial" / name).is_file():
            return path
    raise errors.SlideError(
        f"there are no spot positions in {place / 'spatial'}",
        expected=" or ".join(_POSITIONS),
        fix="Copy Space Ranger's folder spatial there",
    )


def check_size(
    image: images.SlideImage | None, place: pathlib.Path, factors: Mapping[str, Any]
) -> pathlib.Path | None:
    """Checks that the image is the one Space Ranger was given, whose size its small copy tells.

    Returns:
      The small copy, where it was read.
    """
    path = place / "spatial" / "tissue_hires_image.png"
    scale = places.positive(factors, "tissue_hires_scalef")
    if image is None or scale is None or not path.is_file():
        return None
    small = images.open_image(path)
    # Sorted: Space Ranger 1 may turn its copy by a quarter (--reorient-images).
    found = np.sort([image.width, image.height])
    expected = np.sort([small.width, small.height]) / scale
    # The copy's sides are whole pixels: by whatever rounding, within one of the exact ones.
    if (np.abs(found - expected) > 1.5 / scale).any():
        raise errors.ImageError(
            f"{image.source} is not the image that Space Ranger was given",
            expected=f"sides of about {expected[0]:,.0f} and {expected[1]:,.0f} px "
            f"({small.source}: {small.width} x {small.height} px, a scale of {scale:g})",
            found=f"{image.width:,} x {image.height:,} px",
            fix="Put the image there whose pixels the spots' positions are in",
        )
    return path


def _pixel_size(
    slide_id: str, positions: visium_array.Positions, factors: Mapping[str, Any]
) -> tuple[float, tuple[str, ...]]:
    """Micrometres per pixel from the array, else from the spot diameter with a note."""
    mpp, notes = visium_array.measure_pixels(positions)
    if mpp is not None:
        return mpp, notes
    diameter = places.positive(factors, "spot_diameter_fullres")
    if diameter is None:
        raise errors.PixelSizeError(
            f"slide {slide_id}: the pixel size cannot be derived from the positions of "
            f"{len(positions.barcodes)} spots",
            expected="spots of more than one row, or spot_diameter_fullres in scalefactors_json",
            fix=pixel_size.ask(),
        )
    mpp = FULLRES_DIAMETER_UM / diameter
    told = f"spot_diameter_fullres {diameter:g} px, which spans {FULLRES_DIAMETER_UM:g} um"
    return mpp, (f"pixel size {mpp:.4g} um from {told}: the spots do not span the plane",)
