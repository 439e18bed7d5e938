"""The exact denoiser of the drawn law: what a network trained without end would be.

`synthetic.Law` gives a spot's counts as independent Poisson variables once the hidden mode m and
the depth e are known. So the mean of x0 given x = x0 + sigma n is a finite sum, over modes, depths
and counts, and a sampler run on it shows its own error and no network's::

    p(x | m, e) = prod_g sum_k P(count_g = k | m, e) N(x_g; v_k, sigma²)     v_k = log2(k + 1)
    D(x; sigma) = sum_(m, e) p(m, e | x) [ sum_k P(k | x_g, m, e) v_k ]_g

The depth, continuous in the law, stands on evenly spaced nodes, closer than a spot's genes tell
depths apart.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from stemjax.data import synthetic, transforms

DEPTHS, REACH = 41, 4.0
"""Nodes of the depth and how many standard deviations they reach."""

_TAIL = 1e-12

type Denoise = Callable[[Float[Array, "b g"], Float[Array, " b"]], Float[Array, "b g"]]


def exact_denoiser(
    law: synthetic.Law,
    z: Float[np.ndarray, "l k"],
    *,
    space: transforms.Standardisation,
    repeat: int = 1,
) -> Denoise:
    """Returns D(x; sigma) of the law's spots in the standardised space of log2(count + 1).

    D(0; inf) is the conditional mean. float32; for up to about 50 genes it agrees with finer sums
    in float64 to 1e-4 of a gene's standard deviation. More genes tell depths apart more finely
    than `DEPTHS` nodes do: with 200 the error reaches 4e-3 at sigma = .1.

    Args:
      law: the law.
      z: state of each spot, in [0, 1].
      space: standardisation of each gene's log2(count + 1).
      repeat: rows a spot, one after the other (spot-major), as samplers lay them out.

    Raises:
      ConfigError: states that are not in [0, 1].
    """
    table, value, prior = _tables(law, z)
    spots, genes = table.shape[:2]
    # Values of the counts in the space of each gene, [g k].
    levels = (value[None] - space.mean[:, None]) / space.std[:, None]
    table_d, levels_d = jnp.asarray(table, jnp.float32), jnp.asarray(levels, jnp.float32)
    prior_d = jnp.asarray(np.log(prior), jnp.float32)

    def denoise(x: Float[Array, "b g"], sigma: Float[Array, " b"], /) -> Float[Array, "b g"]:
        x = x.astype(jnp.float32).reshape(spots, repeat, genes)
        rate = 1 / jnp.square(sigma.astype(jnp.float32)).reshape(spots, repeat, 1, 1)
        exponent = -0.5 * jnp.square(x[..., None] - levels_d[None, None]) * rate  # [l r g k]
        top = exponent.max(axis=-1, keepdims=True)
        near = jnp.exp(exponent - top)
        # [l r g q] over the nodes q of mode and depth.
        mass = jnp.einsum("lrgk,lgqk->lrgq", near, table_d)
        first = jnp.einsum("lrgk,lgqk->lrgq", near * levels_d[None, None], table_d)
        # A node this unlikely for one gene has no weight; the square of its mass, which a
        # derivative divides by, must not underflow.
        mass = jnp.maximum(mass, 1e-18)
        log_weight = prior_d[None, None] + jnp.sum(jnp.log(mass), axis=2)  # [l r q]
        weight = jax.nn.softmax(log_weight, axis=-1)
        mean = jnp.einsum("lrq,lrgq->lrg", weight, first / mass)
        return mean.reshape(spots * repeat, genes)

    return denoise


def _tables(law: synthetic.Law, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns P(count | node) [l g q k], log2(count + 1) [k], and the nodes' weights [q]."""
    own = law.coefficients
    log_rate = synthetic.log_rates(law, z)
    node = np.linspace(-REACH, REACH, DEPTHS) if law.depth_std else np.zeros(1)
    weight = np.exp(-0.5 * node**2)
    weight = np.tile(weight / weight.sum() / 2, 2)
    shift = np.concatenate(
        [(mode - 0.5) * own.switch[:, None] + law.depth_std * node for mode in (0, 1)], axis=1
    )
    rate = np.exp(log_rate[:, :, None] + shift[None])  # [l g q]
    top = int(special.pdtrik(1 - _TAIL, rate.max())) + 1
    count = np.arange(top + 1)
    mass = np.exp(
        special.xlogy(count, rate[..., None]) - rate[..., None] - special.gammaln(count + 1)
    )
    kept = 1 - own.dropout[:, None, None]
    mass = kept * mass
    mass[..., 0] += 1 - kept[..., 0]
    return mass, np.log2(count + 1), weight
