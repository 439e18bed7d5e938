"""What a prediction of many slides is: what is asked, its units of work, and who does which."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from stemjax import errors, tasks
from stemjax.data import records
from stemjax.eval import conformal, predict, steering, written
from stemjax.train import checkpoint, spot_inputs

BLOCK = 16_384
"""Spots of a unit: some hundred MB of embeddings, draws and results."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What is asked of every slide.

    Attributes:
      trained: weights and what they mean, and their calibrations.
      source: records that hold the slides.
      sampling: mode, sampler, steps and draws.
      seed: randomness is a function of (seed, slide, barcode).
      rows: (spot, draw) pairs on a device at a time; no effect on results. None chooses.
      summary: what is kept of the draws in place of them.
      steer: guidance, or genes whose counts the prediction is told.
      divergence: as in `predict.predict_slide`.
      draws: where draws go: ``h5ad``, in the file's ``obsm``, or ``zarr``, a store beside the file.

    Raises:
      ConfigError: a store for draws that there are none of.
    """

    trained: checkpoint.Trained
    source: records.Records
    sampling: tasks.Sampling
    seed: int = 0
    rows: int | None = None
    summary: tasks.Summary | None = None
    steer: steering.Steering = dataclasses.field(default_factory=steering.Steering)
    divergence: Literal["none", "exact", "hutchinson"] = "none"
    draws: Literal["h5ad", "zarr"] = "h5ad"

    def __post_init__(self) -> None:
        if self.draws == "zarr" and (self.sampling.mode != "draws" or self.summary is not None):
            raise errors.ConfigError(
                "a zarr store of the draws",
                expected="mode draws, and the draws kept",
                found=f"mode {self.sampling.mode}"
                + (", and a summary of them" if self.summary is not None else ""),
            )

    @functools.cached_property
    def weights(self) -> dict[str, str]:
        """Digests of the model and of the weak model of its guidance."""
        weak = self.steer.weak
        found = {"model": written.weights_digest(self.trained)}
        return found if weak is None else {**found, "guide": written.weights_digest(weak)}

    def request(self, slide: str) -> dict[str, Any]:
        """Returns all that the slide's prediction depends on, in plain values."""
        sampling = predict.describe_sampling(self.trained.card, self.sampling)
        made = conformal.find(self.trained.calibrations, sampling)
        summary = None if self.summary is None else dataclasses.asdict(self.summary)
        return {
            "format": written.FORMAT,
            "slide": slide,
            "records": self.source.require(slide).digest,
            "weights": self.weights,
            "sampling": sampling,
            "seed": self.seed,
            "summary": summary,
            "guidance": float(self.steer.scale),
            "given_genes": list(self.steer.given),
            "given_method": self.steer.method if self.steer.given else "",
            "likelihood": self.divergence,
            "calibration": None if made is None else _digest(made.to_json()),
            "draws": self.draws,
        }

    def needs_whole(self, slide: str) -> bool:
        """Whether the slide's spots cannot be predicted a block at a time: each needs others."""
        card = self.trained.card
        return (
            card.experiment.window.kind != "none"
            or self.divergence != "none"
            or spot_inputs.hiding_of(card, slide) is not None
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A contiguous range of a slide's spots.

    Attributes:
      slide: its id.
      number: of the unit on the slide.
      count: units of the slide.
      spots: of the unit.
    """

    slide: str
    number: int
    count: int
    spots: int


def plan(job: Job, slides: Sequence[str], block: int = BLOCK) -> list[Unit]:
    """Returns the units of the slides, sorted by slide and place.

    Raises:
      RecordsError: there are no records of a slide.
      ConfigError: a block of no spots.
    """
    if block < 1:
        raise errors.ConfigError("block", expected="at least 1 spot", found=str(block))
    units = []
    for slide in sorted(set(slides)):
        spots = job.source.require(slide).n_spots
        size = max(1, spots) if job.needs_whole(slide) else block
        count = max(1, -(-spots // size))
        units += [
            Unit(slide=slide, number=i, count=count, spots=min(size, spots - i * size))
            for i in range(count)
        ]
    return units


def deal(units: Sequence[Unit], part: tuple[int, int]) -> list[Unit]:
    """Returns process i's units of n: neighbours, and as many spots as the others within a unit.

    Args:
      units: all of them, in the same order in every process.
      part: i and n.

    Raises:
      ConfigError: no such part.
    """
    index, count = part
    if not 0 <= index < count:
        raise errors.ConfigError(
            f"part {index} of {count}", expected=f"0 to {count - 1} of at least 1", found=str(index)
        )
    ends = np.cumsum([unit.spots for unit in units])
    middles = ends - np.array([unit.spots for unit in units]) / 2
    owner = np.minimum(middles * count / max(ends[-1], 1), count - 1).astype(int)
    return [unit for unit, number in zip(units, owner, strict=True) if number == index]


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
