"""Reading Xenium: cells pooled into spots, the alignment's direction, what does not fit."""

import numpy as np
import pytest
import tifffile
import xenium_folders as made

from stemjax import errors
from stemjax.data.layouts import alignment, xenium


@pytest.fixture
def region(tmp_path):
    return made.write_region(tmp_path / "R1")


@pytest.mark.parametrize("form", ["parquet", "csv.gz", "bytes", "numbers"])
def test_region_is_read_whole(tmp_path, form):
    made.write_region(tmp_path / "R1", form)
    slide = xenium.read_slide(tmp_path, "R1")
    array_xy, sums = made.pooled()
    assert (slide.id, slide.patient, slide.genes) == ("R1", None, made.GENES)
    assert slide.barcodes == tuple(f"{x}x{y}" for x, y in array_xy)
    np.testing.assert_array_equal(slide.counts.toarray(), sums)
    np.testing.assert_array_equal(slide.array_xy, array_xy)
    um_xy = (array_xy + 0.5) * 100
    # float32 of values up to 460
    np.testing.assert_allclose(slide.pixel_xy, made.he_pixels(um_xy), rtol=0, atol=5e-5)
    assert slide.mpp == pytest.approx(made.HE_UM, rel=1e-12)
    assert slide.spot_diameter_um == 55.0
    np.testing.assert_array_equal(
        slide.image.read(100, 200, 9, 7), made.picture()[200:207, 100:109]
    )
    inner = int(made.cells()["inner"].sum())
    assert slide.notes == (
        "left out 1 feature of type Negative Control Probe",
        "left out 1 feature of type Unassigned Codeword",
        f"{inner} cells in 12 pseudo-spots of 55 um, 100 um apart; 24 cells between spots",
    )
    cells = "cells.csv.gz" if form == "csv.gz" else "cells.parquet"
    assert set(slide.sources) == {
        "experiment.xenium", cells, "cell_feature_matrix.h5", "S_he_image.ome.tif",
        "S_he_imagealignment.csv",
    }  # fmt: skip


