"""The spots of a Visium array: where they are, and how large a pixel is.

The array is hexagonal: its rows are 100 um * sqrt(3)/2 apart, and ``array_col`` counts half
distances (even in even rows, odd in odd ones). So the neighbours of a spot, all at 100 um, are
(row +-1, col +-1) and (row, col +-2). Source: 10x Genomics, Space Ranger's documentation.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import warnings

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from stemjax import errors
from stemjax.data import slides

SPOT_PITCH_UM = 100.0
"""Distance between the centres of neighbouring spots."""

SPOT_DIAMETER_UM = 55.0
"""Diameter of a spot."""

MOST_PX = 1e9
"""No image has so many columns or rows: a position beyond is damage."""

COLUMNS = (
    "barcode",
    "in_tissue",
    "array_row",
    "array_col",
    "pxl_row_in_fullres",
    "pxl_col_in_fullres",
)
"""What a file of positions holds, in this order where it has no header."""

_FIX = "Give the file as Space Ranger wrote it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Positions:
    """All spots of an array, also those beside the tissue.

    Attributes:
      source: name of the file they are from.
      barcodes: names of the spots, each once.
      under: whether a spot is under tissue.
      array_xy: (array_col, array_row), whole numbers.
      pixel_xy: (x=column, y=row) of the centre in pixels of the full-resolution image.
    """

    source: pathlib.Path
    barcodes: tuple[str, ...]
    under: Bool[np.ndarray, " l"]
    array_xy: Float[np.ndarray, "l 2"]
    pixel_xy: Float[np.ndarray, "l 2"]


def read_positions(path: pathlib.Path) -> Positions:
    """The positions in a file, with or without a header; a header's names count, not its order.

    Raises:
      SlideError: the file is damaged, lacks a column, holds what is no place on a hexagonal array,
        or names a barcode twice.
    """
    barcodes, values = _read_table(path)
    if not len(values):
        raise errors.SlideError(f"{path} has no positions", fix=_FIX)
    bad = ~(np.abs(values) < MOST_PX).all(axis=1) | ~np.isin(values[:, 0], (0, 1))
    array = np.where(bad[:, None], 0.0, values[:, 1:3])
    bad |= (array % 1 != 0).any(axis=1) | (array.sum(axis=1) % 2 != 0)
    if bad.any():
        first = int(bad.argmax())
        row = [barcodes[first], *(f"{value:g}" for value in values[first])]
        raise errors.SlideError(
            f"{path}: {int(bad.sum()):,} rows are no positions on a hexagonal array",
            expected="in_tissue 0 or 1; array_row and array_col whole, both even or both odd; "
            "pixels as numbers",
            found=", ".join(f"{name} {value}" for name, value in zip(COLUMNS, row, strict=True)),
            fix=_FIX,
        )
    names = pd.Index(barcodes)
    if not names.is_unique:
        raise errors.SlideError(
            f"{path} gives more than one position to a barcode",
            found=", ".join(names[names.duplicated()][:3]),
            fix="Keep one row for each barcode",
        )
    return Positions(
        source=path,
        barcodes=tuple(barcodes),
        under=values[:, 0] == 1,
        array_xy=values[:, [2, 1]],
        pixel_xy=values[:, [4, 3]],
    )


def measure_pixels(positions: Positions) -> tuple[float | None, tuple[str, ...]]:
    """Micrometres per pixel, from the array's known geometry.

    The array, in units of the pitch, is laid on the pixels by least squares (any turn, stretch and
    shift); the square root of the area that one unit square takes is the pitch in pixels. Median
    distances of neighbours would do (`stemjax.data.slides.pixel_size_from_pitch`), but Space Ranger
    1 rounds pixels, and a median of rounded values keeps the error that a fit averages out.

    Returns:
      um/px, None where the spots do not span the plane; and a note where the array is mirrored.

    Raises:
      SlideError: the pixels do not lie as the array does; exchanged columns look like that.
    """
    pitch, notes = fit_pitch(
        positions,
        positions.array_xy * (0.5, math.sqrt(0.75)),
        expected="spots of a hexagonal array, each 100 um from its neighbours",
    )
    return (None if pitch is None else SPOT_PITCH_UM / pitch), notes


def fit_pitch(
    positions: Positions,
    unit_xy: Float[np.ndarray, "l 2"],
    *,
    expected: str,
    most_off: float = 1.0,
) -> tuple[float | None, tuple[str, ...]]:
    """Pixels between neighbours, from the array laid on the pixels by least squares.

    Args:
      positions: of the array.
      unit_xy: the same places in units of the distance between neighbours.
      expected: what the array is, for messages.
      most_off: how far a spot may lie from its place, in units of the pitch.

    Returns:
      The pitch in pixels, None where the spots do not span the plane; and a note where the array is
      mirrored.

    Raises:
      SlideError: the pixels do not lie as the array does.
    """
    design = np.column_stack([unit_xy, np.ones(len(unit_xy))])
    fit, _, rank, _ = np.linalg.lstsq(design, positions.pixel_xy)
    if rank < 3:
        return None, ()
    stretch = np.linalg.svd(fit[:2], compute_uv=False)
    pitch = math.sqrt(stretch.prod())
    off = np.linalg.norm(design @ fit - positions.pixel_xy, axis=1)
    # A microscope's pixels are square to a per mille and its stitching is good to some um; array
    # columns exchanged stretch one direction threefold.
    if not stretch[0] < 1.2 * stretch[1] or not off.max() < most_off * pitch:
        worst = int(off.argmax())
        raise errors.SlideError(
            f"{positions.source}: pixels and array do not fit each other",
            expected=expected,
            found=f"a stretch of {stretch[0]:.4g} by {stretch[1]:.4g} px and spot "
            f"{positions.barcodes[worst]} {off[worst]:.4g} px from its place",
            fix="Check that array_row and array_col, or pixels of two slides, are not exchanged",
        )
    notes = ()
    if np.linalg.det(fit[:2]) < 0:
        notes = (
            "the array lies mirrored on the image: right if the image was flipped, else "
            "pxl_row_in_fullres and pxl_col_in_fullres are exchanged",
        )
    return pitch, notes


def _read_table(path: pathlib.Path) -> tuple[list[str], Float[np.ndarray, "l 5"]]:
    """Barcodes, and the other `COLUMNS` as numbers; NaN for what is none."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = [field.strip().strip('"') for field in file.readline().split(",")]
        named = not set(COLUMNS).isdisjoint(first)
        if set(COLUMNS) - set(first) if named else len(first) != len(COLUMNS):
            raise errors.SlideError(
                f"{path} has not the columns of spot positions",
                expected=", ".join(COLUMNS),
                found=", ".join(first[:8]) or "an empty file",
                fix=_FIX,
            )
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of fields that it drops
            table = pd.read_csv(
                path,
                header=None,
                names=first if named else list(COLUMNS),
                skiprows=int(named),
                index_col=False,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
            )
    except (*slides.UNREADABLE, pd.errors.ParserWarning) as error:
        raise errors.SlideError(
            f"{path} is damaged or no comma-separated table",
            found=f"{type(error).__name__}: {error}",
            fix="Copy or download the file again",
        ) from error
    numbers = [pd.to_numeric(table[column], errors="coerce") for column in COLUMNS[1:]]
    return table["barcode"].tolist(), np.stack([np.array(n, float) for n in numbers], axis=1)
