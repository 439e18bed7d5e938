"""What stemjax wrote: which files and folders are whole, whatever they are.

    checkpoint steps, records of slides, bundles, programs, draws, parts of predictions
                          folders with a list of hashes (`integrity`)
    predictions, embedding files
                          HDF5 files that carry a hash of what they hold (`sealing`)
    calibrations of a run JSON with a hash of what it holds

A run's workdir, a folder of records and one of predictions are folders of these.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import h5py

from stemjax import errors
from stemjax.data import integrity, sealing
from stemjax.foreign import json_text

PREDICTION, EMBEDDINGS, OTHER_HDF5 = "prediction", "embedding file", "HDF5 file"
BUNDLE, STEP, RECORDS = "bundle", "checkpoint step", "records of a slide"
CALIBRATION, _CALIBRATION_FILE = "calibrations", "calibration.json"

MARKS = {
    "bundle.json": BUNDLE,
    "program.json": "program",
    "stem_edm.py": "torch-edm export",
    "_CHECKPOINT_METADATA": STEP,
    "metadata.json": RECORDS,
    "part.h5ad": "part of a prediction",
    "zarr.json": "zarr store",
}
"""Files that tell what a folder is; the first that is there does."""

_ALWAYS_LISTED = (BUNDLE, "program", RECORDS)
"""Whatever version of stemjax wrote them, they have a list of hashes."""

_CONTAINERS = {
    "checkpoints": "workdir of a run",
    "best": "workdir of a run",
    "cohort.json": "folder of predictions",
    "spots": "folder of records",
}
_PARTS, _SET_ASIDE = ".parts", "damaged"
_HDF5_NAMES = (".h5ad", ".h5", ".hdf5")

type State = Literal["whole", "damaged", "carries no hash"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What was found at a path.

    Attributes:
      path: of the file or folder.
      kind: what it is, in words.
      state: whether its files are as they were written.
      wrong: what is not: "NAME: what".
      unlisted: files in a folder that its list of hashes does not name.
      files: how many were compared.
      size: bytes that were compared.
    """

    path: pathlib.Path
    kind: str
    state: State
    wrong: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
    files: int = 0
    size: int = 0


def name_of(path: pathlib.Path) -> str:
    """Returns what stands at a path, in words: as `Found.kind`, or what it is a folder of."""
    if not path.is_dir():
        return _kind_of_file(path)
    if (kind := _kind_of_folder(path)) is not None:
        return kind
    return next((kind for mark, kind in _CONTAINERS.items() if (path / mark).exists()), "folder")


