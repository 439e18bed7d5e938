"""Reading slides of the HEST layout: a miniature folder, its variants and its faults."""

import json
import re

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tifffile

from stemjax import cli, errors
from stemjax.data import records, slides
from stemjax.data.layouts import hest

anndata = pytest.importorskip("anndata")

# anndata 0.13.4 asks pandas 3.1 for this option whenever it writes or reads an index.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'future.infer_string' option is deprecated:DeprecationWarning"
)

ID = "MEND145"
PITCH_PX = 48.0  # 100 um, so 2.083 um per pixel
METADATA = {
    "patient": "Patient 1",
    "pixel_size_um_embedded": 2.05,
    "pixel_size_um_estimated": 2.08,
    "inter_spot_dist": 100.0,
    "spot_diameter": 55.0,
    "st_technology": "Visium",
}


def visium(rows=8, columns=7):
    """Array positions (column, row) and pixel centres of a hexagonal array."""
    column, row = (a.ravel() for a in np.meshgrid(np.arange(columns), np.arange(rows)))
    column = 2 * column + row % 2
    pixel = np.stack([column / 2, row * 3**0.5 / 2], axis=1) * PITCH_PX + (60, 50)
    return np.stack([column, row], axis=1), pixel


def counts_table(seed=0):
    return np.random.default_rng(seed).poisson(2.0, (56, 5)).astype(np.float32)


def table(counts=None, **columns):
    """An AnnData as HEST writes it; spot 3 is not under tissue."""
    array_xy, pixel_xy = visium()
    obs = pd.DataFrame(
        {
            "in_tissue": np.where(np.arange(56) == 3, 0, 1),
            "array_row": array_xy[:, 1],
            "array_col": array_xy[:, 0],
        }
        | columns,
        index=[f"BC{i:02d}-1" for i in range(56)],
    )
    adata = anndata.AnnData(
        scipy.sparse.csr_matrix(counts_table()) if counts is None else counts,
        obs=obs,
        var=pd.DataFrame(index=["ACTB", "ERBB2", "CD3E", "KRT5", "MS4A1"]),
    )
    adata.obsm["spatial"] = pixel_xy
    adata.uns["spatial"] = {
        "ST": {
            "images": {"downscaled_fullres": np.zeros((4, 4, 3), np.uint8)},
            "scalefactors": {"spot_diameter_fullres": 30.0},
        }
    }
    return adata


def picture():
    y, x = np.mgrid[:420, :460]
    return np.stack([x // 2, y // 2, np.full_like(x, 90)], axis=-1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A sound folder with one slide."""
    for name in ("st", "wsis", "metadata"):
        (tmp_path / name).mkdir()
    write(tmp_path, table())
    describe(tmp_path)
    with tifffile.TiffWriter(tmp_path / "wsis" / f"{ID}.tif", bigtiff=True) as tiff:
        for step in (1, 2):
            tiff.write(
                picture()[::step, ::step],
                tile=(128, 128),
                compression="jpeg",
                compressionargs={"level": 95},
                photometric="rgb",
                subfiletype=step - 1,
            )
    return tmp_path


def write(folder, adata):
    adata.write_h5ad(folder / "st" / f"{ID}.h5ad")


def describe(folder, **changes):
    values = {k: v for k, v in (METADATA | changes).items() if v != "absent"}
    (folder / "metadata" / f"{ID}.json").write_text(json.dumps(values))


def test_slide_is_read_whole(folder):
    slide = hest.read_slide(folder, ID)
    array_xy, pixel_xy = visium()
    kept = np.arange(56) != 3
    assert (slide.id, slide.patient, slide.mpp) == (ID, "Patient 1", 2.05)
    assert slide.spot_diameter_um == 55.0
    assert slide.genes == ("ACTB", "ERBB2", "CD3E", "KRT5", "MS4A1")
    assert slide.barcodes == tuple(f"BC{i:02d}-1" for i in np.flatnonzero(kept))
    np.testing.assert_array_equal(slide.counts.toarray(), counts_table()[kept])
    np.testing.assert_array_equal(slide.array_xy, array_xy[kept])
    np.testing.assert_array_equal(slide.pixel_xy, pixel_xy[kept].astype(np.float32))
    assert slide.notes == ("left out 1 spot not under tissue (in_tissue is not 1)",)
    assert slide.sources == {p.name: slides.sha256(p) for p in folder.rglob(f"{ID}.*")}
    assert len(slide.sources) == 3
    # JPEG at quality 95 keeps a smooth picture to a few of 256.
    found = slide.image.read(100, 200, 50, 60).astype(int)
    np.testing.assert_allclose(found, picture()[200:260, 100:150].astype(int), atol=4)


@pytest.mark.parametrize(
    "layout", [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.csc_matrix, scipy.sparse.csr_array]
)
@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8])
def test_counts_of_any_layout(folder, layout, dtype):
    write(folder, table(layout(counts_table().astype(dtype))))
    slide = hest.read_slide(folder, ID)
    np.testing.assert_array_equal(slide.counts.toarray(), np.delete(counts_table(), 3, axis=0))


