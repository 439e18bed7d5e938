"""Domains of a drawn section: found, scored beside rivals and floor, and written down."""

from __future__ import annotations

import json
import re

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from stemjax import errors
from stemjax.eval import clustering, domain_features, domains, metrics, plain

SIDE, GENES = 16, 12
X, Y = (v.ravel() for v in np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
REGION = np.array(["left", "right", "low"])[np.where(Y > 9, 2, (X > 6).astype(int))]


def slide(seed=0, noise=0.2, contrast=0.35):
    """A square array whose regions differ in expression; X knows them, counts are noisy."""
    rng = np.random.default_rng(seed)
    profile = np.random.default_rng(99).normal(size=(3, GENES))
    mean = profile[np.unique(REGION, return_inverse=True)[1]]
    made = anndata.AnnData(
        X=(mean + noise * rng.normal(size=mean.shape)).astype(np.float32),
        obs=pd.DataFrame(
            {"array_row": Y, "array_col": X, "region": REGION},
            index=[f"{x}x{y}" for x, y in zip(X, Y)],
        ),
        var=pd.DataFrame(index=[f"G{i}" for i in range(GENES)]),
    )
    made.layers["counts"] = rng.poisson(np.exp(1.0 + contrast * mean))
    made.obsm["spatial"] = np.stack([X, Y], 1) * 200.0 + 100.0
    return made


ROWS = [
    ("X", None),
    ("measured", "log2p1"),
    ("measured", "log1p_cp10k"),
    ("smoothed", "log2p1"),
    ("smoothed", "log1p_cp10k"),
    ("position", None),
]


@pytest.fixture(scope="module")
def compared():
    return domains.compare_domains(slide(), "region", resamples=200)


def test_domains_are_the_regions_and_do_not_depend_on_the_order_of_spots():
    data = slide()
    found = domains.find_domains(data, label="region")
    assert sk.adjusted_rand_score(REGION, found.labels) == 1.0
    assert found.clustering.chosen == "as many as region has labels"
    noisy = slide(noise=3.0)  # starts decide
    order = np.random.default_rng(0).permutation(noisy.n_obs)
    one, other = (domains.find_domains(d, k=6) for d in (noisy, noisy[order]))
    np.testing.assert_array_equal(one.labels[order], other.labels)
    np.testing.assert_allclose(one.features.values[order], other.features.values)


@pytest.mark.parametrize(
    ("asked", "k", "chosen"),
    [
        ({"k": 2, "label": "region"}, 2, "given"),
        ({}, 3, "highest silhouette"),
        ({"method": "gmm"}, 3, "lowest BIC"),
        ({"label": "region", "ignore": ["low"]}, 2, "as many as region has labels"),
    ],
)
def test_the_number_of_domains_is_given_the_labels_or_chosen(asked, k, chosen):
    found = domains.find_domains(slide(), **asked)
    assert (found.clustering.k, found.clustering.chosen) == (k, chosen)
    assert f"{k} domains of 256 spots" in found.sentence
    assert sum(found.sizes) == 256


def test_rows_are_scored_as_scikit_learn_says(compared):
    data = slide()
    assert [(row["use"], row["space"]) for row in compared["rows"]] == ROWS
    for row in compared["rows"]:
        found = domains.find_domains(data, row["use"], k=3, space=row["space"])
        scores = row["scores"]
        for key, function in {
            "ari": sk.adjusted_rand_score,
            "nmi": sk.normalized_mutual_info_score,
            "ami": sk.adjusted_mutual_info_score,
        }.items():
            expected = function(REGION, found.labels)
            assert scores[key]["value"] == pytest.approx(expected, abs=1e-12)
            low, high = scores[key]["interval"]
            assert low <= scores[key]["value"] <= high
    assert compared["classes"] == {"left": 70, "low": 96, "right": 90}
    assert compared["intervals"]["of"] == "spatial blocks"
    assert compared["intervals"]["count"] == 16
    json.dumps(plain.plain(compared), allow_nan=False)


def test_differences_are_paired_and_the_verdict_follows(compared):
    data = slide()
    codes = domain_features.labels(data, "region")[1]
    drawn = metrics.resample(metrics.spatial_blocks(np.stack([X, Y], 1)), count=200, seed=0)
    ours, theirs = (
        domains.score(domains.find_domains(data, use, k=3).labels, codes, drawn)["ari"]
        for use in ("X", "measured")
    )
    less = compared["rows"][1]["first_minus_row"]["ari"]
    assert less["difference"] == pytest.approx(ours[0] - theirs[0])
    low, high = np.quantile(ours[1:] - theirs[1:], [0.025, 0.975])
    assert less["interval"] == pytest.approx((low, high))
    assert less["verdict"] == "better"
    assert low > 0
    rng = np.random.default_rng(0)
    near = ours + rng.normal(0, 0.01, ours.shape)
    assert domains.difference(theirs, ours)["verdict"] == "worse"
    assert domains.difference(ours, near)["verdict"] == "not distinguishable"
    assert domains.difference(ours[:1], theirs[:1])["verdict"] == "unknown"


def test_smoothing_helps_where_regions_are_compact_and_counts_noisy(compared):
    scores = {(row["use"], row["space"]): row["scores"]["ari"]["value"] for row in compared["rows"]}
    for space in ("log2p1", "log1p_cp10k"):
        assert scores["smoothed", space] > scores["measured", space] + 0.05


def test_depth_misleads_one_value_space_and_both_are_shown():
    data = slide(contrast=0.8)
    # The deeper half of the spots lies across the regions.
    data.layers["counts"] = data.layers["counts"] * np.where(Y % 4 < 2, 12, 1)[:, None]
    found = domains.compare_domains(data, "region", resamples=0)
    value = {(row["use"], row["space"]): row["scores"]["ari"]["value"] for row in found["rows"]}
    assert value["measured", "log1p_cp10k"] > value["measured", "log2p1"] + 0.2
    # The prediction's own space first, and never the same twice.
    asked = domains.compare_domains(data, "region", space="log1p_cp10k", resamples=0)
    data.uns["stemjax"] = {"value_space": "log1p_cp10k"}
    own = domains.compare_domains(data, "region", use="measured", resamples=0)
    spaces = [(row["use"], row["space"]) for row in asked["rows"]]
    assert spaces == [ROWS[i] for i in (0, 2, 1, 4, 3, 5)]
    assert [(row["use"], row["space"]) for row in own["rows"]] == [ROWS[i] for i in (2, 1, 4, 3, 5)]
    for row in own["rows"]:
        assert row["scores"]["ari"]["value"] == value[row["use"], row["space"]]


def test_further_features_stand_beside_the_first():
    data = slide()
    data.obsm["X_hidden"] = np.stack([Y > 9, X > 6], 1) + 0.0
    found = domains.compare_domains(data, "region", use="X_hidden", beside=("X",), resamples=0)
    assert [row["use"] for row in found["rows"]][:3] == ["X_hidden", "X", "measured"]
    assert found["rows"][0]["name"] == "features X_hidden"
    alone = domains.compare_domains(data, "region", resamples=0)
    assert found["rows"][1]["scores"] == alone["rows"][0]["scores"]


def test_resamples_are_centred_on_the_slide():
    # Blocks drawn twice sit beside their copies: raw resamples of unrelated maps lie higher.
    codes, other = (
        np.random.default_rng(i).integers(4, size=36)[X // 3 + 6 * (Y // 3)] for i in (0, 1)
    )
    drawn = metrics.resample(metrics.spatial_blocks(np.stack([X, Y], 1)), count=400, seed=0)
    raw = domains.partitions.adjusted_rand(domains.partitions.contingency(codes, other, drawn))
    assert raw[1:].mean() > raw[0] + 0.005
    found = domains.score(other, codes, drawn)
    assert found["ari"][0] == raw[0]
    assert found["ari"][1:].mean() == pytest.approx(raw[0], abs=1e-12)
    for values in domains.score(codes, codes, drawn).values():
        assert (values <= 1.0).all()
        assert values[0] == pytest.approx(1.0)


def test_only_spots_with_a_label_and_all_features_are_scored():
    data = slide()
    data.obs["region"] = np.where(X == 3, "", REGION)
    between = data[:40].copy()
    between.obs_names = [f"new{i}" for i in range(40)]
    between.obs["array_row"] = between.obs["array_row"] + 0.5
    between.obs["region"] = "right"
    both = anndata.concat([data, between])
    both.obs["stemjax_measured"] = np.arange(296) < 256
    found = domains.compare_domains(both, "region", resamples=0)
    assert found["spots"] == 256 - SIDE
    assert [row["scores"]["ari"]["interval"] for row in found["rows"]] == [None] * 6
    kept = X != 3
    labels = domains.find_domains(both, k=3).labels[:256]
    assert (labels >= 0).all()
    expected = sk.adjusted_rand_score(REGION[kept], labels[kept])
    assert found["rows"][0]["scores"]["ari"]["value"] == pytest.approx(expected)
    measured = domains.find_domains(both, "measured", k=3)
    assert (measured.labels[256:] == -1).all()
    domains.write_domains(both, measured)
    assert both.obs["stemjax_domain"].isna().sum() == 40


def test_without_counts_the_measured_rows_are_left_out_and_it_is_said():
    data = slide()
    del data.layers["counts"]
    found = domains.compare_domains(data, "region", resamples=0)
    assert [row["use"] for row in found["rows"]] == ["X", "position"]
    assert "No measured expression was given: its rows are left out." in domains.table(found)
    del data.obsm["spatial"]
    with pytest.raises(errors.PredictionError, match="no spot coordinates"):
        domains.compare_domains(data, "region", resamples=0)
    assert domains.find_domains(data, k=3).clustering.k == 3  # clustering X needs no place


def test_labels_that_no_scored_spot_has_are_refused():
    data = slide()
    truth = domain_features.truths.of_anndata(
        anndata.AnnData(data.layers["counts"], data.obs[[]], data.var, obsm=dict(data.obsm))[
            REGION == "low"
        ],
        name="S",
        where="S",
    )
    with pytest.raises(errors.PredictionError, match="features in every row.*found 96 spots"):
        domains.compare_domains(data, "region", truth=truth, resamples=0)


def test_domains_are_written_with_how_they_were_found(tmp_path):
    data = slide()
    found = domains.find_domains(data, "smoothed", method="gmm", k=3, space="log1p_cp10k", seed=5)
    domains.write_domains(data, found)
    data.write_h5ad(tmp_path / "x.h5ad")
    read = anndata.read_h5ad(tmp_path / "x.h5ad")
    column = read.obs["stemjax_domain"]
    assert list(column.cat.categories) == ["0", "1", "2"]
    np.testing.assert_array_equal(column.astype(int), found.labels)
    about = dict(read.uns["stemjax_domains"])
    settings = json.loads(about["settings"])
    assert (about["use"], about["method"], about["k"], about["seed"]) == ("smoothed", "gmm", 3, 5)
    assert settings["components"] == 10  # of a mixture
    assert settings["value_space"] == "log1p_cp10k"
    assert settings["covariance"] in ("diag", "tied")


def test_the_table_says_what_was_scored(compared):
    text = domains.table(compared)
    assert text.startswith("Against region, 256 spots: left 70, low 96, right 90.")
    assert re.search(r"\| predicted expression +\| +3 \| +1.000 \[1.000, 1.000\] \|", text)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.count("|") > 2}
    less = compared["rows"][5]["first_minus_row"]["ari"]
    low, high = less["interval"]
    said = f"{less['difference']:+.3f} [{low:+.3f}, {high:+.3f}] better"
    assert said in rows["position alone"]  # the second table's
    assert "predicted expression less" in rows
    assert "measured, ln(1 + counts per 10,000)" in rows
    assert max(map(len, rows.values())) < 150  # a wide terminal's
    assert "200 resamples of 16 square blocks" in text


def test_a_first_row_that_is_known_is_not_clustered_again(monkeypatch):
    data = slide()
    first = domains.find_domains(data, k=4)
    called = []
    cluster = clustering.cluster
    monkeypatch.setattr(
        clustering, "cluster", lambda *a, **k: (called.append(k["k"]), cluster(*a, **k))[1]
    )
    found = domains.compare_domains(data, "region", first=first, resamples=0)
    assert called == [4] * 5
    assert [row["k"] for row in found["rows"]] == [4] * 6
