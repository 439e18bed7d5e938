"""HEST-Benchmark's protocol on its own files, for its probe, its floors and our model.

Target ln(1 + count) of the task's 50 genes, without regard to depth. A fold's number is Pearson's r
of each gene over the spots of all test slides together, averaged over genes; a task's the mean over
folds (± their population standard deviation), the leaderboard's the mean over tasks. Beside it
stands r within each test slide, averaged over slides: pooling adds what differs between slides.
Source: Jaume et al., NeurIPS 2024 (arXiv 2406.16192), and the HEST library's ``hest/bench``.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from stemjax import config, errors
from stemjax.data import (
    builder,
    genes,
    hest_bench,
    hest_folds,
    integrity,
    slides,
    splits,
    transforms,
)
from stemjax.data import embeddings as embeddings_lib
from stemjax.data import folds as folds_lib
from stemjax.data import records as records_lib
from stemjax.eval import metrics
from stemjax.eval.bench import rows, trained

TRANSFORM = "log1p"

type Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One row's numbers on one fold.

    Attributes:
      pooled: r over all test spots, mean over genes: the leaderboard's number.
      by_slide: r within each test slide, mean over genes, then over slides; NaN where every gene is
        constant within every slide.
    """

    pooled: float
    by_slide: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One task's result.

    Attributes:
      name: of its folder, such as ``IDC``.
      encoder: whose embeddings they were.
      spots: embedded spots of all slides.
      folds: slides of each fold by role.
      scores: of each row, fold by fold.
      notes: what to know of the numbers.
    """

    name: str
    encoder: str
    spots: int
    folds: Mapping[str, splits.Split]
    scores: Mapping[str, tuple[Score, ...]]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to run a task.

    Attributes:
      embeddings: folder of ``<id>.h5``, in which ``{task}`` stands for the task; None embeds the
        patches with our own encoder ``texture``.
      models: keys of `rows.MODELS`.
      experiment: what ``stem`` trains; transform and split are the task's.
      workdir: folder for the records and runs of ``stem``.
      metadata: HEST's table, for the patients; None leaves them unknown.
      workers: processes that embed patches.
      line: makes a writer that shows a training run.
      progress: called with (done, total, what).
    """

    embeddings: str | None = None
    models: Sequence[str] = ("ridge", "probe")
    experiment: config.Experiment | None = None
    workdir: pathlib.Path = pathlib.Path("stemjax_bench")
    metadata: pathlib.Path | None = None
    workers: int = 1
    line: trained.Line | None = None
    progress: Progress | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Sample:
    """One slide's spots: embeddings, and ln(1 + count) of the task's genes."""

    barcodes: tuple[str, ...]
    coords: np.ndarray
    x: np.ndarray
    y: np.ndarray


def run_task(folder: str | pathlib.Path, options: Options) -> Task:
    """The protocol on one task's folder.

    Raises:
      SplitError: folds that are not whole, or a slide on both sides of one.
      GenePanelError: no gene list, or a slide lacks one of its genes.
      SlideError: a slide's counts are missing, no raw counts, or lack an embedded barcode.
      ImageError, EncoderMismatchError: patches or embeddings that cannot be used.
    """
    folder = pathlib.Path(folder)
    task = hest_folds.read_hest_folds(folder, metadata=options.metadata)
    panel = genes.read_gene_list(folder / "var_50genes.json")
    patients = {s: p for split in task.folds.values() for s, p in split.patients.items()}
    base, samples, contract = None, {}, None
    for done, slide in enumerate(task.slides):
        if options.progress:
            options.progress(done, len(task.slides), f"{folder.name}: reading {slide}")
        found = _embedded(folder.name, slide, task.patches[slide], options)
        if contract is not None:
            found.contract.require_same(contract, where=f"{slide} and the slides before it")
        contract = found.contract
        counted = hest_bench.read_expression(task.expression[slide])
        at, columns = counted.rows(found.barcodes), counted.columns(panel.genes)
        counts = counted.counts[at]
        samples[slide] = _Sample(
            barcodes=found.barcodes,
            coords=found.coords,
            # A copy where there are further variants, which are not kept.
            x=np.ascontiguousarray(found.embeddings[:, 0]),
            y=_values(counts[:, columns].toarray()),
        )
        if "stem" in options.models:
            base = options.workdir / "hest" / folder.name / contract.name
            whole = dataclasses.replace(counted, counts=counts, barcodes=found.barcodes)
            _write_records(base / "records", slide, patients[slide], whole, found, panel)
    assert contract is not None  # a task has slides
    scores: dict[str, list[Score]] = {}
    notes = []
    for name, split in task.folds.items():
        preds, told = _predict(samples, split, options.models)
        if base is not None:
            preds[rows.STEM] = _stem(base, task.folds, name, samples, panel, options)
        notes += [f"fold {name}: {note}" for note in told + _constant(samples, split, name)]
        for row, pred in preds.items():
            scores.setdefault(row, []).append(_score(pred, samples, split))
    return Task(
        name=folder.name,
        encoder=contract.name,
        spots=sum(len(sample.barcodes) for sample in samples.values()),
        folds=task.folds,
        scores={row: tuple(found) for row, found in scores.items()},
        notes=tuple(notes),
    )


def _values(counts: np.ndarray) -> Float[np.ndarray, "l g"]:
    none = np.zeros(len(counts))  # ln(1 + count) does not look at the total
    return transforms.get_transform(TRANSFORM).forward(counts, none).astype(np.float64)


