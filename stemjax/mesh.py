"""Where arrays live: a device mesh, rules from parameter paths to shardings, host batch to global.

One program serves one device, several, and several processes: it is compiled by `jax.jit` for
arrays that `Layout.put` and `Layout.shardings` have placed. The mesh has three axes:

    data    rows of the batch; every device has all weights, gradients are summed once an update
    fsdp    rows too, and the large weights, their averages and moments are split over it: a layer
            is gathered when it is used (ZeRO-3, arXiv 1910.02054)
    genes   gene tokens of one row, for panels whose activations do not fit a device

Devices stand in the order of slices, then processes: ``data`` goes over the slow network between
slices, ``fsdp`` and ``genes`` stay inside one.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from stemjax import errors

DATA, FSDP, GENES = "data", "fsdp", "genes"
"""The axes of a mesh; the first two split a batch."""

SPLIT_FROM = 2**16
"""Elements of an array from which `fsdp` splits it: gathering less costs more than it saves."""

_LAYERS = re.compile(r"(^|/)blocks/")
"""Arrays whose first dimension counts layers, which are used one after another."""

type Rule = tuple[str, PartitionSpec]
"""A regular expression searched for in an array's path 'a/b/c', and where such an array goes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A mesh and the rules by which arrays are spread over it.

    Attributes:
      mesh: the devices by axis; one axis is `data`. An `AbstractMesh` will do for `shardings`.
      rules: tried in order, the first that is found in a path counts. The expression is searched
        for, so ``blocks/.*/kernel`` also takes the moments of the optimiser, whose paths end alike.
        An array that no rule finds is split over `fsdp` along its longest dimension that this axis
        divides, the layers of ``blocks/`` apart; small ones, and all where there is no such axis,
        are copied to every device.
      split_from: elements from which an array is no longer small.

    Raises:
      ConfigError: the mesh has no `data` axis, a rule names an axis that the mesh lacks, or is no
        regular expression.
    """

    mesh: Mesh | AbstractMesh
    rules: tuple[Rule, ...] = ()
    split_from: int = SPLIT_FROM

    def __post_init__(self) -> None:
        axes = self.mesh.axis_names
        if DATA not in axes:
            raise errors.ConfigError("mesh axes", expected=f"one named {DATA!r}", found=repr(axes))
        for pattern, spec in self.rules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise errors.ConfigError(
                    f"sharding rule {pattern!r}", expected="a regular expression", found=str(error)
                ) from error
            for axis in sum((_axes(entry) for entry in spec), ()):
                if axis not in axes:
                    raise errors.ConfigError(
                        f"sharding rule {pattern!r} -> {spec}",
                        expected=f"axes of the mesh, {axes}",
                        found=repr(axis),
                    )

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def data(self) -> NamedSharding:
        """The sharding of a batch: axis 0 over `data` and `fsdp`."""
        return NamedSharding(self.mesh, PartitionSpec(self.row_axes))

    @property
    def row_axes(self) -> tuple[str, ...]:
        """The axes of this mesh that split a batch."""
        return tuple(axis for axis in (DATA, FSDP) if axis in self.mesh.axis_names)

    @property
    def pieces(self) -> int:
        """Pieces that a batch is split into."""
        return math.prod(self.mesh.shape[axis] for axis in self.row_axes)

    @property
    def share(self) -> tuple[int, int]:
        """Which share of a batch's rows this process hands over, and how many shares there are.

        Processes that hold pieces of the same rows' genes hand over the same share.
        """
        devices = np.asarray(cast(Mesh, self.mesh).devices)
        held = [device.process_index == jax.process_index() for device in devices.flat]
        where = np.flatnonzero(np.reshape(held, (self.pieces, -1)).any(axis=1))
        return int(where[0]) // len(where), self.pieces // len(where)

    def in_force(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which kernels that XLA cannot split find the mesh to split over.

        Programs are traced in it; it changes nothing for those that have no such kernel.
        """
        return jax.set_mesh(cast(Mesh, self.mesh))

    def shardings(self, abstract: PyTree) -> PyTree:
        """A sharding for each array of a tree, by the first rule found in its path.

        Args:
          abstract: arrays or shapes, e.g. from `jax.eval_shape`; dicts, tuples and the optimiser's
            named tuples give the parts of the path.

        Returns:
          The same tree with a `NamedSharding` for each leaf: `out_shardings` of an initialiser.

        Raises:
          ConfigError: a rule splits a dimension that its mesh axes do not divide, or one that the
            array does not have; names the path.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: self._sharding(
                jax.tree_util.keystr(path, simple=True, separator="/"), tuple(leaf.shape)
            ),
            abstract,
        )

    def put[B: Mapping[str, Any]](self, batch: B) -> B:
        """The batch as global arrays, axis 0 split over `data` and `fsdp`.

        Each process gives its own rows (`share`); together, in the order of the processes, they
        are the batch, and a device holds a contiguous piece.

        Args:
          batch: name -> array on the host, [rows of this process, ...].

        Raises:
          ConfigError: the arrays differ in their number of rows, or the rows of this process do not
            divide over its devices.
        """
        rows = {name: len(array) for name, array in batch.items()}
        if len(set(rows.values())) != 1:
            raise errors.ConfigError(
                "batch", expected="arrays with one number of rows", found=repr(rows)
            )
        count = next(iter(rows.values()))
        shares = self.share[1]
        pieces = self.pieces // shares
        if count % pieces:
            raise errors.ConfigError(
                "batch",
                expected=f"a number of rows that {pieces} devices divide evenly",
                found=f"{count} rows in this process",
                fix=f"Set the batch to a multiple of {self.pieces}, "
                "the devices of all processes, or use fewer devices",
            )
        placed = {
            name: jax.make_array_from_process_local_data(
                self.data, np.asarray(array), (count * shares, *np.shape(array)[1:])
            )
            for name, array in batch.items()
        }
        return cast(B, placed)

    def _sharding(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """The sharding of one array."""
        for pattern, spec in self.rules:
            if re.search(pattern, path):
                self._require_fit(path, shape, pattern, spec)
                return NamedSharding(self.mesh, spec)
        return self._split(path, shape)

    def _split(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """The sharding of an array that no rule finds."""
        pieces = dict(self.mesh.shape).get(FSDP, 1)
        first = 1 if _LAYERS.search(path) else 0
        fitting = [i for i in range(first, len(shape)) if shape[i] % pieces == 0]
        if pieces == 1 or math.prod(shape) < self.split_from or not fitting:
            return self.replicated
        # The last of the longest: the compiler then scatters the gradient where it sums it.
        longest = max(fitting, key=lambda i: (shape[i], i))
        return NamedSharding(self.mesh, PartitionSpec(*[None] * longest, FSDP))

    def _require_fit(
        self, path: str, shape: tuple[int, ...], pattern: str, spec: PartitionSpec
    ) -> None:
        """Nothing, or an error that names the array, the rule and the dimension."""
        rule = f"array {path} of shape {shape} under the sharding rule {pattern!r} -> {spec}"
        if len(spec) > len(shape):
            raise errors.ConfigError(
                rule, expected=f"at least {len(spec)} dimensions", found=str(len(shape))
            )
        for dimension, entry in enumerate(spec):
            pieces = math.prod(self.mesh.shape[axis] for axis in _axes(entry))
            if shape[dimension] % pieces:
                raise errors.ConfigError(
                    rule,
                    expected=f"dimension {dimension} to be a multiple of {pieces}",
                    found=str(shape[dimension]),
                    fix="Split another dimension in the rule, or change the model's width",
                )


def make_layout(
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
    *,
    fsdp: int = 1,
    genes: int = 1,
) -> Layout:
    """The layout of a run: the devices in rows of ``fsdp`` times ``genes``, the rest is `data`.

    Args:
      devices: which devices; None for all devices of all processes.
      fsdp: devices that large weights are split over; 1 copies them to every device.
      genes: devices that the gene tokens of a row are split over.

    Returns:
      The layout. Devices stand in the order of their slices, then processes, so that the rows of
      process i are the i-th piece of a batch however many processes there are, and `data` alone
      goes from slice to slice.

    Raises:
      ConfigError: the devices of a slice do not divide into such groups, or `genes` and the devices
        of a process do not divide each other.
    """
    chosen = jax.devices() if devices is None else devices
    # jax.make_mesh would order the devices by the interconnect; a sum over all of them does not
    # depend on that order, and the order of the rows (with it, each row's noise) does. Neighbours
    # in this order are neighbours on a slice, which is what the short axes need.
    ordered = sorted(chosen, key=lambda d: (_slice(d), d.process_index, d.id))
    group = fsdp * genes
    for name, counts in (
        ("a slice", collections.Counter(map(_slice, ordered))),
        ("all slices", {0: len(ordered)}),
    ):
        for count in counts.values():
            if group < 1 or count % group:
                raise errors.ConfigError(
                    f"config.mesh.fsdp={fsdp}, config.mesh.genes={genes}",
                    expected=f"a product that divides the {count} devices of {name}",
                    found=str(group),
                    fix="Take a divisor, or other devices",
                )
    for count in collections.Counter(d.process_index for d in ordered).values():
        if count % genes and genes % count:
            raise errors.ConfigError(
                f"config.mesh.genes={genes}",
                expected=f"a divisor or a multiple of the {count} devices of a process",
                found=str(genes),
            )
    grid = np.asarray(ordered).reshape(-1, fsdp, genes)
    return Layout(mesh=Mesh(grid, (DATA, FSDP, GENES), axis_types=(AxisType.Auto,) * 3))


def local_layout() -> Layout:
    """The layout of this process's own devices, which is where it predicts."""
    return make_layout(jax.local_devices())


def bring_home[T](tree: T) -> T:
    """Global arrays as arrays of this process's own devices, each of which then holds all of them.

    A collective where the arrays are spread over processes: all of them call it.

    Args:
      tree: arrays, of one layout.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    if all(leaf.is_fully_addressable for leaf in leaves):
        return tree
    where = local_layout().replicated

    def at_home(leaf: jax.Array) -> jax.Array:
        pieces = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, where, pieces)

    spread = next(leaf.sharding for leaf in leaves if not leaf.is_fully_addressable)
    whole = NamedSharding(cast(NamedSharding, spread).mesh, PartitionSpec())
    return jax.tree.map(at_home, jax.jit(lambda tree: tree, out_shardings=whole)(tree))


def _slice(device: Any) -> int:
    """The slice of a device: chips that a fast network of their own connects; 0 where all are."""
    return getattr(device, "slice_index", 0) or 0


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)
