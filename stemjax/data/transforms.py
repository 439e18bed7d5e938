"""From raw counts to the value space and on to unit variance, and both ways back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Real

from stemjax import errors

TRANSFORMS = ("log2p1", "log1p_cp10k", "log1p")
"""Names of the transforms, which are the names of the value spaces too."""


_CHUNK = 65536


@dataclasses.dataclass(frozen=True)
class Transform:
    """The way from raw counts to the value space and back.

    ``log2p1``: log2(count + 1). ``log1p_cp10k``: log(1 + 10,000 count / total), total over all
    genes of the slide, which takes the depth of the spot out; a spot whose total is 0 is 0.
    ``log1p``: ln(1 + count) without regard to depth, the target of HEST-Benchmark (Jaume et al.,
    NeurIPS 2024, arXiv 2406.16192); log2p1 times ln 2.

    Raises:
      ConfigError: there is no such transform.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in TRANSFORMS:
            raise errors.ConfigError(
                "there is no such transform of counts",
                expected=" or ".join(TRANSFORMS),
                found=repr(self.name),
            )

    def forward(
        self, counts: Real[np.ndarray, "l g"], total: Real[np.ndarray, " l"]
    ) -> Float32[np.ndarray, "l g"]:
        """Values of raw counts; ``total`` is each spot's count over all genes of its slide."""
        counts = np.asarray(counts, np.float32)
        if self.name == "log2p1":
            return np.log2(counts + np.float32(1))
        if self.name == "log1p":
            return np.log1p(counts)
        depth = np.asarray(total, np.float32)[:, None]
        rate = counts * np.float32(1e4) / np.maximum(depth, 1)
        return np.log1p(np.where(depth > 0, rate, np.float32(0)))

    def inverse(
        self, x: Float[np.ndarray, "l g"], total: Real[np.ndarray, " l"]
    ) -> Float32[np.ndarray, "l g"]:
        """Counts (not rounded) of values; values below 0, which no count has, give 0."""
        x = np.maximum(np.asarray(x, np.float32), np.float32(0))
        if self.name == "log2p1":
            return np.exp2(x) - np.float32(1)
        if self.name == "log1p":
            return np.expm1(x)
        return np.expm1(x) * np.asarray(total, np.float32)[:, None] / np.float32(1e4)


def get_transform(name: str) -> Transform:
    """The transform of that name; a ConfigError lists those there are."""
    return Transform(name)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Standardisation:
    """A mean and a standard deviation for each column, in the units of the columns.

    Raises:
      RecordsError: the two differ in length, a value is not finite, or a ``std`` not above 0.
    """

    mean: Float32[np.ndarray, " g"]
    std: Float32[np.ndarray, " g"]

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            for field in ("mean", "std"):
                object.__setattr__(self, field, np.asarray(getattr(self, field), np.float32))
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            found = f"shapes {self.mean.shape} and {self.std.shape}"
        elif not (np.isfinite(self.mean) & np.isfinite(self.std) & (self.std > 0)).all():
            found = f"mean {self.mean.min()}..{self.mean.max()}, smallest std {self.std.min()}"
        else:
            return
        raise errors.RecordsError(
            "a standardisation cannot be used",
            expected="finite mean and std of one length, std above 0",
            found=found,
        )

    def apply(self, x: Real[np.ndarray, "... g"]) -> Float32[np.ndarray, "... g"]:
        """Standardised values: (x - mean) / std."""
        return (np.asarray(x, np.float32) - self.mean) / self.std

    def invert(self, x: Real[np.ndarray, "... g"]) -> Float32[np.ndarray, "... g"]:
        """The values whose standardised form is ``x``: x * std + mean."""
        return np.asarray(x, np.float32) * self.std + self.mean

    @classmethod
    def fit(
        cls, x: Real[np.ndarray, "n g"], mask: Real[np.ndarray, "n g"] | None = None
    ) -> Standardisation:
        """Mean and (population) standard deviation of the entries whose mask is not 0.

        A column that does not vary gets std 1, one without any entry mean 0 as well.

        Raises:
          RecordsError: the mask has another shape, or an entry that counts is not finite.
        """
        if mask is not None and mask.shape != x.shape:
            raise errors.RecordsError(
                "the mask does not fit the values", expected=str(x.shape), found=str(mask.shape)
            )
        moments = Moments()
        for start in range(0, len(x), _CHUNK):
            rows = slice(start, start + _CHUNK)
            moments.add(x[rows], None if mask is None else mask[rows])
        return moments.standardisation()

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back, bit for bit."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Standardisation:
        """The standardisation that `to_json` wrote; a RecordsError where a field is missing."""
        try:
            mean, std = (np.asarray(values[field], np.float64) for field in ("mean", "std"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise errors.RecordsError(
                "a stored standardisation is incomplete",
                expected="mean and std, one number a column",
                found=f"{type(error).__name__}: {error}",
            ) from error
        return cls(mean=mean, std=std)


class Moments:
    """Running mean and squared deviation of each column, over the entries whose mask is not 0.

    Portions are merged by the pairwise formula of Chan, Golub and LeVeque (1979), which does not
    lose the deviation in the difference of two large sums.
    """

    def __init__(self) -> None:
        self._weight = self._mean = self._square = np.zeros(0)

    def add(self, x: Real[np.ndarray, "n g"], mask: Real[np.ndarray, "n g"] | None = None) -> None:
        """Takes further rows."""
        use = np.ones(x.shape, bool) if mask is None else mask != 0
        values = np.where(use, x, 0).astype(np.float64)
        weight = use.sum(axis=0)
        mean = values.sum(axis=0) / np.maximum(weight, 1)
        square = (np.where(use, values - mean, 0) ** 2).sum(axis=0)
        self.merge(Moments.from_array(np.stack([weight, mean, square])))

    def merge(self, other: Moments) -> None:
        """Takes the rows that another has taken."""
        if not self.width:
            self._weight = self._mean = self._square = np.zeros(other.width)
        both = np.maximum(self._weight + other._weight, 1)
        gap = other._mean - self._mean
        self._square = self._square + other._square
        self._square += gap**2 * self._weight * other._weight / both
        self._mean = self._mean + gap * other._weight / both
        self._weight = self._weight + other._weight

    def to_array(self) -> Float64[np.ndarray, "3 w"]:
        """Weight, mean and squared deviation of each column."""
        return np.stack([self._weight, self._mean, self._square])

    @classmethod
    def from_array(cls, values: Float64[np.ndarray, "3 w"]) -> Moments:
        """The moments that `to_array` gave."""
        made = cls()
        made._weight, made._mean, made._square = values
        return made

    @property
    def width(self) -> int:
        """Columns; 0 before the first rows."""
        return len(self._mean)

    def standardisation(self) -> Standardisation:
        """Mean and population standard deviation; std 1 where a column does not vary."""
        std = np.sqrt(self._square / np.maximum(self._weight, 1))
        # A deviation below this is rounding, which would be blown up to unit variance.
        std = np.where(std > 1e-6 * np.abs(self._mean), std, 1.0)
        return Standardisation(mean=self._mean.astype(np.float32), std=std.astype(np.float32))
