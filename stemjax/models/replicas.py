"""Networks that train on several devices without a sum of gradients at every layer.

Where weights are copied to the devices of the axis ``data``, the gradient of a layer is a sum over
them, and the compiler adds up where the sum arises: in the loop over layers, once a layer, and once
again for every part of a batch. Here the weights have a leading axis of one copy a device, split
over ``data``. Each device works with its own copy, its gradient stays with it through loops and
parts, and adding up the copies at the end of an update is one sum.

Only the network is cut into devices. What surrounds it (noise, loss, means over the batch) is of
the whole batch, so that results do not depend on the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from stemjax.models import network
from stemjax.models.placing import DATA
from stemjax.typing import Params


def per_replica(net: network.Conditional) -> network.Conditional:
    """Returns the network for weights that have a leading axis of one copy a device of ``data``.

    It is called in programs that are traced with a mesh in force (`stemjax.mesh.Layout.in_force`);
    its inputs have their rows over ``data``, in whole pieces. Weights are made by the network
    itself: `network.Network.init` has no copies.
    """

    def bind(params: Params, cond: Array, *, repeat: int = 1) -> network.Bound:
        def bound(x: Array, noise_level: Array) -> jax.Array:
            return _on_each(
                lambda own, cond, x, level: net.bind(own, cond, repeat=repeat)(x, level)
            )(params, cond, x, noise_level)

        return bound

    def apply(params: Params, *inputs: Array) -> jax.Array:
        return _on_each(net.apply)(params, *inputs)

    return network.Conditional(init=net.init, apply=apply, bind=bind, row_bytes=net.row_bytes)


def _on_each(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns ``run(params, *rows)`` on every device of ``data`` with its copy and its rows.

    The other axes of the mesh stay with the compiler.
    """

    def local(params: PyTree, *rows: Any) -> jax.Array:
        return run(jax.tree.map(lambda copy: copy[0], params), *rows)

    split = PartitionSpec(DATA)
    # Kernels inside do not say over which axes their output varies, so that cannot be checked.
    return jax.shard_map(local, in_specs=split, out_specs=split, axis_names={DATA}, check_vma=False)
