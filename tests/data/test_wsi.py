"""TIFF of many kinds, and what OpenSlide reads."""

from __future__ import annotations

import concurrent.futures
import pickle
import sys

import imagecodecs
import numpy as np
import pytest
import tifffile
from made_images import halved, write_ome, write_pyramid, write_svs

from stemjax import errors
from stemjax.data import claims, images, wsi

SIZE = (300, 470)  # rows, columns; no multiple of the tile
BOXES = [(0, 0, 470, 300), (120, 100, 200, 150), (-30, -20, 100, 90), (400, 250, 224, 224)]


def picture(shape=SIZE):
    """Smooth, differing colours, so that a swap of channels or a shift shows."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    both = rows + 2 * columns
    colours = [rows * 255 // shape[0], columns * 255 // shape[1], 255 - both * 255 // both.max()]
    return np.stack(colours, axis=-1).astype(np.uint8)


def around(pixels, x, y, width, height):
    """A rectangle of an array on a white plane."""
    plane = np.full((pixels.shape[0] + 1000, pixels.shape[1] + 1000, 3), 255, np.uint8)
    plane[500:-500, 500:-500] = pixels
    return plane[500 + y : 500 + y + height, 500 + x : 500 + x + width]


@pytest.mark.parametrize("storage", ["interleaved", "planar", "pages"])
def test_an_ome_tiff_is_read_however_its_colours_are_stored(tmp_path, storage):
    pixels = picture()
    path = write_ome(tmp_path / "he_image.ome.tif", pixels, storage=storage, levels=3)
    reader = images.open_image(path)
    assert (reader.width, reader.height) == (470, 300)
    for box in BOXES:
        np.testing.assert_array_equal(reader.read(*box), around(pixels, *box))
    # Its sub-IFDs are its pyramid: a half of it is the second level exactly, a quarter the third.
    np.testing.assert_array_equal(reader.thumbnail(235)[0], halved(pixels, 1))
    assert reader.thumbnail(118)[0].shape == halved(pixels, 2).shape


@pytest.mark.parametrize("storage", ["strips", "jpeg"])
def test_planes_of_strips_and_of_jpeg_are_put_together(tmp_path, storage):
    pixels, path = picture(), tmp_path / "planes.tif"
    kind = {"rowsperstrip": 64} if storage == "strips" else {"tile": (128, 128)}
    if storage == "jpeg":
        kind |= {"compression": "jpeg", "compressionargs": {"level": 98}}
    planes = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", **kind)
    found = images.open_image(path).read(100, 50, 300, 200).astype(int)
    # JPEG at quality 98 rounds by a few units.
    np.testing.assert_allclose(found, pixels[50:250, 100:400], atol=0 if storage == "strips" else 6)


def test_channels_of_fluorescence_are_no_colours(tmp_path):
    pixels = picture()
    named = {"Channel": {"Name": ["DAPI", "FITC", "Cy5"]}}
    path = write_ome(tmp_path / "if.ome.tif", pixels, storage="pages", metadata=named)
    with pytest.raises(errors.ImageError, match=r"if\.ome\.tif.*DAPI, FITC, Cy5.*fluorescence"):
        images.open_image(path)
    colours = {"Channel": {"Name": ["Red", "Green", "Blue"]}}
    path = write_ome(tmp_path / "rgb.ome.tif", pixels, storage="pages", metadata=colours)
    np.testing.assert_array_equal(images.open_image(path).read(0, 0, 470, 300), pixels)

    five = np.zeros((5, *SIZE), np.uint8)
    deep = np.zeros((3, *SIZE), np.uint16)
    stack = np.zeros((4, *SIZE, 3), np.uint8)
    for name, data, axes, found in [
        ("five", five, "CYX", r"axes CYX of \(5, 300, 470\)"),
        ("deep", deep, "CYX", "uint16"),
        ("stack", stack, "ZYXS", "axes ZYXS"),
    ]:
        path = tmp_path / f"{name}.ome.tif"
        photometric = "rgb" if axes.endswith("S") else "minisblack"
        tifffile.imwrite(path, data, photometric=photometric, metadata={"axes": axes})
        with pytest.raises(errors.ImageError, match=rf"{name}\.ome\.tif.*8-bit RGB.*{found}"):
            images.open_image(path)


def test_an_image_spread_over_several_files_is_refused(tmp_path):
    # The places of its tiles are those in the other file: read here, they would be anything.
    one, two = tmp_path / "a.ome.tif", tmp_path / "b.ome.tif"
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image '
        'ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="470" '
        'SizeY="300" SizeC="3" SizeZ="1" SizeT="1">'
        + "".join(
            f'<Channel ID="Channel:0:{c}" SamplesPerPixel="1"/><TiffData FirstC="{c}" IFD="{ifd}" '
            f'PlaneCount="1"><UUID FileName="{name}">urn:uuid:{uuid}</UUID></TiffData>'
            for c, ifd, name, uuid in [
                (0, 0, one.name, 1),
                (1, 0, two.name, 2),
                (2, 1, two.name, 2),
            ]
        )
        + "</Pixels></Image></OME>"
    )
    planes = np.moveaxis(picture(), 2, 0)
    tifffile.imwrite(one, planes[0], description=xml, metadata=None)
    tifffile.imwrite(two, planes[1:], description=xml, metadata=None, photometric="minisblack")
    with pytest.raises(errors.ImageError, match=r"a\.ome\.tif cannot be used"):
        images.open_image(one)


@pytest.mark.parametrize("compression", ["jpeg", "deflate", 33005])
def test_an_svs_has_its_levels_and_neither_label_nor_macro(tmp_path, compression):
    pixels = picture()
    reader = images.open_image(write_svs(tmp_path / "a.svs", pixels, compression=compression))
    assert isinstance(reader, wsi.TiffImage)
    # Lossy: by a few units of 256.
    found = reader.read(100, 100, 200, 150).astype(int)
    np.testing.assert_allclose(found, pixels[100:250, 100:300], atol=14)
    assert np.abs(found - pixels[100:250, 100:300]).mean() < 2
    thumb, scale = reader.thumbnail(118)
    assert thumb.shape == halved(pixels, 2).shape
    assert scale == pytest.approx(118 / 470)
    np.testing.assert_allclose(thumb.mean(axis=(0, 1)), pixels.mean(axis=(0, 1)), atol=3)


def test_transparent_parts_of_a_tiff_are_white(tmp_path):
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:32] = (200, 100, 0, 255)
    rgba[32:, :32] = (200, 100, 0, 51)  # a fifth
    straight, associated = tmp_path / "straight.tif", tmp_path / "associated.tif"
    tifffile.imwrite(straight, rgba, photometric="rgb", extrasamples=["unassalpha"])
    multiplied = rgba.copy()
    multiplied[32:, :32, :3] = (40, 20, 0)
    tifffile.imwrite(associated, multiplied, photometric="rgb", extrasamples=["assocalpha"])
    for path in (straight, associated):
        read = images.open_image(path).read(0, 0, 64, 64)
        colours = [read[0, 0], read[63, 0], read[63, 63]]
        assert [c.tolist() for c in colours] == [[200, 100, 0], [244, 224, 204], [255] * 3]


def test_tiles_left_out_of_a_tiff_are_white_and_places_missing_are_damage(tmp_path):
    path = tmp_path / "sparse.tif"
    write_pyramid(path, picture(), levels=1, compression="deflate")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        counts[1] = 0
        tiff.pages[0].tags["TileByteCounts"].overwrite(counts)
    read = images.open_image(path).read(0, 0, 470, 300)
    expected = picture()
    expected[:128, 128:256] = 255
    np.testing.assert_array_equal(read, expected)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["ImageLength"].overwrite(900)
    with pytest.raises(errors.ImageError, match=r"sparse\.tif is damaged.*12 of 32 tiles"):
        images.open_image(path)


@pytest.mark.parametrize("tag", ["TileWidth", "TileLength", "ImageWidth", "ImageLength"])
def test_a_side_of_zero_is_damage(tmp_path, tag):
    path = write_pyramid(tmp_path / "zero.tif", picture(), levels=1)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[tag].overwrite(0)
    with pytest.raises(errors.ImageError, match=r"zero\.tif"):
        images.open_image(path)


@pytest.mark.parametrize("trap", ["<!DOCTYPE OME [", "<!doctype x>", '<!ENTITY a "b">'])
def test_a_header_with_a_document_type_is_not_parsed(tmp_path, trap):
    path = tmp_path / "trap.ome.tif"
    text = f'<?xml version="1.0"?>{trap}<OME><Image/></OME>'
    tifffile.imwrite(path, picture(), photometric="rgb", description=text, metadata=None)
    with pytest.raises(errors.ImageError, match=r"trap\.ome\.tif is not safe.*document type"):
        images.open_image(path)


def test_long_and_broken_xml(monkeypatch):
    monkeypatch.setattr(claims, "MAX_XML_CHARACTERS", 40)
    assert wsi.parse_xml("<OME><Image/></OME>", "a").tag == "OME"
    assert wsi.parse_xml("<OME><Image></OME>", "a") is None
    assert wsi.parse_xml("no xml", "a") is None
    assert wsi.parse_xml("<?xml version='1.0' encoding='U'?><A/>", "a").tag == "A"
    with pytest.raises(errors.ImageError, match="at most 40 characters.*found 41"):
        wsi.parse_xml("<OME>" + " " * 30 + "</OME>", "a")


@pytest.mark.parametrize("suffix", wsi.BY_OPENSLIDE)
def test_without_openslide_it_says_what_to_install(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "openslide", None)  # what Python does for a missing module
    path = write_pyramid(tmp_path / f"slide{suffix.upper()}", picture())
    with pytest.raises(errors.ImageError, match=r"slide.* needs OpenSlide.*pip install 'stemjax"):
        images.open_image(path)


def jp2k_ycbcr(path, pixels):
    """An SVS whose tiles are YCbCr in JPEG 2000 (compression 33003), as older scanners wrote it."""
    tiles = []
    padded = np.pad(pixels, ((0, -pixels.shape[0] % 128), (0, -pixels.shape[1] % 128), (0, 0)))
    red, green, blue = np.moveaxis(padded.astype(float), 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    parts = [luma, 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402]
    ycbcr = np.rint(np.clip(np.stack(parts, axis=2), 0, 255)).astype(np.uint8)
    for y in range(0, ycbcr.shape[0], 128):
        for x in range(0, ycbcr.shape[1], 128):
            tile = np.ascontiguousarray(ycbcr[y : y + 128, x : x + 128])
            tiles.append(imagecodecs.jpeg2k_encode(tile, codecformat="j2k", mct=False))
    text = f"Aperio Image Library v10\r\n{pixels.shape[1]}x{pixels.shape[0]}|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            iter(tiles), shape=pixels.shape, dtype=np.uint8, tile=(128, 128), photometric="rgb",
            compression=33003, description=text, metadata=None,
        )  # fmt: skip
    return path


def test_ycbcr_in_jpeg_2000_needs_openslide(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    path = jp2k_ycbcr(tmp_path / "old.svs", picture())
    with pytest.raises(errors.ImageError, match=r"old\.svs needs OpenSlide.*pip install"):
        images.open_image(path)


def _thumbnail(reader, monkeypatch, *, band):
    monkeypatch.setattr(wsi, "_BAND", band)
    return reader.thumbnail(470)[0]


class TestOpenSlide:
    """With OpenSlide itself: `pip install 'stemjax[wsi]'`."""

    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("openslide", reason="OpenSlide (the extra wsi) is not installed")

    @pytest.fixture
    def both(self, tmp_path):
        """One tiled TIFF, read by tifffile and by OpenSlide, and its pixels."""
        pixels = picture((600, 940))
        path = write_pyramid(tmp_path / "slide.tif", pixels, compression="jpeg", mpp=0.5)
        return images.open_image(path), wsi.OpenSlideImage(path), tifffile.imread(path)

    @pytest.mark.parametrize("box", [*BOXES, (-50, -60, 1100, 800), (941, 10, 5, 5), (9, 9, 1, 1)])
    def test_its_pixels_are_those_of_tifffile(self, both, box):
        ours, theirs, pixels = both
        assert (theirs.width, theirs.height) == (ours.width, ours.height) == (940, 600)
        # Two decoders of JPEG: they round by one unit, rarely two.
        found = theirs.read(*box).astype(int)
        np.testing.assert_allclose(found, ours.read(*box), atol=3)
        np.testing.assert_allclose(found, around(pixels, *box), atol=3)

    @pytest.mark.parametrize("max_px", [118, 235, 400, 940, 2000])
    def test_its_thumbnails_too(self, both, max_px):
        ours, theirs, _ = both
        (one, scale), (other, same) = ours.thumbnail(max_px), theirs.thumbnail(max_px)
        assert scale == same
        np.testing.assert_allclose(one.astype(int), other, atol=4)

    def test_large_regions_are_read_in_bands(self, both, monkeypatch):
        _, theirs, _ = both
        whole = theirs.read(-10, -10, 960, 620)
        monkeypatch.setattr(wsi, "_BAND", 940 * 7)
        np.testing.assert_array_equal(theirs.read(-10, -10, 960, 620), whole)
        # Of a level too, whose places OpenSlide wants in level-0 pixels.
        half = _thumbnail(theirs, monkeypatch, band=10**7)
        np.testing.assert_array_equal(_thumbnail(theirs, monkeypatch, band=470 * 7), half)

    def test_threads_and_other_processes_read_the_same(self, both):
        _, theirs, _ = both
        boxes = [(x, y, 100, 100) for x in range(-50, 900, 70) for y in range(-50, 560, 70)]
        alone = [theirs.read(*box) for box in boxes]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda box: theirs.read(*box), boxes))
        copy = pickle.loads(pickle.dumps(theirs))
        for box, one, other in zip(boxes, alone, together, strict=True):
            np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(one, copy.read(*box))

    def test_the_budget_holds(self, both):
        with pytest.raises(errors.ImageError, match="smaller region"):
            both[1].read(0, 0, 10**6, 10**6)

    def test_ycbcr_in_jpeg_2000_has_its_colours(self, tmp_path):
        pixels = picture()
        reader = images.open_image(jp2k_ycbcr(tmp_path / "old.svs", pixels))
        assert isinstance(reader, wsi.OpenSlideImage)
        found = reader.read(50, 60, 300, 200).astype(int)
        np.testing.assert_allclose(found, pixels[60:260, 50:350], atol=12)  # lossy
        assert np.abs(found - pixels[60:260, 50:350]).mean() < 3

    def test_what_is_refused_for_its_content_stays_refused(self, tmp_path):
        path = tmp_path / "deep.tif"
        tifffile.imwrite(path, picture().astype(np.uint16), photometric="rgb", tile=(128, 128))
        with pytest.raises(errors.ImageError, match=r"deep\.tif.*uint16"):
            images.open_image(path)

    def test_one_damaged_tile_spoils_no_other(self, tmp_path):
        path = write_pyramid(tmp_path / "tile.tif", picture(), levels=1)
        with tifffile.TiffFile(path) as tiff:
            offset, count = (
                tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
            )  # fmt: skip
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"\x11" * count)
        reader = wsi.OpenSlideImage(path)
        whole = reader.read(0, 0, 100, 100)
        with pytest.raises(errors.ImageError, match=r"tile\.tif is damaged"):
            reader.read(130, 130, 10, 10)
        np.testing.assert_array_equal(reader.read(0, 0, 100, 100), whole)
        # Another thread met the damage in the same handle, which answers nothing more.
        with pytest.raises(Exception, match="."):
            reader._slide.read_region((130, 130), 0, (10, 10))
        np.testing.assert_array_equal(reader.read(0, 0, 100, 100), whole)

    def test_a_damaged_file_is_named(self, tmp_path):
        path = tmp_path / "scan.mrxs"
        path.write_bytes(b"\xff\xd8\xff" + b"\0" * 100)
        with pytest.raises(errors.ImageError, match=r"scan\.mrxs cannot be opened.*folder of its"):
            images.open_image(path)
