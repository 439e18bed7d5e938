"""Positions of a Visium array: its files, its pixel size in closed form, exchanged columns."""

import numpy as np
import pandas as pd
import pytest
import visium_folders as made

from stemjax import errors
from stemjax.data import slides
from stemjax.data.layouts import visium_array

EXCHANGED = {
    "pxl_row_in_fullres": "pxl_col_in_fullres",
    "pxl_col_in_fullres": "pxl_row_in_fullres",
}


@pytest.fixture
def outs(tmp_path):
    (tmp_path / "spatial").mkdir()
    return tmp_path


def read(outs, table, version=2):
    return visium_array.read_positions(made.write_positions(outs, table, version))


@pytest.mark.parametrize("version", [1, 2])
def test_positions_are_read_whole(outs, version):
    table = made.positions()
    found = read(outs, table, version)
    assert found.barcodes == tuple(table["barcode"])
    np.testing.assert_array_equal(found.under, table["in_tissue"] == 1)
    np.testing.assert_array_equal(found.array_xy[8], (3, 1))  # second spot of the second row
    np.testing.assert_array_equal(found.array_xy[:, 1], table["array_row"])
    # x is the image's column: 1.5 pitches right of the first spot, one row below it
    np.testing.assert_allclose(found.pixel_xy[8], (60 + 72, 50 + 48 * 0.75**0.5), rtol=1e-14)
    np.testing.assert_array_equal(found.pixel_xy[:, 0], table["pxl_col_in_fullres"])


def test_names_of_a_header_count_and_not_its_order(outs):
    straight = read(outs, made.positions())
    table = made.positions()[[*visium_array.COLUMNS[::-1]]].assign(extra="x")
    mixed = read(outs, table)
    assert mixed.barcodes == straight.barcodes
    np.testing.assert_array_equal(mixed.pixel_xy, straight.pixel_xy)
    np.testing.assert_array_equal(mixed.array_xy, straight.array_xy)
    np.testing.assert_array_equal(mixed.under, straight.under)


def test_header_with_a_mark_of_encoding_and_quotes(outs):
    path = made.write_positions(outs, made.positions())
    lines = path.read_text().splitlines()
    head = ",".join(f'"{name}"' for name in lines[0].split(","))
    path.write_text("\n".join([head, *lines[1:]]), encoding="utf-8-sig")
    assert visium_array.read_positions(path).barcodes == tuple(made.positions()["barcode"])


@pytest.mark.parametrize("degrees", [0, 30, 90, 197])
@pytest.mark.parametrize("pitch_px", [48.0, 273.4])
def test_pixel_size_in_closed_form(outs, degrees, pitch_px):
    table = made.positions()
    angle = np.deg2rad(degrees)
    x, y = (table[c] * pitch_px / made.PITCH_PX for c in visium_array.COLUMNS[:3:-1])
    table["pxl_col_in_fullres"] = np.cos(angle) * x - np.sin(angle) * y + 2000
    table["pxl_row_in_fullres"] = np.sin(angle) * x + np.cos(angle) * y + 2000
    mpp, notes = visium_array.measure_pixels(read(outs, table))
    assert mpp == pytest.approx(100 / pitch_px, rel=1e-12)
    assert notes == ()


def test_rounded_pixels_keep_the_pixel_size(outs):
    # Space Ranger 1 writes whole pixels: errors of 0.3 px (rms). A fit to 56 spots, whose positions
    # spread by 2 pitches of 48 px, keeps about 0.3 / sqrt(56) / 2 / 48 = 0.04 % of them.
    table = made.positions().round(dict.fromkeys(visium_array.COLUMNS[4:], 0))
    found = read(outs, table)
    mpp, _ = visium_array.measure_pixels(found)
    assert mpp == pytest.approx(made.MPP, rel=1e-3)
    # The median distance of neighbours is the other way to get at it.
    median = slides.pixel_size_from_pitch(found.array_xy, found.pixel_xy, 100.0)
    assert abs(mpp - made.MPP) < abs(median - made.MPP)


def test_pixels_that_are_not_quite_square(outs):
    table = made.positions()
    table["pxl_col_in_fullres"] *= 1.05
    mpp, _ = visium_array.measure_pixels(read(outs, table))
    assert mpp == pytest.approx(made.MPP / 1.05**0.5, rel=1e-12)  # of equal area


