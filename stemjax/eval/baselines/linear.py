"""Linear rivals on the same embeddings: ridge with a cross-validated penalty, HEST's probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg

from stemjax.eval import metrics
from stemjax.eval.baselines import masks

ALPHAS: tuple[float, ...] = (1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
"""Ridge penalties tried by `ridge`."""

_STRIPS = 5  # folds inside a single training slide
_ROUNDING = 1e-9  # a deviation this small beside the mean is the rounding of equal numbers
_HEST_COMPONENTS, _HEST_SEED, _HEST_ITERATIONS = 256, 1, 1000


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


def standardised(
    x: Float[np.ndarray, "n c"], test_x: Float[np.ndarray, "l c"]
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "l c"]]:
    """Both with the training rows' mean taken off and their standard deviation divided out.

    A column that is constant in training is divided by 1, as scikit-learn's StandardScaler does.
    """
    centre, scale = x.mean(axis=0), x.std(axis=0)
    # A constant column has a deviation of rounding size: dividing by it would make noise of it.
    scale = np.where(scale <= _ROUNDING * np.maximum(np.abs(centre), 1e-30), 1.0, scale)
    return (x - centre) / scale, (test_x - centre) / scale


def _solve(
    x: np.ndarray, y: np.ndarray, test_x: np.ndarray, alphas: Sequence[float]
) -> Iterator[np.ndarray]:
    """Predictions at test_x for each alpha: columns standardised, intercept free of the penalty.

    The smaller of xᵀx and xxᵀ is formed once and factored for each alpha: eight Cholesky factors of
    1,536 columns cost less than half of one eigendecomposition.
    """
    x, test_x = standardised(x, test_x)
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
    for genes, rows in masks.measured_alike(mask):
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


def held_out_folds(fold: Int[np.ndarray, " n"]) -> Iterator[np.ndarray]:
    """Which rows are held out, [n] boolean, for each fold that leaves any row to fit on."""
    for held in range(int(fold.max()) + 1):
        out = fold == held
        if out.any() and not out.all():
            yield out


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
    for out in held_out_folds(fold):
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


def ridge_held_out(
    x: Float[np.ndarray, "n c"],
    y: Float[np.ndarray, "n g"],
    mask: np.ndarray,
    *,
    fold: Int[np.ndarray, " n"],
    alpha: float,
) -> Float[np.ndarray, "n g"]:
    """The ridge prediction of every training row by a fit that left out the row's fold.

    NaN where the gene was measured in no other fold, and everywhere with a single fold.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    pred = np.full(y.shape, np.nan)
    for out in held_out_folds(fold):
        pred[out] = _fit(x[~out], y[~out], np.asarray(mask)[~out], x[out], (alpha,))[0]
    return pred


def held_out_pcc(
    held_out: Float[np.ndarray, "n g"],
    y: Float[np.ndarray, "n g"],
    mask: np.ndarray,
    *,
    fold: Int[np.ndarray, " n"],
) -> Float[np.ndarray, " g"]:
    """Each gene's correlation over a held-out fold's spots, averaged over the folds.

    Ranking genes by it and not by the test slide's own correlations makes an honest PCC-k: the
    published one picks the k genes after the test. NaN for a gene without a correlation in any
    fold (constant there, or measured in one fold alone).
    """
    found = []
    for out in held_out_folds(fold):
        scored = (np.asarray(mask)[out] != 0) & ~np.isnan(held_out[out])
        found.append(metrics.pcc_per_gene(held_out[out], y[out], scored))
    pcc = np.array(found).reshape(-1, y.shape[1])
    defined = ~np.isnan(pcc)
    some = defined.sum(axis=0)
    mean = np.where(defined, pcc, 0.0).sum(axis=0) / np.maximum(some, 1)
    return np.where(some > 0, mean, np.nan)


def hest_probe(
    x: Float[np.ndarray, "n c"],
    y: Float[np.ndarray, "n g"],
    mask: np.ndarray,
    test_x: Float[np.ndarray, "l c"],
) -> Float[np.ndarray, "l g"]:
    """The linear probe of HEST-Benchmark, as its code has it.

    StandardScaler, PCA to 256 components (seed 1), both fitted on the training rows; then
    scikit-learn's Ridge with solver ``lsqr``, alpha = 100 / (components x genes), at most 1,000
    iterations and **no intercept**: the prediction of an average patch is 0, whatever the genes'
    level. So its correlations can be read and its squared error cannot.

    HEST-Benchmark (Jaume et al., NeurIPS 2024, arXiv 2406.16192; `hest/bench` of its library) asks
    for 256 components of whatever it is given, which fails on fewer rows or columns than that;
    here their number is the cap. Its targets are log1p(count); here they are whatever space ``y``
    is in. Where slides measured different genes, each set of genes is fitted on its own rows, with
    the number of all genes in alpha.

    Returns:
      The prediction; NaN for a gene that no training row measured.
    """
    from sklearn import decomposition, linear_model, pipeline, preprocessing

    # The library computes in float32 up to the regression, since its encoders do.
    x, test_x = np.asarray(x, np.float32), np.asarray(test_x, np.float32)
    pred = np.full((len(test_x), y.shape[1]), np.nan)
    n_genes = int((np.asarray(mask) != 0).any(axis=0).sum())
    for genes, rows in masks.measured_alike(mask):
        components = min(_HEST_COMPONENTS, len(rows), x.shape[1])
        reduce = pipeline.make_pipeline(
            preprocessing.StandardScaler(),
            decomposition.PCA(n_components=components, random_state=_HEST_SEED),
        )
        regression = linear_model.Ridge(
            solver="lsqr",
            alpha=100 / (components * n_genes),
            fit_intercept=False,
            max_iter=_HEST_ITERATIONS,
            random_state=_HEST_SEED,
        )
        regression.fit(reduce.fit_transform(x[rows]), np.asarray(y)[np.ix_(rows, genes)])
        pred[:, genes] = regression.predict(reduce.transform(test_x)).reshape(len(test_x), -1)
    return pred
