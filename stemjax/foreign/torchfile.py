"""PyTorch's checkpoint files (`torch.save` since 1.6), read and written without torch.

Such a file is a zip archive of stored entries: `STEM/data.pkl`, a pickle stream in which every
tensor is (storage, offset, size, stride), and `STEM/data/N`, the bytes of storage N. `torchstream`
understands the stream without running it. Names of entries are looked up, never used as paths.
"""

from __future__ import annotations

import os
import pathlib
import secrets
import struct
import zipfile
from typing import Any

import numpy as np

from stemjax import errors
from stemjax.foreign import torchstream
from stemjax.foreign.torchstream import COPY_AGAIN, Record, Tensor, quoted, refused

__all__ = ["Tensor", "read", "write"]

MAX_PICKLE_BYTES = 64 * 2**20
ALIGNMENT = 64  # of a record's contents in the file: torch.load(mmap=True) uses them in place
_ZIP64_FROM = 2**30  # bytes of a record; below, zipfile adds no extra field of its own
_STORAGES = {dtype: name for name, dtype in torchstream.DTYPES.items()}
_SAVE_AGAIN = "save it again with a current torch: torch.save(torch.load(OLD), NEW)"


def read(path: str | os.PathLike[str]) -> Any:
    """Reads a checkpoint of PyTorch 1.6 or newer; runs nothing that it contains.

    Args:
      path: a file of `torch.save`.

    Returns:
      The tree as saved: dict (also for OrderedDict, in insertion order; keys are scalars), list,
      tuple (also for torch.Size), str, int, float, bool, None, and `Tensor` for tensors and
      parameters. A container that occurs twice in the file comes back as two.

    Raises:
      TorchFileError: the file is missing, damaged, of another format (older than torch 1.6,
        TorchScript, compressed, big-endian), or holds anything but the above.
    """
    path = pathlib.Path(path)
    records = _directory(path)
    found = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise refused(
            path,
            "a zip archive, but no checkpoint",
            expected="one record STEM/data.pkl",
            found=f"{len(found)} among {len(records)} records",
        )
    stem = found[0].removesuffix("/data.pkl")
    order = records.get(f"{stem}/byteorder")
    if order is not None and (name := order.read()) != b"little":
        raise refused(
            path,
            "byte order of the numbers",
            expected="little",
            found=quoted(name[:16].decode("latin")),
            fix="save it on a little-endian machine",
        )
    program = records[found[0]]
    if program.size > MAX_PICKLE_BYTES:
        raise refused(
            path,
            "length of data.pkl",
            expected=f"at most {MAX_PICKLE_BYTES} bytes",
            found=str(program.size),
            fix=torchstream.SAVE_WEIGHTS,
        )
    return torchstream.Machine(path, records, f"{stem}/data/").run(program.read())


def write(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes a tree so that `torch.load(path, weights_only=True)` reads it, with mmap too.

    The bytes depend on the tree and the file's name alone. `path` is at every moment the old file
    or the new one.

    Args:
      path: the file; its folder exists.
      tree: nested dict (keys str or int), list, tuple, str, int, float, bool, None and np.ndarray
        of float32, float64, float16, bfloat16, int64, int32, int16, int8, uint8 or bool, of any
        shape and strides. An array that occurs twice is written once and is one storage in torch;
        other arrays that share memory are written apart.

    Raises:
      TorchFileError: the tree holds anything else, or is nested more than 100 deep.
      OSError: the disk is full, the folder missing.
    """
    path = pathlib.Path(path)
    # torch names the archive so, too: other letters are beyond its zip reader.
    stem = path.stem if path.stem.isascii() else "archive"
    program = _Writer(path)
    program.add(tree, 0)
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as handle, zipfile.ZipFile(handle, "w") as archive:
            _add(archive, f"{stem}/data.pkl", b"\x80\x02" + bytes(program.out) + b".")
            _add(archive, f"{stem}/byteorder", b"little")
            for number, array in enumerate(program.arrays):
                flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                _add(archive, f"{stem}/data/{number}", memoryview(flat))
            _add(archive, f"{stem}/version", b"3\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _directory(path: pathlib.Path) -> dict[str, Record]:
    """The archive's entries by name; every one lies stored and whole in the file."""
    try:
        with path.open("rb") as handle:
            start, size = handle.read(4), os.fstat(handle.fileno()).st_size
            if start != b"PK\x03\x04":
                raise refused(
                    path,
                    "not a zip archive",
                    expected="a file of torch.save since torch 1.6",
                    found="the format of older torch, or no torch file",
                    fix=_SAVE_AGAIN,
                )
            with zipfile.ZipFile(handle) as archive:
                entries = archive.infolist()
    # RuntimeError: also NotImplementedError, of features of zip that Python does not have.
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, RuntimeError) as error:
        raise refused(path, f"cannot be read or is cut off ({error})", fix=COPY_AGAIN) from error
    inner = [entry.filename.partition("/")[2] for entry in entries]
    if any(name.startswith(("code/", "constants.pkl")) for name in inner):
        raise refused(
            path,
            "a TorchScript archive",
            expected="a checkpoint",
            fix="in torch: torch.save(torch.jit.load(OLD).state_dict(), NEW)",
        )
    records = {}
    for entry in entries:
        name = entry.filename
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise refused(
                path,
                f"record {quoted(name)} is compressed or encrypted",
                expected="stored, as torch does",
                fix=_SAVE_AGAIN,
            )
        inside = 0 <= entry.header_offset <= size - 30 - entry.file_size
        if not inside or entry.compress_size != entry.file_size or name in records:
            what = f"record {quoted(name)} reaches beyond the file or occurs twice"
            raise refused(path, what, fix=COPY_AGAIN)
        records[name] = Record(path, name, entry.header_offset, entry.file_size, entry.CRC)
    return records


