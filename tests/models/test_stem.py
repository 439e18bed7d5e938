"""Stem's denoiser: parity with the written definition, invariances, gradients, initial values."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_stem
import pytest

from stemjax import errors
from stemjax.models import stem

SMALL = stem.StemConfig(genes=7, width=24, depth=3, heads=4, condition=10)
PUBLISHED = stem.StemConfig(genes=200, width=384, depth=12, heads=6, condition=1536, channels=2)


@functools.cache
def fresh(config):
    """Parameters as `init` makes them; kept, because compiling `init` takes seconds."""
    return jax.jit(stem.make_stem(config).init)(jax.random.key(0))


def trained(config, seed=7):
    """Parameters as after training: every array, the zero ones too, has random values."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(stem.make_stem(config).init, jax.random.key(0))
    # 1 / sqrt(inputs) for a kernel keeps each layer's output near 1.
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * leaf.shape[-2:][0] ** -0.5,
        shapes,
    )


def run(config, params, *batch):
    """The output, compiled: op by op every small operation is compiled apart."""
    return jax.jit(stem.make_stem(config).apply)(params, *batch)


def inputs(config, batch=5):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(batch, config.genes)).astype(np.float32)
    level = rng.uniform(0, 999, size=batch).astype(np.float32)
    cond = rng.normal(size=(batch, config.condition)).astype(np.float32)
    return x, level, cond


@pytest.mark.parametrize("channels", [1, 2])
def test_forward_is_the_written_definition(channels):
    config = dataclasses.replace(SMALL, channels=channels)
    params, batch = trained(config), inputs(config)
    out = run(config, params, *batch)
    expected = numpy_stem.forward(params, *batch, heads=config.heads)
    expected = expected[:, 0] if channels == 1 else expected
    assert np.std(expected) > 0.1  # the comparison below is of values, not of zeros
    # float32 against float64: phases up to 999 rad carry 999 * 2^-24 = 6e-5, of which the noise
    # MLP passes on about a tenth; the matrix products add less.
    np.testing.assert_allclose(out, expected, atol=2e-5, rtol=2e-5)


def test_published_size_and_cost():
    # 35,639,042 is what PyTorch counts in the published model; 9.3184 GFLOP sums its products.
    assert stem.parameter_count(PUBLISHED) == 35_639_042
    assert stem.flops_per_evaluation(PUBLISHED) == pytest.approx(9.3184e9, rel=1e-5)


def test_flops_agree_with_the_compiler():
    # Depth 1, so that the scan's body, which XLA counts once, is the whole; matrix products
    # dominate at this width, and XLA adds a few per cent of elementwise operations.
    config = stem.StemConfig(genes=64, width=256, depth=1, heads=4, mlp_ratio=3, condition=96)
    net = stem.make_stem(config)
    params = jax.eval_shape(net.init, jax.random.key(0))
    compiled = jax.jit(net.apply).lower(params, *inputs(config, batch=2)).compile()
    counted = compiled.cost_analysis()["flops"] / 2
    assert 1.0 < counted / stem.flops_per_evaluation(config) < 1.06


def test_permuting_genes_with_their_names_permutes_outputs():
    params = trained(SMALL)
    x, level, cond = inputs(SMALL)
    order = np.random.default_rng(0).permutation(SMALL.genes)
    tokens = {**params["tokens"], "name": params["tokens"]["name"][order]}
    permuted = run(SMALL, {**params, "tokens": tokens}, x[:, order], level, cond)
    # The sums over genes run in another order: a few float32 roundings.
    np.testing.assert_allclose(permuted, run(SMALL, params, x, level, cond)[:, order], atol=5e-6)
    same_names = run(SMALL, params, x[:, order], level, cond)
    assert np.abs(same_names - permuted).max() > 1e-2  # the names matter


def test_a_sample_does_not_see_the_others_of_its_batch():
    params, batch = trained(SMALL), inputs(SMALL)
    whole = run(SMALL, params, *batch)
    rows = [3, 0, 4]
    part = run(SMALL, params, *(array[rows] for array in batch))
    # Another batch size may choose another matrix kernel: a few float32 roundings.
    np.testing.assert_allclose(part, whole[np.array(rows)], atol=5e-6)


