"""The lite denoiser: parity with the written definition, invariances, gradients, cost."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax import config, configfile, errors
from stemjax.data import space, transforms
from stemjax.export import bundle, published
from stemjax.models import lite
from stemjax.train import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[2]
VECTOR = lite.LiteConfig(genes=7, width=24, depth=3, mlp_ratio=2, condition=10)
LATENT = dataclasses.replace(VECTOR, latents=3, heads=4)
BOTH = pytest.mark.parametrize("shape", [VECTOR, LATENT], ids=["vector", "latents"])


def _numpy_forward(params, x, level, cond, *, heads):
    """The output in float64, [b channels g]: one row, head, token and gene at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    return np.stack([_row(p, *row, heads) for row in zip(*map(np.float64, (x, level, cond)))])


def _linear(p, x):
    return x @ p["kernel"] + p["bias"]


def _silu(x):
    return x / (1 + np.exp(-x))


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def _softmax(x):
    return np.exp(x) / np.exp(x).sum()


def _row(p, x, level, cond, heads):
    phase = level * np.exp(-np.log(10000.0) * np.arange(128) / 128)
    features = np.concatenate([np.cos(phase), np.sin(phase)])
    c = _linear(p["noise"]["fc2"], _silu(_linear(p["noise"]["fc1"], features)))
    c = c + _linear(p["condition"]["fc2"], _silu(_linear(p["condition"]["fc1"], cond)))
    body = _latents if "latent" in p["profile"] else _vector
    gain = _linear(p["gain"], _silu(c)).reshape(-1, len(x))
    return body(p["profile"], x, c, heads) + gain * x


def _vector(p, x, c, heads):
    h, depth = _linear(p["read"], x), len(p["blocks"]["mlp"]["fc1"]["bias"])
    for i in range(depth):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
        shift, scale, gate = np.split(_linear(block["modulation"]["linear"], _silu(c)), 3)
        inside = _norm(h) * (1 + scale) + shift
        h = h + gate * _linear(block["mlp"]["fc2"], _gelu(_linear(block["mlp"]["fc1"], inside)))
    shift, scale = np.split(_linear(p["head"]["modulation"]["linear"], _silu(c)), 2)
    return _linear(p["head"]["linear"], _norm(h) * (1 + scale) + shift).reshape(-1, len(x))


def _latents(p, x, c, heads):
    m, d = p["latent"].shape
    g, k = len(x), d // heads
    of_head = [slice(h * k, (h + 1) * k) for h in range(heads)]
    tokens = p["latent"].copy()
    for j in range(m):
        for s in of_head:
            share = _softmax(p["name"][:, s] @ p["query"][j, s] / np.sqrt(k))
            tokens[j, s] += np.sqrt(g) * sum(share[i] * x[i] * p["value"][i, s] for i in range(g))
    for i in range(len(p["blocks"]["mlp"]["fc1"]["bias"])):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
        ada = np.split(_linear(block["modulation"]["linear"], _silu(c)), 6)
        qkv = _linear(block["attn"]["qkv"], _norm(tokens) * (1 + ada[1]) + ada[0])
        heard = np.zeros_like(tokens)
        for s in of_head:
            q, key, v = (qkv[:, part * d : (part + 1) * d][:, s] for part in range(3))
            for j in range(m):
                heard[j, s] = _softmax(q[j] @ key.T / np.sqrt(k)) @ v
        tokens = tokens + ada[2] * _linear(block["attn"]["proj"], heard)
        inside = _norm(tokens) * (1 + ada[4]) + ada[3]
        inside = _gelu(_linear(block["mlp"]["fc1"], inside))
        tokens = tokens + ada[5] * _linear(block["mlp"]["fc2"], inside)
    shift, scale = np.split(_linear(p["modulation"]["linear"], _silu(c)), 2)
    tokens = _norm(tokens) * (1 + scale) + shift
    out = np.zeros((len(p["output"]), g))
    for i in range(g):
        for s in of_head:
            share = _softmax(p["answer"][:, s] @ p["name"][i, s] / np.sqrt(k))
            out[:, i] += p["output"][:, i, s] @ (share @ tokens[:, s])
    return out


