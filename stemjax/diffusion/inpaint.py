"""Sampling with some genes of a spot known: the denoiser of the law given those genes.

`given` takes a denoiser of p(x0) and returns one of p(x0 | x0[known] = values), so that every
ladder and step rule serves for imputation as it stands. Two ways, both approximate in general.
Only ``moment`` is exact for a Gaussian law.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Bool, Float, Int

from stemjax import errors
from stemjax.diffusion import denoiser, likelihood

type Method = Literal["replacement", "moment"]
"""How known genes enter: see `given`."""


def given(
    denoise: denoiser.Denoiser,
    values: Float[Array, "b g"],
    known: Bool[np.ndarray, " g"] | Bool[np.ndarray, "b g"],
    *,
    method: Method,
    ridge: float = 0.0,
) -> denoiser.Denoiser:
    """Returns the denoiser of x0 given x0[known] = values[known], [b g] in the model's space.

    The known entries of what it returns equal the values exactly, at every noise level; a sample
    therefore holds them to rounding.

    ``replacement`` overwrites the known entries of D and leaves the others. Under a deterministic
    rule the known part of x is then values + sigma z at every level (up to values / sigma_max if x
    starts from sigma_max z). One evaluation. Biased: the other entries are E[x0 | x], which reads
    of the known genes no more than their noised state, as if their noise were still unknown, and
    what high noise has decided without them is only in part undone at low noise. The pull towards
    the known values is too weak and the spread too wide. For two genes of unit variance and
    correlation .3, .6, .9, .99 with one known, the mean of the other moves 34, 37, 49, 69 % of the
    way it should, and its variance is 1.06, 1.3, 2.8, 10 times the right one.

    ``moment`` takes p(x0 | x) to be Gaussian with its true mean D and covariance
    C = sigma² dD/dx, Tweedie's second moment, and conditions that on the values (Boys et al. 2023,
    TMPD, arXiv 2310.06721; Rozet et al. 2024, arXiv 2405.13712, MMPS)::

        D_y = D + C_uk (C_kk + ridge)^-1 (values - D)_k

    Exact for a Gaussian law at every noise level. For others it errs where p(x0 | x) is not
    Gaussian, at middle noise. It costs one forward derivative for each known gene, k of them, and
    k g numbers a row of memory. C is symmetric, so its columns serve as its rows.

    A learned network's slope is less sure than its value. At high noise C is a small number times
    sigma² with all of the slope's error, and (C_kk)^-1 of error alone would throw x far off. What
    of dD/dx_kk is not symmetric can only be error, and by its size the diagonal is raised (see
    `_solve`), which an exact law does not notice. With .01; .03; .1 times a random tanh network
    added to the exact D of 40 Gaussian genes of unit variance, 15 of them known, the root mean
    square error of a pair's mean is .04; .08; .18 (.05; .12; .38 without it), against .46 for
    ``replacement`` and .72 for ignoring the values. A single known gene has no such check. At
    sigma = inf dD/dx is 0 and the other entries are those of D.

    Args:
      denoise: denoiser with the condition of these b rows bound.
      values: profiles in the model's space; read where ``known`` alone, anything may stand in the
        other places.
      known: which genes are known, a numpy array and not traced, so that shapes are fixed; [g], or
        [b g] where rows differ. ``moment`` then costs as many derivatives as there are genes known
        in any row. A row may know nothing.
      method: ``replacement`` or ``moment``.
      ridge: variance in the model's space added to C_kk (sigma_y² of TMPD), for ``moment``: the
        other entries are then conditioned on values that carry noise of this variance.

    Raises:
      ConfigError: an unknown method, shapes that do not go together, ``known`` not of bool, nothing
        or everything known, a known value that is not finite (unless traced), a negative ridge.
    """
    mask = _checked_mask(known, method)
    _check_values(values, mask)
    if not 0 <= ridge < float("inf"):
        raise errors.ConfigError("ridge", expected="0 or more, finite", found=str(ridge))
    # [1 g] broadcasts against rows; the switch against silent promotion of ranks wants it spelt.
    rows = mask if mask.ndim == 2 else mask[None]
    clean = jnp.where(rows, denoiser.at_least_float32(jnp.asarray(values)), 0.0)

    def replaced(x: Float[Array, "b g"], sigma: Float[Array, " b"], /) -> Float[Array, "b g"]:
        _check_state(x, clean)
        x = denoiser.at_least_float32(x)
        return jnp.where(rows, clean.astype(x.dtype), denoise(x, sigma).astype(x.dtype))

    columns = np.flatnonzero(rows.any(axis=0))

    def conditioned(x: Float[Array, "b g"], sigma: Float[Array, " b"], /) -> Float[Array, "b g"]:
        _check_state(x, clean)
        x = denoiser.at_least_float32(x)
        denoised, slopes = _jacobian_columns(denoise, x, sigma, columns)
        target = clean.astype(x.dtype)
        own = rows[:, columns]
        residual = jnp.where(own, (target - denoised)[:, columns], 0.0)
        # C / sigma² in place of C throughout: sigma² cancels but for the ridge.
        noise = jnp.zeros_like(x[:, 0])
        if ridge:
            # Slopes are of order 1: beyond the cap, and at sigma = 0, nothing pulls any more.
            noise = jnp.minimum(ridge / jnp.square(sigma.astype(x.dtype)), 1e12)
        weights = _solve(jnp.moveaxis(slopes[:, :, columns], 0, 2), noise, residual, own)
        pull = jnp.einsum("kbg,bk->bg", slopes, weights, precision=jax.lax.Precision.HIGHEST)
        return jnp.where(rows, target, denoised + pull)

    return replaced if method == "replacement" else conditioned


def evaluations_per_call(
    known: Bool[np.ndarray, " g"] | Bool[np.ndarray, "b g"], method: Method
) -> int:
    """Returns the network evaluations of one call of the denoiser that `given` returns.

    1 for ``replacement``; for ``moment`` 2 for each gene that is known in any row, a forward
    derivative counted as two (an upper bound, see `likelihood.evaluations`; D comes with them).

    Raises:
      ConfigError: an unknown method, ``known`` not of bool, or nothing or everything known.
    """
    mask = _checked_mask(known, method)
    if method == "replacement":
        return 1
    return 2 * int(np.count_nonzero(mask.any(axis=0) if mask.ndim == 2 else mask))


def _jacobian_columns(
    denoise: denoiser.Denoiser,
    x: Float[Array, "b g"],
    sigma: Float[Array, " b"],
    columns: Int[np.ndarray, " k"],
) -> tuple[Float[Array, "b g"], Float[Array, "k b g"]]:
    """Returns D and dD / dx_j for each of the genes j named."""
    genes = jnp.asarray(columns, jnp.int32)
    return likelihood.derivatives(
        denoise,
        x,
        sigma,
        count=len(columns),
        direction=lambda number: jnp.zeros_like(x).at[:, genes[number]].set(1),
        keep=lambda _, slope: slope,
    )


def _solve(
    system: Float[Array, "b k k"],
    ridge: Float[Array, " b"],
    residual: Float[Array, "b k"],
    own: Bool[np.ndarray, "#b k"],
) -> Float[Array, "b k"]:
    """Returns (system + ridge)^-1 residual over the genes that each row knows, 0 for the others.

    The system is symmetrised, and three things more than ``ridge`` go on its diagonal:

    10 eps times its trace. The rounding of the k entries in a row of it, each of at most the size
    of the trace, moves an eigenvalue that should be 0 by about that.

    Its doubt. A covariance is symmetric; what of a learned slope is not is error, and the error of
    the symmetric part is as large. Entries of independent error have, with F the Frobenius norm of
    the part that is not symmetric, a symmetric part of spectral norm 2 F / sqrt(k); twice that is
    added, so that no eigenvalue is left that is error alone. 0 for an exact law, and for k = 1.

    Should Cholesky's factor still fail, twice the row's largest sum of moduli, which bounds every
    eigenvalue (Gershgorin).
    """
    identity = jnp.eye(system.shape[1], dtype=system.dtype)[None]
    pairs = own[:, :, None] & own[:, None, :]
    system = jnp.where(pairs, system, 0.0)
    odd = jnp.sum(jnp.square((system - system.swapaxes(1, 2)) / 2), axis=(1, 2))
    count = np.maximum(own.sum(axis=1), 1).astype(system.dtype)
    # Twice a where: the derivative of sqrt is infinite at 0.
    doubt = jnp.where(odd > 0, 4 * jnp.sqrt(jnp.where(odd > 0, odd, 1.0) / count), 0.0)
    system = (system + system.swapaxes(1, 2)) / 2
    size = jnp.trace(jnp.abs(system), axis1=1, axis2=2)
    # The floor, far below any slope, keeps a D that does not move at all from 0 / 0.
    jitter = 10 * jnp.finfo(system.dtype).eps * size + 1e-30
    # A gene that the row does not know is left with this diagonal alone: an equation of its own.
    system += (jitter + ridge + doubt)[:, None, None] * identity
    failed = ~jnp.isfinite(jnp.linalg.cholesky(system, symmetrize_input=False)).all(axis=(1, 2))
    bound = jnp.where(pairs, jnp.abs(system), 0.0).sum(axis=2).max(axis=1)
    system += jnp.where(failed, 2 * bound, 0.0)[:, None, None] * identity
    factor = jnp.linalg.cholesky(system, symmetrize_input=False)
    weights = jax.scipy.linalg.cho_solve((factor, True), residual[:, :, None])[:, :, 0]
    return jnp.where(own, weights, 0.0)


def _checked_mask(known: np.ndarray, method: str) -> Bool[np.ndarray, ...]:
    """Returns ``known`` as it is, once it and the method are found to be of use."""
    if method not in ("replacement", "moment"):
        raise errors.ConfigError(
            "method of imputation", expected="replacement or moment", found=repr(method)
        )
    if not isinstance(known, np.ndarray) or known.dtype != np.bool_ or known.ndim not in (1, 2):
        raise errors.ConfigError(
            "known genes",
            expected="a numpy array of bool, [g] or [b g]",
            found=f"{type(known).__name__} of {getattr(known, 'dtype', 'no dtype')}, "
            f"shape {getattr(known, 'shape', None)}",
        )
    count = int(np.count_nonzero(known))
    if count in (0, known.size):
        raise errors.ConfigError(
            "known genes",
            expected="some known and some not",
            found="none known" if count == 0 else "all known",
            fix="sample without known genes" if count == 0 else "there is nothing left to sample",
        )
    return known


def _check_values(values: Float[Array, "b g"], mask: Bool[np.ndarray, ...]) -> None:
    if values.ndim != 2 or mask.shape not in (values.shape, values.shape[1:]):
        raise errors.ConfigError(
            "known genes",
            expected=f"shape [g] or [b g] of the values {tuple(values.shape)}",
            found=str(mask.shape),
        )
    if isinstance(values, core.Tracer):
        return
    wrong = ~np.isfinite(np.asarray(values)) & mask
    if wrong.any():
        row, gene = np.argwhere(wrong)[0]
        raise errors.ConfigError(
            "values of known genes",
            expected="finite numbers",
            found=f"{int(wrong.sum())} others, the first at row {row}, gene {gene}",
            fix="take genes that were not measured out of those known",
        )


def _check_state(x: Float[Array, "b g"], values: Float[Array, "b g"]) -> None:
    if x.shape != values.shape:
        raise errors.ConfigError(
            "values of known genes",
            expected=f"the shape of the state, {tuple(x.shape)}",
            found=str(tuple(values.shape)),
            fix="repeat the values for every draw of a spot, as the condition is",
        )
