"""Slides to one table: averages, intervals by the unit that the data allow, verdicts in words.

A score of several slides is the mean of the slides' own scores, never a correlation over spots
pooled from slides: pooling rewards knowing which slide a spot came from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from stemjax.eval import metrics, scoring

LEVEL = 0.95
RESAMPLES = 500
ENOUGH = 5
"""Fewest patients (or slides) that are resampled as such: fewer give meaningless intervals."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """What is resampled, and how slides are averaged.

    Attributes:
      name: ``patients``, ``slides``, ``spatial blocks`` or ``nothing``.
      count: how many there are.
      resamples: number of resamples.
      patients: patient of each slide, None where unknown.
      seed: of the resamples of patients or slides.
    """

    name: str
    count: int
    resamples: int
    patients: tuple[str | None, ...]
    seed: int

    @property
    def sentence(self) -> str:
        """What the intervals are, in words."""
        if self.name == "nothing":
            return "No intervals: a single block of spots cannot be resampled."
        return {
            "patients": f"95 % intervals: {self.resamples} resamples of the {self.count} patients.",
            "slides": f"95 % intervals: {self.resamples} resamples of the {self.count} slides; "
            "patients are too few or unknown, so they say little about a new patient.",
            "spatial blocks": f"95 % intervals: {self.resamples} resamples of {self.count} square "
            f"blocks of spots, {metrics.BLOCK:g} spot distances wide, within the slide"
            f"{'s' * (len(self.patients) > 1)}: they say how certain the number is for "
            f"{'these slides' if len(self.patients) > 1 else 'this slide'}, not for another.",
        }[self.name]


def choose_unit(
    patients: Sequence[str | None], blocks: Sequence[int], *, resamples: int, seed: int
) -> Unit:
    """Patients where at least `ENOUGH` are known, else slides, else blocks within slides.

    Args:
      patients: of each slide.
      blocks: number of spatial blocks of each slide.
      resamples: asked for.
      seed: of the resamples.
    """
    known = {p for p in patients if p is not None}
    whole = all(p is not None for p in patients)
    if resamples < 2:
        name, count = "nothing", 0
    elif whole and len(known) >= ENOUGH:
        name, count = "patients", len(known)
    elif len(patients) >= ENOUGH:
        name, count = "slides", len(patients)
    elif max(blocks) > 1:
        name, count = "spatial blocks", sum(blocks)
    else:
        name, count = "nothing", 0
    return Unit(
        name=name,
        count=count,
        resamples=resamples if count else 0,
        patients=tuple(patients),
        seed=seed,
    )


def combine(slides: Sequence[np.ndarray], unit: Unit) -> Float[np.ndarray, " r"]:
    """One score of all slides: its value, then its resamples; undefined slides are left out.

    Args:
      slides: each slide's score and that on its resamples of blocks, [1+r] each.
      unit: what is resampled.
    """
    points = np.array([values[0] for values in slides])
    if unit.name in ("spatial blocks", "nothing"):
        rows = [
            values if len(values) == unit.resamples + 1 else np.full(unit.resamples + 1, values[0])
            for values in slides
        ]
        return metrics.mean_defined(np.stack(rows, axis=1))
    labels = unit.patients if unit.name == "patients" else tuple(map(str, range(len(points))))
    names = sorted(set(map(str, labels)))
    members = np.array([[str(label) == name for label in labels] for name in names], np.float64)
    drawn = np.random.default_rng(unit.seed).integers(len(names), size=(unit.resamples, len(names)))
    counted = [np.bincount(row, minlength=len(names)) for row in drawn]
    times = np.stack([np.ones(len(names)), *counted])
    weight = times @ members
    known = ~np.isnan(points)
    total = weight[:, known] @ points[known]
    n = weight[:, known].sum(axis=1)
    return np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)


def goodness(key: str, values: np.ndarray) -> np.ndarray | None:
    """Values turned so that higher is better; None where no side is better."""
    column = scoring.COLUMNS[key]
    if column.better == "none":
        return None
    if column.better == "level":
        assert column.target is not None
        return -np.abs(values - column.target)
    return values if column.better == "high" else -values


def difference(key: str, ours: np.ndarray, theirs: np.ndarray) -> dict[str, object]:
    """Ours minus theirs with its paired interval, and the verdict in words.

    Both hold the score and its resamples, drawn alike. ``better`` or ``worse`` is said where the
    interval leaves out 0, ``not distinguishable`` where it does not, ``unknown`` without one.
    """
    bounds = metrics.interval(ours[1:] - theirs[1:], level=LEVEL)
    sides = goodness(key, ours), goodness(key, theirs)
    verdict = "unknown"
    if sides[0] is not None and sides[1] is not None:
        turned = metrics.interval(sides[0][1:] - sides[1][1:], level=LEVEL)
        if turned is not None:
            verdict = "not distinguishable"
            if turned[0] > 0:
                verdict = "better"
            elif turned[1] < 0:
                verdict = "worse"
    return {"difference": ours[0] - theirs[0], "interval": bounds, "verdict": verdict}


def describe(values: Mapping[str, np.ndarray]) -> dict[str, dict[str, object]]:
    """Each score with its interval, by key in the order of the columns."""
    return {
        key: {"value": values[key][0], "interval": metrics.interval(values[key][1:], level=LEVEL)}
        for key in scoring.COLUMNS
        if key in values
    }
