"""Samplers: step rules down a ladder of noise levels, one scan for all of them.

A deterministic rule solves the probability-flow ODE (EDM, Karras et al. 2022, arXiv 2206.00364,
eq. 1 and 3, with sigma(t) = t and s(t) = 1)::

    dx / dsigma = (x - D(x; sigma)) / sigma

For a D held fixed, x moves on a straight line towards D, reaching it at sigma = 0. Each rule is
such a move, `rules.towards`, and differs in what it moves towards and how far.

Randomness belongs to a row: its key depends on seed, slide and barcode (`spot_keys`) and on the
draw, never on the batch, so a spot's samples are the same in whatever company it is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from stemjax import errors
from stemjax.diffusion import denoiser, rules

# A row's key has two uses, kept apart by what is folded in.
_INITIAL, _STEPS = 0, 1

type Run = Callable[
    [Float[Array, "b g"], Key[Array, " b"], Float[Array, " b"] | None], Float[Array, "b g"]
]
"""(unit noise, key a row, sign a row or None) -> samples of x0."""


def sample(
    denoise: denoiser.Denoiser,
    rungs: Float[Array, " s"],
    x: Float[Array, "b g"],
    keys: Key[Array, " b"],
    *,
    rule: rules.StepRule,
    signs: Float[Array, " b"] | None = None,
) -> Float[Array, "b g"]:
    """Returns x carried down the ladder: at the last rung 0, a sample of x0 for each row.

    One `lax.scan` over the rungs, in the precision of x, at least float32. Row i of the result
    depends on row i of ``x`` and ``keys`` alone (if that holds for ``denoise``).

    Args:
      denoise: denoiser with the condition of these b rows bound.
      rungs: noise levels, strictly falling (`ladders.karras`); may be a traced array.
      x: state at ``rungs[0]``: already noisy, that is rungs[0] times unit noise for a start
        from nothing (`draw` does that), not the unit noise itself.
      keys: one key a row, folded with the number of the step; used by stochastic rules only.
      rule: the step rule.
      signs: +1 or -1 for each row, multiplies the row's fresh noise; rows that share a key and
        differ in sign are antithetic at every step. None is +1.
    """
    x = denoiser.at_least_float32(x)
    rungs = jnp.asarray(rungs, x.dtype)

    def denoise_in_state_dtype(
        x: Float[Array, "b g"], sigma: Float[Array, " b"], /
    ) -> Float[Array, "b g"]:
        return denoise(x, sigma).astype(x.dtype)

    def body(
        state: tuple[Float[Array, "b g"], rules.Carry], rung: tuple[Array, Array, Array]
    ) -> tuple[tuple[Float[Array, "b g"], rules.Carry], None]:
        x, carry = state
        step, sigma, sigma_next = rung
        noise = None
        if rule.stochastic:
            noise = step_noise(keys, step, x.shape[1], x.dtype, signs)
        return rule.step(denoise_in_state_dtype, carry, x, sigma, sigma_next, noise), None

    steps = jnp.arange(rungs.shape[0] - 1, dtype=jnp.uint32)
    (x, _), _ = jax.lax.scan(body, (x, rule.init(x)), (steps, rungs[:-1], rungs[1:]))
    return x


def draw(
    denoise: denoiser.Denoiser,
    rungs: Float[Array, " s"],
    keys: Key[Array, " l"],
    *,
    rule: rules.StepRule,
    genes: int,
    n_draws: int,
    antithetic: bool,
) -> Float[Array, "n l g"]:
    """Returns n_draws samples of x0 for each of l spots, in the model's expression space, float32.

    All draws go through the network as one batch b = l n in spot-major order, row = spot n + draw:
    ``denoise`` must be bound to each spot's condition n_draws times in a row, as
    ``jnp.repeat(cond, n_draws, axis=0)`` does. Spots that lie on several devices then stay where
    they are; in draw-major order every device would do all the work.

    Antithetic draws 2i and 2i + 1 start from +z and -z and, under a stochastic rule, get fresh
    noise of opposite sign at every step; their mean has far less error than that of two
    independent draws, and cancels exactly all that is odd in the noise.

    Args:
      denoise: denoiser of l n_draws rows, spot-major.
      rungs: noise levels, strictly falling, the last one 0.
      keys: one key a spot (`spot_keys`).
      rule: the step rule.
      genes: number of genes.
      n_draws: number of samples a spot.
      antithetic: whether to draw in pairs.

    Raises:
      ConfigError: n_draws < 1, or antithetic with an odd n_draws.
    """
    rungs = jnp.asarray(rungs, jnp.float32)

    def run(
        unit: Float[Array, "b g"], keys: Key[Array, " b"], signs: Float[Array, " b"] | None
    ) -> Float[Array, "b g"]:
        return sample(denoise, rungs, rungs[0] * unit, keys, rule=rule, signs=signs)

    return draw_with(run, keys, genes=genes, n_draws=n_draws, antithetic=antithetic)


def draw_with(
    run: Run, keys: Key[Array, " l"], *, genes: int, n_draws: int, antithetic: bool
) -> Float[Array, "n l g"]:
    """Returns what ``run`` makes of n_draws rows of unit noise for each of l spots.

    The rows, keys and signs of `draw`, for samplers that are not a rule on a ladder
    (`ddpm.ancestral`).

    Args:
      run: (unit noise [b g], key a row, sign a row or None) -> samples [b g].
      keys: one key a spot.
      genes: number of genes.
      n_draws: number of samples a spot.
      antithetic: whether to draw in pairs.

    Raises:
      ConfigError: n_draws < 1, or antithetic with an odd n_draws.
    """
    unit = initial_noise(keys, n_draws=n_draws, genes=genes, antithetic=antithetic)
    rows = n_draws * keys.shape[0]
    step_keys = _fold(_draw_keys(keys, n_draws, antithetic), jnp.uint32(_STEPS)).reshape(rows)
    # An antithetic pair shares its key, so only the sign tells its members apart.
    sign_of_draw = np.where(np.arange(n_draws) % 2, -1.0, 1.0).astype(np.float32)
    signs = None
    if antithetic:
        signs = jnp.broadcast_to(sign_of_draw[None], (keys.shape[0], n_draws)).reshape(rows)
    x0 = run(unit.swapaxes(0, 1).reshape(rows, genes), step_keys, signs)
    return x0.reshape(keys.shape[0], n_draws, genes).swapaxes(0, 1)


def step_noise(
    keys: Key[Array, " b"],
    step: UInt32[Array, ""],
    genes: int,
    dtype: jnp.dtype,
    signs: Float[Array, " b"] | None = None,
) -> Float[Array, "b g"]:
    """Returns a row of unit normal noise for each key at one step, times its sign.

    Args:
      keys: one key a row.
      step: number of the step, folded into each key.
      genes: number of genes.
      dtype: dtype of the noise.
      signs: +1 or -1 for each row; None is +1.
    """
    unit = _unit_normal(_fold(keys, step), genes, dtype)
    return unit if signs is None else signs.astype(dtype)[:, None] * unit


def initial_noise(
    keys: Key[Array, " l"], *, n_draws: int, genes: int, antithetic: bool
) -> Float[Array, "n l g"]:
    """Returns unit normal noise for each draw and spot, float32.

    Draw i of a spot does not depend on n_draws, nor on the other spots. With antithetic, draw
    2i + 1 is minus draw 2i, and the even draws are the same as without.

    Raises:
      ConfigError: n_draws < 1, or antithetic with an odd n_draws.
    """
    if n_draws < 1:
        raise errors.ConfigError("n_draws", expected="at least 1", found=str(n_draws))
    if antithetic and n_draws % 2:
        raise errors.ConfigError(
            "n_draws with antithetic pairs",
            expected="an even number",
            found=str(n_draws),
            fix="ask for an even number of draws, or turn antithetic off",
        )
    keys_ln = _draw_keys(keys, n_draws, antithetic)[:, :: 2 if antithetic else 1]
    flat = _fold(keys_ln, jnp.uint32(_INITIAL)).reshape(-1)
    unit = _unit_normal(flat, genes, jnp.dtype(jnp.float32)).reshape(*keys_ln.shape, genes)
    if antithetic:
        unit = jnp.stack([unit, -unit], axis=2).reshape(keys.shape[0], n_draws, genes)
    return unit.swapaxes(0, 1)


def spot_keys(seed: int, slide: str, barcodes: Sequence[str]) -> Key[Array, " l"]:
    """Returns one random key a spot, a function of (seed, slide, barcode) alone.

    The 8-byte BLAKE2b digest of slide, NUL, barcode (UTF-8), read as two little-endian 32-bit
    words, is folded word by word into ``jax.random.key(seed)``. Order and number of the barcodes
    play no part.
    """
    words = np.empty((len(barcodes), 2), np.uint32)
    for row, barcode in enumerate(barcodes):
        digest = hashlib.blake2b(f"{slide}\0{barcode}".encode(), digest_size=8).digest()
        words[row] = np.frombuffer(digest, "<u4")
    return _fold_words(jax.random.key(seed), jnp.asarray(words))


@jax.jit
def _fold_words(key: Key[Array, ""], words: UInt32[Array, "l 2"]) -> Key[Array, " l"]:
    """Returns the key with both words folded in, for each row."""
    return jax.vmap(lambda pair: jax.random.fold_in(jax.random.fold_in(key, pair[0]), pair[1]))(
        words
    )


def _draw_keys(keys: Key[Array, " l"], n_draws: int, antithetic: bool) -> Key[Array, "l n"]:
    """Returns a key for each spot and draw; the two draws of an antithetic pair share theirs."""
    draws = np.arange(n_draws, dtype=np.uint32)
    if antithetic:
        draws -= draws % 2
    fold_each = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(fold_each, in_axes=(0, None))(keys, jnp.asarray(draws))


def _fold(keys: Key[Array, "*rows"], data: UInt32[Array, ""]) -> Key[Array, "*rows"]:
    """Returns every key of an array with the same number folded in."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys.reshape(-1), data).reshape(
        keys.shape
    )


def _unit_normal(keys: Key[Array, " b"], genes: int, dtype: jnp.dtype) -> Float[Array, "b g"]:
    """Returns a row of unit normal noise from each key."""
    return jax.vmap(lambda key: jax.random.normal(key, (genes,), dtype))(keys)
