"""A grid of places over the tissue of an image that nothing was measured on.

Places lie as the spots of an array would, from the image's top left corner on, so that a place has
the same name whatever tissue is found. A place is kept by the share of its tile (the square of one
pitch around it) that is tissue: seen in a thumbnail, or outlined in a GeoJSON file.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from stemjax import errors
from stemjax.data import grids, images, points, tissue
from stemjax.foreign import json_text

MAX_GEOJSON_BYTES = 256_000_000
"""Largest file of outlines that is read. QuPath's of a slide's tissue have some hundred kB."""

_ACROSS = 8  # pixels of the thumbnail across a tile, where it does not get too large
_SMALLEST_PX, _LARGEST_PX = 500, 3000  # of the thumbnail; closing over fat goes by its size
_DEEPEST = 8  # geometry collections within each other
_FARTHEST = 1e7  # px: no image is as large
_GO_ON = (
    "Outline the tissue (in QuPath, say) and give the GeoJSON file: tissue=, --tissue FILE; or "
    "take the whole image: whole=True, --whole"
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tiles:
    """Places over the tissue of an image, row by row.

    Attributes:
      names: "12x7" for array column 12, row 7.
      array_xy: (column, row), as `stemjax.data.grids.grid_xy` counts them, float32 [l 2].
      pixel_xy: centres in level-0 pixels, float32 [l 2].
      share: of each tile that is tissue, float32 [l]; what lies beyond the image is none.
      notes: in words, how tissue was found, its share of the image, and how many tiles it makes.
    """

    names: tuple[str, ...]
    array_xy: Float[np.ndarray, "l 2"]
    pixel_xy: Float[np.ndarray, "l 2"]
    share: Float[np.ndarray, " l"]
    notes: tuple[str, ...]


def tissue_grid(
    image: images.SlideImage,
    mpp: float,
    *,
    pitch_um: float = 100.0,
    kind: grids.Kind = "square",
    min_tissue: float = 0.5,
    tissue_geojson: str | os.PathLike[str] | None = None,
    whole: bool = False,
) -> Tiles:
    """A grid of places over an image's tissue.

    Args:
      image: the H&E image.
      mpp: micrometres per level-0 pixel.
      pitch_um: distance between neighbouring places.
      kind: "square", or "hexagonal" as Visium's spots lie.
      min_tissue: least share of a tile that has to be tissue.
      tissue_geojson: outlines of the tissue, see `read_outlines`; by default it is looked for in a
        thumbnail (`stemjax.data.tissue.section_mask`).
      whole: take the whole image for tissue.

    Raises:
      ImageError: no tissue is found, no tile has enough of it, or the image is damaged.
      SlideError: the outlines cannot be read, or none lies on the image.
      PixelSizeError: ``mpp`` is no positive number.
      ConfigError: another argument cannot be used, or there would be more than `points.MOST` tiles.
    """
    _check(mpp, pitch_um, kind, min_tissue, whole and tissue_geojson is not None)
    array_xy, centre = _lay_out(image, mpp, pitch_um, kind)
    inside, notes = _find_tissue(image, mpp, pitch_um, tissue_geojson, whole)
    share = _shares(inside, image, centre, pitch_um / mpp)
    kept = share >= min_tissue
    if not kept.any():
        raise errors.ImageError(
            f"no tile of {image.source} has enough tissue",
            expected=f"tiles of {pitch_um:g} um ({pitch_um / mpp:,.0f} px) with at least "
            f"{min_tissue:.0%} tissue",
            found=f"at most {share.max():.0%} in any of {len(share):,}",
            fix=f"Take a smaller pitch, or check the pixel size ({mpp:g} um). {_GO_ON}",
        )
    cells = array_xy[kept].astype(int).tolist()
    least = f"with at least {min_tissue:.0%} tissue" if not whole else "in the image"
    return Tiles(
        names=tuple(f"{column}x{row}" for column, row in cells),
        array_xy=array_xy[kept].astype(np.float32),
        pixel_xy=centre[kept].astype(np.float32),
        share=share[kept].astype(np.float32),
        notes=(*notes, f"{len(cells):,} {kind} tiles {pitch_um:g} um apart {least}"),
    )


def read_outlines(path: str | os.PathLike[str]) -> tuple[list[list[np.ndarray]], tuple[str, ...]]:
    """The polygons of a GeoJSON file of annotations, in level-0 pixels.

    A FeatureCollection, a feature, a list of features (QuPath's), or a bare geometry. Polygons,
    MultiPolygons and collections of them are taken, whatever class they have; points and lines
    outline nothing and are left out.

    Returns:
      Polygons, each a list of rings [n 2] of (x, y): the outline and its holes; and notes.

    Raises:
      SlideError: the file is missing, too large, damaged or no GeoJSON, or has no polygon.
    """
    path = pathlib.Path(path)
    found: collections.Counter[str] = collections.Counter()
    polygons: list[list[np.ndarray]] = []
    try:
        if (size := path.stat().st_size) > MAX_GEOJSON_BYTES:
            raise ValueError(f"{size:,} bytes, above {MAX_GEOJSON_BYTES:,}")
        for name, geometry in _geometries(json_text.parse(path.read_bytes())):
            made = [
                [_ring(ring) for ring in polygon]
                for polygon in _polygons(geometry, 0)
                if isinstance(polygon, list)
            ]
            polygons += [polygon for polygon in made if polygon]
            found[name] += len(made)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise errors.SlideError(
            f"{path.name} cannot be used as outlines of tissue",
            expected="GeoJSON with polygons in level-0 pixels",
            found=f"{type(error).__name__}: {error}",
            fix="Export the annotations again, as GeoJSON",
        ) from error
    if not polygons:
        raise errors.SlideError(
            f"{path.name} outlines no tissue",
            expected="polygons",
            found="points or lines alone" if found else "no feature",
            fix="Draw closed outlines around the tissue, and export them as GeoJSON",
        )
    named = ", ".join(f"{name or 'of no class'} {n}" for name, n in sorted(found.items()) if n)
    return polygons, (f"tissue is what {path.name} outlines, polygons: {named}",)


def fill(
    polygons: list[list[np.ndarray]], size: tuple[int, int], scale: tuple[float, float]
) -> Bool[np.ndarray, "h w"]:
    """Which pixels have their centre in any of the polygons; holes are not in them.

    Args:
      polygons: rings [n 2] of (x, y), see `read_outlines`.
      size: rows and columns.
      scale: pixels per unit of x and of y.
    """
    height, width = size
    result = np.zeros(size, bool)
    for rings in polygons:
        start = np.concatenate(rings) * scale
        end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]) * scale
        low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
        # Rows whose centre line y = row + .5 crosses an edge: low <= y < high.
        first = np.clip(np.ceil(low - 0.5), 0, height).astype(int)
        count = np.clip(np.ceil(high - 0.5), 0, height).astype(int) - first
        edge = np.repeat(np.arange(len(first)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        if not len(row):
            continue
        x0, y0 = start[edge].T
        x1, y1 = end[edge].T
        x = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
        top, bottom = int(row.min()), int(row.max()) + 1
        # A pixel is inside where an odd number of edges lies left of its centre.
        crossed = np.bincount(
            (row - top) * (width + 1) + column, minlength=(bottom - top) * (width + 1)
        ).reshape(bottom - top, width + 1)
        result[top:bottom] |= (np.cumsum(crossed, axis=1)[:, :width] % 2).astype(bool)
    return result


def _check(mpp: float, pitch_um: float, kind: str, min_tissue: float, both: bool) -> None:
    if not (math.isfinite(mpp) and mpp > 0):
        raise errors.PixelSizeError(
            "tiles need the pixel size of the image", expected="um above 0", found=str(mpp)
        )
    rules = {
        "pitch_um": (math.isfinite(pitch_um) and pitch_um > 0, "um above 0", pitch_um),
        "kind": (kind in ("square", "hexagonal"), "square or hexagonal", kind),
        "min_tissue": (0 < min_tissue <= 1, "a share above 0, at most 1", min_tissue),
        "whole": (not both, "either the whole image or outlines of its tissue", "both"),
    }
    for field, (holds, expected, found) in rules.items():
        if not holds:
            raise errors.ConfigError(
                f"tiles over tissue: {field} cannot be used", expected=expected, found=str(found)
            )


def _lay_out(
    image: images.SlideImage, mpp: float, pitch_um: float, kind: grids.Kind
) -> tuple[np.ndarray, np.ndarray]:
    """(column, row) and centre in pixels of every place of the grid whose centre is in the image.

    The first centre is half a pitch from both edges, so that its tile is in the image.
    """
    size = np.array([image.width, image.height])
    step = np.array([1.0, 1.0 if kind == "square" else np.sqrt(0.75)]) * pitch_um / mpp
    # One more than fit: those whose centre is beyond the image are taken out below.
    columns, rows = (np.floor(size / step) + 1).tolist()
    if columns * rows > points.MOST:
        raise errors.ConfigError(
            f"there would be too many tiles on {image.source}",
            expected=f"at most {points.MOST:,}",
            found=f"{columns * rows:,.0f} of {pitch_um:g} um, at a pixel size of {mpp:g} um",
            fix="Take a larger pitch, or check the pixel size",
        )
    array_xy, _ = grids.grid_xy(kind, int(rows), int(columns), pitch_um)
    array_xy = array_xy.astype(np.float64)
    # Visium counts every second column in a row.
    step = step * [0.5 if kind == "hexagonal" else 1.0, 1.0]
    centre = pitch_um / mpp / 2 + array_xy * step
    inside = (centre < size).all(axis=1)
    if not inside.any():
        raise errors.ConfigError(
            f"no tile fits on {image.source}",
            expected=f"an image larger than half a pitch, {pitch_um / mpp / 2:,.0f} px",
            found=f"{image.width:,} x {image.height:,} px",
            fix="Take a smaller pitch, or check the pixel size",
        )
    return array_xy[inside], centre[inside]


def _find_tissue(
    image: images.SlideImage,
    mpp: float,
    pitch_um: float,
    outlines: str | os.PathLike[str] | None,
    whole: bool,
) -> tuple[Bool[np.ndarray, "h w"], tuple[str, ...]]:
    """Which parts of the image are tissue, on cells of one size, and notes."""
    if whole:
        return np.ones((1, 1), bool), ("the whole image is taken for tissue",)
    longest = max(image.width, image.height)
    if outlines is not None:
        scale = min(1.0, _LARGEST_PX / longest)
        size = max(1, round(image.height * scale)), max(1, round(image.width * scale))
        polygons, notes = read_outlines(outlines)
        inside = fill(polygons, size, (size[1] / image.width, size[0] / image.height))
        if not inside.any():
            corners = np.concatenate([ring for polygon in polygons for ring in polygon])
            low, high = corners.min(axis=0), corners.max(axis=0)
            raise errors.SlideError(
                f"{pathlib.Path(outlines).name} outlines nothing on {image.source}",
                expected=f"level-0 pixels, up to {image.width:,} x {image.height:,}",
                found=f"x from {low[0]:g} to {high[0]:g}, y from {low[1]:g} to {high[1]:g}",
                fix="Check that the outlines are of this image, and in pixels of full resolution",
            )
    else:
        wanted = math.ceil(longest * mpp / pitch_um * _ACROSS)
        max_px = min(max(wanted, _SMALLEST_PX), _LARGEST_PX)
        inside = tissue.section_mask(image.thumbnail(max_px)[0])
        notes = ("tissue is what looks stained in a thumbnail",)
        if not inside.any():
            raise errors.ImageError(
                f"no tissue is seen in {image.source}",
                expected="a section stained with haematoxylin and eosin",
                found="glass, or ink alone",
                fix=_GO_ON,
            )
    return inside, (*notes, f"{inside.mean():.1%} of the image is tissue")


def _shares(
    inside: Bool[np.ndarray, "h w"], image: images.SlideImage, centre: np.ndarray, side: float
) -> Float[np.ndarray, " l"]:
    """The share of squares that is inside, exactly: their borders cut through cells of the mask."""
    height, width = inside.shape
    total = np.zeros((height + 1, width + 1))
    total[1:, 1:] = inside.cumsum(axis=0).cumsum(axis=1)
    scale = np.array([width / image.width, height / image.height])
    low, high = (np.clip((centre + way * side / 2) * scale, 0, [width, height]) for way in (-1, 1))

    def below(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # Between whole cells the integral is bilinear: the mask is constant in a cell.
        return ndimage.map_coordinates(total, [y, x], order=1, mode="nearest")

    area = (
        below(high[:, 0], high[:, 1])
        - below(low[:, 0], high[:, 1])
        - below(high[:, 0], low[:, 1])
        + below(low[:, 0], low[:, 1])
    )
    return np.clip(area / (side**2 * scale.prod()), 0.0, 1.0)


def _geometries(data: Any) -> Iterator[tuple[str, Any]]:
    """Class and geometry of each feature."""
    kind = data.get("type") if isinstance(data, dict) else None
    if isinstance(data, list) or kind == "FeatureCollection":
        features = data if isinstance(data, list) else data["features"]
        yield from itertools.chain.from_iterable(_geometries(feature) for feature in features)
    elif kind == "Feature":
        properties = data.get("properties") or {}
        label = properties.get("classification") if isinstance(properties, dict) else None
        name = label.get("name") if isinstance(label, dict) else label
        yield str(name or "")[:40], data["geometry"]
    elif kind is not None:
        yield "", data
    else:
        raise ValueError(f"{type(data).__name__} instead of a feature")


def _polygons(geometry: Any, depth: int) -> Iterator[Any]:
    """The coordinates of the polygons of a geometry."""
    if geometry is None:
        return
    if depth > _DEEPEST:
        raise ValueError("collections within collections")
    kind = geometry["type"]
    if kind == "Polygon":
        yield geometry["coordinates"]
    elif kind == "MultiPolygon":
        yield from geometry["coordinates"]
    elif kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _polygons(part, depth + 1)
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise ValueError(f"a geometry of type {str(kind)[:40]!r}")


def _ring(coordinates: Any) -> np.ndarray:
    ring = np.array([point[:2] for point in coordinates], np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3:
        raise ValueError("a ring of fewer than three points")
    if not (np.abs(ring) < _FARTHEST).all():
        raise ValueError(f"a coordinate that is not finite, or {_FARTHEST:,.0f} or more")
    return ring
