"""Errors of entries: scikit-learn, hand-computed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics

from stemjax.eval import metrics

# float64 sums over some hundred spots: rounding of about 1e-14, a margin of a hundred.
EXACT = 1e-12


def test_errors_are_scikit_learns(rng, some_pair):
    pred, true = some_pair()
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


def test_errors_and_r2_of_each_gene_are_scikit_learns(rng, some_pair):
    pred, true = some_pair()
    np.testing.assert_allclose(
        metrics.mse_per_gene(pred, true),
        sklearn.metrics.mean_squared_error(true, pred, multioutput="raw_values"),
        rtol=EXACT,
    )
    np.testing.assert_allclose(
        metrics.r2_per_gene(pred, true),
        sklearn.metrics.r2_score(true, pred, multioutput="raw_values"),
        atol=EXACT,
    )
    mask = rng.random(true.shape) < 0.7
    mask[:, 2] = False
    pred[~mask] = np.nan
    error, r2 = metrics.mse_per_gene(pred, true, mask), metrics.r2_per_gene(pred, true, mask)
    for g in (0, 1, 3, 6):
        some = mask[:, g]
        x, y = pred[some, g], true[some, g]
        assert error[g] == pytest.approx(sklearn.metrics.mean_squared_error(y, x), rel=EXACT)
        assert r2[g] == pytest.approx(sklearn.metrics.r2_score(y, x), abs=EXACT)
    assert math.isnan(error[2])
    assert math.isnan(r2[2])


def test_r2_against_a_baseline_by_hand():
    true = np.array([[1.0, 0.1, 2.0], [3.0, 0.1, 2.0]])
    pred = np.array([[2.0, 0.3, 2.0], [4.0, 0.3, 3.0]])
    # Errors 1 + 1 against 1 + 1 about the own mean 2; a constant gene has no own mean to beat.
    np.testing.assert_array_equal(metrics.r2_per_gene(pred, true), [0.0, np.nan, np.nan])
    # Training means 0, .5 and 2: sums 1 + 9, 2 x .16 and an exact baseline.
    r2 = metrics.r2_per_gene(pred, true, baseline=np.array([0.0, 0.5, 2.0]))
    np.testing.assert_allclose(r2, [1 - 2 / 10, 1 - 0.08 / 0.32, np.nan])
    # The right pattern at the wrong level: below 0 against a mean that no model has seen.
    shifted = metrics.r2_per_gene(true + 5, true)
    assert shifted[0] == pytest.approx(1 - 50 / 2)
    with pytest.raises(ValueError, match="baseline holds 1 NaN"):
        metrics.r2_per_gene(pred, true, baseline=np.array([0.0, np.nan, 2.0]))
    with pytest.raises(ValueError, match=r"baseline must be \[genes\]"):
        metrics.r2_per_gene(pred, true, baseline=np.zeros(2))
