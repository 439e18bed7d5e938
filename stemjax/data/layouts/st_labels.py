"""Labels of the spots of a section in the layout of HER2ST: what is known beside counts and image.

    ST-cluster/lbl/B1-cluster-annotation.tsv.gz  patient_id ids label x y ...: expression cluster
    ST-pat/lbl/B1_labeled_coordinates.tsv        Row.names x y pixel_x pixel_y label: region

The clusters' ``x y`` are the array coordinates that name a spot. The pathologist's are the adjusted
ones, ``new_x new_y`` of the selection file to the last digit: rounded they name the spot, and
that they are the same there shows that the file is of this section. Its ``Row.names`` and pixels
are of another, smaller image. Either file may be missing. Source: Andersson et al., Nature
Communications 12, 6012 (2021).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stemjax import errors
from stemjax.data import slides

CLUSTER, PATHOLOGIST = "cluster", "pathologist"

_SAME = 0.002
"""Adjusted coordinates are written to three decimals."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpotLabels:
    """The labels of a section.

    Attributes:
      labels: one string a spot by the label's name, "" where a spot has none.
      paths: the files that they were read from.
      notes: what was left out, in words.
    """

    labels: Mapping[str, tuple[str, ...]]
    paths: tuple[pathlib.Path, ...]
    notes: tuple[str, ...]


def read_labels(folder: pathlib.Path, slide_id: str, barcodes: Sequence[str]) -> SpotLabels:
    """The labels of a section's spots; none where there are no files of them.

    Args:
      folder: the folder that holds ``ST-cnts``.
      slide_id: the section, such as ``B1``.
      barcodes: its spots, ``XxY`` of the array coordinates.

    Raises:
      SlideError: a file is damaged, labels a spot twice, or is of another section.
    """
    files = {
        CLUSTER: folder / "ST-cluster" / "lbl" / f"{slide_id}-cluster-annotation.tsv.gz",
        PATHOLOGIST: folder / "ST-pat" / "lbl" / f"{slide_id}_labeled_coordinates.tsv",
    }
    labels, notes = {}, ()
    for name, path in files.items():
        if not path.is_file():
            continue
        table, lost = _read(path, slide_id)
        if name == PATHOLOGIST:
            _require_adjusted(table, folder / "ST-spotfiles" / f"{slide_id}_selection.tsv", path)
        labels[name] = _join(table, barcodes, path)
        if lost:
            rows = "1 row has" if lost == 1 else f"{lost} rows have"
            notes += (f"{name} labels: {rows} no position",)
    paths = tuple(files[name] for name in labels)
    return SpotLabels(labels=labels, paths=paths, notes=notes)


def _read(path: pathlib.Path, slide_id: str) -> tuple[pd.DataFrame, int]:
    """Rows with a position, as x, y, label, by the spot's name; and how many have none."""
    try:
        # As text: a label "None" or "2.10" stays what it is.
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, na_values=["", "NA"])
    except slides.UNREADABLE as error:
        raise slides.unreadable(path, error) from error
    wanted = ("x", "y", "label")
    if missing := [column for column in wanted if column not in table]:
        raise errors.SlideError(
            f"{path.name} lacks the columns {', '.join(missing)}",
            expected=", ".join(wanted),
            found=", ".join(map(str, table.columns)),
            fix="Copy or download the file again",
        )
    others = set(table["ids"].dropna()) - {slide_id} if "ids" in table else set()
    if others:
        raise errors.SlideError(
            f"{path.name} has rows of another section",
            expected=f"ids {slide_id}",
            found=", ".join(sorted(others)[:3]),
            fix="Give each section's file its own name",
        )
    columns = [pd.to_numeric(table[c], errors="coerce") for c in ("x", "y")]
    xy = np.stack([np.array(column, float) for column in columns], axis=1)
    placed = np.isfinite(xy).all(axis=1)
    rows = pd.DataFrame(xy[placed], columns=["x", "y"])
    rows["label"] = table["label"].fillna("").str.strip().to_numpy(object)[placed]
    rows.index = pd.Index([f"{x:.0f}x{y:.0f}" for x, y in np.rint(xy[placed])], dtype=object)
    if (doubled := rows.index.duplicated()).any():
        raise errors.SlideError(
            f"{path.name} gives more than one label to a spot",
            found=", ".join(rows.index[doubled][:3]),
            fix="Keep one row for each x and y",
        )
    return rows, int((~placed).sum())


def _require_adjusted(table: pd.DataFrame, selection: pathlib.Path, path: pathlib.Path) -> None:
    """Refuses coordinates that are not the adjusted ones of this section's spots."""
    spots = pd.read_csv(selection, sep="\t")  # read once already, with the spots
    if not {"new_x", "new_y"} <= set(spots.columns):
        return
    spots = spots[["x", "y", "new_x", "new_y"]].apply(pd.to_numeric, errors="coerce").dropna()
    spots.index = pd.Index([f"{x:g}x{y:g}" for x, y in zip(spots["x"], spots["y"], strict=True)])
    # Among spots not selected one may be listed twice; those selected are known to differ.
    both = table.index.intersection(spots.index[~spots.index.duplicated(keep=False)])
    here, there = table.loc[both, ["x", "y"]], spots.loc[both, ["new_x", "new_y"]]
    far = (np.abs(here.to_numpy(float) - there.to_numpy(float)) > _SAME).any(axis=1)
    if not far.any():
        return
    first = int(far.argmax())
    raise errors.SlideError(
        f"{path.name} and {selection.name} place {int(far.sum())} of {len(both)} spots differently",
        expected="x and y equal to new_x and new_y ({:g}, {:g})".format(*there.iloc[first]),
        found="({:g}, {:g}) of spot {}".format(*here.iloc[first], both[first]),
        fix="Check that both files are of the same section",
    )


def _join(table: pd.DataFrame, barcodes: Sequence[str], path: pathlib.Path) -> tuple[str, ...]:
    by_spot = dict(zip(table.index, table["label"], strict=True))
    labels = tuple(str(by_spot.get(spot, "")) for spot in barcodes)
    if not any(labels):
        raise errors.SlideError(
            f"{path.name} labels none of the section's spots",
            expected=f"spots such as {', '.join(barcodes[:3])}",
            found=", ".join(list(by_spot)[:3]) or "no rows with a position",
            fix="Check that counts and labels are of the same section",
        )
    return labels
