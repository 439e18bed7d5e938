"""Consistency functions: maps from any noise level to the end of its trajectory.

A consistency function f(x; sigma) takes every point of a trajectory of the probability-flow ODE to
the trajectory's end at sigma = 0 (Song et al. 2023, arXiv 2303.01469), so that one evaluation draws
a sample. Tuning (ECT, Geng et al. 2024, arXiv 2406.14548) starts from a trained denoiser, which is
the same function with the second of two levels at 0, and lets that level rise towards the first.

f is the denoiser's own D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) with new weights in F: at
sigma = 0 c_skip is 1 and c_out is 0, so f(x; 0) = x whatever F is (the boundary of arXiv
2303.01469, eq. 5), and before the first update f is the denoiser.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stemjax.diffusion import denoiser, rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
    """How far the second level lies below the first, closing in doublings.

    r / t = 1 - n(t) / 2^(i + 1) with n(t) = 1 + k sigmoid(-b t), and r = 0 where that is negative
    (ECT, section 3.2 and its table of settings: k = 8, b = 1); i = 0, 1, ... is the doubling, of
    which all last equally long. In the first, every t below ln 7 = 1.95 has r = 0, which is the
    denoiser's own objective.

    Attributes:
      doublings: how many there are.
      k, b: height and slope of n.
    """

    doublings: int = 8
    k: float = 8.0
    b: float = 1.0

    def earlier(self, t: Float[Array, " b"], progress: Float[Array, ""]) -> Float[Array, " b"]:
        """Returns r, 0 <= r < t, at a share of the run in 0..1."""
        doubling = jnp.floor(progress * self.doublings)
        ratio = 1 - (1 + self.k * jax.nn.sigmoid(-self.b * t)) / 2 ** (doubling + 1)
        return t * jnp.maximum(ratio, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renoise:
    """Multistep consistency sampling (arXiv 2303.01469, Algorithm 1): to the end, then noise again.

    x at the next level is f(x; sigma) + sigma_next n with fresh n. One evaluation a step.
    """

    @property
    def stochastic(self) -> bool:
        """True."""
        return True

    def evaluations(self, steps: int) -> int:
        """Returns steps."""
        return steps

    def init(self, x: Float[Array, "b g"]) -> rules.Carry:
        """Returns an empty carry."""
        return ()

    def step(
        self,
        denoise: denoiser.Denoiser,
        carry: rules.Carry,
        x: Float[Array, "b g"],
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        noise: Float[Array, "b g"] | None,
    ) -> tuple[Float[Array, "b g"], rules.Carry]:
        """Returns x at ``sigma_next``; ``denoise`` is the consistency function."""
        assert noise is not None
        return denoise(x, rules.rows(sigma, x)) + sigma_next * noise, carry


def errors(
    function: denoiser.Denoiser,
    x_t: Float[Array, "b g"],
    t: Float[Array, " b"],
    x_r: Float[Array, "b g"],
    r: Float[Array, " b"],
    measured: Float[Array, "b g"],
    *,
    sigma_data: float,
) -> Float[Array, " b"]:
    """Returns each row's mean of ((f(x_t; t) - stop f(x_r; r)) / c_out(t))² over measured genes.

    ECT equation 9 with our weight: 1 / c_out² measures the error in units of the network's output,
    as the denoiser's own loss does.
    """
    target = jax.lax.stop_gradient(function(x_r, r))
    scale = denoiser.Preconditioning(sigma_data=sigma_data).scalings(t).c_out
    error = (function(x_t, t) - target) / scale[:, None]
    return denoiser.mean_over_measured(error**2, measured)


def adaptive(squared: Float[Array, " b"], power: float) -> Float[Array, " b"]:
    """Returns each row's squared error over its own size, error / stop(error + c)^power, c = 1e-3.

    The adaptive weight of consistency tuning (arXiv 2406.14548, section 3.3, where power 1/2 is the
    pseudo-Huber metric's) and of MeanFlow (arXiv 2505.13447, eq. 22). Power 0 is the squared error,
    whose minimiser is the mean of the targets.
    """
    return squared / jax.lax.stop_gradient(squared + 1e-3) ** power
