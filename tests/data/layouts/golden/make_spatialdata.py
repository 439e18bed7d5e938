"""Makes the golden SpatialData stores: a made Visium slide, read and written by others' tools.

In an environment with spatialdata 0.8.0, spatialdata-io 0.7.1 and jaxtyping, from the root:

    PYTHONPATH=.:tests/data/layouts python tests/data/layouts/golden/make_spatialdata.py

The slide is that of `visium_folders`, so a test knows each number; spatialdata-io reads it as it
reads a user's, and spatialdata writes it in both of its container formats (zarr 2 and 3). A zip
holds each: a store has a hundred files of some bytes.
"""

from __future__ import annotations

import pathlib
import tempfile
import warnings
import zipfile

import spatialdata_io
import visium_folders as made
from PIL import Image
from spatialdata._io import format as formats

HERE = pathlib.Path(__file__).parent
CONTAINERS = {
    "v2": formats.SpatialDataContainerFormatV01(),
    "v3": formats.SpatialDataContainerFormatV02(),
}


def main() -> None:
    """Writes both stores beside this file."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        outs = made.write_slide(pathlib.Path(scratch) / "S1")
        small = Image.open(outs / "spatial" / "tissue_hires_image.png")
        small.reduce(3).save(outs / "spatial" / "tissue_lowres_image.png")
        sdata = spatialdata_io.visium(outs, dataset_id="S1", fullres_image_file="he.tif")
        for name, container in CONTAINERS.items():
            store = pathlib.Path(scratch) / f"{name}.zarr"
            sdata.write(store, sdata_formats=[container])
            pack(store, HERE / f"visium_{name}.zarr.zip")


def pack(store: pathlib.Path, target: pathlib.Path) -> None:
    """A zip whose bytes depend on the store alone."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for path in sorted(store.rglob("*")):
            if path.is_file():
                info = zipfile.ZipInfo(path.relative_to(store).as_posix())
                info.compress_type = zipfile.ZIP_DEFLATED
                file.writestr(info, path.read_bytes())


if __name__ == "__main__":
    main()