def trained(shape, seed=7):
    """Parameters as after training: every array, the zero ones too, has random values."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lite.make_lite(shape).init, jax.random.key(0))
    # 1 / sqrt(inputs) for a kernel keeps each layer's output near 1.
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * leaf.shape[-2:][0] ** -0.5,
        shapes,
    )


def run(shape, params, *batch):
    return jax.jit(lite.make_lite(shape).apply)(params, *batch)


def inputs(shape, batch=5):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(batch, shape.genes)).astype(np.float32)
    level = rng.uniform(0, 999, size=batch).astype(np.float32)
    return x, level, rng.normal(size=(batch, shape.condition)).astype(np.float32)


@BOTH
@pytest.mark.parametrize("channels", [1, 2])
def test_forward_is_the_written_definition(shape, channels):
    shape = dataclasses.replace(shape, channels=channels)
    params, batch = trained(shape), inputs(shape)
    out = run(shape, params, *batch)
    expected = _numpy_forward(params, *batch, heads=shape.heads)
    expected = expected[:, 0] if channels == 1 else expected
    assert np.std(expected) > 0.1  # the comparison below is of values, not of zeros
    # float32 against float64, as for Stem: phases up to 999 rad carry 999 * 2^-24 = 6e-5.
    np.testing.assert_allclose(out, expected, atol=2e-5, rtol=2e-5)


def _permuted(shape, params, order):
    """The parameters of the same network for genes in another order."""
    columns = np.concatenate([order + o * shape.genes for o in range(shape.channels)])
    profile = dict(params["profile"])

    def linear(p):
        return {"kernel": p["kernel"][:, columns], "bias": p["bias"][columns]}

    if shape.latents:
        profile |= {name: profile[name][order] for name in ("name", "value")}
        profile["output"] = profile["output"][:, order]
    else:
        profile["read"] = {**profile["read"], "kernel": profile["read"]["kernel"][order]}
        profile["head"] = {**profile["head"], "linear": linear(profile["head"]["linear"])}
    return {**params, "profile": profile, "gain": linear(params["gain"])}


@BOTH
def test_permuting_genes_with_their_parameters_permutes_outputs(shape):
    shape = dataclasses.replace(shape, channels=2)
    params, (x, level, cond) = trained(shape), inputs(shape)
    order = np.random.default_rng(0).permutation(shape.genes)
    permuted = run(shape, _permuted(shape, params, order), x[:, order], level, cond)
    # The sums over genes run in another order: a few float32 roundings.
    np.testing.assert_allclose(permuted, run(shape, params, x, level, cond)[..., order], atol=1e-5)
    same = run(shape, params, x[:, order], level, cond)
    assert np.abs(same - permuted).max() > 1e-2  # which gene it is matters


@BOTH
def test_a_sample_does_not_see_the_others_of_its_batch(shape):
    params, batch = trained(shape), inputs(shape)
    whole, rows = run(shape, params, *batch), [3, 0, 4]
    part = run(shape, params, *(array[rows] for array in batch))
    # Another batch size may choose another matrix kernel: a few float32 roundings.
    np.testing.assert_allclose(part, whole[np.array(rows)], atol=5e-6)


@BOTH
def test_fresh_network_gives_zero(shape):
    net = lite.make_lite(dataclasses.replace(shape, channels=2))
    out = jax.jit(lambda batch: net.apply(net.init(jax.random.key(0)), *batch))(inputs(shape))
    np.testing.assert_array_equal(out, np.zeros((5, 2, 7)))


def loss_of(net, batch):
    target = np.random.default_rng(9).normal(size=batch[0].shape).astype(np.float32)
    return lambda params: jnp.square(net.apply(params, *batch) - target).mean()


@BOTH
def test_every_parameter_learns(shape):
    net = lite.make_lite(shape)
    grad = jax.jit(jax.grad(loss_of(net, inputs(shape))))
    params = jax.jit(net.init)(jax.random.key(0))
    # Zero layers open one after another: what writes, then the modulations, then what lies behind
    # the gates.
    for _ in range(3):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grad(params))
    for path, gradient in jax.tree_util.tree_leaves_with_path(grad(params)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows = np.abs(gradient).reshape(gradient.shape[0], -1).max(axis=1)
        assert np.all(rows > 0) or name == "noise/fc1/kernel", name
        assert rows.max() > 0, name


@BOTH
def test_remat_changes_no_value_and_no_gradient(shape):
    params, batch = trained(shape), inputs(shape)
    results = [
        jax.jit(jax.value_and_grad(loss_of(lite.make_lite(one), batch)))(params)
        for one in (shape, dataclasses.replace(shape, remat=True))
    ]
    # The same operations, fused in another way: float32 roundings.
    for one, other in zip(*map(jax.tree.leaves, results)):
        np.testing.assert_allclose(one / np.abs(one).max(), other / np.abs(one).max(), atol=1e-5)


@BOTH
def test_remat_reaches_the_blocks(shape):
    def rematerialised(remat):
        net = lite.make_lite(dataclasses.replace(shape, remat=remat))
        params = jax.eval_shape(net.init, jax.random.key(0))
        text = str(jax.make_jaxpr(jax.grad(loss_of(net, inputs(shape))))(params))
        return text.count("prevent_cse=False")

    assert rematerialised(True) > rematerialised(False)


@BOTH
def test_bfloat16_blocks_stay_near_float32(shape):
    # Width and depth nearer to real ones: errors grow with depth.
    shape = dataclasses.replace(shape, genes=40, width=64, depth=8, condition=32)
    params, batch = trained(shape), inputs(shape, batch=8)
    exact = run(shape, params, *batch)
    half = run(dataclasses.replace(shape, dtype="bfloat16"), params, *batch)
    assert exact.dtype == half.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((half - exact) ** 2) / jnp.mean(exact**2)))
    # bfloat16 keeps 8 bits (2^-9 = 0.2 % a rounding); a few independent ones a block.
    assert 1e-4 < error < 2e-2


@pytest.mark.parametrize("latents", [0, 2])
@pytest.mark.parametrize("channels", [1, 2])
def test_flops_agree_with_the_compiler(latents, channels):
    # Depth 1, so that the scan's body, which XLA counts once, is the whole; as many rows as make
    # the weights of the latents, done once a call, a small part.
    shape = lite.LiteConfig(
        genes=120, width=128, depth=1, heads=4, mlp_ratio=3, condition=96, latents=latents,
        channels=channels,
    )  # fmt: skip
    net, rows = lite.make_lite(shape), 256
    params = jax.eval_shape(net.init, jax.random.key(0))
    compiled = jax.jit(net.apply).lower(params, *inputs(shape, batch=rows)).compile()
    counted = compiled.cost_analysis()["flops"] / rows
    # Matrix products dominate; XLA adds 2 % of elementwise operations.
    assert 1.0 < counted / lite.flops_per_evaluation(shape) < 1.03


def test_flops_of_a_spot_are_those_of_its_condition():
    def counted(condition):
        shape = dataclasses.replace(VECTOR, condition=condition, width=128)
        net = lite.make_lite(shape)
        params = jax.eval_shape(net.init, jax.random.key(0))
        compiled = jax.jit(net.apply).lower(params, *inputs(shape, batch=64)).compile()
        return compiled.cost_analysis()["flops"] / 64, lite.flops_per_spot(shape)

    (wide, more), (narrow, less) = counted(300), counted(1)
    # Nothing but the embedding differs; its activation is the rest.
    assert wide - narrow == pytest.approx(more - less, rel=0.02)


def test_the_config_for_visium_hd_costs_a_fiftieth_of_the_published_network():
    # 9.3184 GFLOP at 200 genes (tests/models/test_stem.py).
    experiment = config.resolve(configfile.load(str(ROOT / "configs" / "lite.py"), []))
    for genes, most in ((200, 9.3184e9 / 50), (2000, 9.3184e9 / 50)):
        assert config.flops_per_evaluation(experiment, genes=genes, condition=1536) < most


@BOTH
def test_bound_rows_of_a_spot_are_those_of_its_condition_repeated(shape):
    net, params = lite.make_lite(shape), trained(shape)
    x, level, cond = inputs(shape, batch=12)
    level = np.repeat(level[:4], 3)  # the rows of a spot share their level
    bound = jax.jit(lambda *batch: net.bind(params, batch[2], repeat=3)(*batch[:2]))
    found = bound(x, level, cond[:4])
    expected = run(shape, params, x, level, np.repeat(cond[:4], 3, axis=0))
    assert np.std(expected) > 0.1
    # float32: the same products in other shapes.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_more_genes_than_width_keep_their_own_noise():
    """The gain alone removes noise gene by gene, which no map of the width's rank can."""
    shape = dataclasses.replace(VECTOR, genes=50, width=8)
    params = trained(shape)
    params["profile"]["head"]["linear"] = jax.tree.map(
        np.zeros_like, params["profile"]["head"]["linear"]
    )
    x, level, cond = inputs(shape)
    found = run(shape, params, x, level, cond)
    assert np.linalg.matrix_rank(found / x) == 5  # a gain for each row, by its level and condition
    x2 = x * np.arange(1, 51, dtype=np.float32)[None]
    np.testing.assert_allclose(run(shape, params, x2, level, cond), found / x * x2, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "field", "found"),
    [
        ({"latents": 2, "heads": 5}, "model.width", "24"),
        ({"latents": -1}, "model.latents", "-1"),
        ({"channels": 3}, "model.channels", "3"),
        ({"dtype": "float16"}, "model.dtype", "float16"),
        ({"depth": 0}, "model.depth", "0"),
        ({"genes": 0}, "model.genes", "0"),
    ],
)
def test_impossible_configurations_are_named(change, field, found):
    with pytest.raises(errors.ConfigError) as caught:
        dataclasses.replace(VECTOR, **change)
    assert caught.value.what == field
    assert found in caught.value.found


