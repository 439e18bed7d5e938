"""Signals in every phase of a run: it saves, ends, and goes on as if it had not been stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import chex
import jax
import numpy as np
import pytest

from stemjax import errors, mesh, stopping
from stemjax.data import pipeline
from stemjax.train import checkpoint, dispatch, lease, loop, saving, validation
from stemjax.train import material as material_lib


def _train(experiment, source, workdir, **more):
    return loop.train(
        experiment, source, workdir, layout=mesh.make_layout(jax.devices()[:1]), **more
    )


def _kill(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _no_hurry(monkeypatch):
    """The thread that ends a process whose main thread is away must not end this one."""
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 3600.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toy_records, toy_experiment):
    folder = tmp_path_factory.mktemp("whole")
    _train(toy_experiment, toy_records, folder)
    return folder


def _same(one, other):
    chex.assert_trees_all_equal(
        checkpoint.load(one, weights="last").params, checkpoint.load(other, weights="last").params
    )
    best = [checkpoint.load(folder, weights="best") for folder in (one, other)]
    chex.assert_trees_all_equal(best[0].params, best[1].params)
    assert best[0].validation == best[1].validation
    numbers = []
    for folder in (one, other):
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        numbers.append({line["step"]: line["val_mse"] for line in lines if "val_mse" in line})
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_step_saves_it(
    toy_records, toy_experiment, tmp_path, monkeypatch, whole, number
):
    original = dispatch.Programs.run

    def run(self, state, start, handed):
        if start == 4:
            _kill(number)
            _kill(number)  # the second changes nothing
        return original(self, state, start, handed)

    with monkeypatch.context() as patch:
        patch.setattr(dispatch.Programs, "run", run)
        with pytest.raises(stopping.Stopped, match="step 5 is saved") as stopped:
            _train(toy_experiment, toy_records, tmp_path)
    assert stopped.value.exit_code == 128 + number
    assert checkpoint.load(tmp_path, weights="last").step == 5
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    _train(toy_experiment, toy_records, tmp_path)
    _same(whole, tmp_path)


def test_a_signal_while_it_waits_for_data(
    toy_records, toy_experiment, tmp_path, monkeypatch, whole
):
    original = material_lib.gather

    def gather(*args):
        material = original(*args)
        inner = material.view

        class Stuck(pipeline.HostView):
            def batches(self, schedule, first, last, **where):
                for step, batch in enumerate(inner.batches(schedule, first, last, **where)):
                    if step == 3:
                        threading.Timer(0.2, _kill).start()
                        threading.Event().wait(60)
                    yield batch

        return dataclasses.replace(material, view=Stuck())

    started = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(material_lib, "gather", gather)
        with pytest.raises(stopping.Stopped, match="step 3 is saved"):
            _train(toy_experiment, toy_records, tmp_path)
    assert time.monotonic() - started < 50
    _train(toy_experiment, toy_records, tmp_path)
    _same(whole, tmp_path)


def test_a_signal_while_it_validates(toy_records, toy_experiment, tmp_path, monkeypatch, whole):
    original = validation.make_validate

    def make(*args, **more):
        validate = original(*args, **more)

        def interrupted(ema, progress=None):
            _kill()
            return validate(ema, progress)

        return interrupted

    with monkeypatch.context() as patch:
        patch.setattr(validation, "make_validate", make)
        with pytest.raises(stopping.Stopped, match="step 6 is saved"):
            _train(toy_experiment, toy_records, tmp_path)
    assert not (tmp_path / "best").exists() or not any((tmp_path / "best").iterdir())
    assert checkpoint.load(tmp_path, weights="last").step == 6
    _train(toy_experiment, toy_records, tmp_path)  # validates step 6 first
    _same(whole, tmp_path)


def test_a_signal_while_it_saves(toy_records, toy_experiment, tmp_path, monkeypatch, whole):
    original = saving.Checkpoints.save

    def save(self, state, step):
        original(self, state, step)
        if step == 6:
            _kill()

    with monkeypatch.context() as patch:
        patch.setattr(saving.Checkpoints, "save", save)
        with pytest.raises(stopping.Stopped, match="step 6 is saved"):
            _train(toy_experiment, toy_records, tmp_path)
    _train(toy_experiment, toy_records, tmp_path)
    _same(whole, tmp_path)


def test_a_signal_before_the_first_update(toy_records, toy_experiment, tmp_path, monkeypatch):
    original = dispatch.Programs.prepare

    def prepare(self, *args):
        _kill()
        return original(self, *args)

    monkeypatch.setattr(dispatch.Programs, "prepare", prepare)
    with pytest.raises(stopping.Stopped, match="no update was done yet"):
        _train(toy_experiment, toy_records, tmp_path)
    with pytest.raises(errors.CheckpointError):
        checkpoint.load(tmp_path)


def test_two_jobs_in_one_workdir_are_refused(toy_records, toy_experiment, tmp_path):
    with lease.held(tmp_path):
        # A lock belongs to an open file: a second opening is as good as a second process.
        with pytest.raises(errors.WorkdirInUseError, match=f"pid {os.getpid()}") as error:
            _train(toy_experiment, toy_records, tmp_path)
        assert "--steal-lock" in error.value.fix
        assert _train(toy_experiment, toy_records, tmp_path, steal=True).step == 12
    assert _train(toy_experiment, toy_records, tmp_path).step == 12


def test_a_job_of_another_host_is_watched(tmp_path):
    """Where a lock does not reach: the other host's counter goes up, or it does not."""
    folder = tmp_path / lease.FOLDER
    folder.mkdir()
    holder = folder / "holder"
    other = {"pid": 7, "host": "elsewhere", "token": "x"}
    holder.write_text(json.dumps({**other, "beats": 1}))
    said = []
    with lease.held(tmp_path, beat=0.1, say=said.append):  # dead: it is taken over
        assert json.loads(holder.read_text())["pid"] == os.getpid()
    assert "last held by pid 7 on host elsewhere" in said[0]
    assert not holder.exists()
    holder.write_text(json.dumps({**other, "beats": 1}))
    timer = threading.Timer(0.1, holder.write_text, [json.dumps({**other, "beats": 2})])
    timer.start()
    with (
        pytest.raises(errors.WorkdirInUseError, match="sign of life"),
        lease.held(tmp_path, beat=0.3),
    ):
        pass
    timer.join()
    assert json.loads(holder.read_text())["host"] == "elsewhere"


