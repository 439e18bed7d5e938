"""h5 files of features and coordinates: TRIDENT, CLAM, HEST-Benchmark, and any like them.

TRIDENT v0.3 writes ``features`` (n, d) and ``coords`` (n, 2), upper left corners at level 0, with
``patch_size``, ``patch_size_level0``, ``target_magnification`` and ``level0_magnification`` as
attributes of the coordinates. CLAM's coordinates carry ``patch_size`` (at ``patch_level``) instead.
HEST's benchmark writes ``embeddings``, ``barcodes`` (n, 1) and ``coords``. What is like none of
them is read by the names of its datasets, and the file's notes say what was assumed.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from stemjax.data import hest_bench
from stemjax.data.embedding_files import file as file_lib
from stemjax.data.embedding_files import hdf5
from stemjax.data.embedding_files.file import EmbeddingFile, number, refused, shown

MPP_AT_1X = 10.0
"""Nominal um per pixel at magnification 1: 20x is .5 um a pixel."""

_VALUES = ("features", "embeddings", "feats", "feature", "embedding", "X")
_COORDS = ("coords", "coordinates", "coord", "positions", "xy")
_BARCODES = ("barcodes", "barcode", "spot_ids", "obs_names")


def read(path: pathlib.Path, opened: Any, key: str | None) -> EmbeddingFile:
    """The embeddings of an opened h5 file.

    Args:
      path: of the file.
      opened: the root group.
      key: the dataset of the embeddings, where its name is not one of the usual.

    Raises:
      EncoderMismatchError: they are not there, are one vector for a slide, or parts do not fit.
    """
    found = hdf5.datasets(path, opened)
    name = _choose(path, found, key)
    values = found[name]
    coords_name = next((one for one in _COORDS if one in found), None)
    barcodes_name = next((one for one in _BARCODES if one in found), None)
    attrs = {} if coords_name is None else hdf5.attributes(found[coords_name])
    _require_patches(path, name, values, None if coords_name is None else found[coords_name])
    parts: dict[str, Any] = {
        "path": path,
        "shape": (values.shape[0], 1 if values.ndim == 2 else values.shape[1], values.shape[-1]),
        "load": hdf5.loader(path, name),
        "parts": (path,),
    }
    if barcodes_name is not None:
        parts["barcodes"] = hdf5.text(path, barcodes_name, found[barcodes_name])
    if coords_name is not None:
        parts["xy"] = hdf5.coordinates(path, coords_name, found[coords_name])
    stated = _stated(path, hdf5.attributes(opened) | hdf5.attributes(values))
    usual = name == "features" and coords_name == "coords"
    if usual and ("patch_size_level0" in attrs or "target_magnification" in attrs):
        return EmbeddingFile(**parts, **_trident(path, attrs), stated=stated)
    if usual and "patch_level" in attrs:
        return EmbeddingFile(**parts, **_clam(path, attrs), stated=stated)
    if name == "embeddings" and barcodes_name == "barcodes":
        return EmbeddingFile(**parts, **_hest(), stated=stated)
    if coords_name is None and barcodes_name is None:
        raise refused(
            path,
            "nothing says which spots the embeddings belong to",
            expected=f"a dataset {' or '.join(_COORDS)}, or {' or '.join(_BARCODES)}",
            found=", ".join(map(shown, found)),
            fix="Rows are never joined by their order: add barcodes or coordinates",
        )
    return EmbeddingFile(
        **parts,
        layout="h5",
        source="h5 file",
        stated=stated,
        patch_px=number(path, attrs, "patch_size_level0"),
        notes=_assumed(path, name, coords_name, barcodes_name),
    )


def _choose(path: pathlib.Path, found: Mapping[str, Any], key: str | None) -> str:
    """The name of the dataset of embeddings."""
    if key is not None and key not in found:
        raise refused(
            path,
            f"there is no dataset {shown(key)!r}",
            expected="the name of a dataset",
            found=", ".join(map(shown, found)) or "no dataset",
            fix="Correct key=",
        )
    name = key or next((one for one in _VALUES if one in found), None)
    if name is None:
        patches = " It holds patches, not yet embedded." if "img" in found else ""
        raise refused(
            path,
            f"no dataset is called {' or '.join(_VALUES[:2])}",
            found=(", ".join(map(shown, found)) or "no dataset") + patches,
            fix="Name the dataset of the embeddings: key=...",
        )
    return name


def _require_patches(path: pathlib.Path, name: str, values: Any, coords: Any) -> None:
    """Refuses what is no table of one row a patch."""
    file_lib.require_floats(path, f"the dataset {shown(name)!r}", values.dtype)
    rows = values.shape[0] if values.ndim else 0
    single = values.ndim == 1 or (coords is not None and rows == 1 and coords.shape[0] > 1)
    if single:
        raise refused(
            path,
            "these are features of a whole slide, one vector",
            expected="one row for each patch",
            found=f"{shown(name)} of shape {values.shape}",
            fix="Give the folder of patch features (TRIDENT: features_..., not slide_features_...)",
        )
    if values.ndim not in (2, 3):
        raise refused(
            path,
            f"the dataset {shown(name)!r} is no table of embeddings",
            expected="shape (n, d), or (n, variants, d)",
            found=str(values.shape),
        )


def _stated(path: pathlib.Path, attrs: Mapping[str, Any]) -> dict[str, Any]:
    name = attrs.get("encoder")
    if name is None:
        return {}
    if not isinstance(name, str) or not name.strip():
        raise refused(path, "the attribute 'encoder' is no name", found=shown(name))
    return {"name": name.strip()}


def _trident(path: pathlib.Path, attrs: Mapping[str, Any]) -> dict[str, Any]:
    px, at = number(path, attrs, "patch_size"), number(path, attrs, "target_magnification")
    side, own = (
        number(path, attrs, "patch_size_level0"),
        number(path, attrs, "level0_magnification"),
    )
    if side is None and px and at and own:
        side = px * own / at
    name = attrs.get("name")
    return {
        "layout": "trident",
        "source": "trident",
        "patch_px": side,
        "fov_um": px * MPP_AT_1X / at if px and at else None,
        "slide_id": name if isinstance(name, str) else None,
    }


def _clam(path: pathlib.Path, attrs: Mapping[str, Any]) -> dict[str, Any]:
    px, level, notes = number(path, attrs, "patch_size"), attrs.get("patch_level"), ()
    side = None
    factor = (number(path, attrs, "custom_downsample") or 1.0) * (_downsample(path, attrs) or 1.0)
    if px is not None and (level == 0 or "downsample" in attrs):
        side = px * factor
    elif px is not None:
        notes = (
            f"patches of {px:g} px at level {shown(level)}, whose scale the file does not say: "
            "their side is taken from their spacing",
        )
    return {"layout": "clam", "source": "clam", "patch_px": side, "notes": notes}


def _downsample(path: pathlib.Path, attrs: Mapping[str, Any]) -> float | None:
    """CLAM's (x, y) downsampling of the level."""
    value = attrs.get("downsample")
    first = float(value.reshape(-1)[0]) if isinstance(value, np.ndarray) and value.size else value
    return number(path, {"downsample": first}, "downsample")


def _hest() -> dict[str, Any]:
    return {"layout": "hest-bench", "source": "hest-bench", "fov_um": hest_bench.FOV_UM}


def _assumed(
    path: pathlib.Path, name: str, coords: str | None, barcodes: str | None
) -> tuple[str, ...]:
    took = [f"{shown(name)!r} are the embeddings"]
    if barcodes is not None:
        took.append(f"{shown(barcodes)!r} the spots' barcodes")
    if coords is not None:
        took.append(f"{shown(coords)!r} the upper left corners (x, y) of patches at level 0")
    return (f"{path.name} follows no known layout; assumed that " + ", ".join(took),)
