"""Small HisToSGE networks: their shapes, inputs and parameters, and what no gradient reaches."""

from __future__ import annotations

import jax
import numpy as np

from stemjax.models import histosge

# A head width that is not width / heads, so that the two are told apart.
PUBLISHED = histosge.HisToSGEConfig(genes=5, condition=12, width=12, depth=1, heads=4, head_width=2)
CORRECTED = histosge.HisToSGEConfig(
    genes=5, condition=6, width=12, depth=2, heads=4, head_width=2, components=3
)
NAMES = ("cond", "x", "seen", "shown", "present", "xy")


def trained(net, seed=7):
    """Parameters as after training: every array, the zero ones too, has random values."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        # 1 / sqrt(inputs) for a kernel keeps each layer's output near 1.
        size = leaf.shape[0] ** -0.5 if name == "kernel" else 0.5
        if path[0].key == "kriging":
            size = 0.03  # of a logarithm, and 20 times as much
        values = size * rng.normal(size=leaf.shape) + (name == "scale")
        return values.astype(np.float32)

    shapes = jax.eval_shape(net.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def rows(batch=3, tokens=7):
    """Inputs of the published network, the last two tokens of the last window absent."""
    rng = np.random.default_rng(3)
    cond = rng.normal(size=(batch, tokens, PUBLISHED.condition)).astype(np.float32)
    place = rng.integers(0, 40, size=(batch, tokens, 2)).astype(np.float32)
    present = np.ones((batch, tokens), np.float32)
    present[-1, -2:] = 0
    return cond, place, present


def windows(batch=3, tokens=7, seed=5):
    """Inputs of the corrected network by name: positions on a lattice of 8 um.

    In the last window the last two tokens are absent, in the first one a neighbour is not shown.
    """
    rng = np.random.default_rng(seed)
    present = np.ones((batch, tokens), np.float32)
    present[-1, -2:] = 0
    shown = present.copy()
    shown[:, 0] = 0
    shown[0, 2] = 0
    x = rng.normal(size=(batch, tokens, CORRECTED.genes)).astype(np.float32)
    return {
        "cond": rng.normal(size=(batch, tokens, CORRECTED.condition)).astype(np.float32),
        "x": x,
        "seen": x + 0.5 * rng.normal(size=x.shape).astype(np.float32),
        "shown": shown,
        "present": present,
        "xy": (8 * rng.integers(0, 60, size=(batch, tokens, 2))).astype(np.float32),
    }


def still(net, given, params, weight=1.0):
    """Rows of parameters that no gradient reaches, by name of the parameter."""
    shape = jax.eval_shape(net.apply, params, *given).shape
    target = np.random.default_rng(9).normal(size=shape).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda p: (weight * (net.apply(p, *given) - target) ** 2).mean()))(
        params
    )
    still = {}
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        dead = np.abs(leaf).reshape(leaf.shape[0], -1).max(axis=1) < 1e-7 * scale
        if dead.any():
            still[jax.tree_util.keystr(path, simple=True, separator="/")] = np.flatnonzero(dead)
    return still
