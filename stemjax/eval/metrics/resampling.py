"""Intervals: resamples of whole blocks of spots, and scores as functions of sums over spots.

Neighbouring spots are alike, so resampling single spots would give intervals too narrow: whole
blocks are drawn with replacement, as many as there are (block bootstrap: Künsch 1989, Annals of
Statistics 17; Lahiri 2003). A score that is a function of sums over spots needs no second look at
the spots: its sums over each block are taken once, and every resample adds up those of its blocks.

Row 0 of every result is the slide itself, the rows below are the resamples.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

BLOCK = 5.0
"""Side of a bootstrap block, in units of the distance between neighbouring spots."""


def spatial_blocks(
    array_xy: Float[np.ndarray, "l 2"], *, size: float = BLOCK
) -> Int[np.ndarray, " l"]:
    """Number of the square block of ``size`` x ``size`` array units that each spot lies in."""
    xy = np.asarray(array_xy, np.float64)
    # Half a unit of margin, so that whole array positions never sit on a border.
    cell = np.floor((xy - xy.min(axis=0) + 0.5) / size).astype(np.int64)
    return np.unique(cell, axis=0, return_inverse=True)[1].reshape(-1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Resamples:
    """A slide and resamples of its blocks.

    Attributes:
      blocks: block of each spot, 0..k-1, [l].
      times: how often each block counts, [1+r k]; row 0 is once each.
    """

    blocks: Int[np.ndarray, " l"]
    times: Float[np.ndarray, "r k"]

    @property
    def count(self) -> int:
        """Resamples beside the slide itself."""
        return len(self.times) - 1

    @functools.cached_property
    def _membership(self) -> scipy.sparse.csr_array:
        spots = np.arange(len(self.blocks))
        shape = (self.times.shape[1], len(self.blocks))
        return scipy.sparse.csr_array((np.ones(len(spots)), (self.blocks, spots)), shape=shape)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over the spots of the slide and of each resample, [l ...] -> [1+r ...]."""
        return self.add_up(self.per_block(np.asarray(values, np.float64)))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean over the spots of the slide and of each resample, [l ...] -> [1+r ...]."""
        return self.sums(values) / self.spots.reshape(-1, *[1] * (np.ndim(values) - 1))

    @functools.cached_property
    def spots(self) -> Float[np.ndarray, " r"]:
        """Spots of the slide and of each resample."""
        return self.sums(np.ones(len(self.blocks)))

    def per_block(self, values: np.ndarray) -> np.ndarray:
        """Sum over the spots of each block, [l ...] -> [k ...], in the values' precision."""
        flat = values.reshape(len(values), math.prod(values.shape[1:]))
        summed = self._membership.astype(values.dtype) @ flat
        return np.asarray(summed).reshape(self.times.shape[1], *values.shape[1:])

    def add_up(self, blocks: np.ndarray) -> np.ndarray:
        """Sum over the blocks of the slide and of each resample, [k ...] -> [1+r ...]."""
        flat = self.times.astype(blocks.dtype) @ blocks.reshape(
            len(blocks), math.prod(blocks.shape[1:])
        )
        return flat.reshape(len(self.times), *blocks.shape[1:])

    def products(
        self, values: Float[np.ndarray, "l g"], pairs: tuple[np.ndarray, np.ndarray]
    ) -> Float[np.ndarray, "r p"]:
        """Sums over spots of the products of pairs of columns, float32."""
        order = np.argsort(self.blocks, kind="stable")
        ends = np.cumsum(np.bincount(self.blocks, minlength=self.times.shape[1]))[:-1]
        parts = np.split(values[order].astype(np.float32), ends)
        return self.add_up(np.stack([(part.T @ part)[pairs] for part in parts]))


def resample(blocks: Int[np.ndarray, " l"], *, count: int, seed: int) -> Resamples:
    """``count`` resamples of whole blocks, as many blocks as there are in each.

    The draw depends on ``seed`` and the number of blocks alone, so two predictions of one slide
    see the same resamples and their differences are paired. One block alone cannot be resampled:
    no resamples then.
    """
    blocks = np.unique(blocks, return_inverse=True)[1].reshape(-1)
    k = int(blocks.max()) + 1
    count = count if k > 1 and count > 1 else 0
    drawn = np.random.default_rng(seed).integers(k, size=(count, k))
    times = [np.ones(k), *(np.bincount(row, minlength=k).astype(np.float64) for row in drawn)]
    return Resamples(blocks=blocks, times=np.stack(times))


def interval(values: Float[np.ndarray, " r"], *, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of resampled scores; None when fewer than two are defined."""
    values = values[~np.isnan(values)]
    if values.size < 2:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_defined(values: Float[np.ndarray, "... g"]) -> Float[np.ndarray, " ..."]:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    n = defined.sum(axis=-1)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    return np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)
