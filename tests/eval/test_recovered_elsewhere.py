"""Hidden spots in other predictions: of other tools, to compare, with flags of any kind."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hidden_spots import FLOORS, HIDDEN, dense, evaluated, flagged
from made_slides import predicted, truth, write_source

from stemjax import cli, errors
from stemjax.eval import evaluate, joining, recovered
from stemjax.eval import truth as truths


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("records"))


def test_predictions_to_compare_are_scored_on_the_hidden_spots(source):
    true = truth(source, "A2")
    pred = true + np.random.default_rng(4).normal(0, 0.7, true.shape)
    other = predicted(source, "A2", pred, train=["B1"])
    other = other[np.random.default_rng(6).permutation(108)].copy()
    found = evaluated(flagged(source), source, compare={"plain": other})
    (row,) = [row for row in found["rows"] if row["source"] == "compare"]
    expected = np.mean((np.float32(pred) - true)[HIDDEN] ** 2)
    assert row["scores"]["mse"]["value"] == pytest.approx(expected, rel=1e-5)
    again = evaluated(flagged(source), source, compare={"same": flagged(source)})
    (row,) = [row for row in again["rows"] if row["source"] == "compare"]
    assert row["scores"] == again["rows"][0]["scores"]
    few = other[~np.isin(other.obs_names, np.asarray(other.obs_names)[:60])].copy()
    with pytest.raises(errors.PredictionError, match=r"compare few: spots differ.*\d+ missing"):
        evaluated(flagged(source), source, compare={"few": few})


def test_what_was_shown_the_scored_spots_is_no_row_to_compare(source):
    """It would be scored on what it was told."""
    other = flagged(source, hidden=np.roll(HIDDEN, 1))
    with pytest.raises(errors.PredictionError, match=r"compare other was shown \d+ of the 40"):
        evaluated(flagged(source), source, compare={"other": other})
    plain = predicted(source, "A2", truth(source, "A2"), train=["B1"])
    with pytest.raises(errors.PredictionError, match="compare other was shown 68 of the 108"):
        evaluated(plain, source, compare={"other": flagged(source)})
    evaluated(plain, source, compare={"dense": dense(source, plain)})


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (["yes"] * 108, "'yes'"),
        ([True] * 107 + [None], "found None"),
        (np.r_[np.ones(107), 2.0], "found 2.0"),
        (np.r_[np.ones(107), np.nan], "found nan"),
        (pd.array([True] * 107 + [None], dtype="boolean"), "found <NA>"),
        (pd.Categorical(["True"] * 108), "'True'"),
    ],
)
def test_flags_that_are_none_are_refused(source, column, found):
    made = flagged(source)
    made.obs[recovered.MEASURED] = column
    with pytest.raises(errors.PredictionError, match=found) as caught:
        evaluated(made, source)
    assert 'obs["stemjax_measured"]' in str(caught.value)


@pytest.mark.parametrize("kind", ["int", "boolean", "object", "category"])
def test_flags_of_any_type_are_read(source, kind, tmp_path):
    made = flagged(source)
    made.obs[recovered.MEASURED] = pd.Series(~HIDDEN, index=made.obs_names).astype(kind)
    np.testing.assert_array_equal(recovered.flags(made, "p"), ~HIDDEN)
    if kind != "object":  # no AnnData file holds these
        made.write_h5ad(tmp_path / "made.h5ad")
        np.testing.assert_array_equal(
            recovered.flags(joining.read(tmp_path / "made.h5ad"), "p"), ~HIDDEN
        )


def test_a_spot_that_is_not_predicted_is_shown_to_nobody(source):
    """Neither hidden nor measured: another tool's filter, say. No rival learns from it."""
    made = flagged(source)
    gone = np.flatnonzero(HIDDEN)[:3].tolist() + np.flatnonzero(~HIDDEN)[:2].tolist()
    kept = np.setdiff1d(np.arange(108), gone)
    with pytest.raises(errors.PredictionError, match="5 missing"):
        evaluated(made[kept].copy(), source)
    foreign = anndata.AnnData(X=made.X[kept], obs=made.obs.iloc[kept], var=made.var)
    joined = joining.join(foreign, source, foreign=joining.Foreign(slide="A2"))
    names = np.asarray(made.obs_names)
    assert set(joined.absent["spots"]) == set(names[gone])
    assert joined.context is not None
    assert set(joined.context.barcodes) == set(names[~HIDDEN]) - set(names[gone])
    assert set(joined.truth.barcodes) == set(names[HIDDEN]) - set(names[gone])


@pytest.mark.parametrize("sparse", [False, True])
def test_another_tools_prediction_of_hidden_spots_against_a_file_of_counts(
    source, tmp_path, sparse, capsys
):
    table, true = source.load(["A2"]), truth(source, "A2")
    counts = anndata.AnnData(
        X=np.asarray(table.counts, np.float32),
        obs=pd.DataFrame(index=list(table.barcodes)),
        var=pd.DataFrame(index=list(source.genes)),
    )
    counts.obsm["spatial"] = np.asarray(table.pixel_xy, float)
    counts.write_h5ad(tmp_path / "A2.h5ad")
    pred = np.maximum(flagged(source).X, 0)
    made = anndata.AnnData(
        X=scipy.sparse.csr_matrix(pred) if sparse else pred,
        obs=pd.DataFrame({"stemjax_measured": ~HIDDEN}, index=list(table.barcodes)),
        var=counts.var,
    )
    made = made[::-1].copy()
    made.write_h5ad(tmp_path / "tool.h5ad")
    found = evaluate.evaluate(
        joining.read(tmp_path / "tool.h5ad"),
        truths.open_truth(str(tmp_path / "A2.h5ad")),
        resamples=5,
    )
    rows = [row["name"] for row in found["rows"]]
    assert rows == ["prediction: mean", *FLOORS, "depth oracle", "noise ceiling"]
    mse = np.mean((pred - true)[HIDDEN] ** 2)
    assert found["rows"][0]["scores"]["mse"]["value"] == pytest.approx(mse, rel=1e-5)
    every = found["slides"][0]["all_spots"]["mse"]
    assert every == pytest.approx(np.mean((pred - true) ** 2), rel=1e-5)
    titles = [alert["title"] for alert in found["alerts"]]
    assert "recovery within a slide" in titles
    assert "another tool's prediction" in titles
    args = [str(tmp_path / "tool.h5ad"), "--truth", str(tmp_path / "A2.h5ad"), "--resamples", "5"]
    assert cli.main(["evaluate", *args, "-o", str(tmp_path / "metrics.json")]) == 0
    assert "40 hidden spots of A2" in capsys.readouterr().out


def test_rivals_that_are_fitted_on_the_slide_are_not_said_to_be_fitted_on_others(source):
    made = flagged(source)
    foreign = anndata.AnnData(X=made.X, obs=made.obs, var=made.var)
    found = evaluated(foreign, source, foreign=joining.Foreign(slide="A2"))
    titles = [alert["title"] for alert in found["alerts"]]
    assert "another tool's prediction" in titles
    assert "training slides assumed" not in titles
