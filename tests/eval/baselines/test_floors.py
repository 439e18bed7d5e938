"""Floors against closed forms and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from stemjax.eval import baselines, metrics


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


def test_constant_mean_counts_measured_spots_only():
    y = np.array([[1.0, 5.0, 7.0], [3.0, 100.0, 8.0]])
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    pred = baselines.constant_mean(y, mask, spots=2)
    np.testing.assert_array_equal(pred, [[2.0, 5.0, np.nan]] * 2)


def test_depth_oracle_recovers_a_line_in_log_depth(rng):
    total, test_total = rng.integers(100, 9000, 50), np.array([0, 63, 100_000])
    slope, start = np.array([0.8, -0.2, 0.0]), np.array([-3.0, 4.0, 1.0])
    y = start + np.log2(1.0 + total)[:, None] * slope
    mask = np.ones((50, 3))
    mask[:20, 1] = 0
    y[:20, 1] = 99.0
    pred = baselines.depth_oracle(y, mask, total, test_total)
    expected = start + np.log2(1.0 + test_total)[:, None] * slope
    np.testing.assert_allclose(pred, expected, atol=1e-10)  # an exact law: rounding only
    noisy = rng.normal(size=(50, 1))
    pred = baselines.depth_oracle(noisy, mask[:, :1], total, test_total)
    line = np.polyfit(np.log2(1.0 + total), noisy[:, 0], 1)
    np.testing.assert_allclose(pred[:, 0], np.polyval(line, np.log2(1.0 + test_total)), atol=1e-9)
    same = baselines.depth_oracle(noisy, mask[:, :1], np.full(50, 7), test_total)
    np.testing.assert_allclose(same, noisy.mean(), atol=1e-12)


def test_coordinates_of_an_identical_serial_section_give_pcc_1(rng):
    # Islands of 10 spots far apart, one expression each: the 10 nearest are the spot's own island.
    islands = rng.permutation(100)[:8] * 50.0
    xy = np.repeat(islands, 10)[:, None] + np.stack([np.arange(80) % 5, np.arange(80) % 2], axis=1)
    y = np.repeat(rng.normal(size=(8, 4)), 10, axis=0)
    mask = np.ones((80, 4))
    pred = baselines.coordinates_knn(xy, y, mask, xy)
    np.testing.assert_allclose(metrics.pcc_per_gene(pred, y), 1.0, atol=1e-12)
    # The nearest spot alone is the spot itself, whatever is measured there.
    x, y = np.meshgrid(np.arange(9), np.arange(9))
    xy, y = np.stack([x.ravel(), y.ravel()], axis=1), rng.normal(size=(81, 4))
    nearest = baselines.coordinates_knn(xy, y, np.ones((81, 4)), xy, k=1)
    np.testing.assert_array_equal(nearest, y)


def test_coordinates_knn_by_hand_with_ties_and_masks():
    xy = np.array([[0.0, 0], [1, 0], [-1, 0], [5, 0], [9, 0]])
    y = np.array([[1.0, 10], [2, 20], [6, 60], [50, 500], [90, 900]])
    mask = np.ones((5, 2))
    mask[[0, 2, 3], 1] = 0
    here = np.array([[0.0, 0.0]])
    # k = 2 ties two spots at distance 1: both count. Gene 1 was measured at 1 and 9 only.
    pred = baselines.coordinates_knn(xy, y, mask, here, k=2)
    np.testing.assert_allclose(pred, [[3.0, 460.0]])
    order = np.array([2, 4, 1, 0, 3])
    again = baselines.coordinates_knn(xy[order], y[order], mask[order], here, k=2)
    np.testing.assert_allclose(again, pred, rtol=1e-15)
    far = baselines.coordinates_knn(xy, y, mask, here, k=10)
    np.testing.assert_allclose(far, [[149 / 5, 460.0]])
    unmeasured = baselines.coordinates_knn(xy, y, mask * [1, 0], here, k=2)
    np.testing.assert_array_equal(unmeasured, [[3.0, np.nan]])
    assert baselines.coordinates_knn(xy[:0], y[:0], mask[:0], here) is None


def plaid(width, height):
    """Positions of a full square array, in the order of a table."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def test_neighbour_mean_of_a_plane_is_the_plane_inside(rng):
    xy = plaid(7, 6)
    slope = rng.normal(size=(2, 3))
    true = 4.0 + xy @ slope
    pred = baselines.neighbour_mean(true, np.ones(true.shape), xy)
    inside = ((xy > 0) & (xy < [6, 5])).all(axis=1)
    # The four sides of a spot average to it on any plane; float64 sums of values near 10.
    np.testing.assert_allclose(pred[inside], true[inside], atol=1e-12)
    # At a corner the four nearest are the two sides, the diagonal, and two more that tie.
    found = true[[1, 7, 8, 2, 14]].mean(axis=0)
    np.testing.assert_allclose(pred[0], found, atol=1e-12)


def test_neighbour_mean_never_takes_the_spot_itself(rng):
    xy = plaid(8, 8)
    for spot in (0, 5, 27):
        true = rng.normal(size=(64, 2))
        pred = baselines.neighbour_mean(true, np.ones(true.shape), xy)
        true[spot] += 100.0
        again = baselines.neighbour_mean(true, np.ones(true.shape), xy)
        np.testing.assert_array_equal(again[spot], pred[spot])
        changed = np.flatnonzero((again != pred).any(axis=1))
        apart = np.abs(xy[changed] - xy[spot]).sum(axis=1)
        assert changed.size >= 2
        assert apart.max() <= 2  # and reaches its neighbours alone
    order = rng.permutation(64)
    shuffled = baselines.neighbour_mean(true[order], np.ones(true.shape), xy[order])
    np.testing.assert_allclose(shuffled, again[order], rtol=1e-12)


def test_neighbour_mean_on_visium_is_the_four_diagonals():
    # Visium's array: columns of even number in even rows, odd in odd.
    xy = np.array([(c, r) for r in range(8) for c in range(20) if (c + r) % 2 == 0], float)
    true = (xy[:, :1] * 3 + xy[:, 1:] * 5) ** 2
    pred = baselines.neighbour_mean(true, np.ones(true.shape), xy)
    spot = int(np.flatnonzero((xy == [9, 3]).all(axis=1))[0])
    four = [(3 * (9 + i) + 5 * (3 + j)) ** 2 for i in (-1, 1) for j in (-1, 1)]
    np.testing.assert_allclose(pred[spot], np.mean(four), rtol=1e-12)


def test_neighbour_mean_is_of_the_spots_that_measured_the_gene():
    xy = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0], [9, 9]])
    true = np.array([[1.0, 7], [2, 7], [4, 7], [8, 7], [16, 7]])
    mask = np.ones((5, 2))
    mask[1, 0] = mask[1:, 1] = 0
    pred = baselines.neighbour_mean(true, mask, xy, k=1)
    # Spot 0's nearest that measured gene 0 is spot 2; spot 1, which did not, has 0 and 2 at one
    # distance; spot 2's is 3. Of gene 1 nobody but spot 0 knows, so spot 0 itself has no answer.
    np.testing.assert_array_equal(pred[:, 0], [4.0, 2.5, 8.0, 4.0, 8.0])
    np.testing.assert_array_equal(pred[:, 1], [np.nan, 7.0, 7.0, 7.0, 7.0])
    alone = baselines.neighbour_mean(true[:1], mask[:1], xy[:1])
    np.testing.assert_array_equal(alone, [[np.nan, np.nan]])
