"""HDF5 files that say themselves whether they are as they were written.

HDF5 has no checksums where it keeps to its old form, which anndata writes: a flipped bit of a
prediction is another number, without a word. So the root group carries a SHA-256 over what the file
holds, and short ones of its parts, so that a damaged part has a name:

    stemjax-sha256           over the names and hashes of all parts
    stemjax-sha256-parts     {"X": "9f2c...", "layers/stemjax_std": "01ab...", ...}

A part is a dataset or group in the root, or in a group of the root. What counts is the content
(names, types, shapes, values, attributes), not where in the file it lies or how it is compressed.
Other programs that write the file anew leave both out: then nothing is known of it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import json
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from stemjax import errors
from stemjax.data import disk
from stemjax.data.hdf5 import soundness
from stemjax.foreign import json_text

ATTRIBUTE, PARTS = "stemjax-sha256", "stemjax-sha256-parts"

_SLAB_BYTES = 2**24
_MOST_SLAB_BYTES = 2**28
# Elements of strings that are hashed at a time: part of what the hash is.
_STRINGS = 2**16
# An attribute of HDF5's old form holds 64 kB.
_MOST_PARTS_BYTES = 48_000
_MOST_DEEP = 100
_PART_DIGITS = 16

_checking = contextvars.ContextVar("checking", default=True)


def seal(path: pathlib.Path, *, same_as: Mapping[str, np.ndarray] | None = None) -> str:
    """Writes the hashes of a file into it, from what is read back; returns the one of all.

    Args:
      path: an HDF5 file that nobody reads yet.
      same_as: what datasets must hold, by their paths: a write that went wrong is found.

    Raises:
      ResourceError: a dataset does not hold what was written.
    """
    with h5py.File(path, "r") as file:
        parts = hash_parts(file, same_as or {}, path)
    digest, short = _over(parts), {name: full[:_PART_DIGITS] for name, full in parts.items()}
    listed = json.dumps(short).encode()
    with disk.opened_for_hdf5(path, new=False) as opened, h5py.File(opened, "r+") as file:
        # Bytes of a fixed length lie in the attribute itself; text would lie elsewhere.
        file.attrs[ATTRIBUTE] = np.bytes_(digest)
        if len(listed) <= _MOST_PARTS_BYTES:
            file.attrs[PARTS] = np.bytes_(listed)
    return digest


def damage(path: pathlib.Path) -> list[str] | None:
    """What is wrong with a file's content: "PART: what", empty if nothing is.

    Returns:
      None where the file carries no hash: another program wrote it, or an older version.

    Raises:
      PredictionError: it cannot be read at all.
      UnsafeFileError: it claims what no honest file needs.
    """
    soundness.require_sound(path, errors.PredictionError)
    try:
        with h5py.File(path, "r") as file:
            if ATTRIBUTE not in file.attrs:
                return None
            wanted = bytes(np.bytes_(file.attrs[ATTRIBUTE])).decode("ascii", "replace")
            parts = hash_parts(file, {}, path)
            if _over(parts) == wanted:
                return []
            return _differing(file, parts)
    except errors.StemjaxError:
        raise
    except Exception as error:  # noqa: BLE001 - h5py tells damage by all kinds of exceptions
        return [f"its structure cannot be read ({type(error).__name__}: {error})"]


def require_whole(path: str | os.PathLike[str]) -> None:
    """Returns if a file holds what it held when it was written, or carries no hash.

    A file is read once for it, until it changes.

    Raises:
      PredictionError: it is damaged, or was changed in place.
      UnsafeFileError: it claims what no honest file needs.
    """
    path = pathlib.Path(path)
    if not _checking.get():
        return
    state = path.stat()
    found = _damage(str(path.resolve()), state.st_mtime_ns, state.st_size)
    if found:
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise errors.PredictionError(
            f"{path} is not as it was written",
            expected=f"the content that its {ATTRIBUTE} is of",
            found="; ".join(found[:3]) + more,
            fix="Copy the file again, or predict again. If a program changed it in place on "
            "purpose, write it anew with anndata (write_h5ad leaves the hash out) or give "
            "--no-verify",
        )


@contextlib.contextmanager
def unchecked(skip: bool = True) -> Iterator[None]:
    """Lets `require_whole` pass in the block what it would refuse, if ``skip``."""
    before = _checking.set(not skip)
    try:
        yield
    finally:
        _checking.reset(before)


@functools.lru_cache(maxsize=4096)
def _damage(path: str, changed: int, size: int) -> tuple[str, ...] | None:
    """`damage` of a file that was written at ``changed`` and has ``size`` bytes."""
    del changed, size
    found = damage(pathlib.Path(path))
    return None if found is None else tuple(found)


def _over(parts: Mapping[str, str]) -> str:
    """The hash over the names and hashes of all parts."""
    found = hashlib.sha256()
    for name in sorted(parts):
        found.update(_framed(name.encode("utf-8", "surrogateescape")) + parts[name].encode())
    return found.hexdigest()


def _differing(file: h5py.File, parts: Mapping[str, str]) -> list[str]:
    """Which parts are not as they were, as far as the file says what they were."""
    try:
        listed = dict(json_text.parse(bytes(np.bytes_(file.attrs[PARTS]))))
    except (KeyError, ValueError, TypeError):
        return ["the hash of all its content"]
    found = [f"{name}: missing" for name in listed if name not in parts]
    for name, digest in parts.items():
        if name not in listed:
            found.append(f"{name or 'its list of parts'}: was not there")
        elif listed[name] != digest[:_PART_DIGITS]:
            said = f"sha256 {digest[:12]}... instead of {str(listed[name])[:12]}..."
            found.append(f"{name or 'its attributes or list of parts'}: {said}")
    return found or [f"{ATTRIBUTE} itself: all parts are whole"]


def hash_parts(
    file: h5py.File, same_as: Mapping[str, np.ndarray], path: pathlib.Path
) -> dict[str, str]:
    """Returns the SHA-256 of each part of a file by its path; that of "" is the root's.

    Args:
      file: opened.
      same_as: what datasets must hold, by their paths.
      path: of the file, for errors.

    Raises:
      ResourceError: a dataset does not hold that.
    """
    hashing = _Hashing(same_as, path)
    parts = {"": hashing.of_members(file, leave_out=(ATTRIBUTE, PARTS))}
    for name in sorted(file):
        node = hashing.node(file, name)
        if isinstance(node, h5py.Group):
            parts[name] = hashing.of_members(node)
            for inner in sorted(node):
                parts[f"{name}/{inner}"] = hashing.of(node, inner)
        else:
            parts[name] = hashing.of(file, name)
    return parts


class _Hashing:
    """Hashes of parts, of which slabs are held and never all."""

    def __init__(self, same_as: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
        self._same_as, self._path = same_as, path

    def node(self, group: h5py.Group, name: str) -> Any:
        """What lies under a name, or the link where it is not in the file."""
        link = group.get(name, getlink=True)
        return group[name] if isinstance(link, h5py.HardLink) else link

    def of(self, group: h5py.Group, name: str) -> str:
        """The hash of all that lies under a name."""
        found = hashlib.sha256()
        self._add(found, group, name, 0)
        return found.hexdigest()

    def of_members(self, group: h5py.Group, leave_out: tuple[str, ...] = ()) -> str:
        """The hash of a group's attributes and of the names in it."""
        found = hashlib.sha256(b"group")
        _add_attributes(found, group, leave_out)
        for name in sorted(group):
            found.update(_framed(name.encode("utf-8", "surrogateescape")))
        return found.hexdigest()

    def _add(self, found: Any, group: h5py.Group, name: str, deep: int) -> None:
        if deep > _MOST_DEEP:
            raise ValueError(f"groups in groups, more than {_MOST_DEEP} deep")
        node = self.node(group, name)
        found.update(_framed(name.encode("utf-8", "surrogateescape")))
        if isinstance(node, h5py.Dataset):
            self._add_dataset(found, node)
        elif isinstance(node, h5py.Group):
            found.update(b"group")
            _add_attributes(found, node)
            for inner in sorted(node):
                self._add(found, node, inner, deep + 1)
            found.update(b"end")
        else:  # a link to elsewhere, or a named type
            found.update(_framed(f"{type(node).__name__} {getattr(node, 'path', '')}".encode()))

    def _add_dataset(self, found: Any, dataset: h5py.Dataset) -> None:
        found.update(b"dataset" + _framed(_kind(dataset.dtype).encode()))
        found.update(_framed(repr(dataset.shape).encode()))
        _add_attributes(found, dataset)
        if dataset.shape is None:
            return
        wanted = self._same_as.get(str(dataset.name).strip("/"))
        for rows in _slabs(dataset):
            values = dataset[rows]
            if wanted is not None and not _is_same(values, wanted[rows]):
                raise errors.ResourceError(
                    f"{self._path}: {dataset.name} was not read back as it was written",
                    expected="the same values", found="others",
                    fix="try again, and check the disk",
                )  # fmt: skip
            _add_values(found, np.asarray(values), dataset.dtype)


