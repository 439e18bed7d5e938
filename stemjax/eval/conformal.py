"""Conformal calibration: intervals whose coverage does not rest on the model being right.

Split conformal prediction (Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World;
Lei, G'Sell, Rinaldo, Tibshirani and Wasserman 2018, JASA 113, section 2.2) with residuals in units
of the predicted spread (there, section 5.2), each gene by itself (Mondrian: Vovk and others 2005,
chapter 4) and each tail by itself (as Romano, Patterson and Candès 2019, NeurIPS 32, theorem 2, do
for quantile regression). The score of a spot and gene is

    s = (y - mean) / scale,   scale = max(std, floor_g), or 1 where the prediction has no std

in the value space. Of n scores of spots that the model was not fitted on, sorted, the offsets of
level 1 - a are s_(n + 1 - k) and s_(k) with k = ceil((n + 1)(1 - a / 2)), and the interval of a new
spot is mean + offset x scale. If the n spots and the new one are exchangeable, each tail misses
with probability at most a / 2, so the interval holds y with probability at least 1 - a, whatever
the model: a wrong mean or std makes intervals wide or lopsided, not wrong. Spots of one slide are
not independent of each other, and those of another slide or patient not exchangeable with them:
the guarantee is as good as the likeness of the slides (docs/calibration.md).
"""

from __future__ import annotations

import fractions
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from stemjax import errors
from stemjax.data import space
from stemjax.eval import metrics
from stemjax.train import calibration

if TYPE_CHECKING:
    import anndata

FLOOR_SHARE = 0.1
"""Smallest scale of a gene, as a share of its standard deviation over the training spots.

A std near 0 (a gene that all few draws agree on) would make a score that has no bound, and its
order statistics intervals without use. The guarantee holds for any share fixed beforehand.
"""

_SLACK = 1e-5  # value units; see `intervals`


class Held(NamedTuple):
    """Predictions and truth of one slide's spots, in the value space.

    Attributes:
      slide: its id.
      mean: [l g].
      std: [l g], or None where the mode has none.
      true: measured values, [l g].
      mask: 1 where the slide measured the gene, [l g].
      array_xy: places of the spots on the array, [l 2].
    """

    slide: str
    mean: Float[np.ndarray, "l g"]
    std: Float[np.ndarray, "l g"] | None
    true: Float[np.ndarray, "l g"]
    mask: np.ndarray
    array_xy: Float[np.ndarray, "l 2"]


def spots_needed(level: float) -> int:
    """Fewest spots that can calibrate a level: (1 + level) / (1 - level), 39 for .95."""
    exact = fractions.Fraction(repr(float(level)))
    return math.ceil((1 + exact) / (1 - exact))


def offsets(
    scores: Float[np.ndarray, "n g"],
    mask: np.ndarray,
    levels: Sequence[float] = metrics.LEVELS,
) -> Float[np.ndarray, "levels 2 g"]:
    """Lower and upper offset of each level and gene, the order statistics of the module's text.

    A gene with fewer than `spots_needed` scores gets -inf and inf, which is what the theory says of
    it; one without any gets NaN.

    Args:
      scores: one a spot, [n g].
      mask: 1 where the spot's slide measured the gene, [n g].
      levels: of the central intervals.
    """
    measured = np.asarray(mask) != 0
    # Sorting moves NaN to the end.
    ranked = np.sort(np.where(measured, scores, np.nan).astype(np.float64), axis=0)
    counts = measured.sum(axis=0)
    found = np.full((len(levels), 2, ranked.shape[1]), np.nan)
    for n in np.unique(counts[counts > 0]):
        genes = np.flatnonzero(counts == n)
        for i, level in enumerate(levels):
            # As fractions: in floats 25 (1 + .68) / 2 comes out above 21, and its ceiling is 22.
            k = math.ceil((int(n) + 1) * (1 + fractions.Fraction(repr(float(level)))) / 2)
            enough = k <= n
            found[i, 0, genes] = ranked[n - k, genes] if enough else -np.inf
            found[i, 1, genes] = ranked[k - 1, genes] if enough else np.inf
    return found


