"""Small sound files of every kind, to be damaged."""

from __future__ import annotations

import json
import pathlib
import shutil

import anndata
import h5py
import made_prediction
import numpy as np
import pandas as pd
import scipy.sparse

import stemjax
from stemjax.data import integrity
from stemjax.train import calibration

DEMO = pathlib.Path(stemjax.__file__).parent / "pretrained" / "demo"


def measured() -> anndata.AnnData:
    """The slide that `made_prediction` predicts, with counts, an array and a scale."""
    made = made_prediction.make()
    counts = np.random.default_rng(1).poisson(3.0, made.shape)
    obs = made.obs[["in_tissue", "array_row", "array_col"]].copy()
    obs["region"] = pd.Categorical(["a", "b"] * (len(obs) // 2))
    slide = anndata.AnnData(
        X=scipy.sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=made.var.copy()
    )
    slide.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(slide.n_vars)]
    slide.obsm["spatial"] = made.obsm["spatial"]
    slide.uns["spatial"] = made.uns["spatial"]
    return slide


def predicted() -> anndata.AnnData:
    """A prediction with draws, and of a cohort."""
    made = made_prediction.make()
    rng = np.random.default_rng(2)
    made.obsm["stemjax_draws"] = rng.uniform(0, 3, (made.n_obs, 2, made.n_vars)).astype(np.float32)
    about = made.uns["stemjax"]
    about["mode"] = "draws"
    about["model"] = json.dumps({"format": 1})
    about["request"] = json.dumps({"slide": made_prediction.SLIDE, "draws": "h5ad"})
    about["seconds"] = 1.5
    return made


def write_prediction(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "S1.h5ad"
    predicted().write_h5ad(path)
    return path


def write_slide(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "S1.h5ad"
    measured().write_h5ad(path)
    return path


def write_hest(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "st" / "S1.h5ad"
    path.parent.mkdir()
    measured().write_h5ad(path)
    about = {"patient": "P", "pixel_size_um_embedded": 0.5, "pixel_size_um_estimated": 0.5}
    about |= {"inter_spot_dist": 100.0, "spot_diameter": 55.0}
    (folder / "metadata").mkdir()
    (folder / "metadata" / "S1.json").write_text(json.dumps(about))
    return path


def write_visium(folder: pathlib.Path) -> pathlib.Path:
    slide = measured()
    outs = folder / "S1"
    (outs / "spatial").mkdir(parents=True)
    rows = [
        f"{name},1,{int(row)},{int(column)},{y:.1f},{x:.1f}"
        for name, row, column, (x, y) in zip(
            slide.obs_names, slide.obs["array_row"], slide.obs["array_col"],
            slide.obsm["spatial"] * (1.0, 3**0.5 / 1.8), strict=True,
        )
    ]  # fmt: skip
    header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
    (outs / "spatial" / "tissue_positions.csv").write_text("\n".join([header, *rows]) + "\n")
    factors = {"spot_diameter_fullres": 110.0, "tissue_hires_scalef": 0.25}
    (outs / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    path = outs / "filtered_feature_bc_matrix.h5"
    counts = scipy.sparse.csr_matrix(slide.X).astype(np.int32)
    with h5py.File(path, "w") as opened:
        matrix = opened.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            matrix.create_dataset(name, data=getattr(counts, name), compression="gzip")
        matrix["shape"] = np.array(counts.shape[::-1], np.int32)
        matrix["barcodes"] = np.array(slide.obs_names.tolist(), "S24")
        features = matrix.create_group("features")
        features["id"] = np.array(slide.var["gene_ids"].tolist(), "S20")
        features["name"] = np.array(slide.var_names.tolist(), "S20")
        features["feature_type"] = np.array(["Gene Expression"] * slide.n_vars, "S20")
    return path


def write_bundle(folder: pathlib.Path) -> pathlib.Path:
    """The shipped bundle, with a calibration of it."""
    from stemjax.export import bundle

    path = folder / "bundle"
    shutil.copytree(DEMO, path)
    trained = bundle.load(DEMO, verify=False)
    genes = trained.card.space.genes
    made = calibration.Calibration(
        levels=(0.5,),
        offsets=np.stack([np.full(len(genes), -1.0), np.full(len(genes), 1.0)])[None],
        floor=np.ones(len(genes)),
        spots=np.full(len(genes), 100),
        slides=("V1",),
        genes=genes,
        value_space=trained.card.space.transform,
        sampling={"mode": "mean"},
        model=trained.identity,
        raw=None,
        held_out=(0.5,),
        held_out_by="halves",
    )
    calibration.write([made], path / calibration.FILE)
    integrity.write_manifest(path)
    return path
