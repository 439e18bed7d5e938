"""Ladders: the falling noise levels that a sampler walks down.

Every ladder has steps + 1 rungs, float32, from sigma_max to 0, in units of the model's space.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stemjax import errors


def karras(
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
