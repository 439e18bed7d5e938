"""Batches as a function of (seed, step): the same rows for any number of processes.

    Schedule  (seed, step) -> row numbers and variants      no state but the step
    view      row numbers and variants -> Batch             on the devices, in RAM, or from disk

What a view hands to a step goes from the host to the devices; ``show``, inside the compiled step,
makes the batch of it. Views in RAM and from disk hand over the batch itself; a view on the devices
(`stemjax.data.resident`) hands over numbers of rows and variants alone.

All views give equal batches, bit for bit on a CPU: where the rows lie is a question of speed only.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

import jax
import numpy as np

from stemjax import errors
from stemjax import typing as st
from stemjax.data import records as records_lib
from stemjax.data import resident
from stemjax.data import space as space_lib
from stemjax.data.decks import Held
from stemjax.data.laid import Laid
from stemjax.data.schedule import Schedule, made_ahead
from stemjax.data.shown import Shown


class View(Protocol):
    """Batches of one set of rows, wherever they lie.

    Attributes:
      n: rows.
      variants: variants of each row's embedding.
    """

    n: int
    variants: int

    @property
    def table(self) -> Mapping[str, jax.Array]:
        """What lies on the devices for as long as the view is used; empty for rows of the host."""
        ...

    def show(self, table: Mapping[str, Any], handed: Mapping[str, Any]) -> st.Batch:
        """The batch that was handed over: a pure function, for use inside the compiled step."""
        ...

    def batch_at(
        self, schedule: Schedule, step: int, process_index: int = 0, process_count: int = 1
    ) -> Mapping[str, Any]:
        """What this process hands over for `step`."""
        ...

    def batches(
        self,
        schedule: Schedule,
        start_step: int,
        stop_step: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Mapping[str, Any]]:
        """The same of the steps from `start_step` to before `stop_step`, made ahead of use."""
        ...


class HostView:
    """What views whose rows come from the host have in common: a batch is handed over whole."""

    @property
    def table(self) -> Mapping[str, jax.Array]:
        """Nothing lies on the devices."""
        return {}

    def show(self, table: Mapping[str, Any], handed: Mapping[str, Any]) -> st.Batch:
        """The batch, which is what was handed over."""
        del table
        return cast(st.Batch, dict(handed))


class ResidentView(HostView):
    """A view that holds the rows in RAM and only gathers.

    Args:
      table: the rows; its embeddings are kept as they are (float16, all variants), not copied.
      space: the model's space; expression is encoded once, here.
      windows: what a row of a batch is, for networks of windows; None is a spot.
      held: which rows they are, where they are not all.
      ahead: batches that the iterator makes ahead of use.
    """

    def __init__(
        self,
        table: records_lib.Table,
        space: space_lib.Space,
        *,
        windows: Laid | None = None,
        held: Held | None = None,
        ahead: int = 2,
    ) -> None:
        self.n, self.variants = table.embeddings.shape[:2]
        if windows is not None:
            self.n = windows.windows.n
        if held is not None:
            self.n = held.schedule.n
        self._space, self._ahead, self._windows, self._held = space, ahead, windows, held
        self._embeddings = table.embeddings
        self._x0 = space.encode_expression(table.counts, table.total, table.mask)
        self._mask = table.mask

    def batch_at(
        self, schedule: Schedule, step: int, process_index: int = 0, process_count: int = 1
    ) -> st.Batch:
        """This process's part of the batch of `step`, float32 arrays.

        Raises:
          ConfigError: the schedule counts other rows or variants than there are.
        """
        schedule.require_fit(self.n, self.variants)
        rows, variants = schedule.local(step, process_index, process_count)
        if self._windows is not None:
            index = self._windows.windows.index[rows]
            found = np.maximum(index, 0)
            cond = self._space.encode_condition(self._embeddings[found, variants[:, None]])
            return self._windows.batch(
                rows, cond=cond, x0=self._x0[found], mask=self._mask[found].astype(np.float32)
            )
        if self._held is not None:
            rows = self._held.find(rows)
        return st.Batch(
            cond=self._space.encode_condition(self._embeddings[rows, variants]),
            x0=self._x0[rows],
            mask=self._mask[rows].astype(np.float32),
        )

    def batches(
        self,
        schedule: Schedule,
        start_step: int,
        stop_step: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[st.Batch]:
        """The batches of the steps from `start_step` to before `stop_step`.

        One thread gathers ahead while the device works on the batch before.
        """
        schedule.require_fit(self.n, self.variants)

        def make(step: int) -> st.Batch:
            return self.batch_at(schedule, step, process_index, process_count)

        return made_ahead(make, range(start_step, stop_step), ahead=self._ahead)


class StreamingView(HostView):
    """A view that reads each batch from the array_record shards, by grain's threads.

    Grain's own shuffling, epochs and process slices are not used: its epoch e of seed s equals
    epoch 0 of seed s + e, and its state binds a run to one process count. Only its threaded
    read-ahead over the steps is. No worker processes: they survive a killed parent.

    Args:
      records: the record directories.
      slide_ids: the slides whose rows are read.
      space: the model's space.
      shown: which of their rows, where not all are.
      windows: what a row of a batch is, for networks of windows; None is a spot.
      threads: threads that read and decode; 0 reads in the calling thread.
      ahead: batches kept ready.

    Raises:
      RecordsError: a slide is unknown or a shard is damaged.
    """

    def __init__(
        self,
        records: records_lib.Records,
        slide_ids: Sequence[str],
        space: space_lib.Space,
        *,
        shown: Shown | None = None,
        windows: Laid | None = None,
        threads: int = 2,
        ahead: int = 8,
    ) -> None:
        self._source = records.source(slide_ids) if shown is None else shown
        self.n, self.variants = len(self._source), records.variants
        if windows is not None:
            self.n = windows.windows.n
        self._space, self._threads, self._ahead = space, threads, ahead
        self._windows = windows

    def batch_at(
        self, schedule: Schedule, step: int, process_index: int = 0, process_count: int = 1
    ) -> st.Batch:
        """This process's part of the batch of `step`, float32 arrays.

        Raises:
          ConfigError: the schedule counts other rows or variants than there are.
          RecordsError: a shard was damaged since it was checked.
        """
        schedule.require_fit(self.n, self.variants)
        rows, variants = schedule.local(step, process_index, process_count)
        if self._windows is None:
            return self._space.batch(self._source.gather(rows), variants)
        index = self._windows.windows.index[rows]
        # Windows overlap: each row is read and decoded once.
        wanted, place = np.unique(np.maximum(index, 0), return_inverse=True)
        table, place = self._source.gather(wanted), place.reshape(index.shape)
        encoded = self._space.encode_expression(table.counts, table.total, table.mask)
        return self._windows.batch(
            rows,
            cond=self._space.encode_condition(table.embeddings[place, variants[:, None]]),
            x0=encoded[place],
            mask=table.mask[place].astype(np.float32),
        )

    def batches(
        self,
        schedule: Schedule,
        start_step: int,
        stop_step: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[st.Batch]:
        """The batches of the steps from `start_step` to before `stop_step`, read ahead."""
        import grain  # 2 s, and the resident view does without it

        schedule.require_fit(self.n, self.variants)

        def make(step: int) -> st.Batch:
            return self.batch_at(schedule, step, process_index, process_count)

        # `make` reads a whole batch by its row numbers: grain has no batched read of its own.
        steps = grain.MapDataset.range(start_step, stop_step).map(make)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._ahead)
        return iter(steps.to_iter_dataset(options))


RESIDENCES = ("device", "ram", "stream")
"""Where rows can lie: from the fastest to the one that needs least."""


def choose_residence(
    records: records_lib.Records,
    slide_ids: Sequence[str],
    *,
    residence: Literal["auto", "ram", "stream", "device"] = "auto",
    budget_bytes: int | None = None,
    device_bytes: int | None = None,
    held: Held | None = None,
    pieces: int = 1,
) -> Literal["ram", "stream", "device"]:
    """Where rows lie: on the devices or in RAM where they fit, else in their files.

    Args:
      records: the record directories.
      slide_ids: the slides whose rows are wanted.
      residence: "device", "ram" or "stream" to decide by hand.
      budget_bytes: RAM that "auto" may fill; None takes half of what the machine or
        container has.
      device_bytes: memory of each device that "auto" may fill; None takes half of what an
        accelerator has, and nothing of a CPU, whose memory is the RAM.
      held: the decks that this process holds, where they are not all rows.
      pieces: devices that these decks are spread over; 1 has all rows on each of them.

    Raises:
      ConfigError: `residence` is none of the four.
    """
    if residence not in ("auto", *RESIDENCES):
        raise errors.ConfigError(
            "residence says where the rows lie",
            expected="auto, device, ram or stream",
            found=repr(residence),
            fix="Use one of the four",
        )
    if residence != "auto":
        return residence
    budget = memory_limit() // 2 if budget_bytes is None else budget_bytes
    room = resident.device_memory() // 2 if device_bytes is None else device_bytes
    mine = each = None
    if held is not None:
        mine = len(held.rows)
        each = held.length * held.schedule.decks // pieces if pieces > 1 else None
    if resident.table_bytes(records, slide_ids, rows=each) <= room:
        passing = None if each is None else mine
        if resident_bytes(records, slide_ids, rows=passing) <= budget:
            return "device"
    return "ram" if resident_bytes(records, slide_ids, rows=mine) <= budget else "stream"


def choose_view(
    records: records_lib.Records,
    slide_ids: Sequence[str],
    space: space_lib.Space,
    *,
    residence: Literal["auto", "ram", "stream", "device"] = "auto",
    budget_bytes: int | None = None,
    device_bytes: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    shown: Shown | None = None,
    windows: Laid | None = None,
    held: Held | None = None,
    spread: jax.sharding.Sharding | None = None,
) -> ResidentView | StreamingView | resident.DeviceView:
    """A view of the slides' rows: on the devices or in RAM where they fit, else streamed.

    Args:
      records: the record directories.
      slide_ids: the slides whose rows are wanted.
      space: the model's space.
      residence: as `choose_residence`, with the two numbers of bytes.
      budget_bytes: likewise.
      device_bytes: likewise.
      sharding: where the table lies, whole on every device of a mesh; None is one device.
      shown: which rows of the slides are trained on, where not all are.
      windows: what a row of a batch is, for networks of windows; None is a spot.
      held: the decks that this process holds, and a view in RAM nothing else; None is all rows.
      spread: where decks lie on the devices, a share on each; None has all rows on each of them.

    Raises:
      ConfigError: `residence` is none of the four.
      RecordsError: a slide is unknown or a shard is damaged.
    """
    pieces = 1 if spread is None else spread.num_devices
    residence = choose_residence(
        records,
        slide_ids,
        residence=residence,
        budget_bytes=budget_bytes,
        device_bytes=device_bytes,
        held=held,
        pieces=pieces,
    )
    if residence == "stream":
        return StreamingView(records, slide_ids, space, shown=shown, windows=windows)
    rows = shown or Shown(records=records, slides=slide_ids)
    if residence == "device":
        if held is None or spread is None:
            return resident.DeviceView(rows.load(), space, windows=windows, sharding=sharding)
        table = rows.gather(held.of_one_length())
        return resident.DeviceView(table, space, sharding=sharding, held=held, spread=spread)
    if held is None:
        return ResidentView(rows.load(), space, windows=windows)
    return ResidentView(rows.gather(held.rows), space, held=held)


def resident_bytes(
    records: records_lib.Records, slide_ids: Sequence[str], *, rows: int | None = None
) -> int:
    """Bytes of RAM that a resident view of the slides, or of some rows, takes while it is made."""
    width = records.contract.width
    # float16 embeddings; int32 counts, float32 x0 and one float32 temporary; uint8 mask.
    row = records.variants * width * 2 + len(records.genes) * (4 + 4 + 4 + 1) + 64
    return row * (records.count(slide_ids) if rows is None else rows)


def memory_limit() -> int:
    """Bytes of RAM of the machine, or of the container where that is less."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(installed, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return installed
