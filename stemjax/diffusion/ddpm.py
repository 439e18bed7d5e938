"""The published process: DDPM with linear betas, eps prediction and a learned range of variances.

Ho et al. 2020 (arXiv 2006.11239, "DDPM"), with the variance, loss and respacing of Nichol and
Dhariwal 2021 (arXiv 2102.09672, "improved DDPM"), as Stem uses them. Here the network sees the
variance-preserving state and an integer time step, and answers with two channels a gene: the noise
eps and v, which places the variance of a step between its two bounds::

    x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps          t = 0..999, abar_t = prod (1 - beta)
    log variance = w ln beta_t + (1 - w) ln betatilde_t,  w = (v + 1) / 2

With sigma = sqrt((1 - abar) / abar) and x = x_t / sqrt(abar) this is x = x0 + sigma n, the form of
all other samplers: `make_vp_denoiser` makes a published network one of their denoisers, without
training, and only `ancestral` needs this module's own steps, since only they use v.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from stemjax import errors
from stemjax.diffusion import denoiser, sampler

BETA_FIRST, BETA_LAST = 1e-4, 0.02
# Half the width of a grey level on [-1, 1], and where the open end bins begin.
_HALF_BIN, _LAST_BIN = 1 / 255, 0.999


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """DDPM with linear betas from 1e-4 to 0.02, of which a sampler may keep only some steps.

    Respaced betas are 1 - abar_i / abar_(i-1) over the kept steps (improved DDPM, section 4), so
    that abar at a kept step stays what it was and the network sees levels that it was trained on.

    Attributes:
      steps: time steps that the network was trained on.
      kept: how many of them a sampler visits, evenly spread; None keeps all.

    Raises:
      ConfigError: fewer than two steps, or more kept than there are.
    """

    steps: int = 1000
    kept: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise errors.ConfigError(
                "steps of the DDPM process", expected="at least 2", found=str(self.steps)
            )
        if self.kept is not None and not 1 <= self.kept <= self.steps:
            raise errors.ConfigError(
                "steps kept of the DDPM process",
                expected=f"1 to {self.steps}",
                found=str(self.kept),
            )

    def respaced(self, kept: int) -> Process:
        """Returns the process that visits ``kept`` of the same steps.

        Raises:
          ConfigError: more than there are, or none.
        """
        return dataclasses.replace(self, kept=kept)

    @functools.cached_property
    def times(self) -> Int[np.ndarray, " s"]:
        """The original time steps that are visited, rising; the network is given these."""
        if self.kept is None:
            return np.arange(self.steps)
        if self.kept == 1:
            return np.zeros(1, np.int64)
        stride = (self.steps - 1) / (self.kept - 1)
        # A running sum and Python's rounding (half to even), as the published code has them: a
        # product instead of the sum would choose another step here and there.
        position, times = 0.0, []
        for _ in range(self.kept):
            times.append(round(position))
            position += stride
        return np.array(times)

    @functools.cached_property
    def abar(self) -> Float[np.ndarray, " s"]:
        """Share of the signal's variance that is left at each visited step, float64."""
        betas = np.linspace(BETA_FIRST, BETA_LAST, self.steps, dtype=np.float64)
        return np.cumprod(1 - betas)[self.times]

    @functools.cached_property
    def betas(self) -> Float[np.ndarray, " s"]:
        """Variance that each visited step adds, float64."""
        return 1 - self.abar / np.append(1.0, self.abar[:-1])

    @functools.cached_property
    def sigmas(self) -> Float[np.ndarray, " s"]:
        """Noise level sqrt((1 - abar) / abar) of each visited step, rising, float64."""
        return np.sqrt((1 - self.abar) / self.abar)

    @functools.cached_property
    def posterior_log_variance(self) -> Float[np.ndarray, " s"]:
        """Logarithm of betatilde at each visited step; the first, ln 0, is replaced by the second.

        A process of one step has no second: its own beta stands there.
        """
        before = np.append(1.0, self.abar[:-1])
        variance = self.betas * (1 - before) / (1 - self.abar)
        return np.log(np.append(variance[1] if len(variance) > 1 else self.betas[0], variance[1:]))

    def coefficients(self) -> Coefficients:
        """Returns the numbers of every visited step as float32 arrays [s]."""
        before = np.append(1.0, self.abar[:-1])
        values = {
            "time": self.times,
            "keep": np.sqrt(self.abar),
            "noise": np.sqrt(1 - self.abar),
            "x0_from_x": np.sqrt(1 / self.abar),
            "x0_from_eps": np.sqrt(1 / self.abar - 1),
            "mean_from_x0": self.betas * np.sqrt(before) / (1 - self.abar),
            "mean_from_x": (1 - before) * np.sqrt(1 - self.betas) / (1 - self.abar),
            "log_beta": np.log(self.betas),
            "log_betatilde": self.posterior_log_variance,
            "is_last": np.arange(len(self.betas)) == 0,
        }
        return Coefficients(**{k: jnp.asarray(v, jnp.float32) for k, v in values.items()})

    def ladder(self, kept: int) -> Float[Array, " s"]:
        """Returns the noise levels of ``kept`` evenly spread steps, falling, then 0; float32.

        With `rules.Ddim` this is the published DDIM with respacing.

        Raises:
          ConfigError: more steps than there are, or none.
        """
        sigmas = self.respaced(kept).sigmas
        return jnp.asarray(np.append(sigmas[::-1], 0.0), jnp.float32)


