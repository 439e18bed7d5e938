"""Updates that are not finite: skipped, named, gone back from, and never committed."""

from __future__ import annotations

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax import errors, mesh
from stemjax.data import pipeline
from stemjax.train import checkpoint, dispatch, loop, nonfinite
from stemjax.train import material as material_lib
from stemjax.train import state as states


def _experiment(experiment, **train):
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **train))


def _train(experiment, source, workdir, **more):
    return loop.train(
        experiment, source, workdir, layout=mesh.make_layout(jax.devices()[:1]), **more
    )


def _weights(workdir):
    return checkpoint.load(workdir, weights="last").params


@pytest.fixture
def poison(monkeypatch):
    """A function that makes values of some steps' batches NaN: ``poison(steps, row)``."""

    def set_up(steps, row=3):
        original = material_lib.gather

        def gather(*args):
            material = original(*args)
            inner = material.view

            class Poisoned(pipeline.HostView):
                n, variants = inner.n, inner.variants

                def batch_at(self, schedule, step, *where):
                    batch = inner.batch_at(schedule, step, *where)
                    if step not in steps:
                        return batch
                    x0 = np.array(batch["x0"])
                    x0[row, 2] = np.nan
                    return {**batch, "x0": x0}

                def batches(self, schedule, first, last, **where):
                    return (self.batch_at(schedule, step) for step in range(first, last))

            return dataclasses.replace(material, view=Poisoned())

        monkeypatch.setattr(material_lib, "gather", gather)

    return set_up


def test_one_bad_batch_is_skipped_and_its_spots_named(
    toy_records, toy_experiment, tmp_path, poison, caplog
):
    poison({4}, row=3)
    result = _train(toy_experiment, toy_records, tmp_path)
    assert result.step == 12
    lines = [json.loads(line) for line in (tmp_path / "nonfinite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4]
    material = material_lib.gather(toy_experiment, toy_records)
    rows, _ = material.schedule.local(4, 0, 1)
    table = toy_records.load(["T1", "T2"])
    spot = f"{table.slides[table.slide_index[rows[3]]]}/{table.barcodes[rows[3]]}"
    assert lines[0]["not_finite"] == [spot]
    assert lines[0]["spots"][0] == spot
    assert len(lines[0]["spots"]) == len(rows) == len(lines[0]["rows"])
    assert spot in caplog.text
    assert "update 5 was not finite" in caplog.text
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = {line["step"]: line.get("skipped") for line in metrics if "loss" in line}
    assert skipped == {4: None, 8: 1.0, 12: 1.0}


def test_fewer_in_a_row_than_asked_for_end_no_run(toy_records, toy_experiment, tmp_path, poison):
    poison({6, 7, 8, 9, 10, 11})
    experiment = _experiment(toy_experiment, rollback_after=7)
    _train(experiment, toy_records, tmp_path)
    last = checkpoint.load(tmp_path, weights="last")
    assert last.step == 12
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last.params))


def test_bad_batches_in_a_row_send_the_run_back_and_twice_end_it(
    toy_records, toy_experiment, tmp_path, poison, caplog
):
    _train(toy_experiment, toy_records, tmp_path, stop_at=6)
    good = _weights(tmp_path)
    poison(set(range(7, 12)))
    experiment = _experiment(toy_experiment, rollback_after=3)
    with pytest.raises(errors.NonFiniteError, match="step 6 is saved and whole") as error:
        _train(experiment, toy_records, tmp_path)
    assert "from step 7 on were not finite, again" in str(error.value)
    assert caplog.text.count("going back to step 6") == 1
    chex.assert_trees_all_equal(_weights(tmp_path), good)
    assert checkpoint.load(tmp_path, weights="last").step == 6


@pytest.mark.parametrize("what", ["params", "ema"])
def test_what_chance_did_to_memory_is_undone(
    toy_records, toy_experiment, tmp_path, monkeypatch, caplog, what
):
    """Numbers become NaN in memory once: the run goes back, and ends as if nothing had been."""
    _train(toy_experiment, toy_records, tmp_path / "whole")
    experiment = _experiment(toy_experiment, rollback_after=2)
    original, struck = dispatch.Programs.run, []

    def run(self, state, start, handed):
        if start == 8 and not struck:
            struck.append(start)
            tree = jax.tree.map(lambda a: a.at[(0,) * a.ndim].set(jnp.nan), getattr(state, what))
            state = dataclasses.replace(state, **{what: tree})
        return original(self, state, start, handed)

    monkeypatch.setattr(dispatch.Programs, "run", run)
    result = _train(experiment, toy_records, tmp_path / "struck")
    assert (result.step, struck) == (12, [8])
    assert "going back to step 6" in caplog.text
    chex.assert_trees_all_equal(_weights(tmp_path / "whole"), _weights(tmp_path / "struck"))
    text = (tmp_path / "struck" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [4, 8, 12]


def test_a_run_with_nothing_saved_begins_again(
    toy_records, toy_experiment, tmp_path, monkeypatch, caplog
):
    _train(toy_experiment, toy_records, tmp_path / "whole")
    original, struck = dispatch.Programs.run, []

    def run(self, state, start, handed):
        if start == 2 and not struck:
            struck.append(start)
            state = dataclasses.replace(
                state, params=jax.tree.map(lambda a: a * jnp.nan, state.params)
            )
        return original(self, state, start, handed)

    monkeypatch.setattr(dispatch.Programs, "run", run)
    experiment = _experiment(toy_experiment, rollback_after=2)
    _train(experiment, toy_records, tmp_path / "struck")
    assert "going back to the beginning" in caplog.text
    chex.assert_trees_all_equal(_weights(tmp_path / "whole"), _weights(tmp_path / "struck"))


def test_flags_are_fetched_with_the_metrics_and_not_at_every_step(
    toy_records, toy_experiment, tmp_path, monkeypatch
):
    fetched, original = [], jax.device_get

    def counted(tree):
        fetched.append(tree)
        return original(tree)

    def looks(steps):
        fetched.clear()
        experiment = _experiment(
            toy_experiment, steps=steps, log_every=steps, save_every=steps, validate_every=0
        )
        monkeypatch.setattr(jax, "device_get", counted)
        _train(experiment, toy_records, tmp_path / str(steps))
        monkeypatch.setattr(jax, "device_get", original)
        return len(fetched)

    assert looks(4) == looks(16)


def test_a_state_with_one_number_that_is_not_finite_is_none():
    state = states.TrainState(
        step=jnp.zeros((), jnp.int32), params={"a": jnp.ones(3)}, ema={"a": jnp.ones(3)}, opt=()
    )
    assert bool(states.is_finite(state))
    bad = dataclasses.replace(state, ema={"a": jnp.ones(3).at[1].set(jnp.inf)})
    assert not bool(states.is_finite(bad))


def test_no_more_rollbacks_than_allowed(toy_experiment, toy_records, tmp_path):
    material = material_lib.gather(toy_experiment, toy_records)
    cfg = dataclasses.replace(toy_experiment.train, rollbacks=2)
    watch = nonfinite.Watch(cfg, material, tmp_path)
    watch.go_back(nonfinite.GoBack(4, "x"), None)
    watch.go_back(nonfinite.GoBack(9, "x"), 6)
    with pytest.raises(errors.NonFiniteError, match="step 6 is saved"):
        watch.go_back(nonfinite.GoBack(11, "x"), 6)
