"""A slide's prediction from parts: each a block of its spots, put together without holding them.

    OUT/.parts/<slide>/<request>-<block>/000000/part.h5ad  SHA256SUMS.json
                                         draws.zarr        draws of all parts, where asked for

A part is an .h5ad of its spots, in a folder that is whole or absent and tells damage by hash.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from stemjax import errors
from stemjax.data import disk, integrity, sealing
from stemjax.eval import h5ad

if TYPE_CHECKING:
    import anndata
    import pandas as pd

FILE = "part.h5ad"
SECONDS = "part_seconds"

_COPIED_ROWS = 4096
_CHUNK_BYTES = 2**20
# HDF5's cache of a dataset's chunks, which it keeps from one write to the next.
_CACHE_BYTES = 2**22


def _folder(where: pathlib.Path, number: int) -> pathlib.Path:
    return where / f"{number:06d}"


def is_there(where: pathlib.Path, number: int) -> bool:
    """Whether a part is there; whether it is sound is asked when it is used."""
    return _folder(where, number).is_dir()


def write(where: pathlib.Path, number: int, result: anndata.AnnData, seconds: float) -> None:
    """Writes a part, whole or not at all.

    Args:
      where: folder of the parts.
      number: of the block.
      result: its prediction. What is said of the slide as a whole stays in the first part alone.
      seconds: that it took.
    """
    if number:
        result.uns = {}
    result.uns[SECONDS] = seconds
    needed = h5ad.unpacked_bytes(result)
    with integrity.published_folder(_folder(where, number), needed=needed) as folder:
        with disk.opened_for_hdf5(folder / FILE) as opened, h5py.File(opened, "w") as file:
            h5ad.write_into(file, result, compression=None)
        integrity.write_manifest(folder)


def damaged(where: pathlib.Path, count: int) -> list[int]:
    """Returns the numbers of the parts whose files are not as they were written."""
    return [number for number in range(count) if integrity.damage(_folder(where, number))]


@contextlib.contextmanager
def claimed(where: pathlib.Path) -> Iterator[bool]:
    """Whether no other live process has claimed the folder; the claim ends with the block.

    It is a lock of the kernel's, which goes with the process that holds it. On file systems without
    such locks everybody's claim holds: two processes then do the same work, and either's result is
    right.
    """
    try:
        lock = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # another process finished the slide and cleared it away
        yield False
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
    finally:
        os.close(lock)


def assemble(
    where: pathlib.Path,
    count: int,
    path: pathlib.Path,
    *,
    spots: int,
    labels: Mapping[str, pd.Categorical],
    about: Mapping[str, Any],
) -> None:
    """Writes the .h5ad of all parts, some thousands of rows at a time, and seals it.

    anndata writes the first spot alone, which settles every slot, dtype and attribute; then the
    arrays of spots are made anew with room for all, and filled.

    Args:
      where: folder of the parts.
      count: of parts.
      path: the file, which is not whole before this returns.
      spots: of all parts.
      labels: columns for ``obs``, of all spots.
      about: further entries of ``uns["stemjax"]``.

    Raises:
      PredictionError: the parts have another number of spots.
    """
    import anndata

    files = [_folder(where, number) / FILE for number in range(count)]
    seconds = sum(_seconds(file) for file in files)
    first = anndata.read_h5ad(files[0])[:1].copy()
    del first.uns[SECONDS]
    first.uns["stemjax"] |= {**about, "seconds": seconds}
    for name, column in labels.items():
        first.obs[name] = column[:1]
    with (
        disk.opened_for_hdf5(path) as opened,
        h5py.File(opened, "w", rdcc_nbytes=_CACHE_BYTES) as file,
    ):
        h5ad.write_into(file, first, compression="gzip")
        names = list(_arrays_of_spots(file))
        codes = {f"obs/{name}/codes": np.asarray(column.codes) for name, column in labels.items()}
        for name in names:
            _grow(file, name, spots)
        for name, values in codes.items():
            _array(file, name)[:] = values
        start = 0
        for part in files:
            with h5py.File(part, "r") as read:
                start += _copy(read, file, [n for n in names if n not in codes], start)
    if start != spots:
        raise errors.PredictionError(
            f"the parts in {where}", expected=f"{spots} spots", found=str(start),
            fix="remove the folder and predict again",
        )  # fmt: skip
    sealing.seal(path)


def _seconds(part: pathlib.Path) -> float:
    with h5py.File(part, "r") as file:
        return float(_array(file, f"uns/{SECONDS}")[()])


def _array(file: h5py.File, name: str) -> Any:
    return file[name]


def _arrays_of_spots(file: h5py.File) -> Iterator[str]:
    """Yields the paths of the arrays that have a row a spot."""
    yield "X"
    for group in ("layers", "obsm"):
        yield from (f"{group}/{name}" for name in _array(file, group))
    for name, found in _array(file, "obs").items():
        if isinstance(found, h5py.Dataset):
            yield f"obs/{name}"
        elif "codes" in found:  # of a categorical column, whose categories are not one a spot
            yield f"obs/{name}/codes"
        else:  # strings that may be missing: values and a mask
            yield from (f"obs/{name}/{each}" for each in found)


def _grow(file: h5py.File, name: str, spots: int) -> None:
    """Replaces an array of one spot by one with room for all."""
    old = _array(file, name)
    shape, dtype, attributes = (spots, *old.shape[1:]), old.dtype, dict(old.attrs)
    del file[name]
    row = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    rows = 1 << max(0, (_CHUNK_BYTES // max(row, 1)).bit_length() - 1)
    made = file.create_dataset(
        name, shape, dtype, chunks=(min(rows, spots), *shape[1:]), compression="gzip"
    )
    made.attrs.update(attributes)


def _copy(read: h5py.File, file: h5py.File, names: list[str], start: int) -> int:
    """Copies a part's rows from row ``start`` on, and returns how many they are."""
    count = int(_array(read, "X").shape[0])
    for name in names:
        source, target = _array(read, name), _array(file, name)
        for row in range(0, count, _COPIED_ROWS):
            stop = min(row + _COPIED_ROWS, count)
            target[start + row : start + stop] = source[row:stop]
    return count
