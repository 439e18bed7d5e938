"""A known conditional law of gene counts given the state of the tissue.

Real sections do not tell the law that their counts follow, so a model of p(expression | image) can
only be compared with the one draw that was measured. Here the law is known: a spot has a state
``z`` (`STATES`, which an image shows), a hidden mode that no image shows and that switches a
programme of genes up or down, and a sequencing depth. Given those, genes are independent Poisson
counts with dropout:

    m ~ Bernoulli(1/2),  e ~ N(0, 1),  r_g ~ Bernoulli(1 - dropout_g)
    rate_g  = exp(base_g + phi(z) . slope_g + switch_g (m - 1/2) + depth_std e)
    count_g ~ Poisson(r_g rate_g)

The conditional mean of log2(count + 1) lies between the two modes, where hardly any spot is: a
regression that finds it has found a profile that does not occur, and only draws show both modes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import interpolate, special, stats

from stemjax import errors

STATES = ("tumour", "immune", "fibre", "nuclear_size")
"""The components of a state, each in [0, 1], in the order of its columns."""

LOG_RATE_RANGE = (-5.0, 8.5)
"""Natural logarithms of the rates, at depth 1, whose moments are tabulated.

The slopes' bound keeps those of every law inside: at most log 16 + 1.2 for the mode + 4.2.
"""

Moment = Literal[1, 2]

# phi(z): the centred states, then products of these pairs (so that the law is not linear in z).
_PAIRS = ((0, 1), (0, 3), (1, 2))
# The spread of states that the drawn sections have, about; slopes are calibrated on it.
_REFERENCE = (0.03, 0.97)
_REFERENCE_STATES = 192
# Gauss-Hermite nodes for the log-normal depth: 24 agree with 48 to 1e-8 for depth_std <= 0.5.
_DEPTH_NODES = 24
_STEP = 0.02  # between the knots over log rates: cubic splines are then good to 1e-8
_MAX_SLOPE = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coefficients:
    """The numbers that a `Law` draws from its seed; log rates are natural logarithms.

    Attributes:
      base: log rate of a gene in the middle state, between the modes.
      slope: change of the log rate with ``phi(z)``.
      switch: difference of the log rate between mode 1 and mode 0; 0 outside the programme.
      dropout: probability that a gene is lost in a spot.
    """

    base: Float[np.ndarray, " g"]
    slope: Float[np.ndarray, "p g"]
    switch: Float[np.ndarray, " g"]
    dropout: Float[np.ndarray, " g"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One draw of each spot: counts, and what no image shows.

    Attributes:
      counts: raw counts.
      mode: hidden mode, 0 or 1.
      depth: factor that all rates of a spot share, median 1.
    """

    counts: Int[np.ndarray, "l g"]
    mode: Int[np.ndarray, " l"]
    depth: Float[np.ndarray, " l"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """The conditional law of the module's docstring; equal fields give the same law.

    Attributes:
      seed: draws the coefficients (not the samples).
      n_genes: number of genes.
      mode_share: share of the genes in the switched programme (``SYNM..``).
      depth_std: standard deviation of the natural logarithm of the depth, at most 0.5.
      explained: range of the share of a gene's variance, in log2(count + 1), that the state
        explains; each gene has a target in it, met where the states spread evenly.

    Raises:
      ConfigError: a field is out of range.
    """

    seed: int = 0
    n_genes: int = 48
    mode_share: float = 1 / 3
    depth_std: float = 0.3
    explained: tuple[float, float] = (0.36, 0.52)

    def __post_init__(self) -> None:
        _require("seed", self.seed >= 0, "a number from 0 up", self.seed)
        _require("n_genes", self.n_genes >= 2, "at least 2 genes", self.n_genes)
        _require("mode_share", 0 < self.mode_share < 1, "in (0, 1)", self.mode_share)
        _require("depth_std", 0 <= self.depth_std <= 0.5, "in [0, 0.5]", self.depth_std)
        low, high = self.explained
        _require("explained", 0 < low <= high < 0.8, "0 < low <= high < 0.8", self.explained)

    @property
    def n_mode_genes(self) -> int:
        """Number of genes that the hidden mode switches, at least one."""
        return max(1, round(self.mode_share * self.n_genes))

    @property
    def genes(self) -> tuple[str, ...]:
        """Gene names: the switched programme (``SYNM01``..), then the others (``SYN001``..)."""
        programme = self.n_mode_genes
        switched = tuple(f"SYNM{i:02d}" for i in range(1, programme + 1))
        return switched + tuple(f"SYN{i:03d}" for i in range(1, self.n_genes - programme + 1))

    @property
    def coefficients(self) -> Coefficients:
        """The coefficients, drawn from the seed and calibrated to ``explained``."""
        return _coefficients(self)

    def columns(self, genes: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Columns of this law's arrays that hold the genes named, in their order.

        Raises:
          GenePanelError: a gene is not one of this law's.
        """
        place = {gene: i for i, gene in enumerate(self.genes)}
        unknown = [gene for gene in genes if gene not in place]
        if unknown:
            raise errors.GenePanelError(
                f"{len(unknown)} genes do not belong to the synthetic law",
                expected=f"names among {self.genes[0]}..{self.genes[-1]}",
                found=", ".join(unknown[:5]),
                fix="Take the panel from sections drawn with this law",
            )
        return np.array([place[gene] for gene in genes], np.int64)

    def conditional_mean(
        self, z: Float[np.ndarray, "l k"], *, transform: str = "log2p1"
    ) -> Float[np.ndarray, "l g"]:
        """E[log2(count + 1) | z], float64: what a perfect regression would predict.

        The sum over modes, Gauss-Hermite nodes of the depth and Poisson counts, truncated where
        the terms vanish: exact to 1e-7.

        Args:
          z: states in [0, 1], columns in the order of `STATES`.
          transform: only ``log2p1``; a share of the spot's total (``log1p_cp10k``) depends on all
            genes at once and has no closed sum.

        Raises:
          ConfigError: another transform, or states that are not in [0, 1].
        """
        return _moment(self, z, transform, 1)

    def conditional_variance(
        self, z: Float[np.ndarray, "l k"], *, transform: str = "log2p1"
    ) -> Float[np.ndarray, "l g"]:
        """Var[log2(count + 1) | z], float64: what no image can explain.

        Computed as `conditional_mean` is, with the same arguments and errors.
        """
        mean = _moment(self, z, transform, 1)
        return _moment(self, z, transform, 2) - mean**2

    def explained_share(self, z: Float[np.ndarray, "l k"]) -> Float[np.ndarray, " g"]:
        """Share of each gene's variance over these spots that their states explain.

        Var(E[x | z]) / (Var(E[x | z]) + E[Var(x | z)]). Its square root is the correlation with
        the truth that the exact conditional mean reaches in many spots: no model has a higher one.
        """
        between = self.conditional_mean(z).var(0)
        return between / (between + self.conditional_variance(z).mean(0))

    def sample_counts(self, z: Float[np.ndarray, "l k"], rng: np.random.Generator) -> Sample:
        """One draw of the counts of each spot, with its hidden mode and depth.

        Raises:
          ConfigError: states that are not in [0, 1].
        """
        log_rate = log_rates(self, z)
        mode = rng.integers(0, 2, len(log_rate), dtype=np.int32)
        depth = np.exp(self.depth_std * rng.standard_normal(len(log_rate)))
        switch = (mode - 0.5)[:, None] * self.coefficients.switch
        kept = rng.random(log_rate.shape) >= self.coefficients.dropout
        counts = rng.poisson(kept * depth[:, None] * np.exp(log_rate + switch))
        return Sample(counts=counts.astype(np.int32), mode=mode, depth=depth)

    def sample_values(
        self, z: Float[np.ndarray, "l k"], n: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "n l g"]:
        """``n`` independent draws of log2(count + 1) of each spot, float32.

        Raises:
          ConfigError: states that are not in [0, 1].
        """
        z = np.asarray(z)
        draws = self.sample_counts(np.tile(z, (n, 1)), rng).counts
        return np.log2(draws + np.float32(1)).reshape(n, len(z), self.n_genes)

    def mode_contrast(
        self, values: Float[np.ndarray, "*n g"], *, genes: Sequence[str] | None = None
    ) -> Float[np.ndarray, "*n"]:
        """A score that tells the modes apart: about -1 in mode 0 and +1 in mode 1.

        Fisher's linear discriminant between the modes over evenly spread states and depths, so
        that neither state nor depth counts as a mode. A profile halfway between the modes, as
        the conditional mean is, has about 0.

        Args:
          values: log2(count + 1), genes last.
          genes: names of the columns of ``values``; None for all genes in this law's order.

        Raises:
          GenePanelError: a gene is not one of this law's, or ``values`` has another width.
        """
        names = self.genes if genes is None else tuple(genes)
        values = np.asarray(values)
        if values.shape[-1] != len(names):
            raise errors.GenePanelError(
                "the values given to mode_contrast are of another gene list",
                expected=f"{len(names)} columns",
                found=str(values.shape[-1]),
                fix="Give the names of the columns as genes=",
            )
        weight, offset = _discriminant(self, names)
        return values @ weight + offset


def _require(field: str, holds: bool, expected: str, found: object) -> None:
    if not holds:
        raise errors.ConfigError(
            f"synthetic law: {field} cannot be used", expected=expected, found=str(found)
        )


def _features(z: np.ndarray) -> np.ndarray:
    """phi(z) [l p]: centred states, then 2 (z_i - 1/2)(z_j - 1/2) for the pairs."""
    z = np.asarray(z, np.float64)
    if z.ndim != 2 or z.shape[1] != len(STATES) or not np.all((z >= 0) & (z <= 1)):
        inside = z[np.isfinite(z)]
        low_high = f"{inside.min():.3g} to {inside.max():.3g}" if inside.size else "none finite"
        raise errors.ConfigError(
            "the states given to the synthetic law cannot be used",
            expected=f"an array [spots, {len(STATES)}] in [0, 1] ({', '.join(STATES)})",
            found=f"shape {z.shape}, values {low_high}, {int(np.isnan(z).sum())} NaN",
        )
    centred = z - 0.5
    products = [2 * centred[:, i] * centred[:, j] for i, j in _PAIRS]
    return np.concatenate([centred, np.stack(products, 1)], 1)


def log_rates(law: Law, z: np.ndarray) -> np.ndarray:
    """Natural log of the rate [l g] between the modes, at depth 1."""
    return law.coefficients.base + _features(z) @ law.coefficients.slope


@functools.lru_cache(maxsize=8)
def _moments_at(depth_std: float) -> interpolate.CubicSpline:
    """Log rate at depth 1 -> (E[f], E[f^2]) over depths and counts, f = log2(count + 1)."""
    node, weight = special.roots_hermitenorm(_DEPTH_NODES)
    low, high = LOG_RATE_RANGE
    reach = depth_std * node.max() + _STEP
    knots = np.arange(low - reach, high + reach + _STEP, _STEP)
    sums = np.empty((len(knots), 2))
    for i, rate in enumerate(np.exp(knots)):
        # Twelve standard deviations and 40 counts beyond the rate the tail is below 1e-16.
        tail = 12 * np.sqrt(rate) + 40
        count = np.arange(max(0, int(rate - tail)), int(rate + tail))
        mass = np.exp(special.xlogy(count, rate) - rate - special.gammaln(count + 1))
        value = np.log2(count + 1)
        sums[i] = mass @ value, mass @ value**2
    given_depth = interpolate.CubicSpline(knots, sums)
    knots = np.arange(low, high + _STEP, _STEP)
    # The average over depths depends on the log rate alone: one table serves all genes.
    averaged = weight / weight.sum() @ given_depth(knots[:, None] + depth_std * node)
    return interpolate.CubicSpline(knots, averaged)


def _marginal_moments(
    log_rate: np.ndarray, switch: np.ndarray, dropout: np.ndarray, depth_std: float
) -> np.ndarray:
    """(E[f], E[f^2]) [l g 2] over modes, depths, dropout and counts, of f = log2(count + 1)."""
    table = _moments_at(depth_std)
    total = (table(log_rate - switch / 2) + table(log_rate + switch / 2)) / 2
    # A lost gene has the value log2(0 + 1) = 0 and adds nothing to either moment.
    return total * (1 - dropout)[:, None]


def _moment(law: Law, z: np.ndarray, transform: str, moment: Moment) -> np.ndarray:
    if transform != "log2p1":
        raise errors.ConfigError(
            "the synthetic law has exact moments in one expression space only",
            expected="transform log2p1",
            found=transform,
            fix="Train with transform log2p1, or compare with draws of the law instead",
        )
    own = law.coefficients
    moments = _marginal_moments(log_rates(law, z), own.switch, own.dropout, law.depth_std)
    return moments[..., moment - 1]


@functools.lru_cache(maxsize=32)
def _coefficients(law: Law) -> Coefficients:
    rng = np.random.default_rng([law.seed, 1])
    n, programme = law.n_genes, law.n_mode_genes
    switched = np.arange(n) < programme
    base = np.log(np.where(switched, rng.uniform(9, 14, n), rng.uniform(4, 16, n)))
    # Odd genes of the programme go up in mode 1 and even ones down, so that the depth, which
    # moves all of them together, is not mistaken for the mode.
    gap = np.log(rng.uniform(7, 11, n)) * np.where(np.arange(n) % 2, -1, 1)
    dropout = np.where(switched, rng.uniform(0, 0.01, n), rng.uniform(0.01, 0.06, n))
    slope = np.zeros((len(STATES) + len(_PAIRS), n))
    for gene in range(n):
        # Every state in turn leads a gene, with a second one and one product beside it.
        main, second = gene % len(STATES), (gene + 1 + gene // len(STATES)) % len(STATES)
        slope[second, gene] = rng.uniform(0.2, 0.5) * rng.choice((-1, 1))
        slope[main, gene] = rng.choice((-1, 1))
        slope[len(STATES) + gene % len(_PAIRS), gene] = rng.uniform(0.2, 0.6) * rng.choice((-1, 1))
    target = rng.uniform(*law.explained, n)
    # The programme's share costs most, since the mode itself is unexplained: it gets the low end.
    target[switched] = law.explained[0]
    drawn = Coefficients(
        base=base, slope=slope, switch=np.where(switched, gap, 0.0), dropout=dropout
    )
    strength = _strength(drawn, law.depth_std, target)
    return dataclasses.replace(drawn, slope=slope * strength)


def _reference_states() -> np.ndarray:
    """States [l k] spread evenly over the range that drawn sections have."""
    points = stats.qmc.Halton(len(STATES), scramble=False).random(_REFERENCE_STATES)
    return _REFERENCE[0] + (_REFERENCE[1] - _REFERENCE[0]) * points


def _strength(drawn: Coefficients, depth_std: float, target: np.ndarray) -> np.ndarray:
    """Factor [g] of the slopes with which each gene's explained share is its target."""
    effect = _features(_reference_states()) @ drawn.slope
    low, high = np.zeros_like(target), np.full_like(target, _MAX_SLOPE)
    for _ in range(14):
        middle = (low + high) / 2
        moments = _marginal_moments(
            drawn.base + middle * effect, drawn.switch, drawn.dropout, depth_std
        )
        mean = moments[..., 0]
        variance = (moments[..., 1] - mean**2).mean(0)
        enough = mean.var(0) >= target * (mean.var(0) + variance)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return (low + high) / 2


@functools.lru_cache(maxsize=32)
def _discriminant(law: Law, genes: tuple[str, ...]) -> tuple[np.ndarray, float]:
    rng = np.random.default_rng([law.seed, 2])
    spread = rng.uniform(*_REFERENCE, (4096, len(STATES)))
    sample = law.sample_counts(spread, rng)
    values = np.log2(sample.counts[:, law.columns(genes)] + 1.0)
    low, high = (values[sample.mode == mode] for mode in (0, 1))
    within = np.cov(low.T) + np.cov(high.T)
    # A ridge of 1e-6 keeps a panel of constant genes solvable; variances are of order 1.
    difference = high.mean(0) - low.mean(0)
    weight = np.linalg.solve(np.atleast_2d(within) + 1e-6 * np.eye(len(genes)), difference)
    span = weight @ difference / 2
    # A panel without any gene of the programme tells nothing apart: its score is then noise.
    weight = weight / span
    return weight, float(-weight @ (high.mean(0) + low.mean(0)) / 2)
