"""Independent Gaussian processes in the plane: their covariance, draws and exact posterior."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import linalg, spatial

from stemjax import errors

type Family = Literal["matern", "squared exponential"]

JITTER = 1e-10
"""Added to the variances of 1 so that a drawn process has a Cholesky factor."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Processes:
    """Independent processes of mean 0 and variance 1 at every position.

    Attributes:
      length_um: length scale of each, [p] um.
      family: covariance at distance r: "matern" (nu = 3/2; Rasmussen and Williams 2006, Gaussian
        Processes for Machine Learning, eq. 4.17) is (1 + sqrt(3) r / length) exp(-sqrt(3) r /
        length), "squared exponential" (eq. 4.9) is exp(-r^2 / (2 length^2)).

    Raises:
      ConfigError: a length is not above 0, or there is no such family.
    """

    length_um: Float[np.ndarray, " p"]
    family: Family = "matern"

    def __post_init__(self) -> None:
        length = np.asarray(self.length_um, np.float64)
        if not (length > 0).all() or self.family not in ("matern", "squared exponential"):
            raise errors.ConfigError(
                "Gaussian processes cannot be made",
                expected="length scales above 0, family matern or squared exponential",
                found=f"{length.tolist()} um, {self.family}",
            )
        object.__setattr__(self, "length_um", length)

    def correlations(
        self, a: Float[np.ndarray, "a 2"], b: Float[np.ndarray, "b 2"]
    ) -> Float[np.ndarray, "p a b"]:
        """Covariance of each process between two sets of positions, um."""
        a, b = (np.asarray(v, np.float64).reshape(-1, 2) for v in (a, b))
        scaled = spatial.distance.cdist(a, b) / self.length_um[:, None, None]
        if self.family == "matern":
            return (1 + np.sqrt(3) * scaled) * np.exp(-np.sqrt(3) * scaled)
        return np.exp(-(scaled**2) / 2)

    def draw(self, seed: int, xy: Float[np.ndarray, "l 2"]) -> Float[np.ndarray, "l p"]:
        """The processes at these positions: a function of the seed and the rows in their order."""
        drawn = np.random.default_rng([seed, 0]).standard_normal((len(self.length_um), len(xy)))
        factors = np.linalg.cholesky(self.correlations(xy, xy) + JITTER * np.eye(len(xy)))
        return np.einsum("pij,pj->ip", factors, drawn)

    def posterior(
        self,
        seen: Sequence[tuple[Float[np.ndarray, "l 2"], Float[np.ndarray, "p r"]]],
        query: Float[np.ndarray, "q 2"],
    ) -> tuple[Float[np.ndarray, "u qp"], Float[np.ndarray, "q p p"]]:
        """What u = R' f + standard normal noise at some positions says of f at others.

        Args:
          seen: positions and R of each portion of what is seen; r may be 0.
          query: positions asked for.

        Returns:
          (gain, left): the mean of f is gain' u, with the u of all portions one after the other,
          spot by spot, and q p too spot by spot; ``left`` is the covariance of each position's f.
        """
        unit = np.eye(len(self.length_um))
        prior = np.block([[self._covariance(a, r, b, s) for b, s in seen] for a, r in seen])
        across = np.concatenate([self._covariance(a, r, query, unit) for a, r in seen])
        factor = linalg.cholesky(prior + np.eye(len(prior)), lower=True)
        half = linalg.solve_triangular(factor, across, lower=True)
        known = half.reshape(len(prior), len(query), len(unit))
        left = unit - np.einsum("uqa,uqb->qab", known, known, optimize=True)
        return linalg.solve_triangular(factor, half, lower=True, trans=1), left

    def _covariance(self, a: np.ndarray, r: np.ndarray, b: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Covariance of r' f at positions a and s' f at positions b, [a r, b s]."""
        found = np.einsum("pr,pab,ps->arbs", r, self.correlations(a, b), s, optimize=True)
        return found.reshape(len(a) * r.shape[1], len(b) * s.shape[1])
