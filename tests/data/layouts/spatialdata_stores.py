"""The golden SpatialData stores, which spatialdata itself wrote (golden/make_spatialdata.py)."""

from __future__ import annotations

import pathlib
import zipfile

GOLDEN = pathlib.Path(__file__).parent / "golden"


def unpack(folder: pathlib.Path, version: str = "v3", name: str = "S1") -> pathlib.Path:
    """A store in one of both formats: v2 is of zarr 2 and OME-NGFF 0.4, v3 of zarr 3 and 0.5."""
    store = folder / f"{name}.zarr"
    with zipfile.ZipFile(GOLDEN / f"visium_{version}.zarr.zip") as file:
        file.extractall(store)
    return store
