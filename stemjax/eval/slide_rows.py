"""One slide's rows: a prediction, its floors and rivals, the noise ceiling, other predictions.

All rows are scored on the same spots and genes: those that the slide measured at every spot, that
some training slide measured, and that the prediction was not told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
import scipy.spatial

from stemjax.data import splits
from stemjax.eval import baselines, combine, joining, metrics, recovered, scoring
from stemjax.eval import truth as truths

if TYPE_CHECKING:
    import anndata


CONSTANT = "constant mean"
_RECOVERY_ALONE = set(baselines.RECOVERY_ROWS) - set(baselines.ROWS)
FAR = 0.99
"""Quantile of training spots' distances beyond which a spot's patch counts as out of range."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One row of a slide's table.

    Attributes:
      name: of the row.
      source: ``prediction``, ``single draw``, ``floor``, ``rival``, ``ceiling`` or ``compare``.
      sees_test: whether it uses the test slide's own measurements: no rival of an image model.
      scored: its scores.
    """

    name: str
    source: str
    sees_test: bool
    scored: scoring.Scored


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluated:
    """One slide, scored.

    Attributes:
      joined: prediction and truth.
      scored: which genes are scored, [g].
      ground: the truth of the scored genes.
      rows: the prediction first.
      fitted: the baselines, or None where there is nothing to fit them on.
      notes: what a reader must know of the rows, in sentences.
      split: kind of the split and its sentence.
      panel_slides: slides whose counts chose the genes.
      out_of_range: share of spots whose patch is unlike any in training, or None.
      all_spots: where hidden spots alone are scored, the prediction's scores on all spots.
    """

    joined: joining.Joined
    scored: np.ndarray
    ground: scoring.Ground
    rows: tuple[Row, ...]
    fitted: baselines.Fitted | None
    notes: tuple[str, ...]
    split: tuple[str, str]
    panel_slides: tuple[str, ...]
    out_of_range: float | None
    all_spots: Mapping[str, float] | None = None

    def row(self, name: str) -> Row | None:
        """The row of that name, or None."""
        return next((row for row in self.rows if row.name == name), None)


def split_kind(
    about: Mapping[str, Any], patients: Mapping[str, str | None], *, hidden: int = 0
) -> tuple[str, str]:
    """What a score on this slide means: (kind, sentence); ``hidden`` spots alone are scored.

    The records' patients decide; where one is unknown, the prediction's own ``split_kind`` stands.
    """
    slide = str(about["slide"])
    if hidden:
        kind = splits.RECOVERY
        return kind, f"{kind}: {hidden} hidden spots of {slide}, whose others were shown"
    train, val = joining.names(about["train_slides"]), joining.names(about.get("val_slides"))
    for role, seen in (("training", train), ("validation", val)):
        if slide in seen:
            return f"{role} slide", f"{role} slide: {slide} was used in training, it is no test"
    known = {s: patients.get(s) for s in (slide, *train, *val)}
    kind = splits.Split(train=tuple(train), val=tuple(val), test=(slide,), patients=known).kind
    if kind == "interpolation within a patient":
        shared = ", ".join(sorted(s for s in (*train, *val) if known[s] == known[slide]))
        return kind, f"{kind}: {shared} of patient {known[slide]} took part in training"
    if kind == "new patient":
        return kind, f"{kind}: no slide of patient {known[slide]} took part in training"
    stated = str(about.get("split_kind") or "")
    if not stated:
        return kind, f"{kind}: which slides and patients it was trained on is not known"
    why = "so the prediction states: the records do not know every patient"
    return stated, f"{stated} ({why})"


def _baselines(
    joined: joining.Joined, source: truths.Source, leave_out: Sequence[str], seed: int
) -> tuple[baselines.Fitted | None, list[str], float | None]:
    """The baselines where training slides are at hand, what to note of them, `out_of_range`."""
    train, records = joining.names(joined.about["train_slides"]), source.records
    if records is None or joined.table is None:
        return None, ["No rivals: the truth is a file of counts, without embeddings."], None
    absent = [slide for slide in train if slide not in records.slides]
    if absent or not train:
        why = f"not in the records: {', '.join(absent)}" if absent else "none is named"
        note = f"No baselines: of the training slides, {why}. Open their records too."
        return None, [note], None
    table = records.load(train)
    columns = [records.genes.index(gene) for gene in joined.genes]
    if len(columns) < len(records.genes):
        table = dataclasses.replace(
            table, counts=table.counts[:, columns], mask=table.mask[:, columns]
        )
    fitted = baselines.fit(
        table,
        joined.table,
        value_space=str(joined.about["value_space"]),
        patients=records.patients,
        leave_out=[name for name in leave_out if name not in _RECOVERY_ALONE],
        seed=seed,
    )
    far = share_out_of_range(table.embeddings[:, 0], joined.table.embeddings[:, 0])
    return fitted, list(fitted.notes), far


def share_out_of_range(
    train: np.ndarray, test: np.ndarray, *, sample: int = 2000, seed: int = 0
) -> float | None:
    """Share of test rows further from the training rows than `FAR` of those are from each other.

    Distances are Euclidean over the 32 leading principal components of the standardised training
    embeddings, to the nearest of at most ``sample`` training rows; None for fewer than 3 of those.
    """
    if len(train) < 3:
        return None
    rng = np.random.default_rng(seed)
    train = np.asarray(train[rng.permutation(len(train))[:sample]], np.float64)
    centre, spread = train.mean(axis=0), train.std(axis=0)
    spread = np.where(spread > 1e-9 * np.maximum(np.abs(centre), 1e-30), spread, 1.0)
    train, test = (train - centre) / spread, (np.asarray(test, np.float64) - centre) / spread
    axes = scipy.linalg.svd(train, full_matrices=False)[2][:32].T
    tree = scipy.spatial.KDTree(train @ axes)
    limit = np.quantile(tree.query(train @ axes, k=2)[0][:, 1], FAR)
    return float((tree.query(test @ axes)[0] > limit).mean())


def evaluate_slide(
    prediction: anndata.AnnData,
    source: truths.Source,
    *,
    compare: Mapping[str, anndata.AnnData] | None = None,
    resamples: int = combine.RESAMPLES,
    seed: int = 0,
    foreign: joining.Foreign | None = None,
    leave_out: Sequence[str] = (),
    name: str = "prediction",
) -> Evaluated:
    """One slide's rows; arguments and errors as `evaluate.evaluate`, which call it ``name``."""
    joined = joining.join(prediction, source, name=name, foreign=foreign)
    others = {
        row: joining.join(other, source, name=f"compare {row}", like=joined, foreign=foreign)
        for row, other in (compare or {}).items()
    }
    fitted, notes, far = None, [], None
    if joined.context is None:
        fitted, notes, far = _baselines(joined, source, leave_out, seed)
    given = np.isin(joined.genes, joining.names(joined.about.get("given_genes")))
    kept = joined.truth.measured & ~given
    if fitted is not None:
        kept = kept & fitted.trained
    found = _recovered(joined, kept, leave_out, seed)
    ground = scoring.make_ground(
        joined.true[:, kept],
        total=joined.truth.total,
        array_xy=joined.truth.array_xy,
        resamples=resamples,
        seed=seed,
        train_mean=_train_mean(fitted, kept) if found is None else found.rows[CONSTANT][0],
        ranking=None if fitted is None else fitted.ranking[kept],
    )
    rows = _rows_of("prediction", "prediction", joined, kept, ground)
    if found is None:
        rows += _floors(joined, fitted, kept, ground)
    else:
        rows += _baseline_rows(found.rows, found.forecasts, ground)
    rows += _ceiling(joined, kept, ground, seed)
    for row, other in others.items():
        rows += _rows_of(row, "compare", other, kept, ground)
    records = source.records
    return Evaluated(
        joined=joined,
        scored=kept,
        ground=ground,
        rows=tuple(rows),
        fitted=fitted,
        notes=tuple(notes),
        split=split_kind(
            joined.about,
            {} if records is None else records.patients,
            hidden=0 if joined.context is None else len(joined.truth.barcodes),
        ),
        out_of_range=far,
        panel_slides=() if records is None else tuple(records.panel.slides),
        all_spots=None
        if joined.context is None
        else recovered.both(
            prediction,
            source.load(joined.slide),
            str(joined.about["value_space"]),
            [gene for gene, keep in zip(joined.genes, kept, strict=True) if keep],
        ),
    )


