"""A tiny sound slide in four layouts, to be changed so that it has exactly one defect."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse
from PIL import Image

GENES = ("ERBB2", "KRT5", "CD8A", "ACTB", "COL1A1", "HLA-A")
IDS = tuple(f"ENSG0000000000{number}" for number in range(1, 7))
PITCH_PX = 48.0
MPP = 100 / PITCH_PX
SCALE = 0.25  # of the reduced image
LAYOUTS = ("st", "visium", "h5ad", "hest")
ANNDATA = ("h5ad", "hest")


@dataclasses.dataclass(kw_only=True)
class Made:
    """A slide; change a field to make it defective."""

    counts: np.ndarray
    array_xy: np.ndarray
    pixel_xy: np.ndarray
    barcodes: list[str]
    genes: list[str] = dataclasses.field(default_factory=lambda: list(GENES))
    ids: list[str] = dataclasses.field(default_factory=lambda: list(IDS))
    size: tuple[int, int] = (240, 640)
    patient: str | None = None
    id: str = "S1"

    def cut(self, rows: np.ndarray | slice) -> Made:
        """Some of its spots."""
        return dataclasses.replace(
            self,
            counts=self.counts[rows],
            array_xy=self.array_xy[rows],
            pixel_xy=self.pixel_xy[rows],
            barcodes=[str(name) for name in np.asarray(self.barcodes)[rows]],
        )


def make(seed: int = 0, **changes: object) -> Made:
    """40 spots of a hexagonal array, 14 rows of 3 or fewer: the last row has one."""
    column, row = (a.ravel()[:40] for a in np.meshgrid(np.arange(3), np.arange(14)))
    column = 2 * column + row % 2
    counts = np.random.default_rng(seed).poisson(2.0, (40, len(GENES))) + 1
    made = Made(
        counts=counts.astype(np.float64),
        array_xy=np.stack([column, row], axis=1),
        pixel_xy=np.stack(
            [column / 2 * PITCH_PX + 50, row * 3**0.5 / 2 * PITCH_PX + 50], axis=1
        ).round(3),
        barcodes=[f"{x}x{y}" for x, y in zip(column, row, strict=True)],
    )
    return dataclasses.replace(made, **changes)


def picture(made: Made) -> Image.Image:
    """An image of many colours."""
    pixels = np.random.default_rng(1).integers(60, 230, (*made.size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def table(made: Made, *, factors: bool = True) -> anndata.AnnData:
    """The slide as AnnData."""
    obs = pd.DataFrame(
        {"in_tissue": 1, "array_row": made.array_xy[:, 1], "array_col": made.array_xy[:, 0]},
        index=pd.Index(made.barcodes, dtype=object),
    )
    var = pd.DataFrame({"gene_ids": made.ids}, index=_numbered(made.genes))
    data = anndata.AnnData(scipy.sparse.csr_matrix(made.counts.astype(np.float32)), obs, var)
    data.var.index = pd.Index(made.genes, dtype=object)  # without a complaint of doubles
    data.obsm["spatial"] = made.pixel_xy
    if factors:
        data.uns["spatial"] = {made.id: {"images": {}, "scalefactors": _factors()}}
    return data


def write(
    layout: str,
    folder: pathlib.Path,
    made: Made,
    *,
    image: bool = True,
    data: anndata.AnnData | None = None,
) -> pathlib.Path:
    """Writes the slide; ``data`` stands for its table in the layouts that have one."""
    folder.mkdir(parents=True, exist_ok=True)
    {"st": _st, "visium": _visium, "h5ad": _h5ad, "hest": _hest}[layout](folder, made, image, data)
    return folder


def write_h5ad(path: pathlib.Path, data: anndata.AnnData) -> None:
    """Writes without anndata's own complaint that names are not unique."""
    names = list(data.var_names)
    data.var.index = _numbered(names)
    data.write_h5ad(path)
    data.var.index = pd.Index(names, dtype=object)
    with h5py.File(path, "r+") as file:
        index = file["var"][file["var"].attrs["_index"]]
        index[...] = names


