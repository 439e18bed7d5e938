"""Runs over many slides: restarts, other requests, failures, several processes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from cohort_cases import (
    BLOCK,
    DRAWS,
    SLIDES,
    job,
    make_trained,
    read,
    require_same,
    stopping_after,
)

from stemjax import errors
from stemjax.data import builder, records
from stemjax.eval import cohort, draw_files, parts
from stemjax.eval import written as written_lib
from stemjax.export import bundle
from stemjax.train import checkpoint


@pytest.fixture(scope="module")
def trained(toy_records, toy_experiment) -> checkpoint.Trained:
    """Weights away from the initial ones; calibrated for MEAN."""
    return make_trained(toy_records, toy_experiment)


def test_a_restart_predicts_what_is_missing_alone(trained, toy_records, tmp_path, monkeypatch):
    asked, out = job(trained, toy_records, DRAWS), tmp_path / "out"
    cohort.predict_cohort(asked, SLIDES, tmp_path / "once", block=BLOCK)
    with monkeypatch.context() as patch:
        begun = stopping_after(patch, 6)  # T1 and half of T2
        with pytest.raises(KeyboardInterrupt):
            cohort.predict_cohort(asked, SLIDES, out, block=BLOCK)
        assert len(begun) == 6
    assert sorted(p.name for p in out.glob("*.h5ad")) == ["T1.h5ad"]
    before, told = (out / "T1.h5ad").stat(), []
    with monkeypatch.context() as patch:
        begun = stopping_after(patch, 100)
        outcome = cohort.predict_cohort(
            asked, SLIDES, out, block=BLOCK, progress=lambda *args: told.append(args)
        )
        assert len(begun) == 10
    assert (outcome.earlier, outcome.done) == (("T1",), ("T2", "V1", "X1"))
    assert outcome.spots == 2 * 60 + 28
    assert told[0] == (92, 240, "slide 1 of 4, T1")
    assert told[-1] == (240, 240, "slide 4 of 4, X1")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert (out / "T1.h5ad").stat() == before
    for slide in SLIDES:
        require_same(read(tmp_path / "once", slide), read(out, slide))
    with monkeypatch.context() as patch:
        stopping_after(patch, 0)
        assert cohort.predict_cohort(asked, SLIDES, out, block=BLOCK).earlier == SLIDES


@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_damaged_part_is_predicted_again(trained, toy_records, tmp_path, monkeypatch, harm):
    asked, out = job(trained, toy_records), tmp_path / "out"
    cohort.predict_cohort(asked, ["X1"], tmp_path / "once", block=BLOCK)
    with monkeypatch.context() as patch:
        stopping_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            cohort.predict_cohort(asked, ["X1"], out, block=BLOCK)
    (victim,) = out.rglob("000001/part.h5ad")
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 255
    victim.write_bytes(data[:-100] if harm == "cut" else data)
    with monkeypatch.context() as patch:
        begun = stopping_after(patch, 100)
        cohort.predict_cohort(asked, ["X1"], out, block=BLOCK)
        barcodes = toy_records.load(["X1"]).barcodes
        assert begun == [barcodes[48], barcodes[16]]
    require_same(read(tmp_path / "once", "X1"), read(out, "X1"))


def test_a_file_of_another_request_is_refused_and_kept(trained, toy_records, tmp_path):
    cohort.predict_cohort(job(trained, toy_records, DRAWS), ["T1"], tmp_path)
    before = (tmp_path / "T1.h5ad").read_bytes()
    other = job(trained, toy_records, dataclasses.replace(DRAWS, steps=3))
    moved = jax.tree.map(lambda p: p + 1e-3, trained.params)
    for asked, text in (
        (other, "sampling.steps: 2 -> 3"),
        (dataclasses.replace(other, sampling=DRAWS, seed=4), "seed: 3 -> 4"),
        (job(dataclasses.replace(trained, params=moved), toy_records, DRAWS), "weights.model: "),
        (job(trained, toy_records, DRAWS, draws="zarr"), "draws: 'h5ad' -> 'zarr'"),
    ):
        with pytest.raises(errors.PredictionError, match=text) as caught:
            cohort.predict_cohort(asked, ["T2", "T1"], tmp_path)
        assert "another folder as -o" in str(caught.value)
    assert (tmp_path / "T1.h5ad").read_bytes() == before
    assert not (tmp_path / "T2.h5ad").exists()
    # How many rows a device takes, or a unit, changes no result and is no other request.
    same = dataclasses.replace(job(trained, toy_records, DRAWS), rows=8)
    assert cohort.predict_cohort(same, ["T1"], tmp_path, block=BLOCK).earlier == ("T1",)


def test_a_file_that_is_none_of_ours_is_refused(trained, toy_records, tmp_path):
    (tmp_path / "T1.h5ad").write_bytes(b"a year of work")
    with pytest.raises(errors.PredictionError, match="none|damaged"):
        cohort.predict_cohort(job(trained, toy_records), ["T1"], tmp_path)
    assert (tmp_path / "T1.h5ad").read_bytes() == b"a year of work"


# ---------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("block", [BLOCK, 100])
def test_a_damaged_slide_does_not_stop_the_others(trained, toy_records, tmp_path, block):
    root = tmp_path / "records"
    shutil.copytree(toy_records.folders["T1"].parents[2], root)
    (victim,) = builder.slide_folder(root, "T2").glob("*/*.array_record-*")
    sound = victim.read_bytes()
    victim.write_bytes(sound[:500] + bytes([sound[500] ^ 4]) + sound[501:])
    asked, out = job(trained, records.open_records(root)), tmp_path / "out"
    outcome = cohort.predict_cohort(asked, SLIDES, out, block=block)
    assert outcome.done == ("T1", "V1", "X1")
    assert list(outcome.failed) == ["T2"]
    assert victim.name in outcome.failed["T2"]
    index = json.loads((out / "cohort.json").read_text())
    assert [line["slide"] for line in index["slides"]] == ["T1", "V1", "X1"]
    assert [line["spots"] for line in index["slides"]] == [60, 60, 60]
    assert [line["slide"] for line in index["failed"]] == ["T2"]
    assert victim.name in index["failed"][0]["error"]
    victim.write_bytes(sound)
    again = dataclasses.replace(asked, source=records.open_records(root))
    assert list((out / "failed").iterdir()) != []
    assert cohort.predict_cohort(again, SLIDES, out, block=block).failed == {}
    assert list((out / "failed").iterdir()) == []
    index = json.loads((out / "cohort.json").read_text())
    assert [line["slide"] for line in index["slides"]] == list(SLIDES)
    assert index["failed"] == []
    assert {line["request"] for line in index["slides"]} == {
        written_lib.digest(again.request(slide)) for slide in SLIDES
    }


def test_the_index_that_is_written_last_has_all(tmp_path, monkeypatch):
    """Another process finishes a slide between this one's look and its writing."""
    slides = ["A"]
    monkeypatch.setattr(written_lib, "_index", lambda out, seen: {"slides": list(slides)})
    write = written_lib.integrity.write_text

    def write_text(path, text):
        write(path, text)
        slides[1:] = ["B"]

    monkeypatch.setattr(written_lib.integrity, "write_text", write_text)
    written_lib.write_index(tmp_path)
    assert json.loads((tmp_path / "cohort.json").read_text()) == {"slides": ["A", "B"]}


