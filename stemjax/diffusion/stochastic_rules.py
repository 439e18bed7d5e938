"""Step rules that add fresh noise: EDM's churn on Heun's rule, and DPM-Solver++(2M) on an SDE.

They keep the marginals of x = x0 + sigma n, as those of `rules` do, and forget their start on the
way. `rules.Ddim` with eta > 0 is a third.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from stemjax import errors
from stemjax.diffusion import denoiser, rules

_GAMMA_LIMIT = math.sqrt(2) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeunChurn:
    """EDM's stochastic sampler (Karras et al. 2022, arXiv 2206.00364, Algorithm 2).

    Each step first raises the level from sigma to (1 + gamma) sigma by fresh noise, then goes down
    to sigma_next by Heun's rule. The denoiser therefore sees levels above the rungs, up to sqrt(2)
    times the highest. The last step, to 0, is raised too and returns the denoised estimate of the
    raised state, at one evaluation; the others cost two. gamma = 0 is `rules.Heun`, to the bit.

    For a fixed S_churn, and so a gamma that falls as 1 / steps, the variance on a Gaussian
    converges at order 2; for a fixed gamma at order 1, since there is then ever more churn.

    Attributes:
      gamma: relative rise of the level, min(S_churn / steps, sqrt(2) - 1) in EDM's terms.
      noise_scale: EDM's S_noise, standard deviation of the fresh noise; above 1 makes up for a
        network that removes too much.
      churn_min: EDM's S_tmin; rungs below it are not raised.
      churn_max: EDM's S_tmax; rungs above it are not raised.

    Raises:
      ConfigError: gamma is outside 0..sqrt(2) - 1, noise_scale is negative or not finite, or not
        0 <= churn_min <= churn_max.
    """

    gamma: float
    noise_scale: float = 1.0
    churn_min: float = 0.0
    churn_max: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= _GAMMA_LIMIT:
            raise errors.ConfigError(
                "gamma of HeunChurn",
                expected="0 to sqrt(2) - 1",
                found=str(self.gamma),
                fix="take min(S_churn / steps, sqrt(2) - 1)",
            )
        if not 0 <= self.noise_scale < math.inf:
            raise errors.ConfigError(
                "noise_scale of HeunChurn",
                expected="a finite number >= 0",
                found=str(self.noise_scale),
            )
        if not 0 <= self.churn_min <= self.churn_max:
            raise errors.ConfigError(
                "levels of HeunChurn",
                expected="0 <= churn_min <= churn_max",
                found=f"churn_min={self.churn_min}, churn_max={self.churn_max}",
            )

    @property
    def stochastic(self) -> bool:
        """Whether gamma > 0."""
        return self.gamma > 0

    def evaluations(self, steps: int) -> int:
        """Returns 2 steps - 1."""
        return 2 * steps - 1

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
        """Returns x at ``sigma_next``; see `rules.StepRule.step`."""
        if noise is not None:
            churned = (self.churn_min <= sigma) & (sigma <= self.churn_max)
            # sqrt((1 + gamma)² - 1) multiplied out: the difference of squares would cancel.
            added = self.noise_scale * math.sqrt(self.gamma * (2 + self.gamma))
            x = x + jnp.where(churned, sigma * added, 0.0) * noise
            sigma = jnp.where(churned, sigma * (1 + self.gamma), sigma)
        return rules.heun_step(denoise, x, sigma, sigma_next), carry


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpmSolverPP2MSde:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, on diffusion SDEs); one evaluation.

    In k-diffusion's midpoint form, which has the paper's at eta = 1. With lambda = -ln sigma it
    solves a reverse SDE that keeps the same marginals for every eta,

        dx = (1 + eta) (D - x) dlambda + sqrt(2 eta) sigma dW,

    holding D̂ of `rules.DpmSolverPP2M` over a step h = lambda_next - lambda::

        x_next = e^(-(1 + eta) h) x + (1 - e^(-(1 + eta) h)) D̂ + sigma_next sqrt(1 - e^(-2 eta h)) n

    eta = 0 is `rules.DpmSolverPP2M` itself: (sigma_next / sigma) x + (1 - sigma_next / sigma) D̂.
    At eta = 1 a step without history is that of ancestral Euler, `rules.Ddim` with eta = 1. The
    extrapolation makes up, one step late, for the noise that D did not see within the step: on a
    Gaussian the variance converges at order 2. A step to 0 returns D and adds no noise.

    Attributes:
      eta: how much fresh noise; 0 is none, 1 is the paper's.

    Raises:
      ConfigError: eta is negative or not finite.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise errors.ConfigError(
                "eta of DpmSolverPP2MSde", expected="a finite number >= 0", found=str(self.eta)
            )

    @property
    def stochastic(self) -> bool:
        """Whether eta > 0."""
        return self.eta > 0

    def evaluations(self, steps: int) -> int:
        """Returns steps."""
        return steps

    def init(self, x: Float[Array, "b g"]) -> rules.Carry:
        """Returns (former denoised estimate, former noise level): none yet, at infinity."""
        return rules.no_history(x)

    def step(
        self,
        denoise: denoiser.Denoiser,
        carry: rules.Carry,
        x: Float[Array, "b g"],
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        noise: Float[Array, "b g"] | None,
    ) -> tuple[Float[Array, "b g"], rules.Carry]:
        """Returns x at ``sigma_next``; see `rules.StepRule.step`."""
        denoised = denoise(x, rules.rows(sigma, x))
        target = rules.midway(denoised, carry, sigma, sigma_next)
        ratio = sigma_next / sigma
        if noise is None:
            return rules.towards(target, x, ratio), (denoised, sigma)
        # ln 0 at the last step is in order: expm1(-inf) = -1, times sigma_next = 0.
        fresh = sigma_next * jnp.sqrt(-jnp.expm1(2 * self.eta * jnp.log(ratio)))
        moved = rules.towards(target, x, ratio ** (1 + self.eta))
        return moved + fresh * noise, (denoised, sigma)
