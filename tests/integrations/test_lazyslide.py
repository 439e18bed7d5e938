"""The model for LazySlide: what it is asked for, and the numbers of `stemjax predict`."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import scipy.sparse

from stemjax import errors, tasks
from stemjax.eval import predict
from stemjax.integrations import lazyslide
from stemjax.train import material
from stemjax.train.trained import Trained


@pytest.fixture(scope="module")
def trained(toy_records, toy_experiment):
    """Weights away from the initial ones, without the cost of training."""
    card = material.gather(toy_experiment, toy_records).card
    params = card.task.init(jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 100))
    moved = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
    return Trained(params=moved, card=card, step=7, weights="last")


@pytest.fixture(scope="module")
def wanted(trained, toy_records):
    """Features of X1 in records, and what `stemjax predict` makes of them."""
    table = toy_records.load(("X1",))
    made = predict.predict_slide(trained, toy_records, "X1", tasks.Sampling(mode="mean"))
    return np.asarray(table.embeddings[:, 0], np.float32), np.asarray(made.X)


def test_it_has_what_lazyslide_looks_for(trained):
    model = lazyslide.ExpressionModel(trained)
    # lazyslide_models.base.FeaturePredictionModelProtocol, 0.1: isinstance looks at these names.
    for name in ("model", "name", "get_transform", "to", "try_compile", "predict"):
        assert hasattr(model, name)
    assert model.name == "stemjax"
    assert model.features_model_name == "toy"
    assert (model.needs_coords, model.whole_slide) == (False, False)
    assert model.to("cuda") is model
    assert model.try_compile(mode="max-autotune") is None
    assert lazyslide.ExpressionModel(trained, feature_key="uni").features_model_name == "uni"


@pytest.mark.parametrize("batch", [60, 7])
def test_the_numbers_are_those_of_predict(trained, wanted, batch):
    features, values = wanted
    model = lazyslide.ExpressionModel(trained)
    parts = [model.predict(features[i : i + batch]) for i in range(0, len(features), batch)]
    assert all(tuple(part) == trained.card.space.genes for part in parts)
    found = np.stack([np.concatenate([part[g] for part in parts]) for g in model.genes], axis=1)
    assert found.shape == values.shape
    # Rounding of float32 matrix products of other shapes.
    np.testing.assert_allclose(found, values, atol=1e-6, rtol=1e-6)
    assert values.std() > 0.05


def test_features_count_as_the_float16_that_records_hold(trained, wanted):
    features, _ = wanted
    model = lazyslide.ExpressionModel(trained)
    finer = features * np.float32(1 + 2**-13)  # rounds to the same float16
    assert not np.array_equal(finer, features)
    for gene, values in model.predict(finer).items():
        np.testing.assert_array_equal(values, model.predict(features)[gene])


def test_sparse_features_and_none_at_all(trained, wanted):
    features, _ = wanted
    model = lazyslide.ExpressionModel(trained)
    dense = model.predict(features[:3])
    for gene, values in model.predict(scipy.sparse.csr_matrix(features[:3])).items():
        np.testing.assert_array_equal(values, dense[gene])
    assert all(len(values) == 0 for values in model.predict(features[:0]).values())


@pytest.mark.parametrize(
    ("features", "found"),
    [
        (np.zeros((3, 5), np.float32), r"expected 6 columns, of encoder 'toy', found shape \(3, 5"),
        (np.zeros(6, np.float32), r"found shape \(6,\)"),
        (np.full((3, 6), np.nan, np.float32), "found 3 tiles with others"),
        (np.array([[1e6] * 6, [0.0] * 6], np.float32), "found 1 tiles with others"),
    ],
)
def test_features_that_do_not_fit_are_refused(trained, features, found):
    with pytest.raises(errors.EncoderMismatchError, match=found):
        lazyslide.ExpressionModel(trained).predict(features)


def test_another_encoder_is_refused(trained):
    contract = trained.card.contract
    lazyslide.ExpressionModel(trained, features=contract)
    lazyslide.ExpressionModel(trained, features="toy")
    with pytest.raises(errors.EncoderMismatchError, match="of encoder 'toy'.*found of 'uni'"):
        lazyslide.ExpressionModel(trained, features="uni")
    other = dataclasses.replace(contract, pooling="cls")
    with pytest.raises(errors.EncoderMismatchError, match="field 'pooling'"):
        lazyslide.ExpressionModel(trained, features=other)


def test_a_model_that_sees_other_spots_is_refused(trained):
    window = dataclasses.replace(trained.card.experiment.window, kind="neighbours")
    experiment = dataclasses.replace(trained.card.experiment, window=window)
    card = dataclasses.replace(trained.card, experiment=experiment)
    with pytest.raises(errors.ConfigError, match="window.kind=neighbours"):
        lazyslide.ExpressionModel(dataclasses.replace(trained, card=card))
