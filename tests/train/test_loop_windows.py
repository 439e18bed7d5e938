"""The loop on windows: the three models of windows train, resume, and split over devices."""

from __future__ import annotations

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from stemjax import config, mesh, tasks
from stemjax.data import components
from stemjax.train import checkpoint, loop, material, spot_inputs
from stemjax.train import step as steps

CHANGES = {
    "histosge": {
        "model": {"kind": "histosge"},
        "window": {
            "kind": "neighbours",
            "length": 9,
            "hide": 0.5,
            "noise": 0.5,
            "condition_noise": 0.1,
            "components": 3,
            "members": 2,
        },
        # Plain: HisToSGE is no diffusion model.
        "diffusion": {"mean_fraction": config.Diffusion().mean_fraction},
    },
    "histosge_published": {
        "model": {"kind": "histosge_published", "mlp_ratio": 1, "head_width": 3},
        "window": {"kind": "rows", "length": 7},
        "diffusion": {"mean_fraction": config.Diffusion().mean_fraction},
        # It cannot say what is below 0.
        "data": {"transform": "log1p_cp10k", "standardise_expression": False},
    },
    "neighbours": {
        "model": {"kind": "lite"},
        "window": {
            "kind": "neighbours",
            "length": 9,
            "hide": 0.5,
            "width": 8,
            "components": 3,
            "reaches": "100,300",
        },
    },
}


def _experiment(toy_experiment, kind):
    """The toy run with a model of windows, of the smallest size: most of the time is compiling."""
    values = dataclasses.asdict(toy_experiment)
    values["model"] |= {"width": 8, "depth": 1}
    for group, changed in CHANGES[kind].items():
        values[group] |= changed
    return config.resolve(values)


def _unvalidated(experiment):
    """The same run without validation, on which no weight depends."""
    short = dataclasses.replace(experiment.train, validate_every=0)
    return dataclasses.replace(experiment, train=short)


def _one_device():
    return mesh.make_layout(jax.devices()[:1])


def _weights(workdir):
    return checkpoint.load(workdir, weights="last").params


def _logged(workdir):
    """Lines of training's metrics but for their timing."""
    timing = ("steps_per_second", "spots_per_second", "eta_seconds")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


# Stem with neighbours has a HisToSGE in it, which is therefore left to the slow tests.
_KINDS = [pytest.param(k, marks=pytest.mark.slow) if k == "histosge" else k for k in CHANGES]


@pytest.fixture(scope="module", params=_KINDS)
def whole(request, toy_records, toy_experiment, tmp_path_factory):
    """An unbroken run on one device: experiment, workdir, and how often a step was traced."""
    experiment = _experiment(toy_experiment, request.param)
    workdir, traces = tmp_path_factory.mktemp(request.param), []
    original = steps.make_train_step

    def counted(*args, **kwargs):
        step = original(*args, **kwargs)
        return lambda state, batch: (traces.append(1), step(state, batch))[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "make_train_step", counted)
        result = loop.train(experiment, toy_records, workdir, layout=_one_device())
    assert result.step == 12
    return experiment, workdir, traces


def test_it_trains_in_one_program(whole):
    experiment, workdir, traces = whole
    assert len(traces) == 1
    losses = [line["loss"] for line in _logged(workdir)]
    text = (workdir / "metrics.jsonl").read_text()
    scores = [line["val_mse"] for line in map(json.loads, text.splitlines()) if "val_mse" in line]
    assert np.isfinite(losses).all()
    assert len(losses) == 3
    # Twelve steps teach little on slides of no spatial order, but some.
    assert scores[-1] < scores[0]
    fresh = jax.jit(checkpoint.load(workdir).card.task.init)(jax.random.key(experiment.seed))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), fresh, _weights(workdir))
    still = [path for path, m in jax.tree_util.tree_leaves_with_path(moved) if not m]
    assert still == []


def test_components_are_those_of_the_training_rows(whole, toy_records):
    experiment, workdir, _ = whole
    params = _weights(workdir)
    params = params.get("regression", params)
    if experiment.model.kind == "histosge_published":
        assert "loadings" not in params
        return
    rows = material.gather(experiment, toy_records).rows()
    expected = components.find_components(rows, experiment.window.components)
    assert np.ptp(expected.loadings) > 0.1
    for name in ("centre", "loadings"):
        value = getattr(expected, name)
        # An average over steps of what never moves carries a rounding of each step.
        np.testing.assert_allclose(
            params[name], np.broadcast_to(value, params[name].shape), atol=2e-6
        )


def test_a_run_from_trained_weights_keeps_their_components(whole, toy_records, tmp_path):
    experiment, workdir, _ = whole
    start = checkpoint.load(workdir, weights="last")
    fewer = dataclasses.replace(experiment.data, train="T1")
    experiment = _unvalidated(dataclasses.replace(experiment, data=fewer))
    loop.train(experiment, toy_records, tmp_path, layout=_one_device(), start=start, stop_at=1)
    begun, found = (p.get("regression", p) for p in (start.params, _weights(tmp_path)))
    if experiment.model.kind == "histosge_published":
        assert "loadings" not in found
        return
    theirs, ours = (material.gather(e, toy_records).schedule.n for e in (whole[0], experiment))
    assert ours < theirs
    for name in ("centre", "loadings"):
        np.testing.assert_allclose(found[name], begun[name], atol=2e-6)


def test_resuming_is_bitwise_the_unbroken_run(whole, toy_records, tmp_path):
    experiment, workdir = _unvalidated(whole[0]), whole[1]
    part = loop.train(experiment, toy_records, tmp_path, layout=_one_device(), stop_at=6)
    assert part.step == 6
    loop.train(experiment, toy_records, tmp_path, layout=_one_device())
    chex.assert_trees_all_equal(_weights(workdir), _weights(tmp_path))
    unbroken, parts = _logged(workdir), _logged(tmp_path)
    assert [line for line in parts if line in unbroken] == unbroken


def test_four_devices_train_as_one(whole, toy_records, tmp_path):
    experiment, workdir = _unvalidated(whole[0]), whole[1]
    loop.train(experiment, toy_records, tmp_path, layout=mesh.make_layout())
    # Gradients are summed in another order (fp32), and Adam divides small gradients by their own
    # size: after 12 steps of 3e-3 weights agree to a hundredth of one step.
    one, four = (_weights(folder) for folder in (workdir, tmp_path))
    chex.assert_trees_all_close(one, four, atol=3e-5, rtol=0)


def test_what_was_trained_predicts_every_spot_without_its_own_expression(whole, toy_records):
    _, workdir, _ = whole
    trained = checkpoint.load(workdir)
    table = toy_records.load(["X1"])

    def predicted(table):
        given = spot_inputs.make_inputs(trained.card, table, toy_records)
        predict = tasks.make_predictor(trained.card.task, trained.card.task.estimate)
        return given.of_spots(predict(trained.params, given.tree, given.keys(0)))

    found = predicted(table)
    assert found.shape == (1, 60, 8)
    assert np.isfinite(found).all()
    assert found.std(axis=1).max() > 0.01
    counts = table.counts.copy()
    counts[17] = 40 * counts[17] + 100
    other = predicted(dataclasses.replace(table, counts=counts, total=counts.sum(axis=1)))
    np.testing.assert_array_equal(other[:, 17], found[:, 17])
    sees = trained.card.experiment.window.kind == "neighbours"
    assert bool(np.abs(other - found).max() > 1e-3) == sees
