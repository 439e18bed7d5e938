"""Slides of sixty spots and eight genes, whose counts follow six numbers of each spot."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from stemjax.data import images, slides

TOY_GENES = tuple(f"TOY{number:02d}" for number in range(8))
TOY_SPOTS = 60


def toy_slide(name: str, seed: int, patient: str | None = None):
    """A slide without an image, and embeddings [l 8 6] that its counts follow linearly."""
    embeddings = np.random.default_rng([seed, 1]).standard_normal((TOY_SPOTS, 1, 6))
    loading = np.random.default_rng(99).standard_normal((6, len(TOY_GENES)))
    rate = np.exp(1.5 + 0.4 * embeddings[:, 0] @ loading)
    counts = np.random.default_rng([seed, 2]).poisson(rate).astype(np.int32)
    grid = np.stack(np.meshgrid(np.arange(10), np.arange(6)), axis=-1).reshape(-1, 2)
    slide = slides.Slide(
        id=name,
        patient=patient,
        counts=scipy.sparse.csr_array(counts),
        genes=TOY_GENES,
        barcodes=tuple(f"{x}x{y}" for x, y in grid),
        array_xy=grid.astype(np.float32),
        pixel_xy=(300.0 + 200.0 * grid).astype(np.float32),
        image=images.ArrayImage(np.full((1600, 2400, 3), 230, np.uint8)),
        mpp=1.0,
        spot_diameter_um=100.0,
        sources={},
    )
    wobble = 0.1 * np.random.default_rng([seed, 3]).standard_normal((TOY_SPOTS, 8, 6))
    wobble[:, 0] = 0
    return slide, (embeddings + wobble).astype(np.float32)
