"""Baseline forecasts: quantiles of training spots, residuals of spots that were held out."""

from __future__ import annotations

import numpy as np
import pytest
import training_sets
from scipy import stats

from stemjax.eval import baselines, metrics


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


def test_levels_hold_the_ends_of_every_reported_interval():
    levels = np.array(baselines.QUANTILE_LEVELS)
    for level in metrics.LEVELS:
        for end in ((1 - level) / 2, (1 + level) / 2):
            assert np.abs(levels - end).min() < 1e-12
    np.testing.assert_allclose(levels, 1 - levels[::-1], atol=1e-12)
    assert 0.5 in baselines.QUANTILE_LEVELS


def test_climatology_has_the_quantiles_of_the_spots_that_measured_the_gene():
    y = np.stack([np.arange(1.0, 200), np.arange(1.0, 200) * 10, np.zeros(199)], axis=1)
    mask = np.ones((199, 3))
    mask[:99, 0] = 0
    mask[:, 2] = 0
    forecast = baselines.climatology(y, mask, spots=4)
    # p (n + 1) in order statistics: of 100..199, of 10, 20, .. 1990; between them linear.
    first = 99 + np.array(baselines.QUANTILE_LEVELS) * 101
    np.testing.assert_allclose(forecast.values[:, 2, 0], first, rtol=1e-12)
    second = np.array(baselines.QUANTILE_LEVELS) * 2000
    np.testing.assert_allclose(forecast.values[:, 0, 1], second, rtol=1e-12)
    assert np.isnan(forecast.values[:, :, 2]).all()
    np.testing.assert_array_equal(forecast.values[:, 0], forecast.values[:, 3])


def test_climatology_covers_new_spots_of_the_same_law_at_every_level(rng):
    law = stats.gamma(2.0)
    forecast = baselines.climatology(
        law.rvs((3000, 20), random_state=rng), np.ones((3000, 20)), spots=3000
    )
    true = law.rvs((3000, 20), random_state=rng)
    for level in metrics.LEVELS:
        low, high = metrics.central(forecast, level)
        # 20 genes, each quantile off by sqrt(p (1 - p) / 3000) < .01: together .003 at most.
        assert np.mean((true >= low) & (true <= high)) == pytest.approx(level, abs=0.01)


def test_residual_width_is_of_held_out_spots_and_keeps_the_offset(rng):
    x, y, mask, slide, _ = training_sets.spots(rng, 60)
    y[slide == 1] += 3.0  # a slide's own level: part of the error on a new slide
    held_out = baselines.ridge_held_out(x, y, mask, fold=slide, alpha=1.0)
    pred = rng.normal(size=(4, 5))
    law = baselines.normal_residuals(pred, held_out, y, mask)
    np.testing.assert_allclose(law.std[2], np.sqrt(np.mean((y - held_out) ** 2, axis=0)))
    np.testing.assert_array_equal(law.mean, pred)
    off = baselines.normal_residuals(pred, y - 2.0, y, mask)  # off by a level and nothing else
    np.testing.assert_allclose(off.std, 2.0)


def test_held_out_width_covers_where_training_residuals_do_not(rng):
    # 100 rows, 60 columns: the fit eats most of the noise of its own rows.
    weights = rng.normal(size=(60, 30)) / 8
    x, test_x = rng.normal(size=(100, 60)), rng.normal(size=(2000, 60))
    y, true = (v @ weights + rng.normal(size=(len(v), 30)) for v in (x, test_x))
    fold, mask = np.arange(100) % 5, np.ones((100, 30))
    settings = {"slide_index": fold, "array_xy": np.zeros((100, 2)), "alphas": [1.0]}
    fitted = baselines.ridge(x, y, mask, test_x, **settings)
    held_out = baselines.ridge_held_out(x, y, mask, fold=fold, alpha=1.0)

    def coverage(residual_of):
        law = baselines.normal_residuals(fitted.prediction, residual_of, y, mask)
        low, high = metrics.central(law, 0.9)
        return np.mean((true >= low) & (true <= high))

    own = baselines.ridge(x, y, mask, x, **settings).prediction
    # A fit to 80 of the 100 rows is somewhat worse than the final one, so the width errs upwards.
    assert 0.9 <= coverage(held_out) < 0.97
    assert coverage(own) < 0.6


def test_residual_width_of_genes_without_held_out_predictions(rng):
    y = rng.normal(2.0, 3.0, (40, 4))
    y[:, 2] = 7.0
    mask = np.ones((40, 4))
    mask[20:, 1] = 0
    y[20:, 1] = 1e6
    mask[:, 3] = 0
    held_out = y + 0.5
    held_out[:, 1:] = np.nan
    law = baselines.normal_residuals(np.zeros((2, 4)), held_out, y, mask)
    # Gene 1: its deviation over the spots that measured it. Gene 2 never varies: a width above 0,
    # so that the score is that of its centre. Gene 3: unknown.
    np.testing.assert_allclose(law.std[0, :2], [0.5, y[:20, 1].std()], rtol=1e-12)
    assert 0 < law.std[0, 2] < 0.01
    assert np.isnan(law.std[0, 3])
    np.testing.assert_allclose(law.crps(np.ones((2, 4)))[:, 2], 1.0, atol=1e-3)
