"""Damaged records are named by slide, shard and record; what contradicts their index is refused."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil

import damaged_slides as harm
import numpy as np
import pytest
import small_slides as made

from stemjax import errors
from stemjax.data import builder, integrity, prepare, record_files, records, shards

SPOTS, SHARDS = 40, 4


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Slides A1 and B1 of 40 spots, in 4 shards of 10 each."""
    out = tmp_path_factory.mktemp("written")
    for slide_id in ("A1", "B1"):
        slide = made.make_slide(slide_id, SPOTS)
        records.write_slide(
            out,
            slide,
            made.make_embeddings(slide),
            panel=made.PANEL,
            contract=made.CONTRACT,
            shards=SHARDS,
        )
    return out


@pytest.fixture
def out(written, tmp_path):
    return harm.copy_of(written, tmp_path)


def name(number, slide="A1", of=SHARDS):
    return f"spots-{slide}.array_record-{number:05d}-of-{of:05d}"


def caught(call, *args, **options):
    with pytest.raises(errors.RecordsError) as found:
        call(*args, **options)
    return found.value


def damage_of(out, slide="A1"):
    return records.open_records(out, on_corrupt="skip").damage([slide])


def test_the_sums_are_of_the_records_as_written(out):
    folder = harm.folder_of(out, "A1")
    assert integrity.damage(folder) == []
    assert shards.SUMS in integrity.read_manifest(folder)
    sums = shards._sums(folder)
    assert {shard: len(found) for shard, found in sums.items()} == {name(i): 10 for i in range(4)}
    assert len({one for found in sums.values() for one in found}) == SPOTS


def test_a_record_that_cannot_be_read_is_named(out):
    harm.spoil(harm.shard_paths(out, "A1")[2], 3, 7, 8)
    opened = records.open_records(out)
    assert opened.load(["B1"]).n == SPOTS
    for read in (opened.load, opened.source, opened.verify):
        error = caught(read, ["A1"])
        assert f"slide A1 in {harm.folder_of(out, 'A1')} are damaged: {name(2)}: " in error.what
        assert "records 3, 7-8 of 0-9 cannot be read (chunk data hash mismatch)" in error.what
        assert "stemjax prepare" in str(error.fix)
        assert "config.data.on_corrupt=skip" in str(error.fix)
    (found,) = opened.damage(["B1", "A1"])
    assert (found.slide, found.shard, found.first, found.n) == ("A1", name(2), 20, 10)
    assert found.rows == (23, 27, 28)
    assert shards.Damage.from_json(found.to_json()) == found


def test_damage_of_several_slides_names_them(out):
    for slide in ("A1", "B1"):
        harm.spoil(harm.shard_paths(out, slide)[1], 0)
    error = caught(records.open_records(out).verify)
    assert name(1) in error.what
    assert "record 0 of 0-9" in error.what
    assert "shards of 1 other slides: B1" in error.what


def padding(path):
    return harm.chunk_places(path)[-1] + 5000


def test_damage_in_bytes_that_no_record_uses_hits_none(out):
    path = harm.shard_paths(out, "A1")[0]
    harm.flip(path, padding(path))
    error = caught(records.open_records(out).load, ["A1"])
    assert name(0) in error.what
    assert "all 10 records are as written" in error.what
    (found,) = damage_of(out)
    assert found.rows == ()


