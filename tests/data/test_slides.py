"""What a slide promises, and the error where a promise is broken."""

import hashlib
import pickle

import numpy as np
import pytest
import scipy.sparse

from stemjax import errors
from stemjax.data import images, slides

SIDE = 6  # spots on a square array
PITCH_PX = 50.0


def fields(**changes):
    """A valid 36-spot, 4-gene slide on a 500 x 400 image, with some fields changed."""
    column, row = (a.ravel() for a in np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
    array_xy = np.stack([column, row], axis=1)
    counts = np.random.default_rng(3).poisson(2.0, (SIDE * SIDE, 4))
    values = {
        "id": "A1",
        "patient": "A",
        "counts": scipy.sparse.csr_array(counts),
        "genes": ("ACTB", "ERBB2", "CD3E", "COL1A1"),
        "barcodes": tuple(f"{x}x{y}" for x, y in array_xy),
        "array_xy": array_xy,
        "pixel_xy": array_xy * PITCH_PX + 60,
        "image": images.ArrayImage(np.zeros((400, 500, 3), np.uint8), source="A1.jpg"),
        "mpp": 4.0,
        "spot_diameter_um": 100.0,
        "sources": {"A1.jpg": "0" * 64},
    }
    return values | changes


def with_count(value, dtype=np.float64):
    counts = fields()["counts"].toarray().astype(dtype)
    counts[7, 2] = value
    return counts


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float32, np.float64, np.int8])
@pytest.mark.parametrize(
    "layout", [np.asarray, scipy.sparse.csr_array, scipy.sparse.csc_matrix, scipy.sparse.coo_array]
)
def test_whole_numbers_of_any_layout_become_int32(dtype, layout):
    counts = fields()["counts"].toarray()
    slide = slides.Slide(**fields(counts=layout(counts.astype(dtype))))
    assert isinstance(slide.counts, scipy.sparse.csr_array)
    assert slide.counts.dtype == np.int32
    assert slide.counts.has_canonical_format
    np.testing.assert_array_equal(slide.counts.toarray(), counts)


def test_given_counts_are_left_alone():
    # Entry (0, 1) is stored twice and a zero is stored: the slide adds up and drops, its giver's
    # array stays.
    given = scipy.sparse.csr_array(
        (np.array([1, 2, 0, 5], np.int32), np.array([1, 1, 0, 3]), np.array([0, 3] + [4] * 35)),
        shape=(36, 4),
    )
    slide = slides.Slide(**fields(counts=given))
    assert slide.counts[0, 1] == 3
    assert slide.counts.nnz == 2
    assert given.data.tolist() == [1, 2, 0, 5]


def test_measures_follow_from_the_fields():
    slide = slides.Slide(**fields())
    assert slide.n_spots == 36
    assert slide.spot_diameter_px == 25.0  # 100 um at 4 um a pixel
    assert slide.pixel_xy.dtype == slide.array_xy.dtype == np.float32
    assert pickle.loads(pickle.dumps(slide)).barcodes == slide.barcodes  # for pools of processes


