"""Runs that start from trained weights: what comes with them, what goes on, what is refused."""

from __future__ import annotations

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from stemjax import config, errors, mesh, tasks
from stemjax.eval import predict
from stemjax.export import bundle
from stemjax.train import checkpoint, loop, saving
from stemjax.train import step as steps


def _layout():
    return mesh.make_layout(jax.devices()[:1])


def _replaced(experiment, **groups):
    parts = {
        name: dataclasses.replace(getattr(experiment, name), **v) for name, v in groups.items()
    }
    return dataclasses.replace(experiment, **parts)


@pytest.fixture(scope="module")
def base(toy_records, toy_experiment, tmp_path_factory):
    """A trained denoiser; every model of this file starts from it."""
    folder = tmp_path_factory.mktemp("base")
    loop.train(toy_experiment, toy_records, folder, layout=_layout())
    return checkpoint.load(folder, weights="last")


@pytest.fixture(scope="module")
def tuning(toy_experiment):
    return _replaced(
        toy_experiment,
        diffusion={"process": "consistency", "noise": "loguniform", "noise_min": 0.02},
        train={"validate_every": 0},
    )


@pytest.fixture(scope="module")
def tuned(base, tuning, toy_records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    loop.train(tuning, toy_records, folder, layout=_layout(), start=base)
    return folder


def test_the_first_weights_are_the_others(base, tuning, toy_records, tmp_path):
    """Before the first update: a rate of 0 leaves weights and average where they started."""
    still = _replaced(tuning, optim={"learning_rate": 0.0}, train={"steps": 2, "save_every": 2})
    loop.train(still, toy_records, tmp_path, layout=_layout(), start=base)
    found = checkpoint.load(tmp_path)
    # Averages of equal numbers, .9 x + .1 x in float32.
    chex.assert_trees_all_close(found.params, base.params, rtol=1e-6)
    assert found.card.space.to_json() == base.card.space.to_json()
    assert found.card.start == {**base.identity, "slides": ["T1", "T2"]}


def test_a_tuned_model_draws_keeps_its_mean_and_travels(tuned, base, toy_records, tmp_path):
    trained = checkpoint.load(tuned)
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_mean_token", "loss_squared"} <= set(lines[-1])
    path = tmp_path / "bundle"
    bundle.write(trained, path)
    again = bundle.load(path)
    assert again.card.start == trained.card.start
    sampling = again.card.task.sampling(mode="draws", n_draws=4)
    made = predict.predict_slide(again, toy_records, "X1", sampling)
    about = made.uns["stemjax"]
    assert about["evaluations_per_spot"] == 4
    assert made.obsm[predict.DRAWS].shape == (60, 4, 8)
    mean = predict.predict_slide(again, toy_records, "X1", tasks.Sampling(mode="mean"))
    before = predict.predict_slide(base, toy_records, "X1", tasks.Sampling(mode="mean"))
    # A dozen updates of a few thousandths: moved, and not far.
    apart = np.abs(mean.X - before.X)
    assert 0 < apart.mean() < 0.2


def test_it_goes_on_bitwise_and_its_teacher_is_asked_for(
    tuned, base, tuning, toy_records, tmp_path
):
    loop.train(tuning, toy_records, tmp_path, layout=_layout(), start=base, stop_at=6)
    with pytest.raises(errors.ConfigError, match="give --start again"):
        loop.train(tuning, toy_records, tmp_path, layout=_layout())
    loop.train(tuning, toy_records, tmp_path, layout=_layout(), start=base)
    whole, parts = checkpoint.load(tuned), checkpoint.load(tmp_path)
    chex.assert_trees_all_equal(whole.params, parts.params)
    assert parts.card.start == whole.card.start
    loop.train(tuning, toy_records, tmp_path, layout=_layout())  # done: nothing is asked


def test_without_a_teacher_it_goes_on_alone(tuned, base, tuning, toy_records, tmp_path):
    data = _replaced(tuning, diffusion={"partner": "data"}, train={"steps": 4, "save_every": 2})
    loop.train(data, toy_records, tmp_path / "a", layout=_layout(), start=base)
    loop.train(data, toy_records, tmp_path / "b", layout=_layout(), start=base, stop_at=2)
    loop.train(data, toy_records, tmp_path / "b", layout=_layout())
    found = [checkpoint.load(tmp_path / name).params for name in "ab"]
    chex.assert_trees_all_equal(*found)


def test_the_teacher_is_an_argument_of_the_program_and_no_constant(
    base, tuning, toy_records, tmp_path, monkeypatch
):
    """As constants, weights would be compiled into it: a published model's are 130 MB."""
    texts = []
    original = steps.compile_update

    def noted(update, layout, *given):
        texts.append(jax.jit(update).lower(*given).as_text())
        return original(update, layout, *given)

    monkeypatch.setattr(steps, "compile_update", noted)
    short = _replaced(tuning, train={"steps": 1})
    loop.train(short, toy_records, tmp_path, layout=_layout(), start=base)
    kernel = base.params["condition"]["fc1"]["kernel"].shape
    shape = "x".join(map(str, kernel))
    arguments = texts[0].split("func.func public @main(")[1].split(") -> (")[0]
    assert arguments.count(f"tensor<{shape}xf32>") == 5  # weights, average, two moments, teacher


def test_a_run_begun_from_weights_needs_them_until_it_has_saved(
    base, tuning, toy_records, tmp_path
):
    about = {**base.identity, "slides": ["T1", "T2"]}
    card = dataclasses.replace(base.card, experiment=tuning, start=about)
    with saving.Checkpoints(tmp_path, card):
        pass  # stopped before the first checkpoint
    with pytest.raises(errors.ConfigError, match="give --start again"):
        loop.train(tuning, toy_records, tmp_path, layout=_layout())


def test_another_start_is_another_run(base, tuned, tuning, toy_records):
    other = dataclasses.replace(base, step=7)
    with pytest.raises(errors.CheckpointMismatchError, match=r"start\.step"):
        loop.train(tuning, toy_records, tuned, layout=_layout(), start=other)


@pytest.mark.parametrize(
    ("groups", "error", "match"),
    [
        ({"model": {"width": 32}}, errors.CheckpointMismatchError, "weights to start from"),
        ({"data": {"test": "T1"}}, errors.SplitError, "has not|not seen"),
        # Even of half of its spots: the weights have seen all of them.
        ({"data": {"recover": "T1"}}, errors.SplitError, "slide T1, held out here"),
        ({"data": {"transform": "log1p"}}, errors.ConfigError, r"data\.transform"),
        ({"diffusion": {"sigma_data": 0.5}}, errors.ConfigError, "sigma_data"),
        (
            {"diffusion": {"process": "ddpm", "mean_fraction": 0.0, "noise": "lognormal"}},
            errors.ConfigError,
            "of the process ddpm",
        ),
        (
            {"diffusion": {"process": "edm", "residual": True}},
            errors.ConfigError,
            r"diffusion\.residual",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    base, tuning, toy_records, tmp_path, groups, error, match
):
    groups = {"data": {"allow_seen_panel": True, **groups.pop("data", {})}, **groups}
    with pytest.raises(error, match=match):
        loop.train(_replaced(tuning, **groups), toy_records, tmp_path, start=base)


def test_a_function_is_not_tuned_from_a_function(tuned, tuning, toy_records, tmp_path):
    with pytest.raises(errors.ConfigError, match="one of the process consistency"):
        loop.train(tuning, toy_records, tmp_path, start=checkpoint.load(tuned))


def test_a_card_whose_start_is_no_start_is_refused(tuned):
    values = json.loads((tuned / "config.json").read_text())
    for wrong in ("T1", {"slides": "T1"}):
        with pytest.raises(errors.CheckpointError, match="start"):
            checkpoint.Card.from_json({**values, "start": wrong})


def test_tuning_from_nothing_is_refused(tuning, toy_records, tmp_path):
    with pytest.raises(errors.ConfigError, match="a trained model to start from"):
        loop.train(tuning, toy_records, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_denoiser_can_be_trained_on(base, toy_experiment, toy_records, tmp_path):
    loop.train(toy_experiment, toy_records, tmp_path, layout=_layout(), start=base, stop_at=6)
    assert checkpoint.load(tmp_path, weights="last").card.start["step"] == base.step
    assert config.digest(toy_experiment) == base.identity["config"]
