"""Coordinate transformations of SpatialData elements, as far as x and y are scaled and shifted.

An element's metadata list a transformation to each coordinate system it is in. Source: the
coordinate transformations of OME-NGFF, as spatialdata writes them.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from stemjax import errors
from stemjax.data.layouts import visium_array

MOST_SCALE = 1e6
"""Largest ratio of the units of two coordinate systems: nanometres to millimetres."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed:
    """A map of (x, y): scaled in each direction, then shifted."""

    scale: tuple[float, float]
    shift: tuple[float, float]

    @property
    def factor(self) -> float:
        """What lengths are multiplied by: the geometric mean of both scales."""
        return math.sqrt(self.scale[0] * self.scale[1])

    def apply(self, xy: Float[np.ndarray, "l 2"]) -> Float[np.ndarray, "l 2"]:
        """The points where they are placed."""
        return xy * np.array(self.scale) + np.array(self.shift)


_IDENTITY = Placed(scale=(1.0, 1.0), shift=(0.0, 0.0))


def read(element: pathlib.Path) -> dict[str, Any]:
    """The transformations of an element, by the coordinate system they lead to.

    Raises:
      SlideError: the metadata are damaged.
    """
    import zarr

    try:
        group = zarr.open_group(str(element), mode="r", use_consolidated=False)
        meta: Any = group.attrs.asdict()
        meta = meta.get("ome", meta)
        if "multiscales" in meta:
            meta = meta["multiscales"][0]
        return {str(one["output"]["name"]): one for one in meta["coordinateTransformations"]}
    except Exception as error:  # zarr tells damage by all kinds of exceptions
        raise errors.SlideError(
            f"{element}: its coordinate transformations are damaged or missing",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            fix="Copy the store again",
        ) from error


def between(source: Mapping[str, Any], target: Mapping[str, Any], names: tuple[str, str]) -> Placed:
    """The map from one element's coordinates to another's, through a system that both are in.

    Args:
      source: transformations of the element whose points are taken.
      target: transformations of the element they are taken to.
      names: what errors call the two.

    Raises:
      SlideError: they share no coordinate system, or a transformation is not known.
    """
    shared = [system for system in target if system in source]
    if not shared:
        raise errors.SlideError(
            f"{names[0]} and {names[1]} share no coordinate system",
            expected="one that both are in",
            found=f"{', '.join(source) or 'none'}; and {', '.join(target) or 'none'}",
            fix="Set a transformation of both to one system (set_transformation)",
        )
    system = "global" if "global" in shared else shared[0]
    there = _placed(source[system], names[0])
    back = _placed(target[system], names[1])
    if not (_sound(there) and _sound(back)):
        raise errors.SlideError(
            f"{names[0]} or {names[1]}: a coordinate transformation is damaged",
            expected=f"scales from {1 / MOST_SCALE:g} to {MOST_SCALE:g}",
            found=f"{there} and {back}",
            fix="Copy the store again",
        )
    scale = tuple(a / b for a, b in zip(there.scale, back.scale, strict=True))
    shift = tuple((a - b) / s for a, b, s in zip(there.shift, back.shift, back.scale, strict=True))
    return Placed(scale=(scale[0], scale[1]), shift=(shift[0], shift[1]))


def _sound(placed: Placed) -> bool:
    """Whether numbers are such as images have, and no products of damage."""
    scales = all(1 / MOST_SCALE <= one <= MOST_SCALE for one in placed.scale)
    return scales and all(abs(one) < visium_array.MOST_PX for one in placed.shift)


def _placed(meta: Any, name: str) -> Placed:
    try:
        kind = meta["type"]
        if kind == "identity":
            return _IDENTITY
        if kind == "sequence":
            placed = _IDENTITY
            for one in meta["transformations"]:
                placed = _after(placed, _placed(one, name))
            return placed
        if kind in ("scale", "translation"):
            x, y = _xy(meta, meta[kind])
            if kind == "translation":
                return Placed(scale=(1.0, 1.0), shift=(x, y))
            if x > 0 and y > 0 and max(x, y) < 1.2 * min(x, y):
                return Placed(scale=(x, y), shift=(0.0, 0.0))
            kind = f"scale of {x:g} by {y:g}"
    except errors.StemjaxError:
        raise
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise errors.SlideError(
            f"{name}: a coordinate transformation is damaged",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            fix="Copy the store again",
        ) from error
    raise errors.SlideError(
        f"{name}: a coordinate transformation of a kind that is not read",
        expected="identity, scale (nearly equal in x and y), translation, or a sequence of these",
        found=str(kind)[:100],
        fix="Apply it first: spatialdata's transform_element_to_coordinate_system",
    )


def _after(first: Placed, then: Placed) -> Placed:
    scale = [a * b for a, b in zip(first.scale, then.scale, strict=True)]
    shift = [a * s + b for a, s, b in zip(first.shift, then.scale, then.shift, strict=True)]
    return Placed(scale=(scale[0], scale[1]), shift=(shift[0], shift[1]))


def _xy(meta: Mapping[str, Any], values: Sequence[Any]) -> tuple[float, float]:
    """The numbers of the axes x and y, in whatever order the axes come."""
    axes = [axis["name"] for axis in meta["input"]["axes"]]
    if len(axes) != len(values):
        raise ValueError(f"{len(values)} numbers for the axes {', '.join(axes)}")
    x, y = (float(values[axes.index(axis)]) for axis in ("x", "y"))
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"{x}, {y}")
    return x, y
