"""HEST-Benchmark's slides: patches, embeddings and counts; its folds are `hest_folds`.

Layout of a task such as ``IDC``, as the HEST library's benchmark reads it (Jaume et al., NeurIPS
2024, arXiv 2406.16192)::

    IDC/splits/train_0.csv test_0.csv ...   sample_id, patches_path, expr_path
    IDC/var_50genes.json                    {"genes": [...]}
    IDC/patches/TENX95.h5                   img uint8 [n 224 224 3], barcode [n 1], coords [n 2]
    IDC/adata/TENX95.h5ad                   X raw counts

and of the embeddings that it writes: ``TENX95.h5`` with embeddings [n c], barcodes [n 1] (plural)
and coords [n 2]. Patches are the spots under tissue, fewer than the h5ad has: all is joined by
barcode. coords are the upper left corners of patches in level-0 pixels.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import h5py
import joblib
import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from stemjax import errors
from stemjax.data import embeddings as embeddings_lib
from stemjax.data.hdf5 import soundness

FOV_UM = 112.0
"""Side of a patch on the tissue: 224 px at .5 um a pixel."""

_CHUNK = 64  # patches read and encoded at once


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """Embedded spots of one slide, in the order of their file.

    Attributes:
      barcodes: of the rows.
      coords: upper left corner of each patch, level-0 pixels; zeros where the file has none.
      embeddings: variant 0 the original patch, [l v c].
      contract: what they are.
      source: the file they come from.
    """

    barcodes: tuple[str, ...]
    coords: Float[np.ndarray, "l 2"]
    embeddings: Float[np.ndarray, "l v c"]
    contract: embeddings_lib.EncoderContract
    source: pathlib.Path


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Expression:
    """Raw counts of one slide, all genes and all spots of its h5ad."""

    counts: scipy.sparse.csr_array
    genes: tuple[str, ...]
    barcodes: tuple[str, ...]
    source: pathlib.Path

    def rows(self, barcodes: Sequence[str]) -> Int[np.ndarray, " l"]:
        """The row of each barcode.

        Raises:
          SlideError: the h5ad lacks some, or has one of them twice.
        """
        place = _places(self.barcodes, barcodes, f"{self.source}: barcodes")
        missing = [name for name in barcodes if name not in place]
        if missing:
            raise errors.SlideError(
                f"{self.source} lacks {len(missing)} of {len(barcodes)} embedded spots",
                expected="every barcode of the patches among those of the h5ad",
                found=f"none called {', '.join(missing[:3])}; names such as "
                f"{', '.join(self.barcodes[:3])}",
                fix="Take patches and h5ad of one release of the benchmark",
            )
        return np.array([place[name] for name in barcodes], np.int64)

    def columns(self, genes: Sequence[str]) -> Int[np.ndarray, " g"]:
        """The column of each gene.

        Raises:
          GenePanelError: the h5ad lacks some.
          SlideError: it has one of them twice.
        """
        place = _places(self.genes, genes, f"{self.source}: genes")
        missing = [name for name in genes if name not in place]
        if missing:
            raise errors.GenePanelError(
                f"{self.source} lacks {len(missing)} of the task's {len(genes)} genes",
                found=f"no {', '.join(missing[:5])}",
                fix="Take the h5ad and the gene list of one release of the benchmark",
            )
        return np.array([place[name] for name in genes], np.int64)


def read_embeddings(path: str | os.PathLike[str], *, encoder: str) -> Embedded:
    """Embeddings from an h5 file as HEST's benchmark writes it; one variant.

    Args:
      path: the file.
      encoder: name that the contract gets; the file has none.

    Raises:
      EncoderMismatchError: the file is missing, damaged, lacks a key, or its parts do not fit.
    """
    path = pathlib.Path(path)
    found = _read_h5(path, ("embeddings", "barcodes"), errors.EncoderMismatchError)
    values, barcodes = np.asarray(found["embeddings"]), _text(found["barcodes"])
    coords = np.asarray(found.get("coords", np.zeros((len(barcodes), 2))), np.float64)
    fits = values.ndim == 2 and len(values) == len(barcodes) > 0 and values.shape[1] > 0
    if not fits or coords.shape != (len(values), 2) or not np.isfinite(values).all():
        raise errors.EncoderMismatchError(
            f"{path} cannot be used",
            expected="finite embeddings (n, c), barcodes (n, 1), coords (n, 2)",
            found=f"embeddings {values.shape} with {int((~np.isfinite(values)).sum())} not finite, "
            f"barcodes {np.shape(found['barcodes'])}, coords {coords.shape}",
            fix="Embed the slide again",
        )
    contract = embeddings_lib.EncoderContract(
        name=encoder,
        width=values.shape[1],
        input_px=224,
        fov_um=FOV_UM,
        resize="as embedded",
        mean=(),
        std=(),
        pooling="as embedded",
        projection="as embedded",
        source="HEST-Benchmark embeddings",
        revision="as embedded",
    )
    return Embedded(
        barcodes=barcodes,
        coords=coords,
        embeddings=values[:, None],
        contract=contract,
        source=path,
    )


def embed_patches(
    path: str | os.PathLike[str],
    encoder: embeddings_lib.Encoder,
    *,
    workers: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Embedded:
    """Embeddings of a patch file by an encoder of ours, all its variants.

    The patches are 112 um at .5 um a pixel, whatever the encoder's own rule for slides is: the
    contract says so.

    Raises:
      ImageError: the file is missing, damaged, lacks a key, or its parts do not fit.
    """
    path = pathlib.Path(path)
    keys, px = ("img", "barcode", "coords"), encoder.contract.input_px
    found = _read_h5(path, keys, errors.ImageError, shape_only="img")
    barcodes, coords = _text(found["barcode"]), np.asarray(found["coords"], np.float64)
    shape, dtype = found["img"]
    n = len(barcodes)
    if shape != (n, px, px, 3) or dtype != np.uint8 or coords.shape != (n, 2) or not n:
        raise errors.ImageError(
            f"{path} cannot be used",
            expected=f"img uint8 (n, {px}, {px}, 3), barcode (n, 1), coords (n, 2)",
            found=f"img {dtype} {shape}, {n} barcodes, coords {coords.shape}",
            fix="Take the patch files of the benchmark's current release",
        )
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator")
    chunks = _any(parallel(joblib.delayed(encoder.encode)(chunk) for chunk in _chunks(path, n)))
    values = np.empty((n, embeddings_lib.N_VARIANTS, encoder.contract.width), np.float32)
    done = 0
    for chunk in chunks:
        values[done : done + len(chunk)] = chunk
        done += len(chunk)
        if progress is not None:
            progress(done, n, f"embedding the patches of {path.stem}")
    return Embedded(
        barcodes=barcodes,
        coords=coords,
        embeddings=values,
        contract=dataclasses.replace(encoder.contract, fov_um=FOV_UM),
        source=path,
    )


def read_expression(path: str | os.PathLike[str]) -> Expression:
    """Raw counts of an h5ad; positions are not needed.

    Raises:
      SlideError: the file is missing or damaged, or X holds something other than raw counts.
    """
    from anndata.io import read_elem  # imports for seconds, so only here

    path, read = pathlib.Path(path), _any(read_elem)
    _require_file(path, errors.SlideError)
    try:
        with h5py.File(path) as file:
            opened = _any(file)
            counts = scipy.sparse.csr_array(read(opened["X"]))
            obs, var = read(opened["obs"]), read(opened["var"])
    except Exception as error:  # h5py and anndata tell damage by all kinds of exceptions
        raise errors.SlideError(
            f"{path} is damaged, incomplete or no AnnData file",
            found=f"{type(error).__name__}: {error}",
            fix="Copy or download the file again",
        ) from error
    values = counts.data
    bad = ~np.isfinite(values) | (values != np.floor(values)) | (values < 0)
    if bad.any() or counts.shape != (len(obs), len(var)):
        raise errors.SlideError(
            f"{path}: X cannot be used",
            expected=f"raw counts of {len(obs)} spots and {len(var)} genes",
            found=f"shape {counts.shape}, {int(bad.sum()):,} values that are no counts"
            + (f" such as {values[bad][0]}" if bad.any() else ""),
            fix="Store the raw counts in X",
        )
    return Expression(
        counts=counts,
        genes=tuple(str(name) for name in var.index),
        barcodes=tuple(str(name) for name in obs.index),
        source=path,
    )


def _places(have: Sequence[str], wanted: Sequence[str], what: str) -> dict[str, int]:
    """Row or column of each name there is; refuses a wanted one that is there twice."""
    place = {name: i for i, name in enumerate(have)}
    if len(place) < len(have):
        names, times = np.unique(np.asarray(have, str), return_counts=True)
        twice = sorted(set(names[times > 1]) & set(wanted))
        if twice:
            raise errors.SlideError(f"{what} are not unique", found=f"{', '.join(twice[:3])} twice")
    if len(set(wanted)) < len(wanted):
        raise errors.SlideError(f"{what} are asked for more than once")
    return place


def _any(value: Any) -> Any:
    """The value without a type: h5py and anndata describe theirs wrongly to a checker."""
    return value


def _require_file(path: pathlib.Path, kind: type[errors.StemjaxError]) -> None:
    if not path.is_file():
        near = sorted(p.stem for p in path.parent.glob(f"*{path.suffix}"))
        raise kind(
            f"there is no {path}",
            found=f"in its folder: {', '.join(near[:10]) or 'nothing of the kind'}",
            fix="Download the file, or correct the path",
        )
    soundness.require_sound(path, kind)


def _read_h5(
    path: pathlib.Path,
    keys: Sequence[str],
    kind: type[errors.StemjaxError],
    *,
    shape_only: str | None = None,
) -> dict[str, Any]:
    """The arrays of an h5 file; of ``shape_only`` only (shape, dtype). Lacking keys are named."""
    _require_file(path, kind)
    try:
        with h5py.File(path) as file:
            opened = _any(file)
            missing = [key for key in keys if key not in opened]
            if missing:
                raise kind(
                    f"{path} lacks {', '.join(missing)}",
                    expected=f"the keys {', '.join(keys)}",
                    found=", ".join(sorted(opened)) or "none",
                    fix="Give files as the HEST library's benchmark writes them",
                )
            return {
                key: (opened[key].shape, opened[key].dtype) if key == shape_only else opened[key][:]
                for key in opened
                if key in (*keys, "coords")
            }
    except OSError as error:
        raise kind(
            f"{path} is damaged or no HDF5 file", found=str(error), fix="Copy the file again"
        ) from error


def _text(values: np.ndarray) -> tuple[str, ...]:
    """Barcodes of shape (n,) or (n, 1), bytes or text."""
    flat = np.asarray(values).reshape(-1)
    return tuple(v.decode() if isinstance(v, bytes) else str(v) for v in flat)


def _chunks(path: pathlib.Path, n: int) -> Iterator[np.ndarray]:
    with h5py.File(path) as file:
        images = _any(file)["img"]
        for start in range(0, n, _CHUNK):
            yield images[start : start + _CHUNK]
