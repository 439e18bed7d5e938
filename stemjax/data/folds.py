"""Folds: splits in numbers, for cross-validation and in files.

Folds are a dict of named `splits.Split`. A manifest holds them as rows ``fold, slide, patient,
role``, in CSV or in JSON (a list of such objects); an empty patient is unknown::

    fold,slide,patient,role
    B,B1,B,test
    B,C1,C,train

A slide that a fold does not name takes no part in it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from stemjax import errors
from stemjax.data import integrity, splits
from stemjax.foreign import json_text

type Folds = dict[str, splits.Split]
type By = Literal["patient", "slide"]

COLUMNS = ("fold", "slide", "patient", "role")


def leave_one_out(patients: Mapping[str, str | None], *, by: By = "patient") -> Folds:
    """One fold for each patient (or slide), named after it: it is the test, all others train.

    Args:
      patients: every slide with its patient, None where unknown.
      by: what is left out; "slide" puts serial sections of a patient on both sides.

    Raises:
      SplitError: by patient where one is unknown, or there are fewer than two.
    """
    groups = _groups(patients, by)
    _require_groups(groups, 2, by)
    return {name: splits.make_split(patients, test=groups[name]) for name in groups}


def k_fold(
    patients: Mapping[str, str | None], k: int, *, by: By = "patient", seed: int = 0
) -> Folds:
    """Folds "0" to "k-1", each the test of one; every patient (or slide) is in exactly one test.

    Patients are shuffled, then dealt from the one with most slides down, each to the fold with the
    fewest slides so far. The numbers of test slides differ by no more than the largest patient has,
    by slide by at most one. A function of the set of slides, ``k`` and ``seed`` (a Philox key).

    Args:
      patients: every slide with its patient, None where unknown.
      k: number of folds.
      by: what stays together.
      seed: 0 to 2**64 - 1.

    Raises:
      SplitError: by patient where one is unknown, ``k`` below 2 or above the number of patients.
    """
    groups = _groups(patients, by)
    if k < 2 or not 0 <= seed < 2**64:
        raise errors.SplitError(
            "Folds cannot be made",
            expected="at least 2 folds, and a seed from 0 to 2**64 - 1",
            found=f"{k} folds, seed {seed}",
        )
    _require_groups(groups, k, by)
    names = list(groups)
    # Raw words, which never change between versions of numpy; its own shuffle may.
    words = np.random.Philox(key=seed).random_raw(len(names))
    dealt: list[list[str]] = [[] for _ in range(k)]
    for place in sorted(range(len(names)), key=lambda i: (-len(groups[names[i]]), words[i])):
        min(dealt, key=len).extend(groups[names[place]])
    return {str(i): splits.make_split(patients, test=test) for i, test in enumerate(dealt)}


def write_manifest(folds: Mapping[str, splits.Split], path: str | os.PathLike[str]) -> None:
    """Writes folds as CSV or JSON by the name's ending, whole or not at all.

    Raises:
      SplitError: the name ends in neither.
    """
    path = pathlib.Path(path)
    kind = _require_kind(path)
    rows: list[dict[str, str]] = [
        {"fold": name, "slide": slide, "patient": split.patients[slide] or "", "role": role}
        for name, split in folds.items()
        for role in splits.ROLES
        for slide in getattr(split, role)
    ]
    if kind == ".json":
        text = json.dumps(rows, indent=1) + "\n"
    else:
        file = io.StringIO()
        writer = csv.DictWriter(file, list[str](COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = file.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    integrity.write_text(path, text)


def read_manifest(path: str | os.PathLike[str]) -> Folds:
    """The folds of a manifest, in the order of the file.

    Raises:
      SplitError: the file is missing or damaged, a column is missing, a row names no fold, slide
        or role, a slide has two rows in a fold or two patients, or a fold has nothing to train on.
    """
    path = pathlib.Path(path)
    rows = _read_rows(path)
    patients: dict[str, str | None] = {}
    roles: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=1):
        fold, slide, patient, role = (row[column] for column in COLUMNS)
        where = f"{path}, row {number}"
        if not fold or not slide or role not in splits.ROLES:
            raise errors.SplitError(
                f"{where} cannot be read",
                expected=f"a fold, a slide, and a role of {', '.join(splits.ROLES)}",
                found=", ".join(f"{column} {row[column]!r}" for column in COLUMNS),
            )
        if slide in roles.setdefault(fold, {}):
            raise errors.SplitError(
                f"{where}: fold {fold} names slide {slide} twice",
                expected="one role for each slide of a fold",
                found=f"{roles[fold][slide]} and {role}",
            )
        roles[fold][slide] = role
        known = patients.setdefault(slide, patient or None)
        if known != (patient or None):
            raise errors.SplitError(
                f"{where}: slide {slide} has two patients",
                found=f"{known or 'unknown'} and {patient or 'unknown'}",
                fix="Give it the same patient in all folds",
            )
    folds: Folds = {}
    for fold, given in roles.items():
        try:
            folds[fold] = splits.split_by_role(given, patients)
        except errors.SplitError as error:
            raise errors.SplitError(
                f"{path}, fold {fold}: {error.what}", expected=error.expected, found=error.found
            ) from error
    return folds


def read_fold(
    path: str | os.PathLike[str], fold: str, patients: Mapping[str, str | None]
) -> splits.Split:
    """One fold of a manifest, for the slides there are.

    Where only one of the manifest and ``patients`` knows a slide's patient, it decides.

    Args:
      path: the manifest.
      fold: name of the fold.
      patients: every slide there is with its patient, None where unknown.

    Raises:
      SplitError: as `read_manifest`; there is no such fold, it names a slide there is not, or the
        two patients of a slide differ.
    """
    folds = read_manifest(path)
    if fold not in folds:
        raise errors.SplitError(
            f"{path} has no fold {fold!r}", expected=f"one of {', '.join(folds) or 'none'}"
        )
    split = folds[fold]
    merged: dict[str, str | None] = {}
    for slide, patient in split.patients.items():
        splits.require_known(slide, tuple(patients), where=f"Fold {fold} of {path}")
        ours = patients[slide]
        if patient and ours and patient != ours:
            raise errors.SplitError(
                f"Fold {fold} of {path} has another patient for slide {slide} than its records",
                expected=ours,
                found=patient,
                fix="Correct the manifest, or prepare the slide again with the right metadata",
            )
        merged[slide] = ours or patient
    roles = {slide: role for role in splits.ROLES for slide in getattr(split, role)}
    return splits.split_by_role(roles, merged)


def _groups(patients: Mapping[str, str | None], by: By) -> dict[str, list[str]]:
    """Slides of each patient, or each slide alone; both sorted."""
    groups: dict[str, list[str]] = {}
    for slide in sorted(patients):
        patient = patients[slide]
        if by == "patient" and patient is None:
            unknown = [s for s in sorted(patients) if patients[s] is None]
            raise errors.SplitError(
                f"Folds by patient need every patient: unknown for {', '.join(unknown[:5])}"
                + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),
                fix="Give the patients in the slides' metadata and prepare again, leave these "
                "slides out, or make folds by slide and call the numbers what they are",
            )
        groups.setdefault(slide if by == "slide" else str(patient), []).append(slide)
    return dict(sorted(groups.items()))


def _require_groups(groups: Mapping[str, Any], least: int, by: By) -> None:
    if len(groups) < least:
        raise errors.SplitError(
            f"Folds by {by} cannot be made",
            expected=f"at least {least} {by}s",
            found=f"{len(groups)} ({', '.join(groups)})" if groups else "none",
            fix="Ask for fewer folds, or prepare more slides",
        )


def _require_kind(path: pathlib.Path) -> str:
    if path.suffix not in (".csv", ".json"):
        raise errors.SplitError(
            f"The manifest {path} has no known ending", expected=".csv or .json", found=path.suffix
        )
    return path.suffix


def _read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows with all columns as text, stripped; an unknown patient is ''."""
    kind = _require_kind(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        given = (
            json_text.parse(text) if kind == ".json" else list(csv.DictReader(io.StringIO(text)))
        )
    except (OSError, ValueError, csv.Error) as error:
        raise errors.SplitError(
            f"The manifest {path} cannot be read",
            expected=f"rows with {', '.join(COLUMNS)}",
            found=f"{type(error).__name__}: {error}",
            fix="Write it with `stemjax split`",
        ) from error
    if not isinstance(given, list) or not given:
        raise errors.SplitError(
            f"The manifest {path} holds no rows", expected=f"rows with {', '.join(COLUMNS)}"
        )
    rows = []
    for number, row in enumerate(given, start=1):
        found = list(row) if isinstance(row, dict) else [type(row).__name__]
        if not isinstance(row, dict) or set(found) != set(COLUMNS):
            raise errors.SplitError(
                f"{path}, row {number} has other columns",
                expected=", ".join(COLUMNS),
                found=", ".join(str(name) for name in found),
            )
        rows.append({c: "" if row[c] is None else str(row[c]).strip() for c in COLUMNS})
    return rows