def scale_of(
    std: Float[np.ndarray, "l g"] | None, floor: Float[np.ndarray, " g"]
) -> Float[np.ndarray, "l g"] | float:
    """Unit of the offsets: the std, no less than the gene's floor; 1 without a std."""
    return 1.0 if std is None else np.maximum(np.asarray(std, np.float64), floor)


def score(held: Held, floor: Float[np.ndarray, " g"]) -> Float[np.ndarray, "l g"]:
    """Conformal score of every entry, (y - mean) / scale."""
    residual = np.asarray(held.true, np.float64) - np.asarray(held.mean, np.float64)
    return residual / scale_of(held.std, floor)


def intervals(
    mean: Float[np.ndarray, "l g"],
    std: Float[np.ndarray, "l g"] | None,
    offsets: Float[np.ndarray, "levels 2 g"],
    floor: Float[np.ndarray, " g"],
) -> tuple[Float[np.ndarray, "levels l g"], Float[np.ndarray, "levels l g"]]:
    """Lower and upper ends of each level's intervals, in the value space.

    Both are cut off at 0, which no measured value lies below. Before that each moves outward by
    1e-5, more than the rounding of float32 values up to 64: an end that should be a value that many
    spots share (a count of 0 above all) would else leave all of them out by a rounding.
    """
    mean, scale = np.asarray(mean, np.float64), scale_of(std, floor)
    ends = mean + offsets[:, :, None, :] * scale
    lower, upper = ends[:, 0] - _SLACK, ends[:, 1] + _SLACK
    return np.maximum(lower, 0.0), np.maximum(upper, 0.0)


class Counted(NamedTuple):
    """Of some intervals' entries, how many hold the truth; sums of two are of both together.

    Attributes:
      inside: entries whose interval holds the measured value, one a level.
      entries: entries with a finite interval, one a level.
    """

    inside: np.ndarray
    entries: np.ndarray

    def plus(self, other: Counted) -> Counted:
        """Returns both together."""
        return Counted(self.inside + other.inside, self.entries + other.entries)

    @property
    def shares(self) -> tuple[float | None, ...]:
        """Coverage of each level; None where no entry has a finite interval."""
        pairs = zip(self.inside, self.entries)
        return tuple(float(i / n) if n else None for i, n in pairs)


def count_inside(
    lower: Float[np.ndarray, "levels l g"],
    upper: Float[np.ndarray, "levels l g"],
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray,
) -> Counted:
    """Counts the measured entries inside their interval, ends included.

    Entries whose interval is infinite or NaN are left out: they would count as right without saying
    anything.
    """
    used = (np.asarray(mask) != 0) & np.isfinite(lower) & np.isfinite(upper)
    inside = used & (lower <= true) & (true <= upper)
    return Counted(inside.sum(axis=(1, 2)), used.sum(axis=(1, 2)))


def hold_out(
    slides: Sequence[Held], floor: Float[np.ndarray, " g"], levels: Sequence[float] = metrics.LEVELS
) -> tuple[tuple[float | None, ...], str]:
    """Coverage on spots that the offsets were not fitted on, one a level, and how they were held.

    Two slides or more: each in turn, fitted on the others. One slide: its two halves, cut across
    the array's longer side, each fitted on the other; neighbours would else be on both sides. A
    gene with too few spots left for a level takes no part in that level.
    """
    if len(slides) > 1:
        parts, how = list(slides), "leave one slide out"
    else:
        parts, how = _halves(slides[0]), "each half of the slide by the other"
    scores = [score(part, floor) for part in parts]
    found = Counted(np.zeros(len(levels), np.int64), np.zeros(len(levels), np.int64))
    for i, part in enumerate(parts):
        others = [j for j in range(len(parts)) if j != i]
        fitted = offsets(
            np.concatenate([scores[j] for j in others]),
            np.concatenate([parts[j].mask for j in others]),
            levels,
        )
        lower, upper = intervals(part.mean, part.std, fitted, floor)
        # A lower end of -inf becomes 0, so the upper end alone tells that there is no interval.
        found = found.plus(count_inside(lower, upper, part.true, part.mask))
    return found.shares, how


