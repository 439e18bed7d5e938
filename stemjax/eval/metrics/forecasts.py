"""Forecasts: what a prediction says of each entry beyond its mean, in three forms behind one face.

A forecast is the predicted law of every (spot, gene) by itself: single draws, a normal law, or
quantiles. All three give quantiles, so intervals, coverage and calibration are one code; each has
its own exact CRPS and its own probability integral transform (PIT). Joint structure is in draws
alone (`draws.energy_score`).
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from jaxtyping import Float
from scipy import special

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Levels of the central intervals that every report gives."""


class Forecast(Protocol):
    """The predicted law of every entry by itself, in the value space."""

    @property
    def form(self) -> str:
        """What it is given as, in words: ``20 draws``, ``normal law``, ``9 quantiles``."""
        ...

    @property
    def std(self) -> Float[np.ndarray, "l g"]:
        """Standard deviation of the law."""
        ...

    def quantile(self, p: float) -> Float[np.ndarray, "l g"]:
        """The quantile at probability ``p``."""
        ...

    def crps(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """Continuous ranked probability score of each entry, in units of the value space."""
        ...

    def pit(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """P(Y < y) + P(Y = y) / 2: uniform on average where the law is right and continuous."""
        ...


def central(forecast: Forecast, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the central interval of a level, [l g] each."""
    return forecast.quantile((1 - level) / 2), forecast.quantile((1 + level) / 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """Single draws.

    Attributes:
      values: [n l g], two or more.
    """

    values: Float[np.ndarray, "n l g"]

    @property
    def form(self) -> str:
        """As `Forecast.form`."""
        return f"{len(self.values)} draws"

    @property
    def std(self) -> Float[np.ndarray, "l g"]:
        """As `Forecast.std`, divisor n - 1."""
        return self.values.std(axis=0, ddof=1)

    def quantile(self, p: float) -> Float[np.ndarray, "l g"]:
        """As `Forecast.quantile`: numpy's ``weibull`` rule, p (n + 1) in order statistics.

        It is unbiased for coverage: between draws i and j (sorted, of n) a further draw falls with
        probability (j - i) / (n + 1). Beyond the outermost draws it stays at them, so 20 draws
        cannot give an interval of more than 19 / 21 = 90.5 %.
        """
        return np.quantile(self.values, p, axis=0, method="weibull")

    def crps(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """As `Forecast.crps`: the fair estimate, unbiased for independent draws.

        It is the one by probability weighted moments, which sorts: the library's "fair" gives the
        same number from all pairs and needs their memory.
        """
        import scoringrules

        return np.asarray(scoringrules.crps_ensemble(true, self.values, m_axis=0, estimator="pwm"))

    def pit(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """As `Forecast.pit`, with the truth counted among its draws: (rank - 1/2) / (n + 1)."""
        below = np.sum(self.values < true, axis=0) + 0.5 * np.sum(self.values == true, axis=0)
        return (below + 0.5) / (len(self.values) + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normal:
    """A normal law.

    Attributes:
      mean: [l g].
      std: [l g], above 0.
    """

    mean: Float[np.ndarray, "l g"]
    std: Float[np.ndarray, "l g"]

    @property
    def form(self) -> str:
        """As `Forecast.form`."""
        return "normal law"

    def quantile(self, p: float) -> Float[np.ndarray, "l g"]:
        """As `Forecast.quantile`."""
        return self.mean + self.std * special.ndtri(p)

    def crps(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """As `Forecast.crps` (Gneiting and others 2005, Monthly Weather Review 133, eq. 5)."""
        import scoringrules

        return np.asarray(scoringrules.crps_normal(true, self.mean, self.std))

    def pit(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """As `Forecast.pit`."""
        return special.ndtr((true - self.mean) / self.std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Quantiles at some probabilities; the law between them is linear, beyond them an atom.

    Attributes:
      levels: probabilities, rising, [q].
      values: not falling along q, [q l g].
    """

    levels: tuple[float, ...]
    values: Float[np.ndarray, "q l g"]

    @property
    def form(self) -> str:
        """As `Forecast.form`."""
        return f"{len(self.levels)} quantiles"

    @property
    def std(self) -> Float[np.ndarray, "l g"]:
        """As `Forecast.std`: of the law made of the quantiles."""
        edges = np.array([0.0, *self.levels, 1.0])
        padded = np.concatenate([self.values[:1], self.values, self.values[-1:]])
        weight = np.diff(edges)[:, None, None]
        low, high = padded[:-1], padded[1:]
        mean = np.sum(weight * (low + high) / 2, axis=0)
        second = np.sum(weight * (low**2 + low * high + high**2) / 3, axis=0)
        return np.sqrt(np.maximum(second - mean**2, 0.0))

    def quantile(self, p: float) -> Float[np.ndarray, "l g"]:
        """As `Forecast.quantile`, linear between the levels, the outermost beyond them."""
        right = int(np.clip(np.searchsorted(self.levels, p), 1, len(self.levels) - 1))
        low, high = self.levels[right - 1], self.levels[right]
        share = np.clip((p - low) / (high - low), 0.0, 1.0)
        return self.values[right - 1] * (1 - share) + self.values[right] * share

    def crps(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """As `Forecast.crps`: twice the integral of the pinball loss over p, by trapezoids.

        Beyond the outermost levels the pinball loss of an atom is integrated exactly.
        """
        p = np.array(self.levels)[:, None, None]
        error = true - self.values
        loss = np.where(error >= 0, p * error, (p - 1) * error)
        inner = np.sum(np.diff(p, axis=0) * (loss[:-1] + loss[1:]) / 2, axis=0)
        first, last = self.levels[0], self.levels[-1]
        # The atom at the lowest value stands for p in 0..first, that at the highest for last..1.
        low, high = error[0], error[-1]
        below = np.where(low >= 0, low * first**2 / 2, -low * (first - first**2 / 2))
        above = np.where(
            high >= 0, high * (1 - last**2) / 2, -high * ((1 - last) - (1 - last**2) / 2)
        )
        return 2 * (inner + below + above)

    def pit(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """As `Forecast.pit`; outside the quantiles half the probability left there."""
        edges = self.levels
        found = np.full(true.shape, edges[0] / 2)
        for i in range(len(edges) - 1):
            low, high = self.values[i], self.values[i + 1]
            width = np.where(high > low, high - low, 1.0)
            share = np.where(high > low, (true - low) / width, 0.5)
            inside = true >= low
            found = np.where(
                inside, edges[i] + np.clip(share, 0, 1) * (edges[i + 1] - edges[i]), found
            )
        return np.where(true > self.values[-1], (1 + edges[-1]) / 2, found)
