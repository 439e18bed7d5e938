"""HisToSGE's published network, and what both have in common: definition, gradients, cost."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_histosge
import pytest
from histosge_inputs import CORRECTED, NAMES, PUBLISHED, rows, still, trained, windows

from stemjax import errors
from stemjax.models import histosge

_published = jax.jit(histosge.make_published(PUBLISHED)[0].apply)


def test_the_published_network_is_the_written_definition():
    params, given = trained(histosge.make_published(PUBLISHED)[0]), rows()
    expected = numpy_histosge.published(params, *given, heads=4)
    there = given[2] > 0
    assert np.isnan(expected[~there]).all()
    assert expected[there].std() > 0.1
    assert 0.1 < (expected[there] == 0).mean() < 0.9  # the last ReLU cuts some off
    found = np.asarray(_published(params, *given))
    # float32 against float64: sums of at most 24 numbers of size about 1.
    np.testing.assert_allclose(found[there], expected[there], atol=1e-5, rtol=1e-5)


def test_gelu_is_in_its_exact_form():
    # The description says GELU and no form, and PyTorch's is the exact one then. The two differ by
    # up to 5e-4 a unit, and the parity above can tell them apart.
    params, given = trained(histosge.make_published(PUBLISHED)[0]), rows()
    found = np.asarray(_published(params, *given))[given[2] > 0]
    tanh, exact = (
        numpy_histosge.published(params, *given, heads=4, gelu=gelu)[given[2] > 0]
        for gelu in (numpy_histosge.gelu_tanh, numpy_histosge.gelu_exact)
    )
    assert np.abs(exact - tanh).max() > 1e-4
    assert np.abs(found - exact).max() < 0.1 * np.abs(found - tanh).max()


def test_the_published_size_by_hand():
    config = histosge.HisToSGEConfig(
        genes=1000, condition=1024, width=1024, depth=1, heads=4, head_width=64, mlp_ratio=1
    )
    shapes = jax.eval_shape(histosge.make_published(config)[0].init, jax.random.key(0))

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    (block,) = shapes["blocks"].values()
    by_hand = {
        "tables": 2 * 512 * 1024,
        "qkv": 1024 * 3 * 4 * 64,  # no bias
        "proj": 4 * 64 * 1024 + 1024,
        "mlp": 2 * (1024 * 1024 + 1024),
        "norms": 2 * 2 * 1024,
        "fc1": 1024 * 2048 + 2048,
        "norm": 2 * 2048,
        "fc2": 2048 * 1000 + 1000,
    }
    found = {
        "tables": count([shapes["column"], shapes["row"]]),
        "qkv": count(block["attn"]["qkv"]),
        "proj": count(block["attn"]["proj"]),
        "mlp": count(block["mlp"]),
        "norms": count([block["norm_attn"], block["norm_mlp"]]),
        "fc1": count(shapes["fc1"]),
        "norm": count(shapes["norm"]),
        "fc2": count(shapes["fc2"]),
    }
    assert found == by_hand
    assert count(shapes) == 8_353_768 == sum(by_hand.values())


def test_another_encoder_is_brought_to_the_width_by_a_linear():
    config = histosge.HisToSGEConfig(genes=5, condition=9, width=12, depth=2, heads=3)
    net = histosge.make_published(config)[0]
    params, (cond, place, present) = trained(net), rows()
    given = cond[..., :9], place, present
    found = np.asarray(jax.jit(net.apply)(params, *given))[present > 0]
    expected = numpy_histosge.published(params, *given, heads=3)[present > 0]
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=2e-5)  # two blocks of float32


def test_absent_rows_change_nothing_for_present_ones():
    params, (cond, place, present) = trained(histosge.make_published(PUBLISHED)[0]), rows()
    there = present > 0
    whole = np.asarray(_published(params, cond, place, present))
    rng = np.random.default_rng(0)
    cond[~there], place[~there] = 1e3 * rng.normal(size=(2, 12)), 500
    other = np.asarray(_published(params, cond, place, present))
    # Their weight is exp(-1e30), which is 0.
    np.testing.assert_array_equal(other[there], whole[there])
    alone = np.asarray(_published(params, cond[-1:, :5], place[-1:, :5], present[-1:, :5]))
    np.testing.assert_allclose(alone[0], whole[-1, :5], atol=1e-5)  # other matrix shapes
    unmasked = np.asarray(_published(params, cond, place, np.ones_like(present)))
    assert np.abs(unmasked - whole)[there].max() > 0.1


def test_half_steps_fall_on_measured_places_as_published():
    # A fault of the published network, kept on purpose: a point between two spots is the first.
    params, (cond, place, present) = trained(histosge.make_published(PUBLISHED)[0]), rows()
    whole = np.asarray(_published(params, cond, place, present))
    half = np.asarray(_published(params, cond, place + np.float32(0.5), present))
    np.testing.assert_array_equal(half, whole)
    moved = np.asarray(_published(params, cond, place + np.float32(1), present))
    assert np.abs(moved - whole).max() > 0.1
    # Columns are looked up in the table of columns and rows in that of rows.
    turned = {**params, "column": params["row"], "row": params["column"]}
    swapped = np.asarray(_published(turned, cond, place[..., ::-1], present))
    np.testing.assert_allclose(swapped, whole, atol=1e-5)  # another order of sums
    assert (
        np.abs(np.asarray(_published(params, cond, place[..., ::-1], present)) - whole).max() > 0.1
    )


def test_places_outside_of_the_tables_are_their_ends():
    params, (cond, place, present) = trained(histosge.make_published(PUBLISHED)[0]), rows()
    out = [
        np.asarray(_published(params, cond, np.full_like(place, where), present))
        for where in (-3, 0, 511, 700)
    ]
    np.testing.assert_array_equal(out[0], out[1])
    np.testing.assert_array_equal(out[2], out[3])
    assert np.abs(out[1] - out[2]).max() > 0.1


def test_the_gradient_reaches_every_parameter_of_the_published_network():
    net, given = histosge.make_published(PUBLISHED)[0], rows(batch=6)
    present = given[2] > 0
    dead_rows = still(net, given, trained(net), weight=given[2][..., None])
    # Places where no spot is have no gradient, and there are some.
    for axis, name in enumerate(("column", "row")):
        met = np.unique(given[1][present][:, axis]).astype(int)
        dead = dead_rows.pop(f"{name}/embedding")
        np.testing.assert_array_equal(dead, np.setdiff1d(np.arange(512), met))
    assert dead_rows == {}


# ------------------------------------------------------------------------------------------ both


@pytest.mark.parametrize("published", [True, False], ids=["published", "corrected"])
def test_flops_agree_with_the_compiler(published):
    # Matrix products dominate at this width; XLA adds elementwise operations.
    config = histosge.HisToSGEConfig(
        genes=192,
        condition=96,
        width=128,
        depth=2,
        heads=4,
        head_width=48,
        mlp_ratio=3,
        components=5,
    )
    tokens, batch = 24, 2
    make = histosge.make_published if published else histosge.make_corrected
    net = make(config)[0]
    wide = {"cond": 96, "x": 192, "seen": 192, "xy": 2, "place": 2}
    names = ("cond", "place", "present") if published else NAMES
    shapes = [
        jax.ShapeDtypeStruct(
            (batch, tokens, wide[n]) if n in wide else (batch, tokens), jnp.float32
        )
        for n in names
    ]
    params = jax.eval_shape(net.init, jax.random.key(0))
    compiled = jax.jit(net.apply).lower(params, *shapes).compile()
    counted = compiled.cost_analysis()["flops"] / batch
    by_formula = histosge.flops_per_window(config, tokens=tokens, published=published)
    assert 1.0 < counted / by_formula < 1.06


def test_flops_of_a_window_by_hand():
    small = histosge.HisToSGEConfig(
        genes=3, condition=2, width=4, depth=1, heads=2, head_width=1, mlp_ratio=1, components=2
    )
    # Multiply-adds of 5 tokens: qkv 4x6, proj 2x4, MLP 2x4x4; logits and sums 2 x 5x5x2.
    block = 5 * (24 + 8 + 32) + 100
    published = block + 5 * 2 * 4 + 5 * (4 * 8 + 8 * 3)
    assert histosge.flops_per_window(small, tokens=5, published=True) == 2 * published
    # Tokens of embedding, 28 waves and expression; the drift of each; 2 components: scores,
    # Cholesky (125 / 3 operations, whole ones), two triangular solves, sums, head, loadings.
    tokens = 5 * (2 + 28 + 3) * 4
    drift = 5 * (2 * 4 + 4 * 2)
    products = 2 * (5 * 3 + 5 + 4 + 3)
    corrected = 2 * (block + tokens + drift + products) + 2 * (41 + 2 * 25)
    assert histosge.flops_per_window(small, tokens=5, published=False) == corrected


@pytest.mark.parametrize("published", [True, False], ids=["published", "corrected"])
def test_the_second_network_stops_at_the_tokens(published):
    shape = PUBLISHED if published else CORRECTED
    make = histosge.make_published if published else histosge.make_corrected
    net, features = make(shape)
    params = trained(net)
    given = rows() if published else [windows()[name] for name in NAMES]
    whole, stopped = jax.jit(net.apply), jax.jit(features.apply)
    hidden = np.asarray(stopped(params, *given))
    assert hidden.shape == (3, 7, 12)
    one, other = ("fc1", "fc2") if published else ("head", "loadings")
    spoilt = {**params, one: jax.tree.map(lambda a: a + 1, params[one])}
    spoilt[other] = jax.tree.map(lambda a: a + 1, params[other])
    np.testing.assert_array_equal(stopped(spoilt, *given), hidden)  # it reads no head
    assert np.abs(whole(spoilt, *given) - whole(params, *given)).max() > 0.1
    both = [jax.eval_shape(one.init, jax.random.key(1)) for one in (net, features)]
    chex.assert_trees_all_equal_shapes(*both)  # one set of parameters


@pytest.mark.parametrize(
    ("change", "field", "found"),
    [
        ({"heads": 5}, "model.width", "12"),
        ({"components": 0}, "model.components", "0"),
        ({"depth": 0}, "model.depth", "0"),
        ({"genes": 0}, "model.genes", "0"),
    ],
)
def test_impossible_configurations_are_named(change, field, found):
    shape = {"genes": 5, "condition": 6, "width": 12, "depth": 1, "heads": 4}
    with pytest.raises(errors.ConfigError) as caught:
        histosge.HisToSGEConfig(**(shape | change))
    assert (caught.value.what, caught.value.found) == (field, found)