def _recovered(
    joined: joining.Joined, kept: np.ndarray, leave_out: Sequence[str], seed: int
) -> baselines.Recovered | None:
    """Floors and rivals of hidden spots, of the scored genes; None where none are hidden."""
    if joined.context is None:
        return None
    # The constant mean is also what R² is relative to.
    return recovered.rivals(
        joined.truth,
        joined.context,
        str(joined.about["value_space"]),
        kept,
        leave_out=[name for name in leave_out if name != CONSTANT],
        seed=seed,
    )


def _train_mean(fitted: baselines.Fitted | None, kept: np.ndarray) -> np.ndarray | None:
    """Each scored gene's mean over the training spots, where the row is there."""
    if fitted is None or "constant mean" not in fitted.rows:
        return None
    return fitted.rows["constant mean"][0, kept]


def _rows_of(
    name: str, source: str, joined: joining.Joined, kept: np.ndarray, ground: scoring.Ground
) -> list[Row]:
    """The row of a prediction, and that of its single draws where it has them."""
    title, draws = f"{name}: {joined.label}", joined.draws
    draws = None if draws is None else draws[..., kept]
    scored = scoring.score(
        ground,
        joined.mean[:, kept],
        forecast=narrowed(joined.forecast, kept),
        draws=draws,
        antithetic=joined.in_pairs,
        intervals={
            level: (low[:, kept], high[:, kept]) for level, (low, high) in joined.intervals.items()
        },
    )
    rows = [Row(name=title, source=source, sees_test=False, scored=scored)]
    if draws is not None:
        single = scoring.score_draws(ground, draws)
        rows.append(
            Row(name=f"{title}, one draw", source="single draw", sees_test=False, scored=single)
        )
    return rows


