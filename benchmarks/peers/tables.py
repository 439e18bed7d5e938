"""A result of `ab.py` as Markdown, for the terminal and for the pages of docs/."""

from __future__ import annotations

from typing import Any


def tables(result: dict[str, Any]) -> str:
    """Returns a result as Markdown: ratios with their targets, times, differences of numbers."""
    out = ["| what | against | ours | theirs | times faster (95 %) | target | |",
           "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for line in result["ratios"]:
        target = "" if line["target"] is None else f">= {line['target']:,.0f}"
        extrapolated = " (extrapolated)" if line["section"] == "default" else ""
        out.append(
            f"| {line['job']} | {line['against']}{extrapolated} | {line['ours']} | "
            f"{line['theirs']} | {_short(line['ratio'])} ({_short(line['low'])} to "
            f"{_short(line['high'])}) | {target} | {line['verdict']} |"
        )
    out += ["", "| work | side | variant | evaluations a spot | ms a call | us an evaluation | "
            "s a spot |", "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for line in result["lines"]:
        mark = " (extrapolated)" if line["extrapolated"] else ""
        out.append(
            f"| {line['job']} | {line['side']} | {line['variant']} | "
            f"{line['evaluations_per_spot']:,} | {1e3 * line['median_s']:.4g} | "
            f"{line['us_per_evaluation']:.4g} | {line['seconds_per_spot']:.3g}{mark} |"
        )
    out += [f"| all | torch | {variant} | not available: {_cell(why)} | | | |"
            for variant, why in result["unavailable"].items()]  # fmt: skip
    out += ["", "| numbers of | side | variant | max abs difference | relative | limit |",
            "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for line in result["agreement"]:
        limit = "stated only" if line["limit"] is None else f"{line['limit']:g}"
        out.append(
            f"| {' | '.join(line['what'])} | {line['largest']:.2g} | {line['relative']:.2g} | "
            f"{limit} |"
        )
    n, torch = result["network"], result["torch"]
    out += [
        "",
        f"Width {n['width']}, depth {n['depth']}, {n['heads']} heads, {n['genes']} genes, "
        f"condition {n['condition']}; {result['plan']['rounds']} rounds; "
        f"{result['threads_ours']} threads on each side; load {result['load']:.1f} to "
        f"{result['load_end']:.1f}; torch {torch['torch']} on {torch['platform']} "
        f"({torch['cpu_capability']}). {result['extrapolation'].capitalize()}.",
    ]
    return "\n".join(out)


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