# --------------------------------------------------------------------------------------- processes

SHARE = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
from stemjax import tasks
from stemjax.data import records
from stemjax.eval import cohort
from stemjax.export import bundle

model, root, out, i = sys.argv[1:]
job = cohort.Job(
    trained=bundle.load(model), source=records.open_records(root), seed=3, draws="zarr",
    sampling=tasks.Sampling(mode="draws", n_draws=4, steps=2),
)
found = cohort.predict_cohort(job, ["T1", "T2", "V1"], out, block=16, part=(int(i), 2))
print(found.spots)
"""


def test_two_processes_at_once_give_what_one_does(trained, toy_records, tmp_path):
    bundle.write(trained, tmp_path / "model")
    root = toy_records.folders["T1"].parents[2]
    sent = dict(os.environ, JAX_PLATFORMS="cpu")
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SHARE, tmp_path / "model", root, tmp_path / "two", str(i)],
            stdout=subprocess.PIPE,
            text=True,
            env=sent,
        )
        for i in (0, 1)
    ]
    spots = [int(process.communicate(timeout=300)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(spots) == 180
    assert max(spots) - min(spots) <= 32
    asked = job(bundle.load(tmp_path / "model"), toy_records, DRAWS, draws="zarr")
    cohort.predict_cohort(asked, SLIDES[:3], tmp_path / "one", block=BLOCK)
    for slide in SLIDES[:3]:
        require_same(read(tmp_path / "one", slide), read(tmp_path / "two", slide))
        stores = [
            draw_files.open_draws(tmp_path / n / f"{slide}.draws.zarr") for n in ("one", "two")
        ]
        np.testing.assert_array_equal(stores[0][:], stores[1][:])
        assert dict(stores[0].attrs) == dict(stores[1].attrs)
    one, two = (json.loads((tmp_path / n / "cohort.json").read_text()) for n in ("one", "two"))
    for line in one["slides"] + two["slides"]:
        line.pop("seconds")
    assert one == two
    assert [line["slide"] for line in two["slides"]] == ["T1", "T2", "V1"]


def test_shares_one_after_another_wait_for_each_other(trained, toy_records, tmp_path):
    asked = job(trained, toy_records)
    first = cohort.predict_cohort(asked, SLIDES[:3], tmp_path, block=BLOCK, part=(0, 2))
    assert (first.done, first.waiting) == (("T1",), ("T2", "V1"))
    last = cohort.predict_cohort(asked, SLIDES[:3], tmp_path, block=BLOCK, part=(1, 2))
    assert (last.earlier, last.done, last.waiting) == (("T1",), ("T2", "V1"), ())


def test_a_slide_is_finished_after_the_process_that_had_claimed_it_died(
    trained, toy_records, tmp_path, monkeypatch
):
    asked = job(trained, toy_records)

    def die(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts, "assemble", die)
        with pytest.raises(KeyboardInterrupt):
            cohort.predict_cohort(asked, ["T1"], tmp_path, block=BLOCK)
    (where,) = (tmp_path / ".parts" / "T1").iterdir()
    with parts.claimed(where) as ours:
        assert ours
        # While somebody lives who has claimed it, it is theirs.
        assert cohort.predict_cohort(asked, ["T1"], tmp_path, block=BLOCK).waiting == ("T1",)
    # A share without a unit of the slide finishes it too.
    outcome = cohort.predict_cohort(asked, ["T1", "T2"], tmp_path, block=BLOCK, part=(1, 2))
    assert outcome.waiting == ()
    assert read(tmp_path, "T1").n_obs == 60
