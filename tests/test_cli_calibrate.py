"""``stemjax calibrate`` and what it changes in ``predict`` and ``export``, as a user meets them."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from stemjax import cli
from stemjax.eval import calibrate, joining
from stemjax.export import bundle
from stemjax.train import calibration, checkpoint, saving
from stemjax.train import material as material_lib

LEVELS = ["50%", "80%", "90%", "95%"]
LAYERS = [f"stemjax_{end}_{level}" for level in (50, 80, 90, 95) for end in ("lower", "upper")]


@pytest.fixture(scope="module")
def made(toy_records, toy_experiment, tmp_path_factory):
    """A model as a bundle and as a workdir: weights away from the initial ones, not trained."""
    out = tmp_path_factory.mktemp("calibrate")
    card = material_lib.gather(toy_experiment, toy_records).card
    params = card.task.init(jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 100))
    moved = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
    trained = checkpoint.Trained(params=moved, card=card, step=7, weights="best")
    bundle.write(trained, out / "bundle")
    with saving.Checkpoints(out / "run", card) as checkpoints:
        checkpoints.save_best(moved, 7, {"val_mse": 1.0})
    return out


@pytest.fixture
def model(made, tmp_path, request):
    """A copy of the bundle, or of the workdir."""
    return shutil.copytree(made / request.param, tmp_path / request.param)


both = pytest.mark.parametrize("model", ["bundle", "run"], indirect=True)
one = pytest.mark.parametrize("model", ["bundle"], indirect=True)


@pytest.fixture(scope="module")
def records(toy_records):
    """The folder of the records."""
    return str(toy_records.folders["V1"].parents[2])


def run_predict(model, records, path, *more):
    command = ["predict", "--checkpoint", str(model), "--records", records, "--slide", "X1"]
    assert cli.main([*command, *more, "-o", str(path)]) == 0
    return joining.read(path)


@both
def test_from_calibrating_to_intervals(model, records, tmp_path, capsys):
    plain = run_predict(model, records, tmp_path / "plain.h5ad")
    said = capsys.readouterr().out
    assert f"no calibrated intervals: `stemjax calibrate {model} --records DIRS`" in said
    assert not set(LAYERS) & set(plain.layers)

    assert cli.main(["calibrate", str(model), "--records", records]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{model / 'calibration.json'}: mode mean: 8 genes on 60 spots of V1\n")
    assert "V1: no slide of patient Q trained the model" in said
    assert "choosing the weights (early stopping), so the guarantee is approximate" in said
    lines = [line.split() for line in said.splitlines() if line.strip()[:3] in LEVELS]
    made = bundle.open_model(model).calibrations[0]
    after = [f"{share:.1%}" for share in made.held_out[:3]]
    # The mean has no intervals of its own, and half a slide is too small for 95 %.
    assert lines == [[level, "-", share] for level, share in zip(LEVELS, [*after, "-"])]

    result = run_predict(model, records, tmp_path / "out.h5ad")
    assert "calibrated intervals of 50/80/90/95 %, by V1\n" in capsys.readouterr().out
    assert set(LAYERS) <= set(result.layers)
    np.testing.assert_array_equal(result.X, plain.X)
    assert all(np.isfinite(result.layers[name]).all() for name in LAYERS)
    other = ("--mode", "pair", "--steps", "2")
    result = run_predict(model, records, tmp_path / "other.h5ad", *other)
    assert "no calibrated intervals" in capsys.readouterr().out
    assert not set(LAYERS) & set(result.layers)


@pytest.mark.parametrize("model", ["run"], indirect=True)
def test_calibrations_add_up_and_go_with_an_export(model, records, tmp_path, capsys):
    pair = ["--mode", "pair", "--steps", "2"]
    for sampling in (["--mode", "mean"], pair, [*pair, "--seed", "1"]):
        assert cli.main(["calibrate", str(model), "--records", records, *sampling]) == 0
    stored = bundle.open_model(model).calibrations
    assert [made.sampling["mode"] for made in stored] == ["mean", "pair"]
    capsys.readouterr()
    out = tmp_path / "out"
    assert cli.main(["export", str(model), "--format", "bundle", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert said == f"{out}: bundle, step 7, weights best, 2 calibrations of intervals\n"
    assert (out / "calibration.json").read_text() == (model / "calibration.json").read_text()
    (tmp_path / "given.txt").write_text("TOY01\n")
    given = ["--given", str(tmp_path / "given.txt"), "--given-method", "replacement"]
    result = run_predict(model, records, tmp_path / "x.h5ad", *pair, *given)
    assert "none are made for steered predictions" in capsys.readouterr().out
    assert not set(LAYERS) & set(result.layers)


@one
def test_several_slides_hold_each_other_out(model, toy_records, records, capsys):
    """X1 is the model's test slide; here it stands in for a slide that the model never saw."""
    trained = bundle.load(model)
    split = trained.card.split | {"test": []}
    card = dataclasses.replace(trained.card, split=split)
    bundle.write(dataclasses.replace(trained, card=card), model)
    command = ["calibrate", str(model), "--records", records, "--slides", "X1, V1"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "8 genes on 120 spots of V1, X1\n" in said
    assert "X1: no slide of patient R trained" in said
    assert "coverage of spots held out, leave one slide out" in said
    (made,) = bundle.load(model).calibrations
    assert None not in made.held_out
    assert made.spots.tolist() == [120] * 8


@pytest.mark.parametrize(
    ("slides", "code", "words"),
    [
        ("T1", "SJ-D07", ["T1 cannot calibrate", "found a train slide"]),
        ("V1,X1", "SJ-D07", ["X1 cannot calibrate", "no longer be a test", "found a test slide"]),
        ("V1,V1", "SJ-D07", ["one twice"]),
        ("V9", "SJ-D06", ["V9", "one of T1, T2, V1, X1"]),
    ],
)
@one
def test_slides_that_cannot_calibrate_are_refused(model, records, capsys, slides, code, words):
    assert cli.main(["calibrate", str(model), "--records", records, "--slides", slides]) == 1
    said = capsys.readouterr()
    assert f"stemjax calibrate: error [{code}]\n" in said.err
    for word in words:
        assert word in said.err
    assert said.out == ""
    assert not (model / "calibration.json").exists()


@one
def test_a_model_without_validation_slides_asks_for_some(model, records, capsys):
    trained = bundle.load(model)
    card = dataclasses.replace(trained.card, split=trained.card.split | {"val": []})
    bundle.write(dataclasses.replace(trained, card=card), model)
    assert cli.main(["calibrate", str(model), "--records", records]) == 1
    said = capsys.readouterr().err
    assert "error [SJ-D07]" in said
    assert "--slides" in said


def test_the_relation_of_patients_is_told_apart(toy_records, made):
    card = bundle.load(made / "bundle").card
    infos = dict(toy_records.slides)
    for patient, words in (("P", "patient P also gave training slides (T1, T2)"), (None, "known")):
        infos["V1"] = dataclasses.replace(infos["V1"], patient=patient)
        source = dataclasses.replace(toy_records, slides=infos)
        assert words in calibrate.relation("V1", card, source)
    unsaid = dataclasses.replace(card, split=card.split | {"train": []})
    assert "does not name its training slides" in calibrate.relation("V1", unsaid, toy_records)


def test_a_damaged_file_in_a_workdir_is_named(made, records, tmp_path, capsys):
    work = shutil.copytree(made / "run", tmp_path / "work")
    values = {"format": calibration.FORMAT + 1, "calibrations": []}
    (work / "calibration.json").write_text(json.dumps(values))
    command = ["predict", "--checkpoint", str(work), "--records", records, "--slide", "X1"]
    assert cli.main([*command, "-o", str(tmp_path / "x.h5ad")]) == 1
    said = capsys.readouterr().err
    assert "error [SJ-E02]" in said
    assert f"{work / 'calibration.json'}: format: expected 1, found 2" in said
