"""NumPy's files: npz with features and coordinates or barcodes, npy with barcodes beside it."""

from __future__ import annotations

import csv
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from stemjax.data.embedding_files import file as file_lib
from stemjax.data.embedding_files import hdf5
from stemjax.data.embedding_files.file import COPY_AGAIN, EmbeddingFile, number, refused, shown

NPY_MAGIC = b"\x93NUMPY"

_VALUES = ("features", "embeddings")
_SIZES = ("patch_size_level0", "patch_px")


def read_npz(path: pathlib.Path, key: str | None) -> EmbeddingFile:
    """Embeddings of an npz: ``features`` or ``embeddings``, and ``coords`` or ``barcodes``.

    ``coords`` are upper left corners (x, y) in level-0 pixels. ``patch_size_level0`` (a number),
    ``mpp`` (a number) and ``encoder`` (text) are read where they are there.

    Raises:
      EncoderMismatchError: neither is there, arrays hold objects, or parts do not fit.
    """
    shapes = _headers(path)
    name = key if key in shapes else next((one for one in _VALUES if one in shapes), None)
    if name is None or (key is not None and key not in shapes):
        raise refused(
            path,
            f"there is no array {shown(key) if key else ' or '.join(_VALUES)}",
            found=", ".join(map(shown, shapes)) or "no array",
            fix="Name the array of the embeddings: key=...",
        )
    if not {"coords", "barcodes"} & set(shapes):
        raise refused(
            path,
            "nothing says which spots the embeddings belong to",
            expected="an array coords (n, 2), or barcodes (n,)",
            found=", ".join(map(shown, shapes)),
            fix="Rows are never joined by their order: save one of them with the features",
        )
    shape, dtype = shapes[name]
    file_lib.require_floats(path, f"the array {shown(name)!r}", dtype)
    said = {one: _scalar(path, one) for one in (*_SIZES, "mpp", "encoder") if one in shapes}
    side = next((number(path, said, one) for one in _SIZES if one in said), None)
    return EmbeddingFile(
        path=path,
        layout="npz",
        source="npz file",
        shape=_rows(path, shape),
        load=lambda start, stop: _blocks(_array(path, name)[start:stop]),
        barcodes=_names(path) if "barcodes" in shapes else None,
        xy=hdf5.coordinates(path, "coords", _array(path, "coords")) if "coords" in shapes else None,
        patch_px=side,
        mpp=number(path, said, "mpp"),
        stated={"name": str(said["encoder"])} if said.get("encoder") else {},
        parts=(path,),
        block=file_lib.MOST_ROWS,
    )


def read_npy(path: pathlib.Path) -> EmbeddingFile:
    """Embeddings of an npy with the spots' barcodes beside it, one a line.

    ``A1.npy`` goes with ``A1.csv``, ``A1.txt``, ``A1_barcodes.csv`` or ``A1_barcodes.txt``; of a
    table the column ``barcode`` is taken, or the first.

    Raises:
      EncoderMismatchError: no barcodes lie beside it, it holds objects, or they do not fit.
    """
    names = [f"{path.stem}{end}" for end in (".csv", ".txt", "_barcodes.csv", "_barcodes.txt")]
    beside = next((path.with_name(one) for one in names if path.with_name(one).is_file()), None)
    if beside is None:
        raise refused(
            path,
            "nothing says which spots the rows belong to",
            expected=f"a list of barcodes beside it: {', '.join(names)}",
            found="none of them",
            fix="Write the barcodes, one a line, or save features and barcodes as npz",
        )
    with path.open("rb") as handle:
        shape, dtype = _header(path, path.name, handle)
        start_of_data = handle.tell()
    held = path.stat().st_size - start_of_data
    file_lib.require_floats(path, "the array", dtype)
    file_lib.require_claim(path, "the array", shape, dtype.itemsize, held, packed=False)
    return EmbeddingFile(
        path=path,
        layout="npy",
        source="npy file",
        shape=_rows(path, shape),
        load=lambda start, stop: _blocks(
            np.array(np.load(path, mmap_mode="r", allow_pickle=False)[start:stop])
        ),
        barcodes=_listed(beside),
        notes=(f"barcodes are those of {beside.name}",),
        parts=(path, beside),
    )


def _rows(path: pathlib.Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) not in (2, 3):
        raise refused(
            path,
            "it holds no table of embeddings",
            expected="shape (n, d), or (n, variants, d)",
            found=str(shape),
            fix="One-vector features of a whole slide cannot be used",
        )
    return (shape[0], 1 if len(shape) == 2 else shape[1], shape[-1])


def _blocks(values: np.ndarray) -> np.ndarray:
    return values[:, None] if values.ndim == 2 else values


def _headers(path: pathlib.Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of each array of an npz, held against the archive; nothing is unpacked."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as handle:
                shape, dtype = _header(path, entry.filename, handle)
            what = f"the array {shown(entry.filename)!r}"
            file_lib.require_claim(
                path, what, (entry.file_size,), 1, entry.compress_size, packed=True
            )
            file_lib.require_claim(path, what, shape, dtype.itemsize, entry.file_size, packed=False)
            if entry.compress_size > path.stat().st_size:
                raise refused(path, f"{what} reaches beyond the file", fix=COPY_AGAIN)
            found[entry.filename.removesuffix(".npy")] = (shape, dtype)
    return found


def _header(path: pathlib.Path, name: str, handle: Any) -> tuple[tuple[int, ...], np.dtype]:
    reading: Mapping[tuple[int, int], Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(handle)
    if version not in reading:
        raise refused(path, f"{shown(name)!r} is of an unknown version", found=str(version))
    shape, _, dtype = reading[version](handle)
    if dtype.hasobject:
        raise refused(
            path,
            f"{shown(name)!r} holds Python objects, which only a pickle can read",
            expected="plain numbers or text",
            fix="Save it again: numpy.asarray(values, dtype=...) of str or float32",
        )
    return shape, dtype


def _array(path: pathlib.Path, name: str) -> Any:
    with np.load(path, allow_pickle=False) as archive:
        return archive[name]


def _scalar(path: pathlib.Path, name: str) -> Any:
    value = _array(path, name)
    if value.size != 1:
        raise refused(path, f"{shown(name)!r} is not one value", found=str(value.shape))
    one = value.reshape(-1)[0].item()
    return one.decode(errors="replace") if isinstance(one, bytes) else one


def _names(path: pathlib.Path) -> tuple[str, ...]:
    values = _array(path, "barcodes")
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] != 1):
        raise refused(path, "barcodes are no list", found=str(values.shape))
    return hdf5.as_text(path, "barcodes", values)


def _listed(path: pathlib.Path) -> tuple[str, ...]:
    """Barcodes of a text file, one a line, or of a table with a column ``barcode``."""
    rows = [row for row in csv.reader(path.read_text("utf-8").splitlines()) if row]
    column = 0
    if rows and "barcode" in (head := [one.strip().lower() for one in rows[0]]):
        column, rows = head.index("barcode"), rows[1:]
    if any(len(row) <= column for row in rows):
        raise refused(path, "rows of the table lack a barcode", fix=COPY_AGAIN)
    return tuple(row[column].strip() for row in rows)
