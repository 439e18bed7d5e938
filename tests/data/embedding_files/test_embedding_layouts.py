"""Golden files of eight layouts and of our own: every spot gets the embedding of its place."""

import dataclasses
import json
import pathlib
import shutil
import sys
import zipfile

import embedded_slide as made
import h5py
import numpy as np
import pytest

from stemjax import errors
from stemjax.data import embedding_files
from stemjax.data.embedding_files.layouts import h5ad

GOLDEN = pathlib.Path(__file__).parent / "golden"
SLIDE = made.make_slide()
AROUND_SPOTS, GRID = made.vectors(SLIDE.pixel_xy), made.vectors(made.tile_of(SLIDE.pixel_xy))
STEM = "processed_data/1spot_uni_ebd/G1_uni.pt"

# layout, how it joins, variants, what the spots must get
CASES = {
    "trident.h5": ("trident", "coordinates", 1, GRID),
    "clam.h5": ("clam", "coordinates", 1, GRID),
    "hest.h5": ("hest-bench", "barcode", 1, AROUND_SPOTS),
    "generic.h5": ("h5", "barcode", 1, AROUND_SPOTS),
    "anndata.h5": ("h5ad", "barcode", 1, AROUND_SPOTS),
    "arrays.npz": ("npz", "coordinates", 8, AROUND_SPOTS),
    "plain.npy": ("npy", "barcode", 1, AROUND_SPOTS),
    "stemjax.h5": ("stemjax", "barcode", 8, AROUND_SPOTS),
    STEM: ("stem", "rows", 8, AROUND_SPOTS),
}


@pytest.fixture
def lazyslide(tmp_path):
    store = tmp_path / "G1.zarr"
    with zipfile.ZipFile(GOLDEN / "lazyslide.zarr.zip") as packed:
        packed.extractall(store)
    return store


@pytest.mark.parametrize("name", CASES)
def test_golden_files_give_each_spot_its_own(name):
    layout, how, variants, expected = CASES[name]
    file = embedding_files.read(GOLDEN / name)
    assert (file.layout, file.shape[1:]) == (layout, (variants, made.WIDTH))
    joined = embedding_files.join(file, SLIDE, rows="as-slide" if how == "rows" else None)
    assert joined.how == how
    assert not any("although" in note for note in joined.notes)  # places agree with names
    np.testing.assert_array_equal(joined.spots, np.arange(SLIDE.n_spots))
    values = file.values(joined.rows)
    assert values.dtype in (np.float16, np.float32)
    np.testing.assert_array_equal(values, expected[:, :variants])


def test_lazyslide_by_real_wsidata(lazyslide):
    file = embedding_files.read(lazyslide, key="uni")
    assert (file.layout, file.shape, file.patch_px) == ("lazyslide", (28, 1, 6), 256)
    assert (file.fov_um, file.mpp, file.stated) == (128, 0.5, {"name": "uni"})
    joined = embedding_files.join(file, SLIDE)
    np.testing.assert_array_equal(file.values(joined.rows), GRID[:, :1])
    # conch of LazySlide is projected, that of TRIDENT is not.
    projected = embedding_files.read(lazyslide, key="conch_tiles")
    assert projected.stated == {"name": "conch", "projection": "proj_contrast"}
    with pytest.raises(errors.EncoderMismatchError, match="not clear") as caught:
        embedding_files.read(lazyslide)
    assert caught.value.found == "conch_tiles, uni_tiles"


