"""Clusters that are there are found, by each method; what cannot be asked for is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn import metrics as sk

from stemjax import errors, names
from stemjax.eval import clustering

SIZES = (20, 50, 30)
TRUE = np.repeat(np.arange(3), SIZES)


def blobs(seed=0, apart=8.0):
    rng = np.random.default_rng(seed)
    centres = apart * np.eye(3, 4)
    return centres[TRUE] + rng.normal(size=(100, 4))


def has_leiden():
    pytest.importorskip("leidenalg", reason="the extra leiden is not installed")


@pytest.fixture(params=names.DOMAIN_METHODS)
def method(request):
    if request.param == "leiden":
        has_leiden()
    return request.param


def test_clusters_are_found_and_numbered_by_size(method):
    found = clustering.cluster(blobs(), method, k=3)
    assert (found.k, found.method, found.chosen) == (3, method, "given")
    np.testing.assert_array_equal(found.labels, np.array([2, 0, 1])[TRUE])


def test_a_seed_gives_one_result(method):
    points = np.random.default_rng(3).normal(size=(80, 5))  # no clusters: starts decide
    one = clustering.cluster(points, method, k=6, seed=4)
    np.testing.assert_array_equal(
        one.labels, clustering.cluster(points, method, k=6, seed=4).labels
    )


@pytest.mark.parametrize(
    ("method", "chosen"), [("kmeans", "highest silhouette"), ("gmm", "lowest BIC")]
)
def test_the_number_of_clusters_is_chosen(method, chosen):
    found = clustering.cluster(blobs(), method)
    assert (found.k, found.chosen) == (3, chosen)
    if method == "kmeans":
        expected = sk.silhouette_score(blobs(), found.labels)
        assert found.settings["silhouette"] == pytest.approx(expected)


def test_a_mixture_sees_one_cluster_where_there_is_one_and_the_shape_that_fits():
    rng = np.random.default_rng(0)
    assert clustering.cluster(rng.normal(size=(200, 3)), "gmm").k == 1
    # Two long thin clusters side by side, aslant: a full matrix says so with fewest parameters.
    slant = np.array([[1.0, 1.0], [0.15, -0.15]])
    side = np.repeat([0, 1], 100)
    points = rng.normal(size=(200, 2)) @ slant + 2.0 * side[:, None] * [1.0, -1.0]
    found = clustering.cluster(points, "gmm", k=2)
    assert found.settings["covariance"] == "tied"
    assert found.settings["converged"]
    assert sk.adjusted_rand_score(side, found.labels) > 0.9
    # Round clusters of different width: a variance for each.
    points = np.where(side[:, None] == 0, 0.2, 3.0) * rng.normal(size=(200, 2))
    assert clustering.cluster(points, "gmm", k=2).settings["covariance"] == "diag"


def test_by_size_keeps_the_partition_and_breaks_ties_by_what_comes_first():
    np.testing.assert_array_equal(
        clustering.by_size(np.array([7, 7, 3, 9, 9, 3, 3])), [1, 1, 0, 2, 2, 0, 0]
    )


def test_a_resolution_makes_communities_finer():
    has_leiden()
    points = blobs(apart=4.0)
    coarse = clustering.cluster(points, "leiden", resolution=0.05)
    fine = clustering.cluster(points, "leiden", resolution=5.0)
    assert coarse.k < 4 < fine.k
    assert (fine.chosen, fine.settings["resolution"]) == ("resolution given", 5.0)
    assert clustering.cluster(points, "leiden").settings["resolution"] == 1.0


@pytest.mark.parametrize("k", [2, 5, 9])
def test_the_resolution_is_searched_for_the_number_asked_for(k):
    has_leiden()
    points = np.random.default_rng(1).normal(size=(150, 2))
    found = clustering.cluster(points, "leiden", k=k)
    assert (found.k, found.chosen) == (k, "given")
    again = clustering.cluster(points, "leiden", resolution=found.settings["resolution"])
    np.testing.assert_array_equal(found.labels, again.labels)


def test_a_number_that_the_graph_does_not_allow_is_said():
    has_leiden()
    # Three groups far apart are three components: fewer communities there cannot be.
    found = clustering.cluster(blobs(apart=1e3), "leiden", k=2)
    assert (found.k, found.chosen) == (3, "asked for 2, found 3")


@pytest.mark.parametrize("missing", ["igraph", "leidenalg"])
def test_without_its_libraries_leiden_says_what_to_install(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(errors.ConfigError, match=r"leiden needs.*pip install 'stemjax\[leiden\]'"):
        clustering.cluster(blobs(), "leiden", k=3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": "ward"}, "no such clustering: expected kmeans or gmm or leiden, found 'ward'"),
        ({"k": 0}, "found 0, of 100 such spots"),
        ({"k": 100}, "found 100, of 100 such spots"),
        ({"resolution": 1.0}, "a resolution: expected method leiden.*found method kmeans"),
        ({"method": "leiden", "k": 3, "resolution": 1.0}, "found method leiden, 3 clusters"),
        ({"method": "leiden", "resolution": 0.0}, "expected a number above 0, found 0.0"),
    ],
)
def test_what_cannot_be_is_refused(asked, message):
    with pytest.raises(errors.ConfigError, match=message):
        clustering.cluster(blobs(), **asked)


def test_points_that_are_all_alike_have_no_clusters():
    with pytest.raises(errors.ConfigError, match="a number to be chosen, of 1 such spots"):
        clustering.cluster(np.ones((10, 2)))
