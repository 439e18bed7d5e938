"""Alerts: each appears for its reason, and not without."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from made_slides import predicted, truth, write_source

from stemjax.eval import evaluate, joining, slide_rows

FAST = ("MLP", "embedding kNN", "HEST probe")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("records"))


def alerts(prediction, source, **options):
    options = {"resamples": 5, "leave_out": FAST} | options
    found = evaluate.evaluate(prediction, source, **options)["alerts"]
    return {alert["title"]: alert for alert in found}


def test_a_sound_prediction_of_a_new_patient_has_few(source):
    mean = truth(source, "B1") + np.random.default_rng(0).normal(0, 0.3, (108, 14))
    found = alerts(predicted(source, "B1", np.maximum(mean, 0), train=["A1", "A2"]), source)
    assert set(found) == {"constant genes"}
    assert "1 of 14 genes do not vary" in found["constant genes"]["text"]


@pytest.mark.parametrize(
    ("slide", "train", "title", "level", "said"),
    [
        ("A2", ["A1"], "interpolation within a patient", "warning", "A1 of patient A"),
        ("A2", ["A2", "B1"], "not a test slide", "error", "A2 was used in training"),
        ("U1", ["A1"], "patients unknown", "warning", "U1"),
    ],
)
def test_what_the_split_means(source, slide, train, title, level, said):
    found = alerts(predicted(source, slide, truth(source, slide), train=train), source)
    assert found[title]["level"] == level
    assert said in found[title]["text"]


def test_errors_come_before_warnings_before_notes(source):
    prediction = predicted(source, "A2", -truth(source, "A2"), train=["A2", "B1"])
    found = evaluate.evaluate(prediction, source, resamples=0, leave_out=FAST)["alerts"]
    levels = [alert["level"] for alert in found]
    order = {"error": 0, "warning": 1, "note": 2}
    assert levels == sorted(levels, key=order.get)
    assert set(levels) == {"error", "warning", "note"}


def test_another_tools_prediction_says_what_was_assumed_and_what_is_missing(source):
    data = anndata.AnnData(
        X=truth(source, "B1")[5:, 1:],
        obs=pd.DataFrame(index=list(source.load(["B1"]).barcodes[5:])),
        var=pd.DataFrame(index=list(source.genes[1:])),
    )
    data.var_names = [*data.var_names[:-1], "NOVEL"]
    found = alerts(data, source, foreign=joining.Foreign(slide="B1"))
    assert "log2(count + 1)" in found["another tool's prediction"]["text"]
    assert "all other slides" in found["training slides assumed"]["text"]
    assert "5 of 108 spots" in found["missing spots"]["text"]
    assert "2 of 14 genes" in found["missing genes"]["text"]
    assert "G0, G13" in found["missing genes"]["text"]
    assert "1 predicted genes" in found["unknown genes"]["text"]
    assert "NOVEL" in found["unknown genes"]["text"]
    told = joining.Foreign(slide="B1", train_slides=("A1",))
    assert "training slides assumed" not in alerts(data, source, foreign=told)


def test_values_that_counts_do_not_have(source):
    high = truth(source, "B1")
    high[3] = 99.0
    found = alerts(predicted(source, "B1", high, train=["A1"]), source)
    assert "1 spots" in found["values out of range"]["text"]
    low = truth(source, "B1") - 3.0
    found = alerts(predicted(source, "B1", low, train=["A1"]), source)
    share = np.mean(low < 0)
    assert f"{share:.0%} of predicted values" in found["negative values"]["text"]


def test_spots_whose_patches_are_unlike_training():
    rng = np.random.default_rng(0)
    train, alike = rng.normal(size=(1500, 40)), rng.normal(size=(1000, 40))
    expected = slide_rows.share_out_of_range(train, alike)
    # 1 % of the training spots by definition; a new spot of the same law has no twin among them.
    assert expected < 0.05
    shifted = alike.copy()
    shifted[:300] += 8.0
    assert slide_rows.share_out_of_range(train, shifted) == pytest.approx(0.3, abs=0.05)
    constant = np.c_[train, np.ones(1500)]
    again = slide_rows.share_out_of_range(constant, np.c_[alike, np.ones(1000)])
    assert again == pytest.approx(expected, abs=0.005)
    assert slide_rows.share_out_of_range(train[:2], alike) is None


def test_a_slide_of_strange_patches_is_reported(source, monkeypatch):
    monkeypatch.setattr(slide_rows, "share_out_of_range", lambda train, test: 0.4)
    found = alerts(predicted(source, "B1", truth(source, "B1"), train=["A1"]), source)
    assert "40% of its spots are unlike any in training" in found["spots out of range"]["text"]


def with_draws(source, scale):
    true = truth(source, "B1")
    rng = np.random.default_rng(0)
    centre = true + rng.normal(0, 1.0, true.shape)
    draws = centre + scale * rng.normal(0, 1.0, (40, *true.shape))
    return predicted(source, "B1", draws.mean(axis=0), train=["A1"], mode="draws", draws=draws)


@pytest.mark.parametrize(("scale", "poor"), [(0.3, True), (1.0, False), (4.0, True)])
def test_spread_that_is_too_narrow_or_too_wide(source, scale, poor):
    found = alerts(with_draws(source, scale), source)
    assert ("poor calibration" in found) is poor
    if poor:
        assert "predicted 90 % intervals" in found["poor calibration"]["text"]
        assert "stemjax calibrate" in found["poor calibration"]["text"]


def test_calibrated_intervals_are_judged_where_there_are_some(source):
    made = with_draws(source, 0.3)
    width = 1.645  # the 90 % interval of a normal error of 1
    made.layers["stemjax_lower_90"] = (np.asarray(made.X) - width).astype(np.float32)
    made.layers["stemjax_upper_90"] = (np.asarray(made.X) + width).astype(np.float32)
    assert "poor calibration" not in alerts(made, source)
    made.layers["stemjax_upper_90"] = np.asarray(made.X) + 0.1
    text = alerts(made, source)["poor calibration"]["text"]
    assert text.startswith("The calibrated 90 % intervals")


def test_a_prediction_of_depth_alone_is_called_that(source):
    table = source.load(["B1"])
    line = np.log2(1.0 + table.total)[:, None] * np.ones(14)
    found = alerts(predicted(source, "B1", line, train=["A1"]), source)
    assert found["depth-driven PCC"]["level"] == "warning"
    assert "to 0.000" in found["depth-driven PCC"]["text"]
    noisy = line + np.random.default_rng(0).normal(0, 1, line.shape)
    found = alerts(predicted(source, "B1", noisy, train=["A1"]), source)
    assert "below the depth oracle" in found


def test_a_panel_chosen_on_the_slide_is_reported(source, monkeypatch):
    chosen = dict.fromkeys(("A1", "B1"))
    panel = source.panel.__class__(genes=source.genes, rule="made", slides=tuple(chosen))
    other = source.__class__(**{**vars(source), "panel": panel})
    found = alerts(predicted(source, "B1", truth(source, "B1"), train=["A1"]), other)
    assert "B1 helped to choose the genes" in found["panel chosen on the test slide"]["text"]
    found = alerts(predicted(source, "A2", truth(source, "A2"), train=["B1"]), other)
    assert "panel chosen on the test slide" not in found
