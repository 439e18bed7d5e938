"""Damaged files of every kind: a typed error, or a value that keeps its promises.

Never an exception of another kind, a crash or a hang: each file is read in a process of its own
(`fork_server`). Slides of other layouts are in tests/data/layouts/test_damaged_layouts.py, files
of embeddings in tests/data/embedding_files/test_embedding_fuzz.py.
"""

import shutil

import made_files
import numpy as np
import pytest
import reader as ways
from array_record.python import array_record_module
from PIL import Image

from stemjax.data import builder, integrity, shards

FEW, MANY = 3, 40

TIMES = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


def seeded(name):
    return np.random.default_rng(list(name.encode()))


def damages(way, times, name):
    make = way(seeded(name))
    return [make] * times


HDF5_WAYS = {"bytes": ways.with_bytes, "nodes": ways.with_nodes}


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory):
    return made_files.write_slide(tmp_path_factory.mktemp("truth"))


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("way", HDF5_WAYS)
def test_predictions(reader, tmp_path, slide_file, way, times):
    path = made_files.write_prediction(tmp_path)
    assert reader.ask("read_prediction", path, slide_file) == {"outcome": "read", "text": ""}
    found = reader.try_all(
        path,
        damages(HDF5_WAYS[way], times, f"prediction {way}"),
        "read_prediction",
        path,
        slide_file,
    )
    assert found["refused"] > times // 5 or times == FEW


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("way", HDF5_WAYS)
def test_counts_that_predictions_are_held_against(reader, tmp_path, way, times):
    path = made_files.write_slide(tmp_path)
    assert reader.ask("read_truth", path) == {"outcome": "read", "text": ""}
    found = reader.try_all(path, damages(HDF5_WAYS[way], times, f"truth {way}"), "read_truth", path)
    assert found["refused"] > 0 or times == FEW


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("way", HDF5_WAYS)
def test_files_of_a_cohort(reader, tmp_path, way, times):
    path = made_files.write_prediction(tmp_path)
    reader.try_all(path, damages(HDF5_WAYS[way], times, f"cohort {way}"), "read_index", tmp_path)


SLIDES = {
    "hest": (made_files.write_hest, "metadata/S1.json"),
    "h5ad": (made_files.write_slide, None),
    "visium": (made_files.write_visium, "S1/spatial/scalefactors_json.json"),
}


SLIDE_CASES = [(layout, way) for layout in SLIDES for way in HDF5_WAYS]
SLIDE_CASES += [(layout, "values") for layout, (_, described) in SLIDES.items() if described]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(("layout", "way"), SLIDE_CASES)
def test_slides(reader, tmp_path, layout, way, times):
    write, described = SLIDES[layout]
    path = write(tmp_path)
    given = ("read_slide", layout, tmp_path, "S1")
    assert reader.ask(*given) == {"outcome": "read", "text": ""}
    if way == "values":
        path = tmp_path / described
    make = HDF5_WAYS.get(way, ways.with_values)
    reader.try_all(path, damages(make, times, f"{layout} {way}"), *given)


@pytest.fixture(scope="module")
def records(tmp_path_factory, toy_records):
    """A folder with the records of one slide, and its version folder."""
    top = tmp_path_factory.mktemp("records")
    version = toy_records.folders["T1"]
    copy = top / builder.DATASET / "T1" / builder.VERSION
    shutil.copytree(version, copy)
    return top, copy


