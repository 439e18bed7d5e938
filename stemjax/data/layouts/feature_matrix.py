"""Feature-barcode matrices of 10x Genomics: what was counted at which barcode.

Space Ranger writes the same matrix twice into its ``outs``::

    filtered_feature_bc_matrix.h5   group "matrix": data, indices, indptr (features x barcodes by
                                    column), shape, barcodes, features/{id, name, feature_type}
    filtered_feature_bc_matrix/     matrix.mtx.gz, barcodes.tsv.gz, features.tsv.gz

and 10x's own downloads put the library's name and ``_`` before them. The first is read, the second
where it is the only one. Only genes are kept: antibodies and other features are not expression.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from typing import Any, cast

import h5py
import numpy as np
import pandas as pd
import scipy.sparse

from stemjax import errors
from stemjax.data import gene_names, raw_counts
from stemjax.data.hdf5 import soundness
from stemjax.foreign import packed_text

_NAME = "filtered_feature_bc_matrix"
_GENES = "Gene Expression"
_FIELDS = ("data", "indices", "indptr", "shape", "barcodes")
_FEATURE_FIELDS = ("features/id", "features/name", "features/feature_type")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureMatrix:
    """The genes of a feature-barcode matrix.

    Attributes:
      counts: raw counts [l g], each a whole number from 0 up.
      barcodes: names of the rows.
      genes: symbols, each once.
      gene_ids: the ids of each, joined by ``|`` where counts of several were added up.
      paths: the files read.
      notes: what was left out or added up, in words.
    """

    counts: scipy.sparse.csr_array
    barcodes: tuple[str, ...]
    genes: tuple[str, ...]
    gene_ids: tuple[str, ...]
    paths: tuple[pathlib.Path, ...]
    notes: tuple[str, ...]


def find_matrix(folder: pathlib.Path) -> pathlib.Path:
    """The filtered matrix in a folder: the HDF5 file, else the folder of text files.

    Raises:
      SlideError: there is none, or more than one.
    """
    found = sorted(folder.glob(f"*{_NAME}.h5"))
    found = found or sorted(path for path in folder.glob(f"*{_NAME}") if path.is_dir())
    if len(found) == 1:
        return found[0]
    beside = found or sorted(folder.glob("*.h5"))
    raise errors.SlideError(
        f"{folder}: which counts" if found else f"there are no counts in {folder}",
        expected=f"one {_NAME}.h5, with or without a library's name before it",
        found=", ".join(path.name for path in beside) or "no .h5 file",
        fix="Keep one slide a folder"
        if found
        else "Copy Space Ranger's filtered matrix there (the raw one has all barcodes, not spots)",
    )


def read_matrix(path: pathlib.Path, *, duplicates: gene_names.Duplicates = "sum") -> FeatureMatrix:
    """The genes of a matrix that `find_matrix` found.

    A few Ensembl genes share their symbol with another, such as TBCE in 10x's human references.
    Their counts are added up: so the sum of all counts stays, the symbol means the same whatever
    the order of the features, and a panel that names it finds it.

    Args:
      path: the file or folder.
      duplicates: what becomes of them, see `stemjax.data.gene_names.add_up`.

    Raises:
      SlideError: the file is damaged or no such matrix, holds what is no count, or has no genes;
        symbols are shared and ``duplicates`` is "error".
    """
    counts, barcodes, features, paths = _read_h5(path) if path.is_file() else _read_text(path)
    ids, symbols, types = features
    _require_raw(path, counts, barcodes, ids)
    genes = np.flatnonzero(types == _GENES)
    others = collections.Counter(kind for kind in types.tolist() if kind != _GENES)
    if not len(genes):
        raise errors.SlideError(
            f"{path} has no genes",
            expected=f"features of type {_GENES}",
            found=", ".join(f"{n} of type {kind}" for kind, n in others.items()) or "no features",
            fix="Give the matrix of the gene expression library",
        )
    columns = gene_names.add_up(
        scipy.sparse.csr_array(counts[:, genes]),
        symbols[genes].tolist(),
        ids[genes].tolist(),
        duplicates=duplicates,
        where=str(path),
    )
    left = tuple(
        f"left out {n:,} {'feature' if n == 1 else 'features'} of type {kind}"
        for kind, n in others.items()
    )
    return FeatureMatrix(
        counts=columns.counts,
        barcodes=barcodes,
        genes=columns.genes,
        gene_ids=columns.gene_ids,
        paths=paths,
        notes=left + columns.notes,
    )


type _Raw = tuple[
    scipy.sparse.csr_array, tuple[str, ...], tuple[np.ndarray, ...], tuple[pathlib.Path, ...]
]
"""Counts [barcodes features], barcodes, (ids, names, types) of the features, files read."""


def _read_h5(path: pathlib.Path) -> _Raw:
    soundness.require_sound(path)
    try:
        with h5py.File(path) as opened:
            file: Any = opened
            wanted = [f"matrix/{field}" for field in (*_FIELDS, *_FEATURE_FIELDS)]
            if missing := [name for name in wanted if name not in file]:
                raise errors.SlideError(
                    f"{path} is no feature-barcode matrix",
                    expected=f"{', '.join(missing)} in it",
                    found=", ".join(sorted(file.get("matrix", file))) or "nothing",
                    fix=f"Give Space Ranger's {_NAME}.h5, from version 1 on",
                )
            data, indices, indptr, shape = (file[f"matrix/{field}"][:] for field in _FIELDS[:4])
            names = [f"matrix/{field}" for field in ("barcodes", *_FEATURE_FIELDS)]
            barcodes, *features = (file[name].asstr()[:] for name in names)
        # Columns of features x barcodes are rows of barcodes x features.
        size = (int(shape[1]), int(shape[0]))
        counts = scipy.sparse.csr_array((data, indices, indptr), shape=size)
        if indptr[-1] != len(data):
            raise ValueError(f"{len(data)} counts, of which indptr places {indptr[-1]}")
        return _checked(counts, barcodes, features, (path,))
    except errors.StemjaxError:
        raise
    except Exception as error:  # h5py tells damage by all kinds of exceptions
        raise _damaged(path, error) from error


def _read_text(folder: pathlib.Path) -> _Raw:
    paths = tuple(_text_file(folder, n) for n in ("matrix.mtx", "barcodes.tsv", "features.tsv"))
    try:
        # Matrix Market: comments, then sizes, then a line for each count: feature, barcode, count.
        with packed_text.open_text(paths[0], times=packed_text.LIST_TIMES) as file:
            table = pd.read_csv(file, sep=" ", comment="%", header=None)
        n_features, n_barcodes, n_counts = (int(n) for n in table.iloc[0])
        if len(table) != n_counts + 1:
            raise ValueError(f"{len(table) - 1} of {n_counts} counts")
        barcodes, rows = (_lines(path) for path in paths[1:])
        if (len(rows), len(barcodes)) != (n_features, n_barcodes):  # before memory is taken
            raise ValueError(
                f"a matrix of {n_features} features x {n_barcodes} barcodes, but {len(rows)} "
                f"features and {len(barcodes)} barcodes"
            )
        feature, barcode, value = (table[column].to_numpy()[1:] for column in range(3))
        entries = (value, (barcode - 1, feature - 1))
        counts = scipy.sparse.csr_array(
            scipy.sparse.coo_array(entries, shape=(n_barcodes, n_features))
        )
        features = [np.array([row.split("\t")[i] for row in rows], object) for i in range(3)]
        return _checked(counts, np.array(barcodes, object), features, paths)
    except Exception as error:  # damaged gzip, text and numbers: a kind of exception each
        raise _damaged(folder, error) from error


def _text_file(folder: pathlib.Path, name: str) -> pathlib.Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise errors.SlideError(
        f"{folder} is incomplete",
        expected=f"{name}.gz",
        found=", ".join(sorted(path.name for path in folder.iterdir())) or "an empty folder",
        fix=f"Copy the file there, or {_NAME}.h5 beside the folder",
    )


def _lines(path: pathlib.Path) -> list[str]:
    with packed_text.open_text(path, times=packed_text.LIST_TIMES) as file:
        return file.read().splitlines()


def _checked(
    counts: scipy.sparse.csr_array,
    barcodes: np.ndarray,
    features: list[np.ndarray],
    paths: tuple[pathlib.Path, ...],
) -> _Raw:
    """The parts, once they are known to fit together; a ValueError where they do not."""
    rows, columns = cast(tuple[int, int], counts.shape)
    sizes = [len(barcodes), *map(len, features)]
    if sizes != [rows, columns, columns, columns]:
        raise ValueError(
            f"a matrix of {columns} features x {rows} barcodes, but {sizes[0]} barcodes and "
            f"{sizes[1:]} ids, names and types of features"
        )
    counts.check_format(full_check=True)  # an index beyond the table would be read past its end
    return counts, tuple(map(str, barcodes)), tuple(features), paths


def _require_raw(
    path: pathlib.Path,
    counts: scipy.sparse.csr_array,
    barcodes: tuple[str, ...],
    ids: np.ndarray,
) -> None:
    """Refuses what is no count, before adding up could hide it."""
    if counts.data.dtype.kind not in "iufb":
        raise _damaged(path, ValueError(f"counts of type {counts.data.dtype}"))
    wrong = raw_counts.refusal(
        counts, where=str(path), spots=barcodes, genes=ids.tolist(), column="feature"
    )
    if wrong is not None:
        raise wrong


def _damaged(path: pathlib.Path, error: Exception) -> errors.SlideError:
    return errors.SlideError(
        f"{path} is damaged or no feature-barcode matrix",
        found=f"{type(error).__name__}: {error}",
        fix="Copy or download it again",
    )