BROKEN = {
    "negative": ({"counts": with_count(-3)}, r"1 counts are negative.*-3.*1x1, gene CD3E.*raw"),
    "nan": ({"counts": with_count(np.nan)}, r"not finite.*nan.*1x1, gene CD3E.*raw counts"),
    "inf": ({"counts": with_count(np.inf)}, r"not finite.*inf"),
    "log": ({"counts": with_count(1.58)}, r"no whole numbers.*1\.58.*log-transformed"),
    "overflow": ({"counts": with_count(2**31, np.int64)}, r"above 2,147,483,647.*2147483648"),
    "text": ({"counts": np.full((36, 4), 1j)}, r"not numbers.*complex"),
    "flat": ({"counts": np.ones(36)}, r"two dimensions.*\(36,\)"),
    "no spots": (
        {
            "counts": np.zeros((0, 4)),
            "barcodes": (),
            "array_xy": np.zeros((0, 2)),
            "pixel_xy": np.zeros((0, 2)),
        },
        "is empty.*0 spots, 4 genes.*leave the slide out",
    ),
    "genes": ({"genes": ("ACTB",)}, "genes does not fit.*expected 4, found 1"),
    "barcodes": ({"barcodes": ("1x1",)}, "barcodes does not fit.*expected 36, found 1"),
    "shape": ({"pixel_xy": np.zeros((36, 3))}, r"pixel_xy does not fit.*\(36, 2\).*\(36, 3\)"),
    "double gene": (
        {"genes": ("ACTB", "TBCE", "TBCE", "CD3E")},
        "gene names are not unique.*TBCE x2.*add up",
    ),
    "double barcode": ({"barcodes": ("0x0",) * 36}, "barcode names are not unique.*0x0 x36"),
    "nan position": (
        {"pixel_xy": np.full((36, 2), np.nan)},
        "pixel_xy of 36 spots is not finite.*spot 0x0",
    ),
    "diameter": ({"spot_diameter_um": 0.0}, "spot diameter.*above 0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_promise_names_slide_place_and_remedy(case):
    changes, message = BROKEN[case]
    with pytest.raises(errors.SlideError, match=rf"slide A1.*{message}"):
        slides.Slide(**fields(**changes))


@pytest.mark.parametrize("mpp", [0.0, -0.5, np.nan, np.inf])
def test_pixel_size_must_be_positive(mpp):
    with pytest.raises(errors.PixelSizeError, match="slide A1: the pixel size.*mpp="):
        slides.Slide(**fields(mpp=mpp))


@pytest.mark.parametrize(
    "slide_id", ["../A1", "a/b", "/etc/x", "", "..", ".", "A 1", "A\0", "a\n", "é", "x" * 129]
)
def test_id_cannot_leave_its_folder(slide_id):
    with pytest.raises(errors.SlideError, match="slide id.*A-Z.*Rename"):
        slides.require_id(slide_id)
    with pytest.raises(errors.SlideError, match="slide id"):
        slides.Slide(**fields(id=slide_id))


def test_spots_outside_the_image():
    pixel_xy = fields()["pixel_xy"].copy()
    pixel_xy[5] = (500, 100)  # the first column beyond the right edge
    with pytest.raises(errors.ImageError, match=r"A1: 1 of 36 .*A1\.jpg.*500.*5x0 at \(500, 100\)"):
        slides.Slide(**fields(pixel_xy=pixel_xy))
    pixel_xy[5] = (499.9, 0)  # the last one
    assert slides.Slide(**fields(pixel_xy=pixel_xy)).n_spots == 36
    assert slides.Slide(**fields(pixel_xy=pixel_xy * 9, image=None)).n_spots == 36


def test_swapped_columns_are_recognised():
    flat = images.ArrayImage(np.zeros((400, 4000, 3), np.uint8), source="flat.png")
    pixel_xy = fields()["pixel_xy"] * (8, 1)
    assert slides.Slide(**fields(pixel_xy=pixel_xy, image=flat)).n_spots == 36
    with pytest.raises(errors.ImageError, match="only 0 would be outside.*swap the columns"):
        slides.Slide(**fields(pixel_xy=pixel_xy[:, ::-1], image=flat))
    with pytest.raises(errors.ImageError, match="full resolution") as caught:
        slides.Slide(**fields(pixel_xy=pixel_xy + 10_000, image=flat))
    assert "swap" not in str(caught.value)


def test_few_stray_spots_are_left_out_and_many_are_not():
    image = images.ArrayImage(np.zeros((100, 100, 3), np.uint8))
    xy = np.full((100, 2), 50.0)
    assert slides.inside_or_few(xy, image)[1] == ()
    xy[:5] = -1
    keep, notes = slides.inside_or_few(xy, image)
    assert np.flatnonzero(~keep).tolist() == [0, 1, 2, 3, 4]
    assert notes == ("left out 5 spots outside the image",)
    xy[5] = -1  # 6 %: too many to be strays
    assert slides.inside_or_few(xy, image)[0].all()
    assert slides.inside_or_few(xy, None)[0].all()


def lattice(kind):
    """Array and unit-pitch positions of a square (ST) or hexagonal (Visium) array."""
    column, row = (a.ravel() for a in np.meshgrid(np.arange(12), np.arange(10)))
    if kind == "square":
        return np.stack([column, row], axis=1), np.stack([column, row], axis=1).astype(float)
    column = 2 * column + row % 2  # Visium's array_col: every second one in a row
    return np.stack([column, row], axis=1), np.stack([column / 2, row * 3**0.5 / 2], axis=1)


@pytest.mark.parametrize("kind", ["square", "hexagonal"])
@pytest.mark.parametrize("degrees", [0, 17, 90])
def test_pixel_size_of_a_lattice(kind, degrees):
    array_xy, unit = lattice(kind)
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pixel_xy = 250.0 * unit @ turn.T + (3000, 4000)
    keep = np.random.default_rng(1).random(len(unit)) < 0.6  # gaps, and spots without neighbours
    found = slides.pixel_size_from_pitch(array_xy[keep], pixel_xy[keep], 100.0)
    assert found == pytest.approx(0.4, rel=1e-9)  # 100 um over 250 px; float64


def test_pixel_size_of_a_shaken_lattice():
    array_xy, unit = lattice("square")
    pixel_xy = 250.0 * unit + np.random.default_rng(2).normal(0, 5, unit.shape)
    # 218 pairs, each distance 250 +- 7: the median is good to .7 px, .3 %.
    assert slides.pixel_size_from_pitch(array_xy, pixel_xy, 200.0) == pytest.approx(0.8, rel=0.01)


@pytest.mark.parametrize(
    ("array_xy", "pixel_xy"),
    [
        ([[1, 1]], [[5, 5]]),
        ([[1, 1], [2, 1]], [[5, 5], [5, 5]]),
        ([[1, 1], [1, 1]], [[5, 5], [9, 9]]),
    ],
)
def test_pixel_size_needs_neighbours(array_xy, pixel_xy):
    with pytest.raises(errors.PixelSizeError, match="positions of [12] spots.*mpp="):
        slides.pixel_size_from_pitch(np.array(array_xy), np.array(pixel_xy), 200.0)


def test_sha256_is_of_the_bytes(tmp_path):
    data = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "x.bin").write_bytes(data)
    assert slides.sha256(tmp_path / "x.bin") == hashlib.sha256(data).hexdigest()


def test_labels_are_strings_in_the_spots_order():
    regions = ["tumour", "", *["stroma"] * 34]
    slide = slides.Slide(**fields(labels={"pathologist": np.array(regions), "leiden_0-5": regions}))
    assert slide.labels == {"pathologist": tuple(regions), "leiden_0-5": tuple(regions)}
    assert {type(value) for value in slide.labels["pathologist"]} == {str}
    assert slides.Slide(**fields()).labels == {}


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({"pathologist": ("tumour",) * 35}, "A1: label pathologist.*expected 36 .*found 35"),
        ({"pathologist": "t" * 36}, "A1: label pathologist does not fit.*one string"),
        ({"cluster": (*["a"] * 35, 3)}, "A1: label cluster has values that are no text.*found 3"),
        ({"cluster": (*["a"] * 35, None)}, "A1: label cluster has values.*found None"),
        ({"a/b": ("",) * 36}, "A1: a label's name.*'a/b'"),
        ({"": ("",) * 36}, "A1: a label's name.*''"),
        ({"array_row": ("",) * 36}, "A1: a label's name.*'array_row'"),
        ({"stemjax_nll": ("",) * 36}, "A1: a label's name.*'stemjax_nll'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, text):
    with pytest.raises(errors.SlideError, match=text):
        slides.Slide(**fields(labels=labels))
