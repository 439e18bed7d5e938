"""Floors and ceilings of HER2ST sections from their counts alone, beside those measured before.

    uv run python benchmarks/her2st_floors.py --data ../shared/her2st --section B1 --json OUT
    uv run python benchmarks/her2st_floors.py --data ../shared/her2st --section B1 --all

A section's table has the constant means, the lookups by coordinates in the patient's other
sections, the oracle of depth, the section's own neighbours and the noise ceiling, in log2(c + 1).
``--all`` adds one line for every section, in both value spaces. The panel is Stem's rule over all
sections in the folder. No image and no embedding is read.

Each value stands beside the one measured before on 36 sections by other code (`PUBLISHED`,
`PUBLISHED_MEAN`); with fewer sections at hand the panel and the training spots differ a little.
Prints the tables and writes JSON; docs/floors.md quotes the full run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import harness
import numpy as np
import samplers

from stemjax.data import genes as gene_panels
from stemjax.data import transforms
from stemjax.data.layouts import st
from stemjax.eval import baselines, metrics

N_GENES = 300
COLUMNS = {
    "pcc_10": "PCC-10",
    "pcc_50": "PCC-50",
    "pcc_all": "PCC-all",
    "mse": "MSE",
    "mae": "MAE",
    "rvd": "RVD",
}
SPACES = {"log2p1": "log2(count + 1)", "log1p_cp10k": "log1p(counts per 10,000)"}
# Section B1 with the panel of 36 sections; columns as above, None where there is no value.
PUBLISHED: dict[str, dict[str, tuple[float | None, ...]]] = {
    "B1": {
        "constant mean, patient's other sections": (0.0, 0.0, 0.0, 1.5583, 0.9786, 1.0),
        "constant mean, patient removed": (0.0, 0.0, 0.0, 2.0225, 1.2048, 1.0),
        "coordinates, 1-NN in next section": (0.7610, 0.7243, 0.5899, 1.3053, 0.7724, 0.0361),
        "coordinates, 10-NN in next section": (0.8103, 0.7734, 0.6625, 1.0069, 0.7287, 0.1540),
        "coordinates, 40-NN in all other sections": (
            0.8028, 0.7640, 0.6424, 0.8574, 0.7283, 0.2954),
        "depth oracle": (0.9012, 0.8617, 0.7326, 0.9311, 0.7334, 3.0224),
        "own 4 neighbours": (0.8887, 0.8568, 0.7305, 0.5956, 0.5700, 0.1006),
        "noise ceiling": (0.9719, 0.9562, 0.8750, None, None, None),
        "Poisson resample": (None, None, None, 0.236, None, None),
    }
}  # fmt: skip
# PCC-all: coordinates (20 nearest in the patient's other sections), depth, ceiling.
PUBLISHED_MEAN: dict[str, dict[str, tuple[float, ...]]] = {
    "log2p1": {
        "mean of 36": (0.359, 0.582, 0.758),
        "B1": (0.634, 0.737, 0.875),
        "G2": (0.277, 0.527, 0.724),
    },
    "log1p_cp10k": {
        "mean of 36": (0.158, 0.227, 0.544),
        "B1": (0.172, 0.351, 0.601),
        "G2": (0.134, 0.183, 0.533),
    },
}
PUBLISHED_COLUMNS = ("coordinates", "depth", "ceiling")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spots:
    """Spots of some sections: panel counts, totals, what was measured, array coordinates."""

    counts: np.ndarray
    total: np.ndarray
    mask: np.ndarray
    xy: np.ndarray

    def values(self, space: str) -> np.ndarray:
        """The counts in a value space, [l g] float64."""
        forward = transforms.get_transform(space).forward
        return np.asarray(forward(self.counts, self.total), np.float64)


class Sections:
    """All sections of a folder on one panel."""

    def __init__(self, folder: pathlib.Path) -> None:
        names = st.list_slides(folder)
        read = {name: st.read_slide(folder, name, need_image=False) for name in names}
        self.panel = gene_panels.select_panel(list(read.values()), n_genes=N_GENES)
        self.patients = {name: slide.patient for name, slide in read.items()}
        self._spots = {}
        for name, slide in read.items():
            counts, measured = gene_panels.panel_counts(slide, self.panel.genes)
            self._spots[name] = Spots(
                counts=counts,
                total=np.asarray(slide.counts.sum(axis=1)).ravel(),
                mask=np.broadcast_to(measured, counts.shape),
                xy=slide.array_xy,
            )

    @property
    def names(self) -> list[str]:
        """All sections, sorted."""
        return list(self._spots)

    def of(self, names: Sequence[str]) -> Spots:
        """The spots of some sections, one after another."""
        parts = [self._spots[name] for name in names]
        return Spots(
            **{
                field.name: np.concatenate([getattr(part, field.name) for part in parts])
                for field in dataclasses.fields(Spots)
            }
        )

    def others(self, section: str) -> list[str]:
        """The other sections of the same patient."""
        patient = self.patients[section]
        return [n for n in self.names if n != section and self.patients[n] == patient]

    def next_to(self, section: str) -> str:
        """The patient's section nearest in number, the following one rather than the one before."""

        def number(name: str) -> int:
            return int((re.search(r"\d+$", name) or ["0"])[0])

        here = number(section)
        return min(self.others(section), key=lambda n: (abs(number(n) - here), -number(n)))


