"""HDF5 files of unknown origin, opened without trust: no links out, no claims beyond the file."""

from __future__ import annotations

import pathlib
from typing import Any

import h5py
import numpy as np

from stemjax.data.embedding_files import file as file_lib
from stemjax.data.embedding_files.file import COPY_AGAIN, refused, shown

MAGIC = b"\x89HDF\r\n\x1a\n"


def open_file(path: pathlib.Path) -> Any:
    """The file, opened for reading; h5py's types are wrong for a checker, so it has none."""
    return h5py.File(path, "r")


def members(path: pathlib.Path, group: Any) -> dict[str, Any]:
    """Datasets and groups of a group by name.

    Raises:
      EncoderMismatchError: one of them lies in another file or nowhere.
    """
    found = {}
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise refused(
                path,
                f"{shown(name)!r} is a link and not in this file",
                expected="datasets stored in the file itself",
                fix="Copy them into one file, e.g. with h5repack",
            )
        found[name] = group[name]
    return found


def datasets(path: pathlib.Path, group: Any) -> dict[str, Any]:
    """The datasets of a group by name, each held against the file's size."""
    found = {
        name: value
        for name, value in members(path, group).items()
        if isinstance(value, h5py.Dataset)
    }
    for name, dataset in found.items():
        require_held(path, name, dataset)
    return found


def require_held(path: pathlib.Path, name: str, dataset: Any) -> None:
    """Refuses a dataset that lies elsewhere, was never written, or claims too much."""
    if dataset.is_virtual or dataset.external:
        raise refused(
            path,
            f"the dataset {shown(name)!r} lies in other files",
            expected="datasets stored in the file itself",
            fix="Copy them into one file, e.g. with h5repack",
        )
    if dataset.shape is None:  # an empty dataset: it has a type and no values
        raise refused(path, f"the dataset {shown(name)!r} has no values", fix=COPY_AGAIN)
    held = path.stat().st_size
    plan = dataset.id.get_create_plist()
    packed = plan.get_nfilters() > 0
    for shape in (dataset.shape, dataset.chunks or ()):
        what = f"the dataset {shown(name)!r}"
        file_lib.require_claim(path, what, shape, dataset.dtype.itemsize, held, packed=packed)
    if dataset.size and not dataset.id.get_storage_size():
        raise refused(
            path,
            f"the dataset {shown(name)!r} was never written",
            expected=f"{dataset.size:,} values",
            found="none",
            fix="Its tool stopped half-way: embed the slide again",
        )


def attributes(node: Any) -> dict[str, Any]:
    """Attributes as plain values; TRIDENT's string 'None' is None."""
    return {name: _plain(value) for name, value in node.attrs.items()}


def text(path: pathlib.Path, name: str, dataset: Any) -> tuple[str, ...]:
    """Names of shape (n,) or (n, 1), bytes or text.

    Raises:
      EncoderMismatchError: another shape, or no text.
    """
    if dataset.ndim not in (1, 2) or (dataset.ndim == 2 and dataset.shape[1] != 1):
        raise refused(
            path,
            f"the dataset {shown(name)!r} is no list of names",
            expected="shape (n,) or (n, 1)",
            found=str(dataset.shape),
            fix=COPY_AGAIN,
        )
    return as_text(path, name, dataset[()])


def as_text(path: pathlib.Path, name: str, values: np.ndarray) -> tuple[str, ...]:
    """Bytes, text or whole numbers as names."""
    flat = np.asarray(values).reshape(-1)
    if flat.dtype.kind in "iu":
        return tuple(str(value) for value in flat)
    names = [value.decode() if isinstance(value, bytes) else value for value in flat.tolist()]
    if not all(isinstance(value, str) for value in names):
        raise refused(
            path,
            f"{shown(name)!r} is no list of names",
            expected="text",
            found=str(flat.dtype),
            fix=COPY_AGAIN,
        )
    return tuple(names)


def coordinates(path: pathlib.Path, name: str, dataset: Any) -> np.ndarray:
    """(x, y) pairs as float64.

    Raises:
      EncoderMismatchError: another shape, or no numbers.
    """
    if dataset.ndim != 2 or dataset.shape[1] != 2 or dataset.dtype.kind not in "iuf":
        raise refused(
            path,
            f"the dataset {shown(name)!r} holds no coordinates",
            expected="numbers of shape (n, 2)",
            found=f"{dataset.dtype} of shape {dataset.shape}",
            fix="TRIDENT and CLAM write (x, y) of the upper left corner at level 0",
        )
    return dataset[()].astype(np.float64)


def loader(path: pathlib.Path, name: str) -> Any:
    """Reads rows of a dataset (n, c) or (n, v, c) as [n v c]; opens the file anew each time."""

    def load(start: int, stop: int) -> np.ndarray:
        with open_file(path) as opened:
            values = opened[name][start:stop]
        return values[:, None] if values.ndim == 2 else values

    return load


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return None if isinstance(value, str) and value == "None" else value