def write_genes(path: pathlib.Path, genes: tuple[str, ...] = GENES) -> pathlib.Path:
    """A gene list."""
    path.write_text("\n".join(genes) + "\n")
    return path


def _numbered(names: list[str]) -> pd.Index:
    return pd.Index([f"gene {number:05d}" for number in range(len(names))], dtype=object)


def _factors() -> dict[str, float]:
    return {"tissue_hires_scalef": SCALE, "spot_diameter_fullres": 65 / MPP}


def _h5ad(folder: pathlib.Path, made: Made, image: bool, data: anndata.AnnData | None) -> None:
    write_h5ad(folder / f"{made.id}.h5ad", table(made) if data is None else data)
    if image:
        picture(made).save(folder / f"{made.id}.png")


def _hest(folder: pathlib.Path, made: Made, image: bool, data: anndata.AnnData | None) -> None:
    for name in ("st", "metadata", "wsis"):
        (folder / name).mkdir(exist_ok=True)
    data = table(made, factors=False) if data is None else data
    write_h5ad(folder / "st" / f"{made.id}.h5ad", data)
    about = {"patient": made.patient, "pixel_size_um_embedded": MPP, "spot_diameter": 55.0}
    (folder / "metadata" / f"{made.id}.json").write_text(json.dumps(about))
    if image:
        picture(made).save(folder / "wsis" / f"{made.id}.tif")


def _st(folder: pathlib.Path, made: Made, image: bool, data: anndata.AnnData | None) -> None:
    assert data is None
    for name in ("ST-cnts", "ST-spotfiles", f"ST-imgs/S/{made.id}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(["", *made.genes])]
    for name, row in zip(made.barcodes, made.counts, strict=True):
        lines.append("\t".join([name, *(f"{value:.9g}" for value in row)]))
    with gzip.open(folder / "ST-cnts" / f"{made.id}.tsv.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    xy, pixel = made.array_xy.T, made.pixel_xy.T
    columns = {"x": xy[0], "y": xy[1], "new_x": xy[0], "new_y": xy[1]}
    pd.DataFrame({**columns, "pixel_x": pixel[0], "pixel_y": pixel[1], "selected": 1}).to_csv(
        folder / "ST-spotfiles" / f"{made.id}_selection.tsv", sep="\t", index=False
    )
    if image:
        picture(made).save(folder / f"ST-imgs/S/{made.id}/he.jpg", quality=95)


def _visium(folder: pathlib.Path, made: Made, image: bool, data: anndata.AnnData | None) -> None:
    assert data is None
    outs = folder / made.id / "outs"
    (outs / "spatial").mkdir(parents=True)
    matrix = scipy.sparse.csc_array(made.counts.T)
    kinds = ["Gene Expression"] * len(made.genes)
    features = {"id": made.ids, "name": made.genes, "feature_type": kinds}
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "w") as file:
        for name in ("data", "indices", "indptr"):
            file[f"matrix/{name}"] = getattr(matrix, name)
        file["matrix/shape"] = np.array(matrix.shape, np.int32)
        file["matrix/barcodes"] = np.array(made.barcodes, "S")
        for name, values in features.items():
            file[f"matrix/features/{name}"] = np.array(values, "S")
    pd.DataFrame(
        {
            "barcode": made.barcodes,
            "in_tissue": 1,
            "array_row": made.array_xy[:, 1],
            "array_col": made.array_xy[:, 0],
            "pxl_row_in_fullres": made.pixel_xy[:, 1],
            "pxl_col_in_fullres": made.pixel_xy[:, 0],
        }
    ).to_csv(outs / "spatial" / "tissue_positions.csv", index=False)
    (outs / "spatial" / "scalefactors_json.json").write_text(json.dumps(_factors()))
    if image:
        picture(made).save(outs / "he.png")