def _is_same(values: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two arrays have the same bytes; NaN is NaN."""
    wanted = np.ascontiguousarray(wanted, dtype=values.dtype)
    ours, theirs = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (values, wanted))
    return np.array_equal(ours, theirs)


def _slabs(dataset: h5py.Dataset) -> Iterator[Any]:
    """Selections of rows that together are all: whole chunks, so that none is unpacked twice."""
    if not dataset.shape:
        yield ()
        return
    each = int(np.prod(dataset.shape[1:], dtype=np.int64))
    if dataset.dtype.hasobject:
        rows = max(1, _STRINGS // max(each, 1))
    else:
        row_bytes = max(1, each * dataset.dtype.itemsize)
        rows = max(1, _SLAB_BYTES // row_bytes)
        if dataset.chunks and dataset.chunks[0] * row_bytes <= _MOST_SLAB_BYTES:
            rows = max(1, rows // dataset.chunks[0]) * dataset.chunks[0]
    for start in range(0, dataset.shape[0], rows):
        yield slice(start, start + rows)


def _add_attributes(found: Any, node: Any, leave_out: tuple[str, ...] = ()) -> None:
    for name in sorted(set(node.attrs) - set(leave_out)):
        about = node.attrs.get_id(name)
        found.update(_framed(name.encode("utf-8", "surrogateescape")))
        found.update(_framed(f"{_kind(about.dtype)} {about.shape}".encode()))
        value = node.attrs[name]
        if not isinstance(value, h5py.Empty):
            _add_values(found, np.asarray(value), about.dtype)
    found.update(b"end of attributes")


def _kind(dtype: np.dtype) -> str:
    """The type of values in words that do not depend on a version of numpy or h5py."""
    if (text := h5py.check_string_dtype(dtype)) is not None:
        return f"text {text.encoding} {text.length}"
    if (base := h5py.check_vlen_dtype(dtype)) is not None:
        return f"lists of {_kind(np.dtype(base))}"
    if (names := h5py.check_enum_dtype(dtype)) is not None:
        return f"{dtype.str} {sorted((str(name), int(value)) for name, value in names.items())}"
    if dtype.names is not None:
        return repr([(name, _kind(dtype[name])) for name in dtype.names])
    if dtype.subdtype is not None:
        return f"{_kind(dtype.subdtype[0])} {dtype.subdtype[1]}"
    return dtype.str


def _add_values(found: Any, values: np.ndarray, dtype: np.dtype) -> None:
    """Adds values in C order; those of no fixed length with their lengths before them."""
    if dtype.names is not None and dtype.hasobject:
        for name in dtype.names:
            _add_values(found, np.asarray(values[name]), dtype[name])
    elif dtype.hasobject or values.dtype.hasobject:
        pieces = [_bytes(value) for value in values.reshape(-1)]
        found.update(np.array([len(piece) for piece in pieces], "<i8").tobytes())
        found.update(b"".join(pieces))
    else:
        found.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).tobytes()
    return b""  # a reference to another part, which has a hash of its own


def _framed(text: bytes) -> bytes:
    """Bytes with their length before them, so that no two sequences look alike."""
    return struct.pack("<q", len(text)) + text
