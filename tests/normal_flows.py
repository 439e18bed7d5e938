"""A normal law whose denoiser, consistency function and average velocities are known.

x0 ~ N(MEAN, STD²) gene by gene. The probability-flow ODE takes x at sigma to
MEAN + (x - MEAN) sqrt((STD² + r²) / (STD² + sigma²)) at r.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import toy_networks

from stemjax import tasks
from stemjax.diffusion import denoiser, noise

MEAN, STD = np.float32([[0.5, -1.0]]), np.float32([[1.0, 1.0]])
COND = np.zeros((3, 1), np.float32)


def column(values):
    return jnp.asarray(values, jnp.float32)[:, None]


def flow(x, sigma, r=0.0, std=STD):
    """The exact consistency function, between any two levels; levels [b]."""
    r = jnp.broadcast_to(r, sigma.shape)
    return MEAN + (x - MEAN) * jnp.sqrt((std**2 + column(r) ** 2) / (std**2 + column(sigma) ** 2))


def denoise(x, sigma):
    return MEAN + (x - MEAN) * STD**2 / (STD**2 + column(sigma) ** 2)


def chord(x, sigma, r):
    """X of the exact average velocity from r to sigma; the denoiser at r = sigma."""
    apart = r < 0.999 * sigma  # nearer than that float32 divides rounding by rounding
    share = column(jnp.where(apart, r / sigma, 0.0))
    inside = (flow(x, sigma, r) - share * x) / (1 - share)
    return jnp.where(apart[:, None], inside, denoise(x, sigma))


def raw(function):
    """The network whose denoiser, of sigma_data 1, is a function of (x, sigma, *levels)."""

    def apply(params, x, level, *rest):
        *levels, _ = (level, *rest)
        sigma = [jnp.exp(given / 250) for given in levels]
        c = denoiser.Preconditioning(sigma_data=1.0).scalings(sigma[0])
        x = x / column(c.c_in)
        return (function(x, *sigma) - column(c.c_skip) * x) / column(c.c_out)

    return toy_networks.conditional(apply)


def edm(function=denoise):
    law = noise.LogNormal(mean=0.0, std=1.0)
    return tasks.StemTask(network=raw(function), genes=2, noise=law)


def batch(rows, progress, mask=None):
    x0 = MEAN + STD * np.random.default_rng(0).standard_normal((rows, 2)).astype(np.float32)
    mask = np.ones_like(x0) if mask is None else mask
    share = np.full(rows, progress, np.float32)
    return {"x0": x0, "cond": np.zeros((rows, 1), np.float32), "mask": mask, "progress": share}


def mean_flow_task(meanflow, function, **options):
    network = raw(function)
    return meanflow.MeanFlowTask(network=network, teacher=edm(), start={}, **options)
