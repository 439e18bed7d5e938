"""Reading Visium HD: bins of two sizes, their pixel size from two sources, what does not fit."""

import numpy as np
import pytest
import visium_folders
import visium_hd_folders as made
from PIL import Image

from stemjax import errors
from stemjax.data.layouts import visium_hd

SHARED = "added up the counts of genes that share a symbol: TBCE x2"


@pytest.fixture
def outs(tmp_path):
    return made.write_slide(tmp_path / "HD1")


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("bin_um", [16, 8])
def test_bins_are_read_whole(tmp_path, version, bin_um):
    outs = made.write_slide(tmp_path / "HD1" / "outs", version)
    slide = visium_hd.read_slide(tmp_path, "HD1", bin_um=bin_um)
    place = made.positions(bin_um).iloc[made.bins(bin_um)]
    assert (slide.id, slide.patient, slide.genes) == ("HD1", None, visium_folders.GENES)
    assert slide.barcodes == tuple(made.barcodes(bin_um))
    np.testing.assert_array_equal(slide.counts.toarray(), made.expression(bin_um))
    np.testing.assert_array_equal(slide.array_xy, place[["array_col", "array_row"]])
    pixel_xy = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(np.float32)
    np.testing.assert_array_equal(slide.pixel_xy, pixel_xy)
    assert (slide.mpp, slide.spot_diameter_um) == (made.MPP, bin_um)
    np.testing.assert_array_equal(
        slide.image.read(100, 200, 9, 7), visium_folders.picture()[200:207, 100:109]
    )
    side = made.SIDES[bin_um]
    segmented = ("left out segmented_outputs: counts of cells, not of bins",)
    assert slide.notes == (
        "left out 2 features of type Antibody Capture",
        SHARED,
        *(segmented if version == 4 else ()),
        f"left out {side} spots not under tissue (in_tissue is not 1)",
        "left out 2 spots under tissue without counts",
    )
    files = ["he.tif", "filtered_feature_bc_matrix.h5", "tissue_positions.parquet",
             "scalefactors_json.json", "tissue_hires_image.png"]  # fmt: skip
    assert sorted(slide.sources) == sorted(files)
    assert outs.is_dir()


def test_bins_of_16_um_are_the_default(outs):
    assert visium_hd.read_slide(outs, "HD1").spot_diameter_um == 16.0


def test_bins_of_2_um_are_refused_with_a_hint(outs):
    with pytest.raises(errors.SlideError, match=r"HD1: bins of 2 um are not read.*bin_um=16 or"):
        visium_hd.read_slide(outs, "HD1", bin_um=2)
    with pytest.raises(errors.SlideError, match=r"no bins of 24 um.*found bins of 2, 8, 16 um"):
        visium_hd.read_slide(outs, "HD1", bin_um=24)


def test_pixel_size_comes_from_two_sources(outs):
    made.write_factors(outs, microns_per_pixel=1.04 * made.MPP)  # within 5 %
    assert visium_hd.read_slide(outs, "HD1").mpp == 1.04 * made.MPP
    for wrong in (0.94, 1.06):
        made.write_factors(outs, microns_per_pixel=wrong * made.MPP)
        told = rf"contradictory.*microns_per_pixel {wrong * made.MPP:g}; 2 from .*16 um.* 8 px"
        with pytest.raises(errors.PixelSizeError, match=told):
            visium_hd.read_slide(outs, "HD1")
        assert visium_hd.read_slide(outs, "HD1", mpp=0.5).mpp == 0.5
    made.write_factors(outs, microns_per_pixel=None)
    slide = visium_hd.read_slide(outs, "HD1")
    assert slide.mpp == pytest.approx(made.MPP, rel=1e-9)
    assert "pixel size 2 um from the lattice of bins" in slide.notes


def test_positions_in_pixels_of_the_hires_image_are_refused(outs):
    table = made.positions()
    table[["pxl_row_in_fullres", "pxl_col_in_fullres"]] *= made.SCALE
    made.write_positions(outs, table)
    with pytest.raises(errors.PixelSizeError, match=r"microns_per_pixel 2; 8 from.*full resolut"):
        visium_hd.read_slide(outs, "HD1")


