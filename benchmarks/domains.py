"""Spatial domains of HER2ST sections: what a model's features add to counts, neighbours and place.

    uv run python benchmarks/domains.py --data ../shared/her2st --sections B1 C1 --json OUT
    uv run python benchmarks/domains.py --data ../shared/her2st  # all sections, half an hour

Each section has a model of its own, trained on all its spots and on no other section; every spot is
then predicted from the spots around it. k-means of its hidden features and of the predicted
profiles stands beside k-means of what was measured, in two value spaces, as it is and averaged over
neighbours, and of the positions alone. Scores are against the pathologist's regions, where a
section has them, and against the expression clusters that come with every section. The model sees
no image. The panel is Stem's rule over all sections in the folder.

Prints tables and writes JSON to benchmarks/results/; docs/domains.md quotes the full run.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import harness
import numpy as np
import samplers

from stemjax import config, tasks
from stemjax.data import genes, no_image, prepare, records
from stemjax.data.layouts import st, st_labels
from stemjax.eval import combine, domains, metrics, plain, predict, truth
from stemjax.train import loop

if TYPE_CHECKING:
    import anndata

CONFIG = "configs/histosge.py"
N_GENES = 300
RESAMPLES = combine.RESAMPLES
LABELS = {st_labels.PATHOLOGIST: "pathologist's regions", st_labels.CLUSTER: "expression clusters"}
IGNORED = ("undetermined",)
"""Labels that are no region."""
OURS = (predict.FEATURES, "X")
"""Rows of the model, which the others are compared with."""
type Values = Mapping[str, Mapping[str, np.ndarray]]


def prepare_records(
    data: pathlib.Path, sections: Sequence[str], out: pathlib.Path
) -> records.Records:
    """Returns records of some sections, without images, on the panel of all in the folder."""
    read = {name: st.read_slide(data, name, need_image=False) for name in st.list_slides(data)}
    panel = genes.select_panel(list(read.values()), n_genes=N_GENES)
    return prepare.prepare(
        read.__getitem__, sections, out, genes=panel, encoder=no_image.CONTRACT.name
    )


def predict_section(
    experiment: config.Experiment, source: records.Records, section: str
) -> anndata.AnnData:
    """Returns each spot predicted from the others, by a model of this section alone."""
    data = dataclasses.replace(
        experiment.data, train=section, recover="", test="", val="", manifest=""
    )
    with tempfile.TemporaryDirectory() as workdir:
        alone = dataclasses.replace(experiment, data=data)
        trained = loop.train_shown(alone, source, workdir, None)
    mean = tasks.Sampling(mode="mean")
    return predict.predict_slide(trained, source, section, mean, seed=experiment.seed)


def measure(
    experiment: config.Experiment, source: records.Records, section: str
) -> list[dict[str, Any]]:
    """Returns a line for each kind of labels that the section has: scores with intervals."""
    data = predict_section(experiment, source, section)
    measured = truth.of_records(source).load(section)
    lines = []
    for label in LABELS:
        if label not in data.obs:
            continue
        found = domains.compare_domains(
            data,
            label,
            use=OURS[0],
            beside=OURS[1:],
            ignore=[name for name in IGNORED if name in set(data.obs[label])],
            truth=measured,
            seed=experiment.seed,
            resamples=RESAMPLES,
            name=section,
        )
        line = {"label": label, "section": section, "patient": measured.patient}
        line["resamples"] = RESAMPLES
        line |= {name: found[name] for name in ("spots", "classes", "left_out")}
        line["rows"] = {row["name"]: _scores(row) for row in found["rows"]}
        lines.append(plain.plain(line))
    return lines


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's score and interval by key, beside what was clustered and into how many domains."""
    scores = {key: [v["value"], *(v["interval"] or ())] for key, v in row["scores"].items()}
    return {"use": row["use"], "k": row["k"], **scores}


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns means over sections, the model's rows less each other row, and what is resampled.

    Intervals are of patients, or of sections where patients are unknown; none of fewer than
    `combine.ENOUGH`.
    """
    patients = [line["patient"] for line in lines]
    unit = combine.choose_unit(patients, [1] * len(lines), resamples=RESAMPLES, seed=0)
    names = list(lines[0]["rows"])
    values = {
        name: {
            key: combine.combine([np.array(line["rows"][name][key][:1]) for line in lines], unit)
            for key in domains.SCORES
        }
        for name in names
    }
    ours = [name for name in names if lines[0]["rows"][name]["use"] in OURS]
    return {
        "unit": unit.sentence if unit.count else "No intervals: too few sections.",
        "rows": {
            name: {key: _with_interval(of) for key, of in scores.items()}
            for name, scores in values.items()
        },
        "differences": {
            name: {other: _less(values, name, other, lines) for other in names if other not in ours}
            for name in ours
        },
    }


def _less(
    values: Values, name: str, other: str, lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A row less another on the same resamples, and in how many sections its ARI is higher."""
    found: dict[str, Any] = {}
    for key in domains.SCORES:
        less = domains.difference(values[name][key], values[other][key])
        bounds: Any = less["interval"] or ()
        found[key] = {"value": [less["difference"], *bounds], "verdict": less["verdict"]}
    pairs = [(line["rows"][name]["ari"][0], line["rows"][other]["ari"][0]) for line in lines]
    return found | {"higher": sum(a > b for a, b in pairs)}


