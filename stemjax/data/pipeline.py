"""Batches as a function of (seed, step): the same rows for any number of processes.

    Schedule  (seed, step) -> row numbers and variants      no state but the step
    view      row numbers and variants -> Batch             in RAM, or streamed from disk

Step t takes the global positions t*batch ... t*batch + batch - 1 of an endless sequence of shuffled
epochs, so no spot is dropped at the end of an epoch and a batch may be larger than the data. Each
process computes the same global rows and reads its own contiguous slice. Resuming needs the step,
nothing else; so does restarting with another number of processes.

Both views give equal batches, bit for bit: where the rows lie is a question of speed only.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np

from stemjax import errors
from stemjax import typing as st
from stemjax.data import records as records_lib
from stemjax.data import space as space_lib

# The last word of the Philox counter names the stream, so that row orders and variants drawn with
# equal key words, such as epoch 7 and step 7, share no random number.
_ROW_STREAM, _VARIANT_STREAM = 1, 2


def _raw(seed: int, index: int, stream: int, n: int) -> np.ndarray:
    """`n` random 64-bit words of the stream; Philox's raw words never change between versions."""
    key = np.array([seed, index], np.uint64)
    counter = np.array([0, 0, 0, stream], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(n)


# Two epochs meet in a batch and prefetching threads may be one ahead: a few suffice.
@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Order of the `n` rows in one epoch, [n] int64.

    A stable sort of raw words, since numpy promises to keep the raw words of a bit generator
    between versions and does not promise to keep `Generator.permutation`.
    """
    order = np.argsort(_raw(seed, epoch, _ROW_STREAM, n), kind="stable")
    order.flags.writeable = False
    return order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Rows and variants of every step.

    Attributes:
      n: rows of the data.
      batch: rows of a global batch, over all processes.
      seed: fixes the order of rows and the choice of variants.
      variants: variants to draw from, uniformly; 1 uses the original patch only.

    Raises:
      ConfigError: a number is out of range.
    """

    n: int
    batch: int
    seed: int
    variants: int = 1

    def __post_init__(self) -> None:
        for name in ("n", "batch", "variants"):
            if getattr(self, name) < 1:
                raise errors.ConfigError(
                    f"The schedule's {name} cannot work",
                    expected="at least 1",
                    found=str(getattr(self, name)),
                    fix="Check the batch size, and that the training slides have spots",
                )
        if not 0 <= self.seed < 2**64:
            raise errors.ConfigError(
                "The data seed cannot work",
                expected="0 to 2**64 - 1",
                found=str(self.seed),
                fix="Choose a seed that is not negative",
            )

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of the global batch of `step`, [b] int64.

        Every `n` consecutive positions from a multiple of `n` on hold each row once.
        """
        first, end = step * self.batch, (step + 1) * self.batch
        out = np.empty(self.batch, np.int64)
        for epoch in range(first // self.n, (end - 1) // self.n + 1):
            start, stop = max(first, epoch * self.n), min(end, (epoch + 1) * self.n)
            order = _epoch_order(self.seed, epoch, self.n)
            out[start - first : stop - first] = order[
                start - epoch * self.n : stop - epoch * self.n
            ]
        return out

    def variant(self, step: int) -> np.ndarray:
        """Variant of each row of the global batch of `step`, [b] int64 below `variants`."""
        if self.variants == 1:
            return np.zeros(self.batch, np.int64)
        words = _raw(self.seed, step, _VARIANT_STREAM, self.batch)
        return (words % np.uint64(self.variants)).astype(np.int64)

    def local(
        self, step: int, process_index: int = 0, process_count: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and variants that one process reads: its contiguous slice of the global batch.

        Returns:
          Rows and variants, each [b / process_count] int64.

        Raises:
          ConfigError: the batch does not divide among the processes.
        """
        if (
            process_count < 1
            or self.batch % process_count
            or not 0 <= process_index < process_count
        ):
            raise errors.ConfigError(
                f"A global batch of {self.batch} rows does not divide among {process_count} "
                f"processes (this is process {process_index})",
                expected="a multiple of the number of processes",
                fix="Change the batch size",
            )
        width = self.batch // process_count
        mine = slice(process_index * width, (process_index + 1) * width)
        return self.rows(step)[mine], self.variant(step)[mine]


class View(Protocol):
    """Batches of one set of rows, wherever they lie."""

    n: int
    variants: int

    def batch_at(
        self, schedule: Schedule, step: int, process_index: int = 0, process_count: int = 1
    ) -> st.Batch:
        """This process's part of the batch of `step`."""
        ...

    def batches(
        self,
        schedule: Schedule,
        start_step: int,
        stop_step: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[st.Batch]:
        """The batches of the steps from `start_step` to before `stop_step`, made ahead of use."""
        ...


class ResidentView:
    """A view that holds the rows in RAM and only gathers.

    Args:
      table: the rows; its embeddings are kept as they are (float16, all variants), not copied.
      space: the model's space; expression is encoded once, here.
      ahead: batches that the iterator makes ahead of use.
    """

    def __init__(self, table: records_lib.Table, space: space_lib.Space, *, ahead: int = 2) -> None:
        self.n, self.variants = table.embeddings.shape[:2]
        self._space, self._ahead = space, ahead
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
        _require_fit(schedule, self)
        rows, variants = schedule.local(step, process_index, process_count)
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
        _require_fit(schedule, self)

        def make(step: int) -> st.Batch:
            return self.batch_at(schedule, step, process_index, process_count)

        return _made_ahead(make, range(start_step, stop_step), ahead=self._ahead)


class StreamingView:
    """A view that reads each batch from the array_record shards, by grain's threads.

    Grain's own shuffling, epochs and process slices are not used: its epoch e of seed s equals
    epoch 0 of seed s + e, and its state binds a run to one process count. Only its threaded
    read-ahead over the steps is. No worker processes: they survive a killed parent.

    Args:
      records: the record directories.
      slide_ids: the slides whose rows are read.
      space: the model's space.
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
        threads: int = 2,
        ahead: int = 8,
    ) -> None:
        self._source = records.source(slide_ids)
        self.n, self.variants = len(self._source), records.variants
        self._space, self._threads, self._ahead = space, threads, ahead

    def batch_at(
        self, schedule: Schedule, step: int, process_index: int = 0, process_count: int = 1
    ) -> st.Batch:
        """This process's part of the batch of `step`, float32 arrays.

        Raises:
          ConfigError: the schedule counts other rows or variants than there are.
          RecordsError: a shard was damaged since it was checked.
        """
        _require_fit(schedule, self)
        rows, variants = schedule.local(step, process_index, process_count)
        return self._space.batch(self._source.gather(rows), variants)

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

        _require_fit(schedule, self)

        def make(step: int) -> st.Batch:
            return self.batch_at(schedule, step, process_index, process_count)

        # `make` reads a whole batch by its row numbers: grain has no batched read of its own.
        steps = grain.MapDataset.range(start_step, stop_step).map(make)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._ahead)
        return iter(steps.to_iter_dataset(options))


def choose_view(
    records: records_lib.Records,
    slide_ids: Sequence[str],
    space: space_lib.Space,
    *,
    residence: Literal["auto", "ram", "stream"] = "auto",
    budget_bytes: int | None = None,
) -> ResidentView | StreamingView:
    """A view of the slides' rows: in RAM where they fit, else streamed.

    Args:
      records: the record directories.
      slide_ids: the slides whose rows are wanted.
      space: the model's space.
      residence: "ram" or "stream" to decide by hand.
      budget_bytes: RAM that "auto" may fill; None takes half of what the machine or
        container has.

    Raises:
      ConfigError: `residence` is none of the three.
      RecordsError: a slide is unknown or a shard is damaged.
    """
    if residence not in ("auto", "ram", "stream"):
        raise errors.ConfigError(
            "residence says where the rows lie",
            expected="auto, ram or stream",
            found=repr(residence),
            fix="Use one of the three",
        )
    if residence == "auto":
        budget = memory_limit() // 2 if budget_bytes is None else budget_bytes
        residence = "ram" if resident_bytes(records, slide_ids) <= budget else "stream"
    if residence == "ram":
        return ResidentView(records.load(slide_ids), space)
    return StreamingView(records, slide_ids, space)


def resident_bytes(records: records_lib.Records, slide_ids: Sequence[str]) -> int:
    """Bytes of RAM that a resident view of the slides takes while it is made."""
    width = records.contract.width
    # float16 embeddings; int32 counts, float32 x0 and one float32 temporary; uint8 mask.
    row = records.variants * width * 2 + len(records.genes) * (4 + 4 + 4 + 1) + 64
    return row * sum(records.require(slide).n_spots for slide in slide_ids)


def memory_limit() -> int:
    """Bytes of RAM of the machine, or of the container where that is less."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(installed, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return installed


def _require_fit(schedule: Schedule, view: View) -> None:
    if schedule.n != view.n or schedule.variants > view.variants:
        raise errors.ConfigError(
            "The schedule does not fit the data",
            expected=f"{view.n} rows and at most {view.variants} variants",
            found=f"{schedule.n} rows and {schedule.variants} variants",
            fix="Make the schedule from the view: n=view.n, variants=view.variants",
        )


def _made_ahead(make: Callable[[int], st.Batch], steps: range, *, ahead: int) -> Iterator[st.Batch]:
    """`make(step)` for each step, in order; up to `ahead` of them are made before they are due."""
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting: collections.deque[concurrent.futures.Future[st.Batch]] = collections.deque()
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # A consumer that stops early must not wait for batches nobody will use.
            pool.shutdown(wait=True, cancel_futures=True)
