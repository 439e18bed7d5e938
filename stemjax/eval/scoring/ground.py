"""One slide's truth with everything that every row of its table is held against."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import scipy.sparse
import scipy.stats
from jaxtyping import Bool, Float

from stemjax.eval import metrics
from stemjax.eval.metrics import arrays


def deviations(values: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
    """Deviations from each column's mean; exactly 0 where they are rounding."""
    return arrays.centred(values, np.ones(values.shape, bool))[0]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """The truth of the scored genes, [l g], and what goes with it.

    What only depends on the truth is computed once, at first use.

    Attributes:
      true: measured values, value space.
      depth: log2(1 + total counts) of each spot, [l].
      array_xy: positions on the array, [l 2].
      resamples: the slide and its resamples.
      train_mean: each gene's mean over the training spots, [g], or None where that is unknown.
      ranking: how well each gene is predicted on held-out training slides, [g], or None.
    """

    true: Float[np.ndarray, "l g"]
    depth: Float[np.ndarray, " l"]
    array_xy: Float[np.ndarray, "l 2"]
    resamples: metrics.Resamples
    train_mean: Float[np.ndarray, " g"] | None
    ranking: Float[np.ndarray, " g"] | None

    @property
    def n(self) -> Float[np.ndarray, "r 1"]:
        """Spots of the slide and of each resample."""
        return self.resamples.spots[:, None]

    @functools.cached_property
    def centred(self) -> Float[np.ndarray, "l g"]:
        """Deviations of the truth from its gene means."""
        return deviations(self.true)

    @functools.cached_property
    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums of the deviations and of their squares, [r g] each."""
        return self.resamples.sums(self.centred), self.resamples.sums(self.centred**2)

    @functools.cached_property
    def variance(self) -> Float[np.ndarray, "r g"]:
        """Sum of squares about the resample's own mean; exactly 0 where the gene is constant."""
        return about_mean(*self.sums, self.n)

    @functools.cached_property
    def defined(self) -> Bool[np.ndarray, "r g"]:
        """Whether the gene varies."""
        return self.variance > 0

    def correlation(self, pred: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "r g"]:
        """Pearson's r over spots; NaN where the truth is constant, 0 where the prediction is."""
        x, sums = deviations(pred), self.resamples.sums
        total = sums(x)
        spread = about_mean(total, sums(x * x), self.n)
        covariance = sums(x * self.centred) - total * self.sums[0] / self.n
        fine = (spread > 0) & self.defined
        r = covariance / np.sqrt(np.where(fine, spread * self.variance, 1.0))
        return np.where(self.defined, np.where(fine, np.clip(r, -1.0, 1.0), 0.0), np.nan)

    @functools.cached_property
    def of_depth(self) -> Ground:
        """The same slide with its depth in every gene's place."""
        depth = np.repeat(self.depth[:, None], self.true.shape[1], axis=1)
        return dataclasses.replace(self, true=depth)

    @functools.cached_property
    def with_depth(self) -> Float[np.ndarray, "r g"]:
        """Correlation of the truth with the depth."""
        return self.correlation(self.of_depth.true)

    @functools.cached_property
    def ranks(self) -> Ground:
        """The same slide with each gene's ranks for values: Spearman is Pearson on these.

        In a resample the ranks stay those on the whole slide.
        """
        return dataclasses.replace(self, true=scipy.stats.rankdata(self.true, axis=0))

    @functools.cached_property
    def lattice(self) -> scipy.sparse.csr_array:
        """Which spots are neighbours."""
        return metrics.neighbours(self.array_xy)

    @functools.cached_property
    def is_gridded(self) -> bool:
        """Whether the spots lie on a lattice of whole numbers, so that maps are images."""
        blank = np.zeros((len(self.true), 1))
        try:
            metrics.ssim_map(blank, blank, self.array_xy)
        except ValueError:
            return False
        return True

    @functools.cached_property
    def moran(self) -> Float[np.ndarray, "r g"]:
        """Moran's I of the truth."""
        return self.moran_of(self.true)

    def moran_of(self, values: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "r g"]:
        """Moran's I of maps; NaN where constant or without neighbours.

        A pair of neighbours counts with its first spot's block, and deviations stay those from the
        whole slide's mean: both make it a function of sums over spots.
        """
        z = deviations(values)
        links = self.resamples.sums(self.lattice.sum(axis=1))[:, None]
        cross = self.resamples.sums(z * (self.lattice @ z))
        square = self.resamples.sums(z**2)
        fine = (square > 0) & (links > 0)
        scale = np.where(fine, square * links, 1.0)
        return np.where(fine, self.n * cross / scale, np.nan)

    @functools.cached_property
    def gene_correlation(self) -> Float[np.ndarray, "r p"]:
        """Correlations of the truth's pairs of genes; NaN where one of them is constant."""
        return self.gene_correlation_of(self.true)

    def gene_correlation_of(self, values: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "r p"]:
        """Correlations of all pairs of genes (upper triangle): the slide's, and its resamples'.

        The resamples' are in float32, which is far finer than they are: r p numbers are many.
        """
        z = deviations(values)
        first, second = np.triu_indices(z.shape[1], 1)
        total, n = self.resamples.sums(z), self.n
        square = about_mean(total, self.resamples.sums(z * z), n)
        spread = np.where(square > 0, np.sqrt(square), np.nan).astype(np.float32)
        found = self.resamples.products(z, (first, second))
        total = (total / np.sqrt(n)).astype(np.float32)
        found -= total[:, first] * total[:, second]
        found /= spread[:, first] * spread[:, second]
        found[0] = metrics.gene_correlation(values)[first, second]
        return found


def about_mean(total: np.ndarray, square: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Sum of squares about the mean, from the sums of values and of squares; 0 where rounding."""
    found = square - total**2 / n
    return np.where(found <= metrics.ROUNDING * square, 0.0, found)


def make_ground(
    true: Float[np.ndarray, "l g"],
    *,
    total: np.ndarray,
    array_xy: np.ndarray,
    resamples: int,
    seed: int,
    train_mean: np.ndarray | None = None,
    ranking: np.ndarray | None = None,
) -> Ground:
    """The ground of one slide.

    Args:
      true: measured values of the scored genes.
      total: counts of each spot over all genes, [l].
      array_xy: positions on the array; blocks are `metrics.BLOCK` neighbour distances wide.
      resamples: number of resamples; none with fewer than 2 of them or of blocks.
      seed: of the resamples.
      train_mean: as `Ground`.
      ranking: as `Ground`.
    """
    return Ground(
        true=np.asarray(true, np.float64),
        depth=np.log2(1.0 + np.asarray(total, np.float64)),
        array_xy=np.asarray(array_xy, np.float64),
        resamples=metrics.resample(metrics.spatial_blocks(array_xy), count=resamples, seed=seed),
        train_mean=train_mean,
        ranking=ranking,
    )
