"""A small prediction with known numbers, as `stemjax predict` writes it."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd

SLIDE, MPP, DIAMETER = "S1", 0.5, 110.0
GENES = ("ERBB2", "KRT5", "CD8A", "ACTB", "COL1A1", "HLA-A")
ROWS, COLS, PITCH = 6, 5, 200.0


def barcode(number: int) -> str:
    """A barcode as Space Ranger writes them."""
    letters = "".join("ACGT"[number // 4**place % 4] for place in range(16))
    return f"{letters}-1"


def make(*, hexagonal: bool = True, image: bool = True, genes=GENES) -> anndata.AnnData:
    """30 spots on a grid; column k of X has variance growing with k, the std is a tenth of it."""
    rng = np.random.default_rng(5)
    row, col = (v.ravel() for v in np.mgrid[:ROWS, :COLS])
    n = len(row)
    x = (rng.uniform(0.5, 1.5, (n, len(genes))) * (1 + np.arange(len(genes)))).astype(np.float32)
    shift = row % 2 if hexagonal else 0 * row
    made = anndata.AnnData(
        X=x,
        obs=pd.DataFrame(
            {
                "in_tissue": 1,
                "array_row": row.astype(np.float32),
                "array_col": (2 * col + shift if hexagonal else col).astype(np.float32),
            },
            index=[barcode(i) for i in range(n)],
        ),
        var=pd.DataFrame(index=list(genes)),
    )
    made.layers["stemjax_std"] = x / 10
    made.layers["stemjax_lower_90"] = x - 0.2
    made.layers["stemjax_upper_90"] = x + 0.2
    made.obsm["spatial"] = np.stack(
        [150 + PITCH * col + PITCH / 2 * shift, 210 + 0.9 * PITCH * row], axis=1
    )
    factors = {
        "spot_diameter_fullres": DIAMETER,
        "microns_per_pixel": MPP,
        "tissue_hires_scalef": 0.25,
    }
    images = {"hires": np.full((340, 330, 3), 220, np.uint8)} if image else {}
    made.uns["spatial"] = {SLIDE: {"images": images, "scalefactors": factors}}
    made.uns["stemjax"] = {
        "slide": SLIDE,
        "mode": "marginal",
        "value_space": "log2p1",
        "train_slides": ["T1"],
        "given_genes": [],
        "stemjax_version": "0.1.0",
    }
    return made


def with_values(made: anndata.AnnData, changes: dict[tuple[int, int], float]) -> anndata.AnnData:
    """The prediction with other values at some (spot, gene)."""
    x = np.array(made.X)
    for place, value in changes.items():
        x[place] = value
    made.X = x
    return made
