"""The array's own geometry: the lattice that the centres of spots lie on.

All positions are (x, y) in micrometres from the image's top left corner: pixels times mpp.

A lattice is found in three steps. The displacements to the nearest neighbours tell the kind and the
direction: averaged, exp(i m angle) is large for m = 4 on a square lattice and for m = 6 on a
hexagonal one (the bond-orientational order of Nelson and Halperin, Phys. Rev. B 19, 2457, 1979).
Their length gives first basis vectors. Then spots get whole coordinates and the basis is fitted by
least squares to all of them, from a few spots outwards, so that no error grows to half a step.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import scipy.spatial
from jaxtyping import Float

from stemjax import errors

type Kind = Literal["hexagonal", "square", "irregular"]

FEWEST = 4
"""Fewer spots than this have no lattice: three always fit one."""

LARGEST_RMS = 0.15
"""Residual, as a share of the pitch, up to which spots lie on a lattice.

HER2ST's detected spots have .05 to .09, spots strewn at random .38.
"""

_FOLDS: dict[Kind, int] = {"square": 4, "hexagonal": 6}
_NEIGHBOURS = 1.3  # of the nearest neighbour's distance: short of a square's diagonal, 1.41
_PREFERRED = np.deg2rad(5.0)  # of the first basis vector: off any angle at which arrays often lie
_FIRST, _GROWTH = 3.0, 1.6  # the fit's first radius in pitches, and how it widens
_WHOLE = 0.1  # of a column or row: a convention of whole numbers, with a few spots astray
_CORNER = np.array([0.1, 0.2])  # near the array's origin, and not half way between two sites
_SKEW, _STRETCH = np.deg2rad(10.0), 1.2  # by how much a basis may differ from its kind's


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Lattice:
    """Where the spots of an array lie: ``origin + i basis[0] + j basis[1]``, i and j whole.

    Attributes:
      kind: "square", "hexagonal", or "irregular" where the spots lie on no lattice.
      pitch_um: distance between neighbouring sites; of an irregular lattice the median distance
        to the nearest other spot, 0 of a spot alone.
      basis: two vectors in um, as rows [2 2]: the one that points along x, give or take half a
        turn of the lattice onto itself, and that turned by about 90 degrees (square) or 60
        (hexagonal). Of an irregular lattice, the axes times the pitch.
      origin: a site near the middle of the spots in um [2]; the corner (0, 0) of an irregular one.
      rms_um: root mean square distance of the spots from their sites; NaN of an irregular one.
    """

    kind: Kind
    pitch_um: float
    basis: Float[np.ndarray, "2 2"]
    origin: Float[np.ndarray, " 2"]
    rms_um: float

    def coordinates(self, xy_um: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p 2"]:
        """(i, j) of positions, whole at the sites."""
        return (np.asarray(xy_um, np.float64) - self.origin) @ np.linalg.inv(self.basis)

    def positions(self, ij: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p 2"]:
        """Positions in um of lattice coordinates."""
        return self.origin + np.asarray(ij, np.float64) @ self.basis

    def sites(self, xy_um: Float[np.ndarray, "l 2"]) -> Float[np.ndarray, "n 2"]:
        """Whole (i, j) of the sites that spots take, each once, in ascending order."""
        return np.unique(np.rint(self.coordinates(xy_um)) + 0.0, axis=0)


def find_lattice(xy_um: Float[np.ndarray, "l 2"]) -> Lattice:
    """The lattice that spot centres lie on, turned by any angle, jittered, and with holes.

    A function of the set of positions: their order changes no bit.

    Raises:
      SlideError: a position is not finite, or they are no pairs.
    """
    points = require_positions(xy_um)
    if len(points) < FEWEST:
        return _irregular(points)
    steps = _steps_to_neighbours(points)
    angles = np.arctan2(steps[:, 1], steps[:, 0])
    order = {kind: np.exp(1j * fold * angles).mean() for kind, fold in _FOLDS.items()}
    kind = max(_FOLDS, key=lambda k: abs(order[k]))
    turn = 2 * np.pi / _FOLDS[kind]
    direction = np.angle(order[kind]) / _FOLDS[kind]
    direction += turn * np.rint((_PREFERRED - direction) / turn)
    pitch = float(np.median(np.linalg.norm(steps, axis=1)))
    sides = direction + np.array([0.0, turn])
    guess = pitch * np.stack([np.cos(sides), np.sin(sides)], axis=1)
    found = _fit(points, kind, guess)
    return _irregular(points) if found is None else found


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """Array coordinates of lattice coordinates: ``ij @ turn + shift``.

    This is `to_array` for points of the lattice. It is fitted on the sites of the spots, to which
    jitter adds nothing, so that half a step is exactly half a column where the array counts so.

    Attributes:
      turn: change of (column, row) by one step along each basis vector [2 2].
      shift: (column, row) of the lattice's origin [2].
      whole: whether the array counts its sites in whole numbers, as all but bare pixels do.
      first: the site (i, j) nearest to column 0, row 0 [2]. What is counted from there does not
        move when spots are added or lost.
    """

    turn: Float[np.ndarray, "2 2"]
    shift: Float[np.ndarray, " 2"]
    whole: bool
    first: Float[np.ndarray, " 2"]

    @classmethod
    def fit(
        cls, lattice: Lattice, xy_um: Float[np.ndarray, "l 2"], array_xy: Float[np.ndarray, "l 2"]
    ) -> Frame:
        """The frame of a regular lattice, from the spots it was found in.

        Raises:
          SlideError: array coordinates do not follow the positions, or are of other spots.
        """
        xy_um, array = _require_pairs(xy_um, array_xy)
        ij = np.rint(lattice.coordinates(xy_um))
        design = np.column_stack([ij, np.ones(len(ij))])
        fitted = np.linalg.lstsq(design, array, rcond=None)[0]
        turn = np.rint(fitted[:2])
        # The median: a few spots may have strayed to a neighbour's site.
        shift = np.median(array - ij @ turn, axis=0)
        whole = bool((abs(fitted[:2] - turn) < _WHOLE).all() and (shift == np.rint(shift)).all())
        if not whole:
            turn, shift = fitted[:2], fitted[2]
        step = np.linalg.norm(turn, axis=1).min()
        off = np.sqrt(((array - ij @ turn - shift) ** 2).sum(axis=1).mean())
        if np.linalg.matrix_rank(turn, rtol=1e-6) < 2 or off > step / 2:
            raise errors.SlideError(
                "array coordinates contradict the positions of the spots",
                expected="columns and rows that follow the lattice seen in the image",
                found=f"differences of {off:.2g} columns or rows, where a step is {step:.2g}",
                fix="Check that both are of the same spots, in the same order",
            )
        first = np.rint((_CORNER - shift) @ np.linalg.inv(turn)) + 0.0
        return cls(turn=turn, shift=shift, whole=whole, first=first)

    def array(self, ij: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p 2"]:
        """(column, row) of lattice coordinates, to nine decimals: 7 and not 7.000000000001."""
        return np.round(ij @ self.turn + self.shift, 9) + 0.0


def to_array(
    points_um: Float[np.ndarray, "p 2"],
    xy_um: Float[np.ndarray, "l 2"],
    array_xy: Float[np.ndarray, "l 2"],
) -> Float[np.ndarray, "p 2"]:
    """Array coordinates of any points, in the convention of a slide's spots.

    What a spot's column and row mean differs between arrays (Visium counts every second column in
    a row, an image may be turned or mirrored), but every convention is affine in the positions:
    so the map is fitted, not known. Positions carry the jitter and array coordinates are exact,
    so positions are fitted by array coordinates and the fit is inverted; fitted the other way
    round, jitter would shrink the array towards its middle.

    Args:
      points_um: where coordinates are wanted.
      xy_um: positions of the slide's spots.
      array_xy: array coordinates of the same spots.

    Raises:
      SlideError: fewer than three spots, spots in one line on the array or on the image, or array
        coordinates of other spots.
    """
    xy_um, array_xy = _require_pairs(xy_um, array_xy)
    middle = array_xy.mean(axis=0) if len(array_xy) else np.zeros(2)
    design = np.column_stack([array_xy - middle, np.ones(len(array_xy))])
    # In one line on the array, the smallest solution moves in one direction only.
    solution = np.linalg.lstsq(design, xy_um, rcond=None)[0]
    if np.linalg.matrix_rank(solution[:2], rtol=1e-6) < 2:
        raise errors.SlideError(
            "array coordinates of new points cannot be derived from these spots",
            expected="at least three spots that are not in one line",
            found=f"{len(xy_um)} spots",
        )
    back = (np.asarray(points_um, np.float64) - solution[2]) @ np.linalg.inv(solution[:2])
    return back + middle


def require_positions(xy_um: Float[np.ndarray, "l 2"]) -> Float[np.ndarray, "n 2"]:
    """Distinct positions as float64, in ascending order.

    Raises:
      SlideError: a position is not finite, or they are no pairs.
    """
    points = np.asarray(xy_um, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise errors.SlideError(
            "positions are no pairs of x and y", expected="(spots, 2)", found=str(points.shape)
        )
    if not np.isfinite(points).all():
        raise errors.SlideError(
            f"{int((~np.isfinite(points).all(axis=1)).sum())} positions are not finite",
            fix="Leave these spots out, or mend their positions",
        )
    return np.unique(points, axis=0)


def _require_pairs(xy_um: np.ndarray, array_xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    xy_um, array_xy = np.asarray(xy_um, np.float64), np.asarray(array_xy, np.float64)
    if xy_um.shape != array_xy.shape or not np.isfinite(array_xy).all():
        raise errors.SlideError(
            "array coordinates do not fit the positions of the spots",
            expected=f"a finite column and row for each of {len(xy_um)} spots",
            found=f"shape {array_xy.shape}, {int(np.isfinite(array_xy).sum())} finite numbers",
        )
    return xy_um, array_xy


def _irregular(points: np.ndarray) -> Lattice:
    pitch = 0.0
    if len(points) > 1:
        pitch = float(np.median(scipy.spatial.KDTree(points).query(points, k=2)[0][:, 1]))
    return Lattice(
        kind="irregular",
        pitch_um=pitch,
        basis=pitch * np.eye(2),
        origin=np.zeros(2),
        rms_um=float("nan"),
    )


def _steps_to_neighbours(points: np.ndarray) -> np.ndarray:
    """Displacements [n 2] from each point to those of its six nearest that are neighbours."""
    length, row = scipy.spatial.KDTree(points).query(points, k=min(7, len(points)))
    steps = (points[row] - points[:, None])[:, 1:]
    return steps[length[:, 1:] <= _NEIGHBOURS * np.median(length[:, 1])]


def _fit(points: np.ndarray, kind: Kind, basis: np.ndarray) -> Lattice | None:
    """The lattice by least squares, from the middle outwards; None where the points leave it."""
    pitch = float(np.linalg.norm(basis[0]))
    far = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    origin = points[np.argmin(far)]
    far = np.linalg.norm(points - origin, axis=1)
    radius = max(_FIRST * pitch, float(np.partition(far, min(8, len(far) - 1))[:9].max()))
    before, ij = None, np.empty((0, 2))
    for _ in range(100):  # 1.6^100 pitches hold any slide
        near = far <= radius
        ij = np.rint((points[near] - origin) @ np.linalg.inv(basis))
        if before is not None and before.shape == ij.shape and (before == ij).all():
            break
        design = np.column_stack([np.ones(len(ij)), ij])
        rest = points[near] - origin - ij @ basis
        # The smallest change that fits: what these points do not tell stays as it was.
        change = np.linalg.lstsq(design, rest, rcond=None)[0]
        origin, basis = origin + change[0], basis + change[1:]
        if not _is_like(kind, basis):
            return None
        before = ij if near.all() else None
        radius *= _GROWTH
    if len(ij) < len(points) or np.linalg.matrix_rank(ij - ij.mean(axis=0)) < 2:
        return None
    square = float(((points - origin - ij @ basis) ** 2).sum())
    sides = basis if kind == "square" else np.vstack([basis, basis[1] - basis[0]])
    pitch = float(np.linalg.norm(sides, axis=1).mean())
    # Six numbers were fitted to 2 l: with few points the residual alone would flatter.
    if square > (len(points) - 3) * (LARGEST_RMS * pitch) ** 2:
        return None
    rms = float(np.sqrt(square / len(points)))
    return Lattice(kind=kind, pitch_um=pitch, basis=basis, origin=origin, rms_um=rms)


def _is_like(kind: Kind, basis: np.ndarray) -> bool:
    """Whether a basis is about that of its kind."""
    one, two = np.linalg.norm(basis, axis=1)
    if not min(one, two) * _STRETCH > max(one, two):
        return False
    angle = np.arccos(np.clip(basis[0] @ basis[1] / (one * two), -1.0, 1.0))
    return bool(abs(angle - 2 * np.pi / _FOLDS[kind]) < _SKEW)
