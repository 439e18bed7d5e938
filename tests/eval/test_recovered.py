"""Hidden spots: which are scored, what stands beside them, and what never sees them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hidden_spots import FAST, FLOORS, HIDDEN, dense, evaluated, flagged
from made_slides import predicted, truth, write_source

from stemjax.eval import alerts, baselines, evaluate, recovered, scoring, slide_rows, tables
from stemjax.eval import truth as truths


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("records"))


def on_file(source, slide="A2", *, change=None):
    """The slide's truth by itself; ``change`` makes other counts of those there are."""
    held = source.load([slide])
    one = truths.of_records(source).load(slide)
    if change is not None:
        counts = change(np.asarray(one.counts).copy())
        total = np.maximum(counts.sum(axis=1), 1)
        held = dataclasses.replace(held, counts=counts, total=total)
        one = dataclasses.replace(one, counts=counts, total=total)
    one = dataclasses.replace(one, table=held)
    return truths.Source(slides=(slide,), records=None, _file=one)


def test_hidden_spots_alone_are_scored(source):
    made = flagged(source)
    found = evaluated(made, source)
    true, pred = truth(source, "A2"), np.asarray(made.X, float)
    scores, slide = found["rows"][0]["scores"], found["slides"][0]
    assert slide["spots"] == 40
    assert scores["mse"]["value"] == pytest.approx(np.mean((pred - true)[HIDDEN] ** 2))
    # G13 is constant: it has no correlation.
    kept = [g for g in range(14) if g != 13]
    each = [np.corrcoef(pred[HIDDEN, g], true[HIDDEN, g])[0, 1] for g in kept]
    assert scores["pcc_all"]["value"] == pytest.approx(np.mean(each), abs=1e-6)
    assert slide["genes"]["scored"] == 13
    assert slide["genes"]["panel"] == 14


def test_all_spots_are_scored_as_published_beside_them(source):
    made = flagged(source)
    every = evaluated(made, source)["slides"][0]["all_spots"]
    true, pred = truth(source, "A2"), np.asarray(made.X, float)
    each = [np.corrcoef(pred[:, g], true[:, g])[0, 1] for g in range(13)]
    assert every["spots"] == 108
    assert every["pcc"] == pytest.approx(np.mean(each), abs=1e-6)
    assert every["mse"] == pytest.approx(np.mean((pred - true) ** 2), rel=1e-5)


def test_both_joins_by_name_and_leaves_out_what_is_not_there(source):
    made = flagged(source)
    order = np.random.default_rng(2).permutation(108)[:90]
    columns = [5, 0, 9, 2]
    found = recovered.both(
        made[order][:, columns], on_file(source).load("A2"), "log2p1", ["G0", "G5"]
    )
    true, pred = truth(source, "A2")[order], np.asarray(made.X, float)[order]
    each = [np.corrcoef(pred[:, g], true[:, g])[0, 1] for g in (0, 5)]
    assert found["spots"] == 90
    assert found["pcc"] == pytest.approx(np.mean(each), abs=1e-6)
    assert found["mse"] == pytest.approx(np.mean((pred - true)[:, [0, 5]] ** 2), rel=1e-5)


def _rows(monkeypatch, prediction, source, **options):
    """What every floor and rival predicted, and the scores, by row name."""
    kept, score = [], scoring.score

    def caught(ground, pred, **held):
        kept.append(np.array(pred))
        return score(ground, pred, **held)

    with monkeypatch.context() as patch:
        patch.setattr(slide_rows.scoring, "score", caught)
        one = slide_rows.evaluate_slide(prediction, source, resamples=0, **options)
    scored = [row for row in one.rows if row.source != "ceiling"]
    assert len(scored) == len(kept)
    return {row.name: pred for row, pred in zip(scored, kept, strict=True)}, one


def test_what_was_measured_at_hidden_spots_reaches_no_rival(source, monkeypatch):
    def other(rows):
        def change(counts):
            counts[rows] = np.random.default_rng(3).poisson(30.0, counts[rows].shape)
            return counts

        return change

    made = flagged(source)
    first, one = _rows(monkeypatch, made, on_file(source))
    assert list(first) == ["prediction: mean", *baselines.RECOVERY_ROWS, "depth oracle"]
    second, two = _rows(monkeypatch, made, on_file(source, change=other(HIDDEN)))
    for name, pred in first.items():
        if name == "depth oracle":  # knows each hidden spot's total
            assert not np.allclose(pred, second[name])
        else:
            np.testing.assert_array_equal(pred, second[name], err_msg=name)
        assert pred.shape == (40, 14)
        before, after = (
            next(row for row in which.rows if row.name == name).scored.values["mse"][0]
            for which in (one, two)
        )
        assert abs(before - after) > 0.1, name
    third, _ = _rows(monkeypatch, made, on_file(source, change=other(~HIDDEN)))
    for name, pred in first.items():
        if name != "prediction: mean":
            assert not np.allclose(pred, third[name]), name


