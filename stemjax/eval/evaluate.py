"""Predictions beside the truth, their floors, rivals and ceiling: the numbers of every report.

prediction (AnnData) ─ join by barcode and gene name ─ truth (records, or a file of counts)
                     └ rows: the mean, one draw, the floors and rivals of `baselines`, the noise
                       ceiling, each prediction to compare: same spots, genes and resamples
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stemjax import errors
from stemjax.data import records as spot_records
from stemjax.eval import alerts, combine, joining, metrics, mismatch, plain, scoring, slide_rows
from stemjax.eval import truth as truths

if TYPE_CHECKING:
    import anndata

FORMAT = 2
# What the result repeats of the prediction's own account.
_CARRIED = ("mode", "value_space", "sampler", "steps", "n_draws", "antithetic", "seed")
_CARRIED += ("evaluations_per_spot", "checkpoint_step", "weights", "stemjax_version")


def evaluate(
    predictions: anndata.AnnData | Sequence[anndata.AnnData],
    source: truths.Source | spot_records.Records,
    *,
    compare: Mapping[str, anndata.AnnData | Sequence[anndata.AnnData]] | None = None,
    resamples: int = combine.RESAMPLES,
    seed: int = 0,
    foreign: joining.Foreign | None = None,
    leave_out: Sequence[str] = (),
) -> dict[str, Any]:
    """The table of one or several slides as plain values, which JSON takes; see `summarise`.

    Args:
      predictions: one for each slide, stemjax's or another tool's.
      source: must hold the slides, and the training slides for the rivals.
      compare: further predictions of the same slides, by row name.
      resamples: for the intervals; fewer than 2 make none.
      seed: of resamples and of what the baselines draw.
      foreign: what predictions of other tools do not say of themselves.
      leave_out: names of baselines not to fit.

    Raises:
      PredictionError: as `joining.join`, for a prediction or one to compare.
    """
    each = evaluate_all(
        predictions,
        source,
        compare=compare,
        resamples=resamples,
        seed=seed,
        foreign=foreign,
        leave_out=leave_out,
    )
    return summarise(each, resamples=resamples, seed=seed)


def evaluate_all(
    predictions: anndata.AnnData | Sequence[anndata.AnnData],
    source: truths.Source | spot_records.Records,
    *,
    compare: Mapping[str, anndata.AnnData | Sequence[anndata.AnnData]] | None = None,
    **options: Any,
) -> list[tuple[anndata.AnnData, slide_rows.Evaluated]]:
    """Each prediction with its slide's rows; arguments and errors as `evaluate`."""
    if not isinstance(source, truths.Source):
        source = truths.of_records(source)
    alone = _listed(predictions)
    found = []
    for i, prediction in enumerate(alone):
        others = {name: _listed(given) for name, given in (compare or {}).items()}
        for name, given in others.items():
            if len(given) != len(alone):
                raise errors.PredictionError(
                    f"compare {name}",
                    expected=f"{len(alone)} predictions, one for each slide",
                    found=str(len(given)),
                )
        here = {name: given[i] for name, given in others.items()}
        found.append(
            (prediction, slide_rows.evaluate_slide(prediction, source, compare=here, **options))
        )
    slides = [one.joined.slide for _, one in found]
    if twice := sorted({slide for slide in slides if slides.count(slide) > 1}):
        raise errors.PredictionError(
            f"slide {twice[0]} is predicted more than once",
            expected="one prediction a slide",
            fix="give a second prediction of it as --compare NAME=FILE",
        )
    return found


def _listed(given: anndata.AnnData | Sequence[anndata.AnnData]) -> list[anndata.AnnData]:
    return list(given) if isinstance(given, Sequence) else [given]


