"""Retrieval in embedding space: the spots that look most alike, and what was measured there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy import sparse

from stemjax.eval.baselines import linear, masks

NEIGHBOURS: tuple[int, ...] = (5, 10, 20, 50, 100)
"""Numbers of neighbours tried by `embedding_knn`."""

ENSEMBLE = 39
"""Neighbours in its ensemble: the fewest draws whose range is a 95 % interval (38 / 40)."""

_CHUNK = 256  # test rows at once: 256 x 100 neighbours x 200 genes in float32 are 20 MB


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingKnn:
    """What the nearest training spots in embedding space had, and how many of them were asked.

    Attributes:
      prediction: mean of the ``k`` nearest, value space, [l g]; NaN for a gene that no training
        row measured.
      ensemble: values of the nearest `ENSEMBLE` one by one (fewer where fewer rows measured a
        gene), nearest first, [n l g] float32: whole profiles of single spots.
      k: the number of neighbours with the lowest mean squared error over the held-out folds.
      tried: the numbers tried, rising.
      errors: held-out mean squared error of each of them.
    """

    prediction: Float[np.ndarray, "l g"]
    ensemble: Float32[np.ndarray, "n l g"]
    k: int
    tried: tuple[int, ...]
    errors: tuple[float, ...]


def embedding_knn(
    x: Float[np.ndarray, "n c"],
    y: Float[np.ndarray, "n g"],
    mask: np.ndarray,
    test_x: Float[np.ndarray, "l c"],
    *,
    fold: Int[np.ndarray, " n"],
    neighbours: Sequence[int] = NEIGHBOURS,
) -> EmbeddingKnn:
    """Mean expression of the training spots whose embeddings are most alike.

    Alike by cosine similarity of the embeddings standardised over the training rows. It is the
    retrieval step of BLEEP (Xie et al., NeurIPS 2023, arXiv 2306.01859) in the image encoder's own
    space, without its contrastive training. Unlike a regression it keeps the spread of measured
    profiles, and the neighbours one by one are an ensemble with the genes' joint structure.

    Args:
      x: embeddings of the training spots.
      y: their values.
      mask: not 0 where measured, [n g].
      test_x: embeddings of the test spots.
      fold: fold of each training row (`linear.ridge_folds`), over which k is chosen, all genes
        together.
      neighbours: numbers to choose from; each is capped at the rows there are.
    """
    x, test_x = np.asarray(x, np.float64), np.asarray(test_x, np.float64)
    y, measured = np.asarray(y, np.float32), np.asarray(mask) != 0
    tried = tuple(sorted({int(k) for k in neighbours}))
    squared, entries = np.zeros(len(tried)), 0
    for out in linear.held_out_folds(fold):
        pred = _means(x[~out], y[~out], measured[~out], x[out], tried)
        scored = measured[out] & ~np.isnan(pred[0])
        squared += [np.sum((p - y[out])[scored] ** 2, dtype=np.float64) for p in pred]
        entries += int(scored.sum())
    errors = squared / max(entries, 1)
    # With nothing to hold out all are equal: the most neighbours are nearest to the mean.
    best = int(np.argmin(errors)) if entries else len(tried) - 1
    counts = [len(rows) for _, rows in masks.measured_alike(measured)]
    ensemble = np.full((min([ENSEMBLE, *counts]), len(test_x), y.shape[1]), np.nan, np.float32)
    for genes, part, near in _nearest(x, measured, test_x, len(ensemble)):
        ensemble[np.ix_(np.arange(len(ensemble)), part, genes)] = y[:, genes][near.T]
    return EmbeddingKnn(
        prediction=_means(x, y, measured, test_x, tried[best : best + 1])[0].astype(np.float64),
        ensemble=ensemble,
        k=tried[best],
        tried=tried,
        errors=tuple(float(e) for e in errors),
    )


def _means(
    x: np.ndarray, y: np.ndarray, mask: np.ndarray, test_x: np.ndarray, tried: Sequence[int]
) -> np.ndarray:
    """Mean of the nearest for each number of them, [tried l g] float32."""
    pred = np.full((len(tried), len(test_x), y.shape[1]), np.nan, np.float32)
    for genes, part, near in _nearest(x, mask, test_x, max(tried)):
        profiles = y[:, genes]
        total, start = np.zeros((len(part), len(genes)), np.float32), 0
        for i, k in enumerate(tried):
            total += _sum(profiles, near[:, start:k])
            start = min(k, near.shape[1])
            pred[i][np.ix_(part, genes)] = total / start
    return pred


def _sum(profiles: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sum of the profiles of each row of row numbers, without a copy of all of them."""
    starts = np.arange(0, rows.size + 1, rows.shape[1]) if rows.size else np.zeros(len(rows) + 1)
    ones = np.ones(rows.size, profiles.dtype)
    shape = (len(rows), len(profiles))
    return (
        sparse.csr_array((ones, rows.reshape(-1), starts.astype(np.int64)), shape=shape) @ profiles
    )


def _nearest(
    x: np.ndarray, mask: np.ndarray, test_x: np.ndarray, k: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(genes, test rows, their nearest training rows [rows k], nearest first), in portions.

    Equally near rows come in the order given (which of those tied with the k-th are taken is
    numpy's affair). With fewer than k rows there are fewer columns.
    """
    for genes, rows in masks.measured_alike(mask):
        train, test = (_unit(v) for v in linear.standardised(x[rows], test_x))
        k_here = min(k, len(rows))
        for start in range(0, len(test), _CHUNK):
            part = np.arange(start, min(start + _CHUNK, len(test)))
            away = -(test[part] @ train.T)
            first = np.sort(np.argpartition(away, k_here - 1, axis=1)[:, :k_here], axis=1)
            order = np.argsort(np.take_along_axis(away, first, axis=1), axis=1, kind="stable")
            yield genes, part, rows[np.take_along_axis(first, order, axis=1)]


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays one."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0).astype(np.float32)