def test_floors_by_hand(source, monkeypatch):
    found, one = _rows(monkeypatch, flagged(source), on_file(source), leave_out=FAST)
    true = truth(source, "A2")
    constant = true[~HIDDEN].mean(axis=0)
    np.testing.assert_allclose(found["constant mean"], np.tile(constant, (40, 1)), rtol=1e-6)
    xy = np.asarray(source.load(["A2"]).array_xy)
    spot = np.flatnonzero(HIDDEN)[0]
    distance = np.hypot(*(xy[~HIDDEN] - xy[spot]).T)
    near = distance <= np.sort(distance)[3] * 1.0001
    np.testing.assert_allclose(
        found["nearest measured mean"][0], true[~HIDDEN][near].mean(axis=0), rtol=1e-6
    )
    total = np.log(np.asarray(source.load(["A2"]).total, float))
    # A line in the logarithm of the total, fitted on measured spots.
    for gene in (0, 7):
        line = np.polyfit(total[~HIDDEN], true[~HIDDEN, gene], 1)
        kept = found["depth oracle"][:, gene]
        agreed = np.corrcoef(kept, np.polyval(line, total[HIDDEN]))[0, 1]
        assert agreed > 0.99
    # R² from training means is relative to the mean of the measured spots, however it is scored.
    row = one.row("constant mean")
    assert row is not None
    assert row.scored.values["r2_train"][0] == pytest.approx(0.0, abs=1e-9)
    first = one.rows[0].scored.values["r2_train"][0]
    left = ((found["prediction: mean"] - true[HIDDEN]) ** 2).sum(axis=0)[:13]
    least = ((constant - true[HIDDEN]) ** 2).sum(axis=0)[:13]
    assert first == pytest.approx(np.mean(1 - left / least), abs=1e-3)


def test_rows_and_who_sees_what(source):
    found = evaluated(flagged(source), source, leave_out=("MLP",))
    rows = {row["name"]: row for row in found["rows"][1:]}
    assert list(rows) == [
        *FLOORS, "ridge", "embedding kNN", "ridge + neighbours", "depth oracle", "noise ceiling",
    ]  # fmt: skip
    assert [name for name, row in rows.items() if row["sees_test"]] == [
        "depth oracle",
        "noise ceiling",
    ]
    # Embeddings decide the counts of these slides: a rival on them beats those that have none.
    errors_of = {name: row["scores"]["mse"]["value"] for name, row in rows.items()}
    assert errors_of["ridge"] < errors_of["constant mean"] - 0.1
    for name in ("constant mean", "kriging", "ridge", "embedding kNN"):
        assert "crps" in rows[name]["scores"]


def test_a_constant_mean_left_out_is_not_shown_missing(source):
    """It cannot be left out of a recovery: R² is relative to it. Others can."""
    rows = [r["name"] for r in evaluated(flagged(source), source)["rows"]]
    assert rows[1:] == [
        "constant mean", "nearest measured mean", "ridge", "ridge + neighbours", "depth oracle",
        "noise ceiling",
    ]  # fmt: skip
    # Names of rows that a recovery does not have are no mistake.
    more = ("constant mean", "HEST probe", "coordinates kNN", *FAST)
    rows = [r["name"] for r in evaluated(flagged(source), source, leave_out=more)["rows"]]
    assert rows[1:3] == ["constant mean", "nearest measured mean"]


def test_the_split_and_the_alerts_say_what_it_is(source):
    found = evaluated(flagged(source), source)
    slide = found["slides"][0]
    assert slide["split_kind"] == "recovery within a slide"
    assert "40 hidden spots of A2, whose others were shown" in slide["split"]
    alerts = {alert["title"]: alert for alert in found["alerts"]}
    assert alerts["recovery within a slide"]["level"] == "note"
    assert "nothing of a slide without measurements" in alerts["recovery within a slide"]["text"]
    # The slide took part in training, and more: that is what a recovery is.
    assert "not a test slide" not in alerts
    assert "recovery within a slide: 40 hidden spots of A2" in tables.table(found)


def test_a_panel_chosen_on_the_slide_is_no_alert_where_the_slide_is_shown(source):
    def told(prediction):
        one = slide_rows.evaluate_slide(
            prediction, truths.of_records(source), resamples=0, leave_out=FAST
        )
        one = dataclasses.replace(one, panel_slides=("A2",))
        result = {
            "rows": evaluate.summarise([(prediction, one)], resamples=0, seed=0)["rows"],
            "intervals": {"of": "spots", "sentence": ""},
        }
        return [alert.title for alert in alerts.find([one], result)]

    assert "panel chosen on the test slide" not in told(flagged(source))
    plain = predicted(source, "A2", truth(source, "A2"), train=["B1"])
    assert "panel chosen on the test slide" in told(plain)


