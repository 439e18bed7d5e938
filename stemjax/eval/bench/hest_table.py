"""HEST-Benchmark's result in the leaderboard's form: a row a model, a column a task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stemjax.eval import plain, tables
from stemjax.eval.bench import published, rows
from stemjax.eval.bench.hest import Task

_CAVEATS = (
    "A task's genes were ranked on all its spots, test spots included.",
    "Pooling the spots of several test slides adds what differs between slides to r.",
    f'"{rows.PROBE}" is the published probe; a figure for an encoder is comparable only with the '
    "official leaderboard (UNI .3873 over 9 tasks), not with the scale on which UNI is .344.",
)


def table(tasks: Sequence[Task]) -> str:
    """The numbers of some tasks as text: pooled as on the leaderboard, by slide, splits and notes.

    Means and population standard deviations over folds; the average is over the tasks shown.
    """
    encoders = ", ".join(dict.fromkeys(task.encoder for task in tasks))
    lines = [
        f"HEST-Benchmark's protocol on embeddings of {encoders}: ln(1 + count), "
        "mean of Pearson's r over genes, then over folds (± std over folds).",
        "",
        "Pooled over the spots of all test slides, as on the leaderboard:",
        "",
        tables.markdown(_head(tasks), [*_cells(tasks, "pooled"), _uni(tasks)]),
        "",
        "Within each test slide, averaged over slides:",
        "",
        tables.markdown(_head(tasks), _cells(tasks, "by_slide")),
        "",
    ]
    for task in tasks:
        lines += _splits(task)
        lines += [f"{task.name}, {note}." for note in task.notes]
    return "\n".join([*lines, *_CAVEATS]) + "\n"


def _head(tasks: Sequence[Task]) -> list[str]:
    return ["", *(task.name for task in tasks), f"average of {len(tasks)}"]


def _cells(tasks: Sequence[Task], key: str) -> list[list[str]]:
    cells = []
    for row in tasks[0].scores:
        folds = [[getattr(score, key) for score in task.scores[row]] for task in tasks]
        cells.append([row])
        cells[-1] += [f"{_text(np.mean(f))} ± {_text(np.std(f))}" for f in folds]
        cells[-1].append(_text(np.mean([np.mean(f) for f in folds])))
    return cells


def _text(value: float | np.floating | None) -> str:
    """Four decimals as on the leaderboard; ``-`` where undefined."""
    return tables.number(plain.plain(value), 4)


def _uni(tasks: Sequence[Task]) -> list[str]:
    known = [published.HEST_UNI.get(task.name) for task in tasks]
    whole = [value for value in known if value is not None]
    average = float(np.mean(whole)) if len(whole) == len(known) else None
    return ["published: UNI, HEST probe", *map(_text, known), _text(average)]


def _splits(task: Task) -> list[str]:
    """What the folds are, kinds together, and a mark for every patient on both sides."""
    kinds: dict[str, list[str]] = {}
    for name, split in task.folds.items():
        kinds.setdefault(split.kind, []).append(name)
    told = "; ".join(
        f"fold{'s' * (len(names) > 1)} {', '.join(names)}: {kind}" for kind, names in kinds.items()
    )
    marks = [
        f"LEAK in {task.name}, fold {name}: {leak}. Its number is interpolation within a patient."
        for name, split in task.folds.items()
        for leak in split.leaks
    ]
    return [f"{task.name}: {task.spots} spots. {told}.", *marks]
