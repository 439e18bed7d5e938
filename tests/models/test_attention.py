"""The forms of attention: each against an independent one, and which of them a platform gets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_attention import (
    TOLERANCE,
    equations,
    exact,
    exact_gradient,
    interpreted,
    projection,
)

from stemjax import errors, mesh
from stemjax.models import attention

FORMS = ["xla", "chunked", "flash", "splash"]


def run(form, qkv, heads):
    """The output of a form; the TPU kernel is interpreted."""
    with interpreted(form):
        return attention.attend(qkv, heads=heads, implementation=form)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", FORMS)
# Neither 5 nor 37 tokens, nor heads 4 or 12 wide, are multiples of anything that a tile is.
@pytest.mark.parametrize(("g", "heads", "width"), [(5, 3, 4), (37, 2, 12)])
def test_values_and_gradients_are_those_of_attention(key, form, dtype, g, heads, width):
    qkv = projection(key, 2, g, heads, width, dtype)
    cotangent = jax.random.normal(jax.random.fold_in(key, 1), (2, g, heads * width)).astype(dtype)
    with interpreted(form):
        out, pullback = jax.vjp(
            lambda qkv: attention.attend(qkv, heads=heads, implementation=form), qkv
        )
        (grad,) = pullback(cotangent)
    assert out.dtype == grad.dtype == qkv.dtype
    np.testing.assert_allclose(np.float64(out), exact(qkv, heads), atol=TOLERANCE[dtype])
    expected = exact_gradient(qkv, cotangent, heads)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.float64(grad), expected, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("form", FORMS)
def test_large_scores_do_not_overflow(key, form):
    # exp(89) is beyond float32; these scores reach thousands.
    qkv = 60.0 * projection(key, 1, 9, 1, 8, jnp.float32)
    out = run(form, qkv, 1)
    # The products are near 1e5, so their rounding of 2^-24 moves a weight by up to a hundredth.
    np.testing.assert_allclose(np.float64(out), exact(qkv, 1), atol=1e-2 * 60)


@pytest.mark.parametrize("form", ["xla", "chunked", "flash"])
def test_scores_are_not_kept_for_the_backward_pass(key, form):
    qkv = projection(key, 2, 40, 2, 4, jnp.float32)
    with interpreted(form):
        _, pullback = jax.vjp(lambda x: attention.attend(x, heads=2, implementation=form), qkv)
    kept = [leaf.size for leaf in jax.tree.leaves(pullback)]
    assert max(kept) <= qkv.size < 2 * 2 * 40 * 40


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_the_kernel_is_split_over_the_mesh_in_force(key, fsdp):
    layout = mesh.make_layout(jax.local_devices()[:4], fsdp=fsdp)
    qkv = projection(key, 8, 5, 2, 4, jnp.float32)
    split = jax.device_put(qkv, layout.data)

    def grad(x):
        return jax.grad(lambda x: attention.attend(x, heads=2, implementation="flash").sum())(x)

    # Interpreted, a program of several devices can wait for itself; it is traced here, not run.
    with layout.in_force():
        jaxpr = jax.make_jaxpr(grad)(split)
    calls = [eqn for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "pallas_call"]
    assert [call.invars[0].aval.shape[0] for call in calls] == [2, 2]  # forward and backward
    alone = jax.make_jaxpr(grad)(qkv)
    calls = [eqn for eqn in equations(alone.jaxpr) if eqn.primitive.name == "pallas_call"]
    assert [call.invars[0].aval.shape[0] for call in calls] == [8, 8]


@pytest.mark.parametrize(
    ("platform", "dtype", "width", "tokens", "expected"),
    [
        ("cpu", "bfloat16", 64, 200, "xla"),
        ("tpu", "bfloat16", 64, 200, "flash"),
        ("tpu", "float32", 12, attention.FLASH_TOKENS, "flash"),
        ("tpu", "bfloat16", 64, attention.FLASH_TOKENS + 1, "splash"),
        ("cpu", "float32", 64, attention.WRITTEN_TOKENS, "xla"),
        ("cpu", "float32", 64, attention.WRITTEN_TOKENS + 1, "chunked"),
        ("gpu", "bfloat16", 64, 5000, "cudnn"),
        ("gpu", "float32", 64, 200, "xla"),
        ("gpu", "bfloat16", 12, 200, "xla"),
        ("gpu", "float32", 64, 5000, "chunked"),
    ],
)
def test_auto_takes_what_fits(platform, dtype, width, tokens, expected):
    given = {"platform": platform, "dtype": dtype, "head_width": width, "tokens": tokens}
    assert attention.resolve("auto", **given) == expected
    assert attention.resolve(expected, **given) == expected
    assert attention.resolve("xla", **given) == "xla"


@pytest.mark.parametrize(
    ("platform", "tokens", "expected"),
    [
        ("cpu", 200, "xla"),
        ("cpu", 4000, "chunked"),
        ("gpu", 4000, "chunked"),
        ("tpu", 200, "splash"),
        ("tpu", 4000, "splash"),
    ],
)
def test_auto_takes_a_form_that_can_share_out_the_genes(platform, tokens, expected):
    given = {"platform": platform, "dtype": "bfloat16", "head_width": 64, "tokens": tokens}
    assert attention.resolve("auto", parts=2, **given) == expected


@pytest.mark.parametrize(
    ("form", "change", "expected"),
    [
        ("cudnn", {"platform": "cpu"}, "NVIDIA GPU, found cpu"),
        ("cudnn", {"dtype": "float32"}, "bfloat16, found float32"),
        ("cudnn", {"head_width": 12}, "multiple of 8, found 12"),
        ("flash", {"platform": "gpu"}, "a TPU, found gpu"),
        ("flash", {"platform": "tpu", "tokens": 4000}, "1024 genes, found 4000"),
        ("splash", {}, "a TPU, found gpu"),
        ("cudnn", {"parts": 2}, "genes on one device, found on 2"),
        ("flash", {"platform": "tpu", "parts": 4}, "genes on one device, found on 4"),
        ("triton", {}, "auto or xla or chunked or .*, found 'triton'"),
    ],
)
def test_a_form_that_does_not_fit_is_an_error_that_says_why(form, change, expected):
    fits = {"platform": "gpu", "dtype": "bfloat16", "head_width": 64, "tokens": 200}
    with pytest.raises(errors.ConfigError, match=expected):
        attention.resolve(form, **fits | change)


def test_attention_by_name_is_checked_where_it_is_called(key):
    qkv = projection(key, 1, 4, 1, 8, jnp.bfloat16)
    with pytest.raises(errors.ConfigError, match="NVIDIA GPU, found cpu"):
        attention.attend(qkv, heads=1, implementation="cudnn")


def test_forms_without_a_kernel_can_be_differentiated_forward(key):
    qkv = projection(key, 1, 4, 1, 8, jnp.float32)
    tangent = projection(jax.random.fold_in(key, 1), 1, 4, 1, 8, jnp.float32)

    def slope(form):
        return jax.jvp(lambda x: attention.attend(x, heads=1, implementation=form),
                       (qkv,), (tangent,))[1]  # fmt: skip

    step = 1e-4
    rise = exact(qkv + step * tangent, 1) - exact(qkv - step * tangent, 1)
    # Central difference: its own error is step^2; the float32 inputs' rounding over the step 6e-4.
    for form in ("xla", "chunked"):
        np.testing.assert_allclose(np.float64(slope(form)), rise / (2 * step), atol=5e-3)
    for form in ("flash", "splash"):
        with interpreted(form), pytest.raises(TypeError, match="custom_vjp"):
            jax.jit(lambda form=form: slope(form)).lower()


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
def test_cudnn_agrees_with_the_written_out_form(key):
    qkv = projection(key, 4, 200, 6, 64, jnp.bfloat16)

    def both(form):
        return jax.value_and_grad(
            lambda x: attention.attend(x, heads=6, implementation=form).astype(jnp.float32).sum()
        )(qkv)

    np.testing.assert_allclose(
        np.float64(run("cudnn", qkv, 6)), exact(qkv, 6), atol=TOLERANCE["bfloat16"]
    )
    expected, found = both("xla")[1], both("cudnn")[1]
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(
        np.float64(found), np.float64(expected), atol=TOLERANCE["bfloat16"] * scale
    )
