"""A small slide and its embeddings as tools write them: every number is known from its place.

The embedding of a patch is `vector` of its centre, so that a test can say what a spot must get
without the code under test. Rows of files are never in the order of the spots.
"""

from __future__ import annotations

import pathlib
from typing import Any

import h5py
import numpy as np
import scipy.sparse

from stemjax.data import embeddings, slides
from stemjax.data.embedding_files import own
from stemjax.foreign import torchfile

MPP = 0.5
PITCH, SIDE, TILE = 200, 224, 256  # level-0 px: between spots, of patches around them, of the grid
COLUMNS, ROWS = 6, 4
WIDTH = 6
GRID_ORIGIN = (128, 256)

CONTRACT = embeddings.EncoderContract(
    name="uni",
    width=WIDTH,
    input_px=224,
    fov_um=112.0,
    resize="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    pooling="cls",
    projection="none",
    source="stemjax",
    revision="a1",
)
# Pillow's transpose methods 0 to 6 as variants of `embeddings.apply_variant`, found with Pillow.
PILLOW = (4, 6, 1, 2, 3, 5, 7)


def make_slide(slide_id: str = "G1", *, mpp: float = MPP, suffix: str = "-1") -> slides.Slide:
    """24 spots, 100 um apart, more columns than rows."""
    column, row = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
    array = np.stack([column.ravel(), row.ravel()], 1)
    n = len(array)
    return slides.Slide(
        id=slide_id,
        patient="P1",
        counts=scipy.sparse.csr_array(np.arange(n * 3).reshape(n, 3).astype(np.int32)),
        genes=("A", "B", "C"),
        barcodes=tuple(f"AACG{i:02d}{suffix}" for i in range(n)),
        array_xy=array,
        pixel_xy=array * PITCH + np.array([[300, 400]]),
        image=None,
        mpp=mpp,
        spot_diameter_um=55.0,
        sources={f"{slide_id}.h5ad": "0" * 64},
        labels={"region": tuple(f"r{i % 2}" for i in range(n))},
    )


def vector(xy: np.ndarray, variant: int = 0) -> np.ndarray:
    """The embedding of patches with these centres: whole numbers over 64, exact in float16."""
    x, y = np.asarray(xy, np.float64).T
    one = np.ones_like(x)
    return np.stack([x / 64, y / 64, variant * one, one, -one / 2, (x - y) / 64], 1)


def vectors(xy: np.ndarray, variants: int = 8) -> np.ndarray:
    """`vector` of several variants, float32 [n v c]."""
    return np.stack([vector(xy, v) for v in range(variants)], 1).astype(np.float32)


def order(n: int) -> np.ndarray:
    """The rows of a file as spots: neither the slide's order nor its reverse."""
    return np.random.default_rng(7).permutation(n)


def tile_of(xy: np.ndarray) -> np.ndarray:
    """Centre of the grid's tile that a place lies in, by division."""
    origin = np.array([GRID_ORIGIN])
    return (np.asarray(xy, np.float64) - origin) // TILE * TILE + origin + TILE / 2


def grid(columns: int = 7, rows: int = 4) -> np.ndarray:
    """Upper left corners of the tiles, row by row, shuffled; they cover the spots."""
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    corners = np.stack([x.ravel(), y.ravel()], 1) * TILE + np.array([GRID_ORIGIN])
    return corners[order(len(corners))]


def trident_attrs(**changes: Any) -> dict[str, Any]:
    """What TRIDENT writes at the coordinates; None is the text 'None'."""
    attrs: dict[str, Any] = {
        "patch_size": 256,
        "patch_size_level0": TILE,
        "level0_magnification": 20,
        "target_magnification": 20,
        "overlap": 0,
        "level0_width": 4000,
        "level0_height": 3000,
        "name": "G1",
        "savetodir": "None",
    }
    return attrs | changes


