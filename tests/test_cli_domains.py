"""``stemjax domains`` on written records, as a user meets it."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from made_slides import predicted, truth, write_source

from stemjax import cli


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Records, and a prediction of A2 with labels that one gene decides."""
    out = tmp_path_factory.mktemp("domains")
    source = write_source(out / "records")
    true = truth(source, "A2")
    data = predicted(source, "A2", true, train=["B1"])
    table = source.load(["A2"])
    data.obs["array_col"], data.obs["array_row"] = np.asarray(table.array_xy).T
    data.obsm["spatial"] = np.asarray(table.pixel_xy, float)
    high = true[:, 0] > np.median(true[:, 0])
    data.obs["pathologist"] = pd.Categorical(np.where(high, "tumour", "stroma"))
    data.obs.loc[data.obs_names[:3], "pathologist"] = np.nan
    data.write_h5ad(out / "a2.h5ad")
    return out


def run(made, *args):
    return cli.main(["domains", *(part.replace("{}", str(made)) for part in args)])


def test_domains_are_scored_drawn_and_written(made, capsys):
    code = run(
        made, "{}/a2.h5ad", "--label", "pathologist", "--truth", "{}/records", "--resamples", "50",
        "-o", "{}/out.h5ad", "--map", "{}/maps/map.png", "--json", "{}/out.json",
    )  # fmt: skip
    assert code == 0
    said = capsys.readouterr().out
    assert "2 domains of 108 spots: kmeans of X" in said
    assert "as many as pathologist has labels" in said
    assert "Against pathologist, 105 spots" in said
    assert "| smoothed, ln(1 + counts per 10,000) " in said
    out = anndata.read_h5ad(made / "out.h5ad")
    assert list(out.obs["stemjax_domain"].cat.categories) == ["0", "1"]
    assert out.uns["stemjax"]["slide"] == "A2"
    found = json.loads((made / "out.json").read_text())
    assert found["sizes"] == out.obs["stemjax_domain"].value_counts().tolist()
    uses = [row["use"] for row in found["scored"]["rows"]]
    assert uses == ["X", "measured", "measured", "smoothed", "smoothed", "position"]
    # X is what was measured: the same clusters but for float32.
    first, second = (row["scores"]["ari"]["value"] for row in found["scored"]["rows"][:2])
    assert first == pytest.approx(second, abs=1e-12)
    assert (made / "maps/map.png").read_bytes().startswith(b"\x89PNG")


def test_without_labels_domains_are_found_and_nothing_is_scored(made, capsys):
    assert run(made, "{}/a2.h5ad", "--method", "gmm", "--json", "{}/gmm.json") == 0
    said = capsys.readouterr().out
    assert "number of domains: lowest BIC" in said
    assert "ARI" not in said
    assert json.loads((made / "gmm.json").read_text())["scored"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--label", "nope"], "no label 'nope'.*label-like columns pathologist"),
        (["--use", "X_stemjax"], "no features 'X_stemjax'"),
        (["--use", "measured"], "holds no measured expression"),
        (["--ignore", "x"], "--ignore: expected --label beside it"),
        (["--k", "200"], "the number of clusters"),
    ],
)
def test_what_cannot_be_is_explained(made, capsys, args, message):
    import re

    assert run(made, "{}/a2.h5ad", *args) == 1
    assert re.search(message, capsys.readouterr().err)
