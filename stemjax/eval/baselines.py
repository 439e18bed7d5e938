"""Floors and rivals to print beside a model: what the same data give without it.

`fit` makes all of them for one slide of the records. Every other function takes plain arrays and
returns a prediction [l g] in the value space of ``y``. The training rows carry a mask [n g], 1
where the row's slide measured the gene; each gene is fitted on the rows that measured it, and a
gene that none measured comes out as NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg, spatial

from stemjax.data import transforms

if TYPE_CHECKING:
    from stemjax.data import records

ALPHAS: tuple[float, ...] = (1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
"""Ridge penalties tried by `ridge`."""

_STRIPS = 5  # folds inside a single training slide
_ROUNDING = 1e-9  # positions this close beside their distance are the same position


def _alike(mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(genes, rows) for each set of genes measured on the same, non-empty, set of rows."""
    measured = np.asarray(mask) != 0
    patterns, which = np.unique(measured, axis=1, return_inverse=True)
    for i in range(patterns.shape[1]):
        rows = np.flatnonzero(patterns[:, i])
        if rows.size:
            yield np.flatnonzero(which.reshape(-1) == i), rows


def constant_mean(
    y: Float[np.ndarray, "n g"], mask: np.ndarray, *, spots: int
) -> Float[np.ndarray, "l g"]:
    """Each gene's mean over the training spots, for every one of ``spots`` test spots."""
    pred = np.full((spots, y.shape[1]), np.nan)
    for genes, rows in _alike(mask):
        pred[:, genes] = np.asarray(y, np.float64)[np.ix_(rows, genes)].mean(axis=0)
    return pred


def depth_oracle(
    y: Float[np.ndarray, "n g"],
    mask: np.ndarray,
    total: Int[np.ndarray, " n"],
    test_total: Int[np.ndarray, " l"],
) -> Float[np.ndarray, "l g"]:
    """Linear regression of each gene on the spot's own depth, log2(1 + total counts).

    The line is fitted on the training spots and evaluated at the TEST spot's own total. That total
    is a measurement, which no image shows: an oracle, not a rival. It says how much of a score on
    raw counts is sequencing depth alone. Should all training spots have one depth, it is the mean.
    """
    depth = np.log2(1.0 + np.asarray(total, np.float64))
    test_depth = np.log2(1.0 + np.asarray(test_total, np.float64))
    pred = np.full((len(test_depth), y.shape[1]), np.nan)
    for genes, rows in _alike(mask):
        x, target = depth[rows], np.asarray(y, np.float64)[np.ix_(rows, genes)]
        deviation, mean = x - x.mean(), target.mean(axis=0)
        square = deviation @ deviation
        slope = deviation @ (target - mean) / square if square > 0 else np.zeros(len(genes))
        pred[:, genes] = mean + (test_depth - x.mean())[:, None] * slope
    return pred


def coordinates_knn(
    xy: Float[np.ndarray, "n 2"],
    y: Float[np.ndarray, "n g"],
    mask: np.ndarray,
    test_xy: Float[np.ndarray, "l 2"],
    *,
    k: int = 10,
) -> Float[np.ndarray, "l g"] | None:
    """Mean of the k nearest training spots of the SAME PATIENT, by array coordinates alone.

    The rows given are the training spots of the test slide's patient, all sections pooled; with
    none of them there is nothing to compare and None comes back. Coordinates are taken as they
    are: serial sections lie only roughly on top of one another, so a registration would make this
    floor higher. Spots as near as the k-th all count, so the order of the rows does not matter.
    """
    if len(y) == 0:
        return None
    xy, test_xy = np.asarray(xy, np.float64), np.asarray(test_xy, np.float64)
    pred = np.full((len(test_xy), y.shape[1]), np.nan)
    for genes, rows in _alike(mask):
        tree = spatial.KDTree(xy[rows])
        target = np.asarray(y, np.float64)[np.ix_(rows, genes)]
        nearest = tree.query(test_xy, k=min(k, len(rows)))[0].reshape(len(test_xy), -1)[:, -1]
        near = tree.query_ball_point(test_xy, nearest * (1 + _ROUNDING) + _ROUNDING)
        pred[:, genes] = [target[np.sort(found)].mean(axis=0) for found in near]
    return pred


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ridge:
    """A ridge regression's prediction, and how its penalty was chosen.

    Attributes:
      prediction: value space, [l g]; NaN for a gene that no training row measured.
      alpha: the penalty with the lowest mean squared error over the held-out folds.
      alphas: the penalties tried, rising.
      errors: held-out mean squared error of each of them.
      folds: what was held out, in words.
    """

    prediction: Float[np.ndarray, "l g"]
    alpha: float
    alphas: tuple[float, ...]
    errors: tuple[float, ...]
    folds: str


