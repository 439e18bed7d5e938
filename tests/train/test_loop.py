"""The loop: learning, resuming, refusing."""

from __future__ import annotations

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from stemjax import config, errors, mesh
from stemjax.train import checkpoint, loop
from stemjax.train import material as material_lib
from stemjax.train import step as steps


def _one_device() -> mesh.Layout:
    return mesh.make_layout(jax.devices()[:1])


def _replaced(experiment, group, **values):
    part = dataclasses.replace(getattr(experiment, group), **values)
    return dataclasses.replace(experiment, **{group: part})


def _weights(workdir) -> dict:
    return checkpoint.load(workdir, weights="last").params


@pytest.mark.slow
def test_training_learns_what_the_embeddings_tell(toy_records, toy_experiment, tmp_path):
    experiment = _replaced(toy_experiment, "train", steps=300, validate_every=50, log_every=50)
    result = loop.train(experiment, toy_records, tmp_path, layout=_one_device())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    val = [line["val_mse"] for line in lines if "val_mse" in line]
    table = toy_records.load(["V1"])
    card = checkpoint.load(tmp_path).card
    truth = card.space.forward(table.counts, table.total)
    constant = np.square(truth - card.space.values(np.zeros((1, 8)))).mean()
    # 120 spots do not teach all of the law; a quarter of the variance cannot be had by chance.
    assert result.best["val_mse"] < 0.75 * constant
    assert result.best["val_mse"] == min(val)
    trained = [line for line in lines if "loss" in line]
    assert {"loss_mean_token", "loss_noisy", "grad_norm", "spots_per_second"} <= set(trained[0])


