"""How well a measured profile goes with its patch: the negative log likelihood of each spot.

Two numbers a spot: -ln p(profile | its own patch), and the same given the patch of another spot of
the slide. The first alone is high wherever a profile is rare; their difference asks whether the
morphology explains it. A spot whose own patch explains it worse than a stranger's is a candidate
for a shifted image, a doublet or a sampling artefact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from stemjax import errors, tasks
from stemjax.data import records
from stemjax.diffusion import ladders, likelihood
from stemjax.eval import metrics
from stemjax.tasks import predictor
from stemjax.train import checkpoint

if TYPE_CHECKING:
    import anndata

SIGMA_MIN = 0.2
"""Blur, in the model's space: expression is discrete, and a finer blur resolves single counts."""

STEPS = 8
"""Rungs of the ladder: off by .005 nats a gene (root mean square) with the drawn law's denoiser."""

NLL, NLL_OTHER = "stemjax_nll", "stemjax_nll_other"
"""Columns of a prediction's ``obs`` that hold ``own`` and ``other``."""


class _Inputs(NamedTuple):
    cond: Array
    x0: Array


def negative_log_likelihood(
    trained: checkpoint.Trained,
    table: records.Table,
    *,
    divergence: likelihood.Divergence = "hutchinson",
    probes: int = 4,
    seed: int = 0,
    rows: int = 64,
    progress: tasks.Progress | None = None,
) -> dict[str, np.ndarray]:
    """Returns ``own`` and ``other``, nats a gene of each spot, [l] float32 each.

    ``own`` is -ln p(x0 | its patch) / genes in the model's space, p the density of profiles
    blurred by `SIGMA_MIN`, at the profile itself (`likelihood.log_likelihood`); ``other`` the same
    with the patch of the spot that a permutation of (seed, number of spots) puts in its place.

    Args:
      trained: weights and what they mean.
      table: one slide's rows.
      divergence: ``exact``, or ``hutchinson`` with ``probes`` probes a spot.
      probes: number of probes.
      seed: of probes and permutation.
      rows: spots on the device at a time.
      progress: called with spots done, spots in all, and what they are.

    Raises:
      RecordsError: a gene was not measured, so that the profile is not whole.
    """
    card = trained.card
    if not (table.mask != 0).all():
        raise errors.RecordsError(
            "the likelihood of measured profiles",
            expected="counts of every gene of the panel",
            found=f"{int((table.mask == 0).any(axis=0).sum())} genes not measured",
            fix="prepare records with a panel that the slide has",
        )
    task: Any = card.forward_task
    genes = len(card.space.genes)
    rungs = ladders.karras(STEPS, sigma_min=SIGMA_MIN, sigma_max=task.levels[1])

    def run(params: Any, inputs: _Inputs, keys: Key[Array, " b"]) -> Array:
        found = likelihood.log_likelihood(
            task.denoiser(params, inputs.cond),
            rungs,
            inputs.x0,
            divergence=divergence,
            keys=keys,
            probes=probes,
        )
        return -found / genes

    predict = predictor.by_portions(run, rows=rows, spots_axis=0)
    cond = card.space.encode_condition(table.embeddings[:, 0])
    x0 = card.space.encode_expression(table.counts, table.total, table.mask)
    keys = tasks.row_keys(seed, table)
    order = _derangement(seed, table.n)
    found = {}
    for name, shown in (("own", cond), ("other", cond[order])):
        found[name] = predict(
            trained.params, _Inputs(cond=jnp.asarray(shown), x0=jnp.asarray(x0)), keys,
            progress=progress,
        )  # fmt: skip
    return found


def summary(
    prediction: anndata.AnnData,
    barcodes: Sequence[str],
    blocks: np.ndarray,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """Returns what a prediction's likelihoods say of its slide, or None where it has none.

    Args:
      prediction: with `NLL` and `NLL_OTHER` in ``obs``.
      barcodes: the spots, in the order of ``blocks``.
      blocks: number of the spatial block of each spot.
      resamples: of whole blocks, for the interval; fewer than 2 give none.
      seed: of the resamples.

    Returns:
      ``own`` and ``other``, mean nats a gene; ``own_is_better``, the share of spots whose own patch
      explains them better than another's (.5 by chance), with ``own_is_better_interval``.
    """
    if NLL not in prediction.obs or NLL_OTHER not in prediction.obs:
        return None
    place = {barcode: row for row, barcode in enumerate(prediction.obs_names)}
    rows = [place[barcode] for barcode in barcodes]
    own, other = (np.asarray(prediction.obs[n], np.float64)[rows] for n in (NLL, NLL_OTHER))
    better = (own < other).astype(np.float64)
    rng, names = np.random.default_rng(seed), np.unique(blocks)
    groups = [better[blocks == name] for name in names]
    shares = [
        np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]).mean()
        for _ in range(resamples)
    ]
    return {
        "own": own.mean(),
        "other": other.mean(),
        "own_is_better": better.mean(),
        "own_is_better_interval": metrics.interval(np.asarray(shares)) if shares else None,
    }


def sentence(found: Mapping[str, Any]) -> str:
    """Returns `summary` in words."""
    bounds = found["own_is_better_interval"]
    interval = f" [{bounds[0]:.1%}, {bounds[1]:.1%}]" if bounds else ""
    return (
        f"Measured profiles: {found['own']:.3f} nats a gene given their patch, "
        f"{found['other']:.3f} given another's; their own explains "
        f"{found['own_is_better']:.1%}{interval} of spots better (50 % by chance)."
    )


def _derangement(seed: int, n: int) -> np.ndarray:
    """Returns a permutation that leaves no spot in its place (if there are two or more)."""
    order = np.random.default_rng([seed, n]).permutation(n)
    # One cycle through all spots in random order: each gets the patch of the next.
    other = np.empty(n, np.int64)
    other[order] = np.roll(order, -1)
    return other