def _halves(held: Held) -> list[Held]:
    """A slide cut in two across its longer side."""
    xy = np.asarray(held.array_xy, np.float64)
    along = int(np.argmax(np.ptp(xy, axis=0)))
    order = np.lexsort((xy[:, 1 - along], xy[:, along]))
    halves = np.array_split(order, 2)
    return [
        held._replace(
            mean=held.mean[rows],
            std=None if held.std is None else held.std[rows],
            true=held.true[rows],
            mask=held.mask[rows],
            array_xy=held.array_xy[rows],
        )
        for rows in map(np.sort, halves)
        if len(rows)
    ]


def fit(
    slides: Sequence[Held],
    fitted: space.Space,
    *,
    sampling: Mapping[str, Any],
    model: Mapping[str, Any],
    raw: tuple[float | None, ...] | None = None,
    levels: Sequence[float] = metrics.LEVELS,
) -> calibration.Calibration:
    """Returns the calibration of some slides' predictions.

    Args:
      slides: predictions and truth; the model was fitted on none of them.
      fitted: the model's space, whose training std gives the smallest scale.
      sampling: how the predictions were drawn (`predict.describe_sampling`).
      model: which weights (`checkpoint.Trained.identity`).
      raw: coverage of the model's own intervals, one a level, to be stored beside.
      levels: of the central intervals, rising.

    Raises:
      CalibrationError: no gene was measured, a gene that was has fewer spots than a level needs, or
        a value is not finite.
    """
    floor = FLOOR_SHARE * np.asarray(fitted.expression.std, np.float64)
    mask = np.concatenate([held.mask for held in slides]) != 0
    for held in slides:
        parts = [held.mean, held.true] if held.std is None else [held.mean, held.true, held.std]
        if bad := int(((held.mask != 0) & ~np.all(np.isfinite(parts), axis=0)).sum()):
            raise errors.CalibrationError(
                f"predictions and counts of {held.slide}",
                expected="finite values",
                found=f"{bad} that are not",
                fix="look for damaged weights, embeddings or counts",
            )
    scores = np.concatenate([score(held, floor) for held in slides])
    counts, needed = mask.sum(axis=0), spots_needed(max(levels))
    few = np.flatnonzero((counts > 0) & (counts < needed))
    if few.size or not counts.any():
        names = ", ".join(f"{fitted.genes[g]} {counts[g]}" for g in few[:3])
        raise errors.CalibrationError(
            "the spots to calibrate on",
            expected=f"at least {needed} that measured each gene, for the level {max(levels):.0%}",
            found=f"too few for {len(few)} of {len(counts)} genes ({names})"
            if few.size
            else "none that measured any gene",
            fix="calibrate on more slides (--slides)",
        )
    held_out, how = hold_out(slides, floor, levels)
    return calibration.Calibration(
        levels=tuple(levels),
        offsets=offsets(scores, mask, levels),
        floor=floor,
        spots=counts,
        slides=tuple(held.slide for held in slides),
        genes=fitted.genes,
        value_space=fitted.transform,
        sampling=sampling,
        model=model,
        raw=raw,
        held_out=held_out,
        held_out_by=how,
    )


def layer_names(level: float) -> tuple[str, str]:
    """Names of the layers with the lower and upper ends: ``stemjax_lower_90``, ..."""
    return tuple(f"stemjax_{end}_{100 * level:g}" for end in ("lower", "upper"))  # type: ignore[return-value]


def write_intervals(
    result: anndata.AnnData, std: np.ndarray | None, made: calibration.Calibration
) -> None:
    """Writes each level's ends into a prediction's layers, value space, float32.

    A gene that no spot of the calibration measured is NaN there, and nothing else is.

    Args:
      result: the prediction, with its mean as X and genes in the calibration's order.
      std: its standard deviation, or None.
      made: the calibration.
    """
    lower, upper = intervals(np.asarray(result.X), std if made.scaled else None,
                             made.offsets, made.floor)  # fmt: skip
    for i, level in enumerate(made.levels):
        for name, ends in zip(layer_names(level), (lower[i], upper[i])):
            result.layers[name] = ends.astype(np.float32)


def find(
    calibrations: Sequence[calibration.Calibration], sampling: Mapping[str, Any]
) -> calibration.Calibration | None:
    """Returns the calibration of predictions that are drawn in this way, or None."""
    return next((one for one in calibrations if one.sampling == sampling), None)
