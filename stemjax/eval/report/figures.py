"""Sections of the report that show a slide: maps, genes, uncertainty, structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stemjax import errors
from stemjax.eval import joining, metrics, plots, scoring, slide_rows, tables
from stemjax.eval import truth as truths
from stemjax.eval.report import inferred, page

if TYPE_CHECKING:
    import anndata

_KINDS = {
    "prediction": "model",
    "single draw": "model",
    "rival": "baseline",
    "compare": "baseline",
    "floor": "floor",
    "ceiling": "oracle",
}
_LISTED = 12  # genes of the table of best genes


def scored_genes(one: slide_rows.Evaluated) -> list[str]:
    """Names of the scored genes."""
    return [gene for gene, kept in zip(one.joined.genes, one.scored, strict=True) if kept]


def forest(result: Mapping[str, Any], dpi: int) -> page.Figure | None:
    """Every row's PCC-all and MSE with intervals."""
    rows, keys = result["rows"], ("pcc_all", "mse")
    points = np.array([[_value(row, key) for key in keys] for row in rows])
    bounds = np.array([[_bounds(row, key) for key in keys] for row in rows])
    drawn = plots.forest(
        [row["name"] for row in rows],
        ["oracle" if row["sees_test"] else _KINDS[row["source"]] for row in rows],
        points,
        bounds,
        [f"{tables.title(k, result)} ({scoring.COLUMNS[k].better}er is better)" for k in keys],
        dpi=dpi,
    )
    if drawn is None:
        return None
    text = "; ".join(f"{row['name']} {tables.score(row, 'pcc_all')}" for row in rows)
    return page.Figure(
        image=drawn,
        alt=f"PCC-all and MSE of every row with intervals. PCC-all: {text}.",
        caption="Score and 95 % interval of every row; the band is the prediction's.",
    )


def _value(row: Mapping[str, Any], key: str) -> float:
    found = row["scores"].get(key, {}).get("value")
    return np.nan if found is None else found


def _bounds(row: Mapping[str, Any], key: str) -> tuple[float, float]:
    return row["scores"].get(key, {}).get("interval") or (np.nan, np.nan)


def maps(one: slide_rows.Evaluated, genes: Sequence[str], units: str, dpi: int) -> page.Section:
    """Genes over the tissue: measured, mean, spread.

    Raises:
      GenePanelError: a gene was not predicted and measured.
    """
    joined = one.joined
    columns = [_column(joined.genes, gene) for gene in genes]
    drawn = plots.maps(
        list(genes),
        joined.true[:, columns],
        joined.mean[:, columns],
        tissue(joined.truth),
        units=units,
        spread=None if joined.std is None else joined.std[:, columns],
        shown=plots.shown_of(joined, columns),
        dpi=dpi,
    )
    told = "measured, predicted" + (
        " and the spread of the prediction" if joined.std is not None else ""
    )
    intro = f"Slide {joined.slide}. A predicted mean is smoother than what was measured: it leaves "
    intro += "out what the image does not tell, and the noise of counting."
    if joined.context is not None:
        told = f"what the model was shown; hidden spots: {told}"
        hidden, shown = (len(part.barcodes) for part in (joined.truth, joined.context))
        intro += f" {shown} of {hidden + shown} spots were shown to the model, {hidden} were "
        intro += "hidden from it; each map has the spots of the other as rings."
    return page.Section(
        id="maps",
        title="Genes over the tissue",
        intro=intro,
        blocks=tuple(
            page.Figure(
                image=image, alt=f"{gene} over the tissue: {told}.", caption=f"{gene}: {told}."
            )
            for gene, image in zip(genes, drawn, strict=True)
        ),
    )


def _column(names: Sequence[str], gene: str) -> int:
    if gene in names:
        return list(names).index(gene)
    import difflib

    near = difflib.get_close_matches(gene, names, n=3)
    raise errors.GenePanelError(
        f"gene {gene!r} cannot be shown",
        expected=f"one of the {len(names)} genes predicted and measured",
        fix=f"did you mean {' or '.join(near)}?" if near else None,
    )


def tissue(truth: truths.Truth) -> plots.Tissue:
    """Where the spots lie."""
    return plots.Tissue(xy=truth.xy, diameter=truth.diameter, unit=truth.unit, image=truth.image)


