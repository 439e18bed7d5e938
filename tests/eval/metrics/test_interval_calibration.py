"""Calibration: hand-computed numbers, closed forms of a Gaussian that is too wide or off."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stemjax.eval import metrics

EXACT = 1e-12  # float64, a few operations


def gaussian(rng, shift=0.0, stretch=1.0, spots=20_000):
    """A normal forecast N(m + shift, stretch²) of truths from N(m, 1)."""
    mean = rng.normal(size=(spots, 1))
    forecast = metrics.Normal(mean=mean + shift, std=np.full((spots, 1), stretch))
    return forecast, mean + rng.normal(size=(spots, 1))


def test_covered_counts_both_ends_and_only_what_is_measured():
    true = np.array([[0.0, 1.0, 2.0, 3.0, np.nan]])
    lower, upper = np.array([[0.0, 0, 0, 0, 0]]), np.array([[2.0, 2, 2, 2, 9]])
    mask = np.array([1, 1, 1, 1, 0])
    inside = metrics.covered(lower, upper, true, mask)
    assert inside.tolist() == [[True, True, True, False, False]]
    assert metrics.coverage(lower, upper, true, mask) == 0.75
    upper[0, 0] = 4.0
    assert metrics.width(lower, upper, mask) == pytest.approx(10 / 4)
    assert math.isnan(metrics.coverage(lower, upper, true, mask * 0))
    assert math.isnan(metrics.width(lower, upper, mask * 0))
    with pytest.raises(ValueError, match="truth holds 1 NaN"):
        metrics.coverage(lower, upper, true)
    with pytest.raises(ValueError, match="3 intervals end below"):
        metrics.covered(upper[:, :3], lower[:, :3], true[:, :3])
    with pytest.raises(ValueError, match="lower end holds 5 NaN"):
        metrics.width(np.full((1, 5), np.inf), upper)
    with pytest.raises(ValueError, match=r"\(1, 5\), \(1, 4\)"):
        metrics.width(lower, upper[:, :4])


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (0.0, 0.6), (0.0, 1.7), (0.8, 1.0)])
def test_calibration_of_a_gaussian_is_its_closed_form(rng, shift, stretch):
    forecast, true = gaussian(rng, shift, stretch)
    pit = forecast.pit(true)
    # PIT <= p where the truth is at or below shift + stretch z_p.
    grid = np.array(metrics.GRID)
    curve = stats.norm.cdf(shift + stretch * stats.norm.ppf(grid))
    # Binomial, at most sqrt(1/4 / 20,000) = .0035; four of them.
    np.testing.assert_allclose(metrics.calibration_curve(pit), curve, atol=0.0142)
    error = metrics.calibration_error(pit)
    assert error == pytest.approx(np.abs(curve - grid).mean(), abs=0.0142)
    counts = metrics.pit_histogram(pit, bins=5)
    edges = stats.norm.cdf(shift + stretch * stats.norm.ppf(np.arange(6) / 5))
    expected = 20_000 * np.diff(edges)
    np.testing.assert_array_less(np.abs(counts - expected), 4 * np.sqrt(expected))
    for level in metrics.LEVELS:
        lower, upper = metrics.central(forecast, level)
        reach = stats.norm.ppf((1 + level) / 2) * stretch
        share = stats.norm.cdf(shift + reach) - stats.norm.cdf(shift - reach)
        within = 4 * math.sqrt(share * (1 - share) / 20_000)
        assert metrics.coverage(lower, upper, true) == pytest.approx(share, abs=within)


def test_calibration_error_of_the_extremes():
    # Always too low or too high: |0 - p| or |1 - p| over .05 .. .95, 1/2 on average.
    for pit in (0.0, 1.0):
        assert metrics.calibration_error(np.full((3, 2), pit)) == pytest.approx(0.5)
    even = ((np.arange(100) + 0.5) / 100).reshape(10, 10)
    assert metrics.calibration_error(even) == pytest.approx(0.0, abs=EXACT)
    halves = np.where(np.arange(10) < 5, 0.0, even)
    mask = np.arange(10) >= 5
    assert metrics.calibration_error(halves, mask) < metrics.calibration_error(halves)
    np.testing.assert_allclose(metrics.calibration_curve(even, [0.0, 0.25, 1.0]), [0, 0.25, 1])
    assert math.isnan(metrics.calibration_error(even, mask & False))
    for wrong in (np.nan, 1.5, -0.1):
        with pytest.raises(ValueError, match="1 PIT values"):
            metrics.pit_histogram(np.array([[0.5, wrong]]))
    assert metrics.pit_histogram(np.array([[0.5, np.nan]]), np.array([1, 0]), bins=2).sum() == 1


def test_draws_are_calibrated_exactly_at_their_own_levels():
    # Each of the n + 1 ranks once.
    values = np.arange(1.0, 21).reshape(20, 1, 1) * np.ones((20, 21, 1))
    true = np.arange(21)[:, None] + 0.5
    pit, levels = metrics.Draws(values=values).pit(true), np.arange(1, 21) / 21
    np.testing.assert_allclose(metrics.calibration_curve(pit, levels), levels, atol=EXACT)
    assert metrics.calibration_error(pit, levels=levels) == pytest.approx(0.0, abs=EXACT)
    assert metrics.pit_histogram(pit, bins=7).tolist() == [3] * 7
    assert metrics.rank_histogram(values, true, seed=0).tolist() == [1] * 21


def test_rank_histogram_by_hand_and_by_seed():
    draws = np.array([1.0, 2.0, 3.0]).reshape(3, 1, 1) * np.ones((3, 4, 2))
    true = np.array([[0.5, 1.5], [2.5, 3.5], [0.1, 9.0], [9.0, np.nan]])
    mask = ~np.isnan(true)
    mask[2] = False
    assert metrics.rank_histogram(draws, true, mask, seed=0).tolist() == [1, 1, 1, 2]
    zeros = np.zeros((3, 3000, 1))
    counts = metrics.rank_histogram(zeros, zeros[0], seed=1)
    # All equal: every rank as likely, 750 of each within four binomial errors.
    assert (np.abs(counts - 750) < 4 * math.sqrt(3000 * 3 / 16)).all()
    np.testing.assert_array_equal(counts, metrics.rank_histogram(zeros, zeros[0], seed=1))
    assert (counts != metrics.rank_histogram(zeros, zeros[0], seed=2)).any()
    with pytest.raises(ValueError, match="truth holds 1 NaN"):
        metrics.rank_histogram(draws, true, seed=0)


def test_ranks_of_a_law_with_atoms_are_flat(rng):
    # Counts, most of them 0 or 1, of one law; truths in float64, draws stored in float32.
    counts = np.log2(rng.poisson(0.8, (8, 9000, 1)) + 1.0)
    found = metrics.rank_histogram(counts[1:].astype(np.float32), counts[0], seed=4)
    assert stats.chisquare(found).pvalue > 1e-4


def test_sharpness_of_a_normal_law_by_closed_form():
    std = np.array([[1.0, 3.0, 99.0]])
    forecast = metrics.Normal(mean=np.array([[5.0, -2.0, np.nan]]), std=std)
    told = metrics.sharpness(forecast, np.array([1, 1, 0]), levels=(0.5, 0.9))
    assert told.std == pytest.approx(2.0)
    assert told.levels == (0.5, 0.9)
    # 2 z of .75 and of .95, times the mean std.
    assert told.widths == pytest.approx((2 * 0.6744898 * 2, 2 * 1.6448536 * 2))
    assert metrics.sharpness(forecast, np.array([1, 1, 0])).levels == metrics.LEVELS
    with pytest.raises(ValueError, match="holds 1 NaN"):
        metrics.sharpness(metrics.Normal(mean=std, std=std * [[1, np.nan, 1]]))