def _solve(
    x: np.ndarray, y: np.ndarray, test_x: np.ndarray, alphas: Sequence[float]
) -> Iterator[np.ndarray]:
    """Predictions at test_x for each alpha: columns standardised, intercept free of the penalty.

    The smaller of xᵀx and xxᵀ is formed once and factored for each alpha: eight Cholesky factors of
    1,536 columns cost less than half of one eigendecomposition.
    """
    centre, scale = x.mean(axis=0), x.std(axis=0)
    # A constant column has a deviation of rounding size: dividing by it would make noise of it.
    scale = np.where(scale <= _ROUNDING * np.maximum(np.abs(centre), 1e-30), 1.0, scale)
    x, test_x = (x - centre) / scale, (test_x - centre) / scale
    mean = y.mean(axis=0)
    # (xᵀx + alpha)⁻¹ xᵀ = xᵀ (xxᵀ + alpha)⁻¹: whichever inverse is the smaller.
    primal = x.shape[0] >= x.shape[1]
    gram = x.T @ x if primal else x @ x.T
    target = x.T @ (y - mean) if primal else y - mean
    left = test_x if primal else test_x @ x.T
    for alpha in alphas:
        factor = linalg.cho_factor(gram + alpha * np.eye(len(gram)), lower=True)
        yield left @ linalg.cho_solve(factor, target) + mean


def _fit(
    x: np.ndarray, y: np.ndarray, mask: np.ndarray, test_x: np.ndarray, alphas: Sequence[float]
) -> np.ndarray:
    """Ridge predictions for each alpha, [alphas l g]; each gene on the rows that measured it."""
    pred = np.full((len(alphas), len(test_x), y.shape[1]), np.nan)
    for genes, rows in _alike(mask):
        for i, values in enumerate(_solve(x[rows], y[np.ix_(rows, genes)], test_x, alphas)):
            pred[i][:, genes] = values
    return pred


def ridge_folds(
    slide_index: Int[np.ndarray, " n"], array_xy: Float[np.ndarray, "n 2"]
) -> tuple[Int[np.ndarray, " n"], str]:
    """Fold of each training row and what a fold is, in words.

    Several slides: one slide a fold. One slide: five contiguous strips across its longer side (of
    equal numbers of spots), since neighbours of a held-out spot would give it away.
    """
    slides, fold = np.unique(slide_index, return_inverse=True)
    if len(slides) > 1:
        return fold.reshape(-1), "leave one slide out"
    xy = np.asarray(array_xy, np.float64)
    long = int(np.argmax(np.ptp(xy, axis=0)))
    rank = np.empty(len(xy), np.int64)
    rank[np.lexsort((xy[:, 1 - long], xy[:, long]))] = np.arange(len(xy))
    strips = min(_STRIPS, len(xy))
    return rank * strips // len(xy), f"{strips} contiguous strips of the one training slide"


