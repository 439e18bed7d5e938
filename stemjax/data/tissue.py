"""Where the tissue is: the footprint of the measured spots, and the mask of an image.

All positions are (x, y) in micrometres from the image's top left corner, lengths in pitches (the
distance between neighbouring spots) where a constant says so.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import scipy.spatial
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from skimage import color, filters, morphology

from stemjax import errors
from stemjax.data import lattice

_LONGEST = 1.6  # pitches: above a square's diagonal, below the next distances, 1.73 and 2
_STRAND = 1.25  # pitches: two spots this close are neighbours, though no third is near
_HOLE = 1.15  # pitches: radius of the empty disc where one spot is missing, 1, and some jitter
_WIDEST_GAP = np.deg2rad(105.0)  # between neighbours of a missing spot: 90 or 60 degrees, 120
_EDGE = 0.05  # pitches: as near as this to the footprint is on it
_DISC = 0.75  # pitches: above the distance of a square cell's middle from its corners, .71
# Optical densities (base 10) of a section's thumbnail, beyond the glass.
_CLEAR = 0.05  # less in every colour is glass
_STAIN = 0.015  # of green beyond red and blue: the least of stained tissue
_PALE, _DARK = 0.03, 0.07  # of green: the least of any tissue, and enough for all of it
_INK, _NEUTRAL = 0.15, 0.25  # ink is as dark as this, and grey if colours differ by less of that
# Blue ink: red over green, and blue over red. HER2ST's nuclei reach 1.19, but none is below .49.
_BLUE_RED, _BLUE_BLUE = 1.05, 0.4
_AROUND = np.stack([f(np.arange(8) * np.pi / 4) for f in (np.cos, np.sin)], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """Which pixels of a thumbnail are tissue.

    Attributes:
      inside: whether a pixel is tissue, bool [h w].
      um_per_px: side of a pixel in um.
    """

    inside: Bool[np.ndarray, "h w"]
    um_per_px: float

    def covers(self, points_um: Float[np.ndarray, "p 2"]) -> Bool[np.ndarray, " p"]:
        """Whether points lie on tissue; beside the image is none."""
        column, row = np.floor(np.asarray(points_um, np.float64) / self.um_per_px).T.astype(int)
        height, width = self.inside.shape
        known = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        result = np.zeros(len(known), bool)
        result[known] = self.inside[row[known], column[known]]
        return result


class Footprint:
    """The part of the plane that measured spots cover; `in_tissue` has the rule.

    Args:
      spots_um: positions of the measured spots, in any order.
      pitch_um: distance between neighbouring spots.

    Attributes:
      spots_um: positions of the spots, each once, ascending, float64 [n 2].
      pitch_um: as given.

    Raises:
      SlideError: a spot's position is not finite.
      ConfigError: the distance is no positive number.
    """

    def __init__(self, spots_um: Float[np.ndarray, "l 2"], pitch_um: float) -> None:
        if not (np.isfinite(pitch_um) and pitch_um > 0):
            raise errors.ConfigError(
                "the distance between spots cannot be used",
                expected="um above 0",
                found=f"{pitch_um:g}",
            )
        self.pitch_um = pitch_um
        self.spots_um = lattice.require_positions(spots_um)
        self._middle = self.spots_um.mean(axis=0) if len(self.spots_um) else np.zeros(2)
        self._spots = (self.spots_um - self._middle) / pitch_um
        self._tree = scipy.spatial.KDTree(self._spots)
        try:
            self._triangles = scipy.spatial.Delaunay(self._spots)
        except (scipy.spatial.QhullError, ValueError):  # fewer than three spots, or all in a line
            self._triangles = None
        else:
            self._covered = self._covered_triangles(self._triangles)

    def covers(
        self, points_um: Float[np.ndarray, "p 2"], *, reach: float = 1.0, mask: Mask | None = None
    ) -> Bool[np.ndarray, " p"]:
        """Whether points are in tissue, see `in_tissue`."""
        points_um = np.asarray(points_um, np.float64)
        if not len(self._spots) or not len(points_um):
            return np.zeros(len(points_um), bool)
        points = (points_um - self._middle) / self.pitch_um
        found = self._tree.query(points, k=2, distance_upper_bound=2.0)
        distance, row = np.asarray(found[0]), np.asarray(found[1])
        spots = np.vstack([self._spots, [np.inf, np.inf]])  # the row of those that have none
        inside = distance[:, 0] <= _EDGE
        pair = np.flatnonzero(np.isfinite(distance[:, 1]))
        length = np.linalg.norm(spots[row[pair, 0]] - spots[row[pair, 1]], axis=1)
        # A path over a point that lies h beside the middle of a step of 1 is longer by 2 h^2.
        on_step = distance[pair].sum(axis=1) <= length + 2 * _EDGE**2
        inside[pair] |= (length <= _STRAND) & on_step
        near = distance[:, 0] <= reach + 1e-6
        for offset in (np.zeros(2), *(_EDGE * _AROUND)):
            rest = np.flatnonzero(near & ~inside)
            # Each search for a triangle walks from the one before: neighbours in turn.
            rest = rest[np.argsort(row[rest, 0])]
            inside[rest] = self._in_triangles(points[rest] + offset)
        inside &= near
        if mask is not None:
            rest = np.flatnonzero(inside)
            inside[rest] = self._in_mask(points_um[rest], mask)
        return inside

    def _covered_triangles(self, triangles: scipy.spatial.Delaunay) -> np.ndarray:
        corners = self._spots[triangles.simplices]
        sides = corners - np.roll(corners, 1, axis=1)
        covered = np.linalg.norm(sides, axis=2).max(axis=1) <= _LONGEST
        rest = np.flatnonzero(~covered)
        centre, radius = _empty_discs(corners[rest])
        small = radius <= _HOLE
        covered[rest[small]] = self._gaps(centre[small]) <= _WIDEST_GAP
        return covered

    def _gaps(self, points: np.ndarray) -> np.ndarray:
        """The widest angle [p] between the spots around points in which there is none."""
        if not len(points):
            return np.empty(0)
        distance, row = self._tree.query(points, k=12, distance_upper_bound=_STRAND)
        near = np.isfinite(distance)
        steps = self._spots[np.where(near, row, 0)] - points[:, None]
        # A spot too far counts as the nearest one: twice the same direction is no other gap.
        angle = np.arctan2(steps[..., 1], steps[..., 0])
        angle = np.sort(np.where(near, angle, angle[:, :1]), axis=1)
        first = angle[:, :1] + 2 * np.pi
        return np.diff(angle, append=first, axis=1).max(axis=1)

    def _in_triangles(self, points: np.ndarray) -> np.ndarray:
        if self._triangles is None or not len(points):
            return np.zeros(len(points), bool)
        found = self._triangles.find_simplex(points)
        return (found >= 0) & self._covered[found]

    def _in_mask(self, points_um: np.ndarray, mask: Mask) -> np.ndarray:
        inside = mask.covers(points_um)
        missed = self.spots_um[~mask.covers(self.spots_um)]
        if len(missed):
            tree = scipy.spatial.KDTree(missed)
            inside |= tree.query(points_um)[0] <= _DISC * self.pitch_um
        return inside


def _empty_discs(corners: Float[np.ndarray, "t 3 2"]) -> tuple[np.ndarray, np.ndarray]:
    """Centres [t 2] and radii [t] of the circles through three points; infinite in a line."""
    first = corners[:, 0]
    one, two = corners[:, 1] - first, corners[:, 2] - first
    twice = 2 * (one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0])
    across = (one**2).sum(axis=1, keepdims=True) * two - (two**2).sum(axis=1, keepdims=True) * one
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = np.stack([across[:, 1], -across[:, 0]], axis=1) / twice[:, None]
    radius = np.linalg.norm(centre, axis=1)
    return first + centre, np.where(np.isfinite(radius), radius, np.inf)


def in_tissue(
    points_um: Float[np.ndarray, "p 2"],
    spots_um: Float[np.ndarray, "l 2"],
    pitch_um: float,
    *,
    reach: float = 1.0,
    mask: Mask | None = None,
) -> Bool[np.ndarray, " p"]:
    """Whether points lie in the tissue that the measured spots lie under.

    The spots' footprint is an alpha shape (Edelsbrunner, Kirkpatrick and Seidel, IEEE Trans. Inf.
    Theory 29, 551, 1983): the triangles of their Delaunay triangulation with no side longer than
    1.6 pitches, and the steps between neighbours. A triangle is filled by three spots that are
    each other's neighbours, so that the outer edge gains nothing beyond the line between its
    spots and a hole keeps its shape; a bound on the distance to the nearest spot alone would add
    a rim all around. The place of one missing spot whose neighbours are all measured is filled
    too: single spots are lost to quality control more often than to a hole. A hole of two spots
    or more stays.

    An image's mask can only take away. Where a spot that was measured lies off the mask, the mask
    is wrong (fat is as pale as glass): within .75 pitches of such a spot it is not asked.

    Args:
      points_um: the points to judge.
      spots_um: positions of the measured spots, in any order.
      pitch_um: distance between neighbouring spots.
      reach: how far a point's nearest spot may be, in pitches. The default is the distance to the
        middle of a place with one spot missing, and no point of the footprint lies farther; less
        keeps nearer to the spots.
      mask: tissue seen in the image.

    Raises:
      SlideError: a spot's position is not finite.
      ConfigError: ``pitch_um`` is no positive number.
    """
    return Footprint(spots_um, pitch_um).covers(points_um, reach=reach, mask=mask)


def tissue_mask(thumbnail: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Which pixels of a thumbnail show tissue.

    Saturation above Otsu's threshold, closed over what is narrower than a 32nd of the image (fat
    cells: only their walls are stained), without parts and holes below a thousandth of its area.
    Made for a section on glass, with a thumbnail of 500 to 2,000 pixels. An image without glass,
    and wide pale fat, fall apart: `in_tissue` therefore trusts measured spots more.
    """
    saturation = filters.gaussian(color.rgb2hsv(thumbnail)[..., 1], 1.0)
    mask = saturation > filters.threshold_otsu(saturation)
    radius = max(1, round(max(mask.shape) / 64))
    # Padded: else a strip of glass between tissue and the border of the image is closed too.
    mask = morphology.isotropic_closing(np.pad(mask, radius), radius)
    mask = mask[radius:-radius, radius:-radius]
    small = mask.size // 1000
    return ~_large_parts(~_large_parts(mask, small), small)


