"""``stemjax report`` and ``compare`` on written records, as a user meets them."""

from __future__ import annotations

import csv
import io
import json
import logging

import anndata
import numpy as np
import pandas as pd
import pytest
from made_slides import predicted, truth, write_source

from stemjax import cli

QUICK = ["--resamples", "20", "--leave-out", "MLP,embedding kNN,HEST probe"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Records, two predictions of A2, one of A1, another tool's of B1, and a file of counts."""
    out = tmp_path_factory.mktemp("report")
    source = write_source(out / "records")
    for name, slide, noise in (("good", "A2", 0.2), ("bad", "A2", 0.9), ("other", "A1", 0.3)):
        true = truth(source, slide)
        mean = true + np.random.default_rng(0).normal(0, noise, true.shape)
        made = predicted(source, slide, mean, train=["B1"], seed=1)
        made.obsm["spatial"] = np.asarray(source.load([slide]).pixel_xy, float)
        made.write_h5ad(out / f"{name}.h5ad")
    table = source.load(["B1"])
    foreign = anndata.AnnData(
        X=np.log1p(table.counts).astype(np.float32),
        obs=pd.DataFrame(index=list(table.barcodes)),
        var=pd.DataFrame(index=list(source.genes)),
    )
    foreign.write_h5ad(out / "foreign.h5ad")
    counts = foreign.copy()
    counts.X = np.asarray(table.counts, np.float32)
    counts.obsm["spatial"] = np.asarray(table.pixel_xy, float)
    counts.write_h5ad(out / "counts.h5ad")
    return out


def run(made, *args):
    return cli.main([part.replace("{}", str(made)) for part in args])


def test_a_page_is_written(made, capsys):
    assert (
        run(made, "report", "{}/good.h5ad", "--truth", "{}/records", "-o", "{}/r.html", *QUICK) == 0
    )
    page = (made / "r.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "Predicted expression: A2" in page
    said = capsys.readouterr().out
    assert "WARNING: constant" not in said  # notes stay on the page
    assert f"wrote {made}/r.html" in said


def test_numbers_alone_as_csv_and_json_by_name_or_flag(made):
    base = ["report", "{}/good.h5ad", "--truth", "{}/records", *QUICK]
    assert run(made, *base, "-o", "{}/r.json") == 0
    assert run(made, *base, "-o", "{}/r.csv") == 0
    assert run(made, *base, "--format", "json", "-o", "{}/named.html") == 0
    result = json.loads((made / "r.json").read_text())
    assert json.loads((made / "named.html").read_text()) == result
    lines = list(csv.DictReader(io.StringIO((made / "r.csv").read_text())))
    first = result["rows"][0]["scores"]["mse"]["value"]
    assert float(next(x for x in lines if x["score"] == "mse")["value"]) == first


def test_another_tools_file_gives_a_full_report(made, capsys):
    args = ["report", "{}/foreign.h5ad", "--truth", "{}/records", "--slide", "B1"]
    args += ["--value-space", "log1p", "--train", "A1,A2", "--genes", "G1", "-o", "{}/f.html"]
    assert run(made, *args, *QUICK) == 0
    page = (made / "f.html").read_text()
    for part in ("ln(count + 1)", "new patient", "ridge", "noise ceiling", "G1 over the tissue"):
        assert part in page
    assert run(made, *args[:-1], "{}/f.json", *QUICK) == 0
    result = json.loads((made / "f.json").read_text())
    assert result["rows"][0]["scores"]["mse"]["value"] == pytest.approx(0, abs=1e-10)


def test_a_file_of_counts_is_truth_enough(made):
    args = ["report", "{}/foreign.h5ad", "--truth", "{}/counts.h5ad", "--value-space", "log1p"]
    assert run(made, *args, "-o", "{}/c.json", "--resamples", "20") == 0
    result = json.loads((made / "c.json").read_text())
    assert [row["name"] for row in result["rows"]] == [
        "prediction: mean",
        "neighbour mean",
        "depth oracle",
        "noise ceiling",
    ]
    assert result["rows"][0]["scores"]["pcc_all"]["value"] == pytest.approx(1)
    assert run(made, *args, "-o", "{}/c.html", "--resamples", "20") == 0


def test_without_truth_there_is_a_page_of_maps(made, capsys):
    assert run(made, "report", "{}/good.h5ad", "-o", "{}/maps.html") == 0
    assert "no truth was given" in capsys.readouterr().out
    assert "no truth" in (made / "maps.html").read_text()


def test_slides_together_and_a_rival_for_each(made):
    args = ["report", "{}/good.h5ad", "{}/other.h5ad", "--truth", "{}/records"]
    args += ["--compare", "again={}/bad.h5ad,{}/other.h5ad", "-o", "{}/two.json", *QUICK]
    assert run(made, *args) == 0
    result = json.loads((made / "two.json").read_text())
    assert [slide["slide"] for slide in result["slides"]] == ["A2", "A1"]
    assert result["rows"][-1]["name"] == "again: mean"


def test_warnings_are_plain_lines_whatever_libraries_set_up(monkeypatch, capsys):
    log = logging.getLogger("stemjax.train.loop")
    monkeypatch.setattr(cli.compare, "_run", lambda args, rest: log.warning("LEAK: %s", "B1"))
    root = logging.StreamHandler()
    logging.root.addHandler(root)
    try:
        assert cli.main(["compare", "a.json"]) == 0
    finally:
        logging.root.removeHandler(root)
    assert capsys.readouterr().err == "LEAK: B1\n"
    assert logging.getLogger("stemjax").propagate
    assert not logging.getLogger("stemjax").handlers


def test_results_are_compared(made, capsys):
    for name in ("good", "bad"):
        args = ["report", f"{{}}/{name}.h5ad", "--truth", "{}/records", "-o", f"{{}}/{name}.json"]
        assert run(made, *args, *QUICK) == 0
    capsys.readouterr()
    assert run(made, "compare", "{}/good.json", "{}/bad.json", "-o", "{}/both.json") == 0
    said = capsys.readouterr().out
    assert "good against bad: " in said
    assert "better" in said
    both = json.loads((made / "both.json").read_text())
    assert [row["name"] for row in both["rows"]] == ["good", "bad"]
    less = both["rows"][1]["first_minus_row"]["mse"]
    assert less["verdict"] == "better"
    assert less["interval"][1] < 0


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["report", "{}/none.h5ad", "--truth", "{}/records"], "SJ-E01", "none.h5ad"),
        (["report", "{}/good.h5ad", "--truth", "{}/nowhere"], "SJ-D06", "nowhere"),
        (["report", "{}/good.h5ad", "--truth", "{}/foreign.h5ad"], "SJ-E01", "no raw counts"),
        (["report", "{}/foreign.h5ad", "--truth", "{}/records"], "SJ-E01", "--slide"),
        (["report", "{}/good.h5ad", "--format", "csv"], "SJ-E01", "--truth"),
        (["report", "{}/good.h5ad", "{}/other.h5ad", "--truth", "{}/records", "--slide", "A2"],
         "SJ-E01", "one slide"),
        (["report", "{}/good.h5ad", "--truth", "{}/records", "--leave-out", "ridge"],
         "SJ-C01", "ridge"),
        (["report", "{}/good.h5ad", "--truth", "{}/records", "--genes", "G99", *QUICK],
         "SJ-D04", "G99"),
        (["report", "{}/good.h5ad", "--truth", "{}/records", "--compare", "x"],
         "SJ-E01", "NAME=FILE"),
        (["compare", "{}/counts.h5ad", "{}/counts.h5ad"], "SJ-E01", "cannot be read"),
    ],
)  # fmt: skip
def test_errors_are_one_block_and_nothing_is_written(made, capsys, args, code, text):
    target = made / "never.html"
    assert run(made, *args, "-o", str(target)) == 1
    said = capsys.readouterr().err
    assert f"error [{code}]" in said
    assert text in said
    assert "Traceback" not in said
    assert not target.exists()
