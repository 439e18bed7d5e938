"""Lattices of spots: turned, jittered and with holes; array coordinates of points between."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from stemjax import errors
from stemjax.data import lattice, slides
from stemjax.data.layouts import st


def sites(kind, columns, rows):
    """Centres of a block of an array, pitch 1."""
    column, row = (a.ravel() for a in np.meshgrid(np.arange(columns), np.arange(rows)))
    if kind == "square":
        return np.stack([column, row], axis=1).astype(float)
    return np.stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2], axis=1)


def turned(xy, degrees):
    angle = np.deg2rad(degrees)
    return xy @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def visium():
    """Array (column, row) of a whole Visium slide, and its centres in um, 100 um apart."""
    column, row = (a.ravel() for a in np.meshgrid(np.arange(128), np.arange(78)))
    real = (column + row) % 2 == 0
    array_xy = np.stack([column, row], axis=1)[real]
    return array_xy, array_xy * np.array([50.0, 50.0 * np.sqrt(3)])


@pytest.mark.parametrize("kind", ["square", "hexagonal"])
@pytest.mark.parametrize("degrees", [0, 7, 30, 45, 60, 90, 101, 213])
def test_a_turned_jittered_lattice_with_holes_is_found(kind, degrees):
    rng = np.random.default_rng(degrees)
    clean = 100 * sites(kind, 24, 20)
    clean = clean[rng.random(len(clean)) > 0.25]
    clean = clean[np.linalg.norm(clean - 900, axis=1) > 350]
    jitter = rng.normal(0, 4, clean.shape)
    found = lattice.find_lattice(turned(clean, degrees) + (700, -300) + jitter)
    assert found.kind == kind
    # 24 steps of a jitter of 4 um: the basis is known to about 4 / 24 / sqrt(300) of a pitch of
    # 100 um. Misjudging one spot by one step would cost more than .1.
    assert found.pitch_um == pytest.approx(100, abs=0.1)
    angle = np.rad2deg(np.arctan2(found.basis[0, 1], found.basis[0, 0]))
    turn = {"square": 90, "hexagonal": 60}[kind]
    assert (angle - degrees + turn / 2) % turn - turn / 2 == pytest.approx(0, abs=0.1)
    assert 5 - turn / 2 <= angle <= 5 + turn / 2  # whatever the turn, the same vector is the first
    assert found.rms_um == pytest.approx(4 * np.sqrt(2), rel=0.1)  # of 300 draws in two directions
    ij = np.rint(found.coordinates(turned(clean, degrees) + (700, -300)))
    assert len(np.unique(ij, axis=0)) == len(clean)


@pytest.mark.parametrize(("kind", "shape"), [("square", (316, 40)), ("hexagonal", (64, 78))])
def test_a_clean_lattice_is_found_to_rounding(kind, shape):
    xy = turned(16 * sites(kind, *shape), 12.5)
    found = lattice.find_lattice(xy)
    assert (found.kind, found.pitch_um) == (kind, pytest.approx(16, rel=1e-9))
    assert found.rms_um < 1e-7  # float64 of positions up to 5,000
    np.testing.assert_allclose(found.coordinates(xy), np.rint(found.coordinates(xy)), atol=1e-9)
    np.testing.assert_allclose(found.positions(found.coordinates(xy)), xy, atol=1e-8)


def test_two_islands_share_one_lattice():
    xy = sites("square", 60, 6) * 200
    xy = xy[(xy[:, 0] < 1500) | (xy[:, 0] > 9000)]
    found = lattice.find_lattice(xy + np.random.default_rng(0).normal(0, 8, xy.shape))
    assert found.kind == "square"
    assert found.pitch_um == pytest.approx(200, abs=0.5)
    assert len(found.sites(xy)) == len(xy)
    column = found.sites(xy)[:, 0]
    assert column.max() - column.min() == 59  # the gap is a whole number of steps


def test_a_long_array_is_counted_from_its_middle_outwards():
    # Stretched by 3 %, the first guess of equal sides is wrong by half of that: counted with it
    # from the middle, the ends of 160 columns would be off by a step.
    clean = sites("square", 160, 5)
    xy = clean * (206, 200) + np.random.default_rng(0).normal(0, 10, clean.shape)
    found = lattice.find_lattice(xy)
    # A slope over 160 columns and 800 spots is known to 10 / (46 sqrt(800)), over 5 rows to .25.
    np.testing.assert_allclose(found.basis, [[206, 0], [0, 200]], atol=1)
    steps = np.rint(found.coordinates(xy)) - clean
    np.testing.assert_array_equal(steps, np.broadcast_to(steps[0], steps.shape))


def test_an_image_stretched_by_a_few_percent_keeps_its_lattice():
    xy = sites("square", 20, 20) * (206, 200)
    found = lattice.find_lattice(xy)
    np.testing.assert_allclose(found.basis, [[206, 0], [0, 200]], atol=1e-9)
    assert found.pitch_um == pytest.approx(203)


@pytest.mark.parametrize(
    "xy",
    [
        np.empty((0, 2)),
        [[3.0, 4.0]],
        sites("square", 3, 1),
        100 * sites("square", 9, 1),  # a row: nothing tells the other direction
        np.random.default_rng(1).uniform(0, 1000, (400, 2)),
        np.repeat([[3.0, 4.0]], 9, axis=0),
    ],
    ids=["none", "one", "three", "row", "strewn", "same"],
)
def test_what_lies_on_no_lattice_is_irregular(xy):
    found = lattice.find_lattice(np.asarray(xy))
    assert found.kind == "irregular"
    assert np.isnan(found.rms_um)


def test_an_irregular_lattice_tells_the_distance_of_neighbours():
    found = lattice.find_lattice(np.array([[0.0, 0], [3, 4], [30, 40]]))
    assert (found.kind, found.pitch_um) == ("irregular", 5)  # of 5, 5 and 45


def test_jitter_past_the_limit_is_no_lattice():
    xy = 100 * sites("square", 20, 20)
    rng = np.random.default_rng(3)
    for share, kind in [(0.08, "square"), (0.25, "irregular")]:  # of the pitch, each direction
        found = lattice.find_lattice(xy + rng.normal(0, 100 * share, xy.shape))
        assert found.kind == kind


def test_the_order_of_the_spots_changes_no_bit():
    rng = np.random.default_rng(0)
    xy = turned(100 * sites("hexagonal", 20, 20), 17) + rng.normal(0, 4, (400, 2))
    one = lattice.find_lattice(xy)
    for _ in range(3):
        two = lattice.find_lattice(rng.permutation(xy))
        assert (two.kind, two.pitch_um, two.rms_um) == (one.kind, one.pitch_um, one.rms_um)
        np.testing.assert_array_equal(two.basis, one.basis)
        np.testing.assert_array_equal(two.origin, one.origin)


def test_bins_cost_no_more_calls_than_spots():
    # A loop over bins would call for each of them: 102,400 times.
    def calls(side):
        count = 0

        def tally(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        xy = turned(8.0 * sites("square", side, side), 30)
        sys.setprofile(tally)
        try:
            found = lattice.find_lattice(xy)
        finally:
            sys.setprofile(None)
        assert (found.kind, found.pitch_um) == ("square", pytest.approx(8))
        return count

    few, many = calls(20), calls(320)
    # The fit widens by 1.6: from 20 to 320 across takes log(16) / log(1.6) = 6 rounds more.
    assert many < 4 * few
    assert many < 2_000


def test_positions_that_are_none_are_refused():
    with pytest.raises(errors.SlideError, match="1 positions are not finite"):
        lattice.find_lattice(np.array([[0.0, 1], [np.nan, 2]]))
    with pytest.raises(errors.SlideError, match=r"no pairs.*\(3,\)"):
        lattice.find_lattice(np.zeros(3))


def test_array_coordinates_follow_any_convention():
    array_xy, xy = visium()
    xy = turned(xy, 33) * (1, -1)  # turned and mirrored
    between = (xy[0] + xy[1]) / 2, xy[5] + 0.25 * (xy[70] - xy[5])
    expected = (array_xy[0] + array_xy[1]) / 2, array_xy[5] + 0.25 * (array_xy[70] - array_xy[5])
    np.testing.assert_allclose(
        lattice.to_array(np.stack(between), xy, array_xy), np.stack(expected), atol=1e-9
    )


def test_jitter_does_not_shrink_the_array():
    rng = np.random.default_rng(0)
    array_xy = sites("square", 9, 9) + (1000, 50)
    slopes = []
    for _ in range(40):
        xy = 200 * array_xy + rng.normal(0, 40, array_xy.shape)
        corners = 200 * array_xy[[0, -1]]
        ends = lattice.to_array(corners, xy, array_xy)
        slopes.append((ends[1] - ends[0]) / 8)
    # Regressed on positions, the slope would be 1 - .2^2 / variance 6.67 = .994. Each slope is
    # known to .2 / sqrt(81 * 6.67) = .0086: their mean over 80 to .001.
    assert np.mean(slopes) == pytest.approx(1, abs=0.003)


def test_array_coordinates_need_an_array():
    array_xy = sites("square", 3, 3)
    with pytest.raises(errors.SlideError, match=r"three spots that are not in one line"):
        lattice.to_array(array_xy, array_xy[:3], array_xy[:3])
    with pytest.raises(errors.SlideError, match="cannot be derived"):
        lattice.to_array(array_xy, array_xy * (1, 0), array_xy)
    with pytest.raises(errors.SlideError, match="cannot be derived.*found 0 spots"):
        lattice.to_array(array_xy, array_xy[:0], array_xy[:0])
    with pytest.raises(errors.SlideError, match=r"for each of 9 spots.*shape \(8, 2\)"):
        lattice.to_array(array_xy, array_xy, array_xy[1:])


def test_a_frame_counts_from_the_arrays_first_site():
    array_xy, xy = visium()
    # All of it, or a part far from the array's corner: the same site is counted from.
    for rows in (slice(None), array_xy.sum(axis=1) > 150):
        found = lattice.find_lattice(xy[rows])
        frame = lattice.Frame.fit(found, xy[rows], array_xy[rows])
        assert frame.whole
        np.testing.assert_allclose(found.positions(frame.first[None]), [[0, 0]], atol=1e-8)
        np.testing.assert_array_equal(frame.array(frame.first[None]), [[0, 0]])


def test_a_frame_of_bare_positions_is_not_whole():
    xy = 100 * sites("hexagonal", 8, 8)
    found = lattice.find_lattice(xy)
    frame = lattice.Frame.fit(found, xy, xy / 87.3)
    assert not frame.whole
    np.testing.assert_allclose(frame.array(found.coordinates(xy)), xy / 87.3, atol=1e-8)


def test_array_coordinates_of_other_spots_are_refused():
    xy = 200 * sites("square", 8, 8)
    found = lattice.find_lattice(xy)
    mixed = np.random.default_rng(0).permutation(xy / 200)
    with pytest.raises(errors.SlideError, match=r"contradict.*same order"):
        lattice.Frame.fit(found, xy, mixed)
    with pytest.raises(errors.SlideError, match="contradict"):
        lattice.Frame.fit(found, xy, np.zeros((64, 2)))


@pytest.mark.her2st
def test_her2st_sections_are_square_and_agree_with_their_arrays(her2st):
    files = sorted((her2st / "ST-spotfiles").glob("*_selection.tsv"))
    assert files
    for file in files:
        table = pd.read_csv(file, sep="\t").query("selected == 1").dropna()
        array_xy, pixel_xy = table[["x", "y"]].to_numpy(), table[["pixel_x", "pixel_y"]].to_numpy()
        xy = pixel_xy * slides.pixel_size_from_pitch(array_xy, pixel_xy, st.SPOT_PITCH_UM)
        found = lattice.find_lattice(xy)
        assert found.kind == "square"
        assert found.pitch_um == pytest.approx(st.SPOT_PITCH_UM, rel=0.01)
        offset = found.coordinates(xy).round() - array_xy
        np.testing.assert_array_equal(offset, np.broadcast_to(offset[0], offset.shape))
