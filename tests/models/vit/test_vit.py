"""Vision transformers: shapes, invariances, work by formula, and grids of positions.

What they compute is held against timm and transformers in tests/encoders/test_encoder_agreement.py.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax import errors, mesh
from stemjax.models.vit import grids, network
from stemjax.models.vit.spec import AttentionPool, ViTSpec

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "encoders" / "golden" / "outputs.npz"
PLAIN = ViTSpec(image=12, patch=4, width=16, depth=2, heads=2, hidden=24)
SPECS = {
    "plain": PLAIN,
    "swiglu and registers": dataclasses.replace(
        PLAIN, activation="swiglu", registers=3, positioned=4, pooling="cls+mean"
    ),
    "no factors, no biases": dataclasses.replace(PLAIN, layer_scale=False, qkv_bias=False),
    "attention pool": dataclasses.replace(
        PLAIN, pooling="attention", pool=AttentionPool(width=8, heads=4, projected=True)
    ),
}


def made(spec, seed=0):
    """Parameters of which none is idle, and images."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = network.make_vit(spec).init(keys[0])
    leaves, tree = jax.tree.flatten(params)
    noise = jax.random.split(keys[1], len(leaves))
    leaves = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, noise)]
    images = jax.random.normal(keys[2], (3, spec.image, spec.image, 3))
    return jax.tree.unflatten(tree, leaves), images


@pytest.mark.parametrize("name", SPECS)
def test_every_parameter_moves_the_features(name):
    spec = SPECS[name]
    params, images = made(spec)
    features = network.make_vit(spec).apply(params, images)
    assert features.shape == (3, spec.features)
    weights = jax.random.normal(jax.random.key(9), features.shape)

    def summed(params):
        return jnp.sum(weights * network.make_vit(spec).apply(params, images))

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(summed))(params)):
        # Softmax does not see what is added to all keys: their biases move nothing.
        where = jax.tree_util.keystr(path)
        moved = np.abs(gradient).reshape(len(gradient) if "blocks" in where else 1, -1).max(axis=1)
        assert (moved > 1e-5).all() or "'k']['bias'" in where, where


@pytest.mark.parametrize("name", SPECS)
def test_features_of_an_image_are_its_own(name):
    params, images = made(SPECS[name])
    apply = jax.jit(network.make_vit(SPECS[name]).apply)
    one = np.concatenate([apply(params, image[None]) for image in images])
    np.testing.assert_allclose(one, apply(params, images), atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_patches_that_change_places_with_their_positions_change_nothing(name):
    spec = SPECS[name]
    params, images = made(spec)
    apply = jax.jit(network.make_vit(spec).apply)
    side, p = spec.grid, spec.patch
    squares = images.reshape(3, side, p, side, p, 3).transpose(0, 1, 3, 2, 4, 5)
    order = jax.random.permutation(jax.random.key(5), side * side)
    shuffled = squares.reshape(3, side * side, p, p, 3)[:, order].reshape(squares.shape)
    moved = shuffled.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)
    first, rest = jnp.split(params["position"], [spec.positioned])
    other = params | {"position": jnp.concatenate([first, rest[order]])}
    np.testing.assert_allclose(apply(other, moved), apply(params, images), atol=1e-5)
    assert np.abs(apply(params, moved) - apply(params, images)).max() > 1e-2


def products(jaxpr, times=1.0):
    """FLOP of all matrix products of a program; a loop's body as often as it runs."""
    total = 0.0
    for equation in jaxpr.eqns:
        inner = times * equation.params.get("length", 1)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            out = math.prod(equation.outvars[0].aval.shape)
            total += times * 2 * out * math.prod(shape[axis] for axis in contracted)
        for value in equation.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                total += products(getattr(value, "jaxpr", value), inner)
    return total


@pytest.mark.parametrize("name", SPECS)
def test_flops_by_formula_are_those_of_the_program_s_products(name):
    spec = SPECS[name]
    params, images = made(spec)
    program = jax.make_jaxpr(network.make_vit(spec).apply)(params, images[:1])
    # What the query alone goes through is not counted a second time for each image.
    assert products(program.jaxpr) == pytest.approx(spec.flops, rel=1e-6)


def test_rows_over_devices_give_what_one_device_gives():
    spec = SPECS["swiglu and registers"]
    params, images = made(spec)
    layout = mesh.make_layout(jax.devices()[:4])
    apply = jax.jit(network.make_vit(spec).apply)
    four = jnp.concatenate([images, images[:1]])
    placed = layout.put({"images": np.asarray(four)})["images"]
    with layout.in_force():
        found = jax.block_until_ready(apply(jax.device_put(params, layout.replicated), placed))
    assert len(found.sharding.device_set) == 4
    np.testing.assert_allclose(found, apply(params, four), atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": 13}, {"heads": 3}, {"depth": 0}, {"activation": "relu"}, {"pooling": "max"},
        {"registers": -1}, {"registers": 4, "positioned": 2}, {"pooling": "attention"},
        {"pool": AttentionPool(width=8, heads=4)},
    ],
)  # fmt: skip
def test_sizes_that_do_not_go_together_are_refused(wrong):
    with pytest.raises(errors.ConfigError):
        dataclasses.replace(PLAIN, **wrong)
    with pytest.raises(errors.ConfigError):
        AttentionPool(width=8, heads=3)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), [(2, 5), (5, 2), (3, 7)])
def test_positions_on_another_grid_are_torch_s(old, new, antialias):
    golden = np.load(GOLDEN)
    wanted = golden[f"grid/{old}/{new}/{'averaged' if antialias else 'sampled'}"]
    square = golden[f"grid/{old}/given"].transpose(1, 2, 0).reshape(old * old, 4)
    first = np.full((1, 4), 7.0, np.float32)
    given = np.concatenate([first, square])
    found = grids.resize(given, prefix=1, grid=new, antialias=antialias)
    np.testing.assert_array_equal(found[:1], first)
    # float32 sums of 16 terms, of numbers up to 1.5, here in float64.
    np.testing.assert_allclose(found[1:].reshape(new, new, 4), wanted, atol=3e-6)


def test_a_grid_that_fits_is_left_alone_and_no_square_is_refused():
    given = np.arange(20, dtype=np.float32).reshape(10, 2)
    assert grids.resize(given, prefix=1, grid=3, antialias=True) is given
    for prefix in (0, 2, 10, 11):
        with pytest.raises(ValueError, match="no square"):
            grids.resize(given, prefix=prefix, grid=3, antialias=True)