def test_a_prediction_whose_spots_are_all_measured_is_scored_whole(source):
    made = flagged(source)
    made.obs[recovered.MEASURED] = True
    made.uns["stemjax"]["train_slides"] = ["B1"]
    plain = made.copy()
    del plain.obs[recovered.MEASURED]
    found, expected = evaluated(made, source), evaluated(plain, source)
    assert found["slides"][0]["spots"] == 108
    assert found["slides"][0]["all_spots"] is None
    assert [row["name"] for row in found["rows"]] == [row["name"] for row in expected["rows"]]
    assert found["rows"] == expected["rows"]


def test_a_model_that_sees_the_other_spots_of_a_new_slide_is_told_apart(source):
    """Whole slides that a model of windows predicts: no rival from the image knows as much."""
    title = "predicted from the slide's own spots"
    made = predicted(source, "A2", truth(source, "A2"), train=["B1"])
    for kind, said in (("neighbours", True), ("rows", False), ("none", False)):
        made.uns["stemjax"]["model"] = json.dumps({"experiment": {"window": {"kind": kind}}})
        found = {alert["title"]: alert for alert in evaluated(made, source)["alerts"]}
        assert (title in found) == said, kind
    made.obs[recovered.MEASURED] = ~HIDDEN
    made.uns["stemjax"]["model"] = json.dumps({"experiment": {"window": {"kind": "neighbours"}}})
    assert title not in [alert["title"] for alert in evaluated(made, source)["alerts"]]


@pytest.mark.parametrize("hidden", [False, True])
def test_points_without_a_truth_are_left_out(source, hidden):
    made = flagged(source, noise=0.4)
    if not hidden:
        del made.obs[recovered.MEASURED]
        made.uns["stemjax"]["train_slides"] = ["B1"]
    alone, more = (evaluated(one, source) for one in (made, dense(source, made)))
    assert more["slides"][0]["spots"] == (40 if hidden else 108)
    assert more["rows"] == alone["rows"]
    assert more["slides"] == alone["slides"]
    assert [alert["title"] for alert in more["alerts"]] == [a["title"] for a in alone["alerts"]]


def test_genes_that_cannot_be_scored_are_left_out_of_every_row(source):
    """A1 lacks G12, and the prediction was told G3."""
    made = flagged(source, "A1", given_genes=["G3"])
    found = evaluated(made, source, leave_out=("MLP",))
    genes = found["slides"][0]["genes"]
    assert (genes["not_measured"], genes["given"], genes["scored"]) == (1, 1, 11)
    true, pred = truth(source, "A1"), np.asarray(made.X, float)
    kept = [g for g in range(14) if g not in (3, 12)]
    expected = np.mean((pred - true)[np.ix_(HIDDEN, kept)] ** 2)
    assert found["rows"][0]["scores"]["mse"]["value"] == pytest.approx(expected, rel=1e-5)
    every = found["slides"][0]["all_spots"]["mse"]
    assert every == pytest.approx(np.mean((pred - true)[:, kept] ** 2), rel=1e-5)


@pytest.mark.parametrize("measured", [1, 2, 107])
def test_few_measured_and_few_hidden_spots(source, measured):
    hidden = np.arange(108) >= measured
    found = evaluated(flagged(source, hidden=hidden), source, leave_out=("MLP",))
    assert found["slides"][0]["spots"] == 108 - measured
    mse = {row["name"]: row["scores"]["mse"]["value"] for row in found["rows"]}
    assert all(value is not None and np.isfinite(value) for value in mse.values())
    assert {"constant mean", "nearest measured mean", "kriging"} <= set(mse)


def test_draws_of_hidden_spots(source):
    true = truth(source, "A2")
    draws = true + np.random.default_rng(0).normal(0, 0.7, (8, *true.shape))
    made = predicted(
        source, "A2", draws.mean(axis=0), train=["A2"], mode="draws", draws=draws
    )  # fmt: skip
    made.obs[recovered.MEASURED] = ~HIDDEN
    found = evaluated(made, source)
    single = found["rows"][1]
    assert single["source"] == "single draw"
    expected = np.mean((np.float32(draws) - true)[:, HIDDEN] ** 2)
    assert single["scores"]["mse"]["value"] == pytest.approx(expected, rel=1e-5)
    inside = found["rows"][0]["scores"]["coverage_90"]["value"]
    assert 0.6 < inside < 1.0
