"""Spatial Transcriptomics (2016 arrays) sections as HER2ST publishes them.

Layout, for a section such as ``B1`` (letters = patient, digits = serial section)::

    ST-cnts/B1.tsv.gz             raw counts: spots "XxY" (rows) x gene symbols (columns)
    ST-spotfiles/B1_selection.tsv x y new_x new_y pixel_x pixel_y selected
    ST-imgs/B/B1/*.jpg            full-resolution H&E
    ST-cluster, ST-pat            labels of spots, where there (`stemjax.data.st_labels`)

Counts and positions are joined by the array coordinates, f"{x}x{y}"; a spot in only one of the
two files is left out and noted. The files do not tell the pixel size: it follows from the spots'
known distance. Source: Andersson et al., Nature Communications 12, 6012 (2021).
"""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float

from stemjax import errors
from stemjax.data import gene_names, images, raw_counts, slides
from stemjax.data.layouts import places, reduced, st_labels
from stemjax.foreign import packed_text

SPOT_PITCH_UM = 200.0
"""Distance between the centres of neighbouring spots of the array."""

SPOT_DIAMETER_UM = 100.0
"""Diameter of a spot of the array."""

_COLUMNS = ("x", "y", "pixel_x", "pixel_y")
_SUFFIXES = (".tsv.gz", ".tsv")


def list_slides(folder: str | os.PathLike[str]) -> list[str]:
    """Ids of the sections whose counts are in ``folder``, sorted.

    Raises:
      SlideError: there is no ``ST-cnts`` in the folder.
    """
    counts = pathlib.Path(folder) / "ST-cnts"
    if not counts.is_dir():
        raise errors.SlideError(
            f"{folder} is no folder of ST sections",
            expected="the folders ST-cnts, ST-spotfiles and ST-imgs in it",
            found=f"no {counts}",
            fix="Give the folder that holds ST-cnts",
        )
    names = [path.name for path in counts.iterdir()]
    return sorted({n.removesuffix(s) for n in names for s in _SUFFIXES if n.endswith(s)})


def read_slide(
    folder: str | os.PathLike[str],
    slide_id: str,
    *,
    mpp: float | None = None,
    need_image: bool = True,
    duplicate_genes: gene_names.Duplicates = "error",
) -> slides.Slide:
    """One section: the spots that have counts and a position under tissue.

    Args:
      folder: the folder that holds ``ST-cnts``.
      slide_id: the section, such as ``B1``.
      mpp: micrometres per level-0 pixel; by default from the spot pitch of 200 um.
      need_image: whether a missing image is an error; otherwise ``image`` is then None.
      duplicate_genes: what becomes of columns that share a name: ``sum``, ``first``, ``error``.

    Returns:
      The slide; rows in the order of the counts file, ``array_xy`` the integer array coordinates.

    Raises:
      SlideError: a file is missing or damaged, or holds what is no count or position; a file of
        labels (which may be missing) is damaged or of another section.
      ImageError: the image is missing or unreadable, or does not hold the spots.
      PixelSizeError: no two spots are neighbours and ``mpp`` is not given.
    """
    slides.require_id(slide_id)
    folder = pathlib.Path(folder)
    counts_path = _counts_path(folder, slide_id)
    spots_path = folder / "ST-spotfiles" / f"{slide_id}_selection.tsv"
    letters = re.match(r"[A-Za-z]+", slide_id)
    patient = letters.group() if letters else None
    image_path = _image_path(folder / "ST-imgs" / (patient or "") / slide_id, slide_id, need_image)
    image = images.open_image(image_path) if image_path else None

    spots, genes, values = _read_counts(counts_path)
    counts = scipy.sparse.csr_array(values)
    positions, xy, notes = _read_positions(spots_path)
    if len(set(genes)) < len(genes):
        where = f"slide {slide_id}"
        columns = gene_names.add_up(counts, genes, duplicates=duplicate_genes, where=where)
        counts, genes, notes = columns.counts, columns.genes, columns.notes + notes
    rows = np.array([i for i, spot in enumerate(spots) if spot in positions], int)
    if not len(rows):
        raise errors.SlideError(
            f"no spot of {counts_path.name} has a position in {spots_path.name}",
            expected=f"spots such as {', '.join(list(positions)[:3])}",
            found=", ".join(spots[:3]) or "no spots",
            fix="Check that both files are of the same section",
            case="D11",
        )
    notes += slides.left_out(len(spots) - len(rows), "with counts but no position")
    notes += slides.left_out(len(positions) - len(rows), "with a position but no counts")
    xy = xy[[positions[spots[i]] for i in rows]]
    array_xy, pixel_xy = xy[:, :2], xy[:, 2:]
    notes += reduced.require_full(
        spots_path.name,
        pixel_xy,
        image,
        width_px=SPOT_DIAMETER_UM / mpp if mpp else None,
        fix="pixel_x and pixel_y",
    )
    if mpp is None:
        mpp = slides.pixel_size_from_pitch(
            array_xy, pixel_xy, SPOT_PITCH_UM, where=f"section {slide_id}"
        )
    keep, stray = slides.inside_or_few(pixel_xy, image, [spots[i] for i in rows])
    counts = counts[rows[keep]]
    barcodes = tuple(spots[i] for i in rows[keep])
    labelled = st_labels.read_labels(folder, slide_id, barcodes)
    paths = [path for path in (counts_path, spots_path, image_path, *labelled.paths) if path]
    return slides.Slide(
        id=slide_id,
        patient=patient,
        counts=counts,
        genes=genes,
        barcodes=barcodes,
        array_xy=array_xy[keep],
        pixel_xy=pixel_xy[keep],
        image=image,
        mpp=mpp,
        spot_diameter_um=SPOT_DIAMETER_UM,
        sources={path.name: slides.sha256(path) for path in paths},
        notes=notes + stray + labelled.notes + raw_counts.silent_spots(counts),
        labels=labelled.labels,
    )


