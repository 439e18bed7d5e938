"""All baselines of one slide, from records."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import training_sets

from stemjax.data import records
from stemjax.eval import baselines


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


def test_fit_takes_the_patients_own_sections_for_coordinates(rng):
    train = training_sets.as_table(
        rng, np.repeat([0, 1], 30), ("A1", "B1"), rng.poisson(5, (60, 4))
    )
    train.mask[:30, 3] = 0
    train.mask[:, 2] = 0
    test = training_sets.as_table(rng, np.zeros(15), ("A2",), rng.poisson(5, (15, 4)))
    patients = {"A1": "A", "A2": "A", "B1": "B"}
    fitted = baselines.fit(train, test, value_space="log2p1", patients=patients)
    assert tuple(fitted.rows) == baselines.ROWS
    assert fitted.trained.tolist() == [True, True, False, True]
    y = np.log2(train.counts + 1.0)
    own = baselines.coordinates_knn(train.array_xy[:30], y[:30], train.mask[:30], test.array_xy)
    # float32 transform against float64: 1e-7 relative of values up to 4.
    knn = fitted.rows["coordinates kNN"]
    np.testing.assert_allclose(knn[:, :2], own[:, :2], atol=1e-6)
    # Gene 3 was measured on the other patient's slide only: there its mean.
    np.testing.assert_allclose(knn[:, 3], y[30:, 3].mean(), atol=1e-6)
    for row in fitted.rows.values():
        assert np.isnan(row[:, 2]).all()
        assert np.isfinite(row[:, [0, 1, 3]]).all()
    # Other embeddings than the original patch's must not be looked at.
    variants = train.embeddings.copy()
    variants[:, 1:] = 1000.0
    changed = records.Table(**(vars(train) | {"embeddings": variants}))
    again = baselines.fit(changed, test, value_space="log2p1", patients=patients)
    for name, row in again.rows.items():
        np.testing.assert_array_equal(row, fitted.rows[name])


@pytest.mark.parametrize("patient", ["C", None])
def test_fit_has_no_coordinates_row_for_a_new_or_unknown_patient(rng, patient):
    train = training_sets.as_table(
        rng, np.repeat([0, 1], 30), ("A1", "B1"), rng.poisson(5, (60, 4))
    )
    test = training_sets.as_table(rng, np.zeros(15), ("X",), rng.poisson(5, (15, 4)))
    patients = {"A1": "A", "B1": None, "X": patient}
    fitted = baselines.fit(
        train, test, value_space="log1p_cp10k", patients=patients, leave_out=baselines.SLOW
    )
    assert "coordinates kNN" not in fitted.rows
    assert any("coordinates kNN" in note for note in fitted.notes)
    assert f"{fitted.ridge.alpha:g}" in fitted.notes[0]


def test_fit_gives_the_rows_their_own_functions_give(rng):
    train = training_sets.as_table(
        rng, np.repeat([0, 1], 30), ("A1", "B1"), rng.poisson(5, (60, 4))
    )
    test = training_sets.as_table(rng, np.zeros(15), ("A2",), rng.poisson(5, (15, 4)))
    patients = {"A1": "A", "A2": "A", "B1": "B"}
    fitted = baselines.fit(train, test, value_space="log2p1", patients=patients)
    y, own = (np.log2(table.counts + 1.0) for table in (train, test))
    x, test_x = train.embeddings[:, 0], test.embeddings[:, 0]
    fold = train.slide_index
    mean = baselines.neighbour_mean(own, test.mask, test.array_xy)
    probe = baselines.hest_probe(x, y, train.mask, test_x)
    knn = baselines.embedding_knn(x, y, train.mask, test_x, fold=fold)
    held_out = baselines.ridge_held_out(x, y, train.mask, fold=fold, alpha=fitted.ridge.alpha)
    law = baselines.normal_residuals(fitted.rows["ridge"], held_out, y, train.mask)
    flat = baselines.climatology(y, train.mask, spots=15)
    ranking = baselines.held_out_pcc(held_out, y, train.mask, fold=fold)
    # float32 transform against float64, as above; and lsqr's own tolerance.
    close = {"atol": 1e-5}
    np.testing.assert_allclose(fitted.rows["neighbour mean"], mean, **close)
    np.testing.assert_allclose(fitted.rows["HEST probe"], probe, atol=1e-3)
    np.testing.assert_allclose(fitted.rows["embedding kNN"], knn.prediction, **close)
    np.testing.assert_allclose(fitted.ranking, ranking, **close)
    assert list(fitted.forecasts) == ["constant mean", "ridge", "embedding kNN", "MLP"]
    for name, expected in (("constant mean", flat), ("ridge", law)):
        np.testing.assert_allclose(fitted.forecasts[name].crps(own), expected.crps(own), **close)
    np.testing.assert_allclose(fitted.forecasts["embedding kNN"].values, knn.ensemble, **close)
    assert fitted.mlp is not None
    np.testing.assert_array_equal(fitted.forecasts["MLP"].values, fitted.mlp.quantiles)
    np.testing.assert_array_equal(fitted.rows["MLP"], fitted.mlp.prediction)


def test_only_the_rows_that_say_so_see_the_test_slides_measurements(rng):
    train = training_sets.as_table(
        rng, np.repeat([0, 1], 30), ("A1", "B1"), rng.poisson(5, (60, 4))
    )
    test = training_sets.as_table(rng, np.zeros(15), ("A2",), rng.poisson(5, (15, 4)))
    changed = dataclasses.replace(test, counts=test.counts[::-1] * 7, total=test.total[::-1] * 9)
    patients = {"A1": "A", "A2": "A", "B1": "B"}
    first, second = (
        baselines.fit(train, table, value_space="log2p1", patients=patients)
        for table in (test, changed)
    )
    differ = {
        name for name in first.rows if not np.array_equal(first.rows[name], second.rows[name])
    }
    assert differ == baselines.SEES_TEST


def test_rows_can_be_left_out_but_ridge(rng):
    train = training_sets.as_table(
        rng, np.repeat([0, 1], 30), ("A1", "B1"), rng.poisson(5, (60, 4))
    )
    test = training_sets.as_table(rng, np.zeros(1), ("A2",), rng.poisson(5, (1, 4)))
    options = {"value_space": "log2p1", "patients": {"A1": "A", "A2": "A", "B1": "B"}}
    fitted = baselines.fit(train, test, leave_out={*baselines.SLOW, "constant mean"}, **options)
    # A single spot has no neighbours, so no mean of them.
    assert list(fitted.rows) == ["coordinates kNN", "depth oracle", "ridge"]
    assert list(fitted.forecasts) == ["ridge"]
    assert fitted.knn is fitted.mlp is None
    for wrong in ("ridge", "kNN"):
        with pytest.raises(ValueError, match=wrong):
            baselines.fit(train, test, leave_out=[wrong], **options)
