"""Results as text: an aligned Markdown table with what one must know to read it, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from stemjax import names
from stemjax.eval import joining, mismatch, scoring

_SHOWN = ("pcc_10", "pcc_50", "pcc_all", "pcc_depth", "mse", "rvd", "crps", "coverage_90")
_WITH_INTERVAL = ("pcc_all", "mse")
_SAID = ("pcc_all", "mse", "crps")
_LEFT_OUT = (
    ("not_measured", "not measured on the slide"),
    ("not_in_training", "measured on no training slide"),
    ("given", "told to the prediction, so no test of it"),
    ("not_predicted", "not among the prediction's genes"),
    ("constant_in_truth", "constant on the slide, so without correlation"),
)


def number(value: float | None, digits: int, bounds: Sequence[float] | None = None) -> str:
    """A score as text, with its interval; ``-`` where it is undefined."""
    text = "-" if value is None else f"{value:.{digits}f}"
    return f"{text} [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]" if bounds else text


def score(row: Mapping[str, Any], key: str, *, interval: bool = True) -> str:
    """One score of a row as text; ``-`` where the row has none."""
    found = row["scores"].get(key)
    if found is None:
        return "-"
    bounds = found["interval"] if interval else None
    return number(found["value"], scoring.COLUMNS[key].digits, bounds)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table, numbers to the right."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths))
    lines.insert(1, rule + "|")
    return "\n".join(lines)


def title(key: str, result: Mapping[str, Any]) -> str:
    """The heading of a score's column: PCC-all says of how many genes."""
    if key == "pcc_all" and len(result["slides"]) == 1:
        return f"PCC-{result['slides'][0]['genes']['scored']}"
    return scoring.COLUMNS[key].title


def table(result: Mapping[str, Any]) -> str:
    """The result of `evaluate.evaluate` for a terminal or a page."""
    shown = [k for k in _SHOWN if any(k in row["scores"] for row in result["rows"])]
    head = ["", *(title(k, result) + " [95 %]" * (k in _WITH_INTERVAL) for k in shown)]
    rows = [
        [row["name"] + " *" * row["sees_test"]]
        + [score(row, key, interval=key in _WITH_INTERVAL) for key in shown]
        for row in result["rows"]
    ]
    lines = [*_before(result), "", markdown(head, rows), ""]
    if any(row["sees_test"] for row in result["rows"]):
        lines.append("* sees the test slide's own measurements: a floor or ceiling, no rival.")
    lines += [*verdicts(result), *result["notes"], *_after(result), result["intervals"]["sentence"]]
    lines += [
        f"{alert['level'].upper()}: {alert['title']}. {alert['text']}" for alert in result["alerts"]
    ]
    return "\n".join(lines) + "\n"


def _before(result: Mapping[str, Any]) -> list[str]:
    """What was scored."""
    slides, cost = result["slides"], result["evaluations_per_spot"]
    calls = "." if cost is None else f"; {cost} network evaluation{'s' * (cost != 1)} a spot."
    units = joining.VALUE_SPACES[result["value_space"]]
    if len(slides) > 1:
        spots = sum(slide["spots"] for slide in slides)
        kinds = ", ".join(sorted({slide["split_kind"] for slide in slides}))
        named = ", ".join(slide["slide"] for slide in slides)
        return [
            f"{len(slides)} slides ({named}): {kinds}.",
            f"{spots} spots, in {units}{calls} Every score is the mean of the slides' own.",
        ]
    slide, genes = slides[0], slides[0]["genes"]
    return [
        f"Slide {slide['slide']}. {slide['split']}.",
        f"{slide['spots']} spots, {genes['scored']} of {genes['panel']} genes scored, in {units}"
        f"{calls}",
    ]


def _after(result: Mapping[str, Any]) -> list[str]:
    """What was left out, and what draws and likelihoods say."""
    lines = []
    for slide in result["slides"]:
        where = f"{slide['slide']}: " if len(result["slides"]) > 1 else ""
        genes, spread = slide["genes"], slide["draws"]
        lines += [f"{where}{genes[k]} genes left out: {why}." for k, why in _LEFT_OUT if genes[k]]
        if spread and spread["standard_error"] is not None:
            lines.append(
                f"{where}Average of {spread['n']} draws: standard error "
                f"{spread['standard_error']:.4f} (root mean square over spots and genes)."
            )
        if slide["mismatch"]:
            lines.append(where + mismatch.sentence(slide["mismatch"]))
    return lines


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """The first row beside each rival, in words."""
    lines = []
    for row in result["rows"][1:]:
        if row["source"] not in ("rival", "compare") and row["name"] != "constant mean":
            continue
        parts = [
            f"{title(key, result)} {found['verdict']} ({signed(key, found)})"
            for key in _SAID
            if (found := row["first_minus_row"].get(key)) is not None
            and found["difference"] is not None
        ]
        if parts:
            lines.append(f"Prediction against {row['name']}: {', '.join(parts)}.")
    return lines


def signed(key: str, found: Mapping[str, Any]) -> str:
    """A difference with its sign and interval."""
    digits, bounds = scoring.COLUMNS[key].digits, found["interval"]
    text = f"{found['difference']:+.{digits}f}"
    return f"{text} [{bounds[0]:+.{digits}f}, {bounds[1]:+.{digits}f}]" if bounds else text


def to_csv(result: Mapping[str, Any]) -> str:
    """One line for each row and score: value, interval, difference from the first row, verdict.

    Names that a spreadsheet would take for a formula get a ``'`` before them (`names.cell`).
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["slides", "row", "source", "sees_test", "score", "value", "low", "high"]
        + ["first_minus_row", "difference_low", "difference_high", "verdict"]
    )
    slides = names.cell(" ".join(slide["slide"] for slide in result["slides"]))
    for row in result["rows"]:
        name = names.cell(row["name"])
        for key, found in row["scores"].items():
            less = row.get("first_minus_row", {}).get(key, {})
            writer.writerow(
                [slides, name, row["source"], row["sees_test"], key, found["value"]]
                + [*(found["interval"] or ("", "")), less.get("difference", "")]
                + [*(less.get("interval") or ("", "")), less.get("verdict", "")]
            )
    return out.getvalue()
