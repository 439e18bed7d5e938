"""Rotary positions in two dimensions: queries and keys of patches are turned by their place.

A head's channels are halves of pairs: channel i and channel i + k/2 are the two coordinates of a
point that is turned by an angle. The first half of the angles goes with a patch's row, the second
with its column; both run from -1 to 1 between the borders of the image, so that they need no
interpolation for another grid. Source: Simeoni et al., DINOv3 (arXiv 2508.10104), sec. 3.2, after
Su et al., RoFormer (arXiv 2104.09864).
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stemjax.models.vit.spec import ViTSpec


@functools.lru_cache(maxsize=16)
def angles(grid: int, head: int, longest: float) -> Float[np.ndarray, "n a"]:
    """Angles of each patch, row by row, in radians: [grid^2, head / 2].

    Of patch (y, x) they are 2 pi place / period, place -1 to 1 at the middle of the patch, periods
    ``longest`` ** (4 j / head) for j = 0 to head / 4 - 1, first of y, then of x.

    Args:
      grid: patches along a side.
      head: channels of a head, a multiple of 4.
      longest: what the periods grow to.
    """
    place = 2 * (np.arange(grid) + 0.5) / grid - 1
    periods = longest ** (4 * np.arange(head // 4) / head)
    turns = 2 * np.pi * place[:, None] / periods[None]
    rows = np.broadcast_to(turns[:, None], (grid, grid, head // 4))
    columns = np.broadcast_to(turns[None], (grid, grid, head // 4))
    return np.concatenate([rows, columns], axis=-1).reshape(grid**2, head // 2)


def turn(qkv_bn3d: Float[Array, "b n m"], spec: ViTSpec) -> Float[Array, "b n m"]:
    """Queries and keys of the patches turned; class token, registers and values as they are.

    Args:
      qkv_bn3d: queries, keys and values side by side, heads within each.
      spec: of the network.
    """
    b, n, m = qkv_bn3d.shape
    head = spec.width // spec.heads
    parts = qkv_bn3d.reshape(b, n, 3, spec.heads, head)
    first, rest = parts[:, : spec.prefix], parts[:, spec.prefix :]
    angle = angles(spec.grid, head, float(spec.rotary or 0.0)).astype(np.float64)
    # In float32: at bfloat16's 8 bits a turn would be off by half a degree.
    cos, sin = (jnp.asarray(f(angle), jnp.float32)[None, :, None, None] for f in (np.cos, np.sin))
    queries_keys = rest[:, :, :2].astype(jnp.float32)
    left, right = jnp.split(queries_keys, 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    rest = jnp.concatenate([turned.astype(rest.dtype), rest[:, :, 2:]], axis=2)
    return jnp.concatenate([first, rest], axis=1).reshape(b, n, m)