class Coefficients(NamedTuple):
    """What a step needs, for all steps [s] or for those of a batch's rows [b].

    ``keep`` and ``noise`` make x_t; ``x0_from_*`` invert that; ``mean_from_*`` are DDPM's eq. 7;
    the two logarithms bound the variance; ``is_last`` is 1 at the step to x0.
    """

    time: Array
    keep: Array
    noise: Array
    x0_from_x: Array
    x0_from_eps: Array
    mean_from_x0: Array
    mean_from_x: Array
    log_beta: Array
    log_betatilde: Array
    is_last: Array

    def at(self, index: Int[Array, " b"]) -> Coefficients:
        """Returns the numbers of some steps as columns [b 1] that broadcast over genes."""
        return Coefficients(*(value[index][:, None] for value in self))


class Terms(NamedTuple):
    """Parts of the hybrid loss, each [b]: their sum is what is minimised."""

    mse: Float[Array, " b"]
    bound: Float[Array, " b"]


def posterior(
    output: Float[Array, "b 2 g"], x: Float[Array, "b g"], c: Coefficients
) -> tuple[Float[Array, "b g"], Float[Array, "b g"]]:
    """Returns mean and log variance of x at the next lower step given x (DDPM eq. 7).

    The predicted x0 is not clipped: expression has no natural upper end.

    Args:
      output: the network's channels eps and v.
      x: variance-preserving state.
      c: the step's numbers, broadcasting against x.
    """
    eps, v = output[:, 0], output[:, 1]
    x0 = c.x0_from_x * x - c.x0_from_eps * eps
    mean = c.mean_from_x0 * x0 + c.mean_from_x * x
    weight = (v + 1) / 2
    return mean, weight * c.log_beta + (1 - weight) * c.log_betatilde


def ancestral_step(
    output: Float[Array, "b 2 g"],
    x: Float[Array, "b g"],
    noise: Float[Array, "b g"],
    c: Coefficients,
) -> Float[Array, "b g"]:
    """Returns x at the next lower step: the posterior's mean plus its noise, none at the last."""
    mean, log_variance = posterior(output, x, c)
    return mean + (1 - c.is_last) * jnp.exp(0.5 * log_variance) * noise


def ancestral(
    network: denoiser.RawNetwork,
    process: Process,
    unit: Float[Array, "b g"],
    keys: Key[Array, " b"],
    *,
    signs: Float[Array, " b"] | None = None,
) -> Float[Array, "b g"]:
    """Returns samples of x0 by ancestral steps, one evaluation for each step that is visited.

    A `sampler.Run` once network and process are bound, so that `sampler.draw_with` draws with it.
    At the first step abar is 4e-5 and x is unit noise to three digits, which is where published
    sampling starts.

    Args:
      network: (x, time step [b]) -> [b 2 g], eps and v; condition and weights bound.
      process: which steps to visit.
      unit: unit normal noise, the state at the first step.
      keys: one key a row, folded with the number of the step.
      signs: +1 or -1 for each row, multiplies its fresh noise.
    """
    x = denoiser.at_least_float32(unit)
    table = process.coefficients()

    def body(x: Array, index: Array) -> tuple[Array, None]:
        c = Coefficients(*(value[index] for value in table))
        output = network(x, jnp.broadcast_to(c.time, x.shape[:1])).astype(x.dtype)
        number = (len(process.times) - 1 - index).astype(jnp.uint32)
        noise = sampler.step_noise(keys, number, x.shape[1], x.dtype, signs)
        return ancestral_step(output, x, noise, c), None

    falling = jnp.arange(len(process.times) - 1, -1, -1)
    return jax.lax.scan(body, x, falling)[0]


