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
import numpy as np
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


def karras_ladder(
    steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Array, " s"]:
    """Returns the steps + 1 rungs of EDM's ladder, falling from sigma_max to 0, float32.

    Rung i < steps is (sigma_max^(1/rho) + i/(steps-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,
    so rung 0 is sigma_max and rung steps-1 is sigma_min; rung ``steps`` is 0 (EDM eq. 5). One step
    goes from sigma_max to 0 at once. rho = 1 spaces the rungs evenly; a larger rho puts more of
    them at low noise.

    Raises:
      ConfigError: steps < 1, or not 0 < sigma_min < sigma_max < inf, or rho <= 0.
    """
    if steps < 1:
        raise errors.ConfigError("steps of the noise ladder", expected=">= 1", found=str(steps))
    if not 0 < sigma_min < sigma_max < math.inf or not 0 < rho < math.inf:
        raise errors.ConfigError(
            "noise ladder",
            expected="0 < sigma_min < sigma_max < inf and 0 < rho < inf",
            found=f"sigma_min={sigma_min}, sigma_max={sigma_max}, rho={rho}",
        )
    # In float64 on the host: the 7th power of a float32 root would lose three digits.
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    ramp = np.linspace(0.0, 1.0, steps) if steps > 1 else np.zeros(1)
    rungs = (top + ramp * (bottom - top)) ** rho
    return jnp.asarray(np.append(rungs, 0.0), dtype=jnp.float32)


def loss_weight(sigma: Float[Array, "*shape"], sigma_data: float) -> Float[Array, "*shape"]:
    """Returns the weight of the squared error of D at a noise level (EDM Table 1, loss weighting).

    (sigma² + sigma_data²) / (sigma sigma_data)², which is 1 / c_out²: the error of the network's
    own output then weighs the same at each level. Its limit at sigma = inf is 1 / sigma_data².
    """
    # A sum of squared reciprocals: the quotient would be inf / inf at the mean token, and so would
    # the gradient of 1 / sigma².
    return (1 / sigma) ** 2 + 1 / sigma_data**2
