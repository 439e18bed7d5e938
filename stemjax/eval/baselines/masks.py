"""Which rows measured which genes: every baseline fits a gene on the rows that measured it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int


def measured_alike(
    mask: np.ndarray,
) -> Iterator[tuple[Int[np.ndarray, " k"], Int[np.ndarray, " m"]]]:
    """(genes, rows) for each set of genes measured on the same, non-empty, set of rows.

    Args:
      mask: not 0 where the row's slide measured the gene, [n g].
    """
    measured = np.asarray(mask) != 0
    # Columns as bytes: sorting them, as np.unique does, costs a tenth of a second a call.
    alike: dict[bytes, list[int]] = {}
    for gene, column in enumerate(np.packbits(measured, axis=0).T):
        alike.setdefault(column.tobytes(), []).append(gene)
    for genes in alike.values():
        rows = np.flatnonzero(measured[:, genes[0]])
        if rows.size:
            yield np.array(genes), rows
