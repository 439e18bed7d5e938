"""Made images of slides: painted sections with known outlines, and files of the common kinds."""

from __future__ import annotations

import functools
import pathlib

import numpy as np
import tifffile
from PIL import Image, ImageDraw

from stemjax.data import drawing, random_fields, synthetic

GLASS = (243, 241, 244)
INKS = {"blue": (35, 50, 170), "green": (30, 140, 70), "black": (25, 25, 30)}


@functools.cache
def _stain(seed: int) -> np.ndarray:
    """Tissue of a drawn section, without its outline, 512 x 512 px at 2 um."""
    law = synthetic.Law(seed=2)
    slide, _ = drawing.draw_section(
        law, seed=seed, id="stain", patient=None, n_spots=80, mpp=2.0, pitch_um=200.0
    )
    assert slide.image is not None
    x, y = slide.image.width // 2 - 256, slide.image.height // 2 - 256
    return slide.image.read(x, y, 512, 512)


def paint_section(
    shape: tuple[int, int] = (800, 1000),
    *,
    seed: int = 0,
    glass: tuple[int, int, int] = GLASS,
    noise: float = 2.0,
    pieces: int = 2,
    pale: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [h w 3] of pieces of tissue on glass, and where they truly are, bool [h w].

    Args:
      shape: rows and columns.
      seed: of outlines and noise.
      glass: colour of what is no tissue.
      noise: standard deviation, of all pixels.
      pieces: of tissue; 0 for a blank slide.
      pale: by how much of the way to glass the stain is bleached.
    """
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, bool)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for piece in range(pieces):
        middle = np.array([0.5, (piece + 0.5) / pieces]) + rng.uniform(-0.03, 0.03, 2)
        radius = 0.38 * min(shape[0], shape[1] / pieces)
        ragged = 0.12 * random_fields.smooth(rng, shape, radius / 3)
        far = np.hypot(y - middle[0] * shape[0], x - middle[1] * shape[1])
        truth |= far < radius * (1 + ragged)
    stain = np.concatenate([_stain(5), _stain(5)[::-1]])
    stain = np.concatenate([stain, stain[:, ::-1]], axis=1).astype(float)
    stain = np.tile(stain, (-(-shape[0] // 1024), -(-shape[1] // 1024), 1))[: shape[0], : shape[1]]
    stain = stain * np.array(glass) / drawing.GLASS
    stain += pale * (np.array(glass) - stain)
    pixels = np.where(truth[..., None], stain, np.array(glass, float))
    pixels += rng.normal(0, noise, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8), truth


def draw_pen(pixels: np.ndarray, colour: str, *, width: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """The pixels with an inked ring and a stroke to a corner, and where the ink is, bool [h w]."""
    height, columns = pixels.shape[:2]
    scale = 2  # drawn twice as large: soft edges, as of ink in a thumbnail
    ink = Image.new("L", (scale * columns, scale * height))
    pen = ImageDraw.Draw(ink)
    box = [0.04 * columns, 0.03 * height, 0.97 * columns, 0.95 * height]
    pen.ellipse([scale * v for v in box], outline=255, width=scale * width)
    pen.line([0, 0, scale * columns // 8, scale * height // 6], fill=255, width=scale * width)
    alpha = np.asarray(ink.reduce(scale), float)[..., None] / 255
    # Ink lets some of what lies under it through.
    inked = 0.85 * np.array(INKS[colour]) + 0.15 * pixels
    return np.rint(pixels + alpha * (inked - pixels)).astype(np.uint8), alpha[..., 0] > 0


def halved(pixels: np.ndarray, level: int) -> np.ndarray:
    """The pixels at a 2^level-th of their size."""
    return np.asarray(Image.fromarray(pixels).reduce(2**level))


def write_pyramid(
    path: pathlib.Path,
    pixels: np.ndarray,
    *,
    levels: int = 3,
    mpp: float | None = None,
    compression: str | int = "jpeg",
    description: str | None = None,
) -> pathlib.Path:
    """A tiled TIFF with halved levels as reduced pages, what vips writes; its resolution in cm."""
    known = mpp is not None
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            size = (1e4 / mpp / 2**level,) * 2 if known else None
            tiff.write(
                halved(pixels, level),
                tile=(128, 128),
                compression=compression,
                photometric="rgb",
                subfiletype=1 if level else 0,
                resolution=size,
                resolutionunit="CENTIMETER" if known else None,
                description=description if not level else None,
                metadata=None,
            )
    return path


def aperio_text(pixels: np.ndarray, fields: str) -> str:
    """Aperio's description of level 0, with these fields ("AppMag = 20|MPP = 0.5")."""
    height, width = pixels.shape[:2]
    size = f"{width}x{height} [0,0 {width}x{height}] (128x128) JPEG/RGB Q=70"
    return f"Aperio Image Library v10.0.51\r\n{size}|{fields}|StripeWidth = 2040"


def write_svs(
    path: pathlib.Path,
    pixels: np.ndarray,
    *,
    fields: str = "AppMag = 20|MPP = 0.5000",
    compression: str | int = "jpeg",
) -> pathlib.Path:
    """A file as Aperio's scanners write it: level 0, thumbnail, a level, label and macro."""
    with tifffile.TiffWriter(path) as tiff:
        tiled = {"tile": (128, 128), "compression": compression, "photometric": "rgb"}
        tiff.write(pixels, **tiled, description=aperio_text(pixels, fields), metadata=None)
        thumb = halved(pixels, 3)
        strips = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
        tiff.write(thumb, **strips, rowsperstrip=16, description=aperio_text(thumb, "thumbnail"))
        quarter = halved(pixels, 2)
        tiff.write(quarter, **tiled, description=aperio_text(quarter, fields), metadata=None)
        for name, kind in (("label", 1), ("macro", 9)):
            other = np.full((64, 90, 3), 90, np.uint8)
            text = f"Aperio Image Library v10.0.51\r\n{name} 90x64"
            tiff.write(other, **strips, rowsperstrip=16, subfiletype=kind, description=text)
    return path


def write_ome(
    path: pathlib.Path,
    pixels: np.ndarray,
    *,
    storage: str = "interleaved",
    levels: int = 2,
    metadata: dict[str, object] | None = None,
) -> pathlib.Path:
    """An OME-TIFF whose levels are sub-IFDs.

    Args:
      path: ends in .ome.tif.
      pixels: uint8 [h w 3].
      storage: "interleaved" (YXS), "planar" (one page, each colour apart) or "pages" (CYX: a grey
        page for each colour).
      levels: of the pyramid.
      metadata: of the OME-XML, such as PhysicalSizeX.
    """
    options = {
        "interleaved": ("YXS", {"photometric": "rgb"}),
        "planar": ("CYX", {"photometric": "rgb", "planarconfig": "separate"}),
        "pages": ("CYX", {"photometric": "minisblack"}),
    }
    axes, kind = options[storage]
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as tiff:
        for level in range(levels):
            data = halved(pixels, level)
            tiff.write(
                data if axes == "YXS" else np.ascontiguousarray(np.moveaxis(data, 2, 0)),
                tile=(128, 128),
                compression="deflate",
                subifds=levels - 1 if not level else None,
                subfiletype=1 if level else 0,
                metadata={"axes": axes, **(metadata or {})} if not level else None,
                **kind,
            )
    return path
