"""Floors: what the data give without looking at the image.

A floor that a model does not clear says that the model has learned no more than that floor knows.
Two of them, `depth_oracle` and `neighbour_mean`, know measurements of the test slide itself and so
are no rivals of an image model (`stemjax.eval.baselines.SEES_TEST`).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import spatial

from stemjax.eval.baselines import masks

_ROUNDING = 1e-9  # positions this close beside their distance are the same position


def constant_mean(
    y: Float[np.ndarray, "n g"], mask: np.ndarray, *, spots: int
) -> Float[np.ndarray, "l g"]:
    """Each gene's mean over the training spots, for every one of ``spots`` test spots."""
    pred = np.full((spots, y.shape[1]), np.nan)
    for genes, rows in masks.measured_alike(mask):
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
    for genes, rows in masks.measured_alike(mask):
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
    for genes, rows in masks.measured_alike(mask):
        tree = spatial.KDTree(xy[rows])
        target = np.asarray(y, np.float64)[np.ix_(rows, genes)]
        near = as_near_as_kth(tree, test_xy, min(k, len(rows)))
        pred[:, genes] = [target[np.sort(found)].mean(axis=0) for found in near]
    return pred


def neighbour_mean(
    true: Float[np.ndarray, "l g"],
    mask: np.ndarray,
    array_xy: Float[np.ndarray, "l 2"],
    *,
    k: int = 4,
) -> Float[np.ndarray, "l g"]:
    """Mean of the k nearest OTHER spots of the same slide, by their measured values.

    The floor of the recovery task, where some spots of a slide are measured and the others are
    asked for. It uses the slide's own measurements, so it is no rival of a model that sees the
    image alone: it says how much of a score is smoothness in space.

    Four is the four sides of a square array, and in Visium's array coordinates the four diagonal
    ones of a spot's six. At an edge the next nearest take the place of those missing; spots as near
    as the k-th all count.

    Args:
      true: the slide's own values, in any value space.
      mask: not 0 where measured, [l g].
      array_xy: positions on the array, one a spot.
      k: neighbours.

    Returns:
      The prediction; NaN for a gene that no other spot measured.
    """
    xy = np.asarray(array_xy, np.float64)
    pred = np.full(true.shape, np.nan)
    for genes, rows in masks.measured_alike(mask):
        tree = spatial.KDTree(xy[rows])
        target = np.asarray(true, np.float64)[np.ix_(rows, genes)]
        own = np.full(len(xy), -1)
        own[rows] = np.arange(len(rows))
        # The spot itself is among the nearest where it is measured, so one more is looked for.
        inside = own >= 0
        for spots, wanted in ((np.flatnonzero(inside), k + 1), (np.flatnonzero(~inside), k)):
            found = as_near_as_kth(tree, xy[spots], min(wanted, len(rows))) if spots.size else ()
            for spot, near in zip(spots, found, strict=True):
                others = np.array([i for i in sorted(near) if i != own[spot]], int)
                if others.size:
                    pred[spot, genes] = target[others].mean(axis=0)
    return pred


def as_near_as_kth(
    tree: spatial.KDTree, xy: Float[np.ndarray, "q 2"], k: int, *, slack: float = _ROUNDING
) -> list[list[int]]:
    """Rows of the tree within the distance of the k-th nearest, for each position.

    Args:
      tree: the positions to choose from, at least k.
      xy: where to look.
      k: how many are wanted; more come back where several are as near as the k-th.
      slack: how much farther, relative to the k-th, still counts as near as it.
    """
    nearest = tree.query(xy, k=k)[0].reshape(len(xy), -1)[:, -1]
    return list(tree.query_ball_point(xy, nearest * (1 + slack) + _ROUNDING))
