"""Images read in parts: TIFF with tifffile, scanners' own formats with OpenSlide.

TIFF, BigTIFF, OME-TIFF and Aperio's SVS need nothing but this package. A pyramid may lie in pages,
sub-IFDs or series, and the three colours may be stored apart, as one plane each. What only
OpenSlide reads needs the extra ``wsi``, which is imported here alone, and when it is needed.

An OME-TIFF of fluorescence looks like an RGB image with its colours apart: names of channels tell
them apart, and no guess is made about more than three channels or more than 8 bits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tifffile

from stemjax import errors
from stemjax.data import claims, images

MAX_SEGMENT_PIXELS = 64_000_000
"""Most pixels in one tile or strip of a TIFF; tiles usually have 256 x 256 or 512 x 512."""

parse_xml = claims.parse_xml

BY_OPENSLIDE = (".ndpi", ".mrxs", ".scn", ".svslide", ".vms", ".vmu", ".bif")
"""Endings of the names of files that OpenSlide reads. Their first bytes are TIFF's or JPEG's."""

INSTALL = "pip install 'stemjax[wsi]'"
"""What brings OpenSlide."""

_APERIO_YCBCR = 33003  # JPEG 2000 whose header does not say that it is YCbCr
_MIN_IS_WHITE, _YCBCR = 0, 6
_PREMULTIPLIED, _STRAIGHT = 1, 2  # extra samples that are alpha
_COLOURS = {"red", "green", "blue", "r", "g", "b"}
_BAND = 16_000_000  # pixels that OpenSlide is asked for at once
UNREADABLE = (
    tifffile.TiffFileError,
    OSError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    RuntimeError,
    MemoryError,  # of a tile that claims to be larger than all memory
    struct.error,
)
"""What tifffile raises on damaged files."""


class _NeedsOpenSlideError(errors.ImageError):
    """A TIFF that is whole, but whose colours tifffile does not know."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Level:
    """One resolution of a TIFF: a grid of tiles or strips, once or once for each colour."""

    width: int
    height: int
    segment: tuple[int, int]  # rows, columns of a tile
    offsets: np.ndarray  # [planes tiles]
    counts: np.ndarray
    decode: Callable[[bytes, int], np.ndarray]  # of a plane's tile: [rows columns samples]
    to_rgb: Callable[[np.ndarray], np.ndarray]
    compression: int


