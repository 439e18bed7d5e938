"""Reading Visium slides: the layouts of three Space Rangers, the image, what does not fit."""

import shutil

import numpy as np
import pytest
import visium_folders as made
from PIL import Image

from stemjax import cli, errors
from stemjax.data import records, slides
from stemjax.data.layouts import visium


@pytest.fixture
def outs(tmp_path):
    return made.write_slide(tmp_path / "S1")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_slide_is_read_whole(tmp_path, version):
    outs = made.write_slide(tmp_path / "S1", version)
    slide = visium.read_slide(outs, "S1")
    place = made.positions().iloc[made.spots()]
    assert (slide.id, slide.patient, slide.genes) == ("S1", None, made.GENES)
    assert slide.barcodes == tuple(made.barcodes())  # the order of the counts
    np.testing.assert_array_equal(slide.counts.toarray(), made.expression())
    np.testing.assert_array_equal(slide.array_xy, place[["array_col", "array_row"]])
    pixel_xy = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(np.float32)
    np.testing.assert_array_equal(slide.pixel_xy, pixel_xy)
    assert slide.mpp == pytest.approx(100 / made.PITCH_PX, rel=1e-12)
    assert slide.spot_diameter_px == pytest.approx(0.55 * made.PITCH_PX)
    np.testing.assert_array_equal(
        slide.image.read(100, 200, 9, 7), made.picture()[200:207, 100:109]
    )
    assert slide.notes == (
        "left out 2 features of type Antibody Capture",
        "added up the counts of genes that share a symbol: TBCE x2",
        "left out 8 spots not under tissue (in_tissue is not 1)",
    )
    files = [p for p in outs.rglob("*") if p.is_file() and "cytassist" not in p.name]
    assert slide.sources == {path.name: slides.sha256(path) for path in files}
    assert len(files) == 5


def test_list_of_space_ranger_1_may_have_a_header(outs):
    path = outs / "spatial" / "tissue_positions.csv"
    path.rename(path.with_name("tissue_positions_list.csv"))
    assert visium.read_slide(outs, "S1").barcodes == tuple(made.barcodes())


def test_counts_as_text_are_read_where_they_are_alone(outs):
    made.write_text(outs / "filtered_feature_bc_matrix")
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    slide = visium.read_slide(outs, "S1")
    np.testing.assert_array_equal(slide.counts.toarray(), made.expression())
    assert {"matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"} < set(slide.sources)


def test_slides_of_a_folder(tmp_path, outs, monkeypatch):
    made.write_slide(tmp_path / "B2" / "outs", 1)
    (tmp_path / "figures").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "A3" / "spatial").mkdir(parents=True)  # no counts: listed, and told when read
    assert visium.list_slides(tmp_path) == ["A3", "B2", "S1"]
    assert visium.list_slides(outs) == ["S1"]
    assert visium.list_slides(tmp_path / "B2") == visium.list_slides(tmp_path / "B2/outs") == ["B2"]
    monkeypatch.chdir(outs)
    assert visium.list_slides(".") == ["S1"]
    for folder in (tmp_path, tmp_path / "B2", tmp_path / "B2" / "outs"):
        slide = visium.read_slide(folder, "B2")
        np.testing.assert_array_equal(slide.counts.toarray(), made.expression())
    with pytest.raises(errors.SlideError, match="no counts in .*A3"):
        visium.read_slide(tmp_path, "A3", need_image=False)
    with pytest.raises(errors.SlideError, match="no slide S9.*slides A3, B2, S1"):
        visium.read_slide(tmp_path, "S9")
    with pytest.raises(errors.SlideError, match="slide id"):
        visium.read_slide(tmp_path, "../S1")
    with pytest.raises(errors.SlideError, match=r"no folder of Visium slides.*found neither"):
        visium.list_slides(tmp_path / "figures")
    with pytest.raises(errors.SlideError, match=r"no folder of Visium slides.*found no folder"):
        visium.list_slides(tmp_path / "absent")


@pytest.mark.parametrize(
    "mark",
    ["binned_outputs/square_008um/x", "feature_slice.h5", "spatial/tissue_positions.parquet"],
)
def test_visium_hd_is_refused(tmp_path, mark):
    (tmp_path / "HD1" / mark).parent.mkdir(parents=True)
    (tmp_path / "HD1" / mark).write_bytes(b"")
    assert visium.list_slides(tmp_path) == ["HD1"]
    with pytest.raises(errors.SlideError, match=r"HD1 is Visium HD: .*layout visium-hd"):
        visium.read_slide(tmp_path, "HD1")


