"""``stemjax bench hest`` on miniature tasks: its numbers against a pipeline written out here."""

from __future__ import annotations

import json
import pathlib
import shutil

import anndata
import bench_trees
import h5py
import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn import decomposition, linear_model, preprocessing

from stemjax import cli, tasks
from stemjax.cli import bench as bench_command
from stemjax.data import folds, records, texture
from stemjax.eval import predict
from stemjax.eval.bench import rows
from stemjax.eval.bench import trained as trained_rows
from stemjax.train import checkpoint

FOLDS = [("S1 S2", "S3 S4"), ("S3 S4", "S1 S2")]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
    """Two tasks of four slides, embeddings beside them."""
    root = tmp_path_factory.mktemp("hest_bench")
    bench_trees.write_task(root, "TOY", "S1 S2 S3 S4")
    bench_trees.write_task(root, "TWO", "T1 T2 T3 T4")
    return root


@pytest.fixture
def root(made, tmp_path) -> pathlib.Path:
    """A copy of them to damage."""
    return pathlib.Path(shutil.copytree(made, tmp_path / "bench"))


def run(root: pathlib.Path, *more: str, task: str = "TOY") -> int:
    return cli.main(
        ["bench", "hest", "--root", str(root), "--task", task, "--workdir", f"{root}/work"]
        + ["--embeddings", f"{root}/embeddings/{{task}}", *more]
    )