@pytest.mark.parametrize("kind", ["bool", "text", "category"])
def test_marks_of_tissue(folder, kind):
    under = np.arange(56) != 3
    values = {
        "bool": under,
        "text": np.where(under, "1", "0").astype(object),
        "category": pd.Categorical(np.where(under, "True", "False")),
    }[kind]
    write(folder, table(in_tissue=values))
    assert hest.read_slide(folder, ID).n_spots == 55


def test_array_positions_follow_from_pixels(folder):
    adata = table()
    adata.obs = adata.obs[["in_tissue"]]
    write(folder, adata)
    slide = hest.read_slide(folder, ID)
    pixel_xy = np.delete(visium()[1], 3, axis=0)
    # float32 of values up to 10
    np.testing.assert_allclose(slide.array_xy, pixel_xy / PITCH_PX, rtol=1e-6)
    adata.obs["array_row"], adata.obs["array_col"] = "x", 1
    write(folder, adata)
    with pytest.raises(errors.SlideError, match=f"{ID}: array_xy of 55 spots is not finite"):
        hest.read_slide(folder, ID)


UM = 100 / PITCH_PX  # 2.0833, from the pitch


@pytest.mark.parametrize(
    ("changes", "expected", "note"),
    [
        ({}, 2.05, None),
        ({"pixel_size_um_embedded": None}, 2.08, None),
        ({"pixel_size_um_embedded": None, "pixel_size_um_estimated": float("nan")}, UM, "pitch"),
        ({"pixel_size_um_embedded": 1.0}, 2.08, "of pixel_size_um_embedded 1 and .*estimated 2.08"),
        ({"pixel_size_um_estimated": 0.5}, 2.05, "2.05 um: of .* it agrees with the spot pitch"),
        ({"inter_spot_dist": "absent"}, 2.05, None),
    ],
)
def test_pixel_size_of_the_metadata(folder, changes, expected, note):
    describe(folder, **changes)
    slide = hest.read_slide(folder, ID)
    assert slide.mpp == pytest.approx(expected, rel=1e-6)
    assert len(slide.notes) == (2 if note else 1)
    if note:
        assert re.search(note, slide.notes[1])
    assert hest.read_slide(folder, ID, mpp=0.25).mpp == 0.25


def test_pixel_size_is_not_guessed(folder):
    unknown = {"pixel_size_um_embedded": None, "pixel_size_um_estimated": ""}
    describe(folder, inter_spot_dist="absent", **unknown)
    with pytest.raises(errors.PixelSizeError, match=rf"{ID}: the pixel size is unknown.*mpp="):
        hest.read_slide(folder, ID)
    assert hest.read_slide(folder, ID, mpp=0.5).mpp == 0.5
    describe(folder, pixel_size_um_embedded=1.0, inter_spot_dist="absent")
    with pytest.raises(errors.PixelSizeError, match=r"contradictory.*embedded 1.*estimated 2\.08"):
        hest.read_slide(folder, ID)
    describe(folder, pixel_size_um_embedded=1.0, pixel_size_um_estimated=0.5)
    with pytest.raises(errors.PixelSizeError, match=r"contradictory.*2\.083 from the spot pitch"):
        hest.read_slide(folder, ID)


def test_slide_of_one_spot(folder):
    write(folder, table()[:1].copy())  # no distance to measure, and none is needed
    slide = hest.read_slide(folder, ID)
    assert (slide.n_spots, slide.mpp) == (1, 2.05)


def test_folder_without_metadata(folder):
    (folder / "metadata" / f"{ID}.json").unlink()
    slide = hest.read_slide(folder, ID, mpp=0.5)
    assert slide.patient is None
    assert slide.spot_diameter_px == 30.0  # from the scale factors
    adata = table()
    del adata.uns["spatial"]
    write(folder, adata)
    with pytest.raises(errors.SlideError, match=rf"{ID}: the spot diameter.*spot_diameter_fullres"):
        hest.read_slide(folder, ID, mpp=0.5)


@pytest.mark.parametrize("patient", [None, "", "  ", float("nan"), "absent"])
def test_unknown_patient_is_none(folder, patient):
    describe(folder, patient=patient)
    assert hest.read_slide(folder, ID).patient is None


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan, np.inf])
def test_counts_that_are_not_raw(folder, value):
    counts = counts_table()
    counts[9, 2] = value
    adata = table(scipy.sparse.csr_matrix(counts))
    write(folder, adata)
    with pytest.raises(errors.SlideError, match=rf"{ID}\.h5ad: X holds 1 .*row 9, column 2") as no:
        hest.read_slide(folder, ID)
    assert "layers" not in str(no.value)
    adata.layers["counts"] = counts_table()
    write(folder, adata)
    with pytest.raises(errors.SlideError, match=r"layers\['counts'\] may be them"):
        hest.read_slide(folder, ID)


