"""Metrics: hand-computed numbers, scipy and scikit-learn, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
from scipy import special, stats

from stemjax.eval import metrics

# float64 sums over some hundred spots: rounding of about 1e-14, a margin of a hundred.
EXACT = 1e-12


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


def some_pair(rng, spots=120, genes=7):
    true = rng.normal(3.0, 1.0, (spots, genes))
    return 0.5 * true + rng.normal(0.0, 0.7, (spots, genes)), true


def test_pcc_is_pearsons_r(rng):
    pred, true = some_pair(rng)
    expected = [stats.pearsonr(pred[:, g], true[:, g]).statistic for g in range(7)]
    np.testing.assert_allclose(metrics.pcc_per_gene(pred, true), expected, atol=EXACT)
    # Far from zero the deviations lose digits of the mean's size: 1e5 x 2e-16 / 0.7.
    shifted = metrics.pcc_per_gene(pred + 1e5, true - 1e5)
    np.testing.assert_allclose(shifted, expected, atol=1e-9)


def test_pcc_uses_the_measured_entries_only(rng):
    pred, true = some_pair(rng)
    mask = rng.random(true.shape) < 0.6
    mask[:, 2] = False
    pred[~mask] = np.nan
    r = metrics.pcc_per_gene(pred, true, mask.astype(np.uint8))
    for g in (0, 1, 3, 4, 5, 6):
        some = mask[:, g]
        assert r[g] == pytest.approx(stats.pearsonr(pred[some, g], true[some, g])[0], abs=EXACT)
    assert np.isnan(r[2])
    np.testing.assert_array_equal(
        np.isnan(metrics.pcc_per_gene(true, true, np.array([1, 0, 1, 1, 1, 1, 1]))),
        [False, True, False, False, False, False, False],
    )


def test_constant_truth_is_undefined_and_constant_prediction_scores_zero(rng):
    pred, true = some_pair(rng, genes=3)
    true[:, 0] = 0.1  # not a binary fraction: the mean of 120 of them is off by rounding
    pred[:, 1] = 1e6 / 3
    r = metrics.pcc_per_gene(pred, true)
    assert np.isnan(r[0])
    assert r[1] == 0.0
    assert r[2] > 0.3
    # The undefined gene is left out, the zero is not.
    assert metrics.pcc_top(r) == pytest.approx(r[2] / 2)


def test_values_that_are_not_finite_are_refused_where_measured(rng):
    pred, true = some_pair(rng)
    pred[3, 4] = np.nan
    with pytest.raises(ValueError, match="prediction holds 1 NaN"):
        metrics.pcc_per_gene(pred, true)
    with pytest.raises(ValueError, match="truth holds 1 NaN"):
        metrics.mse(true, pred)
    with pytest.raises(ValueError, match=r"\(120, 7\), \(120, 6\)"):
        metrics.rvd(true, true[:, :6])


def test_pcc_top_by_hand():
    pcc = np.array([0.1, 0.9, np.nan, -0.3, 0.5])
    assert metrics.pcc_top(pcc, 1) == pytest.approx(0.9)
    assert metrics.pcc_top(pcc, 2) == pytest.approx(0.7)
    assert metrics.pcc_top(pcc, 50) == metrics.pcc_top(pcc) == pytest.approx(0.3)
    assert math.isnan(metrics.pcc_top(np.array([np.nan]), 10))
    with pytest.raises(ValueError, match="found 0"):
        metrics.pcc_top(pcc, 0)


def test_errors_are_scikit_learns(rng):
    pred, true = some_pair(rng)
    assert metrics.mse(pred, true) == pytest.approx(
        sklearn.metrics.mean_squared_error(true, pred), rel=EXACT
    )
    assert metrics.mae(pred, true) == pytest.approx(
        sklearn.metrics.mean_absolute_error(true, pred), rel=EXACT
    )
    mask = np.array([1, 1, 0, 1, 0, 1, 1])
    kept = mask == 1
    assert metrics.mse(pred, true, mask) == pytest.approx(
        sklearn.metrics.mean_squared_error(true[:, kept], pred[:, kept]), rel=EXACT
    )
    assert math.isnan(metrics.mae(pred, true, np.zeros(7)))


def test_rvd_of_a_scaled_truth(rng):
    _, true = some_pair(rng)
    # Var(a x) = a² Var(x): RVD = (a² - 1)² for every gene.
    assert metrics.rvd(0.5 * true + 2, true) == pytest.approx(0.5625, rel=EXACT)
    assert metrics.rvd(np.ones_like(true), true) == 1.0
    factor = np.array([1.0, 1, 1, 1, 1, 1, 2])
    assert metrics.rvd(factor * true, true) == pytest.approx(9 / 7, rel=1e-11)
    true[:, 6] = 4.0  # constant in truth: left out, so the other six give 0
    assert metrics.rvd(factor * true, true) == pytest.approx(0.0, abs=EXACT)
    draws = np.stack([0.5 * true, true, 2 * true])
    assert metrics.rvd_of_draws(draws, true) == pytest.approx((0.5625 + 0 + 9) / 3, rel=1e-11)


def test_scores_of_an_average_of_draws_follow_the_closed_forms(rng):
    # performance.md 2.2: V = 1, share rho² explained; draws from the exact conditional law.
    rho2, k, spots, genes = 0.25, 4, 4000, 40
    mean = np.sqrt(rho2) * rng.normal(size=(spots, genes))
    noise = np.sqrt(1 - rho2) * rng.normal(size=(k + 1, spots, genes))
    true, draws = mean + noise[0], mean + noise[1:]
    pred = draws.mean(axis=0)
    # 160,000 entries: standard errors of about 0.003 (mse), 0.002 (pcc) and 0.003 (rvd), times 4.
    assert metrics.mse(pred, true) == pytest.approx((1 - rho2) * (1 + 1 / k), abs=0.012)
    pcc = metrics.pcc_top(metrics.pcc_per_gene(pred, true))
    assert pcc == pytest.approx(math.sqrt(rho2 / (1 + (1 - rho2) / (k * rho2))), abs=0.01)
    assert metrics.rvd(pred, true) == pytest.approx(((1 - 1 / k) * (1 - rho2)) ** 2, abs=0.012)
    # A sampler that is right has RVD 0 up to the sampling error of a variance, 4 / spots.
    assert metrics.rvd_of_draws(draws, true) < 4 * 4 / spots


def test_gene_variation_curves_by_hand():
    true = np.array([[4.0, 0.0, 1.0, 9.0], [6.0, 2.0, 1.0, 9.0]])
    pred = np.array([[1.0, 0.0, 2.0, 7.0], [3.0, 4.0, 2.0, 7.0]])
    curves = metrics.gene_variation_curve(pred, true, np.array([1, 1, 1, 0]))
    assert curves["mean"].order.tolist() == [1, 2, 0]
    assert curves["mean"].true.tolist() == [1.0, 1.0, 5.0]
    assert curves["mean"].pred.tolist() == [2.0, 2.0, 2.0]
    assert curves["variance"].order.tolist() == [2, 0, 1]
    assert curves["variance"].true.tolist() == [0.0, 1.0, 1.0]
    assert curves["variance"].pred.tolist() == [0.0, 1.0, 4.0]
    np.testing.assert_allclose(curves["mean_normalised"].true, [1 / 7, 1 / 7, 5 / 7])
    np.testing.assert_allclose(curves["mean_normalised"].pred, [1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(curves["variance_normalised"].pred, [0.0, 0.2, 0.8])


def test_standard_error_of_draws_by_hand():
    draws = np.array([1.0, 3.0, 5.0, 7.0]).reshape(4, 1, 1)
    # std with n - 1 of 1, 3, 5, 7 is sqrt(20 / 3); of the pair means 2, 6 it is sqrt(8).
    assert metrics.draw_standard_error(draws)[0, 0] == pytest.approx(math.sqrt(20 / 3 / 4))
    pairs = metrics.draw_standard_error(draws, antithetic=True)[0, 0]
    assert pairs == pytest.approx(math.sqrt(8 / 2))
    with pytest.raises(ValueError, match="pairs, found 3"):
        metrics.draw_standard_error(draws[:3], antithetic=True)
    with pytest.raises(ValueError, match="two independent"):
        metrics.draw_standard_error(draws[:2], antithetic=True)


def test_blocks_are_five_by_five():
    x, y = np.meshgrid(np.arange(3, 13), np.arange(7, 22))
    xy = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
    blocks = metrics.spatial_blocks(xy)
    assert np.bincount(blocks).tolist() == [25] * 6
    for block in range(6):
        assert np.ptp(xy[blocks == block], axis=0).tolist() == [4.0, 4.0]


def test_bootstrap_is_the_score_of_the_spots_drawn(rng):
    pred, true = some_pair(rng, spots=60, genes=6)
    true[:, 5] = 0.0
    true[:7, 5] = 1.3  # one block only: constant, so undefined, in many resamples
    pred[:, 4] = 2.7
    mask = np.ones((60, 6), np.uint8)
    mask[:, 3] = 0
    blocks = np.repeat(np.arange(6), [7, 13, 10, 5, 15, 10])
    drawn = metrics.block_bootstrap(pred, true, mask, blocks=blocks, resamples=40, seed=3)
    picks = np.random.default_rng(3).integers(6, size=(40, 6))
    assert any(0 not in pick for pick in picks)
    for i, pick in enumerate(picks):
        spots = np.concatenate([np.flatnonzero(blocks == block) for block in pick])
        r = metrics.pcc_per_gene(pred[spots], true[spots], mask[spots])
        # Sums of squares about the slide's mean, not the resample's: some digits fewer.
        assert drawn.pcc_all[i] == pytest.approx(metrics.pcc_top(r), abs=1e-10)
        expected = metrics.mse(pred[spots], true[spots], mask[spots])
        assert drawn.mse[i] == pytest.approx(expected, rel=1e-10)


def test_bootstrap_knows_that_neighbours_are_alike(rng):
    # Errors equal within each of 40 blocks of 25 spots: the MSE is a mean of 40 numbers, not 1000.
    error = rng.normal(size=40)
    blocks = np.repeat(np.arange(40), 25)
    pred = (error[blocks])[:, None]
    drawn = metrics.block_bootstrap(
        pred, np.zeros_like(pred), blocks=blocks, resamples=4000, seed=1
    )
    # The spread of 4,000 resamples is known to 1 / sqrt(2 * 4000) = 1.1 %: four of them.
    assert drawn.mse.std() == pytest.approx((error**2).std() / math.sqrt(40), rel=0.045)


def test_interval_by_hand():
    assert metrics.interval(np.append(np.arange(101.0), np.nan)) == pytest.approx((2.5, 97.5))
    assert metrics.interval(np.arange(11.0), level=0.8) == pytest.approx((1.0, 9.0))
    assert metrics.interval(np.array([0.3, np.nan])) is None


def test_energy_distance_by_hand_and_by_scipy(rng):
    # Points (0, 0), (3, 4) and (0, 0), (0, 12): E|X - Y| = (0 + 12 + 5 + sqrt(73)) / 4,
    # E|X - X'| = 5, E|Y - Y'| = 12.
    x, y = np.array([[0.0, 0], [3, 4]]), np.array([[0.0, 0], [0, 12]])
    expected = 2 * (17 + math.sqrt(73)) / 4 - 5 - 12
    assert metrics.energy_distance(x, y) == pytest.approx(expected, rel=EXACT)
    # scipy: one dimension, the square root of the V-statistic, whose means count the zeros.
    n, m = 700, 300  # more rows than are held at once
    x, y = rng.normal(size=(n, 1)), rng.normal(0.5, 2.0, size=(m, 1))
    within_x = np.abs(x - x.T).sum() / (n * (n - 1))
    within_y = np.abs(y - y.T).sum() / (m * (m - 1))
    biased = stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    unbiased = biased - within_x / n - within_y / m
    assert metrics.energy_distance(x, y) == pytest.approx(unbiased, abs=1e-10)
    with pytest.raises(ValueError, match="found 700 and 1"):
        metrics.energy_distance(x, y[:1])


def test_energy_distance_of_two_gaussians(rng):
    # X - Y ~ N(1, 2): E|X - Y| = 2 / sqrt(pi) exp(-1 / 4) + erf(1 / 2), E|X - X'| = 2 / sqrt(pi).
    apart = 2 / math.sqrt(math.pi) * math.exp(-0.25) + special.erf(0.5)
    expected = 2 * apart - 4 / math.sqrt(math.pi)
    x, y = rng.normal(size=(3000, 1)), rng.normal(1.0, 1.0, size=(3000, 1))
    # Standard error about 0.02 at 3,000 points (spread of 2 E|X - Y| given one point, 1.2 / 55).
    assert metrics.energy_distance(x, y) == pytest.approx(expected, abs=0.08)
    # Unbiased: small samples of one law average to 0 (the V-statistic would give 2 x 1.13 / 5).
    pairs = [metrics.energy_distance(*rng.normal(size=(2, 5, 1))) for _ in range(2000)]
    assert np.mean(pairs) == pytest.approx(0.0, abs=4 * np.std(pairs) / math.sqrt(2000))


def test_energy_score_by_hand_and_closed_form(rng):
    # Draws 1 and 4, truth 2: (1 + 2) / 2 - 3 / 2; the second spot 3 times as far apart.
    draws = np.array([[[1.0], [3.0]], [[4.0], [12.0]]])
    true = np.array([[2.0], [6.0]])
    assert metrics.energy_score(draws, true) == pytest.approx(0.0, abs=EXACT)
    assert metrics.energy_score(draws[:1], true) == pytest.approx((1 + 3) / 2)
    # The first spot's draws at 4 and 7: (2 + 5) / 2 - 3 / 2 = 2, the mean with the second's 0.
    assert metrics.energy_score(draws + np.array([[[3.0], [0.0]]]), true) == pytest.approx(1.0)
    both = np.concatenate([draws, rng.normal(size=(2, 2, 1))], axis=-1)
    wide = np.concatenate([true, np.full((2, 1), np.nan)], axis=-1)
    assert metrics.energy_score(both, wide, np.array([1, 0])) == pytest.approx(0.0, abs=EXACT)
    # In one dimension it is the CRPS, of N(0, 1) at y: y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi).
    y = 0.7
    closed = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / math.sqrt(math.pi)
    draws = rng.normal(size=(50, 2000, 1))
    score = metrics.energy_score(draws, np.full((2000, 1), y))
    # 2,000 independent scores with a spread of about 0.1 each.
    assert score == pytest.approx(closed, abs=4 * 0.1 / math.sqrt(2000))


def test_score_averages_over_single_draws(rng):
    pred, true = some_pair(rng, genes=20)
    draws, blocks = np.stack([pred, true]), np.repeat(np.arange(6), 20)
    scores = metrics.score(draws, true, blocks=blocks, resamples=30, seed=0)
    r = np.sort(metrics.pcc_per_gene(pred, true))[::-1]
    assert scores.pcc_10 == pytest.approx((r[:10].mean() + 1) / 2)
    assert scores.pcc_50 == scores.pcc_all == pytest.approx((r.mean() + 1) / 2)
    assert scores.mse == pytest.approx(metrics.mse(pred, true) / 2)
    assert scores.mae == pytest.approx(metrics.mae(pred, true) / 2)
    assert scores.rvd == pytest.approx(metrics.rvd(pred, true) / 2)
    alone = metrics.block_bootstrap(pred, true, blocks=blocks, resamples=30, seed=0)
    np.testing.assert_allclose(scores.resampled.pcc_all, (alone.pcc_all + 1) / 2, rtol=1e-12)
    for few in ({"resamples": 1, "blocks": blocks}, {"resamples": 30, "blocks": blocks * 0}):
        assert metrics.score(draws, true, seed=0, **few).resampled is None


def test_draws_are_described_on_the_measured_entries(rng):
    draws = rng.normal(size=(6, 30, 3))
    true, mask = rng.normal(size=(30, 3)), np.array([1, 0, 1])
    told = metrics.describe_draws(draws, true, mask)
    expected = math.sqrt(np.mean(draws.var(axis=0, ddof=1)[:, [0, 2]] / 6))
    assert told.standard_error == pytest.approx(expected)
    assert told.energy_score == metrics.energy_score(draws[..., [0, 2]], true[:, [0, 2]])
    pairs = np.repeat(draws[::2], 2, axis=0) * np.array([1, -1] * 3)[:, None, None]
    told = metrics.describe_draws(pairs, true, mask, antithetic=True)
    assert told.standard_error == pytest.approx(0.0, abs=EXACT)
    for n, antithetic in ((1, False), (2, True), (3, True)):
        told = metrics.describe_draws(draws[:n], true, mask, antithetic=antithetic)
        assert told.standard_error is None
