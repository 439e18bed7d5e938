"""`stemjax verify` tells whole files from damaged ones, whatever they are."""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil

import h5py
import made_prediction
import numpy as np
import pytest

import stemjax
from stemjax import cli, errors
from stemjax.cli import verify
from stemjax.data import artefacts, integrity
from stemjax.eval import draw_files, parts, predict, written
from stemjax.export import bundle, program, torch_edm

DEMO = pathlib.Path(stemjax.__file__).parent / "pretrained" / "demo"


def run(*argv) -> None:
    parser = argparse.ArgumentParser()
    verify.add(parser.add_subparsers(dest="command"))
    args = parser.parse_args(["verify", *map(str, argv)])
    args.run(args, [])


def flip(path: pathlib.Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def made_draws():
    made = made_prediction.make()
    made.uns["stemjax"]["seed"] = 0
    made.obsm[predict.DRAWS] = np.ones((30, 4, 6), np.float32)
    return made


@pytest.fixture
def folder(tmp_path, toy_records):
    """One of everything."""
    out = tmp_path / "all"
    step = out / "run" / "checkpoints" / "300"
    (step / "state").mkdir(parents=True)
    (step / "state" / "d").write_bytes(b"weights" * 100)
    (step / "_CHECKPOINT_METADATA").write_text("{}")
    integrity.write_manifest(step)
    shutil.copytree(step, out / "run" / "best" / "200")
    (out / "run" / "damaged" / "checkpoints-100").mkdir(parents=True)
    (out / "run" / "damaged" / "checkpoints-100" / integrity.MANIFEST).write_text("no list")
    (out / "run" / "checkpoints" / "400.orbax-checkpoint-tmp").mkdir()
    shutil.copytree(DEMO, out / "bundle")
    root = next(iter(toy_records.folders.values())).parents[2]
    shutil.copytree(root, out / "records")
    made = made_draws()
    draw_files.move_out(made, out / "predictions" / "S1.draws.zarr", block=16)
    predict.write(made, out / "predictions" / "S1.h5ad")
    (out / "predictions" / written.INDEX).write_text("{}")
    parts.write(out / "predictions" / ".parts" / "S2" / "ab-16", 0, made_prediction.make(), 1.0)
    return out


def test_everything_that_is_whole_is_told_to_be(folder, capsys):
    run(folder)
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith("whole")]
    kinds = sorted(line.split(": ")[1].split(",")[0] for line in found)
    assert kinds == sorted(
        ["checkpoint step"] * 2
        + ["bundle", "draws", "prediction", "part of a prediction"]
        + ["records of a slide"] * 4
    )
    assert len(lines) == 12
    assert lines[-1].startswith("10 whole; ")
    assert lines[-1].endswith("GB/s")


CASES = {
    "run/checkpoints/300/state/d": (errors.CheckpointError, r"300 \(state/d: sha256"),
    "run/best/200/state/d": (errors.CheckpointError, r"200 \(state/d: sha256"),
    "bundle/model.safetensors": (errors.BundleError, r"bundle \(model.safetensors: sha256"),
    "predictions/S1.draws.zarr/c/0/0/0": (errors.PredictionError, r"zarr \(c/0/0/0: sha256"),
    "predictions/S1.draws.zarr/zarr.json": (errors.PredictionError, r"zarr \(zarr.json: sha256"),
    "predictions/.parts/S2/ab-16/000000/part.h5ad": (errors.BundleError, r"part.h5ad: sha256"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_flipped_bit_is_told(folder, name, capsys):
    kind, said = CASES[name]
    flip(folder / name)
    with pytest.raises(kind, match=said):
        run(folder)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("DAMAGED") for line in lines) == 1
    assert "9 whole, 1 damaged" in lines[-1]


def test_a_flipped_bit_in_records_and_in_a_prediction_is_told_and_both_are_named(folder):
    shard = next((folder / "records").rglob("*.array_record-*"))
    flip(shard, 200)
    path = folder / "predictions" / "S1.h5ad"
    with h5py.File(path, "r+") as file:
        values = file["layers/stemjax_std"]
        assert isinstance(values, h5py.Dataset)
        values[3, 3] += 1e-6
    said = r"2 are not.*S1\.h5ad \(layers/stemjax_std.*record"
    with pytest.raises(errors.PredictionError, match=said):
        run(folder)


@pytest.mark.parametrize(
    "name", ["run/checkpoints/300/state/d", "bundle/genes.txt", "predictions/S1.draws.zarr/c/0/0/0"]
)
def test_a_missing_file_is_told(folder, name):
    (folder / name).unlink()
    with pytest.raises(errors.StemjaxError, match="missing"):
        run(folder)


def test_a_file_too_many_gets_a_line_and_in_a_bundle_it_is_damage(folder, capsys):
    (folder / "run" / "checkpoints" / "300" / "more").write_text("x")
    run(folder / "run")
    assert "more: not in its list of hashes" in capsys.readouterr().out
    (folder / "bundle" / "more").write_text("x")
    with pytest.raises(errors.BundleError, match="more: no file of the bundle"):
        run(folder / "bundle")


def test_what_carries_no_hash_is_named_and_is_no_error(tmp_path, capsys):
    path = tmp_path / "theirs.h5ad"
    made_prediction.make().write_h5ad(path)
    (tmp_path / "metrics.json").write_text("{}")
    run(path, tmp_path / "metrics.json")
    out = capsys.readouterr().out
    assert f"carries no hash  {path}: prediction" in out
    assert "2 carries no hash" in out


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_path_that_is_nothing_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.ConfigError, match=name):
        run(tmp_path / name)