def test_missing_positions_name_what_is_there(folder):
    adata = table()
    del adata.obsm["spatial"]
    adata.obsm["X_pca"] = np.zeros((56, 2))
    write(folder, adata)
    with pytest.raises(errors.SlideError, match=rf"{ID}\.h5ad has no spot coord.*obsm: X_pca"):
        hest.read_slide(folder, ID)
    adata.obsm["spatial"] = np.zeros((56, 3))
    write(folder, adata)
    with pytest.raises(errors.SlideError, match=r"parts do not fit 56 spots.*\(56, 3\)"):
        hest.read_slide(folder, ID)


def test_duplicate_genes_are_named_without_a_warning(folder):
    with h5py.File(folder / "st" / f"{ID}.h5ad", "r+") as file:
        del file["var"]
        frame = pd.DataFrame(index=["ACTB", "TBCE", "CD3E", "TBCE", "MS4A1"])
        anndata.io.write_elem(file, "var", frame)
    with pytest.raises(errors.SlideError, match=f"{ID}: gene names are not unique.*TBCE x2"):
        hest.read_slide(folder, ID)


def test_missing_and_damaged_files(folder):
    with pytest.raises(errors.SlideError, match=rf"no counts of slide TENX1.*slides {ID}"):
        hest.read_slide(folder, "TENX1")
    with pytest.raises(errors.SlideError, match="slide id"):
        hest.read_slide(folder, "../MEND145")
    (folder / "wsis" / f"{ID}.tif").rename(folder / "wsis" / f"{ID}.tiff")
    assert hest.read_slide(folder, ID).image.source == f"{ID}.tiff"
    (folder / "wsis" / f"{ID}.tiff").unlink()
    with pytest.raises(errors.ImageError, match=rf"no image of slide {ID}.*wsis/{ID}\.tif"):
        hest.read_slide(folder, ID)
    assert hest.read_slide(folder, ID, need_image=False).image is None
    (folder / "metadata" / f"{ID}.json").write_text("{patient")
    with pytest.raises(errors.SlideError, match=rf"metadata {ID}\.json is no JSON"):
        hest.read_slide(folder, ID, need_image=False)
    path = folder / "st" / f"{ID}.h5ad"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(errors.SlideError, match=rf"{ID}\.h5ad is damaged.*again"):
        hest.read_slide(folder, ID, need_image=False)


def test_slides_listed_are_those_with_counts(folder):
    (folder / "st" / "A1.h5ad").write_bytes(b"")
    (folder / "st" / "readme.txt").write_text("")
    assert hest.list_slides(folder) == ["A1", ID]
    with pytest.raises(errors.SlideError, match="no folder of HEST slides.*st, wsis"):
        hest.list_slides(folder / "wsis")


def test_the_command_prepares_a_hest_folder(folder, tmp_path, capsys):
    genes = tmp_path / "genes.txt"
    genes.write_text("ERBB2\nKRT5\n")
    command = ["prepare", "--layout", "hest", "--data", str(folder), "--out", f"{tmp_path}/out",
               "--genes", str(genes), "--workers", "1"]  # fmt: skip
    assert cli.main(command) == 0
    source = records.open_records(tmp_path / "out")
    slide, kept = hest.read_slide(folder, ID), source.load([ID])
    assert kept.barcodes == slide.barcodes
    np.testing.assert_array_equal(kept.counts, slide.counts.toarray()[:, [1, 3]])
    np.testing.assert_array_equal(kept.total, slide.counts.toarray().sum(1))
    assert source.slides[ID].patient == "Patient 1"
    assert f"{ID}: 55 spots" in capsys.readouterr().out


def test_text_and_categories_of_known_names_are_labels(folder):
    regions = np.array(["tumour", "stroma"] * 28, object)
    clusters = pd.Categorical.from_codes([-1, *[0, 1, 2] * 18, 1], ["0", "1", "2"])
    layers = np.array(["L1", None] * 28, object)
    columns = {
        "annotation": regions,
        "leiden": clusters,
        "layer": layers,
        "label": np.linspace(0, 1, 56),  # a score
        "cluster": pd.Categorical([None] * 56, categories=["a"]),
        "sample": regions,  # no name of a label
    }
    write(folder, table(**columns))
    slide = hest.read_slide(folder, ID)
    kept = [i for i in range(56) if i != 3]
    assert slide.labels == {
        "annotation": tuple(regions[kept]),
        "layer": tuple(layers[i] or "" for i in kept),
        "leiden": tuple(["", *["0", "1", "2"] * 18, "1"][i] for i in kept),
    }
