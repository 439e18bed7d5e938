"""Reading AnnData files: which counts, which image, which pixels, and what does not fit."""

import anndata
import annotated_files as files
import h5py
import numpy as np
import pytest
import scipy.sparse
import visium_folders as made
from PIL import Image

from stemjax import errors
from stemjax.data import slides
from stemjax.data.layouts import anndata_file


@pytest.fixture
def adata():
    return files.table()


def read(tmp_path, adata, beside="tif", **options):
    files.write(tmp_path / "data", adata, image=beside)
    return anndata_file.read_slide(tmp_path / "data", "S1", **options)


def test_file_is_read_whole(tmp_path, adata):
    slide = read(tmp_path, adata)
    rows = files.kept()
    place = made.positions().iloc[made.spots()[rows]]
    assert (slide.id, slide.patient, slide.genes) == ("S1", None, made.GENES)
    assert slide.gene_ids == files.GENE_IDS
    assert slide.barcodes == tuple(np.array(made.barcodes())[rows])
    np.testing.assert_array_equal(slide.counts.toarray(), made.expression()[rows])
    np.testing.assert_array_equal(slide.array_xy, place[["array_col", "array_row"]])
    np.testing.assert_array_equal(
        slide.pixel_xy, place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(np.float32)
    )
    assert slide.mpp == pytest.approx(made.MPP, rel=1e-9)
    assert slide.spot_diameter_um == 55.0
    np.testing.assert_array_equal(
        slide.image.read(100, 200, 9, 7), made.picture()[200:207, 100:109]
    )
    assert slide.labels == {"leiden": tuple("abc"[i % 3] for i in rows)}
    assert slide.notes == (
        "left out 1 spot not under tissue (in_tissue is not 1)",
        "pixel size 2.083 um from spots 100 um apart",
    )
    folder = tmp_path / "data"
    assert slide.sources == {p.name: slides.sha256(p) for p in folder.iterdir()}
    alone = anndata_file.read_slide(folder / "S1.h5ad", "S1")
    np.testing.assert_array_equal(alone.counts.toarray(), slide.counts.toarray())


@pytest.mark.parametrize("where", ["layers", "raw"])
def test_counts_beside_normalised_values(tmp_path, adata, where):
    if where == "layers":
        adata.layers["counts"] = adata.X.copy()
    else:
        whole, columns = adata, [2, 0]
        adata = anndata.AnnData(whole.X[:, columns], whole.obs, whole.var.iloc[columns])
        adata.obsm, adata.uns, adata.raw = whole.obsm, whole.uns, whole
    adata.X = adata.X.multiply(0.37).tocsr()
    slide = read(tmp_path, adata)
    np.testing.assert_array_equal(slide.counts.toarray(), made.expression()[files.kept()])
    assert slide.genes == made.GENES  # those of raw, which are more than those of X
    name = "layers['counts']" if where == "layers" else "raw.X"
    assert f"counts from {name}: X holds other values" in slide.notes


def test_values_that_are_no_counts_anywhere(tmp_path, adata):
    adata.X = adata.X.multiply(0.37).tocsr()
    adata.layers["counts"] = adata.X.copy()
    with pytest.raises(errors.SlideError, match=r"S1\.h5ad: X holds .* are no counts.*0\.37"):
        read(tmp_path, adata)


def test_raw_counts_in_x_are_taken_first(tmp_path, adata):
    adata.layers["counts"] = scipy.sparse.csr_matrix(adata.X * 2)
    slide = read(tmp_path, adata)
    np.testing.assert_array_equal(slide.counts.toarray(), made.expression()[files.kept()])


def test_swapped_axes(tmp_path, adata):
    adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1].copy()
    assert any("mirrored" in note for note in read(tmp_path, adata).notes)
    low = Image.fromarray(made.picture()[:360])  # the right ones end at row 341
    low.save(tmp_path / "data" / "S1.tif")
    with pytest.raises(errors.ImageError, match=r"S1: 4 of 47 spots lie outside.*swap the columns"):
        anndata_file.read_slide(tmp_path / "data", "S1")


