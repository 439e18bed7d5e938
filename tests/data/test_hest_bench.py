"""HEST-Benchmark's files: read as they are, joined by name, and what is refused."""

from __future__ import annotations

import anndata
import bench_trees
import h5py
import numpy as np
import pandas as pd
import pytest

from stemjax import errors
from stemjax.data import hest_bench, hest_folds, texture


@pytest.fixture
def task(tmp_path):
    folder = bench_trees.write_task(tmp_path, "TOY", "S1 S2 S3 S4")
    rng = np.random.default_rng(0)
    (folder / "patches").mkdir()
    bench_trees.write_h5(
        folder / "patches" / "S1.h5",
        img=rng.integers(0, 256, (3, 224, 224, 3), dtype=np.uint8),
        barcode=np.array([[b"S1-02"], [b"S1-00"], [b"S1-05"]]),
        coords=np.array([[0, 0], [224, 0], [0, 224]]),
    )
    return folder


def rewrite(path, **arrays):
    """The h5 file with some arrays replaced, or left out where None."""
    with h5py.File(path) as file:
        kept = {key: file[key][:] for key in file} | arrays
    path.unlink()
    bench_trees.write_h5(path, **{k: v for k, v in kept.items() if v is not None})


def test_embeddings_are_read_as_they_are(tmp_path, task):
    path = tmp_path / "embeddings" / "TOY" / "S2.h5"
    found = hest_bench.read_embeddings(path, encoder="uni")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(found.embeddings[:, 0], file["embeddings"])
        np.testing.assert_array_equal(found.coords, file["coords"])
        assert found.barcodes == tuple(file["barcodes"][:].flatten().astype(str))
    assert (found.contract.name, found.contract.width, found.contract.fov_um) == ("uni", 10, 112)
    # Text instead of bytes, one dimension, and no coordinates.
    rewrite(path, coords=None, barcodes=np.array(found.barcodes, h5py.string_dtype()))
    again = hest_bench.read_embeddings(path, encoder="uni")
    assert again.barcodes == found.barcodes
    assert (again.coords == 0).all()


def test_patches_are_embedded_as_the_encoder_does(task):
    path, encoder = task / "patches" / "S1.h5", texture.TextureEncoder()
    seen = []
    found = hest_bench.embed_patches(path, encoder, progress=lambda *told: seen.append(told))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(found.embeddings, encoder.encode(file["img"][:]))
    assert found.barcodes == ("S1-02", "S1-00", "S1-05")
    assert seen == [(3, 3, "embedding the patches of S1")]
    # The contract differs from that of slides in the field of view alone.
    with pytest.raises(errors.EncoderMismatchError, match="'fov_um'"):
        found.contract.require_same(encoder.contract, where="here")


def test_many_patches_are_read_in_portions(task, monkeypatch):
    whole = hest_bench.embed_patches(task / "patches" / "S1.h5", texture.TextureEncoder())
    monkeypatch.setattr(hest_bench, "_CHUNK", 2)
    parts = hest_bench.embed_patches(task / "patches" / "S1.h5", texture.TextureEncoder())
    np.testing.assert_array_equal(whole.embeddings, parts.embeddings)


def test_counts_are_joined_by_name(task):
    found = hest_bench.read_expression(task / "adata" / "S3.h5ad")
    barcodes, genes = ("S3-09", "S3-01", "S3-23"), ("G20", "G03")
    part = found.counts[found.rows(barcodes)][:, found.columns(genes)].toarray()
    adata = anndata.read_h5ad(task / "adata" / "S3.h5ad")
    np.testing.assert_array_equal(part, adata[list(barcodes), list(genes)].X.toarray())


def test_names_that_are_not_there_or_there_twice(task):
    path = task / "adata" / "S3.h5ad"
    found = hest_bench.read_expression(path)
    with pytest.raises(
        errors.SlideError, match=r"S3\.h5ad lacks 2 of 3 embedded.*x, y; names such"
    ):
        found.rows(("S3-01", "x", "y"))
    with pytest.raises(
        errors.GenePanelError, match=r"S3\.h5ad lacks 1 of the task's 2 genes.*TP53"
    ):
        found.columns(("G01", "TP53"))
    with pytest.raises(errors.SlideError, match="asked for more than once"):
        found.rows(("S3-01", "S3-01"))
    with h5py.File(path, "r+") as file:
        del file["obs"]
        names = [*(f"S3-{i:02d}" for i in range(23)), "S3-01"]
        anndata.io.write_elem(file, "obs", pd.DataFrame(index=names))
    doubled = hest_bench.read_expression(path)
    assert list(doubled.rows(("S3-02", "S3-00"))) == [2, 0]  # those are there once
    with pytest.raises(errors.SlideError, match="barcodes are not unique: found S3-01 twice"):
        doubled.rows(("S3-01",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": None}, "lacks embeddings: .*found barcodes, coords"),
        ({"barcodes": None, "barcode": np.array([b"a"])}, "lacks barcodes"),
        ({"embeddings": np.full((20, 10), np.nan)}, "200 not finite"),
        ({"embeddings": np.zeros((19, 10))}, r"embeddings \(19, 10\)"),
        ({"embeddings": np.zeros((20, 3, 10))}, r"embeddings \(20, 3, 10\)"),
        ({"coords": np.zeros((20, 3))}, r"coords \(20, 3\)"),
        ({"embeddings": np.zeros((0, 10)), "barcodes": np.zeros((0, 1), "S1")}, r"\(0, 10\)"),
    ],
)
def test_embeddings_that_cannot_be_used(tmp_path, task, changes, message):
    path = tmp_path / "embeddings" / "TOY" / "S2.h5"
    rewrite(path, **changes)
    with pytest.raises(errors.EncoderMismatchError, match=message) as caught:
        hest_bench.read_embeddings(path, encoder="uni")
    assert "S2.h5" in caught.value.what


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img": None, "images": np.zeros(3)}, "lacks img: .*found barcode, coords, images"),
        ({"img": np.zeros((3, 256, 256, 3), np.uint8)}, r"img uint8 \(3, 256, 256, 3\)"),
        ({"img": np.zeros((3, 224, 224, 3), np.float32)}, "img float32"),
        ({"barcode": np.array([b"a", b"b"])}, "2 barcodes"),
        ({"coords": np.zeros((3, 4))}, r"coords \(3, 4\)"),
    ],
)
def test_patches_that_cannot_be_used(task, changes, message):
    path = task / "patches" / "S1.h5"
    rewrite(path, **changes)
    with pytest.raises(errors.ImageError, match=message) as caught:
        hest_bench.embed_patches(path, texture.TextureEncoder())
    assert "S1.h5" in caught.value.what


