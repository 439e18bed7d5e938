"""Points between the spots: where expression is inferred though none was measured.

Points are made from the array's own geometry (`stemjax.data.lattice`), within the tissue
(`stemjax.data.tissue`), or read from a file. They lie on the lattice fitted to all spots, not half
way between two jittered ones, and whether a place is surrounded by spots is judged on that lattice
too: the detector's jitter decides over no point.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.spatial
from jaxtyping import Float, Int

from stemjax import errors
from stemjax.data import lattice, tissue
from stemjax.foreign import packed_text

MOST = 5_000_000
"""More points than this are refused: a mistyped distance, not a wish."""

NAMES = ("name", "barcode")
"""Columns of a file that may name its points."""

UM_COLUMNS = ("x_um", "y_um")
PIXEL_COLUMNS = (("x", "y"), ("pxl_col_in_fullres", "pxl_row_in_fullres"))

_CHUNK = 500_000  # candidates judged at a time
_SAME = 0.1  # of the distance between points: so near to a measured spot is that spot
_AROUND = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), axis=-1).reshape(-1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points of one slide at which expression is to be inferred.

    Attributes:
      names: unique; the same place has the same name, whatever other points there are.
      xy_um: (x, y) in um from the image's top left corner, float64 [p 2].
      array_xy: (column, row) in the convention of the slide's spots, fractional, float64 [p 2].
      spacing_um: distance between neighbouring points.
    """

    names: tuple[str, ...]
    xy_um: Float[np.ndarray, "p 2"]
    array_xy: Float[np.ndarray, "p 2"]
    spacing_um: float


def denser(
    xy_um: Float[np.ndarray, "l 2"],
    array_xy: Float[np.ndarray, "l 2"],
    *,
    factor: int,
    mask: tissue.Mask | None = None,
) -> Points:
    """The new points of a lattice ``factor`` times as dense, within the tissue.

    "4x" is four points where there was one, the measured and three new: both basis vectors are
    split into sqrt(factor), on a hexagonal lattice too, where the triangle of three spots splits
    into smaller ones. The measured spots are not among the points.

    On an array that counts in whole numbers, names are array coordinates ("12.5x7"); elsewhere
    lattice coordinates, counted from the site nearest to the array's origin.

    Args:
      xy_um: positions of the measured spots.
      array_xy: their (column, row) on the array.
      factor: 4, 9, 16, ...
      mask: tissue seen in the image, see `tissue.in_tissue`.

    Returns:
      Points by ascending lattice coordinates; the order of the spots changes nothing.

    Raises:
      ConfigError: the factor is no square of a whole number from 2 up, the spots lie on no
        lattice, or there would be more than `MOST` points.
      SlideError: a position is not finite, or array coordinates contradict the positions.
    """
    parts = math.isqrt(max(int(factor), 0))
    if parts < 2 or parts * parts != factor:
        near = [n * n for n in sorted({max(parts, 2), max(parts, 2) + 1})]
        raise errors.ConfigError(
            "the lattice cannot be made denser by this factor",
            expected="the square of a whole number from 2 up: 4, 9, 16, ...",
            found=str(factor),
            fix=f"Take {' or '.join(map(str, near))}, or give the distance between points",
        )
    found = lattice.find_lattice(xy_um)
    if found.kind == "irregular":
        raise errors.ConfigError(
            f"{len(xy_um)} spots on no lattice cannot be made denser by a factor",
            expected="spots on a square or hexagonal lattice",
            fix="Give the distance between points in um instead: a pitch",
        )
    frame = lattice.Frame.fit(found, xy_um, array_xy)
    sites = found.sites(xy_um)
    _require_few(len(sites) * (factor - 1), "a smaller factor")
    footprint = tissue.Footprint(found.positions(sites), found.pitch_um)
    origin, basis = found.positions(frame.first[None])[0], found.basis / parts
    index = _fill(footprint, origin, basis, mask)
    # The measured: spots' own sites, and any place that a spot strayed to.
    measured = _is_any_of(index, parts * (sites - frame.first).astype(int))
    nearest = scipy.spatial.KDTree(lattice.require_positions(xy_um)).query(origin + index @ basis)
    spacing = found.pitch_um / parts
    index = index[~measured & (nearest[0] > _SAME * spacing)]
    coordinates = index / parts
    array = frame.array(frame.first + coordinates)
    return Points(
        names=_names(array if frame.whole else coordinates, 1 / parts),
        xy_um=origin + index @ basis,
        array_xy=array,
        spacing_um=spacing,
    )


