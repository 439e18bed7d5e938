"""Keys of windows, recovery and HisToSGE: what cannot work is refused by name."""

from __future__ import annotations

import hashlib
import json

import pytest

from stemjax import config, errors

NEIGHBOURS = {"window": {"kind": "neighbours"}}
HISTOSGE = {"window": {"kind": "neighbours"}, "model": {"kind": "histosge"}}
PUBLISHED = {"window": {"kind": "rows"}, "model": {"kind": "histosge_published"}}


def merged(one, two):
    """Groups of two nested dicts; the second's keys win."""
    names = {**one, **two}
    return {
        name: {**one.get(name, {}), **two.get(name, {})} if isinstance(value, dict) else value
        for name, value in names.items()
    }


@pytest.mark.parametrize("values", [{}, NEIGHBOURS, HISTOSGE, PUBLISHED])
def test_what_goes_together_is_taken(values):
    experiment = config.resolve(values)
    assert config.resolve(config.as_json(experiment)) == experiment
    assert experiment.window.kind == values.get("window", {}).get("kind", "none")


@pytest.mark.parametrize(
    ("base", "group", "key", "value", "text"),
    [
        ({}, "window", "kind", "columns", "expected none or neighbours or rows"),
        (NEIGHBOURS, "window", "hide", -0.1, "at least 0 and at most 1, found -0.1"),
        (NEIGHBOURS, "window", "hide", 1.5, "at least 0 and at most 1, found 1.5"),
        (HISTOSGE, "window", "noise", -1.0, "at least 0, found -1.0"),
        (HISTOSGE, "window", "noise", float("inf"), "at least 0, found inf"),
        (HISTOSGE, "window", "condition_noise", float("inf"), "at least 0, found inf"),
        ({}, "data", "hide_block", float("inf"), "above 0, found inf"),
        (NEIGHBOURS, "window", "reaches", "100,inf", "found '100,inf'"),
        (NEIGHBOURS, "window", "length", 5, "at least 6, found 5"),
        (PUBLISHED, "window", "length", 0, "at least 1, found 0"),
        (NEIGHBOURS, "window", "reaches", "100,far", "numbers above 0 (um), comma-separated"),
        (NEIGHBOURS, "window", "reaches", "100,0", "found '100,0'"),
        (NEIGHBOURS, "window", "reaches", "", "found ''"),
        (NEIGHBOURS, "window", "reaches", "nan", "found 'nan'"),
        ({}, "data", "hide", "rows", "expected spots or blocks"),
        ({}, "data", "hide_share", 0.0, "above 0 and below 1, found 0.0"),
        ({}, "data", "hide_share", 1.0, "above 0 and below 1, found 1.0"),
        ({}, "data", "hide_block", 0.0, "above 0, found 0.0"),
        (HISTOSGE, "model", "head_width", -1, "at least 0, found -1"),
        (HISTOSGE, "window", "components", 0, "at least 1, found 0"),
        (HISTOSGE, "window", "condition_noise", -0.1, "at least 0, found -0.1"),
        (NEIGHBOURS, "window", "members", 0, "at least 1, found 0"),
        (NEIGHBOURS, "window", "width", 30, "a multiple of 4, its heads, found 30"),
        (NEIGHBOURS, "window", "width", 0, "a multiple of 4, its heads, found 0"),
        # What a single member leaves out, none has seen.
        (NEIGHBOURS, "window", "bag", 0.25, "0 for a single member, found 0.25"),
        ({"window": {"kind": "neighbours", "members": 4}}, "window", "bag", 1.0, "below 1"),
        (HISTOSGE, "model", "dtype", "bfloat16", "it has no such option"),
        (HISTOSGE, "model", "attention", "xla", "it has no such option"),
        (PUBLISHED, "model", "remat", True, "it has no such option"),
        (HISTOSGE, "model", "latents", 4, "only the kind lite has latents"),
        (HISTOSGE, "diffusion", "sigma_data", 0.5, "it is no diffusion model"),
        (PUBLISHED, "diffusion", "residual", True, "it is no diffusion model"),
        (NEIGHBOURS, "diffusion", "condition_dropout", 0.1, "has no such option, found 0.1"),
        (NEIGHBOURS, "diffusion", "residual", True, "has no such option, found True"),
    ],
)
def test_values_that_cannot_work_name_their_key(base, group, key, value, text):
    with pytest.raises(errors.ConfigError) as error:
        config.resolve(merged(base, {group: {key: value}}))
    assert f"config.{group}.{key}" in error.value.what
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        # A model of windows and no windows, or others.
        ({"model": {"kind": "histosge"}}, "config.window.kind=neighbours"),
        ({"model": {"kind": "histosge_published"}}, "config.window.kind=rows"),
        ({"model": {"kind": "histosge"}, "window": {"kind": "rows"}}, "expected neighbours"),
        (
            {"model": {"kind": "histosge_published"}, "window": {"kind": "neighbours"}},
            "expected rows",
        ),
        # Windows of rows and a model that has none.
        ({"window": {"kind": "rows"}}, "expected config.model.kind=histosge_published"),
        ({"window": {"kind": "rows"}, "model": {"kind": "lite"}}, "found lite"),
    ],
)
def test_a_window_goes_with_its_model(values, text):
    with pytest.raises(errors.ConfigError, match="config.window.kind=") as error:
        config.resolve(values)
    assert text in str(error.value)


