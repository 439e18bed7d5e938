"""Walks an HDF5 file to see whether the HDF5 library survives it; run as a script by `soundness`.

It imports nothing of stemjax. All attributes, all indices of chunks and all but the large numeric
arrays are read, which is every structure that a read of embeddings meets.
"""

from __future__ import annotations

import sys
from typing import Any

import h5py

MOST_READ = 64 * 2**20  # bytes of an array


def walk(group: Any, seen: set[Any]) -> None:
    """Reads what a group holds."""
    read_attributes(group)
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        one = group[name]
        if one.id in seen:
            continue
        seen.add(one.id)
        if isinstance(one, h5py.Group):
            walk(one, seen)
        elif isinstance(one, h5py.Dataset):
            read_attributes(one)
            read_dataset(one)


def read_attributes(node: Any) -> None:
    """Reads all attributes of a group or dataset."""
    for name in node.attrs:
        node.attrs.get(name)


def read_dataset(dataset: Any) -> None:
    """Reads an array, or of a large one the index of its chunks."""
    if dataset.chunks:
        dataset.id.chunk_iter(lambda chunk: None)
    size = (dataset.size or 0) * dataset.dtype.itemsize
    if not dataset.is_virtual and not dataset.external and size <= MOST_READ:
        _ = dataset[()]


def main() -> int:
    """Returns 0 for a file that was read to its end, 1 for one that the library refuses."""
    try:
        with h5py.File(sys.argv[1], "r") as opened:
            walk(opened, set())
    except Exception as error:  # noqa: BLE001 - h5py tells damage by all kinds of exceptions
        sys.stdout.write(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
