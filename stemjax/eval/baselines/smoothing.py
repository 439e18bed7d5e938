"""Smoothing in space: hidden spots from the measured spots of the same slide, without an image."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, spatial

from stemjax import errors
from stemjax.eval import metrics
from stemjax.eval.baselines import floors

_TIE = 0.02  # positions in um are rounded to pixels: this much farther is as near
_FIT_GENES = 24  # genes of a group whose likelihoods are summed
_STEPS = 40  # of L-BFGS
_LEAST_STD = 1e-3  # a normal forecast needs a width, also of a gene that does not vary
_VARIANCES = (1e-5, 10.0)  # bounds of the kernel's variances, in units of the gene's own


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedKernel:
    """The covariance that a group of genes shares, in units of each gene's own variance.

    Attributes:
      genes: columns of the genes.
      process: variance of the spatial process.
      length_um: length scale of its Matern covariance (nu = 3/2).
      noise: variance of the noise.
    """

    genes: Int[np.ndarray, " k"]
    process: float
    length_um: float
    noise: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kriging:
    """A Gaussian process's prediction of the hidden spots.

    Attributes:
      mean: value space, [q g].
      std: standard deviation of the measured value (process and noise), [q g].
      kernels: the groups, from the least spatial genes to the most; genes that do not vary over
        the measured spots are in none.
    """

    mean: Float[np.ndarray, "q g"]
    std: Float[np.ndarray, "q g"]
    kernels: tuple[SharedKernel, ...]


def nearest_measured_mean(
    measured_xy: Float[np.ndarray, "m 2"],
    measured_y: Float[np.ndarray, "m g"],
    query_xy: Float[np.ndarray, "q 2"],
    *,
    k: int = 4,
) -> Float[np.ndarray, "q g"]:
    """Mean of the k nearest measured spots: the floor of recovery.

    Spots as near as the k-th (to 2 %, since positions are rounded to pixels) all count; with fewer
    than k measured spots it is the mean of all.

    Raises:
      SlideError: no spot is measured, several lie at one position alone, or the arrays do not
        fit or are not finite.
    """
    xy, y, query = checked(measured_xy, measured_y, query_xy)
    near = floors.as_near_as_kth(spatial.KDTree(xy), query, min(k, len(xy)), slack=_TIE)
    return np.array([y[np.sort(found)].mean(axis=0) for found in near]).reshape(len(query), -1)


def kriging(
    measured_xy: Float[np.ndarray, "m 2"],
    measured_y: Float[np.ndarray, "m g"],
    query_xy: Float[np.ndarray, "q 2"],
    *,
    groups: int = 8,
    seed: int = 0,
    max_fit: int = 600,
) -> Kriging:
    """Gaussian-process regression on the position, each gene from its own measured values.

    y_g / std_g = mean + process + noise with a Matern covariance (nu = 3/2; Rasmussen and Williams
    2006, eq. 4.17), by scikit-learn. Mean and std are the gene's own, over the measured spots. The
    three parameters (variance of the process, its length scale, variance of the noise) are shared
    by a group of genes: genes differ in how much of their variance is spatial, and one kernel for
    all would smooth some too much, while one a gene costs a fit a gene. The genes are sorted by the
    correlation of the measured values with the mean of their four nearest measured neighbours,
    and cut into ``groups`` of equal size.

    A group's parameters have the highest log marginal likelihood, summed over at most 24 of its
    genes (evenly spaced in the order above) on at most ``max_fit`` of the measured spots. The
    length scale lies between a quarter of the pitch and the slide's extent. The prediction is from
    all measured spots. The parameters are taken as known: ``std`` has no part for their error. A
    gene that does not vary over the measured spots is predicted to be what it is there.

    Args:
      measured_xy: positions of the measured spots, um.
      measured_y: their values, in any value space.
      query_xy: positions of the hidden spots, um.
      groups: number of groups, capped at the number of genes that vary.
      seed: of the choice of the spots to fit on.
      max_fit: measured spots that the parameters are fitted on, at most.

    Raises:
      SlideError: no spot is measured, several lie at one position alone, or the arrays do not
        fit or are not finite.
    """
    xy, y, query = checked(measured_xy, measured_y, query_xy)
    centre, scale = y.mean(axis=0), y.std(axis=0)
    varies = scale > 1e-9 * np.maximum(np.abs(centre), 1.0)
    z = (y - centre) / np.where(varies, scale, 1.0)
    mean = np.broadcast_to(centre, (len(query), len(centre))).copy()
    std = np.zeros(mean.shape)
    fit_on = np.sort(np.random.default_rng(seed).permutation(len(xy))[:max_fit])
    kernels = []
    for genes in _groups(xy, z, np.flatnonzero(varies), groups):
        some = genes[np.unique(np.linspace(0, len(genes) - 1, _FIT_GENES).round().astype(int))]
        kernel = _fitted_kernel(xy[fit_on], z[np.ix_(fit_on, some)])
        centred, spread_of = _predict(kernel, xy, z[:, genes], query)
        mean[:, genes] += scale[genes] * centred
        std[:, genes] = scale[genes] * spread_of[:, None]
        process, length, noise = np.exp(kernel.theta)
        kernels.append(
            SharedKernel(
                genes=genes, process=float(process), length_um=float(length), noise=float(noise)
            )
        )
    return Kriging(mean=mean, std=np.maximum(std, _LEAST_STD), kernels=tuple(kernels))


def component_kriging(
    measured_xy: Float[np.ndarray, "m 2"],
    measured_y: Float[np.ndarray, "m g"],
    query_xy: Float[np.ndarray, "q 2"],
    *,
    components: int = 10,
    seed: int = 0,
    max_fit: int = 600,
) -> Kriging:
    """`kriging` of the leading principal components of the measured values, and back to genes.

    Genes that vary together tell the state of a measured spot better than each does alone, and so
    this smooths less noise than `kriging`, which looks at one gene at a time. The components are
    those of the covariance over the measured spots; each has a kernel of its own.

    Args:
      measured_xy: positions of the measured spots, um.
      measured_y: their values, in any value space.
      query_xy: positions of the hidden spots, um.
      components: how many, capped at the measured spots less one and at the genes. On HER2ST's
        sections (300 genes) 5, 10 and 20 are alike to .001 in MSE.
      seed: as `kriging`.
      max_fit: as `kriging`.

    Returns:
      The prediction; ``std`` adds what the components leave of each gene, as independent noise;
      ``kernels`` are of the components (`SharedKernel.genes` counts them from the largest).

    Raises:
      SlideError: as `kriging`.
    """
    xy, y, query = checked(measured_xy, measured_y, query_xy)
    centre = y.mean(axis=0)
    left, size, loading = np.linalg.svd(y - centre, full_matrices=False)
    k = max(1, min(components, len(y) - 1, len(loading)))
    score, loading = left[:, :k] * size[:k], loading[:k]
    found = kriging(xy, score, query, groups=k, seed=seed, max_fit=max_fit)
    # The components were fitted to these very residuals: k degrees of freedom, and the mean's.
    rest = np.sum((y - centre - score @ loading) ** 2, axis=0) / max(len(y) - 1 - k, 1)
    std = np.sqrt(found.std**2 @ loading**2 + rest)
    return Kriging(
        mean=centre + found.mean @ loading,
        std=np.maximum(std, _LEAST_STD),
        kernels=found.kernels,
    )


def checked(
    xy: np.ndarray, y: np.ndarray, query: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays as float64, the measured spots sorted by their positions.

    Raises:
      SlideError: as `kriging`.
    """
    xy, y, query = (np.asarray(v, np.float64) for v in (xy, y, query))
    finite = all(np.isfinite(v).all() for v in (xy, y, query))
    if not len(xy) or y.ndim != 2 or xy.shape != (len(y), 2) or query.shape[1:] != (2,):
        found = f"positions {xy.shape}, values {y.shape}, positions asked for {query.shape}"
    elif len(xy) > 1 and not np.ptp(xy, axis=0).any():
        found = f"all {len(xy)} spots at one position"
    elif not finite:
        found = "values or positions that are not finite"
    else:
        order = order_of(xy)
        return xy[order], y[order], query
    raise errors.SlideError(
        "hidden spots cannot be recovered from the measured ones",
        expected="positions [m 2] and values [m g] of at least one measured spot, and [q 2]",
        found=found,
        fix="Give the finite values of the genes that the slide measured",
    )