RECORDS = ("metadata.json", "dataset_info.json", "features.json", shards.SUMS, integrity.MANIFEST)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("name", [*RECORDS, builder.THUMBNAIL, builder.SHARD_MARK])
def test_records_that_are_damaged_are_refused(reader, records, name, times):
    """Any byte: but for the list of hashes, whose blanks and order say nothing, none is passed."""
    top, version = records
    (path,) = [path for path in version.iterdir() if name in path.name]
    assert reader.ask("read_records", top) == {"outcome": "read", "text": ""}
    found = reader.try_all(path, damages(ways.with_bytes, times, name), "read_records", top)
    assert found["read"] <= (times // 3 if name == integrity.MANIFEST else 0)


FITTING = [(name, "bytes") for name in (*RECORDS[:-1], builder.THUMBNAIL, builder.SHARD_MARK)]
FITTING += [(name, "values") for name in RECORDS[:-1]]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(("name", "way"), FITTING)
def test_records_with_a_list_of_hashes_that_fits(reader, records, name, way, times):
    """Somebody changed a file, and the hashes with it."""
    top, version = records
    (path,) = [path for path in version.iterdir() if name in path.name]
    make = ways.with_values if way == "values" else ways.with_bytes
    found = reader.try_all(
        path, damages(make, times, f"{name} {way}"), "read_records", top,
        then=lambda: integrity.write_manifest(version),
    )  # fmt: skip
    assert sum(found.values()) == times


def test_a_small_image_that_is_none_is_refused(reader, records):
    """Its pixels would be read whole."""
    top, version = records

    def make(path, _):
        Image.new("RGB", (builder.THUMBNAIL_PX + 1, 2)).save(path)

    found = reader.try_all(
        version / builder.THUMBNAIL, [make], "read_records", top,
        then=lambda: integrity.write_manifest(version),
    )  # fmt: skip
    assert found["refused"] == 1


@pytest.mark.parametrize("times", TIMES)
def test_records_that_are_written_anew(reader, records, times):
    """Sound shards of records that are damaged or of another shape, with sums that fit."""
    top, version = records
    (path,) = [path for path in version.iterdir() if builder.SHARD_MARK in path.name]
    rng = seeded("anew")
    opened = array_record_module.ArrayRecordReader(str(path))
    whole = opened.read_all()
    opened.close()

    def make(path, _):
        given = list(whole)
        for number in rng.integers(len(given), size=rng.integers(1, 4)):
            raw = bytearray(given[number])
            for place in rng.integers(0, len(raw), rng.integers(1, 4)):
                raw[place] = rng.integers(256)
            cut = raw[: rng.integers(len(raw))] if rng.random() < 0.3 else raw
            given[number] = bytes(cut)
        path.unlink()
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for record in given:
            writer.write(record)
        writer.close()

    def then():
        shards.write_sums(version)
        integrity.write_manifest(version)

    found = reader.try_all(path, [make] * times, "read_records", top, then=then)
    assert found["refused"] > 0 or times == FEW


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return made_files.write_bundle(tmp_path_factory.mktemp("bundle"))


BUNDLE = ("bundle.json", "calibration.json", "metrics.json", "genes.txt")
TENSORS = ("model.safetensors", "golden.safetensors")


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("name", [*BUNDLE, *TENSORS, "README.md", integrity.MANIFEST])
def test_bundles_that_are_damaged_are_refused(reader, bundle, name, times):
    assert reader.ask("read_bundle", bundle) == {"outcome": "read", "text": ""}
    found = reader.try_all(
        bundle / name, damages(ways.with_bytes, times, name), "read_bundle", bundle
    )
    assert found["read"] <= (times // 3 if name == integrity.MANIFEST else 0)


OF_BUNDLES = [(name, way) for name in (*BUNDLE, *TENSORS) for way in ("bytes", "lines")]
OF_BUNDLES += [(name, "values") for name in BUNDLE[:-1]]


# What is opened to the end takes a third of a second.
@pytest.mark.parametrize("times", [FEW, pytest.param(MANY // 2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "way"), OF_BUNDLES)
def test_bundles_with_a_list_of_hashes_that_fits(reader, bundle, name, way, times):
    path = bundle / name
    make = {"bytes": ways.with_bytes, "values": ways.with_values, "lines": ways.with_lines}[way]
    found = reader.try_all(
        path, damages(make, times, f"{name} {way}"), "read_bundle", bundle,
        then=lambda: integrity.write_manifest(bundle),
    )  # fmt: skip
    assert sum(found.values()) == times


def test_what_is_looked_for_would_be_seen(reader, tmp_path):
    """The process tells an exception of another kind, a crash and a hang from a typed error."""
    assert reader.ask("read_calibration", tmp_path / "absent")["outcome"] == "read"
    assert reader.ask("read_bundle", tmp_path)["outcome"] == "refused"
    assert reader.ask("no_such_thing")["outcome"] == "escaped"
    assert reader.ask("crash")["outcome"] == "crashed"
    assert reader.ask("hang", seconds=1)["outcome"] == "hung"
