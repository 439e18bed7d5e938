"""Tasks whose networks are exact for a Gaussian: x0 = cond @ W + L n, with L L' the covariance.

What a sampler should make of them is then known in closed form, `flow`.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import toy_networks

from stemjax import tasks
from stemjax.diffusion import ddpm, noise, sampler

GENES, WIDTH = 3, 2
W = np.array([[0.8, -0.5, 0.3], [0.2, 0.6, -0.9]], np.float32)
COV = np.array([[0.5, 0.3, -0.1], [0.3, 1.0, 0.4], [-0.1, 0.4, 0.8]], np.float32)
SPOTS = 5
COND = np.random.default_rng(3).standard_normal((SPOTS, WIDTH)).astype(np.float32)
KEYS = sampler.spot_keys(0, "S", [str(i) for i in range(SPOTS)])


def posterior_mean(x, sigma, mean, cov):
    """E[x0 | x] for x0 ~ N(mean, cov) and x = x0 + sigma n; rows of x, sigma [b], mean [b g]."""
    values, vectors = jnp.linalg.eigh(cov)
    shrink = values[None] / (values[None] + sigma[:, None] ** 2)
    return mean + ((x - mean) @ vectors * shrink) @ vectors.T


def flow(z, mean, cov, sigma_max):
    """Where the probability-flow ODE takes sigma_max z: affine in z for a Gaussian, float64."""
    values, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
    ratio = np.sqrt(values / (values + sigma_max**2))
    return mean + ((sigma_max * np.asarray(z, np.float64) - mean) @ vectors * ratio) @ vectors.T


def edm_task(**changes) -> tasks.StemTask:
    """A StemTask with the exact network; params ``w`` [c g] and ``cov`` [g g]."""
    sigma_data = changes.get("sigma_data", 1.0)
    residual, marginal = changes.get("residual", False), changes.get("marginal", False)

    def init(key):
        return {"w": jnp.asarray(W), "cov": jnp.asarray(COV)}

    def apply(params, x, level, cond):
        mean = cond @ params["w"]
        sigma = jnp.exp(level / 250)
        r = jnp.hypot(sigma, jnp.full_like(sigma, sigma_data))[:, None]
        state = x * r  # c_in undone
        about = jnp.zeros_like(mean) if residual else mean
        denoised = posterior_mean(state, sigma, about, params["cov"])
        noisy = (denoised - (sigma_data / r) ** 2 * state) * r / (sigma[:, None] * sigma_data)
        # No level that training or sampling visits lies between 1500 and the mean token, 2878.
        output = jnp.where(level[:, None] > 2800, mean / sigma_data, noisy)
        if not marginal:
            return output
        log_variance = jnp.log(jnp.diag(params["cov"]) / sigma_data**2)
        return jnp.stack([output, jnp.broadcast_to(log_variance[None], mean.shape)], axis=1)

    built = toy_networks.conditional(apply, init)
    law = changes.pop("noise", noise.LogNormal(mean=0.0, std=1.0))
    return tasks.StemTask(network=built, genes=GENES, noise=law, **changes)


def ddpm_task(v: float = -1.0) -> tasks.DdpmTask:
    """A DdpmTask with the exact eps of the same Gaussian and one v everywhere."""
    log_sigmas = jnp.asarray(np.log(ddpm.Process().sigmas), jnp.float32)

    def init(key):
        return {"w": jnp.asarray(W), "cov": jnp.asarray(COV)}

    def apply(params, x, time, cond):
        steps = jnp.arange(len(log_sigmas), dtype=jnp.float32)
        sigma = jnp.exp(jnp.interp(time.astype(jnp.float32), steps, log_sigmas))
        state = x * jnp.sqrt(1 + sigma**2)[:, None]
        denoised = posterior_mean(state, sigma, cond @ params["w"], params["cov"])
        eps = (state - denoised) / sigma[:, None]
        return jnp.stack([eps, jnp.full_like(eps, v)], axis=1)

    return tasks.DdpmTask(network=toy_networks.conditional(apply, init), genes=GENES)


class Spied:
    """A network of two functions that keeps the inputs of every call; call it outside of jit."""

    def __init__(self, output):
        self.calls, self._output = [], output
        self.network = toy_networks.conditional(self._apply)

    def _apply(self, params, x, level, cond):
        self.calls.append(tuple(np.asarray(value) for value in (x, level, cond)))
        return self._output(x, level, cond)
