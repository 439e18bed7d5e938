"""Attention over a mesh: rows of the batch over ``data`` and ``fsdp``, tokens over ``genes``.

Rows need nothing of each other, and no loop over samples and no Pallas kernel can be split by XLA:
they run in a `jax.shard_map` over the mesh that is in force while the program is traced. Where the
tokens are split too, each device attends from its own tokens to all: keys and values are gathered
over ``genes``, in one collective, and their slopes summed and scattered in one. They are gathered
again for the backward pass, so that a layer keeps its own tokens' projection and nothing longer.

Axes that a surrounding `jax.shard_map` has taken are left alone: there, arrays are local already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from stemjax import errors
from stemjax.models import placing

type Between = Callable[[Array, Array, Array], Array]
"""Attention from queries [b h q k] to keys and values [b h g k]; the output is like the queries."""


def gene_parts() -> int:
    """Returns over how many devices the mesh in force splits a sample's tokens."""
    split = placing.free_axes(placing.GENES)
    return jax.sharding.get_abstract_mesh().shape[placing.GENES] if split else 1


def require_even(tokens: int, parts: int) -> None:
    """Nothing, or an error where tokens do not divide over the devices that split them.

    Raises:
      ConfigError: they do not.
    """
    if tokens % parts:
        raise errors.ConfigError(
            "gene panel",
            expected=f"a number of genes that the mesh axis {placing.GENES!r} = {parts} divides",
            found=f"{tokens} genes",
            fix=f"Take a panel of {tokens // parts * parts} genes, or another number of devices",
        )


def attend(
    between: Between,
    qkv_bgm: Float[Array, "b g m"],
    heads: int,
    *,
    saved: str | None = None,
) -> Float[Array, "b g d"]:
    """Returns a form's attention of all tokens, rows and tokens split over the mesh in force.

    For the backward pass the projection is kept, and nothing else but arrays of the name ``saved``.

    Args:
      between: the form. It sees the rows and queries of one device, and all keys.
      qkv_bgm: queries, keys and values, columns (3, heads, head width).
      heads: number of heads.
      saved: name of what `between` has marked by `jax.ad_checkpoint.checkpoint_name` as worth
        keeping.

    Raises:
      ConfigError: the tokens do not divide over ``genes``.
    """
    parts = gene_parts()
    require_even(qkv_bgm.shape[1], parts)
    width = qkv_bgm.shape[2] // 3

    def local(qkv_bgm: Array) -> Array:
        q, kv = qkv_bgm[..., :width], qkv_bgm[..., width:]
        if parts > 1:
            kv = jax.lax.all_gather(kv, placing.GENES, axis=1, tiled=True)
        (q,), (k, v) = _heads_apart(q, 1, heads), _heads_apart(kv, 2, heads)
        out_bhqk = between(q, k, v)
        return jnp.swapaxes(out_bhqk, 1, 2).reshape(*qkv_bgm.shape[:2], width)

    policy = jax.checkpoint_policies.save_only_these_names(saved) if saved else None
    return over_rows(jax.checkpoint(local, policy=policy), tokens=parts > 1, checked=not saved)(
        qkv_bgm
    )


def over_rows(
    run: Callable[..., Array], *, tokens: bool = False, checked: bool = False
) -> Callable[..., Array]:
    """Returns a function of arrays [b g *] that runs on each device's rows of the mesh in force.

    An axis that would split the rows unevenly has all of them on each of its devices.

    Args:
      run: from arrays [b g *] to one such array, a row by itself; a Pallas kernel may be inside.
      tokens: whether axis 1 is split over ``genes`` too, which `run` then has to know.
      checked: whether JAX may check over which axes values vary. Pallas kernels do not tell.
    """

    def split(*arrays: Array) -> Array:
        mesh = jax.sharding.get_abstract_mesh()
        # A kernel is lowered only where no axis is left to the compiler, one of length 1 included.
        free = {n for n, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Auto}
        if not free or mesh.size == 1:
            return run(*arrays)
        # An axis of length 1 is named as well: over one that is not, slopes would be summed.
        rows, pieces = [], 1
        for name in (n for n in (placing.DATA, placing.FSDP) if n in free):
            if len(arrays[0]) % (pieces * mesh.shape[name]) == 0:
                rows.append(name)
                pieces *= mesh.shape[name]
        along = tokens or mesh.shape.get(placing.GENES) == 1
        spec = PartitionSpec(tuple(rows) or None, placing.GENES if along else None)
        mapped: Any = jax.shard_map(
            run, in_specs=spec, out_specs=spec, axis_names=free, check_vma=checked
        )
        return mapped(*arrays)

    return split


def _heads_apart(
    x_bgm: Float[Array, "b g m"], parts: int, heads: int
) -> Float[Array, "parts b h g k"]:
    """Returns columns (parts, heads, head width) as arrays with the heads beside the batch."""
    b, g, m = x_bgm.shape
    apart = x_bgm.reshape(b, g, parts, heads, m // parts // heads)
    return jnp.transpose(apart, (2, 0, 3, 1, 4))
