"""Records: what is written is what is read, by tfds alone too; damage and mixtures are refused."""

from __future__ import annotations

import dataclasses
import os
import re

import numpy as np
import pytest
import small_slides as made
import tensorflow_datasets as tfds

from stemjax import errors
from stemjax.data import builder, images, integrity, records


def write(out, slide, *, panel=made.PANEL, contract=made.CONTRACT, **options):
    return records.write_slide(
        out, slide, made.make_embeddings(slide), panel=panel, contract=contract, **options
    )


def shard_paths(out, slide_id):
    return sorted(builder.slide_folder(out, slide_id).glob("*/*.array_record-*"))


def test_what_is_written_is_read(tmp_path):
    # C lacks two genes of the panel and has one that the panel lacks.
    slide = made.make_slide("C", names=("X", *made.GENES[2:]))
    write(tmp_path, slide, shards=3)
    write(tmp_path, made.make_slide("B", n=5))
    table = records.open_records(tmp_path).load(["C", "B"])
    assert table.slides == ("B", "C")
    assert table.slide_index.tolist() == [0] * 5 + [1] * 12
    mine = slice(5, 17)
    assert table.barcodes[mine] == slide.barcodes
    np.testing.assert_array_equal(table.embeddings[mine], made.make_embeddings(slide))
    counts = slide.counts.toarray()
    np.testing.assert_array_equal(table.counts[mine, 2:], counts[:, 1:])
    assert (table.counts[mine, :2] == 0).all()
    np.testing.assert_array_equal(table.total[mine], counts.sum(axis=1))
    assert table.mask[mine].tolist() == [[0, 0, 1, 1, 1, 1, 1, 1]] * 12
    assert (table.mask[:5] == 1).all()
    np.testing.assert_array_equal(table.array_xy[mine], slide.array_xy)
    np.testing.assert_array_equal(table.pixel_xy[mine], slide.pixel_xy)


def test_tfds_reads_the_same_without_code_of_this_project(tmp_path):
    slide = made.make_slide("TENX.95")
    info = write(tmp_path, slide, shards=2)
    opened = records.open_records(tmp_path)
    table, folder = opened.load(["TENX.95"]), opened.folders["TENX.95"]
    # tfds imports the classes that features.json names: none may be ours.
    assert "stemjax" not in (folder / "features.json").read_text()
    read_only = tfds.builder_from_directory(folder)
    source = read_only.as_data_source(split=info.split)
    assert len(source) == slide.n_spots
    for row, spot in enumerate(source):
        for name in ("embeddings", "counts", "total", "mask", "array_xy", "pixel_xy"):
            theirs, ours = np.asarray(spot[name]), getattr(table, name)[row]
            assert theirs.dtype == ours.dtype
            np.testing.assert_array_equal(theirs, ours)
        assert spot["barcode"].decode() == table.barcodes[row]
        assert spot["slide"].decode() == "TENX.95"
    metadata = read_only.info.metadata
    assert metadata["genes"] == list(made.GENES)
    assert metadata["slide"]["id"] == "TENX.95"
    assert metadata["contract"] == made.CONTRACT.to_json()


def test_slide_info_comes_back(tmp_path):
    slide = made.make_slide("A1", patient=None)
    written = write(tmp_path, slide)
    opened = records.open_records(tmp_path)
    assert opened.slides == {"A1": written}
    assert opened.patients == {"A1": None}
    assert written.sources == slide.sources
    # The published patch is 224 level-0 pixels where spots are smaller: 112 um at 0.5 um/px.
    assert written.patch_um == 112.0
    assert written.thumbnail_scale is None


def test_rows_are_gathered_in_the_order_asked_for(tmp_path):
    for slide, n in (("A", 7), ("B", 5), ("C", 9)):
        write(tmp_path, made.make_slide(slide, n=n), shards=2)
    opened = records.open_records(tmp_path)
    source, table = opened.source(["B", "C"]), opened.load(["C", "B"])
    assert len(source) == 14
    rows = np.array([13, 0, 5, 5, 4, 9])
    got = source.gather(rows)
    assert got.barcodes == tuple(table.barcodes[i] for i in rows)
    assert [got.slides[i] for i in got.slide_index] == ["C", "B", "C", "C", "B", "C"]
    np.testing.assert_array_equal(got.embeddings, table.embeddings[rows])
    np.testing.assert_array_equal(got.counts, table.counts[rows])