def test_json_says_the_same(folder, capsys):
    flip(folder / "run" / "checkpoints" / "300" / "state" / "d")
    with pytest.raises(errors.CheckpointError):
        run(folder / "run", folder / "bundle", "--json")
    found = json.loads(capsys.readouterr().out)["found"]
    assert [one["state"] for one in found] == ["whole", "damaged", "whole"]
    assert found[1]["wrong"][0].startswith("state/d: sha256")
    assert found[0]["bytes"] == 702


def test_the_marks_are_those_of_the_rooms_that_write_them():
    assert artefacts.MARKS[bundle.DESCRIPTION] == artefacts.BUNDLE
    assert artefacts.MARKS[program.DESCRIPTION] == "program"
    assert artefacts.MARKS[torch_edm.MODULE] == "torch-edm export"
    assert artefacts.MARKS[parts.FILE] == "part of a prediction"


def test_draws_that_lack_a_chunk_or_have_another_shape_are_refused(tmp_path):
    store = tmp_path / "S1.draws.zarr"
    draw_files.move_out(made_draws(), store, block=16)
    assert np.asarray(draw_files.open_draws(store)[:]).sum() == 30 * 4 * 6
    text = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(text.replace('"float32"', '"float16"'))
    with pytest.raises(errors.PredictionError, match="not as they were written.*zarr.json"):
        draw_files.open_draws(store)
    (store / "zarr.json").write_text(text)
    (store / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(errors.PredictionError, match="c/1/0/0: missing"):
        draw_files.open_draws(store)


@pytest.mark.parametrize("command", ["convert", "domains", "report"])
def test_a_command_refuses_what_was_changed_and_says_what_no_verify_skips(
    tmp_path, command, capsys
):
    path, out = tmp_path / "p.h5ad", tmp_path / "out.html"
    predict.write(made_prediction.make(), path)
    with h5py.File(path, "r+") as file:
        file["obs/extra"] = np.zeros(30)
    asked = {
        "convert": ["convert", str(path), "--to", "qupath", "-o", str(out)],
        "domains": ["domains", str(path), "--k", "2", "--json", str(out)],
        "report": ["report", str(path), "-o", str(out)],
    }[command]
    assert cli.main(asked) == 1
    said = capsys.readouterr()
    assert "obs/extra: was not there" in said.err
    assert "--no-verify" in said.err
    assert cli.main([*asked, "--no-verify"]) == 0
    assert "--no-verify: predictions are not compared with the hashes" in capsys.readouterr().out
    assert out.exists()


def test_calibrations_and_draws_beside_a_prediction_are_compared_too(tmp_path, capsys):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    stored = [{"levels": [0.5]}]
    values = {"format": 1, "sha256": integrity.json_digest(stored), "calibrations": stored}
    (run / "calibration.json").write_text(json.dumps(values))
    assert cli.main(["verify", str(run)]) == 0
    assert "1 whole" in capsys.readouterr().out
    (run / "calibration.json").write_text(json.dumps(values).replace("0.5", "0.7"))
    assert cli.main(["verify", str(run)]) == 1
    assert "calibration.json: sha256" in capsys.readouterr().out
    prediction = tmp_path / "P.h5ad"
    with h5py.File(prediction, "w") as file:
        file["uns/stemjax"] = 1
    draws = tmp_path / "P.draws.zarr"
    draws.mkdir()
    (draws / "zarr.json").write_text("{}")
    integrity.write_manifest(draws)
    assert cli.main(["verify", str(prediction)]) == 0
    (draws / "zarr.json").write_text("[]")
    assert cli.main(["verify", str(prediction)]) == 1
    assert "zarr.json: sha256" in capsys.readouterr().out
