"""Portable programs: Python's predictions, in a process that has JAX and none of this code."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_bundle as made

from stemjax import config, errors, tasks
from stemjax.data import embeddings, integrity
from stemjax.diffusion import sampler
from stemjax.export import program, tensors

FILES = ["SHA256SUMS.json", "example.safetensors", "model.safetensors", "program.jaxexport",
         "program.json", "run.py"]  # fmt: skip
KINDS = {
    "edm": {"diffusion": {"mean_fraction": 0.5}},
    "residual": {"diffusion": {"residual": True, "mean_fraction": 0.5}},
    "lite": {"model": {"kind": "lite", "latents": 4}, "diffusion": {"mean_fraction": 0.5}},
    "published": {"diffusion": {"process": "ddpm", "mean_fraction": 0.0}},
}
SAMPLINGS = {
    "mean": {"mode": "mean"},
    "ddim": {"mode": "draws", "n_draws": 4, "sampler": "ddim", "steps": 5},
    "heun": {"mode": "draws", "n_draws": 3, "antithetic": False, "sampler": "heun", "steps": 4},
    "ancestral": {"mode": "draws", "n_draws": 2, "sampler": "ancestral", "steps": 4},
}
CASES = [
    (kind, sampling)
    for kind in KINDS
    for sampling in SAMPLINGS
    if (kind, sampling) != ("published", "mean")
]


def make_model(kind, **groups):
    values = config.as_json(config.Experiment(name="toy"))
    values["model"] |= {"width": 8, "depth": 2, "heads": 2}
    for group, part in (KINDS.get(kind, {}) | groups).items():
        values[group] |= part
    card = dataclasses.replace(made.make_card(), experiment=config.resolve(values))
    rng = np.random.default_rng(3)
    # Fresh weights, awake: closed gates would hide the blocks.
    params = jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape).astype(np.float32),
        card.task.init(jax.random.key(1)),
    )
    return dataclasses.replace(made.make_trained(), params=params, card=card)


def embeddings_of(model, spots):
    rng = np.random.default_rng(spots)
    return rng.normal(size=(spots, model.card.contract.width)).astype(np.float32)


def predict(model, sampling, given, barcodes, *, seed=7, slide="S"):
    """What `stemjax predict` would say, draws in the value space."""
    keys = sampler.spot_keys(seed, slide, barcodes)
    run = tasks.make_predictor(model.card.task, sampling)
    return model.card.space.values(
        run(model.params, model.card.space.encode_condition(given), keys)
    )


def keys_of(barcodes, *, seed=7, slide="S"):
    return jax.random.key_data(sampler.spot_keys(seed, slide, barcodes))


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_a_program_says_what_python_says(kind, how):
    model = make_model(kind)
    sampling = model.card.task.sampling(**SAMPLINGS[how])
    exported = program.export(model, sampling=sampling, platforms=("cpu",))
    call = jax.jit(jax.export.deserialize(exported.serialize()).call)
    for spots in (1, 6):  # one program for any number
        given, barcodes = embeddings_of(model, spots), [f"b{i}" for i in range(spots)]
        found = call(tensors.named(model.params), given, keys_of(barcodes))
        expected = predict(model, sampling, given, barcodes)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(np.asarray(found) / scale, expected / scale, atol=1e-5)


def test_it_is_lowered_for_three_platforms():
    model = make_model("edm")
    exported = program.export(model, sampling=model.card.task.sampling(mode="mean"))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    # Nothing of one platform alone: no kernel, no call of a library, no callback.
    assert set(re.findall(r"custom_call @(\w+)", exported.mlir_module())) <= {"shape_assertion"}
    assert exported.in_avals[-2].shape[0] == exported.in_avals[-1].shape[0]  # spots, a symbol


def module_names(path):
    """Runs the runner's example and returns what it says and the modules of its process."""
    script = (
        f"import runpy, sys; sys.argv = ['run.py']; sys.path[:] = [p for p in sys.path if p]\n"
        f"runpy.run_path({str(path / 'run.py')!r}, run_name='__main__')\n"
        "print(' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, modules = done.stdout.strip().splitlines()
    return said, set(modules.split())


@pytest.fixture(scope="module")
def model():
    return make_model("edm")


@pytest.fixture(scope="module")
def sampling(model):
    return model.card.task.sampling(**SAMPLINGS["ddim"])


@pytest.fixture
def path(tmp_path, model, sampling):
    program.write(model, tmp_path / "out", sampling=sampling, platforms=("cpu",))
    return tmp_path / "out"


def test_it_runs_without_this_code(path, model, sampling, tmp_path):
    assert sorted(os.listdir(path)) == FILES
    assert not integrity.damage(path)
    said, modules = module_names(path)
    apart = re.fullmatch(r"example: \(4, 5, 5\) on .*, (\S+) apart at most", said)
    assert apart
    assert float(apart[1]) < 1e-5
    assert not modules & {"stemjax", "flax", "safetensors", "orbax", "optax"}
    given, barcodes = embeddings_of(model, 3), ["x", "y", "z"]
    np.save(tmp_path / "given.npy", given)
    (tmp_path / "barcodes.txt").write_text("\n".join(barcodes))
    command = ["given.npy", "values.npy", "7", "S", "barcodes.txt"]
    done = subprocess.run(
        [sys.executable, str(path / "run.py"), *command], cwd=tmp_path, capture_output=True,
        text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = predict(model, sampling, given, barcodes)
    np.testing.assert_allclose(np.load(tmp_path / "values.npy"), expected, rtol=1e-5, atol=1e-4)


def test_it_says_what_it_takes_and_gives(path, model):
    about = json.loads((path / "program.json").read_text())
    assert about["genes"] == list(model.card.space.genes)
    assert about["inputs"]["embeddings"] == {"shape": ["b", 6], "dtype": "float32"}
    assert about["output"]["shape"] == [4, "b", 5]
    assert about["encoder"] == model.card.contract.to_json()
    assert about["value_space"] == "log2p1"
    assert about["evaluations_per_spot"] == 4 * 5
    assert "Research use only" in about["notice"]


def test_patches_to_genes(tmp_path, model):
    weights = np.random.default_rng(0).normal(size=(4 * 4 * 3, 6)).astype(np.float32) / 255

    def run(patches):
        return patches.reshape(patches.shape[0], -1).astype(jnp.float32) @ weights

    mean = model.card.task.sampling(mode="mean")
    encoder = program.Encoder(run=run, contract=model.card.contract, pixels=4)
    program.write(model, tmp_path / "out", sampling=mean, encoder=encoder, platforms=("cpu",))
    about = json.loads((tmp_path / "out" / "program.json").read_text())
    assert about["inputs"]["patches"] == {"shape": ["b", 4, 4, 3], "dtype": "uint8"}
    patches = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
    np.save(tmp_path / "patches.npy", patches)
    done = subprocess.run(
        [sys.executable, "out/run.py", "patches.npy", "values.npy"], cwd=tmp_path,
        capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = predict(model, mean, np.asarray(run(patches)), ["0", "1", "2"])
    np.testing.assert_allclose(np.load(tmp_path / "values.npy"), expected, rtol=1e-4, atol=1e-4)
    other = dataclasses.replace(model.card.contract, revision="another")
    assert isinstance(other, embeddings.EncoderContract)
    with pytest.raises(errors.EncoderMismatchError, match="that of the model"):
        program.write(
            model, tmp_path / "two", sampling=mean,
            encoder=dataclasses.replace(encoder, contract=other),
        )  # fmt: skip
    assert not (tmp_path / "two").exists()


def test_models_of_windows_have_none(tmp_path):
    model = make_model("", model={"kind": "histosge"},
                       window={"kind": "neighbours", "length": 7, "components": 3})  # fmt: skip
    with pytest.raises(errors.BundleError, match="predicts a spot from its patch alone"):
        program.write(model, tmp_path / "out", sampling=model.card.task.estimate)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_is_no_program_is_not_replaced(tmp_path, model, sampling, name):
    path = tmp_path / "out"
    if name == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    with pytest.raises(errors.BundleError, match="in the way"):
        program.write(model, path, sampling=sampling)
    assert (path if name == "file" else path / "notes.txt").read_text() == "mine"


def test_an_older_program_is_replaced(path, model):
    mean = model.card.task.sampling(mode="mean")
    program.write(model, path, sampling=mean, platforms=("cpu",))
    assert json.loads((path / "program.json").read_text())["output"]["shape"][0] == 1
    assert sorted(os.listdir(path)) == FILES
    assert isinstance(path, pathlib.Path)
    assert os.listdir(path.parent) == ["out"]