def test_tables_come_a_slide_at_a_time(tmp_path):
    for slide, n in (("B", 3), ("A", 2)):
        write(tmp_path, made.make_slide(slide, n=n))
    tables = list(records.open_records(tmp_path).tables(["B", "A"]))
    assert [(table.slides, table.n) for table in tables] == [(("A",), 2), (("B",), 3)]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def copy_neighbour(path):
    path.write_bytes(shard_paths(path.parents[3], "A1")[0].read_bytes())


@pytest.mark.parametrize("harm", [flip, halve, empty, copy_neighbour, os.remove])
def test_a_damaged_shard_is_named(tmp_path, harm):
    write(tmp_path, made.make_slide("A0"))
    write(tmp_path, made.make_slide("A1"), shards=3)
    victim = shard_paths(tmp_path, "A1")[2]
    harm(victim)
    with pytest.raises(errors.RecordsError) as caught:
        records.open_records(tmp_path).load(["A1"])
    assert victim.name in caught.value.what
    assert "slide A1" in caught.value.what
    assert "prepare" in str(caught.value.fix)


def test_an_undamaged_slide_beside_a_flipped_one_is_read(tmp_path):
    for slide in ("A0", "A1"):
        write(tmp_path, made.make_slide(slide))
    flip(shard_paths(tmp_path, "A1")[0])
    opened = records.open_records(tmp_path)
    assert opened.load(["A0"]).n == 12
    with pytest.raises(errors.RecordsError, match="slide A1"):
        opened.verify()


@pytest.mark.parametrize("harm", [halve, empty, os.remove])
def test_a_shard_that_is_cut_short_is_noticed_when_opened(tmp_path, harm):
    write(tmp_path, made.make_slide("A1"), shards=3)
    victim = shard_paths(tmp_path, "A1")[1]
    harm(victim)
    with pytest.raises(errors.RecordsError, match=re.escape(victim.name)):
        records.open_records(tmp_path)


@pytest.mark.parametrize("name", ["metadata.json", "dataset_info.json", integrity.MANIFEST])
def test_damaged_metadata_is_refused_when_opened(tmp_path, name):
    write(tmp_path, made.make_slide("A1"))
    folder = builder.slide_folder(tmp_path, "A1") / builder.VERSION
    flip(folder / name) if name != integrity.MANIFEST else empty(folder / name)
    with pytest.raises(errors.RecordsError, match=f"slide A1 .*damaged: {name}"):
        records.open_records(tmp_path)


def test_damage_after_the_check_is_named_too(tmp_path):
    write(tmp_path, made.make_slide("A1", n=40), shards=2)
    source = records.open_records(tmp_path).source(["A1"])
    victim = shard_paths(tmp_path, "A1")[1]
    empty(victim)
    with pytest.raises(errors.RecordsError, match=re.escape(victim.name)):
        source.gather(np.array([39]))


def test_another_format_is_not_called_damage(tmp_path, monkeypatch):
    write(tmp_path, made.make_slide("A1"))
    monkeypatch.setattr(builder, "FORMAT", builder.FORMAT + 1)
    with pytest.raises(errors.RecordsError, match="expected format 2, found 1"):
        records.open_records(tmp_path)


def test_no_records_says_what_was_looked_for(tmp_path):
    with pytest.raises(errors.RecordsError, match="no records in .*prepare --out"):
        records.open_records(tmp_path / "nowhere")


def test_folders_merge(tmp_path):
    one = dataclasses.replace(made.PANEL, slides=("A1", "B1"))
    two = dataclasses.replace(made.PANEL, slides=("C1",), rule="list genes.txt")
    write(tmp_path / "b", made.make_slide("B1"), panel=one)
    write(tmp_path / "a", made.make_slide("C1"), panel=two)
    write(tmp_path / "a", made.make_slide("A1"), panel=two)
    there = records.open_records(tmp_path / "a", tmp_path / "b")
    back = records.open_records(tmp_path / "b", tmp_path / "a")
    assert list(there.slides) == list(back.slides) == ["A1", "B1", "C1"]
    # A slide that any of the panels was chosen on has been seen.
    assert there.panel.slides == ("A1", "B1", "C1")
    np.testing.assert_array_equal(there.load(["C1", "B1"]).counts, back.load(["B1", "C1"]).counts)


