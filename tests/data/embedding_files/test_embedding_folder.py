"""A folder of embedding files is an embedder: slides find their files, all have one contract."""

import dataclasses
import pathlib
import shutil
import zipfile

import embedded_slide as made
import numpy as np
import pytest

from stemjax import errors
from stemjax.data import embedding_files, embeddings, genes, patches, prepare, records
from stemjax.data import slides as slides_lib

GOLDEN = pathlib.Path(__file__).parent / "golden"
SLIDE, OTHER = made.make_slide(), made.make_slide("G2")


def refused(match, function, *values, **options):
    with pytest.raises(errors.EncoderMismatchError, match=match) as caught:
        function(*values, **options)
    return caught.value


@pytest.fixture
def folder(tmp_path):
    for slide in (SLIDE, OTHER):
        made.write_hest(tmp_path / f"{slide.id}.h5", slide)
    return tmp_path


def test_an_embedder_of_a_folder(folder):
    opened = embedding_files.open_embeddings(folder, encoder="uni")
    assert isinstance(opened, embeddings.Embedder)
    assert (opened.contract.name, opened.contract.width, opened.contract.fov_um) == ("uni", 6, 112)
    told = []
    for slide in (SLIDE, OTHER):
        values = opened.embed(slide, variants=8, progress=lambda *what: told.append(what))
        assert values.dtype == np.float16
        expected = made.vectors(slide.pixel_xy, 1).astype(np.float16)  # it has no more variants
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(patches.embed_slide(slide, opened), expected)
    assert told[0] == (24, 24, "read the embeddings of G1")
    name = "embeddings/G1.h5"
    assert opened.sources(SLIDE) == {name: slides_lib.sha256(folder / "G1.h5")}


def test_records_are_prepared_from_files(folder, tmp_path):
    made.write_hest(folder / "G2.h5", OTHER, n=20)
    by_id = {slide.id: slide for slide in (SLIDE, OTHER)}
    panel = genes.Panel(genes=("A", "B", "C"), rule="made", slides=("G1",))
    opened = embedding_files.open_embeddings(folder, encoder="uni", missing="drop")
    refused("to be dropped", opened.embed, OTHER)
    prepare.prepare(
        lambda slide_id: opened.covered(by_id[slide_id]),
        ["G1", "G2"],
        tmp_path / "out",
        genes=panel,
        encoder=opened,
        variants=4,
    )
    found = records.open_records(tmp_path / "out")
    assert found.contract == opened.contract
    assert (found.slides["G1"].n_spots, found.slides["G2"].n_spots) == (24, 20)
    assert found.variants == 1
    assert "embeddings/G2.h5" in found.slides["G2"].sources


def test_templates_and_single_files(folder, tmp_path):
    for slide in (SLIDE, OTHER):
        deep = tmp_path / "runs" / f"{slide.id}_v1" / "patches.h5"
        deep.parent.mkdir(parents=True)
        shutil.copy(folder / f"{slide.id}.h5", deep)
    template = f"{tmp_path}/runs/{{slide}}_v1/patches.h5"
    opened = embedding_files.open_embeddings(template, encoder="uni")
    assert sorted(opened.where.slide_ids()) == ["G1", "G2"]
    assert opened.embed(OTHER).shape == (24, 1, 6)
    one = embedding_files.open_embeddings(folder / "G1.h5", encoder="uni")
    assert one.embed(SLIDE).shape == (24, 1, 6)
    assert "{slide}" in refused("does not bear the name", one.embed, OTHER).fix


def test_files_that_are_not_there(tmp_path):
    refused("no embedding files", embedding_files.open_embeddings, tmp_path)
    made.write_trident(tmp_path / "20x" / "features_uni_v1" / "G1.h5")
    made.write_hest(tmp_path / "G2.h5", OTHER)
    opened = embedding_files.open_embeddings(tmp_path, encoder="uni")
    error = refused("no embeddings of slide G1", opened.embed, SLIDE)
    assert str(tmp_path / "20x" / "features_uni_v1") in error.fix
    assert error.found == "those of G2"
    made.write_npz(tmp_path / "G2.npz", OTHER)
    assert refused("several files", opened.embed, OTHER).found == "G2.h5, G2.npz"


def test_the_first_file_that_can_be_read_settles(folder):
    (folder / "G1.h5").write_bytes(b"nothing of the kind")
    opened = embedding_files.open_embeddings(folder, encoder="uni")
    assert opened.first.endswith("G2.h5")
    refused("G1.h5: no embedding file", opened.embed, SLIDE)
    (folder / "G2.h5").write_bytes(b"")
    refused("G1.h5: no embedding file", embedding_files.open_embeddings, folder, encoder="uni")


def test_one_contract_for_all(tmp_path):
    made.write_trident(tmp_path / "G1.h5")
    made.write_trident(tmp_path / "G2.h5", encoder="uni_v2")
    opened = embedding_files.open_embeddings(tmp_path)
    error = refused("field 'name'", opened.embed, OTHER)
    assert "G1.h5" in error.what
    assert "G2.h5" in error.what
    made.write_trident(tmp_path / "G2.h5")
    slide = made.make_slide("G2", mpp=0.4)
    error = refused("another piece of tissue than those of .*G1.h5", opened.embed, slide)
    assert (error.expected, error.found) == (
        "128 um, 5% more or less",
        "102.4 um at 0.4 um a pixel",
    )
    stated = embedding_files.open_embeddings(tmp_path, fov_um=120.0, allow_fov_mismatch=True)
    stated.embed(slide)
    assert any("102.4 um" in note for note in stated.notes(slide))


def test_values_beyond_half_precision(tmp_path):
    values = made.vector(SLIDE.pixel_xy).astype(np.float32)
    values[2, 0] = -7e4
    made.write_h5(tmp_path / "G1.h5", {"embeddings": values, "barcodes": np.array(SLIDE.barcodes)})
    opened = embedding_files.open_embeddings(tmp_path, encoder="uni")
    assert refused("half precision", opened.embed, SLIDE).found == "7e+04"


def test_a_store_is_one_source(tmp_path):
    with zipfile.ZipFile(GOLDEN / "lazyslide.zarr.zip") as packed:
        packed.extractall(tmp_path / "G1.zarr")
    opened = embedding_files.open_embeddings(tmp_path, key="uni")
    before = opened.sources(SLIDE)
    assert list(before) == ["embeddings/G1.zarr"]
    assert opened.sources(SLIDE) == before
    path = tmp_path / "G1.zarr" / "shapes" / "zarr.json"
    path.write_text(path.read_text() + " ")
    assert opened.sources(SLIDE) != before
    assert opened.embed(SLIDE).shape == (24, 1, 6)


def test_stem_folders_name_their_files(tmp_path):
    made.write_stem(tmp_path, SLIDE)
    opened = embedding_files.open_embeddings(tmp_path, rows="as-slide")
    assert list(opened.sources(SLIDE)) == [
        "embeddings/G1_uni.pt",
        "embeddings/G1_conch.pt",
        "embeddings/G1_uni_aug.pt",
        "embeddings/G1_conch_aug.pt",
    ]
    refused("no embeddings of slide G2", opened.embed, OTHER)
    closed = embedding_files.open_embeddings(tmp_path)
    refused("which row is which spot", closed.embed, SLIDE)
    fewer = dataclasses.replace(
        SLIDE,
        counts=SLIDE.counts[:23],
        barcodes=SLIDE.barcodes[:23],
        array_xy=SLIDE.array_xy[:23],
        pixel_xy=SLIDE.pixel_xy[:23],
        labels={},
    )
    refused("cannot be the spots", opened.embed, fewer)