def genes(one: slide_rows.Evaluated, units: str, dpi: int) -> page.Section:
    """How well each gene is predicted, and whether genes vary as they should."""
    joined, blocks = one.joined, []
    pcc = one.rows[0].scored.genes["pcc"]
    reference = {
        name: row.scored.genes["pcc"]
        for name in ("ridge", "noise ceiling")
        if (row := one.row(name)) is not None
    }
    histogram = plots.pcc_histogram(pcc, reference, name="prediction", dpi=dpi)
    if histogram is not None:
        blocks.append(
            page.Figure(
                image=histogram,
                alt=f"Histogram of the genes' PCC; median {np.nanmedian(pcc):.2f}.",
                caption="PCC of each gene over spots, with the ridge's and the noise ceiling's.",
            )
        )
    blocks.append(_best_genes(one, reference))
    kept = one.scored
    curve = plots.variation_curves(
        joined.mean[:, kept],
        joined.true[:, kept],
        units=units,
        draw=None if joined.draws is None else joined.draws[0][:, kept],
        name=f"predicted, {joined.label}",
        dpi=dpi,
    )
    blocks.append(
        page.Figure(
            image=curve,
            alt="Mean and variance over spots of every gene, measured and predicted.",
            caption="Gene variation curves. A mean varies less than the truth by construction; a "
            "single draw should not.",
        )
    )
    return page.Section(id="genes", title="Genes", blocks=tuple(blocks))


def _best_genes(one: slide_rows.Evaluated, reference: Mapping[str, np.ndarray]) -> page.Table:
    pcc, error = (one.rows[0].scored.genes[key] for key in ("pcc", "mse"))
    names = scored_genes(one)
    order = np.argsort(np.where(np.isnan(pcc), -np.inf, pcc), kind="stable")[::-1][:_LISTED]
    return page.Table(
        head=("gene", "PCC", *reference, "MSE"),
        rows=tuple(
            (names[i], tables.number(_known(pcc[i]), 3))
            + tuple(tables.number(_known(values[i]), 3) for values in reference.values())
            + (tables.number(_known(error[i]), 3),)
            for i in order
        ),
        caption=f"The {len(order)} genes with the highest PCC on this slide.",
        numeric=tuple(range(1, 3 + len(reference))),
    )


