"""How likely a profile is under a denoiser: exact log density along the probability-flow ODE.

The ODE that deterministic sampling follows is a smooth one-to-one map between x at sigma_max, where
the law is N(0, sigma_max² I), and x at sigma_min. The logarithm of the density at the one end is
that at the other plus the integral of the flow's divergence (Song et al. 2021, arXiv 2011.13456,
eq. 39; FFJORD, Grathwohl et al. 2018, arXiv 1810.01367, eq. 2-4)::

    dx / dln sigma = x - D(x; sigma)        divergence = g - tr dD/dx
    ln p(x at sigma_min) = ln N(x at sigma_max; 0, sigma_max² I) + integral of the divergence

The ladder stops at sigma_min > 0 and has to. Expression is discrete, log2(count + 1), and a law of
points has no density: as sigma_min falls, ln p at a point grows without bound, as -ln sigma_min for
each gene. What is computed is the density of x0 + sigma_min n. Compare two models at the same
sigma_min, in the same space, over the same genes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Float, Int, Key

from stemjax import errors
from stemjax.diffusion import denoiser

type Divergence = Literal["exact", "hutchinson"]
"""Every diagonal entry of dD/dx, or an unbiased estimate of their sum by random probes."""

CHUNK = 8
"""Directions that are pushed through the network at once; each holds a batch of b rows."""

# Runge and Kutta's rule: how far along the former stage's slope a stage stands, and its weight.
_PARTS, _WEIGHTS = (0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def log_likelihood(
    denoise: denoiser.Denoiser,
    rungs: Float[Array, " s"],
    x: Float[Array, "b g"],
    *,
    divergence: Divergence,
    keys: Key[Array, " b"] | None = None,
    probes: int = 1,
) -> Float[Array, " b"]:
    """Returns the natural log density of each row under the law that the flow samples, in nats.

    A sum over all g genes, in the model's space (per unit of that space, to the power g). Row i
    depends on row i of ``x`` and ``keys`` alone, if that holds for ``denoise``. In float32 it
    resolves about 1e-7 of its largest term, g ln(sigma_max / sigma_min).

    Each step is one of Runge and Kutta's classical rule of order 4 in ln sigma, on
    y = x / sqrt(1 + sigma²) and on the divergence at once. y is what a network of unit data is
    shown; its flow vanishes at both ends of the ladder, so that the long growth of x at high noise
    is not integrated but known, and data of unit normal law need no step at all. At equal numbers
    of evaluations (64; 128; 256, two a step for Heun and four for Runge-Kutta, Karras' ladder 80 to
    .002, 50 Gaussian genes of variance .05 to 4) the error in nats is 4e-3; 2e-4; 1e-5 against
    8e-2; 2e-2; 4e-3 for Heun's rule on y, 6e-2; 5e-3; 3e-4 for Runge-Kutta on x itself and
    1.6; .4; .1 for Heun's on x.

    Args:
      denoise: denoiser with the condition of these b rows bound; differentiated in forward mode.
      rungs: noise levels, strictly falling; a 0 at the end, as ladders have it, is passed over
        (see the module), and x then belongs to the rung before it. May be a traced array, which is
        not checked.
      x: profiles in the model's space, taken as the state at the smallest level above 0. Nothing
        is added to them: for the mean log density of blurred profiles add sigma_min n first.
      divergence: ``exact`` costs g forward derivatives, `CHUNK` at a time; ``hutchinson`` costs
        ``probes`` of them and is unbiased over keys (Rademacher probes, fixed along the trajectory,
        Hutchinson 1990; the logarithm is unbiased, the density is not).
      keys: one key a row, for ``hutchinson``.
      probes: number of probes, for ``hutchinson``.

    Raises:
      ConfigError: an unknown divergence, no keys or probes for ``hutchinson``, or a ladder without
        two falling levels above 0.
    """
    _check_divergence(divergence, probes)
    _check_ladder(rungs)
    if divergence == "hutchinson" and (keys is None or keys.shape != x.shape[:1]):
        raise errors.ConfigError(
            "keys of Hutchinson's estimate",
            expected=f"one key for each of {x.shape[0]} rows",
            found="none" if keys is None else f"shape {keys.shape}",
        )
    x = denoiser.at_least_float32(x)
    genes = x.shape[1]
    rungs = jnp.asarray(rungs, x.dtype)
    lowest, highest = jnp.where(rungs[-1] > 0, rungs[-1], rungs[-2]), rungs[0]
    signs = None
    if divergence == "hutchinson" and keys is not None:
        signs = _rademacher(keys, probes, genes, x.dtype)

    def slope(y: Float[Array, "b g"], sigma: Float[Array, ""]) -> tuple[Array, Array]:
        """Returns dy / dln sigma [b g] and the divergence [b] of the flow of y."""
        scale = _scale(sigma)
        keep = 1 / scale**2
        x = scale * y
        denoised, trace = _denoised_and_trace(denoise, x, sigma, signs)
        return (keep * x - denoised) / scale, genes * keep - trace

    def step(state: tuple[Array, Array], low: Array, high: Array) -> tuple[Array, Array]:
        y, total = state
        h, middle = jnp.log(high / low), jnp.sqrt(low * high)

        # A scan over the stages, so that the network is compiled once and not once a stage.
        def stage(
            sums: tuple[Array, Array, Array], table: tuple[Array, Array, Array]
        ) -> tuple[tuple, None]:
            before, slopes, divergences = sums
            part, weight, sigma = table
            found, divergence = slope(y + part * h * before, sigma)
            return (found, slopes + weight * found, divergences + weight * divergence), None

        table = (
            jnp.asarray(_PARTS, y.dtype),
            jnp.asarray(_WEIGHTS, y.dtype),
            jnp.stack([low, middle, middle, high]),
        )
        none = jnp.zeros_like(y), jnp.zeros_like(y), jnp.zeros_like(total)
        (_, slopes, divergences), _ = jax.lax.scan(stage, none, table)
        return y + h * slopes, total + h * divergences

    def body(state: tuple[Array, Array], ends: tuple[Array, Array]) -> tuple[tuple, None]:
        low, high = ends
        # A branch, so that the rung at 0 costs nothing even where the ladder is traced.
        return jax.lax.cond(low > 0, lambda s: step(s, low, high), lambda s: s, state), None

    start = x / _scale(lowest), jnp.zeros_like(x[:, 0])
    rising = rungs[::-1]
    (y, total), _ = jax.lax.scan(body, start, (rising[:-1], rising[1:]))
    unit = y * (_scale(highest) / highest)
    prior = -0.5 * jnp.sum(jnp.square(unit), axis=1) - genes * (
        jnp.log(highest) + 0.5 * math.log(2 * math.pi)
    )
    # The divergence of y's own scaling, integrated in closed form.
    return prior + total + genes * jnp.log(_scale(highest) / _scale(lowest))


def evaluations(
    rungs: Float[Array, " s"], divergence: Divergence, genes: int, probes: int = 1
) -> int:
    """Returns the network evaluations that a row costs, a forward derivative counted as two.

    4 stages a step, each of ``genes`` (exact) or ``probes`` (hutchinson) derivatives; the value
    of D comes with them. An upper bound: of `CHUNK` derivatives taken at once, the compiler
    shares the part that does not depend on the direction.

    Args:
      rungs: the ladder, not traced; a 0 at its end does not count.
      divergence: how the divergence is computed.
      genes: size of the panel.
      probes: number of probes, for ``hutchinson``.

    Raises:
      ConfigError: as `log_likelihood`.
    """
    _check_divergence(divergence, probes)
    _check_ladder(rungs)
    steps = int(np.count_nonzero(np.asarray(rungs) > 0)) - 1
    return len(_PARTS) * steps * 2 * (genes if divergence == "exact" else probes)


def derivatives(
    denoise: denoiser.Denoiser,
    x: Float[Array, "b g"],
    sigma: Float[Array, " b"],
    *,
    count: int,
    direction: Callable[[Int[Array, ""]], Float[Array, "b g"]],
    keep: Callable[[Int[Array, ""], Float[Array, "b g"]], Float[Array, ...]],
) -> tuple[Float[Array, "b g"], Float[Array, "n ..."]]:
    """Returns D [b g] and what is kept of its derivative along each of ``count`` directions.

    Forward mode, `CHUNK` directions at once and the chunks one after the other, so that memory
    does not grow with ``count`` beyond what is kept. Rows are independent of each other: one
    direction that is the same unit vector in every row gives a column of every row's Jacobian.

    Args:
      denoise: the denoiser.
      x: state, at least float32.
      sigma: noise level of each row.
      count: number of directions, at least 1.
      direction: number of a direction -> the direction, in x's dtype.
      keep: (number of a direction, derivative along it) -> what to keep, any shape.
    """
    parts = -(-count // CHUNK)
    size = -(-count // parts)
    # The last part is filled up with the last direction, whose repeats are cut off below.
    numbers = np.minimum(np.arange(parts * size, dtype=np.int32), count - 1).reshape(parts, size)

    def along(number: Int[Array, ""]) -> tuple[Array, Array]:
        denoised, slope = jax.jvp(
            lambda x: denoise(x, sigma).astype(x.dtype), (x,), (direction(number),)
        )
        return denoised, keep(number, slope)

    def part(_: Array, numbers: Int[Array, " n"]) -> tuple[Array, Array]:
        denoised, kept = jax.vmap(along)(numbers)
        return denoised[0], kept

    denoised, kept = jax.lax.scan(part, jnp.zeros_like(x), jnp.asarray(numbers))
    return denoised, kept.reshape(-1, *kept.shape[2:])[:count]


def _denoised_and_trace(
    denoise: denoiser.Denoiser,
    x: Float[Array, "b g"],
    sigma: Float[Array, ""],
    signs: Float[Array, "p b g"] | None,
) -> tuple[Float[Array, "b g"], Float[Array, " b"]]:
    """Returns D and tr dD/dx of each row: exact, or by the given probes."""
    sigmas = jnp.broadcast_to(sigma, x.shape[:1])
    if signs is not None:
        denoised, products = derivatives(
            denoise,
            x,
            sigmas,
            count=signs.shape[0],
            direction=lambda probe: signs[probe],
            keep=lambda probe, slope: jnp.sum(signs[probe] * slope, axis=1),
        )
        return denoised, jnp.mean(products, axis=0)
    denoised, diagonal = derivatives(
        denoise,
        x,
        sigmas,
        count=x.shape[1],
        direction=lambda gene: jnp.zeros_like(x).at[:, gene].set(1),
        keep=lambda gene, slope: slope[:, gene],
    )
    return denoised, jnp.sum(diagonal, axis=0)


def _rademacher(
    keys: Key[Array, " b"], probes: int, genes: int, dtype: jnp.dtype
) -> Float[Array, "p b g"]:
    """Returns independent signs, +1 or -1; those of row i are a function of its key alone."""

    def of_row(key: Key[Array, ""], probe: Int[Array, ""]) -> Float[Array, " g"]:
        return jax.random.rademacher(jax.random.fold_in(key, probe), (genes,), dtype)

    numbers = jnp.arange(probes, dtype=jnp.uint32)
    return jax.vmap(jax.vmap(of_row, in_axes=(0, None)), in_axes=(None, 0))(keys, numbers)


def _scale(sigma: Float[Array, ""]) -> Float[Array, ""]:
    """Returns sqrt(1 + sigma²): the standard deviation of x where x0 has 1."""
    return jnp.hypot(jnp.ones_like(sigma), sigma)


def _check_divergence(divergence: str, probes: int) -> None:
    if divergence not in ("exact", "hutchinson"):
        raise errors.ConfigError(
            "divergence", expected="exact or hutchinson", found=repr(divergence)
        )
    if divergence == "hutchinson" and probes < 1:
        raise errors.ConfigError(
            "probes of Hutchinson's estimate", expected="at least 1", found=str(probes)
        )


def _check_ladder(rungs: Float[Array, " s"]) -> None:
    """Raises ConfigError unless at least two levels above 0 fall strictly; a tracer passes."""
    if isinstance(rungs, core.Tracer):
        return
    levels = np.asarray(rungs, np.float64)
    if levels.ndim == 1 and levels.size and levels[-1] == 0:
        levels = levels[:-1]
    if (
        levels.ndim != 1
        or len(levels) < 2
        or not (np.isfinite(levels).all() and (levels > 0).all() and (np.diff(levels) < 0).all())
    ):
        raise errors.ConfigError(
            "ladder of the likelihood",
            expected="at least two finite levels above 0, strictly falling, then perhaps a 0",
            found=str(np.asarray(rungs).tolist()),
        )
