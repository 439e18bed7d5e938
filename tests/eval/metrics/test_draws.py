"""Scores of draws: hand-computed numbers, closed forms, scipy, scoringrules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules
from scipy import special, stats

from stemjax.eval import metrics

# float64 sums over some hundred spots: rounding of about 1e-14, a margin of a hundred.
EXACT = 1e-12


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


def test_energy_score_of_spots_is_scoringrules_fair(rng):
    draws, true = rng.normal(size=(6, 30, 5)), rng.normal(size=(30, 5))
    expected = scoringrules.es_ensemble(
        true, draws, m_axis=0, v_axis=-1, estimator="fair", backend="numpy"
    )
    found = metrics.energy_score_per_spot(draws, true)
    np.testing.assert_allclose(found, expected, atol=EXACT)
    assert metrics.energy_score(draws, true) == pytest.approx(expected.mean())
    # What is not measured takes no part, spot by spot.
    mask = rng.random((30, 5)) < 0.6
    mask[3], mask[4, :4] = False, True
    draws[:, ~mask], true[~mask] = np.nan, np.inf
    found = metrics.energy_score_per_spot(draws, true, mask)
    some = mask[4]
    alone = scoringrules.es_ensemble(true[4, some], draws[:, 4, some], estimator="fair")
    assert found[4] == pytest.approx(alone)
    assert np.isnan(found[3])
    defined = np.delete(found, 3)
    assert metrics.energy_score(draws, true, mask) == pytest.approx(defined.mean())
    assert math.isnan(metrics.energy_score(draws, true, np.zeros(5)))
    with pytest.raises(ValueError, match="array of draws holds .* NaN"):
        metrics.energy_score(draws, true)
    with pytest.raises(ValueError, match=r"\(6, 30, 5\), \(30, 4\)"):
        metrics.energy_score(draws, true[:, :4])


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_variogram_score_of_spots_is_scoringrules_fair(rng, p):
    # More spots than are worked on at once.
    draws, true = rng.normal(size=(40, 1100, 6)), rng.normal(size=(1100, 6))
    some = slice(1085, 1100)
    for n in (40, 2):
        # Ordered pairs, summed, there: 6 x 5 of them.
        expected = scoringrules.vs_ensemble(
            true[some], draws[:n, some], m_axis=0, v_axis=-1, p=p, estimator="fair"
        )
        found = metrics.variogram_score_per_spot(draws[:n], true, p=p)
        np.testing.assert_allclose(found[some], expected / 30, atol=EXACT)
    single = metrics.variogram_score_per_spot(draws[:1], true, p=p)[some]
    plain = scoringrules.vs_ensemble(true[some], draws[:1, some], m_axis=0, v_axis=-1, p=p)
    np.testing.assert_allclose(single, plain / 30, atol=EXACT)


def test_variogram_score_takes_the_measured_pairs(rng):
    draws, true = rng.normal(size=(4, 5, 6)), rng.normal(size=(5, 6))
    mask = rng.random((5, 6)) < 0.7
    mask[0], mask[1] = False, np.arange(6) == 2
    hidden = np.where(mask, draws, np.nan)
    found = metrics.variogram_score_per_spot(hidden, true, mask)
    assert np.isnan(found[:2]).all()  # no gene, one gene: no pair
    for spot in (2, 3, 4):
        some = mask[spot]
        alone = metrics.variogram_score_per_spot(draws[:, [spot]][..., some], true[[spot]][:, some])
        assert found[spot] == pytest.approx(alone[0], abs=EXACT)
    assert metrics.variogram_score(hidden, true, mask) == pytest.approx(found[2:].mean())
    # An error that all genes share is not seen.
    shifted = metrics.variogram_score(draws + 3, true)
    assert shifted == pytest.approx(metrics.variogram_score(draws, true))
    assert math.isnan(metrics.variogram_score(draws, true, np.arange(6) == 1))
    with pytest.raises(ValueError, match="above 0"):
        metrics.variogram_score(draws, true, p=0)


def test_variogram_score_does_not_depend_on_the_number_of_draws(rng):
    true, draws = rng.normal(size=(4000, 3)), rng.normal(size=(12, 4000, 3))
    few, many = (metrics.variogram_score_per_spot(draws[:n], true) for n in (2, 12))
    apart = few - many
    # Unbiased: the same on average; without taking the variance off, 2 draws would score higher
    # by Var|X - X'|^(1/2) (1/2 - 1/12) = .17 x .42, nine standard errors or more.
    assert apart.mean() == pytest.approx(0.0, abs=4 * apart.std() / math.sqrt(4000))
    assert 9 * apart.std() / math.sqrt(4000) < 0.07


def test_wasserstein_is_scipys(rng, some_pair):
    pred, true = some_pair()
    mask = rng.random(true.shape) < 0.7
    mask[:, 2] = False
    pred[~mask] = np.nan
    found = metrics.wasserstein_per_gene(pred, true, mask)
    for g in (0, 1, 3, 4, 5, 6):
        some = mask[:, g]
        expected = stats.wasserstein_distance(pred[some, g], true[some, g])
        assert found[g] == pytest.approx(expected, abs=EXACT)
    assert np.isnan(found[2])
    # Where the values are does not matter; a shift costs itself.
    moved = metrics.wasserstein_per_gene(rng.permuted(true, axis=0) + 0.3, true)
    np.testing.assert_allclose(moved, 0.3, atol=EXACT)
