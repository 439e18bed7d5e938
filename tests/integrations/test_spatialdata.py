"""SpatialData: names and refusals here; the store itself where the package is installed.

`examples/try_ecosystem.sh` installs it and reads a store back.
"""

from __future__ import annotations

import importlib

import made_prediction
import numpy as np
import pytest

from stemjax import errors
from stemjax.integrations import prediction as predictions
from stemjax.integrations import spatialdata


@pytest.mark.parametrize(
    ("slide", "name"),
    [
        ("drawn-8", "drawn-8"),
        ("Slide 1/2", "Slide_1_2"),
        ("__init", "_init"),
        ("..", "slide"),
        ("", "slide"),
        ("µ", "_"),
    ],
)
def test_names_are_ones_that_spatialdata_takes(slide, name):
    assert spatialdata.element_name(slide) == name


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    real = importlib.import_module

    def missing(name, package=None):
        if name == "geopandas":
            raise ModuleNotFoundError("No module named 'geopandas'", name=name)
        return object() if name == "spatialdata" else real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    prediction = predictions.of_anndata(made_prediction.make())
    with pytest.raises(errors.ConfigError, match=r"geopandas.*stemjax\[spatialdata\]"):
        spatialdata.write(prediction, tmp_path / "out.zarr")
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(tmp_path):
    (tmp_path / "mine").write_text("mine")
    prediction = predictions.of_anndata(made_prediction.make())
    with pytest.raises(errors.ConfigError, match="in the way"):
        spatialdata.write(prediction, tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.fixture
def library():
    return pytest.importorskip("spatialdata")


@pytest.mark.filterwarnings("ignore")
def test_a_store_is_read_back(library, tmp_path):
    made = made_prediction.make()
    made.obsm["stemjax_draws"] = np.stack([np.asarray(made.X)] * 2, axis=1)
    prediction = predictions.of_anndata(made)
    spatialdata.write(prediction, tmp_path / "out.zarr", genes=["KRT5", "ACTB"])
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]
    store = library.read_zarr(tmp_path / "out.zarr")
    table = store.tables["table"]
    assert list(table.var_names) == ["KRT5", "ACTB"]
    np.testing.assert_array_equal(np.asarray(table.X), np.asarray(made.X)[:, [1, 3]])
    np.testing.assert_array_equal(table.obsm["stemjax_draws"][:, 1], table.X)
    assert table.uns["stemjax"]["value_space"] == "log2p1"
    assert set(table.obs["region"]) == {"S1"}
    assert list(table.obs["spot_id"]) == list(store.shapes["S1"].index)
    centres = library.get_centroids(store.shapes["S1"], coordinate_system="S1").compute()
    np.testing.assert_allclose(np.asarray(centres), prediction.xy)
    np.testing.assert_allclose(store.shapes["S1"]["radius"], 55.0)
    centres = library.get_centroids(
        store.shapes["S1"], coordinate_system="S1_downscaled_hires"
    ).compute()
    np.testing.assert_allclose(np.asarray(centres), prediction.xy / 4)
    extent = library.get_extent(store.images["S1_hires_image"], coordinate_system="S1")
    assert extent["x"] == pytest.approx((0, 4 * 330))
    assert extent["y"] == pytest.approx((0, 4 * 340))
    # The caller's AnnData is as it was.
    assert "region" not in made.obs
    assert "spatial" in made.uns


@pytest.mark.filterwarnings("ignore")
def test_a_slide_without_an_image_has_one_system(library):
    made = made_prediction.make(image=False)
    found = spatialdata.to_spatialdata(predictions.of_anndata(made))
    assert found.coordinate_systems == ["S1"]
    assert not found.images
