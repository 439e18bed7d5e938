"""Runs on damaged records: refused, or begun without the rows that cannot be read."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import damaged_slides as harm
import numpy as np
import pytest
import small_slides as made

from stemjax import config, distributed, errors
from stemjax.data import corrupt, records
from stemjax.train import material, saving

LOST = {"T1": (7, 40), "V1": (59,)}
PROGRAM = pathlib.Path(__file__).with_name("corrupt_process.py")


def on(experiment, **data):
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **data))


@pytest.fixture(scope="module")
def skipping(toy_experiment):
    return on(toy_experiment, on_corrupt="skip", corrupt_share=0.05)


def write(out, *, lost=()):
    """Records of the experiment's four slides, 60 spots each, without some rows."""
    panel = dataclasses.replace(made.PANEL, slides=("T1", "T2"))
    for slide_id in ("T1", "T2", "V1", "X1"):
        slide, vectors = made.make_slide(slide_id, 60, patient=slide_id), None
        slide, vectors = harm.without(
            slide, made.make_embeddings(slide), dict(lost).get(slide_id, ())
        )
        records.write_slide(out, slide, vectors, panel=panel, contract=made.CONTRACT)
    return out


def spoil(out, lost):
    for slide, rows in lost.items():
        harm.spoil(harm.shard_paths(out, slide)[0], *rows)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Whole records, records of which some are spoiled, and records made without those."""
    root = tmp_path_factory.mktemp("runs")
    whole, clean = write(root / "whole"), write(root / "clean", lost=LOST)
    spoiled = shutil.copytree(whole, root / "spoiled")
    spoil(spoiled, LOST)
    return whole, spoiled, clean


def opened(out):
    return records.open_records(out, on_corrupt="skip")


def gathered(experiment, out):
    return material.gather(experiment, opened(out))


def warnings_in(caplog):
    return [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING]


@pytest.mark.parametrize("residence", ["ram", "stream", "device"])
def test_a_run_is_that_of_records_made_without_the_rows(folders, skipping, residence):
    experiment = on(skipping, residence=residence)
    one, two = (gathered(experiment, folder) for folder in folders[1:])
    assert one.schedule == two.schedule
    assert (one.schedule.n, one.val_rows) == (118, 59)
    assert one.card.space.to_json() == two.card.space.to_json()
    for step in (0, 7, 30):
        mine, other = (found.view.batch_at(found.schedule, step) for found in (one, two))
        for name in mine:
            np.testing.assert_array_equal(mine[name], other[name])
    for name in one.view.table:
        np.testing.assert_array_equal(one.view.table[name], two.view.table[name])
    for field in ("embeddings", "counts", "total", "mask", "pixel_xy"):
        np.testing.assert_array_equal(getattr(one.val, field), getattr(two.val, field))
    assert one.val is not None
    assert two.val is not None
    assert one.val.barcodes == two.val.barcodes


def test_the_card_and_the_log_say_what_is_left_out_once(folders, skipping, caplog):
    card = gathered(skipping, folders[1]).card
    assert card.split["skipped"] == {"T1": 2, "V1": 1}
    (line,) = warnings_in(caplog)
    assert "2 of 120 training rows and 1 of 60 validation rows left out" in line
    assert "slide T1, shard spots-T1.array_record-00000-of-00001" in line
    assert "records 7, 40 of 0-59 cannot be read (chunk data hash mismatch)" in line
    assert json.loads(json.dumps(card.to_json()))["split"] == card.split


def test_a_card_of_undamaged_records_is_as_ever(folders, skipping, toy_experiment, caplog):
    skip, plain = (gathered(e, folders[0]).card for e in (skipping, toy_experiment))
    assert skip.split == plain.split
    assert not {"skipped", "skipped_rows"} & set(skip.split)
    assert skip.space.to_json() == plain.space.to_json()
    assert warnings_in(caplog) == []


def test_damage_is_an_error_unless_something_else_is_asked(folders, toy_experiment):
    with pytest.raises(errors.RecordsError, match="slide T1 .*records 7, 40 of 0-59"):
        material.gather(toy_experiment, records.open_records(folders[1]))
    # However the folder was opened: the run's own configuration decides. All slides in use are
    # looked at before any is read.
    with pytest.raises(errors.RecordsError, match="slide T1 .*records 7, 40 .* other slides: V1"):
        gathered(toy_experiment, folders[1])


def test_damage_of_the_validation_slide_alone_is_an_error_too(folders, toy_experiment, tmp_path):
    out = harm.copy_of(folders[0], tmp_path)
    spoil(out, {"V1": (1,)})
    with pytest.raises(errors.RecordsError, match="slide V1 .*record 1 of 0-59"):
        gathered(toy_experiment, out)


def test_a_test_slide_is_no_matter_of_training(folders, skipping, tmp_path):
    out = harm.copy_of(folders[0], tmp_path)
    spoil(out, {"X1": (1,)})
    assert "skipped" not in gathered(skipping, out).card.split


def test_more_than_the_default_share_is_refused(folders, skipping):
    default = on(skipping, corrupt_share=config.Data().corrupt_share)
    with pytest.raises(errors.RecordsError, match="2 of 120 training rows cannot be read"):
        gathered(default, folders[1])


def test_a_missing_shard_is_more_than_a_few_records(folders, skipping, tmp_path):
    out = harm.copy_of(folders[0], tmp_path)
    harm.shard_paths(out, "T1")[0].unlink()
    with pytest.raises(errors.RecordsError, match="60 of 120 training rows cannot .*T1.*missing"):
        gathered(skipping, out)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(errors.ConfigError, match="corrupt_share"):
        config.resolve({"data": {"corrupt_share": share}})


def test_damage_that_another_process_found_is_left_out_here(folders, skipping, monkeypatch):
    theirs = corrupt.pack(opened(folders[1]).damage())
    monkeypatch.setattr(distributed, "gather_bytes", lambda mine: [mine, theirs])
    one, two = gathered(skipping, folders[0]), gathered(skipping, folders[1])
    assert one.card.split == two.card.split
    assert one.card.split["skipped"] == {"T1": 2, "V1": 1}
    assert one.card.space.to_json() == two.card.space.to_json()


def test_a_run_does_not_go_on_with_other_rows(folders, skipping, tmp_path):
    out, workdir = harm.copy_of(folders[1], tmp_path), tmp_path / "run"
    # Without standardisation the space is the same whatever the rows are.
    experiment = on(
        skipping, standardise_expression=False, standardise_condition=False, corrupt_share=0.5
    )

    def begin(folder):
        with saving.Checkpoints(workdir, gathered(experiment, folder).card):
            pass

    begin(out)
    begin(out)
    for folder, lost in ((folders[0], {"T1": (7, 41), "V1": (59,)}), (out, {"T2": (5,)})):
        other = shutil.copytree(folder, tmp_path / f"other{len(lost)}")
        spoil(other, lost)
        with pytest.raises(errors.CheckpointMismatchError, match="another run.*skipped"):
            begin(other)
    with pytest.raises(errors.CheckpointMismatchError, match="another run.*skipped"):
        begin(folders[0])  # mended since


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.mark.slow
def test_two_processes_with_copies_of_their_own_agree(folders, skipping, toy_experiment, tmp_path):
    """The second's copy alone is damaged: both leave the same out, or both end."""
    path = tmp_path / "told.json"
    path.write_text(
        json.dumps(
            {
                "coordinator": f"127.0.0.1:{free_port()}",
                "processes": 2,
                "records": [str(folders[0]), str(folders[1])],
                "experiments": [config.as_json(e) for e in (skipping, toy_experiment)],
            }
        )
    )
    said = [tmp_path / f"said{i}.json" for i in range(2)]
    logs = [tmp_path / f"log{i}.txt" for i in range(2)]
    running = []
    try:
        for i in range(2):
            with logs[i].open("w") as log:
                running.append(
                    subprocess.Popen(
                        [sys.executable, str(PROGRAM), str(path), str(i), str(said[i])],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, "JAX_PLATFORMS": "cpu"},
                    )
                )
        codes = [process.wait(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0, 0], [log.read_text()[-2000:] for log in logs]
    (first, refused), (second, damaged) = (json.loads(file.read_text()) for file in said)
    for name in ("split", "rows", "val_rows", "space", "batch"):
        assert first[name] == second[name]
    assert (first["rows"], first["val_rows"]) == (118, 59)
    assert first["split"]["skipped"] == {"T1": 2, "V1": 1}
    assert [log.read_text().count("SKIPPED") for log in logs] == [1, 0]
    assert damaged["error"] == "SJ-D06"
    assert refused["error"] == "SJ-T02"
    assert "process 1: [SJ-D06] The records of slide T1" in refused["text"]
