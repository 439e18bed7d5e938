"""Experiments: keys, types, files, differences."""

from __future__ import annotations

import hashlib
import json
import pathlib

import jax
import ml_collections
import pytest

from stemjax import config, configfile, errors, tasks
from stemjax.diffusion import noise

CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


def test_a_resolved_experiment_reads_back_from_its_json():
    values = config.default_config()
    values.data.test, values.train.steps, values.optim.learning_rate = "C5,C4", 7, 0.25
    experiment = config.resolve(values)
    assert experiment.test_slides == ("C5", "C4")
    assert (experiment.train.steps, experiment.optim.learning_rate) == (7, 0.25)
    assert config.resolve(config.as_json(experiment)) == experiment


def test_an_unknown_key_is_an_error_with_a_suggestion():
    values = config.as_json(config.Experiment())
    values["optim"]["learning_rat"] = 1.0
    with pytest.raises(errors.ConfigError, match=r"config\.optim\.learning_rat\b") as error:
        config.resolve(values)
    assert error.value.fix == "did you mean config.optim.learning_rate?"


@pytest.mark.parametrize(
    ("group", "key", "value", "text"),
    [
        ("train", "steps", "many", "expected int, found 'many'"),
        ("train", "steps", 0, "expected at least 1, found 0"),
        ("train", "batch", True, "expected int, found True"),
        ("diffusion", "mean_fraction", 1.5, "expected between 0 and 1"),
        ("optim", "schedule", "linear", "expected constant or cosine"),
        ("optim", "ema", 1.0, "below 1"),
        ("model", "heads", 5, "a multiple of config.model.heads=5"),
        ("data", "transform", "sqrt", "log2p1 or log1p_cp10k"),
        ("diffusion", "process", "vp", "edm or ddpm"),
        ("diffusion", "noise", "uniform", "lognormal or loguniform"),
        ("diffusion", "weight", "snr", "edm or min_snr or soft_min_snr"),
        ("diffusion", "weight_gamma", 0.0, "expected positive, found 0.0"),
        ("diffusion", "sigma_data", -1.0, "expected positive, found -1.0"),
        ("diffusion", "condition_noise", -0.1, "expected at least 0, found -0.1"),
        ("diffusion", "condition_dropout", 1.0, "at least 0 and below 1"),
        ("diffusion", "residual", 1, "expected bool, found 1"),
    ],
)
def test_values_that_cannot_work_name_their_key(group, key, value, text):
    values = config.as_json(config.Experiment())
    values[group][key] = value
    with pytest.raises(errors.ConfigError) as error:
        config.resolve(values)
    assert text in str(error.value)
    assert f"config.{group}." in str(error.value)


def test_a_mean_token_that_a_batch_rounds_away_is_refused():
    values = config.as_json(config.Experiment())
    values["train"]["batch"], values["diffusion"]["mean_fraction"] = 4, 0.1
    with pytest.raises(errors.ConfigError, match="mean_fraction"):
        config.resolve(values)


# A value other than its default for every option of the EDM process.
EDM_OPTIONS = {
    "noise": "loguniform",
    "noise_mean": -1.0,
    "noise_std": 1.0,
    "noise_min": 0.05,
    "noise_max": 70.0,
    "weight": "min_snr",
    "weight_gamma": 4.0,
    "sigma_data": 0.5,
    "mean_fraction": 0.2,
    "condition_noise": 0.1,
    "condition_dropout": 0.1,
    "residual": True,
    "marginal": True,
}


def test_every_option_of_the_edm_process_is_known_here():
    names = set(config.as_json(config.Experiment())["diffusion"])
    assert set(EDM_OPTIONS) == names - {"process", "partner"}


@pytest.mark.parametrize("name", EDM_OPTIONS)
def test_the_published_process_refuses_what_it_does_not_have(name):
    given = {"process": "ddpm", "mean_fraction": 0.0} | {name: EDM_OPTIONS[name]}
    if name in ("residual", "marginal"):
        given["mean_fraction"] = 0.1  # without, it is refused for want of a mean token
    with pytest.raises(errors.ConfigError) as error:
        config.resolve({"diffusion": given})
    assert "config.diffusion." in str(error.value)
    assert "process" in str(error.value)
    if name not in ("residual", "marginal"):
        assert f"config.diffusion.{name} " in str(error.value)
    plain = config.resolve({"diffusion": {"process": "ddpm", "mean_fraction": 0.0}})
    assert plain.diffusion.process == "ddpm"
    assert config.resolve({"diffusion": {name: EDM_OPTIONS[name]}}) != config.Experiment()


@pytest.mark.parametrize("name", ["residual", "marginal"])
def test_what_rests_on_the_mean_token_needs_one(name):
    with pytest.raises(errors.ConfigError, match=rf"config\.diffusion\.{name}\b") as error:
        config.resolve({"diffusion": {name: True, "mean_fraction": 0.0}})
    assert "mean_fraction" in error.value.fix
    assert config.resolve({"diffusion": {name: True}})


def _task(**diffusion):
    model = {"width": 8, "depth": 1, "heads": 2}
    experiment = config.resolve({"model": model, "diffusion": diffusion})
    return config.make_task(experiment, genes=5, condition=3)


def _channels(task) -> int:
    params = jax.eval_shape(task.init, jax.random.key(0))
    rows = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((2, 5), (2,), (2, 3))]
    shape = jax.eval_shape(task.network.apply, params, *rows).shape
    return 1 if len(shape) == 2 else shape[1]


