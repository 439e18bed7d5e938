"""Several results in one table: the first beside each other, paired where they can be."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stemjax import errors
from stemjax.eval import combine, evaluate, scoring, tables
from stemjax.foreign import json_text

SHOWN = ("pcc_10", "pcc_50", "pcc_all", "pcc_depth", "mse", "rvd", "gsc", "ssc", "crps")
_WITH_INTERVAL = ("pcc_all", "mse")


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """A result that `stemjax evaluate` or `stemjax report --format json` wrote.

    Raises:
      PredictionError: there is none, it is no JSON, or another version of stemjax wrote it.
    """
    path = pathlib.Path(path)
    try:
        result = json_text.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise errors.PredictionError(
            f"{path} cannot be read ({error})",
            expected="the JSON that `stemjax evaluate` or `stemjax report --format json` writes",
        ) from error
    needed = {"format", "slides", "rows", "intervals", "resampled", "fingerprint", "value_space"}
    missing = sorted(needed - set(result)) if isinstance(result, dict) else sorted(needed)
    if missing:
        raise errors.PredictionError(
            f"{path} is no evaluation", expected=", ".join(sorted(needed)),
            found=f"none of {', '.join(missing)}",
        )  # fmt: skip
    if result["format"] != evaluate.FORMAT:
        raise errors.PredictionError(
            f"{path}: format",
            expected=str(evaluate.FORMAT),
            found=repr(result["format"]),
            fix="evaluate the prediction again with this version of stemjax",
        )
    return result


def compare(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The predictions of several results beside the first one's.

    Two results are paired where they scored the same spots and genes on the same resamples: their
    differences have an interval and a verdict then. Otherwise the difference has neither, and
    ``paired`` says what differs.

    Args:
      results: what `read` returns, by name; two or more.

    Returns:
      ``rows``: name, scores, ``paired`` and, below the first, ``first_minus_row``.

    Raises:
      PredictionError: fewer than two results, or other value spaces.
    """
    if len(results) < 2:
        raise errors.PredictionError(
            "a comparison", expected="two or more results", found=str(len(results))
        )
    (first_name, first), *_ = results.items()
    rows = []
    for name, result in results.items():
        if result["value_space"] != first["value_space"]:
            raise errors.PredictionError(
                f"{name} is in another value space than {first_name}",
                expected=str(first["value_space"]),
                found=str(result["value_space"]),
            )
        row: dict[str, Any] = {"name": name, "scores": result["rows"][0]["scores"]}
        if rows:
            row["paired"] = _unpaired(first, result)
            row["first_minus_row"] = _differences(first, result, paired=not row["paired"])
        rows.append(row)
    return {
        "slides": first["slides"],
        "value_space": first["value_space"],
        "intervals": first["intervals"],
        "rows": rows,
    }


def _unpaired(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Why two results cannot be paired; "" where they can."""
    if first["fingerprint"] == other["fingerprint"]:
        return ""
    slides = [sorted(slide["slide"] for slide in one["slides"]) for one in (first, other)]
    if slides[0] != slides[1]:
        return f"other slides ({', '.join(slides[1])})"
    if first["intervals"] != other["intervals"]:
        return "other resamples"
    return "other spots or genes"


def _differences(
    first: Mapping[str, Any], other: Mapping[str, Any], *, paired: bool
) -> dict[str, Any]:
    found = {}
    ours, theirs = first["rows"][0]["scores"], other["rows"][0]["scores"]
    for key in scoring.COLUMNS:
        if key not in ours or key not in theirs:
            continue
        if paired:
            sides = [np.array(one["resampled"][key], np.float64) for one in (first, other)]
            found[key] = combine.difference(key, *sides)
        else:
            values = ours[key]["value"], theirs[key]["value"]
            gap = None if None in values else values[0] - values[1]
            found[key] = {"difference": gap, "interval": None, "verdict": "unknown"}
    return found


def table(compared: Mapping[str, Any], *, keys: Sequence[str] = SHOWN) -> str:
    """The result of `compare` as Markdown, with the verdicts in words."""
    rows = compared["rows"]
    shown = [key for key in keys if any(key in row["scores"] for row in rows)]
    head = ["", *(scoring.COLUMNS[key].title for key in shown)]
    cells = [
        [
            row["name"],
            *(tables.score(row, key, interval=key in ("pcc_all", "mse")) for key in shown),
        ]
        for row in rows
    ]
    named = ", ".join(slide["slide"] for slide in compared["slides"])
    lines = [f"Slides {named}.", "", tables.markdown(head, cells), ""]
    for row in rows[1:]:
        parts = []
        for key in shown:
            less = row["first_minus_row"].get(key)
            if less is None or less["difference"] is None:
                continue
            bounds = less["interval"]
            span = f" [{bounds[0]:+.3f}, {bounds[1]:+.3f}]" if bounds else ""
            parts.append(
                f"{scoring.COLUMNS[key].title} {less['difference']:+.3f}{span} {less['verdict']}"
            )
        why = f" (not paired: {row['paired']})" if row["paired"] else ""
        lines.append(f"{rows[0]['name']} against {row['name']}{why}: {'; '.join(parts)}.")
    return "\n".join([*lines, compared["intervals"]["sentence"]]) + "\n"
