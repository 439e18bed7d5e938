"""Predictions for 10x's Loupe Browser: CSV files to import beside the slide's own .cloupe.

Loupe joins rows by barcode: a file's first column is ``Barcode``, and its entries must be among the
.cloupe's. It imports groups (each further column is one, each value a cluster of spots) and
projections (two coordinates a barcode); it has no import for a number a spot. So genes are written
as quantile bins, and predicted profiles as their first two principal components:

    categories.csv   Barcode, domains where there are some, a column of bins for each gene
    projection.csv   Barcode, X, Y
"""

from __future__ import annotations

import csv
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from stemjax import errors, names
from stemjax.data import integrity
from stemjax.integrations import prediction as predictions

CATEGORIES, PROJECTION = "categories.csv", "projection.csv"

BINS = 5
"""Quantile bins of a gene, as many spots in each as can be."""

# Barcodes of Visium, with what LoupeR allows around them; of Visium HD's bins and cells.
_BARCODE = re.compile(
    r"(?:[A-Za-z0-9.-]+[_:])?[ACGT]{14,24}(?:-[A-Za-z0-9]+)?(?:[_:][A-Za-z0-9.-]+)?"
    r"|s_\d{3}um_\d+_\d+(?:-\d+)?|cellid_\d+(?:-\d+)?"
)


def write(
    prediction: predictions.Prediction,
    folder: str | pathlib.Path,
    *,
    genes: Sequence[str] | None = None,
    bins: int = BINS,
) -> tuple[pathlib.Path, ...]:
    """Writes both files into a new folder, whole or not at all; returns their paths.

    Names that a spreadsheet would take for a formula get a ``'`` before them.

    Args:
      prediction: of one slide.
      folder: to write; nothing that stands there is replaced.
      genes: names; None takes 20 of the largest variance.
      bins: quantile bins of a gene.

    Raises:
      PredictionError: barcodes are not 10x's: Loupe would match none of them.
      GenePanelError: a gene was not predicted.
      ConfigError: something is in the way, or fewer than 2 bins.
    """
    folder = pathlib.Path(folder)
    if bins < 2:
        raise errors.ConfigError("bins of a gene", expected="2 or more", found=str(bins))
    _require_barcodes(prediction)
    chosen = prediction.choose(genes)
    predictions.require_absent(folder)
    named = list(zip(chosen, prediction.values(chosen).T, strict=True))
    columns = {gene: bin_labels(values, bins) for gene, values in named}
    if (found := prediction.domains()) is not None:
        columns = {"stemjax_domain": [name or "none" for name in found]} | columns
    plane = principal_plane(prediction)
    with integrity.published_folder(folder) as made:
        _write_csv(
            made / CATEGORIES,
            ["Barcode", *map(names.cell, columns)],
            zip(prediction.barcodes, *(map(names.cell, column) for column in columns.values())),
        )
        numbers = ([f"{x:.5g}", f"{y:.5g}"] for x, y in plane)
        rows = ([barcode, *pair] for barcode, pair in zip(prediction.barcodes, numbers))
        _write_csv(made / PROJECTION, ["Barcode", "stemjax PC 1", "stemjax PC 2"], rows)
    return folder / CATEGORIES, folder / PROJECTION


def bin_labels(values: np.ndarray, bins: int) -> list[str]:
    """Returns each value's quantile bin: "1 of 5: 0.12 to 0.53"; "none" where it is not finite.

    Equal values share a bin, so there are fewer bins where many are equal.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return ["none"] * len(values)
    edges = np.unique(np.quantile(values[finite], np.linspace(0, 1, bins + 1)))
    inner = edges[1:-1]
    found = np.searchsorted(inner, values, side="right")
    last = len(inner) + 1
    names = {}
    for number in range(last):
        inside = values[finite & (found == number)]
        if inside.size:
            names[number] = f"{number + 1} of {last}: {inside.min():.2f} to {inside.max():.2f}"
    return [names[number] if ok else "none" for number, ok in zip(found, finite, strict=True)]


def principal_plane(prediction: predictions.Prediction) -> np.ndarray:
    """Returns the first two principal components of the predicted profiles, [l 2].

    Signs are such that the largest loading of each is positive. Values that are not finite count as
    their gene's mean.
    """
    values = predictions.dense(prediction.data.X).astype(np.float64)
    finite = np.isfinite(values)
    mean = np.where(finite, values, 0.0).sum(axis=0) / np.maximum(finite.sum(axis=0), 1)
    centred = np.where(finite, values - mean[None], 0.0)
    _, loadings = np.linalg.eigh(centred.T @ centred)
    axes = loadings[:, ::-1][:, :2]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0)[None]
    plane = centred @ axes
    return plane if plane.shape[1] == 2 else np.pad(plane, ((0, 0), (0, 1)))  # of a single gene


def _require_barcodes(prediction: predictions.Prediction) -> None:
    strange = [one for one in prediction.barcodes if not _BARCODE.fullmatch(one)]
    if strange:
        raise errors.PredictionError(
            f"slide {prediction.slide}: {len(strange)} of {len(prediction.barcodes)} barcodes are "
            "not 10x's, and Loupe joins by barcode",
            expected="names such as AACACCTACTATCGAA-1 or s_008um_00301_00321-1",
            found=", ".join(map(repr, strange[:3])),
            fix="for other arrays use --to qupath, png or spatialdata",
        )


def _write_csv(path: pathlib.Path, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
