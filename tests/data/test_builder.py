"""Writing a slide: names, shards, what is refused, and what a failed write leaves."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import small_slides as made
import tensorflow_datasets as tfds

from stemjax import errors
from stemjax.data import builder, integrity, records


def write(out, slide, *, panel=made.PANEL, contract=made.CONTRACT, **options):
    return records.write_slide(
        out, slide, made.make_embeddings(slide), panel=panel, contract=contract, **options
    )


def test_split_names_are_legal_and_differ():
    # Every name of up to four letters of an alphabet that holds all the marks of the escape.
    letters = "xd_.-u"
    ids = ["".join(t) for n in range(1, 5) for t in itertools.product(letters, repeat=n)]
    ids += ["all", "ALL", "x-all", "A1", "x-A1", "TENX95", "TENX.95", "TENX_95", "x-TENX_d95"]
    names = [builder.split_name(i) for i in ids]
    assert len(set(names)) == len(set(ids))
    assert all(re.fullmatch(r"[\w-]+", name) and name.lower() != "all" for name in names)
    assert builder.split_name("NCBI-7_b") == "NCBI-7_b"


@pytest.mark.parametrize("name", ["a..b", "all", "b-", "x-_", "7"])
def test_awkward_names_can_be_addressed(tmp_path, name):
    info = write(tmp_path, made.make_slide(name, n=2))
    table = records.open_records(tmp_path).load([name])
    assert table.barcodes == (f"{name}-0", f"{name}-1")
    folder = records.open_records(tmp_path).folders[name]
    split = tfds.builder_from_directory(folder).as_data_source(split=f"{info.split}[1:]")
    assert [spot["barcode"].decode() for spot in split] == [f"{name}-1"]


@pytest.mark.parametrize(("asked", "found"), [(1, [12]), (3, [4, 4, 4]), (12, [1] * 12)])
def test_shards_hold_the_spots_in_order(tmp_path, asked, found):
    write(tmp_path, made.make_slide("A1"), shards=asked)
    folder = builder.slide_folder(tmp_path, "A1") / builder.VERSION
    info = json.loads((folder / "dataset_info.json").read_text())
    assert [int(n) for n in info["splits"][0]["shardLengths"]] == found
    table = records.open_records(tmp_path).load(["A1"])
    assert table.barcodes == made.make_slide("A1").barcodes


@pytest.mark.parametrize("asked", [0, 13])
def test_impossible_shard_counts_are_refused(tmp_path, asked):
    with pytest.raises(errors.RecordsError, match="A1 .*expected 1 to 12"):
        write(tmp_path, made.make_slide("A1"), shards=asked)
    assert list(tmp_path.iterdir()) == []


def test_default_shards_stay_below_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "SHARD_BYTES", 5000)
    write(tmp_path, made.make_slide("A1", n=50))
    folder = builder.slide_folder(tmp_path, "A1") / builder.VERSION
    split = json.loads((folder / "dataset_info.json").read_text())["splits"][0]
    # numBytes counts the serialised records; array_record pads files to 64 KiB.
    row = int(split["numBytes"]) / 50
    assert max(int(n) for n in split["shardLengths"]) * row <= 5000
    assert len(split["shardLengths"]) > 1


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda e: e[:-1], errors.RecordsError, r"A1 .*expected \(12, variants, 5\).*\(11, 8, 5\)"),
        (lambda e: e[:, 0], errors.RecordsError, r"found \(12, 5\)"),
        (lambda e: e[:, :, :4], errors.EncoderMismatchError, "A1 .*made.*width 5.*width 4"),
        (lambda e: e * np.float32(1e5), errors.RecordsError, "12 of 12 .*float16.*A1-0"),
        (lambda e: np.where(np.arange(12)[:, None, None] == 7, np.nan, e), None, "1 of 12 .*A1-7"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(tmp_path, change, error, text):
    slide = made.make_slide("A1")
    bad = change(made.make_embeddings(slide).astype(np.float32))
    with pytest.raises(error or errors.RecordsError, match=text):
        records.write_slide(tmp_path, slide, bad, panel=made.PANEL, contract=made.CONTRACT)


def test_zero_embeddings_are_noted(tmp_path):
    slide, vectors = made.make_slide("A1"), made.make_embeddings(made.make_slide("A1"))
    vectors[3:5] = 0
    info = records.write_slide(tmp_path, slide, vectors, panel=made.PANEL, contract=made.CONTRACT)
    assert info.notes == ("2 spots have an embedding of zeros only: failed patches?",)


def test_writing_says_nothing_and_leaves_only_the_slide(tmp_path, capfd):
    write(tmp_path, made.make_slide("A1"))
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["spots"]
    assert [path.name for path in (tmp_path / "spots").iterdir()] == ["A1"]
    names = {path.name for path in (tmp_path / "spots" / "A1" / "1.0.0").iterdir()}
    assert names == {
        "spots-A1.array_record-00000-of-00001",
        "dataset_info.json",
        "features.json",
        "metadata.json",
        "record_sums.json",
        integrity.MANIFEST,
    }


def test_a_slide_is_replaced_when_the_new_one_is_complete(tmp_path, monkeypatch):
    write(tmp_path, made.make_slide("A1", n=12))
    before = records.open_records(tmp_path).load(["A1"])

    def fail(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(integrity, "write_manifest", fail)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, made.make_slide("A1", n=3))
    after = records.open_records(tmp_path).load(["A1"])
    np.testing.assert_array_equal(after.counts, before.counts)
    write(tmp_path, made.make_slide("A1", n=3))
    assert records.open_records(tmp_path).load(["A1"]).n == 3
    assert [path.name for path in (tmp_path / "spots").iterdir()] == ["A1"]


def test_the_digest_depends_on_all_that_the_records_depend_on():
    def digest(panel=made.PANEL, contract=made.CONTRACT, **changes):
        slide = dataclasses.replace(made.make_slide("A1"), **changes)
        return builder.slide_digest(slide, panel=panel, contract=contract)

    others = [
        digest(mpp=0.51),
        digest(patient="P2"),
        digest(spot_diameter_um=100.0),
        digest(sources={"A1.tsv": "0" * 64}),
        digest(sources=made.make_slide("A1").sources | {"more.jpg": "1"}),
        digest(panel=dataclasses.replace(made.PANEL, genes=made.GENES[::-1])),
        digest(contract=dataclasses.replace(made.CONTRACT, revision="2")),
    ]
    assert digest() == digest(notes=("a note changes nothing",))
    assert len({digest(), *others}) == len(others) + 1
