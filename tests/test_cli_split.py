"""``stemjax split``, and training on a fold of what it wrote."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from stemjax import cli, config, errors
from stemjax.data import folds, splits
from stemjax.train import material as material_lib

PATIENTS = {"T1": "P", "T2": "P", "V1": "Q", "X1": "R"}  # of the toy records


@pytest.fixture(scope="session")
def folder(toy_records):
    return toy_records.folders["T1"].parents[2]


def on(experiment, **values):
    data = dataclasses.replace(experiment.data, **({"test": "", "val": ""} | values))
    return dataclasses.replace(experiment, data=data)


def test_folds_by_patient(folder, tmp_path, capsys):
    command = ["split", "--records", str(folder), "--by", "patient", "--k", "3", "--seed", "7"]
    assert cli.main([*command, "-o", f"{tmp_path}/f.csv"]) == 0
    made = folds.read_manifest(tmp_path / "f.csv")
    assert made == folds.k_fold(PATIENTS, 3, seed=7)
    said = capsys.readouterr().out
    assert said.count("new patient") == 3
    assert "LEAK" not in said
    assert [line.split("|")[2].strip() for line in said.splitlines()[2:5]] == [
        " ".join(split.test) for split in made.values()
    ]


def test_leaking_folds_are_marked(folder, tmp_path, capsys):
    command = ["split", "--records", str(folder), "--by", "slide", "--leave-one-out"]
    assert cli.main([*command, "-o", f"{tmp_path}/f.json"]) == 0
    assert folds.read_manifest(tmp_path / "f.json") == folds.leave_one_out(PATIENTS, by="slide")
    said = capsys.readouterr().out
    assert "LEAK in fold T1: patient P: test T1, train T2\n" in said
    assert "LEAK in fold T2: patient P: test T2, train T1\n" in said
    assert said.count("LEAK") == 2
    assert said.count("interpolation within a patient") == 2


def test_what_cannot_be_split_writes_nothing(folder, tmp_path, capsys):
    command = ["split", "--records", str(folder), "--by", "patient", "-o", f"{tmp_path}/f.csv"]
    assert cli.main([*command, "--k", "4"]) == 1
    assert "[SJ-D07]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, "--k", "2", "--leave-one-out"])
    assert exit_.value.code == 2


def test_a_fold_is_what_a_run_trains_on(toy_records, toy_experiment, tmp_path):
    made = {"one": splits.split_by_role({"T2": "train", "V1": "val", "X1": "test"}, PATIENTS)}
    folds.write_manifest(made, tmp_path / "f.csv")
    experiment = on(toy_experiment, manifest=str(tmp_path / "f.csv"), fold="one")
    material = material_lib.gather(experiment, toy_records)
    split = material.card.split
    assert {role: split[role] for role in ("train", "val", "test")} == {
        "train": ["T2"],  # T1 is not in the fold and takes no part
        "val": ["V1"],
        "test": ["X1"],
    }
    assert split["kind"] == "new patient"
    assert material.schedule.n == toy_records.slides["T2"].n_spots
    assert material.val is not None
    assert material.val.slides == ("V1",)
    with pytest.raises(errors.SplitError, match="no fold 'two'"):
        material_lib.gather(
            on(experiment, manifest=str(tmp_path / "f.csv"), fold="two"), toy_records
        )


def test_a_leak_is_one_loud_line_or_refused(toy_experiment, caplog):
    marked = on(toy_experiment, test="T1", val="V1")
    with caplog.at_level(logging.WARNING, logger="stemjax"):
        split = material_lib.choose_split(marked, PATIENTS)
    assert split.kind == "interpolation within a patient"
    (line,) = caplog.messages
    assert line.startswith("LEAK: test slides share a patient with training")
    assert "(patient P: test T1, train T2)" in line
    caplog.clear()
    with pytest.raises(errors.SplitError, match="patient P: test T1, train T2"):
        material_lib.choose_split(on(toy_experiment, test="T1", leakage="refuse"), PATIENTS)
    # Nothing is said or refused where there is no leak.
    for leakage in ("mark", "refuse"):
        material_lib.choose_split(on(toy_experiment, test="X1", leakage=leakage), PATIENTS)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"manifest": "f.csv", "fold": "1", "test": "A"}, "one of the two ways"),
        ({"manifest": "f.csv", "fold": "1", "val": "A"}, "manifest f.csv, test none, val A"),
        ({"manifest": "f.csv"}, "go together: found manifest f.csv, fold none"),
        ({"fold": "1"}, "manifest none, fold 1"),
        ({"leakage": "ignore"}, "expected mark or refuse"),
    ],
)
def test_keys_that_do_not_go_together(values, text):
    with pytest.raises(errors.ConfigError) as caught:
        config.resolve({"data": values})
    assert text in str(caught.value)
    assert "config.data." in str(caught.value)
