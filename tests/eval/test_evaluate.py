"""Evaluation end to end on written records: known answers, joins, refusals, the table."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from made_slides import predicted, truth, write_source

from stemjax import errors
from stemjax.eval import baselines, evaluate, joining, metrics, plain, slide_rows, tables

# anndata 0.13.4 asks pandas 3.1 for an option that pandas has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option is deprecated")

FAST = ("MLP", "embedding kNN", "HEST probe")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("records"))


def evaluated(prediction, source, *, resamples=0, **options):
    return evaluate.evaluate(prediction, source, resamples=resamples, leave_out=FAST, **options)


def by_name(measured):
    return {row["name"]: row for row in measured["rows"]}


def value(row, key):
    return row["scores"][key]["value"]


def test_the_truth_scores_perfectly_in_any_order_of_rows_and_genes(source):
    perfect = predicted(source, "A2", truth(source, "A2"), train=["A1", "B1"])
    rng = np.random.default_rng(5)
    shuffled = perfect[rng.permutation(108)][:, rng.permutation(14)].copy()
    for prediction in (perfect, shuffled):
        measured = evaluated(prediction, source, resamples=20)
        row = measured["rows"][0]
        assert row["name"] == "prediction: mean"
        # float32 in the file: relative 6e-8 of values up to 10.
        perfect_scores = {"pcc_10": 1, "pcc_all": 1, "spearman": 1, "gsc": 1, "ssim": 1, "r2": 1}
        perfect_scores |= {"mse": 0, "mae": 0, "rvd": 0, "wasserstein": 0, "moran_error": 0}
        found = {key: value(row, key) for key in perfect_scores}
        assert found == pytest.approx(perfect_scores, abs=1e-6)
        assert "pcc_50" not in row["scores"]  # there are 13 genes
        assert row["scores"]["pcc_all"]["interval"] == pytest.approx([1.0, 1.0], abs=1e-6)
        slide = measured["slides"][0]
        assert slide["gene_pcc"]["G13"] is None
        assert slide["gene_pcc"]["G3"] == pytest.approx(1.0)
        assert slide["genes"] == {
            "panel": 14,
            "scored": 13,
            "not_measured": 0,
            "not_in_training": 0,
            "given": 0,
            "constant_in_truth": 1,
            "not_predicted": 0,
        }


def test_rows_that_are_not_joined_by_barcode_would_score_otherwise(source):
    rolled = predicted(source, "A2", np.roll(truth(source, "A2"), 1, axis=0), train=["B1"])
    row = evaluated(rolled, source)["rows"][0]
    assert value(row, "pcc_all") < 0.3
    assert row["scores"]["pcc_all"]["interval"] is None


def test_rows_beside_the_prediction(source):
    true = truth(source, "A2")
    rng = np.random.default_rng(7)
    draws = true.mean(axis=0) + rng.normal(0.0, true.std(axis=0), (6, *true.shape))
    ours = predicted(
        source, "A2", draws.mean(axis=0), mode="draws", draws=draws, train=["A1", "B1"]
    )
    other = predicted(source, "A2", 0.5 * true, train=["A1", "B1"])
    measured = evaluated(ours, source, compare={"regression": other}, resamples=50)
    rows = by_name(measured)
    assert {name: row["source"] for name, row in rows.items()} == {
        "prediction: draws(6)": "prediction",
        "prediction: draws(6), one draw": "single draw",
        "constant mean": "floor",
        "coordinates kNN": "floor",
        "neighbour mean": "floor",
        "depth oracle": "floor",
        "ridge": "rival",
        "noise ceiling": "ceiling",
        "regression: mean": "compare",
    }
    sees = [name for name, row in rows.items() if row["sees_test"]]
    assert sees == ["neighbour mean", "depth oracle", "noise ceiling"]
    used = np.arange(14) != 13
    first, one = measured["rows"][:2]
    assert value(first, "rvd") == pytest.approx(metrics.rvd(draws.mean(axis=0), true), rel=1e-5)
    single = np.mean([metrics.rvd(d[:, used], true[:, used]) for d in draws])
    assert value(one, "rvd") == pytest.approx(single, rel=1e-5)
    assert value(one, "mse") == pytest.approx(np.mean((draws - true) ** 2), rel=1e-5)
    crps = metrics.Draws(values=draws).crps(true).mean()
    assert value(first, "crps") == pytest.approx(crps, rel=1e-5)
    constant = rows["constant mean"]
    assert value(constant, "pcc_all") == 0.0
    assert value(constant, "rvd") == pytest.approx(1.0)
    trained = np.concatenate([truth(source, "A1"), truth(source, "B1")])
    expected = trained.mean(axis=0)
    expected[12] = truth(source, "B1")[:, 12].mean()  # A1 did not measure G12
    assert value(constant, "mse") == pytest.approx(np.mean((true - expected) ** 2), rel=1e-5)
    assert value(rows["regression: mean"], "rvd") == pytest.approx(0.5625, rel=1e-5)
    # The embeddings decide the counts, so ridge is far above the rest and below the ceiling.
    pcc = {name: value(row, "pcc_all") for name, row in rows.items()}
    assert pcc["noise ceiling"] > pcc["ridge"] > 0.7 > pcc["depth oracle"]
    less = rows["ridge"]["first_minus_row"]["pcc_all"]
    low, high = less["interval"]
    assert low < less["difference"] < high < -0.5
    assert less["verdict"] == "worse"
    told = measured["slides"][0]["draws"]
    assert told["n"] == 6
    error = np.sqrt(np.mean(draws.var(axis=0, ddof=1) / 6))
    assert told["standard_error"] == pytest.approx(error, rel=1e-5)
    assert measured["slides"][0]["ridge"]["alpha"] in baselines.ALPHAS
    assert measured["slides"][0]["split_kind"] == "interpolation within a patient"
    assert "A1" in measured["slides"][0]["split"]
    assert measured["evaluations_per_spot"] == 16
    assert measured["intervals"]["of"] == "spatial blocks"
    assert measured["intervals"]["count"] == 6  # 12 x 9 array units in blocks of 5 x 5


def test_genes_that_no_training_slide_measured_are_left_out_of_every_row(source):
    true = truth(source, "A2")
    spoilt = true.copy()
    spoilt[:, 12] = 50.0
    measured = evaluated(predicted(source, "A2", spoilt, train=["A1"]), source)
    assert value(measured["rows"][0], "mse") == pytest.approx(0.0, abs=1e-6)
    assert measured["slides"][0]["genes"]["not_in_training"] == 1
    assert measured["slides"][0]["gene_pcc"]["G12"] is None
    # And the slide's own: A1 has no G12, whatever is predicted for it.
    wrong = truth(source, "A1")
    wrong[:, 12] = 50.0
    measured = evaluated(predicted(source, "A1", wrong, train=["B1"]), source)
    assert value(measured["rows"][0], "mse") == pytest.approx(0.0, abs=1e-6)
    assert measured["slides"][0]["genes"]["not_measured"] == 1
    assert all(value(row, "mse") is not None for row in measured["rows"])


def test_without_the_training_slides_only_the_slides_own_floors_stand(source):
    prediction = predicted(source, "A2", truth(source, "A2"), train=["A1", "Z9"])
    measured = evaluated(prediction, source)
    assert [row["name"] for row in measured["rows"][1:]] == [
        "neighbour mean",
        "depth oracle",
        "noise ceiling",
    ]
    assert measured["slides"][0]["ridge"] is None
    assert "Z9" in measured["notes"][0]
    assert "Z9" in tables.table(measured)


@pytest.mark.parametrize(
    ("slide", "train", "val", "stated", "kind"),
    [
        ("A2", ["A1", "B1"], [], "new patient", "interpolation within a patient"),
        ("A2", ["B1"], ["A1"], "new patient", "interpolation within a patient"),
        ("A2", ["B1"], [], "patient unknown", "new patient"),
        ("A2", ["U1", "B1"], [], "patient unknown", "patient unknown"),
        ("U1", ["A1"], [], "patient unknown", "patient unknown"),
        ("A2", ["Z9"], [], "new patient", "new patient"),
        ("A2", ["A2", "B1"], [], "new patient", "training slide"),
        ("A2", ["B1"], ["A2"], "new patient", "validation slide"),
    ],
)
def test_what_the_number_means(source, slide, train, val, stated, kind):
    about = {"slide": slide, "train_slides": np.array(train), "val_slides": val}
    found, sentence = slide_rows.split_kind(about | {"split_kind": stated}, source.patients)
    assert found == kind
    assert sentence.startswith(kind)
    if train == ["Z9"]:
        assert "the prediction states" in sentence


def change(prediction, what):
    """The prediction with one thing wrong, and what its error must say."""
    if what == "missing spots":
        return prediction[3:].copy(), ("spots", "108", "3 missing and 0 extra", "0x0")
    if what == "another barcode":
        prediction.obs_names = ["new", *prediction.obs_names[1:]]
        return prediction, ("1 missing and 1 extra", "0x0")
    if what == "a barcode twice":
        prediction.obs_names = [*prediction.obs_names[:-1], prediction.obs_names[0]]
        return prediction, ("spots are repeated", "1 repeated", "0x0")
    if what == "a spot too many":
        again = prediction[[*range(108), 0]].copy()
        return again, ("each once", "1 repeated (e.g. 0x0)")
    if what == "missing gene":
        return prediction[:, 1:].copy(), ("genes", "14", "1 missing", "G0")
    if what == "NaN":
        prediction.X[4, 5] = np.nan
        return prediction, ("X holds 1 NaN", "spot '4x0'", "gene 'G5'")
    if what == "no uns":
        del prediction.uns["stemjax"]
        return prediction, ("its slide", "A1, A2, B1, U1 have alike", "--slide")
    if what == "slide":
        prediction.uns["stemjax"]["slide"] = "Q1"
        return prediction, ("Q1", "A1, A2, B1, U1")
    prediction.uns["stemjax"]["value_space"] = "counts"
    return prediction, ("value space", "log2p1 or log1p or log1p_cp10k", "counts")


@pytest.mark.parametrize(
    "what",
    [
        "missing spots",
        "another barcode",
        "a barcode twice",
        "a spot too many",
        "missing gene",
        "NaN",
        "no uns",
        "slide",
        "value space",
    ],
)
# anndata warns of the very repetition that is to be refused.
@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_what_does_not_fit_is_refused_by_name(source, what):
    good = predicted(source, "A2", truth(source, "A2"), train=["B1"])
    bad, said = change(good.copy(), what)
    with pytest.raises(errors.PredictionError) as caught:
        evaluated(bad, source)
    for part in ("prediction", *said):
        assert part in str(caught.value)
    if what == "no uns":  # beside a prediction that knows its slide, any file of it may stand
        found = evaluated(good, source, compare={"mine": bad})
        assert found["rows"][-1]["name"] == "mine: mean"
        return
    with pytest.raises(errors.PredictionError, match="compare mine"):
        evaluated(good, source, compare={"mine": bad})


def test_predictions_of_another_slide_or_space_are_not_compared(source):
    ours = predicted(source, "A2", truth(source, "A2"), train=["B1"])
    other = predicted(source, "A1", truth(source, "A1"), train=["B1"])
    with pytest.raises(errors.PredictionError, match=r"compare r: another slide.*A2.*A1"):
        evaluated(ours, source, compare={"r": other})
    other = predicted(source, "A2", truth(source, "A2"), train=["B1"], value_space="log1p_cp10k")
    with pytest.raises(errors.PredictionError, match="another value_space"):
        evaluated(ours, source, compare={"r": other})


def test_the_other_value_space_uses_the_slides_totals(source):
    table = source.load(["A2"])
    mean = np.log1p(table.counts * 1e4 / table.total[:, None])
    ours = predicted(source, "A2", mean, train=["B1"], value_space="log1p_cp10k")
    row = evaluated(ours, source)["rows"][0]
    assert value(row, "mse") == pytest.approx(0.0, abs=1e-6)


def test_a_prediction_read_back_from_its_file_scores_the_same(source, tmp_path):
    draws = truth(source, "A2") + np.random.default_rng(2).normal(size=(4, 108, 14))
    mean = draws.mean(axis=0)
    ours = predicted(source, "A2", mean, mode="draws", draws=draws, train=["A1"], val_slides=["B1"])
    before = evaluated(ours, source, resamples=10)
    ours.write_h5ad(tmp_path / "p.h5ad")
    after = evaluated(joining.read(tmp_path / "p.h5ad"), source, resamples=10)
    assert after == before
    # The resamples are a function of the seed.
    assert evaluated(ours, source, resamples=10, seed=1)["rows"] != before["rows"]


def test_the_table_is_aligned_and_says_what_one_must_know(source):
    draws = truth(source, "A2") + np.random.default_rng(2).normal(size=(4, 108, 14))
    ours = predicted(
        source, "A2", draws.mean(axis=0), mode="draws", draws=draws, train=["A1", "B1"]
    )
    measured = evaluated(ours, source, resamples=30)
    text = tables.table(measured)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(measured["rows"])
    assert len({len(line) for line in lines}) == 1
    bars = [[m.start() for m in re.finditer(r"\|", line)] for line in lines]
    assert all(found == bars[0] for found in bars)
    ridge = next(line for line in lines if "| ridge" in line)
    found = by_name(measured)["ridge"]["scores"]["pcc_all"]
    low, high = found["interval"]
    assert f"{found['value']:.3f} [{low:.3f}, {high:.3f}]" in ridge
    assert "PCC-13" in lines[0]
    assert next(line for line in lines if "depth oracle *" in line)
    slide = measured["slides"][0]
    for part in (
        "interpolation within a patient",
        "108 spots, 13 of 14 genes",
        "log2(count + 1)",
        "16 network evaluations",
        f"alpha {slide['ridge']['alpha']:g}",
        f"standard error {slide['draws']['standard_error']:.4f}",
        "1 genes left out: constant",
        "30 resamples of 6 square blocks",
        "* sees the test slide's own measurements",
        "Prediction against ridge: PCC-13",
        "WARNING: interpolation within a patient",
    ):
        assert part in text


def test_metrics_are_written_whole_and_without_nan(source, tmp_path, monkeypatch):
    prediction = predicted(source, "A2", truth(source, "A2"), train=["B1"])
    measured = evaluated(prediction, source, resamples=5)
    path = tmp_path / "metrics.json"
    plain.write_json(measured, path)
    assert json.loads(path.read_text()) == measured
    odd = {"a": np.float32("nan"), "b": [np.int64(3), float("inf")], "c": np.arange(2)}
    plain.write_json(odd, path)
    assert json.loads(path.read_text()) == {"a": None, "b": [3, None], "c": [0, 1]}

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        plain.write_json(measured, path)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    assert json.loads(path.read_text())["c"] == [0, 1]


def test_rows_may_be_left_out_even_the_constant(source):
    made = predicted(source, "A2", truth(source, "A2"), train=["A1"])
    out = (*FAST, "constant mean", "coordinates kNN")
    names = [row["name"] for row in evaluate.evaluate(made, source, leave_out=out)["rows"]]
    assert names[1:] == ["neighbour mean", "depth oracle", "ridge", "noise ceiling"]


def test_genes_that_a_prediction_was_told_are_not_scored(source):
    told = predicted(source, "A2", truth(source, "A2"), train=["A1"], given_genes=["G1", "G5"])
    measured = evaluated(told, source)
    slide = measured["slides"][0]
    assert slide["genes"]["given"] == 2
    assert slide["gene_pcc"]["G1"] is None
    assert slide["gene_pcc"]["G2"] == pytest.approx(1.0)
    assert "2 genes left out: told to the prediction" in tables.table(measured)


def test_likelihoods_are_summed_up_by_barcode(source):
    prediction = predicted(source, "A2", truth(source, "A2"), train=["A1"])
    own = np.linspace(0, 1, 108)
    prediction.obs["stemjax_nll"], prediction.obs["stemjax_nll_other"] = own, 0.75
    shuffled = prediction[np.random.default_rng(0).permutation(108)].copy()
    results = [evaluated(p, source, resamples=50) for p in (prediction, shuffled)]
    first, second = (result["slides"][0]["mismatch"] for result in results)
    assert first == second
    # 81 of 108 values of an even ramp lie below .75.
    assert first["own_is_better"] == pytest.approx(81 / 108)
    low, high = first["own_is_better_interval"]
    assert low < 81 / 108 < high
    assert "explains 75.0%" in tables.table(results[0])
    untold = predicted(source, "A2", truth(source, "A2"), train=["A1"])
    assert evaluated(untold, source)["slides"][0]["mismatch"] is None