CUTS = {
    "half": lambda data: data[: len(data) // 2],  # a multiple of 64 KiB: read as empty records
    "ten bytes less": lambda data: data[:-10],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"x" * 100,
    "twice": lambda data: data + data,
}


@pytest.mark.parametrize("cut", [*CUTS, "missing", "a folder"])
def test_a_shard_of_another_length_is_named_when_opened(out, cut):
    path = harm.shard_paths(out, "A1")[3]
    data = path.read_bytes()
    path.unlink()
    if cut in CUTS:
        path.write_bytes(CUTS[cut](data))
    elif cut == "a folder":
        path.mkdir()
    error = caught(records.open_records, out)
    wanted = "missing" if cut in ("missing", "a folder") else f"bytes instead of {len(data)}"
    assert re.search(rf"slide A1 .*{name(3)}: .*{wanted}", error.what)
    (found,) = damage_of(out)
    # Behind its end or twice: bytes that no record uses.
    assert found.rows == (() if cut == "twice" else tuple(range(30, 40)))


def test_a_shard_that_is_another_s_holds_none_of_its_own_records(out):
    one, other = harm.shard_paths(out, "A1")[:2]
    other.write_bytes(one.read_bytes())
    assert "it holds what" in damage_of(out)[0].what
    assert damage_of(out)[0].rows == tuple(range(10, 20))
    harm.flip(other, padding(other))  # a copy that no hash knows
    (found,) = damage_of(out)
    assert found.rows == tuple(range(10, 20))
    assert set(found.unreadable.values()) == {"another record than was written"}


def test_shards_that_changed_names_hold_none_of_their_own_records(out):
    harm.swap(*harm.shard_paths(out, "A1")[1:3])
    error = caught(records.open_records(out).verify)
    assert f"{name(1)}: it holds what {name(2)} should" in error.what
    assert [one.rows for one in damage_of(out)] == [tuple(range(10, 20)), tuple(range(20, 30))]


def test_a_shard_of_an_older_making_holds_none_of_the_records(out, tmp_path):
    slide = made.make_slide("A1", SPOTS)
    records.write_slide(
        tmp_path / "older",
        slide,
        made.make_embeddings(slide) + np.float16(1),
        panel=made.PANEL,
        contract=made.CONTRACT,
        shards=SHARDS,
    )
    older = harm.shard_paths(tmp_path / "older", "A1")[0]
    shutil.copy(older, harm.shard_paths(out, "A1")[0])
    (found,) = damage_of(out)
    assert found.rows == tuple(range(10))
    assert found.unreadable[0] == "another record than was written"


def test_without_sums_no_record_of_a_damaged_shard_is_vouched_for(out):
    folder = harm.folder_of(out, "A1")
    (folder / shards.SUMS).unlink()
    harm.seal(folder)
    assert records.open_records(out).load(["A1"]).n == SPOTS
    path = harm.shard_paths(out, "A1")[0]
    harm.flip(path, padding(path))
    (found,) = damage_of(out)
    assert found.rows == tuple(range(10))
    assert "older versions" in str(found)


def _miscount(values):
    values["splits"][0]["shardLengths"] = ["10", "10", "10", "11"]


def _misdeal(values):
    values["splits"][0]["shardLengths"] = ["10", "10", "11", "9"]


def _fewer(values):
    values["splits"][0]["shardLengths"] = ["20", "20"]


def _empty_shard(values):
    values["splits"][0]["shardLengths"] = ["10", "10", "20", "0"]


INDEX = {
    "one too many": (_miscount, "number of records is 41, and 40"),
    "misdealt": (_misdeal, rf"{name(2)}: 10 records instead of 11.*{name(3)}: 10 .* of 9"),
    "fewer shards": (_fewer, rf"{name(0)}: one shard too many"),
    "empty shard": (_empty_shard, "number of empty shards is 1"),
    "split": (lambda v: v["splits"][0].update(name="B1"), "split is B1, and A1"),
    "two splits": (lambda v: v["splits"].append(v["splits"][0]), "unreadable.*ValueError"),
    "template": (
        lambda v: v["splits"][0].update(filepathTemplate="{SPLIT}-{SHARD_X_OF_Y}"),
        "template of its file names",
    ),
    "bytes": (lambda v: v["splits"][0].update(numBytes="7"), "7 bytes of 40 records"),
    "dataset": (lambda v: v.update(name="other"), "dataset is other, and spots"),
    "format": (lambda v: v.update(fileFormat="tfrecord"), "format of its files is tfrecord"),
    "no number": (
        lambda v: v["splits"][0].update(shardLengths=["many"] * 4),
        "dataset_info.json: unreadable",
    ),
}


@pytest.mark.parametrize("case", INDEX)
@pytest.mark.parametrize("on_corrupt", ["error", "skip"])
def test_an_index_that_contradicts_the_shards_is_refused(out, case, on_corrupt):
    change, text = INDEX[case]
    harm.rewrite_index(harm.folder_of(out, "A1"), change)
    if case == "misdealt" and on_corrupt == "skip":
        # Each shard is sound by itself, and none has the number of records that it should.
        rows = [one.rows for one in damage_of(out)]
        assert rows == [tuple(range(20, 31)), tuple(range(31, 40))]
        return
    error = caught(records.open_records, out, on_corrupt=on_corrupt)
    assert re.search(f"slide A1 .*damaged: .*{text}", error.what)
    assert record_files.faults(harm.folder_of(out, "A1"))


def _copy(one):
    shutil.copy(one, one.with_name(one.name + "-copy"))


def _next_to(one):
    shutil.copy(one, one.with_name(name(4)))


def _other(one):
    shutil.copy(str(one).replace("A1", "B1"), one.with_name(name(0, "B1")))


def _rename(one):
    one.rename(one.with_name(name(0, of=5)))


STRANGERS = {
    "copy": (_copy, f"{name(0)}-copy: one shard too many, a copy of {name(0)}"),
    "one more": (_next_to, f"{name(4)}: one shard too many, a copy of {name(0)}"),
    "another slide's": (_other, f"{name(0, 'B1')}: one shard too many, which dataset_info.json"),
    "renamed": (_rename, f"{name(0, of=5)}: it was renamed from {name(0)}"),
}


@pytest.mark.parametrize("case", STRANGERS)
@pytest.mark.parametrize("on_corrupt", ["error", "skip"])
def test_a_shard_too_many_is_refused_and_named(out, case, on_corrupt):
    do, text = STRANGERS[case]
    do(harm.shard_paths(out, "A1")[0])
    error = caught(records.open_records, out, on_corrupt=on_corrupt)
    assert re.search(f"slide A1 .*damaged: .*{text}", error.what)


def test_shards_that_the_hashes_do_not_have_are_refused(out):
    folder = harm.folder_of(out, "A1")
    aside = folder.with_name("aside")
    harm.shard_paths(out, "A1")[1].rename(aside)
    harm.seal(folder)
    aside.rename(folder / name(1))
    error = caught(records.open_records, out)
    assert f"{name(1)}: not in {integrity.MANIFEST}" in error.what


def test_what_is_not_hashed_is_counted(out):
    harm.spoil(harm.shard_paths(out, "A1")[0], 4)
    path = harm.shard_paths(out, "B1")[0]
    opened = records.open_records(out, hashed=False)
    opened.verify()
    error = caught(opened.load, ["A1"])
    assert f"{name(0)}: record 4 of 0-9 cannot be read any more (chunk data hash" in error.what
    path.write_bytes(path.read_bytes()[:-1])
    assert name(0, "B1") in caught(records.open_records, out, hashed=False).what
    opened = records.open_records(out, hashed=False, on_corrupt="skip")
    assert name(0, "B1") in caught(opened.source, ["B1"]).what


@pytest.mark.parametrize("cut", [*CUTS, "a record", "missing"])
def test_damage_after_the_check_names_the_record(out, cut):
    source = records.open_records(out).source(["A1", "B1"])
    path = harm.shard_paths(out, "A1")[3]
    if cut == "a record":
        harm.spoil(path, 9)
    elif cut == "missing":
        path.unlink()
    else:
        path.write_bytes(CUTS[cut](path.read_bytes()))
    if cut == "twice":  # the first of two files in one is read as it was
        assert source.gather(np.array([39])).barcodes == ("A1-39",)
        return
    error = caught(source.gather, np.array([70, 39, 5]))
    assert f"slide A1 in {harm.folder_of(out, 'A1')}" in error.what
    assert f"{name(3)}: record 9 of 0-9 cannot be read any more (" in error.what
    assert source.gather(np.array([70, 5])).barcodes == ("B1-30", "A1-5")


def test_a_file_of_another_shape_in_place_of_a_shard_is_no_traceback(out, tmp_path):
    other = dataclasses.replace(made.CONTRACT, width=3)
    slide = made.make_slide("A1", SPOTS)
    vectors = made.make_embeddings(slide)[..., :3]
    records.write_slide(
        tmp_path / "o", slide, vectors, panel=made.PANEL, contract=other, shards=SHARDS
    )
    source = records.open_records(out).source(["A1"])
    shutil.copy(harm.shard_paths(tmp_path / "o", "A1")[0], harm.shard_paths(out, "A1")[0])
    assert "slides A1 failed" in caught(source.gather, np.array([3])).what


@pytest.mark.parametrize("do", [_copy, _rename, os.remove])
def test_prepare_writes_a_slide_with_a_wrong_number_of_shards_anew(tmp_path, do):
    slides = {i: made.make_slide(i, 6, image=True) for i in ("A1", "B1")}

    def run():
        return prepare.prepare(
            slides.__getitem__, ("A1", "B1"), tmp_path, genes=made.PANEL, encoder="none", shards=2
        )

    before = run().load(["A1"])
    kept = harm.shard_paths(tmp_path, "B1")[0].stat().st_mtime_ns
    do(harm.shard_paths(tmp_path, "A1")[0])
    assert "stemjax prepare" in str(caught(records.open_records, tmp_path).fix)
    np.testing.assert_array_equal(run().load(["A1"]).counts, before.counts)
    assert len(harm.shard_paths(tmp_path, "A1")) == 2
    assert harm.shard_paths(tmp_path, "B1")[0].stat().st_mtime_ns == kept


def test_prepare_writes_a_slide_with_a_wrong_index_anew(tmp_path):
    slide = made.make_slide("A1", 6, image=True)

    def run():
        return prepare.prepare(
            lambda _: slide, ("A1",), tmp_path, genes=made.PANEL, encoder="none", shards=2
        )

    before = run().load(["A1"])
    folder = harm.folder_of(tmp_path, "A1")

    def lie(values):
        values["splits"][0]["shardLengths"] = ["2", "4"]

    harm.rewrite_index(folder, lie)
    assert integrity.damage(folder) == []
    assert run().load(["A1"]).barcodes == before.barcodes


def test_no_flip_is_silent(tmp_path):
    slide = made.make_slide("A1", 4)
    vectors = made.make_embeddings(slide, variants=1)
    records.write_slide(
        tmp_path, slide, vectors, panel=made.PANEL, contract=made.CONTRACT, shards=2
    )
    whole = records.open_records(tmp_path).load(["A1"])
    path = harm.shard_paths(tmp_path, "A1")[1]
    data = path.read_bytes()
    used = [at for at, byte in enumerate(data) if byte]
    # All bytes that hold anything, those beside them, and some of the padding.
    places = {at + beside for at in used for beside in (0, 1)} | set(range(0, len(data), 1999))
    hit = {"none": 0, "some": 0, "all": 0}
    for at in sorted(places):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        path.write_bytes(changed)
        opened = records.open_records(tmp_path, on_corrupt="skip")
        (found,) = opened.damage()
        assert found.shard == path.name
        hit["none" if not found.rows else "all" if len(found.rows) == 2 else "some"] += 1
        assert set(found.rows) <= {2, 3}
        left = opened.leave_out([found])
        kept = [row for row in range(4) if row not in found.rows]
        table = left.load(["A1"])
        assert table.barcodes == tuple(whole.barcodes[row] for row in kept)
        np.testing.assert_array_equal(table.embeddings, whole.embeddings[kept])
        np.testing.assert_array_equal(table.counts, whole.counts[kept])
        with pytest.raises(errors.RecordsError, match=re.escape(path.name)):
            records.open_records(tmp_path).verify()
    # Flips of each kind were among them: in padding, in a record, in the list of records.
    assert min(hit.values()) > 20
    assert builder.slide_of(harm.folder_of(tmp_path, "A1")) == "A1"