def test_a_lock_goes_with_the_process_that_held_it(tmp_path):
    code = (
        "import pathlib, sys, time\nfrom stemjax.train import lease\n"
        "with lease.held(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n"
        "    time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    with pytest.raises(errors.WorkdirInUseError, match=f"pid {child.pid}"), lease.held(tmp_path):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    with lease.held(tmp_path):
        pass


def test_a_beat_tells_that_the_job_lives(tmp_path):
    with lease.held(tmp_path, beat=0.05):
        holder, seen = tmp_path / lease.FOLDER / "holder", set()
        until = time.monotonic() + 10
        while len(seen) < 3 and time.monotonic() < until:
            seen.add(json.loads(holder.read_text())["beats"])
            time.sleep(0.02)
    assert len(seen) >= 3


def test_what_is_compiled_is_compiled_before_the_first_update(
    toy_records, toy_experiment, tmp_path, monkeypatch
):
    order = []
    prepare, run = dispatch.Programs._prepare, dispatch.Programs.run

    def noted(self, state, start, length, given):
        if length not in self._compiled:
            order.append(("compile", length))
        prepare(self, state, start, length, given)

    monkeypatch.setattr(dispatch.Programs, "_prepare", noted)
    monkeypatch.setattr(
        dispatch.Programs, "run", lambda self, *a: (order.append(("run",)), run(self, *a))[1]
    )
    train = dataclasses.replace(
        toy_experiment.train, steps=9, steps_per_call=2, validate_every=0, save_every=2, log_every=2
    )
    _train(dataclasses.replace(toy_experiment, train=train), toy_records, tmp_path)
    assert order[:2] == [("compile", 2), ("compile", 1)]
    assert {entry[0] for entry in order[2:]} == {"run"}
    assert np.sum([entry == ("run",) for entry in order]) == 5