def test_resuming_is_bitwise_the_unbroken_run(toy_records, toy_experiment, tmp_path):
    layout = _one_device()
    loop.train(toy_experiment, toy_records, tmp_path / "whole", layout=layout)
    part = loop.train(toy_experiment, toy_records, tmp_path / "parts", layout=layout, stop_at=6)
    assert part.step == 6
    loop.train(toy_experiment, toy_records, tmp_path / "parts", layout=layout)
    chex.assert_trees_all_equal(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"))

    def logged(name):
        text = (tmp_path / name / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        timing = ("steps_per_second", "spots_per_second", "eta_seconds")
        return [{k: v for k, v in line.items() if k not in timing} for line in lines]

    whole, parts = logged("whole"), logged("parts")
    # The interrupted run logs its last step too, which the whole run has no line for.
    assert [line for line in parts if line in whole] == whole


def test_a_finished_run_does_nothing_more(toy_records, toy_experiment, tmp_path):
    loop.train(toy_experiment, toy_records, tmp_path, layout=_one_device())
    before = (tmp_path / "metrics.jsonl").read_text()
    again = loop.train(toy_experiment, toy_records, tmp_path, layout=_one_device())
    assert (again.step, again.compile_seconds) == (12, 0.0)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_four_devices_train_as_one(toy_records, toy_experiment, tmp_path):
    loop.train(toy_experiment, toy_records, tmp_path / "one", layout=_one_device())
    loop.train(toy_experiment, toy_records, tmp_path / "four", layout=mesh.make_layout())
    # Gradients are summed in another order (fp32, 128 terms), and Adam divides small gradients by
    # their own size: after 12 steps of 3e-3 weights agree to a hundredth of one step.
    chex.assert_trees_all_close(
        _weights(tmp_path / "one"), _weights(tmp_path / "four"), atol=3e-5, rtol=0
    )


def test_one_program_is_compiled(toy_records, toy_experiment, tmp_path, monkeypatch):
    traces = []
    original = steps.make_train_step

    def counted(*args, **kwargs):
        step = original(*args, **kwargs)

        def traced(state, batch):
            traces.append(1)
            return step(state, batch)

        return traced

    monkeypatch.setattr(steps, "make_train_step", counted)
    loop.train(toy_experiment, toy_records, tmp_path, layout=_one_device())
    assert len(traces) == 1


def test_a_workdir_of_another_configuration_is_refused(toy_records, toy_experiment, tmp_path):
    loop.train(toy_experiment, toy_records, tmp_path, layout=_one_device(), stop_at=2)
    other = _replaced(toy_experiment, "optim", learning_rate=0.5)
    with pytest.raises(errors.CheckpointMismatchError) as error:
        loop.train(other, toy_records, tmp_path, layout=_one_device())
    assert "experiment.optim.learning_rate: 0.003 -> 0.5" in str(error.value)
    assert "--workdir" in error.value.fix


def test_a_run_of_an_older_version_goes_on_where_new_keys_are_at_their_defaults(
    toy_records, toy_experiment, tmp_path
):
    loop.train(toy_experiment, toy_records, tmp_path, layout=_one_device(), stop_at=2)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["experiment"]["model"]["attention"], stored["experiment"]["optim"]["clip"]
    path.write_text(json.dumps(stored))
    result = loop.train(toy_experiment, toy_records, tmp_path, layout=_one_device(), stop_at=3)
    assert result.step == 3
    other = _replaced(toy_experiment, "optim", clip=0.5)
    with pytest.raises(errors.CheckpointMismatchError, match=r"optim\.clip: 1\.0 -> 0\.5"):
        loop.train(other, toy_records, tmp_path, layout=_one_device())


def test_a_run_goes_on_though_its_records_moved(toy_records, toy_experiment, tmp_path):
    loop.train(toy_experiment, toy_records, tmp_path, layout=_one_device(), stop_at=2)
    moved = _replaced(toy_experiment, "data", records="/elsewhere", residence="stream")
    result = loop.train(moved, toy_records, tmp_path, layout=_one_device(), stop_at=3)
    assert result.step == 3
    info = dataclasses.replace(toy_records.slides["T1"], digest="another")
    changed = dataclasses.replace(toy_records, slides={**toy_records.slides, "T1": info})
    with pytest.raises(errors.CheckpointMismatchError, match=r"split\.digests\.T1"):
        loop.train(toy_experiment, changed, tmp_path, layout=_one_device())


def test_a_test_slide_that_chose_the_panel_is_refused(toy_records, toy_experiment, tmp_path):
    seen = _replaced(toy_experiment, "data", test="T2")
    with pytest.raises(errors.SplitError, match="T2") as error:
        loop.train(seen, toy_records, tmp_path)
    assert "stemjax prepare --test T2" in error.value.fix
    allowed = _replaced(seen, "data", allow_seen_panel=True)
    material = material_lib.gather(allowed, toy_records)
    assert material.card.split["test"] == ["T2"]
    assert material.card.split["kind"] == "interpolation within a patient"


def test_a_slide_held_out_is_never_in_a_batch_nor_in_the_space(toy_records, toy_experiment):
    material = material_lib.gather(toy_experiment, toy_records)
    table = toy_records.load(["T1", "T2"])
    assert material.schedule.n == table.n
    values = material.card.space.forward(table.counts, table.total)
    # float32 sums of 48 numbers of size about 3.
    np.testing.assert_allclose(material.card.space.expression.mean, values.mean(0), rtol=1e-5)
    seen = {row.tobytes() for row in material.card.space.encode_expression(
        table.counts, table.total, table.mask)}  # fmt: skip
    for batch in material.view.batches(material.schedule, 0, 6):
        assert {row.tobytes() for row in np.asarray(batch["x0"])} <= seen


def test_regression_is_the_same_run_with_every_row_a_mean_token(
    toy_records, toy_experiment, tmp_path
):
    regression = _replaced(toy_experiment, "diffusion", mean_fraction=1.0)
    loop.train(regression, toy_records, tmp_path, layout=_one_device())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all("loss_noisy" not in line for line in lines)
    assert any("loss_mean_token" in line for line in lines)


def test_the_workdir_says_what_it_holds(toy_records, toy_experiment, tmp_path):
    loop.train(toy_experiment, toy_records, tmp_path, layout=_one_device())
    stored = json.loads((tmp_path / "config.json").read_text())
    assert config.resolve(stored["experiment"]) == toy_experiment
    assert stored["split"]["train"] == ["T1", "T2"]
    assert list((tmp_path / "tensorboard").glob("events*"))
