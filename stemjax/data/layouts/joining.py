"""Counts and positions of one slide, joined by barcode."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stemjax import errors
from stemjax.data import slides
from stemjax.data.layouts import feature_matrix, visium_array


def join(
    matrix: feature_matrix.FeatureMatrix, positions: visium_array.Positions, *, kind: str = "spot"
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Rows of the counts under tissue, where their positions are, and notes of what was left out.

    Args:
      matrix: the counts.
      positions: of the whole array.
      kind: what a place on the array is called.

    Raises:
      SlideError: a barcode with counts has no position, or none of them is under tissue.
    """
    spots = pd.Index(positions.barcodes).get_indexer(pd.Index(matrix.barcodes))
    if (spots < 0).any():
        lost = [matrix.barcodes[i] for i in np.flatnonzero(spots < 0)]
        # Space Ranger lists the whole array: a part of it is damage, and other names another slide.
        raise errors.SlideError(
            f"{positions.source} lacks {len(lost):,} of the {len(matrix.barcodes):,} barcodes "
            "that have counts",
            expected=f"barcodes such as {', '.join(lost[:3])}",
            found=f"barcodes such as {', '.join(positions.barcodes[:3])}",
            fix="Check that both files are whole and of the same slide",
        )
    rows = np.flatnonzero(positions.under[spots])
    counted = len(spots) - len(rows)
    beside = "not under tissue (in_tissue is not 1)"
    beside += f", {counted} of them with counts" if counted else ""
    notes = slides.left_out(int((~positions.under).sum()), beside)
    notes += slides.left_out(int(positions.under.sum()) - len(rows), "under tissue without counts")
    if not len(rows):
        raise errors.SlideError(
            f"no {kind} of {positions.source} with counts is under tissue",
            expected="in_tissue 1 at some of the barcodes that have counts",
            found="; ".join(notes) or "no barcodes",
            fix="Check that both files are of the same slide",
            case="D11",
        )
    return rows, spots[rows], notes
