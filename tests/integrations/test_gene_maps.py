"""Pictures of genes: which pixel shows which spot, and that nothing is half-written."""

from __future__ import annotations

import json

import made_prediction
import numpy as np
import pytest
from PIL import Image

from stemjax import errors
from stemjax.eval import plots
from stemjax.integrations import gene_maps, rasters
from stemjax.integrations import prediction as predictions


@pytest.mark.parametrize("hexagonal", [True, False])
def test_bare_pixels_are_the_values_at_their_places(tmp_path, hexagonal):
    made = made_prediction.make(hexagonal=hexagonal)
    keep = [i for i in range(30) if i != 7]
    made = made[keep].copy()
    prediction = predictions.of_anndata(made)
    files = gene_maps.write(prediction, tmp_path / "out", genes=["KRT5"], bare=True)
    assert [file.name for file in files] == ["KRT5.png"]
    with Image.open(tmp_path / "out" / "KRT5.tiff") as opened:
        image = np.asarray(opened)
    assert image.dtype == np.float32
    wanted = np.full((6, 5), np.nan, np.float32)
    wanted.ravel()[keep] = np.asarray(made.X)[:, 1]
    np.testing.assert_array_equal(image, wanted)
    about = json.loads((tmp_path / "out" / gene_maps.INDEX).read_text())
    assert about["units"] == "log2(count + 1)"
    entry = about["maps"][0]
    low, high = np.quantile(np.asarray(made.X)[:, 1].astype(float), [0.01, 0.99])
    assert (entry["black"], entry["white"]) == pytest.approx((low, high))
    with Image.open(files[0]) as opened:
        assert opened.mode == "L"
        grey = np.asarray(opened).astype(float)
    assert grey[1, 2] == 0  # the spot that is not there
    assert (grey.ravel()[keep] > 0).all()
    value = low + (grey.ravel()[keep] - 1) / 254 * (high - low)
    assert np.abs(value - np.clip(wanted.ravel()[keep], low, high)).max() <= (high - low) / 500


def test_a_hexagonal_array_seen_with_odd_rows_first_has_no_gaps():
    made = made_prediction.make()
    made.obs["array_row"] += 1  # rows and columns of unlike parity
    places = rasters.array_places(predictions.of_anndata(made))
    assert places.shape == (6, 5)
    np.testing.assert_array_equal(places.ravel(), np.arange(30))


def test_a_square_array_of_one_row_keeps_its_gaps():
    made = made_prediction.make(hexagonal=False)[:5].copy()
    made.obs["array_col"] *= 2
    places = rasters.array_places(predictions.of_anndata(made))
    np.testing.assert_array_equal(places, [[0, -1, 1, -1, 2, -1, 3, -1, 4]])


def test_spots_without_an_array_of_their_own_are_refused(tmp_path):
    made = made_prediction.make()
    made.obs["array_col"] = 1.0
    with pytest.raises(errors.PredictionError, match="same place"):
        gene_maps.write(predictions.of_anndata(made), tmp_path / "out", bare=True)
    del made.obs["array_col"]
    with pytest.raises(errors.PredictionError, match="no array positions"):
        gene_maps.write(predictions.of_anndata(made), tmp_path / "out", bare=True)
    assert not list(tmp_path.iterdir())


def test_figures_show_the_image_in_um(tmp_path, monkeypatch):
    seen = {}

    def maps(genes, measured, predicted, tissue, **given):
        seen.update(genes=genes, measured=measured, predicted=predicted, tissue=tissue, **given)
        return tuple(b"png" for _ in genes)

    monkeypatch.setattr(plots, "maps", maps)
    made = made_prediction.make()
    gene_maps.write(predictions.of_anndata(made), tmp_path / "out", genes=["KRT5", "ACTB"])
    tissue = seen["tissue"]
    np.testing.assert_allclose(tissue.xy, made.obsm["spatial"] * 0.5)
    assert (tissue.unit, tissue.diameter) == ("um", 55.0)
    # A pixel of the image is 4 level-0 pixels, 2 um.
    assert tissue.image[1] == pytest.approx(0.5)
    assert seen["measured"] is None
    assert seen["units"] == "log2(count + 1)"
    np.testing.assert_array_equal(seen["predicted"], np.asarray(made.X)[:, [1, 3]])
    np.testing.assert_array_equal(seen["spread"], np.asarray(made.layers["stemjax_std"])[:, [1, 3]])


def test_figures_are_pictures_without_a_pixel_size_too(tmp_path):
    made = made_prediction.make()
    del made.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"]
    files = gene_maps.write(predictions.of_anndata(made), tmp_path / "out", genes=["KRT5"])
    with Image.open(files[0]) as opened:
        assert opened.format == "PNG"
        assert min(opened.size) > 300
        assert np.asarray(opened.convert("L")).std() > 5


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr(plots, "maps", fail)
    with pytest.raises(OSError, match="full"):
        gene_maps.write(predictions.of_anndata(made_prediction.make()), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_constant_and_missing_genes_have_a_range():
    assert gene_maps.grey_range(np.full(3, 2.0)) == (2.0, 3.0)
    assert gene_maps.grey_range(np.full(3, np.nan)) == (0.0, 1.0)
