"""The recovery benchmark's result as Markdown: a line a section, and sections in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import samplers

SEEN = ("positions", "image")
"""What a model may see of a section, in the order of the tables."""


def row_of(found: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Returns a section's row by its name without how it was predicted, or None."""
    return next((row for row in found["rows"] if row["name"].split(":")[0] == name), None)


def better(sections: Mapping[str, Any], sees: str, rival: str) -> dict[str, int]:
    """Returns on how many sections the first row is better than a rival, and clearly so."""
    count = {"of": 0, "pcc_all": 0, "mse": 0, "pcc_all_clear": 0, "mse_clear": 0}
    for found in sections.values():
        row = row_of(found[sees], rival) if sees in found else None
        if row is None:
            continue
        count["of"] += 1
        for key, sign in (("pcc_all", 1), ("mse", -1)):
            less = row["less"][key]
            count[key] += sign * less["difference"] > 0
            count[f"{key}_clear"] += less["verdict"] == "better"
    return count


def _cell(score: Mapping[str, Any] | None, digits: int = 3) -> str:
    if score is None or score.get("value") is None:
        return ""
    text, bounds = f"{score['value']:.{digits}f}", score.get("interval")
    return f"{text} [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]" if bounds else text


def section_markdown(section: str, sees: str, found: Mapping[str, Any]) -> str:
    """Returns one section's rows."""
    first = found["rows"][0]
    rows = []
    for row in found["rows"]:
        if row["source"] == "single draw":
            continue
        star, scores = " *" if row["sees_test"] else "", row["scores"]
        name = "**HisToSGE**" if row is first else row["name"]
        rows.append([
            name + star, _cell(scores.get("pcc_all")), _cell(scores.get("mse")),
            _cell({"value": scores["crps"]["value"]}) if "crps" in scores else "",
            _cell({"value": scores["coverage_90"]["value"]}) if "coverage_90" in scores else "",
            row["less"]["mse"]["verdict"] if row["less"] else "",
        ])  # fmt: skip
    head = ["row", "PCC-all [95 %]", "MSE [95 %]", "CRPS", "coverage 90 %", "HisToSGE's MSE is"]
    title = f"**{section}, from {sees if sees == 'positions' else 'image and positions'}**, "
    title += f"{found['hidden']} hidden spots"
    return f"{title}\n\n{samplers.markdown(head, rows)}"


def summary_markdown(sections: Mapping[str, Any], sees: str, hide: str) -> str:
    """Returns one line a section: the first row beside the floor and kriging."""
    shown = ("nearest measured mean", "kriging", "component kriging", "ridge",
             "ridge + neighbours", "HisToSGE, published", "Stem", "Stem with neighbours",
             "HisToSGE, other sections too")  # fmt: skip
    shown = tuple(
        n for n in shown if any(row_of(f[sees], n) for f in sections.values() if sees in f)
    )
    rows, means = [], []
    for section, found in sections.items():
        if sees not in found:
            continue
        here = found[sees]
        ours = here["rows"][0]["scores"]
        others = [row_of(here, name) for name in shown]
        cells = [ours, *(None if row is None else row["scores"] for row in others)]
        means.append([[c[k]["value"] if c else np.nan for k in ("pcc_all", "mse")] for c in cells])
        rows.append([section, *(_pair(c) for c in cells)])
    if not rows:
        return ""
    values = np.array(means)
    # A model that few sections have has no mean beside those of all.
    whole = ~np.isnan(values).any(axis=(0, 2))
    average = [
        f"{a[0]:.3f} / {a[1]:.3f}" if k else ""
        for k, a in zip(whole, values.mean(axis=0), strict=True)
    ]
    rows.append([f"**mean of {len(rows)}**", *average])
    seen = "positions" if sees == "positions" else "image and positions"
    hidden = "half of the spots hidden" if hide == "spots" else "half hidden, in whole blocks"
    title = f"**From {seen}**, {hidden}; PCC-all / MSE of the hidden spots"
    lines = [title, samplers.markdown(["section", "HisToSGE", *shown], rows)]
    for rival in (*shown, "HisToSGE, positions alone"):
        count = better(sections, sees, rival)
        if count["of"]:
            lines.append(
                f"- Against {rival}: better PCC on {count['pcc_all']} of {count['of']} sections "
                f"(clearly, by the interval, on {count['pcc_all_clear']}), better MSE on "
                f"{count['mse']} ({count['mse_clear']})."
            )
    return "\n\n".join([*lines[:2], "\n".join(lines[2:])])


def _pair(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return ""
    return f"{scores['pcc_all']['value']:.3f} / {scores['mse']['value']:.3f}"


def claim_markdown(claims: Mapping[str, Any]) -> str:
    """Returns the published configuration's own numbers."""
    rows = [
        [key, _pair(found["floor"]), _pair(found["hidden"]),
         f"{found['all_spots']['pcc']:.3f} / {found['all_spots']['mse']:.3f}"]
        for key, found in claims.items()
    ]  # fmt: skip
    head = ["section", "nearest measured mean", "published, hidden spots",
            "published, all spots (the published score)"]  # fmt: skip
    title = "**The published configuration** in ln(1 + counts per 10,000), PCC-all / MSE"
    return f"{title}\n\n{samplers.markdown(head, rows)}"


def tables(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    parts = [f"Panel: {result['panel']}."]
    for hide, sections in result["sections"].items():
        for sees in SEEN:
            text = summary_markdown(sections, sees, hide)
            parts += [text] if text else []
    shown = result["sections"].get("spots", {})
    for section in result["in_full"]:
        found = shown.get(section, {})
        parts += [section_markdown(section, sees, found[sees]) for sees in found if sees in SEEN]
    if result["published"]:
        parts.append(claim_markdown(result["published"]))
    if result["leave_one_out"]:
        said = ", ".join(
            f"{name} {found['pcc_all']:.4f} / {found['mse']:.4f}"
            for name, found in result["leave_one_out"].items()
        )
        parts.append(f"Each spot from its four nearest others, nothing hidden: {said}.")
    return "\n\n".join(parts)
