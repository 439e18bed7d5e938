"""Reading SpatialData stores that spatialdata itself wrote, in both formats; what does not fit."""

import json
import pickle
import shutil
import struct

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import visium_folders as made
import zarr
from spatialdata_stores import unpack

from stemjax import errors
from stemjax.data.layouts import shapes, spatialdata_zarr, transformations, zarr_image


@pytest.fixture
def store(tmp_path):
    return unpack(tmp_path)


def change(store, element, edit):
    """Edits the attributes of an element of a zarr 3 store."""
    path = store / element / "zarr.json"
    meta = json.loads(path.read_text())
    edit(meta["attributes"])
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_store_of_spatialdata_is_read_whole(tmp_path, version):
    store = unpack(tmp_path, version)
    slide = spatialdata_zarr.read_slide(tmp_path, "S1")
    place = made.positions().iloc[made.spots()]
    assert (slide.id, slide.patient) == ("S1", None)
    # scanpy keeps the genes that share a symbol, and makes their names unique.
    assert slide.genes == ("ACTB", "TBCE", "ERBB2", "TBCE-1", "KRT5")
    assert slide.gene_ids == ("ENSG01", "ENSG02", "ENSG03", "ENSG04", "ENSG05")
    assert slide.barcodes == tuple(made.barcodes())
    np.testing.assert_array_equal(slide.counts.toarray(), made.counts()[:, [0, 1, 3, 4, 6]])
    np.testing.assert_array_equal(slide.array_xy, place[["array_col", "array_row"]])
    pixel_xy = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(np.float32)
    np.testing.assert_array_equal(slide.pixel_xy, pixel_xy)
    assert slide.mpp == pytest.approx(made.MPP, rel=1e-9)
    assert slide.spot_diameter_um == 55.0
    assert slide.labels == {}  # the region's name is none
    assert slide.notes == ("pixel size 2.083 um from spots 100 um apart",)
    assert set(slide.sources) == {"tables/table", "shapes/S1", "images/S1_full_image"}
    assert store.is_dir()


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_regions_of_an_image_in_a_store(tmp_path, version):
    unpack(tmp_path, version)
    image = spatialdata_zarr.read_slide(tmp_path, "S1").image
    picture = made.picture()
    assert (image.width, image.height) == made.SIZE
    np.testing.assert_array_equal(image.read(0, 0, *made.SIZE), picture)
    np.testing.assert_array_equal(image.read(250, 250, 13, 9), picture[250:259, 250:263])
    # Beyond the edge is white.
    corner = image.read(-2, 435, 5, 8)
    np.testing.assert_array_equal(corner[:5, 2:], picture[435:, :3])
    assert (corner[:, :2] == 255).all()
    assert (corner[5:] == 255).all()
    assert (image.read(1000, 1000, 2, 2) == 255).all()
    small, scale = image.thumbnail(100)
    assert small.shape == (96, 100, 3)
    assert scale == pytest.approx(100 / 460)
    # A smooth picture reduced is the picture at the middle of each pixel, to a level or two.
    y, x = np.mgrid[:96, :100]
    expected = np.stack([(x + 0.5) / scale / 2, (y + 0.5) / scale / 2], axis=2)
    inner = (slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(small[inner][..., :2], expected[inner], atol=3)
    again = pickle.loads(pickle.dumps(image))
    np.testing.assert_array_equal(again.read(5, 6, 7, 8), picture[6:14, 5:12])
    with pytest.raises(errors.ImageError, match="cannot read a region of 0 x 5"):
        image.read(0, 0, 0, 5)


def test_rows_and_shapes_are_joined_by_instance(store):
    path = store / "shapes" / "S1" / "shapes.parquet"
    frame = pd.read_parquet(path)
    frame.sample(frac=1, random_state=3).to_parquet(path)
    place = made.positions().iloc[made.spots()]
    pixel_xy = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(np.float32)
    np.testing.assert_array_equal(spatialdata_zarr.read_slide(store, "S1").pixel_xy, pixel_xy)
    frame.drop(index=[5, 7]).to_parquet(path)
    with pytest.raises(errors.SlideError, match=r"parquet lacks 2 of the 48 .*such as 5, 7"):
        spatialdata_zarr.read_slide(store, "S1")
    frame.drop(columns="radius").to_parquet(path)
    with pytest.raises(errors.SlideError, match="points without a radius"):
        spatialdata_zarr.read_slide(store, "S1")


def systems(*transformations):
    """Transformations of shapes to the system S1, in the order of the axes y, x."""
    axes = {"name": "yx", "axes": [{"name": "y"}, {"name": "x"}]}
    return [
        {"input": axes, "output": {"name": "S1", "axes": axes["axes"]}} | dict(one)
        for one in transformations
    ]


@pytest.mark.parametrize(
    ("one", "scale", "shift"),
    [
        ({"type": "identity"}, (1, 1), (0, 0)),
        ({"type": "scale", "scale": [0.55, 0.5]}, (0.5, 0.55), (0, 0)),
        ({"type": "translation", "translation": [7.0, 9.0]}, (1, 1), (9, 7)),
        (
            {
                "type": "sequence",
                "transformations": systems(
                    {"type": "translation", "translation": [7.0, 9.0]},
                    {"type": "scale", "scale": [0.5, 0.5]},
                ),
            },
            (0.5, 0.5),
            (4.5, 3.5),
        ),
    ],
)
def test_transformations_that_are_known(store, one, scale, shift):
    def edit(attributes):
        attributes["coordinateTransformations"] = systems(one)

    change(store, "shapes/S1", edit)
    slide = spatialdata_zarr.read_slide(store, "S1", mpp=1.0)
    place = made.positions().iloc[made.spots()]
    pixel_xy = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    np.testing.assert_allclose(slide.pixel_xy, pixel_xy * scale + shift, rtol=1e-6)


def test_image_s_own_transformation_is_turned_back(store):
    def edit(attributes):
        one = attributes["ome"]["multiscales"][0]["coordinateTransformations"][0]
        steps = [{"type": "scale", "scale": [1.0, 2.0, 2.0]},  # c, y, x
                 {"type": "translation", "translation": [0.0, 8.0, 6.0]}]  # fmt: skip
        steps = [one | step for step in steps]
        one |= {"type": "sequence", "transformations": steps}

    change(store, "images/S1_full_image", edit)
    slide = spatialdata_zarr.read_slide(store, "S1")
    place = made.positions().iloc[made.spots()]
    pixel_xy = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    np.testing.assert_allclose(slide.pixel_xy, (pixel_xy - (6, 8)) / 2, rtol=1e-6)
    assert slide.mpp == pytest.approx(2 * made.MPP)  # of the image's pixels


def test_transformations_that_are_not_known_are_refused(store):
    affine = {"type": "affine", "affine": [[1, 0.1, 0], [0, 1, 0]]}
    for one, told in (
        (affine, "found affine"),
        ({"type": "scale", "scale": [1.0, 3.0]}, "scale of 3 by 1"),
        ({"type": "scale", "scale": [-1.0, -1.0]}, "scale of -1 by -1"),
        ({"type": "sequence", "transformations": systems(affine)}, "found affine"),
    ):
        change(
            store,
            "shapes/S1",
            lambda a, one=one: a.update(coordinateTransformations=systems(one)),
        )
        with pytest.raises(errors.SlideError, match=rf"shapes S1: .*not read.*{told}.*Apply it"):
            spatialdata_zarr.read_slide(store, "S1")
    for broken in ({"type": "scale", "scale": [1.0]}, {"type": "scale"}, {"type": "translation",
                   "translation": ["a", 1]}):  # fmt: skip
        change(
            store,
            "shapes/S1",
            lambda a, one=broken: a.update(coordinateTransformations=systems(one)),
        )
        with pytest.raises(errors.SlideError, match="shapes S1: .*transformation is damaged"):
            spatialdata_zarr.read_slide(store, "S1")
    change(store, "shapes/S1", lambda a: a.update(coordinateTransformations=[]))
    with pytest.raises(errors.SlideError, match="share no coordinate system.*none; and S1"):
        spatialdata_zarr.read_slide(store, "S1")


def test_coarse_images_are_taken_on_request_only(store):
    slide = spatialdata_zarr.read_slide(store, "S1", image="S1_hires_image")
    place = made.positions().iloc[made.spots()]
    pixel_xy = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    np.testing.assert_allclose(slide.pixel_xy, made.SCALE * pixel_xy, rtol=1e-6)
    assert slide.mpp == pytest.approx(made.MPP / made.SCALE)
    shutil.rmtree(store / "images" / "S1_full_image")
    told = "S1: there is no image of full resolution.*S1_hires_image, S1_lowres_image"
    with pytest.raises(errors.ImageError, match=told):
        spatialdata_zarr.read_slide(store, "S1")
    without = spatialdata_zarr.read_slide(store, "S1", need_image=False)
    assert without.image is None
    np.testing.assert_array_equal(without.pixel_xy, pixel_xy.astype(np.float32))
    assert "the shapes' own coordinates" in without.notes[-1]
    with pytest.raises(errors.SlideError, match="S1: no image 'other'.*S1_hires_image"):
        spatialdata_zarr.read_slide(store, "S1", image="other")


def test_which_of_several(store):
    shutil.copytree(store / "images/S1_full_image", store / "images" / "S1_if")
    assert "S1_full_image" in spatialdata_zarr.read_slide(store, "S1").image.source
    (store / "images/S1_full_image").rename(store / "images" / "S1_he")
    with pytest.raises(errors.SlideError, match="S1: which image.*S1_he, S1_if"):
        spatialdata_zarr.read_slide(store, "S1")
    shutil.copytree(store / "tables/table", store / "tables" / "other")
    with pytest.raises(errors.SlideError, match="S1: which table.*found other, table"):
        spatialdata_zarr.read_slide(store, "S1", image="S1_he")
    change(store, "tables/table", lambda a: a.update(region=["S1", "S2"]))
    with pytest.raises(errors.SlideError, match="S1: which region.*found S1, S2"):
        spatialdata_zarr.read_slide(store, "S1", image="S1_he", table="table")
    with pytest.raises(errors.SlideError, match="no row is of region 'S2'.*found S1"):
        spatialdata_zarr.read_slide(store, "S1", table="table", region="S2")
    slide = spatialdata_zarr.read_slide(store, "S1", image="S1_he", table="table", region="S1")
    assert slide.n_spots == 48


def test_region_s_name_is_no_path(store):
    names = np.array(["../../x"] * 48, object)
    group = zarr.open_group(str(store / "tables/table"), mode="r+")
    del group["obs/region"]
    anndata.io.write_elem(group["obs"], "region", pd.Categorical(names))
    change(store, "tables/table", lambda a: a.update(region="../../x"))
    with pytest.raises(errors.SlideError, match=r"no row is of region '\.\./\.\./x'"):
        spatialdata_zarr.read_slide(store, "S1")


def test_levels_of_an_image_are_no_paths(store):
    def edit(attributes):
        attributes["ome"]["multiscales"][0]["datasets"][0]["path"] = "../S1_hires_image/s0"

    change(store, "images/S1_full_image", edit)
    with pytest.raises(errors.ImageError, match=r"cannot be used.*a level at '\.\./S1_hires"):
        spatialdata_zarr.read_slide(store, "S1")


@pytest.mark.parametrize(
    ("shape", "dtype", "axes", "told"),
    [
        ((3, 8, 8), np.uint16, "cyx", "uint16 of shape"),
        ((2, 8, 8), np.uint8, "cyx", r"uint8 of shape \(2, 8, 8\)"),
        ((8, 8, 3), np.uint8, "yxc", "axes y, x, c"),
        ((1, 8, 8), np.uint8, "cyx", None),
        ((4, 8, 8), np.uint8, "cyx", None),
    ],
)
def test_samples_of_an_image(tmp_path, shape, dtype, axes, told):
    values = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    group = zarr.open_group(str(tmp_path / "he"), mode="w")
    group.create_array("0", data=values)
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]
    group.attrs["multiscales"] = [{"axes": [{"name": a} for a in axes], "datasets": datasets}]
    if told:
        with pytest.raises(errors.ImageError, match=rf"he cannot be used.*{told}"):
            zarr_image.ZarrImage(tmp_path / "he", "he")
        return
    found = zarr_image.ZarrImage(tmp_path / "he", "he").read(0, 0, 8, 8).astype(int)
    if shape[0] == 1:
        np.testing.assert_array_equal(found, np.repeat(values.transpose(1, 2, 0), 3, axis=2))
    else:  # over white
        alpha = values[3][:, :, None] / 255
        expected = values[:3].transpose(1, 2, 0) * alpha + 255 * (1 - alpha)
        np.testing.assert_allclose(found, expected, atol=0.51)
    datasets[0]["coordinateTransformations"][0]["scale"] = [1, 0.5, 0.5]
    group.attrs["multiscales"] = [{"axes": [{"name": a} for a in axes], "datasets": datasets}]
    with pytest.raises(errors.ImageError, match="a level 0 with scale"):
        zarr_image.ZarrImage(tmp_path / "he", "he")


