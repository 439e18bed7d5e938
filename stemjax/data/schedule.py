"""Which rows and variants a step shows: a function of (seed, step), with no state but the step.

Step t takes the global positions t*batch ... t*batch + batch - 1 of an endless sequence of shuffled
epochs, so no spot is dropped at the end of an epoch and a batch may be larger than the data. Each
process computes the same global rows and reads its own contiguous slice. Resuming needs the step,
nothing else; so does restarting with another number of processes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np

from stemjax import errors

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

    def require_fit(self, n: int, variants: int) -> None:
        """Checks that the schedule is of a view's rows.

        Raises:
          ConfigError: the view has another number of rows, or fewer variants.
        """
        if self.n != n or self.variants > variants:
            raise errors.ConfigError(
                "The schedule does not fit the data",
                expected=f"{n} rows and at most {variants} variants",
                found=f"{self.n} rows and {self.variants} variants",
                fix="Make the schedule from the view: n=view.n, variants=view.variants",
            )


def made_ahead[T](make: Callable[[int], T], steps: range, *, ahead: int) -> Iterator[T]:
    """`make(step)` for each step, in order; one thread makes up to `ahead` before they are due."""
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting: collections.deque[concurrent.futures.Future[T]] = collections.deque()
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
