"""Made Visium HD slides in the layouts of Space Ranger 3 and 4: every number is known."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import pandas as pd
import visium_folders
from PIL import Image

from stemjax.data.layouts import visium_array

MPP = 2.0
SCALE = 0.25
SIZE = (460, 440)
TURN = math.radians(3)
SIDES = {16: 12, 8: 24}  # bins in a row of the array


def positions(bin_um: int = 16) -> pd.DataFrame:
    """The whole square array, a little turned on the image; its first row is not under tissue."""
    side = SIDES[bin_um]
    row, column = (a.ravel() for a in np.mgrid[:side, :side])
    pitch = bin_um / MPP
    x = 120 + pitch * (math.cos(TURN) * (column + 0.5) - math.sin(TURN) * (row + 0.5))
    y = 130 + pitch * (math.sin(TURN) * (column + 0.5) + math.cos(TURN) * (row + 0.5))
    names = [f"s_{bin_um:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)]
    values = (names, (row > 0).astype(np.int64), row, column, y, x)
    return pd.DataFrame(dict(zip(visium_array.COLUMNS, values, strict=True)))


def bins(bin_um: int = 16) -> np.ndarray:
    """Rows of `positions` in the order of the counts: those under tissue, but for two."""
    under = np.flatnonzero(positions(bin_um)["in_tissue"])
    return np.random.default_rng(bin_um).permutation(under)[:-2]


def barcodes(bin_um: int = 16) -> list[str]:
    """Names of the bins, in the order of the counts."""
    return positions(bin_um)["barcode"].iloc[bins(bin_um)].tolist()


def counts(bin_um: int = 16) -> np.ndarray:
    """Counts of all features of `visium_folders`, bins x features."""
    shape = (len(bins(bin_um)), len(visium_folders.FEATURES))
    return np.random.default_rng(bin_um + 1).poisson(0.7, shape).astype(np.int32)


def expression(bin_um: int = 16) -> np.ndarray:
    """What a reader should find: counts of `visium_folders.GENES`, bins x genes."""
    table = counts(bin_um)
    return np.stack([table[:, 0], table[:, 1] + table[:, 4], table[:, 3], table[:, 6]], axis=1)


def write_slide(outs: pathlib.Path, version: int = 3, *, image: bool = True) -> pathlib.Path:
    """A whole, sound slide, as that version of Space Ranger writes it."""
    for bin_um in SIDES:
        place = outs / "binned_outputs" / f"square_{bin_um:03d}um"
        (place / "spatial").mkdir(parents=True)
        visium_folders.write_h5(
            place / "filtered_feature_bc_matrix.h5", counts(bin_um), names=barcodes(bin_um)
        )
        write_positions(outs, positions(bin_um), bin_um)
        write_factors(outs, bin_um)
        small = Image.fromarray(visium_folders.picture())
        small = small.resize((round(SIZE[0] * SCALE), round(SIZE[1] * SCALE)))
        small.save(place / "spatial" / "tissue_hires_image.png")
        small.save(place / "spatial" / "aligned_tissue_image.jpg")
    (outs / "binned_outputs" / "square_002um").mkdir()
    (outs / "spatial").mkdir()
    small.save(outs / "spatial" / "aligned_tissue_image.jpg")
    small.save(outs / "spatial" / "cytassist_image.tiff")
    (outs / "feature_slice.h5").write_bytes(b"")
    if version > 3:
        (outs / "segmented_outputs").mkdir()
        (outs / "barcode_mappings.parquet").write_bytes(b"")
    if image:
        Image.fromarray(visium_folders.picture()).save(outs / "he.tif")
    return outs


def write_positions(outs: pathlib.Path, table: pd.DataFrame, bin_um: int = 16) -> pathlib.Path:
    """The file of positions."""
    place = outs / "binned_outputs" / f"square_{bin_um:03d}um"
    path = place / "spatial" / "tissue_positions.parquet"
    table.to_parquet(path, index=False)
    return path


def write_factors(outs: pathlib.Path, bin_um: int = 16, **changes: object) -> None:
    """The scale factors."""
    values = {
        "spot_diameter_fullres": bin_um / MPP,
        "bin_size_um": float(bin_um),
        "microns_per_pixel": MPP,
        "regist_target_img_scalef": SCALE,
        "tissue_lowres_scalef": SCALE / 10,
        "fiducial_diameter_fullres": 800.0,
        "tissue_hires_scalef": SCALE,
    }
    place = outs / "binned_outputs" / f"square_{bin_um:03d}um"
    (place / "spatial" / "scalefactors_json.json").write_text(json.dumps(values | changes))
