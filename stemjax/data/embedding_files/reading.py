"""Which layout a file has, by what it holds; its name decides nothing."""

from __future__ import annotations

import os
import pathlib
import zipfile

from stemjax import errors
from stemjax.data.embedding_files import hdf5, own
from stemjax.data.embedding_files.file import Anchor, EmbeddingFile, naming, refused
from stemjax.data.embedding_files.layouts import arrays, h5ad, patch_h5, stem_pt, zarr_tables
from stemjax.data.hdf5 import soundness

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_KINDS = (
    "h5 of TRIDENT, HEST-Benchmark, CLAM, stemjax or like them; h5ad; LazySlide's zarr; npz; npy "
    "with barcodes; Stem's .pt"
)

_SINGLE = ("stemjax", "npy", "stem")


def read(
    path: str | os.PathLike[str], *, key: str | None = None, anchor: Anchor | None = None
) -> EmbeddingFile:
    """What an embedding file says; its numbers stay on disk until `EmbeddingFile.values`.

    Args:
      path: the file, or the folder of a zarr store.
      key: which embeddings, where a file holds several: a dataset, a table or a name in ``obsm``.
      anchor: what the coordinates are, where the file's layout says otherwise or nothing.

    Raises:
      EncoderMismatchError: the file is missing, unfinished, damaged, a pickle, of an unknown
        layout, or its parts do not fit together.
      TorchFileError: a PyTorch file is damaged or holds more than tensors.
    """
    path = pathlib.Path(path)
    _require_finished(path)
    with naming(path):
        found = _read(path, key)
        if key is not None and found.layout in _SINGLE:
            raise refused(
                path,
                f"key={key!r} names embeddings in a file that holds one",
                expected="no key for a file of this layout",
                found=found.layout,
                fix="Leave key away",
            )
    if anchor is None or found.xy is None:
        return found
    return found.taken_as(anchor)


def _read(path: pathlib.Path, key: str | None) -> EmbeddingFile:
    if path.is_dir():
        if zarr_tables.is_one(path):
            return zarr_tables.read(path, key)
        raise refused(
            path,
            "a folder that is no zarr store",
            expected=_KINDS,
            fix="Give one file, or the folder to `open_embeddings`",
        )
    with path.open("rb") as handle:
        start = handle.read(8)
    if start == hdf5.MAGIC:
        soundness.require_sound(path, errors.EncoderMismatchError)
        with hdf5.open_file(path) as opened:
            if own.is_one(opened):
                return own.read(path, opened)
            if h5ad.is_one(opened):
                return h5ad.read(path, opened, key)
            return patch_h5.read(path, opened, key)
    if start.startswith(arrays.NPY_MAGIC):
        return arrays.read_npy(path)
    if start.startswith(b"PK\x03\x04"):
        # torch and numpy both write zip archives; torch's holds a pickle's program.
        return stem_pt.read(path) if _is_torch(path) else arrays.read_npz(path, key)
    if start.startswith(_PICKLES):
        raise refused(
            path,
            "a pickle, which runs code when it is opened: it was not opened",
            expected=_KINDS,
            fix="Save plain arrays: numpy.savez(path, features=..., barcodes=...)",
        )
    raise refused(
        path,
        "no embedding file" if start else "an empty file",
        expected=_KINDS,
        found=f"it begins with {start!r}" if start else None,
        fix="Give a file of embeddings",
    )


def _is_torch(path: pathlib.Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


def _require_finished(path: pathlib.Path) -> None:
    lock = path.with_name(f"{path.name}.lock")
    if lock.exists():
        raise refused(
            path,
            f"it is unfinished: {lock.name} lies beside it",
            fix="Wait for the tool that writes it. If none is running, embed the slide again and "
            "remove the lock",
        )
    if not path.exists():
        folder = path.parent
        near = sorted(one.name for one in folder.iterdir())[:8] if folder.is_dir() else []
        raise refused(
            path,
            "there is no such file",
            found=f"beside it: {', '.join(near) or 'nothing'}",
            fix="Correct the path",
        )
