"""Spots and embeddings meet by name or by place, and what does not fit is said, not joined."""

import dataclasses
import re

import embedded_slide as made
import numpy as np
import pytest

from stemjax import errors
from stemjax.data import embedding_files
from stemjax.data.embedding_files.file import EmbeddingFile

SLIDE = made.make_slide()
XY = SLIDE.pixel_xy.astype(np.float64)
ROWS = made.order(SLIDE.n_spots)


def make_file(tmp_path, centres, *, side=made.SIDE, anchor="corner", barcodes=None, xy=None):
    """A file of patches with these centres, which states its coordinates as ``xy``."""
    values = made.vector(centres).astype(np.float32)[:, None]
    stated = centres - side / 2 if anchor == "corner" else centres
    return EmbeddingFile(
        path=tmp_path / "G1.h5",
        layout="h5",
        source="tests",
        shape=(len(centres), 1, made.WIDTH),
        load=lambda start, stop: values[start:stop],
        xy=stated if xy is None else xy,
        anchor=anchor,
        patch_px=side,
        barcodes=barcodes,
    )


def refused(file, match, slide=SLIDE, **options):
    with pytest.raises(errors.EncoderMismatchError, match=match) as caught:
        embedding_files.join(file, slide, **options)
    assert "G1" in caught.value.what
    return caught.value


def given(file, joined):
    return file.values(joined.rows)[:, 0]


@pytest.mark.parametrize("anchor", ["corner", "centre"])
def test_the_order_of_a_file_decides_nothing(tmp_path, anchor):
    for rows in (ROWS, ROWS[::-1], np.arange(SLIDE.n_spots)):
        file = make_file(tmp_path, XY[rows], anchor=anchor)
        joined = embedding_files.join(file, SLIDE)
        np.testing.assert_array_equal(given(file, joined), made.vector(XY))


def test_equally_near_tiles_are_chosen_by_place(tmp_path):
    # A spot on the borders of tiles: the upper, then the left one, in whatever order they are.
    middle = np.array([[300, 400]]) + made.TILE * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    spots = np.concatenate([[[428, 528]], np.tile(middle[3:] + 40, (23, 1))])
    slide = dataclasses.replace(SLIDE, pixel_xy=spots)
    for rows in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        file = make_file(tmp_path, middle[rows].astype(float), side=made.TILE)
        joined = embedding_files.join(file, slide)
        np.testing.assert_array_equal(given(file, joined)[0], made.vector(middle[:1])[0])


def test_269_of_270(tmp_path):
    path = made.write_hest(tmp_path / "G1.h5", SLIDE, n=23)
    file = embedding_files.read(path)
    lost = SLIDE.barcodes[ROWS[-1]]
    error = refused(file, "1 of 24 spots of slide G1 have no embedding")
    assert error.found == f"none for {lost}"
    assert 'missing="drop"' in error.fix
    joined = embedding_files.join(file, SLIDE, missing="drop")
    kept = [row for row in range(24) if SLIDE.barcodes[row] != lost]
    assert joined.spots.tolist() == kept
    np.testing.assert_array_equal(given(file, joined), made.vector(XY[kept]))
    slide = embedding_files.cut(SLIDE, joined)
    assert lost not in slide.barcodes
    assert slide.notes == ("left out 1 spot without an embedding",)
    np.testing.assert_array_equal(slide.counts.toarray(), SLIDE.counts.toarray()[kept])
    np.testing.assert_array_equal(slide.pixel_xy, SLIDE.pixel_xy[kept])
    np.testing.assert_array_equal(slide.array_xy, SLIDE.array_xy[kept])
    assert slide.labels["region"] == tuple(SLIDE.labels["region"][row] for row in kept)
    # The other way round: an embedding too many is ignored, and said.
    joined = embedding_files.join(file, embedding_files.cut(slide, _first(22)))
    assert joined.notes == ("1 embeddings of G1.h5 belong to no spot of the slide",)


def _first(n):
    every = np.arange(n)
    return embedding_files.Joined(rows=every, spots=every, how="rows", notes=())


def test_dropping_most_of_a_slide_is_refused(tmp_path):
    file = embedding_files.read(made.write_hest(tmp_path / "G1.h5", SLIDE, n=11))
    refused(file, "13 of 24 .* fewer than 50%", missing="drop")


def test_suffix(tmp_path):
    file = embedding_files.read(made.write_hest(tmp_path / "G1.h5", SLIDE))
    bare = made.make_slide(suffix="")
    joined = embedding_files.join(file, bare)
    assert joined.notes == ("barcodes of G1.h5 and of the slide differ in '-1' at the end",)
    np.testing.assert_array_equal(given(file, joined), made.vector(XY))
    # -2 is another capture area, not another spelling.
    refused(dataclasses.replace(file, xy=None), "no barcode", made.make_slide(suffix="-2"))
    second = tuple(name.replace("-1", "-2") for name in file.barcodes)
    refused(dataclasses.replace(file, xy=None, barcodes=second), "no barcode", bare)


def test_a_file_that_names_another_slide_is_noted(tmp_path):
    file = dataclasses.replace(make_file(tmp_path, XY), slide_id="H7")
    joined = embedding_files.join(file, SLIDE)
    assert joined.notes == ("G1.h5 says that it is of H7, not of G1",)
    assert embedding_files.join(dataclasses.replace(file, slide_id="G1"), SLIDE).notes == ()


def test_names_unknown_but_places_known(tmp_path):
    names = tuple(f"tile {i}" for i in range(24))
    file = make_file(tmp_path, XY[ROWS], barcodes=names)
    joined = embedding_files.join(file, SLIDE)
    assert joined.how == "coordinates"
    np.testing.assert_array_equal(given(file, joined), made.vector(XY))


