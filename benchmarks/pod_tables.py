"""The tables of `benchmarks/pod.py`: what the compiler plans, and a projection."""

from __future__ import annotations

import collections
from typing import Any

import samplers

PLAN = (
    "**What the compiler plans, for one chip** (of this table only the seconds of compiling are "
    "measured; MB of collectives are results on a chip, and what is overlapped is in brackets)"
)
PROJECTION = (
    "**A projection from it, by the ring model of `benchmarks/links.py`; nobody has run it on a "
    "TPU**"
)
SHORT = {"all-reduce": "sum", "reduce-scatter": "scatter", "all-gather": "gather",
         "collective-permute": "permute", "all-to-all": "all-to-all",
         "between-slices": "between slices"}  # fmt: skip
WORTH_NAMING = 1e5
"""Bytes below which collectives of a kind are left out of the table."""


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown: the plan and the projection."""
    lines = result["lines"]
    compiled = [line for line in lines if "projected" in line]
    return "\n\n".join([PLAN, _plan(lines), PROJECTION, _projection(compiled)])


def _plan(lines: list[dict[str, Any]]) -> str:
    head = ["topology", "size", "program", "data x fsdp x genes", "rows a chip", "GB of its memory",
            "arguments GB", "TFLOP", "GB accessed", "collectives", "tokens padded to",
            "compile s"]  # fmt: skip
    cells = []
    for line in lines:
        name = _name(line)
        if "cut" in line:
            cells.append([*name, "", "", line["cut"], *[""] * 6])
            continue
        name += [" x ".join(map(str, line["mesh"].values())), f"{line['rows_a_chip']:g}"]
        if "does_not_fit" in line:
            cells.append([*name, f"does not fit: {line['does_not_fit']}", *[""] * 6])
            continue
        padding = ", ".join(f"{n} ({part:.0%})" for n, part in line["token_padding"].items())
        cells.append([
            *name, f"{line['memory'] / 2**30:.2f} of {line['limit'].rstrip('G')}",
            f"{line['argument'] / 2**30:.2f}", f"{line['executed_flop'] / 1e12:.1f}",
            f"{line['bytes_accessed'] / 1e9:.0f}", collectives(line["collectives"]), padding,
            f"{line['compile_s']:.0f}",
        ])  # fmt: skip
    return samplers.markdown(head, cells)


def collectives(found: list[dict[str, Any]]) -> str:
    """Returns the collectives of a row by kind: calls, megabytes, and how much is overlapped."""
    kinds: dict[str, collections.Counter[str]] = {}
    for one in found:
        row = kinds.setdefault(one["kind"], collections.Counter())
        row.update(calls=one["calls"], bytes=one["bytes"])
        row["overlapped"] += one["bytes"] * one["overlapped"]
    texts = [
        f"{row['calls']} {SHORT[kind]} {row['bytes'] / 1e6:.0f} MB"
        + (f" ({row['overlapped'] / row['bytes']:.0%})" if row["overlapped"] else "")
        for kind, row in sorted(kinds.items(), key=lambda pair: -pair[1]["bytes"])
        if row["bytes"] >= WORTH_NAMING
    ]
    return ", ".join(texts) or "none"


def _projection(lines: list[dict[str, Any]]) -> str:
    head = ["topology", "size", "program", "compute ms", "by", "overlapped ms", "exposed ms",
            "step ms", "efficiency", "at full rating", "share of rating", "spots/s a chip",
            "spots/s in all"]  # fmt: skip
    cells = []
    for line in lines:
        step = line["projected"]
        by = "memory" if step["memory"] > step["arithmetic"] else "arithmetic"
        cells.append([
            *_name(line), f"{1e3 * max(step['memory'], step['arithmetic']):.1f}", by,
            f"{1e3 * step['overlapped']:.2f}", f"{1e3 * step['exposed']:.2f}",
            f"{1e3 * step['step_s']:.1f}", f"{step['efficiency']:.1%}",
            f"{step['least_efficiency']:.1%}", f"{step['share_of_rating']:.0%}",
            f"{step['spots_s_chip']:,.4g}", f"{step['spots_s_chip'] * line['chips']:,.0f}",
        ])  # fmt: skip
    return samplers.markdown(head, cells)


def _name(line: dict[str, Any]) -> list[str]:
    return [line["topology"].replace("*", " x "), line["size"], line["program"]]