def lookup(train: Spots, test: Spots, space: str, k: int) -> np.ndarray:
    """Returns the mean of the k nearest spots by array coordinates, NaN where none measured."""
    y = train.values(space)
    pred = baselines.coordinates_knn(train.xy, y, train.mask, test.xy, k=k)
    assert pred is not None
    return pred


def scored(pred: np.ndarray, true: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """Returns the columns of a prediction, and its RVD without the gene that weighs most in it."""
    # A gene that no training spot measured has no prediction and takes no part.
    mask = (np.asarray(mask) != 0) & ~np.isnan(pred)
    pcc = metrics.pcc_per_gene(pred, true, mask)
    line = {
        "pcc_10": metrics.pcc_top(pcc, 10),
        "pcc_50": metrics.pcc_top(pcc, 50),
        "pcc_all": metrics.pcc_top(pcc),
        "mse": metrics.mse(pred, true, mask),
        "mae": metrics.mae(pred, true, mask),
        "rvd": metrics.rvd(pred, true, mask),
    }
    each = [metrics.rvd(pred[:, [g]], true[:, [g]], mask[:, [g]]) for g in range(true.shape[1])]
    worst = int(np.nanargmax(each))
    kept = np.delete(np.arange(true.shape[1]), worst)
    rest = metrics.rvd(pred[:, kept], true[:, kept], mask[:, kept])
    return line | {"rvd_worst_gene": worst, "rvd_without_it": rest}


def section_table(sections: Sections, section: str, space: str = "log2p1") -> list[dict[str, Any]]:
    """Returns the lines of one section, the published value beside each column where known."""
    test, next_to = sections.of([section]), sections.next_to(section)
    true, mask = test.values(space), test.mask
    same = sections.of(sections.others(section))
    nearest = sections.of([next_to])
    patient = sections.patients[section]
    foreign = sections.of([n for n in sections.names if sections.patients[n] != patient])
    rest = sections.of([n for n in sections.names if n != section])
    n = len(true)

    def constant(train: Spots) -> np.ndarray:
        return baselines.constant_mean(train.values(space), train.mask, spots=n)

    depth = baselines.depth_oracle(rest.values(space), rest.mask, rest.total, test.total)
    lines: dict[str, dict[str, Any]] = {
        "constant mean, patient's other sections": scored(constant(same), true, mask),
        "constant mean, patient removed": scored(constant(foreign), true, mask),
    }
    for k, where, train in (
        (1, "next section", nearest),
        (10, "next section", nearest),
        (40, "all other sections", same),
    ):
        name = f"coordinates, {k}-NN in {where}"
        lines[name] = scored(lookup(train, test, space, k), true, mask)
    lines["depth oracle"] = scored(depth, true, mask)
    own = baselines.neighbour_mean(true, mask, test.xy)
    lines["own 4 neighbours"] = scored(own, true, mask)
    ceiling = baselines.noise_ceiling(test.counts, test.total, mask, value_space=space)
    tops = {"pcc_10": 10, "pcc_50": 50, "pcc_all": None}
    lines["noise ceiling"] = {c: metrics.pcc_top(ceiling.pcc, k) for c, k in tops.items()}
    lines["Poisson resample"] = {"mse": ceiling.mse}
    published = PUBLISHED.get(section, {}) if space == "log2p1" else {}
    out = []
    for name, line in lines.items():
        if "rvd_worst_gene" in line:
            line["rvd_worst_gene"] = sections.panel.genes[line["rvd_worst_gene"]]
        known = dict(zip(COLUMNS, published.get(name, [None] * len(COLUMNS)), strict=True))
        out.append({"row": name, **line, "published": known})
    return out


def all_sections(sections: Sections, space: str) -> list[dict[str, Any]]:
    """Returns one line a section: PCC-all of the floors and the ceiling, MSE of a resample."""
    lines = []
    for name in sections.names:
        test, rest = sections.of([name]), sections.of([n for n in sections.names if n != name])
        true, mask = test.values(space), test.mask
        same = sections.of(sections.others(name))
        depth = baselines.depth_oracle(rest.values(space), rest.mask, rest.total, test.total)
        ceiling = baselines.noise_ceiling(test.counts, test.total, mask, value_space=space)
        found = {
            "coordinates": lookup(same, test, space, 20),
            "depth": depth,
            "neighbours": baselines.neighbour_mean(true, mask, test.xy),
        }
        line: dict[str, Any] = {"section": name, "spots": len(true)}
        for column, pred in found.items():
            line[column] = scored(pred, true, mask)["pcc_all"]
        line["ceiling"] = metrics.pcc_top(ceiling.pcc)
        line["poisson_mse"] = ceiling.mse
        lines.append(line)
    return lines


def differences(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns ours less the published value of every column that has one."""
    return {
        column: line[column] - value
        for column, value in line["published"].items()
        if value is not None
    }


def _cell(line: Mapping[str, Any], column: str) -> str:
    if line.get(column) is None:
        return "-"
    known = line["published"][column]
    return f"{line[column]:.3f}" + ("" if known is None else f" ({known:.3f})")


def section_markdown(section: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns a section's table: ours, the published value in brackets, the largest difference."""
    rows, notes = [], []
    for line in lines:
        apart = differences(line)
        worst = max(apart, key=lambda c: abs(apart[c]), default=None)
        said = f"{apart[worst]:+.3f} ({COLUMNS[worst]})" if worst else "-"
        rows.append([line["row"], *(_cell(line, c) for c in COLUMNS), said])
        if abs(apart.get("rvd", 0.0)) > 0.03:
            notes.append(
                f"RVD of {line['row']}: {line['rvd']:.3f}, of which one gene "
                f"({line['rvd_worst_gene']}) is the most; {line['rvd_without_it']:.3f} without it."
            )
    head = ["row", *COLUMNS.values(), "largest difference"]
    parts = [f"**{section}**, {SPACES['log2p1']}", samplers.markdown(head, rows), *notes]
    return "\n\n".join(parts)


def all_markdown(space: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of all sections of a value space, with means and the published ones."""
    columns = ("coordinates", "depth", "neighbours", "ceiling", "poisson_mse")
    rows = [
        [line["section"], str(line["spots"]), *(f"{line[c]:.3f}" for c in columns)]
        for line in lines
    ]
    values = np.array([[line[c] for c in columns] for line in lines])
    total = sum(line["spots"] for line in lines)
    pairs = zip(values.mean(axis=0), values.std(axis=0, ddof=1), strict=True)
    spread = [f"{mean:.3f} ± {std:.3f}" for mean, std in pairs]
    rows.append([f"**mean of {len(lines)}**", str(total), *spread])
    for name, known in PUBLISHED_MEAN[space].items():
        given = dict(zip(PUBLISHED_COLUMNS, known, strict=True))
        cells = [f"{given[c]:.3f}" if c in given else "-" for c in columns]
        rows.append([f"{name}, measured before", "-", *cells])
    head = ["section", "spots", "coordinates 20-NN", "depth oracle", "own 4 neighbours",
            "ceiling", "Poisson MSE"]  # fmt: skip
    title = f"**All sections**, {SPACES[space]}, PCC of all genes (last column MSE)"
    return f"{title}\n\n{samplers.markdown(head, rows)}"


def tables(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    parts = [f"Panel: {result['panel']} ({result['slides']} sections)."]
    parts += [section_markdown(name, lines) for name, lines in result["sections"].items()]
    parts += [all_markdown(space, lines) for space, lines in result["all"].items()]
    return "\n\n".join(parts)


def main() -> None:
    """Reads, measures, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder with ST-cnts")
    parser.add_argument("--section", action="append", default=[], help="may be given again")
    parser.add_argument("--all", action="store_true", help="one line for every section")
    parser.add_argument("--json", type=pathlib.Path, help="default: in benchmarks/results")
    args = parser.parse_args()
    if not (args.section or args.all):
        parser.error("give --section, --all, or both")
    sections = Sections(args.data)
    if unknown := sorted(set(args.section) - set(sections.names)):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(sections.names)}")
    result = {
        **harness.surroundings(),
        "benchmark": "her2st_floors",
        "slides": len(sections.names),
        "panel": sections.panel.rule,
        "sections": {name: section_table(sections, name) for name in args.section},
        "all": {space: all_sections(sections, space) for space in SPACES if args.all},
    }
    path = args.json or samplers.RESULTS / "her2st_floors.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(tables(result))
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
