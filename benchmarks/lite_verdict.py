"""What the rows of benchmarks/lite.py say: averages, the target's three lines, the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import samplers

from stemjax.eval import metrics

RATIO, PCC_LOSS, ENERGY_LOSS = 50.0, 0.01, 0.02
SCORES = {
    "mean.pcc": "PCC, mean token", "mean.mse": "MSE, mean token", "draws.pcc": "PCC, 20 draws",
    "draws.crps": "CRPS", "draws.energy": "energy score",
}  # fmt: skip

type Row = Mapping[str, Sequence[float]]
"""Scores by name, each on all spots and then on each resample."""


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns each score averaged over seeds: value, interval over blocks, std over seeds."""
    found = {}
    for key in SCORES:
        each = np.array([row[key] for row in rows], np.float64)
        mean, firsts = each.mean(axis=0), each[:, 0]
        found[key] = {
            "value": float(mean[0]),
            "interval": metrics.interval(mean[1:]),
            "std_over_seeds": float(firsts.std(ddof=1)) if len(rows) > 1 else None,
        }
    return found


def compare(
    ours: Sequence[Row],
    token: Sequence[Row],
    ratio: float,
) -> dict[str, Any]:
    """Returns how an arm stands to the token network on the same blocks and seeds, and the verdict.

    Args:
      ours: rows of the arm, seed 0 first.
      token: rows of the token network; seeds that the arm has not are left out.
      ratio: FLOPs of the token network over those of the arm.
    """

    def averaged(rows: Sequence[Row], key: str) -> np.ndarray:
        return np.mean([row[key] for row in rows[: len(ours)]], axis=0)

    pcc = averaged(ours, "mean.pcc") - averaged(token, "mean.pcc")
    energy = averaged(ours, "draws.energy") / averaged(token, "draws.energy") - 1
    held = {
        "flops": (ratio >= RATIO, None),
        "pcc": _held(pcc, lambda apart: apart >= -PCC_LOSS),
        "energy": _held(energy, lambda apart: apart <= ENERGY_LOSS),
    }
    return {
        "flops_ratio": ratio,
        "pcc": {"value": float(pcc[0]), "interval": metrics.interval(pcc[1:])},
        "energy": {"value": float(energy[0]), "interval": metrics.interval(energy[1:])},
        "verdict": {name: _in_words(*found) for name, found in held.items()},
        "met": all(found[0] for found in held.values()),
    }


def _held(apart: np.ndarray, holds: Callable[[float], bool]) -> tuple[bool, bool | None]:
    """Whether a difference keeps its limit, and whether its whole interval says the same."""
    first, interval = bool(holds(apart[0])), metrics.interval(apart[1:])
    sure = interval is not None and all(bool(holds(end)) == first for end in interval)
    return first, sure


def _in_words(holds: bool, sure: bool | None) -> str:
    word = "met" if holds else "missed"
    return word if sure is None or sure else f"{word}, but the interval holds both"


def tables(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    parts = []
    for place in dict.fromkeys(line["place"] for line in result["lines"]):
        lines = [line for line in result["lines"] if line["place"] == place]
        parts += [f"**{_title(lines[0])}**", _quality(lines), _cost(lines), _target(lines)]
    if result["chosen"]:
        parts += [
            "**Choices on C3** (seed 0, energy score of 20 draws)",
            _choices(result["chosen"]),
        ]
    if result["scale"]:
        parts += ["**Visium HD**: this machine measured, H200 arithmetic (FLOPs over 40 % of 790 "
                  "TFLOP/s, nothing else counted)", _scale(result["scale"])]  # fmt: skip
    return "\n\n".join(parts)


def _title(line: Mapping[str, Any]) -> str:
    return (
        f"{line['place']}: {line['genes']} genes, {line['condition']} features, "
        f"{line['updates']:,} updates of {line['batch']} spots"
    )


def _quality(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for line in lines:
        cells = [line["arm"], str(line["seeds"])]
        for key in SCORES:
            score = line["scores"][key]
            low, high = score["interval"] or (float("nan"),) * 2
            cells.append(f"{score['value']:.3f} ({low:.3f} to {high:.3f})")
        rows.append(cells)
    return samplers.markdown(["arm", "seeds", *SCORES.values()], rows)


def _cost(lines: Sequence[Mapping[str, Any]]) -> str:
    first, rows = lines[0]["time"], []
    for line in lines:
        cells = [line["arm"], _mega(line["flops"]), _mega(line["embedding_flops"])]
        cells.append(f"1/{line['ratio']:.3g}")
        for way in ("mean", "draws"):
            time = line["time"][way]
            cells.append(f"{time['ms']:.3g} (1/{first[way]['ms'] / time['ms']:.3g})")
        temp = line["time"]["draws"]["temp_bytes"]
        cells.append("-" if temp is None else f"{temp / line['time']['draws']['spots'] / 1e6:.3g}")
        rows.append(cells)
    head = ["arm", "MFLOP an evaluation", "of these once a spot", "of the token network",
            "ms a spot, mean", "ms a spot, 20 draws", "MB a spot, 20 draws"]  # fmt: skip
    return samplers.markdown(head, rows)


def _target(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for line in lines:
        found = line["target"]
        if found is None:
            continue
        cells = [line["arm"], f"1/{found['flops_ratio']:.3g}: {found['verdict']['flops']}"]
        for key, form in (("pcc", "{:+.4f}"), ("energy", "{:+.2%}")):
            ends = [form.format(end) for end in found[key]["interval"] or ()]
            value = form.format(found[key]["value"])
            within = f" ({' to '.join(ends)})" if ends else ""
            cells.append(f"{value}{within}: {found['verdict'][key]}")
        rows.append([*cells, "met" if found["met"] else "missed"])
    head = ["arm", f"FLOPs at most 1/{RATIO:.0f}", f"PCC at most {PCC_LOSS} lower",
            f"energy score at most {ENERGY_LOSS:.0%} higher", "the three"]  # fmt: skip
    return samplers.markdown(head, rows)


def _choices(chosen: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [family, name, f"{energy:.4f}", "chosen" if name == found["chosen"] else ""]
        for family, found in chosen.items()
        for name, energy in found["energy"].items()
    ]
    return samplers.markdown(["family", "candidate", "energy score", ""], rows)


def _scale(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for line in lines:
        cells = [line["network"], line["mode"], _mega(line["flops_a_spot"]), f"{line['ms']:.3g}"]
        for found in line["bins"].values():
            cells += [f"{found['hours_here']:.3g}", f"{found['h200_s']:.3g}"]
        rows.append(cells)
    head = ["network", "mode", "MFLOP a bin", "ms a bin here"]
    for what, found in lines[0]["bins"].items():
        count = f"{found['bins']:,} {what}"
        head += [f"{count}: hours here", f"{count}: seconds of an H200 (arithmetic)"]
    return samplers.markdown(head, rows)


def _mega(flops: float) -> str:
    return f"{flops / 1e6:,.3g}" if flops < 1e9 else f"{flops / 1e6:,.0f}"
