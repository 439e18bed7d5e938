"""How well patches lie on spots, as their coordinates are stated and in the ways they go wrong.

Four mistakes look like a poor fit and have a better one: x and y swapped, coordinates of a
downscaled image, centres stated as corners, and corners stated as centres. Each is tried. One is
named only where it fits far better than what is stated, so that a slide that is merely covered in
part is not blamed for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import scipy.spatial
from jaxtyping import Float, Int

EXACT = 0.05
"""Median distance, in sides of a patch, of patches that were cut around the spots themselves."""

CLEARLY_OFF = 0.15
"""Median distance, in sides, at which such patches are not where they are stated."""

GAIN = 0.2
"""Share of spots that another reading has to cover beyond the stated one to be named."""

NEAR_ONE = (0.8, 1.25)
"""Ratios of extents that tell nothing: tissue, spots and tiles never end at the same places."""

_NEIGHBOURS = 4


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """Spots on patches, in one reading of the coordinates.

    Attributes:
      rows: the patch of each spot: the nearest, or the one that a barcode names.
      distance: from the spot to the patch's centre in sides of a patch, the larger of x and y.
      tolerance: largest distance at which a patch belongs to a spot.
      what: the reading in words; empty for the stated one.
      fix: how to have it read so.
    """

    rows: Int[np.ndarray, " l"]
    distance: Float[np.ndarray, " l"]
    tolerance: float
    what: str = ""
    fix: str = ""

    @property
    def covered(self) -> float:
        """Share of the spots that have a patch."""
        return float((self.distance <= self.tolerance).mean())

    @property
    def median(self) -> float:
        """Median distance in sides."""
        return float(np.median(self.distance))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Patches and spots of a slide in level-0 pixels.

    Attributes:
      xy: of the patches, as the file states them.
      corner: whether those are upper left corners; else centres.
      side: of a patch.
      spots: centres of the spots.
      pairs: the patch of each spot where barcodes say so; None to take the nearest.
      tolerance: see `Fit`.
    """

    xy: Float[np.ndarray, "n 2"]
    corner: bool
    side: float
    spots: Float[np.ndarray, "l 2"]
    pairs: Int[np.ndarray, " l"] | None
    tolerance: float


def stated(places: Places) -> Fit:
    """The fit of the coordinates as the file states them."""
    return _fit(places, places.xy, places.side, corner=places.corner)


def better(places: Places, as_stated: Fit) -> Fit | None:
    """The reading that fits far better than the stated one; None where none does."""
    best: Fit | None = None
    for other in _readings(places):
        exact = other.median <= EXACT and as_stated.median > CLEARLY_OFF
        more = other.covered >= as_stated.covered + GAIN
        if (exact or more) and (best is None or _rank(other) < _rank(best)):
            best = other
    return best


def spacing(xy: Float[np.ndarray, "n 2"]) -> float | None:
    """Median distance of a patch to the next, the larger of x and y; None of one patch."""
    if len(xy) < 2:
        return None
    distance = scipy.spatial.KDTree(xy).query(xy, k=2, p=np.inf)[0][:, 1]
    middle = float(np.median(distance))
    return middle if middle > 0 else None


def _rank(fit: Fit) -> tuple[float, float]:
    return (-round(fit.covered, 2), fit.median)


def _readings(places: Places) -> Iterator[Fit]:
    """The fits of the coordinates in the ways in which they go wrong."""
    names = {True: "corner", False: "centre"}
    stated_as, other = names[places.corner], names[not places.corner]
    yield _fit(
        places,
        places.xy,
        places.side,
        corner=not places.corner,
        what=f"the coordinates are {other}s of patches, not {stated_as}s: they are half a patch "
        "off as stated",
        fix=f'Read them as such: anchor="{other}"',
    )
    for corner in (places.corner, not places.corner):
        yield _fit(
            places,
            places.xy[:, ::-1],
            places.side,
            corner=corner,
            what="x and y of the coordinates are swapped",
            fix="Write them as (x, y): x is the image's column, y its row",
        )
    for factor in _factors(places):
        for corner in (places.corner, not places.corner):
            yield _fit(
                places,
                places.xy * factor,
                places.side if places.pairs is None else max(places.side, places.side * factor),
                corner=corner,
                what=f"the coordinates are {1 / factor:.3g} times level-0 pixels, as of a "
                "downscaled image (hires, or a lower level)",
                fix=f"Write level-0 pixels: multiply them by {factor:.4g}",
            )


def _factors(places: Places) -> list[float]:
    """What may bring coordinates of another image to level 0: by extents, and by neighbours.

    Patches around spots have the spots' extent. Tiles of a grid have not, but touch each other.
    """
    patches = places.xy if places.pairs is None else places.xy[places.pairs]
    extents = [np.ptp(np.percentile(xy, (5, 95), axis=0), axis=0) for xy in (places.spots, patches)]
    wide = (extents[0] > 0) & (extents[1] > 0)
    found = [places.side / apart] if (apart := spacing(places.xy)) else []
    if wide.any():
        found.append(float(np.exp(np.log(extents[0][wide] / extents[1][wide]).mean())))
    return [factor for factor in found if not NEAR_ONE[0] < factor < NEAR_ONE[1]]


def _fit(
    places: Places,
    xy: Float[np.ndarray, "n 2"],
    side: float,
    *,
    corner: bool,
    what: str = "",
    fix: str = "",
) -> Fit:
    centres = xy + side / 2 if corner else xy
    if places.pairs is None:
        rows = _nearest(centres, places.spots)
    else:
        rows = places.pairs
    distance = np.abs(centres[rows] - places.spots).max(1) / side
    return Fit(rows=rows, distance=distance, tolerance=places.tolerance, what=what, fix=fix)


def _nearest(
    centres: Float[np.ndarray, "n 2"], spots: Float[np.ndarray, "l 2"]
) -> Int[np.ndarray, " l"]:
    """The nearest centre of each spot, the larger of x and y counting.

    Of equally near ones the upper, then the left: the order of the file decides nothing.
    """
    order = np.lexsort((centres[:, 0], centres[:, 1]))
    count = min(_NEIGHBOURS, len(centres))
    distance, place = scipy.spatial.KDTree(centres[order]).query(spots, k=count, p=np.inf)
    distance, place = distance.reshape(len(spots), count), place.reshape(len(spots), count)
    level = distance <= distance[:, :1] * (1 + 1e-9) + 1e-6
    return order[np.where(level, place, len(centres)).min(1)]
