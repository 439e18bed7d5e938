"""What the formats take of a prediction, and what is refused."""

from __future__ import annotations

import made_prediction
import numpy as np
import pytest

from stemjax import errors, names
from stemjax.integrations import prediction as predictions


def test_the_genes_of_the_largest_variance_are_chosen_whatever_their_order():
    made = made_prediction.make()
    by_variance = np.argsort(-np.asarray(made.X).var(axis=0))
    wanted = tuple(made.var_names[i] for i in by_variance)
    assert wanted != tuple(made.var_names)
    assert predictions.of_anndata(made).choose(None, most=3) == wanted[:3]
    turned = predictions.of_anndata(made[:, ::-1].copy())
    assert turned.choose(None, most=3) == wanted[:3]
    assert turned.choose(["KRT5", "ACTB"]) == ("KRT5", "ACTB")
    np.testing.assert_array_equal(
        turned.values(["KRT5"])[:, 0], np.asarray(made[:, "KRT5"].X)[:, 0]
    )


def test_a_gene_without_finite_values_is_never_chosen_first():
    made = made_prediction.make()
    x = np.array(made.X)
    x[:, 2] = np.nan
    x[0, 0] = np.nan
    made.X = x
    chosen = predictions.of_anndata(made).choose(None)
    assert chosen[-1] == "CD8A"
    assert len(chosen) == made.n_vars


def test_the_variance_is_that_of_the_finite_values():
    made = made_prediction.make()
    x = np.array(made.X, np.float32)
    x[:, :2] = np.arange(30)[:, None] * np.array([1.0, 1.1])
    x[3:, 1] = np.nan  # three values are left, close to one another
    made.X = x
    order = np.argsort(-np.nanvar(x.astype(float), axis=0))
    assert predictions.of_anndata(made).choose(None) == tuple(made.var_names[i] for i in order)
    x[:15, 0] = np.nan  # 15 to 29: half the values, a quarter of the variance
    x[:, 2] = np.arange(30) * 0.45
    made.X = x
    chosen = predictions.of_anndata(made).choose(None)
    assert np.nanvar(x[:, 0]) > np.nanvar(x[:, 2]) > np.nanvar(x[:, 0]) / 2
    assert chosen.index("ERBB2") < chosen.index("CD8A")


def test_positions_image_and_sizes_are_read():
    found = predictions.of_anndata(made_prediction.make())
    assert (found.slide, found.mpp, found.diameter) == ("S1", 0.5, 110.0)
    assert found.units == "log2(count + 1)"
    pixels, scale = found.image
    assert pixels.shape == (340, 330, 3)
    assert scale == 0.25
    assert predictions.of_anndata(made_prediction.make(image=False)).image is None


def without(made, path):
    *parents, last = path
    held = made.uns
    for name in parents:
        held = held[name]
    del held[last]


CASES = {
    "no uns": (lambda d: d.uns.pop("stemjax"), "SJ-E01", "no prediction of stemjax"),
    "no slide": (lambda d: without(d, ("stemjax", "slide")), "SJ-E01", "slide and value_space"),
    "annotated": (
        lambda d: d.uns["stemjax"].update(layer="stemjax"),
        "SJ-E01",
        "a measured object with a prediction in layers",
    ),
    "value space": (lambda d: d.uns["stemjax"].update(value_space="tpm"), "SJ-E01", "found tpm"),
    "no positions": (lambda d: d.obsm.pop("spatial"), "SJ-E01", "30 x 2"),
    "no diameter": (
        lambda d: without(d, ("spatial", "S1", "scalefactors", "spot_diameter_fullres")),
        "SJ-E01",
        "diameter of a spot",
    ),
    "barcodes": (lambda d: setattr(d, "obs_names", ["A"] * 30), "SJ-E01", "barcodes are repeated"),
    "genes": (lambda d: setattr(d, "var_names", ["A"] * 6), "SJ-D04", "genes are repeated"),
}


@pytest.mark.filterwarnings("ignore:.* names are not unique")
@pytest.mark.parametrize("case", CASES)
def test_what_is_no_prediction_is_refused(case):
    made = made_prediction.make()
    change, code, words = CASES[case]
    change(made)
    with pytest.raises(errors.StemjaxError, match=words) as caught:
        predictions.of_anndata(made)
    assert caught.value.code == code


def test_unknown_and_repeated_genes_are_named():
    found = predictions.of_anndata(made_prediction.make())
    with pytest.raises(errors.GenePanelError, match="'KRT'.*Did you mean KRT5"):
        found.choose(["KRT"])
    with pytest.raises(errors.GenePanelError, match="repeated.*KRT5"):
        found.choose(["KRT5", "KRT5"])
    with pytest.raises(errors.GenePanelError, match="one or more names"):
        found.choose([])


def test_file_names_are_safe_and_different_also_where_case_does_not_count():
    given = ["HLA-A", "HLA/A", "hla_a", "../x", "..", "HLA_A_2", "a" * 200]
    found = names.file_names(given, ".png")
    assert len({name.lower() for name in found}) == len(given)
    assert all("/" not in name and not name.startswith(".") for name in found)
    assert found[0] == "HLA-A.png"
    assert max(map(len, found)) <= 110


def test_what_stands_there_is_in_the_way(tmp_path):
    predictions.require_absent(tmp_path / "new")
    predictions.require_absent(tmp_path)  # an empty folder
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(errors.ConfigError, match="is in the way"):
            predictions.require_absent(path)
