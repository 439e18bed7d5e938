"""A prediction in a measured object: aligned by name, NaN elsewhere, X as it was."""

from __future__ import annotations

import anndata
import made_prediction
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from stemjax import errors
from stemjax.data import transforms
from stemjax.integrations import measured
from stemjax.integrations import prediction as predictions

EXTRA = ("MT-CO1", "GAPDH")


def lab(*, sparse=True, counts_in="X"):
    """33 spots, 3 of them not predicted, in another order; two more genes, "HLA-A" lacking."""
    rng = np.random.default_rng(8)
    names = [made_prediction.barcode(i) for i in rng.permutation(33)]
    genes = [EXTRA[0], *reversed(made_prediction.GENES[:5]), EXTRA[1]]
    counts = rng.poisson(5, (33, len(genes))).astype(np.float32)
    held = scipy.sparse.csr_matrix(counts) if sparse else counts
    made = anndata.AnnData(
        X=held if counts_in == "X" else np.log1p(counts),
        obs=pd.DataFrame(index=names),
        var=pd.DataFrame(index=genes),
    )
    if counts_in == "layer":
        made.layers["counts"] = held
    return made, counts


def value(data, layer, barcode, gene):
    return data.layers[layer][data.obs_names.get_loc(barcode), data.var_names.get_loc(gene)]


def test_every_value_is_at_its_barcode_and_gene_and_nothing_else_is_there():
    made, counts = lab()
    prediction = made_prediction.make()
    measured.annotate(made, prediction)
    x, std = np.asarray(prediction.X), prediction.layers["stemjax_std"]
    shared = [gene for gene in made_prediction.GENES if gene != "HLA-A"]
    for row, barcode in enumerate(prediction.obs_names):
        for gene in shared:
            column = made_prediction.GENES.index(gene)
            assert value(made, "stemjax", barcode, gene) == x[row, column]
            assert value(made, "stemjax_std", barcode, gene) == std[row, column]
            assert value(made, "stemjax_upper_90", barcode, gene) == x[row, column] + np.float32(
                0.2
            )
    for name in ("stemjax", "stemjax_std", "stemjax_lower_90", "stemjax_upper_90"):
        assert np.isfinite(made.layers[name]).sum() == 30 * 5
        assert made.layers[name].dtype == np.float32
    np.testing.assert_array_equal(made.X.toarray(), counts)
    assert made.obs["stemjax_predicted"].sum() == 30
    assert list(made.var_names[made.var["stemjax_predicted"]]) == shared[::-1]


def test_what_is_missing_is_said():
    made, _ = lab()
    measured.annotate(made, made_prediction.make()[:, ::-1].copy())
    about = made.uns["stemjax"]
    assert about["genes_missing"] == ["HLA-A"]
    assert (about["genes_added"], about["spots_added"]) == (5, 30)
    assert about["spots_without_prediction"] == 3
    assert (about["value_space"], about["units"]) == ("log2p1", "log2(count + 1)")
    said = "; ".join(about["warnings"])
    assert "3 of 33 measured spots have no prediction" in said
    assert "1 predicted genes are not in the measured object: HLA-A" in said
    made, _ = lab()
    part = made[made.obs_names.isin(made_prediction.make().obs_names[:20])].copy()
    measured.annotate(part, made_prediction.make())
    assert "10 predicted spots are not in the measured object" in part.uns["stemjax"]["warnings"][0]


@pytest.mark.parametrize("counts_in", ["X", "layer"])
@pytest.mark.parametrize("space", ["log2p1", "log1p_cp10k"])
def test_the_correlation_is_that_over_the_spots_with_a_prediction(counts_in, space):
    made, counts = lab(counts_in=counts_in)
    prediction = made_prediction.make()
    prediction.uns["stemjax"]["value_space"] = space
    measured.annotate(made, prediction)
    true = transforms.get_transform(space).forward(counts, counts.sum(axis=1))
    rows = [made.obs_names.get_loc(name) for name in prediction.obs_names]
    for gene in made_prediction.GENES[:5]:
        column = made.var_names.get_loc(gene)
        wanted = np.corrcoef(
            true[rows, column], np.asarray(prediction.X)[:, made_prediction.GENES.index(gene)]
        )[0, 1]
        assert made.var["stemjax_pcc"].iloc[column] == pytest.approx(wanted, abs=1e-6)
    assert made.var.loc[list(EXTRA), "stemjax_pcc"].isna().all()
    assert made.uns["stemjax"]["spots_scored"] == 30


def test_spots_that_were_shown_are_not_scored():
    made, _ = lab()
    prediction = made_prediction.make()
    shown = np.arange(30) % 3 > 0
    prediction.obs["stemjax_measured"] = shown
    other = prediction.copy()
    x = np.array(other.X)
    x[shown] = 77.0  # whatever stands where it was shown plays no part
    other.X = x
    measured.annotate(made, prediction)
    first = made.var["stemjax_pcc"].copy()
    assert made.uns["stemjax"]["spots_scored"] == 10
    assert "10 spots that were hidden" in "; ".join(made.uns["stemjax"]["warnings"])
    measured.annotate(made, other)
    pd.testing.assert_series_equal(made.var["stemjax_pcc"], first)
    column = made.obs["stemjax_measured"]
    assert column[list(prediction.obs_names)].tolist() == shown.tolist()
    assert column.isna().sum() == 3


