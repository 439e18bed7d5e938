"""Records of made-up spots, in a temporary folder: input speed does not depend on what they say."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import scipy.sparse

from stemjax.data import embeddings, genes, records, slides

SLIDE = "made"


@contextlib.contextmanager
def made_records(
    *, spots: int, n_genes: int, width: int, variants: int = 8
) -> Iterator[tuple[records.Records, pathlib.Path]]:
    """Yields opened records of one slide and their folder, which goes with the context.

    Args:
      spots: rows.
      n_genes: size of the panel.
      width: embedding width.
      variants: variants of each spot's embedding.
    """
    rng = np.random.default_rng(0)
    names = tuple(f"G{i:05d}" for i in range(n_genes))
    numbers = np.arange(spots)
    slide = slides.Slide(
        id=SLIDE,
        patient=None,
        counts=scipy.sparse.csr_array(rng.poisson(3.0, (spots, n_genes)).astype(np.int32)),
        genes=names,
        barcodes=tuple(f"spot{i:07d}" for i in numbers),
        array_xy=np.stack([numbers % 100, numbers // 100], axis=1),
        pixel_xy=100 * np.stack([numbers % 100, numbers // 100], axis=1),
        image=None,
        mpp=0.5,
        spot_diameter_um=55.0,
        sources={},
    )
    vectors = rng.standard_normal((spots, variants, width), np.float32).astype(np.float16)
    contract = embeddings.EncoderContract(
        name="made", width=width, input_px=224, fov_um=None, resize="none", mean=(), std=(),
        pooling="none", projection="none", source="benchmarks", revision="1",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        panel = genes.Panel(genes=names, rule="made", slides=(SLIDE,))
        records.write_slide(root, slide, vectors, panel=panel, contract=contract)
        yield records.open_records(root), root