def at_pitch(
    xy_um: Float[np.ndarray, "l 2"],
    array_xy: Float[np.ndarray, "l 2"],
    *,
    pitch_um: float,
    mask: tissue.Mask | None = None,
) -> Points:
    """Points ``pitch_um`` apart over the tissue, on a lattice of the array's kind and direction.

    One of the array's sites, the one nearest to its origin, is a point; where spots lie on no
    lattice, points lie on a square lattice along the image from its corner. Names tell pitch and
    place, "50um_25x14": steps from that point. Points may coincide with measured spots.

    Args:
      xy_um: positions of the measured spots.
      array_xy: their (column, row) on the array.
      pitch_um: distance between neighbouring points, above or below that of the spots.
      mask: tissue seen in the image, see `tissue.in_tissue`.

    Returns:
      Points by ascending lattice coordinates; the order of the spots changes nothing.

    Raises:
      ConfigError: the pitch is no positive number, or there would be more than `MOST` points.
      SlideError: fewer than three spots or spots in a line, a position is not finite, or array
        coordinates contradict the positions.
    """
    if not (math.isfinite(pitch_um) and pitch_um > 0):
        raise errors.ConfigError(
            "the distance between points cannot be used",
            expected="um above 0",
            found=f"{pitch_um:g}",
        )
    found = lattice.find_lattice(xy_um)
    if found.kind == "irregular":
        frame, spots = None, lattice.require_positions(xy_um)
        scale = _spacing_of_scattered(spots)
        origin, basis = np.zeros(2), pitch_um * np.eye(2)
        lattice.to_array(spots[:0], xy_um, array_xy)  # refuses spots in a line before any work
    else:
        frame, spots = (
            lattice.Frame.fit(found, xy_um, array_xy),
            found.positions(found.sites(xy_um)),
        )
        scale = found.pitch_um
        origin = found.positions(frame.first[None])[0]
        basis = found.basis * (pitch_um / found.pitch_um)
    _require_few(len(spots) * (scale / pitch_um) ** 2, "a larger distance")
    index = _fill(tissue.Footprint(spots, scale), origin, basis, mask)
    points = origin + index @ basis
    if frame is None:
        array = lattice.to_array(points, xy_um, array_xy)
    else:
        array = frame.array(found.coordinates(points))
    return Points(
        names=tuple(f"{pitch_um:g}um_{i}x{j}" for i, j in index.tolist()),
        xy_um=points,
        array_xy=array,
        spacing_um=float(pitch_um),
    )


