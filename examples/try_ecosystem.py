"""Checks that other tools open what stemjax writes; `try_ecosystem.sh` makes the environment.

    python try_ecosystem.py FOLDER

Predicts a drawn section with the model that comes with the package, writes it in every format, and
asks each tool for numbers that are known otherwise. Nothing of the tools is replaced or patched.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd

import stemjax
from stemjax import demo, tasks
from stemjax.data import drawing, genes, prepare, records, slides
from stemjax.eval import predict
from stemjax.integrations import lazyslide as lazyslide_models
from stemjax.integrations import measured, ome_zarr, qupath, spatialdata
from stemjax.integrations import prediction as predictions

SLIDE, SPOTS, GENE = "drawn-8", 600, "SYNM02"


class Made:
    """The section, its records, the model and its predictions."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.slide, _ = drawing.draw_section(
            demo.LAW, seed=108, id=SLIDE, patient="P8", n_spots=SPOTS
        )
        self.source: records.Records = prepare.prepare(
            {SLIDE: self.slide}.__getitem__,
            (SLIDE,),
            folder / "records",
            test=(SLIDE,),
            genes=genes.Panel(genes=demo.LAW.genes, rule="all genes of the drawn law", slides=()),
            workers=1,
        )
        self.model = stemjax.load("demo")
        self.draws = folder / "draws.h5ad"
        self.mean = folder / "mean.h5ad"
        for path, mode in ((self.draws, "draws"), (self.mean, "mean")):
            sampling = tasks.Sampling(mode=mode, n_draws=8)
            predict.write(predict.predict_slide(self.model, self.source, SLIDE, sampling), path)

    def measured(self) -> anndata.AnnData:
        """Returns the section as a lab would have it: counts, positions, the image."""
        slide: slides.Slide = self.slide
        found = anndata.AnnData(
            X=slide.counts.astype(np.float32),
            obs=pd.DataFrame(index=list(slide.barcodes)),
            var=pd.DataFrame(index=list(slide.genes)),
        )
        prediction = anndata.read_h5ad(self.mean)
        found.obsm["spatial"] = np.asarray(slide.pixel_xy, np.float64)
        found.uns["spatial"] = prediction.uns["spatial"]
        return found


def try_scanpy(made: Made) -> str:
    """Neighbours and principal components of the predicted profiles, from the file as it is."""
    import scanpy as sc

    data = sc.read_h5ad(made.draws)
    sc.pp.pca(data, n_comps=10)
    sc.pp.neighbors(data, n_neighbors=10, use_rep="X_pca")
    graph = data.obsp["connectivities"]
    assert graph.shape == (SPOTS, SPOTS)
    assert graph.nnz > SPOTS
    frame = sc.get.obs_df(data, keys=[GENE], layer="stemjax_std")
    np.testing.assert_array_equal(
        frame[GENE], data.layers["stemjax_std"][:, data.var_names.get_loc(GENE)]
    )
    return f"PCA, neighbours ({graph.nnz} edges), obs_df of layer stemjax_std"


def try_squidpy(made: Made) -> str:
    """A picture of a layer, and Moran's I of it against its formula."""
    import squidpy as sq

    data = made.measured()
    measured.annotate(data, anndata.read_h5ad(made.draws))
    path = made.folder / "annotated.h5ad"
    predict.write(data, path)
    data = anndata.read_h5ad(path)
    assert (data.X != made.measured().X).nnz == 0, "X was changed"
    for name in ("stemjax", "stemjax_std"):
        picture = made.folder / f"squidpy_{name}.png"
        sq.pl.spatial_scatter(data, color=GENE, layer=name, library_id=SLIDE, save=str(picture))
        assert picture.stat().st_size > 10_000
    alone = anndata.read_h5ad(made.draws)
    sq.pl.spatial_scatter(alone, color=GENE, save=str(made.folder / "squidpy_prediction.png"))
    sq.gr.spatial_neighbors(data, coord_type="generic", n_neighs=6)
    sq.gr.spatial_autocorr(data, mode="moran", layer="stemjax", n_jobs=1)
    weights = data.obsp["spatial_connectivities"]
    weights = weights.multiply(1 / weights.sum(axis=1)).tocsr()  # squidpy's rows sum to 1
    values = np.asarray(data.layers["stemjax"], np.float64)
    values -= values.mean(axis=0)
    wanted = np.einsum("lg,lg->g", values, weights @ values) / (values**2).sum(axis=0)
    found = data.uns["moranI"].loc[list(data.var_names), "I"].to_numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    pcc = data.var["stemjax_pcc"]
    return (
        f"scatter of X and 2 layers, Moran's I {found.mean():.3f}, PCC {pcc.mean():.3f} on average"
    )