def find(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files and folders at and under a path that can be compared, sorted.

    Raises:
      ConfigError: there is nothing, or nothing that stemjax wrote.
    """
    if not path.exists():
        raise errors.ConfigError(f"nothing stands at {path}", expected="a file or folder")
    if path.is_file():  # a prediction's draws may have a store of their own beside it
        draws = path.with_suffix(".draws.zarr")
        return [path, draws] if path.suffix == ".h5ad" and draws.is_dir() else [path]
    found = sorted(_walk(path))
    if not found:
        raise errors.ConfigError(
            f"{path} holds nothing that stemjax wrote",
            expected="a workdir, checkpoint step, bundle, program, records, predictions or draws",
            found=", ".join(sorted(os.listdir(path))[:5]) or "an empty folder",
        )
    return found


def check(path: pathlib.Path) -> Found:
    """Compares what `find` found with its hashes; never raises for damage."""
    return _check_folder(path) if path.is_dir() else _check_file(path)


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    if _kind_of_folder(folder) is not None:
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_file():
            kept = path.suffix in _HDF5_NAMES or path.name == _CALIBRATION_FILE
            if kept and not path.name.startswith("."):
                yield path
        elif path.is_dir() and not path.is_symlink() and _is_kept(path):
            yield from _walk(path)


def _is_kept(folder: pathlib.Path) -> bool:
    """Whether a folder is none that is still being written or was set aside."""
    aside = folder.name == _SET_ASIDE and (folder.parent / "checkpoints").is_dir()
    partial = ".orbax-checkpoint-tmp" in folder.name
    return not aside and not partial and (not folder.name.startswith(".") or folder.name == _PARTS)


def _kind_of_folder(folder: pathlib.Path) -> str | None:
    for mark, kind in MARKS.items():
        if kind == RECORDS and not (folder / "dataset_info.json").is_file():
            continue  # many tools have metadata
        if (folder / mark).is_file():
            return "draws" if kind == "zarr store" and ".draws" in folder.name else kind
    return "folder with hashes" if (folder / integrity.MANIFEST).is_file() else None


def _kind_of_file(path: pathlib.Path) -> str:
    if path.name == _CALIBRATION_FILE:
        return CALIBRATION
    try:
        if not h5py.is_hdf5(path):
            return "file"
        with h5py.File(path, "r") as file:
            if "stemjax_contract" in file.attrs:
                return EMBEDDINGS
            return PREDICTION if "uns/stemjax" in file else OTHER_HDF5
    except Exception:  # noqa: BLE001 - h5py tells damage by all kinds of exceptions
        return PREDICTION if path.suffix == ".h5ad" else OTHER_HDF5


def _check_folder(path: pathlib.Path) -> Found:
    kind = _kind_of_folder(path) or "folder"
    if not (path / integrity.MANIFEST).exists():
        lost = kind in _ALWAYS_LISTED
        wrong = (f"{integrity.MANIFEST}: missing",) if lost else ()
        return Found(
            path=path, kind=kind, state="damaged" if lost else "carries no hash", wrong=wrong
        )
    wrong, more = integrity.damage(path), integrity.unlisted(path)
    if kind == BUNDLE:  # which refuses strangers when it is opened
        wrong, more = [*wrong, *(f"{name}: no file of the bundle" for name in more)], []
    try:
        listed = integrity.read_manifest(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        listed = {}
    return Found(
        path=path,
        kind=kind,
        state="damaged" if wrong else "whole",
        wrong=tuple(wrong),
        unlisted=tuple(more),
        files=len(listed),
        size=sum(entry.size for entry in listed.values()),
    )


def _check_calibration(path: pathlib.Path) -> Found:
    about: dict[str, Any] = {"path": path, "kind": CALIBRATION, "size": path.stat().st_size}
    try:
        values = json_text.parse(path.read_text(encoding="utf-8"))
        listed, now = values.get("sha256"), integrity.json_digest(values["calibrations"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{path.name}: cannot be read ({type(error).__name__})"
        return Found(**about, state="damaged", wrong=(said,), files=1)
    if listed is None:  # an older version wrote it
        return Found(**about, state="carries no hash")
    if listed == now:
        return Found(**about, state="whole", files=1)
    said = f"{path.name}: sha256 {now[:12]}... instead of {str(listed)[:12]}..."
    return Found(**about, state="damaged", wrong=(said,), files=1)


def _check_file(path: pathlib.Path) -> Found:
    if path.name == _CALIBRATION_FILE:
        return _check_calibration(path)
    size = path.stat().st_size
    try:
        # Before anything else opens it: HDF5 crashes on some damaged files.
        wrong = sealing.damage(path) if path.suffix in _HDF5_NAMES or h5py.is_hdf5(path) else None
    except errors.StemjaxError as error:
        kind = PREDICTION if path.suffix == ".h5ad" else OTHER_HDF5
        said = (error.found or str(error),)
        return Found(path=path, kind=kind, state="damaged", wrong=said, files=1, size=size)
    kind = _kind_of_file(path)
    if wrong is None:
        return Found(path=path, kind=kind, state="carries no hash")
    state: State = "damaged" if wrong else "whole"
    return Found(path=path, kind=kind, state=state, wrong=tuple(wrong), files=1, size=size)
