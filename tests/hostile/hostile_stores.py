"""Stores and folders of newer instruments: SpatialData, Xenium."""

from __future__ import annotations

import io
import json
import pathlib

import h5py
import numpy as np
import payloads
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from boxes import Box, case
from hostile_slides import genes, prepare


def spatialdata(box: Box, image: dict, levels: list[dict]) -> list[str]:
    """A store whose image has any metadata; it is read before the tables are."""
    genes(box)
    top = box.cwd / "in" / "S1.zarr"
    made = payloads.spots()
    made.obs["region"], made.obs["instance"] = "circles", np.arange(12)
    made.obs["region"] = made.obs["region"].astype("category")
    keys = {"region": "circles", "region_key": "region", "instance_key": "instance"}
    del made.obsm["spatial"]
    made.write_zarr(top / "tables" / "table")
    zarr.open_group(top / "tables" / "table", mode="r+").attrs.update(keys)
    (top / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    moved = {"coordinateTransformations": [
        {"type": "identity", "input": {"name": "xy"}, "output": {"name": "global"}}
    ]}  # fmt: skip
    circles = top / "shapes" / "circles"
    circles.mkdir(parents=True)
    (circles / "zarr.json").write_text(
        json.dumps(
            {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": {"encoding-type": "ngff:shapes", "axes": ["x", "y"],
                               "spatialdata_attrs": {"version": "0.3"}, **moved},
            }
        )
    )  # fmt: skip
    points = [b"\x01\x01\0\0\0" + np.array([100.0 + 9 * i, 100.0], "<f8").tobytes()
              for i in range(12)]  # fmt: skip
    table = pa.table({"geometry": points, "radius": [5.0] * 12, "index": list(range(12))})
    pq.write_table(table, circles / "shapes.parquet")
    picture = top / "images" / "he"
    picture.mkdir(parents=True)
    scale = {"type": "scale", "scale": [1.0, 1.0, 1.0]}
    datasets = [{"coordinateTransformations": [scale], **one} for one in levels]
    axes = [{"name": name} for name in "cyx"]
    said = {"multiscales": [{"axes": axes, "datasets": datasets, **moved}]}
    (picture / "zarr.json").write_text(
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"ome": said}})
    )
    (picture / "0").mkdir()
    (picture / "0" / ".zarray").write_text(json.dumps(image))
    (picture / "0" / "0.0.0").write_bytes(payloads.pickled(box.canary))
    return [
        *("encode", "in", "--layout", "spatialdata", "--mpp", "0.5", "-o", "out"),
    ]


def pixels(**more):
    return {
        "zarr_format": 2, "shape": [3, 256, 256], "chunks": [3, 256, 256], "dtype": "|u1",
        "fill_value": 0, "order": "C", "filters": None, "compressor": None,
    } | more  # fmt: skip


@case("pickle")
def image_compressed_by_pickle(box):
    compressor = {"id": "pickle", "protocol": 5}
    return spatialdata(box, pixels(compressor=compressor), [{"path": "0"}])


@case("a level at")
def image_whose_level_lies_elsewhere(box):
    return spatialdata(box, pixels(), [{"path": "../../../../../secret.txt"}])


@case("leads outside")
def image_whose_chunk_is_a_link_outside(box):
    command = spatialdata(box, pixels(), [{"path": "0"}])
    chunk = box.cwd / "in" / "S1.zarr" / "images" / "he" / "0" / "0.0.0"
    chunk.unlink()
    chunk.symlink_to(box.secret)
    return command


@case("pieces too large")
def image_of_one_gigantic_chunk(box):
    size = [3, 2**20, 2**20]
    return spatialdata(box, pixels(shape=size, chunks=size), [{"path": "0"}])


def xenium(box: Box) -> pathlib.Path:
    genes(box)
    outs = box.cwd / "in"
    outs.mkdir()
    (outs / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.2125}))
    with h5py.File(outs / "cell_feature_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = [f"c{i}" for i in range(12)]
        group["features/id"] = [f"ENSG{i}" for i in range(8)]
        group["features/name"] = list(payloads.GENES)
        group["features/feature_type"] = ["Gene Expression"] * 8
        group["data"], group["indices"] = np.ones(12, np.int32), np.zeros(12, np.int64)
        group["indptr"], group["shape"] = np.arange(13), np.array([8, 12])
    return outs


@case("[SJ-")
def parquet_that_lies(box):
    outs = xenium(box)
    out = io.BytesIO()
    columns = {"cell_id": [f"c{i}" for i in range(12)], "x_centroid": [1.0] * 12}
    pq.write_table(pa.table(columns | {"y_centroid": [1.0] * 12}), out)
    raw = bytearray(out.getvalue())
    rng = np.random.default_rng(3)
    for at in rng.integers(4, len(raw) - 8, 200):
        raw[at] = 255
    (outs / "cells.parquet").write_bytes(raw)
    return prepare("--layout", "xenium")


@case("[SJ-")
def experiment_nested_deeply(box):
    outs = xenium(box)
    (outs / "experiment.xenium").write_text(payloads.nested())
    return prepare("--layout", "xenium")
