"""One slide's table: a prediction beside the truth, the floors and its rivals.

prediction (AnnData) ─ join by barcode and gene name ─ truth of the records
                     └ rows: the mean, one draw, constant, coordinates kNN, depth oracle, ridge,
                       and each prediction to compare, all on the same spots, genes and resamples
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stemjax.data import splits
from stemjax.eval import baselines, joining, metrics, mismatch

if TYPE_CHECKING:
    import anndata

    from stemjax.data import records as spot_records

_BLOCK = 5.0  # side of a bootstrap block, in array units
_LEVEL = 0.95
_ONE_DRAW = "single draw"
_COLUMNS = ("pcc_10", "pcc_50", "pcc_all", "mse", "mae", "rvd")
_LEFT_OUT = (
    ("not_measured", "not measured on the slide"),
    ("not_in_training", "measured on no training slide"),
    ("given", "told to the prediction, so no test of it"),
    ("constant_in_truth", "constant on the slide, so without correlation"),
)
# What the result repeats of the prediction's own account.
_CARRIED = ("mode", "value_space", "sampler", "steps", "n_draws", "antithetic", "seed")
_CARRIED += ("evaluations_per_spot", "checkpoint_step", "stemjax_version")


def split_kind(
    about: Mapping[str, Any], slides: Mapping[str, spot_records.SlideInfo]
) -> tuple[str, str]:
    """What a score on this slide means: (kind, sentence).

    The records' patients decide; where one is unknown, the prediction's own ``split_kind`` stands.
    """
    slide = str(about["slide"])
    train, val = joining.names(about["train_slides"]), joining.names(about.get("val_slides"))
    for role, seen in (("training", train), ("validation", val)):
        if slide in seen:
            return f"{role} slide", f"{role} slide: {slide} was used in training, it is no test"
    patients = {s: slides[s].patient if s in slides else None for s in (slide, *train, *val)}
    patient = patients[slide]
    kind = splits.Split(train=tuple(train), val=tuple(val), test=(slide,), patients=patients).kind
    if kind == "interpolation within a patient":
        shared = ", ".join(s for s in (*train, *val) if patients[s] == patient)
        return kind, f"{kind}: {shared} of patient {patient} took part in training"
    if kind == "new patient":
        return kind, f"{kind}: no slide of patient {patient} took part in training"
    kind = str(about.get("split_kind") or kind)
    return kind, f"{kind} (so the prediction states: the records do not know every patient)"


def _floors(
    joined: joining.Joined, records: spot_records.Records
) -> tuple[baselines.Fitted | None, list[str]]:
    """The baselines, or None where training slides are not at hand, and what to note of them."""
    train = joining.names(joined.about["train_slides"])
    absent = [slide for slide in train if slide not in records.slides]
    if absent or not train:
        why = f"not in the records: {', '.join(absent)}" if absent else "none is named"
        return None, [f"No baselines: of the training slides, {why}. Open their records too."]
    fitted = baselines.fit(
        records.load(train),
        joined.table,
        value_space=str(joined.about["value_space"]),
        patients=records.patients,
    )
    return fitted, list(fitted.notes)


type _Row = tuple[str, str, np.ndarray]  # name, source, predictions [n l g] to average scores over


def _rows_of(name: str, source: str, joined: joining.Joined) -> list[_Row]:
    """The row of a prediction, and that of its single draws where it has them."""
    rows = [(f"{name}: {joined.label}", source, joined.mean[None])]
    if joined.draws is not None:
        rows.append((f"{rows[0][0]}, one draw", _ONE_DRAW, joined.draws))
    return rows


def _scored(
    rows: Sequence[_Row], score: Callable[[np.ndarray], metrics.Scores]
) -> list[dict[str, Any]]:
    """The table's rows as plain values; the first is what the others are compared with."""
    out, first = [], None
    for name, source, preds in rows:
        scores = score(preds)
        line: dict[str, Any] = {"name": name, "source": source}
        line |= {column: getattr(scores, column) for column in _COLUMNS} | {"rvd_single_draw": None}
        if source == _ONE_DRAW:  # it stands below the row of its average
            out[-1]["rvd_single_draw"] = line["rvd_single_draw"] = scores.rvd
        drawn, first = scores.resampled, first or scores.resampled
        for key in ("pcc_all", "mse"):
            line[f"{key}_interval"] = drawn and metrics.interval(vars(drawn)[key], level=_LEVEL)
        if out and first and drawn:
            line["prediction_minus_row"] = {
                key: metrics.interval(vars(first)[key] - vars(drawn)[key], level=_LEVEL)
                for key in ("pcc_all", "mse")
            }
        out.append(line)
    return out


