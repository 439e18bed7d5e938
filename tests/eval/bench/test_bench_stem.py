"""``stemjax bench stem`` on a miniature HEST-1k download, rows against other libraries."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import anndata
import bench_trees
import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn import linear_model, neighbors, preprocessing

from stemjax import cli, config, errors
from stemjax.data import genes, records
from stemjax.data.layouts import hest
from stemjax.eval.bench import published, stem, trained

TEST = "NCBI667"
TRAIN = tuple(f"NCBI{i}" for i in range(658, 672) if i != 667)
MICE = {"NCBI658": "mouse1", "NCBI659": "mouse1", TEST: "mouse1"}
SCORES = ("pcc_10", "pcc_50", "pcc_all", "mae", "mse", "rvd")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
    """All 14 slides of the mouse brain and the output of the command on them."""
    root = tmp_path_factory.mktemp("hest1k")
    for slide in (*TRAIN, TEST):
        bench_trees.write_hest_slide(root, slide, MICE.get(slide, "mouse2"))
    assert run(root, "--json", f"{root}/out.json") == 0
    return root


@pytest.fixture(scope="module")
def found(made) -> dict:
    return json.loads((made / "out.json").read_text())


def run(root: pathlib.Path, *more: str, dataset: str = "mouse_brain") -> int:
    command = ["bench", "stem", "--root", str(root), "--dataset", dataset]
    return cli.main([*command, "--workdir", f"{root}/work", *more])


def counts_of(root: pathlib.Path, slide: str, names) -> np.ndarray:
    table = anndata.read_h5ad(root / "st" / f"{slide}.h5ad").to_df()
    return np.log2(table[list(names)].to_numpy(np.float64) + 1)


def wanted_scores(pred: np.ndarray, true: np.ndarray) -> dict[str, float]:
    pcc = sorted((pearsonr(p, t)[0] for p, t in zip(pred.T, true.T)), reverse=True)
    spread = pred.var(axis=0), true.var(axis=0)
    return {
        "pcc_10": np.mean(pcc[:10]),
        "pcc_50": np.mean(pcc[:50]),
        "pcc_all": np.mean(pcc),
        "mae": np.mean(np.abs(pred - true)),
        "mse": np.mean((pred - true) ** 2),
        "rvd": np.mean((spread[0] - spread[1]) ** 2 / spread[1] ** 2),
    }


def source_of(root: pathlib.Path, panel: str = "train") -> records.Records:
    return records.open_records(root / "work" / "stem" / f"mouse_brain-{panel}" / "records")


def test_rows_are_what_other_libraries_compute(made, found):
    source = source_of(made)
    truth = counts_of(made, TEST, source.genes)
    y = np.concatenate([counts_of(made, slide, source.genes) for slide in TRAIN])
    train, test = source.load(TRAIN), source.load((TEST,))
    scaler = preprocessing.StandardScaler().fit(train.embeddings[:, 0].astype(float))
    z, test_z = (scaler.transform(t.embeddings[:, 0].astype(float)) for t in (train, test))
    (note,) = [note for note in found["notes"] if note.startswith("ridge: alpha")]
    alpha = float(note.split()[2])
    near = np.isin(np.repeat(TRAIN, 12), ["NCBI658", "NCBI659"])
    depth, test_depth = (np.log2(1.0 + t.total) for t in (train, test))
    preds = {
        "ridge": linear_model.Ridge(alpha=alpha).fit(z, y).predict(test_z),
        "depth oracle": np.stack(
            [np.polyval(np.polyfit(depth, gene, 1), test_depth) for gene in y.T], axis=1
        ),
    }
    for row, pred in preds.items():
        # float32 targets in one of the two
        assert found["scores"][row] == pytest.approx(wanted_scores(pred, truth), abs=1e-5), row
    # Ten neighbours of 24 spots in two sections, ties included: every spot within their distance.
    xy = train.array_xy[near]
    distance = np.linalg.norm(test.array_xy[:, None] - xy, axis=2)
    tenth = neighbors.NearestNeighbors(n_neighbors=10).fit(xy).kneighbors(test.array_xy)[0][:, -1]
    pred = np.stack([y[near][row <= d + 1e-6].mean(axis=0) for row, d in zip(distance, tenth)])
    assert found["scores"]["coordinates kNN"] == pytest.approx(wanted_scores(pred, truth), abs=1e-5)
    constant = found["scores"]["constant mean"]
    mean = y.mean(axis=0)
    assert [constant[key] for key in ("pcc_10", "pcc_all", "rvd")] == [0, 0, 1]
    assert constant["mse"] == pytest.approx(np.mean((truth - mean) ** 2), rel=1e-6)
    assert constant["mae"] == pytest.approx(np.mean(np.abs(truth - mean)), rel=1e-6)
    assert set(found["scores"]["HEST probe"]) == set(SCORES)


def test_the_panel_does_not_see_the_test_slide(made, found, capsys):
    read = [hest.read_slide(made, slide, need_image=False) for slide in (*TRAIN, TEST)]
    honest = genes.select_panel(read[:-1], n_genes=200)
    assert source_of(made).genes == honest.genes
    assert (found["sees_test"], found["genes"], found["spots"]) == (False, 200, 12)
    # As published: all slides, said beside the numbers.
    assert run(made, "--models", "", "--panel", "published", "--json", f"{made}/all.json") == 0
    said, flattered = capsys.readouterr().out, json.loads((made / "all.json").read_text())
    everywhere = genes.select_panel(read, n_genes=200)
    assert everywhere.genes != honest.genes
    assert source_of(made, "published").genes == everywhere.genes
    assert flattered["sees_test"] is True
    assert "The test slide helped to choose the panel, as published: a flattered number." in said


def test_the_split_is_marked_and_published_rows_stand_apart(made, found, capsys):
    assert found["split"]["leaks"] == ["patient mouse1: test NCBI667, train NCBI658 NCBI659"]
    assert found["split"]["train"] == list(TRAIN)
    assert run(made, "--models", "") == 0  # all is written: only scored again
    said = capsys.readouterr().out
    assert "Split: interpolation within a patient." in said
    assert "LEAK: patient mouse1: test NCBI667, train NCBI658 NCBI659." in said
    line = next(line for line in said.splitlines() if "published: Stem" in line)
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["-", "-", "0.2791", "-", "-", "-"]
    assert "panel and filtering of spots may differ" in said
    assert [row["method"] for row in found["published"]] == ["HisToGene", "BLEEP", "Stem"]
    assert "Stem" not in found["scores"]


def test_missing_slides_are_named_and_may_be_gone_without(made, tmp_path, capsys):
    root = tmp_path / "part"
    shutil.copytree(made, root, ignore=shutil.ignore_patterns("work", "*.json"))
    (root / "wsis" / "NCBI660.tif").unlink()
    (root / "st" / "NCBI664.h5ad").unlink()
    assert run(root, "--models", "") == 1
    said = capsys.readouterr().err
    assert "error [SJ-D01]" in said
    assert "lacks slides of mouse_brain: NCBI660, NCBI664:" in said
    assert "--allow-missing" in said
    for slide in ("NCBI658", "NCBI659", TEST):
        (root / "metadata" / f"{slide}.json").unlink(missing_ok=True)
        bench_trees.write_hest_slide(root, slide, None)
    for slide in set(TRAIN) - {"NCBI658", "NCBI659", "NCBI660", "NCBI664"}:
        (root / "st" / f"{slide}.h5ad").unlink()
    assert run(root, "--models", "ridge", "--allow-missing", "--json", f"{root}/out.json") == 0
    said, found = capsys.readouterr().out, json.loads((root / "out.json").read_text())
    assert found["missing"] == [slide for slide in TRAIN if slide > "NCBI659"]
    assert "INCOMPLETE: 11 of 14 slides are missing (NCBI660, NCBI661" in said
    assert "trained on 2 slides" in said
    # Without patients there is no floor by coordinates, and no claim about the split.
    assert "Split: patient unknown." in said
    assert "no coordinates kNN: no training slide is known to be of the test patient" in said
    assert list(found["scores"]) == ["constant mean", "ridge", "depth oracle"]


def test_the_test_slide_may_not_be_missing(tmp_path, capsys):
    for slide in ("NCBI658", "NCBI659"):
        bench_trees.write_hest_slide(tmp_path, slide, "m")
    assert run(tmp_path, "--allow-missing") == 1
    assert "lacks the test slide NCBI667 and others of mouse_brain" in capsys.readouterr().err
    for slide in ("NCBI658", "NCBI659"):
        (tmp_path / "st" / f"{slide}.h5ad").unlink()
    bench_trees.write_hest_slide(tmp_path, TEST, "m")  # and nothing to train on
    assert run(tmp_path, "--allow-missing") == 1
    assert "SJ-D01" in capsys.readouterr().err


def test_genes_that_a_slide_lacks_take_no_part(tmp_path, monkeypatch):
    wanted = stem.Dataset(slides=("A", "B", "C"), test="C", n_genes=200, split="made up")
    monkeypatch.setitem(stem.DATASETS, "mouse_brain", wanted)
    for slide in wanted.slides:
        bench_trees.write_hest_slide(tmp_path, slide, slide)
    path = tmp_path / "st" / "B.h5ad"
    adata = anndata.read_h5ad(path)
    adata[:, adata.var_names != "GENE239"].copy().write_h5ad(path)  # the most abundant
    assert run(tmp_path, "--models", "", "--json", f"{tmp_path}/out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())
    source = source_of(tmp_path)
    assert "GENE239" in source.genes
    rest = [gene for gene in source.genes if gene != "GENE239"]
    assert found["genes"] == 199
    assert found["notes"][-1] == "1 genes left out: not measured on every slide"
    y = np.concatenate([counts_of(tmp_path, slide, rest) for slide in "AB"])
    mse = np.mean((counts_of(tmp_path, "C", rest) - y.mean(axis=0)) ** 2)
    assert found["scores"]["constant mean"]["mse"] == pytest.approx(mse, rel=1e-6)
    assert found["split"]["kind"] == "new patient"


def test_our_model_joins_by_barcode_and_gene(made, monkeypatch):
    """The row is the frame that the training gives, whatever its order of spots and genes."""
    source = source_of(made)
    truth = pd.DataFrame(
        counts_of(made, TEST, source.genes),
        index=[f"{TEST}-{i}" for i in range(12)],
        columns=list(source.genes),
    )
    asked = []

    def perfect(experiment, opened, workdir, slides, *, line):
        asked.append((experiment, workdir, slides))
        return {TEST: truth.sample(frac=1, random_state=1).sample(frac=1, axis=1, random_state=2)}

    monkeypatch.setattr(trained, "predict_means", perfect)
    found = stem.run(
        made, "mouse_brain", stem.Options(models=("stem",), workdir=made / "work")
    ).scores["Stem"]
    wanted = {"pcc_10": 1, "pcc_50": 1, "pcc_all": 1, "mae": 0, "mse": 0, "rvd": 0}
    assert found == pytest.approx(wanted, abs=1e-6)  # float32 targets
    ((experiment, workdir, slides),) = asked
    assert slides == (TEST,)
    data, plain = experiment.data, config.resolve(trained.default_config())
    assert dataclasses.replace(experiment, data=plain.data) == plain
    assert (data.test, data.transform, data.allow_seen_panel) == (TEST, "log2p1", False)
    assert workdir.name == "run"


def test_the_four_datasets_are_the_published_ones():
    sizes = {name: len(one.slides) for name, one in stem.DATASETS.items()}
    assert sizes == {"her2st": 36, "kidney": 23, "prad": 23, "mouse_brain": 14}
    assert set(published.STEM) == set(stem.DATASETS)
    for one in stem.DATASETS.values():
        assert one.test in one.slides
        assert len(set(one.slides)) == len(one.slides)
    assert "MEND155" not in stem.DATASETS["prad"].slides
    with pytest.raises(errors.ConfigError, match="her2st, kidney, prad, mouse_brain"):
        stem.run(".", "liver", stem.Options())