def test_spots_in_one_file_only(outs):
    table = made.positions()
    first = made.spots()[0]
    table.loc[first, "in_tissue"] = 0
    table.loc[30, "in_tissue"] = 1
    made.write_positions(outs, table)
    slide = visium.read_slide(outs, "S1")
    assert slide.barcodes == tuple(made.barcodes()[1:])
    np.testing.assert_array_equal(slide.counts.toarray(), made.expression()[1:])
    np.testing.assert_array_equal(
        slide.array_xy, table.iloc[made.spots()[1:]][["array_col", "array_row"]]
    )
    assert slide.notes[2:] == (
        "left out 8 spots not under tissue (in_tissue is not 1), 1 of them with counts",
        "left out 1 spot under tissue without counts",
    )
    made.write_positions(outs, table.assign(in_tissue=0))
    with pytest.raises(errors.SlideError, match=r"no spot of .*csv with counts is under tissue"):
        visium.read_slide(outs, "S1")


def test_positions_that_lack_barcodes_are_refused(outs):
    lost = sorted(made.spots()[:2])
    made.write_positions(outs, made.positions().drop(index=lost))
    told = rf"csv lacks 2 of the 48 barcodes.*{made.barcodes()[0]}, {made.barcodes()[1]}"
    with pytest.raises(errors.SlideError, match=told):
        visium.read_slide(outs, "S1")


def test_pixel_size_of_spots_in_a_line(outs):
    table = made.positions().iloc[7:14]  # one row, under tissue
    made.write_positions(outs, table)
    made.write_h5(
        outs / "filtered_feature_bc_matrix.h5", made.counts()[:7], names=list(table["barcode"])
    )
    slide = visium.read_slide(outs, "S1")
    assert slide.mpp == pytest.approx(made.MPP, rel=1e-12)  # Space Ranger's diameter spans 65 um
    assert slide.spot_diameter_um == 55.0
    assert "2.083 um from spot_diameter_fullres 31.2 px, which spans 65 um" in slide.notes[2]
    for diameter in (None, "wide", 0, float("nan")):
        made.write_factors(outs, spot_diameter_fullres=diameter)
        with pytest.raises(errors.PixelSizeError, match=r"S1: .* of 7 spots.*mpp="):
            visium.read_slide(outs, "S1")
    slide = visium.read_slide(outs, "S1", mpp=0.5)
    assert (slide.mpp, slide.n_spots) == (0.5, 7)
    assert not any("pixel size" in note for note in slide.notes)


def test_exchanged_pixel_columns_are_told(outs):
    table = made.positions()
    names = ["pxl_row_in_fullres", "pxl_col_in_fullres"]
    table[names] = table[names[::-1]].to_numpy()
    made.write_positions(outs, table)
    for mpp in (None, 0.5):
        assert "mirrored" in visium.read_slide(outs, "S1", mpp=mpp).notes[2]
    table["pxl_row_in_fullres"] += 95  # the last column is now below the image
    made.write_positions(outs, table)
    with pytest.raises(errors.ImageError, match="spots lie outside the image he.tif"):
        visium.read_slide(outs, "S1")


def test_scale_factors_are_not_needed_unless_damaged(outs):
    path = outs / "spatial" / "scalefactors_json.json"
    for text, told in (("{broken", "is no JSON"), ("[1]", "is no table.*found list")):
        path.write_text(text)
        with pytest.raises(errors.SlideError, match=rf"scalefactors_json\.json {told}"):
            visium.read_slide(outs, "S1")
    path.unlink()
    slide = visium.read_slide(outs, "S1")
    assert slide.mpp == pytest.approx(made.MPP)
    assert set(slide.sources) == {
        "filtered_feature_bc_matrix.h5", "tissue_positions.csv", "he.tif"
    }  # fmt: skip


def test_missing_positions(outs):
    (outs / "spatial" / "tissue_positions.csv").unlink()
    with pytest.raises(errors.SlideError, match=r"no spot positions in .*spatial.*positions_list"):
        visium.read_slide(outs, "S1")


