"""``stemjax convert``, as a user meets it."""

from __future__ import annotations

import json
import os

import anndata
import made_prediction
import numpy as np
import pandas as pd
import pytest
import zarr

from stemjax import cli


@pytest.fixture
def folder(tmp_path):
    """A prediction, the counts of its slide, and a file of genes."""
    made = made_prediction.make()
    made.write_h5ad(tmp_path / "p.h5ad")
    counts = np.random.default_rng(0).poisson(4, made.shape).astype(np.float32)
    lab = anndata.AnnData(X=counts, obs=pd.DataFrame(index=made.obs_names), var=made.var)
    lab[::-1].copy().write_h5ad(tmp_path / "lab.h5ad")
    (tmp_path / "genes.txt").write_text("KRT5\nHLA-A\n")
    return tmp_path


def run(folder, *args):
    return cli.main(["convert", *(part.replace("{}", str(folder)) for part in args)])


def test_qupath(folder, capsys):
    command = ("{}/p.h5ad", "--to", "qupath", "-o", "{}/out.geojson")
    assert run(folder, *command, "--genes", "KRT5,HLA-A", "--shape", "square") == 0
    said = capsys.readouterr()
    assert said.out == f"{folder}/out.geojson: 30 spots, 0.0 MB\n"
    assert said.err == ""
    found = json.loads((folder / "out.geojson").read_text())
    first = found["features"][0]
    assert set(first["properties"]["measurements"]) == {
        f"{gene} {what}" for gene in ("KRT5", "HLA-A") for what in ("mean", "std")
    }
    assert len(first["geometry"]["coordinates"][0]) == 5
    # A file may take the place of an older one.
    assert run(folder, *command, "--genes", "{}/genes.txt", "--objects", "annotation") == 0
    again = json.loads((folder / "out.geojson").read_text())["features"][0]
    assert again["properties"]["objectType"] == "annotation"
    assert again["properties"]["measurements"] == first["properties"]["measurements"]


@pytest.mark.parametrize(
    ("to", "extra", "files", "said"),
    [
        ("loupe", [], ["categories.csv", "projection.csv"], "wrote {}/out/categories.csv"),
        ("png", [], ["HLA-A.png", "KRT5.png", "maps.json"], "{}/out: 2 maps"),
        (
            "png",
            ["--bare"],
            ["HLA-A.png", "HLA-A.tiff", "KRT5.png", "KRT5.tiff", "maps.json"],
            "{}/out: 2 maps",
        ),
        (
            "ome-zarr",
            ["--pixel-um", "11"],
            ["0", "1", "zarr.json"],
            "{}/out: 2 genes, 46 x 46 pixels",
        ),
    ],
)
def test_folders(folder, capsys, to, extra, files, said):
    command = ("{}/p.h5ad", "--to", to, "-o", "{}/out", "--genes", "{}/genes.txt", *extra)
    assert run(folder, *command) == 0
    assert capsys.readouterr().out.startswith(said.replace("{}", str(folder)))
    assert sorted(os.listdir(folder / "out")) == files
    # What stands there is never replaced.
    assert run(folder, *command) == 1
    assert "is in the way" in capsys.readouterr().err
    assert sorted(os.listdir(folder / "out")) == files


def test_ome_zarr_has_the_genes_asked_for(folder):
    run(folder, "{}/p.h5ad", "--to", "ome-zarr", "-o", "{}/out", "--genes", "HLA-A")
    attributes = zarr.open_group(str(folder / "out"), mode="r").attrs
    assert [one["label"] for one in attributes["ome"]["omero"]["channels"]] == ["HLA-A"]


def test_measured(folder, capsys):
    command = ("{}/p.h5ad", "--to", "measured", "--measured", "{}/lab.h5ad", "-o", "{}/out.h5ad")
    assert run(folder, *command, "--key-added", "he") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{folder}/out.h5ad: layers he, he_lower_90, he_std, he_upper_90; 6 genes of 6, 30 spots "
        "of 30"
    )
    found, made = anndata.read_h5ad(folder / "out.h5ad"), made_prediction.make()
    np.testing.assert_array_equal(found.layers["he"][::-1], made.X)
    np.testing.assert_array_equal(found.X, anndata.read_h5ad(folder / "lab.h5ad").X)
    assert lines[1] == (f"  PCC over 30 spots: {found.var['he_pcc'].mean():.3f}, mean of 6 genes")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["{}/none.h5ad", "--to", "png"], "SJ-E01", "no prediction at"),
        (["{}/genes.txt", "--to", "png"], "SJ-E01", "cannot be read"),
        (["{}/lab.h5ad", "--to", "png"], "SJ-E01", "is no prediction of stemjax"),
        (["{}/p.h5ad", "--to", "png", "--genes", "TP53"], "SJ-D04", "'TP53'"),
        (["{}/p.h5ad", "--to", "png", "--genes", ","], "SJ-D04", "one or more"),
        (["{}/p.h5ad", "--to", "png", "--shape", "circle"], "SJ-C01", "--shape with --to png"),
        (["{}/p.h5ad", "--to", "qupath", "--bare"], "SJ-C01", "--bare with --to qupath"),
        (["{}/p.h5ad", "--to", "qupath", "--pixel-um", "2"], "SJ-C01", "--pixel-um with"),
        (["{}/p.h5ad", "--to", "qupath", "--measured", "x"], "SJ-C01", "--measured with"),
        (["{}/p.h5ad", "--to", "measured"], "SJ-C01", "--measured FILE"),
        (["{}/p.h5ad", "--to", "measured", "--measured", "{}/no"], "SJ-E01", "{}/no"),
    ],
)
def test_refusals_are_one_block_with_a_code_and_write_nothing(folder, capsys, args, code, words):
    before = sorted(os.listdir(folder))
    assert run(folder, *args, "-o", "{}/out") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"stemjax convert: error [{code}]\n  ")
    assert words.replace("{}", str(folder)) in said.err
    assert sorted(os.listdir(folder)) == before


def test_an_unknown_format_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["convert", "p.h5ad", "--to", "xenium", "-o", "out"])
    assert exit_.value.code == 2
    assert "usage: stemjax convert" in capsys.readouterr().err