def ridge(
    x: Float[np.ndarray, "n c"],
    y: Float[np.ndarray, "n g"],
    mask: np.ndarray,
    test_x: Float[np.ndarray, "l c"],
    *,
    slide_index: Int[np.ndarray, " n"],
    array_xy: Float[np.ndarray, "n 2"],
    alphas: Sequence[float] = ALPHAS,
) -> Ridge:
    """Ridge regression of expression on the patch embeddings (original patch, variant 0).

    Minimises |y - b - Z w|² + alpha |w|² with Z the embeddings standardised over the training
    rows (scikit-learn's StandardScaler and Ridge). Alpha has the lowest squared error over the
    folds of `ridge_folds`, all genes together; the final fit uses every training row.
    """
    x, test_x = np.asarray(x, np.float64), np.asarray(test_x, np.float64)
    y, measured = np.asarray(y, np.float64), np.asarray(mask) != 0
    alphas = tuple(sorted(float(a) for a in alphas))
    fold, what = ridge_folds(slide_index, array_xy)
    squared, entries = np.zeros(len(alphas)), 0
    for held in range(int(fold.max()) + 1):
        out = fold == held
        if out.all():
            continue
        pred = _fit(x[~out], y[~out], measured[~out], x[out], alphas)
        # A gene that only the held-out slide measured has no prediction: it says nothing of alpha.
        scored = measured[out] & ~np.isnan(pred[0])
        squared += [np.sum((p - y[out])[scored] ** 2) for p in pred]
        entries += int(scored.sum())
    errors = squared / max(entries, 1)
    # With nothing to hold out (one spot) all errors are equal: the strongest penalty is the mean.
    best = int(np.argmin(errors)) if entries else len(alphas) - 1
    return Ridge(
        prediction=_fit(x, y, measured, test_x, alphas[best : best + 1])[0],
        alpha=alphas[best],
        alphas=alphas,
        errors=tuple(float(e) for e in errors),
        folds=what,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """The baselines of one test slide.

    Attributes:
      rows: prediction [l g] by row name, in the order of the table; without "coordinates kNN" where
        no training slide is known to be of the test slide's patient.
      ridge: how the ridge row was fitted.
      trained: whether any training spot measured the gene, [g]; where not, every row is NaN.
    """

    rows: Mapping[str, Float[np.ndarray, "l g"]]
    ridge: Ridge
    trained: np.ndarray

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the table must know of these rows, in sentences."""
        notes = [f"Ridge: alpha {self.ridge.alpha:g} by {self.ridge.folds}."]
        if self.ridge.alpha in (self.ridge.alphas[0], self.ridge.alphas[-1]):
            notes.append("Ridge's alpha is at the end of its grid.")
        if "coordinates kNN" not in self.rows:
            notes.append("No coordinates kNN: no training slide is known to be of this patient.")
        return tuple(notes)


def fit(
    train: records.Table,
    test: records.Table,
    *,
    value_space: str,
    patients: Mapping[str, str | None],
) -> Fitted:
    """Every baseline, fitted on the training slides' records, for the one slide of ``test``.

    Args:
      train: records of the training slides.
      test: records of the test slide; of its counts only the totals are used, by the oracle.
      value_space: name of the transform that the targets are in.
      patients: patient of every slide of both tables.
    """
    forward = transforms.get_transform(value_space).forward
    y = np.asarray(forward(train.counts, train.total), np.float64)
    constant = constant_mean(y, train.mask, spots=len(test.barcodes))
    rows = {"constant mean": constant}
    patient = patients[test.slides[0]]
    same = [i for i, slide in enumerate(train.slides) if patient and patients[slide] == patient]
    near = np.isin(train.slide_index, same)
    knn = coordinates_knn(train.array_xy[near], y[near], train.mask[near], test.array_xy)
    if knn is not None:
        # A gene that only other patients' slides measured: this patient's sections say nothing.
        rows["coordinates kNN"] = np.where(np.isnan(knn), constant, knn)
    rows["depth oracle"] = depth_oracle(y, train.mask, train.total, test.total)
    fitted = ridge(
        train.embeddings[:, 0],
        y,
        train.mask,
        test.embeddings[:, 0],
        slide_index=train.slide_index,
        array_xy=train.array_xy,
    )
    rows["ridge"] = fitted.prediction
    return Fitted(rows=rows, ridge=fitted, trained=(np.asarray(train.mask) != 0).any(axis=0))
