"""Runs of several processes: the losses of one, one log, agreement, and going on elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from stemjax import config, mesh
from stemjax.train import checkpoint, loop

# Minutes on two cores: nine runs in two processes, and those that they are held against.
pytestmark = pytest.mark.slow

PROGRAM = pathlib.Path(__file__).with_name("process_run.py")
PROCESSES, DEVICES, STOP = 2, 2, 6


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def run_processes(folder, told):
    """What each process says of its jobs, and what it printed."""
    path = folder / "jobs.json"
    told = {"coordinator": f"127.0.0.1:{free_port()}", "processes": PROCESSES, **told}
    path.write_text(json.dumps(told))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    said = [folder / f"said{i}.json" for i in range(PROCESSES)]
    # Into files: of two pipes that are read one after the other, the second may fill and stop both.
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context((folder / f"log{i}.txt").open("w")) for i in range(PROCESSES)]
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(PROGRAM), str(path), str(i), str(said[i])],
                    stdout=logs[i], stderr=subprocess.STDOUT, env=environment,
                )
            )
            for i in range(PROCESSES)
        ]  # fmt: skip
        try:
            codes = [process.wait(timeout=540) for process in running]
        finally:
            for process in running:
                process.kill()
    printed = [(folder / f"log{i}.txt").read_text() for i in range(PROCESSES)]
    assert codes == [0] * PROCESSES, [text[-3000:] for text in printed]
    return [json.loads(file.read_text()) for file in said], printed


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.asarray([line["loss"] for line in lines if "loss" in line])


def validations(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    keys = ("val_mse", "val_mae", "val_pcc")
    return np.asarray([[line[key] for key in keys] for line in lines if "val_mse" in line])


def weights(workdir):
    return checkpoint.load(workdir, weights="last").params


@pytest.fixture(scope="module")
def experiment(toy_experiment):
    train = dataclasses.replace(toy_experiment.train, log_every=1)
    return dataclasses.replace(toy_experiment, train=train)


def arranged(experiment, **axes):
    return dataclasses.replace(experiment, mesh=config.Mesh(**axes))


def laid(experiment, **data):
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **data))


@pytest.fixture(scope="module")
def ran(toy_records, experiment, tmp_path_factory):
    """Folder, what the two processes said, and what they printed."""
    folder = tmp_path_factory.mktemp("processes")
    four = mesh.make_layout()
    loop.train(experiment, toy_records, folder / "one_process", layout=four)
    loop.train(experiment, toy_records, folder / "half", layout=four, stop_at=STOP)
    dealt, one = laid(experiment, decks=4), mesh.make_layout(jax.devices()[:1])
    loop.train(dealt, toy_records, folder / "decks", layout=one, stop_at=STOP)
    for name in ("half_to_two_processes", "half_to_one_device", "half_to_two_devices",
                 "half_to_four"):  # fmt: skip
        shutil.copytree(folder / "half", folder / name)
    jobs = [
        ("two_processes", experiment, {}),
        ("broken", experiment, {"stop_at": STOP}),
        ("broken", experiment, {}),
        ("half_to_two_processes", experiment, {}),
        ("streamed", laid(experiment, residence="stream"), {}),
        ("decks_in_ram", laid(experiment, decks=4, residence="ram"), {"stop_at": STOP}),
        ("decks_on_devices", laid(experiment, decks=4, residence="device"), {"stop_at": STOP}),
        ("fsdp2", arranged(experiment, fsdp=2), {"stop_at": STOP}),
        ("fsdp4", arranged(experiment, fsdp=4), {"stop_at": STOP}),
        ("genes4", arranged(experiment, genes=4), {"stop_at": STOP}),
        ("seeds", experiment, {"differ": ["data", "augment", False]}),
    ]
    told = {
        "devices": DEVICES,
        "records": str(next(iter(toy_records.folders.values())).parents[2]),
        "jobs": [
            {"workdir": str(folder / name), "experiment": config.as_json(chosen), **more}
            for name, chosen, more in jobs
        ],
        "load": str(folder / "two_processes"),
    }
    said, printed = run_processes(folder, told)
    return folder, said, printed


# float32 sums in another order, through twelve updates; seen up to 4e-7.
CLOSE = 1e-5


@pytest.mark.parametrize(
    "name", ["two_processes", "half_to_two_processes", "streamed", "fsdp2", "fsdp4", "genes4"]
)
def test_two_processes_have_the_losses_of_one(ran, name):
    folder, _, _ = ran
    found, expected = losses(folder / name), losses(folder / "one_process")
    assert len(found) >= STOP
    np.testing.assert_allclose(found, expected[: len(found)], rtol=CLOSE)
    judged = validations(folder / name)
    expected = validations(folder / "one_process")[: len(judged)]
    np.testing.assert_allclose(judged[:, :2], expected[:, :2], rtol=CLOSE)
    # After a few updates a gene's predictions hardly vary, which its correlation divides by.
    np.testing.assert_allclose(judged[:, 2], expected[:, 2], atol=1e-3)


@pytest.mark.parametrize("name", ["decks_in_ram", "decks_on_devices"])
def test_two_processes_of_half_the_rows_have_the_losses_of_one_of_all(ran, name):
    folder, _, _ = ran
    np.testing.assert_allclose(losses(folder / name), losses(folder / "decks"), rtol=CLOSE)
    # Another order of rows than without decks, or this would say nothing.
    other = losses(folder / "one_process")[:STOP]
    assert np.abs(losses(folder / name) / other - 1).max() > 100 * CLOSE


def test_going_on_in_the_same_layout_is_bitwise(ran, toy_records, experiment):
    folder, _, _ = ran
    chex.assert_trees_all_equal(weights(folder / "two_processes"), weights(folder / "broken"))
    np.testing.assert_array_equal(losses(folder / "two_processes"), losses(folder / "broken"))
    loop.train(experiment, toy_records, folder / "half_to_four", layout=mesh.make_layout())
    chex.assert_trees_all_equal(weights(folder / "one_process"), weights(folder / "half_to_four"))


@pytest.mark.parametrize(
    ("name", "devices"), [("half_to_one_device", 1), ("half_to_two_devices", 2)]
)
def test_a_run_of_four_devices_goes_on_with_fewer(ran, toy_records, experiment, name, devices):
    folder, _, _ = ran
    layout = mesh.make_layout(jax.devices()[:devices])
    loop.train(experiment, toy_records, folder / name, layout=layout)
    np.testing.assert_allclose(losses(folder / name), losses(folder / "one_process"), rtol=CLOSE)


def test_a_run_of_two_processes_goes_on_in_one_device(ran, toy_records, experiment, tmp_path):
    folder, _, _ = ran
    shutil.copytree(folder / "fsdp4", tmp_path / "one")
    loop.train(
        experiment, toy_records, tmp_path / "one", layout=mesh.make_layout(jax.devices()[:1])
    )
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(folder / "one_process"), rtol=CLOSE)


def test_both_say_the_same_and_only_the_first_writes(ran):
    folder, (first, second), _ = ran
    assert first == second
    assert first[0]["step"] == 12
    assert first[0]["best"]["val_mse"] > 0
    logs = list((folder / "two_processes").glob("tensorboard/*"))
    assert len(logs) == 1
    assert len(losses(folder / "two_processes")) == 12


def test_every_process_can_read_what_all_wrote(ran):
    folder, (first, second), _ = ran
    total = sum(
        float(abs(leaf).sum()) for leaf in jax.tree.leaves(weights(folder / "two_processes"))
    )
    assert first[-1] == second[-1]
    assert first[-1]["total"] == pytest.approx(total, rel=1e-6)


def test_a_process_that_differs_is_named_on_all(ran):
    folder, said, _ = ran
    for process in said:
        found = process[-2]
        assert found["error"] == "SJ-T02"
        assert (
            "process 1 has another config.data.augment (False; the first has True)"
            in (found["text"])
        )
    assert not (folder / "seeds").exists()
