"""Evaluation end to end on written records: known answers, joins, refusals, the table."""

from __future__ import annotations

import json
import os
import re

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from stemjax import errors
from stemjax.data import embeddings, genes, images, records, slides
from stemjax.eval import baselines, evaluate, metrics

# anndata 0.13.4 asks pandas 3.1 for an option that pandas has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option is deprecated")

GENES = tuple(f"G{i}" for i in range(14))
WIDTH = 6
CONTRACT = embeddings.EncoderContract(
    name="made",
    width=WIDTH,
    input_px=224,
    fov_um=None,
    resize="lanczos",
    mean=(),
    std=(),
    pooling="none",
    projection="none",
    source="test",
    revision="1",
)


def section(slide_id, patient, seed, names=GENES):
    """A slide of 12 x 9 spots and its embeddings, which decide the counts' rates."""
    rng = np.random.default_rng(seed)
    x, y = (v.ravel() for v in np.meshgrid(np.arange(12), np.arange(9)))
    z = rng.normal(size=(108, WIDTH))
    weights = np.random.default_rng(0).normal(size=(WIDTH, len(GENES)))
    counts = rng.poisson(np.exp(2.0 + 0.5 * z @ weights)).astype(np.int32)
    counts[:, 13] = 4  # constant: no correlation
    slide = slides.Slide(
        id=slide_id,
        patient=patient,
        counts=scipy.sparse.csr_array(counts[:, [GENES.index(name) for name in names]]),
        genes=names,
        barcodes=tuple(f"{a}x{b}" for a, b in zip(x, y, strict=True)),
        array_xy=np.stack([x, y], axis=1).astype(np.float32),
        pixel_xy=np.stack([x * 20 + 20, y * 20 + 20], axis=1).astype(np.float32),
        image=images.ArrayImage(np.full((210, 270, 3), 230, np.uint8)),
        mpp=10.0,
        spot_diameter_um=100.0,
        sources={},
    )
    return slide, np.repeat(z[:, None], 8, axis=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Slides A1, A2 (patient A), B1 (B), U1 (unknown); G12 is on A2 and B1 alone."""
    out = tmp_path_factory.mktemp("records")
    panel = genes.Panel(genes=GENES, rule="made", slides=())
    told = {"A1": "A", "A2": "A", "B1": "B", "U1": None}
    for seed, (slide_id, patient) in enumerate(told.items(), start=1):
        lacking = {"G12"} if slide_id in ("A1", "U1") else set()
        names = tuple(name for name in GENES if name not in lacking)
        slide, given = section(slide_id, patient, seed, names)
        records.write_slide(out, slide, given, panel=panel, contract=CONTRACT)
    return records.open_records(out)


def truth(source, slide):
    return np.log2(source.load([slide]).counts + 1.0)


def predicted(source, slide, mean, *, train, mode="mean", draws=None, **about):
    """What `stemjax predict` would write."""
    out = anndata.AnnData(
        X=np.asarray(mean, np.float32),
        obs=pd.DataFrame(index=list(source.load([slide]).barcodes)),
        var=pd.DataFrame(index=list(source.genes)),
    )
    if draws is not None:
        out.obsm["stemjax_draws"] = np.asarray(draws.transpose(1, 0, 2), np.float32)
        out.layers["stemjax_std"] = draws.std(axis=0, ddof=1).astype(np.float32)
    out.uns["stemjax"] = {
        "slide": slide,
        "mode": mode,
        "value_space": "log2p1",
        "train_slides": list(train),
        "val_slides": [],
        "split_kind": "patient unknown",
        "evaluations_per_spot": 16,
        "antithetic": False,
    } | about
    return out


def by_name(measured):
    return {row["name"]: row for row in measured["rows"]}


def test_the_truth_scores_perfectly_in_any_order_of_rows_and_genes(source):
    perfect = predicted(source, "A2", truth(source, "A2"), train=["A1", "B1"])
    rng = np.random.default_rng(5)
    shuffled = perfect[rng.permutation(108)][:, rng.permutation(14)].copy()
    for prediction in (perfect, shuffled):
        measured = evaluate.evaluate(prediction, source, intervals=20)
        row = measured["rows"][0]
        assert row["name"] == "prediction: mean"
        # float32 in the file: relative 6e-8 of values up to 10.
        assert row["pcc_10"] == pytest.approx(1.0, abs=1e-6)
        assert row["pcc_all"] == row["pcc_50"] == pytest.approx(1.0, abs=1e-6)
        assert [row[k] for k in ("mse", "mae", "rvd")] == pytest.approx([0, 0, 0], abs=1e-6)
        assert row["pcc_all_interval"] == pytest.approx([1.0, 1.0], abs=1e-6)
        assert measured["gene_pcc"]["G13"] is None
        assert measured["gene_pcc"]["G3"] == pytest.approx(1.0)
        assert measured["genes"] == {
            "panel": 14,
            "scored": 13,
            "not_measured": 0,
            "not_in_training": 0,
            "given": 0,
            "constant_in_truth": 1,
        }


def test_rows_that_are_not_joined_by_barcode_would_score_otherwise(source):
    rolled = predicted(source, "A2", np.roll(truth(source, "A2"), 1, axis=0), train=["B1"])
    row = evaluate.evaluate(rolled, source, intervals=0)["rows"][0]
    assert row["pcc_all"] < 0.3
    assert row["pcc_all_interval"] is None


def test_rows_beside_the_prediction(source):
    true = truth(source, "A2")
    rng = np.random.default_rng(7)
    draws = true.mean(axis=0) + rng.normal(0.0, true.std(axis=0), (6, *true.shape))
    ours = predicted(
        source, "A2", draws.mean(axis=0), mode="draws", draws=draws, train=["A1", "B1"]
    )
    other = predicted(source, "A2", 0.5 * true, train=["A1", "B1"])
    measured = evaluate.evaluate(ours, source, compare={"regression": other}, intervals=50)
    rows = by_name(measured)
    assert list(rows) == [
        "prediction: draws(6)",
        "prediction: draws(6), one draw",
        "constant mean",
        "coordinates kNN",
        "depth oracle",
        "ridge",
        "regression: mean",
    ]
    used = np.arange(14) != 13
    first, one = measured["rows"][:2]
    assert first["rvd"] == pytest.approx(metrics.rvd(draws.mean(axis=0), true), rel=1e-5)
    single = np.mean([metrics.rvd(d[:, used], true[:, used]) for d in draws])
    assert first["rvd_single_draw"] == one["rvd"] == pytest.approx(single, rel=1e-5)
    assert one["mse"] == pytest.approx(np.mean((draws - true) ** 2), rel=1e-5)
    assert rows["constant mean"]["pcc_all"] == 0.0
    assert rows["constant mean"]["rvd"] == pytest.approx(1.0)
    trained = np.concatenate([truth(source, "A1"), truth(source, "B1")])
    expected = trained.mean(axis=0)
    expected[12] = truth(source, "B1")[:, 12].mean()  # A1 did not measure G12
    constant_mse = np.mean((true - expected) ** 2)
    assert rows["constant mean"]["mse"] == pytest.approx(constant_mse, rel=1e-5)
    assert rows["regression: mean"]["rvd"] == pytest.approx(0.5625, rel=1e-5)
    assert rows["regression: mean"]["rvd_single_draw"] is None
    # The embeddings decide the counts, so ridge is far above the rest.
    assert rows["ridge"]["pcc_all"] > 0.7 > rows["depth oracle"]["pcc_all"]
    low, high = rows["ridge"]["prediction_minus_row"]["pcc_all"]
    assert low < high < -0.5
    told = measured["draws"]
    assert told["n"] == 6
    error = np.sqrt(np.mean(draws.var(axis=0, ddof=1) / 6))
    assert told["standard_error"] == pytest.approx(error, rel=1e-5)
    assert measured["ridge"]["alpha"] in baselines.ALPHAS
    assert measured["split_kind"] == "interpolation within a patient"
    assert "A1" in measured["split"]
    assert measured["evaluations_per_spot"] == 16
    assert measured["intervals"]["blocks"] == 6  # 12 x 9 array units in blocks of 5 x 5


def test_genes_that_no_training_slide_measured_are_left_out_of_every_row(source):
    true = truth(source, "A2")
    spoilt = true.copy()
    spoilt[:, 12] = 50.0
    measured = evaluate.evaluate(predicted(source, "A2", spoilt, train=["A1"]), source, intervals=0)
    assert measured["rows"][0]["mse"] == pytest.approx(0.0, abs=1e-6)
    assert measured["genes"]["not_in_training"] == 1
    assert measured["gene_pcc"]["G12"] is None
    # And the slide's own: A1 has no G12, whatever is predicted for it.
    wrong = truth(source, "A1")
    wrong[:, 12] = 50.0
    measured = evaluate.evaluate(predicted(source, "A1", wrong, train=["B1"]), source, intervals=0)
    assert measured["rows"][0]["mse"] == pytest.approx(0.0, abs=1e-6)
    assert measured["genes"]["not_measured"] == 1
    assert all(row["mse"] is not None for row in measured["rows"])


def test_without_the_training_slides_there_are_no_baselines_and_it_is_said(source):
    prediction = predicted(source, "A2", truth(source, "A2"), train=["A1", "Z9"])
    measured = evaluate.evaluate(prediction, source, intervals=0)
    assert len(measured["rows"]) == 1
    assert measured["ridge"] is None
    assert "Z9" in measured["notes"][0]
    assert "Z9" in evaluate.table(measured)


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
    found, sentence = evaluate.split_kind(about | {"split_kind": stated}, source.slides)
    assert found == kind
    assert sentence.startswith(kind)
    if train == ["Z9"]:
        assert "the prediction states" in sentence


def change(prediction, what):
    """The prediction with one thing wrong, and what its error must say."""
    if what == "missing spots":
        return prediction[3:].copy(), ("spots", "108", "3 missing", "0 extra", "0x0")
    if what == "another barcode":
        prediction.obs_names = ["new", *prediction.obs_names[1:]]
        return prediction, ("1 missing, 1 extra and 0 repeated", "0x0")
    if what == "a barcode twice":
        prediction.obs_names = [*prediction.obs_names[:-1], prediction.obs_names[0]]
        return prediction, ("1 missing", "1 repeated")
    if what == "a spot too many":
        again = prediction[[*range(108), 0]].copy()
        return again, ("108, each once", "0 missing, 0 extra and 1 repeated")
    if what == "missing gene":
        return prediction[:, 1:].copy(), ("genes", "14", "1 missing", "G0")
    if what == "NaN":
        prediction.X[4, 5] = np.nan
        return prediction, ("X holds 1 NaN",)
    if what == "no uns":
        del prediction.uns["stemjax"]
        return prediction, ("slide, mode, value_space, train_slides", "stemjax predict")
    if what == "slide":
        prediction.uns["stemjax"]["slide"] = "Q1"
        return prediction, ("Q1", "A1, A2, B1, U1")
    prediction.uns["stemjax"]["value_space"] = "counts"
    return prediction, ("value space", "log2p1 or log1p_cp10k", "counts")


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
        evaluate.evaluate(bad, source)
    for part in ("prediction", *said):
        assert part in str(caught.value)
    with pytest.raises(errors.PredictionError, match="compare mine"):
        evaluate.evaluate(good, source, compare={"mine": bad})


def test_predictions_of_another_slide_or_space_are_not_compared(source):
    ours = predicted(source, "A2", truth(source, "A2"), train=["B1"])
    other = predicted(source, "A1", truth(source, "A1"), train=["B1"])
    with pytest.raises(errors.PredictionError, match=r"compare r: another slide.*A2.*A1"):
        evaluate.evaluate(ours, source, compare={"r": other})
    other = predicted(source, "A2", truth(source, "A2"), train=["B1"], value_space="log1p_cp10k")
    with pytest.raises(errors.PredictionError, match="another value_space"):
        evaluate.evaluate(ours, source, compare={"r": other})


def test_the_other_value_space_uses_the_slides_totals(source):
    table = source.load(["A2"])
    mean = np.log1p(table.counts * 1e4 / table.total[:, None])
    ours = predicted(source, "A2", mean, train=["B1"], value_space="log1p_cp10k")
    row = evaluate.evaluate(ours, source, intervals=0)["rows"][0]
    assert row["mse"] == pytest.approx(0.0, abs=1e-6)


def test_a_prediction_read_back_from_its_file_scores_the_same(source, tmp_path):
    draws = truth(source, "A2") + np.random.default_rng(2).normal(size=(4, 108, 14))
    mean = draws.mean(axis=0)
    ours = predicted(source, "A2", mean, mode="draws", draws=draws, train=["A1"], val_slides=["B1"])
    before = evaluate.evaluate(ours, source, intervals=10)
    ours.write_h5ad(tmp_path / "p.h5ad")
    after = evaluate.evaluate(anndata.read_h5ad(tmp_path / "p.h5ad"), source, intervals=10)
    assert after == before
    # The resamples are a function of the seed.
    assert evaluate.evaluate(ours, source, intervals=10, seed=1)["rows"] != before["rows"]


def test_the_table_is_aligned_and_says_what_one_must_know(source):
    draws = truth(source, "A2") + np.random.default_rng(2).normal(size=(4, 108, 14))
    ours = predicted(
        source, "A2", draws.mean(axis=0), mode="draws", draws=draws, train=["A1", "B1"]
    )
    measured = evaluate.evaluate(ours, source, intervals=30)
    text = evaluate.table(measured)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(measured["rows"])
    assert len({len(line) for line in lines}) == 1
    bars = [[m.start() for m in re.finditer(r"\|", line)] for line in lines]
    assert all(found == bars[0] for found in bars)
    ridge = next(line for line in lines if "| ridge" in line)
    row = by_name(measured)["ridge"]
    low, high = row["pcc_all_interval"]
    assert f"{row['pcc_all']:.3f} [{low:.3f}, {high:.3f}]" in ridge
    assert ridge.rstrip(" |").endswith("-")  # no single draw
    assert "PCC-13" in lines[0]
    for part in (
        "interpolation within a patient",
        "108 spots, 13 of 14 genes",
        "log2(count + 1)",
        "16 network evaluations",
        f"alpha {measured['ridge']['alpha']:g}",
        f"standard error {measured['draws']['standard_error']:.4f}",
        "1 genes left out: constant",
        "30 resamples of 6 square blocks",
    ):
        assert part in text


def test_metrics_are_written_whole_and_without_nan(source, tmp_path, monkeypatch):
    measured = evaluate.evaluate(
        predicted(source, "A2", truth(source, "A2"), train=["B1"]), source, intervals=5
    )
    path = tmp_path / "metrics.json"
    evaluate.write_metrics(measured, path)
    assert json.loads(path.read_text()) == measured
    odd = {"a": np.float32("nan"), "b": [np.int64(3), float("inf")], "c": np.arange(2)}
    evaluate.write_metrics(odd, path)
    assert json.loads(path.read_text()) == {"a": None, "b": [3, None], "c": [0, 1]}

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        evaluate.write_metrics(measured, path)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    assert json.loads(path.read_text())["c"] == [0, 1]


def test_genes_that_a_prediction_was_told_are_not_scored(source):
    told = predicted(source, "A2", truth(source, "A2"), train=["A1"], given_genes=["G1", "G5"])
    measured = evaluate.evaluate(told, source, intervals=0)
    assert measured["genes"]["given"] == 2
    assert measured["gene_pcc"]["G1"] is None
    assert measured["gene_pcc"]["G2"] == pytest.approx(1.0)
    assert "2 genes left out: told to the prediction" in evaluate.table(measured)


def test_likelihoods_are_summed_up_by_barcode(source):
    prediction = predicted(source, "A2", truth(source, "A2"), train=["A1"])
    own = np.linspace(0, 1, 108)
    prediction.obs["stemjax_nll"], prediction.obs["stemjax_nll_other"] = own, 0.75
    shuffled = prediction[np.random.default_rng(0).permutation(108)].copy()
    first, second = (evaluate.evaluate(p, source, intervals=50) for p in (prediction, shuffled))
    assert first["mismatch"] == second["mismatch"]
    # 81 of 108 values of an even ramp lie below .75.
    assert first["mismatch"]["own_is_better"] == pytest.approx(81 / 108)
    low, high = first["mismatch"]["own_is_better_interval"]
    assert low < 81 / 108 < high
    assert "explains 75.0%" in evaluate.table(first)
    assert evaluate.evaluate(told_nothing(source), source)["mismatch"] is None


def told_nothing(source):
    return predicted(source, "A2", truth(source, "A2"), train=["A1"])
