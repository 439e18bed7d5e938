"""HEST-Benchmark's folds and patients, from its CSV files."""

from __future__ import annotations

import csv
import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from stemjax import errors
from stemjax.data import folds as folds_lib
from stemjax.data import splits

SPLIT_COLUMNS = ("sample_id", "patches_path", "expr_path")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HestFolds:
    """The folds of one task and where the files of its slides are.

    Attributes:
      folds: by the number in the files' names, rising.
      patches: patch file of each slide.
      expression: h5ad of each slide.
    """

    folds: folds_lib.Folds
    patches: Mapping[str, pathlib.Path]
    expression: Mapping[str, pathlib.Path]

    @property
    def slides(self) -> tuple[str, ...]:
        """All slides of the folds, sorted."""
        return tuple(sorted(self.expression))


def read_hest_folds(
    task_dir: str | os.PathLike[str], *, metadata: str | os.PathLike[str] | None = None
) -> HestFolds:
    """The folds of a HEST-Benchmark task: ``splits/train_<k>.csv`` and ``splits/test_<k>.csv``.

    Paths in them are relative to the task's folder.

    Args:
      task_dir: the task's folder, such as ``hest-bench/IDC``.
      metadata: HEST's table with the patients, see `read_hest_patients`; without it they are
        unknown.

    Raises:
      SplitError: no splits, a train file without its test file, a missing column, a path that
        leaves the folder, a slide with two paths, or a slide on both sides of a fold.
    """
    folder = pathlib.Path(task_dir)
    found: dict[str, set[int]] = {"train": set(), "test": set()}
    for path in (folder / "splits").glob("*.csv"):
        if match := re.fullmatch(r"(train|test)_(\d+)", path.stem):
            found[match[1]].add(int(match[2]))
    if not found["train"] or found["train"] != found["test"]:
        alone = sorted(found["train"] ^ found["test"])
        raise errors.SplitError(
            f"{folder} has no whole folds of HEST-Benchmark",
            expected="splits/train_0.csv, splits/test_0.csv and so on",
            found=f"only one of the two for fold {', '.join(map(str, alone))}" if alone else "none",
            fix="Give the folder of one task, such as hest-bench/IDC, downloaded whole",
        )
    sides, places = {}, {}
    for k in sorted(found["train"]):
        for role in ("train", "test"):
            rows = _rows(folder / "splits" / f"{role}_{k}.csv")
            sides[k, role] = [row[0] for row in rows]
            for slide, *given in rows:
                if places.setdefault(slide, given) != given:
                    raise errors.SplitError(
                        f"{folder}: slide {slide} has two places",
                        found=f"{', '.join(places[slide])} and {', '.join(given)}",
                    )
    patients = (
        dict.fromkeys(places) if metadata is None else read_hest_patients(metadata, [*places])
    )
    folds = {}
    for k in sorted(found["train"]):
        both = sorted(set(sides[k, "train"]) & set(sides[k, "test"]))
        if both:
            raise errors.SplitError(
                f"Fold {k} of {folder} trains and tests on {', '.join(both)}",
                expected="each slide on one side",
                fix="Correct splits/, or download them again",
            )
        roles = {slide: role for role in ("train", "test") for slide in sides[k, role]}
        folds[str(k)] = splits.split_by_role(roles, patients)
    return HestFolds(
        folds=folds,
        patches={slide: folder / given[0] for slide, given in places.items()},
        expression={slide: folder / given[1] for slide, given in places.items()},
    )


def read_hest_patients(
    path: str | os.PathLike[str], slides: Sequence[str]
) -> dict[str, str | None]:
    """Patients of some slides in HEST's own table, such as ``HEST_v1_1_0.csv``.

    HEST numbers patients within a dataset. Where slides of several datasets share a label, such as
    "Patient 1", the dataset's title is put before it: they are not one person.

    Args:
      path: a CSV with the columns id and patient, and dataset_title where there are several.
      slides: the slides wanted; one that the table lacks, or has no patient for, is None.

    Raises:
      SplitError: the file cannot be read or lacks a column.
    """
    rows = _csv_rows(pathlib.Path(path), ("id", "patient"))
    known = {row["id"]: row for row in rows if row["id"] in set(slides) and row["patient"]}
    titles: dict[str, set[str]] = {}
    for row in known.values():
        titles.setdefault(row["patient"], set()).add(row.get("dataset_title", ""))
    found: dict[str, str | None] = dict.fromkeys(slides)
    for slide, row in known.items():
        several = len(titles[row["patient"]]) > 1
        found[slide] = f"{row['dataset_title']}: {row['patient']}" if several else row["patient"]
    return found


def _rows(path: pathlib.Path) -> list[tuple[str, ...]]:
    """(slide, patches, expression) of each row, each slide once."""
    rows = [tuple(row[c] for c in SPLIT_COLUMNS) for row in _csv_rows(path, SPLIT_COLUMNS)]
    for slide, *given in rows:
        for name in given:
            place = pathlib.PurePosixPath(name)
            if not slide or not name or place.is_absolute() or ".." in place.parts:
                raise errors.SplitError(
                    f"{path} cannot be used",
                    expected="a sample_id, and paths inside the task's folder",
                    found=f"{slide!r}, {name!r}",
                )
        if sum(slide == other[0] for other in rows) > 1:
            raise errors.SplitError(f"{path} names slide {slide} more than once")
    return rows


def _csv_rows(path: pathlib.Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV that has the columns needed, and may have others; cells stripped."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise errors.SplitError(
            f"{path} cannot be read", found=f"{type(error).__name__}: {error}"
        ) from error
    missing = [name for name in needed if name not in columns]
    if missing or not rows:
        raise errors.SplitError(
            f"{path} cannot be used",
            expected=f"rows with {', '.join(needed)}",
            found=f"columns {', '.join(columns) or 'none'}" if missing else "no rows",
        )
    return [{c: (row[c] or "").strip() for c in columns} for row in rows]
