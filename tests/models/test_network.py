"""The seam to Flax: plain dicts, clean paths, init under jit and on shapes, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stemjax import errors
from stemjax.models import layers, network


class Tower(nnx.Module):
    """Three stacked Linears after one, to be compared with numpy."""

    def __init__(self, *, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.blocks = layers.stack_blocks(lambda rngs: nnx.Linear(4, 4, rngs=rngs), 3, rngs=rngs)

    def __call__(self, x):
        step = lambda h, block: (jnp.tanh(block(h)), None)  # noqa: E731
        return jax.lax.scan(step, self.first(x), self.blocks)[0]


@pytest.fixture
def net():
    return network.make_network(lambda rngs: Tower(rngs=rngs))


def test_params_are_a_plain_dict_with_clean_paths(net, key):
    params = net.init(key)
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert paths == {
        "blocks/bias": (3, 4),
        "blocks/kernel": (3, 4, 4),
        "first/bias": (4,),
        "first/kernel": (3, 4),
    }
    assert type(params) is type(params["blocks"]) is dict
    assert all(type(leaf) is type(jnp.ones(1)) for leaf in jax.tree.leaves(params))


def test_apply_uses_the_params_it_is_given(net, key):
    params = jax.tree.map(lambda leaf: leaf + 0.3, net.init(key))
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    h = x @ params["first"]["kernel"] + np.asarray(params["first"]["bias"])[None]
    for i in range(3):
        h = np.tanh(
            h @ params["blocks"]["kernel"][i] + np.asarray(params["blocks"]["bias"])[None, i]
        )
    np.testing.assert_allclose(net.apply(params, x), h, rtol=1e-5)  # float32, 4 products of 4


def test_init_is_one_function_of_the_key_under_any_transformation(net, key):
    eager, compiled = net.init(key), jax.jit(net.init)(key)
    jax.tree.map(np.testing.assert_array_equal, eager, compiled)
    abstract = jax.eval_shape(net.init, key)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), abstract) == jax.tree.map(
        lambda a: (a.shape, a.dtype), eager
    )
    other = net.init(jax.random.fold_in(key, 1))
    assert np.abs(other["blocks"]["kernel"] - eager["blocks"]["kernel"]).min() > 0


@pytest.mark.parametrize(
    ("edit", "path", "expected", "found"),
    [
        (lambda p: {**p, "extra": jnp.ones(2)}, "extra", "no such", "(2,)"),
        (lambda p: {"first": p["first"]}, "blocks/bias", "(3, 4)", "no such"),
        (
            lambda p: {**p, "first": {**p["first"], "kernel": jnp.ones((5, 4))}},
            "first/kernel",
            "(3, 4)",
            "(5, 4)",
        ),
    ],
)
def test_params_of_another_network_are_refused_by_name(net, key, edit, path, expected, found):
    with pytest.raises(errors.CheckpointMismatchError) as caught:
        net.apply(edit(net.init(key)), np.ones((1, 3), np.float32))
    assert f"parameter {path} " in caught.value.what
    assert expected in caught.value.expected
    assert found in caught.value.found


def test_a_module_with_other_state_is_refused():
    # Dropout carries random counters: state that apply(params, ...) would silently freeze.
    with pytest.raises(ValueError, match="[Ee]xhaustive"):
        network.make_network(lambda rngs: nnx.Dropout(0.5, rngs=rngs))
