"""The four splits of Stem, from a HEST-1k download: one held-out slide, panel by Stem's rule.

What is run here is a rerun under stated conditions and not a reproduction: HEST re-filters spots,
the published panels are lists of their own, and the embeddings are another encoder's. So published
figures stand beside ours, marked. Source: Zhu et al., ICLR 2025 (arXiv 2501.15598), its tables and
its notebooks for slides and rules.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from stemjax import config, errors
from stemjax.data import prepare, records, splits, transforms
from stemjax.data.layouts import hest
from stemjax.eval import baselines, metrics
from stemjax.eval.bench import published, rows, trained

TRANSFORM = "log2p1"
COLUMNS = ("pcc_10", "pcc_50", "pcc_all", "mae", "mse", "rvd")
"""The scores of a row, as `published.Figures` names them."""
COORDINATES, DEPTH = "coordinates kNN", "depth oracle"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """One of the four.

    Attributes:
      slides: HEST ids.
      test: the slide held out.
      n_genes: size of the panel; the rule's k was set by hand to reach it (350 for HER2ST, 241 for
        PRAD).
      split: what kind of split it is, from the publication's metadata.
    """

    slides: tuple[str, ...]
    test: str
    n_genes: int
    split: str


def _ids(prefix: str, first: int, last: int, *, without: int | None = None) -> tuple[str, ...]:
    return tuple(f"{prefix}{i}" for i in range(first, last + 1) if i != without)


DATASETS: Mapping[str, Dataset] = {
    "her2st": Dataset(
        slides=_ids("SPA", 119, 154),
        test="SPA148",
        n_genes=300,
        split="section B1; sections B2 to B6 of the same patient are in training",
    ),
    "kidney": Dataset(
        slides=_ids("NCBI", 692, 714),
        test="NCBI697",
        n_genes=200,
        split="the only one of the four whose patient is not in training",
    ),
    "prad": Dataset(
        slides=_ids("MEND", 139, 162, without=155),
        test="MEND145",
        n_genes=200,
        split="two patients in all; the test patient is in training",
    ),
    "mouse_brain": Dataset(
        slides=_ids("NCBI", 658, 671),
        test="NCBI667",
        n_genes=200,
        split="three mice; the test mouse is in training",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to run a dataset.

    Attributes:
      panel: "train" chooses the genes without the test slide; "published" on all slides.
      allow_missing: go on without training slides that are not there.
      models: keys of `rows.MODELS`.
      experiment: what ``stem`` trains; transform and split are the dataset's.
      workdir: folder for records and runs.
      workers: processes that embed patches.
      line: makes a writer that shows a training run.
      progress: called with (done, total, what).
    """

    panel: Literal["train", "published"] = "train"
    allow_missing: bool = False
    models: Sequence[str] = ("ridge", "probe")
    experiment: config.Experiment | None = None
    workdir: pathlib.Path = pathlib.Path("stemjax_bench")
    workers: int = 1
    line: trained.Line | None = None
    progress: Callable[[int, int, str], None] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a run found.

    Attributes:
      dataset: its name in `DATASETS`.
      split: the slides by role, with the patients that the metadata know.
      missing: slides that were not there.
      encoder: whose embeddings they were.
      panel: the rule that chose the genes, in words, and whether the test slide was among its
        slides.
      sees_test: whether the panel was chosen on the test slide too.
      spots: test spots.
      genes: genes scored.
      scores: of each row, by `COLUMNS`.
      notes: what to know of the numbers.
    """

    dataset: str
    split: splits.Split
    missing: tuple[str, ...]
    encoder: str
    panel: str
    sees_test: bool
    spots: int
    genes: int
    scores: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]


def run(root: str | pathlib.Path, dataset: str, options: Options) -> Result:
    """Prepares the slides, fits every row on the training slides and scores the test slide.

    Raises:
      ConfigError: no such dataset.
      SlideError: slides are missing and may not be, or the test slide is.
      RecordsError: the workdir holds records of another panel, such as one of fewer slides.
    """
    if dataset not in DATASETS:
        raise errors.ConfigError(
            f"there is no dataset {dataset!r}", expected=f"one of {', '.join(DATASETS)}"
        )
    wanted, root = DATASETS[dataset], pathlib.Path(root)
    missing = find_missing(root, wanted, allow=options.allow_missing, name=dataset)
    present = [slide for slide in wanted.slides if slide not in missing]
    base = options.workdir / "stem" / f"{dataset}-{options.panel}"
    source = prepare.prepare(
        lambda slide: hest.read_slide(root, slide),
        present,
        base / "records",
        test=(wanted.test,),
        n_genes=wanted.n_genes,
        panel_slides="all" if options.panel == "published" else "train",
        workers=options.workers,
        progress=options.progress,
    )
    patients = {slide: source.patients[slide] for slide in present}
    split = splits.make_split(patients, test=(wanted.test,))
    train, test, lacking = _measured(source.load(split.train), source.load(split.test))
    preds, notes = _predict(train, test, patients, options.models)
    if lacking.any():
        notes.append(f"{int(lacking.sum())} genes left out: not measured on every slide")
    if "stem" in options.models:
        preds[rows.STEM] = _stem(source, wanted.test, base, options, test)[:, ~lacking]
    truth = _values(test)
    return Result(
        dataset=dataset,
        split=split,
        missing=missing,
        encoder=source.contract.name,
        panel=source.panel.rule,
        sees_test=bool(split.seen_by_panel(source.panel.slides)),
        spots=test.n,
        genes=truth.shape[1],
        scores={row: score(pred, truth) for row, pred in preds.items()},
        notes=tuple(notes),
    )


def find_missing(
    root: pathlib.Path, dataset: Dataset, *, allow: bool, name: str
) -> tuple[str, ...]:
    """Slides without counts or image in the download.

    Raises:
      SlideError: there are some and they may not be missing; or the test slide is one, or all
        training slides are.
    """
    missing = tuple(
        slide
        for slide in dataset.slides
        if not (root / "st" / f"{slide}.h5ad").is_file()
        or not any((root / "wsis" / f"{slide}{s}").is_file() for s in (".tif", ".tiff"))
    )
    needed = dataset.test in missing or len(missing) >= len(dataset.slides) - 1
    if not missing or (allow and not needed):
        return missing
    what = f"the test slide {dataset.test} and others" if needed else "slides"
    raise errors.SlideError(
        f"{root} lacks {what} of {name}: {', '.join(missing)}",
        expected=f"st/ID.h5ad and wsis/ID.tif of {len(dataset.slides)} slides",
        found=f"{len(dataset.slides) - len(missing)} of them",
        fix="Download them from HEST-1k"
        + ("" if needed else ", or go on with what is there: --allow-missing"),
    )


def score(pred: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """The scores of one row, by `COLUMNS`; PCC-k ranked on the test slide, as published."""
    pcc = metrics.pcc_per_gene(pred, true)
    return {
        "pcc_10": metrics.pcc_top(pcc, 10),
        "pcc_50": metrics.pcc_top(pcc, 50),
        "pcc_all": metrics.pcc_top(pcc),
        "mae": metrics.mae(pred, true),
        "mse": metrics.mse(pred, true),
        "rvd": metrics.rvd(pred, true),
    }


def _measured(
    train: records.Table, test: records.Table
) -> tuple[records.Table, records.Table, np.ndarray]:
    """Both tables with the genes that every slide measured, and which genes went."""
    keep = (train.mask != 0).all(axis=0) & (test.mask != 0).all(axis=0)
    if not keep.any():
        raise errors.GenePanelError("no gene of the panel was measured on every slide")
    both = [
        dataclasses.replace(table, counts=table.counts[:, keep], mask=table.mask[:, keep])
        for table in (train, test)
    ]
    return both[0], both[1], ~keep


def _values(table: records.Table) -> np.ndarray:
    forward = transforms.get_transform(TRANSFORM).forward
    return np.asarray(forward(table.counts, table.total), np.float64)


def _predict(
    train: records.Table,
    test: records.Table,
    patients: Mapping[str, str | None],
    models: Sequence[str],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Predictions of all rows but the trained one; floors that know more than the image marked."""
    y = _values(train)
    fold = rows.Fold(
        train_x=train.embeddings[:, 0].astype(np.float64),
        train_y=y,
        train_slide=train.slide_index,
        train_xy=train.array_xy,
        test_x=test.embeddings[:, 0].astype(np.float64),
    )
    preds, notes = rows.predict(fold, models)
    patient = patients[test.slides[0]]
    same = [i for i, slide in enumerate(train.slides) if patient and patients[slide] == patient]
    near = np.isin(train.slide_index, same)
    found = baselines.coordinates_knn(
        train.array_xy[near], y[near], train.mask[near], test.array_xy
    )
    if found is None:
        notes.append(f"no {COORDINATES}: no training slide is known to be of the test patient")
    else:
        preds[COORDINATES] = found
    preds[DEPTH] = baselines.depth_oracle(y, train.mask, train.total, test.total)
    return preds, notes


def _stem(
    source: records.Records,
    slide: str,
    base: pathlib.Path,
    options: Options,
    test: records.Table,
) -> np.ndarray:
    """Our model's means of the test spots, all genes of the panel."""
    experiment = options.experiment or config.resolve(trained.default_config())
    data = dataclasses.replace(
        experiment.data,
        test=slide,
        val="",
        manifest="",
        fold="",
        transform=TRANSFORM,
        allow_seen_panel=options.panel == "published",
    )
    run = dataclasses.replace(experiment, data=data)
    means = trained.predict_means(run, source, base / "run", (slide,), line=options.line)
    return np.asarray(means[slide].loc[list(test.barcodes), list(source.genes)], np.float64)


def as_json(result: Result) -> dict[str, Any]:
    """Every number as plain values, the published ones apart."""
    return {
        "benchmark": "stem",
        "value_space": TRANSFORM,
        **{k: v for k, v in vars(result).items() if k != "split"},
        "split": {role: list(getattr(result.split, role)) for role in splits.ROLES}
        | {"kind": result.split.kind, "leaks": list(result.split.leaks)},
        "published": [dataclasses.asdict(row) for row in published.STEM[result.dataset]],
    }
