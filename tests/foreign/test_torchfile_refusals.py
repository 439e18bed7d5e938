"""No file makes `torchfile.read` run code, reach outside a storage or fail but by its own error."""

import builtins
import collections
import io
import os
import pathlib
import pickle
import struct
import subprocess
import zipfile

import handmade
import numpy as np
import pytest

from stemjax import errors
from stemjax.foreign import torchfile, torchstream

GOLDEN = pathlib.Path(__file__).parent / "golden.pt"
FLOATS = np.arange(6, dtype=np.float32).tobytes()


class Call:
    """Pickled, it is a call of `function`."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def refusal(path):
    """The message with which a file ends."""
    with pytest.raises(errors.TorchFileError) as caught:
        handmade.leaves(torchfile.read(path))
    assert caught.value.__class__ is errors.TorchFileError
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def outcome(path):
    """Whether a file is read; any error but the typed one fails the test."""
    try:
        handmade.leaves(torchfile.read(path))
    except errors.TorchFileError:
        return False
    return True


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (subprocess.getoutput, ".getoutput"),
        (builtins.eval, "eval"),
        (builtins.exec, "exec"),
    ],
)
@pytest.mark.parametrize("wrap", ["alone", "value", "key", "metadata", "argument"])
def test_a_call_is_named_and_not_made(tmp_path, protocol, function, name, wrap):
    canary = tmp_path / "canary"
    code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    call = Call(function, code if function in (eval, exec) else f"touch {canary}")
    tree = {
        "alone": call,
        "value": {"weights": [1, call]},
        "key": {1: "x", 2: {"deep": (call,)}},
        "metadata": collections.OrderedDict(a=1),
        "argument": Call(collections.OrderedDict, [("a", call)]),
    }[wrap]
    if wrap == "metadata":
        tree._metadata = call
    body = pickle.dumps(tree, protocol)
    message = refusal(handmade.archive(tmp_path / "evil.pt", body))
    assert name in message
    assert "Nothing in the file was executed" in message
    assert not canary.exists()
    pickle.loads(body)  # the trap works
    assert canary.exists()


def test_a_namespace_is_named_with_the_reason(tmp_path):
    body = b"cargparse\nNamespace\n)\x81}b"
    message = refusal(handmade.archive(tmp_path / "a.pt", body))
    assert "'argparse.Namespace'" in message
    assert "object that only Python can build" in message
    assert "torch.save(model.state_dict(), NEW)" in message


DEEP = b"(" * 50_000 + b"t" * 50_000
HASH = b"K\x00" + b"q\x00h\x00\x86" * 60  # a tuple of 2 ** 60 leaves
LAUGHS = b"]" + b"q\x00h\x00\x86" * 14  # the same in a value; more than the test's limit
STREAMS = {
    "global by the stack": (b"\x8c\x05posix\x8c\x06system\x93", "'posix.system'"),
    "global that is no text": (b"K\x01\x8c\x06system\x93", "no text"),
    "global with an odd name": (b"cos\x1b[31m\nsystem\n", "global 'os\\x1b[31m.system'"),
    "global with other letters": (b"cos\nsyst\xc3\xa9m\n", "damaged"),
    "global with a long name": (b"cos\n" + b"s" * 9999 + b"\n", "sss..."),
    "global with an escape": (b"cto\\qrch\nFloatStorage\n", "data.pkl"),
    "instance": (b"(iposix\nsystem\n", "opcode INST"),
    "object": (b"(cposix\nsystem\no", "'posix.system'"),
    "new object": (b"ccollections\nOrderedDict\n)\x81", "opcode NEWOBJ"),
    "extension": (b"\x82\x01", "opcode EXT1"),
    "line id": (b"Pstorage\n", "opcode PERSID"),
    "bytes": (b"C\x02hi", "opcode SHORT_BINBYTES"),
    "text opcode": (b"S'\\q'\n", "data.pkl"),
    "no opcode": (b"\xff", "damaged"),
    "call of a storage class": (b"ctorch\nFloatStorage\n)R", "calls 'FloatStorage'"),
    "call of a value": (b"K\x01)R", "calls 'int'"),
    "call of a tensor": (handmade.tensor() + b")R", "calls 'Tensor'"),
    "call with a list": (b"ccollections\nOrderedDict\n]R", "calls 'OrderedDict'"),
    "parameter with a list": (
        b"ctorch._utils\n_rebuild_parameter\n](" + handmade.tensor() + b"\x88NeR",
        "calls '_rebuild_parameter'",
    ),
    "size of text": (b"ctorch\nSize\nX\x01\x00\x00\x00a\x85\x85R", "calls 'Size'"),
    "size below zero": (b"ctorch\nSize\nJ\xff\xff\xff\xff\x85\x85R", "calls 'Size'"),
    "parameter of a value": (b"ctorch._utils\n_rebuild_parameter\n(K\x01\x88NtR", "calls"),
    "tensor of nothing": (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "more than storage"),
    "tensor of a value": (handmade.tensor(where=b"K\x01"), "without storage"),
    "build on a dict": (b"}}b", "attributes of a dict"),
    "build on a tensor": (handmade.tensor() + b"}b", "attributes of a Tensor"),
    "build of another attribute": (
        handmade.EMPTY + handmade.stream({"__class__": 1}) + b"b",
        "other than _metadata",
    ),
    "build with a list": (handmade.EMPTY + b"]b", "other than _metadata"),
    "id that is text": (b"X\x07\x00\x00\x00storageQ", "no storage"),
    "id of another kind": (handmade.storage().replace(b"storage", b"storagf"), "no storage"),
    "id with a function": (
        handmade.storage().replace(b"torch\nFloatStorage", b"torch\nSize"),
        "no storage",
    ),
    "id with a long tuple": (handmade.storage()[:-2] + b"NtQ", "no storage"),
    "id that is a list": (b"]" + handmade.storage()[:-2] + b"eQ", "no storage"),
    "id with a number as key": (handmade.storage(key=0), "no storage"),
    "id below zero": (handmade.storage(elements=-6), "wants a storage of -6"),
    "id of another record": (handmade.storage(key="../data.pkl/"), "no record"),
    "storage too long": (handmade.storage(elements=7), "no more than its 24 bytes"),
    "storage absurdly long": (handmade.storage(elements=2**400), "no more than its 24 bytes"),
    "storage as value": (handmade.storage(), "class or a storage"),
    "class as value": (b"]ctorch\nSize\na", "class or a storage"),
    "recursion bomb": (DEEP, "more than 100 deep"),
    "lists 101 deep": (b"]" * 101 + b"a" * 100, "more than 100 deep"),
    "list within itself": (b"]q\x00h\x00a", "more than 100 deep"),
    "dict within itself": (b"}q\x00K\x01h\x00s", "more than 100 deep"),
    "memo bomb": (LAUGHS, "more than 1000 values"),
    "hash bomb": (b"}" + HASH + b"K\x01s", "a tuple as key"),
    "list as key": (b"}]K\x01s", "a list as key"),
    "empty memo": (b"h\x00", "memo 0 is empty"),
    "no value": (b"", "value is missing"),
    "two values": (b"NN", "left over"),
    "mark left": (b"(N", "left over"),
    "no mark": (b"t", "mark is missing"),
    "append to a dict": (b"}K\x01a", "type list is missing"),
    "item of a list": (b"]K\x01K\x02s", "type dict is missing"),
    "key without value": (b"}(K\x01u", "without a value"),
    "memo of nothing": (b"q\x00", "missing"),
    "value below the mark": (b"N(\x85", "value is missing"),
    "text beyond the end": (b"\x8d" + b"\xff" * 8, "damaged"),
    "long text beyond the end": (b"X\xff\xff\xff\x7fa", "damaged"),
    "text that is no text": (b"X\x01\x00\x00\x00\xff", "damaged"),
    "old protocol": (b"\x80\x01N.", "pickle protocol 1"),
    "future protocol": (b"\x80\x06N.", "pickle protocol 6"),
    "no stop": (b"\x80\x02N", "damaged"),
    "many opcodes": (b"]" + b"Na" * 3000, "more than 5000 opcodes"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_refused_by_its_fault(tmp_path, monkeypatch, name):
    monkeypatch.setattr(torchstream, "MAX_VALUES", 1000)
    if name == "many opcodes":
        monkeypatch.setattr(torchstream, "MAX_OPCODES", 5000)
    body, fault = STREAMS[name]
    path = handmade.archive(tmp_path / "a.pt", body, {"data/0": FLOATS})
    assert fault in refusal(path)


def test_nesting_and_memo_may_go_to_their_limits(tmp_path):
    path = handmade.archive(tmp_path / "a.pt", b"]" * 100 + b"a" * 99)
    assert str(torchfile.read(path)) == "[" * 100 + "]" * 100
    body = b"]r\xff\xff\xff\xffj\xff\xff\xff\xffa"  # no table of 2 ** 32 places is made
    with pytest.raises(errors.TorchFileError, match="more than 100 deep"):
        torchfile.read(handmade.archive(tmp_path / "a.pt", body))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (1, (2, 3), (3, 1)),
        (0, (2, 3), (4, 1)),
        (6, (), ()),
        (0, (7,), (1,)),
        (0, (2,), (2**62,)),
        (2**64, (1,), (1,)),
        (0, (2**64,), (0,)),
        (0, (2**25,), (0,)),  # 128 MB from 24 bytes
        (0, (2**60, 0), (1, 1)),
        (-1, (2,), (1,)),
        (0, (-2, 3), (3, 1)),
        (5, (2, 3), (-3, 1)),
        (0, (2, 3), (3,)),
        (0, [2, 3], (3, 1)),
        (0, (2.0, 3), (3, 1)),
        (True, (2,), (1,)),
        (0, (1,) * 65, (1,) * 65),
        (0, (2**1999,), (2**1999,)),
    ],
)
def test_a_tensor_stays_inside_its_storage(tmp_path, offset, shape, strides):
    path = tmp_path / "a.pt"
    handmade.archive(path, handmade.tensor(offset, shape, strides), {"data/0": FLOATS})
    with pytest.raises(errors.TorchFileError, match="outside its storage|without storage"):
        torchfile.read(path)  # not only when the numbers are asked for


def test_a_tensor_with_a_conjugate_bit_is_refused(tmp_path):
    body = handmade.tensor()[:-2] + handmade.stream({"conj": True}) + b"tR"
    path = handmade.archive(tmp_path / "a.pt", body, {"data/0": FLOATS})
    assert "more than storage, offset" in refusal(path)


ARCHIVES = {
    "compressed": ({}, zipfile.ZIP_DEFLATED, "compressed"),
    "torchscript": ({"code/__torch__.py": b""}, zipfile.ZIP_DEFLATED, "TorchScript"),
    "torchscript constants": ({"constants.pkl": b""}, zipfile.ZIP_STORED, "TorchScript"),
    "big-endian": ({"byteorder": b"big"}, zipfile.ZIP_STORED, "found 'big'"),
    "odd order": ({"byteorder": b"\x1b" * 99}, zipfile.ZIP_STORED, "byte order"),
    "two": ({"../n/data.pkl": b"N."}, zipfile.ZIP_STORED, None),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_another_kind_of_archive_is_refused(tmp_path, name):
    records, compression, fault = ARCHIVES[name]
    records = records | {"data/0": FLOATS}
    path = tmp_path / "a.pt"
    handmade.archive(path, handmade.tensor(), records, compression=compression)
    if fault is None:  # an entry's name is no path
        assert outcome(path)
        assert os.listdir(tmp_path) == ["a.pt"]
    else:
        assert fault in refusal(path)


def test_files_of_other_formats_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    assert "No such file" in refusal(path)
    assert "directory" in refusal(tmp_path)
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    for contents in (legacy, b"", b"PK", b"\x89HDF\r\n", bytes(600)):
        path.write_bytes(contents)
        message = refusal(path)
        assert "not a zip archive" in message
        assert "torch.save(torch.load(OLD)" in message
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    assert "no checkpoint" in refusal(tmp_path / "a.npz")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02N.")
        file.writestr("b/data.pkl", b"\x80\x02N.")
    path.write_bytes(buffer.getvalue())
    assert "found 2 among 2" in refusal(path)


def test_a_missing_record_and_a_long_stream_are_refused(tmp_path, monkeypatch):
    path = handmade.archive(tmp_path / "a.pt", handmade.tensor(), {"data/1": FLOATS})
    assert "no record 'm/data/0'" in refusal(path)
    monkeypatch.setattr(torchfile, "MAX_PICKLE_BYTES", 100)
    assert "at most 100 bytes" in refusal(path)


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        (6, struct.pack("<H", 99), "cut off"),  # the zip version that is needed
        (8, struct.pack("<H", 1), "encrypted"),
        (10, struct.pack("<H", 8), "compressed"),
        (16, b"\x00\x00\x00\x00", "is damaged"),  # CRC
        (20, struct.pack("<I", 25), "beyond the file"),
        (20, struct.pack("<II", 2**31, 2**31), "beyond the file"),
        (20, struct.pack("<II", 20, 20), "20 bytes hold"),
        (20, struct.pack("<II", 40, 40), "is damaged"),
        (42, struct.pack("<I", 3), "is damaged"),
        (42, struct.pack("<I", 2**31), None),
    ],
)
def test_a_directory_that_lies_is_refused(tmp_path, field, value, fault):
    path = handmade.archive(tmp_path / "a.pt", handmade.tensor(), {"data/0": FLOATS})
    whole = bytearray(path.read_bytes())
    entry = whole.rindex(b"PK\x01\x02")  # of data/0
    whole[entry + field : entry + field + len(value)] = value
    path.write_bytes(whole)
    assert (fault or "") in refusal(path)


def test_a_record_with_a_name_that_is_no_text_is_refused(tmp_path):
    path = handmade.archive(tmp_path / "a.pt", handmade.tensor(), {"data/\u00e9": FLOATS})
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))
    assert "cut off" in refusal(path)


def test_a_record_that_occurs_twice_is_refused(tmp_path):
    path = handmade.archive(tmp_path / "a.pt", handmade.tensor(), {"data/0": FLOATS, "data/1": b""})
    path.write_bytes(path.read_bytes().replace(b"m/data/1", b"m/data/0"))
    assert "occurs twice" in refusal(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    whole = GOLDEN.read_bytes()
    path = tmp_path / "a.pt"
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert not outcome(path), length


def test_a_stream_cut_off_anywhere_is_refused(tmp_path):
    with zipfile.ZipFile(GOLDEN) as file:
        program = file.read("golden/data.pkl")
        records = {
            name.removeprefix("golden/"): file.read(name)
            for name in file.namelist()
            if "/data/" in name
        }
    path = tmp_path / "a.pt"
    assert outcome(handmade.archive(path, program, records))
    for length in range(2, len(program), 41):
        assert not outcome(handmade.archive(path, program[:length], records)), length


@pytest.mark.parametrize("where", ["file", "stream"])
def test_a_flipped_byte_gives_a_tree_or_the_typed_error(tmp_path, where):
    path = tmp_path / "a.pt"
    tree = {"x": np.ones((2, 3), np.float32), "y": [1, 2.5, "z", (None, True)], "b": np.array(True)}
    torchfile.write(path, tree)
    with zipfile.ZipFile(path) as file:
        program, *records = (file.read(f"a/{name}") for name in ("data.pkl", "data/0", "data/1"))
    whole = path.read_bytes() if where == "file" else program
    rng, read = np.random.default_rng(0), []
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= rng.integers(1, 256)
        if where == "file":
            path.write_bytes(damaged)
        else:
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("a/data.pkl", damaged)
                for number, record in enumerate(records):
                    file.writestr(f"a/data/{number}", record)
        read.append(outcome(path))
    assert {True, False} == set(read)  # the flips reach both ends