def narrowed(forecast: metrics.Forecast | None, kept: np.ndarray) -> metrics.Forecast | None:
    """The forecast of some of the genes."""
    if isinstance(forecast, metrics.Draws | metrics.Quantiles):
        return dataclasses.replace(forecast, values=forecast.values[..., kept])
    if isinstance(forecast, metrics.Normal):
        return metrics.Normal(mean=forecast.mean[:, kept], std=forecast.std[:, kept])
    return None


def _floors(
    joined: joining.Joined,
    fitted: baselines.Fitted | None,
    kept: np.ndarray,
    ground: scoring.Ground,
) -> list[Row]:
    """Floors and rivals; without training slides, the two that the slide itself gives."""
    if fitted is not None:
        named, forecasts = dict(fitted.rows), fitted.forecasts
    else:
        near = baselines.neighbour_mean(joined.true, joined.mask, joined.truth.array_xy)
        named, forecasts = {"neighbour mean": near}, {}
        named["depth oracle"] = baselines.depth_oracle(
            joined.true, joined.mask, joined.truth.total, joined.truth.total
        )
    cut = {name: pred[:, kept] for name, pred in named.items()}
    # A spot alone has no neighbour to take a mean of.
    whole = {name: pred for name, pred in cut.items() if np.isfinite(pred).all()}
    narrow = {name: narrowed(forecasts.get(name), kept) for name in whole}
    return _baseline_rows(whole, narrow, ground)


def _baseline_rows(
    named: Mapping[str, np.ndarray],
    forecasts: Mapping[str, metrics.Forecast | None],
    ground: scoring.Ground,
) -> list[Row]:
    """The rows of baselines' predictions of the scored genes."""
    return [
        Row(
            name=name,
            source="floor" if name in baselines.FLOORS else "rival",
            sees_test=name in baselines.SEES_TEST,
            scored=scoring.score(ground, pred, forecast=forecasts.get(name)),
        )
        for name, pred in named.items()
    ]


def _ceiling(
    joined: joining.Joined, kept: np.ndarray, ground: scoring.Ground, seed: int
) -> list[Row]:
    """The noise ceiling as a row of correlations and errors."""
    space, truth = str(joined.about["value_space"]), joined.truth
    counts = truth.counts[:, kept]
    scored = scoring.score_ceiling(
        ground,
        baselines.split_halves(counts, truth.total, value_space=space, seed=seed),
        baselines.poisson_again(counts, truth.total, value_space=space, seed=seed),
    )
    return [Row(name="noise ceiling", source="ceiling", sees_test=True, scored=scored)]
