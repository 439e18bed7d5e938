"""Which rows and variants a step shows: a function of (seed, step), with no state but the step.

Step t takes the global positions t*batch ... t*batch + batch - 1 of an endless sequence of shuffled
epochs, so no spot is dropped at the end of an epoch and a batch may be larger than the data. Each
process computes the same global rows and reads its own contiguous slice. Resuming needs the step,
nothing else; so does restarting with another number of processes.

Any row may come in any batch, so whoever hands over a part of each batch needs all rows at hand.
With ``decks`` the rows are dealt out once, like cards: each deck has its own place in every batch
and is shuffled for itself, and who hands over a part of each batch needs the decks of that part
alone. The order depends on the number of decks, and on processes and devices no more than before.
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
_ROW_STREAM, _VARIANT_STREAM, _DECK_STREAM = 1, 2, 3
# Two epochs meet in a batch and prefetching threads may be one ahead: a few suffice.
_EPOCHS_KEPT = 4


def _raw(seed: int, index: int, stream: int, n: int, *, deck: int = 0) -> np.ndarray:
    """`n` random 64-bit words of the stream; Philox's raw words never change between versions."""
    key = np.array([seed, index], np.uint64)
    counter = np.array([0, 0, deck, stream], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(n)


def _shuffled(words: np.ndarray) -> np.ndarray:
    """An order of as many rows as there are words.

    A stable sort of raw words, since numpy promises to keep the raw words of a bit generator
    between versions and does not promise to keep `Generator.permutation`.
    """
    order = np.argsort(words, kind="stable")
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
      decks: decks that the rows are dealt into, of sizes that differ by one at most. The i-th part
        of each batch comes from deck i. A row of a smaller deck is shown more often, by one part in
        the size of a deck.

    Raises:
      ConfigError: a number is out of range.
    """

    n: int
    batch: int
    seed: int
    variants: int = 1
    decks: int = 1

    def __post_init__(self) -> None:
        for name in ("n", "batch", "variants", "decks"):
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
        if self.batch % self.decks or self.n < self.decks:
            raise errors.ConfigError(
                f"config.data.decks={self.decks}",
                expected=f"a divisor of the batch of {self.batch}, and no more than there are rows",
                found=f"{self.n} rows",
                fix="Take fewer decks, or 1",
            )

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of the global batch of `step`, [b] int64.

        What comes from one deck of `m` rows holds, in every `m` consecutive positions from a
        multiple of `m` on, each of them once.
        """
        return self._rows(step, 0, self.batch)

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
        mine = self._slice(process_index, process_count)
        return self._rows(step, mine.start, mine.stop), self.variant(step)[mine]

    def local_places(
        self, step: int, process_index: int = 0, process_count: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `local`, with the place of each row in its deck (`deck`) for its number."""
        mine = self._slice(process_index, process_count)
        parts = self._parts(step, mine.start, mine.stop)
        return np.concatenate([places for _, places in parts]), self.variant(step)[mine]

    def deck(self, number: int) -> np.ndarray:
        """The rows of a deck, ascending."""
        return self._dealt[number]

    def held(self, process_index: int = 0, process_count: int = 1) -> range:
        """The decks that one process draws from, with `process_count` of them in all.

        Raises:
          ConfigError: the batch does not divide among the processes.
        """
        mine = self._slice(process_index, process_count)
        width = self.batch // self.decks
        return range(mine.start // width, (mine.stop - 1) // width + 1)

    def _slice(self, process_index: int, process_count: int) -> slice:
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
        return slice(process_index * width, (process_index + 1) * width)

    def _rows(self, step: int, start: int, stop: int) -> np.ndarray:
        parts = self._parts(step, start, stop)
        return np.concatenate([self._dealt[deck][places] for deck, places in parts])

    def _parts(self, step: int, start: int, stop: int) -> list[tuple[int, np.ndarray]]:
        """Deck, and places in it, of the positions `start` to before `stop` of a batch."""
        width = self.batch // self.decks
        found = []
        for deck in range(start // width, (stop - 1) // width + 1):
            begin, end = max(start - deck * width, 0), min(stop - deck * width, width)
            found.append((deck, self._places(deck, step * width + begin, step * width + end)))
        return found

    def _places(self, deck: int, first: int, end: int) -> np.ndarray:
        """Positions `first` to before `end` of a deck's endless sequence of shuffled epochs."""
        n = len(self._dealt[deck])
        out = np.empty(end - first, np.int64)
        for epoch in range(first // n, (end - 1) // n + 1):
            start, stop = max(first, epoch * n), min(end, (epoch + 1) * n)
            order = self._epoch_order(deck, epoch)
            out[start - first : stop - first] = order[start - epoch * n : stop - epoch * n]
        return out

    @functools.cached_property
    def _dealt(self) -> list[np.ndarray]:
        if self.decks == 1:
            return [np.arange(self.n)]
        order = _shuffled(_raw(self.seed, 0, _DECK_STREAM, self.n))
        return [np.sort(order[deck :: self.decks]) for deck in range(self.decks)]

    @functools.cached_property
    def _epoch_order(self) -> Callable[[int, int], np.ndarray]:
        """Order of a deck's rows in an epoch, given the two numbers."""

        def order(deck: int, epoch: int) -> np.ndarray:
            words = _raw(self.seed, epoch, _ROW_STREAM, len(self._dealt[deck]), deck=deck)
            return _shuffled(words)

        return functools.lru_cache(maxsize=_EPOCHS_KEPT * self.decks)(order)

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