def section_mask(thumbnail: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Which pixels of a thumbnail show a stained section, where no measured spot vouches for it.

    `tissue_mask` splits any image in two, a blank one too, and takes a pen for tissue. Here a pixel
    has to absorb green, more than red and blue on average, by absolute amounts of optical density:
    haematoxylin and eosin do; glass of any grey, shadow, scanner borders, black and green ink do
    not, and blue ink is told by how little blue it absorbs. Between the bounds of what is tissue
    for certain and what is not, Otsu's threshold of the green absorbance decides. Then the same
    closing over fat and the same size of the smallest parts and holes as in `tissue_mask`; ink is
    taken out of what was closed. Red ink is not told from eosin, nor is brown from melanin.

    A thumbnail of 500 to 4,000 pixels serves best. An image without any glass is all tissue.
    """
    smooth = filters.gaussian(thumbnail, 1.5, preserve_range=True, channel_axis=2)
    glass = _glass(smooth)
    density: np.ndarray = -np.log10(np.clip((smooth + 1) / (glass + 1), 1e-3, None))
    red, green, blue = (density[..., i] for i in range(3))
    mean, stain = density.mean(axis=2), green - (red + blue) / 2
    neutral = density.max(axis=2) - density.min(axis=2) < _NEUTRAL * mean
    blueish = (red > _BLUE_RED * green) & (blue < _BLUE_BLUE * red)
    dark = (mean > _INK) & (neutral | blueish | (green < np.minimum(red, blue)))
    ink: np.ndarray = ndimage.binary_dilation(_large_parts(dark, 4), iterations=3)
    clear = np.abs(density).max(axis=2) < _CLEAR
    noise = 1.4826 * np.median(np.abs(stain[clear])) if clear.any() else 0.0
    rest = green[~ink]
    level = float(filters.threshold_otsu(rest)) if rest.size else _DARK
    level = float(np.clip(level, _PALE, _DARK))
    mask = (stain > max(_STAIN, 5 * noise)) & (green > level) & ~blueish & ~ink
    # Before closing: specks of noise, close to each other, would be closed into one piece.
    mask = _large_parts(mask, max(mask.size // 50_000, 12))
    radius = max(1, round(max(mask.shape) / 64))
    mask = morphology.isotropic_closing(np.pad(mask, radius), radius)[
        radius:-radius, radius:-radius
    ]
    small = mask.size // 1000
    mask = _large_parts(mask & ~ink, small)
    return ~_large_parts(~mask, small) & ~ink


def _glass(smooth: np.ndarray) -> np.ndarray:
    """The colour of bare glass [3]: the commonest among bright and nearly grey pixels."""
    bright = (smooth.min(axis=2) > 165) & (np.ptp(smooth, axis=2) < 25)
    if bright.mean() < 0.01:
        return np.full(3, 245.0)
    pixels = smooth[bright]
    shade = np.rint(pixels[:, 1]).astype(int)
    near = np.abs(shade - np.bincount(shade).argmax()) <= 3
    return np.median(pixels[near], axis=0)


def _large_parts(mask: np.ndarray, size: int) -> np.ndarray:
    """The connected parts of a mask with more than ``size`` pixels."""
    labels, count = cast("tuple[np.ndarray, int]", ndimage.label(mask))
    large = np.bincount(labels.ravel(), minlength=count + 1) > size
    large[0] = False
    return large[labels]