def test_the_published_process_makes_its_own_task_of_two_channels():
    task = _task(process="ddpm", mean_fraction=0.0)
    assert type(task) is tasks.DdpmTask
    assert _channels(task) == 2
    assert task.genes == 5


def test_options_reach_the_task():
    plain = _task()
    assert type(plain) is tasks.StemTask
    assert plain.noise == noise.LogNormal(mean=-1.2, std=1.2)
    assert (_channels(plain), _channels(_task(marginal=True))) == (1, 2)
    shifted = _task(**{k: v for k, v in EDM_OPTIONS.items() if k != "noise"})
    assert shifted.noise == noise.LogNormal(mean=-1.0, std=1.0)
    for name in set(EDM_OPTIONS) - {n for n in EDM_OPTIONS if n.startswith("noise")}:
        assert getattr(shifted, name) == EDM_OPTIONS[name], name
    spread = _task(noise="loguniform", noise_min=0.05, noise_max=70.0)
    assert spread.noise == noise.LogUniform(sigma_min=0.05, sigma_max=70.0)


def test_an_experiment_from_before_the_options_is_the_same_task():
    # As the first checkpoints have it: the keys of that time, at values of their own.
    stored = {
        "name": "old",
        "diffusion": {
            "noise_mean": -0.4, "noise_std": 1.0, "sigma_data": 0.9, "mean_fraction": 0.25,
            "condition_noise": 0.3,
        },
    }  # fmt: skip
    experiment = config.resolve(stored)
    task = config.make_task(experiment, genes=5, condition=3)
    expected = tasks.StemTask(
        network=task.network,
        genes=5,
        noise=noise.LogNormal(mean=-0.4, std=1.0),
        sigma_data=0.9,
        mean_fraction=0.25,
        condition_noise=0.3,
    )
    assert task == expected
    off = {"condition_dropout": 0.0, "residual": False, "marginal": False, "weight": "edm"}
    for name, value in off.items():
        assert getattr(task, name) == value
    assert _channels(task) == 1


def test_a_whole_number_is_taken_where_a_float_is_wanted():
    values = config.as_json(config.Experiment())
    values["optim"]["clip"] = 2
    assert config.resolve(values).optim.clip == 2.0


def test_differences_name_each_key_and_both_values():
    left = {"a": {"b": 1, "c": 2}, "d": 3}
    right = {"a": {"b": 1, "c": 5}, "e": 4}
    assert config.differences(left, right) == ["a.c: 2 -> 5", "d: 3 -> None", "e: None -> 4"]


def test_the_digest_follows_every_value():
    one = config.Experiment()
    other = config.resolve({**config.as_json(one), "seed": 1})
    assert config.digest(one) == config.digest(config.resolve(config.as_json(one)))
    assert config.digest(one) != config.digest(other)
    # Of the differences from the defaults alone, so that later keys do not change it.
    changed = json.dumps({"model": {"width": 12}, "seed": 3}, sort_keys=True)
    two = config.resolve({"seed": 3, "model": {"width": 12, "depth": 12}})
    assert config.digest(two) == hashlib.sha256(changed.encode()).hexdigest()[:12]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_resolves_and_its_network_has_shapes(path):
    experiment = config.resolve(configfile.load(str(path), []))
    task = config.make_task(experiment, genes=20, condition=32)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) > 1000
    text = path.read_text()
    for word in ("Command: stemjax", "Expected:", "Cost:"):
        assert word in text.split('"""')[1], f"{path.name} does not say its {word}"


def test_the_published_config_has_the_published_size():
    path = next(path for path in CONFIGS if path.stem == "stem_published")
    experiment = config.resolve(configfile.load(str(path), []))
    task = config.make_task(experiment, genes=200, condition=1536)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    # 35,639,042 with two output channels (upstream.md); the EDM form has one, 385 weights fewer.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 35_639_042 - 385
    assert (experiment.optim.ema, experiment.train.batch) == (0.9999, 256)


def _write(tmp_path: pathlib.Path, body: str) -> str:
    path = tmp_path / "experiment.py"
    path.write_text("from stemjax import config\n\ndef get_config():\n" + body)
    return str(path)


def test_flags_override_a_file(tmp_path):
    path = _write(tmp_path, "    return config.default_config()\n")
    values = configfile.load(path, ["--config.train.steps=12", "--config.data.test=C5,C2"])
    assert isinstance(values, ml_collections.ConfigDict)
    experiment = config.resolve(values)
    assert (experiment.train.steps, experiment.test_slides) == (12, ("C5", "C2"))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("--config.optim.learning_rat=1", "learning_rat"),
        ("--config.train.steps=big", "big"),
        ("--steps=3", "--config.KEY=VALUE"),
    ],
)
def test_wrong_flags_name_themselves(tmp_path, override, text):
    path = _write(tmp_path, "    return config.default_config()\n")
    with pytest.raises(errors.ConfigError) as error:
        configfile.load(path, [override])
    assert text in str(error.value)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(errors.ConfigError, match=r"nowhere\.py"):
        configfile.load("nowhere.py", [])
    broken = _write(tmp_path, "    raise RuntimeError('no luck')\n")
    with pytest.raises(errors.ConfigError, match="no luck"):
        configfile.load(broken, [])
