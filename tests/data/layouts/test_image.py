"""Images alone as slides."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import pytest
from made_images import paint_section, write_ome, write_pyramid, write_svs
from PIL import Image

from stemjax import errors
from stemjax.data import patches, wsi
from stemjax.data.layouts import image as layout


@pytest.fixture(scope="module")
def painted():
    return paint_section(seed=1)


@pytest.fixture
def svs(tmp_path, painted):
    """2.5 mm x 2 mm at 2.5 um: two pieces of tissue."""
    return write_svs(tmp_path / "TCGA-A1.2b.svs", painted[0], fields="AppMag = 4|MPP = 2.5")


def test_an_image_is_a_slide_without_counts(svs, painted):
    assert layout.list_slides(svs) == ["TCGA-A1.2b"]
    slide = layout.read_slide(svs, "TCGA-A1.2b")
    assert (slide.measured, slide.genes, slide.patient) == (False, (), None)
    assert slide.counts.shape == (slide.n_spots, 0)
    assert (slide.mpp, slide.spot_diameter_um) == (2.5, 55.0)
    assert slide.sources == {svs.name: hashlib.sha256(svs.read_bytes()).hexdigest()}
    # Spots are 40 px apart, centres at 20, 60, ...: under each is tissue, with few exceptions at
    # the rim, and tissue has a spot within a tile.
    np.testing.assert_array_equal((slide.pixel_xy - 20) / 40, slide.array_xy)
    column, row = slide.pixel_xy.astype(int).T
    assert painted[1][row, column].mean() > 0.97
    assert slide.n_spots == pytest.approx(painted[1].sum() / 40**2, rel=0.05)
    assert slide.barcodes[0] == "{:.0f}x{:.0f}".format(*slide.array_xy[0])
    assert slide.notes[0] == "pixel size 2.5 um from Aperio's MPP = 2.5"
    assert any("of the image is tissue" in note for note in slide.notes)


def test_its_patches_show_what_is_there(svs, painted):
    slide = layout.read_slide(svs, "TCGA-A1.2b")
    found = patches.read_patches(slide, [0, 9], side=40, out_px=40).astype(int)
    for patch, (x, y) in zip(found, slide.pixel_xy[[0, 9]].astype(int).tolist(), strict=True):
        there = painted[0][y - 20 : y + 20, x - 20 : x + 20]
        assert np.abs(patch - there).mean() < 20  # JPEG of single nuclei at 2.5 um
        assert np.abs(patch.mean(axis=(0, 1)) - there.mean(axis=(0, 1))).max() < 3


def test_options_of_the_grid(svs):
    plain = layout.read_slide(svs, "TCGA-A1.2b")
    hexagonal = layout.read_slide(
        svs, "TCGA-A1.2b", grid="hexagonal", pitch_um=200.0, spot_um=100.0, min_tissue=0.9
    )
    assert hexagonal.spot_diameter_um == 100
    assert (hexagonal.array_xy.sum(axis=1) % 2 == 0).all()
    assert 0 < hexagonal.n_spots < plain.n_spots / 3
    strict = layout.read_slide(svs, "TCGA-A1.2b", min_tissue=0.99)
    assert set(strict.barcodes) < set(plain.barcodes)
    every = layout.read_slide(svs, "TCGA-A1.2b", whole=True)
    assert every.n_spots == 25 * 20
    assert "the whole image is taken for tissue" in every.notes


def test_outlines_are_a_source(svs, tmp_path):
    ring = [[0, 0], [400, 0], [400, 400], [0, 400], [0, 0]]
    path = tmp_path / "tissue.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    slide = layout.read_slide(svs, "TCGA-A1.2b", tissue=path)
    assert slide.n_spots == 100
    assert slide.sources[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder_of_images_without_what_lies_beside_them(tmp_path, painted):
    small = painted[0][:200, :260]
    names = ["b.jpg", "a.ome.tif", "c.d.png", "Label_study.png", "a_thumbnail.jpg", "b-label.png"]
    names += ["b.macro.jpg", "x mask.png", "THUMB.jpg", "._b.jpg", "notes.txt", "Maskat.png"]
    for name in names:
        if name.endswith(".tif"):
            write_ome(tmp_path / name, small)
        elif name.endswith(".txt"):
            (tmp_path / name).write_text("")
        else:
            Image.fromarray(small).save(tmp_path / name)
    (tmp_path / "folder.tif").mkdir()
    assert layout.list_slides(tmp_path) == ["Maskat", "a", "b", "c.d"]
    # Who names a file means it.
    assert layout.list_slides(tmp_path / "b-label.png") == ["b-label"]
    slide = layout.read_slide(tmp_path, "a", mpp=4.0, whole=True)
    assert slide.image is not None
    assert slide.image.source == "a.ome.tif"
    with pytest.raises(errors.SlideError, match="no image e at.*Maskat, a, b, c.d"):
        layout.read_slide(tmp_path, "e")
    Image.fromarray(small).save(tmp_path / "b.png")
    with pytest.raises(errors.SlideError, match=r"one name.*b\.jpg and b\.png"):
        layout.list_slides(tmp_path)


def test_nothing_there(tmp_path):
    for path, found in [(tmp_path, "a folder without"), (tmp_path / "x.svs", "neither")]:
        with pytest.raises(errors.SlideError, match=rf"no image of a slide.*\.svs.*{found}"):
            layout.list_slides(path)


def test_files_of_one_slide_are_one_slide(tmp_path, monkeypatch, painted):
    # Hamamatsu's .vms is a list of JPEG files beside it, MIRAX's .mrxs has a folder of its name.
    for name in ["CMU-1.vms", "CMU-1_map2.jpg", "CMU-1(1,0).jpg", "other.jpg", "m.mrxs"]:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "Slidedat.ini").write_bytes(b"ini")
    assert layout.list_slides(tmp_path) == ["CMU-1", "m", "other"]
    other = write_pyramid(tmp_path / "plain.tif", painted[0])

    class Opened(wsi.TiffImage):
        def __init__(self, path):
            super().__init__(other)

    monkeypatch.setattr(wsi, "OpenSlideImage", Opened)
    monkeypatch.setattr(layout.pixel_size, "read_mpp", lambda path: None)
    slide = layout.read_slide(tmp_path, "CMU-1", mpp=2.5)
    assert set(slide.sources) == {"CMU-1.vms", "CMU-1_map2.jpg", "CMU-1(1,0).jpg"}
    assert slide.sources["CMU-1.vms"] == hashlib.sha256(b"CMU-1.vms").hexdigest()
    slide = layout.read_slide(tmp_path, "m", mpp=2.5)
    assert set(slide.sources) == {"m.mrxs", "Slidedat.ini"}


def test_the_pixel_size_is_told_or_given_or_an_error(tmp_path, painted):
    path = tmp_path / "biopsy.jpg"
    Image.fromarray(painted[0]).save(path)
    with pytest.raises(errors.PixelSizeError, match=r"biopsy\.jpg does not tell.*--mpp"):
        layout.read_slide(path, "biopsy")
    slide = layout.read_slide(path, "biopsy", mpp=2.5)
    assert slide.mpp == 2.5
    assert slide.notes[0] == "pixel size 2.5 um, as given"


def test_a_size_that_contradicts_the_file_is_used_and_noted(svs, tmp_path, painted):
    for given, said in [(2.6, ""), (5.0, ", though TCGA-A1.2b.svs tells 2.5 um (Aperio's MPP")]:
        slide = layout.read_slide(svs, "TCGA-A1.2b", mpp=given)
        assert slide.mpp == given
        assert slide.notes[0].startswith(f"pixel size {given:g} um, as given{said}")
        assert ("though" in slide.notes[0]) == bool(said)
    only = write_svs(tmp_path / "only.svs", painted[0], fields="AppMag = 20")
    with pytest.raises(errors.PixelSizeError, match="usually means about 0.5 um: give --mpp 0.5"):
        layout.read_slide(only, "only")
    slide = layout.read_slide(only, "only", mpp=2.5)
    assert slide.notes[0] == "pixel size 2.5 um, as given; only.svs does not tell its pixel size"


def test_names_that_can_be_no_slide(tmp_path, painted):
    path = write_svs(tmp_path / "my slide.svs", painted[0])
    assert layout.list_slides(path) == ["my slide"]
    with pytest.raises(errors.SlideError, match="'my slide'.*Rename"):
        layout.read_slide(path, "my slide")


def test_a_scanners_format_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "scan.ndpi").write_bytes(b"II*\0")
    with pytest.raises(errors.ImageError, match=r"scan\.ndpi needs OpenSlide.*stemjax\[wsi\]"):
        layout.read_slide(tmp_path, "scan")
