"""Which spots of a slide are hidden from training, so that recovering them can be scored.

A function of (seed, slide, barcode) alone: the same spots are hidden in whatever order they are
read, and a model's card says which.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.spatial
from jaxtyping import Bool, Float

from stemjax import errors

type How = Literal["spots", "blocks"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hiding:
    """A rule that hides a share of each slide's spots.

    Attributes:
      how: ``spots`` hides single spots, whose neighbours are mostly measured; ``blocks`` hides
        squares of the array whole, as a damaged or unbought part of a section would be.
      share: share of the spots to hide; blocks are added until it is reached.
      seed: chooses the spots.
      block: side of a block, in distances between neighbouring spots.

    Raises:
      ConfigError: a value that cannot work.
    """

    how: How = "spots"
    share: float = 0.5
    seed: int = 0
    block: float = 5.0

    def __post_init__(self) -> None:
        if self.how not in ("spots", "blocks"):
            raise errors.ConfigError(
                "what is hidden", expected="spots or blocks", found=repr(self.how)
            )
        if not 0 < self.share < 1:
            raise errors.ConfigError(
                "the share of spots to hide",
                expected="above 0 and below 1",
                found=str(self.share),
            )
        if not self.block > 0:
            raise errors.ConfigError(
                "the side of a hidden block",
                expected="spot distances, above 0",
                found=str(self.block),
            )

    def hidden(
        self, slide: str, barcodes: Sequence[str], places: Float[np.ndarray, "l 2"], pitch: float
    ) -> Bool[np.ndarray, " l"]:
        """Which spots are hidden; at least one is, and at least one is not.

        Args:
          slide: the slide's id.
          barcodes: of its spots.
          places: where they lie, in any unit.
          pitch: distance between neighbouring spots in that unit.

        Raises:
          ConfigError: the slide has fewer than two spots, or lies in one block.
        """
        if len(barcodes) < 2:
            raise errors.ConfigError(
                f"slide {slide}: spots to hide and to keep",
                expected="at least two spots",
                found=str(len(barcodes)),
            )
        wanted = min(max(round(self.share * len(barcodes)), 1), len(barcodes) - 1)
        if self.how == "spots":
            rank = np.argsort([self._draw(slide, barcode) for barcode in barcodes], kind="stable")
            found = np.zeros(len(barcodes), bool)
            found[rank[:wanted]] = True
            return found
        return self._blocks(slide, np.asarray(places, np.float64) / pitch, wanted)

    def _blocks(self, slide: str, places: np.ndarray, wanted: int) -> np.ndarray:
        # Half a distance of margin, so that no spot of a regular array lies on a border.
        cell = np.floor((places - places.min(axis=0) + 0.5) / self.block).astype(int)
        names, block = np.unique(cell, axis=0, return_inverse=True)
        block = block.reshape(-1)
        if len(names) < 2:
            raise errors.ConfigError(
                f"slide {slide}: blocks to hide and to keep",
                expected=f"at least two blocks of {self.block:g} spot distances",
                found="one",
                fix="hide smaller blocks, or single spots",
            )
        # By its numbers and not as numpy prints it, which is a setting.
        drawn = [self._draw(slide, f"block {x} {y}") for x, y in names.tolist()]
        order = sorted(range(len(names)), key=drawn.__getitem__)
        found = np.zeros(len(places), bool)
        for number in order[:-1]:
            if found.sum() >= wanted:
                break
            found |= block == number
        return found

    def _draw(self, slide: str, name: str) -> str:
        return hashlib.sha256(f"{self.seed}/{slide}/{name}".encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def spot_distance(places: Float[np.ndarray, "l 2"]) -> float:
    """Distance between neighbouring spots: the median over spots of that to the nearest other."""
    if len(places) < 2:
        return 1.0
    nearest = scipy.spatial.KDTree(places).query(places, k=2)[0][:, 1]
    distance = float(np.median(nearest))
    return distance if distance > 0 else 1.0
