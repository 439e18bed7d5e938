"""Small made slides for the tests of the records: every number is known."""

from __future__ import annotations

import hashlib

import numpy as np
import scipy.sparse

from stemjax.data import embeddings, genes, images, slides

GENES = tuple(f"G{i}" for i in range(8))
PANEL = genes.Panel(genes=GENES, rule="made", slides=("A1",))
CONTRACT = embeddings.EncoderContract(
    name="made",
    width=5,
    input_px=8,
    fov_um=None,
    resize="lanczos",
    mean=(),
    std=(),
    pooling="mean",
    projection="none",
    source="tests",
    revision="1",
)


def seed_of(name: str) -> int:
    """A seed that differs between names, the same in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])


def make_slide(
    slide_id: str = "A1",
    n: int = 12,
    *,
    names: tuple[str, ...] = GENES,
    image: bool = False,
    patient: str | None = "P1",
    mpp: float = 0.5,
) -> slides.Slide:
    """A slide of `n` spots in a row, with random counts."""
    rng = np.random.default_rng(seed_of(slide_id))
    counts = rng.poisson(np.linspace(0.5, 6, len(names)), (n, len(names)))
    pixels = None
    if image:
        pixels = images.ArrayImage(rng.integers(0, 256, (260, 240 + 10 * n, 3), np.uint8))
    return slides.Slide(
        id=slide_id,
        patient=patient,
        counts=scipy.sparse.csr_array(counts.astype(np.int32)),
        genes=names,
        barcodes=tuple(f"{slide_id}-{i}" for i in range(n)),
        array_xy=np.stack([np.arange(n), np.full(n, 3)], axis=1),
        pixel_xy=np.stack([120 + 10 * np.arange(n), np.full(n, 130)], axis=1),
        image=pixels,
        mpp=mpp,
        spot_diameter_um=55.0,
        sources={f"{slide_id}.tsv": hashlib.sha256(slide_id.encode()).hexdigest()},
    )


def make_embeddings(slide: slides.Slide, variants: int = 8) -> np.ndarray:
    """Random embeddings of a slide, float16 [l v c]."""
    rng = np.random.default_rng(seed_of(slide.id) + 1)
    shape = (slide.n_spots, variants, CONTRACT.width)
    return (3 + 2 * rng.standard_normal(shape)).astype(np.float16)
