"""Clusters of points by name: k-means, a mixture of Gaussians, or communities of a graph.

Clusters are numbered by size, the largest 0, so that the same partition has the same numbers
whatever a method called them. Each is a function of the points and the seed.
"""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from stemjax import errors, names

MOST = 12
"""Most clusters that are tried where their number is chosen."""

NEIGHBOURS = 15
"""Nearest points that a point is joined with in the graph of ``leiden``."""

_STARTS = 10
_SILHOUETTE = 5000  # points that a silhouette is estimated on: it compares all pairs
_RESOLUTIONS = (1e-3, 1e2)
_HALVINGS = 40


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clustering:
    """A partition of points.

    Attributes:
      labels: cluster of each point, from 0 up, the largest cluster first, [l].
      method: one of `names.DOMAIN_METHODS`.
      chosen: how the number of clusters came about, in words.
      settings: what else a reader needs to repeat it, plain values.
    """

    labels: Int[np.ndarray, " l"]
    method: str
    chosen: str
    settings: Mapping[str, Any]

    @property
    def k(self) -> int:
        """Number of clusters."""
        return int(self.labels.max()) + 1


def cluster(
    points: Float[np.ndarray, "l f"],
    method: str = "kmeans",
    *,
    k: int | None = None,
    resolution: float | None = None,
    seed: int = 0,
) -> Clustering:
    """Clusters of points.

    ``kmeans``: the best of 10 starts; without ``k``, the number from 2 to 12 of the highest mean
    silhouette (Rousseeuw 1987). ``gmm``: a mixture of Gaussians, the best of 10 starts; each
    cluster's covariance is diagonal, or all share one full matrix, whichever has the lower BIC (a
    matrix for each cluster has 465 entries at 30 components, more than hundreds of spots can
    tell); without ``k``, the number from 1 to 12 of the lowest BIC too. ``leiden``: communities of
    the graph of 15 nearest neighbours, joined twice where each is the other's (Traag, Waltman and
    van Eck 2019), with modularity at a resolution: searched for ``k`` communities, or given, or 1.

    Args:
      points: finite coordinates in any space.
      method: one of `names.DOMAIN_METHODS`.
      k: number of clusters asked for; None as said above. ``gmm`` and ``leiden`` may come out with
        another, and `Clustering.chosen` says so then.
      resolution: of ``leiden``, in place of ``k``.
      seed: of the starts.

    Raises:
      ConfigError: no such method, a number of clusters or a resolution that cannot be, both of
        them given, or the libraries of ``leiden`` are not installed.
    """
    points = np.ascontiguousarray(points, np.float64)
    _check(points, method, k, resolution)
    if method == "kmeans":
        labels, chosen, settings = _kmeans(points, k, seed)
    elif method == "gmm":
        labels, chosen, settings = _gmm(points, k, seed)
    else:
        labels, chosen, settings = _leiden(points, k, resolution, seed)
    labels = by_size(labels)
    found = int(labels.max()) + 1
    if k is not None and found != k:
        chosen = f"asked for {k}, found {found}"
    return Clustering(labels=labels, method=method, chosen=chosen, settings=settings)


