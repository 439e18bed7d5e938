"""OME-Zarr: NGFF 0.5 as its text has it, pixels against positions in um."""

from __future__ import annotations

import json

import made_prediction
import numpy as np
import pytest
import zarr

from stemjax import errors
from stemjax.integrations import ome_zarr, rasters
from stemjax.integrations import prediction as predictions


def written(tmp_path, made=None, **options):
    prediction = predictions.of_anndata(made_prediction.make() if made is None else made)
    path = tmp_path / "out.ome.zarr"
    shape = ome_zarr.write(prediction, path, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["out.ome.zarr"]
    group = zarr.open_group(str(path), mode="r")
    assert group["0"].shape == shape
    return prediction, group


def places(group, level):
    """Centres of the pixels of a level in um, [h w 2] (x, y), by its transformations."""
    steps = group.attrs["ome"]["multiscales"][0]["datasets"][level]["coordinateTransformations"]
    assert [one["type"] for one in steps] == ["scale", "translation"]
    (_, dy, dx), (_, y, x) = steps[0]["scale"], steps[1]["translation"]
    _, height, width = group[str(level)].shape
    return np.stack(
        np.broadcast_arrays(
            (x + dx * np.arange(width))[None, :], (y + dy * np.arange(height))[:, None]
        ),
        axis=-1,
    )


def test_each_pixel_shows_the_spot_that_it_lies_in(tmp_path):
    prediction, group = written(tmp_path, genes=["KRT5", "HLA-A"])
    centres = places(group, 0)
    gaps = np.linalg.norm(centres[:, :, None] - (prediction.xy * 0.5)[None, None], axis=-1)
    nearest, inside = gaps.argmin(axis=-1), gaps.min(axis=-1) <= 27.5
    found = group["0"][:]
    assert 0.2 < inside.mean() < 0.5
    for channel, gene in enumerate(["KRT5", "HLA-A"]):
        wanted = np.where(inside, prediction.values([gene])[:, 0][nearest], np.nan)
        np.testing.assert_array_equal(found[channel], wanted)
    # Eight pixels across a spot of 55 um.
    assert np.diff(centres[0, :2, 0])[0] == pytest.approx(55 / 8)
    counts = np.bincount(nearest[inside], minlength=30)
    np.testing.assert_allclose(counts, np.pi * 16, rtol=0.15)


def test_levels_are_means_that_stay_in_their_place(tmp_path):
    _, group = written(tmp_path, genes=["KRT5"], pixel_um=0.6)
    levels = len(group.attrs["ome"]["multiscales"][0]["datasets"])
    assert levels == 3
    for level in range(1, levels):
        assert max(group[str(level)].shape) == -(-max(group[str(level - 1)].shape) // 2)
        fine, coarse = places(group, level - 1), places(group, level)
        np.testing.assert_allclose(coarse[0, 0], fine[:2, :2].mean(axis=(0, 1)))
        np.testing.assert_allclose(coarse[1, 2], fine[2:4, 4:6].mean(axis=(0, 1)))
    assert max(group[str(levels - 1)].shape) <= ome_zarr.SMALLEST
    assert max(group[str(levels - 2)].shape) > ome_zarr.SMALLEST


def test_halving_leaves_out_what_is_missing():
    nan = np.nan
    image = np.array([[1, 3, nan, nan, 5], [nan, 5, nan, nan, nan], [2, 4, 6, 8, 1]], np.float32)
    wanted = np.array([[3, nan, 5], [3, 7, 1]], np.float32)
    np.testing.assert_array_equal(ome_zarr.halved(image), wanted)


def test_metadata_is_that_of_ngff(tmp_path):
    made = made_prediction.with_values(made_prediction.make(), {(i, 2): np.nan for i in range(30)})
    prediction, group = written(tmp_path, made, genes=["KRT5", "CD8A"])
    raw = json.loads(
        (tmp_path / "out.ome.zarr" / "zarr.json").read_text(), parse_constant=pytest.fail
    )
    assert raw["zarr_format"] == 3
    ome = raw["attributes"]["ome"]
    assert ome["version"] == "0.5"
    image = ome["multiscales"][0]
    assert [(axis["name"], axis["type"]) for axis in image["axes"]] == [
        ("c", "channel"), ("y", "space"), ("x", "space"),
    ]  # fmt: skip
    assert [axis.get("unit") for axis in image["axes"]] == [None, "micrometer", "micrometer"]
    channels = ome["omero"]["channels"]
    assert [one["label"] for one in channels] == ["KRT5", "CD8A"]
    assert [one["active"] for one in channels] == [True, False]
    values = prediction.values(["KRT5"]).astype(float)
    window = channels[0]["window"]
    assert (window["start"], window["end"]) == pytest.approx(
        tuple(np.quantile(values, [0.01, 0.99]))
    )
    assert np.isnan(group["0"][1]).all()
    assert group["0"].metadata.dimension_names == ("c", "y", "x")
    assert raw["attributes"]["stemjax"]["value_space"] == "log2p1"


def test_without_a_pixel_size_lengths_are_pixels(tmp_path):
    made = made_prediction.make()
    del made.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"]
    _, group = written(tmp_path, made, genes=["KRT5"])
    assert not any("unit" in axis for axis in group.attrs["ome"]["multiscales"][0]["axes"])
    assert np.diff(places(group, 0)[0, :2, 0])[0] == pytest.approx(110 / 8)


def test_a_larger_radius_closes_the_gaps():
    prediction = predictions.of_anndata(made_prediction.make())
    near = rasters.discs(prediction)
    far = rasters.discs(prediction, radius=200.0)
    share = [(grid.spots != rasters.NOTHING).mean() for grid in (near, far)]
    assert share[0] < 0.5
    assert share[1] > 0.9


def test_huge_slides_have_larger_pixels(monkeypatch):
    prediction = predictions.of_anndata(made_prediction.make())
    monkeypatch.setattr(rasters, "LONGEST", 20)
    grid = rasters.discs(prediction)
    assert max(grid.spots.shape) == 20
    with pytest.raises(errors.ConfigError, match="at most 6400 pixels"):
        rasters.discs(prediction, step=2.0)


def test_rows_of_blocks_make_one_image(monkeypatch):
    prediction = predictions.of_anndata(made_prediction.make())
    whole = rasters.discs(prediction).spots
    monkeypatch.setattr(rasters, "_ROWS", 7)
    np.testing.assert_array_equal(rasters.discs(prediction).spots, whole)


@pytest.mark.parametrize("options", [{"pixel_um": 0.0}, {"radius_um": -1.0}])
def test_sizes_that_cannot_be_are_refused(tmp_path, options):
    prediction = predictions.of_anndata(made_prediction.make())
    with pytest.raises(errors.ConfigError, match="sizes"):
        ome_zarr.write(prediction, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_and_what_is_there_stays(tmp_path, monkeypatch):
    prediction = predictions.of_anndata(made_prediction.make())
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    with pytest.raises(errors.ConfigError, match="in the way"):
        ome_zarr.write(prediction, tmp_path / "there")

    def fail(image):
        raise OSError("the disk is full")

    monkeypatch.setattr(ome_zarr, "halved", fail)
    with pytest.raises(OSError, match="full"):
        ome_zarr.write(prediction, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
