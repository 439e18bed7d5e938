"""Regions of a slide's image, in level-0 pixels, from JPEG, PNG, TIFF or memory.

JPEG and PNG cannot be read in parts: they are decoded once and kept. TIFF is read tile by tile, and
a reduced level serves the thumbnail, so an image of any size needs little memory. Files are told
apart by their first bytes, not by their names. All images may be read from several threads and may
be pickled (a file is opened anew).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
import struct
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from stemjax import errors

MAX_PIXELS = 500_000_000
"""Most pixels decoded at once: a whole JPEG or PNG, or one region. 500 Mpx take 1.5 GB as RGB.

A header may claim any size: the claim is compared with this before memory is taken. HER2ST's
images have 92 Mpx; larger ones belong in a tiled, pyramidal TIFF.
"""

MAX_SEGMENT_PIXELS = 64_000_000
"""Most pixels in one tile or strip of a TIFF; tiles usually have 256 x 256 or 512 x 512."""

_JPEG_COMPRESSIONS = frozenset({6, 7, 33007, 34892})
_MIN_IS_WHITE, _YCBCR = 0, 6
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_WHITE = 255

type Pixels = UInt8[np.ndarray, "h w 3"]


class SlideImage(Protocol):
    """An image of which rectangles can be read, in level-0 pixels."""

    @property
    def width(self) -> int:
        """Columns of level 0."""
        ...

    @property
    def height(self) -> int:
        """Rows of level 0."""
        ...

    @property
    def source(self) -> str:
        """File name, or ``memory``."""
        ...

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """The rectangle whose left edge is column ``x`` and top edge row ``y``, uint8 RGB.

        What lies outside the image is white (255).

        Raises:
          ImageError: the rectangle is empty or above `MAX_PIXELS`, or the file is damaged there.
        """
        ...

    def thumbnail(self, max_px: int) -> tuple[Pixels, float]:
        """The whole image with a long side of at most ``max_px``, and its scale.

        The scale is thumbnail pixels per level-0 pixel, at most 1.
        """
        ...


class ArrayImage:
    """An image in memory: ``pixels`` are uint8 RGB, ``source`` is what errors call it.

    Raises:
      ImageError: ``pixels`` is not a non-empty uint8 array of shape [h w 3].
    """

    def __init__(self, pixels: np.ndarray, source: str = "memory") -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise errors.ImageError(
                f"the pixels of {source} cannot be used as an image",
                expected="a uint8 array of shape (height, width, 3)",
                found=f"{pixels.dtype} of shape {pixels.shape}",
                fix="Convert them to 8-bit RGB",
            )
        self.height, self.width = pixels.shape[:2]
        self.source = source
        self._pixels = pixels

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """See `SlideImage.read`; a copy."""
        _check_region(width, height, self.source)
        out = np.full((height, width, 3), _WHITE, np.uint8)
        _paste(self._pixels, (0, 0), out, (x, y))
        return out

    def thumbnail(self, max_px: int) -> tuple[Pixels, float]:
        """See `SlideImage.thumbnail`."""
        return _shrink(self.read, self.width, self.height, max_px, self.source)


class DecodedImage:
    """A JPEG or PNG file: the size is read at once, the pixels when they are first needed.

    An EXIF orientation is not applied: spot coordinates refer to the pixels as stored.
    Transparent parts are white.

    Raises:
      ImageError: the file is damaged, or has more than `MAX_PIXELS`.
    """

    def __init__(self, path: str | os.PathLike[str], *, png: bool) -> None:
        self._path, self._png = pathlib.Path(path), png
        self.source = self._path.name
        self._lock = threading.Lock()
        self._decoded: ArrayImage | None = None
        with self._open() as image:
            self.width, self.height = image.size
            if image.mode not in _MODES:
                raise errors.ImageError(
                    f"{self.source} cannot be used as an H&E image",
                    expected="8-bit RGB or grey samples",
                    found=f"samples of mode {image.mode}",
                    fix="Convert it to 8-bit RGB",
                )
        if self.width * self.height > MAX_PIXELS:
            raise errors.ImageError(
                f"{self.source} is too large to be decoded whole",
                expected=f"at most {MAX_PIXELS / 1e6:,.0f} Mpx",
                found=f"{self.width:,} x {self.height:,} px",
                fix="Convert it to a tiled, pyramidal TIFF, which is read in parts",
            )

    def __reduce__(self) -> tuple[Callable[..., SlideImage], tuple[pathlib.Path]]:
        return open_image, (self._path,)

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """See `SlideImage.read`."""
        return self._pixels().read(x, y, width, height)

    def thumbnail(self, max_px: int) -> tuple[Pixels, float]:
        """See `SlideImage.thumbnail`."""
        return self._pixels().thumbnail(max_px)

    def _open(self) -> Image.Image:
        # The plugin's class instead of Image.open: Image.open warns above 89 Mpx and refuses above
        # 179 Mpx, and its limit is a global of the process that is not ours to change.
        plugin = PngImagePlugin.PngImageFile if self._png else JpegImagePlugin.JpegImageFile
        try:
            return plugin(self._path)
        except (OSError, SyntaxError, ValueError, struct.error, UnidentifiedImageError) as error:
            raise _damaged(self.source, str(error)) from error

    def _pixels(self) -> ArrayImage:
        with self._lock:
            if self._decoded is None:
                self._decoded = ArrayImage(self._decode(), self.source)
            return self._decoded

    def _decode(self) -> np.ndarray:
        with self._open() as image:
            try:
                image.load()
            except (OSError, SyntaxError, ValueError, struct.error) as error:
                raise _damaged(self.source, str(error)) from error
            rgb: Image.Image = image
            if image.has_transparency_data:
                rgb = Image.new("RGBA", image.size, (_WHITE,) * 3 + (255,))
                rgb.alpha_composite(image.convert("RGBA"))
            rgb = rgb if rgb.mode == "RGB" else rgb.convert("RGB")
            out = np.empty((self.height, self.width, 3), np.uint8)
            # In bands: np.asarray of the whole would hold the pixels twice more for a moment.
            for top in range(0, self.height, 1024):
                bottom = min(top + 1024, self.height)
                out[top:bottom] = np.asarray(rgb.crop((0, top, self.width, bottom)))
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Level:
    """One resolution of a TIFF: a grid of tiles or strips."""

    width: int
    height: int
    segment: tuple[int, int]  # rows, columns of a tile
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    decode: Callable[[bytes, int], np.ndarray]


class TiffImage:
    """A TIFF (also pyramidal, BigTIFF, SVS) of which only the tiles needed are read.

    Raises:
      ImageError: the file is damaged or incomplete, is no 8-bit RGB or grey image, or has tiles
        above `MAX_SEGMENT_PIXELS`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)
        self.source = self._path.name
        try:
            with tifffile.TiffFile(self._path) as tiff:
                pages = [level.keyframe for level in tiff.series[0].levels]
                self._levels = tuple(_level(page, self.source) for page in pages)
        except (tifffile.TiffFileError, OSError, ValueError, IndexError, struct.error) as error:
            raise _damaged(self.source, str(error)) from error
        self.width, self.height = self._levels[0].width, self._levels[0].height
        size = self._path.stat().st_size
        end = max(o + c for v in self._levels for o, c in zip(v.offsets, v.counts, strict=True))
        if end > size:
            raise _damaged(self.source, f"{size:,} of at least {end:,} bytes")

    def __reduce__(self) -> tuple[Callable[..., TiffImage], tuple[pathlib.Path]]:
        return TiffImage, (self._path,)

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """See `SlideImage.read`."""
        return self._read(self._levels[0], x, y, width, height)

    def thumbnail(self, max_px: int) -> tuple[Pixels, float]:
        """See `SlideImage.thumbnail`; from the smallest level that is large enough."""
        enough = [v for v in self._levels if max(v.width, v.height) >= max_px]
        level = min(enough or self._levels[:1], key=lambda v: v.width)
        read = functools.partial(self._read, level)
        pixels, scale = _shrink(read, level.width, level.height, max_px, self.source)
        return pixels, scale * max(level.width, level.height) / max(self.width, self.height)

    def _read(self, level: _Level, x: int, y: int, width: int, height: int) -> np.ndarray:
        _check_region(width, height, self.source)
        out = np.full((height, width, 3), _WHITE, np.uint8)
        left, right = max(x, 0), min(x + width, level.width)
        top, bottom = max(y, 0), min(y + height, level.height)
        if left >= right or top >= bottom:
            return out
        rows, columns = level.segment
        per_row = math.ceil(level.width / columns)
        # Opened for each region: no handle is shared between threads; 20 us beside the decoding.
        with self._path.open("rb") as file:
            for row in range(top // rows, (bottom - 1) // rows + 1):
                for column in range(left // columns, (right - 1) // columns + 1):
                    index = row * per_row + column
                    if not level.counts[index]:
                        continue  # a tile left out of the file: background
                    file.seek(level.offsets[index])
                    tile = self._decode(level, file.read(level.counts[index]), index)
                    corner = (column * columns, row * rows)
                    # The tiles at the right and lower edge are padded beyond the image.
                    tile = tile[: level.height - corner[1], : level.width - corner[0]]
                    _paste(tile, corner, out, (x, y))
        return out

    def _decode(self, level: _Level, data: bytes, index: int) -> np.ndarray:
        try:
            return level.decode(data, index)
        except (tifffile.TiffFileError, OSError, ValueError, RuntimeError) as error:
            raise _damaged(self.source, f"tile {index} cannot be decoded ({error})") from error


def open_image(path: str | os.PathLike[str]) -> SlideImage:
    """The image in a file: `TiffImage` for TIFF, `DecodedImage` for JPEG and PNG.

    Raises:
      ImageError: the file is missing, of another kind, damaged or too large.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.ImageError(
            f"there is no image {path}", fix="Check the path, or copy the image there"
        )
    with path.open("rb") as file:
        magic = file.read(16)
    if magic.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        return DecodedImage(path, png=magic.startswith(b"\x89PNG"))
    if magic.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImage(path)
    raise errors.ImageError(
        f"{path.name} is no image that can be read",
        expected="JPEG, PNG or TIFF",
        found=f"a file that starts with {magic[:8]!r}",
        fix="Convert it to a pyramidal TIFF or a JPEG",
    )


def _level(page: tifffile.TiffPage, source: str) -> _Level:
    """The tiles of one page, ready to be decoded once the file is closed."""
    samples, height, width = page.samplesperpixel, page.imagelength, page.imagewidth
    jpeg = page.compression in _JPEG_COMPRESSIONS
    usable = page.dtype == np.uint8 and samples in (1, 3, 4) and page.imagedepth == 1
    # Tiles come back as RGB (YCbCr only from JPEG); palettes and CMYK would look like it.
    usable &= page.photometric in (_MIN_IS_WHITE, 1, 2) or (page.photometric == _YCBCR and jpeg)
    if not usable or (page.planarconfig != 1 and samples > 1):
        raise errors.ImageError(
            f"{source} cannot be used as an H&E image",
            expected="8-bit RGB or grey samples, interleaved",
            found=f"{samples} samples of {page.dtype}, photometric {page.photometric}, "
            f"planar configuration {page.planarconfig}",
            fix="Convert it to 8-bit RGB",
        )
    rows = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
    columns = page.tilewidth if page.is_tiled else width
    if rows * columns > MAX_SEGMENT_PIXELS:
        raise errors.ImageError(
            f"{source} is stored in pieces too large to be read one at a time",
            expected=f"tiles of at most {MAX_SEGMENT_PIXELS / 1e6:.0f} Mpx",
            found=f"tiles or strips of {columns:,} x {rows:,} px",
            fix="Convert it to a tiled, pyramidal TIFF",
        )
    decode = page.decode
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if jpeg else {}

    def decode_rgb(data: bytes, index: int) -> np.ndarray:
        tile = decode(data, index, **tables)[0]
        if tile is None:
            raise ValueError("it is empty")
        tile = tile[0]  # the axis of depth
        if samples == 1:
            if page.photometric == _MIN_IS_WHITE:
                tile = 255 - tile
            return np.repeat(tile, 3, axis=2)
        return tile[:, :, :3]

    return _Level(
        width=width,
        height=height,
        segment=(rows, columns),
        offsets=tuple(page.dataoffsets),
        counts=tuple(page.databytecounts),
        decode=decode_rgb,
    )


def _damaged(source: str, found: str) -> errors.ImageError:
    return errors.ImageError(
        f"{source} is damaged or incomplete",
        found=found,
        fix="Copy or download the image again",
    )


def _check_region(width: int, height: int, source: str) -> None:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise errors.ImageError(
            f"cannot read a region of {width:,} x {height:,} px of {source}",
            expected=f"between 1 px and {MAX_PIXELS / 1e6:,.0f} Mpx",
            fix="Ask for a smaller region, or for a thumbnail",
        )


def _paste(
    tile: np.ndarray, tile_xy: tuple[int, int], out: np.ndarray, out_xy: tuple[int, int]
) -> None:
    """Copies the common part of two rectangles of the plane from ``tile`` to ``out``."""
    left, top = max(tile_xy[0], out_xy[0]), max(tile_xy[1], out_xy[1])
    right = min(tile_xy[0] + tile.shape[1], out_xy[0] + out.shape[1])
    bottom = min(tile_xy[1] + tile.shape[0], out_xy[1] + out.shape[0])
    if left >= right or top >= bottom:
        return
    out[top - out_xy[1] : bottom - out_xy[1], left - out_xy[0] : right - out_xy[0]] = tile[
        top - tile_xy[1] : bottom - tile_xy[1], left - tile_xy[0] : right - tile_xy[0]
    ]


def _shrink(
    read: Callable[[int, int, int, int], np.ndarray],
    width: int,
    height: int,
    max_px: int,
    source: str,
) -> tuple[np.ndarray, float]:
    """An area average of the whole by a whole factor, band by band, then a resize to size."""
    if max_px < 1:
        raise errors.ImageError(
            f"cannot make a thumbnail of {source} with {max_px} px", fix="Ask for at least 1 px"
        )
    scale = min(1.0, max_px / max(width, height))
    factor = max(1, max(width, height) // max_px)
    band = factor * max(1, 4_000_000 // (width * factor))
    parts = []
    for top in range(0, height, band):
        rows = read(0, top, width, min(band, height - top))
        parts.append(np.asarray(Image.fromarray(rows).reduce(factor)))
    pixels = Image.fromarray(np.concatenate(parts))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # The box ends where the image does: the last averaged column may be a partial one.
    box = (0, 0, width / factor, height / factor)
    return np.array(pixels.resize(size, Image.Resampling.LANCZOS, box=box)), scale