def _with_interval(values: np.ndarray) -> list[float]:
    return [float(values[0]), *(metrics.interval(values[1:], level=combine.LEVEL) or ())]


def _cell(value: Sequence[float], *, digits: int = 3, sign: bool = False) -> str:
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    text, *bounds = map(form.format, value)
    return f"{text} [{', '.join(bounds)}]" if bounds else text


def label_markdown(
    label: str, lines: Sequence[Mapping[str, Any]], summed: Mapping[str, Any]
) -> str:
    """Returns the tables of one kind of labels: means, differences, ARI of each section."""
    n, titles = len(lines), [title for title, _ in domains.SCORES.values()]
    patients = len({line["patient"] for line in lines})
    head = ["", *(f"{title} [95 %]" for title in titles)]
    rows = [[name, *map(_cell, scores.values())] for name, scores in summed["rows"].items()]
    parts = [
        f"**{LABELS[label].capitalize()}**, mean of {n} section{'s' * (n > 1)} of {patients} "
        f"patient{'s' * (patients > 1)}. {summed['unit']}",
        samplers.markdown(head, rows),
    ]
    for name, others in summed["differences"].items():
        head = [f"{name} less", *(f"{title} [95 %]" for title in titles), "ARI higher in"]
        rows = []
        for other, less in others.items():
            cells = []
            for key in domains.SCORES:
                verdict = less[key]["verdict"]
                said = f" {verdict}" * (verdict in ("better", "worse"))
                cells.append(_cell(less[key]["value"], sign=True) + said)
            rows.append([other, *cells, f"{less['higher']} of {n}"])
        parts.append(samplers.markdown(head, rows))
    head = ["ARI", "spots", "classes", *lines[0]["rows"]]
    rows = [
        [line["section"], str(line["spots"]), str(len(line["classes"]))]
        + [_cell(row["ari"], digits=2) for row in line["rows"].values()]
        for line in lines
    ]
    # Results from before they told it had the usual number.
    made = lines[0].get("resamples", combine.RESAMPLES)
    blocks = f"{made} resamples of blocks of spots within the section"
    return "\n\n".join([*parts, f"Each section; 95 % intervals: {blocks}.",
                        samplers.markdown(head, rows)])  # fmt: skip


def tables(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    about = f"Panel: {result['panel']}. k-means with as many domains as a section has labels."
    parts = []
    for label, summed in result["summary"].items():
        lines = [line for line in result["lines"] if line["label"] == label]
        parts.append(label_markdown(label, lines, summed))
    return "\n\n".join([about, *parts])


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, clusters, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, help="folder with ST-cnts")
    parser.add_argument(
        "--records",
        type=pathlib.Path,
        help="records to reuse; with --data, where those that are missing are written",
    )
    parser.add_argument("--sections", nargs="+", metavar="ID", help="default: all")
    parser.add_argument(
        "--config",
        default=str(harness.ROOT / CONFIG),
        metavar="FILE",
        help=f"experiment, with --config.KEY=VALUE as in stemjax train; default {CONFIG}",
    )
    parser.add_argument("--json", type=pathlib.Path, help="default: in benchmarks/results")
    args, experiment = harness.parse(parser, argv)
    if not (args.data or args.records):
        parser.error("give --data, --records, or both")
    if experiment.model.kind != "histosge":
        parser.error(f"a model with hidden features is needed: {CONFIG}")
    about = harness.surroundings()
    with tempfile.TemporaryDirectory() as folder:
        if args.data:
            known = st.list_slides(args.data)
        else:
            known = sorted(records.open_records(args.records).slides)
        sections = args.sections or known
        if unknown := sorted(set(sections) - set(known)):
            parser.error(f"no section {', '.join(unknown)}; there are {', '.join(known)}")
        if args.data:
            source = prepare_records(args.data, sections, args.records or pathlib.Path(folder))
        else:
            source = records.open_records(args.records)
        lines: list[dict[str, Any]] = []
        for section in sections:
            lines += measure(experiment, source, section)
            print(section, flush=True)
    by_label = {label: [line for line in lines if line["label"] == label] for label in LABELS}
    found = harness.result(
        "domains",
        about,
        experiment,
        lines,
        panel=source.panel.rule,
        summary={label: summary(of) for label, of in by_label.items() if of},
    )
    path = args.json or harness.RESULTS / "domains.json"
    harness.save(path, found)
    print(tables(found))
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
