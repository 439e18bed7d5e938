"""EDM models for PyTorch: the module that goes along, against the networks here.

golden_edm.npz holds what the module made of random weights (make_golden_edm.py, run with torch);
where torch is installed the module runs here too. Both sides compute in float32, so that they
differ by rounding.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from stemjax import cli, config, errors
from stemjax.data import embeddings, space, transforms
from stemjax.diffusion import ladders, rules, sampler
from stemjax.export import bundle, published, torch_edm
from stemjax.train import calibration, checkpoint

HERE = pathlib.Path(__file__).resolve().parent
FILES = ["SHA256SUMS.json", "config.json", "model.safetensors", "stem_edm.py"]


def module_at(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = module_at(HERE / "make_golden_edm.py", "make_golden_edm")
STORED = np.load(HERE / "golden_edm.npz")


def arrays(prefix):
    names = [name for name in STORED.files if name.startswith(prefix + "/")]
    return {name.removeprefix(prefix + "/"): STORED[name] for name in names}


def make_card(case="stem", *, model=None, window=None, diffusion=None):
    """The card of a golden case's model, changed."""
    stated = golden.make_config(case)
    size = {k: v for k, v in stated["network"].items() if k != "heads"} | {"heads": 2}
    options = {name: stated[name] for name in ("residual", "marginal", "sigma_data")}
    contract = dataclasses.replace(published.UNI_CONCH, name="toy", width=golden.CONDITION)
    assert isinstance(contract, embeddings.EncoderContract)
    return checkpoint.Card(
        experiment=config.Experiment(
            name="toy",
            model=config.Model(**{**size, **(model or {})}),
            window=config.Window(**(window or {})),
            diffusion=config.Diffusion(**{**options, **(diffusion or {})}),
        ),
        space=space.Space(
            genes=tuple(stated["genes"]),
            transform="log2p1",
            expression=transforms.Standardisation.from_json(stated["expression"]),
            condition=transforms.Standardisation.from_json(stated["condition"]),
        ),
        contract=contract,
        split={"train": ["T1"], "val": [], "test": ["X1"], "kind": "new patient"},
        panel={"genes": stated["genes"], "rule": "toy", "slides": ["T1"]},
        versions={"stemjax": "0"},
    )


def to_params(state, task):
    """The parameters of a state dict, layer by layer: the way back from `torch_edm.to_state`."""

    def leaf(path, wanted):
        keys = [entry.key for entry in path]
        kernel = keys[-1] == "kernel"
        keys[-1] = "weight" if kernel else keys[-1]
        if "blocks" not in keys:
            value = state[".".join(keys)]
            value = value.T if kernel else value
        else:
            at = keys.index("blocks") + 1
            parts = [[*keys[:at], str(i), *keys[at:]] for i in range(wanted.shape[0])]
            values = [state[".".join(part)] for part in parts]
            value = np.stack([value.T if kernel else value for value in values])
        assert value.shape == wanted.shape, path
        return jnp.asarray(value, jnp.float32)

    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(leaf, shapes)


def make_trained(case="stem", **changes):
    card = make_card(case, **changes)
    params = to_params(arrays(f"{case}/state"), card.task)
    return checkpoint.Trained(params=params, card=card, step=7, weights="best")


def run_here(trained):
    """What stemjax makes of the golden inputs."""
    given, task, params = arrays("inputs"), trained.card.task, trained.params
    cond = trained.card.space.encode_condition(given["embeddings"])
    denoise = task.denoiser(params, cond)
    keys = jax.random.split(jax.random.key(0), golden.ROWS)
    rungs = ladders.karras(golden.STEPS, sigma_min=0.01, sigma_max=80.0)
    raw = task.network.apply(params, jnp.asarray(given["x"]), jnp.asarray(given["level"]), cond)
    made = {
        "cond": cond,
        "network": raw if raw.ndim == 3 else raw[:, None],
        "denoised": denoise(jnp.asarray(given["x"]), jnp.asarray(given["sigma"])),
        "mean": task.predict(params, cond, keys, sampling=task.sampling(mode="mean"))[0],
    }
    for name, rule in (("heun", rules.Heun()), ("ddim", rules.Ddim())):
        start = rungs[0] * jnp.asarray(given["noise"])
        made[name] = sampler.sample(denoise, rungs, start, keys, rule=rule)
    made["values"] = trained.card.space.values(np.asarray(made["mean"]))
    if task.marginal:
        sampling = task.sampling(mode="marginal")
        made["std"] = task.predict(params, cond, keys, sampling=sampling)[1]
    return made


