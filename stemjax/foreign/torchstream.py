"""The pickle stream of a PyTorch checkpoint, understood without running it; part of `torchfile`.

A pickle stream is a program. It is never run here: `pickletools.genops` splits it into opcodes and
`Machine` gives the few that make plain values a meaning of its own. The names in `_GLOBALS` are
compared as text; any other ends in an error. Nothing that the stream names is imported or called,
and every tensor is checked against the length of its storage before it is handed out.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import pickletools
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from stemjax import errors

MAX_DEPTH = 100
MAX_OPCODES = 4_000_000  # torch writes about 30 a tensor
MAX_VALUES = 2_000_000  # of the tree; what occurs twice counts twice
MAX_EXPANDED = 2**24  # elements of a tensor that has more of them than its storage
MAX_ELEMENTS = 2**48

DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
COPY_AGAIN = "copy or download the file again"
SAVE_WEIGHTS = (
    "Nothing in the file was executed. In torch, save the weights alone: "
    "torch.save(model.state_dict(), NEW)"
)


def refused(path: pathlib.Path, what: str, **parts: str) -> errors.TorchFileError:
    """The error for a file; `parts` are those of `errors.StemjaxError`."""
    return errors.TorchFileError(f"{path}: {what}", **parts)


def quoted(value: object) -> str:
    """Text from a file for a message: in quotes, printable, at most 120 characters."""
    text = ascii(value)
    return text if len(text) <= 120 else text[:117] + "..."


@dataclasses.dataclass(frozen=True)
class Record:
    """A stored entry of a zip archive.

    Attributes:
      path: the archive.
      name: of the entry; never used as a path.
      header: where its local header begins, bytes.
      size: of its contents, bytes.
      crc: the CRC-32 that the contents should have.
    """

    path: pathlib.Path
    name: str
    header: int
    size: int
    crc: int

    def read(self) -> bytes:
        """Returns the contents.

        Raises:
          TorchFileError: the file has gone, or size or CRC of the contents are not as stated.
        """
        try:
            with self.path.open("rb") as handle:
                handle.seek(self.header)
                signature, name, extra = struct.unpack("<4s22xHH", handle.read(30))
                handle.seek(name + extra, os.SEEK_CUR)
                data = handle.read(self.size)
        except (OSError, struct.error) as error:
            what = f"record {quoted(self.name)} cannot be read ({error})"
            raise refused(self.path, what, fix=COPY_AGAIN) from error
        crc = zlib.crc32(data)
        if signature != b"PK\x03\x04" or len(data) != self.size or crc != self.crc:
            raise refused(
                self.path,
                f"record {quoted(self.name)} is damaged",
                expected=f"{self.size} bytes of CRC {self.crc:08x}",
                found=f"{len(data)} bytes of CRC {crc:08x}",
                fix=COPY_AGAIN + ", or save it without torch's set_crc32_options(False)",
            )
        return data


@dataclasses.dataclass(frozen=True)
class Storage:
    """A record as `elements` numbers of one dtype."""

    record: Record
    dtype: np.dtype
    elements: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file, checked against its storage; the numbers stay on disk until asked for.

    Attributes:
      shape: one length per dimension, () for a scalar.
      dtype: of the elements; bfloat16 is `ml_dtypes.bfloat16`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    _storage: Storage = dataclasses.field(repr=False)
    _offset: int = dataclasses.field(repr=False)
    _strides: tuple[int, ...] = dataclasses.field(repr=False)

    def numpy(self) -> np.ndarray:
        """Reads the whole storage and copies this tensor's part of it.

        Returns:
          A contiguous, writable array of `shape` and `dtype` that shares memory with no other.

        Raises:
          TorchFileError: the file has gone, or size or CRC of the storage are not as stated.
        """
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        flat = np.frombuffer(self._storage.record.read(), self.dtype, self._storage.elements)
        if self.dtype == np.bool_:  # a byte other than 0 and 1 is no bool to numpy
            flat = flat.view(np.uint8) != 0
        # A dimension of length 1 may have any stride, also one that overflows.
        strides = [s * flat.itemsize if n > 1 else 0 for n, s in zip(self.shape, self._strides)]
        view = np.lib.stride_tricks.as_strided(
            flat[self._offset :], self.shape, strides, writeable=False
        )
        return np.array(view, order="C")


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str
    dtype: np.dtype | None = None  # of a storage class


class _OrderedDict(dict):
    """What BUILD may follow; a plain dict in the tree."""


_GLOBALS = {
    ("torch._utils", "_rebuild_tensor_v2"): _Global("_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"): _Global("_rebuild_parameter"),
    ("collections", "OrderedDict"): _Global("OrderedDict"),
    ("torch", "Size"): _Global("Size"),
} | {("torch", name): _Global(name, dtype) for name, dtype in DTYPES.items()}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_SCALARS = (str, int, float, bool, type(None))


def _is_counts(value: Any) -> bool:
    """Whether it is a tuple of lengths; numpy, too, has at most 64 dimensions."""
    return (
        type(value) is tuple and len(value) <= 64 and all(type(n) is int and n >= 0 for n in value)
    )


class Machine:
    """Makes the tree of one stream.

    MARK sets the stack aside in `marks` and begins a new one, as Python's own machine does.

    Args:
      path: the checkpoint, for messages.
      records: the entries of the archive by name.
      folder: what stands before a storage's key in the name of its record.
    """

    def __init__(self, path: pathlib.Path, records: Mapping[str, Record], folder: str) -> None:
        self.path, self.records, self.folder = path, records, folder
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.values = 0

    def run(self, program: bytes) -> Any:
        """Returns the value that the stream leaves on the stack; `torchfile.read` says more.

        Raises:
          TorchFileError: the stream is damaged, or would make anything but tensors and plain
            values.
        """
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(program), 1):
                if count > MAX_OPCODES:
                    raise self._refused(f"has more than {MAX_OPCODES} opcodes")
                self._step(opcode.name, argument)
        # Warning: an invalid escape in a name, where warnings are errors.
        except (ValueError, AssertionError, OverflowError, struct.error, Warning) as error:
            raise self._damaged(quoted(str(error))) from error
        value = self._pop()
        if self.stack or self.marks:
            raise self._damaged("values left over")
        return self._plain(value, 0)

    def _refused(self, what: str, **parts: str) -> errors.TorchFileError:
        return refused(self.path, f"data.pkl {what}", **({"fix": SAVE_WEIGHTS} | parts))

    def _damaged(self, why: str) -> errors.TorchFileError:
        return self._refused(f"is damaged ({why})", fix=COPY_AGAIN)

    def _pop(self) -> Any:
        if not self.stack:
            raise self._damaged("a value is missing")
        return self.stack.pop()

    def _pop_mark(self) -> list[Any]:
        if not self.marks:
            raise self._damaged("a mark is missing")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _top(self, kind: type = object) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise self._damaged(f"a value of type {kind.__name__} is missing")
        return self.stack[-1]

    def _step(self, name: str, argument: Any) -> None:
        """Carries out one opcode; `argument` is what `genops` read behind it."""
        result: list[Any] = []
        match name:
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINFLOAT":
                result = [argument]
            case "BININT" | "BININT1" | "BININT2" | "LONG1":
                result = [argument]
            case _ if name in _CONSTANTS:
                result = [_CONSTANTS[name]]
            case "EMPTY_DICT" | "EMPTY_LIST":
                result = [{} if name == "EMPTY_DICT" else []]
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                result = [tuple([self._pop() for _ in range(int(name[-1]))][::-1])]
            case "MARK":
                self.marks.append(self.stack)
                self.stack = []
            case "TUPLE":
                result = [tuple(self._pop_mark())]
            case "APPEND" | "APPENDS":
                items = [self._pop()] if name == "APPEND" else self._pop_mark()
                self._top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                pair = name == "SETITEM"
                items = [self._pop(), self._pop()][::-1] if pair else self._pop_mark()
                self._set_items(self._top(dict), items)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self._top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self._top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise self._damaged(f"memo {argument} is empty")
                result = [self.memo[argument]]
            case "GLOBAL":
                result = [self._find(*argument.partition(" ")[::2])]
            case "STACK_GLOBAL":
                attribute, module = self._pop(), self._pop()
                result = [self._find(module, attribute)]
            case "BINPERSID":
                result = [self._storage(self._pop())]
            case "REDUCE":
                arguments, function = self._pop(), self._pop()
                result = [self._call(function, arguments)]
            case "BUILD":
                self._build(self._pop())
            case "PROTO" if not 2 <= argument <= 5:
                raise self._refused(f"has pickle protocol {argument}", expected="2 to 5")
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise self._refused(f"has the opcode {name}, which torch does not write")
        self.stack.extend(result)

    def _set_items(self, target: dict[Any, Any], items: list[Any]) -> None:
        if len(items) % 2:
            raise self._damaged("a key without a value")
        for key, value in zip(items[::2], items[1::2]):
            # Tuples nested by reference take for ever to hash.
            if type(key) not in _SCALARS:
                raise self._refused(f"has a {type(key).__name__} as key of a dict")
            target[key] = value

    def _build(self, state: Any) -> None:
        """Drops the `_metadata` of a state dict; nothing else may be built upon."""
        target = self._top()
        if not isinstance(target, _OrderedDict):
            raise self._refused(f"sets attributes of a {type(target).__name__}")
        if not isinstance(state, dict) or set(state) - {"_metadata"}:
            raise self._refused("sets attributes of an OrderedDict other than _metadata")

    def _find(self, module: Any, attribute: Any) -> _Global:
        """The known global of that name; none is ever imported."""
        if type(module) is not str or type(attribute) is not str:
            raise self._damaged("the name of a global is no text")
        if (module, attribute) not in _GLOBALS:
            raise self._refused(
                f"names the global {quoted(f'{module}.{attribute}')}, which is code to run or an "
                "object that only Python can build",
                expected="tensors and plain values in dicts, lists and tuples",
            )
        return _GLOBALS[module, attribute]

    def _call(self, function: Any, arguments: Any) -> Any:
        """What a known function makes of its arguments, done by our own code."""
        name = function.name if isinstance(function, _Global) else type(function).__name__
        if isinstance(function, _Global) and type(arguments) is tuple:
            match name, arguments:
                case "_rebuild_tensor_v2", _:
                    return self._tensor(arguments)
                case "_rebuild_parameter", (Tensor(), _, _):
                    return arguments[0]
                case "OrderedDict", ():
                    return _OrderedDict()
                case "Size", (sizes,) if _is_counts(sizes):
                    return sizes
        raise self._refused(f"calls {quoted(name)} in a way that torch does not")

    def _storage(self, identity: Any) -> Storage:
        """The storage of a persistent id ("storage", class, key, device, elements)."""
        match identity if type(identity) is tuple else None:
            case ("storage", _Global(dtype=np.dtype() as dtype), str(key), str(), int(elements)):
                pass
            case _:
                raise self._damaged("an external value that is no storage")
        record = self.records.get(self.folder + key)
        if record is None:
            raise refused(self.path, f"no record {quoted(self.folder + key)}", fix=COPY_AGAIN)
        if not 0 <= elements * dtype.itemsize <= record.size:
            raise self._refused(
                f"wants a storage of {elements} {dtype} numbers",
                expected=f"no more than its {record.size} bytes hold",
                fix=COPY_AGAIN,
            )
        return Storage(record, dtype, elements)

    def _tensor(self, arguments: tuple[Any, ...]) -> Tensor:
        """A view of a storage that stays inside it.

        Args:
          arguments: storage, offset, size, stride (all in elements), whether gradients are wanted,
            hooks, and for tensors with a conjugate or negative bit a dict that says so.
        """
        if len(arguments) not in (6, 7) or (len(arguments) == 7 and arguments[6]):
            raise self._refused("has a tensor with more than storage, offset, size and stride")
        storage, offset, shape, strides = arguments[:4]
        if (
            not isinstance(storage, Storage)
            or not (_is_counts((offset,)) and _is_counts(shape) and _is_counts(strides))
            or len(shape) != len(strides)
        ):
            raise self._damaged("a tensor without storage, offset, size or stride")
        elements = math.prod(shape)
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides)) if elements else -1
        if (
            last >= storage.elements
            or math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS
            or elements > max(storage.elements, MAX_EXPANDED)
        ):
            raise self._refused(
                f"has a tensor of shape {quoted(shape)}, strides {quoted(strides)} and offset "
                f"{quoted(offset)} outside its storage of {storage.elements} elements",
                fix=COPY_AGAIN + "; of expanded tensors save x.contiguous()",
            )
        return Tensor(shape, storage.dtype, storage, offset, strides)

    def _plain(self, value: Any, depth: int) -> Any:
        """The tree without what only this machine knows; ends also where the tree has no end."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise self._refused(f"has more than {MAX_VALUES} values")
        if isinstance(value, dict | list | tuple):
            if depth == MAX_DEPTH:
                raise self._refused(f"is nested more than {MAX_DEPTH} deep")
            if isinstance(value, dict):
                return {key: self._plain(item, depth + 1) for key, item in value.items()}
            return type(value)([self._plain(item, depth + 1) for item in value])
        if isinstance(value, (*_SCALARS, Tensor)):
            return value
        raise self._refused("has a class or a storage where a value belongs")