def test_pixel_size_needs_no_neighbours(outs):
    # Every third spot of every fourth row: the closest are 300 um apart, not 100.
    table = made.positions(rows=9, columns=9)
    table = table[(table["array_row"] % 4 == 0) & (table["array_col"] % 6 == 0)]
    mpp, _ = visium_array.measure_pixels(read(outs, table))
    assert mpp == pytest.approx(made.MPP, rel=1e-12)


@pytest.mark.parametrize("kept", [[0], [0, 9], [0, 1, 2, 3]])
def test_spots_in_a_line_do_not_tell_the_pixel_size(outs, kept):
    assert visium_array.measure_pixels(read(outs, made.positions().iloc[kept])) == (None, ())


def test_exchanged_pixels_are_noted(outs):
    found = read(outs, made.positions().rename(columns=EXCHANGED))
    mpp, notes = visium_array.measure_pixels(found)
    assert mpp == pytest.approx(made.MPP)
    assert len(notes) == 1
    assert "mirrored" in notes[0]
    assert "are exchanged" in notes[0]


def test_exchanged_array_is_refused(outs):
    names = {"array_row": "array_col", "array_col": "array_row"}
    with pytest.raises(errors.SlideError, match=r"do not fit each other.*83\.14 by 27\.71 px"):
        # Half a pitch for a row's sqrt(3)/2: 48 px * sqrt(3) and 48 px / sqrt(3).
        visium_array.measure_pixels(read(outs, made.positions().rename(columns=names)))


def test_stray_pixels_are_refused(outs):
    table = made.positions()
    table.loc[17, "pxl_col_in_fullres"] += 100
    with pytest.raises(errors.SlideError, match=r"do not fit.*C?17-1 \d+\.\d+ px from its place"):
        visium_array.measure_pixels(read(outs, table))
    table = made.positions()
    table["pxl_row_in_fullres"] = 5.0
    with pytest.raises(errors.SlideError, match=r"do not fit each other.*by .* px"):
        visium_array.measure_pixels(read(outs, table))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("in_tissue", 2),
        ("in_tissue", "yes"),
        ("array_row", "x"),
        ("array_row", 0.5),
        ("array_col", 3),  # odd in an even row
        ("pxl_row_in_fullres", ""),
        ("pxl_col_in_fullres", "inf"),
        ("pxl_col_in_fullres", "1e300"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_what_is_no_position_is_named(outs, column, value, version):
    table = made.positions().astype(object)
    table.loc[15, column] = value
    with pytest.raises(
        errors.SlideError, match=r"csv: 1 rows are no positions.*barcode T15-1, in_"
    ):
        read(outs, table, version)


def test_halves_of_array_positions_are_no_positions(outs):
    table = made.positions().astype({"array_row": float, "array_col": float})
    table.loc[15, ["array_row", "array_col"]] = 1.5, 2.5  # their sum is even
    with pytest.raises(errors.SlideError, match=r"1 rows are no positions.*array_row 1\.5"):
        read(outs, table)


@pytest.mark.parametrize("version", [1, 2])
def test_wrong_columns_are_named(outs, version):
    table = made.positions().drop(columns="array_col")
    with pytest.raises(
        errors.SlideError, match=r"not the columns.*array_col.*found (barcode|A00-1)"
    ):
        read(outs, table, version)
    # Without a header, another order is told by the values.
    table = made.positions()[["barcode", "array_row", "array_col", "in_tissue",
                              "pxl_row_in_fullres", "pxl_col_in_fullres"]]  # fmt: skip
    if version == 1:
        with pytest.raises(errors.SlideError, match="rows are no positions"):
            read(outs, table, version)


def test_header_of_other_names(outs):
    table = made.positions().set_axis(list("abcdef"), axis=1)
    with pytest.raises(
        errors.SlideError, match="1 rows are no positions.*barcode a, in_tissue nan"
    ):
        read(outs, table)


def test_damaged_files_are_named(outs):
    path = made.write_positions(outs, made.positions())
    for damage in (b"", b"\x00\xff" * 40, b"barcode\tin_tissue\n"):
        path.write_bytes(damage)
        with pytest.raises(errors.SlideError, match=r"tissue_positions\.csv"):
            visium_array.read_positions(path)
    path.write_text(",".join(visium_array.COLUMNS) + "\n")
    with pytest.raises(errors.SlideError, match=r"positions\.csv has no positions"):
        visium_array.read_positions(path)
    table = pd.concat([made.positions(), made.positions().iloc[[4]]])
    with pytest.raises(errors.SlideError, match="more than one position.*A04-1"):
        read(outs, table)
