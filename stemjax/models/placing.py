"""Where a network's arrays lie on a mesh, said inside the network: three hints to the compiler.

Programs are traced while a mesh is in force (`stemjax.mesh.Layout.in_force`). Axes that are left to
the compiler there (`AxisType.Auto`) are its to use; those that a surrounding `jax.shard_map` has
taken are not. Without a mesh, or on one device, the hints are nothing at all.
"""

from __future__ import annotations

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

DATA, FSDP, GENES = "data", "fsdp", "genes"
"""The axes of `stemjax.mesh` (rooms of one layer share no imports)."""


def free_axes(*names: str) -> tuple[str, ...]:
    """Returns those axes of the mesh in force that are longer than 1 and left to the compiler."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return tuple(n for n in names if mesh.shape.get(n, 1) > 1 and types[n] == AxisType.Auto)


def gathered(weights: PyTree) -> PyTree:
    """Returns weights that are split over ``fsdp`` whole, for the layer that is about to use them.

    Said where they are used, in the body of the scan over layers, so that one layer is whole at a
    time and its gradient is scattered again before the next.
    """
    if not free_axes(FSDP):
        return weights
    whole = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec())
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, whole), weights)


def spread_tokens(x_bgd: Float[Array, "b g d"]) -> Float[Array, "b g d"]:
    """Returns the residual stream with rows over ``data`` and ``fsdp``, tokens over ``genes``."""
    rows, tokens = free_axes(DATA, FSDP), free_axes(GENES)
    if not rows and not tokens:
        return x_bgd
    spec = PartitionSpec(rows or None, tokens or None)
    where = NamedSharding(jax.sharding.get_abstract_mesh(), spec)
    return jax.lax.with_sharding_constraint(x_bgd, where)
