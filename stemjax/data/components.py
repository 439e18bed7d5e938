"""Principal components of expression: the few directions in which profiles mostly differ.

What genes have in common tells the state of a measured spot better than any gene alone, so models
that interpolate between spots do it with the components and come back to genes by their loadings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import scipy.linalg
from jaxtyping import Float

from stemjax import errors

_NOTHING = 1e-9  # a component with less than this share of the largest variance has none


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """Leading principal components of some rows.

    Attributes:
      centre: mean of the rows, [g].
      loadings: weight of each gene in each component, orthonormal, from the largest variance to
        the smallest, [k g]; where the rows have fewer components the last ones are 0.
    """

    centre: Float[np.ndarray, " g"]
    loadings: Float[np.ndarray, "k g"]


def find_components(rows: Iterable[Float[np.ndarray, "n g"]], count: int) -> Components:
    """Returns the components of largest variance, float32.

    Those of the covariance matrix of all rows, whatever blocks they come in, but for rounding. Of
    each component the loading of largest size is positive, since a component has no sign.

    Args:
      rows: blocks of rows in one space; a value that was not measured is that space's mean.
      count: how many.

    Raises:
      RecordsError: there are no rows.
      ConfigError: there are fewer genes than components asked for.
    """
    number, total, products = 0, np.zeros(0), np.zeros((0, 0))
    for block in rows:
        block = np.asarray(block, np.float64)
        if not number:
            total, products = np.zeros(block.shape[1]), np.zeros((block.shape[1],) * 2)
        number += len(block)
        total += block.sum(axis=0)
        products += block.T @ block
    if not number:
        raise errors.RecordsError(
            "There are no training rows to find components of",
            fix="check that the training slides have spots",
        )
    genes = len(total)
    if count > genes:
        raise errors.ConfigError(
            "components", expected=f"at most the {genes} genes of the panel", found=str(count)
        )
    centre = total / number
    variance, vectors = scipy.linalg.eigh(
        products / number - np.outer(centre, centre), subset_by_index=(genes - count, genes - 1)
    )
    variance, loadings = variance[::-1], vectors.T[::-1]
    largest = np.take_along_axis(loadings, np.abs(loadings).argmax(axis=1)[:, None], axis=1)
    there = variance > _NOTHING * max(variance[0], _NOTHING)
    return Components(
        centre=centre.astype(np.float32),
        loadings=np.where(there[:, None], loadings * np.sign(largest), 0.0).astype(np.float32),
    )
