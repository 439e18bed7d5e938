"""Laws with an exact denoiser, for the samplers' tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

MEAN, VARIANCE = np.array([0.3, -1.0, 0.7]), np.array([0.25, 1.0, 4.0])


def gaussian(x, sigma, mean=MEAN, variance=VARIANCE):
    """E[x0 | x] for x0 ~ N(mean, variance), gene by gene."""
    mean, variance = (
        jnp.asarray(np.broadcast_to(v, (1, x.shape[1])), x.dtype) for v in (mean, variance)
    )
    return mean + variance / (variance + sigma[:, None] ** 2) * (x - mean)


def gaussian_flow(x, sigma, sigma_end=0.0):
    """Where the probability-flow ODE of the same data takes x from sigma to sigma_end."""
    shrink = np.sqrt((VARIANCE + sigma_end**2) / (VARIANCE + sigma**2))
    return MEAN + (np.asarray(x) - MEAN) * shrink


def mixture(x, sigma, weights=(0.3, 0.7), modes=(2.0, -1.0), std=0.3):
    """E[x0 | x] for two modes on a diagonal of gene space."""
    variance = std**2 + sigma[:, None] ** 2
    distance = [jnp.sum((x - m) ** 2, axis=1, keepdims=True) / (2 * variance) for m in modes]
    share = jax.nn.sigmoid(jnp.log(weights[0] / weights[1]) - distance[0] + distance[1])
    means = [m + std**2 / variance * (x - m) for m in modes]
    return share * means[0] + (1 - share) * means[1]


def start(key, sigma, rows, genes, dtype=jnp.float64):
    """The state at sigma of a sampler that starts from nothing."""
    return sigma * jax.random.normal(key, (rows, genes), dtype)


def row_keys(rows):
    """One key a row."""
    return jax.random.split(jax.random.key(7), rows)