@pytest.mark.parametrize("process", ["ddpm", "consistency"])
def test_neighbours_go_with_the_edm_process(process):
    diffusion = {"process": process, "mean_fraction": 0.0}
    if process == "consistency":
        diffusion |= {"noise": "loguniform"}
    values = {"diffusion": diffusion, "train": {"validate_every": 0}}
    assert config.resolve(values).diffusion.process == process
    with pytest.raises(errors.ConfigError, match=r"config\.diffusion\.process with config\.window"):
        config.resolve(merged(values, NEIGHBOURS))


@pytest.mark.parametrize(
    "changed",
    [{"kind": "stem"}, {"kind": "lite", "latents": 4}, {"kind": "lite"}],
    ids=["stem", "latents", "lite"],
)
def test_other_models_refuse_the_width_of_a_head(changed):
    # With it set, a width that the heads do not divide would pass unseen.
    for base in ({}, NEIGHBOURS):
        with pytest.raises(errors.ConfigError, match=r"config\.model\.head_width\b"):
            config.resolve(merged(base, {"model": {**changed, "head_width": 64}}))


def test_a_head_of_histosge_may_have_a_width_of_its_own():
    sizes = {"model": {"width": 10, "heads": 3}}
    with pytest.raises(errors.ConfigError, match=r"a multiple of config\.model\.heads=3"):
        config.resolve(merged(HISTOSGE, sizes))
    sizes["model"]["head_width"] = 4
    assert config.resolve(merged(HISTOSGE, sizes)).model.head_width == 4


@pytest.mark.parametrize("key", ["recover", "train"])
def test_slides_are_named_by_a_manifest_or_by_lists(key):
    data = {"manifest": "folds.json", "fold": "0"}
    config.resolve({"data": data})
    with pytest.raises(errors.ConfigError, match=rf"config\.data\.{key} beside") as error:
        config.resolve({"data": {**data, key: "A1"}})
    assert "folds.json" in str(error.value)


def test_slides_to_recover_are_read_from_their_list():
    experiment = config.resolve({"data": {"recover": "C5, B1"}})
    assert experiment.recover_slides == ("C5", "B1")
    assert config.Experiment().recover_slides == ()


def test_reaches_are_numbers():
    assert config.Experiment().window.reaches_um == (100.0, 200.0, 400.0)
    assert config.resolve({"window": {"reaches": " 50,1e3"}}).window.reaches_um == (50.0, 1000.0)


def test_the_defaults_are_what_they_were():
    # Of an experiment without a change, at every version.
    default = config.Experiment()
    assert config.digest(default) == hashlib.sha256(b"{}").hexdigest()[:12]
    assert (default.window.kind, default.data.recover, default.data.train) == ("none", "", "")


def test_an_experiment_from_before_windows_reads_back():
    stored = json.loads(json.dumps(config.as_json(config.resolve({"seed": 3}))))
    del stored["window"]
    for name in ("recover", "train", "hide", "hide_share", "hide_seed", "hide_block"):
        del stored["data"][name]
    del stored["model"]["head_width"]
    experiment = config.resolve(stored)
    assert experiment == config.resolve({"seed": 3})
    changed = json.dumps({"seed": 3}).encode()
    assert config.digest(experiment) == hashlib.sha256(changed).hexdigest()[:12]
