"""Attention on TPU: one Pallas kernel forward and one backward, a sample at a time.

All tokens of a sample and their scores fit in VMEM, so there is no tiling of the softmax, no
statistics to keep and no padding of the token axis: the kernel reads the fused projection [g 3hk]
as the matrix product left it and writes [g hk]. The flash kernels that come with JAX want
[b h g k] with the tokens padded to 128s and move nine times as many bytes at 200 tokens
(docs/tpu.md).

`jax.jvp` cannot pass: the derivative is written by hand, and in reverse only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from stemjax.models import split_attention

_VMEM_FLOOR = 16 * 2**20
"""Bytes that a TPU kernel may use if it asks for nothing."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def attend(qkv_bgm: Float[Array, "b g m"], heads: int) -> Float[Array, "b g d"]:
    """Returns softmax(q k^T / sqrt(k)) v of every head, side by side, in the input's dtype.

    Args:
      qkv_bgm: queries, keys and values, columns (3, heads, head width).
      heads: number of heads.
    """
    b, g, m = qkv_bgm.shape
    products = 4 * b * g * g * (m // 3)
    return _per_sample(_forward_kernel, heads, products, m // 3)(qkv_bgm)


def _forward(
    qkv_bgm: Float[Array, "b g m"], heads: int
) -> tuple[Float[Array, "b g d"], Float[Array, "b g m"]]:
    return attend(qkv_bgm, heads), qkv_bgm


def _backward(
    heads: int, qkv_bgm: Float[Array, "b g m"], cotangent_bgd: Float[Array, "b g d"]
) -> tuple[Float[Array, "b g m"]]:
    b, g, m = qkv_bgm.shape
    products = 10 * b * g * g * (m // 3)
    return (_per_sample(_backward_kernel, heads, products, m)(qkv_bgm, cotangent_bgd),)


attend.defvjp(_forward, _backward)


def _per_sample(
    kernel: Callable[..., None], heads: int, products: int, width: int
) -> Callable[..., jax.Array]:
    """Returns a kernel over arrays [b g *] as a function: one sample at a time, [b g width] out.

    Args:
      kernel: works on references of one sample.
      heads: number of heads.
      products: floating-point operations of the matrix products for the whole batch.
      width: of the output.
    """

    def run(*arrays: jax.Array) -> jax.Array:
        b, g, _ = arrays[0].shape
        out = jax.ShapeDtypeStruct((b, g, width), arrays[0].dtype)
        moved = sum(array.size * array.dtype.itemsize for array in (*arrays, out))

        def block(array: Any) -> pl.BlockSpec:
            # The whole token axis: a block that spans an axis needs no padding to the tile.
            return pl.BlockSpec((1, g, array.shape[2]), lambda sample: (sample, 0, 0))

        return pl.pallas_call(
            functools.partial(kernel, heads=heads),
            grid=(b,),
            in_specs=[block(array) for array in arrays],
            out_specs=block(out),
            out_shape=out,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",),
                # About ten arrays of one head's scores are alive at once.
                vmem_limit_bytes=max(_VMEM_FLOOR, 10 * 4 * g * g),
            ),
            # The compiler cannot look inside: its cost model goes by this.
            cost_estimate=pl.CostEstimate(
                flops=products, transcendentals=b * heads * g * g, bytes_accessed=moved
            ),
            name=kernel.__name__.strip("_"),
        )(*arrays)

    return split_attention.over_rows(run)


_ROWS_BY_ROWS = (((1,), (1,)), ((), ()))
_ROWS_BY_COLUMNS = (((1,), (0,)), ((), ()))
_COLUMNS_BY_COLUMNS = (((0,), (0,)), ((), ()))
_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)


def _heads_of(qkv: Any, heads: int) -> Iterator[tuple[int, Array, Array, Array]]:
    """Yields the number, queries, keys and values [g k] of each head of one sample."""
    width = qkv.shape[2] // 3 // heads
    for head in range(heads):
        q, k, v = (qkv[0, :, pl.ds((part * heads + head) * width, width)] for part in range(3))
        yield head, q, k, v


def _weights(q_gk: Float[Array, "g k"], k_gk: Float[Array, "g k"]) -> Float[Array, "g g"]:
    """The attention weights of one head, float32."""
    scores = _dot(q_gk, k_gk, _ROWS_BY_ROWS) * q_gk.shape[-1] ** -0.5
    raised = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def _forward_kernel(qkv: Any, out: Any, *, heads: int) -> None:
    for head, q, k, v in _heads_of(qkv, heads):
        attended = _dot(_weights(q, k).astype(v.dtype), v, _ROWS_BY_COLUMNS)
        out[0, :, pl.ds(head * v.shape[-1], v.shape[-1])] = attended.astype(out.dtype)


def _backward_kernel(qkv: Any, cotangent: Any, grad: Any, *, heads: int) -> None:
    """The gradient of one sample's q, k and v; the weights are computed again."""
    for head, q, k, v in _heads_of(qkv, heads):
        width = v.shape[-1]
        out = cotangent[0, :, pl.ds(head * width, width)]
        weights = _weights(q, k)
        slope = _dot(out, v, _ROWS_BY_ROWS)
        # The softmax's derivative, w (s - sum(w s)), times the scale of the scores.
        slope = weights * (slope - (slope * weights).sum(axis=-1, keepdims=True)) * width**-0.5
        slope, weights = slope.astype(q.dtype), weights.astype(out.dtype)
        grads = (
            _dot(slope, k, _ROWS_BY_COLUMNS),
            _dot(slope, q, _COLUMNS_BY_COLUMNS),
            _dot(weights, out, _COLUMNS_BY_COLUMNS),
        )
        for part, found in enumerate(grads):
            columns = pl.ds((part * heads + head) * width, width)
            grad[0, :, columns] = found.astype(grad.dtype)
