"""``stemjax prepare --encoder none``: sections without images."""

from __future__ import annotations

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
    assert "one of texture, none" in capsys.readouterr().err
