"""Agreement of two partitions of the same spots, as functions of their contingency tables.

A partition gives each spot one of its classes: a pathologist's regions, the clusters of a method.
The scores know them by their table of counts alone, so they follow for every resample of blocks of
spots from sums over blocks. Each equals scikit-learn's function of the same name, its rules for a
single class included.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import scipy.special
from jaxtyping import Float, Int

from stemjax.eval.metrics import resampling

_EPS = float(np.finfo(np.float64).eps)


def contingency(
    first: Int[np.ndarray, " l"],
    second: Int[np.ndarray, " l"],
    resamples: resampling.Resamples,
) -> Float[np.ndarray, "r a b"]:
    """Spots in each pair of classes, on the slide (row 0) and on its resamples.

    Args:
      first: class of each spot, from 0 up.
      second: class of each spot in the other partition.
      resamples: of these spots.
    """
    a, b = int(first.max()) + 1, int(second.max()) + 1
    blocks = resamples.times.shape[1]
    cell = (resamples.blocks * a + first) * b + second
    # The sums over each block of one-hot pairs, without the one-hot array.
    counts = np.bincount(cell, minlength=blocks * a * b).reshape(blocks, a, b)
    return resamples.add_up(counts.astype(np.float64))


def adjusted_rand(table: Float[np.ndarray, "r a b"]) -> Float[np.ndarray, " r"]:
    """Adjusted Rand index (Hubert and Arabie 1985, Journal of Classification 2).

    2 (tp tn - fn fp) / ((tp + fn)(fn + tn) + (tp + fp)(fp + tn)) over ordered pairs of spots: tp
    are together in both partitions, tn in neither. 1 for equal partitions; 0 on average where the
    spots are shuffled. Maps without holes are no shuffled spots: two that know nothing of each
    other still agree a little, so a partition by position alone belongs beside the score.
    """
    n, (first, second) = table.sum(axis=(1, 2)), _sides(table)
    cells = (table**2).sum(axis=(1, 2))
    both, ours, theirs = cells - n, (first**2).sum(axis=1) - cells, (second**2).sum(axis=1) - cells
    neither = n**2 - cells - ours - theirs
    below = (both + ours) * (ours + neither) + (both + theirs) * (theirs + neither)
    above = 2.0 * (both * neither - ours * theirs)
    # No pair is together in one and apart in the other: the same partition.
    return np.divide(above, below, out=np.ones(len(n)), where=(ours != 0) | (theirs != 0))


def normalised_mutual_information(table: Float[np.ndarray, "r a b"]) -> Float[np.ndarray, " r"]:
    """Mutual information over the mean of the two entropies, from 0 to 1.

    Its value by chance grows with the number of classes and shrinks with that of spots
    (`adjusted_mutual_information` takes it off). 1 where both partitions have one class.
    """
    mutual, mean, single = _information(table)
    found = np.divide(mutual, mean, out=np.zeros(len(table)), where=mutual > _EPS)
    return np.where(single, 1.0, found)


def adjusted_mutual_information(table: Float[np.ndarray, "r a b"]) -> Float[np.ndarray, " r"]:
    """(MI - E[MI]) / (mean entropy - E[MI]) (Vinh, Epps and Bailey 2010, JMLR 11, eq. 24a and 26).

    E[MI] is over shuffled spots with the classes' sizes as they are.
    """
    from sklearn.metrics.cluster import expected_mutual_information

    mutual, mean, single = _information(table)
    found = np.ones(len(table))
    for row, counts in enumerate(table):
        if single[row]:
            continue
        counts = counts[counts.any(axis=1)][:, counts.any(axis=0)]
        if min(counts.shape) < 2:
            found[row] = 0.0
            continue
        whole = scipy.sparse.csr_matrix(counts.astype(np.int64))
        expected = expected_mutual_information(whole, int(counts.sum()))
        found[row] = _away(mutual[row] - expected) / _away(mean[row] - expected)
    return found


def _sides(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of the classes of both partitions."""
    return table.sum(axis=2), table.sum(axis=1)


def _information(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mutual information and mean entropy in nats, and where both partitions have one class."""
    n, sides = table.sum(axis=(1, 2)), _sides(table)
    entropies = [scipy.special.entr(side / n[:, None]).sum(axis=1) for side in sides]
    joint = scipy.special.entr(table / n[:, None, None]).sum(axis=(1, 2))
    mutual = np.maximum(entropies[0] + entropies[1] - joint, 0.0)
    single = ((sides[0] > 0).sum(axis=1) == 1) & ((sides[1] > 0).sum(axis=1) == 1)
    return mutual, (entropies[0] + entropies[1]) / 2, single


def _away(value: float) -> float:
    """The value, kept off 0 on its side: of equal partitions both differences are rounding."""
    return min(value, -_EPS) if value < 0 else max(value, _EPS)