def test_lazyslide_without_pyarrow_or_tiles(lazyslide, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(errors.EncoderMismatchError, match="pip install pyarrow"):
            embedding_files.read(lazyslide, key="uni")
    (lazyslide / "shapes/tiles/shapes.parquet").unlink()
    with pytest.raises(errors.EncoderMismatchError, match="tiles of the features are not there"):
        embedding_files.read(lazyslide, key="uni")


def test_lazyslide_with_a_chunk_missing(lazyslide):
    (lazyslide / "tables/uni_tiles/X/c/0/0").unlink()
    with pytest.raises(errors.EncoderMismatchError, match="not written to its end"):
        embedding_files.read(lazyslide, key="uni")


def test_stem_joins_encoders_side_by_side_in_the_order_of_variants():
    where = embedding_files.open_embeddings(GOLDEN / "processed_data", rows="as-slide")
    assert where.contract.name == "uni+conch"
    assert where.contract.fov_um is None  # the published rule
    both = np.concatenate([AROUND_SPOTS, AROUND_SPOTS[..., :2] * 2], 2)
    np.testing.assert_array_equal(where.embed(SLIDE), both.astype(np.float16))
    only = embedding_files.open_embeddings(
        GOLDEN / "processed_data", encoder="conch", rows="as-slide"
    )
    assert (only.contract.name, only.contract.width) == ("conch", 2)
    np.testing.assert_array_equal(only.embed(SLIDE, variants=3), both[:, :3, 6:].astype(np.float16))


def test_stem_without_flips_has_one_variant(tmp_path):
    shutil.copytree(GOLDEN / "processed_data/1spot_uni_ebd", tmp_path / "1spot_uni_ebd")
    file = embedding_files.read(tmp_path / "1spot_uni_ebd" / "G1_uni.pt")
    assert file.shape == (24, 1, 6)


def test_trident_attributes(tmp_path):
    file = embedding_files.read(GOLDEN / "trident.h5")
    assert (file.patch_px, file.fov_um, file.slide_id) == (256, 128, "G1")
    assert file.stated == {"name": "uni_v1"}
    # None is stored as the text 'None': no magnification, no nominal field of view.
    path = made.write_trident(tmp_path / "a.h5", target_magnification="None", encoder="None")
    nothing = embedding_files.read(path)
    assert (nothing.layout, nothing.patch_px, nothing.fov_um) == ("trident", 256, None)
    assert nothing.stated == {}
    # 256 px at 20x of a 40x slide are 512 px of level 0.
    path = made.write_trident(tmp_path / "b.h5", patch_size_level0="None", level0_magnification=40)
    assert embedding_files.read(path).patch_px == 512
    path = made.write_trident(tmp_path / "c.h5", patch_size_level0=-256)
    with pytest.raises(errors.EncoderMismatchError, match="patch_size_level0"):
        embedding_files.read(path)


@pytest.mark.parametrize(
    ("attrs", "side"),
    [
        ({"patch_size": 256, "patch_level": 0}, 256),
        ({"patch_size": 128, "patch_level": 0, "custom_downsample": 2}, 256),
        ({"patch_size": 64, "patch_level": 1, "downsample": np.array([4.0, 4.0])}, 256),
        ({"patch_size": 64, "patch_level": 1}, None),
    ],
)
def test_clam_levels(tmp_path, attrs, side):
    file = embedding_files.read(made.write_clam(tmp_path / "G1.h5", **attrs))
    assert (file.layout, file.patch_px) == ("clam", side)
    joined = embedding_files.join(file, SLIDE)
    np.testing.assert_array_equal(file.values(joined.rows), GRID[:, :1])
    assert any("spacing: 256 px" in note for note in joined.notes) == (side is None)


def test_a_guess_says_what_it_assumed(tmp_path):
    file = embedding_files.read(GOLDEN / "generic.h5")
    (note,) = file.notes
    assert "'feats' are the embeddings" in note
    assert "'spot_ids' the spots' barcodes" in note
    path = made.write_h5(
        tmp_path / "G1.h5", {"mine": AROUND_SPOTS[:, 0], "coords": SLIDE.pixel_xy - 112}
    )
    with pytest.raises(errors.EncoderMismatchError, match="key=") as caught:
        embedding_files.read(path)
    assert "mine" in (caught.value.found or "")
    file = embedding_files.read(path, key="mine")
    assert "upper left corners" in file.notes[0]


def test_h5ad_slots(tmp_path):
    path = made.write_h5ad(tmp_path / "G1.h5ad", SLIDE, X_conch=AROUND_SPOTS[:, 0, :2])
    with pytest.raises(errors.EncoderMismatchError, match="not clear") as caught:
        embedding_files.read(path)
    assert caught.value.found == "X_conch, X_uni"
    for key in ("conch", "X_conch"):
        file = embedding_files.read(path, key=key)
        assert (file.guess, file.width) == ("conch", 2)
    assert "X_pca" in h5ad.NOT_ENCODERS
    with pytest.raises(errors.EncoderMismatchError, match="X_virchow"):
        embedding_files.read(path, key="virchow")


def test_h5ad_that_stemjax_embedded(tmp_path):
    every = made.vectors(SLIDE.pixel_xy[made.order(SLIDE.n_spots)]).astype(np.float16)
    path = made.write_h5ad(tmp_path / "G1.h5ad", SLIDE, X_uni_variants=every)
    with h5py.File(path, "a") as opened:
        said = opened["uns"].create_group("stemjax_encoders")
        said["X_uni"] = json.dumps(made.CONTRACT.to_json())
    opened = embedding_files.open_embeddings(tmp_path)
    assert opened.contract == made.CONTRACT
    np.testing.assert_array_equal(opened.embed(SLIDE), AROUND_SPOTS.astype(np.float16))
    with h5py.File(path, "a") as damaged:
        del damaged["uns/stemjax_encoders/X_uni"]
        damaged["uns/stemjax_encoders/X_uni"] = "{}"
    with pytest.raises(errors.EncoderMismatchError, match="is no contract"):
        embedding_files.read(path)


def test_h5ad_with_an_older_index(tmp_path):
    path = made.write_h5ad(tmp_path / "G1.h5ad", SLIDE)
    with h5py.File(path, "a") as opened:
        obs = opened["obs"]
        names = [SLIDE.barcodes[row].encode() for row in made.order(SLIDE.n_spots)]
        del obs["_index"]
        obs["names"] = np.array(names)
        obs.attrs["_index"] = "names"
    file = embedding_files.read(path)
    assert file.barcodes == tuple(name.decode() for name in names)


def test_npz_by_barcode(tmp_path):
    rows = made.order(SLIDE.n_spots)
    path = made.write_npz(
        tmp_path / "G1.npz",
        SLIDE,
        coords=None,
        barcodes=np.array([SLIDE.barcodes[row] for row in rows]),
    )
    file = embedding_files.read(path)
    assert (file.xy, file.patch_px, file.stated) == (None, 224, {"name": "uni"})
    np.testing.assert_array_equal(file.values(embedding_files.join(file, SLIDE).rows), AROUND_SPOTS)


def test_npy_with_a_plain_list_beside_it(tmp_path):
    path = made.write_npy(tmp_path / "G1.npy", SLIDE)
    with pytest.raises(errors.EncoderMismatchError, match="holds one"):
        embedding_files.read(path, key="features")
    expected = embedding_files.read(path).barcodes
    (tmp_path / "G1_barcodes.csv").unlink()
    (tmp_path / "G1.txt").write_text("\n".join(expected))
    assert embedding_files.read(path).barcodes == expected


def test_numbers_are_read_in_blocks_and_only_those_needed(tmp_path):
    n = 10_000
    rng = np.random.default_rng(0)
    values = rng.standard_normal((n, 3)).astype(np.float32)
    xy = np.stack([np.arange(n), np.zeros(n)], 1) * 256
    path = made.write_h5(tmp_path / "G1.h5", {"features": values, "coords": xy})
    file = embedding_files.read(path)
    asked = []

    def load(start, stop):
        asked.append((start, stop))
        return file.load(start, stop)

    watched = dataclasses.replace(file, load=load)
    rows = np.array([9_000, 5, 9_000, 0])
    np.testing.assert_array_equal(watched.values(rows)[:, 0], values[rows])
    assert asked == [(0, 4096), (8192, 10_000)]