class TiffImage:
    """A TIFF (also pyramidal, BigTIFF, OME-TIFF, SVS) of which only the tiles needed are read.

    Raises:
      ImageError: the file is damaged or incomplete, is no 8-bit RGB or grey image, or has tiles
        above `MAX_SEGMENT_PIXELS`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)
        self.source = self._path.name
        try:
            with tifffile.TiffFile(self._path) as tiff:
                # Before tifffile parses them.
                claims.require_few_pages(tiff, self.source)
                names = _channel_names(tiff.pages.first.description, self.source)
                self._levels = tuple(
                    _level(level, tiff, names, self.source) for level in tiff.series[0].levels
                )
        except UNREADABLE as error:
            raise images.damaged(self.source, str(error)) from error
        self.width, self.height = self._levels[0].width, self._levels[0].height
        size = self._path.stat().st_size
        for level in self._levels:
            # Not by their sum: a file may give numbers of which it overflows.
            beyond = (level.counts > size) | (level.offsets > size - level.counts)
            if beyond.any():
                end = int(level.offsets[beyond][0]) + int(level.counts[beyond][0])
                raise images.damaged(self.source, f"{size:,} of at least {end:,} bytes")
        if any(v.compression == _APERIO_YCBCR for v in self._levels):
            raise _NeedsOpenSlideError(
                f"{self.source} is compressed in a way that only OpenSlide decodes",
                found=f"compression {_APERIO_YCBCR}, YCbCr in JPEG 2000",
                fix=f"{INSTALL}, or convert the image to a pyramidal TIFF",
            )

    def __reduce__(self) -> tuple[Callable[..., TiffImage], tuple[pathlib.Path]]:
        return TiffImage, (self._path,)

    def read(self, x: int, y: int, width: int, height: int) -> images.Pixels:
        """See `images.SlideImage.read`."""
        return self._read(self._levels[0], x, y, width, height)

    def thumbnail(self, max_px: int) -> tuple[images.Pixels, float]:
        """See `images.SlideImage.thumbnail`; from the smallest level that is large enough."""
        return images.from_levels(self._levels, self._read, max_px, self.source)

    def _read(self, level: _Level, x: int, y: int, width: int, height: int) -> np.ndarray:
        images.check_region(width, height, self.source)
        out = np.full((height, width, 3), images.WHITE, np.uint8)
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
                    if not level.counts[:, index].all():
                        continue  # a tile left out of the file: background
                    planes = []
                    for plane, offsets in enumerate(level.offsets):
                        file.seek(offsets[index])
                        data = file.read(level.counts[plane, index])
                        planes.append(self._decode(level, data, index))
                    tile = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
                    corner = (column * columns, row * rows)
                    # The tiles at the right and lower edge are padded beyond the image.
                    tile = tile[: level.height - corner[1], : level.width - corner[0]]
                    images.paste(level.to_rgb(tile), corner, out, (x, y))
        return out

    def _decode(self, level: _Level, data: bytes, index: int) -> np.ndarray:
        try:
            return level.decode(data, index)
        except UNREADABLE as error:
            raise images.damaged(
                self.source, f"tile {index} cannot be decoded ({error})"
            ) from error


class OpenSlideImage:
    """A slide in a scanner's own format, read by OpenSlide.

    Level-0 pixels are OpenSlide's: where a scanner left parts of a slide out, they count, and are
    white. ``properties`` is what OpenSlide tells of the slide, such as "openslide.mpp-x".

    Raises:
      ImageError: OpenSlide is not installed, or the file is damaged, incomplete or of a kind that
        it does not know.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)
        self.source = self._path.name
        self._slide = self._open()
        # Kept: a handle that met an error answers not even these.
        self._sizes: tuple[tuple[int, int], ...] = self._slide.level_dimensions
        self._factors: tuple[float, ...] = self._slide.level_downsamples
        self.width, self.height = self._sizes[0]
        self.properties: Mapping[str, str] = dict(self._slide.properties)

    def __reduce__(self) -> tuple[Callable[..., OpenSlideImage], tuple[pathlib.Path]]:
        return OpenSlideImage, (self._path,)

    def read(self, x: int, y: int, width: int, height: int) -> images.Pixels:
        """See `images.SlideImage.read`."""
        return self._read(0, x, y, width, height)

    def thumbnail(self, max_px: int) -> tuple[images.Pixels, float]:
        """See `images.SlideImage.thumbnail`; from the smallest level that is large enough."""
        enough = [level for level, size in enumerate(self._sizes) if max(size) >= max_px]
        level = max(enough, default=0)
        columns, rows = self._sizes[level]
        read = functools.partial(self._read, level)
        pixels, scale = images.shrink(read, columns, rows, max_px, self.source)
        return pixels, scale * max(columns, rows) / max(self.width, self.height)

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        images.check_region(width, height, self.source)
        out = np.full((height, width, 3), images.WHITE, np.uint8)
        columns, rows = self._sizes[level]
        left, right = max(x, 0), min(x + width, columns)
        bottom = min(y + height, rows)
        if left >= right:
            return out
        step = max(1, _BAND // (right - left))
        for top in range(max(y, 0), bottom, step):
            size = (right - left, min(step, bottom - top))
            images.paste(self._region(level, (left, top), size), (left, top), out, (x, y))
        return out

    def _region(self, level: int, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """A rectangle inside a level, in that level's pixels."""
        factor = self._factors[level]
        place = (round(corner[0] * factor), round(corner[1] * factor))
        error_type = _import_openslide(self.source).OpenSlideError
        try:
            found = self._slide.read_region(place, level, size)
        except error_type:
            # After one error, of any thread, a handle answers nothing more: ask a fresh one.
            self._slide = fresh = self._open()
            try:
                found = fresh.read_region(place, level, size)
            except error_type as error:
                raise images.damaged(self.source, f"{error}, at {place}") from error
        return images.on_white(np.asarray(found))

    def _open(self) -> Any:
        library = _import_openslide(self.source)
        try:
            return library.OpenSlide(self._path)
        except (library.OpenSlideError, OSError) as error:
            beside = "the files beside it" if self._path.suffix.lower() in BY_OPENSLIDE else "it"
            raise errors.ImageError(
                f"{self.source} cannot be opened by OpenSlide",
                found=str(error),
                fix=f"Copy or download the image again, with {beside} (.mrxs has a folder of its "
                "name, .vms its JPEG files), or convert it to a pyramidal TIFF",
            ) from error


def open_tiff(path: str | os.PathLike[str]) -> TiffImage | OpenSlideImage:
    """A TIFF; by OpenSlide if it is Aperio's of a kind that tifffile does not decode.

    No other file that is refused here goes to OpenSlide, and none that is damaged: a size that
    makes no sense may make that library end the process.

    Raises:
      ImageError: the file is damaged, is no 8-bit RGB or grey image, or needs OpenSlide, which is
        not installed.
    """
    try:
        return TiffImage(path)
    except _NeedsOpenSlideError:
        return OpenSlideImage(path)


def _import_openslide(source: str) -> Any:
    try:
        import openslide
    except (ImportError, OSError) as error:  # OSError: the library behind it cannot be loaded
        raise errors.ImageError(
            f"{source} needs OpenSlide",
            found=f"it cannot be imported ({error})",
            fix=f"{INSTALL}, or convert the image to a pyramidal TIFF",
        ) from error
    return openslide


def _channel_names(description: str, source: str) -> tuple[str, ...]:
    """Names of the channels of an OME-TIFF's first image; none where it has none.

    All XML is looked at, for tifffile finds OME's by its end.
    """
    root = claims.parse_xml(description, source)
    image = None if root is None or "OME" not in root.tag else root.find("{*}Image")
    channels = [] if image is None else image.iterfind("{*}Pixels/{*}Channel")
    return tuple(name for channel in channels if (name := channel.get("Name", "").strip()))


def _level(
    series: tifffile.TiffPageSeries, tiff: tifffile.TiffFile, names: tuple[str, ...], source: str
) -> _Level:
    """The tiles of one resolution, ready to be decoded once the file is closed."""
    pages = [page for page in series.pages if page is not None]
    page = series.keyframe
    samples, height, width = page.samplesperpixel, page.imagelength, page.imagewidth
    apart = page.planarconfig != 1 and samples > 1
    stacked = len(pages) == 3 and samples == 1 and series.axes in ("CYX", "SYX")
    jpeg = page.compression in claims.JPEG
    usable = page.dtype == np.uint8 and samples in (1, 3, 4) and page.imagedepth == 1
    # Tiles come back as RGB (YCbCr only from JPEG); palettes and CMYK would look like it.
    usable &= page.photometric in (_MIN_IS_WHITE, 1, 2) or (page.photometric == _YCBCR and jpeg)
    usable &= math.prod(series.shape) == height * width * samples * (3 if stacked else 1)
    usable &= all(part.parent is tiff for part in pages)
    usable &= page.compression not in claims.UNSIZED
    foreign = [name for name in names if name.lower() not in _COLOURS]
    usable &= not (stacked and len(names) == 3 and foreign)
    if not usable:
        named = f", channels {', '.join(names[:6])}" if names else ""
        raise errors.ImageError(
            f"{source} cannot be used as an H&E image",
            expected="8-bit RGB or grey samples, in one image",
            found=f"axes {series.axes} of {series.shape}, {page.dtype}, photometric "
            f"{page.photometric}, compression {page.compression}{named}",
            fix="Convert it to 8-bit RGB; fluorescence and stacks of images cannot be used",
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
    parts = pages[: 3 if stacked else 1]
    planes = 3 if stacked else samples if apart else 1
    tiles = math.ceil(height / rows) * math.ceil(width / columns)
    places = [
        np.array([n for part in parts for n in getattr(part, field)], np.int64)
        for field in ("dataoffsets", "databytecounts")
    ]
    if any(len(place) != planes * tiles for place in places):
        raise images.damaged(source, f"places of {len(places[0]):,} of {planes * tiles:,} tiles")
    page_compression = int(page.compression)
    decode, photometric, extra = page.decode, page.photometric, tuple(page.extrasamples)
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if jpeg else {}

    def decode_plane(data: bytes, index: int) -> np.ndarray:
        stated = claims.stated_pixels(data, page_compression)
        if stated > 2 * rows * columns + 2**16:  # a little more than the tile is some writers' way
            raise ValueError(f"it says {stated:,} px, and has place for {rows * columns:,}")
        # tifffile asks for the number to know how high a last strip is: the same in every plane.
        tile = decode(data, index, **tables)[0]
        if tile is None:
            raise ValueError("it is empty")
        return tile[0]  # without the axis of depth

    def to_rgb(tile: np.ndarray) -> np.ndarray:
        if photometric == _MIN_IS_WHITE:
            tile = 255 - tile
        if tile.shape[2] == 1:
            return np.repeat(tile, 3, axis=2)
        if tile.shape[2] == 4 and extra[:1] in ((_PREMULTIPLIED,), (_STRAIGHT,)):
            return images.on_white(tile, premultiplied=extra[0] == _PREMULTIPLIED)
        return tile[:, :, :3]

    return _Level(
        width=width,
        height=height,
        segment=(rows, columns),
        offsets=places[0].reshape(planes, tiles),
        counts=places[1].reshape(planes, tiles),
        decode=decode_plane,
        to_rgb=to_rgb,
        compression=page_compression,
    )
