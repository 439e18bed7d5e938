"""Which points lie in tissue: edges, holes, strands, and the mask of an image."""

from __future__ import annotations

import numpy as np
import pytest

from stemjax import errors
from stemjax.data import images, tissue
from stemjax.data.layouts import st


def block(columns, rows, without=()):
    """Spots of a square array 200 um apart, some of them missing."""
    column, row = (a.ravel() for a in np.meshgrid(np.arange(columns), np.arange(rows)))
    return np.array([p for p in zip(column, row, strict=True) if p not in set(without)]) * 200.0


def inside(points, spots, **options):
    return tissue.in_tissue(200.0 * np.asarray(points, float), spots, 200.0, **options).tolist()


def test_a_block_ends_at_the_lines_between_its_outer_spots():
    spots = block(4, 3)
    on = [(0, 0), (0.5, 0), (1.25, 2), (3, 0.5), (1.5, 1.5), (2.9, 1.9), (-0.04, 1)]
    off = [(-0.1, 1), (1.5, 2.1), (3.5, 1), (-0.1, -0.1), (9, 9), (1.5, -0.06)]
    assert inside(on, spots) == [True] * len(on)
    assert inside(off, spots) == [False] * len(off)


def test_the_place_of_one_missing_spot_is_tissue_and_of_two_is_a_hole():
    one, two = block(7, 7, [(3, 3)]), block(7, 7, [(3, 3), (4, 3)])
    around = [(3, 3), (3.5, 3), (2.5, 3), (3, 2.5), (2.5, 3.5)]
    assert inside(around, one) == [True] * 5
    assert inside(around, two) == [False, False, False, False, True]  # the last between two spots
    # At the edge a missing spot is a notch: nothing lies beyond it.
    notch = [(3, 0), (3, 0.5), (2.5, 0.5), (2.6, 0.6), (2.6, 0.4)]
    assert inside(notch, block(7, 7, [(3, 0)])) == [False, False, True, True, False]


def test_the_same_of_a_hexagonal_array():
    column, row = (a.ravel() for a in np.meshgrid(np.arange(9), np.arange(9)))
    spots = 200 * np.stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2], axis=1)
    middle, beside = spots[40], spots[41]
    points = np.stack([middle, (middle + beside) / 2, middle + (50, 80)]) / 200
    assert inside(points, spots) == [True] * 3
    assert inside(points, np.delete(spots, 40, axis=0)) == [True] * 3
    assert inside(points, np.delete(spots, [40, 41], axis=0)) == [False] * 3


def test_a_ring_keeps_its_hole_and_its_edge():
    every = block(21, 21)
    far = np.linalg.norm(every - 2000, axis=1) / 200
    ring = every[(far <= 9) & (far >= 4)]
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 21, (4000, 2))
    radius = np.linalg.norm(points - 10, axis=1)
    found = np.array(inside(points, ring + rng.normal(0, 10, ring.shape)))
    # The outermost spots lie within a pitch of the circles, a cell's diagonal is 1.41 pitches.
    assert found[(radius > 5.0) & (radius < 7.6)].all()
    assert not found[(radius < 3.9 - 0.2) | (radius > 9.2)].any()


def test_a_strand_one_spot_wide_is_tissue_between_its_spots():
    strand = np.array([(0, 0), (1, 0), (2, 0), (2, 1), (9, 9)]) * 200.0
    assert inside([(0.5, 0), (1.25, 0), (2, 0.5), (9, 9)], strand) == [True] * 4
    assert inside([(0.5, 0.1), (2.5, 0), (5, 5), (8.5, 9)], strand) == [False] * 4
    # Spots in a row have no triangles at all, one spot has no neighbour.
    assert inside([(0.5, 0), (0.5, 0.5), (2.5, 0)], strand[:3]) == [True, False, False]
    assert inside([(0, 0), (0.5, 0)], strand[:1]) == [True, False]
    assert inside([(0, 0)], strand[:0]) == [False]


def test_reach_keeps_nearer_to_the_spots():
    spots = block(7, 7, [(3, 3)])
    points = [(3, 3), (1.5, 1.5), (1.5, 1)]  # 1, .71 and .5 from the nearest
    for reach, expected in [(1.0, [1, 1, 1]), (0.8, [0, 1, 1]), (0.6, [0, 0, 1]), (0.4, [0, 0, 0])]:
        assert inside(points, spots, reach=reach) == [bool(e) for e in expected]


def test_jitter_of_a_few_percent_opens_no_crack():
    rng = np.random.default_rng(1)
    spots = block(20, 20)
    points = rng.uniform(1, 18, (2000, 2))
    assert all(inside(points, spots + rng.normal(0, 0.05 * 200, spots.shape)))


def test_neither_the_order_of_spots_nor_of_points_matters():
    rng = np.random.default_rng(2)
    spots = block(12, 12, [(4, 4), (4, 5), (8, 8)])
    points = np.stack(np.meshgrid(np.arange(-1, 12, 0.5), np.arange(-1, 12, 0.5)), -1)
    points = points.reshape(-1, 2)
    one = np.array(inside(points, spots))
    assert 0 < one.sum() < len(one)
    for _ in range(3):
        order = rng.permutation(len(points))
        np.testing.assert_array_equal(inside(points[order], rng.permutation(spots)), one[order])


