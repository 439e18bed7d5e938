"""What is clustered: values, neighbours, spots that count; labels; what is missing and said so."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from made_slides import predicted, write_source

from stemjax import errors
from stemjax.eval import domain_features as features_of
from stemjax.eval import truth as truths

GENES = 8


def slide(columns=6, rows=5, seed=0):
    """A square array with counts."""
    rng = np.random.default_rng(seed)
    x, y = (v.ravel() for v in np.meshgrid(np.arange(columns), np.arange(rows)))
    counts = rng.poisson(5.0, (len(x), GENES))
    made = anndata.AnnData(
        X=rng.normal(size=counts.shape).astype(np.float32),
        obs=pd.DataFrame({"array_row": y, "array_col": x}, index=[f"s{i}" for i in range(len(x))]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(GENES)]),
    )
    made.layers["counts"] = counts
    made.obsm["spatial"] = np.stack([x, y], 1) * 200.0 + 100.0
    return made


def gram(values):
    """Inner products: what principal components keep, whatever their signs."""
    return values @ values.T


def standardised(values):
    return (values - values.mean(axis=0)) / values.std(axis=0)


def test_x_is_standardised_and_brought_to_principal_components():
    data = slide()
    data.X[:, 0] *= 1000.0  # no gene outweighs another
    data.X[:, 3] = 7.25  # a constant gene says nothing
    found = features_of.features(data, "X")
    z = standardised(np.asarray(data.X, np.float64)[:, [0, 1, 2, 4, 5, 6, 7]])
    np.testing.assert_allclose(gram(found.values), gram(z), atol=1e-9)  # float64 sums
    assert found.about["components"] == GENES - 1
    few = features_of.features(data, "X", components=2)
    power = np.linalg.svd(z, compute_uv=False) ** 2
    assert few.values.shape == (30, 2)
    np.testing.assert_allclose((few.values**2).sum(axis=0), power[:2])
    assert few.about["variance_explained"] == pytest.approx(power[:2].sum() / power.sum())


def test_hidden_features_keep_their_scales():
    data = slide()
    hidden = np.random.default_rng(1).normal(size=(30, 4)) * [1.0, 10.0, 100.0, 1000.0] + 5.0
    data.obsm["X_hidden"] = hidden
    found = features_of.features(data, "X_hidden")
    centred = hidden - hidden.mean(axis=0)
    np.testing.assert_allclose(gram(found.values), gram(centred), rtol=1e-9, atol=1e-6)
    assert found.about["width"] == 4


@pytest.mark.parametrize("space", [None, "log1p_cp10k"])
def test_measured_is_the_layers_counts_in_a_value_space(space):
    data = slide()
    counts = np.asarray(data.layers["counts"], np.float64)
    values = np.log2(counts + 1)
    if space:
        values = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    found = features_of.features(data, "measured", space=space)
    # Values are float32 in the transform: 7 digits of sums of 8 squares of order 1.
    np.testing.assert_allclose(gram(found.values), gram(standardised(values)), atol=1e-4)
    assert found.about["value_space"] == (space or "log2p1")


def test_measured_takes_the_predictions_value_space():
    data = slide()
    data.uns["stemjax"] = {"value_space": "log1p_cp10k"}
    assert features_of.features(data, "measured").about["value_space"] == "log1p_cp10k"


@pytest.mark.parametrize("shape", ["square", "hexagonal"])
def test_smoothing_is_the_mean_over_the_spot_and_its_neighbours(shape):
    x, y = (v.ravel() for v in np.meshgrid(np.arange(5), np.arange(5)))
    xy = np.stack([x, y], 1).astype(float)
    steps = [(1, 0), (-1, 0), (0, 1), (0, -1)]
    if shape == "hexagonal":  # Visium's doubled columns
        xy[:, 0] = 2 * x + y % 2
        steps = [(2, 0), (-2, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    values = np.random.default_rng(0).normal(size=(25, 3))
    place = {tuple(p): i for i, p in enumerate(xy)}
    expected = []
    for a, b in xy:
        near = [(a, b), *((a + i, b + j) for i, j in steps)]
        expected.append(np.mean([values[place[q]] for q in near if q in place], axis=0))
    np.testing.assert_allclose(features_of.smooth(values, xy), expected, atol=1e-12)


def test_smoothed_averages_values_and_not_counts():
    data = slide()
    values = np.log2(np.asarray(data.layers["counts"]) + 1.0)
    xy = data.obs[["array_col", "array_row"]].to_numpy(float)
    expected = standardised(features_of.smooth(values, xy))
    found = features_of.features(data, "smoothed")
    np.testing.assert_allclose(gram(found.values), gram(expected), atol=1e-4)


def test_points_between_the_spots_have_no_measured_features_and_smooth_nothing():
    data = slide()
    extra = slide(seed=9)
    extra.obs_names = [f"new{i}" for i in range(extra.n_obs)]
    extra.obs["array_row"] = extra.obs["array_row"] + 0.5
    extra.obsm["spatial"] = extra.obsm["spatial"] + [0.0, 100.0]
    both = anndata.concat([data, extra])
    both.obs["stemjax_measured"] = np.repeat([True, False], 30)
    for use in ("measured", "smoothed"):
        found = features_of.features(both, use)
        np.testing.assert_array_equal(found.rows, np.repeat([True, False], 30))
        alone = features_of.features(data, use)
        np.testing.assert_allclose(gram(found.values), gram(alone.values), atol=1e-9)
    position = features_of.features(both, "position").values
    np.testing.assert_array_equal(position[:, 1], data.obs["array_row"])
    assert features_of.features(both, "X").rows.all()


def test_measured_expression_joins_records_by_barcode_and_gene(tmp_path):
    records = write_source(tmp_path)
    source = truths.of_records(records)
    made = predicted(records, "A1", np.zeros((108, 14)), train=["B1"])
    made = made[::-1, ::-1].copy()
    truth = features_of.truth_of(made, source)
    assert truth.slide == "A1"
    stranger = made[:1].copy()
    stranger.obs_names = ["elsewhere"]
    missing = anndata.concat([made, stranger], merge="same", uns_merge="first")
    found = features_of.features(missing, "measured", truth=truth)
    assert found.rows.tolist() == [True] * 108 + [False]
    # G12 was not measured on A1; G13 is constant.
    expected = standardised(truth.values("log2p1")[::-1, :12])
    np.testing.assert_allclose(gram(found.values), gram(expected), atol=1e-4)
    assert found.about["genes"] == 13
    other = predicted(records, "A1", np.zeros((108, 14)), train=["B1"])
    other.obs_names = [f"q{i}" for i in range(108)]
    with pytest.raises(errors.PredictionError, match="share no spots.*found q0, q1 beside 0x0"):
        features_of.features(other, "measured", truth=truth)
    other.uns["stemjax"]["slide"] = "Z9"
    with pytest.raises(errors.PredictionError, match="expected one of A1, A2, B1, U1, found Z9"):
        features_of.truth_of(other, source)
    del other.uns["stemjax"]
    with pytest.raises(errors.PredictionError, match="found no slide named"):
        features_of.truth_of(other, source)
    other.uns["spatial"] = {"B1": {}}
    assert features_of.truth_of(other, source).slide == "B1"


def test_labels_leave_out_what_has_none_and_what_was_not_measured():
    data = slide(3, 2)
    data.obs["region"] = ["b", "", "a", np.nan, "a", "b"]
    classes, codes = features_of.labels(data, "region")
    assert classes == ("a", "b")
    assert codes.tolist() == [1, -1, 0, -1, 0, 1]
    data.obs["region"] = data.obs["region"].astype("category")
    assert features_of.labels(data, "region")[1].tolist() == [1, -1, 0, -1, 0, 1]
    data.obs["stemjax_measured"] = [False, True, True, True, True, True]
    assert features_of.labels(data, "region")[1].tolist() == [-1, -1, 0, -1, 0, 1]
    data.obs["region"] = ["b", "c", "a", "c", "a", "b"]
    assert features_of.labels(data, "region", ignore=["c"])[1].tolist() == [-1, -1, 0, -1, 0, 1]
    with pytest.raises(errors.PredictionError, match="label d that is to be left out.*a, b, c"):
        features_of.labels(data, "region", ignore=["d"])
    with pytest.raises(errors.PredictionError, match="two or more labels.*found a"):
        features_of.labels(data, "region", ignore=["b", "c"])


def test_a_label_that_is_not_there_names_those_that_are():
    data = slide()
    data.obs["cluster"] = ["1", "2"] * 15
    data.obs["pathologist"] = pd.Categorical(["x", "y", "z"] * 10)
    data.obs["one"] = "same"
    with pytest.raises(errors.PredictionError, match="no label 'nope'.*cluster, pathologist\\."):
        features_of.labels(data, "nope")


def same_place(data):
    data.obs["array_col"] = data.obs["array_row"] = 0


@pytest.mark.parametrize(
    ("change", "use", "message"),
    [
        (lambda d: None, "X_none", "no features 'X_none'.*found spatial in obsm"),
        (lambda d: d.layers.pop("counts"), "measured", "holds no measured expression.*--truth"),
        (lambda d: d.layers.update(counts=d.X), "measured", "raw counts: whole numbers"),
        (same_place, "smoothed", "found 29 in another's"),
        (lambda d: d.obsm.pop("spatial"), "smoothed", "has no spot coordinates"),
        (lambda d: d.obsm.update(H=np.full((30, 2), np.nan)), "H", '"H"\\]: expected finite'),
        (lambda d: d.obsm.update(H=np.full((30, 2), 0.1)), "H", "cannot be clustered.*0 features"),
    ],
)
def test_what_cannot_be_clustered_is_said(change, use, message):
    data = slide()
    change(data)
    with pytest.raises(errors.PredictionError, match=message):
        features_of.features(data, use)