def test_a_slide_in_two_folders_is_refused(tmp_path):
    for out in ("a", "b"):
        write(tmp_path / out, made.make_slide("A1"))
    with pytest.raises(errors.RecordsError, match="Slide A1 is in .*a.* and in .*b"):
        records.open_records(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("genes", "text"),
    [
        (("G1", "G0", *made.GENES[2:]), "first difference is gene 1.*expected G0.*found G1"),
        (made.GENES[:6], "8 and 6 genes; the first difference is gene 7.*G6.*found nothing"),
    ],
)
def test_other_genes_or_another_order_are_refused(tmp_path, genes, text):
    write(tmp_path, made.make_slide("A1"))
    write(tmp_path, made.make_slide("B1"), panel=dataclasses.replace(made.PANEL, genes=genes))
    with pytest.raises(errors.RecordsError, match=text):
        records.open_records(tmp_path)


def test_another_encoder_of_the_same_width_is_refused(tmp_path):
    write(tmp_path, made.make_slide("A1"))
    other = dataclasses.replace(made.CONTRACT, pooling="class token")
    write(tmp_path, made.make_slide("B1"), contract=other)
    with pytest.raises(errors.EncoderMismatchError, match="pooling.*B1.*A1") as caught:
        records.open_records(tmp_path)
    assert "'mean'" in str(caught.value.expected)
    assert "'class token'" in str(caught.value.found)


def test_other_numbers_of_variants_are_refused(tmp_path):
    slide = made.make_slide("B1")
    write(tmp_path, made.make_slide("A1"))
    records.write_slide(
        tmp_path,
        slide,
        made.make_embeddings(slide, variants=1),
        panel=made.PANEL,
        contract=made.CONTRACT,
    )
    with pytest.raises(errors.RecordsError, match="A1 and B1 .*expected 8.*found 1"):
        records.open_records(tmp_path)


def test_an_unknown_slide_is_named_with_the_nearest(tmp_path):
    write(tmp_path, made.make_slide("SPA119"))
    opened = records.open_records(tmp_path)
    with pytest.raises(errors.RecordsError, match="'SPA118'.*[Dd]id you mean SPA119"):
        opened.load(["SPA118"])
    with pytest.raises(errors.RecordsError, match="each once.*SPA119, SPA119"):
        opened.load(["SPA119", "SPA119"])
    with pytest.raises(errors.RecordsError, match="found none"):
        opened.source([])


def test_thumbnail(tmp_path):
    slide = made.make_slide("A1")
    # A smooth picture, so that JPEG's own loss is small; wider than the limit.
    x, y = np.meshgrid(np.linspace(0, 255, 3200), np.linspace(0, 255, 400))
    pixels = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    slide = dataclasses.replace(slide, image=images.ArrayImage(pixels))
    info = write(tmp_path, slide)
    thumbnail, scale = records.open_records(tmp_path).thumbnail("A1")
    assert scale == info.thumbnail_scale
    assert scale == pytest.approx(1500 / 3200, rel=1e-3)  # a pixel of 1500 rounds
    height, width, _ = thumbnail.shape
    assert (width, height) == (1500, round(400 * scale))  # nothing is padded
    # JPEG of quality 90 on a gradient: a few grey levels, and half a thumbnail pixel of shift.
    at = pixels[(np.arange(height) / scale).astype(int)][:, (np.arange(width) / scale).astype(int)]
    assert np.abs(thumbnail.astype(int) - at).mean() < 3


def test_a_thumbnail_of_nothing_is_refused(tmp_path):
    write(tmp_path, made.make_slide("A1"))
    with pytest.raises(errors.RecordsError, match="A1 was prepared without an image"):
        records.open_records(tmp_path).thumbnail("A1")
