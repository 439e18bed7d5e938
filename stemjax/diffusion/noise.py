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
from jaxtyping import Array, Float, Key

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


def loss_weight(sigma: Float[Array, "*shape"], sigma_data: float) -> Float[Array, "*shape"]:
    """Returns the weight of the squared error of D at a noise level (EDM Table 1, loss weighting).

    (sigma² + sigma_data²) / (sigma sigma_data)², which is 1 / c_out²: the error of the network's
    own output then weighs the same at each level. Its limit at sigma = inf is 1 / sigma_data².
    """
    # A sum of squared reciprocals: the quotient would be inf / inf at the mean token, and so would
    # the gradient of 1 / sigma².
    return (1 / sigma) ** 2 + 1 / sigma_data**2
