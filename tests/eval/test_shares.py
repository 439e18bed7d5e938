"""Evaluation shared out over processes, played one after another; real ones: test_cli_evaluate."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import types

import anndata
import jax
import numpy as np
import pandas as pd
import pytest
from made_slides import predicted, truth, write_source

from stemjax import distributed, errors
from stemjax.eval import evaluate, joining, plots, predict, regression, shares
from stemjax.eval import truth as truths

SLIDES = ("A2", "A1", "U1")
FAST = ("MLP", "embedding kNN", "HEST probe")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    """Predictions of three slides, and a second one of each."""
    out = tmp_path_factory.mktemp("predictions")
    for seed, slide in enumerate(SLIDES):
        true = truth(source, slide)
        mean = true + np.random.default_rng(seed).normal(0, 0.5, true.shape)
        predicted(source, slide, mean, train=["B1"]).write_h5ad(out / f"{slide}.h5ad")
        predicted(source, slide, 0.5 * true, train=["B1"]).write_h5ad(out / f"{slide}_half.h5ad")
    return out


def job(source, folder, **changes):
    told = {
        "files": [folder / f"{slide}.h5ad" for slide in SLIDES],
        "source": truths.of_records(source),
        "compare": {"half": [folder / f"{slide}_half.h5ad" for slide in SLIDES]},
        "resamples": 20,
        "seed": 3,
        "foreign": joining.Foreign(),
        "leave_out": FAST,
        "regression": "none",
        "workdir": folder / "regression",
    }
    return shares.Job(**told | changes)


def as_process(patch, index, count, gather_bytes=None):
    """Makes this process one of several; by default all others succeed and send nothing."""
    patch.setattr(jax, "process_count", lambda: count)
    patch.setattr(jax, "process_index", lambda: index)
    patch.setattr(distributed, "gather_bytes", gather_bytes or (lambda said: [said] * count))


def sending(each):
    """`distributed.gather_bytes` of processes that send these things turn by turn."""
    turns = iter(range(10))

    def gather_bytes(mine):
        turn = next(turns)
        return [one[turn] if turn < len(one) else b"" for one in each]

    return gather_bytes


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shares_together_are_the_table_of_one(source, folder, monkeypatch, count):
    asked, each, read = job(source, folder), [], []
    whole = joining.read

    def noting(path):
        read[-1].append(path.name)
        return whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(joining, "read", noting)
        for index in range(count):
            read.append([])
            as_process(patch, index, count)
            each.append(shares.evaluate_share(asked))
    for index, names in enumerate(read):
        mine = SLIDES[index::count]
        assert sorted(names) == sorted(f"{s}{end}.h5ad" for s in mine for end in ("", "_half"))
        assert [one.slide for one in each[index]] == list(mine)
    sent = [[one.to_bytes() for one in share] for share in each]
    for index in reversed(range(count)):
        with monkeypatch.context() as patch:
            as_process(patch, index, count, sending(sent))
            results = shares.gather(asked, each[index])
        if index:
            assert results == []
    found = evaluate.tabulate(results, resamples=20, seed=3)
    predictions = [joining.read(path) for path in asked.files]
    compare = {"half": [joining.read(path) for path in asked.compare["half"]]}
    expected = evaluate.evaluate(
        predictions, source, compare=compare, resamples=20, seed=3, leave_out=FAST
    )
    assert json.dumps(found) == json.dumps(expected)
    assert [slide["slide"] for slide in found["slides"]] == list(SLIDES)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_slide_is_drawn_by_one_process(source, folder, monkeypatch, count):
    drawn = []

    def write_figures(joined, out, *, gene):
        drawn.append((jax.process_index(), joined.slide, out, gene))
        return out / "a.png", out / "b.png"

    monkeypatch.setattr(plots, "write_figures", write_figures)
    out, asked = pathlib.Path("figures"), job(source, folder)
    listed = [out / slide / name for slide in SLIDES for name in ("a.png", "b.png")]
    each = [
        [
            json.dumps([f"figures/{s}/a.png", f"figures/{s}/b.png"]).encode()
            for s in SLIDES[i::count]
        ]
        for i in range(count)
    ]
    for index in range(count):
        well = [[b"", *one] for one in each]  # first that all succeeded
        gather_bytes = sending(each if count == 1 else well)
        with monkeypatch.context() as patch:
            as_process(patch, index, count, gather_bytes)
            assert shares.draw_figures(asked, out, gene="G1") == listed
    assert sorted(drawn) == sorted(
        (number % count, slide, out / slide, "G1") for number, slide in enumerate(SLIDES)
    )
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    shares.draw_figures(job(source, folder, files=[folder / "A1.h5ad"]), out, gene=None)
    assert drawn[-1][1:] == ("A1", out, None)


def test_a_prediction_that_fails_is_named_to_all(source, folder, tmp_path, monkeypatch):
    bad = joining.read(folder / "A1.h5ad")
    bad.X[4, 5] = np.nan
    bad.write_h5ad(tmp_path / "bad.h5ad")
    asked = job(source, folder, compare={}, files=[folder / "A2.h5ad", tmp_path / "bad.h5ad"])
    told = []
    as_process(monkeypatch, 1, 2, lambda said: told.append(said) or [b"", said])
    with pytest.raises(errors.PredictionError, match=r"prediction .*bad\.h5ad: X holds 1 NaN"):
        shares.evaluate_share(asked)
    as_process(monkeypatch, 0, 2, lambda said: [said, told[0]])
    with pytest.raises(errors.DisagreementError, match=r"process 1: \[SJ-E01\].*bad\.h5ad: X hold"):
        shares.evaluate_share(asked)


def test_an_error_that_names_no_file_is_told_with_it(source, folder, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("no more")

    monkeypatch.setattr(evaluate, "evaluate_all", fail)
    told = []
    as_process(monkeypatch, 1, 2, lambda said: told.append(said.decode()) or [b"", said])
    with pytest.raises(MemoryError):
        shares.evaluate_share(job(source, folder))
    assert told == [f"[MemoryError] no more, while evaluating {folder / 'A1.h5ad'}"]


def test_files_are_looked_for_before_the_first_is_evaluated(folder):
    files = [folder / f"{slide}.h5ad" for slide in SLIDES]
    shares.require_files(files, {"half": files})
    with pytest.raises(errors.PredictionError, match="none.h5ad"):
        shares.require_files([*files, folder / "none.h5ad"], {})
    with pytest.raises(errors.PredictionError, match="none.h5ad"):
        shares.require_files(files, {"half": [*files[:2], folder / "none.h5ad"]})
    with pytest.raises(errors.PredictionError, match="compare half: expected 3 predictions.*2"):
        shares.require_files(files, {"half": files[:2]})


# -------------------------------------------------------------------------- the regression backbone


def test_what_made_a_prediction_is_read_alone(source, folder, tmp_path):
    made = predicted(source, "A2", truth(source, "A2"), train=["B1"], model='{"größe": 1}')
    made.write_h5ad(tmp_path / "ours.h5ad")
    found = regression.read_origin(tmp_path / "ours.h5ad")
    assert found == ("A2", '{"größe": 1}')
    assert regression.read_origin(folder / "A2.h5ad") is None  # does not say its model
    other = anndata.AnnData(X=np.ones((2, 2)), obs=pd.DataFrame(index=["a", "b"]))
    other.write_h5ad(tmp_path / "other.h5ad")
    assert regression.read_origin(tmp_path / "other.h5ad") is None
    (tmp_path / "broken.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 40)
    with pytest.raises(errors.PredictionError, match="broken.h5ad is damaged or incomplete"):
        regression.read_origin(tmp_path / "broken.h5ad")


@pytest.fixture
def trainer(monkeypatch):
    """Notes what is trained or loaded, and predicts a text."""
    done = types.SimpleNamespace(trained=[], loaded=[])
    card = lambda text: types.SimpleNamespace(experiment=text, task=None)  # noqa: E731
    monkeypatch.setattr(regression.checkpoint.Card, "from_json", card)
    monkeypatch.setattr(regression, "as_regression", lambda experiment: experiment)
    monkeypatch.setattr(regression, "_by_names", lambda card: card.experiment)

    def train_shown(experiment, source, workdir, line):
        done.trained.append((experiment, workdir))
        return experiment

    monkeypatch.setattr(regression.loop, "train_shown", train_shown)
    load = lambda choice: done.loaded.append(choice) or "loaded"  # noqa: E731
    monkeypatch.setattr(regression.checkpoint, "load", load)
    monkeypatch.setattr(
        predict, "predict_slide", lambda trained, source, slide, sampling: f"{trained} of {slide}"
    )
    return done


def backbone_rows(models, choice, mine, out):
    made = [regression.Origin(slide=f"S{i}", model=json.dumps(m)) for i, m in enumerate(models)]
    return regression.backbone_rows(made, None, choice, mine=mine, default_workdir=out)


def test_each_model_has_one_regression_that_every_process_trains(trainer, tmp_path, monkeypatch):
    for index in range(3):
        as_process(monkeypatch, index, 3, lambda said: [b""] * 3)
        mine = range(index, 4, 3)
        assert backbone_rows("abab", "train", mine, tmp_path) == {
            number: f"{'abab'[number]} of S{number}" for number in mine
        }
    names, folders = zip(*trainer.trained, strict=True)
    assert names == ("a", "b") * 3
    assert len(set(folders)) == 2
    assert {folder.parent for folder in folders} == {tmp_path}
    assert backbone_rows("aa", "train", (0,), tmp_path / "r") == {0: "a of S0"}
    assert trainer.trained[6:] == [("a", tmp_path / "r")]


def test_a_run_that_is_there_is_loaded_once(trainer, tmp_path):
    assert backbone_rows("ab", "run", (0, 1), tmp_path) == {0: "loaded of S0", 1: "loaded of S1"}
    assert trainer.loaded == ["run"]
    assert backbone_rows("ab", "none", (0, 1), tmp_path) == {}
    assert trainer.trained == []


def test_where_a_model_is_a_regression_there_is_no_row(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(regression.tasks, "HisToSGETask", type(None))
    assert backbone_rows("ab", "train", (0, 1), tmp_path) == {}
    assert trainer.trained == []
    assert len(backbone_rows("ab", "run", (0, 1), tmp_path)) == 2


def test_a_slide_that_fails_stops_the_training_of_the_next_model(trainer, tmp_path, monkeypatch):
    """Else the others would train the next model with a process that is gone."""

    def fail(*_):
        raise errors.RecordsError("slide S0 is damaged")

    monkeypatch.setattr(predict, "predict_slide", fail)
    told = []
    as_process(monkeypatch, 0, 2, lambda said: told.append(said) or [said, b""])
    with pytest.raises(errors.RecordsError, match="S0"):
        backbone_rows("ab", "train", (0,), tmp_path)
    as_process(monkeypatch, 1, 2, lambda said: [told[0], said])
    with pytest.raises(errors.DisagreementError, match="process 0: .SJ-D06. slide S0 is damaged"):
        backbone_rows("ab", "train", (), tmp_path)
    assert [model for model, _ in trainer.trained] == ["a", "a"]


def test_the_first_process_alone_shows_the_training(source, folder, monkeypatch, tmp_path):
    """A terminal has room for one bar, and the others would draw an empty one over it."""
    made = predicted(source, "A2", truth(source, "A2"), train=["B1"], model='"a"')
    made.write_h5ad(tmp_path / "ours.h5ad")
    shown = []

    def backbone_rows(*_, line, **__):
        shown.append(line)
        return {}

    monkeypatch.setattr(regression, "backbone_rows", backbone_rows)
    asked = job(source, folder, files=[tmp_path / "ours.h5ad"], compare={}, regression="train")
    for index in range(2):
        as_process(monkeypatch, index, 2, lambda said: [b"", b""])
        shares.evaluate_share(asked, line="a line")
    assert shown == ["a line", None]


def test_without_records_or_a_model_in_every_file_there_is_no_row(
    source, folder, trainer, tmp_path, monkeypatch
):
    made = predicted(source, "A2", truth(source, "A2"), train=["B1"], model='"a"')
    made.write_h5ad(tmp_path / "ours.h5ad")
    monkeypatch.setattr(predict, "predict_slide", lambda *_: made)

    def names(*files, **changes):
        asked = {"compare": {}, "regression": "run", "resamples": 0, "files": files} | changes
        (one, *_) = shares.evaluate_share(dataclasses.replace(job(source, folder), **asked))
        return [row.name for row in one.rows]

    ours, row = tmp_path / "ours.h5ad", "regression backbone: mean"
    assert row in names(ours)
    assert row not in names(ours, folder / "A1.h5ad")
    assert row not in names(ours, regression="none")
    table = source.load(["A2"])
    counts = anndata.AnnData(
        X=np.asarray(table.counts, np.float32), obs=made.obs, var=made.var,
        obsm={"spatial": np.asarray(table.pixel_xy, float)},
    )  # fmt: skip
    file = truths.Source(
        slides=("A2",), records=None, _file=truths.of_anndata(counts, name="A2", where="counts")
    )
    assert row not in names(ours, source=file)
    assert trainer.loaded == ["run"]


def test_a_model_of_a_manifest_names_its_slides(toy_experiment):
    """The manifest stays where the model was trained; who trains beside it goes by the card."""
    data = dataclasses.replace(toy_experiment.data, test="", val="", manifest="f.csv", fold="1")
    card = types.SimpleNamespace(
        experiment=dataclasses.replace(toy_experiment, data=data),
        split={"train": ["T1", "T2"], "val": ["V1"], "test": ["X1"]},
    )
    named = regression._by_names(card)
    assert (named.data.manifest, named.data.fold) == ("", "")
    assert (named.data.train, named.data.val, named.data.test) == ("T1,T2", "V1", "X1")
    assert named.optim == toy_experiment.optim
    plain = types.SimpleNamespace(experiment=toy_experiment, split={})
    assert regression._by_names(plain) is toy_experiment
