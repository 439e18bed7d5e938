"""Made Xenium regions, their H&E turned, mirrored and scaled: every number is known."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import pandas as pd
import tifffile
import visium_folders

PIXEL_UM = 0.2125
HE_UM = 1.5  # um per pixel of the H&E
SIZE = (460, 440)  # of the H&E, width and height
GRID = (3, 4)  # columns and rows of squares of 100 um, from column 2 and row 1
FIRST = (2, 1)
FEATURES = (
    ("ENSG01", "ACTB", "Gene Expression"),
    ("ENSG02", "ERBB2", "Gene Expression"),
    ("NegControlProbe_1", "NegControlProbe_1", "Negative Control Probe"),
    ("ENSG03", "KRT5", "Gene Expression"),
    ("UnassignedCodeword_1", "UnassignedCodeword_1", "Unassigned Codeword"),
)
GENES = ("ACTB", "ERBB2", "KRT5")
GENE_COLUMNS = (0, 1, 3)


def matrix(degrees: float = 20.0, *, mirrored: bool = True) -> np.ndarray:
    """The alignment [3 3], pixels of the H&E to pixels of the morphology image.

    The middle of the H&E lies on the middle of the squares.
    """
    turn, scale = math.radians(degrees), HE_UM / PIXEL_UM
    linear = scale * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    if mirrored:
        linear = linear @ np.diag([-1.0, 1.0])
    middle = (np.array(FIRST) + np.array(GRID) / 2) * 100 / PIXEL_UM
    out = np.eye(3)
    out[:2, :2] = linear
    out[:2, 2] = middle - linear @ np.array(SIZE) / 2
    return out


def he_pixels(um_xy: np.ndarray, degrees: float = 20.0, *, mirrored: bool = True) -> np.ndarray:
    """Pixels of the H&E in closed form: back from the middle, turned back, mirrored, scaled."""
    middle = (np.array(FIRST) + np.array(GRID) / 2) * 100
    x, y = ((um_xy - middle) / HE_UM).T
    turn = math.radians(degrees)
    back = np.stack([math.cos(turn) * x + math.sin(turn) * y,
                     math.cos(turn) * y - math.sin(turn) * x], axis=1)  # fmt: skip
    return back * (-1 if mirrored else 1, 1) + np.array(SIZE) / 2


def cells() -> pd.DataFrame:
    """Cells: 4 in the disc of each square, 2 in its corners; the first square has 1 in its disc."""
    rng = np.random.default_rng(5)
    rows = []
    for row in range(GRID[1]):
        for column in range(GRID[0]):
            centre = (np.array(FIRST) + (column, row) + 0.5) * 100
            inner = 1 if (row, column) == (0, 0) else 4
            angle = rng.uniform(0, 2 * math.pi, inner)
            radius = rng.uniform(0, 27.4, inner)  # of a disc of 27.5
            disc = centre + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
            corners = centre + [[-45.0, -45.0], [44.0, 0.0]]
            rows += [(column, row, True, *xy) for xy in disc]
            rows += [(column, row, False, *xy) for xy in corners]
    frame = pd.DataFrame(rows, columns=["column", "row", "inner", "x_centroid", "y_centroid"])
    frame = frame.sample(frac=1, random_state=2).reset_index(drop=True)
    frame.insert(0, "cell_id", [f"cell{i:03d}-1" for i in range(len(frame))])
    return frame


def order() -> np.ndarray:
    """Rows of `cells` in the order of the counts, which is another one."""
    return np.random.default_rng(9).permutation(len(cells()))


def counts() -> np.ndarray:
    """Counts of all features, cells in the order of the counts x features."""
    shape = (len(cells()), len(FEATURES))
    return np.random.default_rng(4).poisson(1.5, shape).astype(np.int32)


def pooled(keep: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Places (column, row) of the spots by row and column, and sums of cells one by one.

    Args:
      keep: which rows of `cells` count; by default those in the discs.
    """
    frame, table = cells(), counts()
    keep = frame["inner"].to_numpy() if keep is None else keep
    sums: dict[tuple[int, int], np.ndarray] = {}
    for at, cell in enumerate(order()):
        if keep[cell]:
            place = (int(frame["row"][cell]), int(frame["column"][cell]))
            sums[place] = sums.get(place, 0) + table[at, list(GENE_COLUMNS)]
    places = sorted(sums)
    xy = [(column + FIRST[0], row + FIRST[1]) for row, column in places]
    return np.array(xy), np.stack([sums[place] for place in places])


def picture() -> np.ndarray:
    """The H&E."""
    return visium_folders.picture()


def write_region(place: pathlib.Path, form: str = "parquet", *, image: bool = True) -> pathlib.Path:
    """A whole, sound region; ``form`` of its cells is parquet, csv.gz, bytes or numbers."""
    place.mkdir(parents=True)
    write_manifest(place, pixel_size=PIXEL_UM)
    write_cells(place, cells(), form)
    names = cells()["cell_id"].iloc[order()].tolist()
    if form == "numbers":
        names = [str(i + 1) for i in order()]
    visium_folders.write_h5(
        place / "cell_feature_matrix.h5", counts(), names=names, features=FEATURES
    )
    (place / "transcripts.parquet").write_bytes(b"")
    tifffile.imwrite(place / "morphology.ome.tif", np.zeros((8, 8), np.uint16))
    if image:
        tifffile.imwrite(place / "S_he_image.ome.tif", picture(), photometric="rgb")
        write_matrix(place, matrix())
    return place


def write_manifest(place: pathlib.Path, **fields: object) -> None:
    """The manifest."""
    values = {"major_version": 4, "run_name": "made", "num_cells": len(cells())}
    (place / "experiment.xenium").write_text(json.dumps(values | fields))


def write_cells(place: pathlib.Path, frame: pd.DataFrame, form: str = "parquet") -> None:
    """The table of cells, in one of the forms that the versions have had."""
    frame = frame[["cell_id", "x_centroid", "y_centroid"]].assign(transcript_counts=7)
    if form == "csv.gz":
        frame.to_csv(place / "cells.csv.gz", index=False)
        return
    if form == "bytes":
        frame = frame.assign(cell_id=[name.encode() for name in frame["cell_id"]])
    if form == "numbers":
        frame = frame.assign(cell_id=np.arange(1, len(frame) + 1))
    frame.to_parquet(place / "cells.parquet", index=False)


def write_matrix(place: pathlib.Path, values: np.ndarray, name: str = "S_he_imagealignment.csv"):
    """An alignment as Xenium Explorer exports it: numbers without a header."""
    lines = [",".join(repr(float(v)) for v in row) for row in values]
    (place / name).write_text("\n".join(lines) + "\n")
