"""The command, as a user meets it: four sub-commands on a miniature ST folder, and its errors."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stemjax import cli, errors
from stemjax.eval import joining

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs" / "stem_her2st.py"
GENES = [f"GENE{number}" for number in range(12)]
TINY = [
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.model.depth=1",
    "--config.train.steps=6",
    "--config.train.batch=8",
    "--config.train.accumulate=2",
    "--config.train.validate_every=3",
    "--config.train.save_every=3",
    "--config.train.log_every=2",
    "--config.optim.warmup=1",
]


def _write_st(folder: pathlib.Path) -> None:
    """Four sections of 4 x 4 spots, 290 px apart, whose brightness tells their counts."""
    for name, seed in (("P1", 1), ("P2", 2), ("Q1", 3), ("R1", 4)):
        rng = np.random.default_rng(seed)
        for part in ("ST-cnts", "ST-spotfiles", f"ST-imgs/{name[0]}/{name}"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        grid = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2)
        level = rng.uniform(0, 1, 16)
        pixels = rng.integers(200, 250, (1290, 1290, 3), dtype=np.uint8)
        for (x, y), share in zip(grid, level):
            block = pixels[60 + 290 * y : 350 + 290 * y, 60 + 290 * x : 350 + 290 * x]
            block[..., 1] = (block[..., 1] * (1 - 0.6 * share)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"ST-imgs/{name[0]}/{name}/he.jpg", quality=95)
        counts = rng.poisson(np.exp(1 + 2 * level[:, None] * rng.uniform(0.5, 1, 12)))
        names = [f"{x}x{y}" for x, y in grid]
        pd.DataFrame(counts, index=names, columns=GENES).to_csv(
            folder / f"ST-cnts/{name}.tsv.gz", sep="\t"
        )
        centres = 205 + 290 * grid
        pd.DataFrame(
            {
                "x": grid[:, 0],
                "y": grid[:, 1],
                "new_x": grid[:, 0],
                "new_y": grid[:, 1],
                "pixel_x": centres[:, 0],
                "pixel_y": centres[:, 1],
                "selected": 1,
            }
        ).to_csv(folder / f"ST-spotfiles/{name}_selection.tsv", sep="\t", index=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
    """Everything that the commands write on the way from slides to scores."""
    out = tmp_path_factory.mktemp("cli")
    _write_st(out / "st")
    (out / "genes.txt").write_text("\n".join(GENES[:8]) + "\n")
    for command in (
        ["prepare", "--layout", "st", "--data", f"{out}/st", "--out", f"{out}/records",
         "--test", "R1", "--genes", f"{out}/genes.txt", "--workers", "1"],
        ["train", f"--config={CONFIG}", f"--workdir={out}/run",
         f"--config.data.records={out}/records", "--config.data.test=R1",
         "--config.data.val=Q1", *TINY],
        ["predict", "--checkpoint", f"{out}/run", "--records", f"{out}/records", "--slide", "R1",
         "--mode", "draws", "--n-draws", "4", "--steps", "3", "-o", f"{out}/out.h5ad"],
        ["evaluate", f"{out}/out.h5ad", "--truth", f"{out}/records", "-o", f"{out}/metrics.json"],
    ):  # fmt: skip
        assert cli.main(command) == 0, command[0]
    return out


def test_the_prediction_has_its_slots(made):
    result = joining.read(made / "out.h5ad")
    assert list(result.var_names) == GENES[:8]
    assert list(result.obs_names[:2]) == ["0x0", "1x0"]
    draws = result.obsm["stemjax_draws"]
    assert draws.shape == (16, 4, 8)
    # X and the spread are those of the draws: float32 means of 4 numbers.
    np.testing.assert_allclose(result.X, draws.mean(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        result.layers["stemjax_std"], draws.std(1, ddof=1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(result.obsm["spatial"][:2], [[205, 205], [495, 205]])
    about = result.uns["stemjax"]
    assert (about["slide"], about["mode"], about["n_draws"], about["value_space"]) == (
        "R1",
        "draws",
        4,
        "log2p1",
    )
    assert about["evaluations_per_spot"] == 4 * 3
    assert list(about["train_slides"]) == ["P1", "P2"]
    assert about["split_kind"] == "new patient"
    library = result.uns["spatial"]["R1"]
    image, scale = library["images"]["hires"], library["scalefactors"]
    assert image.shape[0] / 1290 == pytest.approx(scale["tissue_hires_scalef"])
    assert scale["spot_diameter_fullres"] == pytest.approx(145, rel=1e-3)  # 100 um at 200/290


def test_the_scores_have_their_floors(made):
    scores = json.loads((made / "metrics.json").read_text())
    names = [row["name"] for row in scores["rows"]]
    for wanted in ("constant", "ridge", "regression backbone"):
        assert any(wanted in name for name in names), names
    constant = next(row for row in scores["rows"] if "constant" in row["name"])
    assert constant["scores"]["pcc_all"]["value"] == 0
    assert constant["scores"]["rvd"]["value"] == 1
    assert scores["slides"][0]["split_kind"] == "new patient"


def test_the_figures_are_pictures(made):
    for name in ("marker", "gene_variation"):
        (path,) = (made / "figures").glob(f"{name}*.png")
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 10  # something is drawn


def test_predicting_again_gives_the_same_numbers(made):
    again = made / "again.h5ad"
    command = ["predict", "--checkpoint", f"{made}/run", "--records", f"{made}/records",
               "--slide", "R1", "--mode", "draws", "--n-draws", "4", "--steps", "3",
               "--rows", "8", "-o", f"{again}"]  # fmt: skip
    assert cli.main(command) == 0
    one, two = joining.read(made / "out.h5ad"), joining.read(again)
    # Other portions on the device: fp32 sums of another shape.
    np.testing.assert_allclose(one.X, two.X, atol=1e-3)


def test_a_summary_has_the_draws_numbers_without_the_draws_and_is_scored(made):
    brief = made / "brief.h5ad"
    command = ["predict", "--checkpoint", f"{made}/run", "--records", f"{made}/records",
               "--slide", "R1", "--mode", "draws", "--n-draws", "4", "--steps", "3",
               "--summary-only", "--quantiles", ".05,.5", "-o", f"{brief}"]  # fmt: skip
    assert cli.main(command) == 0
    one, two = joining.read(made / "out.h5ad"), joining.read(brief)
    assert "stemjax_draws" not in two.obsm
    near = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums of four
    np.testing.assert_allclose(two.X, one.X, **near)
    median = np.quantile(one.obsm["stemjax_draws"], 0.5, axis=1)
    np.testing.assert_allclose(two.layers["stemjax_q50"], median, **near)
    scores = made / "brief.json"
    command = ["evaluate", f"{brief}", "--truth", f"{made}/records", "-o", f"{scores}"]
    assert cli.main(command) == 0
    row = json.loads(scores.read_text())["rows"][0]
    whole = json.loads((made / "metrics.json").read_text())["rows"][0]
    # Two roundings of one mean.
    mse = [of["scores"]["mse"]["value"] for of in (row, whole)]
    assert mse[0] == pytest.approx(mse[1], rel=1e-4)


def test_preparing_again_does_nothing_more(made, capsys):
    def times():
        return {
            path: path.stat().st_mtime_ns for path in (made / "records").rglob("*.array_record*")
        }

    before = times()
    command = ["prepare", "--layout", "st", "--data", f"{made}/st", "--out", f"{made}/records",
               "--test", "R1", "--genes", f"{made}/genes.txt", "--workers", "1"]  # fmt: skip
    assert cli.main(command) == 0
    assert "4 of 4 slides done earlier" in capsys.readouterr().err
    assert times() == before


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        (["predict", "--checkpoint", "nowhere", "--records", "{}/records", "--slide", "R1",
          "-o", "{}/x.h5ad"], "SJ-K01", "nowhere"),
        (["predict", "--checkpoint", "{}/run", "--records", "{}/records", "--slide", "R9",
          "-o", "{}/x.h5ad"], "SJ-D06", "R9"),
        (["predict", "--checkpoint", "{}/run", "--records", "{}/records", "--slide", "R1",
          "--quantiles", ".5", "-o", "{}/x.h5ad"], "SJ-C01", "--summary-only"),
        (["predict", "--checkpoint", "{}/run", "--records", "{}/records", "--slide", "R1", "--mode",
          "draws", "--summary-only", "--quantiles", "a", "-o", "{}/x.h5ad"], "SJ-C01", "0 to 1"),
        (["evaluate", "{}/none.h5ad", "--truth", "{}/records", "-o", "{}/x.json"],
         "SJ-E01", "none.h5ad"),
        (["train", "--config=nowhere.py", "--workdir={}/w"], "SJ-C01", "nowhere.py"),
        (["train", f"--config={CONFIG}", "--workdir={}/w", "--config.train.stepps=3"],
         "SJ-C01", "stepps"),
        (["train", f"--config={CONFIG}", "--workdir={}/run", "--config.data.records={}/records",
          "--config.data.test=R1"], "SJ-K02", "run"),
        (["prepare", "--layout", "st", "--data", "{}/st", "--out", "{}/records", "--test", "R1",
          "--n-genes", "4", "--workers", "1"], "SJ-D06", "--out"),
    ],
)  # fmt: skip
def test_errors_are_one_block_with_a_code(made, capsys, command, code, text):
    before = sorted(made.rglob("*"))
    assert cli.main([part.replace("{}", str(made)) for part in command]) == 1
    said = capsys.readouterr().err
    assert f"error [{code}]" in said
    assert text in said
    assert "Traceback" not in said
    # Nothing half-written stays.
    assert sorted(made.rglob("*")) == before


def test_debug_shows_the_traceback(made):
    with pytest.raises(errors.PredictionError):
        cli.main(["--debug", "evaluate", "none.h5ad", "--truth", "x", "-o", "y"])


def test_wrong_usage_exits_with_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["predict", "--slide", "R1"])
    assert exit_.value.code == 2
    with pytest.raises(SystemExit) as exit_:
        cli.main(["evaluate", "x.h5ad", "--truth", "x", "-o", "y", "--nonsense"])
    assert exit_.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


def test_help_names_every_command():
    done = subprocess.run(
        [sys.executable, "-m", "stemjax.cli", "--help"], capture_output=True, text=True, check=True
    )
    for name in ("demo", "prepare", "split", "train", "calibrate", "predict", "evaluate"):
        assert name in done.stdout
    for name in ("report", "compare", "bench", "import-torch", "export"):
        assert name in done.stdout
    assert "Research use only" in done.stdout
