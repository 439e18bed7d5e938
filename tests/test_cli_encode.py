"""``stemjax encode``, and ``predict`` and ``prepare`` of slides that no records hold."""

from __future__ import annotations

import dataclasses

import anndata
import drawn_slides as drawn
import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from stemjax import cli
from stemjax.data import records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two drawn slides in HEST's layout, and the image of one alone."""
    path = tmp_path_factory.mktemp("slides")
    for name, seed in (("mine", 900), ("other", 901)):
        drawn.write_hest(path / "hest", drawn.draw(name, seed=seed, n_spots=12))
    drawn.write_image(path / "alone.tif", drawn.draw("mine", n_spots=12))
    return path


@pytest.fixture(scope="module")
def encoded(folder):
    command = ["encode", str(folder / "hest"), "--workers", "1", "-o", str(folder / "features")]
    assert cli.main(command) == 0
    return folder / "features"


def test_the_list(capsys):
    assert cli.main(["encode", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["NAME", "WIDTH"]
    uni = next(line for line in lines if line.startswith("uni "))
    assert "1024" in uni
    assert "MahmoodLab/UNI" in uni
    assert "gated" in uni


def test_what_is_missing_is_said(tmp_path, capsys):
    assert cli.main(["encode"]) == 1
    assert "--list" in capsys.readouterr().err
    assert cli.main(["encode", "x.tif", "--encoder", "uni", "-o", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "MahmoodLab/UNI" in told
    assert "--encoder-weights" in told
    assert not list(tmp_path.iterdir())
    flags = ["encode", "x.tif", "--fov-um", "100", "-o", str(tmp_path)]
    assert cli.main(flags) == 1
    assert "--fov-um with the encoder texture" in capsys.readouterr().err


def test_files_are_hest_bench_s_and_kept(folder, encoded, capsys):
    assert sorted(path.name for path in encoded.iterdir()) == ["mine.h5", "other.h5"]
    with h5py.File(encoded / "mine.h5") as file:
        assert file["embeddings"].shape == (12, 236)
        assert file["barcodes"].shape == (12, 1)
        assert file["coords"].shape == (12, 2)
        assert file["barcodes"].asstr()[0, 0] == drawn.draw("mine", n_spots=12).barcodes[0]
    before = {path: path.stat().st_mtime_ns for path in encoded.iterdir()}
    command = ["encode", str(folder / "hest"), "--workers", "1", "-o", str(encoded)]
    assert cli.main(command) == 0
    assert "there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in encoded.iterdir()} == before


def test_one_slide_that_fails_leaves_the_others(folder, tmp_path, capsys):
    (folder / "bad").mkdir()
    (folder / "bad" / "broken.tif").write_bytes(b"II*\0 not a tiff")
    command = ["encode", str(folder / "bad" / "broken.tif"), str(folder / "alone.tif")]
    assert cli.main([*command, "--pitch-um", "400", "--workers", "1", "-o", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "broken.tif" in told
    assert [path.name for path in tmp_path.iterdir()] == ["alone.h5"]


def test_own_slides_and_an_embedding_file_to_a_map(folder, encoded, tmp_path):
    """Two commands, no edited file: the same numbers as embedding on the way."""
    out = tmp_path / "records"
    command = ["prepare", "--data", str(folder / "hest"), "--model", "demo", "--workers", "1"]
    assert cli.main([*command, "--embeddings", str(encoded), "--out", str(out)]) == 0
    source = records.open_records(out)
    assert source.contract.name == "texture"
    assert source.variants == 1
    assert "embeddings/mine.h5" in source.slides["mine"].sources
    predict = ["predict", "--checkpoint", "demo", "--workers", "1"]
    first, second = tmp_path / "a.h5ad", tmp_path / "b.h5ad"
    assert cli.main([*predict, "--records", str(out), "--slide", "mine", "-o", str(first)]) == 0
    slide = [str(folder / "hest"), "--slide", "mine", "-o", str(second)]
    assert cli.main([*predict, *slide]) == 0
    assert_array_equal(anndata.read_h5ad(first).X, anndata.read_h5ad(second).X)
    third = tmp_path / "c.h5ad"
    given = ["--embeddings", str(encoded), "--slide", "mine", "-o", str(third)]
    assert cli.main([*predict, str(folder / "hest"), *given]) == 0
    assert_array_equal(anndata.read_h5ad(third).X, anndata.read_h5ad(second).X)


def test_an_image_becomes_a_map(folder, tmp_path, capsys):
    out = tmp_path / "alone.h5ad"
    command = ["predict", str(folder / "alone.tif"), "--checkpoint", "demo", "--workers", "1"]
    assert cli.main([*command, "--pitch-um", "200", "-o", str(out)]) == 0
    found = anndata.read_h5ad(out)
    assert found.n_vars == 48
    assert found.n_obs > 5
    assert np.isfinite(found.X).all()
    assert not found.obs["stemjax_measured"].any()
    told = capsys.readouterr().out
    assert f"{found.n_obs} spots" in told
    assert "pixel size" in told.lower()


def test_a_flag_of_another_layout_is_refused(folder, tmp_path, capsys):
    command = ["predict", str(folder / "hest"), "--slide", "mine", "--checkpoint", "demo"]
    assert cli.main([*command, "--bin-um", "8", "-o", str(tmp_path / "x.h5ad")]) == 1
    assert "--bin-um" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        cli.main(["predict", "--checkpoint", "demo", "-o", str(tmp_path / "x.h5ad")])
    assert exit_.value.code == 2
    assert "SLIDE" in capsys.readouterr().err


def test_another_scale_is_warned_of(tmp_path, capsys):
    """The demo's patches were 224 um; at half the pixel size they would be 112."""
    slide = drawn.draw("fine", n_spots=12)
    drawn.write_image(tmp_path / "fine.tif", dataclasses.replace(slide, mpp=0.5))
    command = ["predict", str(tmp_path / "fine.tif"), "--checkpoint", "demo", "--workers", "1"]
    assert cli.main([*command, "-o", str(tmp_path / "p.h5ad")]) == 0
    assert "WARNING: patches of 112 um" in capsys.readouterr().out
