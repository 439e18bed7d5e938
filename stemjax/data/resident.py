"""Rows that lie on the devices: a step is handed numbers of rows and variants, nothing else.

    (row, variant) [b] int32  --show, inside the step-->  gather, cast, standardise  -->  Batch

Every device holds the whole table, so any row can stand anywhere in a batch, and a device gathers
its own part of the batch without asking another. Float16 embeddings of all variants take 2 v c
bytes a spot, expression and mask 5 g. Where rows are dealt into decks, a device holds the decks of
its own part of the batch, and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from stemjax import typing as st
from stemjax.data import records as records_lib
from stemjax.data import space as space_lib
from stemjax.data.decks import Held
from stemjax.data.laid import Laid
from stemjax.data.schedule import Schedule, made_ahead

ROWS = ("cond", "x0", "mask")
"""What of a table there is for each row."""


class DeviceView:
    """A view whose rows lie on the devices.

    Attributes:
      n: rows.
      variants: variants of each row's embedding.
      table: ``cond`` [n v c] float16, ``x0`` [n g] float32, ``mask`` [n g] uint8, and ``mean`` and
        ``std`` of the condition, [c] float32; for windows also ``index`` and ``asked`` [w l], and
        ``xy`` and ``place`` [n 2] float32. With decks the rows are [d m] in place of [n].

    Args:
      table: the rows, on the host; may be let go of afterwards.
      space: the model's space; expression is encoded once, here.
      windows: what a row of a batch is, for networks of windows; None is a spot.
      sharding: where the table lies, whole on every device; None is one device.
      held: the decks whose rows these are, each filled up to one length, where they are dealt.
      spread: where decks lie, a share on each device.
      ahead: steps whose numbers the iterator makes ahead of use.
    """

    def __init__(
        self,
        table: records_lib.Table,
        space: space_lib.Space,
        *,
        windows: Laid | None = None,
        sharding: jax.sharding.Sharding | None = None,
        held: Held | None = None,
        spread: jax.sharding.Sharding | None = None,
        ahead: int = 8,
    ) -> None:
        self.n, self.variants = table.embeddings.shape[:2]
        self._held = held
        self._ahead, self._windowed = ahead, windows is not None
        where = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        host = {
            "cond": table.embeddings,
            "x0": space.encode_expression(table.counts, table.total, table.mask),
            "mask": table.mask,
            "mean": space.condition.mean,
            "std": space.condition.std,
        }
        if windows is not None:
            self.n = windows.windows.n
            host |= {
                "index": windows.windows.index,
                "asked": windows.windows.asked,
                "xy": windows.positions.xy_um.astype(np.float32),
                "place": windows.positions.place.astype(np.float32),
            }
        self.table = {}
        if held is not None and spread is not None:
            self.n = held.schedule.n
            self.table = {name: _dealt(host.pop(name), held, spread) for name in ROWS}
        self.table |= {name: _placed(values, where) for name, values in host.items()}

    def show(self, table: Mapping[str, Any], handed: Mapping[str, Any]) -> st.Batch:
        """The batch of the rows and variants handed over, float32: pure, for the compiled step.

        The arithmetic is `Space.encode_condition`'s, in float32: equal bits on a CPU; on an
        accelerator a division may differ in the last bit.
        """
        rows, variants = handed["row"], handed["variant"]
        present = asked = None
        if self._windowed:
            asked, rows = table["asked"][rows], table["index"][rows]
            present, variants = rows >= 0, jnp.broadcast_to(variants[:, None], rows.shape)
            rows = jnp.maximum(rows, 0)

        def at(name: str, *where: jax.Array) -> jax.Array:
            if self._held is None:
                return _taken(table[name], *where)
            # Every deck has a part of its own in the batch: no device looks into another's.
            decks = table[name].shape[0]
            parts = [place.reshape(decks, -1) for place in where]
            found = jax.vmap(_taken)(table[name], *parts)
            return found.reshape(-1, *found.shape[2:])

        cond = at("cond", rows, variants)
        mean, std = (jnp.broadcast_to(table[name], cond.shape) for name in ("mean", "std"))
        # XLA multiplies by the reciprocal of what it sees is repeated, which rounds once more.
        cond = (cond - mean) / jax.lax.optimization_barrier(std)
        batch = {"cond": cond, "x0": at("x0", rows), "mask": at("mask", rows)}
        if present is None or asked is None:
            return cast(st.Batch, batch)
        batch |= {"xy": at("xy", rows), "place": at("place", rows)}
        batch = {name: jnp.where(present[..., None], v, 0.0) for name, v in batch.items()}
        marks = {"present": present, "asked": asked & present, "shown": present & ~asked}
        return cast(st.Batch, batch | {k: v.astype(jnp.float32) for k, v in marks.items()})

    def batch_at(
        self, schedule: Schedule, step: int, process_index: int = 0, process_count: int = 1
    ) -> Mapping[str, np.ndarray]:
        """This process's numbers of `step`: ``row`` (in its deck) and ``variant``, [b] int32.

        Raises:
          ConfigError: the schedule counts other rows or variants than there are.
        """
        schedule.require_fit(self.n, self.variants)
        find = schedule.local if self._held is None else schedule.local_places
        rows, variants = find(step, process_index, process_count)
        return {"row": rows.astype(np.int32), "variant": variants.astype(np.int32)}

    def batches(
        self,
        schedule: Schedule,
        start_step: int,
        stop_step: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """The numbers of the steps from `start_step` to before `stop_step`, made ahead of use."""
        schedule.require_fit(self.n, self.variants)

        def make(step: int) -> Mapping[str, np.ndarray]:
            return self.batch_at(schedule, step, process_index, process_count)

        return made_ahead(make, range(start_step, stop_step), ahead=self._ahead)


def table_bytes(
    records: records_lib.Records, slide_ids: Sequence[str], *, rows: int | None = None
) -> int:
    """Bytes of each device's memory that a view of the slides takes.

    Args:
      records: the record directories.
      slide_ids: the slides.
      rows: rows that lie on a device; None is all of the slides'.
    """
    width = records.contract.width
    # float16 embeddings; float32 x0 and uint8 mask. Mean and std of the condition once.
    row = records.variants * width * 2 + len(records.genes) * (4 + 1)
    return row * (records.count(slide_ids) if rows is None else rows) + 2 * 4 * width


def device_memory() -> int:
    """Bytes that a program may use on one of this process's accelerators; 0 without one."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return 0
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def _taken(values: jax.Array, *where: jax.Array) -> jax.Array:
    # The schedule's numbers are in range; checking them would touch every value gathered.
    return values.at[where].get(mode="promise_in_bounds").astype(jnp.float32)


def _dealt(values: np.ndarray, held: Held, spread: jax.sharding.Sharding) -> jax.Array:
    """The decks on the devices, [d m ...]; each process copies its own to its own."""
    mine = values.reshape(len(held.decks), held.length, *values.shape[1:])

    def part(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(held.schedule.decks)
        return mine[start - held.decks.start : stop - held.decks.start]

    shape = (held.schedule.decks, *mine.shape[1:])
    return jax.make_array_from_callback(shape, spread, part)


def _placed(values: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """The array on the devices; each process copies to its own."""
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
