"""Checkpoints come back as torch saved them, and torch reads what is written here."""

import collections
import os
import pathlib
import zipfile

import handmade
import ml_dtypes
import numpy as np
import pytest

from stemjax import errors
from stemjax.foreign import torchfile

HERE = pathlib.Path(__file__).parent
KINDS = ["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
DTYPES = [*map(np.dtype, KINDS), np.dtype(ml_dtypes.bfloat16)]


def numbers(dtype, shape):
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


def arrays(tree, path=""):
    """Every tensor or array of a tree by its path, as `make_golden.py` names them."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in arrays(value, f"{path}/{key}").items()}
    if isinstance(tree, torchfile.Tensor):
        return {path: tree.numpy()}
    return {path: tree} if isinstance(tree, np.ndarray) else {}


def assert_same(found, wanted):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert found.tobytes() == wanted.tobytes()


def test_a_file_of_real_torch_holds_what_torch_says():
    tree = torchfile.read(HERE / "golden.pt")
    found = arrays(tree)
    with np.load(HERE / "golden.npz") as golden:
        assert list(found) == list(golden)
        for name in golden:
            bits = found[name].dtype == ml_dtypes.bfloat16
            assert_same(found[name].view(np.uint16) if bits else found[name], golden[name])
    assert {str(array.dtype) for array in found.values()} == {*KINDS, "bfloat16"}
    assert list(tree["model"]) == ["weight", "bias"]
    assert type(tree["model"]) is dict
    assert list(tree["optimizer"]["state"]) == [0, 1]
    assert tree["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.95)
    assert tree["ordered"] == {"z": 1, "a": [True, None, (1, "x", 2.5)]}
    assert list(tree["ordered"]) == ["z", "a"]
    assert tree["size"] == (2, 3)
    assert tree["integers"] == [0, 255, 256, 65536, -1, 2**40, -(2**70)]
    assert tree["text"] == "h\u00e9 \U0001f9ec"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (4, 0, 2), (1,), (2, 3, 4)], ids=str)
def test_round_trip_of_arrays(tmp_path, dtype, shape):
    array = numbers(dtype, shape)
    torchfile.write(tmp_path / "a.pt", {"x": array})
    tensor = torchfile.read(tmp_path / "a.pt")["x"]
    assert (tensor.shape, tensor.dtype) == (shape, dtype)
    assert_same(tensor.numpy(), array)


def test_round_trip_of_any_memory_layout(tmp_path):
    x = numbers("float32", (4, 3))
    for array in (x.T, np.asfortranarray(x), x[::-1, ::2], np.broadcast_to(x[0], (5, 3))):
        torchfile.write(tmp_path / "a.pt", array)
        assert_same(torchfile.read(tmp_path / "a.pt").numpy(), array)


def test_round_trip_of_plain_values(tmp_path):
    tree = {
        "dict": {1: {}, -5: [], 2**40: ()},
        "list": [None, True, False, 0, 255, 256, -1, 2**31, -(2**31), 2**63, -(2**2000)],
        "tuple": (1, (2,), (3, 4), (5, 6, 7), (8, 9, 10, 11)),
        "float": [0.1, -0.0, float("inf"), 1e-300],
        "text": ["", "h\u00e9 \U0001f9ec\n", "x" * 300, "\ud800"],
        "ordered": collections.OrderedDict([("z", 1), ("a", 2)]),
    }
    torchfile.write(tmp_path / "a.pt", tree)
    found = torchfile.read(tmp_path / "a.pt")
    assert found == tree
    assert repr(found) == repr({**tree, "ordered": {"z": 1, "a": 2}})  # order, types, -0.0


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_of_every_protocol(tmp_path, protocol):
    tree = {"a": [1, -1, 300, 70000, 2**40, 0.5, None, True, "\u00e9" * 300], "b": ((), (1, 2))}
    tree["c"], tree["d"] = tree["a"], {"e": {}, 3: []}
    body = b"\x80" + bytes([protocol]) + handmade.stream(tree, protocol) + b"."
    assert torchfile.read(handmade.archive(tmp_path / "a.pt", body)) == tree


def test_a_file_may_use_text_with_eight_byte_lengths_and_single_appends(tmp_path):
    body = b"]\x8d\x02\x00\x00\x00\x00\x00\x00\x00hiaK\x07a}K\x01K\x02sa"
    assert torchfile.read(handmade.archive(tmp_path / "a.pt", body)) == ["hi", 7, {1: 2}]


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (3, 2), (1, 3)),  # transposed
        (4, (2,), (1,)),
        (1, (2, 2), (3, 1)),
        (5, (), ()),
        (0, (2, 4), (3, 0)),  # expanded
        (0, (2, 2, 2), (2, 1, 1)),  # overlapping
        (5, (1, 1), (2**62, 7)),  # a stride that is never taken
        (0, (0, 100), (100, 1)),
        (99, (0,), (1,)),
    ],
)
def test_views_of_a_storage(tmp_path, offset, shape, strides):
    data = np.arange(6, dtype=np.float32)
    path = handmade.archive(
        tmp_path / "a.pt", handmade.tensor(offset, shape, strides), {"data/0": data.tobytes()}
    )
    wanted = np.empty(shape, np.float32)
    for index in np.ndindex(shape):
        wanted[index] = data[offset + sum(i * s for i, s in zip(index, strides))]
    assert_same(torchfile.read(path).numpy(), wanted)


@pytest.mark.parametrize("shape", [(0, 2**40), (2**48, 0), (2**24, 2**24, 0)], ids=str)
def test_an_empty_tensor_may_be_long(tmp_path, shape):
    where = handmade.storage(kind="DoubleStorage", elements=0)
    body = handmade.tensor(0, shape, (1,) * len(shape), where)
    path = handmade.archive(tmp_path / "a.pt", body, {"data/0": b""})
    assert torchfile.read(path).numpy().shape == shape


def test_arrays_are_writable_contiguous_and_their_own(tmp_path):
    path = handmade.archive(
        tmp_path / "a.pt", handmade.tensor(0, (3, 2), (1, 3)), {"data/0": bytes(24)}
    )
    tensor = torchfile.read(path)
    first = tensor.numpy()
    assert first.flags.c_contiguous
    first[:] = 1
    assert not tensor.numpy().any()


def test_a_bool_is_zero_or_one_to_numpy(tmp_path):
    where = handmade.storage(kind="BoolStorage", elements=2)
    body = handmade.tensor(0, (2,), (1,), where)
    path = handmade.archive(tmp_path / "a.pt", body, {"data/0": b"\x00\x02"})
    assert torchfile.read(path).numpy().tobytes() == b"\x00\x01"


def test_numbers_stay_on_disk_until_asked_for(tmp_path):
    path = tmp_path / "a.pt"
    torchfile.write(path, [np.ones(3), np.zeros(2)])
    kept, gone = torchfile.read(path)
    assert_same(kept.numpy(), np.ones(3))
    torchfile.write(path, [np.full(3, 2.0), np.zeros(2)])
    with pytest.raises(errors.TorchFileError, match=r"data/0' is damaged.*CRC"):
        kept.numpy()
    path.unlink()
    with pytest.raises(errors.TorchFileError, match="data/1' cannot be read"):
        gone.numpy()


@pytest.mark.parametrize("zip64_from", [2**30, 0])
def test_contents_are_stored_aligned_and_named_as_torch_does(tmp_path, monkeypatch, zip64_from):
    monkeypatch.setattr(torchfile, "_ZIP64_FROM", zip64_from)
    path = tmp_path / "model.v2.pt"
    x, y = numbers("float32", (3,)), numbers("int8", (7,))
    torchfile.write(path, {"x": x, "y": y, "again": x})
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        contents = {info.filename: file.read(info) for info in file.infolist()}
        assert list(contents) == [
            f"model.v2/{name}" for name in ("data.pkl", "byteorder", "data/0", "data/1", "version")
        ]
        for info in file.infolist():
            name, extra = whole[info.header_offset + 26 :][:4:2]
            start = info.header_offset + 30 + name + extra
            assert start % 64 == 0
            assert whole[start:].startswith(contents[info.filename])
            assert info.compress_type == zipfile.ZIP_STORED
    assert contents["model.v2/byteorder"] == b"little"
    assert contents["model.v2/version"] == b"3\n"
    assert contents["model.v2/data/0"] == x.tobytes()
    assert_same(torchfile.read(path)["again"].numpy(), x)


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        torchfile.write(tmp_path / folder / "x.pt", {"x": np.ones(3), "y": [1, "z"]})
    assert (tmp_path / "a" / "x.pt").read_bytes() == (tmp_path / "b" / "x.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "a" / "x.pt") as file:
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def _endless():
    tree = []
    tree.append(tree)
    return tree


@pytest.mark.parametrize(
    ("tree", "found"),
    [
        ({1, 2}, "found set"),
        ([b"bytes"], "found bytes"),
        ([np.int64(3)], "found int64"),
        ({1.5: 0}, "a dict's key.*found float"),
        ({True: 0}, "a dict's key.*found bool"),
        (np.array(["a"]), "an array.*found <U1"),
        (np.array([None]), "an array.*found object"),
        (np.zeros(2, ">f4"), "an array.*found >f4"),
        (np.zeros(2, np.uint16), "an array.*found uint16"),
        (2**2040, "an integer.*256 bytes"),
        (_endless(), "more than 100 levels"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, tree, found):
    path = tmp_path / "a.pt"
    path.write_bytes(b"old")
    with pytest.raises(errors.TorchFileError, match=found):
        torchfile.write(path, tree)
    assert os.listdir(tmp_path) == ["a.pt"]
    assert path.read_bytes() == b"old"


def test_a_write_that_fails_late_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        torchfile.write(tmp_path / "a.pt", np.ones(3))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["model.pt", "h\u00e9.pt", "a b.c.ckpt", "x"])
@pytest.mark.parametrize("mmap", [False, True])
def test_real_torch_reads_what_is_written(tmp_path, name, mmap):
    torch = pytest.importorskip("torch", reason="torch is no dependency; it reads the files here")
    path = tmp_path / name
    shared = numbers("float32", (3, 4))
    wanted = {
        "arrays": {str(dtype): numbers(dtype, (2, 3)) for dtype in DTYPES},
        "views": [shared, shared.T, np.array(2.5), np.zeros((0, 3), np.int8), shared],
        "plain": {"a": [1, -1, 2**40, 0.5, None, True, (), (1, 2)], 3: {}},
    }
    torchfile.write(path, wanted)
    found = torch.load(path, weights_only=True, mmap=mmap)
    assert found["plain"] == wanted["plain"]
    for dtype in DTYPES:
        tensor, array = found["arrays"][str(dtype)], wanted["arrays"][str(dtype)]
        assert str(tensor.dtype) == f"torch.{dtype}"
        if dtype == ml_dtypes.bfloat16:
            tensor, array = tensor.float(), array.astype(np.float32)
        np.testing.assert_array_equal(tensor.numpy(), array)
    for tensor, array in zip(found["views"], wanted["views"], strict=True):
        assert tuple(tensor.shape) == array.shape
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert found["views"][0].data_ptr() == found["views"][4].data_ptr()
