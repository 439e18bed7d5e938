"""Xenium runs as 10x Genomics' instrument writes them: cells, pooled into pseudo-spots.

Layout of a region's folder (or of ``outs`` in it)::

    experiment.xenium             JSON: pixel_size in um, of the morphology image
    cells.parquet                 cell_id, x_centroid, y_centroid in um; or cells.csv.gz, cells.csv
    cell_feature_matrix.h5        or the folder of text files; of genes and controls
    *he_image*.tif                the H&E taken afterwards (.ome.tif, .tiff, .btf)
    {H&E's name}alignment.csv     3 x 3: pixels of the H&E to pixels of the morphology image;
                                  or matrix.csv, as Xenium Explorer's export is called

**Pseudo-spots.** Spots lie on a square grid of `PITCH_UM` that starts at the instrument's origin;
a spot's counts are those of the cells whose centroid is within half a spot's diameter of its
centre. No cell is in two spots, and cells between the spots are in none, as on a Visium slide.

**Direction of the alignment.** The file maps (x, y) in H&E pixels to (x, y) in morphology pixels,
which are um / ``pixel_size``; positions of cells are taken through its inverse. Source: 10x
Genomics, knowledge base, "How can I convert coordinates between H&E image and Xenium data".
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float

from stemjax import errors
from stemjax.data import images, slides
from stemjax.data.layouts import alignment, feature_matrix, parquet, places

PITCH_UM = 100.0
"""Distance between the centres of neighbouring pseudo-spots, as on a Visium slide."""

SPOT_UM = 55.0
"""Diameter of a pseudo-spot, as on a Visium slide."""

_MANIFEST = "experiment.xenium"
_MATRIX = "cell_feature_matrix"
_CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv")
_COLUMNS = ("cell_id", "x_centroid", "y_centroid")
_SLIDE_UM = 1e6
_FINEST_UM, _COARSEST_UM = 0.01, 20.0
_IMAGES = (".tif", ".tiff", ".btf")


def is_slide(place: pathlib.Path) -> bool:
    """Whether a folder holds a region of a Xenium run."""
    return (place / _MANIFEST).is_file()


def list_slides(folder: str | os.PathLike[str]) -> list[str]:
    """Ids of the regions in ``folder``, sorted: the names of their folders.

    Raises:
      SlideError: there is none.
    """
    return sorted(_slides(folder))


def read_slide(
    folder: str | os.PathLike[str],
    slide_id: str,
    *,
    mpp: float | None = None,
    need_image: bool = True,
    pitch_um: float = PITCH_UM,
    spot_um: float = SPOT_UM,
    min_cells: int = 1,
) -> slides.Slide:
    """One region: its cells summed into pseudo-spots, all genes of the panel.

    Args:
      folder: one region's folder, or a folder of regions.
      slide_id: the region.
      mpp: micrometres per pixel of the H&E; by default ``pixel_size`` times the alignment's scale.
      need_image: whether a missing H&E or alignment is an error. Otherwise ``image`` is then None,
        and positions are in pixels of the morphology image where there is no alignment either.
      pitch_um: distance between pseudo-spots in micrometres.
      spot_um: diameter of a pseudo-spot in micrometres, at most ``pitch_um`` times the square root
        of 2: then every cell is in a spot.
      min_cells: spots with fewer cells are left out.

    Returns:
      The slide; rows by row and column of the grid, barcodes ``{column}x{row}``, ``array_xy`` the
      integers (column, row). ``patient`` is None: no file names it.

    Raises:
      SlideError: a file is missing or damaged, files do not fit together, or no spot has cells.
      ImageError: the H&E is missing or unreadable, or does not hold the spots.
      PixelSizeError: ``pixel_size`` is unknown.
    """
    slides.require_id(slide_id)
    _check_grid(pitch_um, spot_um, min_cells)
    place = places.choose(_slides(folder), slide_id, folder)
    pixel_um = _pixel_um(place / _MANIFEST)
    beside = (place, place.parent) if place.name == "outs" else (place,)
    image_path = places.find_picture(
        beside,
        slide_id,
        needed=need_image,
        fix="Put the H&E there, with he_image in its name",
        wanted=lambda path: "he_image" in path.name,
        suffixes=_IMAGES,
    )
    aligned_path = alignment.find(beside, image_path, slide_id, needed=image_path is not None)
    placed = alignment.read(aligned_path) if aligned_path else None
    image = images.open_image(image_path) if image_path else None
    cells = _read_cells(place)
    matrix = feature_matrix.read_matrix(_matrix_path(place))
    spots = _pool(cells, matrix, pitch_um, spot_um, min_cells)
    pixel_xy, notes = spots.um_xy / pixel_um, ()
    if placed is None:
        notes = ("positions are in pixels of the morphology image: there is no alignment",)
        measured = pixel_um
    else:
        alignment.require_direction(placed, pixel_xy, image, aligned_path)
        pixel_xy, measured = placed.to_image(pixel_xy), pixel_um * placed.scale
    keep, stray = slides.inside_or_few(pixel_xy, image)
    paths = (place / _MANIFEST, cells.path, *matrix.paths, aligned_path, image_path)
    return slides.Slide(
        id=slide_id,
        patient=None,
        counts=spots.counts[np.flatnonzero(keep)],
        genes=matrix.genes,
        gene_ids=matrix.gene_ids,
        barcodes=tuple(f"{x}x{y}" for x, y in spots.array_xy[keep]),
        array_xy=spots.array_xy[keep].astype(np.float32),
        pixel_xy=pixel_xy[keep],
        image=image,
        mpp=measured if mpp is None else mpp,
        spot_diameter_um=spot_um,
        sources={path.name: slides.sha256(path) for path in paths if path},
        notes=matrix.notes + cells.notes + spots.notes + notes + stray,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cells:
    """Where the cells are: names, and centroids in um [c 2]."""

    path: pathlib.Path
    names: tuple[str, ...]
    um_xy: Float[np.ndarray, "c 2"]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Spots:
    """Pseudo-spots: counts [l g], place on the grid [l 2], centre in um [l 2]."""

    counts: scipy.sparse.csr_array
    array_xy: np.ndarray
    um_xy: np.ndarray
    notes: tuple[str, ...]


def _slides(folder: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    return places.require_slides(
        folder, is_slide, kind="Xenium", expected=f"a region's folder ({_MANIFEST} in it)"
    )


def _check_grid(pitch_um: float, spot_um: float, min_cells: int) -> None:
    wrong = []
    if not (np.isfinite(pitch_um) and pitch_um > 0):
        wrong.append(f"pitch_um {pitch_um}")
    elif not 0 < spot_um <= 2**0.5 * pitch_um + 1e-9:
        wrong.append(f"spot_um {spot_um}")
    if min_cells < 1:
        wrong.append(f"min_cells {min_cells}")
    if wrong:
        raise errors.SlideError(
            "the grid of pseudo-spots cannot be used",
            expected="pitch_um above 0, spot_um above 0 and up to 1.414 times it, min_cells from 1",
            found=", ".join(wrong),
            fix="Change these",
        )


def _pixel_um(path: pathlib.Path) -> float:
    size = places.positive(places.read_json(path, "pixel_size"), "pixel_size")
    if size is None or not _FINEST_UM <= size <= _COARSEST_UM:
        raise errors.PixelSizeError(
            f"{path}: the pixel size of the morphology image is unknown",
            expected="pixel_size in um (0.2125 on all instruments so far)",
            found="none that is a pixel's" if size is None else f"{size:g}",
            fix="Copy the file again",
        )
    return size


def _matrix_path(place: pathlib.Path) -> pathlib.Path:
    for path in (place / f"{_MATRIX}.h5", place / _MATRIX):
        if path.exists():
            return path
    raise errors.SlideError(
        f"there are no counts in {place}",
        expected=f"{_MATRIX}.h5, or the folder {_MATRIX}",
        fix="Copy the file there",
    )


def _read_cells(place: pathlib.Path) -> _Cells:
    path = next((place / name for name in _CELLS if (place / name).is_file()), None)
    if path is None:
        raise errors.SlideError(
            f"there are no cells in {place}",
            expected=" or ".join(_CELLS),
            fix="Copy the file there",
        )
    try:
        if path.suffix == ".parquet":
            table = parquet.read_columns(path, _COLUMNS)
            frame = pd.DataFrame({name: table[name].to_pandas() for name in _COLUMNS})
        else:
            frame = pd.read_csv(path, usecols=list(_COLUMNS), dtype={"cell_id": str})
        # Early versions write names as bytes, and the first of all as numbers.
        names = [n.decode() if isinstance(n, bytes) else str(n) for n in frame["cell_id"]]
        numbers = [pd.to_numeric(frame[name], errors="coerce") for name in _COLUMNS[1:]]
        xy = np.stack([np.array(n, np.float64) for n in numbers], axis=1)
    except (*slides.UNREADABLE, TypeError, NotImplementedError) as error:
        raise errors.SlideError(
            f"{path} is damaged or no table of cells",
            expected=", ".join(_COLUMNS),
            found=f"{type(error).__name__}: {str(error)[:200]}",
            fix="Copy or download the file again",
        ) from error
    finite = (np.abs(xy) < _SLIDE_UM).all(axis=1)  # not NaN either
    lost = int((~finite).sum())
    notes = (f"left out {lost} cells whose position is no place on a slide",) if lost else ()
    kept = tuple(name for name, known in zip(names, finite, strict=True) if known)
    if len(set(kept)) < len(kept):
        raise errors.SlideError(
            f"{path} gives more than one position to a cell", fix="Copy the file again"
        )
    return _Cells(path=path, names=kept, um_xy=xy[finite], notes=notes)


def _pool(
    cells: _Cells,
    matrix: feature_matrix.FeatureMatrix,
    pitch_um: float,
    spot_um: float,
    min_cells: int,
) -> _Spots:
    """The cells' counts, joined by cell and summed over the spots of the grid."""
    rows = pd.Index(cells.names).get_indexer(pd.Index(matrix.barcodes))
    if not (rows >= 0).any() or (rows < 0).mean() > slides.STRAY_SHARE:
        lost = [matrix.barcodes[i] for i in np.flatnonzero(rows < 0)[:3]]
        raise errors.SlideError(
            f"{cells.path} lacks {int((rows < 0).sum()):,} of the {len(rows):,} cells that have "
            "counts",
            expected=f"cells such as {', '.join(lost)}",
            found=f"cells such as {', '.join(cells.names[:3]) or 'none'}",
            fix="Check that both files are whole and of the same region",
        )
    known = np.flatnonzero(rows >= 0)
    um_xy = cells.um_xy[rows[known]]
    square = np.floor(um_xy / pitch_um)
    far = np.linalg.norm(um_xy - (square + 0.5) * pitch_um, axis=1) > spot_um / 2
    between, known, square = int(far.sum()), known[~far], square[~far].astype(np.int64)
    # By row, then column: the order of reading.
    places_yx, spot = np.unique(square[:, ::-1], axis=0, return_inverse=True)
    spot = spot.ravel()
    n_cells = np.bincount(spot, minlength=len(places_yx))
    ones = np.ones(len(known), np.int64)
    pooling = scipy.sparse.csr_array(
        (ones, (spot, known)), shape=(len(places_yx), len(matrix.barcodes))
    )
    enough = n_cells >= min_cells
    notes = (
        f"{int(n_cells[enough].sum()):,} cells in {int(enough.sum()):,} pseudo-spots of "
        f"{spot_um:g} um, {pitch_um:g} um apart; {between:,} cells between spots",
    )
    notes += slides.left_out(int((~enough).sum()), f"with fewer than {min_cells} cells")
    if not enough.any():
        raise errors.SlideError(
            f"no pseudo-spot of {cells.path.parent} has {min_cells} cells",
            expected=f"cells within {spot_um / 2:g} um of the centre of a {pitch_um:g} um square",
            found=f"{len(rows):,} cells, {between:,} of them between spots",
            fix="Ask for larger spots (spot_um=) or fewer cells (min_cells=)",
        )
    array_xy = places_yx[enough][:, ::-1]
    return _Spots(
        counts=scipy.sparse.csr_array(pooling @ matrix.counts.astype(np.int64))[
            np.flatnonzero(enough)
        ],
        array_xy=array_xy,
        um_xy=(array_xy + 0.5) * pitch_um,
        notes=notes,
    )
