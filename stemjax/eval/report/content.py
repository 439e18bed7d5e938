"""What stands on the report of evaluated slides: headlines, alerts, tables, figures, provenance."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stemjax import __version__
from stemjax.eval import alerts, joining, plots, scoring, slide_rows, tables
from stemjax.eval.report import figures, inferred, page
from stemjax.foreign import json_text

if TYPE_CHECKING:
    import anndata

NOTICE = "Research use only. Not for clinical or diagnostic use."
MARKERS = 4
"""Genes drawn where none are asked for."""

_HEADLINES = ("pcc_50", "pcc_all", "pcc_depth", "mse", "rvd", "crps", "coverage_90_calibrated")
_HEADLINES += ("coverage_90",)
_WITH_INTERVAL = ("pcc_all", "mse")
_BESIDE = ("constant mean", "coordinates kNN", "neighbour mean", "nearest measured mean")
_BESIDE += ("component kriging", "depth oracle", "ridge", "MLP", "ridge + neighbours")
_BESIDE += ("noise ceiling",)
_AGAINST = ("ridge + neighbours", "ridge", "component kriging")  # the strongest plain rival there
_MAIN = ("pcc_50", "pcc_all", "pcc_50_train", "pcc_depth", "mse", "rvd")
_SEES = "sees the test slide's own measurements"


def render(
    done: Sequence[tuple[anndata.AnnData, slide_rows.Evaluated]],
    result: Mapping[str, Any],
    *,
    genes: Sequence[str] = (),
) -> str:
    """The report as HTML, at most `page.LIMIT_BYTES`.

    Args:
      done: what `evaluate.evaluate_all` returns; figures show the first slide.
      result: what `evaluate.summarise` makes of it.
      genes: genes of the maps; the first markers of the panel where none are given.

    Raises:
      GenePanelError: a gene is not among those scored.
      ConfigError: the page is too large even with coarse figures.
    """
    one = done[0][1]
    shown = tuple(genes) or _markers(one)
    drawn = functools.partial(_page, [one for _, one in done], result, shown)
    return page.render_within(drawn)


def _markers(one: slide_rows.Evaluated) -> tuple[str, ...]:
    """Marker genes of the panel that were scored; else the genes that vary most."""
    scored = figures.scored_genes(one)
    found = [gene for gene in plots.MARKERS if gene in scored][:MARKERS]
    by_spread = np.argsort(-one.ground.true.var(axis=0), kind="stable")
    found += [scored[i] for i in by_spread[:MARKERS] if scored[i] not in found]
    return tuple(found[:MARKERS])


def _page(
    done: Sequence[slide_rows.Evaluated],
    result: Mapping[str, Any],
    genes: Sequence[str],
    dpi: int,
) -> page.Page:
    one, slides = done[0], result["slides"]
    units = joining.VALUE_SPACES[result["value_space"]]
    names = ", ".join(slide["slide"] for slide in slides[:6]) + ", ..." * (len(slides) > 6)
    spots = sum(slide["spots"] for slide in slides)
    kinds = ", ".join(sorted({slide["split_kind"] for slide in slides}))
    sections = [
        _scores(result, dpi),
        *([_by_slide(result)] if len(slides) > 1 else []),
        figures.maps(one, genes, units, dpi),
        figures.genes(one, units, dpi),
        figures.uncertainty(one, result, dpi),
        figures.structure(one, dpi),
        _everything(result),
    ]
    return page.Page(
        title=f"Predicted expression: {names}",
        subtitle=f"{spots} spots, {slides[0]['genes']['scored']} genes scored, in {units}. "
        f"{result['rows'][0]['name']}; {kinds}.",
        notice=NOTICE,
        headlines=tuple(
            _headline(result, key) for key in _HEADLINES if key in result["rows"][0]["scores"]
        ),
        alerts=tuple(page.Alert(**alert) for alert in result["alerts"]),
        sections=tuple(section for section in sections if section.blocks or section.intro),
        provenance=tuple(_provenance(done, result)),
        version=__version__,
    )


def _headline(result: Mapping[str, Any], key: str) -> page.Headline:
    """One number of the prediction with the floors beside it."""
    column, first = scoring.COLUMNS[key], result["rows"][0]
    bounds = first["scores"][key]["interval"]
    beside = [
        (row["name"], tables.score(row, key, interval=False))
        for name in _BESIDE
        for row in result["rows"]
        if row["name"] == name and key in row["scores"]
    ]
    rows = {row["name"]: row for row in result["rows"]}
    rival = next((name for name in _AGAINST if name in rows), None)
    note = None
    if rival is not None and key in rows[rival]["first_minus_row"]:
        verdict = rows[rival]["first_minus_row"][key]["verdict"]
        note = None if verdict == "unknown" else f"{verdict} {_than(verdict)} {rival}"
    return page.Headline(
        label=tables.title(key, result),
        value=tables.score(first, key, interval=False),
        interval=None
        if bounds is None
        else f"95 %: {bounds[0]:.{column.digits}f} to {bounds[1]:.{column.digits}f}",
        beside=tuple(beside),
        note=note,
        definition=column.meaning,
    )


def _than(verdict: str) -> str:
    return "from" if verdict == "not distinguishable" else "than"


def _scores(result: Mapping[str, Any], dpi: int) -> page.Section:
    """The table that the report is about, the same as a picture, and the verdicts."""
    rows = result["rows"]
    shown = [key for key in _MAIN if any(key in row["scores"] for row in rows)]
    table = page.Table(
        head=("", *(tables.title(key, result) for key in shown)),
        rows=tuple(
            (row["name"],)
            + tuple(
                tables.score(row, key, interval=key in _WITH_INTERVAL).replace(" [", "\n[")
                for key in shown
            )
            for row in rows
        ),
        caption="The prediction, its floors and rivals, and the noise ceiling.",
        numeric=tuple(range(1, len(shown) + 1)),
        lead=True,
        notes=tuple(_SEES if row["sees_test"] else "" for row in rows),
    )
    blocks: list[page.Figure | page.Table] = [table]
    picture = figures.forest(result, dpi)
    if picture is not None:
        blocks.insert(0, picture)
    if compared := _verdicts(result):
        blocks.append(compared)
    notes = " ".join(result["notes"])
    return page.Section(
        id="scores",
        title="What beats what",
        intro=f"{result['intervals']['sentence']} {notes}{_on_all_spots(result)}".strip(),
        blocks=tuple(blocks),
    )


def _on_all_spots(result: Mapping[str, Any]) -> str:
    """The scores on hidden and shown spots together, where some were shown."""
    return "".join(
        f" On all {every['spots']:.0f} spots of {slide['slide']}, the shown ones too (as "
        f"published, no test): PCC {tables.number(every['pcc'], 3)}, MSE "
        f"{tables.number(every['mse'], 3)}."
        for slide in result["slides"]
        if (every := slide["all_spots"]) is not None
    )


def _verdicts(result: Mapping[str, Any]) -> page.Table | None:
    """The prediction less each rival, with the paired interval and the verdict."""
    keys = [k for k in ("pcc_all", "mse", "crps") if k in result["rows"][0]["scores"]]
    rows = []
    for row in result["rows"][1:]:
        if row["source"] in ("single draw", "ceiling"):
            continue
        cells = [row["name"]]
        for key in keys:
            less = row["first_minus_row"].get(key)
            if less is None or less["difference"] is None:
                cells.append("-")
            else:
                cells.append(f"{less['verdict']}\n{tables.signed(key, less)}")
        rows.append(tuple(cells))
    if not rows:
        return None
    return page.Table(
        head=("prediction against", *(tables.title(key, result) for key in keys)),
        rows=tuple(rows),
        caption="Differences, prediction less row, with paired 95 % intervals. Better and worse "
        "are said where the interval leaves out 0.",
        numeric=tuple(range(1, len(keys) + 1)),
    )


def _by_slide(result: Mapping[str, Any]) -> page.Section:
    """Each slide's own scores."""
    name, ridge = result["rows"][0]["name"], "ridge"
    rows = []
    for slide in result["slides"]:
        scores = slide["scores"]
        rows.append(
            (slide["slide"], slide["patient"] or "unknown", slide["split_kind"])
            + (str(slide["spots"]), str(slide["genes"]["scored"]))
            + tuple(tables.number(scores[name].get(k), 3) for k in ("pcc_all", "mse"))
            + tuple(tables.number(scores.get(ridge, {}).get(k), 3) for k in ("pcc_all", "mse"))
        )
    head = ("slide", "patient", "split", "spots", "genes", "PCC-all", "MSE")
    return page.Section(
        id="slides",
        title="Slides",
        intro="Scores of each slide; those above are their means. The figures below show the "
        f"first, {result['slides'][0]['slide']}.",
        blocks=(
            page.Table(
                head=(*head, "ridge: PCC-all", "ridge: MSE"),
                rows=tuple(rows),
                caption="Every slide by itself.",
                numeric=tuple(range(3, 9)),
            ),
        ),
    )


