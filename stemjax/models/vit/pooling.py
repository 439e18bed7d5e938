"""One vector of a transformer's tokens: class token, mean of the patches, both, or attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stemjax.models import layers
from stemjax.models.vit.spec import AttentionPool, ViTSpec


def pick(x_bnd: Float[Array, "b n d"], spec: ViTSpec) -> Float[Array, "b c"]:
    """Returns the vector that a pooling without weights makes of the tokens.

    Registers are in neither: the class token is the first, the patches come after all of them.
    """
    cls, mean = x_bnd[:, 0], x_bnd[:, spec.prefix :].mean(axis=1)
    return {"cls": cls, "mean": mean, "cls+mean": jnp.concatenate([cls, mean], axis=-1)}[
        spec.pooling
    ]


class Norm(nnx.Module):
    """LayerNorm with learned scale and shift; statistics and result are float32."""

    def __init__(self, width: int, *, eps: float) -> None:
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Zero mean and unit variance over the last axis, then scale and shift."""
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        lead = (None,) * (x.ndim - 1)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        return normed * self.scale[...][lead] + self.bias[...][lead]


class Pool(nnx.Module):
    """A learned query attends to all tokens; LayerNorm, and a projection if there is one."""

    def __init__(
        self, spec: AttentionPool, context: int, *, rngs: nnx.Rngs, dtype: DTypeLike
    ) -> None:
        def linear(inside: int, *, use_bias: bool = True) -> nnx.Linear:
            return nnx.Linear(
                inside, spec.width, use_bias=use_bias, dtype=dtype, kernel_init=layers.XAVIER,
                rngs=rngs,
            )  # fmt: skip

        self.heads = spec.heads
        self.query = nnx.Param(jax.random.normal(rngs.params(), (spec.width,)))
        self.norm_q = Norm(spec.width, eps=spec.eps)
        self.norm_k = Norm(context, eps=spec.eps)
        self.q, self.k, self.v = linear(spec.width), linear(context), linear(context)
        self.out = linear(spec.width)
        self.norm = Norm(spec.width, eps=spec.eps)
        self.proj = linear(spec.width, use_bias=False) if spec.projected else None

    def __call__(self, x_bnd: Float[Array, "b n d"]) -> Float[Array, "b c"]:
        """The vector of each row, float32."""
        context = self.norm_k(x_bnd)
        q_hk = self.q(self.norm_q(self.query[...])).reshape(self.heads, -1)
        k_bnhk, v_bnhk = (
            layer(context).reshape(*context.shape[:2], self.heads, -1) for layer in (self.k, self.v)
        )
        scores = jnp.einsum("hk,bnhk->bhn", q_hk, k_bnhk, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(q_hk.shape[-1] ** -0.5 * scores, axis=-1).astype(v_bnhk.dtype)
        attended = jnp.einsum("bhn,bnhk->bhk", weights, v_bnhk)
        found = self.norm(self.out(attended.reshape(attended.shape[0], -1)))
        return found if self.proj is None else self.proj(found).astype(jnp.float32)
