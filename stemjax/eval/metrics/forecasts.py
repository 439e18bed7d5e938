"""Forecasts: what a prediction says of each entry beyond its mean, in three forms behind one face.

A forecast is the predicted law of every (spot, gene) by itself: single draws, a normal law, or
quantiles. All three give quantiles, so intervals, coverage and calibration are one code; each has
its own exact CRPS (Matheson and Winkler 1976, Management Science 22; Gneiting and Raftery 2007,
JASA 102) and its own probability integral transform (PIT). Joint structure is in draws alone
(`draws.energy_score`).

An entry that is NaN in the forecast or in the truth is NaN in what comes back.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import numpy as np
from jaxtyping import Float
from scipy import special

from stemjax.eval.metrics import arrays

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
        """Continuous ranked probability score of each entry, in units of the value space.

        ∫ (F(x) - 1{x >= y})² dx = E|X - y| - E|X - X'| / 2: lower is better, least on average for
        the true law, the absolute error for a law that is one point.
        """
        ...

    def pit(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """P(Y < y) + P(Y = y) / 2: uniform on average where the law is right and continuous."""
        ...


def central(forecast: Forecast, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the central interval of a level in (0, 1), [l g] each.

    Raises:
      ValueError: another level, such as 90 for 90 %.
    """
    if not 0 < level < 1:
        raise ValueError(f"an interval's level lies between 0 and 1, found {level}")
    return forecast.quantile((1 - level) / 2), forecast.quantile((1 + level) / 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """Single draws.

    Attributes:
      values: [n l g], two or more.
      antithetic: whether draws 2i and 2i + 1 are a pair.

    Raises:
      ValueError: not [n l g], fewer than two draws, or an odd number of antithetic ones.
    """

    values: Float[np.ndarray, "n l g"]
    antithetic: bool = False

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or len(self.values) < 2:
            raise ValueError(f"two draws or more [n spots genes], found {self.values.shape}")
        if self.antithetic and len(self.values) % 2:
            raise ValueError(f"antithetic draws come in pairs, found {len(self.values)}")

    @property
    def form(self) -> str:
        """As `Forecast.form`."""
        return f"{len(self.values)} draws"

    @property
    def std(self) -> Float[np.ndarray, "l g"]:
        """As `Forecast.std`, divisor n - 1."""
        return self.values.std(axis=0, ddof=1, dtype=np.float64)

    @functools.cached_property
    def _sorted(self) -> np.ndarray:
        # NaN sorts last and would pass for the highest draw: an entry with one is NaN throughout.
        ordered = np.sort(self.values, axis=0)
        return np.where(np.isnan(ordered[-1]), np.nan, ordered)

    def quantile(self, p: float) -> Float[np.ndarray, "l g"]:
        """As `Forecast.quantile`: numpy's ``weibull`` rule, p (n + 1) in order statistics.

        It is unbiased for coverage: between draws i and j (sorted, of n) a further draw falls with
        probability (j - i) / (n + 1). Beyond the outermost draws it stays at them, so 20 draws
        cannot give an interval of more than 19 / 21 = 90.5 %.
        """
        last = len(self.values) - 1
        # numpy's own would sort (partition) again for every p.
        place = min(max(_snapped(p * (last + 2) - 1), 0.0), float(last))
        below = min(int(place), last - 1)
        low, high = self._sorted[below].astype(np.float64), self._sorted[below + 1]
        return low + (place - below) * (high - low)

    def crps(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """As `Forecast.crps`: the fair estimate, unbiased for independent draws.

        It is the one by probability weighted moments, which sorts: the library's "fair" gives the
        same number from all pairs and needs their memory. The two of an antithetic pair are no
        independent draws and lie further apart than those: their distance is left out (of one
        pair alone it cannot be).
        """
        import scoringrules

        true = np.asarray(true, np.float64)
        found = np.empty(true.shape)
        for part in arrays.portions(len(true), self.values[:, 0].size):
            found[part] = scoringrules.crps_ensemble(
                true[part],
                self._sorted[:, part].astype(np.float64),
                m_axis=0,
                estimator="pwm",
                sorted_ensemble=True,
                backend="numpy",
            )
            if self.antithetic and len(self.values) > 2:
                found[part] = self._without_partners(found[part], true[part], part)
        return found

    def _without_partners(self, fair: np.ndarray, true: np.ndarray, part: slice) -> np.ndarray:
        """The fair CRPS with the mean distance of draws taken over pairs of unlike origin."""
        n, draws = len(self.values), self.values[:, part].astype(np.float64)
        error = np.abs(draws - true).mean(axis=0)
        partners = np.abs(draws[0::2] - draws[1::2]).mean(axis=0)
        within = 2 * (error - fair)
        return error - ((n - 1) * within - partners) / (n - 2) / 2

    def pit(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """As `Forecast.pit`, with the truth counted among its draws: (rank - 1/2) / (n + 1).

        Its n + 1 values are as likely as each other where the law is right: judge it at levels
        k / (n + 1), where its distribution is the uniform one, or with
        `calibration.rank_histogram`.
        """
        # Compared as the draws are stored: a truth in float64 would miss its tie in float32.
        y = np.asarray(true).astype(self.values.dtype)
        below = np.sum(self.values < y, axis=0) + 0.5 * np.sum(self.values == y, axis=0)
        unknown = np.isnan(y) | np.isnan(self._sorted[-1])
        return np.where(unknown, np.nan, (below + 0.5) / (len(self.values) + 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normal:
    """A normal law; with std 0 the one point ``mean``.

    Attributes:
      mean: [l g].
      std: [l g], 0 or above.

    Raises:
      ValueError: shapes differ, or a std is below 0.
    """

    mean: Float[np.ndarray, "l g"]
    std: Float[np.ndarray, "l g"]

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape or (self.std < 0).any():
            raise ValueError(
                f"mean and std must be alike and std not below 0: {self.mean.shape}, "
                f"{self.std.shape}, {np.count_nonzero(self.std < 0)} below 0"
            )

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

        point = self.std == 0
        spread = scoringrules.crps_normal(
            true, self.mean, np.where(point, 1.0, self.std), backend="numpy"
        )
        return np.where(point, np.abs(true - self.mean), spread)

    def pit(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """As `Forecast.pit`; 0, 1/2 or 1 where std is 0."""
        point = self.std == 0
        away = (true - self.mean) / np.where(point, 1.0, self.std)
        return np.where(point, np.heaviside(away, 0.5), special.ndtr(away))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Quantiles at some probabilities; the law between them is linear, beyond them an atom.

    The probability below the lowest level lies at the lowest quantile, that above the highest at
    the highest. Equal quantiles are an atom of the probability between their levels.

    Attributes:
      levels: probabilities, rising, two or more in [0, 1], [q].
      values: not falling along q, [q l g].

    Raises:
      ValueError: levels do not rise or fit, or quantiles cross.
    """

    levels: tuple[float, ...]
    values: Float[np.ndarray, "q l g"]

    def __post_init__(self) -> None:
        levels = np.array(self.levels)
        if len(levels) < 2 or not (np.diff(levels) > 0).all() or levels[0] < 0 or levels[-1] > 1:
            raise ValueError(f"levels must rise within [0, 1], two or more: {self.levels}")
        if self.values.ndim != 3 or len(self.values) != len(levels):
            raise ValueError(f"{len(levels)} levels, but values {self.values.shape}")
        crossing = sum(np.count_nonzero(a > b) for a, b in zip(self.values, self.values[1:]))
        if crossing:
            raise ValueError(f"quantiles fall with their level in {crossing} places: sort them")

    @property
    def form(self) -> str:
        """As `Forecast.form`."""
        return f"{len(self.levels)} quantiles"

    @property
    def std(self) -> Float[np.ndarray, "l g"]:
        """As `Forecast.std`: of the law made of the quantiles."""
        edges = (0.0, *self.levels, 1.0)
        # About the middle of the range, so that squares lose no digits to the values' size.
        middle = (self.values[0] + self.values[-1]) / 2
        values = [self.values[0], *self.values, self.values[-1]]
        mean, second = np.zeros(middle.shape), np.zeros(middle.shape)
        for i in range(len(edges) - 1):
            weight, low, high = edges[i + 1] - edges[i], values[i] - middle, values[i + 1] - middle
            mean += weight * (low + high) / 2
            second += weight * (low**2 + low * high + high**2) / 3
        return np.sqrt(np.maximum(second - mean**2, 0.0))

    def quantile(self, p: float) -> Float[np.ndarray, "l g"]:
        """As `Forecast.quantile`, linear between the levels, the outermost beyond them."""
        right = int(np.clip(np.searchsorted(self.levels, p), 1, len(self.levels) - 1))
        low, high = self.levels[right - 1], self.levels[right]
        share = _snapped(np.clip((p - low) / (high - low), 0.0, 1.0))
        return self.values[right - 1] * (1 - share) + self.values[right] * share

    def crps(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """As `Forecast.crps`: ∫ (F(x) - 1{x >= y})² dx of the law made of the quantiles, exact.

        F is linear from quantile to quantile, so its square and that of 1 - F integrate to cubics,
        split at y. (The mean pinball loss over the levels, scoringrules' ``crps_quantile``, tends
        to the same with many levels spread evenly.)
        """
        true = np.asarray(true, np.float64)
        found = np.abs(true - np.clip(true, self.values[0], self.values[-1]))
        for i in range(len(self.levels) - 1):
            a, b = self.levels[i], self.levels[i + 1]
            low, high = self.values[i], self.values[i + 1]
            split = np.clip(true, low, high)
            f = a + (b - a) * _share(split, low, high)
            found += (split - low) * (a * a + a * f + f * f) / 3
            found += (high - split) * ((1 - f) ** 2 + (1 - f) * (1 - b) + (1 - b) ** 2) / 3
        return found

    def pit(self, true: Float[np.ndarray, "l g"]) -> Float[np.ndarray, "l g"]:
        """As `Forecast.pit`; outside the quantiles half the probability left there."""
        true = np.asarray(true, np.float64)
        first, last = self.levels[0], self.levels[-1]
        lowest, highest = self.values[0], self.values[-1]
        found = first * np.heaviside(true - lowest, 0.5)
        found += (1 - last) * np.heaviside(true - highest, 0.5)
        for i in range(len(self.levels) - 1):
            step = self.levels[i + 1] - self.levels[i]
            found += step * _share(true, self.values[i], self.values[i + 1])
        # Where the law says "at the outermost quantile" it means "there or beyond".
        found = np.where(true < lowest, first / 2, found)
        return np.where(true > highest, (1 + last) / 2, found)


def _snapped(place: float) -> float:
    """The whole number that a place among quantiles is but for rounding, else the place itself.

    (1 - .95) / 2 is not quite .025, and an interval that began 1e-16 above an atom would lose it.
    """
    whole = round(place)
    return float(whole) if abs(place - whole) < 1e-9 else float(place)


def _share(y: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Share of the way from low to high at which y lies, in [0, 1]; at an atom half of it."""
    width = high - low
    inside = np.clip((y - low) / np.where(width > 0, width, 1.0), 0.0, 1.0)
    return np.where(width > 0, inside, np.heaviside(y - low, 0.5))