def summarise(
    each: Sequence[tuple[anndata.AnnData, slide_rows.Evaluated]], *, resamples: int, seed: int
) -> dict[str, Any]:
    """The evaluated slides as one table of plain values.

    Returns:
      ``rows``: name, source, ``scores`` (value and interval by key of `scoring.COLUMNS`) and, below
      the first, ``first_minus_row`` (difference, paired interval, verdict); ``slides``: what each
      is and its own scores; ``intervals``: what was resampled; ``alerts``; ``genes``: per gene, of
      the first slide's order; ``resampled``: the first row's resamples, for `compare`.
    """
    done = [one for _, one in each]
    unit = combine.choose_unit(
        [one.joined.truth.patient for one in done],
        [one.ground.resamples.times.shape[1] for one in done],
        resamples=resamples,
        seed=seed,
    )
    rows, first, notes = [], {}, sorted({note for one in done for note in one.notes})
    for row in done[0].rows:
        everywhere = [found for one in done if (found := one.row(row.name)) is not None]
        if len(everywhere) < len(done):
            notes.append(f"{row.name}: not on every slide, left out of the table.")
            continue
        keys = [k for k in scoring.COLUMNS if all(k in r.scored.values for r in everywhere)]
        values = {
            key: combine.combine([r.scored.values[key] for r in everywhere], unit) for key in keys
        }
        line: dict[str, Any] = {"name": row.name, "source": row.source, "sees_test": row.sees_test}
        line["scores"] = combine.describe(values)
        if rows:
            line["first_minus_row"] = {
                key: combine.difference(key, first[key], values[key])
                for key in values
                if key in first
            }
        first = first or values
        rows.append(line)
    result = {
        "format": FORMAT,
        "slides": [_slide(prediction, one, unit) for prediction, one in each],
        **{key: done[0].joined.about.get(key) for key in _CARRIED},
        "rows": rows,
        "intervals": {
            "of": unit.name,
            "count": unit.count,
            "resamples": unit.resamples,
            "level": combine.LEVEL,
            "seed": seed,
            "sentence": unit.sentence,
        },
        "notes": notes,
        "resampled": {key: np.round(values, 6) for key, values in first.items()},
        "fingerprint": fingerprint(done, unit),
    }
    result["alerts"] = [vars(alert) for alert in alerts.find(done, result)]
    return plain.plain(result)


def fingerprint(done: Sequence[slide_rows.Evaluated], unit: combine.Unit) -> str:
    """SHA-256 of what two results must share to be paired: spots, genes, units, resamples."""
    about = [
        [one.joined.slide, one.joined.truth.barcodes, np.flatnonzero(one.scored).tolist(),
         one.joined.genes, str(one.joined.about["value_space"])]
        for one in done
    ]  # fmt: skip
    text = json.dumps([about, unit.name, unit.count, unit.resamples, unit.seed])
    return hashlib.sha256(text.encode()).hexdigest()


def _slide(
    prediction: anndata.AnnData, one: slide_rows.Evaluated, unit: combine.Unit
) -> dict[str, Any]:
    """What one slide is, what was left out, and its own scores."""
    joined, truth, first = one.joined, one.joined.truth, one.rows[0].scored
    trained = np.ones(len(one.scored), bool) if one.fitted is None else one.fitted.trained
    given = np.isin(joined.genes, joining.names(joined.about.get("given_genes")))
    pcc = np.full(len(one.scored), np.nan)
    pcc[one.scored] = first.genes["pcc"]
    spread = None
    if joined.draws is not None and len(joined.draws) > 1:
        spread = draw_summary(joined.draws[..., one.scored], antithetic=joined.in_pairs)
    return {
        "slide": joined.slide,
        "patient": truth.patient,
        "split_kind": one.split[0],
        "split": one.split[1],
        "spots": len(truth.barcodes),
        "all_spots": one.all_spots,
        "genes": {
            "panel": len(joined.genes),
            "scored": np.sum(~np.isnan(pcc)),
            "not_measured": np.sum(~truth.measured),
            "not_in_training": np.sum(truth.measured & ~trained),
            "given": np.sum(given),
            "constant_in_truth": np.sum(one.scored & np.isnan(pcc)),
            "not_predicted": len(joined.absent["genes"]),
        },
        "spots_not_predicted": len(joined.absent["spots"]),
        "scores": {
            row.name: {key: values[0] for key, values in row.scored.values.items()}
            for row in one.rows
        },
        "gene_pcc": dict(zip(joined.genes, pcc, strict=True)),
        "draws": spread,
        "mismatch": mismatch.summary(
            prediction, truth.barcodes, one.ground.resamples.blocks,
            resamples=unit.resamples, seed=unit.seed,
        ),
        "ridge": one.fitted
        and {k: v for k, v in vars(one.fitted.ridge).items() if k != "prediction"},
    }  # fmt: skip


def draw_summary(draws: np.ndarray, *, antithetic: bool) -> dict[str, Any]:
    """Number of draws and the standard error of their average (root mean square), or None."""
    n, error = len(draws), None
    if n >= 4 and n % 2 == 0 if antithetic else n >= 2:
        each = metrics.draw_standard_error(draws, antithetic=antithetic)
        error = float(np.sqrt(np.mean(each**2)))
    return {"n": n, "antithetic": antithetic, "standard_error": error}
