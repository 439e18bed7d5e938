"""Ladders: the falling noise levels that a sampler walks down.

Every ladder has steps + 1 rungs, float32, in units of the model's space: sigma_max first, sigma_min
last but one, then 0. One step goes from sigma_max to 0 at once. They differ in what is spaced
evenly between the two: a root of sigma, ln sigma, or the time of a variance-preserving process,
whose sigma is that of x_t / sqrt(abar_t), sqrt(1 / abar_t - 1).
"""

from __future__ import annotations

import math
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stemjax import errors

_SMALLEST, _LARGEST = (float(end) for end in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


class Ladder(Protocol):
    """A ladder's function: number of steps and the two levels -> rungs."""

    def __call__(self, steps: int, *, sigma_min: float, sigma_max: float) -> Float[Array, " s"]:
        """Returns the steps + 1 rungs, falling from sigma_max to 0, float32."""
        ...


def karras(
    steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Array, " s"]:
    """Returns the steps + 1 rungs of EDM's ladder, falling from sigma_max to 0, float32.

    Rung i < steps is (sigma_max^(1/rho) + i/(steps-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,
    rung ``steps`` is 0 (EDM, Karras et al. 2022, arXiv 2206.00364, eq. 5). rho = 1 spaces the rungs
    evenly; a larger rho puts more of them at low noise.

    Raises:
      ConfigError: steps < 1, or not 0 < sigma_min < sigma_max < inf, or rho <= 0, or rungs that
        float32 cannot tell apart.
    """
    _check(steps, sigma_min, sigma_max)
    if not 0 < rho < math.inf:
        raise errors.ConfigError(
            "rho of the noise ladder", expected="0 < rho < inf", found=f"rho={rho}"
        )
    # In float64 on the host: the 7th power of a float32 root would lose three digits.
    root = _ramp(steps, sigma_max ** (1 / rho), sigma_min ** (1 / rho))
    return _rungs(root**rho, sigma_min, sigma_max)


def log_uniform(steps: int, *, sigma_min: float, sigma_max: float) -> Float[Array, " s"]:
    """Returns steps + 1 rungs evenly spaced in ln sigma, falling from sigma_max to 0, float32.

    Rung i < steps is sigma_max (sigma_min / sigma_max)^(i/(steps-1)): even steps of the logarithm
    of the signal-to-noise ratio, the limit of `karras` as rho grows (the uniform lambda of
    DPM-Solver, Lu et al. 2022, arXiv 2206.00927).

    Raises:
      ConfigError: steps < 1, or not 0 < sigma_min < sigma_max < inf, or rungs that float32 cannot
        tell apart.
    """
    _check(steps, sigma_min, sigma_max)
    return _rungs(
        np.exp(_ramp(steps, math.log(sigma_max), math.log(sigma_min))), sigma_min, sigma_max
    )


def vp_linear(
    steps: int, *, sigma_min: float, sigma_max: float, beta_min: float = 0.1, beta_max: float = 20.0
) -> Float[Array, " s"]:
    """Returns steps + 1 rungs evenly spaced in the time of the VP SDE, float32, falling to 0.

    sigma(t)² = exp(beta_min t + (beta_max - beta_min) t² / 2) - 1 (Song et al. 2021, arXiv
    2011.13456, appendix C; EDM Table 1, column VP), the continuous limit of DDPM's 1000 linear
    betas from 1e-4 to .02, whose step n (from 1) is at t = n / 1000. t falls evenly from that of
    sigma_max to that of sigma_min; for a sigma_max above sigma(1), which is 152 by default, t
    begins above 1.

    Raises:
      ConfigError: steps < 1, or not 0 < sigma_min < sigma_max < inf, or not
        0 < beta_min <= beta_max < inf, or rungs that float32 cannot tell apart.
    """
    _check(steps, sigma_min, sigma_max)
    if not 0 < beta_min <= beta_max < math.inf:
        raise errors.ConfigError(
            "betas of the noise ladder",
            expected="0 < beta_min <= beta_max < inf",
            found=f"beta_min={beta_min}, beta_max={beta_max}",
        )
    rise = beta_max - beta_min

    def time(sigma: float) -> float:
        # The quadratic's root in the form without a difference, which also serves rise = 0.
        integral = math.log1p(sigma**2)
        return 2 * integral / (beta_min + math.sqrt(beta_min**2 + 2 * rise * integral))

    t = _ramp(steps, time(sigma_max), time(sigma_min))
    return _rungs(np.sqrt(np.expm1(beta_min * t + rise * t**2 / 2)), sigma_min, sigma_max)


def vp_cosine(
    steps: int, *, sigma_min: float, sigma_max: float, s: float = 0.008
) -> Float[Array, " s"]:
    """Returns steps + 1 rungs evenly spaced in the time of the cosine process, float32.

    abar(t) = f(t) / f(0) with f(t) = cos²(a(t)) and a(t) = (t + s) / (1 + s) pi / 2 (Nichol and
    Dhariwal 2021, arXiv 2102.09672, eq. 17, with T = 1), and sigma(t)² = 1 / abar(t) - 1. t falls
    evenly from that of sigma_max to that of sigma_min, then sigma to 0. The published betas are cut
    at .999, which no finite sigma_max needs.

    Raises:
      ConfigError: steps < 1, or not 0 < sigma_min < sigma_max < inf, or s is negative or not
        finite, or rungs that float32 cannot tell apart.
    """
    _check(steps, sigma_min, sigma_max)
    if not 0 <= s < math.inf:
        raise errors.ConfigError("s of the noise ladder", expected="0 <= s < inf", found=f"s={s}")
    start = s / (1 + s) * math.pi / 2

    def angle(sigma: float) -> float:
        # cos a = cos a(0) / sqrt(1 + sigma²), by its tangent: the arc cosine is poor near 0.
        return math.atan2(math.hypot(sigma, math.sin(start)), math.cos(start))

    a = _ramp(steps, angle(sigma_max), angle(sigma_min))  # even in a is even in t
    # cos² a(0) - cos² a = sin(a - a(0)) sin(a + a(0)): no difference of nearly equal squares.
    levels = np.sqrt(np.sin(a - start) * np.sin(a + start)) / np.cos(a)
    return _rungs(levels, sigma_min, sigma_max)


LADDERS: dict[str, Ladder] = {
    "karras": karras,
    "log_uniform": log_uniform,
    "vp_linear": vp_linear,
    "vp_cosine": vp_cosine,
}
"""Ladders by name, with the defaults of what only some of them have (rho, betas, s)."""


def _check(steps: int, sigma_min: float, sigma_max: float) -> None:
    if steps < 1:
        raise errors.ConfigError("steps of the noise ladder", expected=">= 1", found=str(steps))
    if not _SMALLEST <= sigma_min < sigma_max <= _LARGEST:
        raise errors.ConfigError(
            "noise ladder",
            expected="0 < sigma_min < sigma_max < inf, both normal numbers of float32",
            found=f"sigma_min={sigma_min}, sigma_max={sigma_max}",
        )


def _ramp(steps: int, first: float, last: float) -> Float[np.ndarray, " s"]:
    """Returns ``steps`` evenly spaced numbers, float64; one step has the first alone."""
    return np.linspace(first, last, steps)


def _rungs(
    levels: Float[np.ndarray, " s"], sigma_min: float, sigma_max: float
) -> Float[Array, " s"]:
    """Returns the levels with their ends made exact, then 0, float32."""
    levels[-1], levels[0] = sigma_min, sigma_max  # of one step, sigma_max stays
    rungs = np.append(levels, 0.0).astype(np.float32)
    # A rule divides by a step, so that two equal rungs would end in NaN.
    if not (np.diff(rungs) < 0).all():
        raise errors.ConfigError(
            "noise ladder",
            expected="rungs that float32 can tell apart",
            found=f"{len(levels)} steps, sigma_min={sigma_min}, sigma_max={sigma_max}",
            fix="take fewer steps, or levels further apart",
        )
    return jnp.asarray(rungs)
