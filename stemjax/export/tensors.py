"""Weights as safetensors: one file or several, every name, shape and type checked before reading.

    model.safetensors                          up to a size
    model-00001-of-00003.safetensors ...       beyond it, with
    model.safetensors.index.json               the file of each tensor, as the hub's tools have it

The format holds numbers and nothing that could run. Tensors are named by their path in the network:
``blocks/attn/qkv/kernel``.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from stemjax import errors
from stemjax.data import integrity
from stemjax.foreign import json_text, safetensors_file

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PIECE = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
LARGEST_FILE = 4 * 2**30
"""Bytes of a file: what every file system and the hub's tools take without trouble."""

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_TOLD = {"F32": "float32", "BF16": "bfloat16"}


def named(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def bytes_of(tree: Any, dtype: str = "float32") -> int:
    """Returns the bytes of a tree's numbers as a type of `DTYPES`."""
    return sum(leaf.size for leaf in named(tree).values()) * DTYPES[dtype].itemsize


def is_weights(name: str) -> bool:
    """Whether a file of this name is one that `write` makes."""
    return name in (WHOLE, INDEX) or PIECE.fullmatch(name) is not None


def save(
    arrays: dict[str, np.ndarray], path: pathlib.Path, *, metadata: dict[str, str] | None = None
) -> None:
    """Writes arrays in C order to one file that others may read.

    Args:
      arrays: by name.
      path: the file.
      metadata: of its header.
    """
    safetensors.numpy.save_file(arrays, path, metadata=metadata)
    path.chmod(0o644)  # safetensors makes files that only their owner reads


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of one file by name.

    Raises:
      BundleError: it is none of this format, or claims more than it holds.
    """
    with _opened(path) as found:
        return {name: np.asarray(found.get_tensor(name)) for name in found.keys()}  # noqa: SIM118


def write(
    arrays: Mapping[str, Any], folder: pathlib.Path, *, dtype: str, largest: int = LARGEST_FILE
) -> None:
    """Writes arrays, one file of them in memory at a time.

    Args:
      arrays: by name; on the devices or the host.
      folder: where to.
      dtype: one of `DTYPES`.
      largest: bytes of a file; an array that is larger has one of its own.
    """
    kind = DTYPES[dtype]
    pieces = _dealt({name: leaf.size * kind.itemsize for name, leaf in arrays.items()}, largest)
    where: dict[str, str] = {}
    for number, names in enumerate(pieces, start=1):
        file = WHOLE
        if len(pieces) > 1:
            file = f"model-{number:05d}-of-{len(pieces):05d}.safetensors"
        here = {
            name: np.asarray(jax.device_get(arrays[name])).astype(kind, order="C") for name in names
        }
        save(here, folder / file, metadata={"format": "np"})
        where |= dict.fromkeys(names, file)
    if len(pieces) > 1:
        total = sum(leaf.size for leaf in arrays.values()) * kind.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": where}
        integrity.write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")


def read(
    folder: pathlib.Path, wanted: Mapping[str, tuple[int, ...]], *, dtype: str
) -> dict[str, np.ndarray]:
    """Returns the arrays that `write` wrote, float32.

    Nothing is read before all names, shapes and types are those that are wanted.

    Args:
      folder: where they are.
      wanted: shape of each array by its name.
      dtype: what they are stored as.

    Raises:
      BundleError: a file is missing or none of this format.
      CheckpointMismatchError: an array too many, too few, or of another shape or type.
    """
    files = _files(folder)
    found: dict[str, tuple[str, tuple[int, ...], str]] = {}
    for file in files:
        for name, shape, kind in _headers(folder / file):
            if name in found:
                raise errors.BundleError(
                    f"{folder}: tensor {name}", expected="in one file", found="in several"
                )
            found[name] = file, shape, kind
    for name in sorted(wanted.keys() | found.keys()):
        ours = None if name not in wanted else f"shape {wanted[name]}, {dtype}"
        theirs = None if name not in found else f"shape {found[name][1]}, {found[name][2]}"
        if ours != theirs:
            raise errors.CheckpointMismatchError(
                f"{folder}: parameter {name}", expected=ours or "none", found=theirs or "none"
            )
    arrays = {}
    for file in files:
        with _opened(folder / file) as tensors:
            for name, (where, _, _) in found.items():
                if where == file:
                    arrays[name] = np.asarray(tensors.get_tensor(name)).astype(np.float32)
    return arrays


def _dealt(sizes: Mapping[str, int], largest: int) -> list[list[str]]:
    """Names in order, a new file where the next one would make it too large."""
    pieces: list[list[str]] = [[]]
    room = largest
    for name, size in sizes.items():
        if pieces[-1] and size > room:
            pieces.append([])
            room = largest
        pieces[-1].append(name)
        room -= size
    return pieces


def _files(folder: pathlib.Path) -> list[str]:
    if not (folder / INDEX).is_file():
        return [WHOLE]
    try:
        index = json_text.parse((folder / INDEX).read_text(encoding="utf-8"))
        files = list(dict.fromkeys(index["weight_map"].values()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.BundleError(
            f"{folder / INDEX} cannot be read ({type(error).__name__}: {error})"
        ) from error
    for file in files:
        if not isinstance(file, str) or PIECE.fullmatch(file) is None:
            raise errors.BundleError(
                f"{folder / INDEX}", expected="files model-00001-of-0000N.safetensors beside it",
                found=repr(file)[:80],
            )  # fmt: skip
    return sorted(files)


def _headers(path: pathlib.Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    with _opened(path) as tensors:
        for name in tensors.keys():  # noqa: SIM118  (no mapping)
            part = tensors.get_slice(name)
            kind = str(part.get_dtype())
            yield name, tuple(part.get_shape()), _TOLD.get(kind, kind)


class _opened:
    """A file of tensors; what is wrong with it as an error of a bundle."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        try:
            safetensors_file.read(self._path)  # every claim against the file's size
            self._file: Any = safetensors.safe_open(self._path, framework="np")
        except errors.CheckpointError as error:
            what = error.what.removeprefix(f"{self._path}: ")
            raise errors.BundleError(
                f"{self._path} cannot be read: {what}",
                expected=error.expected,
                found=error.found,
                fix="copy the bundle again",
            ) from error
        except (OSError, safetensors.SafetensorError) as error:
            raise errors.BundleError(
                f"{self._path} cannot be read ({type(error).__name__}: {error})",
                expected="a file of safetensors",
                fix="copy the bundle again",
            ) from error
        return self._file.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._file.__exit__(*exc)
