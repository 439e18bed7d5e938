"""The shared parts: sinusoid, LayerNorm, attention, gated blocks, the scan over layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stemjax.models import layers


def test_sinusoid_by_hand():
    # Width 4: frequencies 1 and 10000^(-1/2) = 0.01; cosines first.
    level = np.array([0.0, 1.0, 250.0], np.float32)
    expected = np.stack(
        [np.cos(level), np.cos(0.01 * level), np.sin(level), np.sin(0.01 * level)], axis=1
    )
    # The phase 250 in float32 has a spacing of 1.5e-5.
    np.testing.assert_allclose(layers.sinusoid(level, 4), expected, atol=3e-5)


def test_sinusoid_stays_float32_for_half_precision_levels():
    features = layers.sinusoid(jnp.array([512.0], jnp.bfloat16), 256)  # exact in bfloat16
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features[0, 0], np.cos(512.0), atol=1e-5)


def test_layer_norm_statistics_are_float32_for_bfloat16_input():
    rng = np.random.default_rng(0)
    x = jnp.asarray(100.0 + rng.normal(size=(3, 5, 64)), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(
        exact.var(-1, keepdims=True) + 1e-6
    )
    # A mean near 100 taken in bfloat16 would be off by up to 0.25 standard deviations; in float32
    # by 100 * 2^-24 a rounding.
    np.testing.assert_allclose(layers.layer_norm(x), expected, atol=1e-4)


def test_fresh_block_is_the_identity(key):
    block = layers.Block(16, 4, 4, rngs=nnx.Rngs(key), dtype=jnp.bfloat16)
    x = jax.random.normal(key, (2, 5, 16))
    np.testing.assert_array_equal(block(x, block.modulation(jnp.ones((2, 16)))), x)


def test_residual_stream_is_not_rounded_to_bfloat16(key):
    # A small gated term on a large stream: added in bfloat16 it would vanish (1000 + 0.3 = 1000).
    block = layers.Block(16, 4, 4, rngs=nnx.Rngs(key), dtype=jnp.bfloat16)
    block.modulation.linear.bias[...] = jnp.repeat(jnp.array([0, 0, 1e-2, 0, 0, 0.0]), 16)
    x = 1000.0 + jax.random.normal(key, (2, 5, 16))
    out = block(x, block.modulation(jnp.zeros((2, 16))))
    normed = layers.layer_norm(x)
    expected = 1e-2 * block.attn(normed)
    assert np.abs(expected).max() > 1e-3
    # 1000 in float32 has a spacing of 6e-5; the gate of 1e-2 is rounded to 8 bits.
    np.testing.assert_allclose(out - x, expected, atol=1e-4, rtol=1e-2)


def kept_bytes(function, *arguments) -> int:
    """What the backward pass is handed over, weights and other arguments included."""
    leaves = jax.tree.leaves(
        jax.eval_shape(lambda *given: jax.vjp(function, *given)[1], *arguments)
    )
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def test_an_mlp_keeps_its_input_and_its_hidden_values_before_the_activation(key):
    rows, width, hidden = 64, 16, 4 * 16
    mlp = layers.Mlp((width, hidden, width), layers.gelu, rngs=nnx.Rngs(key), dtype=jnp.bfloat16)
    graph, state = nnx.split(mlp)
    x = jnp.ones((rows, width), jnp.bfloat16)
    weights = 2 * (4 * 2 * width * hidden + 4 * hidden + 4 * width)  # as they are, and rounded
    kept = kept_bytes(lambda state, x: nnx.merge(graph, state)(x), state, x)
    # GELU's own values, in float32, would be 4 bytes x hidden for each of a handful of them.
    assert kept <= weights + 2 * rows * (width + hidden)


def test_a_modulated_norm_keeps_its_arguments(key):
    x, vector = jnp.ones((8, 50, 16)), jnp.ones((8, 1, 16))
    assert kept_bytes(layers.modulated, x, vector, vector) <= 4 * (x.size + 2 * vector.size)
    expected = layers.layer_norm(x + 1.0) * 3.0 + 0.5
    found = layers.modulated(x + 1.0, 0.5 * vector, 2.0 * vector)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_scan_over_layers_is_the_loop_over_layers(key):
    def build(rngs):
        return layers.Block(16, 4, 2, rngs=rngs, dtype=jnp.float32)

    graph, state = nnx.split(layers.stack_blocks(build, 3, rngs=nnx.Rngs(key)))
    state = jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(key, leaf.shape), state)
    x, c = jax.random.normal(key, (2, 5, 16)), jax.random.normal(key, (2, 16))

    def scanned(state):
        return layers.run_blocks(nnx.merge(graph, state), x, c, remat=False)

    def looped(state):
        h = x
        for i in range(3):
            block = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], state))
            h = block(h, block.modulation(c))
        return h

    np.testing.assert_allclose(
        jax.jit(scanned)(state), jax.jit(looped)(state), rtol=1e-5, atol=1e-5
    )
    gradients = [
        jax.tree.leaves(jax.jit(jax.grad(lambda s, f=f: (f(s) ** 2).mean()))(state))
        for f in (scanned, looped)
    ]
    for one, other in zip(*gradients):
        scale = np.abs(other).max()  # float32 against the largest gradient of the array
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-5)
