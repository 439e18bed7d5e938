"""Made Visium slides in the layouts of Space Ranger 1, 2 and 3: every number is known."""

from __future__ import annotations

import gzip
import json
import pathlib

import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse
from PIL import Image

from stemjax.data.layouts import visium_array

PITCH_PX = 48.0
MPP = 100 / PITCH_PX
SCALE = 0.25  # of the small copy
SIZE = (460, 440)  # of the image, width and height

# Two genes share a symbol, as in 10x's references; antibodies are no expression.
FEATURES = (
    ("ENSG01", "ACTB", "Gene Expression"),
    ("ENSG02", "TBCE", "Gene Expression"),
    ("CD3", "CD3", "Antibody Capture"),
    ("ENSG03", "ERBB2", "Gene Expression"),
    ("ENSG04", "TBCE", "Gene Expression"),
    ("CD8A", "CD8A", "Antibody Capture"),
    ("ENSG05", "KRT5", "Gene Expression"),
)
GENES = ("ACTB", "TBCE", "ERBB2", "KRT5")


def positions(rows: int = 8, columns: int = 7) -> pd.DataFrame:
    """A whole array; its first row of spots and spot 30 are not under tissue."""
    column, row = (a.ravel() for a in np.meshgrid(np.arange(columns), np.arange(rows)))
    column = 2 * column + row % 2
    number = np.arange(len(row))
    values = (
        [f"{'ACGT'[i % 4]}{i:02d}-1" for i in number],
        ((row > 0) & (number != 30)).astype(int),
        row,
        column,
        row * 3**0.5 / 2 * PITCH_PX + 50,
        column / 2 * PITCH_PX + 60,
    )
    return pd.DataFrame(dict(zip(visium_array.COLUMNS, values, strict=True)))


def spots() -> np.ndarray:
    """Rows of `positions` in the order of the counts, which is another one: those under tissue."""
    under = np.flatnonzero(positions()["in_tissue"])
    return np.random.default_rng(3).permutation(under)


def barcodes() -> list[str]:
    """Names of the spots, in the order of the counts."""
    return positions()["barcode"].iloc[spots()].tolist()


def counts() -> np.ndarray:
    """Counts of all features, spots x features."""
    return np.random.default_rng(0).poisson(1.5, (len(spots()), len(FEATURES))).astype(np.int32)


def expression() -> np.ndarray:
    """What a reader should find: counts of `GENES`, spots x genes."""
    table = counts()
    return np.stack([table[:, 0], table[:, 1] + table[:, 4], table[:, 3], table[:, 6]], axis=1)


def picture() -> np.ndarray:
    """An RGB image that holds all spots."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    return np.stack([x // 2, y // 2, np.full_like(x, 90)], axis=-1).astype(np.uint8)


def write_slide(outs: pathlib.Path, version: int = 2, *, image: bool = True) -> pathlib.Path:
    """A whole, sound slide, as that version of Space Ranger writes it."""
    (outs / "spatial").mkdir(parents=True)
    write_h5(outs / f"{'LIB_' if version == 3 else ''}filtered_feature_bc_matrix.h5")
    write_positions(outs, positions(), version)
    write_factors(outs)
    small = Image.fromarray(picture()).resize((round(SIZE[0] * SCALE), round(SIZE[1] * SCALE)))
    small.save(outs / "spatial" / "tissue_hires_image.png")
    if version > 1:
        small.save(outs / "spatial" / "cytassist_image.tiff")
    if image:
        Image.fromarray(picture()).save(outs / "he.tif")
    return outs


def write_positions(outs: pathlib.Path, table: pd.DataFrame, version: int = 2) -> pathlib.Path:
    """The file of positions; version 1 has no header."""
    name = "tissue_positions_list.csv" if version == 1 else "tissue_positions.csv"
    path = outs / "spatial" / name
    table.to_csv(path, index=False, header=version > 1)
    return path


def write_factors(outs: pathlib.Path, **changes: object) -> None:
    """The scale factors; Space Ranger's spot diameter spans 65 um."""
    values = {
        "spot_diameter_fullres": 65 / MPP,
        "tissue_hires_scalef": SCALE,
        "fiducial_diameter_fullres": 105 / MPP,
        "tissue_lowres_scalef": SCALE / 3,
    }
    path = outs / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps(values | changes))


def write_h5(
    path: pathlib.Path,
    table: np.ndarray | None = None,
    *,
    names: list[str] | None = None,
    features: tuple[tuple[str, str, str], ...] = FEATURES,
) -> None:
    """A feature-barcode matrix: features x barcodes by columns, strings of fixed length."""
    matrix = scipy.sparse.csc_array((counts() if table is None else table).T)
    ids, symbols, types = (np.array(column, "S") for column in zip(*features, strict=True))
    with h5py.File(path, "w") as file:
        file.attrs["filetype"] = "matrix"
        file.attrs["library_ids"] = np.array(["LIB"], "S")
        parts = {
            "data": matrix.data,
            "indices": matrix.indices.astype(np.int64),
            "indptr": matrix.indptr.astype(np.int64),
            "shape": np.array(matrix.shape, np.int32),
            "barcodes": np.array(barcodes() if names is None else names, "S"),
            "features/id": ids,
            "features/name": symbols,
            "features/feature_type": types,
            "features/genome": np.array(["GRCh38"] * len(features), "S"),
            "features/_all_tag_keys": np.array(["genome"], "S"),
        }
        for name, values in parts.items():
            file.create_dataset(f"matrix/{name}", data=values, compression="gzip")


def write_text(folder: pathlib.Path) -> pathlib.Path:
    """The same matrix as a folder of text files."""
    folder.mkdir(parents=True)
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, scipy.sparse.coo_array(counts().T), field="integer")
    for name, rows in (("barcodes", barcodes()), ("features", ["\t".join(f) for f in FEATURES])):
        with gzip.open(folder / f"{name}.tsv.gz", "wt") as file:
            file.write("\n".join(rows) + "\n")
    return folder
