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
from stemjax.train import checkpoint, loop, runs, step_folders, validation


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
    found = validation.make_validate(best.card, best.card.task, table, toy_records)(best.params)
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


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flip(path, place, bit):
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= 1 << bit
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip"])
def test_damaged_best_weights_are_named_and_the_last_used(workdir, tmp_path, damage, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    path = max(_files(copy / "best"), key=lambda file: file.stat().st_size)
    if damage == "remove":
        path.unlink()
    elif damage == "flip":
        _flip(path, 40, 3)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = checkpoint.load(copy)
    assert (found.weights, found.step) == ("last", 12)
    assert path.name in caplog.text
    assert "Using step 12 of checkpoints instead of best" in caplog.text
    with pytest.raises(errors.CheckpointError, match=path.name) as error:
        checkpoint.load(copy, weights="best")
    assert error.value.fix


def test_a_damaged_step_gives_way_to_the_one_before(workdir, tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    _flip(copy / "checkpoints" / "12" / "commit_success.txt", 9, 0)  # which orbax does not read
    found = checkpoint.load(copy, weights="last")
    assert found.step == 6
    assert "checkpoints/12 is damaged" in caplog.text
    # Whoever does not want to know gets what orbax makes of it.
    assert checkpoint.load(copy, weights="last", verify=False).step == 12
    _flip(max(_files(copy / "checkpoints" / "6"), key=lambda f: f.stat().st_size), 9, 0)
    with pytest.raises(errors.CheckpointError, match="steps 6 are damaged too"):
        checkpoint.load(copy, weights="last")


def test_no_flipped_bit_of_a_step_is_read_without_a_word(workdir, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(workdir / "checkpoints" / "12", folder / "12")
    rng = np.random.default_rng(10)
    assert step_folders.damage(folder, 12) is None
    for path in _files(folder):
        whole = path.read_bytes()
        for place, bit in zip(rng.integers(0, len(whole), 20), rng.integers(0, 8, 20)):
            _flip(path, int(place), int(bit))
            assert step_folders.damage(folder, 12) is not None, path
            path.write_bytes(whole)
        path.unlink()
        assert step_folders.damage(folder, 12) is not None, path
        path.write_bytes(whole)
    assert step_folders.damage(folder, 12) is None


def test_a_run_goes_on_from_the_newest_good_step(toy_records, toy_experiment, tmp_path, caplog):
    layout = mesh.make_layout(jax.devices()[:1])
    loop.train(toy_experiment, toy_records, tmp_path / "run", layout=layout)
    good = checkpoint.load(tmp_path / "run", weights="last")
    _flip(max(_files(tmp_path / "run/checkpoints/12"), key=lambda f: f.stat().st_size), 9, 0)
    loop.train(toy_experiment, toy_records, tmp_path / "run", layout=layout)
    again = checkpoint.load(tmp_path / "run", weights="last")
    assert again.step == 12
    chex.assert_trees_all_equal(again.params, good.params)
    assert "using step 6" in caplog.text
    assert (tmp_path / "run" / "damaged" / "checkpoints-12").is_dir()


def test_arrays_of_another_shape_are_named_before_they_are_read(workdir):
    card = checkpoint.load(workdir, weights="last").card
    wider = dataclasses.replace(
        card,
        experiment=dataclasses.replace(
            card.experiment, model=dataclasses.replace(card.experiment.model, width=32)
        ),
    )
    wanted = jax.eval_shape(wider.task.init, jax.random.key(0))
    folder = workdir / "best" / str(checkpoint.load(workdir).step) / "ema"
    with pytest.raises(errors.CheckpointMismatchError) as error:
        step_folders.require_same_shapes(folder, wanted)
    assert "the model wants" in str(error.value)
    ours = jax.eval_shape(card.task.init, jax.random.key(0))
    step_folders.require_same_shapes(folder, ours)
    with pytest.raises(errors.CheckpointMismatchError, match="is unknown to the model"):
        step_folders.require_same_shapes(folder, {})


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