def sides(root: pathlib.Path, task: str, slides: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Embeddings of some slides, and ln(1 + count) of each, joined by barcode with pandas."""
    x, y = [], []
    for slide in slides.split():
        with h5py.File(root / "embeddings" / task / f"{slide}.h5") as file:
            x.append(file["embeddings"][:])
            barcodes = file["barcodes"][:].flatten().astype(str)
        table = anndata.read_h5ad(root / task / "adata" / f"{slide}.h5ad").to_df()
        y.append(np.log1p(table.loc[barcodes, list(bench_trees.PANEL)].to_numpy(np.float64)))
    return np.concatenate(x), y


def published_probe(x: np.ndarray, y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """HEST's probe as its code has it, but for the cap on components that 40 spots need."""
    scaler = preprocessing.StandardScaler().fit(x)
    pca = decomposition.PCA(n_components=min(256, *x.shape), random_state=1)
    z = pca.fit_transform(scaler.transform(x))
    alpha = 100 / (z.shape[1] * y.shape[1])
    model = linear_model.Ridge(
        solver="lsqr", alpha=alpha, random_state=1, fit_intercept=False, max_iter=1000
    )
    return model.fit(z, y).predict(pca.transform(scaler.transform(test_x)))


def correlation(pred: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([pearsonr(pred[:, g], true[:, g])[0] for g in range(true.shape[1])]))


def test_the_probe_has_the_numbers_of_the_published_pipeline(made, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert run(made, "--models", "probe", "--json", str(out), task="TOY,TWO") == 0
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    task_means = []
    for task, letter in (("TOY", "S"), ("TWO", "T")):
        pooled, by_slide = [], []
        for train, test in FOLDS:
            x, y = sides(made, task, train.replace("S", letter))
            test_x, test_y = sides(made, task, test.replace("S", letter))
            pred = published_probe(x, np.concatenate(y), test_x)
            pooled.append(correlation(pred, np.concatenate(test_y)))
            each = zip(np.split(pred, 2), test_y, strict=True)  # 20 spots a slide
            by_slide.append(np.mean([correlation(p, t) for p, t in each]))
        row = found["tasks"][task]["rows"]["HEST probe"]
        # lsqr stops at a relative residual of 1e-4, and the targets are float32 in one of the two
        np.testing.assert_allclose(row["pooled"]["folds"], pooled, atol=1e-4)
        np.testing.assert_allclose(row["by_slide"]["folds"], by_slide, atol=1e-4)
        # The two differ, or the test could not tell one from the other.
        assert min(abs(np.subtract(pooled, by_slide))) > 0.01
        assert row["pooled"]["mean"] == pytest.approx(np.mean(row["pooled"]["folds"]))
        assert row["pooled"]["std"] == pytest.approx(np.std(row["pooled"]["folds"]))
        task_means.append(row["pooled"]["mean"])
        assert f"{row['pooled']['mean']:.4f} ± {row['pooled']['std']:.4f}" in said
    line = next(line for line in said.splitlines() if line.startswith("| HEST probe"))
    assert line.split("|")[-2].strip() == f"{np.mean(task_means):.4f}"
    assert "ridge" not in found["tasks"]["TOY"]["rows"]
    assert found["tasks"]["TOY"]["spots"] == 80


def test_floors_and_splits_stand_beside(made, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert run(made, "--json", str(out)) == 0
    said, found = capsys.readouterr().out, json.loads(out.read_text())["tasks"]["TOY"]
    assert list(found["rows"]) == ["constant mean", "ridge", "HEST probe"]
    assert found["rows"]["constant mean"]["pooled"]["folds"] == [0, 0]
    for (train, test), got, note in zip(
        FOLDS, found["rows"]["ridge"]["pooled"]["folds"], found["notes"], strict=True
    ):
        alpha = float(note.split("alpha ")[1].split(" by")[0])
        x, y = sides(made, "TOY", train)
        test_x, test_y = sides(made, "TOY", test)
        scaler = preprocessing.StandardScaler().fit(x.astype(np.float64))
        model = linear_model.Ridge(alpha=alpha).fit(scaler.transform(x), np.concatenate(y))
        pred = model.predict(scaler.transform(test_x))
        # float32 targets in one of the two
        assert got == pytest.approx(correlation(pred, np.concatenate(test_y)), abs=1e-6)
    assert found["folds"]["0"] == {
        "train": ["S1", "S2"],
        "val": [],
        "test": ["S3", "S4"],
        "kind": "patient unknown",
        "leaks": [],
    }
    assert "TOY: 80 spots. folds 0, 1: patient unknown." in said
    assert "not with the scale on which UNI is .344" in said


def test_a_known_task_has_the_published_figure_beside_it(made, tmp_path, capsys):
    shutil.copytree(made / "TOY", tmp_path / "IDC")
    shutil.copytree(made / "embeddings" / "TOY", tmp_path / "embeddings" / "IDC")
    assert run(tmp_path, "--models", "", task="IDC") == 0
    assert (
        "| published: UNI, HEST probe |          0.5890 |       0.5890 |" in capsys.readouterr().out
    )


def test_a_patient_on_both_sides_is_marked(root, capsys):
    table = root / "HEST_v1_1_0.csv"
    # S1 and S3 are one person; S2's label is the same, but of another dataset.
    table.write_text(
        "\ufeffdataset_title,id,patient\nOne,S1,Patient 1\nOther,S2,Patient 1\nOne,S3,Patient 1\n"
        "One,S4,\n"
    )
    assert run(root, "--metadata", str(table), "--json", f"{root}/out.json") == 0
    folds = json.loads((root / "out.json").read_text())["tasks"]["TOY"]["folds"]
    assert folds["0"]["kind"] == "interpolation within a patient"
    assert folds["0"]["leaks"] == ["patient One: Patient 1: test S3, train S1"]
    said = capsys.readouterr().out
    assert "LEAK in TOY, fold 0: patient One: Patient 1: test S3, train S1." in said
    assert "LEAK in TOY, fold 1" in said


def test_our_encoder_embeds_the_patches(tmp_path):
    task = bench_trees.write_task(tmp_path, "TOY", "S1 S2 S3 S4", patches=True)
    command = ["bench", "hest", "--root", str(tmp_path), "--task", "TOY", "--models", "probe"]
    assert cli.main([*command, "--json", f"{tmp_path}/out.json"]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["tasks"]["TOY"]
    assert found["encoder"] == "texture"
    x = {}
    for slide in ("S1", "S2", "S3", "S4"):
        with h5py.File(task / "patches" / f"{slide}.h5") as file:
            x[slide] = texture.TextureEncoder().encode(file["img"][:])[:, 0]
    (train_x, test_x), (y, test_y) = (
        [np.concatenate([x[s] for s in side.split()]) for side in FOLDS[0]],
        [np.concatenate(sides(tmp_path, "TOY", side)[1]) for side in FOLDS[0]],
    )
    wanted = correlation(published_probe(train_x, y, test_x), test_y)
    # PCA's last components of 40 spots are near-degenerate in float32, and lsqr stops at 1e-4
    assert found["rows"]["HEST probe"]["pooled"]["folds"][0] == pytest.approx(wanted, abs=2e-3)


def test_our_model_joins_by_barcode_and_gene(root, monkeypatch):
    """The row is the frames that the training gives, whatever their order of spots and genes."""
    asked = []

    def perfect(experiment, source, workdir, slides, *, line):
        asked.append((experiment, source, workdir, slides))
        frames = {}
        for slide in slides:
            table = anndata.read_h5ad(root / "TOY" / "adata" / f"{slide}.h5ad").to_df()
            frames[slide] = np.log1p(table).sample(frac=1, random_state=1)
        return frames

    monkeypatch.setattr(trained_rows, "predict_means", perfect)
    assert run(root, "--models", "stem", "--json", f"{root}/out.json") == 0
    found = json.loads((root / "out.json").read_text())["tasks"]["TOY"]["rows"]["Stem"]
    assert found["pooled"]["folds"] == pytest.approx([1, 1], abs=1e-6)  # float32 targets
    for k, ((experiment, source, workdir, slides), (_, test)) in enumerate(
        zip(asked, FOLDS, strict=True)
    ):
        assert " ".join(slides) == test
        data = experiment.data
        assert (data.fold, data.transform, data.test) == (str(k), "log1p", "")
        split = folds.read_fold(data.manifest, data.fold, source.patients)
        assert " ".join(split.test) == test
        assert workdir.name == f"fold-{k}"
        # The records hold what the files do, joined by barcode.
        table = source.load(["S1"])
        adata = anndata.read_h5ad(root / "TOY" / "adata" / "S1.h5ad")[list(table.barcodes)]
        np.testing.assert_array_equal(table.counts, adata.to_df()[list(bench_trees.PANEL)])
        np.testing.assert_array_equal(table.total, adata.X.toarray().sum(axis=1))
        with h5py.File(root / "embeddings" / "TOY" / "S1.h5") as file:
            np.testing.assert_array_equal(
                table.embeddings[:, 0], file["embeddings"][:].astype(np.float16)
            )


@pytest.mark.slow
def test_our_model_is_trained_fold_by_fold(root):
    (root / "tiny.py").write_text(bench_trees.TINY)
    for role in ("train", "test"):
        (root / "TOY" / "splits" / f"{role}_1.csv").unlink()
    bench_trees.write_fold(root / "TOY", 0, "S1 S2", "S3")
    more = ["--models", "stem", "--config", f"{root}/tiny.py", "--json", f"{root}/out.json"]
    assert run(root, *more) == 0
    found = json.loads((root / "out.json").read_text())["tasks"]["TOY"]
    (base,) = (root / "work" / "hest" / "TOY").iterdir()
    trained = checkpoint.load(base / "fold-0")
    assert trained.step == 12
    assert trained.card.split["train"] == ["S1", "S2"]
    assert trained.card.split["test"] == ["S3"]
    assert trained.card.space.transform == "log1p"
    assert trained.card.space.genes == bench_trees.PANEL
    # The number is that of the stored weights' predictions, joined by barcode.
    source = records.open_records(base / "records")
    one = predict.predict_slide(trained, source, "S3", tasks.Sampling(mode="mean")).to_df()
    with h5py.File(root / "embeddings" / "TOY" / "S3.h5") as file:
        pred = one.loc[file["barcodes"][:].flatten().astype(str)].to_numpy()
    wanted = correlation(pred, sides(root, "TOY", "S3")[1][0])
    # float32 predictions
    assert found["rows"]["Stem"]["pooled"]["folds"] == [pytest.approx(wanted, abs=1e-5)]
    # A second call goes on where the first stopped: nothing is written or trained anew.
    before = {path: path.stat().st_mtime_ns for path in base.rglob("*.array_record*")}
    assert before
    assert run(root, *more) == 0
    assert {path: path.stat().st_mtime_ns for path in base.rglob("*.array_record*")} == before
    assert json.loads((root / "out.json").read_text())["tasks"]["TOY"] == found


def test_a_gene_that_is_constant_is_left_out_and_told(root, capsys):
    for slide in ("S3", "S4"):
        path = root / "TOY" / "adata" / f"{slide}.h5ad"
        adata = anndata.read_h5ad(path)
        adata.X = adata.X.toarray()
        adata.X[:, adata.var_names.get_loc(bench_trees.PANEL[1])] = 3
        adata.write_h5ad(path)
    assert run(root, "--models", "probe", "--json", f"{root}/out.json") == 0
    assert "TOY, fold 0: 1 of 6 genes are constant over the test spots" in capsys.readouterr().out
    found = json.loads((root / "out.json").read_text())["tasks"]["TOY"]["rows"]["HEST probe"]
    x, y = sides(root, "TOY", "S1 S2")
    test_x, test_y = sides(root, "TOY", "S3 S4")
    rest = [0, 2, 3, 4, 5]
    pred = published_probe(x, np.concatenate(y), test_x)[:, rest]
    wanted = correlation(pred, np.concatenate(test_y)[:, rest])
    assert found["pooled"]["folds"][0] == pytest.approx(wanted, abs=1e-4)


def test_no_models_but_those_there_are(made, capsys):
    assert tuple(rows.MODELS) == bench_command._MODELS
    assert run(made, "--models", "probe,forest") == 1
    assert "expected of ridge, probe, stem, found forest" in capsys.readouterr().err
    assert run(made, task=" , ") == 1
    assert "[SJ-C01]" in capsys.readouterr().err


def _rename_key(root: pathlib.Path) -> None:
    with h5py.File(root / "embeddings" / "TOY" / "S2.h5", "r+") as file:
        file.move("barcodes", "barcode")


def _drop_barcode(root: pathlib.Path) -> None:
    path = root / "TOY" / "adata" / "S2.h5ad"
    adata = anndata.read_h5ad(path)
    adata[adata.obs_names != "S2-07"].copy().write_h5ad(path)


def _drop_gene(root: pathlib.Path) -> None:
    path = root / "TOY" / "adata" / "S4.h5ad"
    adata = anndata.read_h5ad(path)
    adata[:, adata.var_names != bench_trees.PANEL[3]].copy().write_h5ad(path)


def _log_counts(root: pathlib.Path) -> None:
    path = root / "TOY" / "adata" / "S4.h5ad"
    adata = anndata.read_h5ad(path)
    adata.X = np.log1p(adata.X.toarray())
    adata.write_h5ad(path)


def _all_constant(root: pathlib.Path) -> None:
    for slide in ("S3", "S4"):
        path = root / "TOY" / "adata" / f"{slide}.h5ad"
        adata = anndata.read_h5ad(path)
        adata.X = np.ones(adata.shape, np.float32)
        adata.write_h5ad(path)


@pytest.mark.parametrize(
    ("damage", "code", "text"),
    [
        (_rename_key, "SJ-D05", "S2.h5 lacks barcodes: expected the keys embeddings, barcodes"),
        (lambda r: (r / "embeddings/TOY/S2.h5").unlink(), "SJ-D05", "found in its folder: S1, S3"),
        (lambda r: (r / "TOY/adata/S3.h5ad").unlink(), "SJ-D01", "S1, S2, S4"),
        (_drop_barcode, "SJ-D01", "S2.h5ad lacks 1 of 20 embedded spots"),
        (_drop_gene, "SJ-D04", f"S4.h5ad lacks 1 of the task's 6 genes: found no {'G13'}"),
        (_log_counts, "SJ-D01", "values that are no counts"),
        (_all_constant, "SJ-D04", "fold 0 has no score: every gene is constant"),
        (
            lambda r: bench_trees.write_fold(r / "TOY", 1, "S1 S3", "S3 S4"),
            "SJ-D07",
            "TOY trains and tests on S3",
        ),
        (lambda r: shutil.rmtree(r / "TOY" / "splits"), "SJ-D07", "splits/train_0.csv"),
        (lambda r: (r / "TOY/var_50genes.json").unlink(), "SJ-D04", "var_50genes.json"),
    ],
)
def test_what_is_wrong_is_named(root, capsys, damage, code, text):
    damage(root)
    assert run(root) == 1
    said = capsys.readouterr().err
    assert f"error [{code}]" in said
    assert text in said
    assert "Traceback" not in said
