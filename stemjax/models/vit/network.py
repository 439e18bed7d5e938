"""A vision transformer as functions over a dict of arrays: pixels -> one vector an image.

Names of arrays carry their dimensions: b images, n tokens, d width.

Precision. LayerNorm, softmax, the residual stream and the pooled vector are float32; the inputs of
matrix products are rounded to the compute dtype, their sums are float32 (`stemjax.models.layers`).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stemjax.models import attention, layers, network, placing
from stemjax.models.vit import pooling, rotary
from stemjax.models.vit.spec import ViTSpec


def make_vit(
    spec: ViTSpec, *, dtype: DTypeLike = jnp.float32, form: str = "auto"
) -> network.Network:
    """The network as ``apply(params, pixels [b s s 3]) -> [b c]``, float32; s is ``spec.image``.

    Args:
      spec: what it is.
      dtype: of the matrix products' inputs.
      form: of attention, one of `attention.IMPLEMENTATIONS`; an exported program names its form.
    """
    return network.make_network(lambda rngs: ViT(spec, rngs=rngs, dtype=dtype, form=form))


class Attention(nnx.Module):
    """Self-attention of all tokens. The fused projection's columns are laid out (3, h, k)."""

    def __init__(self, spec: ViTSpec, *, rngs: nnx.Rngs, dtype: DTypeLike, form: str) -> None:
        self.spec, self.heads, self.form = spec, spec.heads, form
        linear = functools.partial(nnx.Linear, dtype=dtype, kernel_init=layers.XAVIER, rngs=rngs)
        self.qkv = linear(spec.width, 3 * spec.width, use_bias=spec.qkv_bias)
        self.proj = linear(spec.width, spec.width)

    def __call__(self, x_bnd: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """The attended tokens, in the layer's dtype."""
        qkv = self.qkv(x_bnd)
        if self.spec.rotary is not None:
            qkv = rotary.turn(qkv, self.spec)
        attended = attention.attend(qkv, heads=self.heads, implementation=self.form)
        return self.proj(attended)


class Mlp(nnx.Module):
    """Linear, activation in float32, Linear; with SwiGLU the first half gates the second."""

    def __init__(self, spec: ViTSpec, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        self.gated = spec.activation == "swiglu"
        inner = (1 + self.gated) * spec.hidden
        linear = functools.partial(nnx.Linear, dtype=dtype, kernel_init=layers.XAVIER, rngs=rngs)
        self.fc1, self.fc2 = linear(spec.width, inner), linear(spec.hidden, spec.width)

    def __call__(self, x_bnd: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """The output, in the layer's dtype."""
        hidden = self.fc1(x_bnd).astype(jnp.float32)
        if self.gated:
            gate, values = jnp.split(hidden, 2, axis=-1)
            return self.fc2(jax.nn.silu(gate) * values)
        return self.fc2(jax.nn.gelu(hidden, approximate=False))


class Block(nnx.Module):
    """x + s1 attention(norm1(x)), then x + s2 mlp(norm2(x)); s1, s2 are LayerScale's factors."""

    def __init__(self, spec: ViTSpec, *, rngs: nnx.Rngs, dtype: DTypeLike, form: str) -> None:
        self.norm1 = pooling.Norm(spec.width, eps=spec.eps)
        self.attn = Attention(spec, rngs=rngs, dtype=dtype, form=form)
        self.norm2 = pooling.Norm(spec.width, eps=spec.eps)
        self.mlp = Mlp(spec, rngs=rngs, dtype=dtype)
        self.scale1 = nnx.Param(jnp.ones((spec.width,))) if spec.layer_scale else None
        self.scale2 = nnx.Param(jnp.ones((spec.width,))) if spec.layer_scale else None

    def __call__(self, x_bnd: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """The residual stream after the block, float32."""
        x_bnd = x_bnd + _scaled(self.attn(self.norm1(x_bnd)), self.scale1)
        return x_bnd + _scaled(self.mlp(self.norm2(x_bnd)), self.scale2)


class ViT(nnx.Module):
    """Patches, class token and registers through all blocks, a last LayerNorm, and the pooling."""

    def __init__(self, spec: ViTSpec, *, rngs: nnx.Rngs, dtype: DTypeLike, form: str) -> None:
        normal = functools.partial(nnx.initializers.normal(0.02), dtype=jnp.float32)
        self.spec = spec
        self.patch = nnx.Linear(
            3 * spec.patch**2, spec.width, dtype=dtype, kernel_init=layers.XAVIER, rngs=rngs
        )
        self.cls = nnx.Param(normal(rngs.params(), (spec.width,)))
        self.registers = (
            nnx.Param(normal(rngs.params(), (spec.registers, spec.width)))
            if spec.registers
            else None
        )
        self.position = (
            nnx.Param(normal(rngs.params(), (spec.positioned + spec.grid**2, spec.width)))
            if spec.rotary is None
            else None
        )
        self.blocks = layers.stack_blocks(
            lambda keys: Block(spec, rngs=keys, dtype=dtype, form=form), spec.depth, rngs=rngs
        )
        self.norm = pooling.Norm(spec.width, eps=spec.eps)
        self.pool = (
            None
            if spec.pool is None
            else pooling.Pool(spec.pool, spec.width, rngs=rngs, dtype=dtype)
        )

    def __call__(self, pixels: Float[Array, "b s s 3"]) -> Float[Array, "b c"]:
        """The vector of each image, float32.

        Args:
          pixels: RGB, mean taken off and scaled as the encoder asks for.
        """
        x_bnd, _ = jax.lax.scan(_run_block, self._tokens(pixels), self.blocks)
        x_bnd = self.norm(x_bnd)
        return pooling.pick(x_bnd, self.spec) if self.pool is None else self.pool(x_bnd)

    def _tokens(self, pixels: Float[Array, "b s s 3"]) -> Float[Array, "b n d"]:
        """The tokens with their position embeddings, float32."""
        spec, b = self.spec, pixels.shape[0]
        squares = pixels.reshape(b, spec.grid, spec.patch, spec.grid, spec.patch, 3)
        flat = squares.transpose(0, 1, 3, 2, 4, 5).reshape(b, spec.grid**2, -1)
        patches = self.patch(flat).astype(jnp.float32)
        first = [self.cls[...][None]]
        if self.registers is not None:
            first.append(self.registers[...])
        prefix = jnp.concatenate(first).astype(jnp.float32)
        if self.position is not None:
            position = self.position[...].astype(jnp.float32)
            prefix = prefix.at[: spec.positioned].add(position[: spec.positioned])
            patches = patches + position[spec.positioned :][None]
        rows = jnp.broadcast_to(prefix[None], (b, *prefix.shape))
        return jnp.concatenate([rows, patches], axis=1)


def _run_block(x_bnd: jax.Array, block: Block) -> tuple[jax.Array, None]:
    return block(placing.spread_tokens(x_bnd)), None


def _scaled(x_bnd: Float[Array, "b n d"], scale: nnx.Param | None) -> Float[Array, "b n d"]:
    x_bnd = x_bnd.astype(jnp.float32)
    return x_bnd if scale is None else x_bnd * scale[...][None, None]
