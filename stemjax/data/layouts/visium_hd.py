"""Visium HD slides as Space Ranger 3 and 4 write them: square bins that tile the tissue.

Layout of a slide's ``outs``::

    binned_outputs/square_016um/        and square_008um, square_002um, or a custom size
      filtered_feature_bc_matrix.h5     or the folder of text files
      spatial/tissue_positions.parquet  barcode, in_tissue, array_row, array_col,
                                        pxl_row_in_fullres, pxl_col_in_fullres
      spatial/scalefactors_json.json    bin_size_um, microns_per_pixel, tissue_hires_scalef
      spatial/tissue_hires_image.png    tells the image's size, no more
    segmented_outputs/                  Space Ranger 4: counts of cells, which are not read
    *.tif *.tiff *.btf *.jpg *.png      the full-resolution H&E, which Space Ranger does not copy;
                                        also in microscope_image, as spatialdata-io has it

A bin is a spot here, and its diameter the side of its square. Bins of 16 um are the default: a
patch of 112 um holds 49 of them, but 196 bins of 8 um, whose patches are nearly the same image
while their counts are a quarter. Bins of 2 um are refused: there are eleven million on a slide,
most of them with no count at all.

Source: 10x Genomics, Space Ranger's documentation of its outputs.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from stemjax import errors
from stemjax.data import images, slides
from stemjax.data.layouts import feature_matrix, joining, parquet, places, visium, visium_array

DEFAULT_BIN_UM = 16
"""Side of the bins that are read where none is asked for, in um."""

MOST_OFF = 0.05
"""How far ``microns_per_pixel`` may be from what the lattice of bins tells, as a share."""

MOST_BENT_UM = 100.0
"""How far a bin may lie from its place on a straight lattice: an image is registered by a
homography, whose bins are not quite in straight rows."""

_BIN = re.compile(r"square_(\d{3})um")
_BASE_UM = 2


def is_slide(place: pathlib.Path) -> bool:
    """Whether a folder holds a Visium HD slide."""
    return (place / "binned_outputs").is_dir()


def list_slides(folder: str | os.PathLike[str]) -> list[str]:
    """Ids of the slides in ``folder``, sorted; see `stemjax.data.layouts.visium.list_slides`.

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
    bin_um: int = DEFAULT_BIN_UM,
) -> slides.Slide:
    """One slide: its bins under tissue, all genes measured.

    Args:
      folder: one slide's ``outs``, or a folder of slides.
      slide_id: the slide.
      mpp: micrometres per level-0 pixel; by default ``microns_per_pixel`` of the scale factors,
        which has to agree with the lattice of bins to `MOST_OFF`.
      need_image: whether a missing image is an error; otherwise ``image`` is then None.
      bin_um: side of the bins in micrometres, 8 or 16, or a custom size of Space Ranger.

    Returns:
      The slide; rows in the order of the counts, ``array_xy`` the integers (array_col, array_row),
      ``spot_diameter_um`` the side of a bin. ``patient`` is None: no file names it.

    Raises:
      SlideError: a file is missing or damaged, files do not fit together, or there are no such
        bins.
      ImageError: the image is missing, unreadable or not the one of full resolution, or does not
        hold the bins.
      PixelSizeError: the pixel size is unknown or contradictory, and ``mpp`` is not given.
    """
    slides.require_id(slide_id)
    outs = places.choose(_slides(folder), slide_id, folder)
    place = _bins(outs, slide_id, bin_um)
    around = (outs, outs / "microscope_image")
    image_path = places.find_picture(
        (*around, outs.parent) if outs.name == "outs" else around,
        slide_id,
        needed=need_image,
        fix="Put the H&E image that Space Ranger was given there, and no other: neither the "
        "CytAssist's nor the aligned one",
    )
    image = images.open_image(image_path) if image_path else None
    matrix = feature_matrix.read_matrix(feature_matrix.find_matrix(place))
    positions = _read_positions(place / "spatial" / "tissue_positions.parquet")
    factors_path = place / "spatial" / "scalefactors_json.json"
    factors = places.read_json(factors_path, "bin_size_um and microns_per_pixel")
    hires_path = visium.check_size(image, place, factors)
    mpp, notes = _pixel_size(slide_id, positions, factors, bin_um, mpp)
    rows, spots, left = joining.join(matrix, positions, kind="bin")
    keep, stray = slides.inside_or_few(
        positions.pixel_xy[spots], image, [matrix.barcodes[i] for i in rows]
    )
    rows, spots = rows[keep], spots[keep]
    if (outs / "segmented_outputs").is_dir():
        notes += ("left out segmented_outputs: counts of cells, not of bins",)
    maybe = (p for p in (factors_path, hires_path, image_path) if p and p.is_file())
    return slides.Slide(
        id=slide_id,
        patient=None,
        counts=matrix.counts[rows],
        genes=matrix.genes,
        gene_ids=matrix.gene_ids,
        barcodes=tuple(matrix.barcodes[i] for i in rows),
        array_xy=positions.array_xy[spots],
        pixel_xy=positions.pixel_xy[spots],
        image=image,
        mpp=mpp,
        spot_diameter_um=float(bin_um),
        sources={p.name: slides.sha256(p) for p in (*matrix.paths, positions.source, *maybe)},
        notes=matrix.notes + notes + left + stray,
    )


