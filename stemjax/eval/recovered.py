"""Predictions of hidden spots: which are scored, and what they are scored beside.

A prediction that was shown some spots of its slide says so in ``obs["stemjax_measured"]``. The
others alone are scored; their floors and rivals are fitted on the measured ones. The published
HisToSGE scores all spots, the shown ones included: that number is printed beside, and is no test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from stemjax import errors
from stemjax.data.shown import take_rows
from stemjax.eval import baselines, metrics
from stemjax.eval import truth as truths
from stemjax.foreign import json_text

if TYPE_CHECKING:
    import anndata

MEASURED = "stemjax_measured"
OBSERVED = "stemjax_observed"
"""Layer of what was measured, NaN where nothing was, in a prediction with points."""


def flags(prediction: anndata.AnnData, name: str) -> np.ndarray | None:
    """Which rows of a prediction were measured, or None where it does not say.

    Raises:
      PredictionError: the column holds something else than truth values.
    """
    if MEASURED not in prediction.obs:
        return None
    column = prediction.obs[MEASURED].tolist()
    # By type first: pandas' missing value is neither equal to another nor not.
    unknown = [v for v in column if not isinstance(v, bool | int | float) or v not in (0, 1)]
    if unknown:
        raise errors.PredictionError(
            f'{name}: obs["{MEASURED}"]',
            expected="True for a measured spot, False for another",
            found=", ".join(sorted({repr(value) for value in unknown})[:3]),
        )
    return np.array(column, bool)


def sees_others(about: Mapping[str, Any]) -> bool:
    """Whether each spot was predicted from measured spots around it, as the model's card says."""
    try:
        return json_text.parse(str(about["model"]))["experiment"]["window"]["kind"] == "neighbours"
    except (KeyError, TypeError, ValueError):
        return False  # another tool's, or from before there were such models


def parted(
    prediction: anndata.AnnData, truth: truths.Truth, name: str
) -> tuple[truths.Truth, truths.Truth | None]:
    """The truth of what was not shown and that of what was, or all of it and None.

    All is scored where nothing was hidden: a prediction whose every measured spot was predicted
    from the others, or whose hidden points have no truth. Spots of the truth that the prediction
    lacks were shown to nobody.
    """
    measured = flags(prediction, name)
    if measured is None:
        return truth, None
    names = np.asarray(prediction.obs_names).astype(str)
    known, inferred = set(names[measured]), set(names[~measured])
    shown = [i for i, barcode in enumerate(truth.barcodes) if barcode in known]
    hidden = [i for i, barcode in enumerate(truth.barcodes) if barcode not in known]
    if not shown or inferred.isdisjoint(truth.barcodes):
        return truth, None
    genes = list(range(len(truth.genes)))
    return cut(truth, hidden, genes), cut(truth, shown, genes)


def require_unseen(
    prediction: anndata.AnnData, scored: truths.Truth, whole: truths.Truth, name: str
) -> None:
    """Checks that a prediction to compare was shown no spot that is scored.

    Raises:
      PredictionError: it was, or ``obs`` of `MEASURED` does not say.
    """
    context = parted(prediction, whole, name)[1]
    seen = set() if context is None else set(context.barcodes) & set(scored.barcodes)
    if seen:
        raise errors.PredictionError(
            f"{name} was shown {len(seen)} of the {len(scored.barcodes)} spots that are scored",
            expected="a prediction from the same measured spots, or from none",
            found=", ".join(sorted(seen)[:3]),
            fix="hide the same spots from it: --hide, --share and --hide-seed alike",
        )


def cut(truth: truths.Truth, rows: Sequence[int], columns: Sequence[int]) -> truths.Truth:
    """The truth with some of its spots and genes; itself with all of them."""
    rows, columns = list(rows), list(columns)
    if len(rows) == len(truth.barcodes) and len(columns) == len(truth.genes):
        return truth
    table = truth.table
    if table is not None:
        table = take_rows(table, np.asarray(rows, int))
        table = dataclasses.replace(
            table, counts=table.counts[:, columns], mask=table.mask[:, columns]
        )
    return dataclasses.replace(
        truth,
        barcodes=tuple(truth.barcodes[row] for row in rows),
        genes=tuple(truth.genes[column] for column in columns),
        gene_ids=tuple(truth.gene_ids[column] for column in columns if truth.gene_ids),
        counts=truth.counts[np.ix_(rows, columns)],
        total=truth.total[rows],
        measured=truth.measured[columns],
        array_xy=truth.array_xy[rows],
        xy=truth.xy[rows],
        table=table,
    )


def rivals(
    truth: truths.Truth,
    context: truths.Truth,
    space: str,
    kept: np.ndarray,
    *,
    leave_out: Sequence[str] = (),
    seed: int = 0,
) -> baselines.Recovered:
    """The rows of `baselines.recovery_rows` for the hidden spots, and the depth oracle.

    Args:
      truth: of the hidden spots.
      context: of the measured ones.
      space: value space.
      kept: genes that the slide measured, [g]; the others are NaN in every row.
      leave_out: names of rows not to fit; those that recovery lacks are ignored.
      seed: of kriging and MLP.
    """
    measured = np.arange(len(context.barcodes) + len(truth.barcodes)) < len(context.barcodes)
    own = context.values(space)[:, kept]
    y = np.concatenate([own, np.full((len(truth.barcodes), own.shape[1]), np.nan)])
    embeddings = None
    if truth.table is not None and context.table is not None:
        parts = (context.table.embeddings[:, 0], truth.table.embeddings[:, 0])
        embeddings = np.concatenate(parts)
    found = baselines.recovery_rows(
        measured,
        np.concatenate([context.xy, truth.xy]),
        y,
        embeddings,
        seed=seed,
        leave_out=[name for name in leave_out if name in baselines.RECOVERY_ROWS],
    )
    oracle = baselines.depth_oracle(own, np.ones(own.shape), context.total, truth.total)
    rows = {**found.rows, "depth oracle": oracle}
    return dataclasses.replace(found, rows=rows)


def both(
    prediction: anndata.AnnData, truth: truths.Truth, space: str, genes: Sequence[str]
) -> dict[str, float]:
    """PCC and MSE over all spots of the truth, as the published HisToSGE scores them.

    NaN where there is nothing to score: no gene, or none that varies.
    """
    spots = prediction.obs_names.get_indexer(list(truth.barcodes))
    columns = prediction.var_names.get_indexer(list(genes))
    at = [truth.genes.index(gene) for gene in genes]
    found = (spots >= 0).nonzero()[0]
    given: Any = prediction.X
    given = given.toarray() if scipy.sparse.issparse(given) else np.asarray(given)
    mean = given[np.ix_(spots[found], columns)].astype(np.float64)
    true = truth.values(space)[np.ix_(found, at)]
    pcc = metrics.pcc_per_gene(mean, true)
    return {
        "spots": float(len(found)),
        "pcc": float(np.nanmean(pcc)) if np.isfinite(pcc).any() else np.nan,
        "mse": metrics.mse(mean, true) if true.size else np.nan,
    }
