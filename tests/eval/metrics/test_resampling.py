"""Blocks of spots, resamples of them, and the scores on those."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stemjax.eval import metrics

# float64 sums over some hundred spots: rounding of about 1e-14, a margin of a hundred.
EXACT = 1e-12


def test_blocks_are_five_by_five():
    x, y = np.meshgrid(np.arange(3, 13), np.arange(7, 22))
    xy = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
    blocks = metrics.spatial_blocks(xy)
    assert np.bincount(blocks).tolist() == [25] * 6
    for block in range(6):
        assert np.ptp(xy[blocks == block], axis=0).tolist() == [4.0, 4.0]


def test_sums_are_those_of_the_spots_drawn(rng):
    values = rng.normal(size=(60, 3, 2))
    blocks = np.repeat(np.arange(6), [7, 13, 10, 5, 15, 10])[rng.permutation(60)]
    found = metrics.resample(blocks, count=40, seed=3)
    picks = np.random.default_rng(3).integers(6, size=(40, 6))
    assert found.count == 40
    assert found.spots[0] == 60
    np.testing.assert_allclose(found.sums(values)[0], values.sum(axis=0), atol=EXACT)
    np.testing.assert_allclose(found.mean(values)[0], values.mean(axis=0), atol=EXACT)
    pairs = np.triu_indices(3, 1)
    products = found.products(values[..., 0], pairs)
    for i, pick in enumerate(picks, start=1):
        spots = np.concatenate([np.flatnonzero(blocks == block) for block in pick])
        assert found.spots[i] == len(spots)
        np.testing.assert_allclose(found.sums(values)[i], values[spots].sum(axis=0), atol=EXACT)
        gram = values[spots, :, 0].T @ values[spots, :, 0]
        # Products are kept in float32.
        np.testing.assert_allclose(products[i], gram[pairs], rtol=1e-4, atol=1e-4)


def test_resamples_know_that_neighbours_are_alike(rng):
    # Errors equal within each of 40 blocks of 25 spots: the MSE is a mean of 40 numbers, not 1000.
    error = rng.normal(size=40)
    blocks = np.repeat(np.arange(40), 25)
    drawn = metrics.resample(blocks, count=4000, seed=1).mean(error[blocks] ** 2)[1:]
    # The spread of 4,000 resamples is known to 1 / sqrt(2 * 4000) = 1.1 %: four of them.
    assert drawn.std() == pytest.approx((error**2).std() / math.sqrt(40), rel=0.045)


def test_resamples_are_a_function_of_seed_and_number_of_blocks():
    first = metrics.resample(np.array([0, 0, 1, 2]), count=9, seed=5)
    again = metrics.resample(np.array([7, 9, 9, 30]), count=9, seed=5)  # names do not matter
    np.testing.assert_array_equal(first.times, again.times)
    other = metrics.resample(np.array([0, 0, 1, 2]), count=9, seed=6)
    assert not np.array_equal(first.times, other.times)


@pytest.mark.parametrize(("blocks", "count"), [([0, 0, 0], 50), ([0, 1, 2], 1), ([0], 9)])
def test_one_block_or_one_resample_is_none(blocks, count):
    found = metrics.resample(np.array(blocks), count=count, seed=0)
    assert found.count == 0
    np.testing.assert_array_equal(found.sums(np.ones((len(blocks), 2))), [[len(blocks)] * 2])


def test_means_leave_undefined_values_out():
    values = np.array([[1.0, np.nan, 3.0], [np.nan] * 3])
    np.testing.assert_array_equal(metrics.mean_defined(values), [2.0, np.nan])


def test_interval_by_hand():
    assert metrics.interval(np.append(np.arange(101.0), np.nan)) == pytest.approx((2.5, 97.5))
    assert metrics.interval(np.arange(11.0), level=0.8) == pytest.approx((1.0, 9.0))
    assert metrics.interval(np.array([0.3, np.nan])) is None
