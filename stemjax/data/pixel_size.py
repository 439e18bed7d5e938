"""The pixel size that an image file tells, in micrometres per level-0 pixel.

A file may tell it in several ways: Aperio's description, OME-XML, the resolution of the TIFF, or a
scanner's own fields, which OpenSlide reads. They are all looked at, since programs that convert
slides carry some of them over and make up others. Where two contradict each other, none is right
without a witness, so it is an error; likewise where only a magnification is known, which scanners
mean differently.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tifffile

from stemjax import errors
from stemjax.data import hiding, images, wsi

SMALLEST_UM, LARGEST_UM = 0.05, 20.0
"""Pixel sizes of microscopes, and of nothing else: 72, 96 or 300 dpi would be 353, 265 and 85 um.

HEST-1k's images have .137 to 3.24 um.
"""

_SAME = 1.1  # sources that differ by less than this factor agree, as in stemjax.data.layouts.hest
_ANISOTROPIC = 1.02
_USUAL = 10.0  # um times magnification
_UNITS = {
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25400.0,
}
_RESOLUTION_UNITS = {2: ("inch", 25400.0), 3: ("cm", 10000.0)}
_RESOLUTION_TAGS = ("XResolution", "YResolution")
_APERIO = re.compile(r"\|\s*(MPP|AppMag)\s*=\s*([0-9.eE+-]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelSize:
    """A pixel size and where it was found.

    Attributes:
      mpp: micrometres per level-0 pixel.
      source: the field that tells it, with its value.
      notes: what else the file tells, and why that was not used.
    """

    mpp: float
    source: str
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Told:
    """What one source of a file says: the pixel's sides in um, as they come."""

    x: float
    y: float
    text: str


@dataclasses.dataclass(kw_only=True)
class _Claims:
    """All that a file says."""

    told: list[_Told] = dataclasses.field(default_factory=list)
    magnification: dict[str, float] = dataclasses.field(default_factory=dict)
    useless: list[str] = dataclasses.field(default_factory=list)

    def add(self, x: float, y: float, text: str) -> None:
        """Adds a source, if its numbers can be a microscope's."""
        if all(SMALLEST_UM <= side <= LARGEST_UM for side in (x, y)):
            self.told.append(_Told(x=x, y=y, text=text))
        else:
            self.useless.append(f"{text}: no pixel size of a microscope")


def read_mpp(path: str | os.PathLike[str]) -> PixelSize | None:
    """The pixel size that a file tells.

    Args:
      path: an image that `stemjax.data.images.open_image` opens.

    Returns:
      The size; None where the file says nothing about it at all, as JPEG and PNG do (their
      dots per inch are a printer's).

    Raises:
      PixelSizeError: two sources differ by more than 10 %, pixels are not square within 2 %, only
        a magnification is known, or what is told cannot be a microscope's.
      ImageError: the file cannot be read, or OpenSlide is needed and not installed.
    """
    path = pathlib.Path(path)
    claims = _Claims()
    if path.suffix.lower() in wsi.BY_OPENSLIDE:
        # And nothing else: these look like TIFF and take liberties with it.
        _read_properties(wsi.OpenSlideImage(path).properties, claims)
    elif _is_tiff(path):
        _read_tiff(path, claims)
    return _decide(path.name, claims)


def ask(pixel_xy: np.ndarray | None = None) -> str:
    """How to give a pixel size that is unknown, and what it would be if spots were Visium's.

    Args:
      pixel_xy: centres of the spots, where there are some; they are not taken for Visium's unasked.
    """
    text = "Give it in um per pixel of the full-resolution image: --mpp (in Python mpp=)"
    if pixel_xy is None or len(pixel_xy) < 2 or not np.isfinite(pixel_xy).all():
        return text
    near = hiding.spot_distance(np.asarray(pixel_xy, np.float64))
    return (
        f"{text}; --mpp {100 / near:.3g} if the spots, which are {near:.4g} px apart, are Visium's,"
        " 100 um apart"
    )


