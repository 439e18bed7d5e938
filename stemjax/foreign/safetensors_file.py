"""Files of safetensors, read without their library: header first, numbers when they are asked for.

Such a file is a length of eight bytes, a header in JSON that gives every tensor a type, a shape and
a range of bytes, and those bytes one after another. It holds nothing that could run. All of the
header is checked against the file's size before a number is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from stemjax import errors

__all__ = ["Tensor", "read"]

MAX_HEADER_BYTES = 100_000_000
"""What the format's own library allows."""
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 32

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Types that are read, by their names in a header; numbers are little-endian."""

_COPY_AGAIN = "Copy or download the file again"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file, checked against the file's size; its numbers stay on disk.

    Attributes:
      shape: one length per dimension, () for a scalar.
      dtype: of the elements; bfloat16 is `ml_dtypes.bfloat16`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    _path: pathlib.Path = dataclasses.field(repr=False)
    _start: int = dataclasses.field(repr=False)

    def numpy(self) -> np.ndarray:
        """Reads the numbers.

        Returns:
          A contiguous, writable array of `shape` and `dtype`.

        Raises:
          CheckpointError: the file has gone or shrunk.
        """
        size = math.prod(self.shape) * self.dtype.itemsize
        try:
            with self._path.open("rb") as handle:
                handle.seek(self._start)
                found = bytearray(handle.read(size))
        except OSError as error:
            raise _refused(self._path, f"cannot be read ({error.strerror})") from error
        if len(found) != size:
            raise _refused(
                self._path, "a tensor", expected=f"{size} bytes", found=f"{len(found)}",
                fix=_COPY_AGAIN,
            )  # fmt: skip
        if self.dtype == np.bool_:  # a byte other than 0 and 1 is no bool to numpy
            return (np.frombuffer(found, np.uint8) != 0).reshape(self.shape)
        return np.frombuffer(found, self.dtype).reshape(self.shape)


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Returns the tensors of a file by name, in the order of the header.

    Raises:
      CheckpointError: the file is missing, damaged or of another format, or has a type of tensor
        that is not in `DTYPES`.
    """
    path = pathlib.Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            start = handle.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _refused(
                    path, "not a file of safetensors, or cut off",
                    expected=f"a header of at most {min(MAX_HEADER_BYTES, max(size - 8, 0))} bytes",
                    found=f"{length} in a file of {size}", fix=_COPY_AGAIN,
                )  # fmt: skip
            text = handle.read(length)
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror})") from error
    header = _parse(path, text)
    if len(header) > MAX_TENSORS:
        raise _refused(path, "tensors", expected=f"at most {MAX_TENSORS}", found=str(len(header)))
    begin = 8 + length
    ranges = []
    tensors = {}
    for name, entry in header.items():
        dtype, shape, (first, last) = _entry(path, name, entry, size - begin)
        ranges.append((first, last, name))
        tensors[name] = Tensor(shape, dtype, path, begin + first)
    _require_apart(path, ranges)
    return tensors


def _parse(path: pathlib.Path, text: bytes) -> dict[str, Any]:
    """The header without its metadata; a name that occurs twice is an error."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=once)
        if not isinstance(header, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise _refused(
            path, f"the header cannot be read ({str(error)[:120]})", fix=_COPY_AGAIN
        ) from error
    header.pop("__metadata__", None)
    return header


def _entry(
    path: pathlib.Path, name: str, entry: Any, room: int
) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    """Type, shape and range of bytes of a tensor; they agree with each other and with the file."""
    where = f"tensor {ascii(name)[:120]}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _refused(path, where, expected="dtype, shape and data_offsets", found=_short(entry))
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _refused(path, f"{where}: shape", expected="lengths", found=_short(shape))
    if not _are_counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= room:
        raise _refused(
            path, f"{where}: data_offsets", expected=f"a range of the {room} bytes of numbers",
            found=_short(offsets), fix=_COPY_AGAIN,
        )  # fmt: skip
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise _refused(
            path, f"{where}: dtype", expected=f"one of {', '.join(DTYPES)}",
            found=_short(entry["dtype"]), fix="Save it again as float32, float16 or bfloat16",
        )  # fmt: skip
    size = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != size:
        raise _refused(
            path, f"{where}: data_offsets", expected=f"{size} bytes for shape {tuple(shape)}",
            found=str(offsets[1] - offsets[0]), fix=_COPY_AGAIN,
        )  # fmt: skip
    return dtype, tuple(shape), (offsets[0], offsets[1])


def _require_apart(path: pathlib.Path, ranges: list[tuple[int, int, str]]) -> None:
    """Nothing, or an error that names two tensors of the same bytes."""
    end, before = 0, ""
    for first, last, name in sorted(ranges):
        if first < end:
            raise _refused(
                path, f"tensor {ascii(name)[:120]}", expected="bytes of its own",
                found=f"some of {ascii(before)[:120]}", fix=_COPY_AGAIN,
            )  # fmt: skip
        if last > first:
            end, before = last, name


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**62 for n in value)


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _refused(path: pathlib.Path, what: str, **parts: str) -> errors.CheckpointError:
    return errors.CheckpointError(f"{path}: {what}", **parts)
