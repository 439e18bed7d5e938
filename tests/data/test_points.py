"""Points between the spots: counts in closed form, names that stay, files of points."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from stemjax import errors
from stemjax.data import points, tissue
from stemjax.data.layouts import st


def st_block(columns, rows, first=(5, 7)):
    """Array (column, row) of a block of ST, and its centres in um, turned by 20 degrees."""
    column, row = (a.ravel() for a in np.meshgrid(np.arange(columns), np.arange(rows)))
    array_xy = np.stack([column, row], axis=1) + first
    return array_xy.astype(float), turned(200.0 * array_xy, 20)


def visium_block(rows=12, columns=30):
    """The same of a Visium array: every second column of a row."""
    column, row = (a.ravel() for a in np.meshgrid(np.arange(columns), np.arange(rows)))
    array_xy = np.stack([column, row], axis=1)[(column + row) % 2 == 0].astype(float)
    return array_xy, turned(array_xy * (50, 50 * np.sqrt(3)), 8)


def turned(xy, degrees):
    angle = np.deg2rad(degrees)
    return xy @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def jitter(xy, um, seed=0):
    return xy + np.random.default_rng(seed).normal(0, um, xy.shape)


def places(found):
    return dict(zip(found.names, found.array_xy.tolist(), strict=True))


@pytest.mark.parametrize("factor", [4, 9, 16])
def test_a_block_gets_exactly_the_points_between_its_spots(factor):
    array_xy, xy = st_block(6, 4)
    found = points.denser(xy, array_xy, factor=factor)
    n = int(factor**0.5)
    fine = [(x, y) for x in np.arange(5 * n + 1) / n for y in np.arange(3 * n + 1) / n]
    expected = {(x + 5, y + 7) for x, y in fine if x % 1 or y % 1}
    assert len(found.names) == len(expected) == (5 * n + 1) * (3 * n + 1) - 24
    rounded = {tuple(p) for p in found.array_xy.round(6).tolist()}
    assert rounded == {tuple(np.round(p, 6)) for p in expected}
    # Where they lie agrees with what they are called: float64 of positions up to 3,000 um.
    np.testing.assert_allclose(found.xy_um, turned(200 * found.array_xy, 20), atol=1e-5)
    assert found.spacing_um == pytest.approx(200 / n)


@pytest.mark.parametrize("um", [0, 10])
def test_half_steps_are_half_integers_and_names(um):
    array_xy, xy = st_block(6, 4)
    found = points.denser(jitter(xy, um), array_xy, factor=4)
    np.testing.assert_array_equal(found.array_xy * 2, np.rint(found.array_xy * 2))
    assert found.names == tuple(f"{x:g}x{y:g}" for x, y in found.array_xy)
    assert {"5.5x7", "5x7.5", "5.5x7.5", "9.5x10"} <= set(found.names)
    assert not {"5x7", "10x10", "4.5x7", "10.5x7"} & set(found.names)


def test_a_ninefold_lattice_has_short_names():
    array_xy, xy = st_block(3, 3)
    found = points.denser(jitter(xy, 3), array_xy, factor=9)
    assert {"5.333x7", "5.667x8.333"} <= set(found.names)


def test_a_hexagonal_lattice_stays_hexagonal():
    # A triangle with m spots on a side has m (m + 1) / 2: at half the pitch, with 2 m - 1 on a
    # side, (2 m - 1) m, of which the new are 3 m (m - 1) / 2.
    m = 9
    corner = [(i, j) for i in range(m) for j in range(m - i)]
    array_xy = np.array([(2 * i + j, j) for i, j in corner], float)
    xy = turned(array_xy * (50, 50 * np.sqrt(3)), 51)
    found = points.denser(xy, array_xy, factor=4)
    assert len(found.names) == 3 * m * (m - 1) // 2
    everything = np.concatenate([xy, found.xy_um])
    distance = np.linalg.norm(everything[:, None] - everything, axis=2)
    # Six neighbours at 50 um within, and never one nearer.
    assert (distance[distance > 0] > 50 - 1e-6).all()
    neighbours = np.sum(np.abs(distance - 50) < 1e-6, axis=1)
    assert (neighbours == 6).sum() == (2 * m - 4) * (2 * m - 3) / 2  # a triangle, less its rim


def test_midpoints_of_visium_are_right():
    array_xy, xy = visium_block()
    found = places(points.denser(jitter(xy, 3), array_xy, factor=4))
    # Between (4, 4) and its neighbours (6, 4) in the row and (5, 5), (3, 5) in the next.
    for name, place in [("5x4", [5, 4]), ("4.5x4.5", [4.5, 4.5]), ("3.5x4.5", [3.5, 4.5])]:
        assert found[name] == place
    assert "4x4" not in found
    # All of it: the midpoint of every pair of neighbours, each once.
    spots = {tuple(s) for s in array_xy}
    steps = [(2, 0), (1, 1), (-1, 1)]
    expected = {
        (x + dx / 2, y + dy / 2) for x, y in spots for dx, dy in steps if (x + dx, y + dy) in spots
    }
    assert {tuple(p) for p in found.values()} == expected


def test_jittered_spots_are_not_points_and_decide_over_none():
    array_xy, xy = st_block(12, 12)
    clean = points.denser(xy, array_xy, factor=4)
    for seed in range(5):
        rough = points.denser(jitter(xy, 12, seed), array_xy, factor=4)
        assert rough.names == clean.names
        # A mean of 144 spots errs by 12 um / 12, a slope by that / 3.5 a step: at a corner, 5.5
        # steps off both ways, by 2.4 um. Four times that.
        np.testing.assert_allclose(rough.xy_um, clean.xy_um, atol=10)


def test_a_spot_astray_on_a_new_place_takes_it():
    array_xy, xy = st_block(12, 12)
    found = points.denser(xy, array_xy, factor=4)
    strayed = np.append(xy, found.xy_um[[30]] + 2, axis=0)
    again = points.denser(strayed, np.append(array_xy, found.array_xy[[30]], axis=0), factor=4)
    assert set(found.names) - set(again.names) == {found.names[30]}


def test_a_missing_spot_becomes_a_point_and_a_hole_stays():
    array_xy, xy = st_block(9, 9)
    one = ~(array_xy == (8, 9)).all(axis=1)
    assert "8x9" in points.denser(xy[one], array_xy[one], factor=4).names
    hole = np.abs(array_xy - (9, 11)).max(axis=1) > 1
    names = points.denser(xy[hole], array_xy[hole], factor=4).names
    assert not {"9x11", "9x10", "8x10", "8.5x11", "7.5x11", "8.5x10.5"} & set(names)
    assert {"7x10.5", "7x11.5", "8.5x9", "7.5x9"} <= set(names)


def test_the_order_of_the_spots_changes_nothing():
    array_xy, xy = visium_block()
    xy = jitter(xy, 3)
    for make, option in [(points.denser, {"factor": 4}), (points.at_pitch, {"pitch_um": 37.0})]:
        one = make(xy, array_xy, **option)
        order = np.random.default_rng(1).permutation(len(xy))
        two = make(xy[order], array_xy[order], **option)
        assert two.names == one.names
        np.testing.assert_array_equal(two.xy_um, one.xy_um)
        np.testing.assert_array_equal(two.array_xy, one.array_xy)


def test_a_place_keeps_its_name_when_spots_elsewhere_are_lost():
    array_xy, xy = visium_block()
    xy = jitter(xy, 3)
    left = array_xy[:, 0] > 11
    for make, option in [(points.denser, {"factor": 4}), (points.at_pitch, {"pitch_um": 37.0})]:
        every, some = make(xy, array_xy, **option), make(xy[left], array_xy[left], **option)
        assert set(some.names) < set(every.names)
        rows = [every.names.index(name) for name in some.names]
        # The two fits differ by the jitter of 3 um over 180 and 110 spots, several times.
        np.testing.assert_allclose(some.xy_um, every.xy_um[rows], atol=3)


def test_bare_positions_for_an_array_give_names_by_the_lattice():
    _, xy = st_block(5, 5)
    found = points.denser(xy, xy / 173.0, factor=4)
    assert len(set(found.names)) == len(found.names) == 81 - 25
    np.testing.assert_allclose(found.array_xy, found.xy_um / 173.0, atol=1e-8)
    assert all(set(name) <= set("0123456789.x-") for name in found.names)


@pytest.mark.parametrize(
    ("factor", "near"), [*((f, "4 or 9") for f in (1, 0, -4, 5)), (12, "9 or 16")]
)
def test_a_factor_that_splits_no_lattice_is_refused(factor, near):
    array_xy, xy = st_block(5, 5)
    with pytest.raises(errors.ConfigError, match=f"found {factor}.*Take {near}"):
        points.denser(xy, array_xy, factor=factor)


def test_scattered_spots_are_made_denser_by_a_pitch_only():
    xy = np.random.default_rng(0).uniform(0, 3000, (300, 2))
    with pytest.raises(errors.ConfigError, match=r"300 spots on no lattice.*a pitch"):
        points.denser(xy, xy / 100, factor=4)
    found = points.at_pitch(xy, xy / 100, pitch_um=50)
    np.testing.assert_array_equal(found.xy_um % 50, 0)  # counted from the image's corner
    np.testing.assert_allclose(found.array_xy, found.xy_um / 100, atol=1e-9)
    # The spots' square holds 61 x 61; uneven as they are, most of it is between neighbours.
    assert 0.6 * 61**2 < len(found.names) <= 61**2
    assert "50um_30x30" in found.names


def test_a_pitch_gives_a_lattice_in_the_arrays_direction():
    array_xy, xy = st_block(9, 7, first=(0, 0))
    found = points.at_pitch(xy, array_xy, pitch_um=50)
    assert len(found.names) == 33 * 25
    np.testing.assert_allclose(found.array_xy * 4, np.rint(found.array_xy * 4), atol=1e-6)
    np.testing.assert_allclose(found.xy_um, turned(200 * found.array_xy, 20), atol=1e-5)
    assert places(found)["50um_0x0"] == [0, 0]
    assert found.spacing_um == 50
    # Wider than the array's own.
    assert len(points.at_pitch(xy, array_xy, pitch_um=400).names) == 5 * 4


def test_a_pitch_on_a_hexagonal_array_is_hexagonal():
    array_xy, xy = visium_block()
    found = points.at_pitch(xy, array_xy, pitch_um=30)
    distance = np.linalg.norm(found.xy_um[:, None] - found.xy_um, axis=2)
    np.testing.assert_allclose(np.sort(distance, axis=1)[:, 1], 30, atol=1e-6)
    neighbours = np.sum(np.abs(distance - 30) < 1e-6, axis=1)
    assert neighbours.max() == 6
    assert (neighbours == 6).mean() > 0.8  # all but the rim
    assert found.spacing_um == 30


def test_the_number_of_points_is_bounded_and_told():
    array_xy, xy = st_block(20, 20)
    with pytest.raises(errors.ConfigError, match=r"at most 5,000,000, found about 16,000,000"):
        points.at_pitch(xy, array_xy, pitch_um=1)
    with pytest.raises(errors.ConfigError, match=r"found about 399,999,600"):
        points.denser(xy, array_xy, factor=1000**2)
    for pitch in (0.0, -5.0, float("nan"), float("inf")):
        with pytest.raises(errors.ConfigError, match="um above 0"):
            points.at_pitch(xy, array_xy, pitch_um=pitch)


def test_two_spots_or_a_row_have_no_tissue_between():
    for xy in (np.empty((0, 2)), np.array([[0.0, 0], [200, 0]]), np.arange(6.0)[:, None] * (1, 1)):
        with pytest.raises(errors.SlideError, match="not in one line"):
            points.at_pitch(xy, xy, pitch_um=50)


def test_a_mask_limits_points():
    array_xy, xy = st_block(9, 7, first=(8, 8))
    seen = np.ones((400, 400), bool)
    (x, y) = points.denser(xy, array_xy, factor=4).xy_um[40]
    seen[int(y / 10) - 3 : int(y / 10) + 4, int(x / 10) - 3 : int(x / 10) + 4] = False
    mask = tissue.Mask(inside=seen, um_per_px=10)
    every = points.denser(xy, array_xy, factor=4)
    some = points.denser(xy, array_xy, factor=4, mask=mask)
    assert set(every.names) - set(some.names) == {every.names[40]}
    fine, left = (
        points.at_pitch(xy, array_xy, pitch_um=25, mask=m).xy_um.tolist() for m in (None, mask)
    )
    lost = np.array([p for p in fine if p not in left])
    assert len(lost) > 1
    assert (np.abs(lost - (x, y)) < 45).all()


@pytest.mark.her2st
def test_her2st_at_four_times_the_density(her2st):
    slide = st.read_slide(her2st, "C5", need_image=False)
    xy = slide.pixel_xy.astype(float) * slide.mpp
    found = points.denser(xy, slide.array_xy, factor=4)
    np.testing.assert_array_equal(found.array_xy * 2, np.rint(found.array_xy * 2))
    assert not set(found.names) & set(slide.barcodes)
    spots = {tuple(s) for s in slide.array_xy.tolist()}
    # In closed form: a point on a step lies between two measured spots, the middle of a cell is
    # in tissue with three of its corners (two triangles or one), and there are no lone holes.
    expected = {((a + 0.5), b) for a, b in spots if (a + 1, b) in spots}
    expected |= {(a, (b + 0.5)) for a, b in spots if (a, b + 1) in spots}
    corners = [(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)]
    for a, b in {(a + dx, b + dy) for a, b in spots for dx, dy in corners}:
        if sum((a + dx, b + dy) in spots for dx, dy in corners) >= 3:
            expected.add((a, b))
    assert {tuple(p) for p in found.array_xy.tolist()} == expected


ARRAY, XY = st_block(6, 6)


def read(path, text, **options):
    path.write_text(text)
    return points.read_points(path, xy_um=XY, array_xy=ARRAY, **options)


@pytest.mark.parametrize("separator", [",", "\t"])
def test_points_in_um_are_read(tmp_path, separator):
    rows = [["name", "x_um", "note", "y_um"], ["a", "10", "", "20.5"], ["NA", "-3e1", "!", "40"]]
    found = read(tmp_path / "p.csv", "\n".join(separator.join(row) for row in rows) + "\n")
    assert found.names == ("a", "NA")
    np.testing.assert_array_equal(found.xy_um, [[10, 20.5], [-30, 40]])
    expected = turned(found.xy_um, -20) / 200
    np.testing.assert_allclose(found.array_xy, expected, atol=1e-9)
    assert found.spacing_um == pytest.approx(np.hypot(40, 19.5))


@pytest.mark.parametrize("columns", ["x,y", "pxl_col_in_fullres,pxl_row_in_fullres"])
def test_points_in_pixels_are_read(tmp_path, columns):
    found = read(tmp_path / "p.csv", f"{columns}\n100,200\n300,200\n", mpp=0.5)
    assert found.names == ("p000000", "p000001")
    np.testing.assert_array_equal(found.xy_um, [[50, 100], [150, 100]])
    with pytest.raises(errors.PixelSizeError, match=r"p\.csv gives positions in pixels.*mpp="):
        read(tmp_path / "p.csv", f"{columns}\n100,200\n")
    with pytest.raises(errors.PixelSizeError, match="found -1"):
        read(tmp_path / "p.csv", f"{columns}\n100,200\n", mpp=-1)


def test_positions_of_space_ranger_are_read(tmp_path):
    text = (
        "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
        "AAAC-1,1,0,16,40,20\nAAAG-1,0,2,18,80,60\n"
    )
    path = tmp_path / "tissue_positions.csv.gz"
    path.write_bytes(gzip.compress(text.encode("utf-8-sig")))
    found = points.read_points(path, xy_um=XY, array_xy=ARRAY, mpp=0.5)
    assert found.names == ("AAAC-1", "AAAG-1")
    np.testing.assert_array_equal(found.xy_um, [[10, 20], [30, 40]])


def test_micrometres_go_before_pixels(tmp_path):
    found = read(tmp_path / "p.csv", "x,y,x_um,y_um\n1,2,30,40\n")
    np.testing.assert_array_equal(found.xy_um, [[30, 40]])
    assert found.spacing_um == pytest.approx(200)  # a point alone: that of the spots


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty, damaged or no table"),
        ("x_um,y_um\n", "holds no point"),
        ("x_um,row\n1,2\n", r"no columns of positions.*x_um and y_um or x and y or pxl.*x_um, row"),
        ("x_um;y_um\n1;2\n", "no columns of positions.*found x_um;y_um"),
        ("x_um,y_um\n1,2\n3,oak\n", "1 positions are no finite numbers.*3, oak in line 3"),
        ("x_um,y_um\n,2\n3,4\n", "1 positions are no finite numbers.*in line 2"),
        ("x_um,y_um\n1,inf\nnan,4\n", "2 positions are no finite numbers"),
        ("name,x_um,y_um\na,1,2\nb,1,3\na,4,5\n", "names of points are not unique.*found a"),
        ("barcode,x_um,y_um\na,1,2\n ,1,3\n", "no name.*barcode in line 3"),
        ("x_um,y_um\n1,2,\n3,4,\n", "more fields than its header: expected 2 fields, found 3"),
        ('x_um,y_um\n"1,2\n3,4\n', "no table|no finite"),
    ],
)
def test_each_fault_of_a_file_is_told(tmp_path, text, message):
    with pytest.raises(errors.SlideError, match=message):
        read(tmp_path / "p.csv", text)


def test_a_file_that_is_none_is_told(tmp_path):
    with pytest.raises(errors.SlideError, match="there is no"):
        points.read_points(tmp_path / "none.csv", xy_um=XY, array_xy=ARRAY)
    path = tmp_path / "p.csv"
    path.write_bytes(b"x_um,y_um\n\xff\xfe,1\n")
    with pytest.raises(errors.SlideError, match="damaged"):
        points.read_points(path, xy_um=XY, array_xy=ARRAY)