def by_size(labels: Int[np.ndarray, " l"]) -> Int[np.ndarray, " l"]:
    """The partition numbered by size, the largest 0; of two equal ones the first seen first."""
    _, first, where, sizes = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.empty(len(sizes), np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return rank[where.reshape(-1)]


def _check(points: np.ndarray, method: str, k: int | None, resolution: float | None) -> None:
    if method not in names.DOMAIN_METHODS:
        raise errors.ConfigError(
            "there is no such clustering",
            expected=" or ".join(names.DOMAIN_METHODS),
            found=repr(method),
        )
    if resolution is not None and (method != "leiden" or k is not None):
        raise errors.ConfigError(
            "a resolution",
            expected="method leiden and no number of clusters beside it",
            found=f"method {method}" + (f", {k} clusters" if k is not None else ""),
        )
    if resolution is not None and not (np.isfinite(resolution) and resolution > 0):
        raise errors.ConfigError(
            "the resolution", expected="a number above 0", found=f"{resolution}"
        )
    unlike = len(np.unique(points, axis=0))
    if unlike < 3 or (k is not None and not 1 <= k < unlike):
        raise errors.ConfigError(
            "the number of clusters",
            expected="at least 1, and fewer than the spots whose features differ",
            found=f"{'a number to be chosen' if k is None else k}, of {unlike} such spots",
        )


def _kmeans(points: np.ndarray, k: int | None, seed: int) -> tuple[np.ndarray, str, dict[str, Any]]:
    from sklearn import cluster as sk
    from sklearn import metrics as sk_metrics

    def fit(count: int) -> np.ndarray:
        starts: Any = _STARTS  # scikit-learn's stub knows the word "auto" alone
        return sk.KMeans(count, n_init=starts, random_state=seed).fit_predict(points)

    if k is not None:
        return fit(k), "given", {"starts": _STARTS}
    most = min(MOST, len(np.unique(points, axis=0)) - 1)
    fits = {count: fit(count) for count in range(2, most + 1)}
    sample = _SILHOUETTE if len(points) > _SILHOUETTE else None
    scores = {
        count: float(
            sk_metrics.silhouette_score(points, labels, sample_size=sample, random_state=seed)
        )
        for count, labels in fits.items()
    }
    best = max(scores, key=lambda count: scores[count])
    return fits[best], "highest silhouette", {"starts": _STARTS, "silhouette": scores[best]}


def _gmm(points: np.ndarray, k: int | None, seed: int) -> tuple[np.ndarray, str, dict[str, Any]]:
    from sklearn import exceptions, mixture

    most = min(MOST, len(np.unique(points, axis=0)) - 1)
    best, lowest = None, np.inf
    for count in range(1, most + 1) if k is None else (k,):
        for shape in ("diag", "tied"):
            model = mixture.GaussianMixture(
                count, covariance_type=shape, n_init=_STARTS, max_iter=300, random_state=seed
            )
            with warnings.catch_warnings():
                # Said in the settings: a fit that still moves is a fit all the same.
                warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
                model.fit(points)
            bic = float(model.bic(points))
            if bic < lowest:
                best, lowest = model, bic
    if best is None:
        raise errors.ConfigError("method gmm: no mixture fits", fix="choose kmeans")
    settings = {
        "starts": _STARTS,
        "covariance": best.covariance_type,
        "bic": lowest,
        "converged": bool(best.converged_),
    }
    return best.predict(points), "given" if k is not None else "lowest BIC", settings


def _leiden(
    points: np.ndarray, k: int | None, resolution: float | None, seed: int
) -> tuple[np.ndarray, str, dict[str, Any]]:
    parts = _communities(points, seed)
    if k is None:
        at = 1.0 if resolution is None else resolution
        chosen = "resolution 1" if resolution is None else "resolution given"
        return parts(at), chosen, {"neighbours": NEIGHBOURS, "resolution": at}
    # More resolution, more communities, but for chance: halve on a logarithmic scale and keep the
    # nearest, since a number may be skipped.
    low, high = np.log(_RESOLUTIONS)
    best: tuple[int, float, np.ndarray] | None = None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        labels = parts(float(np.exp(middle)))
        count = int(labels.max()) + 1
        if best is None or abs(count - k) < best[0]:
            best = abs(count - k), float(np.exp(middle)), labels
        if count == k:
            break
        low, high = (middle, high) if count < k else (low, middle)
    assert best is not None
    return best[2], "given", {"neighbours": NEIGHBOURS, "resolution": best[1]}


def _communities(points: np.ndarray, seed: int) -> Callable[[float], np.ndarray]:
    """Returns resolution -> community of each point."""
    from sklearn import neighbors

    igraph, leidenalg = _libraries()
    near = min(NEIGHBOURS, len(points) - 1)
    joined = neighbors.kneighbors_graph(points, near, mode="connectivity")
    half = scipy.sparse.triu(joined + joined.T, k=1).tocoo()
    edges = np.stack([half.row, half.col], axis=1)
    graph = igraph.Graph(n=len(points), edges=edges.tolist())
    weights = half.data.tolist()

    def parts(resolution: float) -> np.ndarray:
        found = leidenalg.find_partition(
            graph,
            leidenalg.RBConfigurationVertexPartition,
            weights=weights,
            resolution_parameter=resolution,
            n_iterations=-1,  # until nothing moves
            seed=seed,
        )
        return np.asarray(found.membership, np.int64)

    return parts


def _libraries() -> tuple[Any, Any]:
    """The modules igraph and leidenalg, which are an extra."""
    try:
        return importlib.import_module("igraph"), importlib.import_module("leidenalg")
    except ModuleNotFoundError as error:
        raise errors.ConfigError(
            f"method leiden needs the packages igraph and leidenalg ({error})",
            fix="pip install 'stemjax[leiden]', or choose kmeans or gmm",
        ) from error