def test_a_slide_of_the_training_is_said_to_be_one():
    made, _ = lab()
    prediction = made_prediction.make()
    measured.annotate(made, prediction)
    assert "trained on" not in "; ".join(made.uns["stemjax"]["warnings"])
    prediction.uns["stemjax"]["train_slides"] = np.array(["T1", "S1"], object)
    measured.annotate(made, prediction)
    assert "a slide that the model was trained on" in "; ".join(made.uns["stemjax"]["warnings"])


def test_without_counts_there_is_no_correlation():
    made, _ = lab(sparse=False)
    made.X = np.log1p(made.X)
    measured.annotate(made, made_prediction.make())
    assert "stemjax_pcc" not in made.var
    assert "no raw counts" in "; ".join(made.uns["stemjax"]["warnings"])


def test_columns_of_spots_come_along_by_barcode():
    made, _ = lab()
    prediction = made_prediction.make()
    prediction.obs["stemjax_nll"] = np.arange(30.0)
    prediction.obs["stemjax_count"] = np.arange(30)
    prediction.obs["stemjax_domain"] = pd.Categorical(["a", "b"] * 15)
    prediction.obsm["X_stemjax"] = np.arange(60.0).reshape(30, 2)
    measured.annotate(made, prediction, key_added="mine")
    for row, barcode in enumerate(prediction.obs_names):
        assert made.obs.loc[barcode, "mine_nll"] == row
        assert made.obs.loc[barcode, "mine_count"] == row
        assert made.obs.loc[barcode, "mine_domain"] == "ab"[row % 2]
        at = made.obs_names.get_loc(barcode)
        np.testing.assert_array_equal(made.obsm["X_mine"][at], [2 * row, 2 * row + 1])
    for name in ("mine_nll", "mine_count", "mine_domain"):
        assert made.obs[name].isna().sum() == 3
    assert "array_row" not in made.obs


def test_another_key_and_an_earlier_annotation_goes():
    made, _ = lab()
    prediction = made_prediction.make()
    prediction.obs["stemjax_nll"] = 1.0
    measured.annotate(made, prediction, key_added="first")
    measured.annotate(made, prediction, key_added="second", genes=["KRT5"])
    assert {"first", "first_std", "second", "second_std"} <= set(made.layers)
    assert np.isfinite(made.layers["second"]).sum() == 30
    del prediction.layers["stemjax_std"], prediction.obs["stemjax_nll"]
    made.layers["first_mine"] = made.layers["first"].copy()
    measured.annotate(made, prediction, key_added="first")
    assert "first_std" not in made.layers
    assert "first_nll" not in made.obs
    assert {"first", "second_std", "first_mine"} <= set(made.layers)


def test_a_written_file_has_it_and_is_no_prediction_itself(tmp_path):
    made, _ = lab()
    prediction = made_prediction.make()
    prediction.obs["stemjax_measured"] = [True, False] * 15
    measured.annotate(made, prediction)
    made.write_h5ad(tmp_path / "annotated.h5ad")
    found = anndata.read_h5ad(tmp_path / "annotated.h5ad")
    np.testing.assert_array_equal(found.layers["stemjax"], made.layers["stemjax"])
    assert found.uns["stemjax"]["layer"] == "stemjax"
    with pytest.raises(errors.PredictionError, match="a measured object with a prediction"):
        predictions.of_anndata(found)
    measured.annotate(found, prediction)  # what a file says of an earlier call is understood
    assert sorted(filter(None, found.layers)) == sorted(filter(None, made.layers))


def renamed(names):
    made, _ = lab()
    made.var["gene_symbols"] = list(made.var_names)
    made.var_names = names(list(made.var_names))
    return made


@pytest.mark.filterwarnings("ignore:.* names are not unique")
@pytest.mark.parametrize(
    ("change", "options", "code", "words"),
    [
        (lambda: lab()[0], {"key_added": "a/b"}, "SJ-C01", 'key_added without "/"'),
        (lambda: lab()[0], {"key_added": ""}, "SJ-C01", "key_added"),
        (lambda: lab()[0], {"genes": ["TP53"]}, "SJ-D04", "'TP53' is not among"),
        (
            lambda: renamed(lambda old: [f"ENSG{i}" for i in range(len(old))]),
            {},
            "SJ-D04",
            r"share no gene name.*found ENSG0, ENSG1. var\['gene_symbols'\] has them",
        ),
        (
            lambda: renamed(lambda old: ["KRT5", *old[1:]]),
            {},
            "SJ-D04",
            r"more than once.*found KRT5.*var_names_make_unique",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(change, options, code, words):
    made = change()
    before = (set(made.layers), set(made.obs), set(made.var), set(made.uns))
    with pytest.raises(errors.StemjaxError, match=words) as caught:
        measured.annotate(made, made_prediction.make(), **options)
    assert caught.value.code == code
    assert (set(made.layers), set(made.obs), set(made.var), set(made.uns)) == before


def test_other_spots_are_refused():
    made, _ = lab()
    made.obs_names = [f"other-{i}" for i in range(33)]
    with pytest.raises(errors.PredictionError, match="share no barcode.*slide S1.*other-0"):
        measured.annotate(made, made_prediction.make())
    made.obs_names = ["same"] * 33
    with pytest.raises(errors.PredictionError, match="barcodes are repeated"):
        measured.annotate(made, made_prediction.make())
