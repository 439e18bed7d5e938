"""A known law of expression in space: the best possible error of recovery can be computed.

Real sections do not tell how well hidden spots could be recovered from measured ones. Here the law
is Gaussian in the value space log2(count + 1) with a covariance that is known (a linear model of
coregionalisation; Journel and Huijbregts 1978, Mining Geostatistics, section III.B.3):

    value_g(s)   = mean_g + sum_p loading_pg f_p(s) + noise_std_g e_g(s)
    feature_c(s) =          sum_p feature_pc f_p(s) + feature_std e'_c(s)

f_p: independent Gaussian processes of variance 1, each with a length scale of its own. e, e':
independent standard normal numbers. So the expectation of a hidden value given all genes of the
measured spots, and given what an image shows of every spot, is linear, and its error does not
depend on the values.

All algebra is in the space of the processes. A spot's values y say of f what the few numbers
u = R' f + standard normal noise say, with R R' = A D^-1 A' (A [p g] the loadings, D the noise's
variances) and u = R^+ A D^-1 (y - mean): the likelihood of f is the same function of both.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int32
from scipy import linalg

from stemjax import errors
from stemjax.data import grids, slides
from stemjax.data import processes as processes_lib

ROUNDING_SHARE = 1e-3
"""Share of a gene's noise_std that rounding to whole counts may move a value by, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class KnownField:
    """The law of the module's docstring.

    Attributes:
      mean: [g], value space log2(count + 1).
      loadings: weight of each process in each gene, [p g].
      noise_std: [g], above 0.
      length_um: length scale of each process, [p] um.
      family: their covariance (`processes.Processes`).
      features: weight of each process in each image feature, [p c]; c may be 0.
      feature_std: standard deviation of the features' noise, above 0.

    Raises:
      ConfigError: the arrays do not fit, or a number is out of range.
    """

    mean: Float[np.ndarray, " g"]
    loadings: Float[np.ndarray, "p g"]
    noise_std: Float[np.ndarray, " g"]
    length_um: Float[np.ndarray, " p"]
    family: processes_lib.Family = "matern"
    features: Float[np.ndarray, "p c"]
    feature_std: float = 0.5

    def __post_init__(self) -> None:
        for field in ("mean", "loadings", "noise_std", "length_um", "features"):
            object.__setattr__(self, field, np.asarray(getattr(self, field), np.float64))
        p, g = self.loadings.shape if self.loadings.ndim == 2 else (0, 0)
        shapes = (self.mean.shape, self.noise_std.shape, self.length_um.shape)
        fits = shapes == ((g,), (g,), (p,)) and self.features.shape[:1] == (p,) and p * g > 0
        _require(
            "arrays", fits and self.features.ndim == 2, "one process and gene at least", shapes
        )
        _require("noise_std", (self.noise_std > 0).all(), "above 0", self.noise_std.min())
        _require("feature_std", self.feature_std > 0, "above 0", self.feature_std)
        processes_lib.Processes(length_um=self.length_um, family=self.family)

    @property
    def genes(self) -> tuple[str, ...]:
        """Gene names, ``FLD0001``.. in the order of the columns."""
        return tuple(f"FLD{i:04d}" for i in range(1, len(self.mean) + 1))

    def sample(self, seed: int, xy_um: Float[np.ndarray, "l 2"]) -> Float[np.ndarray, "l g"]:
        """Values of one section, log2(count + 1) before rounding to counts.

        A function of the seed and the set of positions: their order only orders the rows. Other
        positions give another section.
        """
        order, back = _canonical(xy_um)
        noise = np.random.default_rng([seed, 1]).standard_normal((len(order), len(self.mean)))
        process = self._processes.draw(seed, np.asarray(xy_um)[order])
        return (self.mean + process @ self.loadings + noise * self.noise_std)[back]

    def embeddings(self, seed: int, xy_um: Float[np.ndarray, "l 2"]) -> Float[np.ndarray, "l c"]:
        """Image features of the section that `sample` draws with the same seed and positions."""
        order, back = _canonical(xy_um)
        noise = np.random.default_rng([seed, 2]).standard_normal(
            (len(order), self.features.shape[1])
        )
        process = self._processes.draw(seed, np.asarray(xy_um)[order])
        return (process @ self.features + noise * self.feature_std)[back]

    def best(
        self,
        measured_xy: Float[np.ndarray, "m 2"],
        measured_y: Float[np.ndarray, "m g"],
        query_xy: Float[np.ndarray, "q 2"],
        *,
        measured_embeddings: Float[np.ndarray, "m c"] | None = None,
        query_embeddings: Float[np.ndarray, "q c"] | None = None,
    ) -> tuple[Float[np.ndarray, "q g"], Float[np.ndarray, "q g"]]:
        """(mean, variance) of the hidden values given all that is measured: exact.

        The expectation has the least squared error of all predictions of the noisy values; the
        variance is that error's expectation, the noise included.

        Args:
          measured_xy: positions of the measured spots, um; there may be none.
          measured_y: their values, all genes.
          query_xy: positions of the hidden spots, um.
          measured_embeddings: features of the measured spots.
          query_embeddings: features of the hidden spots; each informs of the others too.

        Raises:
          ConfigError: arrays do not fit this law.
        """
        m, q, g = len(measured_xy), len(query_xy), len(self.mean)
        _require("measured_y", np.shape(measured_y) == (m, g), f"[{m} {g}]", np.shape(measured_y))
        self._require_features("measured_embeddings", measured_embeddings, m)
        self._require_features("query_embeddings", query_embeddings, q)
        values = np.asarray(measured_y, np.float64) - self.mean
        summaries = (
            self._summary(values, measured_embeddings),
            self._summary(None, query_embeddings),
        )
        gain, variance = self._posterior(
            measured_xy,
            query_xy,
            measured_image=measured_embeddings is not None,
            image=query_embeddings is not None,
        )
        u = np.concatenate([part.reshape(-1) for part in summaries])
        process = (gain.T @ u).reshape(q, -1)
        return self.mean + process @ self.loadings, variance

    def best_mse(
        self,
        measured_xy: Float[np.ndarray, "m 2"],
        query_xy: Float[np.ndarray, "q 2"],
        *,
        image: bool = False,
    ) -> float:
        """Expected squared error of `best` over the hidden spots and genes, value space squared.

        No prediction of the noisy values from the same measurements has less on average.

        Args:
          measured_xy: positions of the measured spots, um.
          query_xy: positions of the hidden spots, um.
          image: whether the features of all these spots are given too.
        """
        return float(
            self._posterior(measured_xy, query_xy, measured_image=image, image=image)[1].mean()
        )

    def kriging_mse(
        self, measured_xy: Float[np.ndarray, "m 2"], query_xy: Float[np.ndarray, "q 2"]
    ) -> float:
        """The same of each gene's best prediction from its own measured values alone.

        It knows the gene's true mean and covariance (simple kriging): at least `best_mse`.
        """
        between = self._processes.correlations(measured_xy, measured_xy)
        across = self._processes.correlations(measured_xy, query_xy)
        errors_of = []
        for loading, noise in zip(self.loadings.T, self.noise_std, strict=True):
            covariance = np.tensordot(loading**2, between, 1)
            covariance[np.diag_indices_from(covariance)] += noise**2
            half = linalg.solve_triangular(
                linalg.cholesky(covariance, lower=True),
                np.tensordot(loading**2, across, 1),
                lower=True,
            )
            errors_of.append(loading @ loading + noise**2 - np.sum(half**2, axis=0).mean())
        return float(np.mean(errors_of))

    def linear_mse(
        self,
        weights: Float[np.ndarray, "q m"],
        measured_xy: Float[np.ndarray, "m 2"],
        query_xy: Float[np.ndarray, "q 2"],
    ) -> float:
        """The same of a weighted sum of each gene's own measured values, for example their mean.

        Weights that do not add up to 1 miss a share of the gene's mean, which is counted too.

        Args:
          weights: of each measured spot, for each hidden one.
          measured_xy: positions of the measured spots, um.
          query_xy: positions of the hidden spots, um.
        """
        weights = np.asarray(weights, np.float64)
        between = self._processes.correlations(measured_xy, measured_xy)
        across = self._processes.correlations(measured_xy, query_xy)
        # Variance of the difference of each process, [p q], and of the noise, [q].
        process = 1 - 2 * np.einsum("qm,pmq->pq", weights, across)
        process += np.einsum("qm,pmn,qn->pq", weights, between, weights, optimize=True)
        noise = 1 + np.sum(weights**2, axis=1)
        bias = np.square(1 - weights.sum(axis=1))
        total = process.mean(axis=1) @ self.loadings**2 + noise.mean() * self.noise_std**2
        return float(np.mean(total + bias.mean() * self.mean**2))

    def to_counts(self, values: Float[np.ndarray, "l g"]) -> Int32[np.ndarray, "l g"]:
        """Whole counts whose log2(count + 1) is within `ROUNDING_SHARE` noise_std of the values.

        count = 2^v - 1 rounded moves 2^v by at most 1/2, and so v by at most
        -log2(1 - 2^-(v + 1)) = 0.7214 2^-v (1 + 2^-v / 4 ..).

        Raises:
          ConfigError: a value is so low that this is above the bound, or too high for an int32.
        """
        values = np.asarray(values, np.float64)
        moved = -np.log2(1 - np.exp2(-np.maximum(values, 0.0) - 1))
        fine = bool((moved <= ROUNDING_SHARE * self.noise_std).all() and values.max() < 31)
        found = f"{values.min():.2f} to {values.max():.2f}"
        _require("values for counts", fine, "high enough for rounding, and below 31", found)
        return np.rint(np.exp2(values) - 1).astype(np.int32)

    def make_slide(
        self,
        seed: int,
        *,
        lattice: grids.Kind = "hexagonal",
        rows: int = 16,
        columns: int = 16,
        pitch_um: float = 100.0,
        patient: str | None = None,
    ) -> slides.Slide:
        """A slide without image whose counts follow the law at mpp 1 (positions in um).

        Its values are ``sample(seed, slide.pixel_xy)`` up to `to_counts`' rounding, its features
        ``embeddings(seed, slide.pixel_xy)``. The id is ``field`` and the seed; the spots' diameter
        is half the pitch.

        Raises:
          ConfigError: the grid has no spot.
        """
        array_xy, pixel_xy = grids.grid_xy(lattice, rows, columns, pitch_um)
        counts = self.to_counts(self.sample(seed, pixel_xy))
        return slides.Slide(
            id=f"field{seed}",
            patient=patient,
            counts=scipy.sparse.csr_array(counts),
            genes=self.genes,
            barcodes=tuple(f"{x:.0f}x{y:.0f}" for x, y in array_xy),
            array_xy=array_xy,
            pixel_xy=pixel_xy,
            image=None,
            mpp=1.0,
            spot_diameter_um=pitch_um / 2,
            sources={},
        )

    @functools.cached_property
    def _processes(self) -> processes_lib.Processes:
        return processes_lib.Processes(length_um=self.length_um, family=self.family)

    def _require_features(self, name: str, given: np.ndarray | None, n: int) -> None:
        if given is not None:
            wanted = (n, self.features.shape[1])
            _require(name, np.shape(given) == wanted, str(wanted), np.shape(given))

    def _root(self, *, genes: bool, image: bool) -> tuple[np.ndarray, np.ndarray]:
        """(R, projection) [p r] of a spot: u = projection' of what is seen, weighted by noise."""
        precision = np.zeros((len(self.length_um),) * 2)
        if genes:
            precision += (self.loadings / self.noise_std**2) @ self.loadings.T
        if image:
            precision += self.features @ self.features.T / self.feature_std**2
        value, vector = np.linalg.eigh(precision)
        # What no gene and no feature shows has an eigenvalue of 0 up to rounding.
        shown = value > 1e-12 * max(value.max(), 1e-300)
        size = np.sqrt(value[shown])
        return vector[:, shown] * size, vector[:, shown] / size

    def _summary(self, values: np.ndarray | None, embeddings: np.ndarray | None) -> np.ndarray:
        """The numbers u of each spot, [l r]; ``values`` without their mean."""
        weighted = np.zeros((1, len(self.length_um)))
        if values is not None:
            weighted = weighted + (values / self.noise_std**2) @ self.loadings.T
        if embeddings is not None:
            seen = np.asarray(embeddings, np.float64)
            weighted = weighted + seen @ self.features.T / self.feature_std**2
        return weighted @ self._root(genes=values is not None, image=embeddings is not None)[1]

    def _posterior(
        self, measured_xy: np.ndarray, query_xy: np.ndarray, *, measured_image: bool, image: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """(gain [u, q p] of the processes' mean, variance [q g] of the noisy values)."""
        seen = [
            (measured_xy, self._root(genes=True, image=measured_image)[0]),
            (query_xy, self._root(genes=False, image=image)[0]),
        ]
        gain, left = self._processes.posterior(seen, query_xy)
        variance = np.einsum("qab,ag,bg->qg", left, self.loadings, self.loadings, optimize=True)
        return gain, variance + self.noise_std**2


def draw_field(
    seed: int = 0,
    *,
    n_genes: int = 50,
    length_um: Sequence[float] = (120.0, 300.0, 900.0),
    processes: int = 2,
    noise_share: tuple[float, float] = (0.3, 0.8),
    family: processes_lib.Family = "matern",
    n_features: int = 0,
    shown: Sequence[int] = (),
    feature_std: float = 0.5,
) -> KnownField:
    """A law drawn from its seed, with genes of variance 1 that differ in what of it is spatial.

    Means are in (17, 19), so that counts are about 1e4 to 1e7 and their rounding is nothing beside
    the noise (`KnownField.to_counts`).

    Args:
      seed: draws the coefficients (not the sections).
      n_genes: number of genes.
      length_um: length scales.
      processes: processes of each length scale.
      noise_share: range of the share of a gene's variance that is noise.
      family: of `KnownField`.
      n_features: number of image features.
      shown: the processes that features show (0 to processes x length scales - 1, in the order of
        ``length_um``); the others leave no trace in the image.
      feature_std: of `KnownField`; a feature's variance from the processes is 1.

    Raises:
      ConfigError: a number is out of range.
    """
    low, high = noise_share
    lengths = np.repeat(np.asarray(length_um, np.float64), processes)
    _require("n_genes", n_genes >= 1, "1 or more", n_genes)
    _require("processes", processes >= 1 and len(lengths) > 0, "1 or more", processes)
    _require("noise_share", 0 < low <= high <= 1, "0 < low <= high <= 1", noise_share)
    inside = all(0 <= p < len(lengths) for p in shown) and bool(n_features) == bool(len(shown))
    _require("shown", inside, f"0 to {len(lengths) - 1}, and features to show them", shown)
    rng = np.random.default_rng([seed, 3])
    noise = rng.uniform(low, high, n_genes)
    weight = rng.standard_normal((len(lengths), n_genes))
    # Each gene leans on some length scales more than on others.
    weight *= np.repeat(rng.dirichlet(np.ones(len(length_um)), n_genes).T, processes, axis=0)
    features = np.zeros((len(lengths), n_features))
    features[list(shown)] = rng.standard_normal((len(shown), n_features))
    return KnownField(
        mean=rng.uniform(17, 19, n_genes),
        loadings=weight / np.linalg.norm(weight, axis=0) * np.sqrt(1 - noise),
        noise_std=np.sqrt(noise),
        length_um=lengths,
        family=family,
        features=features / np.maximum(np.linalg.norm(features, axis=0), 1e-300),
        feature_std=feature_std,
    )


def _canonical(xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of the positions by x, then y, and the way back."""
    order = np.lexsort((np.asarray(xy)[:, 1], np.asarray(xy)[:, 0]))
    return order, np.argsort(order)


def _require(field: str, holds: object, expected: str, found: object) -> None:
    if not holds:
        raise errors.ConfigError(
            f"known field: {field} cannot be used", expected=expected, found=str(found)
        )