def hybrid_terms(
    network: denoiser.RawNetwork,
    x0: Float[Array, "b g"],
    mask: Float[Array, "b g"],
    t: Int[Array, " b"],
    noise: Float[Array, "b g"],
    *,
    process: Process,
) -> Terms:
    """Returns each row's mean squared error of eps and its bound on the variance, in bits a gene.

    The bound (improved DDPM, eq. 15 and 16) sees eps only as a constant, so that it trains v and
    nothing else: for t > 0 the Kullback-Leibler divergence of the true posterior from the model's,
    at t = 0 minus the log likelihood of x0 in a bin of half width 1/255 with open ends at -.999
    and .999. Those bins are those of 8-bit images. The published code takes them over unchanged,
    so an expression above .999 falls in the open upper bin; only v at the very last step, whose
    noise is not drawn, ever learns from them.

    A gene that a row did not measure is shown as 0 and has no part in the means.

    Args:
      network: (x_t, time step [b]) -> [b 2 g]; condition and weights bound.
      x0: clean expression in the model's space.
      mask: 1 where a gene was measured, else 0.
      t: time step of each row, 0..steps-1.
      noise: unit normal noise.
      process: the whole process, not respaced.
    """
    measured = mask > 0
    x0 = jnp.where(measured, denoiser.at_least_float32(x0), 0.0)
    c = process.coefficients().at(t)
    x = c.keep * x0 + c.noise * noise
    output = network(x, c.time[:, 0]).astype(x0.dtype)
    mse = denoiser.mean_over_measured(jnp.square(output[:, 0] - noise), measured)
    constant_mean = output.at[:, 0].set(jax.lax.stop_gradient(output[:, 0]))
    bound = denoiser.mean_over_measured(_bound(constant_mean, x, x0, c), measured)
    return Terms(mse=mse, bound=bound)


def hybrid_loss(
    network: denoiser.RawNetwork,
    x0: Float[Array, "b g"],
    mask: Float[Array, "b g"],
    key: Key[Array, ""],
    *,
    process: Process,
) -> Terms:
    """Returns `hybrid_terms` at a time step drawn evenly for each row."""
    key_time, key_noise = jax.random.split(key)
    t = jax.random.randint(key_time, x0.shape[:1], 0, process.steps)
    noise = jax.random.normal(key_noise, x0.shape, denoiser.at_least_float32(x0).dtype)
    return hybrid_terms(network, x0, mask, t, noise, process=process)


def make_vp_denoiser(network: denoiser.RawNetwork, *, process: Process) -> denoiser.Denoiser:
    """Returns the published network as D(x; sigma) = x - sigma eps(x / sqrt(1 + sigma²), t).

    Since abar = 1 / (1 + sigma²) at every level, no table is needed for the scale; t is the time
    step whose noise level is sigma, found by linear interpolation in ln sigma between the steps
    and held at the ends of their range. Computed in the precision of x, at least float32.

    At sigma_max = 157 an error of eps is multiplied by 157, so one evaluation there is not a
    conditional mean: average a pair instead.
    """
    whole = dataclasses.replace(process, kept=None)
    log_sigmas = np.log(whole.sigmas)

    def denoise(x: Float[Array, "b g"], sigma: Float[Array, " b"], /) -> Float[Array, "b g"]:
        x = denoiser.at_least_float32(x)
        sigma = sigma.astype(x.dtype)
        knots = jnp.asarray(log_sigmas, x.dtype)
        # A level of 0 stands below the first step, whose time it gets.
        log_sigma = jnp.log(jnp.maximum(sigma, jnp.finfo(x.dtype).tiny))
        t = jnp.interp(log_sigma, knots, jnp.arange(whole.steps, dtype=x.dtype))
        column = sigma[:, None]
        eps = network(x / jnp.hypot(jnp.ones_like(column), column), t)[:, 0].astype(x.dtype)
        return x - column * eps

    return denoise


def _bound(
    output: Float[Array, "b 2 g"], x: Float[Array, "b g"], x0: Float[Array, "b g"], c: Coefficients
) -> Float[Array, "b g"]:
    """Returns the variational bound's term of each gene, in bits."""
    mean, log_variance = posterior(output, x, c)
    true_mean = c.mean_from_x0 * x0 + c.mean_from_x * x
    divergence = 0.5 * (
        -1.0
        + log_variance
        - c.log_betatilde
        + jnp.exp(c.log_betatilde - log_variance)
        + jnp.square(true_mean - mean) * jnp.exp(-log_variance)
    )
    decoder = -_bin_log_likelihood(x0, mean, 0.5 * log_variance)
    return jnp.where(c.is_last > 0, decoder, divergence) / np.log(2.0).astype(np.float32)


def _bin_log_likelihood(
    x0: Float[Array, "b g"], mean: Float[Array, "b g"], log_std: Float[Array, "b g"]
) -> Float[Array, "b g"]:
    """Returns the log probability of x0's bin under a normal law (DDPM eq. 13)."""
    inverse = jnp.exp(-log_std)
    upper = _normal_cdf(inverse * (x0 - mean + _HALF_BIN))
    lower = _normal_cdf(inverse * (x0 - mean - _HALF_BIN))
    share = jnp.where(x0 < -_LAST_BIN, upper, jnp.where(x0 > _LAST_BIN, 1.0 - lower, upper - lower))
    return jnp.log(jnp.maximum(share, 1e-12))


def _normal_cdf(x: Float[Array, "b g"]) -> Float[Array, "b g"]:
    """Returns the tanh approximation that the published code uses for the normal law."""
    return 0.5 * (1.0 + jnp.tanh(np.float32(np.sqrt(2.0 / np.pi)) * (x + 0.044715 * x**3)))
