"""AnnData files: embeddings of spots in ``obsm["X_..."]``, joined by ``obs_names``.

Those that stemjax put there have their contract in ``uns["stemjax_encoders"]``, and their flips and
turns, if there are any, in ``obsm["X_..._variants"]``.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import h5py
import numpy as np

from stemjax import errors
from stemjax.data import embeddings
from stemjax.data.embedding_files import file as file_lib
from stemjax.data.embedding_files import hdf5
from stemjax.data.embedding_files.file import EmbeddingFile, refused, shown

NOT_ENCODERS = ("X_pca", "X_umap", "X_tsne", "X_draw_graph_fa", "X_diffmap", "X_scVI", "X_scANVI")
"""Reductions of expression, that stand beside embeddings of images under like names."""

CONTRACTS, VARIANTS = "stemjax_encoders", "_variants"


def is_one(opened: Any) -> bool:
    """Whether an opened h5 file is an AnnData file."""
    return opened.attrs.get("encoding-type") == "anndata" or {"obs", "var"} <= set(opened)


def read(path: pathlib.Path, opened: Any, key: str | None) -> EmbeddingFile:
    """The embeddings of an opened h5ad.

    Args:
      path: of the file.
      opened: the root group.
      key: the name in ``obsm``, with ``X_`` or without; needed where there are several.

    Raises:
      EncoderMismatchError: no embedding is there, or several and none is named.
    """
    groups = hdf5.members(path, opened)
    if not isinstance(groups.get("obs"), h5py.Group):
        raise refused(path, "the AnnData file has no table of spots", expected="a group 'obs'")
    slots = groups.get("obsm")
    arrays = hdf5.datasets(path, slots) if isinstance(slots, h5py.Group) else {}
    name = _choose(path, arrays, key)
    values = arrays[name]
    file_lib.require_floats(path, f"obsm[{shown(name)!r}]", values.dtype)
    if values.ndim != 2:
        raise refused(
            path,
            f"obsm[{shown(name)!r}] is no table of embeddings",
            expected="shape (spots, features)",
            found=str(values.shape),
        )
    contract = _contract(path, groups.get("uns"), name)
    more = arrays.get(f"{name}{VARIANTS}") if contract is not None else None
    if more is not None and (more.ndim != 3 or more.shape[::2] != values.shape):
        raise refused(
            path,
            f"the flips and turns of obsm[{shown(name)!r}] do not fit it",
            expected=f"({values.shape[0]}, variants, {values.shape[1]})",
            found=str(more.shape),
        )
    return EmbeddingFile(
        path=path,
        layout="h5ad",
        source="anndata" if contract is None else contract.source,
        shape=(values.shape[0], 1 if more is None else more.shape[1], values.shape[1]),
        load=hdf5.loader(path, f"obsm/{name}{'' if more is None else VARIANTS}"),
        barcodes=_names(path, groups["obs"]),
        xy=hdf5.coordinates(path, "spatial", arrays["spatial"]) if "spatial" in arrays else None,
        anchor="centre",
        fov_um=None if contract is None else contract.fov_um,
        published_rule=contract is not None and contract.fov_um is None,
        stated={} if contract is None else {"name": contract.name},
        guess=name.removeprefix("X_"),
        contract=contract,
        parts=(path,),
    )


def _contract(path: pathlib.Path, uns: Any, name: str) -> embeddings.EncoderContract | None:
    """What stemjax says of the embeddings that it put there; None of those of others."""
    held = hdf5.members(path, uns).get(CONTRACTS) if isinstance(uns, h5py.Group) else None
    text = hdf5.datasets(path, held).get(name) if isinstance(held, h5py.Group) else None
    if text is None:
        return None
    try:
        value = text[()]
        return embeddings.EncoderContract.from_json(json.loads(value))
    except (TypeError, ValueError, RecursionError, errors.EncoderMismatchError) as error:
        raise refused(
            path,
            f"uns[{CONTRACTS!r}][{shown(name)!r}] is no contract",
            found=shown(error),
            fix="Embed the slide again",
        ) from error


def _choose(path: pathlib.Path, arrays: dict[str, Any], key: str | None) -> str:
    named = [
        name
        for name in arrays
        if name.startswith("X_")
        and name not in NOT_ENCODERS
        and not (name.endswith(VARIANTS) and name.removesuffix(VARIANTS) in arrays)
    ]
    if key is not None:
        for name in (key, f"X_{key}"):
            if name in arrays:
                return name
    elif len(named) == 1:
        return named[0]
    listed = ", ".join(map(shown, named))
    raise refused(
        path,
        "it is not clear which embeddings are meant" if named and not key else "no such embeddings",
        expected=f"obsm['X_{shown(key).removeprefix('X_')}']" if key else "one obsm['X_...']",
        found=listed or f"obsm holds {', '.join(map(shown, arrays)) or 'none'}",
        fix="Name one of them: key=...",
    )


def _names(path: pathlib.Path, obs: Any) -> tuple[str, ...]:
    """obs_names, whichever way pandas' index was stored."""
    from anndata.io import read_elem  # imports for a second, so only here

    index = hdf5.attributes(obs).get("_index", "_index")
    columns = hdf5.members(path, obs)
    if not isinstance(index, str) or index not in columns:
        raise refused(path, "the AnnData file has no names of spots", found=shown(index))
    column: Any = columns[index]
    if isinstance(column, h5py.Dataset):
        hdf5.require_held(path, index, column)
        return hdf5.text(path, index, column)
    hdf5.datasets(path, column)
    read: Any = read_elem
    return hdf5.as_text(path, index, np.asarray(read(column), dtype=object))
