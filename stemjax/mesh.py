"""Where arrays live: a device mesh, rules from parameter paths to shardings, host batch to global.

One program serves one device, several, and several processes: it is compiled by `jax.jit` for
arrays that `Layout.put` and `Layout.shardings` have placed, and XLA adds the communication. The
batch is split over the mesh axis `data`; parameters are copied to every device unless a rule says
otherwise, e.g. ``Layout(mesh=mesh, rules=((r"blocks/.*/kernel", P(None, "data")),))``.
"""

from __future__ import annotations

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

DATA = "data"
"""The mesh axis that splits a batch."""

type Rule = tuple[str, PartitionSpec]
"""A regular expression searched for in an array's path 'a/b/c', and where such an array goes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A mesh and the rules by which arrays are spread over it.

    Attributes:
      mesh: the devices by axis; one axis is `data`. An `AbstractMesh` will do for `shardings`.
      rules: tried in order, the first that is found in a path counts. The expression is searched
        for, so ``blocks/.*/kernel`` also takes the moments of the optimiser, whose paths end alike.
        An array that no rule finds is copied to every device.

    Raises:
      ConfigError: the mesh has no `data` axis, a rule names an axis that the mesh lacks, or is no
        regular expression.
    """

    mesh: Mesh | AbstractMesh
    rules: tuple[Rule, ...] = ()

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
        """The sharding of a batch: axis 0 over `data`."""
        return NamedSharding(self.mesh, PartitionSpec(DATA))

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
        """The batch as global arrays, axis 0 split over `data`.

        Each process gives its own rows; together, in the order of the processes, they are the
        batch, and a device holds a contiguous piece.

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
        processes = {device.process_index for device in cast(Mesh, self.mesh).devices.flat}
        pieces = self.mesh.shape[DATA] // len(processes)
        if count % pieces:
            raise errors.ConfigError(
                "batch",
                expected=f"a number of rows that {pieces} devices divide evenly",
                found=f"{count} rows in this process",
                fix=f"Set the batch to a multiple of {self.mesh.shape[DATA]}, "
                "the devices of all processes, or use fewer devices",
            )
        placed = {
            name: jax.make_array_from_process_local_data(self.data, np.asarray(array))
            for name, array in batch.items()
        }
        return cast(B, placed)

    def _sharding(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """The sharding of one array."""
        for pattern, spec in self.rules:
            if re.search(pattern, path):
                self._require_fit(path, shape, pattern, spec)
                return NamedSharding(self.mesh, spec)
        return self.replicated

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
) -> Layout:
    """The data-parallel layout: one axis `data` over the devices, everything else copied.

    Args:
      devices: which devices; None for all devices of all processes.

    Returns:
      The layout. Devices stand in the order of their processes, so that the rows of process i are
      the i-th piece of a batch however many processes there are.
    """
    chosen = jax.devices() if devices is None else devices
    # jax.make_mesh would order the devices by the interconnect; a sum over all of them does not
    # depend on that order, and the order of the rows (with it, each row's noise) does.
    ordered = sorted(chosen, key=lambda device: (device.process_index, device.id))
    return Layout(mesh=Mesh(np.asarray(ordered), (DATA,), axis_types=(AxisType.Auto,)))


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)
