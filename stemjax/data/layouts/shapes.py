"""Shapes of a SpatialData store: where its spots are, and how large.

They lie in ``shapes/{name}/shapes.parquet`` (GeoParquet): the column ``geometry`` as WKB (or as
GeoArrow, of points), ``radius`` of circles, and the index that tables refer to. Points and polygons
of one ring are read; a polygon, such as a bin of Visium HD, counts as the circle of its centre
whose diameter is the square root of its area. Source: OGC Simple Features, well-known binary.
"""

from __future__ import annotations

import dataclasses
import pathlib
import struct
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from stemjax import errors
from stemjax.data.layouts import parquet, visium_array
from stemjax.foreign import json_text

_POINT, _POLYGON = 1, 3
_POINT_BYTES = 21  # byte order, kind, x, y


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Circles in the element's own coordinates.

    Attributes:
      path: the file read.
      index: what tables call them.
      xy: their centres [l 2].
      diameter: their diameters [l].
    """

    path: pathlib.Path
    index: pd.Index
    xy: Float[np.ndarray, "l 2"]
    diameter: Float[np.ndarray, " l"]


def read_shapes(element: pathlib.Path) -> Shapes:
    """The circles of a shapes element.

    Raises:
      SlideError: the file is missing or damaged, or holds other geometries.
    """
    path = element / "shapes.parquet"
    if not path.is_file() and element.is_dir():
        raise errors.SlideError(
            f"{element} has no shapes.parquet",
            expected="shapes of spatialdata 0.1 or later",
            found=", ".join(sorted(p.name for p in element.iterdir())[:8]) or "an empty folder",
            fix="Read and write the store with a newer spatialdata",
        )
    table = parquet.read_columns(path, None)
    try:
        index = _index(table)
        geometry = table["geometry"].combine_chunks()
        if str(geometry.type).startswith("struct"):
            xy = np.stack([geometry.field(axis).to_numpy(False) for axis in "xy"], axis=1)
            xy, side = xy.astype(np.float64), None
        else:
            xy, side = _parse([bytes(one) for one in geometry.to_pylist()])
        if "radius" in table.column_names:
            diameter = 2 * np.array(table["radius"].to_numpy(), np.float64)
        elif side is not None:
            diameter = side
        else:
            raise errors.SlideError(
                f"{path} has points without a radius",
                expected="circles: points, and their radius",
                found=", ".join(table.column_names[:8]),
                fix="Give shapes of spots, made by ShapesModel.parse(..., radius=)",
            )
        if not (np.abs(xy) < visium_array.MOST_PX).all() or not (diameter > 0).all():
            raise ValueError("a position that is no pixel, or a size that is not above 0")
    except errors.StemjaxError:
        raise
    except Exception as error:  # of pyarrow, struct and numpy: a kind of exception each
        raise errors.SlideError(
            f"{path} is damaged, or holds other shapes than circles and polygons of one ring",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            fix="Copy the store again, or give the shapes of spots",
        ) from error
    return Shapes(path=path, index=index, xy=xy, diameter=diameter)


def _index(table: Any) -> pd.Index:
    """The index as pandas wrote it: a column, or a range."""
    meta = json_text.parse((table.schema.metadata or {}).get(b"pandas", b"{}"))
    columns = meta.get("index_columns", [])
    if len(columns) == 1 and isinstance(columns[0], str):
        return pd.Index(table[columns[0]].to_pandas())
    if len(columns) == 1:
        start, step = int(columns[0]["start"]), int(columns[0]["step"])
        return pd.Index(start + step * np.arange(table.num_rows))
    return pd.RangeIndex(table.num_rows)


def _parse(blobs: list[bytes]) -> tuple[np.ndarray, np.ndarray | None]:
    """Centres [l 2] and, of polygons, the sides of squares of the same area [l]."""
    kinds = {_kind(blob) for blob in blobs}
    if kinds == {_POINT}:
        return np.array([_numbers(blob, 5, 2) for blob in blobs]).reshape(-1, 2), None
    if kinds != {_POLYGON}:
        raise ValueError(f"geometries of kinds {sorted(kinds)}")
    centres, sides = zip(*(_polygon(blob) for blob in blobs), strict=True)
    return np.array(centres), np.array(sides)


def _order(blob: bytes) -> str:
    return "<" if blob[0] == 1 else ">"


def _kind(blob: bytes) -> int:
    kind = struct.unpack_from(_order(blob) + "I", blob, 1)[0]
    if kind == _POINT and len(blob) != _POINT_BYTES:
        raise ValueError(f"a point of {len(blob)} bytes")
    return kind


def _numbers(blob: bytes, offset: int, n: int) -> np.ndarray:
    return np.frombuffer(blob, np.dtype(_order(blob) + "f8"), n, offset).astype(np.float64)


def _polygon(blob: bytes) -> tuple[np.ndarray, float]:
    """Centroid of a ring, and the square root of its area."""
    rings, n = struct.unpack_from(_order(blob) + "II", blob, 5)
    if rings != 1 or n < 4:
        raise ValueError(f"a polygon of {rings} rings, the first of {n} points")
    ring = _numbers(blob, 13, 2 * n).reshape(n, 2)
    origin = ring[0]
    a, b = ring[:-1] - origin, ring[1:] - origin  # about a corner: large pixels lose digits
    cross = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]
    area = cross.sum() / 2
    if not abs(area) > 0:
        raise ValueError("a polygon without area")
    return origin + ((a + b) * cross[:, None]).sum(axis=0) / (6 * area), float(abs(area) ** 0.5)
