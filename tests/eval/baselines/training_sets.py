"""Small training sets with a known law."""

from __future__ import annotations

import numpy as np

from stemjax.data import records


def spots(rng, n, width=12, genes=5, slides=3):
    """Embeddings, targets, mask, slide of each row and array coordinates of a training set."""
    x = rng.normal(2.0, 3.0, (n, width))
    y = x @ rng.normal(size=(width, genes)) / 5 + rng.normal(0.0, 1.0, (n, genes))
    slide = np.sort(rng.integers(slides, size=n))
    xy = rng.integers(0, 30, (n, 2)).astype(np.float32)
    return x, y, np.ones((n, genes), np.uint8), slide, xy


def as_table(rng, slide_of_row, slides, counts, mask=None):
    """Records with these counts and random embeddings."""
    n = len(counts)
    return records.Table(
        embeddings=rng.normal(size=(n, 8, 6)).astype(np.float16),
        counts=counts.astype(np.int32),
        total=counts.sum(axis=1).astype(np.int32) * 3,
        mask=np.ones(counts.shape, np.uint8) if mask is None else mask,
        slide_index=np.asarray(slide_of_row, np.int32),
        slides=slides,
        barcodes=tuple(f"s{i}" for i in range(n)),
        array_xy=rng.integers(0, 9, (n, 2)).astype(np.float32),
        pixel_xy=np.zeros((n, 2), np.float32),
    )
