"""Made AnnData files of a Visium slide, with its image beside it: every number is known."""

from __future__ import annotations

import pathlib
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse
import visium_folders as made
from PIL import Image

LIBRARY = "lib1"
HIRES = 0.25
GENE_IDS = ("ENSG00000000001", "ENSG00000000002", "", "ENSG00000000004")


def table() -> anndata.AnnData:
    """What scanpy and squidpy users keep; row 3 is not under tissue."""
    place = made.positions().iloc[made.spots()].reset_index(drop=True)
    obs = pd.DataFrame(
        {
            "in_tissue": np.where(np.arange(len(place)) == 3, 0, 1),
            "array_row": place["array_row"],
            "array_col": place["array_col"],
            "leiden": pd.Categorical(np.arange(len(place)) % 3).rename_categories(list("abc")),
        }
    )
    obs.index = pd.Index(made.barcodes())
    var = pd.DataFrame({"gene_ids": list(GENE_IDS)}, index=list(made.GENES))
    adata = anndata.AnnData(
        scipy.sparse.csr_matrix(made.expression().astype(np.float32)), obs=obs, var=var
    )
    adata.obsm["spatial"] = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    adata.uns["spatial"] = {
        LIBRARY: {
            "images": {"hires": hires()},
            "scalefactors": {
                "tissue_hires_scalef": HIRES,
                "spot_diameter_fullres": 65 / made.MPP,
            },
            "metadata": {"chemistry_description": "made"},
        }
    }
    return adata


def hires() -> np.ndarray:
    """The reduced image, as scanpy reads it: fractions."""
    size = (round(made.SIZE[0] * HIRES), round(made.SIZE[1] * HIRES))
    return np.asarray(Image.fromarray(made.picture()).resize(size), np.float32) / 255


def kept() -> np.ndarray:
    """Rows under tissue."""
    return np.flatnonzero(np.arange(len(made.spots())) != 3)


def write(
    folder: pathlib.Path, adata: Any, name: str = "S1", *, image: str = "tif"
) -> pathlib.Path:
    """The file, and its image beside it."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{name}.h5ad"
    adata.write_h5ad(path)
    if image:
        Image.fromarray(made.picture()).save(folder / f"{name}.{image}")
    return path
