"""Miniature folders in the exact layout of HEST-Benchmark and of HEST-1k, for the tests."""

from __future__ import annotations

import json
import pathlib
import zlib

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse
import tifffile

GENES = tuple(f"G{i:02d}" for i in range(30))
PANEL = tuple(f"G{i:02d}" for i in (7, 2, 21, 13, 4, 28))  # in another order than the h5ad's
WIDTH = 10
LOADING = np.random.default_rng(3).standard_normal((WIDTH, len(GENES)))

TINY = """
from stemjax import config
def get_config():
    c = config.default_config()
    c.model.width, c.model.depth, c.model.heads = 16, 1, 2
    c.diffusion.mean_fraction = 0.5
    c.optim.learning_rate, c.optim.warmup, c.optim.ema = 3e-2, 1, 0.5
    c.train.steps, c.train.batch, c.train.log_every, c.train.save_every = 12, 8, 12, 12
    c.data.test, c.data.transform = "nothing of here", "log1p_cp10k"
    return c
"""


def rng_of(name: str) -> np.random.Generator:
    """A generator that differs between names, the same in every process."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def write_bench_slide(task: pathlib.Path, slide: str, *, patches: bool = False) -> None:
    """One slide: an h5ad of 24 spots, of which 20 are embedded, in another order."""
    rng = rng_of(slide)
    x = rng.standard_normal((24, WIDTH)).astype(np.float32)
    shift = rng.normal(0, 0.5, len(GENES))  # slides differ in level: pooled r is not r by slide
    counts = rng.poisson(np.exp(1.2 + shift + 0.25 * x @ LOADING)).astype(np.float32)
    names = [f"{slide}-{i:02d}" for i in range(24)]
    adata = anndata.AnnData(
        scipy.sparse.csr_matrix(counts),
        obs=pd.DataFrame(index=names),
        var=pd.DataFrame(index=list(GENES)),
    )
    (task / "adata").mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(task / "adata" / f"{slide}.h5ad")
    rows = rng.permutation(24)[:20]
    coords = np.stack([rows % 5, rows // 5], axis=1) * 200
    barcodes = np.array([[names[row].encode()] for row in rows], "S")  # (n, 1)
    folder = task.parent / "embeddings" / task.name
    folder.mkdir(parents=True, exist_ok=True)
    write_h5(folder / f"{slide}.h5", embeddings=x[rows], barcodes=barcodes, coords=coords)
    if patches:
        (task / "patches").mkdir(exist_ok=True)
        base = rng.integers(120, 250, (20, 7, 7, 3), dtype=np.uint8)
        img = base.repeat(32, axis=1).repeat(32, axis=2)
        write_h5(task / "patches" / f"{slide}.h5", img=img, barcode=barcodes, coords=coords)


def write_h5(path: pathlib.Path, **arrays: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def write_fold(task: pathlib.Path, k: int, train: str, test: str) -> None:
    """The two files of one fold; slides separated by spaces."""
    (task / "splits").mkdir(parents=True, exist_ok=True)
    for role, slides in (("train", train), ("test", test)):
        lines = [f"{s},patches/{s}.h5,adata/{s}.h5ad" for s in slides.split()]
        text = "\n".join(["sample_id,patches_path,expr_path", *lines]) + "\n"
        (task / "splits" / f"{role}_{k}.csv").write_text(text)


def write_task(
    root: pathlib.Path, name: str, slides: str, *, patches: bool = False
) -> pathlib.Path:
    """A task of four slides and two folds, each the test of one."""
    task = root / name
    first, second = slides.split()[:2], slides.split()[2:]
    for slide in slides.split():
        write_bench_slide(task, slide, patches=patches)
    write_fold(task, 0, " ".join(first), " ".join(second))
    write_fold(task, 1, " ".join(second), " ".join(first))
    (task / "var_50genes.json").write_text(json.dumps({"genes": list(PANEL)}))
    return task


HEST_GENES = tuple(f"GENE{i:03d}" for i in range(240))
HEST_LOADING = np.random.default_rng(4).uniform(0.3, 1.6, len(HEST_GENES))


def write_hest_slide(root: pathlib.Path, slide: str, patient: str | None) -> None:
    """One slide of HEST-1k: 12 spots on a picture whose darkness tells their counts."""
    rng = rng_of(slide)
    for part in ("st", "wsis", "metadata"):
        (root / part).mkdir(parents=True, exist_ok=True)
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2)
    level = rng.uniform(0, 1, 12)
    counts = rng.poisson(np.exp(0.3 + 1.5 * level[:, None] * HEST_LOADING)).astype(np.float32)
    adata = anndata.AnnData(
        scipy.sparse.csr_matrix(counts),
        obs=pd.DataFrame(
            {"in_tissue": 1, "array_row": grid[:, 1], "array_col": grid[:, 0]},
            index=[f"{slide}-{i}" for i in range(12)],
        ),
        var=pd.DataFrame(index=list(HEST_GENES)),
    )
    adata.obsm["spatial"] = 60.0 + 120 * grid
    adata.write_h5ad(root / "st" / f"{slide}.h5ad")
    pixels = rng.integers(200, 250, (360, 480, 3), dtype=np.uint8)
    for (x, y), share in zip(grid, level):
        block = pixels[120 * y : 120 * y + 120, 120 * x : 120 * x + 120]
        block[:] = block * (1 - 0.6 * share)
    tifffile.imwrite(root / "wsis" / f"{slide}.tif", pixels, photometric="rgb", tile=(128, 128))
    values = {"patient": patient, "pixel_size_um_estimated": 0.5, "spot_diameter": 55.0}
    (root / "metadata" / f"{slide}.json").write_text(json.dumps(values))
