"""Checkpoints: what they hold, and what happens when they are damaged or of another kind."""

from __future__ import annotations

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest

from stemjax import errors, mesh
from stemjax.train import checkpoint, loop, runs


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, toy_records, toy_experiment):
    experiment = dataclasses.replace(
        toy_experiment, train=dataclasses.replace(toy_experiment.train, validate_every=4)
    )
    folder = tmp_path_factory.mktemp("run")
    loop.train(experiment, toy_records, folder, layout=mesh.make_layout(jax.devices()[:1]))
    return folder


def test_a_card_reads_back_equal(workdir):
    card = checkpoint.load(workdir).card
    again = checkpoint.Card.from_json(json.loads(json.dumps(card.to_json())))
    assert again.to_json() == card.to_json()
    np.testing.assert_array_equal(again.space.expression.mean, card.space.expression.mean)
    assert card.split["kind"] == "new patient"
    assert card.panel["slides"] == ["T1", "T2", "V1"]
    assert set(card.versions) == {"stemjax", "jax", "flax", "optax"}


def test_the_best_weights_are_those_of_the_best_validation(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scored = {line["step"]: line["val_mse"] for line in lines if "val_mse" in line}
    best, last = checkpoint.load(workdir), checkpoint.load(workdir, weights="last")
    assert (best.weights, last.weights, last.step) == ("best", "last", 12)
    assert best.step == min(scored, key=scored.__getitem__)


def test_restored_weights_validate_as_they_did(workdir, toy_records):
    best = checkpoint.load(workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if line["step"] == best.step and "val_mse" in line)
    table = toy_records.load(["V1"])
    found = loop.make_validate(best.card, best.card.task, table, toy_records)(best.params)
    assert found["val_mse"] == pytest.approx(logged["val_mse"], rel=1e-6)


def test_weights_restored_are_arrays_of_the_models_shapes(workdir):
    trained = checkpoint.load(workdir)
    shapes = jax.eval_shape(trained.card.task.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(trained.params, shapes)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(errors.CheckpointError, match="nothing") as error:
        checkpoint.load(tmp_path / "nowhere")
    assert "stemjax train --workdir" in str(error.value)
    with pytest.raises(errors.ConfigError, match="auto, best or last"):
        checkpoint.load(tmp_path, weights="worst")


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_checkpoint_is_named(workdir, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    files = [path for path in (copy / "best").rglob("*") if path.is_file() and "/d/" in str(path)]
    assert files
    for path in files:
        if damage == "remove":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(errors.CheckpointError, match="best") as error:
        checkpoint.load(copy)
    assert error.value.fix


def test_a_format_of_the_future_is_refused():
    with pytest.raises(errors.CheckpointError, match="expected 1, found 9"):
        checkpoint.Card.from_json({"format": 9})


def test_a_stale_partial_save_is_ignored(workdir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    (copy / "checkpoints" / "18.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.load(copy, weights="last").step == 12


def test_a_model_knows_where_it_was_trained(tmp_path, toy_records, toy_experiment):
    one = mesh.make_layout(jax.devices()[:1])
    loop.train(toy_experiment, toy_records, tmp_path / "run", layout=one, stop_at=6)
    with (tmp_path / "run" / "runs.jsonl").open("a") as file:
        file.write('{"from_step": \n')  # killed while writing
    two = mesh.make_layout(jax.devices()[:2])
    loop.train(toy_experiment, toy_records, tmp_path / "run", layout=two)
    loop.train(toy_experiment, toy_records, tmp_path / "run", layout=two)  # nothing left to do
    last = checkpoint.load(tmp_path / "run", weights="last")
    assert [(run["from_step"], run["devices"]) for run in last.runs] == [(0, 1), (6, 2)]
    assert last.runs[0]["platform"] == "cpu"
    assert last.validation is None
    best = checkpoint.load(tmp_path / "run", weights="best")
    assert best.validation is not None
    assert best.validation["step"] == best.step
    # Weights of before the second start know nothing of it.
    assert len(runs.read(tmp_path / "run", until=6)) == 1