def _slides(folder: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    return places.require_slides(
        folder, is_slide, kind="Visium HD", expected="Space Ranger's outs (binned_outputs in it)"
    )


def _bins(outs: pathlib.Path, slide_id: str, bin_um: int) -> pathlib.Path:
    """The folder of the bins of one size."""
    if bin_um == _BASE_UM:
        raise errors.SlideError(
            f"slide {slide_id}: bins of {_BASE_UM} um are not read",
            expected="bins of 8 or 16 um",
            found="millions of bins, most of them without a count",
            fix=f"Ask for bin_um={DEFAULT_BIN_UM} or bin_um=8: Space Ranger writes them beside "
            "these",
        )
    place = outs / "binned_outputs" / f"square_{bin_um:03d}um"
    if place.is_dir():
        return place
    names = sorted(p.name for p in (outs / "binned_outputs").iterdir() if p.is_dir())
    sizes = [str(int(m[1])) for name in names if (m := _BIN.fullmatch(name))]
    raise errors.SlideError(
        f"slide {slide_id} has no bins of {bin_um} um",
        expected=str(place),
        found=f"bins of {', '.join(sizes)} um" if sizes else ", ".join(names) or "an empty folder",
        fix="Ask for one of these: bin_um=" if sizes else "Copy the folder there",
    )


def _read_positions(path: pathlib.Path) -> visium_array.Positions:
    """The bins of the whole array, checked."""
    table = parquet.read_columns(path, visium_array.COLUMNS)
    try:
        barcodes = table["barcode"].to_pandas().astype(str).tolist()
        numbers = [table[name].to_pandas() for name in visium_array.COLUMNS[1:]]
        values = np.stack(
            [np.array(pd.to_numeric(n, errors="coerce"), np.float64) for n in numbers], axis=1
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise errors.SlideError(
            f"{path} is damaged",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            fix="Copy or download the file again",
        ) from error
    bad = ~(np.abs(values) < visium_array.MOST_PX).all(axis=1) | ~np.isin(values[:, 0], (0, 1))
    bad |= (np.where(bad[:, None], 0.0, values[:, 1:3]) % 1 != 0).any(axis=1)
    if bad.any() or not len(values):
        first = int(bad.argmax()) if len(values) else 0
        row = zip(visium_array.COLUMNS[1:], values[first], strict=True) if len(values) else ()
        raise errors.SlideError(
            f"{path}: {int(bad.sum()):,} rows are no bins of an array"
            if len(values)
            else f"{path} has no positions",
            expected="in_tissue 0 or 1; array_row and array_col whole; pixels as numbers",
            found=", ".join(f"{name} {value:g}" for name, value in row) or "no rows",
            fix="Give the file as Space Ranger wrote it",
        )
    names = pd.Index(barcodes)
    if not names.is_unique:
        raise errors.SlideError(
            f"{path} gives more than one position to a barcode",
            found=", ".join(names[names.duplicated()][:3]),
            fix="Keep one row for each barcode",
        )
    return visium_array.Positions(
        source=path,
        barcodes=tuple(barcodes),
        under=values[:, 0] == 1,
        array_xy=values[:, [2, 1]],
        pixel_xy=values[:, [4, 3]],
    )


def _pixel_size(
    slide_id: str,
    positions: visium_array.Positions,
    factors: Mapping[str, Any],
    bin_um: int,
    given: float | None,
) -> tuple[float, tuple[str, ...]]:
    """Micrometres per pixel: as given, else of the scale factors if the lattice confirms them."""
    size = places.positive(factors, "bin_size_um")
    if size is not None and size != bin_um:
        raise errors.SlideError(
            f"slide {slide_id}: the scale factors are of other bins",
            expected=f"bin_size_um {bin_um}",
            found=f"bin_size_um {size:g}",
            fix="Check that the folder's files are of the same bins",
        )
    pitch, notes = visium_array.fit_pitch(
        positions,
        positions.array_xy,
        expected=f"bins of a square array, each of {bin_um} um",
        most_off=MOST_BENT_UM / bin_um,
    )
    if given is not None:
        return given, notes
    told = places.positive(factors, "microns_per_pixel")
    measured = None if pitch is None else bin_um / pitch
    if told is None and measured is None:
        raise errors.PixelSizeError(
            f"slide {slide_id}: the pixel size is unknown",
            expected="microns_per_pixel in scalefactors_json, or bins of more than one row",
            fix="Give the pixel size in um per pixel: mpp=",
        )
    if told is None:
        assert measured is not None
        return measured, (*notes, f"pixel size {measured:.4g} um from the lattice of bins")
    if measured is None:
        return told, notes
    if abs(measured / told - 1) > MOST_OFF:
        raise errors.PixelSizeError(
            f"slide {slide_id}: scale factors and bins give contradictory pixel sizes",
            expected=f"microns_per_pixel within {MOST_OFF:.0%} of the lattice's",
            found=f"microns_per_pixel {told:g}; {measured:.4g} from bins of {bin_um} um that are "
            f"{pitch:.4g} px apart",
            fix="Check that the positions are of the image of full resolution, or say which is "
            "right, in um per pixel: mpp=",
        )
    return told, notes
