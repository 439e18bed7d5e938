"""Ids, barcodes and genes from anywhere, and the files that their names get into."""

from __future__ import annotations

import csv
import json

import made_prediction
import payloads
import pytest
from hostile_predictions import NAMES

from stemjax import cli, errors, names
from stemjax.data import builder, genes, slide_names, slides
from stemjax.eval import tables
from stemjax.integrations import loupe, qupath
from stemjax.integrations import prediction as predictions

BAD_IDS = [
    *("", ".", "..", "../x", "/etc/x", "a/../../b", "a\\b", "C:x", "CON", "con", "nul.txt"),
    *("COM1", "lpt9.h5", "a\0b", "a\nb", "a b", "slide\u202egnp", "é", "\uff21", "-rf", ".x"),
    *("x.", "x" * 129, "x" * 300, "~", "$HOME", "a;b", "%2e%2e", "_" * 61, "a\u200bb"),
]


@pytest.mark.parametrize("given", BAD_IDS, ids=ascii)
def test_an_id_that_is_no_name_of_a_file_is_refused_by_its_name(given):
    assert not names.is_id(given)
    with pytest.raises(errors.SlideError, match="slide id cannot be used") as caught:
        slides.require_id(given)
    assert repr(given)[:60] in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        "A1",
        "S1_rep.2",
        "TCGA-A1-A0SK-01Z-00-DX1.A44D70FA",
        "_x",
        "x-",
        "conch",
        "com10",
        "all",
        "9",
    ],
)
def test_an_id_that_people_use_is_taken(given):
    assert names.is_id(given)


def test_the_longest_id_has_names_of_files_that_disks_take():
    worst = "x-" + "_." * 30 + "y" * 66
    assert names.is_id(worst)
    for suffix in (".h5ad", ".draws.zarr", ".json"):
        # Beside its place a file has a dot, a host and a number more.
        assert len(f".{builder.split_name(worst)}{suffix}.tmp-01234567-01234567") < 255


def test_no_gene_names_a_device_a_flag_or_a_hidden_file():
    given = ["CON", "nul.x", "-rf", "..-x", ".ssh", "COM1", "a/../../b", "con"]
    found = names.file_names(given, ".png")
    assert len({name.lower() for name in found}) == len(given)
    for name in found:
        assert not name.startswith((".", "-"))
        assert not names.is_device(name)
        assert "/" not in name


FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "\nx",
    " =1",
    "\uff1d1",
    "=cmd|' /C calc'!A0",
]


@pytest.mark.parametrize("given", FORMULAS, ids=ascii)
def test_a_name_is_no_formula(given):
    assert names.cell(given) == f"'{given}"


@pytest.mark.parametrize("given", ["A1", "HLA-A", "1=2", "a@b", "", "'x"])
def test_other_names_stay(given):
    assert names.cell(given) == given


def test_numbers_of_scores_stay_numbers_beside_guarded_names():
    score = {"value": -1.5, "interval": [-2.0, -1.0]}
    row = {"name": "=1+1", "source": "rival", "sees_test": False, "scores": {"mse": score}}
    text = tables.to_csv({"slides": [{"slide": "@x"}], "rows": [row]})
    head, line = csv.reader(text.splitlines())
    found = dict(zip(head, line, strict=True))
    assert (found["slides"], found["row"]) == ("'@x", "'=1+1")
    assert [float(found[key]) for key in ("value", "low", "high")] == [-1.5, -2.0, -1.0]


UNSEEN = [
    "a\x1b[2J",
    "a\x00",
    "a\nb",
    "a\tb",
    "a\u202eb",
    "a\u200bb",
    "a\ud800",
    "a\u2028b",
    "x" * 401,
]


@pytest.mark.parametrize("name", UNSEEN, ids=ascii)
@pytest.mark.parametrize("what", ["gene", "barcode"])
def test_a_name_that_cannot_be_seen_is_refused(what, name):
    with pytest.raises(errors.SlideError, match=f"slide S1: 1 {what} names cannot") as caught:
        slide_names.require_names(["fine", name], what, "S1")
    text = str(caught.value)
    assert text.isascii()
    assert not {"\x1b", "\0", "\n", "\t"} & set(text)


@pytest.mark.parametrize("name", UNSEEN, ids=ascii)
def test_a_panel_has_no_such_gene(name):
    with pytest.raises(errors.GenePanelError, match="can be seen"):
        genes.Panel(genes=("A", name), rule="made", slides=())


def test_a_slide_of_such_names_is_refused():
    with pytest.raises(errors.SlideError, match="1 gene names cannot"):
        payloads.slide(("A", "B\x1b", *payloads.GENES[2:]))


def test_geojson_holds_the_names_and_nothing_else(tmp_path):
    made = made_prediction.make(genes=NAMES)
    made.obs_names = [f'"}},{{"x":"<script>{i}' for i in range(made.n_obs)]
    qupath.write(predictions.of_anndata(made), tmp_path / "a.geojson", genes=NAMES)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert [one["properties"]["name"] for one in features] == list(made.obs_names)
    assert set(features[0]["properties"]["measurements"]) == {
        f"{gene} {what}" for gene in NAMES for what in ("mean", "std")
    }


def test_loupe_has_barcodes_as_they_are_and_no_formula(tmp_path):
    made = made_prediction.make(genes=NAMES)
    path, _ = loupe.write(predictions.of_anndata(made), tmp_path / "out", genes=NAMES)
    head, *body = csv.reader(path.read_text().splitlines())
    assert [line[0] for line in body] == list(made.obs_names)
    assert not any(cell.startswith(("=", "+", "-", "@")) for line in (head, *body) for cell in line)


def test_a_report_shows_names_and_runs_nothing(tmp_path, capsys):
    made = made_prediction.make(genes=NAMES)
    made.uns["stemjax"]["slide"] = NAMES[1]
    made.write_h5ad(tmp_path / "p.h5ad")
    assert cli.main(["report", str(tmp_path / "p.h5ad"), "-o", str(tmp_path / "r.html")]) == 0
    capsys.readouterr()
    page = (tmp_path / "r.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "<img src=x" not in page
    assert str(tmp_path) not in page
