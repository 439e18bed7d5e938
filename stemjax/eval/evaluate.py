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
from stemjax.eval import alerts, combine, joining, plain, scoring, slide_results, slide_rows
from stemjax.eval import truth as truths

if TYPE_CHECKING:
    import anndata

FORMAT = 2
_WORST_FIRST = ("error", "warning", "note")


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
    """Each prediction with its slide's rows.

    Args:
      predictions: as `evaluate`, and so are the others.
      source: must hold the slides.
      compare: further predictions.
      options: further arguments of `slide_rows.evaluate_slide`.

    Raises:
      PredictionError: as `evaluate`.
    """
    if not isinstance(source, truths.Source):
        source = truths.of_records(source)
    alone = _listed(predictions)
    found = []
    for i, prediction in enumerate(alone):
        others = {name: _listed(given) for name, given in (compare or {}).items()}
        for name, given in others.items():
            require_one_each(name, given, len(alone))
        here = {name: given[i] for name, given in others.items()}
        found.append(
            (prediction, slide_rows.evaluate_slide(prediction, source, compare=here, **options))
        )
    return found


def require_one_each(row: str, given: Sequence[object], slides: int) -> None:
    """Checks that a row to compare has one prediction of each slide.

    Raises:
      PredictionError: it has not.
    """
    if len(given) != slides:
        raise errors.PredictionError(
            f"compare {row}",
            expected=f"{slides} predictions, one for each slide",
            found=str(len(given)),
        )


def _listed(given: anndata.AnnData | Sequence[anndata.AnnData]) -> list[anndata.AnnData]:
    return list(given) if isinstance(given, Sequence) else [given]


def summarise(
    each: Sequence[tuple[anndata.AnnData, slide_rows.Evaluated]], *, resamples: int, seed: int
) -> dict[str, Any]:
    """The evaluated slides as one table of plain values; returns as `tabulate`.

    Args:
      each: what `evaluate_all` returns.
      resamples: as it was given them, and so is the seed.
      seed: of the resamples.
    """
    found = [
        slide_results.of_slide(prediction, one, resamples=resamples, seed=seed)
        for prediction, one in each
    ]
    return tabulate(found, resamples=resamples, seed=seed)


def tabulate(
    each: Sequence[slide_results.SlideResult], *, resamples: int, seed: int
) -> dict[str, Any]:
    """The results of slides as one table of plain values.

    Returns:
      ``rows``: name, source, ``scores`` (value and interval by key of `scoring.COLUMNS`) and, below
      the first, ``first_minus_row`` (difference, paired interval, verdict); ``slides``: what each
      is and its own scores; ``intervals``: what was resampled; ``alerts``; ``resampled``: the
      first row's resamples, for `compare`.

    Raises:
      PredictionError: a slide is there more than once.
    """
    slides = [one.slide for one in each]
    if twice := sorted({slide for slide in slides if slides.count(slide) > 1}):
        raise errors.PredictionError(
            f"slide {twice[0]} is predicted more than once",
            expected="one prediction a slide",
            fix="give a second prediction of it as --compare NAME=FILE",
        )
    unit = combine.choose_unit(
        [one.patient for one in each],
        [one.blocks for one in each],
        resamples=resamples,
        seed=seed,
    )
    rows, first, notes = [], {}, sorted({note for one in each for note in one.notes})
    for row in each[0].rows:
        everywhere = [found for one in each if (found := one.row(row.name)) is not None]
        if len(everywhere) < len(each):
            notes.append(f"{row.name}: not on every slide, left out of the table.")
            continue
        keys = [k for k in scoring.COLUMNS if all(k in r.scores for r in everywhere)]
        values = {key: combine.combine([r.scores[key] for r in everywhere], unit) for key in keys}
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
        "slides": [one.described for one in each],
        **each[0].about,
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
        "fingerprint": fingerprint(each, unit),
    }
    found = [alert for one in each for alert in one.alerts] + alerts.find([], result)
    worst_first = sorted(dict.fromkeys(found), key=lambda a: _WORST_FIRST.index(a.level))
    result["alerts"] = [vars(alert) for alert in worst_first]
    return plain.plain(result)


def fingerprint(each: Sequence[slide_results.SlideResult], unit: combine.Unit) -> str:
    """SHA-256 of what two results must share to be paired: spots, genes, units, resamples."""
    about = [one.identity for one in each]
    text = json.dumps([about, unit.name, unit.count, unit.resamples, unit.seed])
    return hashlib.sha256(text.encode()).hexdigest()
