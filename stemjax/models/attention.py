"""Self-attention of all tokens, in the forms that suit each platform, behind one switch.

Every form takes a block's fused projection [b g 3hk], whose columns are laid out (3, h, k), and
returns [b g hk]: layouts in between are its own affair, and half of what attention costs here.

    xla      written out; runs everywhere
    chunked  the same for a few hundred queries at a time: any number of tokens
    cudnn    cuDNN's fused kernel: NVIDIA, bfloat16, head width a multiple of 8
    flash    a Pallas kernel for TPU: a sample's tokens stay in VMEM, scores never reach memory
    splash   JAX's Pallas kernel for TPU, for more tokens than that
    auto     a kernel where one fits, else xla up to `WRITTEN_TOKENS` and chunked beyond

`jax.jvp` passes xla and chunked alone. Where the mesh in force splits the tokens over its axis
``genes``, xla, chunked and splash attend from a device's tokens to all
(`stemjax.models.split_attention`); cudnn and flash take whole samples.

Names of arrays carry their dimensions: b batch, g tokens (genes), h heads, k head width, m = 3 h k.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stemjax import errors
from stemjax.models import long_attention, split_attention

IMPLEMENTATIONS = ("auto", "xla", "chunked", "cudnn", "flash", "splash")

WRITTEN_TOKENS = 1024
"""Most tokens whose scores ``auto`` writes out. On two CPU cores it depends on the batch which form
is faster at 1,000 tokens; beyond, ``chunked`` is, in a fraction of the memory
(docs/long_panels.md)."""

FLASH_TOKENS = 1024
"""Most tokens that the TPU kernel takes: it unrolls all of a head's scores, [g g], and its gradient
for 1,024 tokens compiles in most of a minute."""


def portable(tokens: int) -> str:
    """Returns the form that every platform has, and that `jax.jvp` passes, for so many tokens."""
    return "xla" if tokens <= WRITTEN_TOKENS else "chunked"


def attend(
    qkv_bgm: Float[Array, "b g m"], *, heads: int, implementation: str = "auto"
) -> Float[Array, "b g d"]:
    """Returns softmax(q k^T / sqrt(k)) v of every head, side by side, in the input's dtype.

    Scores and softmax are float32 in every form; the weights are rounded to the input's dtype for
    the product with v. ``xla`` and ``chunked`` can be differentiated forward (`jax.jvp`, which the
    likelihood and MeanFlow-like losses need); all have a reverse derivative that keeps no weights.

    On several devices all but ``xla`` and ``cudnn`` must be traced under `jax.set_mesh`: XLA splits
    neither a kernel nor a loop over samples. So must all forms where tokens are split.

    Args:
      qkv_bgm: queries, keys and values, columns (3, heads, head width).
      heads: number of heads.
      implementation: one of `IMPLEMENTATIONS`. ``auto`` is resolved for the platform of this
        process; a program that is compiled for another one (ahead of time, or exported) must name
        its form.

    Raises:
      ConfigError: the form does not fit platform, dtype, head width or number of tokens, or the
        tokens do not divide over the devices that are to share them.
    """
    g, m = qkv_bgm.shape[1:]
    parts = split_attention.gene_parts()
    form = resolve(
        implementation,
        # Where a kernel for TPU is asked for by name, this process may be compiling for one.
        platform="tpu" if implementation in ("flash", "splash") else jax.default_backend(),
        dtype=qkv_bgm.dtype,
        head_width=m // 3 // heads,
        tokens=g,
        parts=parts,
    )
    if parts == 1 and form in _WHOLE:
        return _WHOLE[form](qkv_bgm, heads)
    saved = long_attention.SPLASH_KEPT if form == "splash" else None
    return split_attention.attend(_BETWEEN[form], qkv_bgm, heads, saved=saved)


def resolve(
    implementation: str,
    *,
    platform: str,
    dtype: DTypeLike,
    head_width: int,
    tokens: int,
    parts: int = 1,
) -> str:
    """Returns one of `IMPLEMENTATIONS` but ``auto``: what an implementation means on a platform.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      platform: what the program is compiled for, ``cpu``, ``gpu`` or ``tpu``.
      dtype: of the matrix products.
      head_width: width of a head.
      tokens: number of tokens.
      parts: devices over which a sample's tokens are split.

    Raises:
      ConfigError: no such implementation, or it does not fit the rest.
    """
    if implementation not in IMPLEMENTATIONS:
        raise errors.ConfigError(
            "model.attention", expected=" or ".join(IMPLEMENTATIONS), found=repr(implementation)
        )
    a_tpu = (platform == "tpu", "a TPU", platform)
    whole = (parts == 1, "a sample's genes on one device", f"on {parts}")
    limits: dict[str, tuple[tuple[bool, str, str], ...]] = {
        "xla": (),
        "chunked": (),
        "cudnn": (
            (platform == "gpu", "an NVIDIA GPU", platform),
            (jnp.dtype(dtype) == jnp.bfloat16, "model.dtype bfloat16", jnp.dtype(dtype).name),
            (head_width % 8 == 0, "a head width that is a multiple of 8", str(head_width)),
            whole,
        ),
        "flash": (
            a_tpu,
            (tokens <= FLASH_TOKENS, f"at most {FLASH_TOKENS} genes", str(tokens)),
            whole,
        ),
        "splash": (a_tpu,),
    }
    if implementation == "auto":
        kernels = ("flash", "splash", "cudnn")
        fitting = (name for name in kernels if all(fits for fits, _, _ in limits[name]))
        return next(fitting, portable(tokens))
    for fits, expected, found in limits[implementation]:
        if not fits:
            raise errors.ConfigError(
                f"model.attention {implementation!r}",
                expected=expected,
                found=found,
                fix="Take model.attention auto, which takes what fits",
            )
    return implementation


def _xla(qkv_bgm: Float[Array, "b g m"], heads: int) -> Float[Array, "b g d"]:
    b, g, m = qkv_bgm.shape
    qkv = qkv_bgm.reshape(b, g, 3, heads, m // 3 // heads)
    # One transpose for all three: heads beside the batch make every product a plain batched
    # matrix product, forward and backward.
    q, k, v = jnp.transpose(qkv, (2, 0, 3, 1, 4))
    out_bhgk = jax.checkpoint(written_out)(q, k, v)
    return jnp.transpose(out_bhgk, (0, 2, 1, 3)).reshape(b, g, m // 3)


def written_out(
    q_bhqk: Float[Array, "b h q k"],
    k_bhgk: Float[Array, "b h g k"],
    v_bhgk: Float[Array, "b h g k"],
) -> Float[Array, "b h q k"]:
    """Returns softmax(q k^T / sqrt(k)) v as it is written, for queries that may be fewer than keys.

    `jax.nn.dot_product_attention(implementation="xla")` gives the same numbers, and on a CPU its
    forward pass took six times as long (64 samples, 200 tokens, 4 heads of 16). The weights, the
    largest array of a block by far, are to be computed again in the backward pass (callers wrap
    this in `jax.checkpoint`): writing and reading them costs more than the two products, and they
    would be kept for every layer.
    """
    scale = q_bhqk.shape[-1] ** -0.5
    scores = jnp.einsum("bhqk,bhgk->bhqg", q_bhqk, k_bhgk, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scale * scores, axis=-1).astype(v_bhgk.dtype)
    return jnp.einsum("bhqg,bhgk->bhqk", weights, v_bhgk)


def _cudnn(qkv_bgm: Float[Array, "b g m"], heads: int) -> Float[Array, "b g d"]:
    b, g, m = qkv_bgm.shape
    # cuDNN reads [b g h k]: no transpose at all.
    q, k, v = jnp.moveaxis(qkv_bgm.reshape(b, g, 3, heads, m // 3 // heads), 2, 0)
    out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return out.reshape(b, g, m // 3)


def _flash(qkv_bgm: Float[Array, "b g m"], heads: int) -> Float[Array, "b g d"]:
    # Pallas for TPU takes most of a second to import, which nobody else should wait for.
    from stemjax.models import flash

    return flash.attend(qkv_bgm, heads)


_WHOLE: dict[str, Callable[[Array, int], Array]] = {"xla": _xla, "cudnn": _cudnn, "flash": _flash}
"""Forms of whole samples, in the layout that suits each."""

_BETWEEN: dict[str, split_attention.Between] = {
    "xla": written_out,
    "chunked": long_attention.chunked,
    "splash": long_attention.splash,
}
"""Forms between a device's queries and all keys."""
