"""Step rules: how x moves from one noise level to the next lower one.

A rule sees a `denoiser.Denoiser` and two noise levels; `sampler.sample` runs it down a ladder.
Here are the rules on the probability-flow ODE, and DDIM; `stochastic_rules` has the others.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stemjax import errors
from stemjax.diffusion import denoiser

type Carry = Any
"""What a multistep rule remembers between steps: a pytree of arrays of fixed shape, or ()."""


@runtime_checkable
class StepRule(Protocol):
    """How x moves from one noise level to the next lower one.

    A rule is stateless; what it remembers of earlier steps travels in a carry. At
    ``sigma_next = 0`` each rule here is of first order and returns the denoised estimate.
    """

    @property
    def stochastic(self) -> bool:
        """Whether a step adds fresh noise."""
        ...

    def evaluations(self, steps: int) -> int:
        """Returns the number of network evaluations of a row in so many steps."""
        ...

    def init(self, x: Float[Array, "b g"]) -> Carry:
        """Returns the carry before the first step."""
        ...

    def step(
        self,
        denoise: denoiser.Denoiser,
        carry: Carry,
        x: Float[Array, "b g"],
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        noise: Float[Array, "b g"] | None,
    ) -> tuple[Float[Array, "b g"], Carry]:
        """Returns x at ``sigma_next`` and the new carry.

        Args:
          denoise: the denoiser.
          carry: what `init` or the step before returned.
          x: state at ``sigma``.
          sigma: noise level, > 0.
          sigma_next: next noise level, 0 <= sigma_next < sigma.
          noise: fresh unit normal noise if the rule is stochastic, else None.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ddim:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16) in noise-level form; order 1.

    Of the next level, sigma_up² = eta² sigma_next² (sigma² - sigma_next²) / sigma² is fresh noise
    and sigma_down² = sigma_next² - sigma_up² is what is left of the old: a straight move to
    sigma_down, then noise. eta = 0 is Euler's rule on the probability-flow ODE, in noise-level
    form the same formula; eta = 1 is ancestral (DDPM) sampling, and exactly k-diffusion's ancestral
    Euler (its ``sigma_up`` and ``sigma_down`` are those above). A step to 0 adds no noise. One
    evaluation a step.

    Attributes:
      eta: share of fresh noise, 0..1.

    Raises:
      ConfigError: eta is outside 0..1.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise errors.ConfigError("eta of DDIM", expected="0 to 1", found=str(self.eta))

    @property
    def stochastic(self) -> bool:
        """Whether eta > 0."""
        return self.eta > 0

    def evaluations(self, steps: int) -> int:
        """Returns steps."""
        return steps

    def init(self, x: Float[Array, "b g"]) -> Carry:
        """Returns an empty carry."""
        return ()

    def step(
        self,
        denoise: denoiser.Denoiser,
        carry: Carry,
        x: Float[Array, "b g"],
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        noise: Float[Array, "b g"] | None,
    ) -> tuple[Float[Array, "b g"], Carry]:
        """Returns x at ``sigma_next``; see `StepRule.step`."""
        denoised = denoise(x, rows(sigma, x))
        ratio = sigma_next / sigma
        if noise is None:
            return towards(denoised, x, ratio), carry
        # sigma_down² with its two terms positive: the difference of squares would cancel.
        kept = jnp.sqrt((1 - self.eta**2) + (self.eta * ratio) ** 2)
        sigma_up = self.eta * sigma_next * jnp.sqrt((1 - ratio) * (1 + ratio))
        return towards(denoised, x, ratio * kept) + sigma_up * noise, carry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun:
    """Heun's rule of EDM (Algorithm 1 with sigma(t) = t and s(t) = 1); order 2.

    An Euler step, then the same step with the mean of the slopes at its two ends. The last step,
    to 0, stays an Euler step and costs one evaluation; the others cost two.
    """

    @property
    def stochastic(self) -> bool:
        """False."""
        return False

    def evaluations(self, steps: int) -> int:
        """Returns 2 steps - 1."""
        return 2 * steps - 1

    def init(self, x: Float[Array, "b g"]) -> Carry:
        """Returns an empty carry."""
        return ()

    def step(
        self,
        denoise: denoiser.Denoiser,
        carry: Carry,
        x: Float[Array, "b g"],
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        noise: Float[Array, "b g"] | None,
    ) -> tuple[Float[Array, "b g"], Carry]:
        """Returns x at ``sigma_next``; see `StepRule.step`."""
        return heun_step(denoise, x, sigma, sigma_next), carry


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamsBashforth2:
    """The two-step Adams-Bashforth rule on dx/dsigma = (x - D) / sigma; order 2, one evaluation.

    With d the slope, h = sigma_next - sigma and h_prev the step before,
    x + h (d + (h / 2 h_prev) (d - d_prev)), which for even steps is 3/2 d - 1/2 d_prev (Hairer,
    Norsett and Wanner, Solving Ordinary Differential Equations I, section III.5, for uneven ones).
    Linear multistep rules of this kind are the samplers LMS (k-diffusion) and, at order 4 and in
    variance-preserving form, PNDM (Liu et al. 2022, arXiv 2202.09778). The first step,
    which has no history, and a step to 0 are Euler's.

    `DpmSolverPP2M` extrapolates the denoised estimate in ln sigma where this rule extrapolates the
    slope in sigma. Both cost the same.
    """

    @property
    def stochastic(self) -> bool:
        """False."""
        return False

    def evaluations(self, steps: int) -> int:
        """Returns steps."""
        return steps

    def init(self, x: Float[Array, "b g"]) -> Carry:
        """Returns (former slope, former noise level): none yet, at infinity."""
        return no_history(x)

    def step(
        self,
        denoise: denoiser.Denoiser,
        carry: Carry,
        x: Float[Array, "b g"],
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        noise: Float[Array, "b g"] | None,
    ) -> tuple[Float[Array, "b g"], Carry]:
        """Returns x at ``sigma_next``; see `StepRule.step`."""
        slope_before, sigma_before = carry
        denoised = denoise(x, rows(sigma, x))
        slope = (x - denoised) / sigma
        # On the last step the extrapolation weighs nothing, so that it ends at D itself.
        h = jnp.where(sigma_next > 0, sigma_next - sigma, 0.0)
        bend = h**2 / (2 * (sigma - sigma_before)) * (slope - slope_before)
        return towards(denoised, x, sigma_next / sigma) + bend, (slope, sigma)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpmSolverPP2M:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Algorithm 2); order 2, one evaluation.

    With lambda = -ln sigma, h = lambda_next - lambda and h_prev the step before, the denoised
    estimate is carried half a step on, D̂ = D + (h / 2 h_prev) (D - D_prev), and x moves
    towards D̂. The first step, which has no history, and a step to 0 use D itself.
    """

    @property
    def stochastic(self) -> bool:
        """False."""
        return False

    def evaluations(self, steps: int) -> int:
        """Returns steps."""
        return steps

    def init(self, x: Float[Array, "b g"]) -> Carry:
        """Returns (former denoised estimate, former noise level): none yet, at infinity."""
        return no_history(x)

    def step(
        self,
        denoise: denoiser.Denoiser,
        carry: Carry,
        x: Float[Array, "b g"],
        sigma: Float[Array, ""],
        sigma_next: Float[Array, ""],
        noise: Float[Array, "b g"] | None,
    ) -> tuple[Float[Array, "b g"], Carry]:
        """Returns x at ``sigma_next``; see `StepRule.step`."""
        denoised = denoise(x, rows(sigma, x))
        target = midway(denoised, carry, sigma, sigma_next)
        return towards(target, x, sigma_next / sigma), (denoised, sigma)


def heun_step(
    denoise: denoiser.Denoiser,
    x: Float[Array, "b g"],
    sigma: Float[Array, ""],
    sigma_next: Float[Array, ""],
) -> Float[Array, "b g"]:
    """Returns x at ``sigma_next`` by one step of `Heun`."""
    denoised = denoise(x, rows(sigma, x))
    predicted = towards(denoised, x, sigma_next / sigma)

    def correct() -> Float[Array, "b g"]:
        slope = (x - denoised) / sigma
        slope_next = (predicted - denoise(predicted, rows(sigma_next, x))) / sigma_next
        return x + (sigma_next - sigma) * (slope + slope_next) / 2

    # A branch, not a select: the network must not run for nothing on the last step.
    return jax.lax.cond(sigma_next > 0, correct, lambda: predicted)


def no_history(x: Float[Array, "b g"]) -> Carry:
    """Returns the carry of a two-step rule before its first step: zeros, at an infinite level."""
    # The step before is then infinite, so that the extrapolation weighs nothing.
    return jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype)


def midway(
    denoised: Float[Array, "b g"],
    carry: Carry,
    sigma: Float[Array, ""],
    sigma_next: Float[Array, ""],
) -> Float[Array, "b g"]:
    """Returns D̂ = D + (h / 2 h_prev) (D - D_prev), the denoised estimate half a step on.

    D itself if there is no history (`no_history`), or if the step goes to 0.

    Args:
      denoised: D at ``sigma``.
      carry: (D_prev, its noise level).
      sigma: noise level.
      sigma_next: next noise level.
    """
    denoised_before, sigma_before = carry
    # A step to 0 is infinite in lambda: its place is taken by h = 0, no extrapolation.
    h = jnp.log(sigma / jnp.where(sigma_next > 0, sigma_next, sigma))
    weight = h / (2 * jnp.log(sigma_before / sigma))
    return denoised + weight * (denoised - denoised_before)


def towards(
    target: Float[Array, "b g"], x: Float[Array, "b g"], ratio: Float[Array, ""]
) -> Float[Array, "b g"]:
    """Returns target + ratio (x - target): x itself at 1, the target at 0."""
    return target + ratio * (x - target)


def rows(sigma: Float[Array, ""], x: Float[Array, "b g"]) -> Float[Array, " b"]:
    """Returns the noise level repeated for each row of x."""
    return jnp.broadcast_to(sigma, x.shape[:1])
