"""Floors and ceilings of HER2ST: the real sections against what other code measured before."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# The one cell that is not reproduced: MUC6 (3 molecules in all of B1, dozens a spot in patient C)
# makes nine tenths of it here, and which genes and sections were there decides it.
NOT_REPRODUCED = {("depth oracle", "rvd")}


@pytest.fixture(scope="module")
def floors():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import her2st_floors

        yield her2st_floors


@pytest.fixture(scope="module")
def section_b1(floors, her2st, tmp_path_factory):
    """What the command of the docstring writes for B1, and what it prints."""
    path = tmp_path_factory.mktemp("floors") / "out" / "b1.json"
    with pytest.MonkeyPatch.context() as patch:
        command = ["her2st_floors.py", "--data", str(her2st), "--section", "B1"]
        patch.setattr(sys, "argv", [*command, "--json", str(path)])
        floors.main()
    return json.loads(path.read_text())


@pytest.mark.her2st
def test_section_b1_is_reproduced_within_3_hundredths(floors, section_b1):
    lines = section_b1["sections"]["B1"]
    apart = {
        (line["row"], column): value
        for line in lines
        for column, value in floors.differences(line).items()
    }
    known = [v for row in floors.PUBLISHED["B1"].values() for v in row if v is not None]
    assert len(apart) == len(known) == 46  # every published cell has ours
    far = {cell for cell, value in apart.items() if abs(value) > 0.03}
    assert far == NOT_REPRODUCED


@pytest.mark.her2st
def test_the_cell_that_is_not_reproduced_hangs_on_one_gene(floors, section_b1):
    (line,) = [e for e in section_b1["sections"]["B1"] if e["row"] == "depth oracle"]
    assert line["rvd_worst_gene"] == "MUC6"
    assert line["rvd_without_it"] < 0.1 * line["rvd"]
    # Without it the value is of the published size (3.02), which 28 of 35 sections cannot repeat.
    assert 1.5 < line["rvd_without_it"] < 4.5


@pytest.mark.her2st
def test_the_printed_table_shows_ours_and_the_published_value(floors, section_b1):
    text = floors.tables(section_b1)
    lines = {e["row"]: e for e in section_b1["sections"]["B1"]}
    mse = lines["own 4 neighbours"]["mse"]
    assert f"{mse:.3f} (0.596)" in text
    assert "RVD of depth oracle" in text
    assert "(29 sections)" in text


def small_sections(floors, monkeypatch):
    """Three tiny sections of two patients, with known counts, in place of a folder."""
    import scipy.sparse

    from stemjax.data import images, slides

    def section(name, n):
        rng = np.random.default_rng(n)
        grid = np.stack(np.meshgrid(np.arange(6), np.arange(5)), axis=-1).reshape(-1, 2)
        return slides.Slide(
            id=name,
            patient=name[0],
            counts=scipy.sparse.csr_array(rng.poisson(rng.gamma(2.0, 2.0, (30, 40)))),
            genes=tuple(f"G{i}" for i in range(40)),
            barcodes=tuple(f"{x}x{y}" for x, y in grid),
            array_xy=grid.astype(np.float32),
            pixel_xy=(100.0 + 50.0 * grid).astype(np.float32),
            image=images.ArrayImage(np.full((600, 600, 3), 230, np.uint8)),
            mpp=1.0,
            spot_diameter_um=50.0,
            sources={},
        )

    made = {name: section(name, i) for i, name in enumerate(("P1", "P2", "P3", "P11", "Q1", "Q2"))}
    monkeypatch.setattr(floors, "N_GENES", 12)
    monkeypatch.setattr(floors.st, "list_slides", lambda folder: list(made))
    monkeypatch.setattr(floors.st, "read_slide", lambda folder, name, **_: made[name])
    return floors.Sections(pathlib.Path("nowhere"))


def test_the_next_section_is_the_nearest_in_number(floors, monkeypatch):
    sections = small_sections(floors, monkeypatch)
    assert [sections.next_to(name) for name in ("P1", "P2", "P3", "P11", "Q2")] == [
        "P2",
        "P3",
        "P2",
        "P3",
        "Q1",
    ]
    assert sections.others("P2") == ["P1", "P3", "P11"]


def test_no_row_sees_more_than_its_name_says(floors, monkeypatch):
    sections = small_sections(floors, monkeypatch)

    def lines():
        return {line["row"]: line["mse"] for line in floors.section_table(sections, "P1")
                if "mse" in line}  # fmt: skip

    before, seen = lines(), {}
    for name in ("P2", "P3", "Q1"):
        kept = sections._spots[name]
        counts = kept.counts.copy()[::-1] + 5
        sections._spots[name] = floors.Spots(
            counts=counts, total=kept.total[::-1] + 60, mask=kept.mask, xy=kept.xy
        )
        after = lines()
        seen[name] = {row for row in before if after[row] != before[row]}
        sections._spots[name] = kept
    own = {"constant mean, patient's other sections", "coordinates, 40-NN in all other sections"}
    near = {"coordinates, 1-NN in next section", "coordinates, 10-NN in next section"}
    assert seen["P2"] == own | near | {"depth oracle"}
    assert seen["P3"] == own | {"depth oracle"}
    assert seen["Q1"] == {"constant mean, patient removed", "depth oracle"}


def test_the_page_shows_the_results_that_are_committed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pages

    text = (ROOT / "docs" / "floors.md").read_text()
    assert text.count("| --- |") >= 3  # B1, and all sections in two spaces
    assert pages.filled(text) == text
    assert pages.filled(text.replace("| 0.3", "| 0.9")) == text  # and come from the results