def test_files_that_are_damaged_or_none(task):
    path = task / "adata" / "S1.h5ad"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(errors.SlideError, match=r"S1\.h5ad is damaged"):
        hest_bench.read_expression(path)
    path = task / "patches" / "S1.h5"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(errors.ImageError, match=r"S1\.h5 is damaged"):
        hest_bench.embed_patches(path, texture.TextureEncoder())
    path.unlink()
    with pytest.raises(errors.ImageError, match=r"no .*S1\.h5: found in its folder: nothing"):
        hest_bench.embed_patches(path, texture.TextureEncoder())


@pytest.mark.parametrize("value", [-1.0, 0.5, np.inf])
def test_counts_that_are_not_raw(task, value):
    path = task / "adata" / "S2.h5ad"
    adata = anndata.read_h5ad(path)
    adata.X = adata.X.toarray()
    adata.X[3, 4] = value
    adata.write_h5ad(path)
    with pytest.raises(errors.SlideError, match=f"1 values that are no counts such as {value}"):
        hest_bench.read_expression(path)


def test_folds_are_those_of_the_files(task):
    found = hest_folds.read_hest_folds(task)
    assert found.slides == ("S1", "S2", "S3", "S4")
    assert list(found.folds) == ["0", "1"]
    assert (found.folds["1"].train, found.folds["1"].test) == (("S3", "S4"), ("S1", "S2"))
    assert found.folds["0"].kind == "patient unknown"
    assert found.patches["S2"] == task / "patches" / "S2.h5"
    assert found.expression["S2"] == task / "adata" / "S2.h5ad"
    # Rising by number, not by text; a slide may be in no fold's test.
    for k in (2, 10):
        bench_trees.write_fold(task, k, "S1 S2", "S3")
    assert list(hest_folds.read_hest_folds(task).folds) == ["0", "1", "2", "10"]


def test_patients_of_several_datasets_are_not_one(tmp_path, task):
    table = tmp_path / "HEST.csv"
    table.write_text(
        "dataset_title,id,patient,organ\nOne,S1,Patient 1,x\nTwo,S2,Patient 1,x\n"
        "One,S3,Patient 2,x\nZoo,S9,Patient 2,x\n"
    )
    split = hest_folds.read_hest_folds(task, metadata=table).folds["0"]
    assert split.patients == {
        "S1": "One: Patient 1",
        "S2": "Two: Patient 1",
        "S3": "Patient 2",  # S9 is not in the task: no doubt
        "S4": None,
    }
    table.write_text("id,organ\nS1,x\n")
    with pytest.raises(errors.SplitError, match=r"HEST\.csv cannot be used.*id, patient.*organ"):
        hest_folds.read_hest_folds(task, metadata=table)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("test_2.csv", "sample_id,patches_path,expr_path\nS1,a,b\n", "only one.* for fold 2"),
        ("train_0.csv", "sample_id,patches_path\nS1,a\n", "train_0.csv cannot be used.*expr_path"),
        ("train_0.csv", "sample_id,patches_path,expr_path\n", "train_0.csv cannot be used.*no row"),
        ("train_0.csv", "sample_id,patches_path,expr_path\nS1,../a,b\n", r"S1', '\.\./a'"),
        ("train_0.csv", "sample_id,patches_path,expr_path\nS1,/a,b\n", "inside the task's folder"),
        ("train_0.csv", "sample_id,patches_path,expr_path\nS1,a,b\n", "S1 has two places"),
        (
            "train_0.csv",
            "sample_id,patches_path,expr_path\n" + 2 * "S1,patches/S1.h5,adata/S1.h5ad\n",
            "names slide S1 more than once",
        ),
    ],
)
def test_folds_that_cannot_be_used(task, name, text, message):
    (task / "splits" / name).write_text(text)
    with pytest.raises(errors.SplitError, match=message):
        hest_folds.read_hest_folds(task)
