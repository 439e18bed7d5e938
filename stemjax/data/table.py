"""Rows of spots in RAM, as records give them to the rest of the package."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of records in RAM, one a spot.

    Attributes:
      embeddings: [n v c] float16, variant 0 the original patch.
      counts: raw counts of the panel's genes, [n g] int32; 0 where not measured.
      total: raw counts of the spot over all genes of its slide, [n] int32.
      mask: 1 where the slide measured the gene, [n g] uint8.
      slide_index: index into `slides`, [n] int32.
      slides: slide ids, sorted.
      barcodes: barcode of each row.
      array_xy: (column, row) on the array, [n 2] float32.
      pixel_xy: (x, y) of the spot's centre in level-0 pixels, [n 2] float32.
    """

    embeddings: np.ndarray
    counts: np.ndarray
    total: np.ndarray
    mask: np.ndarray
    slide_index: np.ndarray
    slides: tuple[str, ...]
    barcodes: tuple[str, ...]
    array_xy: np.ndarray
    pixel_xy: np.ndarray

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.counts)