def try_spatialdata(made: Made) -> str:
    """The store, read back: the table annotates the circles, and they lie on the image."""
    import spatialdata as sd

    prediction = predictions.read(made.draws)
    spatialdata.write(prediction, made.folder / "store.zarr")
    store = sd.read_zarr(made.folder / "store.zarr")
    table, circles = store.tables["table"], store.shapes[SLIDE]
    image = store.images[f"{SLIDE}_hires_image"]
    np.testing.assert_array_equal(np.asarray(table.X), np.asarray(prediction.data.X))
    np.testing.assert_array_equal(
        np.asarray(table.layers["stemjax_std"]), prediction.data.layers["stemjax_std"]
    )
    joined, rows = sd.join_spatialelement_table(
        sdata=store, spatial_element_names=SLIDE, table_name="table", how="inner"
    )
    assert len(joined[SLIDE]) == rows.n_obs == SPOTS
    values = sd.get_values(GENE, sdata=store, element_name=SLIDE, table_name="table")
    np.testing.assert_array_equal(
        values[GENE].to_numpy(), prediction.values([GENE])[:, 0].astype(values[GENE].dtype)
    )
    hires = f"{SLIDE}_downscaled_hires"
    centres = np.asarray(sd.get_centroids(circles, coordinate_system=hires).compute())
    scale = prediction.image[1]
    np.testing.assert_allclose(centres, prediction.xy * scale, rtol=1e-6)
    np.testing.assert_allclose(circles["radius"], prediction.diameter / 2)
    # The same spots in the image's own pixels: tissue is darker than the glass around it.
    pixels = np.asarray(image).mean(axis=0)
    x, y = np.rint(centres.T).astype(int)
    assert pixels[y, x].mean() < pixels.mean()
    extent = sd.get_extent(image, coordinate_system=SLIDE)
    assert extent["x"][0] == 0
    assert extent["x"][1] >= prediction.xy[:, 0].max()
    assert set(store.coordinate_systems) == {SLIDE, hires}
    return f"{len(circles)} circles, table of {table.n_vars} genes, image {image.shape[1:]}"


def try_ome_zarr(made: Made) -> str:
    """The image, read by the library that napari's plugin reads with."""
    from ome_zarr import io, reader

    prediction = predictions.read(made.draws)
    path = made.folder / "genes.ome.zarr"
    ome_zarr.write(prediction, path, genes=[GENE, "SYNM01"])
    node = next(iter(reader.Reader(io.parse_url(path, mode="r"))()))
    about = node.metadata
    assert about["channel_names"] == [GENE, "SYNM01"]
    largest = np.asarray(node.data[0])
    (_, step, _), (_, y0, x0) = (
        next(t[kind] for t in about["coordinateTransformations"][0] if t["type"] == kind)
        for kind in ("scale", "translation")
    )
    column = np.rint((prediction.xy[:, 0] * prediction.mpp - x0) / step).astype(int)
    row = np.rint((prediction.xy[:, 1] * prediction.mpp - y0) / step).astype(int)
    np.testing.assert_array_equal(largest[0, row, column], prediction.values([GENE])[:, 0])
    assert [axis["name"] for axis in about["axes"]] == ["c", "y", "x"]
    return f"levels {[level.shape for level in node.data]}, {step:g} um a pixel"