@pytest.mark.parametrize("image", ["tif", ""])
def test_positions_in_pixels_of_the_hires_image(tmp_path, adata, image):
    adata.obsm["spatial"] = adata.obsm["spatial"] * files.HIRES
    with pytest.raises(errors.SlideError, match=r"31\.2 px wide are 12 px apart.*scalef is 0\.25"):
        read(tmp_path, adata, image, need_image=bool(image))
    # Without the spot's width the corner tells, and needs the image.
    del adata.uns["spatial"][files.LIBRARY]["scalefactors"]["spot_diameter_fullres"]
    if image:
        with pytest.raises(errors.SlideError, match="hires image.*upper left corner"):
            read(tmp_path, adata, image, mpp=2.0)


def test_spots_in_the_corner_of_a_large_image(tmp_path, adata):
    folder = tmp_path / "data"
    files.write(folder, adata, image="")
    Image.new("RGB", (2000, 2000), (9, 9, 9)).save(folder / "S1.png")
    assert anndata_file.read_slide(folder, "S1").n_spots == 47  # spots are further apart than wide


@pytest.mark.parametrize(
    ("told", "given", "expected"),
    [(2.1, None, 2.1), (None, 2.0, 2.0), (2.5, 2.5, 2.5), (2.5, None, None)],
)
def test_pixel_size(tmp_path, adata, told, given, expected):
    factors = adata.uns["spatial"][files.LIBRARY]["scalefactors"]
    if told:
        factors["microns_per_pixel"] = told
    if expected is None:
        match = r"S1: .*contradictory.*microns_per_pixel 2\.5; 2\.083 from"
        with pytest.raises(errors.PixelSizeError, match=match):
            read(tmp_path, adata, mpp=given)
        return
    slide = read(tmp_path, adata, mpp=given)
    assert slide.mpp == expected
    wrong = "pixel size 2.5 um as given; the array tells 2.083"
    assert (wrong in slide.notes) == (given == 2.5)


def test_pixel_size_of_no_visium_array(tmp_path, adata):
    factors = adata.uns["spatial"][files.LIBRARY]["scalefactors"]
    adata.obs["array_col"] += 1  # no hexagonal array: sums are odd
    with pytest.raises(errors.PixelSizeError, match=r"S1: the pixel size is unknown.*mpp="):
        read(tmp_path, adata)
    slide = read(tmp_path, adata, mpp=2.0)
    assert slide.spot_diameter_um == pytest.approx(2 * 31.2)  # spot_diameter_fullres times mpp
    factors["bin_size_um"] = 16.0
    assert read(tmp_path, adata, mpp=2.0).spot_diameter_um == 16.0
    del factors["bin_size_um"], factors["spot_diameter_fullres"]
    with pytest.raises(errors.SlideError, match=r"the spot diameter is unknown.*tissue_hires"):
        read(tmp_path, adata, mpp=2.0)


def test_hires_image_on_request_only(tmp_path, adata):
    with pytest.raises(errors.ImageError, match=r"S1: there is no full-res.*S1\.tif.*'hires'"):
        read(tmp_path, adata, "")
    assert read(tmp_path, adata, "", need_image=False).image is None
    slide = read(tmp_path, adata, "", image="hires")
    place = made.positions().iloc[made.spots()[files.kept()]]
    pixel_xy = files.HIRES * place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    np.testing.assert_allclose(slide.pixel_xy, pixel_xy, rtol=1e-6)
    assert slide.mpp == pytest.approx(made.MPP / files.HIRES)
    assert slide.spot_diameter_px == pytest.approx(55 / made.MPP * files.HIRES)
    assert (slide.image.width, slide.image.height) == (115, 110)
    np.testing.assert_array_equal(
        slide.image.read(0, 0, 115, 110), np.round(files.hires() * 255).astype(np.uint8)
    )
    assert "hires one inside the file, of 8.33 um per pixel" in slide.notes[-1]


def test_hires_image_that_cannot_be_used(tmp_path, adata):
    library = adata.uns["spatial"][files.LIBRARY]
    library["images"]["hires"] = library["images"]["hires"] * 300
    with pytest.raises(errors.ImageError, match=r"no hires image.*fractions beyond 0 to 1"):
        read(tmp_path, adata, image="hires")
    library["images"]["hires"] = np.zeros((4, 4), np.uint8)
    with pytest.raises(errors.ImageError, match=r"no hires image.*shape \(4, 4\)"):
        read(tmp_path, adata, image="hires")
    del library["scalefactors"]["tissue_hires_scalef"]
    with pytest.raises(errors.ImageError, match=r"scale of the hires image.*'lib1'"):
        read(tmp_path, adata, image="hires")


