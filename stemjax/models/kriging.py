"""Kriging as a layer: weights of measured spots whose covariance is learned.

    values of a component at measured spots --weights--> its value at another place

Names of arrays carry their dimensions: b batch, l spots in a window, k components.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from flax import nnx
from jaxtyping import Array, Float

UNIT_UM = 100.0
"""What distances are measured in: Visium's pitch, half of ST's."""

LENGTH_UM = 400.0
"""Length scale before training."""

NOISE = 1.0
"""Variance of the noise before training, in units of the process's."""

PACE = 20.0
"""How many times farther a logarithm below moves than the weight that holds it.

Adam moves a weight by the learning rate in a step, whatever it means. With 20, a rate of .001 and
some hundred steps, lengths and noise can change by a factor of ten.
"""

LEVEL = 0.3
"""Variance of a window's level before training, in units of the process's.

Far from all measured spots the prediction falls back on what they are on average, and not on the
mean of all slides: the more so the larger this is (ordinary kriging, where it is infinite).
"""

FARTHEST = 5.0
"""What such a logarithm can move by: a factor of 148 either way.

Beyond, the covariance of spots that lie close together cannot be inverted in float32.
"""

LEAST_NOISE = 1e-3
"""Noise that is always there."""


class Kriging(nnx.Module):
    """Kriging within a window, with a covariance for each component.

    The covariance of two spots' values is (1 + r) exp(-r), r = sqrt(3) distance / length (Matern,
    nu = 3/2; Rasmussen and Williams 2006, eq. 4.17), and the level more, since no window has the
    mean of all; of a measured value with itself the noise more. All three are learned.
    """

    def __init__(self, components: int) -> None:
        self.length = nnx.Param(jnp.zeros((components,)))
        self.noise = nnx.Param(jnp.zeros((components,)))
        self.level = nnx.Param(jnp.zeros((components,)))

    def __call__(
        self, shown_bl: Float[Array, "b l"], distance_bll: Float[Array, "b l l"]
    ) -> Float[Array, "b k l"]:
        """Weights of the shown spots for the value at each window's first spot.

        They solve (C + noise) w = c (Rasmussen and Williams 2006, eq. 2.25), and are 0 where
        nothing is shown.

        Args:
          shown_bl: 1 where a spot's value is known.
          distance_bll: distances within the window, in `UNIT_UM`.
        """
        length = _moved(LENGTH_UM / UNIT_UM, self.length[...])
        noise = LEAST_NOISE + _moved(NOISE, self.noise[...])
        level = _moved(LEVEL, self.level[...])
        correlation = matern(distance_bll[:, None] / length[None, :, None, None])
        covariance = correlation + level[None, :, None, None]
        # A spot that is not shown has no covariance with any other, and so no weight.
        known = shown_bl[:, None, :, None] * shown_bl[:, None, None, :]
        apart = noise[:, None, None] * jnp.eye(distance_bll.shape[-1])[None]
        among = covariance * known + apart[None]
        asked = covariance[:, :, 0] * shown_bl[:, None]
        solve = jax.vmap(jax.vmap(lambda a, b: jax.scipy.linalg.solve(a, b, assume_a="pos")))
        return solve(among, asked)


def _moved(start: float, weight: Float[Array, " k"]) -> Float[Array, " k"]:
    return jnp.exp(math.log(start) + jnp.clip(PACE * weight, -FARTHEST, FARTHEST))


def matern(distance: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Matern correlation, nu = 3/2, at distances in units of the length scale."""
    r = math.sqrt(3.0) * distance
    return (1 + r) * jnp.exp(-r)
