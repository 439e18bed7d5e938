"""Regions, thumbnails and bad files."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from stemjax import errors
from stemjax.data import images

SIZE = (300, 470)  # rows, columns; no multiple of the tile


def picture(shape=SIZE, seed=0):
    """Smooth colours with a little noise: JPEG keeps it, and a shift of one pixel shows."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    noise = np.random.default_rng(seed).integers(0, 8, (*shape, 3))
    colours = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1)
    return np.clip(colours * 0.9 + noise, 0, 255).astype(np.uint8)


def write_pyramid(path, pixels, *, levels=3, tile=(128, 128), compression="jpeg"):
    """A tiled TIFF with halved levels, as separate reduced pages (what vips writes)."""
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            tiff.write(
                np.asarray(Image.fromarray(pixels).reduce(2**level)),
                tile=tile,
                compression=compression,
                photometric="rgb",
                subfiletype=1 if level else 0,
            )


def saved(path, pixels, **kinds):
    Image.fromarray(pixels).save(path, **kinds)
    return path


def padded(pixels, x, y, width, height):
    """The rectangle of an array put into a large white plane: what any reader has to return."""
    margin = 700
    plane = np.full((pixels.shape[0] + 2 * margin, pixels.shape[1] + 2 * margin, 3), 255, np.uint8)
    plane[margin:-margin, margin:-margin] = pixels
    return plane[margin + y : margin + y + height, margin + x : margin + x + width]


@pytest.fixture(params=["memory", "png", "jpg", "tiff", "tiff-jpeg", "tiff-strips"])
def image(request, tmp_path):
    """An image of each kind and its true pixels, decoded by the library that owns the format."""
    pixels, path = picture(), tmp_path / "slide.bin"  # names do not tell the kind
    if request.param == "memory":
        return images.ArrayImage(pixels), pixels
    if request.param == "png":
        saved(path, pixels, format="PNG")
    elif request.param == "jpg":
        saved(path, pixels, format="JPEG", quality=95)
        pixels = np.asarray(Image.open(path))
    elif request.param == "tiff-strips":
        tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=64)
    else:
        jpeg = request.param == "tiff-jpeg"
        write_pyramid(path, pixels, compression="jpeg" if jpeg else "deflate")
        pixels = tifffile.imread(path)
    return images.open_image(path), pixels


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 470, 300),  # the whole
        (120, 100, 200, 150),  # over several tiles
        (128, 128, 128, 128),  # one tile exactly
        (469, 299, 1, 1),  # the last pixel
        (-30, -20, 100, 90),  # over the top left corner
        (400, 250, 224, 224),  # over the bottom right corner
        (-50, -60, 600, 500),  # all of it and a margin
        (471, 10, 5, 5),  # beside it
    ],
)
def test_region_is_the_rectangle_with_white_around(image, box):
    reader, pixels = image
    np.testing.assert_array_equal(reader.read(*box), padded(pixels, *box))


def test_size_and_pickle(image):
    reader, pixels = image
    assert (reader.height, reader.width) == SIZE
    copy = pickle.loads(pickle.dumps(reader))  # what a process of a pool receives
    np.testing.assert_array_equal(copy.read(10, 20, 30, 40), pixels[20:60, 10:40])
    assert copy.source == reader.source


@pytest.mark.parametrize("max_px", [94, 235, 470, 1000])
def test_thumbnail_is_an_area_average(image, max_px):
    reader, pixels = image
    thumb, scale = reader.thumbnail(max_px)
    assert scale == pytest.approx(min(1.0, max_px / 470))
    assert thumb.shape == (round(300 * scale), round(470 * scale), 3)
    # Each quarter keeps its mean colour: a thumbnail's pixels are 5 wide at most and end where the
    # quarters do. 2.5 of 256: JPEG, and Lanczos over the jump where the colours wrap around.
    for rows in (slice(0, 150), slice(150, 300)):
        for columns in (slice(0, 235), slice(235, 470)):
            top, left = rows.start * scale, columns.start * scale
            part = thumb[
                round(top) : round(top + 150 * scale), round(left) : round(left + 235 * scale)
            ]
            found, true = part.mean(axis=(0, 1)), pixels[rows, columns].mean(axis=(0, 1))
            np.testing.assert_allclose(found, true, atol=2.5)


