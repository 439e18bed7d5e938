"""What a process keeps of rows that are dealt into decks: what its part of a batch needs."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from stemjax.data.schedule import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """Decks that a process holds.

    Attributes:
      schedule: of all rows.
      process_index: which process, or which share of a batch.
      process_count: of how many.
    """

    schedule: Schedule
    process_index: int = 0
    process_count: int = 1

    @functools.cached_property
    def decks(self) -> range:
        """Their numbers."""
        return self.schedule.held(self.process_index, self.process_count)

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """Their rows, ascending."""
        return np.sort(np.concatenate([self.schedule.deck(deck) for deck in self.decks]))

    def find(self, rows: np.ndarray) -> np.ndarray:
        """Returns where rows are among those held."""
        return np.searchsorted(self.rows, rows)

    @property
    def length(self) -> int:
        """Rows of the longest deck there is."""
        return -(-self.schedule.n // self.schedule.decks)

    def of_one_length(self) -> np.ndarray:
        """Returns their rows deck by deck, [decks * length]: a shorter deck has its last row twice.

        No batch asks for the second one.
        """
        decks = [self.schedule.deck(number) for number in self.decks]
        filled = [np.pad(rows, (0, self.length - len(rows)), "edge") for rows in decks]
        return np.concatenate(filled)