def _embedded(
    task: str, slide: str, patches: pathlib.Path, options: Options
) -> hest_bench.Embedded:
    if options.embeddings is None:
        encoder = embeddings_lib.get_encoder("texture")
        return hest_bench.embed_patches(
            patches, encoder, workers=options.workers, progress=options.progress
        )
    folder = pathlib.Path(options.embeddings.replace("{task}", task))
    # The encoder's name is the folder's, where that is not the task's.
    parts = pathlib.Path(options.embeddings).parts
    name = next((part for part in reversed(parts) if "{task}" not in part), "embeddings")
    return hest_bench.read_embeddings(folder / f"{slide}.h5", encoder=name)


def _predict(
    samples: Mapping[str, _Sample], split: splits.Split, models: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    train = [samples[slide] for slide in split.train]
    return rows.predict(
        rows.Fold(
            train_x=np.concatenate([s.x for s in train]),
            train_y=np.concatenate([s.y for s in train]),
            train_slide=np.repeat(np.arange(len(train)), [len(s.y) for s in train]),
            train_xy=np.concatenate([s.coords for s in train]),
            test_x=np.concatenate([samples[slide].x for slide in split.test]),
        ),
        models,
    )


def _truth(samples: Mapping[str, _Sample], split: splits.Split) -> np.ndarray:
    return np.concatenate([samples[slide].y for slide in split.test])


def _constant(samples: Mapping[str, _Sample], split: splits.Split, fold: str) -> list[str]:
    """A note where genes have no correlation over the test spots; an error where none has."""
    truth = _truth(samples, split)
    constant = int((truth == truth[0]).all(axis=0).sum())
    if constant == truth.shape[1]:
        raise errors.GenePanelError(
            f"fold {fold} has no score: every gene is constant over its {len(truth)} test spots",
            expected="a gene that varies",
            fix="Check the counts of the test slides",
        )
    if not constant:
        return []
    return [
        f"{constant} of {truth.shape[1]} genes are constant over the test spots and left out (the "
        "published code would print nan)"
    ]


def _score(pred: np.ndarray, samples: Mapping[str, _Sample], split: splits.Split) -> Score:
    ends = np.cumsum([len(samples[slide].y) for slide in split.test])[:-1]
    truth = _truth(samples, split)
    each = [
        metrics.pcc_top(metrics.pcc_per_gene(one, true))
        for one, true in zip(np.split(pred, ends), np.split(truth, ends), strict=True)
    ]
    defined = [value for value in each if not np.isnan(value)]
    return Score(
        pooled=metrics.pcc_top(metrics.pcc_per_gene(pred, truth)),
        by_slide=float(np.mean(defined)) if defined else float("nan"),
    )


def _write_records(
    out: pathlib.Path,
    slide_id: str,
    patient: str | None,
    counted: hest_bench.Expression,
    found: hest_bench.Embedded,
    panel: genes.Panel,
) -> None:
    """Writes a slide's records, unless they are there and made from the same files."""
    slide = slides.Slide(
        id=slide_id,
        patient=patient,
        counts=counted.counts,
        genes=counted.genes,
        barcodes=counted.barcodes,
        array_xy=found.coords,
        pixel_xy=found.coords,
        image=None,
        mpp=0.5,
        spot_diameter_um=hest_bench.FOV_UM,
        sources={path.name: slides.sha256(path) for path in (found.source, counted.source)},
        notes=("pixel size and spot diameter are not in the benchmark's files: placeholders",),
    )
    folder = builder.slide_folder(out, slide_id) / builder.VERSION
    if folder.is_dir() and not integrity.damage(folder):
        stored = records_lib.slide_info(records_lib.read_metadata(folder)).digest
        if stored == builder.slide_digest(slide, panel=panel, contract=found.contract):
            return
    builder.write_slide(out, slide, found.embeddings, panel=panel, contract=found.contract)


def _stem(
    base: pathlib.Path,
    folds: folds_lib.Folds,
    fold: str,
    samples: Mapping[str, _Sample],
    panel: genes.Panel,
    options: Options,
) -> np.ndarray:
    """Our model's means of the test spots, trained on the fold's training slides."""
    manifest, split = base / "folds.csv", folds[fold]
    folds_lib.write_manifest(folds, manifest)
    experiment = options.experiment or config.resolve(trained.default_config())
    data = dataclasses.replace(
        experiment.data,
        test="",
        val="",
        manifest=str(manifest),
        fold=fold,
        transform=TRANSFORM,
    )
    means = trained.predict_means(
        dataclasses.replace(experiment, data=data),
        records_lib.open_records(base / "records"),
        base / f"fold-{fold}",
        split.test,
        line=options.line,
    )
    joined = [means[s].loc[list(samples[s].barcodes), list(panel.genes)] for s in split.test]
    return np.concatenate([np.asarray(one, np.float64) for one in joined])


def as_json(tasks: Sequence[Task]) -> dict[str, Any]:
    """Every number as plain values, fold by fold."""
    return {
        "benchmark": "hest",
        "value_space": TRANSFORM,
        "tasks": {
            task.name: {
                "encoder": task.encoder,
                "spots": task.spots,
                "folds": {
                    name: {role: list(getattr(split, role)) for role in splits.ROLES}
                    | {"kind": split.kind, "leaks": list(split.leaks)}
                    for name, split in task.folds.items()
                },
                "rows": {
                    row: {
                        key: {
                            "mean": np.mean(values),
                            "std": np.std(values),
                            "folds": values,
                        }
                        for key in ("pooled", "by_slide")
                        for values in [[getattr(score, key) for score in found]]
                    }
                    for row, found in task.scores.items()
                },
                "notes": list(task.notes),
            }
            for task in tasks
        },
    }
