"""The recovery benchmark: what its rows train on, what it counts, what its tables say."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def recovery(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import recovery

    return recovery


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import recovery_tables

    return recovery_tables


@pytest.fixture
def field(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import field

    return field


def score(value):
    return {"value": value, "interval": [value - 0.1, value + 0.1]}


def row(name, pcc, mse, first=None, verdict="not distinguishable"):
    less = {}
    if first is not None:
        less = {
            key: {"difference": ours - theirs, "interval": [-1.0, 1.0], "verdict": verdict}
            for key, ours, theirs in (("pcc_all", first[0], pcc), ("mse", first[1], mse))
        }
    return {
        "name": name, "source": "rival", "sees_test": False,
        "scores": {"pcc_all": score(pcc), "mse": score(mse)}, "less": less,
    }  # fmt: skip


def section(ours, floor, verdict="not distinguishable"):
    rows = [row("mean", *ours), row("nearest measured mean", *floor, ours, verdict)]
    return {"positions": {"rows": rows, "hidden": 9, "all_spots": None, "seconds": {}}}


def test_a_section_counts_as_better_by_the_sign_of_each_score(shown):
    sections = {
        "A1": section((0.5, 1.0), (0.4, 1.2), "better"),
        "A2": section((0.5, 1.0), (0.6, 1.1)),
        "A3": section((0.5, 1.0), (0.4, 0.9)),
    }
    found = shown.better(sections, "positions", "nearest measured mean")
    assert found == {"of": 3, "pcc_all": 2, "mse": 2, "pcc_all_clear": 1, "mse_clear": 1}
    assert shown.better(sections, "positions", "kriging")["of"] == 0
    assert shown.better(sections, "image", "nearest measured mean")["of"] == 0


def test_the_summary_averages_only_what_every_section_has(shown):
    sections = {"A1": section((0.5, 1.0), (0.4, 1.2)), "A2": section((0.3, 2.0), (0.2, 2.2))}
    sections["A1"]["positions"]["rows"].append(row("kriging", 0.6, 0.9, (0.5, 1.0)))
    text = shown.summary_markdown(sections, "positions", "spots")
    mean = next(line for line in text.splitlines() if "mean of 2" in line)
    cells = [cell.strip() for cell in mean.split("|")]
    assert cells[2:5] == ["0.400 / 1.500", "0.300 / 1.700", ""]
    assert "better PCC on 2 of 2 sections" in text
    assert shown.summary_markdown(sections, "image", "spots") == ""


def test_rows_train_on_the_section_alone_unless_they_say_otherwise(recovery):
    for model in recovery.MODELS:
        made = recovery.experiment(model, "C5", "blocks", ("B4", "C2", "C5"))
        assert made.data.recover == "C5"
        assert made.data.hide == "blocks"
        assert made.data.train == ("B4,C2" if model.others else "")
        assert made.data.transform == recovery.SPACE
    names = [(model.name, model.sees) for model in recovery.MODELS]
    assert len(set(names)) == len(names)
    assert [m.name for m in recovery.MODELS if m.everywhere] == ["HisToSGE", "HisToSGE"]


def test_the_fields_table_says_how_far_above_the_best_each_row_is(field):
    sections = [
        {"best possible, all genes": 0.5, "kriging": 0.6},
        {"best possible, all genes": 0.4, "kriging": 0.5},
    ]
    text = field.tables({"sections": sections, "spots": 64, "genes": 5})
    line = next(line for line in text.splitlines() if line.startswith("| kriging"))
    above = np.mean([0.6 / 0.5, 0.5 / 0.4]) - 1
    assert f"{above:+.1%}" in line
    assert "0.5500" in line
