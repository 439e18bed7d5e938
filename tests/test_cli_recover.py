"""``stemjax recover`` and ``densify`` on a small made section, as a user meets them."""

from __future__ import annotations

import contextlib
import io
import json
import re

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stemjax import cli
from stemjax.data import records
from stemjax.eval import baselines, recovered

CONFIG = """
from stemjax import config

def get_config():
    c = config.default_config()
    c.model.kind, c.window.kind = "histosge", "neighbours"
    c.model.width, c.model.depth, c.model.heads, c.model.mlp_ratio = 8, 1, 2, 1
    c.window.length = 7
    c.data.augment = False
    c.train.batch, c.train.steps, c.train.log_every = 8, 4, 2
    c.train.validate_every, c.train.save_every = 0, 4
    return c
"""
QUICK = ("--config.train.steps=2", "--config.train.save_every=2")


@pytest.fixture(scope="module", autouse=True)
def _without_the_slowest_row():
    """The MLP of every command would take most of the time; other tests have it."""
    rows = baselines.recovery_rows

    def without(*args, leave_out=(), **options):
        return rows(*args, leave_out=[*leave_out, "MLP"], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovered.baselines, "recovery_rows", without)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sections Q1 and R1 of 7 x 6 spots, their records by image and without, and experiments."""
    out = tmp_path_factory.mktemp("recover")
    grid = np.stack(np.meshgrid(np.arange(7), np.arange(6)), -1).reshape(-1, 2)
    rng = np.random.default_rng(0)
    for part in ("ST-cnts", "ST-spotfiles"):
        (out / part).mkdir()
    for name in ("Q1", "R1"):
        rate = 6 + 5 * np.sin(grid[:, :1] / 2 + np.arange(12)) * np.cos(grid[:, 1:] / 3)
        table = pd.DataFrame(rng.poisson(rate), index=[f"{x}x{y}" for x, y in grid])
        table.columns = [f"G{i}" for i in range(12)]
        table.to_csv(out / f"ST-cnts/{name}.tsv.gz", sep="\t")
        spots = pd.DataFrame(grid, columns=["x", "y"])
        spots[["pixel_x", "pixel_y"]] = 60 + 50 * grid
        spots.to_csv(out / f"ST-spotfiles/{name}_selection.tsv", sep="\t", index=False)
        pixels = np.full((380, 420, 3), 240, np.uint8)  # glass around the tissue
        pixels[20:-20, 20:-20] = (150, 60, 120) + rng.integers(0, 60, (340, 380, 3))
        (out / f"ST-imgs/{name[0]}/{name}").mkdir(parents=True)
        Image.fromarray(pixels).save(out / f"ST-imgs/{name[0]}/{name}/he.jpg")
    for encoder in ("texture", "none"):
        prepared = cli.main(
            ["prepare", "--layout", "st", "--data", f"{out}", "--out", f"{out}/{encoder}"]
            + ["--n-genes", "6", "--workers", "1", "--encoder", encoder]
        )
        assert prepared == 0
    (out / "small.py").write_text(CONFIG)
    return out


def run(folder, *args):
    return cli.main([part.replace("{}", str(folder)) for part in args])


def recover(folder, out, *more, encoder="none", slide="Q1"):
    return run(
        folder, "recover", "--records", f"{{}}/{encoder}", "--slide", slide, "--config",
        "{}/small.py", "--workdir", f"{out}/run", "-o", f"{out}/found.h5ad", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(folder):
    """A recovered Q1, with its run and what was said, on the records by image."""
    out, said = folder / "done", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert recover(folder, out, "--json", f"{out}/found.json", encoder="texture") == 0
    (out / "said.txt").write_text(said.getvalue())
    return out


def test_a_section_is_recovered_and_scored(folder, done):
    said = (done / "said.txt").read_text()
    made = anndata.read_h5ad(done / "found.h5ad")
    hidden = ~made.obs["stemjax_measured"].to_numpy()
    assert (made.n_obs, hidden.sum()) == (42, 21)
    assert json.loads(made.uns["stemjax"]["hidden"]) == {
        "how": "spots", "share": 0.5, "seed": 0, "block": 5.0,
    }  # fmt: skip
    found = json.loads((done / "found.json").read_text())
    assert found["slides"][0]["spots"] == 21
    table = records.open_records(folder / "texture").load(["Q1"])
    error = np.square(made.X - np.log2(table.counts + 1))
    row = found["rows"][0]
    assert row["scores"]["mse"]["value"] == pytest.approx(error[hidden].mean(), rel=1e-5)
    assert "recovery within a slide: 21 hidden spots of Q1" in said
    for name in ("constant mean", "nearest measured mean", "kriging", "component kriging"):
        assert f"\n| {name}" in said
        assert f"Prediction against {name}" in said or name == "nearest measured mean"
    every = re.search(r"on all 42 spots, .*no test.*: PCC (\S+), MSE (\S+)\n", said)
    assert every is not None
    assert float(every[2]) == pytest.approx(error.mean(), abs=5e-4)
    assert f"wrote {done}/found.h5ad\nwrote {done}/found.json" in said


def test_the_same_command_goes_on_and_finds_the_same(folder, done, capsys):
    before = anndata.read_h5ad(done / "found.h5ad").X
    said = (done / "said.txt").read_text()
    assert "\n| embedding kNN" in said
    assert re.search(r"\n\| ridge +\|", said)
    assert recover(folder, done, "--leave-out", "embedding kNN", encoder="texture") == 0
    again = capsys.readouterr().out
    assert "\n| embedding kNN" not in again
    assert re.search(r"\n\| ridge +\|", again)
    np.testing.assert_array_equal(anndata.read_h5ad(done / "found.h5ad").X, before)


def test_flags_and_keys_of_the_configuration(folder, tmp_path):
    more = ("--hide", "blocks", "--share", ".3", "--hide-seed", "4", "--config.data.hide_block=2")
    assert recover(folder, tmp_path, *more, *QUICK, "--train", "R1") == 0
    made = anndata.read_h5ad(tmp_path / "found.h5ad")
    about = made.uns["stemjax"]
    assert json.loads(about["hidden"]) == {
        "how": "blocks", "share": 0.3, "seed": 4, "block": 2.0,
    }  # fmt: skip
    assert about["checkpoint_step"] == 2
    assert list(about["train_slides"]) == ["Q1", "R1"]
    hidden = ~made.obs["stemjax_measured"].to_numpy()
    assert 13 <= hidden.sum() <= 16  # of 42; the last block may hold four spots
    # Whole squares of 2 x 2 spots: every hidden spot has a hidden neighbour.
    xy = made.obs[["array_col", "array_row"]].to_numpy()[hidden]
    distance = np.abs(xy[:, None] - xy).sum(axis=2) + 9 * np.eye(len(xy))
    assert (distance.min(axis=1) == 1).mean() > 0.8


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--slide", "Q9"), r"Q9"),
        (("--config.window.lenght=5",), r"lenght"),
        (("--share", "1.5"), r"hide_share.*found 1.5"),
        (("--train", "Q9"), r"Q9"),
        (("--mode", "draws"), r"mode draws.*HisToSGE predicts a mean"),
        (("--hide", "blocks", "--config.data.hide_block=50"), r"at least two blocks"),
        (("length=5",), r"argument length=5"),
        (("--leave-out", "kriging"), r"--leave-out kriging.*the others take no time"),
    ],
)
def test_what_cannot_be_recovered_is_explained(folder, tmp_path, capsys, args, message):
    assert recover(folder, tmp_path, *QUICK, *args) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "found.h5ad").exists()


def test_another_way_of_hiding_is_another_run(folder, done, capsys):
    assert recover(folder, done, "--hide-seed", "1", encoder="texture") == 1
    assert re.search(r"hide_seed|hiding", capsys.readouterr().err)


def test_it_is_evaluated_and_reported_again(folder, done, capsys):
    args = ("{}/done/found.h5ad", "--truth", "{}/texture", "--resamples", "20")
    assert run(folder, "evaluate", *args, "-o", "{}/again/metrics.json") == 0
    said = capsys.readouterr().out
    assert "21 hidden spots of Q1" in said
    # HisToSGE is a plain regression already: no second one is trained beside it.
    assert "regression backbone" not in said
    first = json.loads((done / "found.json").read_text())
    again = json.loads((folder / "again/metrics.json").read_text())
    assert again["slides"][0]["all_spots"] == pytest.approx(first["slides"][0]["all_spots"])
    for one, two in zip(first["rows"], again["rows"], strict=True):
        assert one["name"] == two["name"]
        assert two["scores"]["mse"]["value"] == pytest.approx(one["scores"]["mse"]["value"])
    gene = records.open_records(folder / "texture").genes[0]
    assert run(folder, "report", *args, "--genes", gene, "-o", "{}/again/page.html") == 0
    assert "21 hidden spots of Q1" in (folder / "again/page.html").read_text()


def densify(folder, out, *more, encoder="texture"):
    return run(
        folder, "densify", "--checkpoint", "{}/done/run", "--records", f"{{}}/{encoder}",
        "--slide", "Q1", "-o", f"{out}/dense.h5ad", "--workers", "1", *more,
    )  # fmt: skip


DATA = ("--layout", "st", "--data", "{}")


@pytest.mark.parametrize(
    ("args", "points", "apart"),
    [
        ((), 13 * 11 - 42, 100),
        (("--pitch", "80"), None, 80),
        (("--points", "{}/points.csv"), 3, 128),
    ],
)
def test_points_between_the_spots(folder, done, tmp_path, capsys, args, points, apart):
    # 50 px are 200 um. The last two lie above the image, and beside it.
    rows = "a,500,500\nb,500,628\nc,628,500\nd,500,-4\ne,1681,500\n"
    (folder / "points.csv").write_text("name,x_um,y_um\n" + rows)
    assert densify(folder, tmp_path, *DATA, *args) == 0
    said = capsys.readouterr().out
    made = anndata.read_h5ad(tmp_path / "dense.h5ad")
    told = json.loads(made.uns["stemjax"]["points"])
    assert told["spots"] == 42
    assert made.n_obs == 42 + told["points"]
    if points is None:
        assert 14 * 12 < told["points"] <= 17 * 14
    else:
        assert told["points"] == points
    assert f"42 spots and {told['points']} points {apart} um apart, 6 genes, mode mean" in said
    assert ("2 points beside the image left out" in said) == ("--points" in args)
    recovered = anndata.read_h5ad(done / "found.h5ad")
    np.testing.assert_allclose(made.X[:42], recovered.X, atol=1e-4)  # two programs, fp32
    np.testing.assert_array_equal(
        made.obs["stemjax_measured"][:42], recovered.obs["stemjax_measured"]
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), r"points of Q1 need patches of its image.*--layout and --data"),
        (("--layout", "st"), r"--layout st.*--data PATH beside it"),
        ((*DATA, "--factor", "3"), r"made denser by this factor.*found 3"),
        ((*DATA, "--factor", "0"), r"made denser by this factor.*found 0"),
        ((*DATA, "--pitch", "0"), r"distance between points.*found 0"),
        ((*DATA, "--points", "{}/nowhere.csv"), r"there is no .*nowhere.csv"),
        ((*DATA, "--mpp", "3"), r"Q1 is not the one of the records.*expected 4 um"),
        ((*DATA, "--mode", "draws"), r"HisToSGE predicts a mean"),
        ((*DATA, "--slide", "Q9"), r"Q9"),
    ],
)
def test_what_cannot_be_made_denser_is_explained(folder, done, tmp_path, capsys, args, message):
    assert densify(folder, tmp_path, *args) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "dense.h5ad").exists()


def test_usage(folder, done, tmp_path, capsys):
    for args in (("--factor", "4", "--pitch", "50"), ("--config.seed=3",), ("--nonsense",)):
        with pytest.raises(SystemExit):
            densify(folder, tmp_path, *DATA, *args)
    assert "not allowed with" in capsys.readouterr().err
    # Records of another encoder than the model's.
    assert densify(folder, tmp_path, *DATA, encoder="none") == 1
    assert "encoder" in capsys.readouterr().err


def test_without_an_image_no_files_are_needed(folder, tmp_path, capsys):
    assert recover(folder, tmp_path, *QUICK) == 0
    args = ("densify", "--checkpoint", f"{tmp_path}/run", "--records", "{}/none", "--slide", "Q1")
    assert run(folder, *args, "-o", f"{tmp_path}/dense.h5ad") == 0
    assert "42 spots and 101 points 100 um apart" in capsys.readouterr().out
    gene = records.open_records(folder / "none").genes[0]
    page = ("-o", f"{tmp_path}/page.html", "--genes", gene)
    assert run(folder, "report", f"{tmp_path}/dense.h5ad", *page) == 0
    page = (tmp_path / "page.html").read_text()
    assert "21 measured spots" in page
    assert "122 inferred: 21 hidden spots and 101 points between" in page
