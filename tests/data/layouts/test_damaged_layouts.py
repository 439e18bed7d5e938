"""Bytes of files changed at random: every reader ends in a typed error or a slide that is valid."""

import contextlib

import annotated_files
import numpy as np
import pytest
import spatialdata_stores
import visium_folders
import visium_hd_folders
import xenium_folders

from stemjax import errors
from stemjax.data import layouts

MUTATIONS = 100
FEW = 12  # of a zarr store, which takes a tenth of a second to read; all of them are slow
MOST_BYTES = 4  # changed at once


def write_h5ad(top):
    annotated_files.write(top, annotated_files.table())


WRITERS = {
    "visium": lambda top: visium_folders.write_slide(top / "S1"),
    "visium-hd": lambda top: visium_hd_folders.write_slide(top / "S1"),
    "xenium": lambda top: xenium_folders.write_region(top / "S1"),
    "h5ad": write_h5ad,
    "spatialdata": spatialdata_stores.unpack,
}
HD = "S1/binned_outputs/square_016um"
FILES = [
    ("visium", "S1/spatial/tissue_positions.csv"),
    ("visium", "S1/spatial/scalefactors_json.json"),
    ("visium-hd", f"{HD}/spatial/tissue_positions.parquet"),
    ("visium-hd", f"{HD}/spatial/scalefactors_json.json"),
    ("visium-hd", f"{HD}/filtered_feature_bc_matrix.h5"),
    ("xenium", "S1/cells.parquet"),
    ("xenium", "S1/experiment.xenium"),
    ("xenium", "S1/S_he_imagealignment.csv"),
    ("h5ad", "S1.h5ad"),
    ("spatialdata", "S1.zarr/shapes/S1/shapes.parquet"),
    ("spatialdata", "S1.zarr/shapes/S1/zarr.json"),
    ("spatialdata", "S1.zarr/images/S1_full_image/zarr.json"),
    ("spatialdata", "S1.zarr/images/S1_full_image/s0/zarr.json"),
    ("spatialdata", "S1.zarr/tables/table/zarr.json"),
    ("spatialdata", "S1.zarr/tables/table/X/indices/c/0"),
    ("spatialdata", "S1.zarr/images/S1_full_image/s0/c/0/0/0"),
]


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A sound tree of each layout."""
    found = {}
    for name, write in WRITERS.items():
        found[name] = tmp_path_factory.mktemp("trees")
        write(found[name])
    return found


def mutated(whole, rng):
    """The bytes with a few changed, or cut off."""
    values = bytearray(whole)
    for place in rng.integers(0, len(values), rng.integers(1, MOST_BYTES + 1)):
        values[place] = rng.integers(0, 256)
    return bytes(values[: rng.integers(len(values))] if rng.random() < 0.1 else values)


CASES = [
    pytest.param(*file, n, id="-".join([*file, str(n)]), marks=[pytest.mark.slow] * slow)
    for file in FILES
    for n, slow in ([(FEW, 0), (MUTATIONS, 1)] if file[0] == "spatialdata" else [(MUTATIONS, 0)])
]


@pytest.mark.parametrize(("layout", "file", "n"), CASES)
def test_damage_ends_in_a_typed_error_or_a_valid_slide(trees, layout, file, n):
    path, module = trees[layout] / file, layouts.layout(layout)
    whole = path.read_bytes()
    rng = np.random.default_rng([20261129, FILES.index((layout, file))])
    refused = 0
    try:
        for _ in range(n):
            path.write_bytes(mutated(whole, rng))
            try:
                slide = module.read_slide(trees[layout], "S1")
            except errors.StemjaxError:
                refused += 1
                continue
            assert slide.n_spots > 0
            assert np.isfinite(slide.pixel_xy).all()
            assert 0 < slide.mpp < np.inf
            with contextlib.suppress(errors.ImageError):
                slide.image.read(0, 0, 64, 64)
    finally:
        path.write_bytes(whole)
    assert refused > 0 or file.endswith("c/0/0/0")  # that chunk is read later
    assert module.read_slide(trees[layout], "S1").n_spots > 0