@pytest.mark.parametrize("degrees", [0.0, 90.0, 200.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_direction_of_the_alignment(tmp_path, region, degrees, mirrored):
    made.write_matrix(region, made.matrix(degrees, mirrored=mirrored))
    slide = xenium.read_slide(region, "R1")
    um_xy = (made.pooled()[0] + 0.5) * 100
    expected = made.he_pixels(um_xy, degrees, mirrored=mirrored)
    np.testing.assert_allclose(slide.pixel_xy, expected, rtol=0, atol=5e-5)
    assert slide.mpp == pytest.approx(made.HE_UM, rel=1e-12)


def test_map_of_10x_s_own_example(tmp_path):
    # The knowledge base works this one out: the H&E's upper left corner is at (807.98, 73097.66).
    text = (
        "0.011071028838929093,1.2895790134339569,807.9788953065927\n"
        "-1.2895790134339569,0.011071028838929093,73097.655174759\n0,0,1\n"
    )
    (tmp_path / "matrix.csv").write_text(text)
    placed = alignment.read(tmp_path / "matrix.csv")
    corner = placed.to_instrument(np.zeros((1, 2)))
    np.testing.assert_allclose(corner, [[807.9788953065927, 73097.655174759]], rtol=1e-15)
    np.testing.assert_allclose(placed.to_image(corner), 0, atol=1e-9)
    assert placed.scale == pytest.approx(1.28963, rel=1e-5)


def test_inverse_alignment_is_told(region):
    made.write_matrix(region, np.linalg.inv(made.matrix()))
    with pytest.raises(errors.ImageError, match=r"alignment\.csv seems to be the inverse.*100%"):
        xenium.read_slide(region, "R1")


def test_squares_take_every_cell(region):
    slide = xenium.read_slide(region, "R1", spot_um=2**0.5 * 100)
    array_xy, sums = made.pooled(np.ones(len(made.cells()), bool))
    np.testing.assert_array_equal(slide.array_xy, array_xy)
    np.testing.assert_array_equal(slide.counts.toarray(), sums)
    assert slide.spot_diameter_um == pytest.approx(141.42, rel=1e-4)
    assert "; 0 cells between spots" in slide.notes[2]


def test_pitch_and_fewest_cells(region):
    slide = xenium.read_slide(region, "R1", min_cells=2)
    array_xy, sums = made.pooled()
    np.testing.assert_array_equal(slide.array_xy, array_xy[1:])
    np.testing.assert_array_equal(slide.counts.toarray(), sums[1:])
    assert "left out 1 spot with fewer than 2 cells" in slide.notes
    frame = made.cells()
    half = xenium.read_slide(region, "R1", pitch_um=50.0, spot_um=50.0, min_cells=1)
    um_xy = (np.round(half.array_xy).astype(int) + 0.5) * 50
    distance = np.linalg.norm(
        frame[["x_centroid", "y_centroid"]].to_numpy()[:, None] - um_xy, axis=2
    )
    assert (
        half.counts.sum()
        == made.counts()[(distance.min(axis=1) <= 25)[made.order()]][
            :, list(made.GENE_COLUMNS)
        ].sum()
    )
    with pytest.raises(errors.SlideError, match="no pseudo-spot of .*R1 has 9 cells.*spot_um="):
        xenium.read_slide(region, "R1", min_cells=9)
    for wrong in ({"pitch_um": 0.0}, {"spot_um": 150.0}, {"spot_um": 0.0}, {"min_cells": 0}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(errors.SlideError, match=f"grid .* cannot be used.*{name} {value}"):
            xenium.read_slide(region, "R1", **wrong)


def test_region_without_an_image(tmp_path, region):
    (region / "S_he_image.ome.tif").unlink()
    with pytest.raises(errors.ImageError, match="R1: there is no full-resolution.*he_image"):
        xenium.read_slide(region, "R1")
    placed = xenium.read_slide(region, "R1", need_image=False)  # the alignment is there
    um_xy = (made.pooled()[0] + 0.5) * 100
    np.testing.assert_allclose(placed.pixel_xy, made.he_pixels(um_xy), rtol=0, atol=5e-5)
    (region / "S_he_imagealignment.csv").unlink()
    slide = xenium.read_slide(region, "R1", need_image=False)
    assert (slide.image, slide.mpp) == (None, made.PIXEL_UM)
    np.testing.assert_allclose(slide.pixel_xy, um_xy / made.PIXEL_UM, rtol=1e-6)
    assert "there is no alignment" in slide.notes[-1]


def test_image_without_an_alignment_is_not_taken_as_aligned(region):
    path = region / "S_he_imagealignment.csv"
    path.rename(region / "other_alignment.csv")
    assert xenium.read_slide(region, "R1").n_spots == 12  # the only one
    (region / "other_alignment.csv").rename(region / "matrix.csv")
    assert xenium.read_slide(region, "R1").n_spots == 12
    made.write_matrix(region, made.matrix(), "x_alignment.csv")
    with pytest.raises(errors.ImageError, match=r"which alignment.*matrix\.csv, x_alignment\.csv"):
        xenium.read_slide(region, "R1")
    for name in ("matrix.csv", "x_alignment.csv"):
        (region / name).unlink()
    with pytest.raises(errors.ImageError, match=r"no alignment.*S_he_imagealignment\.csv"):
        xenium.read_slide(region, "R1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1,0,0\n0,1,0\n", r"shape \(2, 3\)"),
        ("1,0,0\n0,1,0\n0.1,0,1\n", "last line of 0.1, 0, 1"),
        ("1,0,0\n0,2,0\n0,0,1\n", "scales of 2 and 1"),
        ("0,0,0\n0,0,0\n0,0,1\n", "scales of 0 and 0"),
        ("a,0,0\n0,1,0\n0,0,1\n", "could not convert"),
        ("1,0,nan\n0,1,0\n0,0,1\n", "numbers of shape"),
        ("1,0\n0,1,0\n0,0,1\n", "ValueError"),
        ("", "shape"),
    ],
)
def test_what_is_no_alignment(region, text, told):
    (region / "S_he_imagealignment.csv").write_text(text)
    with pytest.raises(errors.SlideError, match=rf"alignment\.csv is no alignment.*{told}"):
        xenium.read_slide(region, "R1")


def test_cells_are_joined_by_name(region):
    frame = made.cells()
    made.write_cells(region, frame.sample(frac=1, random_state=8))
    np.testing.assert_array_equal(
        xenium.read_slide(region, "R1").counts.toarray(), made.pooled()[1]
    )
    made.write_cells(region, frame.assign(cell_id=[f"other{i}" for i in range(len(frame))]))
    with pytest.raises(errors.SlideError, match=r"parquet lacks 69 of the 69 cells.*other0"):
        xenium.read_slide(region, "R1")
    made.write_cells(region, frame.assign(cell_id="same"))
    with pytest.raises(errors.SlideError, match=r"more than one position to a cell"):
        xenium.read_slide(region, "R1")
    lost = frame.copy()
    lost.loc[int(made.order()[0]), "x_centroid"] = np.nan
    made.write_cells(region, lost)
    slide = xenium.read_slide(region, "R1")
    assert "left out 1 cells whose position is no place on a slide" in slide.notes
    keep = frame["inner"].to_numpy() & lost["x_centroid"].notna().to_numpy()
    np.testing.assert_array_equal(slide.counts.toarray(), made.pooled(keep)[1])


def test_missing_and_damaged_parts(tmp_path, region):
    for size in (None, 0, "wide", float("inf")):
        made.write_manifest(region, pixel_size=size)
        with pytest.raises(errors.PixelSizeError, match=r"experiment\.xenium: the pixel size"):
            xenium.read_slide(region, "R1")
    (region / "experiment.xenium").write_text("{")
    with pytest.raises(errors.SlideError, match=r"experiment\.xenium is no JSON"):
        xenium.read_slide(region, "R1")
    made.write_manifest(region, pixel_size=made.PIXEL_UM)
    (region / "cell_feature_matrix.h5").rename(region / "kept.h5")
    with pytest.raises(errors.SlideError, match="no counts in .*R1.*cell_feature_matrix"):
        xenium.read_slide(region, "R1")
    (region / "kept.h5").rename(region / "cell_feature_matrix.h5")
    (region / "cells.parquet").write_bytes(b"PAR1")
    with pytest.raises(errors.SlideError, match=r"cells\.parquet is damaged"):
        xenium.read_slide(region, "R1")
    (region / "cells.parquet").unlink()
    with pytest.raises(errors.SlideError, match=r"no cells in .*cells\.parquet or cells\.csv"):
        xenium.read_slide(region, "R1")
    (region / "cells.csv").write_text("cell_id,x_centroid\n1,2\n")
    with pytest.raises(errors.SlideError, match=r"cells\.csv is damaged or no table of cells"):
        xenium.read_slide(region, "R1")


def test_regions_of_a_run(tmp_path, region):
    made.write_region(tmp_path / "R2" / "outs")
    tifffile.imwrite(tmp_path / "R2" / "T_he_image.tif", made.picture(), photometric="rgb")
    for name in ("S_he_image.ome.tif", "S_he_imagealignment.csv"):
        (tmp_path / "R2" / "outs" / name).unlink()
    made.write_matrix(tmp_path / "R2", made.matrix(), "T_he_imagealignment.csv")
    assert xenium.list_slides(tmp_path) == ["R1", "R2"]
    assert xenium.read_slide(tmp_path, "R2").image.source == "T_he_image.tif"
    assert xenium.read_slide(tmp_path, "R2", mpp=0.5).mpp == 0.5
    with pytest.raises(errors.SlideError, match="no slide R3.*slides R1, R2"):
        xenium.read_slide(tmp_path, "R3")
    with pytest.raises(errors.SlideError, match=r"no folder of Xenium.*experiment\.xenium"):
        xenium.list_slides(tmp_path / "absent")
