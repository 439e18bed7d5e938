"""benchmarks/headline.py: the table of cost and quality that README.md shows."""

from __future__ import annotations

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import headline
    import pages

    return headline, pages


def row(model, way, seed, evaluations, mse, **scores):
    value = {"mse": mse, **scores}
    return {
        "place": "her2st", "model": model, "way": way, "seed": seed, "evaluations": evaluations,
        "scores": {k: {"value": v, "interval": [v - 0.1, v + 0.1]} for k, v in value.items()},
    }  # fmt: skip


ABOUT = {"cores": 2, "device": "cpu", "load": 0.5, "jax": "0", "stemjax": "0", "commit": "abc"}


@pytest.fixture
def results():
    peers = {
        **ABOUT,
        "lines": [
            {"job": "published", "side": "torch", "seconds_per_spot": 1000.0},
            {"job": "draws", "side": "ours", "seconds_per_spot": 4.0},
            {"job": "draws", "side": "ours", "seconds_per_spot": 2.5},
            {"job": "pair", "side": "torch", "seconds_per_spot": 0.125},
            {"job": "pair", "side": "ours", "seconds_per_spot": 0.25},
            {"job": "mean", "side": "ours", "seconds_per_spot": 0.02},
        ],
        "ratios": [
            {"section": "equal", "job": "pair", "ratio": 2.0},
            {"section": "default", "job": "draws", "ratio": 400.0},
            {"section": "default", "job": "pair", "ratio": 4000.0},
            {"section": "default", "job": "mean", "ratio": 50000.0},
        ],
    }
    lines = [row("ddpm", "ancestral 1000", 0, 20000, 1.5, energy=9.0)]
    for seed in (0, 1):
        lines += [
            row("edm", "dpmpp2m 8", seed, 160, 1.0, energy=8.0 + seed, crps=0.5),
            row("edm", "pair, dpmpp2m 8", seed, 16, 1.2),
            row("edm", "mean token", seed, 1, 0.98 + 0.04 * seed),
            {**row("edm", "mean token", seed, 1, 7.0), "place": "law"},
        ]
    defaults = [
        {"place": "her2st", "rival": ["ddpm", "ancestral 1000"], "difference": -0.5,
         "interval": [-0.6, -0.4], "verdict": "better", "seeds": 1},
        {"place": "law", "rival": ["edm", "heun 18"], "difference": 3.0,
         "interval": [2.0, 4.0], "verdict": "worse", "seeds": 2},
    ]  # fmt: skip
    return peers, {**ABOUT, "lines": lines, "defaults": defaults}


def test_each_way_has_its_cost_and_its_quality(scripts, results):
    page = scripts[0].tables(*results)
    # The fastest variant's time; scores averaged over networks, and so the ends of intervals.
    assert "| 20 draws | 160 | 2.5 | 400 |  | 1.000 [0.900, 1.100] |  | 0.500 | 8.500 [8" in page
    assert "| published protocol | 20,000 | 1,000 | 1 |  | 1.500 [1.400, 1.600] |" in page
    assert "| pair | 16 | 0.25 | 4,000 |" in page
    assert "| mean | 1 | 0.02 | 50,000 |  | 1.000 [0.900, 1.100] |" in page
    assert "ddpm ancestral 1000: -0.5000 [-0.6000, -0.4000], better, one network." in page
    assert "heun 18" not in page  # of the law
    # .98 and 1.02 of the draws' error.
    assert "averaged: 1.000 ± 0.028, 2 networks." in page


def test_half_a_table_is_none(scripts, results):
    peers, found = results
    lines = [line for line in found["lines"] if line["model"] != "ddpm"]
    page = scripts[0].tables(peers, {**found, "lines": lines})
    assert page == "Not measured yet: published protocol on HER2ST."


def test_a_page_composed_of_two_results_needs_both(scripts, results, tmp_path):
    page = "<!-- tables of headline -->\n<!-- end -->\n"
    (tmp_path / "peers.json").write_text(json.dumps(results[0]))
    assert "Not measured yet." in scripts[1].filled(page, tmp_path)
    (tmp_path / "frontier.json").write_text(json.dumps(results[1]))
    made = scripts[1].filled(page, tmp_path)
    assert made.count("Measured on 2 shared cpu cores") == 2
    assert "| pair | 16 |" in made


def test_readme_shows_the_results_that_are_committed(scripts):
    text = (ROOT / "README.md").read_text()
    assert "<!-- tables of headline -->" in text
    assert scripts[1].filled(text) == text
