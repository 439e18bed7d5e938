"""Two sides in one run: do they give the same numbers, one at a time by turns, and the ratio.

Nothing here knows what a side is made of; `ab.py` gives it stemjax and PyTorch.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

RESAMPLES = 10_000
"""Bootstrap resamples of the rounds."""

type Key = tuple[str, str, str]
"""(job, side, variant)."""


class Side(Protocol):
    """One implementation, which runs jobs in variants (precision, compiler) of its own."""

    def prepare(self, variant: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """Makes and warms a call up: ``{"first": seconds}``, or ``{"unavailable": why}``."""
        ...

    def run(self, variant: str, job: Mapping[str, Any]) -> np.ndarray:
        """Returns what the call gives, float32."""
        ...

    def time(self, variant: str, job: Mapping[str, Any], calls: int) -> list[float]:
        """Returns the seconds of each of so many calls, each waited for to its end."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work that is timed.

    Attributes:
      name: how its rows are called.
      values: what the sides read: kind, sizes, sampler.
      variants: side -> the variants to time there.
      spots: spots (rows, for a forward pass) that one call serves.
      evaluations: network evaluations of each of them in one call.
    """

    name: str
    values: Mapping[str, Any]
    variants: Mapping[str, Sequence[str]]
    spots: int
    evaluations: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two results lie apart.

    Attributes:
      what: job, side and variant.
      largest: largest absolute difference.
      relative: that over the largest absolute value of the reference.
      limit: what ``relative`` may be; None states the difference without judging it.
    """

    what: Key
    largest: float
    relative: float
    limit: float | None

    @property
    def same(self) -> bool:
        """Whether the limit is kept; NaN and infinity are beyond any."""
        return self.limit is None or bool(self.relative <= self.limit)


class DifferentNumbersError(RuntimeError):
    """The two sides do not compute the same thing, so that no ratio means anything."""


def compare(what: Key, reference: np.ndarray, found: np.ndarray, limit: float | None) -> Difference:
    """Returns the difference of two results of one job.

    Raises:
      DifferentNumbersError: the shapes differ.
    """
    if reference.shape != found.shape:
        raise DifferentNumbersError(f"{' '.join(what)}: {found.shape}, not {reference.shape}")
    largest = float(np.max(np.abs(found.astype(np.float64) - reference)))
    scale = float(np.max(np.abs(reference)))
    return Difference(
        what=what, largest=largest, relative=largest / scale if scale else np.inf, limit=limit
    )


def require_same(differences: Sequence[Difference]) -> None:
    """Refuses to go on where a difference is beyond its limit.

    Raises:
      DifferentNumbersError: naming each of them.
    """
    wrong = [found for found in differences if not found.same]
    if wrong:
        lines = "; ".join(
            f"{' '.join(d.what)}: max abs {d.largest:.3g}, relative {d.relative:.3g} > {d.limit}"
            for d in wrong
        )
        raise DifferentNumbersError(f"the two sides differ, so no ratio is given: {lines}")


def order(job: Job) -> list[tuple[str, str]]:
    """Returns (side, variant) in the order of one round: a side's turn follows the other's."""
    turns = [[(side, variant) for variant in found] for side, found in job.variants.items()]
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*turns))
    return [turn for turn in mixed if turn is not None]


def alternate(
    jobs: Sequence[Job],
    sides: Mapping[str, Side],
    *,
    rounds: int,
    window: float,
    pause: float = 0.5,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[Key, list[float]]:
    """Returns the seconds of a call, one number a round, of each job, side and variant.

    Everything is prepared and called once before. In a round each turn is a few calls, of which
    the median counts; one side works at a time, and the pause lets the other's threads go to
    sleep.

    Args:
      jobs: what is timed; each has its turns of `order`.
      sides: by the names that the jobs use.
      rounds: how often all of it is repeated.
      window: seconds that a turn should last; the calls of a turn are 1 to 20.
      pause: seconds before each turn.
      sleep: a test gives its own.
      tell: is told of progress.
    """
    calls: dict[Key, int] = {}
    for job in jobs:
        for side, variant in order(job):
            once = sides[side].time(variant, job.values, 1)[0]
            calls[job.name, side, variant] = int(np.clip(round(window / max(once, 1e-9)), 1, 20))
    found: dict[Key, list[float]] = {key: [] for key in calls}
    for i in range(rounds):
        tell(f"round {i + 1} of {rounds}")
        for job in jobs:
            for side, variant in order(job):
                key = job.name, side, variant
                sleep(pause)
                seconds = sides[side].time(variant, job.values, calls[key])
                found[key].append(float(np.median(seconds)))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times less time we take, with a 95 % interval over rounds.

    Attributes:
      ratio: geometric mean over rounds of theirs / ours.
      low: lower end.
      high: upper end.
    """

    ratio: float
    low: float
    high: float

    def verdict(self, target: float | None) -> str:
        """Returns pass or fail where the interval lies on one side of the target, else open."""
        if target is None:
            return ""
        if self.low >= target:
            return "pass"
        return "fail" if self.high < target else "open"


def compare_times(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Ratio:
    """Returns the ratio of two sets of times, paired by round.

    Percentile bootstrap of the mean of ln(theirs / ours): whole rounds are drawn, so that what
    slowed a whole round down does not count as a difference of the sides.

    Raises:
      ValueError: the two have different numbers of rounds, or fewer than two.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"{len(ours)} and {len(theirs)} rounds; two or more of each are needed")
    logs = np.log(np.asarray(theirs, np.float64) / np.asarray(ours, np.float64))
    drawn = np.random.default_rng(seed).integers(0, len(logs), (RESAMPLES, len(logs)))
    low, high = np.quantile(logs[drawn].mean(axis=1), [0.025, 0.975])
    return Ratio(ratio=float(np.exp(logs.mean())), low=float(np.exp(low)), high=float(np.exp(high)))
