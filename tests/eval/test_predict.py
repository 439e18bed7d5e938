"""Prediction of a slide: slots, repeatability, and records that do not fit."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from stemjax import config, errors, mesh, tasks
from stemjax.eval import calibrate, conformal, joining, metrics, predict, regression, steering
from stemjax.train import checkpoint
from stemjax.train import material as material_lib


@pytest.fixture(scope="module")
def trained(toy_records, toy_experiment) -> checkpoint.Trained:
    """Weights away from the initial ones, without the cost of training."""
    card = material_lib.gather(toy_experiment, toy_records).card
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
    back = joining.read(path)
    np.testing.assert_array_equal(back.X, result.X)
    assert list(back.uns["stemjax"]["train_slides"]) == ["T1", "T2"]
    assert back.uns["stemjax"]["evaluations_per_spot"] == 4
    assert [item.name for item in path.parent.iterdir()] == ["out.h5ad"]


def test_scanpy_and_squidpy_find_the_image_and_the_size_of_spots_without_one(trained, toy_records):
    sampling = tasks.Sampling(mode="mean")
    info = toy_records.slides["X1"]
    bare = dataclasses.replace(
        toy_records,
        slides={**toy_records.slides, "X1": dataclasses.replace(info, thumbnail_scale=None)},
    )
    held = {
        name: predict.predict_slide(trained, source, "X1", sampling).uns["spatial"]["X1"]
        for name, source in (("image", toy_records), ("none", bare))
    }
    pixels, scale = toy_records.thumbnail("X1")
    # Both look for the image "hires" and its scale where they are told nothing.
    np.testing.assert_array_equal(held["image"]["images"]["hires"], pixels)
    assert held["image"]["scalefactors"]["tissue_hires_scalef"] == scale != 1.0
    assert held["none"]["images"] == {}
    assert held["none"]["scalefactors"]["tissue_hires_scalef"] == 1.0
    for one in held.values():
        assert one["scalefactors"]["spot_diameter_fullres"] == 100.0


def test_a_summary_on_the_device_is_that_of_the_draws_that_were_not_kept(trained, toy_records):
    sampling = tasks.Sampling(mode="draws", n_draws=4, steps=2)
    whole = predict.predict_slide(trained, toy_records, "X1", sampling)
    kept = tasks.Summary(antithetic=True, quantiles=(0.05, 0.975))
    brief = predict.predict_slide(trained, toy_records, "X1", sampling, summary=kept)
    assert "stemjax_draws" not in brief.obsm
    draws = np.asarray(whole.obsm["stemjax_draws"], np.float64)
    # float32 sums of four values of size 5, scaled and shifted.
    near = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(brief.X, whole.X, **near)
    for layer in ("stemjax_std", "stemjax_se"):
        np.testing.assert_allclose(brief.layers[layer], whole.layers[layer], **near)
    for layer, level in (("stemjax_q5", 0.05), ("stemjax_q97.5", 0.975)):
        np.testing.assert_allclose(brief.layers[layer], np.quantile(draws, level, axis=1), **near)


@pytest.mark.parametrize(
    "sampling",
    [tasks.Sampling(mode="mean"), tasks.Sampling(mode="draws", n_draws=4, antithetic=False)],
)
def test_a_summary_of_other_draws_is_refused(trained, toy_records, sampling):
    with pytest.raises(errors.ConfigError, match="a summary of draws"):
        predict.predict_slide(
            trained, toy_records, "X1", sampling, summary=tasks.Summary(antithetic=True)
        )


def test_slides_of_one_model_share_their_programs(trained, toy_records):
    sampling = tasks.Sampling(mode="mean")
    layout = mesh.make_layout(jax.local_devices())
    for slide in ("X1", "T1", "T2"):
        predict.predict_slide(trained, toy_records, slide, sampling, rows=64)
    used = tasks.make_predictor(trained.card.task, sampling, rows=64, layout=layout)
    assert 1 <= used.compilations <= 3


# ------------------------------------------------------------------------------------- calibration

DRAWS = tasks.Sampling(mode="draws", n_draws=2, steps=2)
LAYERS = {name for level in metrics.LEVELS for name in conformal.layer_names(level)}


@pytest.fixture(scope="module")
def calibrated(trained, toy_records) -> checkpoint.Trained:
    """The model with calibrations of its draws and of its mean on slide V1."""
    made = [
        calibrate.calibrate(trained, toy_records, sampling, seed=5)
        for sampling in (DRAWS, tasks.Sampling(mode="mean"))
    ]
    return trained.with_calibrations(made)


@pytest.mark.parametrize("mode", ["draws", "mean"])
def test_a_calibrated_prediction_has_intervals_of_its_own_sampling(
    calibrated, toy_records, tmp_path, mode
):
    sampling = DRAWS if mode == "draws" else tasks.Sampling(mode="mean")
    result = predict.predict_slide(calibrated, toy_records, "X1", sampling)
    made = {one.sampling["mode"]: one for one in calibrated.calibrations}[mode]
    assert set(result.layers) >= LAYERS
    card = calibrated.card
    scale = 1.0
    if mode == "draws":
        scale = np.maximum(result.layers["stemjax_std"], 0.1 * card.space.expression.std)
    for i, level in enumerate(metrics.LEVELS):
        for side, name in enumerate(conformal.layer_names(level)):
            by_hand = np.maximum(result.X + made.offsets[i, side] * scale, 0)
            # 1e-5 outward; float32 values up to 16.
            np.testing.assert_allclose(result.layers[name], by_hand, atol=2e-5)
    about = json.loads(result.uns["stemjax"]["calibration"])
    assert (about["slides"], about["spots"], about["levels"]) == (
        ["V1"],
        [60, 60],
        [*metrics.LEVELS],
    )
    assert about["model"] == calibrated.identity
    # What a prediction says of its sampling is what the calibration says it is for.
    assert about["sampling"] == {n: result.uns["stemjax"][n] for n in about["sampling"]}
    predict.write(result, tmp_path / "out.h5ad")
    back = joining.read(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(
        back.layers["stemjax_lower_95"], result.layers["stemjax_lower_95"]
    )
    assert json.loads(back.uns["stemjax"]["calibration"]) == about


@pytest.mark.parametrize("mode", ["draws", "mean"])
def test_on_the_spots_that_calibrated_it_the_order_statistics_count(calibrated, toy_records, mode):
    sampling = DRAWS if mode == "draws" else tasks.Sampling(mode="mean")
    result = predict.predict_slide(calibrated, toy_records, "V1", sampling, seed=5)
    table = toy_records.load(["V1"])
    true = calibrated.card.space.forward(table.counts, table.total)
    # Of 60 spots, s_(k) and s_(61 - k) with k the ceiling of 61 x .75, .9, .95 and .975.
    for level, k in zip(metrics.LEVELS, (46, 55, 58, 60)):
        lower, upper = (result.layers[name] for name in conformal.layer_names(level))
        inside = np.sum((lower <= true) & (true <= upper), axis=0)
        assert (inside >= 2 * k - 60).all()
        if mode == "draws":  # no ties there
            np.testing.assert_array_equal(inside, 2 * k - 60)


def test_what_was_not_calibrated_has_no_intervals(calibrated, toy_records):
    def written(model, sampling, **options):
        result = predict.predict_slide(model, toy_records, "X1", sampling, **options)
        assert ("calibration" in result.uns["stemjax"]) == bool(LAYERS & set(result.layers))
        return set(result.layers) >= LAYERS

    mean = tasks.Sampling(mode="mean")
    assert written(calibrated, mean)
    assert written(calibrated, dataclasses.replace(mean, steps=3))  # the mean has no steps
    assert not written(calibrated, dataclasses.replace(DRAWS, steps=3))
    assert not written(calibrated, dataclasses.replace(DRAWS, eta=1.0, sampler="ddim"))
    steer = steering.Steering(given=("TOY01",), method="replacement")
    assert not written(calibrated, DRAWS, steer=steer)
    later = dataclasses.replace(calibrated, step=8)
    assert later.with_calibrations(calibrated.calibrations).calibrations == ()


def test_raw_coverage_is_that_of_the_models_own_draws(calibrated, trained, toy_records):
    draws, mean = calibrated.calibrations
    assert mean.raw is None
    # Of two draws the widest interval is between them, whatever the level.
    result = predict.predict_slide(trained, toy_records, "V1", DRAWS, seed=5)
    table = toy_records.load(["V1"])
    true = trained.card.space.forward(table.counts, table.total)
    pair = np.sort(result.obsm["stemjax_draws"], axis=1)
    share = np.mean((pair[:, 0] <= true) & (true <= pair[:, 1]))
    assert draws.raw[1:] == pytest.approx([share] * 3)
    assert draws.held_out_by == "each half of the slide by the other"
    assert draws.held_out[3] is None  # 30 spots a half


# ---------------------------------------------------------------------------------------- refusals


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
    with pytest.raises(errors.PredictionError, match="none"):
        joining.read(tmp_path / "none.h5ad")
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 40)
    with pytest.raises(errors.PredictionError, match="broken") as error:
        joining.read(broken)
    assert error.value.fix


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