def try_lazyslide(made: Made) -> str:
    """Features in, expression out: equal to `stemjax predict` on the same features."""
    import lazyslide as zs
    import tifffile
    import wsidata
    from geopandas import GeoDataFrame
    from shapely.geometry import box
    from spatialdata.models import ShapesModel
    from wsidata.io import add_features

    pixels, scale = made.source.thumbnail(SLIDE)
    tifffile.imwrite(made.folder / "slide.tif", pixels, tile=(256, 256), photometric="rgb")
    wsi = wsidata.open_wsi(made.folder / "slide.tif", store=None)
    table = made.source.load((SLIDE,))
    at, half = np.asarray(table.pixel_xy) * scale, 112 * scale
    tiles = [box(x - half, y - half, x + half, y + half) for x, y in at]
    frame = GeoDataFrame({"tile_id": np.arange(len(tiles))}, geometry=tiles)
    wsi.shapes["tiles"] = ShapesModel.parse(frame)
    features = np.asarray(table.embeddings[:, 0], np.float32)
    add_features(wsi, key="texture_tiles", tile_key="tiles", features=features)
    model = lazyslide_models.ExpressionModel(made.model, features="texture")
    zs.tl.feature_prediction(wsi, model, batch_size=256, pbar=False)
    found = wsi.tables["stemjax_tiles"]
    wanted = anndata.read_h5ad(made.mean)
    assert list(found.var_names) == list(wanted.var_names)
    gap = float(np.abs(np.asarray(found.X) - np.asarray(wanted.X)).max())
    assert gap <= 1e-6, gap
    return f"{found.n_obs} tiles x {found.n_vars} genes, largest difference {gap:.1e}"


def try_geojson(made: Made) -> str:
    """The file for QuPath, read by GDAL's reader of GeoJSON."""
    import geopandas

    prediction = predictions.read(made.draws)
    path = made.folder / "spots.geojson"
    qupath.write(prediction, path, genes=[GENE])
    frame = geopandas.read_file(path)
    assert len(frame) == SPOTS
    assert frame.geometry.is_valid.all()
    centres = np.stack([frame.geometry.centroid.x, frame.geometry.centroid.y], axis=1)
    np.testing.assert_allclose(centres, prediction.xy, atol=0.02)
    first = frame["measurements"].iloc[0]
    first = json.loads(first) if isinstance(first, str) else first
    assert abs(first[f"{GENE} mean"] - prediction.values([GENE])[0, 0]) < 1e-4
    return f"{len(frame)} valid polygons"


def main() -> int:
    """Runs all checks and returns the exit code."""
    warnings.simplefilter("ignore")
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True)
    made = Made(folder)
    checks: dict[str, tuple[str, Callable[[Made], Any]]] = {
        "scanpy": ("scanpy", try_scanpy),
        "squidpy": ("squidpy", try_squidpy),
        "spatialdata": ("spatialdata", try_spatialdata),
        "ome-zarr": ("ome-zarr", try_ome_zarr),
        "lazyslide": ("lazyslide", try_lazyslide),
        "GeoJSON": ("geopandas", try_geojson),
    }
    failed = []
    for name, (package, check) in checks.items():
        start, version = time.perf_counter(), importlib.metadata.version(package)
        try:
            said = check(made)
        except Exception as error:  # noqa: BLE001 - every tool is tried, whatever befell another
            failed.append(name)
            said = f"FAILED: {type(error).__name__}: {error}"
        seconds = time.perf_counter() - start
        print(f"{name} ({package} {version}), {seconds:.1f} s: {said}", flush=True)
    print(
        ", ".join(
            f"{name} {importlib.metadata.version(name)}"
            for name in ("anndata", "numpy", "pandas", "zarr", "jax", "torch")
        )
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
