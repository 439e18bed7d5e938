"""The result of a split of Stem as text, the published rows beside ours."""

from __future__ import annotations

from stemjax.eval import plain, tables
from stemjax.eval.bench import published, rows
from stemjax.eval.bench.stem import COLUMNS, DATASETS, DEPTH, Result

_WARNING = (
    "Published rows are Stem's paper's own: other embeddings, and panel and filtering of spots may "
    "differ from these. A difference to them is no result; a difference between the other rows is."
)


def table(result: Result) -> str:
    """The rows of one dataset, what kind of split it is, and what to know of the numbers."""
    known, split = DATASETS[result.dataset], result.split
    head = ["", "PCC-10", "PCC-50", f"PCC-{result.genes}", "MAE", "MSE", "RVD"]
    cells = []
    for name, scores in result.scores.items():
        label = f"{name} (knows test depth)" if name == DEPTH else name
        label += " (mean)" if name == rows.STEM else ""
        cells.append([label, *(_text(scores[c]) for c in COLUMNS)])
    for row in published.STEM[result.dataset]:
        cells.append([f"published: {row.method}", *(_text(getattr(row, c)) for c in COLUMNS)])
    lines = [
        f"{result.dataset}: trained on {len(split.train)} slides, tested on {split.test[0]} "
        f"({result.spots} spots), log2(count + 1), embeddings of {result.encoder}.",
        "",
        tables.markdown(head, cells),
        "",
        f"Split: {split.kind}. As published: {known.split}.",
        *(f"LEAK: {leak}. Every number is interpolation within a patient." for leak in split.leaks),
        f"Panel: {result.panel}.",
    ]
    if result.sees_test:
        lines.append("The test slide helped to choose the panel, as published: a flattered number.")
    if result.missing:
        lines.append(
            f"INCOMPLETE: {len(result.missing)} of {len(known.slides)} slides are missing "
            f"({', '.join(result.missing)}): these numbers are not the benchmark's."
        )
    lines += [f"Note: {note}." for note in result.notes]
    return "\n".join([*lines, _WARNING]) + "\n"


def _text(value: float | None) -> str:
    return tables.number(plain.plain(value), 4)
