"""The one table: the published protocol, our draws, our pair, our mean; cost and quality beside it.

    uv run python benchmarks/pages.py       # writes it into README.md and docs/

Nothing is measured here. Times are those of benchmarks/peers/ab.py at the published size, quality
is that of benchmarks/frontier.py on HER2ST, by networks of a size that two cores can train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import frontier
import samplers
from fewstep import tuning

WAYS = (
    ("published protocol", "published", ("ddpm", "ancestral 1000")),
    ("20 draws", "draws", ("edm", frontier.DEFAULT)),
    ("pair", "pair", ("edm", f"pair, {frontier.DEFAULT}")),
    ("mean", "mean", ("edm", "mean token")),
)
"""A row's name, its job in the peers' result, its model and way in the frontier's."""
SCORES = {"pcc": "PCC", "mse": "MSE", "rvd": "RVD", "crps": "CRPS", "energy": "energy score"}
_WITH_INTERVAL = ("pcc", "mse", "energy")


def tables(peers: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Returns the table and the differences behind it as Markdown, or which row there is not yet.

    Args:
      peers: the result of benchmarks/peers/ab.py.
      found: the result of benchmarks/frontier.py, with HER2ST.
    """
    lines = [line for line in found["lines"] if line["place"] == "her2st"]
    there = {(line["model"], line["way"]) for line in lines}
    missing = [name for name, _, key in WAYS if key not in there]
    if missing:
        return f"Not measured yet: {', '.join(missing)} on HER2ST."
    head = ["way", "evaluations a spot", "s a spot", "times faster", *SCORES.values()]
    cells = [_cells(name, job, key, peers, lines) for name, job, key in WAYS]
    compared = [
        f"- Energy score of the 20 draws less that of {' '.join(line['rival'])}: "
        f"{line['difference']:+.4f} [{line['interval'][0]:+.4f}, {line['interval'][1]:+.4f}], "
        f"{line['verdict']}, {_seeds(line['seeds'])}."
        for line in found["defaults"]
        if line["place"] == "her2st"
    ]
    return "\n".join([samplers.markdown(head, cells), "", *compared, _mean(lines)])


def _cells(
    name: str, job: str, key: tuple[str, str], peers: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
) -> list[str]:  # fmt: skip
    side = "torch" if job == "published" else "ours"
    times = [line for line in peers["lines"] if (line["job"], line["side"]) == (job, side)]
    fastest = min(times, key=lambda line: line["seconds_per_spot"])
    against = {line["job"]: line for line in peers["ratios"] if line["section"] == "default"}
    faster = "1"
    if job in against:
        faster = f"{against[job]['ratio']:,.0f}"
    rows = [line for line in lines if (line["model"], line["way"]) == key]
    cells = [name, f"{rows[0]['evaluations']:,}"]
    cells += [f"{_short(fastest['seconds_per_spot'])}", faster]
    for score in SCORES:
        each = [line["scores"][score] for line in rows if score in line["scores"]]
        cell = f"{tuning.spread([s['value'] for s in each])[0]:.3f}" if each else ""
        if score in _WITH_INTERVAL and each and all(s["interval"] for s in each):
            low, high = (tuning.spread([s["interval"][i] for s in each])[0] for i in (0, 1))
            cell += f" [{low:.3f}, {high:.3f}]"
        cells.append(cell)
    return cells


def _mean(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns what the mean's error is beside that of the draws' average."""
    mse = {
        (line["way"], line["seed"]): line["scores"]["mse"]["value"]
        for line in lines
        if line["model"] == "edm"
    }
    seeds = sorted(seed for way, seed in mse if way == "mean token")
    ratios = [mse["mean token", seed] / mse[frontier.DEFAULT, seed] for seed in seeds]
    mean, sd = tuning.spread(ratios)
    return (
        f"- MSE of the mean in one evaluation over that of 20 draws averaged: {mean:.3f} ± "
        f"{sd:.3f}, {_seeds(len(seeds))}."
    )


def _short(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _seeds(count: int) -> str:
    return "one network" if count == 1 else f"{count} networks"
