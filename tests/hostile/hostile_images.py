"""Images that are none, claim any size, or say what they should not."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib

import imagecodecs
import numpy as np
import payloads
from boxes import Box, case
from PIL import Image


def encode(box: Box, name: str, *more: str) -> list[str]:
    return ["encode", name, "--mpp", "0.5", "--whole", "--pitch-um", "20", "-o", "out", *more]


def tissue(box: Box, name: str, *more: str) -> list[str]:
    return ["encode", name, "--mpp", "0.5", "-o", "out", *more]


def bomb(length: int) -> bytes:
    """Zeros, compressed, without ever holding them."""
    packer, zeros = zlib.compressobj(9), bytes(2**20)
    parts = [packer.compress(zeros) for _ in range(length // 2**20 + 1)]
    return b"".join([*parts, packer.flush()])


@case("too large")
def png_of_a_gigapixel(box):
    (box.cwd / "a.png").write_bytes(payloads.png(40_000, 30_000, zlib.compress(b"\0" * 999)))
    return encode(box, "a.png")


@case("compressed")
def png_bomb_below_the_limit(box):
    (box.cwd / "a.png").write_bytes(payloads.png(20_000, 20_000, bomb(20_001 * 20_000)))
    return encode(box, "a.png")


@case("compressed")
def jpeg_whose_header_was_changed(box):
    out = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(out, "JPEG", progressive=True)
    raw = bytearray(out.getvalue())
    at = raw.index(b"\xff\xc2") + 5
    raw[at : at + 4] = struct.pack(">HH", 21_000, 21_000)
    (box.cwd / "a.jpg").write_bytes(raw)
    return encode(box, "a.jpg")


@case("[SJ-D0")
def png_with_a_bomb_as_text(box):
    text = payloads.chunk(b"zTXt", b"Comment\0\0" + bomb(2**28))
    (box.cwd / "a.png").write_bytes(
        payloads.png(64, 64, zlib.compress(b"\0" * 65 * 64), extra=[text])
    )
    return encode(box, "a.png")


@case("[SJ-D0")
def png_with_a_bomb_as_profile(box):
    profile = payloads.chunk(b"iCCP", b"icc\0\0" + bomb(2**28))
    (box.cwd / "a.png").write_bytes(
        payloads.png(64, 64, zlib.compress(b"\0" * 65 * 64), extra=[profile])
    )
    return encode(box, "a.png")


@case(None)
def jpeg_with_garbage_as_exif_and_profile(box):
    out = io.BytesIO()
    noise = np.random.default_rng(0).bytes(60_000)
    picture = Image.fromarray(np.full((256, 256, 3), 200, np.uint8))
    picture.save(out, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + noise[:9000], icc_profile=noise)
    (box.cwd / "a.jpg").write_bytes(out.getvalue())
    return encode(box, "a.jpg")


@case("is no image that can be read")
def svg_with_a_script(box):
    (box.cwd / "a.png").write_text(
        f"<svg><script href='file://{box.secret}'/><image href='file://{box.secret}'/></svg>"
    )
    return encode(box, "a.png")


@case("too large")
def tiff_of_one_strip(box):
    tags = payloads.page(65_536, 32_768, tags={273: (4, 8), 278: (4, 32_768), 279: (4, 100)})
    (box.cwd / "a.tif").write_bytes(payloads.tiff(tags, data=bytes(100)))
    return encode(box, "a.tif")


@case(None)
def tiff_that_follows_itself(box):
    tags = payloads.page(8, 8, tags={273: (4, 8), 278: (4, 8), 279: (4, 192)})
    (box.cwd / "a.tif").write_bytes(payloads.tiff(tags, data=bytes(192), following="itself"))
    return encode(box, "a.tif")


@case("too many pages")
def tiff_of_300_000_pages(box):
    return pages(box, 300_000)


@case("too many pages", slow=True)
def tiff_of_5_000_000_pages(box):
    return pages(box, 5_000_000)


def pages(box, number):
    tags = payloads.page(8, 8, tags={273: (4, 8), 278: (4, 8), 279: (4, 192)})
    first = payloads.tiff(tags, data=bytes(192))
    at = len(first)
    body = bytearray(first)
    place = 8 + 192 + 2 + 12 * len(tags)
    body[place : place + 4] = struct.pack("<I", at)
    entry = struct.pack("<HHHII", 1, 256, 4, 1, 8)
    step = len(entry) + 4
    body += b"".join(
        entry + struct.pack("<I", at + step * (i + 1) if i < number - 1 else 0)
        for i in range(number)
    )
    (box.cwd / "a.tif").write_bytes(body)
    return encode(box, "a.tif")


def entities(rounds=9):
    first = '<!ENTITY e0 "ha">'
    more = [f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, rounds + 1)]
    return f"<!DOCTYPE OME [{first}{''.join(more)}]>", f"&e{rounds};"


def ome(box, before):
    declared, used = entities()
    text = (
        f'<?xml version="1.0"?>{before}{declared}<OME xmlns="http://www.openmicroscopy.org/Schemas/'
        f'OME/2016-06"><Image ID="Image:0" Name="{used}"><Pixels SizeX="8" SizeY="8" SizeC="3" '
        f'SizeZ="1" SizeT="1" Type="uint8" DimensionOrder="XYCZT">{used}</Pixels></Image></OME>'
    ).encode() + b"\0"
    tags = payloads.page(8, 8, tags={273: (4, 8), 278: (4, 8), 279: (4, 192), 270: (2, text)})
    (box.cwd / "a.ome.tif").write_bytes(payloads.tiff(tags, data=bytes(192)))
    return encode(box, "a.ome.tif")


@case("not safe to read")
def ome_tiff_with_entities(box):
    return ome(box, "")


@case("not safe to read")
def ome_tiff_with_entities_after_a_long_comment(box):
    return ome(box, f"<!--{'x' * 3000}-->")


@case("not safe to read")
def ome_tiff_that_names_a_file(box):
    text = (
        f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY s SYSTEM "file://{box.secret}">]>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="&s;"/></OME>'
    ).encode() + b"\0"
    tags = payloads.page(8, 8, tags={273: (4, 8), 278: (4, 8), 279: (4, 192), 270: (2, text)})
    (box.cwd / "a.ome.tif").write_bytes(payloads.tiff(tags, data=bytes(192)))
    return encode(box, "a.ome.tif")


def tiled(box, data, compression, *, photometric=2):
    tags = payloads.page(
        256,
        256,
        tags={
            259: (3, compression),
            262: (3, photometric),
            322: (4, 256),
            323: (4, 256),
            324: (4, 8),
            325: (4, len(data)),
        },
    )
    (box.cwd / "a.tif").write_bytes(payloads.tiff(tags, data=data))
    return encode(box, "a.tif")


@case("it says")
def tiff_whose_tile_is_a_larger_jpeg(box):
    raw = bytearray(imagecodecs.jpeg8_encode(np.zeros((16, 16, 3), np.uint8)))
    at = raw.index(b"\xff\xc0") + 5
    raw[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    return tiled(box, bytes(raw), 7, photometric=6)


@case("it says")
def tiff_whose_tile_is_a_larger_jpeg_2000(box):
    raw = bytearray(imagecodecs.jpeg2k_encode(np.zeros((16, 16, 3), np.uint8), codecformat="j2k"))
    at = raw.index(b"\xff\x51") + 6
    size = struct.pack(">II", 60_000, 60_000)
    raw[at : at + 8] = size
    raw[at + 16 : at + 24] = size
    return tiled(box, bytes(raw), 33_005)


@case("damaged")
def tiff_whose_tile_is_a_deflate_bomb(box):
    return tiled(box, bomb(2**29), 8)


@case("[SJ-D0")
def tiff_with_offsets_beyond_any_file(box):
    def tag(number, kind, count, value):
        return struct.pack("<HHQ", number, kind, count) + value.ljust(8, b"\0")

    entries = [
        tag(256, 4, 1, struct.pack("<I", 8)),
        tag(257, 4, 1, struct.pack("<I", 8)),
        tag(258, 3, 3, struct.pack("<HHH", 8, 8, 8)),
        tag(259, 3, 1, struct.pack("<H", 1)),
        tag(262, 3, 1, struct.pack("<H", 2)),
        tag(273, 16, 1, struct.pack("<Q", 2**62)),
        tag(277, 3, 1, struct.pack("<H", 3)),
        tag(278, 4, 1, struct.pack("<I", 8)),
        tag(279, 16, 1, struct.pack("<Q", 2**62)),
    ]
    head = b"II+\0" + struct.pack("<HHQ", 8, 0, 16) + struct.pack("<Q", len(entries))
    (box.cwd / "a.tif").write_bytes(head + b"".join(entries) + bytes(8))
    return encode(box, "a.tif")


@case("cannot be used as outlines")
def outlines_nested_deeply(box):
    Image.fromarray(np.full((256, 256, 3), 200, np.uint8)).save(box.cwd / "a.png")
    (box.cwd / "t.json").write_text('{"type":"FeatureCollection","features":' + payloads.nested())
    return tissue(box, "a.png", "--tissue", "t.json")


@case("cannot be used as outlines")
def outlines_of_collections_in_collections(box):
    Image.fromarray(np.full((256, 256, 3), 200, np.uint8)).save(box.cwd / "a.png")
    inner = {"type": "Point", "coordinates": [0, 0]}
    for _ in range(200):
        inner = {"type": "GeometryCollection", "geometries": [inner]}
    (box.cwd / "t.json").write_text(json.dumps(inner))
    return tissue(box, "a.png", "--tissue", "t.json")


@case("[SJ-D0")
def pipe_in_the_place_of_an_image(box):
    os.mkfifo(box.cwd / "a.png")
    return encode(box, "a.png")


@case("slide id cannot be used")
def image_named_as_a_device(box):
    Image.fromarray(np.full((256, 256, 3), 200, np.uint8)).save(box.cwd / "CON.png")
    return encode(box, "CON.png")


@case("slide id cannot be used")
def image_named_as_a_flag(box):
    (box.cwd / "in").mkdir()
    Image.fromarray(np.full((256, 256, 3), 200, np.uint8)).save(box.cwd / "in" / "-rf.png")
    return ["encode", "in", "--mpp", "0.5", "-o", "out"]


@case("slide id cannot be used")
def image_whose_name_turns_the_direction(box):
    name = "slide\u202egnp.png"
    Image.fromarray(np.full((256, 256, 3), 200, np.uint8)).save(box.cwd / name)
    return ["encode", name, "--mpp", "0.5", "-o", "out"]