def test_missing_and_doubled_images(outs):
    (outs / "he.tif").rename(outs / "HE.JPEG")  # the kind is told by its content
    assert visium.read_slide(outs, "S1").image.source == "HE.JPEG"
    Image.fromarray(made.picture()).save(outs / "again.png")
    with pytest.raises(errors.ImageError, match=r"S1: which image.*HE\.JPEG, again\.png"):
        visium.read_slide(outs, "S1", need_image=False)
    (outs / "HE.JPEG").unlink()
    (outs / "again.png").rename(outs / "LIB_tissue_hires_image.png")  # Space Ranger's: not used
    told = (
        r"S1: there is no full-resolution image.*S1, found none.*tissue_hires_image\.png is too c"
    )
    with pytest.raises(errors.ImageError, match=told):
        visium.read_slide(outs, "S1")
    slide = visium.read_slide(outs, "S1", need_image=False)
    assert (slide.image, slide.mpp) == (None, pytest.approx(made.MPP))
    assert len(slide.sources) == 3


@pytest.mark.parametrize(
    "name",
    ["aligned_tissue_image.jpg", "LIB_cytassist_image.tiff", "detected_tissue_image.jpg",
     "aligned_fiducials.jpg", "LIB_tissue_lowres_image.png"],
)  # fmt: skip
def test_pictures_of_the_cytassist_are_no_fullres_image(outs, name):
    picture = Image.fromarray(made.picture())
    picture.save(outs / name)
    assert visium.read_slide(outs, "S1").image.source == "he.tif"
    (outs / "he.tif").unlink()
    with pytest.raises(errors.ImageError, match="S1: there is no full-resolution image.*none"):
        visium.read_slide(outs, "S1")


def test_image_beside_outs(tmp_path):
    outs = made.write_slide(tmp_path / "S1" / "outs")
    (outs / "he.tif").rename(tmp_path / "S1" / "scan.btf")
    assert visium.read_slide(tmp_path, "S1").image.source == "scan.btf"
    (tmp_path / "S1" / "scan.btf").rename(tmp_path / "scan.btf")  # of which slide?
    with pytest.raises(
        errors.ImageError, match=r"no full-resolution image.*S1/outs or .*S1, found"
    ):
        visium.read_slide(tmp_path, "S1")
    # The folder around a slide that is not called outs is no part of it.
    plain = made.write_slide(tmp_path / "S2", image=False)
    with pytest.raises(errors.ImageError, match="S2: there is no full-resolution image"):
        visium.read_slide(plain, "S2")


@pytest.mark.parametrize(
    ("size", "fits"),
    [((460, 440), True), ((440, 460), True), ((463, 437), True), ((230, 220), False),
     ((920, 880), False), ((470, 440), False)],
)  # fmt: skip
def test_image_of_another_size_is_refused(outs, size, fits):
    # The small copy is a quarter, so it tells the size to 6 px.
    Image.new("RGB", size, (200, 150, 180)).save(outs / "he.tif")
    if fits:
        assert visium.read_slide(outs, "S1").image.width == size[0]
        return
    told = rf"he\.tif is not the image.*440 and 460 px.*found {size[0]} x {size[1]}"
    with pytest.raises(errors.ImageError, match=told):
        visium.read_slide(outs, "S1")
    (outs / "spatial" / "tissue_hires_image.png").unlink()
    if min(size) > 400:  # the spots fit: without the copy nothing tells
        assert visium.read_slide(outs, "S1").image.width == size[0]


def test_the_command_prepares_a_visium_folder(tmp_path, capsys):
    data = tmp_path / "data"
    made.write_slide(data / "S1" / "outs", 3)
    made.write_slide(data / "S2", 1)
    shutil.copy(data / "S1" / "outs" / "he.tif", data / "S1" / "scan.tif")
    (data / "S1" / "outs" / "he.tif").unlink()
    genes = tmp_path / "genes.txt"
    genes.write_text("ERBB2\nTBCE\n")
    command = ["prepare", "--layout", "visium", "--data", str(data), "--out", f"{tmp_path}/out",
               "--genes", str(genes), "--workers", "1"]  # fmt: skip
    assert cli.main(command) == 0
    source = records.open_records(tmp_path / "out")
    assert sorted(source.slides) == ["S1", "S2"]
    kept = source.load(["S1"])
    assert kept.barcodes == tuple(made.barcodes())
    np.testing.assert_array_equal(kept.counts, made.expression()[:, [2, 1]])
    np.testing.assert_array_equal(kept.total, made.expression().sum(1))
    assert source.slides["S1"].patient is None
    out = capsys.readouterr().out
    assert "S1: 48 spots, 2.083 um/px" in out
    assert "note: left out 2 features of type Antibody Capture" in out