def test_twice(tmp_path):
    names = tuple(SLIDE.barcodes[row] for row in [*ROWS[:-1], ROWS[0]])
    file = make_file(tmp_path, XY[ROWS], barcodes=names)
    assert refused(file, "several rows").found == SLIDE.barcodes[ROWS[0]]
    twice = np.concatenate([XY[ROWS], XY[ROWS[:3]]])
    refused(make_file(tmp_path, twice), "several rows are of one place, which 3 spots lie in")


def test_the_same_barcodes_on_another_slide(tmp_path):
    # Every Visium slide has the same barcodes; here the tissue lies elsewhere.
    names = tuple(SLIDE.barcodes[row] for row in ROWS)
    elsewhere = XY[ROWS] + np.array([[3000.0, 500.0]])
    file = make_file(tmp_path, elsewhere, barcodes=names)
    error = refused(file, "barcodes are those of slide G1, and places are not")
    assert "another slide" in error.fix
    # Coordinates that are zero are none.
    nothing = dataclasses.replace(file, xy=np.zeros((24, 2)))
    assert embedding_files.join(nothing, SLIDE).how == "barcode"


@pytest.mark.parametrize(
    ("stated", "match"),
    [
        (XY[ROWS][:, ::-1] - 112, "x and y .* swapped"),
        (XY[ROWS] * 0.17, "0.17 times level-0"),
        (XY[ROWS], "centres of patches, not corners"),
    ],
    ids=["swapped", "hires", "centres"],
)
def test_mistaken_coordinates_are_named(tmp_path, stated, match):
    error = refused(make_file(tmp_path, XY[ROWS], xy=stated), match)
    assert "100% of the spots" in error.expected
    # Where barcodes join, the mistake is a note.
    names = tuple(SLIDE.barcodes[row] for row in ROWS)
    file = make_file(tmp_path, XY[ROWS], xy=stated, barcodes=names)
    joined = embedding_files.join(file, SLIDE)
    np.testing.assert_array_equal(given(file, joined), made.vector(XY))
    assert re.search(match, joined.notes[0])


def test_corners_stated_as_centres(tmp_path):
    file = make_file(tmp_path, XY[ROWS], anchor="centre", xy=XY[ROWS] - 112)
    error = refused(file, "corners of patches, not centres")
    assert 'anchor="corner"' in error.fix
    joined = embedding_files.join(file.taken_as("corner"), SLIDE)
    np.testing.assert_array_equal(given(file, joined), made.vector(XY))


@pytest.mark.parametrize(
    ("change", "match"),
    [(lambda xy: xy[:, ::-1], "swapped"), (lambda xy: xy / 16, "downscaled")],
    ids=["swapped", "scaled"],
)
def test_mistaken_grids_are_named(tmp_path, change, match):
    # A grid of tiles beyond the spots' own extent, wider than high: few fit when swapped.
    corners = made.grid(7, 4).astype(float)
    slide = dataclasses.replace(SLIDE, pixel_xy=SLIDE.pixel_xy * [[1.4, 0.8]])
    file = make_file(tmp_path, corners + 128, side=made.TILE)
    embedding_files.join(file, slide)
    refused(dataclasses.replace(file, xy=change(corners)), match, slide)


def test_a_grid_as_stated_is_not_suspected(tmp_path):
    # Tiles that spots lie in anyhow: half a tile of distance is no sign of anything.
    for shift in range(0, 256, 32):
        corners = made.grid(8, 6).astype(float) - shift
        joined = embedding_files.join(make_file(tmp_path, corners + 128, side=made.TILE), SLIDE)
        assert joined.how == "coordinates"
        assert (joined.rows >= 0).all()


def test_a_tile_further_than_half_its_side(tmp_path):
    shifted = XY[ROWS].copy()
    far = int(np.flatnonzero(ROWS == 5)[0])
    shifted[far] += [0, 120]  # of 112
    file = make_file(tmp_path, shifted)
    assert refused(file, "1 of 24").found == f"none for {SLIDE.barcodes[5]}"
    assert embedding_files.join(file, SLIDE, tolerance=0.6).how == "coordinates"


def test_slide_of_part_of_the_tiles_is_not_blamed_on_coordinates(tmp_path):
    corners = made.grid(7, 2).astype(float)  # the lower half was not tiled
    file = make_file(tmp_path, corners + 128, side=made.TILE)
    error = refused(file, "12 of 24 spots")
    assert "swapped" not in str(error)


def test_rows_only_as_asked_and_only_as_many(tmp_path):
    file = dataclasses.replace(make_file(tmp_path, XY), xy=None)
    error = refused(file, "which row is which spot")
    assert 'rows="as-slide"' in error.fix
    assert embedding_files.join(file, SLIDE, rows="as-slide").rows.tolist() == list(range(24))
    fewer = embedding_files.cut(SLIDE, _first(23))
    error = refused(file, "cannot be the spots", fewer, rows="as-slide")
    assert (error.expected, error.found) == ("23 rows, one for each spot", "24")
    assert "left out 1 spot" in error.fix


def test_shared_and_empty_tiles_are_notes(tmp_path):
    file = make_file(tmp_path, made.grid() + 128.0, side=made.TILE)
    joined = embedding_files.join(file, SLIDE)
    tiles, times = np.unique(made.tile_of(XY), axis=0, return_counts=True)
    assert joined.notes == (
        f"{times[times > 1].sum()} spots share a patch with another spot",
        f"{28 - len(tiles)} patches of G1.h5 hold no spot's centre",
    )
