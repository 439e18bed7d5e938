"""Attention of more tokens than scores fit in memory for: 10,000 genes have 400 MB a head.

    chunked  a sample and a few hundred queries at a time against all keys; any platform, and the
             only form beyond `attention.WRITTEN_TOKENS` that `jax.jvp` can pass
    splash   JAX's Pallas kernel for TPU: softmax over blocks of keys, scores never reach memory

Both take queries that may be fewer than the keys, since a device that holds some of the tokens
attends from those to all (`stemjax.models.split_attention`). docs/long_panels.md has what they
cost.

Names of arrays carry their dimensions: b batch, h heads, q queries, g keys (genes), k head width.
"""

from __future__ import annotations

import functools
import math
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CHUNK_BYTES = 32 * 2**20
"""Most bytes of one chunk's float32 scores, all heads together: some fit beside each other in a
TPU's VMEM."""

CHUNK_QUERIES = 256
"""Most queries of a chunk: on a CPU longer ones are slower for leaving its caches."""

SPLASH_BLOCK = 1024
"""Most queries and keys of a block of the TPU kernel: 2,048 do not fit the VMEM of a v5p."""

SPLASH_KEPT = "splash_attention"
"""The name, for policies of `jax.checkpoint`, of what the TPU kernel's gradient needs of its
forward pass: output and log-normaliser."""

_LANES = 128


def chunk_length(queries: int, keys: int, heads: int) -> int:
    """Returns how many queries `chunked` takes at a time: few enough for both limits, and even.

    All chunks have that length; what the last lacks is filled up, less than 8 queries a chunk.
    """
    most = min(CHUNK_QUERIES, CHUNK_BYTES // (4 * heads * keys))
    most = max(8, most // 8 * 8)
    return 8 * math.ceil(queries / math.ceil(queries / most) / 8)


def chunked(
    q_bhqk: Float[Array, "b h q k"],
    k_bhgk: Float[Array, "b h g k"],
    v_bhgk: Float[Array, "b h g k"],
) -> Float[Array, "b h q k"]:
    """Returns softmax(q k^T / sqrt(k)) v, every row as `attention.written_out` has it.

    A row's softmax is whole, so nothing is approximate and nothing is rescaled; the same products
    are only summed in another order. Memory is a chunk's scores, whatever the batch: samples go one
    after the other. The backward pass has each chunk's scores again, and keeps none.
    """

    def sample(parts: tuple[Array, Array, Array]) -> Array:
        return _chunked_sample(*parts)

    return jax.lax.map(sample, (q_bhqk, k_bhgk, v_bhgk))


def _chunked_sample(
    q_hqk: Float[Array, "h q k"], k_hgk: Float[Array, "h g k"], v_hgk: Float[Array, "h g k"]
) -> Float[Array, "h q k"]:
    h, queries, width = q_hqk.shape
    length = chunk_length(queries, k_hgk.shape[1], h)
    count = math.ceil(queries / length)
    # Queries of zeros weigh all keys alike; their rows are cut off, and no slope enters there.
    filled = jnp.pad(q_hqk, ((0, 0), (0, count * length - queries), (0, 0)))
    chunks = jnp.swapaxes(filled.reshape(h, count, length, width), 0, 1)
    # The loop's gradient adds up the slopes of keys and values chunk by chunk. As float32 arrays
    # outside they are added in float32; inside they are what they were, bit for bit.
    k32, v32 = k_hgk.astype(jnp.float32), v_hgk.astype(jnp.float32)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # no common subexpressions across a scan
    def chunk(q: Array) -> Array:
        k, v = k32.astype(k_hgk.dtype), v32.astype(v_hgk.dtype)
        scores = jnp.einsum("hqk,hgk->hqg", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(width**-0.5 * scores, axis=-1).astype(v.dtype)
        return jnp.einsum("hqg,hgk->hqk", weights, v)

    out = jnp.swapaxes(jax.lax.map(chunk, chunks), 0, 1)
    return out.reshape(h, count * length, width)[:, :queries]


def splash(
    q_bhqk: Float[Array, "b h q k"],
    k_bhgk: Float[Array, "b h g k"],
    v_bhgk: Float[Array, "b h g k"],
) -> Float[Array, "b h q k"]:
    """Returns softmax(q k^T / sqrt(k)) v by JAX's splash attention, in the input's dtype.

    Tokens are padded to whole blocks; padding keys have another segment than all queries, which
    the kernel takes for a mask. Queries are scaled before the product, in the input's dtype: exact
    where the head width is a power of 4, else one rounding more than in the other forms. Forward
    differentiation (`jax.jvp`) cannot pass.
    """
    # Pallas for TPU takes most of a second to import, which nobody else should wait for.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    h, queries, width = q_bhqk.shape[1:]
    keys = k_bhgk.shape[2]
    (q_block, q_length), (k_block, k_length) = block_lengths(queries), block_lengths(keys)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=q_block, block_q_dq=q_block, block_q_dkv=q_block,
        block_kv=k_block, block_kv_dq=k_block, block_kv_dkv=k_block,
    )  # fmt: skip
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask(
            [splash_attention_mask.FullMask((q_length, k_length)) for _ in range(h)]
        ),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=SPLASH_KEPT,
    )
    segments = None
    if keys < k_length:
        segments = splash_attention_kernel.SegmentIds(
            q=jnp.zeros(q_length, jnp.int32), kv=(jnp.arange(k_length) >= keys).astype(jnp.int32)
        )

    def filled(array: Array, length: int) -> Array:
        return jnp.pad(array, ((0, 0), (0, 0), (0, length - array.shape[2]), (0, 0)))

    q_bhqk = q_bhqk * jnp.asarray(width**-0.5, q_bhqk.dtype)

    def sample(q: Array, k: Array, v: Array) -> Array:
        return cast(Array, kernel(q, k, v, segments))

    out = jax.vmap(sample)(
        filled(q_bhqk, q_length), filled(k_bhgk, k_length), filled(v_bhgk, k_length)
    )
    return out[:, :, :queries]


def block_lengths(tokens: int) -> tuple[int, int]:
    """Returns the length of a block, a multiple of 128, and that of the blocks that hold all."""
    count = math.ceil(tokens / SPLASH_BLOCK)
    block = _LANES * math.ceil(tokens / count / _LANES)
    return block, count * block
