"""Draws of a slide in a zarr store of their own, [l n g] float32 in the value space.

    zarr.json             shape, types, and what the draws are of
    c/<i>/0/0             chunks: zstd, with a checksum that is compared when one is read
    SHA256SUMS.json       size and hash of these, once the store is whole

Twenty draws of 200 genes are 16 kB a spot. Chunks go along the spots and none holds rows of two
blocks, so that processes that predict blocks of one slide write it side by side.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from stemjax import errors
from stemjax.data import disk, integrity
from stemjax.eval import predict
from stemjax.foreign import stores

if TYPE_CHECKING:
    import anndata

_CHUNKS = "c/"
CHUNK_BYTES = 2**24
"""Bytes of a chunk at most, before compression, where it holds more than one spot."""


def chunk_rows(block: int, row_bytes: int) -> int:
    """Returns the rows of a chunk: they divide a block, and stay below `CHUNK_BYTES` if they can.

    A block that has no such divisor but small ones, a prime say, is one chunk.
    """
    most = min(block, max(1, CHUNK_BYTES // row_bytes))
    found = next(rows for rows in range(most, 0, -1) if block % rows == 0)
    return found if found >= most // 8 else block


def create(
    path: pathlib.Path, shape: tuple[int, int, int], *, block: int, about: Mapping[str, Any]
) -> None:
    """Makes a store without a draw in it, unless it is there; of several processes one does.

    Args:
      path: the store.
      shape: spots, draws of each, genes.
      block: rows that one process writes at a time, from a multiple of it on.
      about: attributes.
    """
    if path.is_dir():
        return
    import zarr
    from zarr import codecs

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        zarr.create_array(
            store=str(partial),
            shape=shape,
            chunks=(min(shape[0], chunk_rows(block, 4 * shape[1] * shape[2])), *shape[1:]),
            dtype="float32",
            # What was never written cannot be taken for a draw.
            fill_value=float("nan"),
            compressors=codecs.ZstdCodec(level=1, checksum=True),
            dimension_names=("spot", "draw", "gene"),
            attributes=dict(about),
        )
        try:
            os.rename(partial, path)
        except OSError as error:  # another process made it meanwhile
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write(path: pathlib.Path, start: int, draws: Float[np.ndarray, "l n g"]) -> None:
    """Writes the draws of some spots into a store, a chunk at a time.

    Args:
      path: the store.
      start: row of the first of them, a multiple of the block.
      draws: value space.
    """
    import zarr

    array = zarr.open_array(str(path), mode="r+")
    step = array.chunks[0]
    for row in range(0, len(draws), step):
        piece = draws[row : row + step]
        array[start + row : start + row + len(piece)] = piece


def open_draws(path: str | pathlib.Path) -> Any:
    """Returns the zarr array of a store, [l n g]; slices of it are read when they are asked for.

    Sizes of all files and the hash of what says what they are are compared here; that of a chunk by
    its own checksum when it is read, which then raises what zarr raises.

    Raises:
      PredictionError: there is none, it is not whole, or damaged.
    """
    path = pathlib.Path(path)
    if (path / integrity.MANIFEST).exists():  # stores of older versions have none
        wrong = integrity.damage(path, unhashed=_CHUNKS)
        if wrong:
            raise errors.PredictionError(
                f"the draws in {path} are not as they were written",
                found="; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" * (len(wrong) > 3)),
                fix="predict again, or copy the whole folder again",
            )
    return _opened(path)


def _opened(path: pathlib.Path) -> Any:
    """The array of a store that has all its chunks."""
    import zarr

    stores.require_harmless_zarr(path)
    try:
        array = zarr.open_array(str(path), mode="r")
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise errors.PredictionError(
            f"no store of draws at {path}", fix="predict with --draws zarr"
        ) from error
    if array.nchunks_initialized < array.nchunks:
        raise errors.PredictionError(
            f"the draws in {path}",
            expected=f"{array.nchunks} chunks",
            found=str(array.nchunks_initialized),
            fix="predict again, or copy the whole folder again",
        )
    return array


def move_out(result: anndata.AnnData, path: pathlib.Path, *, block: int) -> None:
    """Moves the draws of a whole slide's prediction from its ``obsm`` into a store of their own.

    Args:
      result: the prediction, which then names the store.
      path: of the store; one that is there is replaced.
      block: rows that are written at a time.

    Raises:
      ResourceError: the disk is full.
    """
    draws, about = np.asarray(result.obsm.pop(predict.DRAWS)), result.uns["stemjax"]
    partial = predict.beside(path)
    with disk.writing(path, draws.nbytes, fix=integrity.FREE_SPACE):
        try:
            create(
                partial,
                (draws.shape[0], draws.shape[1], draws.shape[2]),
                block=block,
                about=describe(result),
            )
            write(partial, 0, draws)
            publish(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    about["draws"] = path.name


def describe(result: anndata.AnnData) -> dict[str, Any]:
    """Returns what a store says of the draws of a prediction."""
    about = result.uns["stemjax"]
    return {
        "slide": about["slide"],
        "genes": list(result.var_names),
        "value_space": about["value_space"],
        "seed": about["seed"],
    }


def publish(path: pathlib.Path, target: pathlib.Path) -> None:
    """Lists the hashes of a whole store in it, and moves it to its place; an older one makes room.

    Raises:
      PredictionError: it is not whole.
      ResourceError: the disk is full.
    """
    _opened(path)
    integrity.write_manifest(path)
    integrity.sync_folder(path)
    if target.is_dir():
        old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, old)
        shutil.rmtree(old, ignore_errors=True)
    os.rename(path, target)