def _counts_path(folder: pathlib.Path, slide_id: str) -> pathlib.Path:
    for suffix in _SUFFIXES:
        if (path := folder / "ST-cnts" / f"{slide_id}{suffix}").is_file():
            return path
    raise errors.SlideError(
        f"there are no counts of section {slide_id}",
        expected=f"{folder / 'ST-cnts' / slide_id}.tsv.gz or .tsv",
        found=f"sections {', '.join(list_slides(folder)) or 'none'}",
        fix="Ask for one of these, or copy the file there",
    )


def _image_path(folder: pathlib.Path, slide_id: str, needed: bool) -> pathlib.Path | None:
    """The section's image: the one JPEG in its folder."""
    found = sorted(folder.glob("*.jpg")) if folder.is_dir() else []
    if len(found) == 1:
        return found[0]
    if found or needed:
        raise errors.ImageError(
            f"section {slide_id} has no image" if not found else f"section {slide_id}: which image",
            expected=f"one *.jpg in {folder}",
            found=", ".join(path.name for path in found) or "none",
            fix="Copy the full-resolution image there, and nothing else"
            + ("" if found else places.NO_IMAGE),
            case="D13",
        )
    return None


def _read_counts(path: pathlib.Path) -> tuple[list[str], tuple[str, ...], np.ndarray]:
    """Spots, genes and the table of counts of a file, each value a whole number from 0 up."""
    try:
        # The header apart: pandas would rename a gene that occurs twice, and hide it.
        with packed_text.open_text(path) as file:
            header = file.readline().rstrip("\r\n").split("\t")
            frame = pd.read_csv(file, sep="\t", header=None, index_col=0, low_memory=False)
    except slides.UNREADABLE as error:
        raise slides.unreadable(path, error) from error
    # R writes no name above the column of row names, other writers an empty one.
    genes = tuple(header[1:] if len(header) == frame.shape[1] + 1 else header)
    if len(genes) != frame.shape[1]:
        raise errors.SlideError(
            f"{path.name}: header and rows do not fit",
            expected=f"{frame.shape[1]} genes in the first line",
            found=str(len(header)),
            fix="Copy or download the file again",
        )
    spots = [str(spot) for spot in frame.index]
    values = frame.to_numpy()
    if not np.issubdtype(values.dtype, np.number):
        values = np.stack([_numbers(frame.iloc[:, c]) for c in range(len(genes))], axis=1)
    wrong = raw_counts.refusal(
        scipy.sparse.csr_array(values), where=path.name, spots=spots, genes=genes
    )
    if wrong is not None:
        raise wrong
    return spots, genes, values


def _read_positions(
    path: pathlib.Path,
) -> tuple[dict[str, int], Float[np.ndarray, "n 4"], tuple[str, ...]]:
    """Row by spot name, rows of x, y, pixel_x, pixel_y under tissue, and what was left out."""
    try:
        table = pd.read_csv(path, sep="\t")
    except FileNotFoundError as error:
        raise errors.SlideError(
            f"there is no {path}", fix="Copy the section's spot selection there"
        ) from error
    except slides.UNREADABLE as error:
        raise slides.unreadable(path, error) from error
    if missing := [column for column in _COLUMNS if column not in table]:
        raise errors.SlideError(
            f"{path.name} lacks the columns {', '.join(missing)}",
            expected=", ".join(_COLUMNS) + " (and selected)",
            found=", ".join(map(str, table.columns)),
            fix="Give the selection file of the spot detector, tab-separated",
        )
    xy = np.stack([_numbers(table[column]) for column in _COLUMNS], axis=1)
    notes: tuple[str, ...] = ()
    if "selected" in table:
        under = _numbers(table["selected"]) == 1
        notes += slides.left_out(int((~under).sum()), "not under tissue (selected is not 1)")
        xy = xy[under]
    finite = np.isfinite(xy).all(axis=1)
    notes += slides.left_out(int((~finite).sum()), "with a position that is no number")
    xy = xy[finite]
    names = [f"{x:g}x{y:g}" for x, y in xy[:, :2]]
    rows = {name: row for row, name in enumerate(names)}
    if len(rows) < len(names):
        doubled = [name for row, name in enumerate(names) if rows[name] != row]
        raise errors.SlideError(
            f"{path.name} gives more than one position to a spot",
            found=", ".join(doubled[:3]),
            fix="Keep one row for each x and y",
        )
    return rows, xy, notes


def _numbers(column: Any) -> np.ndarray:
    """A column as float64; what is no number is NaN."""
    return np.array(pd.to_numeric(column, errors="coerce"), float)