def test_thumbnail_of_a_large_image_is_made_in_bands():
    # 6,000 x 3,000 px: several bands of 4 Mpx. Rows of one colour, so that a band put at the
    # wrong place shows.
    rows = (np.arange(6000) * 255 // 5999).astype(np.uint8)
    pixels = np.broadcast_to(rows[:, None, None], (6000, 3000, 3)).copy()
    thumb, scale = images.ArrayImage(pixels).thumbnail(100)
    assert scale == 100 / 6000
    assert thumb.shape == (100, 50, 3)
    expected = rows.reshape(100, 60).mean(axis=1)
    # 3 of 256: Lanczos rings at the ends.
    np.testing.assert_allclose(thumb[:, 25, 0], expected, atol=3)


def test_thumbnail_reads_a_reduced_level(tmp_path):
    path = tmp_path / "levels.tif"
    with tifffile.TiffWriter(path) as tiff:  # levels of different colours tell which was read
        for level, shade in enumerate((10, 90, 170)):
            flat = np.full((512 >> level, 512 >> level, 3), shade, np.uint8)
            tiff.write(flat, tile=(128, 128), photometric="rgb", subfiletype=1 if level else 0)
    reader = images.open_image(path)
    assert [reader.thumbnail(px)[0].mean() for px in (400, 256, 200, 128, 50)] == [
        10,
        90,
        90,
        170,
        170,
    ]
    assert reader.thumbnail(50)[1] == 50 / 512
    assert reader.read(0, 0, 4, 4).max() == 10


def test_pyramid_in_sub_ifds_is_found(tmp_path):
    path, pixels = tmp_path / "sub.tif", picture((512, 512))
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(pixels, tile=(128, 128), photometric="rgb", subifds=1)
        half = np.full((256, 256, 3), 7, np.uint8)
        tiff.write(half, tile=(128, 128), photometric="rgb", subfiletype=1)
    assert images.open_image(path).thumbnail(200)[0].max() == 7


def test_grey_and_transparent_images_become_rgb(tmp_path):
    grey = picture()[:, :, 0]
    path = saved(tmp_path / "grey.png", grey)
    np.testing.assert_array_equal(
        images.open_image(path).read(0, 0, 470, 300), np.repeat(grey[:, :, None], 3, axis=2)
    )
    tifffile.imwrite(tmp_path / "grey.tif", grey, tile=(128, 128), photometric="miniswhite")
    inverted = images.open_image(tmp_path / "grey.tif").read(5, 6, 7, 8)
    np.testing.assert_array_equal(inverted[:, :, 1], 255 - grey[6:14, 5:12])

    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0, 0] = (200, 10, 20, 255)
    clear = images.open_image(saved(tmp_path / "clear.png", rgba)).read(0, 0, 4, 4)
    assert clear[0, 0].tolist() == [200, 10, 20]
    assert clear[1:].min() == 255  # what is transparent is background


def test_many_pixels_are_read_without_a_bomb_warning(tmp_path):
    # 90.25 Mpx: above the size at which Pillow warns, and all warnings are errors here.
    path = tmp_path / "large.png"
    Image.new("L", (9500, 9500), 200).save(path, compress_level=1)
    limit = Image.MAX_IMAGE_PIXELS
    reader = images.open_image(path)
    assert reader.read(9499, 9499, 2, 1).tolist() == [[[200] * 3, [255] * 3]]
    assert limit == Image.MAX_IMAGE_PIXELS


