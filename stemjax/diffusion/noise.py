"""Noise levels: what training draws, what a sampler walks down, how a level weighs in the loss.

Everywhere x = x0 + sigma n with n of unit normal law, and sigma is in units of x0's space.
References are to EDM (Karras et al. 2022, arXiv 2206.00364).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from stemjax import errors


@runtime_checkable
class NoiseDistribution(Protocol):
    """The law of the noise levels seen in training."""

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, ...]:
        """Returns independent positive noise levels of the given shape."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormal:
    """Noise levels with ln sigma ~ N(mean, std²): EDM Table 1, row "noise distribution".

    Attributes:
      mean: mean of ln sigma (EDM's P_mean).
      std: standard deviation of ln sigma (EDM's P_std).

    Raises:
      ConfigError: std is negative, or either value is not finite.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std >= 0):
            raise errors.ConfigError(
                "LogNormal noise levels",
                expected="a finite mean and a finite std >= 0 of ln sigma",
                found=f"mean={self.mean}, std={self.std}",
            )

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, ...]:
        """Returns exp(mean + std n), n of unit normal law, of the given shape."""
        return jnp.exp(self.mean + self.std * jax.random.normal(key, shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogUniform:
    """Noise levels with ln sigma uniform, and so the log signal-to-noise ratio uniform.

    A loss weight is then a weight over lambda = -ln sigma, with no density of the levels on top
    (Kingma and Gao 2023, arXiv 2303.00848, where the two only count together).

    Attributes:
      sigma_min: smallest level.
      sigma_max: largest level.

    Raises:
      ConfigError: not 0 < sigma_min < sigma_max < inf.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise errors.ConfigError(
                "LogUniform noise levels",
                expected="0 < sigma_min < sigma_max < inf",
                found=f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}",
            )

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, ...]:
        """Returns exp(u), u uniform between the logarithms of the levels, of the given shape."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))


WEIGHTS = ("edm", "min_snr", "soft_min_snr")
"""Names of the loss weights over noise levels, for `network_weight`."""


def loss_weight(sigma: Float[Array, "*shape"], sigma_data: float) -> Float[Array, "*shape"]:
    """Returns the weight of the squared error of D at a noise level (EDM Table 1, loss weighting).

    (sigma² + sigma_data²) / (sigma sigma_data)², which is 1 / c_out²: the error of the network's
    own output then weighs the same at each level. Its limit at sigma = inf is 1 / sigma_data².
    """
    # A sum of squared reciprocals: the quotient would be inf / inf at the mean token, and so would
    # the gradient of 1 / sigma².
    return (1 / sigma) ** 2 + 1 / sigma_data**2


def min_snr(
    sigma: Float[Array, "*shape"], sigma_data: float, gamma: float = 5.0
) -> Float[Array, "*shape"]:
    """Returns the min-SNR weight of the squared error of D (Hang et al. 2023, arXiv 2303.09556).

    min(SNR, gamma) / sigma_data² with SNR = (sigma_data / sigma)², the paper's weight for x0
    prediction of data scaled to unit variance. It is level below
    sigma_data / sqrt(gamma), 1 / sigma² above, and 0 at sigma = inf.

    Raises:
      ConfigError: gamma is not positive and finite.
    """
    # The same as the minimum of the quotients, without an infinite one at sigma = 0.
    return (1 / jnp.maximum(sigma, _corner(sigma_data, gamma))) ** 2


def soft_min_snr(
    sigma: Float[Array, "*shape"], sigma_data: float, gamma: float = 5.0
) -> Float[Array, "*shape"]:
    """Returns the soft min-SNR weight of the squared error of D (HDiT, arXiv 2401.11605).

    SNR gamma / (SNR + gamma) / sigma_data², which is 1 / (sigma² + sigma_data² / gamma): `min_snr`
    with its corner rounded off (Crowson et al. 2024). It is 0 at sigma = inf.

    Raises:
      ConfigError: gamma is not positive and finite.
    """
    at_infinity, finite = _apart_from_infinity(sigma)
    corner = jnp.full_like(finite, _corner(sigma_data, gamma))
    return jnp.where(at_infinity, 0.0, (1 / jnp.hypot(finite, corner)) ** 2)


def network_weight(
    name: str, sigma: Float[Array, "*shape"], sigma_data: float, gamma: float = 5.0
) -> Float[Array, "*shape"]:
    """Returns the weight of the squared error of the network's own output F.

    W(sigma) c_out(sigma)² with W one of `loss_weight`, `min_snr` and `soft_min_snr`, since
    D - x0 = c_out (F - target) (EDM eq. 8). It is 1 for ``edm``; for the two others it rises as
    gamma (sigma / sigma_data)² from 0, is highest in between, and falls as (sigma_data / sigma)²
    to 0 at sigma = inf, all without a large factor on the way.

    Args:
      name: one of `WEIGHTS`.
      sigma: noise levels, >= 0, infinity included.
      sigma_data: standard deviation of the data.
      gamma: the signal-to-noise ratio at which the min-SNR weights level off.

    Raises:
      ConfigError: an unknown name, or gamma is not positive and finite.
    """
    if name not in WEIGHTS:
        raise errors.ConfigError("loss weight", expected=" or ".join(WEIGHTS), found=repr(name))
    if name == "edm":
        return jnp.ones_like(sigma)
    at_infinity, finite = _apart_from_infinity(sigma)
    corner = jnp.full_like(finite, _corner(sigma_data, gamma))
    capped = jnp.maximum if name == "min_snr" else jnp.hypot
    # c_out / sigma, at most 1, times sigma sqrt(W), at most 1.
    by_data = sigma_data / jnp.hypot(finite, jnp.full_like(finite, sigma_data))
    return jnp.where(at_infinity, 0.0, (by_data * (finite / capped(finite, corner))) ** 2)


def _corner(sigma_data: float, gamma: float) -> float:
    """Returns the noise level sigma_data / sqrt(gamma), at which SNR = gamma."""
    if not 0 < gamma < math.inf:
        raise errors.ConfigError(
            "gamma of the loss weight", expected="a positive finite number", found=str(gamma)
        )
    return sigma_data / math.sqrt(gamma)


def _apart_from_infinity(
    sigma: Float[Array, "*shape"],
) -> tuple[Bool[Array, "*shape"], Float[Array, "*shape"]]:
    """Returns where sigma is infinite, and sigma with 1 in those places.

    Twice a where: the branch not taken must be finite too, or its gradient is 0 * inf.
    """
    at_infinity = jnp.isinf(sigma)
    return at_infinity, jnp.where(at_infinity, 1.0, sigma)
