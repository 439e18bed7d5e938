"""Self-attention of all tokens, in the forms that suit each platform, behind one switch.

Every form takes a block's fused projection [b g 3hk], whose columns are laid out (3, h, k), and
returns [b g hk]: layouts in between are its own affair, and half of what attention costs here.

    xla    written out; runs everywhere, and is the only form that `jax.jvp` can pass
    cudnn  cuDNN's fused kernel: NVIDIA, bfloat16, head width a multiple of 8
    flash  a Pallas kernel for TPU: a sample's tokens stay in VMEM, scores never reach memory
    auto   cudnn or flash where they fit, else xla

Names of arrays carry their dimensions: b batch, g tokens (genes), h heads, k head width, m = 3 h k.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stemjax import errors

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "flash")

FLASH_TOKENS = 1024
"""Most tokens that the TPU kernel takes: it unrolls all of a head's scores, [g g], and its gradient
for 1,024 tokens compiles in most of a minute."""


def attend(
    qkv_bgm: Float[Array, "b g m"], *, heads: int, implementation: str = "auto"
) -> Float[Array, "b g d"]:
    """Returns softmax(q k^T / sqrt(k)) v of every head, side by side, in the input's dtype.

    Scores and softmax are float32 in every form; the weights are rounded to the input's dtype for
    the product with v. Only ``xla`` can be differentiated forward (`jax.jvp`, which the likelihood
    and MeanFlow-like losses need); all have a reverse derivative that keeps no weights.

    Args:
      qkv_bgm: queries, keys and values, columns (3, heads, head width).
      heads: number of heads.
      implementation: one of `IMPLEMENTATIONS`. ``auto`` is resolved for the platform of this
        process; a program that is compiled for another one (ahead of time, or exported) must name
        its form. ``flash`` on several chips must be traced under `jax.set_mesh`, since XLA cannot
        split a kernel.

    Raises:
      ConfigError: the form does not fit platform, dtype, head width or number of tokens.
    """
    g, m = qkv_bgm.shape[1:]
    form = resolve(
        implementation,
        # Where a kernel for TPU is asked for by name, this process may be compiling for one.
        platform="tpu" if implementation == "flash" else jax.default_backend(),
        dtype=qkv_bgm.dtype,
        head_width=m // 3 // heads,
        tokens=g,
    )
    return _FORMS[form](qkv_bgm, heads)


def resolve(
    implementation: str, *, platform: str, dtype: DTypeLike, head_width: int, tokens: int
) -> str:
    """Returns ``xla``, ``cudnn`` or ``flash``: what an implementation means on a platform.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      platform: what the program is compiled for, ``cpu``, ``gpu`` or ``tpu``.
      dtype: of the matrix products.
      head_width: width of a head.
      tokens: number of tokens.

    Raises:
      ConfigError: no such implementation, or it does not fit the rest.
    """
    if implementation not in IMPLEMENTATIONS:
        raise errors.ConfigError(
            "model.attention", expected=" or ".join(IMPLEMENTATIONS), found=repr(implementation)
        )
    limits: dict[str, tuple[tuple[bool, str, str], ...]] = {
        "xla": (),
        "cudnn": (
            (platform == "gpu", "an NVIDIA GPU", platform),
            (jnp.dtype(dtype) == jnp.bfloat16, "model.dtype bfloat16", jnp.dtype(dtype).name),
            (head_width % 8 == 0, "a head width that is a multiple of 8", str(head_width)),
        ),
        "flash": (
            (platform == "tpu", "a TPU", platform),
            (tokens <= FLASH_TOKENS, f"at most {FLASH_TOKENS} genes", str(tokens)),
        ),
    }
    if implementation == "auto":
        fitting = (name for name in ("flash", "cudnn") if all(fits for fits, _, _ in limits[name]))
        return next(fitting, "xla")
    for fits, expected, found in limits[implementation]:
        if not fits:
            raise errors.ConfigError(
                f"model.attention {implementation!r}",
                expected=expected,
                found=found,
                fix="Take model.attention xla, or auto, which takes what fits",
            )
    return implementation


def _xla(qkv_bgm: Float[Array, "b g m"], heads: int) -> Float[Array, "b g d"]:
    b, g, m = qkv_bgm.shape
    qkv = qkv_bgm.reshape(b, g, 3, heads, m // 3 // heads)
    # One transpose for all three: heads beside the batch make every product a plain batched
    # matrix product, forward and backward.
    q, k, v = jnp.transpose(qkv, (2, 0, 3, 1, 4))
    return jnp.transpose(_written_out(q, k, v), (0, 2, 1, 3)).reshape(b, g, m // 3)


@jax.checkpoint
def _written_out(
    q_bhgk: Float[Array, "b h g k"],
    k_bhgk: Float[Array, "b h g k"],
    v_bhgk: Float[Array, "b h g k"],
) -> Float[Array, "b h g k"]:
    """The products as they are written.

    `jax.nn.dot_product_attention(implementation="xla")` gives the same numbers, and on a CPU its
    forward pass took six times as long (64 samples, 200 tokens, 4 heads of 16). The weights, the
    largest array of a block by far, are computed again in the backward pass: writing and reading
    them costs more than the two products, and they would be kept for every layer.
    """
    scale = q_bhgk.shape[-1] ** -0.5
    scores = jnp.einsum("bhgk,bhjk->bhgj", q_bhgk, k_bhgk, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scale * scores, axis=-1).astype(v_bhgk.dtype)
    return jnp.einsum("bhgj,bhjk->bhgk", weights, v_bhgk)


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


_FORMS: dict[str, Callable[[Array, int], Array]] = {"xla": _xla, "cudnn": _cudnn, "flash": _flash}
