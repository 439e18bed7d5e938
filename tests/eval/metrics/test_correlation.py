"""Correlations: scipy, hand-computed numbers, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stemjax.eval import metrics

# float64 sums over some hundred spots: rounding of about 1e-14, a margin of a hundred.
EXACT = 1e-12


def test_pcc_is_pearsons_r(rng, some_pair):
    pred, true = some_pair()
    expected = [stats.pearsonr(pred[:, g], true[:, g]).statistic for g in range(7)]
    np.testing.assert_allclose(metrics.pcc_per_gene(pred, true), expected, atol=EXACT)
    # Far from zero the deviations lose digits of the mean's size: 1e5 x 2e-16 / 0.7.
    shifted = metrics.pcc_per_gene(pred + 1e5, true - 1e5)
    np.testing.assert_allclose(shifted, expected, atol=1e-9)


def test_pcc_uses_the_measured_entries_only(rng, some_pair):
    pred, true = some_pair()
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


def test_constant_truth_is_undefined_and_constant_prediction_scores_zero(rng, some_pair):
    pred, true = some_pair(genes=3)
    true[:, 0] = 0.1  # not a binary fraction: the mean of 120 of them is off by rounding
    pred[:, 1] = 1e6 / 3
    r = metrics.pcc_per_gene(pred, true)
    assert np.isnan(r[0])
    assert r[1] == 0.0
    assert r[2] > 0.3
    # The undefined gene is left out, the zero is not.
    assert metrics.pcc_top(r) == pytest.approx(r[2] / 2)


def test_values_that_are_not_finite_are_refused_where_measured(rng, some_pair):
    pred, true = some_pair()
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


def test_a_ranking_from_training_chooses_the_genes():
    pcc = np.array([0.1, 0.9, np.nan, -0.3, 0.5])
    ranking = np.array([3.0, -1.0, 9.0, 3.0, np.nan])
    # Gene 2 ranks first and is undefined on test: passed over; 0 and 3 tie in the panel's order.
    assert metrics.pcc_top(pcc, 1, ranking=ranking) == pytest.approx(0.1)
    assert metrics.pcc_top(pcc, 2, ranking=ranking) == pytest.approx(-0.1)
    assert metrics.pcc_top(pcc, 3, ranking=ranking) == pytest.approx(0.7 / 3)
    # The gene without a rank comes last, and is not left out.
    assert metrics.pcc_top(pcc, 4, ranking=ranking) == pytest.approx(0.3)
    assert metrics.pcc_top(pcc, 1, ranking=np.array([0, 0, 0, 0, -np.inf])) == pytest.approx(0.1)
    assert math.isnan(metrics.pcc_top(np.array([np.nan]), ranking=np.zeros(1)))
    with pytest.raises(ValueError, match=r"\(2,\), the correlations \(5,\)"):
        metrics.pcc_top(pcc, 1, ranking=np.zeros(2))


def test_only_the_ranking_on_test_finds_skill_in_noise(rng):
    true, pred = rng.normal(size=(2, 100, 500))
    pcc = metrics.pcc_per_gene(pred, true)
    # r of noise over 100 spots spreads by 1/10; the ten highest of 500 lie beyond two of those.
    assert metrics.pcc_top(pcc, 10) > 0.2
    honest = metrics.pcc_top(pcc, 10, ranking=rng.normal(size=500))
    assert abs(honest) < 4 * 0.1 / math.sqrt(10)


def test_pcc_of_spots_is_that_of_genes_turned_around(rng, some_pair):
    pred, true = some_pair()
    mask = rng.random(true.shape) < 0.8
    mask[5], mask[6] = False, np.arange(7) == 3
    pred[~mask] = np.nan
    r = metrics.pcc_per_spot(pred, true, mask)
    for spot in (0, 1, 50, 119):
        some = mask[spot]
        expected = stats.pearsonr(pred[spot, some], true[spot, some]).statistic
        assert r[spot] == pytest.approx(expected, abs=EXACT)
    # No gene measured, or one alone: nothing to correlate.
    assert np.isnan(r[[5, 6]]).all()


def test_centring_takes_the_genes_means_out_of_a_spots_correlation(rng):
    levels = 3 * rng.normal(size=40)
    true = levels + rng.normal(size=(30, 40))
    constant = np.tile(levels, (30, 1))
    # The means alone correlate by 3 / sqrt(9 + 1) = .95, and say nothing of the spot.
    assert metrics.pcc_per_spot(constant, true).mean() > 0.9
    np.testing.assert_array_equal(metrics.pcc_per_spot(constant, true, centre=levels), 0.0)
    # Still so when the prediction went through float32, as predictions do.
    stored = constant.astype(np.float32)
    np.testing.assert_array_equal(metrics.pcc_per_spot(stored, true, centre=levels), 0.0)
    pred = levels + 0.3 * (true - levels) + 0.1 * rng.normal(size=true.shape)
    found = metrics.pcc_per_spot(pred, true, centre=levels)
    expected = stats.pearsonr(pred - levels, true - levels, axis=1).statistic
    np.testing.assert_allclose(found, expected, atol=EXACT)
    with pytest.raises(ValueError, match="centre holds 1 NaN"):
        metrics.pcc_per_spot(pred, true, centre=np.where(np.arange(40) == 3, np.nan, levels))
    # A gene measured nowhere needs no centre.
    mask = np.arange(40) != 3
    levels[3] = np.nan
    assert np.isfinite(metrics.pcc_per_spot(pred, true, mask, centre=levels)).all()


def test_spearman_is_scipys_with_ties_and_masks(rng, some_pair):
    pred, true = some_pair()
    true = np.round(true)  # many ties
    mask = rng.random(true.shape) < 0.7
    mask[:, 2] = False
    pred[~mask] = np.nan
    rho = metrics.spearman_per_gene(pred, true, mask)
    for g in (0, 1, 3, 4, 5, 6):
        some = mask[:, g]
        expected = stats.spearmanr(pred[some, g], true[some, g]).statistic
        assert rho[g] == pytest.approx(expected, abs=EXACT)
    assert np.isnan(rho[2])


def test_spearman_sees_order_alone(some_pair):
    pred, true = some_pair(genes=3)
    rho = metrics.spearman_per_gene(pred, true)
    np.testing.assert_array_equal(metrics.spearman_per_gene(np.exp(pred), true**3), rho)
    np.testing.assert_allclose(metrics.spearman_per_gene(-pred, true), -rho, atol=EXACT)
    true[:, 0] = 0.1
    # Equal but for rounding: an order that no one predicted.
    pred[:, 1] = 1.3 + 2e-16 * np.arange(120)
    rho = metrics.spearman_per_gene(pred, true)
    assert np.isnan(rho[0])
    assert rho[1] == 0.0


def test_partial_correlation_is_the_textbooks_formula(rng, some_pair):
    pred, true = some_pair()
    depth = rng.normal(12.0, 1.0, 120)
    pred, true = pred + depth[:, None], true + 2 * depth[:, None]
    mask = rng.random(true.shape) < 0.8
    found = metrics.partial_pcc_per_gene(pred, true, depth, mask)
    for g in range(7):
        some = mask[:, g]
        x, y, z = pred[some, g], true[some, g], depth[some]
        xy, xz, yz = (stats.pearsonr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
        expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
        assert found[g] == pytest.approx(expected, abs=EXACT)
    # Most of the plain correlation was depth.
    assert (found < metrics.pcc_per_gene(pred, true, mask)).all()
    # A depth that does not vary explains nothing.
    np.testing.assert_allclose(
        metrics.partial_pcc_per_gene(pred, true, np.full(120, 9.1)),
        metrics.pcc_per_gene(pred, true),
        atol=EXACT,
    )


def test_a_prediction_made_of_depth_has_no_partial_correlation(rng, some_pair):
    _, true = some_pair(genes=3)
    depth = rng.normal(12.0, 1.0, 120)
    oracle = (0.3 + np.outer(depth, [1.0, -2.0, 0.5])).astype(np.float32)
    np.testing.assert_array_equal(metrics.partial_pcc_per_gene(oracle, true, depth), 0.0)
    assert np.isnan(metrics.partial_pcc_per_gene(true, oracle, depth)).all()
    assert np.abs(metrics.pcc_per_gene(oracle, true)).max() < 0.5
    with pytest.raises(ValueError, match="depth holds 1 NaN"):
        metrics.partial_pcc_per_gene(oracle, true, np.where(np.arange(120) == 7, np.nan, depth))
    with pytest.raises(ValueError, match=r"depth must be \[spots\]"):
        metrics.partial_pcc_per_gene(oracle, true, depth[:5])
