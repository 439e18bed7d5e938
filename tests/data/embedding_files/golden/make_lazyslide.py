"""Writes lazyslide.zarr.zip by real wsidata (0.12.0, spatialdata 0.8.0); run once, where it is.

    python make_lazyslide.py

The image is white and stays out of the store. The features of a tile are those of
`embedded_slide.vector` of its centre; tables are named as LazySlide names them.
"""

import pathlib
import tempfile
import zipfile

import numpy as np
import tifffile
import wsidata
from wsidata.io import add_features, add_tiles

HERE = pathlib.Path(__file__).resolve().parent
MPP, TILE, ORIGIN, COLUMNS, ROWS = 0.5, 256, (128, 256), 7, 4


def vector(xy):
    x, y = xy.T.astype(float)
    one = np.ones_like(x)
    return np.stack([x / 64, y / 64, 0 * one, one, -one / 2, (x - y) / 64], 1)


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        image, store = folder / "G1.tif", folder / "lazyslide.zarr"
        tifffile.imwrite(
            image,
            np.full((1536, 2048, 3), 255, np.uint8),
            tile=(256, 256),
            compression="deflate",
            resolution=(1e4 / MPP, 1e4 / MPP),
            resolutionunit="CENTIMETER",
        )
        wsi = wsidata.open_wsi(image, store=str(store), reader="tiffslide")
        wsi.set_mpp(MPP)
        x, y = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
        corners = np.stack([x.ravel(), y.ravel()], 1) * TILE + np.array([ORIGIN])
        corners = corners[np.random.default_rng(7).permutation(len(corners))]
        spec = wsidata.TileSpec.from_wsidata(wsi, tile_px=TILE, mpp=MPP)
        add_tiles(wsi, "tiles", corners, spec, np.zeros(len(corners), int))
        for model in ("uni", "conch"):
            values = vector(corners + TILE / 2).astype(np.float32)
            add_features(wsi, f"{model}_tiles", "tiles", values)
        wsi.write(str(store))
        with zipfile.ZipFile(HERE / "lazyslide.zarr.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for one in sorted(store.rglob("*")):
                if one.is_file():
                    packed.write(one, one.relative_to(store))


if __name__ == "__main__":
    main()
