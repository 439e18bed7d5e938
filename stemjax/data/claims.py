"""What TIFFs from anywhere claim, held against sense before memory or time is spent on it."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET

import tifffile

from stemjax import errors

MAX_XML_CHARACTERS = 32_000_000
"""Longest XML of a header that is parsed; that of a slide has some thousand characters."""

MAX_PAGES = 10_000
"""Most pages of a TIFF; slides have some dozen, and parsing a million takes minutes."""

JPEG = frozenset({6, 7, 33007, 34892})
JPEG_2000 = frozenset({33003, 33004, 33005, 34712})
"""Numbers of JPEG and of JPEG 2000 in a TIFF."""

UNSIZED = frozenset({22610, 34887, 34933, 34934, 50002, 52546})
"""Codecs with a size of their own at no place that is looked at here; no scanner writes them."""


def parse_xml(text: str, source: str) -> ET.Element | None:
    """The root of a header's XML; None where it is none or is broken.

    Raises:
      ImageError: it declares a document type, by which a small text may stand for one of any size,
        or is longer than `MAX_XML_CHARACTERS`.
    """
    if not text.lstrip().startswith("<"):
        return None
    if "<!DOCTYPE" in text.upper() or "<!ENTITY" in text.upper() or len(text) > MAX_XML_CHARACTERS:
        raise errors.ImageError(
            f"the XML in {source} is not safe to read",
            expected=f"no document type, and at most {MAX_XML_CHARACTERS:,} characters",
            found=f"{len(text):,} characters that begin with {text.lstrip()[:60]!r}",
            fix="Write the image again, without this text",
        )
    try:
        # As text: then it is not read in an encoding that it declares.
        return ET.fromstring(text)  # noqa: S314 - entities need the document type refused above
    except ET.ParseError:
        return None


def require_few_pages(tiff: tifffile.TiffFile, source: str) -> None:
    """Checks that a TIFF has at most `MAX_PAGES`; tifffile follows the chain, and parses the last.

    Raises:
      UnsafeFileError: it has more, or its pages follow each other in a circle.
    """
    try:
        tiff.pages[MAX_PAGES]
    except IndexError:
        return
    raise errors.UnsafeFileError(
        f"{source} has too many pages",
        expected=f"a slide, of at most {MAX_PAGES:,}",
        found="more",
        fix="Convert it to a tiled, pyramidal TIFF",
    )


def stated_pixels(data: bytes, compression: int) -> int:
    """How many pixels a tile's own header says that it has: so many are decoded; 0 if unknown."""
    if compression in JPEG:
        at = 2
        while at + 9 <= len(data) and data[at] == 0xFF:
            marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                height, width = struct.unpack(">HH", data[at + 5 : at + 9])
                return height * width
            at += 1 if marker == 0xFF else 2 + length
    elif compression in JPEG_2000:
        at = data.find(b"\xff\x4f\xff\x51")  # a code stream's first two marks
        if 0 <= at <= len(data) - 24:
            width, height, left, top = struct.unpack(">IIII", data[at + 8 : at + 24])
            return max(width - left, 0) * max(height - top, 0)
    return 0
