"""A full disk: an error that names the file, and what stood there before as it was."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess

import h5py
import jax
import made_prediction
import numpy as np
import pytest
from toy_slides import toy_slide

import stemjax
from stemjax import errors, tasks
from stemjax.data import disk
from stemjax.eval import cohort, draw_files, h5ad, parts, plain, predict
from stemjax.export import bundle, torch_edm
from stemjax.integrations import gene_maps, loupe, ome_zarr, qupath
from stemjax.integrations import prediction as predictions
from stemjax.train import checkpoint, material

FREE = 64 * 1024
DEMO = pathlib.Path(stemjax.__file__).parent / "pretrained" / "demo"


@pytest.fixture
def full(tmp_path):
    """A disk of 1 MB with 64 kB left."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here: it takes root")
    try:
        (place / "ballast").write_bytes(bytes(2**20 - FREE))
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def made(genes: int = 400):
    found = made_prediction.make(genes=[f"G{number:03d}" for number in range(genes)])
    rng = np.random.default_rng(0)
    found.uns["stemjax"]["seed"] = 0
    found.obsm[predict.DRAWS] = rng.standard_normal((30, 8, genes)).astype(np.float32)
    return found


def wide():
    return predictions.of_anndata(made())


WRITERS = {
    "prediction": lambda place: predict.write(made(), place / "p.h5ad"),
    "part": lambda place: parts.write(place, 0, made(), 1.0),
    "draws": lambda place: draw_files.move_out(made(), place / "p.draws.zarr", block=16),
    "text": lambda place: plain.write_text(place / "report.html", "x" * 2**17),
    "qupath": lambda place: qupath.write(wide(), place / "p.geojson", genes=wide().genes),
    "figures": lambda place: gene_maps.write(wide(), place / "maps", genes=["G001", "G002"]),
    "loupe": lambda place: loupe.write(wide(), place / "loupe", genes=wide().genes),
    "ome-zarr": lambda place: ome_zarr.write(wide(), place / "p.ome.zarr"),
    "bundle": lambda place: bundle.write(bundle.load(DEMO, verify=False), place / "b"),
    "torch-edm": lambda place: torch_edm.write(bundle.load(DEMO, verify=False), place / "t"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_and_leaves_nothing(full, name):
    with pytest.raises(errors.ResourceError) as caught:
        WRITERS[name](full)
    assert caught.value.code == "SJ-R01"
    assert "could not be written: no space left" in caught.value.what
    assert str(full) in caught.value.what
    assert "free" in str(caught.value.found)
    assert [path.name for path in full.rglob("*")] == ["ballast"]


def test_what_is_needed_is_told_and_the_older_file_stands(full):
    (full / "p.h5ad").write_bytes(b"older")
    with pytest.raises(errors.ResourceError, match=r"p\.h5ad .*expected 1\.\d+ MB free, found"):
        predict.write(made(), full / "p.h5ad")
    assert (full / "p.h5ad").read_bytes() == b"older"
    assert sorted(path.name for path in full.rglob("*")) == ["ballast", "p.h5ad"]


def test_records_on_a_full_disk(full, toy_records):
    from stemjax.data import records

    slide, embeddings = toy_slide("T9", 9)
    wide_embeddings = np.random.default_rng(0).standard_normal((60, 8, 600)).astype(np.float32)
    contract = toy_records.contract.__class__(**{**toy_records.contract.to_json(), "width": 600})
    with pytest.raises(errors.ResourceError, match="could not be written: no space left"):
        records.write_slide(
            full, slide, wide_embeddings, panel=toy_records.panel, contract=contract
        )
    assert not list(full.rglob("*.array_record*"))


def test_a_disk_that_says_it_late_is_heard(tmp_path, monkeypatch):
    """Network file systems tell of a full disk when they are asked whether all was written."""
    (tmp_path / "older.json").write_text("older")

    def fails(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(errors.ResourceError, match=r"older\.json could not be written"):
        plain.write_text(tmp_path / "older.json", "newer")
    with pytest.raises(errors.ResourceError, match=r"p\.h5ad could not be written"):
        predict.write(made_prediction.make(), tmp_path / "p.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["older.json"]
    assert (tmp_path / "older.json").read_text() == "older"


def test_hdf5_never_learns_that_a_write_failed(tmp_path, monkeypatch):
    """It would be left with objects that end the process when they are closed."""
    with pytest.raises(OSError, match="No space"):
        fill(tmp_path / "x.h5", monkeypatch)


def fill(path, monkeypatch):
    with disk.opened_for_hdf5(path) as opened, h5py.File(opened, "w") as file:
        file["a"] = np.ones(10)
        monkeypatch.setattr(opened, "_file", _Full(vars(opened)["_file"]))
        file["b"] = np.ones(10**5)
        file["c"] = np.ones(10**5)


class _Full:
    """A file on a disk that is full now."""

    def __init__(self, file) -> None:
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, given):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_out_of_memory_is_no_full_disk():
    assert disk.is_full(RuntimeError("RESOURCE_EXHAUSTED: writing step 4"))
    assert not disk.is_full(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"))


def test_predictions_that_will_not_fit_are_told_before(tmp_path, monkeypatch, caplog):
    trained = bundle.load(DEMO, verify=False)
    sampling = tasks.Sampling(mode="mean")
    monkeypatch.setattr(disk, "free_bytes", lambda path: 10)
    h5ad.warn_if_short(tmp_path, trained, sampling, spots=1000)
    assert "predictions will take about" in caplog.text
    assert "10 bytes are free" in caplog.text
    caplog.clear()
    monkeypatch.setattr(disk, "free_bytes", lambda path: 10**12)
    h5ad.warn_if_short(tmp_path, trained, sampling, spots=1000)
    assert not caplog.text


def test_a_cohort_ends_at_a_full_disk_and_goes_on_when_there_is_room(
    full, toy_records, toy_experiment
):
    card = material.gather(toy_experiment, toy_records).card
    trained = checkpoint.Trained(
        params=card.task.init(jax.random.key(1)), card=card, step=7, weights="last"
    )
    job = cohort.Job(
        trained=trained, source=toy_records, sampling=tasks.Sampling(mode="mean"), seed=3
    )
    (full / "ballast").write_bytes(bytes(2**20 - 60 * 1024))
    out = full / "out"
    with pytest.raises(errors.ResourceError, match="could not be written: no space left"):
        cohort.predict_cohort(job, ["T1", "T2", "V1", "X1"], out)
    assert not (out / "failed").exists()
    done = sorted(path.name for path in out.glob("*.h5ad"))
    assert len(done) < 4
    (full / "ballast").unlink()
    found = cohort.predict_cohort(job, ["T1", "T2", "V1", "X1"], out)
    assert len(found.earlier) == len(done)
    assert len(list(out.glob("*.h5ad"))) == 4
    assert not found.failed