def test_heads_do_not_matter_without_latents():
    assert dataclasses.replace(VECTOR, heads=5).heads == 5
    assert config.resolve({"model": {"kind": "lite", "width": 10, "heads": 4}})


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"latents": 4}, "config.model.latents=4"),
        ({"kind": "lite", "latents": -2}, "config.model.latents=-2"),
        ({"kind": "lite", "latents": 4, "width": 10, "heads": 4}, "config.model.heads=4"),
        ({"kind": "light"}, "stem or lite"),
    ],
)
def test_experiments_that_cannot_work_name_their_key(model, text):
    with pytest.raises(errors.ConfigError, match=text.replace("(", r"\(")):
        config.resolve({"model": model})


def _trained_model(**diffusion):
    experiment = config.resolve(
        {"model": {"kind": "lite", "width": 8, "depth": 1, "heads": 2, "latents": 3},
         "diffusion": diffusion}
    )  # fmt: skip
    plain = [transforms.Standardisation(mean=np.zeros(n), std=np.ones(n)) for n in (5, 6)]
    card = checkpoint.Card(
        experiment=experiment,
        space=space.Space(
            genes=tuple("ABCDE"), transform="log2p1", expression=plain[0], condition=plain[1]
        ),
        contract=dataclasses.replace(published.UNI_CONCH, name="toy", width=6),
        split={"train": [], "val": [], "test": [], "kind": "unknown"},
        panel={"genes": list("ABCDE"), "rule": "toy", "slides": []},
        versions={"stemjax": "0"},
    )
    rng, shapes = np.random.default_rng(0), jax.eval_shape(card.task.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), "f"), shapes)
    return checkpoint.Trained(params=params, card=card, step=3, weights="last")


def test_a_bundle_keeps_a_lite_model(tmp_path):
    model = _trained_model()
    bundle.write(model, tmp_path / "out")
    found = bundle.load(tmp_path / "out")
    assert found.card.experiment == model.card.experiment
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found.params, model.params))


def test_the_published_format_refuses_a_lite_model(tmp_path):
    # Process and space are the published ones: the network alone is not.
    with pytest.raises(errors.TorchFileError, match=r"config\.model\.kind=lite"):
        published.write(_trained_model(process="ddpm", mean_fraction=0.0), tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())


def test_an_experiment_from_before_the_kinds_is_of_gene_tokens():
    experiment = config.resolve({"model": {"width": 8, "depth": 1, "heads": 2}})
    assert experiment.model.kind == "stem"
    params = jax.eval_shape(
        config.make_task(experiment, genes=5, condition=3).init, jax.random.key(0)
    )
    assert "tokens" in params


def test_the_largest_array_of_a_row():
    # The hidden layer, 2 x 24 float32 numbers; with 1000 genes the profile itself.
    assert lite.make_lite(VECTOR).row_bytes == 192
    assert lite.make_lite(dataclasses.replace(VECTOR, genes=1000)).row_bytes == 4000
