"""Ceilings against the exact best prediction of a known law of counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stemjax.eval import baselines, metrics


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


def moments(rate, forward):
    """Mean and variance of forward(count) for a Poisson count of each rate."""
    # On a grid of rates, then between: a step of 2 % leaves 1e-4 of a smooth function.
    grid = np.concatenate([[0.0], np.geomspace(1e-5, 250, 900)])
    count = np.arange(400)
    value = forward(count)
    chance = stats.poisson.pmf(count, grid[:, None])
    mean = chance @ value
    assert rate.max() < grid[-1]
    variance = chance @ value**2 - mean**2
    return np.interp(rate, grid, mean), np.interp(rate, grid, variance)


def log2p1(count):
    return np.log2(1.0 + count)


@pytest.fixture
def world(rng):
    """Gamma-Poisson counts of 10,000 spots, 24 genes with means from .3 to 30, and their rates."""
    level = np.geomspace(0.3, 30, 24)
    rate = rng.gamma(2.0, level / 2.0, (10000, 24))
    return rng.poisson(rate), rate


def test_the_ceiling_is_the_correlation_of_the_best_prediction(world):
    counts, rate = world
    found = baselines.noise_ceiling(counts, value_space="log2p1")
    best, noise = moments(rate, log2p1)
    # Exact: the share of variance that the rates decide, and its root.
    reliability = best.var(axis=0) / (best.var(axis=0) + noise.mean(axis=0))
    # The docstring's .02 for the step from half to full depth; 10,000 spots add .01. Where the
    # root of .12 is taken, .03 become .045.
    np.testing.assert_allclose(found.reliability, reliability, atol=0.03)
    np.testing.assert_allclose(found.pcc, np.sqrt(reliability), atol=0.045)
    # And the best prediction there is comes up to it on average, not above.
    reached = metrics.pcc_per_gene(best, log2p1(counts))
    assert np.mean(reached) == pytest.approx(np.mean(found.pcc), abs=0.01)
    assert found.pcc[0] < 0.6 < 0.95 < found.pcc[-1]  # the range is a range


def test_at_many_counts_a_spot_the_ceiling_is_the_closed_form(rng):
    # Rates large and alike: log2(count + 1) is linear over the noise, variance 1 / (rate ln²2).
    signal, level = 0.1, 400.0
    rate = level * np.exp2(signal * rng.normal(size=(4000, 8)))
    found = baselines.noise_ceiling(rng.poisson(rate), value_space="log2p1", splits=20)
    noise = 1 / (level * np.log(2) ** 2)
    # 4,000 spots: a correlation of .8 is known to (1 - .8²) / sqrt(4000) = .006; three of them.
    np.testing.assert_allclose(found.reliability, signal**2 / (signal**2 + noise), atol=0.02)


def test_depth_is_split_with_the_counts(rng):
    # All variation is depth, which counts per 10,000 take out: nothing is left to predict.
    depth = rng.integers(2000, 40000, 4000)
    share = np.full(10, 0.01)
    counts = rng.poisson(depth[:, None] * share)
    by_depth = baselines.noise_ceiling(counts, depth, value_space="log1p_cp10k")
    raw = baselines.noise_ceiling(counts, depth, value_space="log2p1")
    # Reliability 0 up to the correlation of 4,000 pairs, .016; the root of .06 is .25.
    assert by_depth.reliability.max() < 0.1
    assert raw.reliability.min() > 0.9


def test_the_halves_have_half_the_depth_each(world):
    # Every spot has 10,000 counts, so the value is log1p(count): its law is known exactly.
    counts, rate = world
    found = baselines.noise_ceiling(counts, np.full(len(counts), 10_000), value_space="log1p_cp10k")
    best, noise = moments(rate, np.log1p)
    reliability = best.var(axis=0) / (best.var(axis=0) + noise.mean(axis=0))
    # A half's counts are doubled, so the step to full depth starts from another function: within
    # .015 here; 10,000 spots add as much.
    np.testing.assert_allclose(found.reliability, reliability, atol=0.04)


def test_pure_noise_has_no_ceiling_and_constant_genes_no_number(rng):
    counts = rng.poisson(3.0, (2000, 40))
    counts[:, 5] = 4
    counts[:, 6] = 0
    mask = np.ones(40)
    mask[7] = 0
    found = baselines.noise_ceiling(counts, counts.sum(axis=1), mask, value_space="log2p1")
    undefined = np.isnan(found.pcc)
    assert np.flatnonzero(undefined).tolist() == [5, 6, 7]
    np.testing.assert_array_equal(undefined, np.isnan(found.reliability))
    assert found.reliability[~undefined].min() == 0.0  # below 0 is 0
    assert found.reliability[~undefined].max() < 0.1


def test_a_gene_seen_in_one_spot_alone_has_ceiling_0(rng):
    counts = np.concatenate([rng.poisson(5.0, (50, 3)), np.zeros((50, 1), int)], axis=1)
    counts[7, 3] = 1  # one molecule is in one half or the other, never in both
    found = baselines.noise_ceiling(counts, value_space="log2p1")
    assert found.pcc[3] == 0.0


def test_poisson_mse_is_its_sum_over_the_law(rng):
    counts = rng.integers(0, 30, (60, 20))
    mean, variance = moments(counts.astype(float), log2p1)
    expected = np.mean(variance + (mean - log2p1(counts)) ** 2)
    found = baselines.poisson_mse(counts, value_space="log2p1", resamples=200)
    # 240,000 squares of mean .3 and deviation .5: .001; three of them.
    assert found == pytest.approx(expected, abs=0.003)
    assert baselines.noise_ceiling(counts, value_space="log2p1").mse == pytest.approx(
        found, abs=0.02
    )
    only = np.zeros(20)
    only[3] = 1
    mean, variance = moments(counts[:, 3].astype(float), log2p1)
    found = baselines.poisson_mse(counts, None, only, value_space="log2p1", resamples=400)
    expected = np.mean(variance + (mean - log2p1(counts[:, 3])) ** 2)
    assert found == pytest.approx(expected, abs=0.01)  # 24,000 squares


def test_poisson_mse_is_near_the_error_of_one_who_knows_the_rates(world):
    counts, rate = world
    best, _ = moments(rate, log2p1)
    # What the docstring calls a scale: low since a 0 resamples to 0, here by 18 %.
    found, exact = (
        baselines.poisson_mse(counts, value_space="log2p1"),
        metrics.mse(best, log2p1(counts)),
    )
    assert 0.75 < found / exact < 1.0


def test_ceilings_depend_on_the_seed_alone(world):
    counts = world[0][:300]
    first = baselines.noise_ceiling(counts, value_space="log2p1", seed=4)
    again = baselines.noise_ceiling(counts, value_space="log2p1", seed=4)
    np.testing.assert_array_equal(first.pcc, again.pcc)
    assert first.mse == again.mse
    other = baselines.noise_ceiling(counts, value_space="log2p1", seed=5)
    assert not np.array_equal(first.pcc, other.pcc)


@pytest.mark.parametrize(
    ("counts", "total", "options", "message"),
    [
        ([[0.5, 1.0]], None, {}, "whole numbers"),
        ([[-1, 1]], None, {}, "whole numbers"),
        ([1, 2], None, {}, "whole numbers"),
        ([[3, 4]], [5], {}, "total"),
        ([[3, 4]], None, {"splits": 0}, "split"),
    ],
)
def test_what_is_no_count_is_refused(counts, total, options, message):
    with pytest.raises(ValueError, match=message):
        baselines.noise_ceiling(np.array(counts), total, value_space="log2p1", **options)
    if not options:
        with pytest.raises(ValueError, match=message):
            baselines.poisson_mse(np.array(counts), total, value_space="log2p1")
