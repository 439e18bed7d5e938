"""Ceilings: how far the noise of counting lets any prediction come on one slide.

Both take the counts as Poisson (given each spot's true rates, independent between genes), so they
hold the noise of sampling molecules and nothing else. Real counts are more dispersed than that,
and what varies between spots without leaving a trace in the image is no noise here, so an image
model's own ceiling is lower. They are estimates from one slide: a single gene may end above its
ceiling by luck, the average over genes should not. A prediction that sees the slide's own counts
(`stemjax.eval.baselines.SEES_TEST`) knows part of the noise and is not bound by them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from stemjax.data import transforms
from stemjax.eval import metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceiling:
    """What a perfect prediction would score on a slide's noisy counts.

    Attributes:
      pcc: highest correlation of any prediction with the measured values, the square root of
        ``reliability``, [g]; NaN for a gene that is constant on the slide or not measured.
      reliability: share of the measured values' variance over spots that is not noise, which is
        the correlation of two measurements of one slide, [g]; 0 where the halves of the counts
        agree less than nothing; NaN as ``pcc``.
      mse: `poisson_mse` of the slide, squared units of the value space.
      splits: splits that ``reliability`` averages over.
    """

    pcc: Float[np.ndarray, " g"]
    reliability: Float[np.ndarray, " g"]
    mse: float
    splits: int


def noise_ceiling(
    counts: Int[np.ndarray, "l g"],
    total: Int[np.ndarray, " l"] | None = None,
    mask: np.ndarray | None = None,
    *,
    value_space: str,
    splits: int = 10,
    seed: int = 0,
) -> Ceiling:
    """The ceiling of a slide from its counts: binomial split-half with Spearman-Brown.

    Every count is split by a fair coin for each molecule: if the count is Poisson, the halves are
    two independent measurements at half the depth (thinning). Both are transformed and correlated
    over spots; with r the average over the splits, 2r / (1 + r) is the reliability of the
    full depth (Spearman 1910 and Brown 1910, British Journal of Psychology 3), and its square root
    the correlation of the measured values with the true ones, which no prediction exceeds (the
    correction for attenuation, Spearman 1904, American Journal of Psychology 15).

    The step from half to full depth is exact where the transform is linear over the noise; at a
    few molecules a spot it is an approximation, at most .02 too high (Gamma-Poisson counts with
    means from .3 to 30, against the exact value).

    Args:
      counts: raw counts of the slide.
      total: counts of each spot over all genes of the slide; by default those of ``counts``.
      mask: not 0 where measured, [g] or [l g]; by default everything is.
      value_space: name of the transform.
      splits: number of splits.
      seed: of the splits and of the resamples of `poisson_mse`.

    Raises:
      ValueError: no splits, or the counts are not whole numbers from 0 up.
    """
    forward = transforms.get_transform(value_space).forward
    halves = split_halves(counts, total, value_space=value_space, splits=splits, seed=seed)
    counts, rest = _with_rest(counts, total)
    r = np.zeros(counts.shape[1])
    for first, second in halves:
        # A half without any variation tells nothing of the other: no correlation.
        r += np.nan_to_num(metrics.pcc_per_gene(first, second, mask)) / splits
    reliability = np.maximum(2 * r / (1 + np.maximum(r, 0.0)), 0.0)
    true = forward(counts, counts.sum(axis=1) + rest)
    undefined = np.isnan(metrics.pcc_per_gene(true, true, mask))
    reliability[undefined] = np.nan
    return Ceiling(
        pcc=np.sqrt(reliability),
        reliability=reliability,
        mse=poisson_mse(
            counts, counts.sum(axis=1) + rest, mask, value_space=value_space, seed=seed
        ),
        splits=splits,
    )


def split_halves(
    counts: Int[np.ndarray, "l g"],
    total: Int[np.ndarray, " l"] | None = None,
    *,
    value_space: str,
    splits: int = 10,
    seed: int = 0,
) -> list[tuple[Float[np.ndarray, "l g"], Float[np.ndarray, "l g"]]]:
    """Pairs of halves of the counts in the value space; arguments and errors as `noise_ceiling`."""
    counts, rest = _with_rest(counts, total)
    if splits < 1:
        raise ValueError(f"a ceiling needs at least one split, found {splits}")
    forward = transforms.get_transform(value_space).forward
    rng, pairs = np.random.default_rng(seed), []
    for _ in range(splits):
        half, half_rest = rng.binomial(counts, 0.5), rng.binomial(rest, 0.5)
        sides = (half, half_rest), (counts - half, rest - half_rest)
        first, second = (forward(part, part.sum(axis=1) + more) for part, more in sides)
        pairs.append((first, second))
    return pairs


def poisson_again(
    counts: Int[np.ndarray, "l g"],
    total: Int[np.ndarray, " l"] | None = None,
    *,
    value_space: str,
    seed: int = 0,
) -> Float[np.ndarray, "l g"]:
    """One Poisson resample of the counts in the value space; as `poisson_mse`."""
    counts, rest = _with_rest(counts, total)
    return _poisson(counts, rest, value_space, np.random.default_rng(seed))


def poisson_mse(
    counts: Int[np.ndarray, "l g"],
    total: Int[np.ndarray, " l"] | None = None,
    mask: np.ndarray | None = None,
    *,
    value_space: str,
    resamples: int = 10,
    seed: int = 0,
) -> float:
    """Mean squared difference of the counts and a Poisson resample of them, in the value space.

    The resample takes each count as its own rate, so this estimates the noise's variance, which is
    the MSE of a prediction that knows every rate. It is a scale for MSE rather than a strict bound:
    a 0 resamples to 0 alone, though its rate need not be 0.

    Args:
      counts: raw counts of the slide.
      total: counts of each spot over all genes of the slide; by default those of ``counts``.
      mask: not 0 where measured, [g] or [l g]; by default everything is.
      value_space: name of the transform.
      resamples: number of resamples averaged.
      seed: of the resamples.

    Raises:
      ValueError: no resamples, or the counts are not whole numbers from 0 up.
    """
    counts, rest = _with_rest(counts, total)
    if resamples < 1:
        raise ValueError(f"at least one resample is needed, found {resamples}")
    forward = transforms.get_transform(value_space).forward
    true = forward(counts, counts.sum(axis=1) + rest)
    rng, errors = np.random.default_rng(seed), []
    for _ in range(resamples):
        errors.append(metrics.mse(_poisson(counts, rest, value_space, rng), true, mask))
    return float(np.mean(errors))


def _poisson(
    counts: np.ndarray, rest: np.ndarray, value_space: str, rng: np.random.Generator
) -> np.ndarray:
    """The next Poisson resample of a generator, in the value space."""
    drawn = rng.poisson(counts)
    forward = transforms.get_transform(value_space).forward
    return forward(drawn, drawn.sum(axis=1) + rng.poisson(rest))


def _with_rest(counts: np.ndarray, total: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The counts as int64, and each spot's count over the genes that are not among them."""
    whole = np.asarray(counts).astype(np.int64)
    if whole.ndim != 2 or not np.array_equal(whole, counts) or (whole < 0).any():
        raise ValueError("counts must be whole numbers from 0 up, [spots genes]")
    own = whole.sum(axis=1)
    rest = np.zeros_like(own) if total is None else np.asarray(total, np.int64) - own
    if (rest < 0).any():
        raise ValueError("a spot's total is less than the sum of its counts")
    return whole, rest
