"""Whether values are raw counts, and if not, what they look like: each value is looked at.

Counts that are scaled, log-transformed or damaged train without complaint and mean nothing, so what
is wrong is told as exactly as it can be known: how many values, the first of them by spot and gene,
and the transformation whose traces they bear.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import scipy.sparse

from stemjax import errors

FIX = "Give the raw counts, neither normalised nor log-transformed nor scaled"

_LOG_MAX = 30.0
"""No logarithm of a count or of counts per million is above it: e**30 is 1e13."""

_MOST_STEPS = 1e4
"""Largest count that is looked for in values that a constant has scaled."""

_EQUAL = 0.01
"""Totals of spots that differ by less than this share were made equal."""


def as_rows(values: Any) -> scipy.sparse.csr_array:
    """Returns a table of numbers as rows, whatever holds it; it is not copied where it need not be.

    Arrays, sparse matrices of any kind and precision, parts of files that AnnData left on the disk
    (``backed``), views and dask arrays are taken.

    Raises:
      ValueError: it is no table, or not of numbers.
    """
    if hasattr(values, "to_memory"):  # sparse, on the disk
        values = values.to_memory()
    elif hasattr(values, "compute"):  # dask
        values = values.compute()
    if not scipy.sparse.issparse(values):
        values = np.asarray(values[()] if hasattr(values, "id") else values)
    if values.ndim != 2 or values.dtype.kind not in "iufb":
        raise ValueError(f"values of {values.dtype} and shape {values.shape}")
    if values.dtype.itemsize == 2 and values.dtype.kind == "f":
        values = values.astype(np.float32)  # scipy has no sparse half precision
    return scipy.sparse.csr_array(values)


def find_bad(values: np.ndarray) -> np.ndarray:
    """Which values are no counts: not finite, negative, or no whole numbers."""
    if values.dtype.kind in "ub":
        return np.zeros(values.shape, bool)
    if values.dtype.kind == "i":
        return values < 0
    return ~np.isfinite(values) | (values != np.floor(values)) | (values < 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is wrong with values that should be counts.

    Attributes:
      case: D05 negative, D06 not finite, D07 no whole numbers; the worst of them is named.
      n_bad: values that are no counts.
      kind: how many of them are of the case, in words.
      looks: what was likely done to them.
      found: the first of the case, with its spot and gene.
    """

    case: str
    n_bad: int
    kind: str
    looks: str
    found: str


def diagnose(
    counts: scipy.sparse.csr_array,
    *,
    spots: Sequence[str],
    genes: Sequence[str],
    column: str = "gene",
) -> Diagnosis | None:
    """Returns what is wrong with values; None where all of them are raw counts.

    Args:
      counts: [l g], of any numeric type.
      spots: names of the rows.
      genes: names of the columns.
      column: what a column is called.
    """
    bad = find_bad(counts.data)
    if not bad.any():
        return None
    values = counts.data
    finite = np.isfinite(values)
    if not finite.all():
        case, kind, wrong = "D06", "NaN or infinite", ~finite
        looks = "damaged, or divided by a total of 0"
    elif (values < 0).any():
        case, kind, wrong = "D05", "negative", values < 0
        looks = f"scaled or centred: the least is {values.min():.4g}"
    else:
        case, kind, wrong = "D07", "no whole numbers", bad
        looks = _transformation(counts)
    n_bad, n_wrong = int(bad.sum()), int(wrong.sum())
    return Diagnosis(
        case=case,
        n_bad=n_bad,
        kind=f"{n_wrong:,} of them {kind}" if n_wrong < n_bad else kind,
        looks=looks,
        found=_located(counts, wrong, spots, genes, column),
    )


def refusal(
    counts: scipy.sparse.csr_array,
    *,
    where: str,
    spots: Sequence[str],
    genes: Sequence[str],
    slot: str = "",
    column: str = "gene",
    fix: str = FIX,
) -> errors.SlideError | None:
    """Returns the error of values that are no raw counts; None where all of them are.

    Args:
      counts: [l g], of any numeric type.
      where: the file or slide.
      spots: names of the rows.
      genes: names of the columns.
      slot: the part of the file, where it has several.
      column: what a column is called.
      fix: what to do about it.
    """
    wrong = diagnose(counts, spots=spots, genes=genes, column=column)
    if wrong is None:
        return None
    n = f"{wrong.n_bad:,} values"
    told = f"{slot} holds {n} that are no counts" if slot else f"{n} are no counts"
    return errors.SlideError(
        f"{where}: {told} ({wrong.kind}); looks {wrong.looks}",
        expected="raw counts: whole numbers from 0 up",
        found=wrong.found,
        fix=fix,
        case=wrong.case,
    )


def silent_spots(counts: scipy.sparse.csr_array) -> tuple[str, ...]:
    """The note that some spots have no count of any gene, which are kept (case D12)."""
    rows, genes = cast(tuple[int, int], counts.shape)
    silent = int((np.asarray(counts.sum(axis=1)) == 0).sum())
    if not (genes and silent):  # without a gene it is an image alone
        return ()
    return (f"{silent:,} of {rows:,} spots have no count of any gene: kept, as zeros",)


def _located(
    counts: scipy.sparse.csr_array,
    wrong: np.ndarray,
    spots: Sequence[str],
    genes: Sequence[str],
    called: str,
) -> str:
    """The first wrong value by spot and gene, with its place."""
    first = int(np.flatnonzero(wrong)[0])
    row = int(np.searchsorted(counts.indptr, first, side="right")) - 1
    column = int(counts.indices[first])
    spot = f"spot {spots[row]}, " if row < len(spots) else ""
    gene = f"{called} {genes[column]}, " if column < len(genes) else ""
    value = counts.data[first]
    return f"{value:.6g} ({spot}{gene}row {row}, column {column})"


def _transformation(counts: scipy.sparse.csr_array) -> str:
    """What was likely done to finite values from 0 up, some of which are no whole numbers."""
    values = counts.data.astype(np.float64)
    some = values[values != 0]
    top, share = float(some.max()), float((some != np.floor(some)).mean())
    part = f"{share:.0%}" if share >= 0.005 else "under 1%"
    told = f"the largest is {top:.4g}, and {part} of those above 0 are no whole numbers"
    least = float(some.min())
    if least < 1 and top / least < _MOST_STEPS and _are_whole(some / least):
        return f"divided: all are multiples of {least:.4g}; {told}"
    total = _common_total(counts, values)
    if total is not None:
        return f"normalised to {total:,.0f} a spot: {told}"
    if top > _LOG_MAX:
        return f"normalised or scaled: {told}"
    total = _common_total(counts, np.expm1(values))
    if total is not None:
        return f"log-normalised, ln(1 + counts per {total:,.0f}): {told}"
    return f"log-normalised: {told}" if share > 0.5 else f"partly changed: {told}"


def _are_whole(values: np.ndarray) -> bool:
    # Single precision has seven digits.
    return bool((np.abs(values - np.rint(values)) <= 1e-5 * np.maximum(values, 1)).all())


def _common_total(counts: scipy.sparse.csr_array, values: np.ndarray) -> float | None:
    """What the values of each spot add up to, where that is the same for all of several."""
    spots = len(counts.indptr) - 1
    rows = np.repeat(np.arange(spots), np.diff(counts.indptr))
    totals = np.bincount(rows, values, minlength=spots)
    totals = totals[totals > 0]
    if len(totals) < 2 or np.ptp(totals) > _EQUAL * totals.max():
        return None
    return float(np.median(totals))