def test_fresh_network_gives_zero():
    for channels in (1, 2):
        config = dataclasses.replace(SMALL, channels=channels)
        out = run(config, fresh(config), *inputs(config))
        np.testing.assert_array_equal(out, np.zeros(out.shape))
        assert out.shape == ((5, 7) if channels == 1 else (5, 2, 7))


def loss_of(net, batch):
    target = np.random.default_rng(9).normal(size=batch[0].shape).astype(np.float32)
    return lambda params: jnp.square(net.apply(params, *batch) - target).mean()


def test_every_parameter_learns():
    net = stem.make_stem(SMALL)
    grad = jax.jit(jax.grad(loss_of(net, inputs(SMALL))))
    params = fresh(SMALL)
    # Zero layers open one after another: the head's Linear, then the modulations of head and
    # blocks, then what lies behind the gates.
    for _ in range(3):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grad(params))
    for path, gradient in jax.tree_util.tree_leaves_with_path(grad(params)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows = np.abs(gradient).reshape(gradient.shape[0], -1).max(axis=1)
        assert np.all(rows > 0) or name == "noise/fc1/kernel", name
        assert rows.max() > 0, name


def test_remat_changes_no_value_and_no_gradient():
    params, batch = trained(SMALL), inputs(SMALL)
    results = [
        jax.jit(jax.value_and_grad(loss_of(stem.make_stem(config), batch)))(params)
        for config in (SMALL, dataclasses.replace(SMALL, remat=True))
    ]
    # The same operations, fused in another way: float32 roundings.
    for one, other in zip(*map(jax.tree.leaves, results)):
        scale = np.abs(one).max()
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-5)


def test_remat_keeps_less_for_the_backward_pass():
    def kept(remat):
        config = stem.StemConfig(genes=50, width=32, depth=8, heads=4, condition=10, remat=remat)
        loss = loss_of(stem.make_stem(config), inputs(config, batch=8))
        params = jax.eval_shape(stem.make_stem(config).init, jax.random.key(0))
        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert kept(True) < 0.5 * kept(False)


def test_bfloat16_blocks_stay_near_float32():
    # Width, depth and token count nearer to real ones: errors grow with depth.
    config = stem.StemConfig(genes=40, width=64, depth=8, heads=4, condition=32)
    params, batch = trained(config), inputs(config, batch=8)
    exact = run(config, params, *batch)
    half = run(dataclasses.replace(config, dtype="bfloat16"), params, *batch)
    assert exact.dtype == half.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((half - exact) ** 2) / jnp.mean(exact**2)))
    # bfloat16 keeps 8 bits (2^-9 = 0.2 % a rounding); about five independent ones a block.
    assert 1e-4 < error < 2e-2


def test_compiles_once():
    net, traces = stem.make_stem(SMALL), []

    @jax.jit
    def step(params, *batch):
        traces.append(1)
        return net.apply(params, *batch)

    for seed in range(3):
        params = trained(SMALL, seed)
        step(params, *(array + seed for array in inputs(SMALL)))
    assert len(traces) == 1


def test_initial_values_by_kind():
    config = stem.StemConfig(genes=150, width=96, depth=4, heads=4, condition=160)
    params = fresh(config)
    blocks, tokens = params["blocks"], params["tokens"]
    d = config.width
    # name -> (array, half-width of the uniform law); sqrt(6 / (in + out)) for Xavier.
    uniform = {
        "qkv": (blocks["attn"]["qkv"]["kernel"], math.sqrt(6 / (d + 3 * d))),
        "proj": (blocks["attn"]["proj"]["kernel"], math.sqrt(6 / (d + d))),
        "fc1": (blocks["mlp"]["fc1"]["kernel"], math.sqrt(6 / (d + 4 * d))),
        "fc2": (blocks["mlp"]["fc2"]["kernel"], math.sqrt(6 / (4 * d + d))),
        "value fc1": (tokens["value"]["fc1"]["kernel"], math.sqrt(6 / (1 + d))),
        "value fc2": (tokens["value"]["fc2"]["kernel"], math.sqrt(6 / (d + d))),
        "name": (tokens["name"], math.sqrt(6 / ((1 + 5) * d))),
    }
    for name, (array, bound) in uniform.items():
        n = array.size
        assert np.abs(array).max() <= bound, name
        # The largest of n uniform draws falls short of the bound by about bound / n.
        assert np.abs(array).max() > bound * (1 - 12 / n), name
        # Five standard errors of a uniform law's standard deviation (kurtosis 1.8).
        expected = bound / math.sqrt(3)
        assert np.std(array) == pytest.approx(expected, rel=5 * math.sqrt(0.8 / 4 / n)), name
    for name in ("noise", "condition"):
        for layer in ("fc1", "fc2"):
            array = params[name][layer]["kernel"]
            # Five standard errors of a normal law's standard deviation.
            error = 5 / math.sqrt(2 * array.size)
            assert np.std(array) == pytest.approx(0.02, rel=error), (name, layer)
            assert np.abs(array).max() > 2.5 * 0.02, (name, layer)  # not cut off
    zero = [blocks["modulation"], params["head"]]
    zero += [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("bias")
    ]
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(zero))


