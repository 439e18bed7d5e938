"""Space: neighbours on the array, Moran's I, structural similarity of gene maps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import scipy.sparse
import scipy.spatial
from jaxtyping import Float, Int
from scipy import ndimage

from stemjax.eval.metrics import arrays, correlation, resampling

# Halfway, in squares, between the neighbours of a square lattice at 1 and its diagonals at √2, so
# that jitter has the same room on both sides; the second ring of a hexagonal one is at √3.
_REACH = np.sqrt(1.5)
# Cells of the lattice image for each spot, above which the positions are no array coordinates.
_MOST_CELLS = 100
_ROW_PITCH = np.sqrt(3) / 2


def _positions(xy: np.ndarray) -> np.ndarray:
    xy = np.asarray(xy, np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise ValueError(f"positions must be finite [spots 2], found {xy.shape}")
    if len(np.unique(xy, axis=0)) < len(xy):
        raise ValueError("two spots have the same position")
    return xy


def _is_doubled(xy: np.ndarray) -> bool:
    """Whether these are Visium's array coordinates: whole numbers, column + row of one parity.

    A square array would have to lack every second spot, as the fields of one colour on a chess
    board. Positions in steps of 2 or more (all even, as pixels may be) have no spot at (1, 1) from
    another.
    """
    if len(xy) < 2 or not (xy == np.round(xy)).all():
        return False
    parity = xy.sum(axis=1) % 2
    nearest = scipy.spatial.KDTree(xy).query(xy, k=2)[0][:, 1].min()
    return bool((parity == parity[0]).all()) and nearest < 1.5


def neighbours(xy: Float[np.ndarray, "l 2"]) -> scipy.sparse.csr_array:
    """Which spots are next to each other on the array: 4 on a square one, 6 on a hexagonal one.

    Two spots are neighbours when they lie within √1.5 times the array's spacing. The spacing is
    found from the spots: first the median distance to the nearest spot, which jitter makes too
    short, then three times the median length of the neighbour pairs found with it. So this works
    for square array coordinates, whole or adjusted, and for positions in pixels or um of either
    kind of array, turned by any angle. Jitter of 5 % of the spacing (standard deviation) costs
    about 1 % of the pairs of a square array, so give array coordinates where there are some.
    Visium's array coordinates (column, row) are doubled: steps of 2 within a row, odd rows shifted
    by 1; they are recognised by this (whole numbers, column + row of one parity) and brought to
    true distances first.

    Args:
      xy: (column, row) on the array, or (x, y) in any unit.

    Returns:
      Sparse [l l] of float64, symmetric, 1 for neighbours, 0 on the diagonal. A spot may have none.

    Raises:
      ValueError: not finite [l 2], or two spots in one place.
    """
    xy = _positions(xy)
    if _is_doubled(xy):
        xy = xy * [0.5, _ROW_PITCH]
    n, pairs = len(xy), np.empty((0, 2), np.int64)
    if n > 1:
        tree = scipy.spatial.KDTree(xy)
        spacing = np.median(tree.query(xy, k=2)[0][:, 1])
        for _ in range(3):
            pairs = tree.query_pairs(_REACH * spacing, output_type="ndarray")
            spacing = np.median(np.linalg.norm(xy[pairs[:, 0]] - xy[pairs[:, 1]], axis=1))
        pairs = tree.query_pairs(_REACH * spacing, output_type="ndarray")
    i, j = np.concatenate([pairs, pairs[:, ::-1]]).T
    return scipy.sparse.csr_array((np.ones(len(i)), (i, j)), shape=(n, n))


def morans_i(
    values: Float[np.ndarray, "l g"],
    weights: scipy.sparse.csr_array,
    mask: np.ndarray | None = None,
) -> Float[np.ndarray, " g"]:
    """Moran's I of each gene: how alike neighbouring spots are (Moran 1950, Biometrika 37).

    I = (n / S0) Σ_ij w_ij z_i z_j / Σ_i z_i², with z the deviation from the gene's mean over its n
    measured spots and S0 = Σ_ij w_ij over pairs of those. 1 where neighbours are equal, -1 / (n -
    1) on average without spatial order, negative for a chess board.

    ``weights`` are used as they come. squidpy's ``spatial_autocorr`` divides each row by its sum
    first; with ``weights`` so divided this gives its number.

    Args:
      values: expression, in any space.
      weights: spatial weights with a zero diagonal, as of `neighbours`.
      mask: as everywhere.

    Returns:
      [g]. NaN where the gene is constant, not measured, or no two of its spots are neighbours.

    Raises:
      ValueError: shapes do not fit, or a measured entry is not finite.
    """
    values, used = arrays.measured_values(values, mask)
    if weights.shape != (len(values), len(values)):
        raise ValueError(f"weights {weights.shape} do not fit {len(values)} spots")
    z, constant = arrays.centred(values, used)
    pairs = np.sum(used * (weights @ used.astype(np.float64)), axis=0)
    power = pairs * np.sum(z**2, axis=0)
    cross = used.sum(axis=0) * np.sum(z * (weights @ z), axis=0)
    defined = ~constant & (pairs != 0)
    return np.divide(cross, power, out=np.full(power.shape, np.nan), where=defined)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """How the predicted Moran's I agrees with the measured one, over the genes defined in truth.

    Attributes:
      r: Pearson's r over genes; NaN with fewer than two of them.
      difference: mean over genes of |I_pred - I_true|; NaN with none.
      pred: predicted Moran's I, [g]; NaN where the truth's is.
      true: measured Moran's I, [g]; NaN where not defined.
    """

    r: float
    difference: float
    pred: Float[np.ndarray, " g"]
    true: Float[np.ndarray, " g"]


def morans_agreement(
    pred: Float[np.ndarray, "l g"],
    true: Float[np.ndarray, "l g"],
    weights: scipy.sparse.csr_array,
    mask: np.ndarray | None = None,
) -> Agreement:
    """Agreement of the predicted with the measured Moran's I of each gene.

    A gene whose prediction is constant has no spatial order: it counts with the expectation
    without any, -1 / (n - 1), and is not left out.

    Raises:
      ValueError: as `morans_i`, or shapes differ.
    """
    pred, true, used = arrays.measured(pred, true, mask)
    y, x = morans_i(true, weights, used), morans_i(pred, weights, used)
    n = np.maximum(used.sum(axis=0), 2)
    x = np.where(np.isnan(y), np.nan, np.where(np.isnan(x), -1 / (n - 1), x))
    defined = ~np.isnan(y)
    r = correlation.pcc_per_gene(x[defined, None], y[defined, None])[0]
    difference = np.abs(x - y)[defined].mean() if defined.any() else np.nan
    return Agreement(r=float(r), difference=float(difference), pred=x, true=y)


def _cells(array_xy: np.ndarray) -> Int[np.ndarray, "l 2"]:
    """Row and column of each spot in the lattice image."""
    xy = _positions(array_xy)
    if _is_doubled(xy):
        # Two doubled columns are one cell: odd rows stand half a cell to the right of it.
        xy = np.stack([np.floor(xy[:, 0] / 2), xy[:, 1]], axis=1)
    cells = np.round(xy[:, ::-1]).astype(np.int64)
    cells -= cells.min(axis=0, initial=np.iinfo(np.int64).max)
    size = np.prod(cells.max(axis=0, initial=0) + 1)
    if len(np.unique(cells, axis=0)) < len(cells) or size > _MOST_CELLS * (len(cells) + 100):
        raise ValueError(
            f"{len(cells)} spots do not lie on a lattice of whole numbers ({size} cells, or two "
            "spots in one of them): give array coordinates, not pixels"
        )
    return cells


def ssim_map(
    pred: Float[np.ndarray, "l g"],
    true: Float[np.ndarray, "l g"],
    array_xy: Float[np.ndarray, "l 2"],
    mask: np.ndarray | None = None,
    *,
    window: int = 7,
) -> Float[np.ndarray, "l g"]:
    """Structural similarity of each gene's map at each spot (Wang and others 2004, IEEE TIP 13).

    The gene's values are laid out as an image, a cell a spot, and go through scikit-image's
    ``structural_similarity`` (uniform window, sample covariance, K1 .01, K2 .03) with the truth's
    range over the measured spots as ``data_range``. A cell without a measured spot takes, in both
    images, the value of its nearest measured spot, as scikit-image itself continues an image
    beyond its border; no similarity is read there. A hexagonal array is laid out row by row, odd
    rows half a cell to the left of where they are.

    Args:
      pred: prediction.
      true: truth.
      array_xy: (column, row) on the array, about whole numbers; Visium's doubled ones are
        recognised as in `neighbours`.
      mask: as everywhere.
      window: side of the window in cells, odd, 3 or more; on a smaller lattice the largest odd
        number that fits.

    Returns:
      [l g] in [-1, 1]. NaN where not measured, where the gene is constant in truth, and everywhere
      on a lattice that is less than 3 cells wide or high.

    Raises:
      ValueError: shapes differ, a measured entry is not finite, the window is even or below 3, or
        two spots fall into one cell.
    """
    from skimage import metrics as skimage_metrics

    pred, true, used = arrays.measured(pred, true, mask)
    if window < 3 or window % 2 == 0:
        raise ValueError(f"the window must be odd and 3 or more, found {window}")
    cells = _cells(array_xy)
    if len(cells) != len(true):
        raise ValueError(f"{len(cells)} positions for {len(true)} spots")
    found = np.full(true.shape, np.nan)
    shape = tuple(cells.max(axis=0) + 1) if len(cells) else (0, 0)
    side = min(window, *shape)
    side -= 1 - side % 2
    _, constant = arrays.centred(true, used)
    if side < 3:
        return found
    for gene in np.flatnonzero(~constant):
        here = used[:, gene]
        rows, columns = cells[here].T
        empty = np.ones(shape, bool)
        empty[rows, columns] = False
        nearest: Any = ndimage.distance_transform_edt(
            empty, return_distances=False, return_indices=True
        )
        images = []
        for values in (pred, true):
            image = np.zeros(shape)
            image[rows, columns] = values[here, gene]
            images.append(image[tuple(nearest)])
        similarity: Any = skimage_metrics.structural_similarity(
            *images, win_size=side, data_range=np.ptp(true[here, gene]), full=True
        )
        found[here, gene] = similarity[1][rows, columns]
    return found


def ssim_per_gene(
    pred: Float[np.ndarray, "l g"],
    true: Float[np.ndarray, "l g"],
    array_xy: Float[np.ndarray, "l 2"],
    mask: np.ndarray | None = None,
    *,
    window: int = 7,
) -> Float[np.ndarray, " g"]:
    """Structural similarity of each gene's map: the mean of `ssim_map` over its measured spots.

    Unlike scikit-image's own mean, spots near the border of the lattice count too. Arguments,
    undefined genes and errors as in `ssim_map`.
    """
    local = ssim_map(pred, true, array_xy, mask, window=window)
    return resampling.mean_defined(local.T)
