"""Which case a number is: a function of the seed and the number, and of nothing else."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import numpy as np

KINDS: Mapping[str, int] = {
    "training/kill": 7,
    "training/kill-compiling": 2,
    "training/kill-saving": 6,
    "training/kill-best": 2,
    "training/signal": 8,
    "training/twice": 3,
    "training/signal-kill": 3,
    "training/validating": 3,
    "training/two-jobs": 2,
    "training/restarts": 1,
    "training/nan-batch": 1,
    "training/nan-gradient": 1,
    "training/nan-params": 1,
    "training/full": 3,
    "training/peer-stopped": 1,
    "training/peer-killed": 1,
    "storage/step": 8,
    "storage/best": 4,
    "storage/records": 8,
    "storage/bundle": 5,
    "storage/prediction": 4,
    "storage/draws": 2,
    "storage/calibration": 2,
    "storage/embeddings": 3,
    "writers/kill-prepare": 3,
    "writers/kill-predict": 3,
    "writers/kill-cohort": 3,
    "writers/kill-export": 2,
    "writers/kill-convert": 2,
    "writers/full-prepare": 2,
    "writers/full-predict": 2,
    "writers/full-export": 2,
}
"""Kinds of cases, and how many of `DECK` consecutive ones are of each."""

DECK = sum(KINDS.values())

_CARDS = tuple(kind for kind, weight in KINDS.items() for _ in range(weight))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One case.

    Attributes:
      seed: of the whole run.
      number: of the case.
      kind: what is disturbed, and how.
    """

    seed: int
    number: int
    kind: str

    def generator(self) -> np.random.Generator:
        """Returns what chooses the moment, the file, the bits of this case, from the start."""
        return np.random.default_rng([self.seed, self.number, 1])


def choose(seed: int, number: int) -> Case:
    """Returns a case. Of `DECK` consecutive ones each kind has its weight, in a drawn order."""
    deck, place = divmod(number, DECK)
    order = np.random.default_rng([seed, deck, 0]).permutation(DECK)
    return Case(seed=seed, number=number, kind=_CARDS[order[place]])


def of_kind(seed: int, only: str = "") -> Iterator[Case]:
    """Yields cases in the order of their numbers; ``only`` keeps kinds that begin with it."""
    for number in itertools.count():
        case = choose(seed, number)
        if case.kind.startswith(only):
            yield case


def require_kind(only: str) -> None:
    """Checks that some kind begins with a text.

    Raises:
      ValueError: none does.
    """
    if not any(kind.startswith(only) for kind in KINDS):
        raise ValueError(f"no kind of cases begins with {only!r}; --list shows them")