def order_of(xy: Float[np.ndarray, "m 2"]) -> Int[np.ndarray, " m"]:
    """The order of the rows by x, then y.

    In one order for any order of the rows, rounding and the choice of spots do not differ.
    """
    return np.lexsort((xy[:, 1], xy[:, 0]))


def mean_of_others(xy: np.ndarray, y: np.ndarray, k: int = 4) -> np.ndarray:
    """`nearest_measured_mean` of each measured spot, without itself; its own value if alone."""
    near = floors.as_near_as_kth(spatial.KDTree(xy), xy, min(k + 1, len(xy)), slack=_TIE)
    means = y.copy()
    for spot, found in enumerate(near):
        if others := sorted(i for i in found if i != spot):
            means[spot] = y[others].mean(axis=0)
    return means


def _groups(xy: np.ndarray, z: np.ndarray, varying: np.ndarray, groups: int) -> list[np.ndarray]:
    """Columns of the genes of each group, the least spatial first."""
    spatial_share = np.nan_to_num(
        metrics.pcc_per_gene(mean_of_others(xy, z)[:, varying], z[:, varying])
    )
    order = varying[np.argsort(spatial_share, kind="stable")]
    return [part for part in np.array_split(order, max(1, groups)) if part.size]


def _fitted_kernel(xy: np.ndarray, z: np.ndarray) -> Any:
    """scikit-learn's kernel with the highest likelihood of these standardised values."""
    from sklearn import exceptions, gaussian_process
    from sklearn.gaussian_process import kernels

    extent = float(np.linalg.norm(np.ptp(xy, axis=0)))
    # The median over spots: a few may share a position, and a stray one has no neighbour.
    pitch = max(float(np.median(spatial.KDTree(xy).query(xy, k=2)[0][:, 1])), 1e-3 * extent)
    start = kernels.ConstantKernel(0.5, _VARIANCES) * kernels.Matern(
        min(3 * pitch, extent), (pitch / 4, extent), nu=1.5
    ) + kernels.WhiteKernel(0.5, _VARIANCES)
    # scikit-learn's annotations know no function here, though its documentation does.
    climb: Any = _climb
    process = gaussian_process.GaussianProcessRegressor(start, optimizer=climb)
    with warnings.catch_warnings():
        # A parameter at its bound is an answer here (no noise, no process), not a mistake.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        return process.fit(xy, z).kernel_


def _climb(
    loss: Callable[..., Any], start: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, float]:
    """scikit-learn's optimiser with a bound on its steps."""
    found = optimize.minimize(
        loss, start, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": _STEPS}
    )
    return found.x, float(found.fun)


def _predict(
    kernel: Any, xy: np.ndarray, z: np.ndarray, query: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(mean [q k], standard deviation [q]) of the standardised values."""
    from sklearn import gaussian_process

    as_it_is: Any = None
    process = gaussian_process.GaussianProcessRegressor(kernel, optimizer=as_it_is).fit(xy, z)
    found: Any = process.predict(query, return_std=True)
    mean, std = found
    # All genes of a group have one standard deviation: that of their shared kernel.
    return mean.reshape(len(query), -1), std.reshape(len(query), -1)[:, 0]