def _everything(result: Mapping[str, Any]) -> page.Section:
    """All scores of the prediction and of the rivals that have them, with what they mean."""
    first = result["rows"][0]
    others = [r for r in result["rows"][1:] if r["source"] in ("rival", "compare", "single draw")]
    columns = {key: column for key, column in scoring.COLUMNS.items() if key in first["scores"]}
    numbers = page.Table(
        head=("score", *(row["name"] for row in (first, *others))),
        rows=tuple(
            (column.title, *(tables.score(row, key) for row in (first, *others)))
            for key, column in columns.items()
        ),
        caption="Scores with 95 % intervals.",
        numeric=tuple(range(1, 2 + len(others))),
    )
    meanings = page.Table(
        head=("score", "meaning"),
        rows=tuple((column.title, column.meaning) for column in columns.values()),
        caption="What they mean; formulas and sources are on the documentation's page on metrics.",
    )
    return page.Section(id="all-scores", title="All scores", blocks=(numbers, meanings))


def _provenance(
    done: Sequence[slide_rows.Evaluated], result: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What the numbers were made from and with."""
    about = done[0].joined.about
    found = [(s["slide"], s["split"]) for s in result["slides"]]
    for key in ("mode", "sampler", "steps", "n_draws", "antithetic", "seed", "weights"):
        if about.get(key) not in (None, ""):
            found.append((key.replace("_", " "), str(about[key])))
    for key, name in (
        ("evaluations_per_spot", "network evaluations a spot"),
        ("checkpoint_step", "checkpoint step"),
        ("stemjax_version", "predicted by stemjax"),
    ):
        if about.get(key) is not None:
            found.append((name, str(about[key])))
    for key in ("train_slides", "val_slides"):
        if slides := joining.names(about.get(key)):
            found.append((key.replace("_", " "), ", ".join(slides)))
    if about.get("hidden"):
        found.append(("hidden", inferred.hiding(str(about["hidden"]))))
    if about.get("calibration"):
        found.append(("calibration", _calibration(str(about["calibration"]))))
    ridge = result["slides"][0]["ridge"]
    if ridge:
        found.append(("ridge", f"alpha {ridge['alpha']:g} by {ridge['folds']}"))
    found.append(("scored by stemjax", __version__))
    found.append(("result's fingerprint", result["fingerprint"]))
    return found


def _calibration(text: str) -> str:
    """The calibration's own account, in a sentence."""
    try:
        told = json_text.parse(text)
        few, most = told["spots"]
        slides = ", ".join(map(str, told["slides"]))
    except (ValueError, KeyError, TypeError):
        return text
    spots = str(few) if few == most else f"{few} to {most}"
    without = told.get("genes_without") or []
    lacking = f"; none for {len(without)} genes" if without else ""
    return f"split conformal, gene by gene, on {spots} spots of {slides}{lacking}"


def without_truth(predictions: Sequence[anndata.AnnData], *, genes: Sequence[str] = ()) -> str:
    """A page of maps and provenance, for predictions with nothing to score them against.

    Raises:
      PredictionError: a prediction has no coordinates or values that are not finite.
      GenePanelError: a gene is not in the panel.
    """
    sections = functools.partial(figures.unscored, predictions, tuple(genes))
    names = [figures.slide_name(one, i) for i, one in enumerate(predictions)]
    found = [
        page.Alert(level=one.level, title=one.title, text=one.text)
        for name, prediction in zip(names, predictions, strict=True)
        for one in alerts.of_account(dict(prediction.uns.get("stemjax", {})), name)
    ]
    found.append(
        page.Alert(
            level="note",
            title="no truth",
            text="Nothing here says how good the prediction is: give what was measured with "
            "--truth.",
        )
    )

    def made(dpi: int) -> page.Page:
        return page.Page(
            title=f"Predicted expression: {', '.join(names)}",
            notice=NOTICE,
            alerts=tuple(found),
            sections=tuple(sections(dpi)),
            provenance=figures.provenance(predictions),
            version=__version__,
        )

    return page.render_within(made)