def huge_png(side):
    """The first bytes of a PNG that claims side x side pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 1000)
        + b"IDAT"
    )


def test_size_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png(60_000) + b"\0" * 64)
    with pytest.raises(errors.ImageError, match=r"bomb\.png.*500 Mpx.*60,000.*pyramidal TIFF"):
        images.open_image(path)
    with pytest.raises(errors.ImageError, match="memory.*smaller region"):
        images.ArrayImage(picture()).read(0, 0, 10**6, 10**6)

    strip = tmp_path / "strip.tif"
    tifffile.imwrite(strip, shape=(10_000, 8_000, 3), dtype=np.uint8, photometric="rgb")
    with tifffile.TiffFile(strip, mode="r+b") as tiff:
        tiff.pages[0].tags["RowsPerStrip"].overwrite(10_000)
    with pytest.raises(errors.ImageError, match=r"strip\.tif.*64 Mpx.*8,000 x 10,000.*TIFF"):
        images.open_image(strip)


def half_of(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_half_a_file_is_named(tmp_path, kind):
    path = saved(tmp_path / f"half.{kind}", picture((700, 700)))
    path.write_bytes(half_of(path.read_bytes()))
    with pytest.raises(errors.ImageError, match=rf"half\.{kind} is damaged or incomplete.*again"):
        images.open_image(path).read(600, 600, 50, 50)


def test_half_a_tiff_is_named_when_it_is_opened(tmp_path):
    path = tmp_path / "half.tif"
    write_pyramid(path, picture((700, 700)), levels=1)
    with tifffile.TiffFile(path) as tiff:  # its tables come first, so only the pixels are cut off
        assert tiff.pages[0].offset < 1000
    path.write_bytes(half_of(path.read_bytes()))
    with pytest.raises(errors.ImageError, match=r"half\.tif is damaged.*bytes.*again"):
        images.open_image(path)


def test_damaged_tile_is_named(tmp_path):
    path = tmp_path / "tile.tif"
    write_pyramid(path, picture(), levels=1)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[5], page.databytecounts[5]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x11" * count)
    reader = images.open_image(path)
    assert reader.read(0, 0, 100, 100).shape == (100, 100, 3)  # other tiles are whole
    with pytest.raises(errors.ImageError, match=r"tile\.tif is damaged.*tile 5.*again"):
        reader.read(130, 130, 10, 10)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(errors.ImageError, match=r"no image .*absent\.tif.*path"):
        images.open_image(tmp_path / "absent.tif")
    text = tmp_path / "notes.jpg"
    text.write_text("not an image")
    with pytest.raises(errors.ImageError, match=r"notes\.jpg.*JPEG, PNG or TIFF.*b'not an i'"):
        images.open_image(text)
    deep = tmp_path / "deep.tif"
    tifffile.imwrite(deep, picture().astype(np.uint16), photometric="rgb", tile=(128, 128))
    with pytest.raises(errors.ImageError, match=r"deep\.tif.*8-bit RGB.*uint16"):
        images.open_image(deep)
    deep_png = saved(tmp_path / "deep.png", picture()[:, :, 0].astype(np.uint16))
    with pytest.raises(errors.ImageError, match=r"deep\.png.*8-bit.*I;16"):
        images.open_image(deep_png)
    with pytest.raises(errors.ImageError, match=r"patch.*uint8 array.*float64"):
        images.ArrayImage(np.ones((2, 2, 3)), source="patch")
    with pytest.raises(errors.ImageError, match="at least 1 px"):
        images.ArrayImage(picture()).thumbnail(0)


def test_stored_pixels_are_not_turned(tmp_path):
    # Spot coordinates refer to the pixels as stored, whatever the camera noted.
    pixels, buffer = picture(), io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6  # "turn right to view"
    Image.fromarray(pixels).save(buffer, format="PNG", exif=exif)
    (tmp_path / "turned.png").write_bytes(buffer.getvalue())
    reader = images.open_image(tmp_path / "turned.png")
    np.testing.assert_array_equal(reader.read(0, 0, 470, 300), pixels)


@pytest.mark.her2st
def test_her2st_image_is_under_its_spots(her2st):
    # Tissue absorbs: 40 px squares at spot centres are darker than the same squares mirrored left
    # to right, which mostly lie beside the tissue. Swapped x and y would not be.
    spots = np.loadtxt(her2st / "ST-spotfiles" / "C5_selection.tsv", skiprows=1)[:, 4:6]
    reader = images.open_image(next((her2st / "ST-imgs" / "C" / "C5").glob("*.jpg")))
    assert (reader.width, reader.height) == (9272, 9901)
    centres = spots[::6].astype(int)
    here = np.mean([reader.read(x - 20, y - 20, 40, 40).mean() for x, y in centres])
    there = np.mean([reader.read(y - 20, x - 20, 40, 40).mean() for x, y in centres])
    assert here < there - 5