def _add(archive: zipfile.ZipFile, name: str, contents: bytes | memoryview) -> None:
    """Adds a stored record whose contents begin at a multiple of `ALIGNMENT`."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o600 << 16  # the same on every machine
    large = len(contents) >= _ZIP64_FROM
    # Local header 30, name, head of this extra field 4, zip64's extra field 20.
    begin = archive.start_dir + 30 + len(name.encode()) + 4 + 20 * large
    padding = -begin % ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    with archive.open(entry, "w", force_zip64=large) as handle:
        handle.write(contents)


class _Writer:
    """The stream of a tree, without the opcodes at its ends, and the arrays that it refers to."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.out = bytearray()
        self.arrays: list[np.ndarray] = []
        self.numbers: dict[int, int] = {}  # id of an array -> its storage

    def add(self, value: Any, depth: int) -> None:
        """Appends the opcodes that make `value`."""
        match value:
            case None:
                self.out += b"N"
            case bool():
                self.out += b"\x88" if value else b"\x89"
            case int():
                self._add_int(value)
            case float():
                self.out += b"G" + struct.pack(">d", value)
            case str():
                text = value.encode("utf-8", "surrogatepass")
                self.out += b"X" + struct.pack("<I", len(text)) + text
            case np.ndarray():
                self._add_array(value)
            case dict() | list() | tuple():
                self._add_container(value, depth)
            case _:
                raise self._refused("a value", type(value).__name__)

    def _refused(self, what: str, found: str) -> errors.TorchFileError:
        return refused(
            self.path,
            f"{what} cannot be written",
            expected="dict, list, tuple, str, int, float, bool, None or an array of "
            + ", ".join(str(dtype) for dtype in _STORAGES),
            found=found,
        )

    def _add_int(self, value: int) -> None:
        if 0 <= value < 256:
            self.out += b"K" + struct.pack("<B", value)
        elif -(2**31) <= value < 2**31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            length = value.bit_length() // 8 + 1
            if length > 255:
                raise self._refused("an integer", f"{length} bytes of it")
            self.out += b"\x8a" + struct.pack("<B", length)
            self.out += value.to_bytes(length, "little", signed=True)

    def _add_container(self, value: Any, depth: int) -> None:
        if depth == torchstream.MAX_DEPTH:
            raise self._refused("a tree that deep", f"more than {depth} levels")
        is_dict = isinstance(value, dict)
        start, end = (b"}(", b"u") if is_dict else (b"](", b"e")
        if isinstance(value, tuple):
            start, end = b"(", b"t"
        self.out += start
        for item in value:
            if is_dict:
                if not isinstance(item, str | int) or isinstance(item, bool):
                    raise self._refused("a dict's key", type(item).__name__)
                self.add(item, depth + 1)
                item = value[item]
            self.add(item, depth + 1)
        self.out += end

    def _add_array(self, array: np.ndarray) -> None:
        """_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())."""
        if array.dtype not in _STORAGES:
            raise self._refused("an array", str(array.dtype))
        number = self.numbers.setdefault(id(array), len(self.arrays))
        if number == len(self.arrays):
            self.arrays.append(array)
        self.out += b"ctorch._utils\n_rebuild_tensor_v2\n(("
        self.add("storage", 0)
        self.out += f"ctorch\n{_STORAGES[array.dtype]}\n".encode()
        for value in (str(number), "cpu", array.size):
            self.add(value, 0)
        self.out += b"tQK\x00"
        strides, step = [], 1
        for n in reversed(array.shape):
            strides.insert(0, step)
            step *= max(n, 1)
        for values in (array.shape, tuple(strides)):
            self.add(values, 0)
        self.out += b"\x89ccollections\nOrderedDict\n)RtR"