def test_exchanged_pixel_columns_are_told(outs):
    table = made.positions()
    names = ["pxl_row_in_fullres", "pxl_col_in_fullres"]
    table[names] = table[names[::-1]].to_numpy()
    made.write_positions(outs, table)
    assert any("mirrored" in note for note in visium_hd.read_slide(outs, "HD1").notes)


def test_factors_of_other_bins_are_refused(outs):
    made.write_factors(outs, bin_size_um=8.0)
    with pytest.raises(errors.SlideError, match=r"of other bins.*bin_size_um 16, found .* 8"):
        visium_hd.read_slide(outs, "HD1")


def test_bins_are_joined_by_barcode(outs):
    # Rows in another order than before, and one bin fewer.
    table = made.positions().sample(frac=1, random_state=1)
    made.write_positions(outs, table)
    slide = visium_hd.read_slide(outs, "HD1")
    place = made.positions().set_index("barcode").loc[list(slide.barcodes)]
    np.testing.assert_array_equal(slide.array_xy, place[["array_col", "array_row"]])
    np.testing.assert_array_equal(slide.counts.toarray(), made.expression())
    lost = made.barcodes()[0]
    made.write_positions(outs, table[table["barcode"] != lost])
    with pytest.raises(errors.SlideError, match=rf"parquet lacks 1 of the 130 .*such as {lost}"):
        visium_hd.read_slide(outs, "HD1")


@pytest.mark.parametrize(
    ("column", "value"),
    [("in_tissue", 2), ("array_row", 0.5), ("pxl_col_in_fullres", np.inf), ("array_col", np.nan)],
)
def test_what_is_no_bin_is_named(outs, column, value):
    table = made.positions().astype({column: float})
    table.loc[15, column] = value
    made.write_positions(outs, table)
    with pytest.raises(errors.SlideError, match=rf"1 rows are no bins.*found .*{column} {value:g}"):
        visium_hd.read_slide(outs, "HD1")


def test_positions_that_are_no_table_of_bins(outs):
    table = made.positions()
    path = made.write_positions(outs, table.drop(columns=["array_row"]))
    with pytest.raises(errors.SlideError, match=r"parquet lacks the columns array_row"):
        visium_hd.read_slide(outs, "HD1")
    made.write_positions(outs, table.assign(barcode="same"))
    with pytest.raises(errors.SlideError, match=r"more than one position.*same"):
        visium_hd.read_slide(outs, "HD1")
    made.write_positions(outs, table[:0])
    with pytest.raises(errors.SlideError, match="has no positions"):
        visium_hd.read_slide(outs, "HD1")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(errors.SlideError, match=r"positions\.parquet is damaged or no parquet"):
        visium_hd.read_slide(outs, "HD1")
    path.unlink()
    with pytest.raises(errors.SlideError, match=r"there is no .*tissue_positions\.parquet"):
        visium_hd.read_slide(outs, "HD1")


def test_image_is_found_and_checked(tmp_path, outs):
    (outs / "microscope_image").mkdir()
    (outs / "he.tif").rename(outs / "microscope_image" / "scan.btf")
    assert visium_hd.read_slide(outs, "HD1").image.source == "scan.btf"
    Image.new("RGB", (920, 880)).save(outs / "microscope_image" / "scan.btf", "TIFF")
    with pytest.raises(errors.ImageError, match=r"scan\.btf is not the image"):
        visium_hd.read_slide(outs, "HD1")
    (outs / "microscope_image" / "scan.btf").unlink()
    # Space Ranger's own pictures are none of full resolution.
    with pytest.raises(errors.ImageError, match=r"no full-resolution image.*found none"):
        visium_hd.read_slide(outs, "HD1")
    assert visium_hd.read_slide(outs, "HD1", need_image=False).image is None


def test_slides_of_a_folder(tmp_path, outs):
    made.write_slide(tmp_path / "B2" / "outs")
    visium_folders.write_slide(tmp_path / "V1")
    assert visium_hd.list_slides(tmp_path) == ["B2", "HD1"]
    assert visium_hd.list_slides(tmp_path / "B2") == ["B2"]
    with pytest.raises(errors.SlideError, match="no slide V1.*slides B2, HD1"):
        visium_hd.read_slide(tmp_path, "V1")
    with pytest.raises(errors.SlideError, match="no folder of Visium HD slides.*binned_outputs"):
        visium_hd.list_slides(tmp_path / "V1")