def write_h5(path: pathlib.Path, arrays: dict[str, Any], **attrs: dict[str, Any]) -> pathlib.Path:
    """An h5 as TRIDENT's and CLAM's savers write it: chunks of one row, attributes by dataset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as opened:
        made: Any = opened
        for name, values in arrays.items():
            values = np.asarray(values)
            chunks = (1, *values.shape[1:]) if values.ndim > 1 else None
            limit = (None, *values.shape[1:]) if chunks else None
            if values.dtype.kind == "U":
                values = values.astype("S")
            made.create_dataset(name, data=values, chunks=chunks, maxshape=limit)
            for key, value in attrs.get(name, {}).items():
                made[name].attrs[key] = value
    return path


def write_trident(path: pathlib.Path, *, encoder: str = "uni_v1", **changes: Any) -> pathlib.Path:
    corners = grid()
    features = vector(corners + TILE / 2).astype(np.float32)
    return write_h5(
        path,
        {"features": features, "coords": corners.astype(np.int64)},
        features={"name": "G1", "savetodir": "None", "encoder": encoder},
        coords=trident_attrs(**changes),
    )


def write_clam(path: pathlib.Path, **attrs: Any) -> pathlib.Path:
    corners = grid()
    return write_h5(
        path,
        {
            "features": vector(corners + TILE / 2).astype(np.float32),
            "coords": corners.astype(np.int32),
        },
        coords={"patch_size": 256, "patch_level": 0} | attrs,
    )


def write_hest(path: pathlib.Path, slide: slides.Slide, *, n: int | None = None) -> pathlib.Path:
    rows = order(slide.n_spots)[:n]
    centres = slide.pixel_xy[rows].astype(np.int64)
    return write_h5(
        path,
        {
            "embeddings": vector(centres).astype(np.float32),
            "barcodes": np.array([[slide.barcodes[row]] for row in rows]),
            "coords": centres - SIDE // 2,
        },
    )


def write_generic(path: pathlib.Path, slide: slides.Slide) -> pathlib.Path:
    rows = order(slide.n_spots)
    return write_h5(
        path,
        {
            "feats": vector(slide.pixel_xy[rows]).astype(np.float16),
            "spot_ids": np.array([slide.barcodes[row] for row in rows]),
        },
    )


def write_h5ad(path: pathlib.Path, slide: slides.Slide, **more: np.ndarray) -> pathlib.Path:
    import anndata
    import pandas as pd

    rows = order(slide.n_spots)
    xy = slide.pixel_xy[rows].astype(np.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    anndata.AnnData(
        X=scipy.sparse.csr_matrix(slide.counts[rows].astype(np.float32)),
        obs=pd.DataFrame(index=[slide.barcodes[row] for row in rows]),
        obsm={"X_uni": vector(xy).astype(np.float32), "X_pca": xy, "spatial": xy, **more},
    ).write_h5ad(path)
    return path


def write_npz(path: pathlib.Path, slide: slides.Slide, **changes: Any) -> pathlib.Path:
    rows = order(slide.n_spots)
    centres = slide.pixel_xy[rows].astype(np.int64)
    arrays: dict[str, Any] = {
        "features": vectors(centres, 8),
        "coords": centres - SIDE // 2,
        "patch_size_level0": SIDE,
        "encoder": "uni",
    }
    kept = {name: value for name, value in (arrays | changes).items() if value is not None}
    np.savez_compressed(path, **kept)
    return path


def write_npy(path: pathlib.Path, slide: slides.Slide) -> pathlib.Path:
    rows = order(slide.n_spots)
    np.save(path, vector(slide.pixel_xy[rows]).astype(np.float32))
    lines = ["barcode,in_tissue", *(f"{slide.barcodes[row]},1" for row in rows)]
    path.with_name(f"{path.stem}_barcodes.csv").write_text("\n".join(lines) + "\n")
    return path


def write_stem(folder: pathlib.Path, slide: slides.Slide) -> pathlib.Path:
    """A ``processed_data``; CONCH's features are the first two of UNI's, taken twice."""
    every = vectors(slide.pixel_xy)
    for encoder, values in (("uni", every), ("conch", every[..., :2] * 2)):
        place = folder / f"1spot_{encoder}_ebd"
        flipped = place.with_name(f"{place.name}_aug")
        for one in (place, flipped):
            one.mkdir(parents=True, exist_ok=True)
        torchfile.write(place / f"{slide.id}_{encoder}.pt", np.ascontiguousarray(values[:, 0]))
        seven = np.ascontiguousarray(values[:, list(PILLOW)])
        torchfile.write(flipped / f"{slide.id}_{encoder}_aug.pt", seven)
    return folder


def write_own(path: pathlib.Path, slide: slides.Slide) -> pathlib.Path:
    values = vectors(slide.pixel_xy).astype(np.float16)
    own.write(path, values, slide, CONTRACT)
    return path
