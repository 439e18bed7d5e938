"""Regions of a slide's image, in level-0 pixels, from a file of any kind or from memory.

JPEG and PNG cannot be read in parts: they are decoded once and kept. TIFF and scanners' own formats
are read tile by tile (`stemjax.data.wsi`), and a reduced level serves the thumbnail, so an image of
any size needs little memory. Files are told apart by their first bytes, not by their names, but for
scanners' formats that begin as a TIFF or a JPEG does. All images may be read from several threads
and may be pickled (a file is opened anew).
"""

from __future__ import annotations

import functools
import os
import pathlib
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from stemjax import errors

MAX_PIXELS = 500_000_000
"""Most pixels decoded at once: a whole JPEG or PNG, or one region. 500 Mpx take 1.5 GB as RGB.

A header may claim any size: the claim is compared with this before memory is taken. HER2ST's
images have 92 Mpx; larger ones belong in a tiled, pyramidal TIFF.
"""

PACKED_PIXELS, MOST_PACKED = 100_000_000, 150
"""Above so many pixels a JPEG or PNG has at least a byte for every `MOST_PACKED` of them.

Stained tissue on glass has about one for 5 to 30. A file that packs more is all of one colour, made
to fill the memory of whoever opens it.
"""

WHITE = 255
"""What lies outside an image, and behind its transparent parts."""

_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})

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
        check_region(width, height, self.source)
        out = np.full((height, width, 3), WHITE, np.uint8)
        paste(self._pixels, (0, 0), out, (x, y))
        return out

    def thumbnail(self, max_px: int) -> tuple[Pixels, float]:
        """See `SlideImage.thumbnail`."""
        return shrink(self.read, self.width, self.height, max_px, self.source)


class DecodedImage:
    """A JPEG or PNG file: the size is read at once, the pixels when they are first needed.

    An EXIF orientation is not applied: spot coordinates refer to the pixels as stored.
    Transparent parts are white.

    Raises:
      ImageError: the file is damaged, or has more than `MAX_PIXELS`.
      UnsafeFileError: it packs more pixels into a byte than an image of tissue does.
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
        size = self._path.stat().st_size
        if self.width * self.height > max(PACKED_PIXELS, MOST_PACKED * size):
            raise errors.UnsafeFileError(
                f"{self.source} is compressed as no image of tissue is",
                expected=f"at most {MOST_PACKED} px a byte",
                found=f"{self.width:,} x {self.height:,} px in {size:,} bytes",
                fix="Leave it out; if it is yours, convert it to a tiled, pyramidal TIFF",
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
            raise damaged(self.source, str(error)) from error

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
                raise damaged(self.source, str(error)) from error
            rgb: Image.Image = image
            if image.has_transparency_data:
                rgb = Image.new("RGBA", image.size, (WHITE,) * 3 + (255,))
                rgb.alpha_composite(image.convert("RGBA"))
            rgb = rgb if rgb.mode == "RGB" else rgb.convert("RGB")
            out = np.empty((self.height, self.width, 3), np.uint8)
            # In bands: np.asarray of the whole would hold the pixels twice more for a moment.
            for top in range(0, self.height, 1024):
                bottom = min(top + 1024, self.height)
                out[top:bottom] = np.asarray(rgb.crop((0, top, self.width, bottom)))
        return out


def open_image(path: str | os.PathLike[str]) -> SlideImage:
    """The image in a file.

    Returns:
      A `DecodedImage` for JPEG and PNG, a `wsi.TiffImage` for TIFF, OME-TIFF and SVS, and a
      `wsi.OpenSlideImage` for `wsi.BY_OPENSLIDE` and for a scanner's TIFF that only OpenSlide
      decodes.

    Raises:
      ImageError: the file is missing, of another kind, damaged or too large, or OpenSlide is needed
        and not installed.
      UnsafeFileError: it is made to fill the memory.
    """
    from stemjax.data import wsi  # which needs this module

    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.ImageError(
            f"there is no image {path}", fix="Check the path, or copy the image there"
        )
    if path.suffix.lower() in wsi.BY_OPENSLIDE:
        return wsi.OpenSlideImage(path)
    with path.open("rb") as file:
        magic = file.read(16)
    if magic.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        return DecodedImage(path, png=magic.startswith(b"\x89PNG"))
    if magic.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return wsi.open_tiff(path)
    raise errors.ImageError(
        f"{path.name} is no image that can be read",
        expected=f"JPEG, PNG or TIFF, or {' '.join(wsi.BY_OPENSLIDE)}",
        found=f"a file that starts with {magic[:8]!r}",
        fix="Convert it to a pyramidal TIFF or a JPEG",
    )


def damaged(source: str, found: str) -> errors.ImageError:
    """The error of a file that cannot be read as what it claims to be."""
    return errors.ImageError(
        f"{source} is damaged or incomplete",
        found=found,
        fix="Copy or download the image again",
    )


def check_region(width: int, height: int, source: str) -> None:
    """Checks the size of a region.

    Raises:
      ImageError: it is empty or above `MAX_PIXELS`.
    """
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise errors.ImageError(
            f"cannot read a region of {width:,} x {height:,} px of {source}",
            expected=f"between 1 px and {MAX_PIXELS / 1e6:,.0f} Mpx",
            fix="Ask for a smaller region, or for a thumbnail",
        )


def paste(
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


def on_white(pixels: UInt8[np.ndarray, "h w 4"], *, premultiplied: bool = False) -> Pixels:
    """RGB pixels laid over white by their alpha.

    Args:
      pixels: RGBA.
      premultiplied: whether the colours are multiplied by alpha already.
    """
    rgb, alpha = pixels[:, :, :3], pixels[:, :, 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    alpha = alpha.astype(np.uint16)
    over = rgb.astype(np.uint16) * (255 if premultiplied else alpha) + WHITE * (255 - alpha)
    return np.minimum((over + 127) // 255, 255).astype(np.uint8)


def shrink(
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


class Level(Protocol):
    """One resolution of an image."""

    @property
    def width(self) -> int:
        """Columns."""
        ...

    @property
    def height(self) -> int:
        """Rows."""
        ...


def from_levels[L: Level](
    levels: Sequence[L],
    read: Callable[[L, int, int, int, int], np.ndarray],
    max_px: int,
    source: str,
) -> tuple[np.ndarray, float]:
    """A thumbnail from the smallest level that is large enough, and its scale to level 0.

    Args:
      levels: level 0 first.
      read: reads a rectangle of a level.
      max_px: most pixels of its long side.
      source: what errors call the image.
    """
    enough = [level for level in levels if max(level.width, level.height) >= max_px]
    level = min(enough or levels[:1], key=lambda one: one.width)
    part = functools.partial(read, level)
    pixels, scale = shrink(part, level.width, level.height, max_px, source)
    whole = max(levels[0].width, levels[0].height)
    return pixels, scale * max(level.width, level.height) / whole
