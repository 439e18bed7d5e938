"""Files of numbers and journals: damage of any byte is named, and what stands is read as it is."""

import base64
import json
import math
import shutil
import struct

import numpy as np
import pytest
import safetensors.numpy
import tifffile
from drawn import (
    JSON,
    PLAIN,
    TEXT,
    as_text,
    changed,
    damaged_bytes,
    damaged_text,
    encoded,
    or_refused,
)
from hypothesis import given
from hypothesis import strategies as st

from stemjax import errors
from stemjax.data import images, integrity, pixel_size
from stemjax.foreign import json_text, safetensors_file, torchfile
from stemjax.serving import wire
from stemjax.train import runs, writers

FILES = st.dictionaries(
    st.from_regex(r"[a-z]{1,3}(/[a-z]{1,2})?", fullmatch=True), st.binary(max_size=20), max_size=4
)


def lay_out(folder, files):
    place = folder / "listed"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, content in files.items():
        if any(other.startswith(name + "/") for other in files):
            continue  # a file cannot be a folder too
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
    integrity.write_manifest(place)
    return place, sorted(
        p for p in place.rglob("*") if p.is_file() and p.name != integrity.MANIFEST
    )


@given(FILES, st.data())
def test_any_change_of_any_file_is_named(folder, files, data):
    place, there = lay_out(folder, files)
    assert integrity.damage(place) == []
    if not there:
        return
    path = data.draw(st.sampled_from(there))
    name, content = path.relative_to(place).as_posix(), path.read_bytes()
    other = data.draw(st.none() | st.binary(max_size=20) | damaged_bytes(content))
    if other is None:
        path.unlink()
    else:
        path.write_bytes(other)
    found = integrity.damage(place)
    assert [line.partition(":")[0] for line in found] == ([] if other == content else [name])


@given(FILES, st.data())
def test_a_list_of_hashes_may_be_anything(folder, files, data):
    place, _ = lay_out(folder, files)
    path = place / integrity.MANIFEST
    listed = json.loads(path.read_text())
    choice = data.draw(st.integers(0, 3))
    raw = as_text(data.draw(changed(listed) if choice < 2 else JSON)).encode()
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes())) if choice == 3 else raw)
    assert all(isinstance(line, str) for line in integrity.damage(place))


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(codec="utf-8")))
def test_a_text_is_there_as_it_was_written(folder, old, new):
    path = folder / "text"
    for text in (old, new):
        integrity.write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert not list(folder.glob(".text.tmp-*"))
    assert not integrity.write_once(path, old)
    assert path.read_bytes() == new.encode()


LINES = st.lists(
    st.tuples(st.integers(0, 9), st.dictionaries(TEXT, st.floats(), max_size=2)), max_size=8
)


@given(LINES, st.integers(0, 10), st.binary(max_size=12))
def test_a_journal_goes_on_from_a_step(folder, lines, resume, rest):
    path = folder / "metrics.jsonl"
    path.unlink(missing_ok=True)
    journal = writers.JsonLines(path)
    for step, values in lines:
        journal.write_scalars(step, values)
    journal.close()
    with path.open("ab") as file:  # a line that a killed process left half
        file.write(rest.replace(b"\n", b""))
    writers.JsonLines(path, resume_step=resume).close()
    kept = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wanted = [
        {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        for step, values in lines
        if step <= resume
    ]
    assert as_text(kept) == as_text(wanted)


@given(st.lists(JSON | st.fixed_dictionaries({"from_step": PLAIN}), max_size=6), st.binary())
def test_a_list_of_runs_is_passed_over_where_it_is_damaged(folder, lines, rest):
    text = "".join(as_text(line) + "\n" for line in lines).encode()
    (folder / runs.FILE).write_bytes(text + rest)
    for one in runs.read(folder, until=5):
        assert one["from_step"] < 5


NUMBERS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.int8)}
RAW = safetensors.numpy.save(NUMBERS)
LENGTH = struct.unpack("<Q", RAW[:8])[0]
HEADER = json.loads(RAW[8 : 8 + LENGTH])