def test_bins_of_visium_hd_are_polygons(tmp_path):
    corners = np.array([[10.0, 20], [26, 20], [26, 36], [10, 36], [10, 20]]) + 5e4
    blobs = [struct.pack("<BIII", 1, 3, 1, 5) + corners.tobytes(),
             struct.pack(">BIII", 0, 3, 1, 5) + (corners + 16).astype(">f8").tobytes()]  # fmt: skip
    frame = pd.DataFrame({"geometry": blobs}, index=[4, 9])
    frame.to_parquet(tmp_path / "shapes.parquet")
    found = shapes.read_shapes(tmp_path)
    np.testing.assert_allclose(found.xy, [[50018, 50028], [50034, 50044]], rtol=1e-12)
    np.testing.assert_allclose(found.diameter, 16.0, rtol=1e-9)
    assert list(found.index) == [4, 9]
    blobs[0] = struct.pack("<BII", 1, 6, 0)
    pd.DataFrame({"geometry": blobs}).to_parquet(tmp_path / "shapes.parquet")
    with pytest.raises(errors.SlideError, match=r"other shapes than .*kinds \[3, 6\]"):
        shapes.read_shapes(tmp_path)


def test_points_as_geoarrow(tmp_path):
    # As geopandas 1.2 writes them (geometry_encoding="geoarrow"): a struct of x and y.
    xy = np.array([[1.5, 2.5], [3.0, 4.0]])
    points = pa.StructArray.from_arrays([pa.array(xy[:, 0]), pa.array(xy[:, 1])], ["x", "y"])
    table = pa.table({"radius": [1.0, 2.0], "geometry": points})
    pq.write_table(table, tmp_path / "shapes.parquet")
    found = shapes.read_shapes(tmp_path)
    np.testing.assert_array_equal(found.xy, xy)
    np.testing.assert_array_equal(found.diameter, [2, 4])
    assert list(found.index) == [0, 1]
    rings = pa.array([[[{"x": 0.0, "y": 0.0}]]] * 2)
    pq.write_table(table.set_column(1, "geometry", rings), tmp_path / "shapes.parquet")
    with pytest.raises(errors.SlideError, match="holds other shapes than circles"):
        shapes.read_shapes(tmp_path)
    (tmp_path / "shapes.parquet").unlink()
    with pytest.raises(errors.SlideError, match=r"has no shapes\.parquet.*newer spatialdata"):
        shapes.read_shapes(tmp_path)


def test_stores_of_a_folder(tmp_path, store):
    unpack(tmp_path, "v2", "A2")
    assert spatialdata_zarr.list_slides(tmp_path) == ["A2", "S1"]
    assert spatialdata_zarr.list_slides(store) == ["S1"]
    with pytest.raises(errors.SlideError, match="is no SpatialData store.*found neither"):
        spatialdata_zarr.list_slides(store / "tables" / "table" / "obs")
    with pytest.raises(errors.SlideError, match="no slide B1.*slides A2, S1"):
        spatialdata_zarr.read_slide(tmp_path, "B1")
    assert transformations.read(store / "shapes" / "S1").keys() == {
        "S1", "S1_downscaled_hires", "S1_downscaled_lowres"
    }  # fmt: skip