def test_path_in_the_file_is_not_followed(tmp_path, adata):
    outside = tmp_path / "elsewhere.tif"
    Image.fromarray(made.picture()).save(outside)
    metadata = adata.uns["spatial"][files.LIBRARY]["metadata"]
    for told in (str(outside), "../elsewhere.tif", "..\\elsewhere.tif", "..", "data/.."):
        metadata["source_image_path"] = told
        with pytest.raises(errors.ImageError, match="there is no full-resolution image"):
            read(tmp_path, adata, "")
    Image.fromarray(255 - made.picture()).save(tmp_path / "data" / "elsewhere.tif")
    metadata["source_image_path"] = "C:\\scans\\elsewhere.tif"
    slide = read(tmp_path, adata)  # beside S1.tif: the name in the file comes first
    assert slide.image.source == "elsewhere.tif"
    np.testing.assert_array_equal(slide.image.read(0, 0, 1, 1)[0, 0], 255 - made.picture()[0, 0])
    assert (
        anndata_file.read_slide(tmp_path / "data", "S1", image=outside).image.source
        == "elsewhere.tif"
    )


def test_two_images_of_one_name(tmp_path, adata):
    files.write(tmp_path / "data", adata)
    files.write(tmp_path / "data", adata, image="png")
    with pytest.raises(errors.ImageError, match=r"which image.*found S1\.png, S1\.tif"):
        anndata_file.read_slide(tmp_path / "data", "S1", need_image=False)


def test_several_slides_in_one_file(tmp_path, adata):
    adata.uns["spatial"]["lib2"] = adata.uns["spatial"][files.LIBRARY]
    with pytest.raises(errors.SlideError, match=r"S1\.h5ad holds several slides.*lib1, lib2"):
        read(tmp_path, adata)


def test_parts_that_do_not_fit(tmp_path, adata):
    path = files.write(tmp_path, adata)
    with h5py.File(path, "r+") as file:
        values = file["obsm/spatial"][:-1]
        del file["obsm/spatial"]
        anndata.io.write_elem(file["obsm"], "spatial", values)
    with pytest.raises(errors.SlideError, match=r"do not fit 48 spots and 4 genes.*\(47, 2\)"):
        anndata_file.read_slide(tmp_path, "S1")
    with h5py.File(path, "r+") as file:
        del file["obsm/spatial"]
    with pytest.raises(errors.SlideError, match=r"S1\.h5ad has no spot coordinates.*obsm: empty"):
        anndata_file.read_slide(tmp_path, "S1")
    adata.obs["in_tissue"] = 0
    with pytest.raises(errors.SlideError, match=r"S1\.h5ad has no spot under tissue"):
        read(tmp_path, adata)


def test_numbers_beyond_their_range(tmp_path, adata):
    path = files.write(tmp_path, adata)
    with h5py.File(path, "r+") as file:
        file["X/indices"][5] = 4  # of 4 genes
    with pytest.raises(errors.SlideError, match=r"S1\.h5ad is damaged.*indices must be"):
        anndata_file.read_slide(tmp_path, "S1")
    adata.obsm["spatial"] = np.where(np.arange(48)[:, None] == 7, 1e300, adata.obsm["spatial"])
    with pytest.raises(errors.SlideError, match=r"'spatial'\] holds what are no pixels.*1e\+300"):
        read(tmp_path, adata)


def test_files_of_a_folder(tmp_path, adata):
    files.write(tmp_path, adata)
    files.write(tmp_path, adata, "A2")
    assert anndata_file.list_slides(tmp_path) == ["A2", "S1"]
    assert anndata_file.list_slides(tmp_path / "S1.h5ad") == ["S1"]
    with pytest.raises(errors.SlideError, match="no slide B1.*slides A2, S1"):
        anndata_file.read_slide(tmp_path, "B1")
    for path in (tmp_path / "S1.tif", tmp_path / "absent"):
        with pytest.raises(errors.SlideError, match="is no AnnData file"):
            anndata_file.list_slides(path)
