"""Records of slides whose spots lie in a plane, some to be hidden, for the tests of windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse
import small_slides as made

from stemjax.data import hiding, records, shown, space

COLUMNS, ROWS = 6, 5
MPP = {"A": 0.5, "B": 2.0, "C": 1.25}
HIDING = hiding.Hiding(share=0.4, seed=3)
ABSURD = 1_000_000


def make_slide(slide_id, *, lacking=()):
    """A slide of 30 spots near a lattice of 40 pixels, in an order that is not the lattice's."""
    names = tuple(f"X{i}" if name in lacking else name for i, name in enumerate(made.GENES))
    plain = made.make_slide(slide_id, COLUMNS * ROWS, names=names, mpp=MPP[slide_id])
    rng = np.random.default_rng(made.seed_of(slide_id) + 2)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(COLUMNS), np.arange(ROWS)))
    order = rng.permutation(plain.n_spots)
    place = np.stack([x, y], axis=1)[order].astype(np.float32)
    stray = rng.uniform(-4, 4, place.shape)
    barcodes = tuple(f"{int(a)}x{int(b)}" for a, b in place)
    return dataclasses.replace(
        plain, barcodes=barcodes, array_xy=place, pixel_xy=100 + 40 * place + stray
    )


def hidden_barcodes(slide, rule=HIDING):
    """Barcodes that a rule hides of a slide, asked of the rule itself."""
    places = np.asarray(slide.pixel_xy, np.float64)
    found = rule.hidden(slide.id, slide.barcodes, places, hiding.spot_distance(places))
    return {barcode for barcode, hide in zip(slide.barcodes, found, strict=True) if hide}


def write_source(folder, *, absurd=()):
    """Records of A, B (which lacks two genes) and C.

    Of the slides in ``absurd`` the hidden spots have counts and embeddings unlike any other.
    """
    for slide_id in MPP:
        slide = make_slide(slide_id, lacking=("G2", "G5") if slide_id == "B" else ())
        vectors = made.make_embeddings(slide)
        if slide_id in absurd:
            hidden = np.isin(slide.barcodes, list(hidden_barcodes(slide)))
            counts = slide.counts.toarray()
            counts[hidden], vectors[hidden] = ABSURD, 60_000
            slide = dataclasses.replace(slide, counts=scipy.sparse.csr_array(counts))
        records.write_slide(
            folder, slide, vectors, panel=made.PANEL, contract=made.CONTRACT, shards=2
        )
    return records.open_records(folder)


def rows_shown(source, *, partly=("A", "B"), rule: hiding.Hiding | None = HIDING):
    """The training rows of all three slides."""
    return shown.Shown(records=source, slides=("C", "A", "B"), hiding=rule, partly=partly)


def fitted_space(given):
    """The space of the training rows."""
    return space.Space.fit(given.tables(), genes=given.records.genes, transform="log1p_cp10k")
