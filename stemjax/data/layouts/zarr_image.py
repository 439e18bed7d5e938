"""Images in zarr stores (OME-NGFF 0.4 and 0.5), of which only the chunks needed are read."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stemjax import errors
from stemjax.data import images
from stemjax.foreign import stores

MAX_CHUNK_PIXELS = 64_000_000
"""Most pixels in one chunk, as in one tile of a TIFF: a read decodes whole chunks."""

_AXES = ["c", "y", "x"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Level:
    """One resolution: an array [c y x]."""

    array: Any
    width: int
    height: int


class ZarrImage:
    """A multiscale image [c y x] of 8-bit RGB or grey.

    Args:
      path: the folder of the image in its store.
      source: what errors call it.

    Raises:
      UnsafeFileError: a codec would run code, or a link leads out of the image's folder.
      ImageError: the metadata are damaged, the axes are others, the samples are no 8-bit RGB or
        grey, or the chunks have more than `MAX_CHUNK_PIXELS`.
    """

    def __init__(self, path: pathlib.Path, source: str) -> None:
        self._path, self.source = path, source
        stores.require_harmless_zarr(path)
        try:
            self._levels = tuple(_open_levels(path, source))
        except errors.StemjaxError:
            raise
        except Exception as error:  # zarr tells damage by all kinds of exceptions
            raise images.damaged(source, f"{type(error).__name__}: {str(error)[:200]}") from error
        self.width, self.height = self._levels[0].width, self._levels[0].height

    def __reduce__(self) -> tuple[Callable[..., ZarrImage], tuple[pathlib.Path, str]]:
        return ZarrImage, (self._path, self.source)

    def read(self, x: int, y: int, width: int, height: int) -> images.Pixels:
        """See `stemjax.data.images.SlideImage.read`."""
        return self._read(self._levels[0], x, y, width, height)

    def thumbnail(self, max_px: int) -> tuple[images.Pixels, float]:
        """See `stemjax.data.images.SlideImage.thumbnail`; from the smallest level large enough."""
        return images.from_levels(self._levels, self._read, max_px, self.source)

    def _read(self, level: _Level, x: int, y: int, width: int, height: int) -> np.ndarray:
        images.check_region(width, height, self.source)
        out = np.full((height, width, 3), images.WHITE, np.uint8)
        left, right = max(x, 0), min(x + width, level.width)
        top, bottom = max(y, 0), min(y + height, level.height)
        if left >= right or top >= bottom:
            return out
        try:
            found = np.asarray(level.array[:, top:bottom, left:right]).transpose(1, 2, 0)
        except Exception as error:  # zarr and its codecs tell damage by all kinds of exceptions
            raise images.damaged(self.source, f"{type(error).__name__}: {str(error)[:200]}") from (
                error
            )
        if found.shape[2] == 4:
            found = images.on_white(found)
        # One channel is repeated over the three colours.
        out[top - y : bottom - y, left - x : right - x] = found
        return out


def multiscale(path: pathlib.Path) -> Mapping[str, Any]:
    """The multiscale metadata of an image in a store.

    Raises:
      Exception: of any kind, where they are damaged.
    """
    import zarr

    attributes = zarr.open_group(str(path), mode="r", use_consolidated=False).attrs.asdict()
    # OME-NGFF 0.5 puts everything under one key.
    found: Any = attributes.get("ome", attributes)
    first = found["multiscales"][0]
    if not isinstance(first, Mapping):
        raise TypeError("multiscales is no list of objects")
    return first


def _open_levels(path: pathlib.Path, source: str) -> list[_Level]:
    import zarr

    meta = multiscale(path)
    axes = [axis["name"] for axis in meta["axes"]]
    if axes != _AXES:
        raise _unusable(source, f"axes {', '.join(map(str, axes))}")
    levels = []
    for number, dataset in enumerate(meta["datasets"]):
        name = str(dataset["path"])
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise _unusable(source, f"a level at {name!r}")
        if number == 0:
            _require_level_0(dataset.get("coordinateTransformations", []), source)
        array: Any = zarr.open_array(str(path / name), mode="r")
        if array.ndim != 3 or array.dtype != np.uint8 or array.shape[0] not in (1, 3, 4):
            raise _unusable(source, f"{array.dtype} of shape {tuple(array.shape)}")
        _, height, width = (int(n) for n in array.shape)
        if min(width, height) < 1:
            raise _unusable(source, f"{width} x {height} px")
        if array.chunks[1] * array.chunks[2] > MAX_CHUNK_PIXELS:
            raise errors.ImageError(
                f"{source} is stored in pieces too large to be read one at a time",
                expected=f"chunks of at most {MAX_CHUNK_PIXELS / 1e6:.0f} Mpx",
                found=f"chunks of {array.chunks[2]:,} x {array.chunks[1]:,} px",
                fix="Write it with smaller chunks",
            )
        levels.append(_Level(array=array, width=width, height=height))
    if not levels:
        raise _unusable(source, "no level")
    return levels


def _require_level_0(transformations: Any, source: str) -> None:
    """Level 0 has to be in pixels: others' stores may have micrometres there."""
    for one in transformations:
        values = one.get(one["type"], [])
        wanted = {"scale": 1.0, "translation": 0.0}.get(one["type"])
        if wanted is None or not np.array_equal(np.asarray(values, float), [wanted] * 3):
            raise _unusable(source, f"a level 0 with {one['type']} {values}")


def _unusable(source: str, found: str) -> errors.ImageError:
    return errors.ImageError(
        f"{source} cannot be used as an H&E image",
        expected="8-bit RGB or grey samples in the axes c, y, x, in pixels",
        found=found,
        fix="Write it as spatialdata's Image2DModel does",
    )
