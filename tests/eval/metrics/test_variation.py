"""Variation over spots: closed forms, hand-computed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stemjax.eval import metrics

# float64 sums over some hundred spots: rounding of about 1e-14, a margin of a hundred.
EXACT = 1e-12


def test_rvd_of_a_scaled_truth(rng, some_pair):
    _, true = some_pair()
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
