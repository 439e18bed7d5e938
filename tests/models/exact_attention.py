"""Attention by other means than the code under test, for its tests."""

from __future__ import annotations

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

# One rounding of a value near 1 to each dtype's bits, times the few that lie on the way.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2**-6}


def interpreted(form):
    """A context in which a form's kernels for TPU run anywhere.

    Splash is interpreted by other means than ours: TPU's own interpreter calls back to the host,
    which `jax.checkpoint` does not allow.
    """
    if form != "splash":
        return pltpu.force_tpu_interpret_mode()
    make = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    return mock.patch.object(splash_attention_kernel, "make_splash_mha", make)


def projection(key, b, g, heads, width, dtype):
    return jax.random.normal(key, (b, g, 3 * heads * width)).astype(dtype)


def exact(qkv, heads):
    """Attention in float64, a sample and a head at a time."""
    qkv = np.asarray(qkv, np.float64)
    b, g, m = qkv.shape
    width = m // 3 // heads
    out = np.empty((b, g, m // 3))
    for row in range(b):
        for head in range(heads):
            columns = slice(head * width, (head + 1) * width)
            q, k, v = (part[:, columns] for part in np.split(qkv[row], 3, axis=-1))
            scores = q @ k.T / np.sqrt(width)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[row, :, columns] = weights / weights.sum(-1, keepdims=True) @ v
    return out


def exact_gradient(qkv, cotangent, heads):
    """The gradient of sum(cotangent exact(qkv)), by JAX's own attention in float32."""
    b, g, m = qkv.shape

    def weighted(qkv):
        q, k, v = jnp.moveaxis(qkv.reshape(b, g, 3, heads, m // 3 // heads), 2, 0)
        out = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        return (out.reshape(b, g, m // 3) * cotangent.astype(jnp.float32)).sum()

    return jax.grad(weighted)(qkv.astype(jnp.float32))


def equations(jaxpr):
    """All equations of a jaxpr and of those inside it, kernels left whole."""
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive.name != "pallas_call":
            for inner in jax.tree.leaves(
                list(eqn.params.values()), is_leaf=lambda value: hasattr(value, "eqns")
            ):
                if hasattr(inner, "eqns"):
                    yield from equations(inner)
