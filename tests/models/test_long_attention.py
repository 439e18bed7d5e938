"""Attention of many tokens: in chunks, in JAX's TPU kernel, and split over devices."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_attention import TOLERANCE, equations, exact, exact_gradient, interpreted, projection

from stemjax import errors, mesh
from stemjax.models import attention, long_attention

FORMS = {"chunked": long_attention.chunked, "splash": long_attention.splash}
BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def small(monkeypatch):
    """Chunks of 8 queries and blocks of 128 tokens, so that few tokens are several of them."""
    monkeypatch.setattr(long_attention, "CHUNK_QUERIES", 8)
    monkeypatch.setattr(long_attention, "SPLASH_BLOCK", 128)


def between(form, qkv, heads, first, last):
    """A form's output [b q hk] for the queries first..last of a projection, against all keys."""
    b, g, m = qkv.shape
    apart = qkv.reshape(b, g, 3, heads, m // 3 // heads)
    q, k, v = jnp.transpose(apart, (2, 0, 3, 1, 4))
    out = FORMS[form](q[:, :, first:last], k, v)
    return jnp.swapaxes(out, 1, 2).reshape(b, last - first, m // 3)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", FORMS)
# 300 keys are 3 blocks of 128 with padding, 37 queries 5 chunks of 8; 256 and 48 leave no rest.
@pytest.mark.parametrize(("g", "first", "last"), [(300, 200, 237), (256, 0, 48), (41, 0, 41)])
def test_some_queries_attend_to_all_keys(key, small, form, dtype, g, first, last):
    qkv = projection(key, 2, g, 2, 12, dtype)
    cotangent = jax.random.normal(jax.random.fold_in(key, 1), (2, last - first, 24)).astype(dtype)
    with interpreted(form):
        out, pullback = jax.vjp(lambda qkv: between(form, qkv, 2, first, last), qkv)
        (grad,) = pullback(cotangent)
    assert out.dtype == grad.dtype == qkv.dtype
    np.testing.assert_allclose(
        np.float64(out), exact(qkv, 2)[:, first:last], atol=TOLERANCE[dtype], rtol=0
    )
    whole = jnp.zeros((2, g, 24), dtype).at[:, first:last].set(cotangent)
    expected = exact_gradient(qkv, whole, 2)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.float64(grad), expected, atol=TOLERANCE[dtype] * scale, rtol=0)


def test_slopes_of_keys_are_added_up_in_float32(key, small):
    # 128 chunks: a sum in bfloat16 would stop growing where a chunk's share is below its last bit.
    qkv = projection(key, 1, 1024, 1, 8, "bfloat16")
    grad = jax.grad(
        lambda x: attention.attend(x, heads=1, implementation="chunked").astype(jnp.float32).sum()
    )(qkv)
    expected = exact_gradient(qkv, jnp.ones((1, 1024, 8)), 1)
    values = np.float64(grad)[..., 16:] / np.float64(expected)[..., 16:]
    # A chunk's weights and its share have 2^-9 each; what is random of it averages out.
    np.testing.assert_allclose(values, 1, atol=2**-7)


def test_tangents_pass_through_chunks(key, small):
    qkv = projection(key, 2, 37, 2, 4, jnp.float32)
    tangent = projection(jax.random.fold_in(key, 1), 2, 37, 2, 4, jnp.float32)

    def slope(form):
        return jax.jvp(
            lambda x: attention.attend(x, heads=2, implementation=form), (qkv,), (tangent,)
        )[1]

    # Both are float32; the products are summed in another order.
    np.testing.assert_allclose(slope("chunked"), slope("xla"), atol=5e-6, rtol=0)


@pytest.mark.parametrize("genes", [1100, 2000, 10_000, 20_000, 40_000])
@pytest.mark.parametrize("heads", [2, 6, 16])
@pytest.mark.parametrize("parts", [1, 4])
def test_chunks_are_within_both_limits_and_even(genes, heads, parts):
    queries = genes // parts
    length = long_attention.chunk_length(queries, genes, heads)
    count = -(-queries // length)
    assert length % 8 == 0
    assert length <= long_attention.CHUNK_QUERIES
    assert length == 8 or 4 * heads * length * genes <= long_attention.CHUNK_BYTES
    assert 0 <= count * length - queries < 8 * count
    # Not shorter than it must be: one chunk less would not do.
    longer = -(-queries // max(1, count - 1))
    within = longer <= long_attention.CHUNK_QUERIES
    assert count == 1 or not (within and 4 * heads * (longer + 8) * genes < 2**25)


@pytest.mark.parametrize("tokens", [1025, 2000, 2500, 10_000, 20_000])
def test_blocks_of_the_kernel_are_filled(tokens):
    block, length = long_attention.block_lengths(tokens)
    assert block % 128 == 0
    assert block <= long_attention.SPLASH_BLOCK
    assert length % block == 0
    assert 0 <= length - tokens < 128 * (length // block)


def test_no_array_of_the_gradient_grows_with_the_square_of_the_tokens(key):
    qkv = jax.ShapeDtypeStruct((4, 5000, 3 * 2 * 8), jnp.float32)

    def largest(form):
        jaxpr = jax.make_jaxpr(
            jax.grad(lambda x: attention.attend(x, heads=2, implementation=form).sum())
        )(qkv)
        return max(out.aval.size for eqn in equations(jaxpr.jaxpr) for out in eqn.outvars)

    assert largest("xla") == 4 * 2 * 5000**2
    # The scores of one chunk of one sample, about 32 MB whatever the batch.
    assert largest("auto") == 2 * 256 * 5000 <= long_attention.CHUNK_BYTES / 4


def test_the_kernel_runs_once_forward_and_keeps_tokens_only(key):
    qkv = projection(key, 1, 300, 2, 4, jnp.float32)

    def run(x):
        return attention.attend(x, heads=2, implementation="splash")

    jaxpr = jax.make_jaxpr(jax.grad(lambda x: run(x).sum()))(qkv)
    kernels = [eqn for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "pallas_call"]
    assert len(kernels) == 3  # forward, slopes of keys and values, slopes of queries
    with interpreted("splash"):
        _, pullback = jax.vjp(run, qkv)
    kept = sorted(leaf.size for leaf in jax.tree.leaves(pullback))[-3:]
    # Log-normaliser and output, with the tokens padded to 384, and the projection.
    assert kept == [2 * 384, 2 * 384 * 4, qkv.size]


SPLITS = {"genes": (1, 4), "data, genes": (1, 2), "fsdp, genes": (2, 2)}


def layout_of(split):
    fsdp, genes = SPLITS[split]
    return mesh.make_layout(jax.local_devices()[:4], fsdp=fsdp, genes=genes)


def both(form):
    """(projection, cotangent) -> output and gradient."""

    def run(qkv, cotangent):
        out, pullback = jax.vjp(
            lambda qkv: attention.attend(qkv, heads=2, implementation=form), qkv
        )
        return out, *pullback(cotangent)

    return run


def placed(layout, *arrays):
    spec = jax.sharding.PartitionSpec((mesh.DATA, mesh.FSDP), mesh.GENES)
    return jax.device_put(arrays, jax.sharding.NamedSharding(layout.mesh, spec))


def compiled(layout, run, *arrays):
    with layout.in_force():
        return jax.jit(run).lower(*arrays).compile()


@pytest.fixture
def given(key):
    qkv = projection(key, 4, 44, 2, 4, jnp.float32)
    return qkv, jax.random.normal(jax.random.fold_in(key, 1), (4, 44, 8))


def assert_close(found, expected):
    # Float32 products, summed in another order over as few as 11 of 44 tokens.
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), other, atol=4e-6, rtol=0)


@pytest.mark.parametrize("form", ["xla", "chunked"])
@pytest.mark.parametrize("split", SPLITS)
def test_devices_that_share_the_genes_agree_with_one(given, small, form, split):
    layout = layout_of(split)
    arrays = placed(layout, *given)
    program = compiled(layout, both(form), *arrays)
    found = jax.block_until_ready(program(*arrays))
    assert_close(found, jax.jit(both("xla"))(*given))
    assert found[0].sharding.is_equivalent_to(arrays[1].sharding, 3)


@pytest.mark.parametrize("form", ["xla", "chunked"])
@pytest.mark.parametrize("split", SPLITS)
def test_keys_are_gathered_and_their_slopes_scattered(given, monkeypatch, form, split):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import hlo

    layout = layout_of(split)
    arrays = placed(layout, *given)
    forward = compiled(
        layout, lambda x: attention.attend(x, heads=2, implementation=form), arrays[0]
    )
    # A device has rows of its own; of keys and values it gets all 44 tokens, 2 x 8 numbers each.
    rows = 4 // layout.pieces
    gathered, scattered = 4 * rows * 44 * 16, 4 * rows * 44 * 16 // layout.mesh.shape[mesh.GENES]
    found = hlo.collectives(forward.as_text())
    assert {kind: row["bytes"] for kind, row in found.items()} == {"all-gather": gathered}
    found = hlo.collectives(compiled(layout, both(form), *arrays).as_text())
    assert {kind: (row["calls"], row["bytes"]) for kind, row in found.items()} == {
        "all-gather": (2, 2 * gathered),  # once more for the backward pass
        "reduce-scatter": (1, scattered),
    }


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("form", ["xla", "chunked"])
def test_an_axis_that_is_taken_already_is_left_alone(given, form, checked):
    layout = layout_of("data, genes")
    arrays = placed(layout, *given)
    rows = jax.sharding.PartitionSpec(mesh.DATA)

    def run(*arrays):
        return jax.shard_map(
            both(form), in_specs=rows, out_specs=rows, axis_names={mesh.DATA}, check_vma=checked
        )(*arrays)

    found = jax.block_until_ready(compiled(layout, run, *arrays)(*arrays))
    assert_close(found, jax.jit(both("xla"))(*given))


@pytest.mark.parametrize("form", ["xla", "chunked"])
def test_rows_that_do_not_divide_are_on_all_devices(given, form):
    layout = layout_of("data, genes")
    one = [array[:1] for array in given]
    found = jax.block_until_ready(compiled(layout, both(form), *one)(*one))
    assert_close(found, jax.jit(both("xla"))(*one))


def test_rows_alone_are_split_without_any_collective(given, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import hlo

    layout = mesh.make_layout(jax.local_devices()[:4], fsdp=2)
    arrays = placed(layout, *given)
    program = compiled(layout, both("chunked"), *arrays)
    assert hlo.collectives(program.as_text()) == {}
    assert_close(jax.block_until_ready(program(*arrays)), jax.jit(both("xla"))(*given))


def test_slopes_of_rows_that_the_kernel_took_alone_are_not_summed(given):
    with mesh.make_layout(jax.local_devices()[:4], fsdp=2).in_force():
        jaxpr = jax.make_jaxpr(both("splash"))(*given)
    names = {eqn.primitive.name for eqn in equations(jaxpr.jaxpr)}
    assert "pallas_call" in names
    assert not [name for name in names if name.startswith("psum")]


def test_the_kernel_has_a_devices_queries_and_all_keys(given):
    # Interpreted, a program of several devices can wait for itself; it is traced here, not run.
    with layout_of("data, genes").in_force():
        jaxpr = jax.make_jaxpr(both("splash"))(*(jnp.tile(a, (1, 10, 1)) for a in given))
    shapes = [
        {var.aval.shape for var in eqn.invars}
        for eqn in equations(jaxpr.jaxpr)
        if eqn.primitive.name == "pallas_call"
    ]
    assert len(shapes) == 3
    # 2 rows of 4; 440 keys in a block of 512, 220 queries in one of 256.
    assert all({(2, 2, 512, 4), (2, 2, 256, 4)} <= found for found in shapes)


@pytest.mark.parametrize("form", ["xla", "chunked", "auto"])
def test_genes_that_do_not_divide_over_devices_are_an_error(key, form):
    qkv = projection(key, 4, 42, 2, 4, jnp.float32)
    with (
        layout_of("genes").in_force(),
        pytest.raises(errors.ConfigError, match="'genes' = 4 divides, found 42 genes.*panel of 40"),
    ):
        attention.attend(qkv, heads=2, implementation=form)


@pytest.mark.parametrize("form", ["xla", "chunked"])
def test_a_device_keeps_its_own_tokens_only(given, form):
    layout = layout_of("genes")
    with layout.in_force():
        _, pullback = jax.vjp(
            lambda x: attention.attend(x, heads=2, implementation=form), placed(layout, *given)[0]
        )
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.size > 100]
    assert [leaf.addressable_shards[0].data.shape for leaf in kept] == [(4, 11, 24)]
