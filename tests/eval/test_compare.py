"""Several results in one table: paired where they can be, and said where not."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from made_slides import predicted, truth, write_source

from stemjax import errors
from stemjax.eval import compare, evaluate, plain, tables

FAST = ("MLP", "embedding kNN", "HEST probe")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("records"))


def result(source, noise, *, slide="A2", seed=0, resamples=60, **about):
    true = truth(source, slide)
    mean = true + np.random.default_rng(1).normal(0, noise, true.shape)
    train = [name for name in ("A1", "A2", "B1") if name != slide]
    made = predicted(source, slide, mean, train=train, **about)
    return evaluate.evaluate(made, source, resamples=resamples, seed=seed, leave_out=FAST)


@pytest.fixture(scope="module")
def results(source):
    return {"good": result(source, 0.2), "bad": result(source, 0.9)}


def test_results_of_the_same_spots_are_paired(results):
    found = compare.compare(results)
    first, second = found["rows"]
    assert "first_minus_row" not in first
    assert second["paired"] == ""
    less = second["first_minus_row"]["pcc_all"]
    values = [np.array(one["resampled"]["pcc_all"]) for one in results.values()]
    assert less["difference"] == pytest.approx(values[0][0] - values[1][0])
    low, high = np.quantile(values[0][1:] - values[1][1:], [0.025, 0.975])
    assert less["interval"] == pytest.approx([low, high])
    assert less["verdict"] == second["first_minus_row"]["mse"]["verdict"] == "better"
    text = compare.table(found)
    assert "good against bad: PCC-10" in text
    assert f"PCC-all {less['difference']:+.3f} [{low:+.3f}, {high:+.3f}] better" in text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"slide": "B1"}, "other slides (B1)"),
        ({"seed": 1}, "other resamples"),
        ({"resamples": 30}, "other resamples"),
        ({"given_genes": ["G1"]}, "other spots or genes"),
    ],
)
def test_results_of_something_else_are_not_paired_and_it_is_said(source, results, options, why):
    found = compare.compare({"a": results["good"], "b": result(source, 0.9, **options)})
    row = found["rows"][1]
    assert row["paired"] == why
    less = row["first_minus_row"]["mse"]
    assert less["interval"] is None
    assert less["verdict"] == "unknown"
    assert f"not paired: {why}" in compare.table(found)


def test_value_spaces_are_not_mixed(source, results):
    table = source.load(["A2"])
    mean = np.log1p(table.counts * 1e4 / table.total[:, None])
    made = predicted(source, "A2", mean, train=["B1"], value_space="log1p_cp10k")
    other = evaluate.evaluate(made, source, resamples=0, leave_out=FAST)
    with pytest.raises(errors.PredictionError, match="b is in another value space.*log2p1"):
        compare.compare({"a": results["good"], "b": other})


def test_results_go_through_their_file(results, tmp_path):
    read = {}
    for name, one in results.items():
        plain.write_json(one, tmp_path / f"{name}.json")
        read[name] = compare.read(tmp_path / f"{name}.json")
    assert plain.plain(compare.compare(read)) == plain.plain(compare.compare(results))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "cannot be read"),
        ("[1, 2]", "is no evaluation"),
        ('{"rows": []}', "is no evaluation.*fingerprint"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(errors.PredictionError, match=message):
        compare.read(path)


def test_another_format_is_refused(results, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(results["good"] | {"format": 1}))
    with pytest.raises(errors.PredictionError, match="format: expected 2, found 1"):
        compare.read(path)
    with pytest.raises(errors.PredictionError, match="two or more"):
        compare.compare({"one": results["good"]})


def test_csv_has_every_score_of_every_row(results):
    found = results["good"]
    lines = list(csv.DictReader(io.StringIO(tables.to_csv(found))))
    assert len(lines) == sum(len(row["scores"]) for row in found["rows"])
    ridge = next(x for x in lines if (x["row"], x["score"]) == ("ridge", "mse"))
    row = next(row for row in found["rows"] if row["name"] == "ridge")
    assert float(ridge["value"]) == row["scores"]["mse"]["value"]
    assert [float(ridge["low"]), float(ridge["high"])] == row["scores"]["mse"]["interval"]
    less = row["first_minus_row"]["mse"]
    assert float(ridge["first_minus_row"]) == less["difference"]
    assert ridge["verdict"] == less["verdict"] == "better"
    assert ridge["source"] == "rival"
    first = next(x for x in lines if x["row"] == "prediction: mean")
    assert first["verdict"] == first["first_minus_row"] == ""


def test_a_name_that_a_spreadsheet_would_run_is_disarmed(results):
    named = dict(results["good"]["rows"][0], name="=HYPERLINK()")
    text = tables.to_csv(results["good"] | {"rows": [named]})
    assert ",'=HYPERLINK()," in text


def test_several_slides_are_one_table_of_means(source):
    made = [predicted(source, s, 0.8 * truth(source, s), train=["B1"]) for s in ("A1", "A2", "U1")]
    found = evaluate.evaluate(made, source, resamples=20, leave_out=FAST)
    alone = [evaluate.evaluate(m, source, resamples=0, leave_out=FAST) for m in made]
    for key in ("pcc_all", "mse", "gsc"):
        mean = np.mean([one["rows"][0]["scores"][key]["value"] for one in alone])
        assert found["rows"][0]["scores"][key]["value"] == pytest.approx(mean)
    assert found["intervals"]["of"] == "spatial blocks"
    assert found["intervals"]["count"] == 18
    assert [one["slide"] for one in found["slides"]] == ["A1", "A2", "U1"]
    text = tables.table(found)
    assert text.startswith("3 slides (A1, A2, U1)")
    assert "324 spots" in text


def test_slides_are_given_once_and_rivals_for_all(source):
    made = predicted(source, "A2", truth(source, "A2"), train=["B1"])
    other = predicted(source, "A1", truth(source, "A1"), train=["B1"])
    with pytest.raises(errors.PredictionError, match="A2 is predicted more than once"):
        evaluate.evaluate([made, made], source, resamples=0, leave_out=FAST)
    with pytest.raises(errors.PredictionError, match="expected 2 predictions"):
        evaluate.evaluate([made, other], source, compare={"x": made}, resamples=0, leave_out=FAST)
