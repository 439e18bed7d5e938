"""From a raw network to a denoiser D(x; sigma) = E[x0 | x0 + sigma n = x], and how to train it.

The network is asked for a target of unit variance from an input of unit variance at every noise
level; the scalings around it carry the rest (EDM, Karras et al. 2022, arXiv 2206.00364, eq. 7).

The **mean token** is the level sigma = inf. There x says nothing of x0, so the best denoiser is
the mean E[x0 | cond]. A stock EDM never visits levels near sigma_max, and its output there is of
no use; here a share of each batch is trained at sigma = inf exactly, with x = 0, and one
evaluation of D then gives the conditional mean. The scalings have finite limits there:
c_skip = 0, c_out = sigma_data, c_in = 0, so D(0; inf) = sigma_data F(0, MEAN_TOKEN).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from stemjax import errors
from stemjax.diffusion import noise as noise_levels

type RawNetwork = Callable[[Float[Array, "b g"], Float[Array, " b"]], Float[Array, "b g"]]
"""(x scaled by c_in, noise level) -> output of unit scale; condition and weights are bound."""

type Weigh = Callable[[Float[Array, "*b"], float], Float[Array, "*b"]]
"""(sigma, sigma_data) -> weight of the squared error in network space."""

_SIGMA_LIMIT = 1e5
MEAN_TOKEN = 250 * math.log(_SIGMA_LIMIT)
"""The noise level that the network sees at sigma = inf, and at any sigma from 1e5 up."""


@runtime_checkable
class Denoiser(Protocol):
    """(x [b g], sigma [b]) -> estimate of x0 [b g]; condition and weights are bound."""

    def __call__(self, x: Float[Array, "b g"], sigma: Float[Array, " b"], /) -> Float[Array, "b g"]:
        """Returns the mean of x0 given x = x0 + sigma n, in the model's expression space."""
        ...


class Scalings(NamedTuple):
    """The four functions of sigma in D(x) = c_skip x + c_out F(c_in x, c_noise), each [b]."""

    c_skip: Float[Array, "*b"]
    c_out: Float[Array, "*b"]
    c_in: Float[Array, "*b"]
    c_noise: Float[Array, "*b"]


