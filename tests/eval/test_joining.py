"""Another tool's predictions: what joins them with the truth, what is assumed, what is refused."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from made_slides import predicted, truth, write_source

from stemjax import errors
from stemjax.eval import joining
from stemjax.eval import truth as truths

SLIDE = joining.Foreign(slide="A2")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return truths.of_records(write_source(tmp_path_factory.mktemp("records")))


def foreign(source, slide="A2", spots=None, genes=None):
    """An AnnData with X and names and nothing else."""
    found = source.load(slide)
    data = anndata.AnnData(
        X=truth(source.records, slide),
        obs=pd.DataFrame(index=list(found.barcodes)),
        var=pd.DataFrame(index=list(found.genes)),
    )
    return data[spots if spots is not None else slice(None)][
        :, genes if genes is not None else slice(None)
    ].copy()


def test_x_and_names_are_enough(source):
    rng = np.random.default_rng(0)
    data = foreign(source, spots=rng.permutation(108), genes=rng.permutation(14))
    joined = joining.join(data, source, foreign=SLIDE)
    np.testing.assert_allclose(joined.mean, joined.true, rtol=1e-6)
    assert joined.slide == "A2"
    assert not joined.ours
    assert joined.label == "mean"
    assert joined.forecast is None
    assert tuple(joined.about["train_slides"]) == ("A1", "B1", "U1")
    assert joined.about["train_slides_assumed"]


def test_sparse_values_and_integers_are_numbers(source):
    data = foreign(source)
    data.X = scipy.sparse.csr_array(np.rint(data.X).astype(np.int32))
    joined = joining.join(data, source, foreign=SLIDE)
    np.testing.assert_array_equal(joined.mean, np.rint(joined.true))


def test_what_both_have_is_joined_and_the_rest_named(source):
    data = foreign(source, spots=np.arange(5, 108), genes=np.arange(2, 14))
    data.obs_names = ["elsewhere", *data.obs_names[1:]]
    data.var_names = [*data.var_names[:-1], "NOVEL"]
    joined = joining.join(data, source, foreign=SLIDE)
    assert joined.mean.shape == (102, 11)
    barcodes = source.load("A2").barcodes
    assert joined.truth.barcodes == barcodes[6:]
    assert joined.absent == {"spots": barcodes[:6], "genes": ("G0", "G1", "G13")}
    assert joined.unknown == {"spots": ("elsewhere",), "genes": ("NOVEL",)}
    np.testing.assert_allclose(joined.mean, joined.true, rtol=1e-6)
    table = joined.table
    assert table.barcodes == joined.truth.barcodes
    # Each spot keeps its own patch.
    np.testing.assert_array_equal(table.embeddings, source.load("A2").table.embeddings[6:])
    assert table.counts.shape == table.mask.shape == (102, 11)
    np.testing.assert_array_equal(table.counts, joined.truth.counts)


def test_the_slide_is_found_by_barcodes_that_only_one_has(source, tmp_path):
    with pytest.raises(errors.PredictionError, match="A1, A2, B1, U1 have alike.*--slide"):
        joining.join(foreign(source), source)
    data = foreign(source)
    data.obs_names = [f"x{name}" for name in data.obs_names]
    with pytest.raises(errors.PredictionError, match="barcodes of none of them"):
        joining.join(data, source)


def test_a_file_to_compare_is_of_the_slide_that_it_is_compared_on(source):
    ours = joining.join(
        predicted(source.records, "A2", truth(source.records, "A2"), train=["B1"]), source
    )
    other = joining.join(foreign(source), source, name="compare x", like=ours)
    assert other.slide == "A2"
    np.testing.assert_allclose(other.mean, ours.mean)


def test_the_value_space_told_is_that_of_the_truth(source):
    told = joining.Foreign(slide="A2", value_space="log1p")
    joined = joining.join(foreign(source), source, foreign=told)
    np.testing.assert_allclose(joined.true, np.log1p(source.load("A2").counts), rtol=1e-6)


def test_what_a_prediction_says_of_itself_stands_before_what_is_told(source):
    ours = predicted(source.records, "A1", truth(source.records, "A1"), train=["B1"])
    joined = joining.join(ours, source, foreign=SLIDE)
    assert joined.slide == "A1"
    assert joined.ours


def spoilt(what, data):
    if what == "NaN":
        data.X[7, 3] = np.nan
    elif what == "infinite":
        data.X[7, 3] = np.inf
    elif what == "no X":
        data.X = None
    elif what == "no shared gene":
        data.var_names = [f"other {i}" for i in range(14)]
    elif what == "genes twice":
        data.var_names = ["G0", "G0", *data.var_names[2:]]
    return data


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("NaN", r"X holds 1 NaN.*spot '7x0', gene 'G3'"),
        ("infinite", r"X holds 1 NaN or infinite.*spot '7x0', gene 'G3'"),
        ("no X", "has no X"),
        ("no shared gene", r"genes differ from the truth's.*14 missing.*Name the genes.*'G0'"),
        ("genes twice", r"genes are repeated.*G0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_what_cannot_be_scored_is_named(source, what, message):
    with pytest.raises(errors.PredictionError, match=message):
        joining.join(spoilt(what, foreign(source)), source, foreign=SLIDE)


def test_calibrated_intervals_are_joined_by_name(source):
    ours = predicted(source.records, "A2", truth(source.records, "A2"), train=["B1"])
    low = np.arange(108 * 14, dtype=np.float32).reshape(108, 14)
    ours.layers["stemjax_lower_90"], ours.layers["stemjax_upper_90"] = low, low + 2
    ours.layers["stemjax_lower_50"] = low  # half an interval is none
    order = np.random.default_rng(0).permutation(108)
    joined = joining.join(ours[order].copy(), source)
    assert list(joined.intervals) == [0.9]
    np.testing.assert_array_equal(joined.intervals[0.9][0], low)
    np.testing.assert_array_equal(joined.intervals[0.9][1], low + 2)


def test_the_forecast_is_the_richest_there_is(source):
    true = truth(source.records, "A2")
    draws = true + np.random.default_rng(0).normal(size=(5, *true.shape))
    ours = predicted(source.records, "A2", draws.mean(axis=0), train=["B1"], draws=draws)
    assert joining.join(ours, source).forecast.form == "5 draws"
    del ours.obsm["stemjax_draws"]
    assert joining.join(ours, source).forecast.form == "normal law"
    ours.layers["stemjax_std"][0, 0] = 0  # no law has no width
    assert joining.join(ours, source).forecast is None


ENSEMBL = [f"ENSG{i:011d}" for i in range(14)]


@pytest.mark.parametrize("called", ["symbols", "ids", "ids alone"])
@pytest.mark.parametrize("versions", ["", ".7"])
def test_a_truth_that_names_genes_otherwise(source, called, versions):
    """The truth's genes by Ensembl id or symbol, the prediction's by the other."""
    found = source.load("A2")
    symbols = list(found.genes)
    ids = [name + versions for name in ENSEMBL]
    index = symbols if called == "symbols" else ids
    var = pd.DataFrame(index=pd.Index(index))
    if called == "symbols":
        var["gene_ids"] = ids
    elif called == "ids":
        var["gene_name"] = symbols
    measured = anndata.AnnData(
        X=scipy.sparse.csr_array(found.counts.astype(np.float32)),
        obs=pd.DataFrame(index=list(found.barcodes)),
        var=var,
    )
    measured.obsm["spatial"] = np.asarray(found.xy)
    given = truths.of_anndata(measured, name="A2", where="a file")
    file = truths.Source(slides=("A2",), records=None, _file=given)
    data = foreign(source, genes=np.arange(14)[::-1])
    by_id = data.copy()
    by_id.var_names = ENSEMBL[::-1]
    for one, works in ((data, called != "ids alone"), (by_id, True)):
        if not works:
            with pytest.raises(errors.PredictionError, match="genes differ"):
                joining.join(one, file, foreign=SLIDE)
            continue
        joined = joining.join(one, file, foreign=SLIDE)
        assert joined.genes == (tuple(symbols) if called != "ids alone" else tuple(ids))
        np.testing.assert_allclose(joined.mean, joined.true, rtol=1e-6)