def test_layers_start_from_different_values():
    qkv = fresh(SMALL)["blocks"]["attn"]["qkv"]["kernel"]
    flat = np.asarray(qkv).reshape(SMALL.depth, -1)
    assert np.abs(np.corrcoef(flat)[~np.eye(SMALL.depth, dtype=bool)]).max() < 0.1


@pytest.mark.parametrize(
    ("change", "field", "found"),
    [
        ({"heads": 5}, "model.width", "24"),
        ({"channels": 3}, "model.channels", "3"),
        ({"dtype": "float16"}, "model.dtype", "float16"),
        ({"depth": 0}, "model.depth", "0"),
    ],
)
def test_impossible_configurations_are_named(change, field, found):
    with pytest.raises(errors.ConfigError) as caught:
        dataclasses.replace(SMALL, **change)
    assert caught.value.what == field
    assert found in caught.value.found


def test_bound_rows_of_a_spot_are_those_of_its_condition_repeated():
    net, params = stem.make_stem(SMALL), trained(SMALL)
    x, level, cond = inputs(SMALL, batch=12)
    level = np.repeat(level[:4], 3)  # the rows of a spot share their level
    bound = jax.jit(lambda *batch: net.bind(params, batch[2], repeat=3)(*batch[:2]))
    found = bound(x, level, cond[:4])
    expected = run(SMALL, params, x, level, np.repeat(cond[:4], 3, axis=0))
    assert np.std(expected) > 0.1
    # float32: the same products in other shapes.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_bound_network_takes_its_number_of_rows_only():
    bound = stem.make_stem(SMALL).bind(trained(SMALL), np.ones((4, 10), np.float32), repeat=3)
    with pytest.raises(ValueError, match="11 rows for 4 conditions of 3 rows each"):
        bound(np.ones((11, 7), np.float32), np.ones(11, np.float32))


def _products(jaxpr, inside_scan=False):
    """Every matrix product of a program: its operands' shapes, and whether a scan repeats it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield [operand.aval.shape for operand in equation.invars], inside_scan
        inside = inside_scan or equation.primitive.name == "scan"
        for value in equation.params.values():
            if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                yield from _products(getattr(value, "jaxpr", value), inside)


def test_the_condition_is_embedded_once_whatever_the_draws_and_steps():
    # No other array has a side of 13.
    net = stem.make_stem(stem.StemConfig(genes=7, width=8, depth=2, heads=2, condition=13))
    params = jax.eval_shape(net.init, jax.random.key(0))

    def run(params, cond, x, level):
        bound = net.bind(params, cond, repeat=4)
        return jax.lax.scan(lambda x, _: (bound(x, level), None), x, length=5)[0]

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 13), (8, 7), (8,))]
    products = list(_products(jax.make_jaxpr(run)(params, *shapes).jaxpr))
    of_condition = [found for found in products if any(13 in shape for shape in found[0])]
    assert of_condition == [([(2, 13), (13, 13)], False), ([(2, 13), (13, 8)], False)]
    assert sum(repeated for _, repeated in products) > 5


def test_the_largest_array_of_a_row():
    assert stem.make_stem(SMALL).row_bytes == 7 * 4 * 24 * 4  # genes, hidden width, float32
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    assert stem.make_stem(half).row_bytes == 7 * 4 * 24 * 4  # what GELU makes of it
