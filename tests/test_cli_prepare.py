"""``stemjax prepare``: sections without images, shards, and slides that fail."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stemjax import cli
from stemjax.data import records


@pytest.fixture
def folder(tmp_path):
    """Sections Q1, without an image, and R1, with one; clusters of Q1's first five spots."""
    grid = np.stack(np.meshgrid(np.arange(3), np.arange(3)), -1).reshape(-1, 2)
    names = [f"{x}x{y}" for x, y in grid]
    for part in ("ST-cnts", "ST-spotfiles", "ST-cluster/lbl", "ST-imgs/R/R1"):
        (tmp_path / part).mkdir(parents=True)
    for seed, name in enumerate(("Q1", "R1")):
        counts = np.random.default_rng(seed).poisson(3.0, (9, 8))
        table = pd.DataFrame(counts, index=names, columns=[f"G{i}" for i in range(8)])
        table.to_csv(tmp_path / f"ST-cnts/{name}.tsv.gz", sep="\t")
        spots = pd.DataFrame(grid, columns=["x", "y"])
        spots[["pixel_x", "pixel_y"]] = 200 + 290 * grid
        spots.to_csv(tmp_path / f"ST-spotfiles/{name}_selection.tsv", sep="\t", index=False)
    Image.new("RGB", (1000, 1000), (200, 150, 180)).save(tmp_path / "ST-imgs/R/R1/he.jpg")
    clusters = pd.DataFrame(grid[:5], columns=["x", "y"]).assign(label=1)
    clusters.to_csv(tmp_path / "ST-cluster/lbl/Q1-cluster-annotation.tsv.gz", sep="\t")
    return tmp_path


def command(folder, *options):
    return ["prepare", "--layout", "st", "--data", f"{folder}", "--out", f"{folder}/records",
            "--n-genes", "4", "--workers", "1", *options]  # fmt: skip


def test_sections_without_images_are_prepared_on_request(folder, capsys):
    assert cli.main(command(folder)) == 1
    assert "Q1 has no image" in capsys.readouterr().err
    assert cli.main(command(folder, "--encoder", "none")) == 0
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == [
        "  Q1: 9 spots, 0.690 um/px, no patch, patient Q",
        "    label: cluster, 5 spots",
        "  R1: 9 spots, 0.690 um/px, no patch, patient R",
    ]
    written = records.open_records(folder / "records")
    assert written.contract.name == "none"
    assert [written.slides[i].thumbnail_scale is None for i in ("Q1", "R1")] == [True, False]
    assert written.labels("Q1") == {"cluster": ("1",) * 5 + ("",) * 4}


def test_an_unknown_encoder_is_told_both_names(folder, capsys):
    (folder / "ST-cnts" / "Q1.tsv.gz").unlink()
    assert cli.main(command(folder, "--encoder", "nothing")) == 1
    assert "stemjax encode --list" in capsys.readouterr().err


def tree(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_shards_after_the_panel_are_the_whole(folder, capsys):
    out, common = folder / "records", ("--encoder", "none")
    assert cli.main(command(folder, *common, "--panel-only")) == 0
    said = capsys.readouterr().out
    assert "a panel of 4 genes (stem: union" in said
    assert sorted(path.name for path in out.iterdir()) == ["genes.txt", "panel.json"]
    assert cli.main(command(folder, *common, "--shard", "1/2")) == 0
    said = capsys.readouterr().out
    assert "records, shard 1/2: 1 slides, 4 genes" in said
    assert "R1: 9 spots" in said
    assert "Q1" not in said
    assert cli.main(command(folder, *common, "--shard", "0/2")) == 0
    assert "Q1: 9 spots" in capsys.readouterr().out
    assert cli.main(command(folder, *common, "--shard", "2/3")) == 0
    assert "nothing to do for shard 2/3, there are 2 slides" in capsys.readouterr().out
    before = tree(out)
    assert cli.main(command(folder, *common)) == 0
    assert "nothing to write: all 2 slides were done earlier" in capsys.readouterr().err
    assert tree(out) == before


def test_a_bad_slide_is_listed_and_the_others_are_written(folder, capsys):
    assert cli.main(command(folder, "--test", "Q1")) == 1
    said = capsys.readouterr()
    assert "error [SJ-D08]\n  1 of 2 slides could not be prepared" in said.err
    assert "\n    Q1: ImageError [SJ-D02]: " in said.err
    assert "records: 1 slides, 4 genes" in said.out
    assert "R1: 9 spots" in said.out
    failed = json.loads((folder / "records" / "failed" / "Q1.json").read_text())
    assert (failed["slide"], failed["type"], failed["code"]) == ("Q1", "ImageError", "SJ-D02")
    assert "Q1 has no image" in failed["message"]
    image = folder / "ST-imgs/Q/Q1/he.jpg"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (1000, 1000), (200, 150, 180)).save(image)
    assert cli.main(command(folder, "--test", "Q1")) == 0
    assert list((folder / "records" / "failed").iterdir()) == []
    assert sorted(records.open_records(folder / "records").slides) == ["Q1", "R1"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("2/2", "expected I/N with I from 0 to N-1, such as 0/8, found '2/2'"),
        ("0/0", "found '0/0'"),
        ("8", "expected I/N with I from 0 to N-1, such as 0/8, found '8'"),
        ("-1/2", "found '-1/2'"),
        ("", "found ''"),
    ],
)
def test_there_is_no_such_shard(folder, capsys, given, text):
    assert cli.main(command(folder, f"--shard={given}")) == 1
    said = capsys.readouterr().err
    assert "error [SJ-C01]" in said
    assert text in said
    assert not (folder / "records").exists()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("--shards", "0/2"), "found '0/2'; a share of the slides is --shard I/N"),
        (("--shar", "0/2"), "unknown argument --shar"),
        (("--shard", "0/2", "--panel-only"), "not allowed with argument --shard"),
    ],
)
def test_the_two_kinds_of_shards_are_not_confused(folder, capsys, given, text):
    with pytest.raises(SystemExit) as caught:
        cli.main(command(folder, *given))
    assert caught.value.code == 2
    assert text in capsys.readouterr().err