def evaluate(
    prediction: anndata.AnnData,
    records: spot_records.Records,
    *,
    compare: Mapping[str, anndata.AnnData] | None = None,
    intervals: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """The table of one slide as plain values, which `write_metrics` and `table` take.

    Rows: the prediction by its mode, one draw of it (scores averaged over draws), the rows of
    `baselines.fit`, each of ``compare``; columns: `metrics.Scores` in the prediction's value space,
    95 % intervals of PCC-all and MSE, and of their paired differences ``prediction_minus_row``.
    Genes that the slide or all training slides lack are left out of every row.

    Args:
      prediction: what `stemjax predict` writes, for one slide.
      records: must hold the slide, and the training slides for the baselines.
      compare: further predictions of the same slide, by row name.
      intervals: number of resamples; fewer than 2 make no interval.
      seed: of the resamples.

    Raises:
      PredictionError: as `joining.join`, for the prediction or one to compare.
    """
    ours = joining.join(prediction, records)
    others = {
        name: joining.join(other, records, name=f"compare {name}", like=ours)
        for name, other in (compare or {}).items()
    }
    about, measured = ours.about, ours.mask != 0
    floors, notes = _floors(ours, records)
    trained = np.ones(len(ours.genes), bool) if floors is None else floors.trained
    given = np.isin(ours.genes, joining.names(about.get("given_genes")))
    mask = measured & trained & ~given
    blocks = metrics.spatial_blocks(ours.table.array_xy, size=_BLOCK)

    def score(preds: np.ndarray) -> metrics.Scores:
        return metrics.score(preds, ours.true, mask, blocks=blocks, resamples=intervals, seed=seed)

    rows, spread = _rows_of("prediction", "prediction", ours), None
    if floors is not None:
        rows += [(name, "baseline", pred[None]) for name, pred in floors.rows.items()]
    for name, other in others.items():
        rows += _rows_of(name, "compare", other)
    if ours.draws is not None:
        pairs = bool(about.get("antithetic", False))
        spread = vars(metrics.describe_draws(ours.draws, ours.true, mask, antithetic=pairs))
    odds = mismatch.summary(prediction, ours.table.barcodes, blocks, resamples=intervals, seed=seed)
    pcc = metrics.pcc_per_gene(ours.mean, ours.true, mask)
    kind, sentence = split_kind(about, records.slides)
    ridge = floors and {k: v for k, v in vars(floors.ridge).items() if k != "prediction"}
    return _plain(
        {
            "slide": ours.slide,
            "patient": records.slides[ours.slide].patient,
            "split_kind": kind,
            "split": sentence,
            **{key: about.get(key) for key in _CARRIED},
            "spots": len(ours.true),
            "genes": {
                "panel": len(ours.genes),
                "scored": np.sum(~np.isnan(pcc)),
                "not_measured": np.sum(~measured.any(axis=0)),
                "not_in_training": np.sum(measured.any(axis=0) & ~trained),
                "given": np.sum(given),
                "constant_in_truth": np.sum(mask.any(axis=0) & np.isnan(pcc)),
            },
            "rows": _scored(rows, score),
            "draws": spread,
            "mismatch": odds,
            "ridge": ridge,
            "intervals": {"resamples": intervals, "blocks": blocks.max() + 1, "seed": seed}
            | {"block_side": _BLOCK, "level": _LEVEL},
            "gene_pcc": dict(zip(ours.genes, pcc, strict=True)),
            "notes": notes,
        }
    )


def _plain(value: Any) -> Any:
    """The value as JSON has it: numpy scalars unpacked, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None, digits: int, bounds: Sequence[float] | None = None) -> str:
    text = "-" if value is None else f"{value:.{digits}f}"
    return f"{text} [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]" if bounds else text


def table(measured: Mapping[str, Any]) -> str:
    """The result of `evaluate` as an aligned Markdown table with what one must know to read it."""
    genes = measured["genes"]
    head = ["", "PCC-10", "PCC-50", f"PCC-{genes['scored']} [95 %]", "MSE [95 %]"]
    cells = [[*head, "MAE", "RVD", "RVD, one draw"]]
    for row in measured["rows"]:
        cells.append([row["name"], _number(row["pcc_10"], 3), _number(row["pcc_50"], 3)])
        cells[-1] += [_number(row[k], 3, row[f"{k}_interval"]) for k in ("pcc_all", "mse")]
        cells[-1] += [_number(row[k], 4) for k in ("mae", "rvd", "rvd_single_draw")]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths))
    lines.insert(1, rule + "|")
    cost, spread = measured["evaluations_per_spot"], measured["draws"]
    cost = "." if cost is None else f"; {cost} network evaluation{'s' * (cost != 1)} a spot."
    before = [
        f"Slide {measured['slide']}. {measured['split']}.",
        f"{measured['spots']} spots, {genes['scored']} of {genes['panel']} genes scored, in "
        f"{joining.VALUE_SPACES[measured['value_space']]}{cost}",
    ]
    after = [f"{genes[key]} genes left out: {why}." for key, why in _LEFT_OUT if genes[key]]
    if spread and spread["standard_error"] is not None:
        after.append(
            f"Average of {spread['n']} draws: standard error {spread['standard_error']:.4f} "
            "(root mean square over spots and genes)."
        )
    if odds := measured["mismatch"]:
        after.append(mismatch.sentence(odds))
    if (drawn := measured["intervals"])["resamples"] >= 2:
        after.append(
            f"Intervals: {drawn['resamples']} resamples of {drawn['blocks']} square blocks of "
            f"spots, {drawn['block_side']:g} array units wide."
        )
    return "\n".join([*before, "", *lines, "", *measured["notes"], *after]) + "\n"


def write_metrics(measured: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the result of `evaluate` as JSON, whole or not at all; undefined numbers are null."""
    text = json.dumps(_plain(measured), indent=2, allow_nan=False) + "\n"
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