def read_points(
    path: str | os.PathLike[str],
    *,
    xy_um: Float[np.ndarray, "l 2"],
    array_xy: Float[np.ndarray, "l 2"],
    mpp: float | None = None,
) -> Points:
    """Points from a table, separated by commas or tabs, plain or .gz.

    Columns: ``x_um`` and ``y_um`` in micrometres, else ``x`` and ``y`` or ``pxl_col_in_fullres``
    and ``pxl_row_in_fullres`` in level-0 pixels; ``name`` or ``barcode`` where points have names,
    else they are numbered "p000000", "p000001", ... Every row is a point, in tissue or not.

    Args:
      path: the file, with a header.
      xy_um: positions of the slide's measured spots.
      array_xy: their (column, row) on the array.
      mpp: micrometres per level-0 pixel, for positions in pixels.

    Returns:
      The points in the order of the file; ``spacing_um`` is the median distance to the nearest
      other point, that between spots for a point alone.

    Raises:
      SlideError: the file is missing or damaged, has no row, no such columns or rows longer than
        its header, a position is no finite number, a name is empty or doubled, or the spots do
        not tell the array's geometry.
      PixelSizeError: positions are in pixels and ``mpp`` is not given or no positive number.
    """
    path = pathlib.Path(path)
    table = _read_table(path)
    columns = _position_columns(path, list(table.columns))
    if not len(table):
        raise errors.SlideError(
            f"{path.name} holds no point", expected="a row for each point below the header"
        )
    numbers = [pd.to_numeric(table[c], errors="coerce") for c in columns]
    points = np.stack([np.array(n, np.float64) for n in numbers], axis=1)
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise errors.SlideError(
            f"{path.name}: {int((~finite).sum())} positions are no finite numbers",
            found=f"{', '.join(str(table[c].iloc[row]) for c in columns)} in line {row + 2}",
            fix="Leave these points out, or mend their positions",
        )
    if columns != UM_COLUMNS:
        if mpp is None or not (math.isfinite(mpp) and mpp > 0):
            raise errors.PixelSizeError(
                f"{path.name} gives positions in pixels",
                expected="a pixel size in um above 0",
                found=str(mpp),
                fix="Give the pixel size of the image: mpp=, or columns x_um and y_um",
            )
        points = points * mpp
    distinct = np.unique(points, axis=0)
    if len(distinct) > 1:
        spacing = float(np.median(scipy.spatial.KDTree(distinct).query(distinct, k=2)[0][:, 1]))
    else:
        spacing = lattice.find_lattice(xy_um).pitch_um
    return Points(
        names=_read_names(path, table),
        xy_um=points,
        array_xy=lattice.to_array(points, xy_um, array_xy),
        spacing_um=spacing,
    )


def _fill(
    footprint: tissue.Footprint, origin: np.ndarray, basis: np.ndarray, mask: tissue.Mask | None
) -> Int[np.ndarray, "p 2"]:
    """Coordinates (i, j) of the points ``origin + (i, j) @ basis`` in tissue, ascending.

    Candidates are made around the spots, block by block: so their number is bounded by the spots,
    not by the rectangle around them.
    """
    step = np.linalg.norm(basis, axis=1).min()
    # A point of the footprint is up to a pitch from its spot: 1.155 steps of a hexagonal basis.
    block = math.ceil(1.2 * footprint.pitch_um / step)
    home = np.floor((footprint.spots_um - origin) @ np.linalg.inv(basis * block)).astype(int)
    blocks = _distinct((_distinct(home)[:, None] + _AROUND).reshape(-1, 2))
    kept = [
        index[footprint.covers(origin + index @ basis, mask=mask)]
        for index in _candidates(blocks, block)
    ]
    return _distinct(np.concatenate([np.empty((0, 2), int), *kept]))


