"""Written records of small slides whose embeddings decide their counts, and predictions of them."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import scipy.sparse

from stemjax.data import embeddings, genes, images, records, slides

GENES = tuple(f"G{i}" for i in range(14))
WIDTH = 6
CONTRACT = embeddings.EncoderContract(
    name="made",
    width=WIDTH,
    input_px=224,
    fov_um=None,
    resize="lanczos",
    mean=(),
    std=(),
    pooling="none",
    projection="none",
    source="test",
    revision="1",
)


def section(slide_id, patient, seed, names=GENES):
    """A slide of 12 x 9 spots and its embeddings, which decide the counts' rates."""
    rng = np.random.default_rng(seed)
    x, y = (v.ravel() for v in np.meshgrid(np.arange(12), np.arange(9)))
    z = rng.normal(size=(108, WIDTH))
    weights = np.random.default_rng(0).normal(size=(WIDTH, len(GENES)))
    counts = rng.poisson(np.exp(2.0 + 0.5 * z @ weights)).astype(np.int32)
    counts[:, 13] = 4  # constant: no correlation
    slide = slides.Slide(
        id=slide_id,
        patient=patient,
        counts=scipy.sparse.csr_array(counts[:, [GENES.index(name) for name in names]]),
        genes=names,
        barcodes=tuple(f"{a}x{b}" for a, b in zip(x, y, strict=True)),
        array_xy=np.stack([x, y], axis=1).astype(np.float32),
        pixel_xy=np.stack([x * 20 + 20, y * 20 + 20], axis=1).astype(np.float32),
        image=images.ArrayImage(np.full((210, 270, 3), 230, np.uint8)),
        mpp=10.0,
        spot_diameter_um=100.0,
        sources={},
    )
    return slide, np.repeat(z[:, None], 8, axis=1)


def write_source(out):
    """Records of slides A1, A2 (patient A), B1 (B), U1 (unknown); G12 is on A2 and B1 alone."""
    panel = genes.Panel(genes=GENES, rule="made", slides=())
    told = {"A1": "A", "A2": "A", "B1": "B", "U1": None}
    for seed, (slide_id, patient) in enumerate(told.items(), start=1):
        lacking = {"G12"} if slide_id in ("A1", "U1") else set()
        names = tuple(name for name in GENES if name not in lacking)
        slide, given = section(slide_id, patient, seed, names)
        records.write_slide(out, slide, given, panel=panel, contract=CONTRACT)
    return records.open_records(out)


def truth(source, slide):
    return np.log2(source.load([slide]).counts + 1.0)


def predicted(source, slide, mean, *, train, mode="mean", draws=None, **about):
    """What `stemjax predict` would write."""
    out = anndata.AnnData(
        X=np.asarray(mean, np.float32),
        obs=pd.DataFrame(index=list(source.load([slide]).barcodes)),
        var=pd.DataFrame(index=list(source.genes)),
    )
    if draws is not None:
        out.obsm["stemjax_draws"] = np.asarray(draws.transpose(1, 0, 2), np.float32)
        out.layers["stemjax_std"] = draws.std(axis=0, ddof=1).astype(np.float32)
    out.uns["stemjax"] = {
        "slide": slide,
        "mode": mode,
        "value_space": "log2p1",
        "train_slides": list(train),
        "val_slides": [],
        "split_kind": "patient unknown",
        "evaluations_per_spot": 16,
        "antithetic": False,
    } | about
    return out
