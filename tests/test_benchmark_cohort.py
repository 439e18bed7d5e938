"""benchmarks/cohort.py: its records, a run of it, what its figures mean."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from stemjax import config, configfile
from stemjax.data import records

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cohort():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import cohort

        yield cohort


def test_the_made_spots_are_spread_over_the_slides(cohort, tmp_path):
    cohort.write_records(tmp_path, spots=25, count=3, panel=4, width=5)
    opened = records.open_records(tmp_path)
    assert [info.n_spots for info in opened.slides.values()] == [9, 8, 8]
    table = opened.load(list(opened.slides))
    assert table.embeddings.shape == (25, 1, 5)
    assert len(set(table.barcodes)) == 25
    # A spot lies at a place of its own, so that a map of the slide can be drawn.
    assert len(np.unique(table.pixel_xy[table.slide_index == 0], axis=0)) == 9


def test_a_run_says_what_memory_and_time_it_took(cohort, tmp_path, monkeypatch):
    cohort.write_records(tmp_path, spots=40, count=2, panel=4, width=5)
    experiment = config.resolve(
        configfile.load(
            str(ROOT / "configs" / "lite.py"), ["--config.model.width=8", "--config.model.depth=1"]
        )
    )
    held = {"VmRSS": iter(range(100, 1000, 10)), "VmHWM": iter((470, 470))}
    monkeypatch.setattr(cohort, "resident", lambda name="VmRSS": next(held[name]))
    line = cohort.predict(tmp_path, "zarr", experiment, block=8)
    assert (line["spots"], line["slides"], line["start_bytes"]) == (40, 2, 100)
    assert line["marks_bytes"] == list(range(110, 110 + 10 * len(line["marks_bytes"]), 10))
    assert 5 <= len(line["marks_bytes"]) <= 10
    assert (line["peak_bytes"], line["above_start_bytes"]) == (470, 370)
    assert line["spots_per_s"] == pytest.approx(40 / line["seconds"])
    assert line["written_bytes"] > 40 * 4 * 4 * 3  # the draws are float32
    # Nothing of it is left beside the records.
    assert [path.name for path in tmp_path.iterdir()] == ["spots"]


def test_the_kernels_figures_are_bytes(cohort):
    before = cohort.resident()
    held = np.ones(2**25)  # 256 MiB, touched
    assert 0.99 * held.nbytes < cohort.resident() - before < 1.1 * held.nbytes
    assert cohort.resident("VmHWM") >= cohort.resident()
    with pytest.raises(RuntimeError, match="VmNone"):
        cohort.resident("VmNone")


def line(way, spots, above):
    return {
        "way": way, "spots": spots, "slides": 1, "start_bytes": 5e8, "peak_bytes": 5e8 + above,
        "above_start_bytes": above, "end_bytes": 5e8, "spots_per_s": 1234.5, "written_bytes": spots,
    }  # fmt: skip


def test_the_slope_is_of_the_two_largest_runs(cohort):
    lines = [line("mean", 10**4, 9e9), line("mean", 10**6, 3e8), line("mean", 10**5, 2.1e8)]
    found = cohort.slopes([*lines, line("zarr", 10**5, 2e8), line("zarr", 10**6, 1e8)])
    assert found["mean"]["bytes_per_spot"] == pytest.approx(100)
    assert found["mean"]["far_bytes"] == pytest.approx(3e8 + 100 * 9e6)
    # Less memory for more spots is an accident, which goes no further.
    assert found["zarr"]["bytes_per_spot"] < 0
    assert found["zarr"]["far_bytes"] == pytest.approx(1e8)
    assert cohort.slopes(lines[:1]) == {}


def test_the_tables_say_what_was_not_run(cohort):
    lines = [line("mean", 10**5, 2.1e8), line("mean", 10**6, 3e8)]
    result = {"genes": 50, "condition": 64, "block": 16384, "lines": lines}
    text = cohort.tables({**result, "slopes": cohort.slopes(lines)})
    assert "| mean | 1,000,000 | 1 | 500 | 800 | 300 | 500 | 1,234 | 1 |" in text
    assert "1,200 MB above the start at 10^7 spots by a straight line (not run)" in text


def test_the_script_measures_each_way_in_a_process_of_its_own(cohort, tmp_path, capsys):
    out = tmp_path / "out.json"
    small = ["--config.model.width=8", "--config.model.depth=1", "--genes", "4", "--condition", "5"]
    cohort.main([*small, "--spots", "50", "--way", "mean", "--block", "16", "--json", str(out)])
    found = json.loads(out.read_text())
    assert [(each["way"], each["spots"]) for each in found["lines"]] == [("mean", 50)]
    assert found["slopes"] == {}
    assert found["block"] == 16
    assert "| mean | 50 | 1 |" in capsys.readouterr().out
    assert all(each["peak_bytes"] > each["start_bytes"] > 5e7 for each in found["lines"])