def _decide(name: str, claims: _Claims) -> PixelSize | None:
    notes = tuple(f"not used: {text}" for text in claims.useless)
    usual = [
        f"{power:g}x usually means about {_USUAL / power:.2g} um: give --mpp {_USUAL / power:.2g} "
        "if that is true of this scanner"
        for power in claims.magnification.values()
    ]
    if not claims.told:
        if not (notes or usual):
            return None
        known = [f"{text} {power:g}" for text, power in claims.magnification.items()]
        raise errors.PixelSizeError(
            f"{name} does not tell its pixel size",
            expected=f"a size between {SMALLEST_UM:g} and {LARGEST_UM:g} um",
            found="; ".join([*known, *claims.useless]),
            fix=usual[0] if usual else ask(),
        )
    for told in claims.told:
        if max(told.x, told.y) > _ANISOTROPIC * min(told.x, told.y):
            raise errors.PixelSizeError(
                f"the pixels of {name} are not square",
                expected=f"sides that differ by less than {_ANISOTROPIC - 1:.0%}",
                found=f"{told.x:g} x {told.y:g} um ({told.text})",
                fix="Give the pixel size if this is a mistake: --mpp; else resample the image",
            )
    low = min(claims.told, key=lambda told: told.x)
    high = max(claims.told, key=lambda told: told.x)
    if high.x >= _SAME * low.x:
        raise errors.PixelSizeError(
            f"{name} tells contradictory pixel sizes",
            expected=f"sizes that differ by less than {_SAME - 1:.0%}",
            found=f"{low.x:.4g} um ({low.text}) and {high.x:.4g} um ({high.text})",
            fix="Say which is right, in um per level-0 pixel: --mpp",
        )
    first, *rest = claims.told
    agree = tuple(f"agrees: {told.text}" for told in rest)
    return PixelSize(mpp=(first.x + first.y) / 2, source=first.text, notes=agree + notes)


def _is_tiff(path: pathlib.Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except OSError as error:
        raise errors.ImageError(
            f"{path} cannot be read", found=str(error), fix="Check the path"
        ) from error


def _read_tiff(path: pathlib.Path, claims: _Claims) -> None:
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            description = page.description
            tags = {n: page.tags.valueof(n) for n in (*_RESOLUTION_TAGS, "ResolutionUnit")}
    except wsi.UNREADABLE as error:
        raise images.damaged(path.name, str(error)) from error
    if description.startswith("Aperio"):
        _read_aperio(description, claims)
    if "<OME" in description[:2000]:
        _read_ome(description, path.name, claims)
    _read_resolution(tags, claims)


def _read_aperio(description: str, claims: _Claims) -> None:
    for field, text in _APERIO.findall(description):
        value = _number(text)
        if field == "MPP":
            side = value or math.nan
            claims.add(side, side, f"Aperio's MPP = {text}")
        elif value is not None:
            claims.magnification["Aperio's AppMag"] = value


def _read_ome(description: str, name: str, claims: _Claims) -> None:
    root = wsi.parse_xml(description, name)
    image = None if root is None else root.find("{*}Image")
    pixels = None if image is None else image.find("{*}Pixels")
    if root is None or image is None or pixels is None:
        claims.useless.append("OME-XML that is broken or has no image")
        return
    sides, words = [], []
    for axis in "XY":
        text = pixels.get(f"PhysicalSize{axis}")
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")  # the schema's default
        if text is not None:
            value = _number(text) or math.nan  # what cannot be read is no size of a pixel
            sides.append(value * _UNITS.get(unit, math.nan))
            words.append(f"PhysicalSize{axis} {text} {unit}")
    if words:
        claims.add(sides[0], sides[-1], f"OME-XML's {' and '.join(words)}")
    wanted = image.find("{*}ObjectiveSettings")
    for objective in root.iterfind("{*}Instrument/{*}Objective"):
        power = _number(objective.get("NominalMagnification", ""))
        mine = wanted is None or wanted.get("ID") == objective.get("ID")
        if power is not None and mine:
            claims.magnification["OME-XML's NominalMagnification"] = power
            break


def _read_resolution(tags: Mapping[str, Any], claims: _Claims) -> None:
    pixels = []
    for name in _RESOLUTION_TAGS:
        value = tags[name]
        if not (isinstance(value, tuple) and len(value) == 2 and all(value)):
            return  # absent, or 0/0 and the like for unknown
        pixels.append(float(value[0]) / float(value[1]))
    unit = tags["ResolutionUnit"]
    unit = 2 if unit is None else getattr(unit, "value", unit)  # inches, where it is left out
    if unit not in _RESOLUTION_UNITS:
        if pixels != [1.0, 1.0]:  # what writers put down for unknown
            claims.useless.append(f"XResolution {pixels[0]:g} without a unit")
        return
    name, um = _RESOLUTION_UNITS[unit]
    claims.add(um / pixels[0], um / pixels[1], f"XResolution {pixels[0]:g} per {name}")


def _read_properties(properties: Mapping[str, str], claims: _Claims) -> None:
    """OpenSlide's properties: mpp of any vendor, and the magnification."""
    sides = [_number(properties.get(f"openslide.mpp-{axis}", "")) for axis in "xy"]
    if any(side is not None for side in sides):
        told = [side for side in sides if side is not None]
        vendor = properties.get("openslide.vendor", "unknown")
        text = f"OpenSlide's mpp-x {told[0]:g} (vendor {vendor})"
        claims.add(told[0], told[-1], text)
    power = _number(properties.get("openslide.objective-power", ""))
    if power is not None:
        claims.magnification["OpenSlide's objective-power"] = power


def _number(text: str) -> float | None:
    """A positive, finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
