"""The reader of safetensors against their own library, and the files that it must refuse."""

from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from stemjax import errors
from stemjax.foreign import safetensors_file

KINDS = [
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    np.float64,
    np.int64,
    np.int8,
    np.uint8,
    np.bool_,
]
ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def arrays():
    rng = np.random.default_rng(0)
    return {
        **{
            f"kind.{np.dtype(kind).name}": rng.integers(0, 2, (3, 5)).astype(kind) for kind in KINDS
        },
        "scalar": np.float32(3.5),
        "empty": np.zeros((0, 4), np.float32),
        "odd name\u00e9": rng.standard_normal((2, 3, 4)).astype(np.float32),
    }


def file(path, header, numbers=bytes(24), length=None):
    """A file with any header: a dict, or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + numbers)
    return path


def test_every_type_comes_back_as_the_library_wrote_it(tmp_path):
    given = {key: np.asarray(value) for key, value in arrays().items()}
    safetensors.numpy.save_file(given, tmp_path / "a.safetensors", metadata={"format": "np"})
    found = safetensors_file.read(tmp_path / "a.safetensors")
    assert set(found) == set(given)
    for key, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (given[key].shape, given[key].dtype)
        numbers = tensor.numpy()
        np.testing.assert_array_equal(numbers, given[key])
        assert numbers.dtype == given[key].dtype
        if numbers.dtype != np.bool_:
            numbers[...] = 0  # its own memory


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    path = file(tmp_path / "a.safetensors", {"a": ENTRY})
    tensor = safetensors_file.read(path)["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.CheckpointError, match="expected 24 bytes, found 23"):
        tensor.numpy()
    path.unlink()
    with pytest.raises(errors.CheckpointError, match="cannot be read"):
        tensor.numpy()


def entry(**changed):
    return {"a": ENTRY | changed}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"", "not a file of safetensors"),
        (b"[]", "is no object"),
        (b'{"a"', "cannot be read"),
        (b"\xff\xfe{}", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"a": 1, "a": 1}', "occurs twice"),
        ({"a": []}, "dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32"}}, "dtype, shape and data_offsets"),
        (entry(dtype="F8_E4M3"), "F8_E4M3"),
        (entry(dtype=["F32"]), "dtype"),
        (entry(shape=[2, -3]), "shape"),
        (entry(shape=[2, 3.0]), "shape"),
        (entry(shape=[True, 6]), "shape"),
        (entry(shape=[1] * 40), "shape"),
        (entry(shape=[2**63, 0]), "shape"),
        (entry(shape=[2, 4]), "32 bytes for shape"),
        (entry(shape=[2**40, 2**40]), "bytes for shape"),
        (entry(data_offsets=[0, 25]), "range of the 24 bytes"),
        (entry(data_offsets=[8, 4]), "range"),
        (entry(data_offsets=[-24, 0]), "range"),
        (entry(data_offsets=[0]), "range"),
        ({"a": ENTRY, "b": ENTRY}, "bytes of its own"),
        (
            {"a": ENTRY, "b": {"dtype": "U8", "shape": [4], "data_offsets": [20, 24]}},
            "bytes of its own",
        ),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(header, said, tmp_path):
    with pytest.raises(errors.CheckpointError, match=said) as caught:
        safetensors_file.read(file(tmp_path / "bad.safetensors", header))
    assert "bad.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("length", [2**63, 10**9, 99, 1])
def test_a_header_longer_than_the_file_is_not_read(length, tmp_path):
    path = file(tmp_path / "bad.safetensors", {}, b"", length=length)
    with pytest.raises(errors.CheckpointError, match="cut off"):
        safetensors_file.read(path)


def test_a_missing_file_and_a_short_one_are_said_to_be(tmp_path):
    with pytest.raises(errors.CheckpointError, match="cannot be read"):
        safetensors_file.read(tmp_path / "gone.safetensors")
    (tmp_path / "short.safetensors").write_bytes(b"abc")
    with pytest.raises(errors.CheckpointError, match="cut off"):
        safetensors_file.read(tmp_path / "short.safetensors")


def test_too_many_tensors_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "MAX_TENSORS", 1)
    path = file(tmp_path / "many.safetensors", {"a": ENTRY, "b": {}})
    with pytest.raises(errors.CheckpointError, match="at most 1"):
        safetensors_file.read(path)


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_escapes_as_another_error(seed, tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4)}, path)
    whole, rng = path.read_bytes(), np.random.default_rng(seed)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(0, len(whole) + 1)])
        try:
            for tensor in safetensors_file.read(path).values():
                assert tensor.numpy().shape == tensor.shape
        except errors.CheckpointError:
            pass
