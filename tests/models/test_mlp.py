"""The baseline network: the written definition, its start, gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from stemjax import errors
from stemjax.models import mlp

CONFIG = mlp.MlpConfig(genes=5, condition=3, outputs=2, width=8, depth=2)


def trained(config, key):
    """Parameters as after training: none of them zero."""
    params = mlp.make_mlp(config).init(key)
    return jax.tree.map(lambda p: p + 0.3 * jax.random.normal(key, p.shape), params)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_forward_is_the_written_definition(key, depth):
    config = mlp.MlpConfig(genes=5, condition=3, outputs=2, width=8, depth=depth)
    params = trained(config, key)
    cond = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    h = cond.astype(np.float64)
    for i in range(depth):
        layer = params["hidden"][i]
        h = h @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])[None]
        h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    out = h @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])[None]
    found = mlp.make_mlp(config).apply(params, cond)
    assert found.shape == (4, 2, 5)
    # Outputs first, then genes; float32 through four products of 8.
    np.testing.assert_allclose(found, out.reshape(4, 2, 5), rtol=1e-4, atol=1e-5)
    if depth == 1:  # the tanh form stands for the error function's
        exact = cond @ params["hidden"][0]["kernel"] + params["hidden"][0]["bias"][None]
        exact = exact / 2 * (1 + special.erf(exact / np.sqrt(2)))
        exact = exact @ params["head"]["kernel"] + params["head"]["bias"][None]
        np.testing.assert_allclose(found, exact.reshape(4, 2, 5), atol=0.01)


def test_fresh_parameters_answer_0_and_still_learn(key):
    network = mlp.make_mlp(CONFIG)
    params, cond = network.init(key), jnp.ones((4, 3))
    np.testing.assert_array_equal(network.apply(params, cond), 0.0)
    moved = jax.grad(lambda p: jnp.sum((network.apply(p, cond) - 1.0) ** 2))(params)
    assert np.abs(moved["head"]["kernel"]).max() > 0


def test_gradients_reach_every_parameter_once_the_head_moved(key):
    network, params = mlp.make_mlp(CONFIG), trained(CONFIG, key)
    cond = jax.random.normal(key, (16, 3))
    grads = jax.grad(lambda p: jnp.sum(network.apply(p, cond) ** 2))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(leaf).min() > 0, jax.tree_util.keystr(path)


def test_parameters_of_another_panel_are_refused(key):
    other = mlp.make_mlp(mlp.MlpConfig(genes=6, condition=3, outputs=2, width=8)).init(key)
    with pytest.raises(errors.CheckpointMismatchError, match="head"):
        mlp.make_mlp(CONFIG).apply(other, jnp.ones((1, 3)))