PLACE = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted)
TWO = st.tuples(PLACE, PLACE).map(
    lambda places: {
        name: {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
        for name, (start, stop) in zip("ab", places, strict=True)
    }
)


@given(changed(HEADER) | TWO | JSON | st.text() | damaged_bytes(RAW))
def test_tensors_never_reach_beyond_their_file(folder, header):
    path = folder / "a.safetensors"
    if isinstance(header, bytes):
        raw = header
    else:
        text = encoded(header if isinstance(header, str) else as_text(header))
        raw = struct.pack("<Q", len(text)) + text + RAW[8 + LENGTH :]
    path.write_bytes(raw)
    found = or_refused(safetensors_file.read, path) or {}
    room = len(raw) - 8 - struct.unpack("<Q", raw[:8])[0] if found else 0
    assert sum(tensor.numpy().nbytes for tensor in found.values()) <= room


TREE = {"model": {"w": np.ones((2, 3), np.float32), "n": [1, -2, 2**70, "é", None, 1.5, True]}}
TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([np.zeros((0, 2), np.float16), np.arange(3), np.full((), 2.5)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def plain(tree):
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    if isinstance(tree, torchfile.Tensor):
        tree = tree.numpy()
    if isinstance(tree, np.ndarray):
        return ("array", tree.dtype.name, tree.shape, tree.tobytes())
    return (type(tree).__name__, tree)


@given(TREES)
def test_a_tree_comes_back_from_a_torch_file(folder, tree):
    path = folder / "a.pt"
    torchfile.write(path, tree)
    assert plain(torchfile.read(path)) == plain(tree)


@pytest.fixture(scope="module")
def torch_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "a.pt"
    torchfile.write(path, TREE)
    return path.read_bytes()


@given(st.data())
def test_a_damaged_torch_file_is_read_or_refused(folder, torch_bytes, data):
    path = folder / "a.pt"
    path.write_bytes(data.draw(damaged_bytes(torch_bytes)))
    or_refused(lambda: plain(torchfile.read(path)))


REQUEST = {
    "encoder": "uni", "slide": "S1", "barcodes": ["a", "b"],
    "embeddings": [[0.5, 1.0], [0.0, -1.0]], "seed": 3, "mode": "draws", "draws": 2, "genes": ["A"],
}  # fmt: skip
PACKED = REQUEST | {
    "embeddings": {"dtype": "float16", "shape": [2, 2], "base64": "AAAAAAAAAAA="},
    "encoder": {
        "name": "uni", "width": 2, "input_px": 8, "fov_um": None, "resize": "none", "mean": [],
        "std": [], "pooling": "cls", "projection": "none", "source": "t", "revision": "1",
    },
}  # fmt: skip


ANY_BYTES = st.tuples(st.binary(max_size=12), st.integers(1, 3), st.integers(1, 2)).map(
    lambda one: (
        PACKED
        | {
            "embeddings": {
                "dtype": "float16",
                "shape": [one[1], one[2]],
                "base64": base64.b64encode(one[0]).decode(),
            }
        }
    )
)


@given(
    st.one_of(changed(REQUEST), changed(PACKED), JSON, ANY_BYTES).map(
        lambda one: as_text(one).encode()
    )
    | damaged_bytes(as_text(PACKED).encode())
    | st.binary()
)
def test_a_request_is_read_or_refused(body):
    found = or_refused(wire.read_request, body)
    if found is None:
        return
    assert found.barcodes
    if isinstance(found.encoder, wire.Contract):
        or_refused(wire.contract_of, found.encoder)
    if isinstance(found.embeddings, wire.PackedEmbeddings):
        array = or_refused(found.embeddings.array)
        assert array is None or list(array.shape) == found.embeddings.shape
    else:
        assert all(math.isfinite(value) for row in found.embeddings for value in row)


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_an_error_goes_over_the_wire_whatever_it_holds(text):
    body = json.loads(wire.error_body(errors.ConfigError(text, found=text)))
    assert body["error"]["code"] == "SJ-C01"


@given(st.lists(st.floats(width=32), min_size=1, max_size=6))
def test_numbers_go_over_the_wire_and_back(values):
    array = np.array(values, np.float32)[None]
    shown = wire.pack(array, "numbers")
    for one, value in zip(shown[0], values, strict=True):
        assert one == value if math.isfinite(value) else one is None
    packed = wire.pack(array, "base64")
    assert np.frombuffer(base64.b64decode(packed.base64), "<f4").tobytes() == array.tobytes()


@given(st.text() | JSON.map(as_text) | st.integers(1, 2).map(lambda n: "[" * 60_000 * n))
def test_json_is_a_value_or_a_value_error(text):
    try:
        found = json_text.parse(text)
    except ValueError:
        return
    assert as_text(found) == as_text(json.loads(text))


APERIO = "Aperio Image Library v12\r\n46000x32914 [0,100] (256x256) JPEG|AppMag = 20|MPP = 0.4990"
OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" PhysicalSizeX="0.5" PhysicalSizeXUnit="µm" '
    'PhysicalSizeY="0.5"/></Image></OME>'
)


@given(st.data())
def test_a_pixel_size_is_one_of_a_microscope(data):
    claims = pixel_size._Claims()
    pixel_size._read_aperio(data.draw(damaged_text(APERIO)), claims)
    or_refused(pixel_size._read_ome, data.draw(damaged_text(OME)), "a.tif", claims)
    whole = st.none() | st.text(max_size=2) | st.tuples(st.integers(0, 2**32), st.integers(0, 9))
    tags = {"XResolution": data.draw(whole), "YResolution": data.draw(whole)}
    tags["ResolutionUnit"] = data.draw(st.none() | st.integers(0, 9) | st.text(max_size=2))
    pixel_size._read_resolution(tags, claims)
    names = ("openslide.mpp-x", "openslide.mpp-y", "openslide.objective-power")
    properties = {name: data.draw(st.text(max_size=4) | st.floats().map(str)) for name in names}
    pixel_size._read_properties(properties, claims)
    found = or_refused(pixel_size._decide, "a.tif", claims)
    if found is not None:
        assert pixel_size.SMALLEST_UM <= found.mpp <= pixel_size.LARGEST_UM


@pytest.fixture(scope="module")
def tiff_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    tifffile.imwrite(
        path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", tile=(32, 32),
        resolution=(20000, 20000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    return path.read_bytes()


@given(st.data())
def test_a_damaged_image_is_read_or_refused(folder, tiff_bytes, data):
    path = folder / "a.tif"
    # Most of the file is pixels: damage goes to its head and its directory.
    raw = bytearray(tiff_bytes)
    for place in data.draw(st.lists(st.integers(0, 400), min_size=1, max_size=6)):
        raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    found = or_refused(pixel_size.read_mpp, path)
    assert found is None or 0 < found.mpp < math.inf
    picture = or_refused(images.open_image, path)
    if picture is not None:
        or_refused(picture.read, 0, 0, 16, 16)
