"""The parts that the networks share: sinusoid, MLP, attention, adaLN-Zero block.

Names of arrays carry their dimensions: b batch, g tokens (genes), d width, h heads, k head width.

Precision. Parameters are float32. A layer with ``dtype=bfloat16`` rounds its kernel and its input
to bfloat16 for the matrix product, whose sum every accelerator keeps in float32. LayerNorm,
modulation, softmax and the residual stream stay float32: each block adds a small gated term to the
stream, and in bfloat16 (8 bits) the stream itself would be rounded twice a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stemjax.models import attention, placing

LAYER_NORM_EPS = 1e-6

XAVIER = nnx.initializers.xavier_uniform()
ZEROS = nnx.initializers.zeros_init()


def sinusoid(level: Float[Array, " b"], width: int) -> Float[Array, "b w"]:
    """Features of a noise level: [cos(level f_i), sin(level f_i)], f_i = 10000^(-2i/width).

    Always float32: at level 1000 a bfloat16 phase would be off by several radians.

    Args:
      level: the noise level, unscaled (Stem's integer time step, 0..999).
      width: number of features, even. Half of them are cosines, then come the sines.
    """
    half = width // 2
    frequencies = jnp.asarray(np.exp(-np.log(10000.0) * np.arange(half) / half), jnp.float32)
    phase = level.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


def layer_norm(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Zero mean and unit variance over the last axis, with no learned scale or shift; float32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + LAYER_NORM_EPS)


# Elementwise work between matrix products is cheap to do again in the backward pass. Its results
# would be most of what a training step keeps: twice the memory in all, and slower for writing it.
# The barrier against common subexpressions is not needed: blocks run in a scan, and elsewhere
# little is at stake.
_computed_again = functools.partial(jax.checkpoint, prevent_cse=False)


@_computed_again
def modulated(
    x_bgd: Float[Array, "b g d"], shift_b1d: Float[Array, "b 1 d"], scale_b1d: Float[Array, "b 1 d"]
) -> Float[Array, "b g d"]:
    """Adaptive LayerNorm, norm(x) (1 + scale) + shift (DiT, arXiv 2212.09748, sec. 3.2); float32.

    For its gradient only the arguments are kept.
    """
    return layer_norm(x_bgd) * (1.0 + scale_b1d) + shift_b1d


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """GELU in its tanh form, as the published networks have it."""
    return jax.nn.gelu(x, approximate=True)


def share(vector_l1d: Float[Array, "l 1 d"], x_bgd: Float[Array, "b g d"]) -> Float[Array, "b 1 d"]:
    """The vector of each row: b / l rows in a row share one.

    It is the small vectors that are repeated: a view of the stream in which they broadcast would
    have another layout on a TPU, and copying it cost half as much again as the whole evaluation.
    """
    return jnp.repeat(vector_l1d, x_bgd.shape[0] // vector_l1d.shape[0], axis=0)


class Mlp(nnx.Module):
    """Linear, activation, Linear over the last axis."""

    def __init__(
        self,
        widths: tuple[int, int, int],
        activation: Callable[[jax.Array], jax.Array],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        kernel_init: nnx.Initializer = XAVIER,
    ) -> None:
        inside, hidden, out = widths
        self.activation = activation
        self.fc1 = nnx.Linear(inside, hidden, dtype=dtype, kernel_init=kernel_init, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, out, dtype=dtype, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        """The output, in the layer's dtype; its gradient keeps the input and what fc1 returns."""

        @_computed_again
        def rest(fc2: nnx.Linear, hidden: jax.Array) -> jax.Array:
            # The activation in float32: rounding between its operations costs more than it saves.
            return fc2(self.activation(hidden.astype(jnp.float32)))

        return rest(self.fc2, self.fc1(x))


class Modulation(nnx.Module):
    """``parts`` vectors a sample from the condition: Linear(d, parts d) of SiLU(c), zero at first.

    Zero modulation closes every gate: a network is the identity on its residual stream at the start
    of training (adaLN-Zero, arXiv 2212.09748, sec. 3.2).
    """

    def __init__(self, width: int, parts: int, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        self.parts = parts
        self.linear = nnx.Linear(width, parts * width, dtype=dtype, kernel_init=ZEROS, rngs=rngs)

    def __call__(self, c_bd: Float[Array, "b d"]) -> list[Float[Array, "b 1 d"]]:
        """The vectors, float32, ready to broadcast over tokens."""
        vectors = self.linear(jax.nn.silu(c_bd)).astype(jnp.float32)
        return jnp.split(vectors[:, None, :], self.parts, axis=-1)


class Attention(nnx.Module):
    """Self-attention of all tokens. The fused projection's columns are laid out (3, h, k)."""

    def __init__(
        self, width: int, heads: int, *, rngs: nnx.Rngs, dtype: DTypeLike, form: str = "auto"
    ) -> None:
        self.heads, self.form = heads, form
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, kernel_init=XAVIER, rngs=rngs)
        self.proj = nnx.Linear(width, width, dtype=dtype, kernel_init=XAVIER, rngs=rngs)

    def __call__(self, x_bgd: Float[Array, "b g d"]) -> Float[Array, "b g d"]:
        """The attended tokens, in the layer's dtype."""
        attended = attention.attend(self.qkv(x_bgd), heads=self.heads, implementation=self.form)
        return self.proj(attended)


class Block(nnx.Module):
    """A transformer block with adaLN-Zero conditioning (DiT, arXiv 2212.09748, fig. 3)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        form: str = "auto",
    ) -> None:
        self.modulation = Modulation(width, 6, rngs=rngs, dtype=dtype)
        self.attn = Attention(width, heads, rngs=rngs, dtype=dtype, form=form)
        self.mlp = Mlp((width, mlp_ratio * width, width), gelu, rngs=rngs, dtype=dtype)

    def __call__(
        self, x_bgd: Float[Array, "b g d"], vectors: Sequence[Float[Array, "b 1 d"]]
    ) -> Float[Array, "b g d"]:
        """The residual stream after the block, float32.

        Args:
          x_bgd: the residual stream.
          vectors: the block's six vectors for each row (`Modulation`).
        """
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = vectors
        x_bgd = x_bgd + gate_attn * self.attn(modulated(x_bgd, shift_attn, scale_attn))
        return x_bgd + gate_mlp * self.mlp(modulated(x_bgd, shift_mlp, scale_mlp))


def stack_blocks[B: nnx.Module](build: Callable[[nnx.Rngs], B], depth: int, *, rngs: nnx.Rngs) -> B:
    """``depth`` blocks as one module whose arrays have a leading layer axis; a key for each."""
    return jax.vmap(lambda key: build(nnx.Rngs(key)))(jax.random.split(rngs.params(), depth))


def run_blocks(
    blocks: Block | VectorBlock,
    x_bgd: Float[Array, "b g d"],
    c_ld: Float[Array, "l d"],
    *,
    remat: bool,
) -> Float[Array, "b g d"]:
    """The residual stream after all blocks: one `lax.scan` over the layer axis.

    A scan compiles one block whatever the depth. Indexing the stacked arrays in a Python loop would
    be worse than slow to compile: each slice's gradient becomes an addition of the full size.

    The condition is the same for all blocks, so what it makes of every block's modulation is one
    matrix product before the scan.

    Args:
      blocks: what `stack_blocks` returned, each with a ``modulation``.
      x_bgd: the residual stream.
      c_ld: the condition, the same for all blocks; b / l rows in a row share one.
      remat: keep only each block's input for the backward pass and compute the rest again: about a
        third more arithmetic for a fraction of the memory.
    """
    vectors = jax.vmap(lambda modulation: modulation(c_ld))(blocks.modulation)

    def body(
        x_bgd: jax.Array, layer: tuple[Block | VectorBlock, list[Array]]
    ) -> tuple[jax.Array, None]:
        block, vectors = layer
        x_bgd, block = placing.spread_tokens(x_bgd), placing.gathered(block)
        return block(x_bgd, [share(vector, x_bgd) for vector in vectors]), None

    # The barrier against common subexpressions is not needed inside a scan.
    step = jax.checkpoint(body, prevent_cse=False) if remat else body
    x_bgd, _ = jax.lax.scan(step, x_bgd, (blocks, vectors))
    return x_bgd


class VectorBlock(nnx.Module):
    """A residual MLP with adaLN-Zero conditioning: `Block` without its attention."""

    def __init__(self, width: int, mlp_ratio: int, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        self.modulation = Modulation(width, 3, rngs=rngs, dtype=dtype)
        self.mlp = Mlp((width, mlp_ratio * width, width), gelu, rngs=rngs, dtype=dtype)

    def __call__(
        self, x_bgd: Float[Array, "b g d"], vectors: Sequence[Float[Array, "b 1 d"]]
    ) -> Float[Array, "b g d"]:
        """The residual stream after the block, float32; as `Block`, with three vectors."""
        shift, scale, gate = vectors
        return x_bgd + gate * self.mlp(modulated(x_bgd, shift, scale))
