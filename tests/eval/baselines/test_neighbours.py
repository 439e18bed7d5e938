"""Retrieval in embedding space against scikit-learn and a slow one."""

from __future__ import annotations

import numpy as np
import pytest
import training_sets
from sklearn import model_selection, neighbors, pipeline, preprocessing

from stemjax.eval import baselines, metrics
from stemjax.eval.baselines import neighbours


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


def scikit_knn(k):
    return pipeline.make_pipeline(
        preprocessing.StandardScaler(),
        neighbors.KNeighborsRegressor(k, metric="cosine", algorithm="brute"),
    )


def test_the_number_of_neighbours_and_their_mean_are_scikit_learns(rng):
    x, y, mask, slide, _ = training_sets.spots(rng, 700)
    test_x = rng.normal(2.0, 3.0, (300, 12))  # more than one portion
    found = baselines.embedding_knn(x, y, mask, test_x, fold=slide, neighbours=(30, 3, 12))
    assert found.tried == (3, 12, 30)
    errors = []
    for k in found.tried:
        pred = model_selection.cross_val_predict(
            scikit_knn(k), x, y, groups=slide, cv=model_selection.LeaveOneGroupOut()
        )
        errors.append(metrics.mse(pred, y))
    # float32 against float64: values near 5, so 1e-6 each and less in their mean.
    np.testing.assert_allclose(found.errors, errors, rtol=1e-5)
    assert found.k == found.tried[int(np.argmin(errors))]
    expected = scikit_knn(found.k).fit(x, y).predict(test_x)
    np.testing.assert_allclose(found.prediction, expected, atol=1e-5)


def test_similar_is_a_matter_of_direction_not_of_length(rng):
    x, y, mask, slide, _ = training_sets.spots(rng, 200)
    test_x = rng.normal(2.0, 3.0, (10, 12))
    found = baselines.embedding_knn(x, y, mask, test_x, fold=slide)
    centre = x.mean(axis=0)
    longer = centre + 7.5 * (test_x - centre)
    again = baselines.embedding_knn(x, y, mask, longer, fold=slide)
    np.testing.assert_allclose(again.prediction, found.prediction, atol=1e-6)
    turned = centre - (test_x - centre)
    assert np.abs(baselines.embedding_knn(x, y, mask, turned, fold=slide).prediction
                  - found.prediction).max() > 0.5  # fmt: skip
    # Units of a column do not matter either.
    units = 10.0 ** rng.integers(-3, 4, 12)
    again = baselines.embedding_knn(x * units, y, mask, test_x * units, fold=slide)
    np.testing.assert_allclose(again.prediction, found.prediction, atol=1e-6)


def test_the_ensemble_is_the_nearest_spots_whole_profiles(rng):
    x, y, mask, slide, _ = training_sets.spots(rng, 120)
    found = baselines.embedding_knn(x, y, mask, x[:50], fold=slide, neighbours=(7,))
    assert found.ensemble.shape == (neighbours.ENSEMBLE, 50, 5)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    for spot in (0, 20, 49):
        nearest = np.argsort(-(z @ z[spot]))[: neighbours.ENSEMBLE]
        assert nearest[0] == spot  # a training spot is its own nearest
        np.testing.assert_array_equal(found.ensemble[:, spot], y[nearest].astype(np.float32))
    np.testing.assert_allclose(found.ensemble[:7].mean(axis=0), found.prediction, atol=1e-5)
    # The size is the least whose range is a 95 % interval by the rule of `metrics.Draws`.
    forecast = metrics.Draws(values=found.ensemble)
    low, high = metrics.central(forecast, 0.95)
    np.testing.assert_allclose(low, found.ensemble.min(axis=0), atol=1e-5)
    np.testing.assert_allclose(high, found.ensemble.max(axis=0), atol=1e-5)


def test_each_gene_is_looked_up_where_it_was_measured(rng):
    x, y, mask, slide, _ = training_sets.spots(rng, 90)
    mask[slide == 0, 1] = 0
    mask[slide != 2, 2] = 0
    mask[:, 4] = 0
    y[mask == 0] = 1e6
    test_x = rng.normal(2.0, 3.0, (6, 12))
    few = int((slide == 2).sum())
    found = baselines.embedding_knn(x, y, mask, test_x, fold=slide, neighbours=(4, 500))
    for gene, rows in ((0, slide >= 0), (1, slide != 0), (2, slide == 2), (3, slide >= 0)):
        k = min(found.k, int(rows.sum()))
        expected = scikit_knn(k).fit(x[rows], y[rows, gene]).predict(test_x)
        np.testing.assert_allclose(found.prediction[:, gene], expected, atol=1e-5)
    assert np.isnan(found.prediction[:, 4]).all()
    assert max(found.errors) < 100  # what was not measured is not scored
    assert len(found.ensemble) == min(neighbours.ENSEMBLE, few)
    assert np.isfinite(found.ensemble[:, :, :4]).all()
    assert found.ensemble[:, :, :4].max() < 100
    assert np.isnan(found.ensemble[:, :, 4]).all()


def test_with_nothing_to_hold_out_all_are_asked(rng):
    x, y, mask, _, _ = training_sets.spots(rng, 30)
    found = baselines.embedding_knn(x, y, mask, x[:3], fold=np.zeros(30, int))
    assert found.k == max(baselines.NEIGHBOURS)
    np.testing.assert_allclose(found.prediction, [y.mean(axis=0)] * 3, atol=1e-5)