def noise_level(sigma: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns 250 ln(sigma), clipped to [-MEAN_TOKEN, MEAN_TOKEN]; finite at sigma = 0 and inf.

    EDM's c_noise = ln(sigma) / 4 times 1000, so that a sinusoidal embedding made for timesteps
    0..999 resolves it. Levels that training and sampling visit lie in about -1600..1100; the mean
    token, at 2878, stands apart from all of them.
    """
    return 250 * jnp.log(jnp.clip(sigma, 1 / _SIGMA_LIMIT, _SIGMA_LIMIT))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """EDM's scalings (Table 1, last block) for data of standard deviation ``sigma_data``.

    Raises:
      ConfigError: sigma_data is not positive and finite.
    """

    sigma_data: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise errors.ConfigError(
                "sigma_data", expected="a positive finite number", found=str(self.sigma_data)
            )

    def scalings(self, sigma: Float[Array, "*b"]) -> Scalings:
        """Returns the scalings at each noise level, exact at sigma = 0 and sigma = inf.

        With r = sqrt(sigma² + sigma_data²): c_skip = sigma_data² / r²,
        c_out = sigma sigma_data / r, c_in = 1 / r, c_noise = `noise_level`. At sigma = inf these
        are 0, sigma_data, 0 and MEAN_TOKEN, and their gradients are 0.
        """
        at_infinity = jnp.isinf(sigma)
        # Twice a where: the branch not taken must be finite too, or its gradient is 0 * inf.
        finite = jnp.where(at_infinity, 1.0, sigma)
        # hypot, since the square of a large float32 overflows long before the number itself.
        r = jnp.hypot(finite, jnp.full_like(finite, self.sigma_data))
        return Scalings(
            c_skip=jnp.where(at_infinity, 0.0, (self.sigma_data / r) ** 2),
            c_out=jnp.where(at_infinity, self.sigma_data, self.sigma_data * (finite / r)),
            c_in=jnp.where(at_infinity, 0.0, 1 / r),
            c_noise=noise_level(sigma),
        )


def at_least_float32(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x in float32 if it came in half precision, else x: float64 stays."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def make_denoiser(network: RawNetwork, *, sigma_data: float) -> Denoiser:
    """Returns D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) (EDM eq. 7).

    The scalings and the sum are computed in the precision of x, at least float32, whatever the
    network computes in. At sigma = inf the result does not depend on x.

    Raises:
      ConfigError: sigma_data is not positive and finite.
    """
    preconditioning = Preconditioning(sigma_data=sigma_data)

    def denoise(x: Float[Array, "b g"], sigma: Float[Array, " b"], /) -> Float[Array, "b g"]:
        x = at_least_float32(x)
        c = preconditioning.scalings(sigma.astype(x.dtype))
        output = network(c.c_in[:, None] * x, c.c_noise).astype(x.dtype)
        return c.c_skip[:, None] * x + c.c_out[:, None] * output

    return denoise


def centred(denoise: Denoiser, centre: Float[Array, "b g"]) -> Denoiser:
    """Returns the denoiser of x0 = centre + r from one of the residual r.

    D(x; sigma) = centre + D_r(x - centre; sigma), which at sigma = inf is the centre plus the mean
    residual.
    """

    def denoise_about(x: Float[Array, "b g"], sigma: Float[Array, " b"], /) -> Float[Array, "b g"]:
        return centre + denoise(x - centre, sigma)

    return denoise_about


def conditional_mean(denoise: Denoiser, batch: int, genes: int) -> Float[Array, "b g"]:
    """Returns E[x0 | cond] for each row by one evaluation: D(0; inf).

    Of use only for a network trained with mean-token rows (`denoising_loss`, mean_fraction > 0).

    Args:
      denoise: denoiser with the condition of ``batch`` rows bound.
      batch: number of rows.
      genes: number of genes.
    """
    return denoise(jnp.zeros((batch, genes), jnp.float32), jnp.full(batch, jnp.inf, jnp.float32))


def mean_token_rows(batch: int, mean_fraction: float) -> int:
    """Returns how many leading rows of a batch are mean tokens: round(mean_fraction batch).

    A half rounds to even. A small batch can round to none (0.1 of 5 rows), and the mean token is
    then never trained: whoever chooses batch and fraction checks for that.

    Raises:
      ConfigError: mean_fraction is outside 0..1.
    """
    if not 0 <= mean_fraction <= 1:
        raise errors.ConfigError("mean_fraction", expected="0 to 1", found=str(mean_fraction))
    return round(mean_fraction * batch)


class Noised(NamedTuple):
    """A noised batch as the network sees it, and what it is compared with, in network space.

    Attributes:
      x: c_in (x0 + sigma n), [b g]; 0 for a mean token.
      level: c_noise, [b].
      target: (x0 - c_skip x) / c_out, [b g].
      weight: weight of each row's squared error in network space, [b].
      measured: whether the gene was measured, [b g].
    """

    x: Float[Array, "b g"]
    level: Float[Array, " b"]
    target: Float[Array, "b g"]
    weight: Float[Array, " b"]
    measured: Float[Array, "b g"]


def add_noise(
    x0: Float[Array, "b g"],
    mask: Float[Array, "b g"],
    key: Key[Array, ""],
    *,
    noise: noise_levels.NoiseDistribution,
    sigma_data: float,
    mean_fraction: float,
    weigh: Weigh | None = None,
    centre: Float[Array, "b g"] | None = None,
) -> Noised:
    """Returns a batch noised for training: row i is x = x0 + sigma n with its own sigma.

    The first `mean_token_rows` rows are mean tokens instead: sigma = inf, x = 0, target x0 (in
    network space x0 / sigma_data). mean_fraction = 0 is stock EDM; mean_fraction = 1 is plain
    regression with the same backbone. Rows must come in random order, as the schedule gives them.

    A gene that a row did not measure has no part in it: its x0 is replaced by 0, the centre of
    the model's space, before noise is added, so that the network is not shown a false
    observation, and its error is left out.

    Args:
      x0: clean expression in the model's space.
      mask: 1 where a gene was measured, else 0.
      key: key of this step.
      noise: law of the noise levels.
      sigma_data: standard deviation of x0 (less its centre) over the training data.
      mean_fraction: share of mean-token rows, 0..1.
      weigh: (sigma, sigma_data) -> weight in network space; None is EDM's, 1 at every level. A
        mean token weighs 1 always.
      centre: taken off x0 in the rows that are not mean tokens, which then diffuse the residual
        (CorrDiff, Mardani et al. 2023, arXiv 2309.15214).

    Raises:
      ConfigError: mean_fraction is outside 0..1, or sigma_data is not positive.
    """
    key_sigma, key_noise = jax.random.split(key)
    x0 = at_least_float32(x0)
    sigma = noise.sample(key_sigma, x0.shape[:1]).astype(x0.dtype)
    is_mean_token = jnp.arange(x0.shape[0]) < mean_token_rows(x0.shape[0], mean_fraction)
    if centre is not None:
        x0 = jnp.where(is_mean_token[:, None], x0, x0 - centre)
    measured = mask > 0
    x0 = jnp.where(measured, x0, 0.0)

    c = Preconditioning(sigma_data=sigma_data).scalings(jnp.where(is_mean_token, jnp.inf, sigma))
    unit_noise = jax.random.normal(key_noise, x0.shape, x0.dtype)
    # A mean token is noised like the others, but c_in = 0 shows the network x = 0.
    x = x0 + sigma[:, None] * unit_noise

    # (x0 - c_skip x) / c_out, multiplied out: at low noise the difference would cancel to
    # rounding error and be divided by a small c_out. At sigma = inf this is x0 / sigma_data.
    target = (c.c_out / sigma_data**2)[:, None] * x0 - (sigma_data * c.c_in)[:, None] * unit_noise
    weight = jnp.ones_like(sigma)
    if weigh is not None:
        weight = jnp.where(is_mean_token, weight, weigh(sigma, sigma_data))
    return Noised(
        x=c.c_in[:, None] * x, level=c.c_noise, target=target, weight=weight, measured=measured
    )


def row_losses(output: Float[Array, "b g"], noised: Noised) -> Float[Array, " b"]:
    """Returns each row's weighted mean squared error over its measured genes; 0 without any."""
    squared = jnp.square(output.astype(noised.target.dtype) - noised.target)
    return noised.weight * mean_over_measured(squared, noised.measured)


