"""Prediction of a slide: slots, repeatability, and records that do not fit."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from stemjax import config, errors, tasks
from stemjax.eval import predict, regression
from stemjax.train import checkpoint, loop


@pytest.fixture(scope="module")
def trained(toy_records, toy_experiment) -> checkpoint.Trained:
    """Weights away from the initial ones, without the cost of training."""
    card = loop.gather(toy_experiment, toy_records).card
    params = card.task.init(jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 100))
    moved = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
    return checkpoint.Trained(params=moved, card=card, step=7, weights="last")


def test_a_prediction_is_in_value_space_and_rows_are_the_slides_spots(trained, toy_records):
    result = predict.predict_slide(trained, toy_records, "X1", tasks.Sampling(mode="mean"))
    table, card = toy_records.load(["X1"]), trained.card
    cond = card.space.condition.apply(table.embeddings[:, 0].astype(np.float32))
    keys = tasks.row_keys(0, table)
    raw = card.task.predict(trained.params, cond, keys, sampling=tasks.Sampling(mode="mean"))[0]
    expected = np.asarray(raw) * card.space.expression.std + card.space.expression.mean
    # One program for 60 rows, one for 60 rows padded: fp32 rounding of values of size 5.
    np.testing.assert_allclose(result.X, expected, atol=1e-4)
    assert tuple(result.obs_names) == table.barcodes
    np.testing.assert_array_equal(result.obs["array_col"], table.array_xy[:, 0])
    assert "stemjax_std" not in result.layers


def test_the_account_of_a_prediction_repeats_it(trained, toy_records):
    sampling = tasks.Sampling(mode="draws", n_draws=2, steps=2, sampler="ddim", eta=0.5)
    one = predict.predict_slide(trained, toy_records, "X1", sampling, seed=3)
    about = one.uns["stemjax"]
    again = tasks.Sampling(
        **{name: about[name] for name in ("mode", "n_draws", "steps", "sampler", "eta")},
        antithetic=about["antithetic"],
        sigma_min=about["sigma_min"],
        sigma_max=about["sigma_max"],
        rho=about["rho"],
    )
    card = checkpoint.Card.from_json(json.loads(about["model"]))
    other = dataclasses.replace(trained, card=card)
    two = predict.predict_slide(other, toy_records, about["slide"], again, seed=about["seed"])
    np.testing.assert_array_equal(one.obsm["stemjax_draws"], two.obsm["stemjax_draws"])
    three = predict.predict_slide(other, toy_records, about["slide"], again, seed=4)
    assert np.abs(one.obsm["stemjax_draws"] - three.obsm["stemjax_draws"]).max() > 0.01


def test_an_h5ad_reads_back_with_its_account(trained, toy_records, tmp_path):
    result = predict.predict_slide(trained, toy_records, "X1", tasks.Sampling(mode="pair", steps=2))
    path = tmp_path / "deep" / "out.h5ad"
    predict.write(result, path)
    back = predict.read(path)
    np.testing.assert_array_equal(back.X, result.X)
    assert list(back.uns["stemjax"]["train_slides"]) == ["T1", "T2"]
    assert back.uns["stemjax"]["evaluations_per_spot"] == 4
    assert [item.name for item in path.parent.iterdir()] == ["out.h5ad"]


def test_embeddings_of_another_encoder_are_refused(trained, toy_records):
    contract = dataclasses.replace(toy_records.contract, pooling="cls")
    other = dataclasses.replace(toy_records, contract=contract)
    with pytest.raises(errors.EncoderMismatchError, match="pooling"):
        predict.predict_slide(trained, other, "X1", tasks.Sampling())


@pytest.mark.parametrize("change", ["order", "missing"])
def test_another_panel_is_refused(trained, toy_records, change):
    genes = toy_records.genes
    genes = genes[::-1] if change == "order" else (*genes[:-1], "OTHER")
    other = dataclasses.replace(toy_records, genes=genes)
    text = "another order" if change == "order" else "without TOY07"
    with pytest.raises(errors.GenePanelError, match=text):
        predict.predict_slide(trained, other, "X1", tasks.Sampling())


def test_an_unknown_slide_is_named(trained, toy_records):
    with pytest.raises(errors.RecordsError, match="X9"):
        predict.predict_slide(trained, toy_records, "X9", tasks.Sampling())


def test_files_that_are_no_prediction_are_named(tmp_path):
    import anndata

    with pytest.raises(errors.PredictionError, match="none"):
        predict.read(tmp_path / "none.h5ad")
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 40)
    with pytest.raises(errors.PredictionError, match="broken") as error:
        predict.read(broken)
    assert error.value.fix
    other = tmp_path / "other.h5ad"
    anndata.AnnData(X=np.zeros((2, 2), np.float32)).write_h5ad(other)
    with pytest.raises(errors.PredictionError, match=r"uns\['stemjax'\]"):
        predict.read(other)


def test_regression_is_the_same_experiment_but_for_its_loss(toy_experiment):
    changed = regression.as_regression(toy_experiment)
    lines = config.differences(config.as_json(toy_experiment), config.as_json(changed))
    assert lines == [
        "diffusion.mean_fraction: 0.25 -> 1.0",
        "name: 'stem' -> 'stem_regression'",
    ]


def test_the_regression_row_is_a_mean_of_the_same_slide(trained, toy_records, tmp_path):
    result = predict.predict_slide(trained, toy_records, "X1", tasks.Sampling(mode="mean"))
    rows = regression.backbone_row(result, toy_records, "train", default_workdir=tmp_path / "r")
    (row,) = rows.values()
    assert row.uns["stemjax"]["slide"] == "X1"
    card = checkpoint.load(tmp_path / "r").card
    assert card.experiment.diffusion.mean_fraction == 1.0
    assert card.split["train"] == ["T1", "T2"]
    from_disk = regression.backbone_row(
        result, toy_records, str(tmp_path / "r"), default_workdir=tmp_path / "unused"
    )
    np.testing.assert_array_equal(from_disk[regression.ROW].X, row.X)
    assert regression.backbone_row(result, toy_records, "none", default_workdir=tmp_path) == {}