def _candidates(blocks: np.ndarray, block: int) -> Iterator[np.ndarray]:
    axis = np.arange(block)
    inner = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    size = max(1, _CHUNK // len(inner))
    for start in range(0, len(blocks), size):
        some = blocks[start : start + size] * block
        yield (some[:, None] + inner).reshape(-1, 2)


def _distinct(rows: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "m 2"]:
    """Each row once, ascending: `np.unique` of rows, at the price of one of numbers."""
    if not len(rows):
        return rows
    low = rows.min(axis=0)
    width = int(rows[:, 1].max() - low[1]) + 1
    key = np.unique((rows[:, 0] - low[0]) * width + rows[:, 1] - low[1])
    return np.stack([key // width, key % width], axis=1) + low


def _is_any_of(rows: Int[np.ndarray, "n 2"], of: Int[np.ndarray, "m 2"]) -> np.ndarray:
    """Whether a row is among others, [n]; both distinct."""
    together = np.concatenate([rows, of])
    low = together.min(axis=0)
    width = int(together[:, 1].max() - low[1]) + 1
    key = (together - low) @ np.array([width, 1])
    return np.isin(key[: len(rows)], key[len(rows) :])


def _names(coordinates: Float[np.ndarray, "p 2"], step: float) -> tuple[str, ...]:
    """Such as "12.5x7": decimals enough to tell points apart, and no zeros at the end."""
    decimals = math.ceil(-math.log10(step)) + 2
    columns = []
    for values in (np.round(coordinates, decimals) + 0.0).T:
        known, row = np.unique(values, return_inverse=True)
        text = [f"{value:.{decimals}f}".rstrip("0").rstrip(".") for value in known]
        columns.append([text[r] for r in row])
    return tuple(f"{x}x{y}" for x, y in zip(*columns, strict=True))


def _spacing_of_scattered(points: Float[np.ndarray, "n 2"]) -> float:
    """The side of tissue that a spot off any lattice stands for, in um.

    The distance to the sixth nearest, since in a triangulation a spot has six neighbours on
    average. Among spots strewn at random the nearest one is at half a side of the area that each
    has: by that distance hardly three would be each other's neighbours.
    """
    if len(points) < 2:
        return 0.0
    k = min(7, len(points))
    return float(np.median(scipy.spatial.KDTree(points).query(points, k=k)[0][:, -1]))


def _require_few(number: float, instead: str) -> None:
    if number > MOST:
        raise errors.ConfigError(
            "there would be too many points",
            expected=f"at most {MOST:,}",
            found=f"about {round(number):,}",
            fix=f"Take {instead}",
        )


def _read_table(path: pathlib.Path) -> pd.DataFrame:
    """The table, all of it as text."""
    try:
        with packed_text.open_text(path, times=packed_text.LIST_TIMES) as file:
            separator = "\t" if "\t" in file.readline() else ","
            file.seek(0)
            table = pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise errors.SlideError(f"there is no {path}", fix="Give the file of points") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, ValueError) as error:
        raise errors.SlideError(
            f"{path.name} is empty, damaged or no table of columns",
            found=f"{type(error).__name__}: {error}",
            fix="Give columns separated by commas or tabs, with a header",
        ) from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first ones for names of rows
        raise errors.SlideError(
            f"{path.name}: its rows have more fields than its header",
            expected=f"{len(table.columns)} fields",
            found=str(len(table.columns) + table.index.nlevels),
            fix="Name every column, and end no row with a separator",
        )
    return table.rename(columns=lambda name: str(name).strip())


def _position_columns(path: pathlib.Path, found: list[str]) -> tuple[str, str]:
    for columns in (UM_COLUMNS, *PIXEL_COLUMNS):
        if all(column in found for column in columns):
            return columns
    choices = " or ".join(" and ".join(c) for c in (UM_COLUMNS, *PIXEL_COLUMNS))
    raise errors.SlideError(
        f"{path.name} has no columns of positions",
        expected=f"{choices} in its header",
        found=", ".join(found),
        fix="Name the columns so: *_um are micrometres, the others level-0 pixels",
    )


def _read_names(path: pathlib.Path, table: pd.DataFrame) -> tuple[str, ...]:
    column = next((name for name in NAMES if name in table.columns), None)
    if column is None:
        return tuple(f"p{row:06d}" for row in range(len(table)))
    names = [str(name).strip() for name in table[column]]
    if "" in names:
        raise errors.SlideError(
            f"{path.name}: a point has no name",
            found=f"nothing under {column} in line {names.index('') + 2}",
            fix=f"Name it, or leave out the column {column}",
        )
    rows = {name: row for row, name in enumerate(names)}
    doubled = [name for row, name in enumerate(names) if rows[name] != row]
    if doubled:
        raise errors.SlideError(
            f"{path.name}: names of points are not unique",
            found=", ".join(dict.fromkeys(doubled[:3])),
            fix=f"Rename them, or leave out the column {column}",
        )
    return tuple(names)