def assert_agree(made, wanted):
    assert made.keys() == wanted.keys()
    for name in wanted:
        # Seen: 3e-6 of one evaluation, 2e-5 of a trajectory, which begins at sigma 80. Where the
        # two logarithms differ in their last bit, the phases of the noise level's features differ
        # by 1e-4, and so could an evaluation: another XLA or torch may need more here.
        tolerance = 1e-4 if name in ("heun", "ddim") else 1e-5
        np.testing.assert_allclose(
            made[name], wanted[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("case", golden.CASES)
def test_stemjax_makes_what_the_module_made(case):
    wanted = {k: v for k, v in arrays(case).items() if not k.startswith("state/")}
    assert_agree(run_here(make_trained(case)), wanted)


@pytest.mark.parametrize("case", golden.CASES)
def test_the_state_has_the_modules_own_names_and_layout(case):
    state, wanted = torch_edm.to_state(make_trained(case).params), arrays(f"{case}/state")
    assert sorted(state) == sorted(wanted)
    for name, value in state.items():
        assert value.dtype == np.float32
        assert value.flags.c_contiguous
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def test_linear_weights_are_transposed_and_blocks_taken_apart():
    params = make_trained("latents").params
    state = torch_edm.to_state(params)
    hidden, profile = golden.CONDITION, params["profile"]
    assert state["condition.fc2.weight"].shape == (8, hidden)
    np.testing.assert_array_equal(
        state["condition.fc2.weight"], np.asarray(params["condition"]["fc2"]["kernel"]).T
    )
    np.testing.assert_array_equal(
        state["profile.blocks.1.attn.qkv.weight"],
        np.asarray(profile["blocks"]["attn"]["qkv"]["kernel"][1]).T,
    )
    np.testing.assert_array_equal(state["profile.output"], np.asarray(profile["output"]))
    np.testing.assert_array_equal(state["gain.bias"], np.asarray(params["gain"]["bias"]))


def test_the_folder_says_all_that_the_module_needs(tmp_path):
    trained = make_trained("residual")
    torch_edm.write(trained, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == FILES
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    for name, value in golden.make_config("residual").items():
        shown = found[name]
        if name == "network":
            assert shown.pop("trained_dtype") == "float32"
        assert shown == value, name
    assert found["encoder"] == trained.card.contract.to_json()
    assert (found["name"], found["step"], found["weights"]) == ("toy", 7, "best")
    weights = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    wanted = arrays("residual/state")
    assert sorted(weights) == sorted(wanted)
    np.testing.assert_array_equal(weights["head.linear.weight"], wanted["head.linear.weight"])
    module = (tmp_path / "out" / "stem_edm.py").read_bytes()
    assert module == torch_edm.REFERENCE.read_bytes()


REFUSED = {
    "published": (
        {"diffusion": {"process": "ddpm", "mean_fraction": 0.0}},
        "config.diffusion.process=ddpm",
        "--format torch,",
    ),
    "consistency": (
        {"diffusion": {"process": "consistency", "noise": "loguniform"}},
        "config.diffusion.process=consistency",
        "the denoiser that it was tuned from",
    ),
    "windows": (
        {"model": {"kind": "histosge"}, "window": {"kind": "neighbours"}},
        "config.window.kind=neighbours",
        "export a bundle",
    ),
    "neighbours": (
        {"window": {"kind": "neighbours"}},
        "config.window.kind=neighbours",
        "export a bundle",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_module_cannot_express_is_refused(tmp_path, name):
    changes, found, fix = REFUSED[name]
    card = make_card(**changes)
    trained = checkpoint.Trained(params={}, card=card, step=7, weights="best")
    with pytest.raises(errors.ConfigError) as caught:
        torch_edm.write(trained, tmp_path / "out")
    assert found in str(caught.value.found)
    assert fix in str(caught.value.fix)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("file", "a file"),
        ("stranger", "notes.txt"),
        ("another config", "config.json"),
        ("edited module", "stem_edm.py that was changed"),
    ],
)
def test_what_is_no_export_is_not_replaced(tmp_path, name, found):
    path, trained = tmp_path / "out", make_trained()
    if name == "file":
        path.write_text("mine")
    else:
        torch_edm.write(trained, path)
        file = {"stranger": "notes.txt", "another config": "config.json"}.get(name, "stem_edm.py")
        (path / file).write_text('{"format": "other"}')
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(errors.BundleError) as caught:
        torch_edm.write(trained, path)
    assert found in str(caught.value.found)
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert after == before


def test_an_untouched_export_is_replaced(tmp_path):
    torch_edm.write(make_trained("vector"), tmp_path / "out")
    torch_edm.write(make_trained("stem"), tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["network"]["kind"] == "stem"


def test_the_command_writes_it(tmp_path, capsys):
    trained = make_trained("latents")
    ends = np.array([-1.0, 1.0])[None, :, None] * np.ones((1, 2, golden.GENES))
    intervals = calibration.Calibration(
        levels=(0.9,),
        offsets=ends,
        floor=np.full(golden.GENES, 0.1),
        spots=np.full(golden.GENES, 40),
        slides=("V1",),
        genes=trained.card.space.genes,
        value_space="log2p1",
        sampling={"mode": "mean"},
        model=trained.identity,
        raw=None,
        held_out=(0.9,),
        held_out_by="leave one slide out",
    )
    trained = dataclasses.replace(trained, calibrations=(intervals,))
    bundle.write(trained, tmp_path / "bundle")
    out = tmp_path / "out"
    command = ["export", str(tmp_path / "bundle"), "--format", "torch-edm", "-o", str(out)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        f"{out}: torch-edm, step 7, weights best, 1 calibration of intervals left"
    )
    assert sorted(os.listdir(out)) == FILES
    weights = safetensors.numpy.load_file(out / "model.safetensors")
    np.testing.assert_array_equal(weights["profile.name"], arrays("latents/state")["profile.name"])


def test_the_module_imports_torch_alone_and_stemjax_never_imports_it():
    imported = set()
    for node in ast.walk(ast.parse(torch_edm.REFERENCE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "safetensors"}
    package = pathlib.Path(torch_edm.__file__).parents[1]
    for path in package.rglob("*.py"):
        if path != torch_edm.REFERENCE:
            assert "reference.stem_edm" not in path.read_text()
            assert "import stem_edm" not in path.read_text()


@pytest.mark.parametrize("case", golden.CASES)
def test_the_module_loads_an_export_and_agrees(tmp_path, case):
    pytest.importorskip("torch", reason="examples/try_torch.sh has it in an environment of its own")
    trained = make_trained(case)
    torch_edm.write(trained, tmp_path / "out")
    module = module_at(tmp_path / "out" / "stem_edm.py", "stem_edm")
    made = golden.run(module, module.load(tmp_path / "out"), golden.make_inputs())
    assert_agree(run_here(trained), made)