def variance_losses(
    output: Float[Array, "b g"], log_variance: Float[Array, "b g"], noised: Noised
) -> Float[Array, " b"]:
    """Returns each row's Gaussian negative log likelihood per measured gene, less its constant.

    (r² exp(-s) + s) / 2 with r = output - target, held constant, and s the log variance of the
    target given what the network saw: it trains s and leaves the output to `row_losses`, so that
    a wrong variance cannot spoil the mean. At a mean token s is the log of the variance of x0
    given the condition, in units of sigma_data².
    """
    s = log_variance.astype(noised.target.dtype)
    squared = jax.lax.stop_gradient(jnp.square(output.astype(s.dtype) - noised.target))
    return mean_over_measured(0.5 * (squared * jnp.exp(-s) + s), noised.measured)


def denoising_loss(
    network: RawNetwork,
    x0: Float[Array, "b g"],
    mask: Float[Array, "b g"],
    key: Key[Array, ""],
    *,
    noise: noise_levels.NoiseDistribution,
    sigma_data: float,
    mean_fraction: float,
    weigh: Weigh | None = None,
) -> Float[Array, " b"]:
    """Returns each row's mean squared error over its measured genes, in network space.

    F(c_in x, c_noise) is compared with (x0 - c_skip x) / c_out at weight 1 (EDM's). That equals
    `noise.loss_weight` times the squared error of D in the model's space (EDM eq. 8), without its
    large and small factors. See `add_noise` for the arguments, mean tokens and missing genes.

    Raises:
      ConfigError: mean_fraction is outside 0..1, or sigma_data is not positive.
    """
    noised = add_noise(
        x0, mask, key, noise=noise, sigma_data=sigma_data, mean_fraction=mean_fraction, weigh=weigh
    )
    return row_losses(network(noised.x, noised.level), noised)


def mean_over_measured(
    values: Float[Array, "b g"], measured: Float[Array, "b g"]
) -> Float[Array, " b"]:
    """Returns each row's mean over its measured genes; 0 where there are none."""
    count = jnp.sum(measured, axis=1, dtype=values.dtype)
    return jnp.sum(jnp.where(measured, values, 0.0), axis=1) / jnp.maximum(count, 1.0)
