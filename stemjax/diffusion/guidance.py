"""Guidance: a denoiser pushed away from a weaker one, and the null condition that gives one.

Where D - D_weak points is where the better denoiser sees what the weaker one does not. Going
further that way, D_weak + scale (D - D_weak), sharpens what is drawn; it no longer samples the law
that either was trained on, and spread shrinks with it.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from stemjax import errors
from stemjax.diffusion import denoiser


def guide(
    denoise: denoiser.Denoiser,
    weak: denoiser.Denoiser,
    scale: float,
    *,
    sigma_min: float = 0.0,
    sigma_max: float = math.inf,
) -> denoiser.Denoiser:
    """Returns D_weak + scale (D - D_weak), where sigma_min < sigma <= sigma_max, else D.

    Classifier-free guidance where ``weak`` is the same network with the null condition (Ho and
    Salimans 2022, arXiv 2207.12598, eq. 6, whose w is scale - 1); autoguidance where it is a lesser
    network with the same condition (Karras et al. 2024, arXiv 2406.02507). Guidance is harmful at
    high noise and largely unnecessary at low noise, hence the interval (Kynkaanniemi et al. 2024,
    arXiv 2404.07724).

    scale 1 returns ``denoise`` itself, scale 0 without an interval ``weak`` itself: one evaluation
    each. Any other costs two in the interval and one at noise levels outside of it. Rows may differ
    in sigma and each gets its own formula; if any row is inside, ``weak`` runs for all of them.

    Args:
      denoise: the better denoiser.
      weak: the weaker one, in the same space and for the same rows.
      scale: strength; 1 is none, between 0 and 1 mixes, above 1 extrapolates.
      sigma_min: guides above this noise level only; 0 with an infinite sigma_max guides always.
      sigma_max: guides up to this noise level only.

    Raises:
      ConfigError: scale is not finite, or not 0 <= sigma_min < sigma_max.
    """
    if not math.isfinite(scale):
        raise errors.ConfigError("scale of guidance", expected="a finite number", found=str(scale))
    if not 0 <= sigma_min < sigma_max:
        raise errors.ConfigError(
            "interval of guidance",
            expected="0 <= sigma_min < sigma_max",
            found=f"sigma_min={sigma_min}, sigma_max={sigma_max}",
        )
    always = sigma_min == 0 and sigma_max == math.inf
    if scale == 1:
        return denoise
    if scale == 0 and always:
        return weak

    def guided(x: Float[Array, "b g"], sigma: Float[Array, " b"], /) -> Float[Array, "b g"]:
        strong = denoise(x, sigma)

        def away() -> Float[Array, "b g"]:
            weaker = weak(x, sigma).astype(strong.dtype)
            return weaker + scale * (strong - weaker)

        if always:
            return away()
        within = (sigma > sigma_min) & (sigma <= sigma_max)
        # A branch, not a select alone: outside of the interval the weaker one must not run.
        pushed = jax.lax.cond(jnp.any(within), away, lambda: strong)
        return jnp.where(within[:, None], pushed, strong)

    return guided


def null_condition(cond: Float[Array, "b c"]) -> Float[Array, "b c"]:
    """Returns the condition that stands for none: zeros.

    Conditions are standardised over the training spots, so zero is the mean embedding. A network
    knows it as "no condition" only if it was trained with `drop_condition`; to any other it is the
    average spot, and guidance by it pushes away from that.
    """
    return jnp.zeros_like(cond)


def drop_condition(
    cond: Float[Array, "b c"], key: Key[Array, ""], fraction: float
) -> Float[Array, "b c"]:
    """Returns the condition with each row replaced by `null_condition` with this probability.

    For training a network that is to be guided by itself (Ho and Salimans 2022, arXiv 2207.12598,
    Algorithm 1, p_uncond). Rows are drawn independently of each other. fraction 0 returns ``cond``
    unchanged and leaves the key unused.

    Args:
      cond: standardised condition of each row.
      key: key of this step.
      fraction: probability that a row loses its condition, 0..1.

    Raises:
      ConfigError: fraction is outside 0..1.
    """
    if not 0 <= fraction <= 1:
        raise errors.ConfigError(
            "fraction of conditions dropped", expected="0 to 1", found=str(fraction)
        )
    if fraction == 0:
        return cond
    dropped = jax.random.bernoulli(key, fraction, cond.shape[:1])
    return jnp.where(dropped[:, None], null_condition(cond), cond)