def test_a_mask_takes_away_but_not_where_spots_were_measured():
    spots = block(10, 5)
    seen = np.ones((100, 200), bool)  # 10 um a pixel: 2,000 x 1,000 um
    seen[:, 45:55] = False  # a tear from 450 to 550 um, between spots at 400 and 600
    seen[:, 130:] = False  # pale tissue, not seen from 1,300 um on
    mask = tissue.Mask(inside=seen, um_per_px=10)
    tear, kept, pale = [(2.5, 1), (2.5, 2.5)], [(2, 1.5), (3.5, 2), (6, 1)], [(7, 2.5), (8.5, 2.5)]
    assert inside([*tear, *kept, *pale], spots) == [True] * 7
    assert inside([*tear, *kept, *pale], spots, mask=mask) == [False] * 2 + [True] * 5
    # Off the mask and beyond .75 pitches from the first spot off it, at 1,400 um.
    assert inside([(6.2, 2), (6.9, 2)], spots[spots[:, 0] < 1500], mask=mask) == [True, True]
    assert inside([(6.52, 2)], block(7, 5), mask=mask) == [False]
    with_hole = block(10, 5, [(7, 2)])
    assert inside([(7, 2)], with_hole) == [True]
    assert inside([(7, 2)], with_hole, mask=mask) == [False]  # a pitch from any spot


def test_a_mask_ends_with_its_image():
    mask = tissue.Mask(inside=np.ones((3, 5), bool), um_per_px=100)
    points = np.array([(0, 0), (499, 299), (500, 0), (0, 300), (-1, 0), (0, -1)], float)
    assert mask.covers(points).tolist() == [True, True, False, False, False, False]


def test_what_cannot_be_a_footprint_is_refused():
    with pytest.raises(errors.SlideError, match="not finite"):
        tissue.in_tissue(np.zeros((1, 2)), np.full((3, 2), np.inf), 200.0)
    for pitch in (0.0, -1.0, float("nan")):
        with pytest.raises(errors.ConfigError, match="um above 0"):
            tissue.in_tissue(np.zeros((1, 2)), block(3, 3), pitch)


def drawn_thumbnail(height=400, width=600):
    """Glass, a stained disc with pale fat in it, a speck, and a tear."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    thumbnail = np.full((height, width, 3), (232, 222, 230), float)
    disc = np.hypot(x - 300, y - 200) < 150
    fat = (np.hypot(x - 340, y - 200) < 40) & (x % 14 > 1)  # between walls
    tear = np.hypot(x - 220, y - 200) < 30
    thumbnail[disc & ~fat & ~tear] = (150, 90, 160)
    thumbnail[40:44, 40:44] = (150, 90, 160)
    return np.clip(thumbnail + rng.normal(0, 3, thumbnail.shape), 0, 255).astype(np.uint8), disc


def test_a_mask_holds_stain_and_fat_and_no_glass():
    thumbnail, disc = drawn_thumbnail()
    mask = tissue.tissue_mask(thumbnail)
    assert (mask.shape, mask.dtype) == ((400, 600), bool)
    assert mask[200, 300:378].all()  # across the fat
    assert not mask[190:210, 210:230].any()  # the tear
    assert not mask[40:44, 40:44].any()  # the speck
    y, x = np.mgrid[:400, :600]
    rim = np.abs(np.hypot(x - 300, y - 200) - 150) < 4  # blurred by a pixel before the threshold
    outside_tear = np.hypot(x - 220, y - 200) > 40
    np.testing.assert_array_equal(mask[~rim & outside_tear], disc[~rim & outside_tear])


def test_tissue_reaches_to_the_border_of_its_image():
    thumbnail, _ = drawn_thumbnail()
    assert tissue.tissue_mask(thumbnail[:, 260:])[180:220, 0].all()
    # A strip of glass as narrow as the closing's radius stays glass: the disc ends at 450.
    assert not tissue.tissue_mask(thumbnail[:, :457])[180:220, -1].any()


def test_an_image_of_glass_alone_has_no_tissue():
    assert not tissue.tissue_mask(np.full((64, 80, 3), 240, np.uint8)).any()


@pytest.mark.her2st
@pytest.mark.parametrize(("section", "at_most"), [("C5", 0.02), ("B4", 0.05)])
def test_her2st_spots_lie_on_the_mask_of_their_image(her2st, section, at_most):
    # B4 is fat for a third: looked at, its mask lacks .2 mm2 of the palest, with 6 of 283 spots.
    slide = st.read_slide(her2st, section, need_image=False)
    (path,) = (her2st / "ST-imgs" / section[0] / section).glob("*.jpg")
    thumbnail, scale = images.open_image(path).thumbnail(1000)
    mask = tissue.Mask(inside=tissue.tissue_mask(thumbnail), um_per_px=slide.mpp / scale)
    xy = slide.pixel_xy.astype(float) * slide.mpp
    assert 1 - mask.covers(xy).mean() <= at_most
    assert mask.inside.mean() < 0.35  # glass is the larger part of these images
    assert tissue.in_tissue(xy, xy, 200.0, mask=mask).all()