def _known(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def uncertainty(one: slide_rows.Evaluated, result: Mapping[str, Any], dpi: int) -> page.Section:
    """Whether the predicted spread is right, before and after calibration."""
    scores, levels = result["rows"][0]["scores"], np.array(metrics.LEVELS)
    coverage, bounds, lines = {}, {}, []
    for name, ending in (("as predicted", ""), ("calibrated", "_calibrated")):
        keys = [f"coverage_{level * 100:g}{ending}" for level in metrics.LEVELS]
        if any(key in scores for key in keys):
            coverage[name] = np.array([_value(result["rows"][0], key) for key in keys])
            bounds[name] = np.array([_bounds(result["rows"][0], key) for key in keys])
            lines.append(name)
    blocks: list[page.Figure | page.Table] = []
    drawn = plots.reliability(levels, coverage, intervals=bounds, dpi=dpi) if coverage else None
    if drawn is not None:
        told = "; ".join(
            f"{name}: " + ", ".join(f"{v:.0%} at {p:.0%}" for v, p in zip(c, levels, strict=True))
            for name, c in coverage.items()
        )
        blocks.append(page.Figure(image=drawn, alt=f"Coverage. {told}.", caption="Coverage."))
    joined, kept = one.joined, one.scored
    if joined.draws is not None and len(joined.draws) > 1:
        # Of antithetic pairs one draw each: the truth is not exchangeable with mirrored draws.
        draws = joined.draws[::2] if joined.in_pairs else joined.draws
        counts = metrics.rank_histogram(draws[..., kept], joined.true[:, kept], seed=0)
        image = plots.rank_histogram(counts, dpi=dpi)
        what = "Rank of the measurement among the draws"
        what += ", one of each antithetic pair" if joined.in_pairs else ""
        what += ": flat is right, a U too narrow, a dome too wide, a slope a bias."
    elif joined.forecast is not None:
        forecast = slide_rows.narrowed(joined.forecast, kept)
        assert forecast is not None
        image = plots.pit_histogram(
            metrics.pit_histogram(forecast.pit(joined.true[:, kept])), dpi=dpi
        )
        what = "Probability integral transform of the measurements; flat is right."
    else:
        image, what = None, ""
    if image is not None:
        blocks.append(page.Figure(image=image, alt=what, caption=what))
    if coverage:
        blocks.append(_intervals(result, lines))
    if blocks:
        intro = "Shares of measured values inside the predicted central intervals. " + (
            "Calibrated intervals are those of split conformal prediction on validation slides."
            if "calibrated" in coverage
            else "The model has no calibration for this way of sampling: `stemjax calibrate`."
        )
    else:
        intro = "This prediction has a mean and no spread: modes draws and marginal have one."
    return page.Section(id="uncertainty", title="Uncertainty", intro=intro, blocks=tuple(blocks))


def _intervals(result: Mapping[str, Any], lines: Sequence[str]) -> page.Table:
    """Coverage and width at every level, and the spread rivals' at 90 %."""
    first, rows = result["rows"][0], []
    for name in lines:
        ending = "" if name == "as predicted" else "_calibrated"
        for level in metrics.LEVELS:
            keys = [f"{what}_{level * 100:g}{ending}" for what in ("coverage", "width")]
            rows.append(
                (f"prediction, {name}", f"{level:.0%}", *(tables.score(first, k) for k in keys))
            )
    for row in result["rows"][1:]:
        if "coverage_90" in row["scores"]:
            keys = ("coverage_90", "width_90")
            rows.append((row["name"], "90%", *(tables.score(row, key) for key in keys)))
    return page.Table(
        head=("", "interval", "coverage", "width"),
        rows=tuple(rows),
        caption="Coverage and mean width of central intervals.",
        numeric=(1, 2, 3),
    )


def structure(one: slide_rows.Evaluated, dpi: int) -> page.Section:
    """Whether genes go together, and lie in space, as measured: the mean, and one draw."""
    joined, kept, ground = one.joined, one.scored, one.ground
    shown = {"mean": joined.mean[:, kept]}
    if joined.draws is not None:
        shown["draw"] = joined.draws[0][:, kept]
    blocks, measured = [], metrics.gene_correlation(ground.true)
    for name, values in shown.items():
        drawn = plots.morans(ground.moran_of(values)[0], ground.moran[0], dpi=dpi)
        if drawn is not None:
            text = f"Moran's I of each gene, predicted {name} against measured"
            caption = f"{text}; SSC is their r."
            blocks.append(page.Figure(image=drawn, alt=f"{text}.", caption=caption))
    for name, values in shown.items():
        predicted = metrics.gene_correlation(values)
        heat = plots.gene_correlation(measured, predicted, scored_genes(one), dpi=dpi)
        if heat is not None:
            text = f"Correlations of all pairs of genes over spots, measured and predicted {name}"
            caption = f"{text}; GSC is their agreement."
            blocks.append(page.Figure(image=heat, alt=f"{text}.", caption=caption))
    return page.Section(
        id="structure",
        title="Structure",
        intro="A mean makes genes go together more, and maps smoother, than they are: look at "
        "single draws for structure.",
        blocks=tuple(blocks),
    )


def slide_name(prediction: anndata.AnnData, number: int) -> str:
    """The slide of a prediction, as far as it says."""
    about = prediction.uns.get("stemjax")
    return str(about["slide"]) if about and "slide" in about else f"prediction {number + 1}"


def unscored(
    predictions: Sequence[anndata.AnnData], genes: Sequence[str], dpi: int
) -> list[page.Section]:
    """Maps of predictions without a truth; beside them what they were given, where they hold it.

    Raises:
      PredictionError: as `report.without_truth`, or a prediction's account of its measured spots
        cannot be read.
    """
    sections = []
    for i, prediction in enumerate(predictions):
        name = slide_name(prediction, i)
        about = prediction.uns.get("stemjax", {})
        units = joining.VALUE_SPACES.get(str(about.get("value_space")), "predicted value")
        panel = list(map(str, prediction.var_names))
        shown = list(genes) or [gene for gene in plots.MARKERS if gene in panel][:4] or panel[:4]
        columns = [_column(panel, gene) for gene in shown]
        mean = joining.values(prediction.X, "X", name, of=(list(prediction.obs_names), panel))[
            :, columns
        ]
        spread = prediction.layers.get("stemjax_std")
        place, given = inferred.places(prediction, columns, name)
        drawn = plots.maps(
            shown,
            None,
            mean,
            place,
            units=units,
            spread=None if spread is None else np.asarray(spread)[:, columns],
            shown=given,
            dpi=dpi,
        )
        told = "predicted" if given is None else "measured, and predicted"
        sections.append(
            page.Section(
                id=f"slide-{i + 1}",
                title=name,
                intro=f"{inferred.counted(prediction, name)}. {prediction.n_vars} genes, in "
                f"{units}.{inferred.SMOOTH if given is not None else ''}",
                blocks=tuple(
                    page.Figure(image=image, alt=f"{gene} over the tissue, {told}.", caption=gene)
                    for gene, image in zip(shown, drawn, strict=True)
                ),
            )
        )
    return sections


def provenance(predictions: Sequence[anndata.AnnData]) -> tuple[tuple[str, str], ...]:
    """What the predictions say of themselves."""
    found = []
    for i, prediction in enumerate(predictions):
        about = prediction.uns.get("stemjax", {})
        for key, value in about.items():
            left_out = ("model", "notice", "calibration", "points")
            if key not in left_out and str(value) not in ("", "[]"):
                listed = isinstance(value, list | np.ndarray)
                text = ", ".join(joining.names(value)) if listed else str(value)
                text = inferred.hiding(text) if key == "hidden" else text
                found.append((f"{slide_name(prediction, i)}: {key.replace('_', ' ')}", text))
    return tuple(found)
