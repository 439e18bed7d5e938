"""Drawn sections on disk, as the demo's model knows them: HEST's layout, and the image alone."""

from __future__ import annotations

import json
import pathlib

import anndata
import numpy as np
import pandas as pd
import tifffile

from stemjax import demo
from stemjax.data import drawing, slides


def draw(slide_id: str = "mine", *, seed: int = 900, n_spots: int = 24) -> slides.Slide:
    """A section of the demo's law, of no patient that its model was trained on."""
    return drawing.draw_section(demo.LAW, seed=seed, id=slide_id, patient=None, n_spots=n_spots)[0]


def write_image(path: pathlib.Path, slide: slides.Slide) -> pathlib.Path:
    """The section's H&E as a tiled TIFF that says its pixel size."""
    assert slide.image is not None
    pixels = slide.image.read(0, 0, slide.image.width, slide.image.height)
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        photometric="rgb",
        compression="adobe_deflate",
        resolution=(1e4 / slide.mpp, 1e4 / slide.mpp),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    return path


def write_hest(folder: pathlib.Path, slide: slides.Slide) -> pathlib.Path:
    """The section in HEST's layout."""
    for name in ("st", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_image(folder / "wsis" / f"{slide.id}.tif", slide)
    adata = anndata.AnnData(
        slide.counts.astype(np.float32),
        obs=pd.DataFrame(
            {
                "in_tissue": 1,
                "array_row": slide.array_xy[:, 1],
                "array_col": slide.array_xy[:, 0],
            },
            index=list(slide.barcodes),
        ),
        var=pd.DataFrame(index=list(slide.genes)),
    )
    adata.obsm["spatial"] = slide.pixel_xy.astype(float)
    adata.write_h5ad(folder / "st" / f"{slide.id}.h5ad")
    about = {
        "patient": slide.patient,
        "pixel_size_um_embedded": slide.mpp,
        "pixel_size_um_estimated": slide.mpp,
        "spot_diameter": slide.spot_diameter_um,
        "inter_spot_dist": 200.0,
    }
    (folder / "metadata" / f"{slide.id}.json").write_text(json.dumps(about))
    return folder
