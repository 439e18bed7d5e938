"""Bundles: a model as one directory of plain files, without the run that made it.

    bundle.json           card (configuration, genes, space, encoder, split), step, weights
    weights.safetensors   the parameters, named by their path: ``blocks/attn/qkv/kernel``
    calibration.json      calibrations of intervals, where the model has any
    SHA256SUMS.json       size and hash of these, checked before anything is used

Only arrays and JSON: opening a bundle executes nothing that is in it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from stemjax import errors
from stemjax.data import integrity
from stemjax.train import calibration, checkpoint

FORMAT = 1
DESCRIPTION, WEIGHTS = "bundle.json", "weights.safetensors"


def is_bundle(path: str | pathlib.Path) -> bool:
    """Whether a folder says that it is a bundle."""
    return (pathlib.Path(path) / DESCRIPTION).is_file()


def write(trained: checkpoint.Trained, path: str | pathlib.Path) -> None:
    """Writes a bundle with its calibrations, whole or not at all; one that stands is replaced.

    Raises:
      BundleError: ``path`` is a file, or a folder that holds something else.
    """
    path = pathlib.Path(path).resolve()  # "." has no name that another folder could take
    if found := _in_the_way(path):
        raise errors.BundleError(
            f"{path} is in the way",
            expected="nothing there, an empty folder or an older bundle",
            found=found,
            fix="name another output",
        )
    arrays = {
        name: np.ascontiguousarray(jax.device_get(leaf)) for name, leaf in _named(trained.params)
    }
    description = {
        "format": FORMAT,
        "step": trained.step,
        "weights": trained.weights,
        "card": trained.card.to_json(),
    }
    with integrity.published_folder(path) as folder:
        safetensors.numpy.save_file(arrays, folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)  # safetensors makes files that only their owner reads
        integrity.write_text(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")
        if trained.calibrations:
            calibration.write(trained.calibrations, folder / calibration.FILE)
        integrity.write_manifest(folder)


def load(path: str | pathlib.Path) -> checkpoint.Trained:
    """Returns the model of a bundle, every parameter's name and shape checked.

    Raises:
      BundleError: it is missing, incomplete or damaged, or of another format.
      CalibrationError: its calibrations cannot be used, or are of other weights.
      CheckpointMismatchError: the weights are of another network than the card says.
    """
    path = pathlib.Path(path)
    if not is_bundle(path):
        raise errors.BundleError(f"no bundle at {path}", expected=f"a folder with {DESCRIPTION}")
    if wrong := integrity.damage(path):
        raise errors.BundleError(
            f"bundle {path} is damaged", found="; ".join(wrong[:3]), fix="copy it again"
        )
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        found = description["format"]
        if found != FORMAT:
            raise errors.BundleError(
                f"bundle {path}: format",
                expected=str(FORMAT),
                found=repr(found),
                fix="use the stemjax version that wrote it",
            )
        card = checkpoint.Card.from_json(description["card"])
        step, weights = int(description["step"]), str(description["weights"])
        arrays = safetensors.numpy.load_file(path / WEIGHTS)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OSError,
        safetensors.SafetensorError,
    ) as error:
        raise errors.BundleError(
            f"bundle {path} cannot be read ({type(error).__name__}: {error})", fix="copy it again"
        ) from error
    trained = checkpoint.Trained(
        params=_fitted(arrays, card, path), card=card, step=step, weights=weights
    )
    stored = calibration.read(path / calibration.FILE)
    found = trained.with_calibrations(stored)
    if len(found.calibrations) < len(stored):
        raise errors.CalibrationError(
            f"{path / calibration.FILE}",
            expected=f"calibrations of the bundle's weights, {trained.identity}",
            found=f"{len(stored) - len(found.calibrations)} of others",
            fix="export the model again, and calibrate that bundle",
        )
    return found


def open_model(path: str | pathlib.Path, *, weights: str = "auto") -> checkpoint.Trained:
    """Returns the model of a bundle or of a run's workdir.

    Args:
      path: a bundle, or a folder that `stemjax train` wrote.
      weights: ``best``, ``last`` or ``auto``, for a workdir; a bundle has one set.

    Raises:
      BundleError, CheckpointError: there is none, or it is damaged.
      CalibrationError: its calibrations are damaged.
    """
    return load(path) if is_bundle(path) else checkpoint.load(path, weights=weights)


def add_calibration(
    trained: checkpoint.Trained, new: calibration.Calibration, path: str | pathlib.Path
) -> pathlib.Path:
    """Stores a calibration with the model that `open_model` read there; returns the file.

    It replaces one of the same sampling. A bundle is written anew as a whole, so that its list of
    hashes fits at every moment; a workdir keeps the calibrations of its other weights.

    Raises:
      CalibrationError: what stands in a workdir cannot be read.
    """
    path = pathlib.Path(path)
    file = path / calibration.FILE
    if is_bundle(path):
        kept = calibration.replace(trained.calibrations, new)
        write(dataclasses.replace(trained, calibrations=kept), path)
    else:
        calibration.write(calibration.replace(calibration.read(file), new), file)
    return file


def _in_the_way(path: pathlib.Path) -> str:
    """What stands at a path besides an older bundle, which alone may be deleted; "" if nothing."""
    if not path.is_dir():
        return "a file" if path.exists() else ""
    inside = {file.name for file in path.iterdir()}
    others = inside - {DESCRIPTION, WEIGHTS, calibration.FILE, integrity.MANIFEST}
    if inside and (others or DESCRIPTION not in inside):
        return f"a folder with other files ({sorted(others or inside)[0]})"
    return ""


def _named(params: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def _fitted(arrays: dict[str, np.ndarray], card: checkpoint.Card, path: pathlib.Path) -> Any:
    """Returns the arrays as the tree that the card's network wants."""
    wanted = jax.eval_shape(card.task.init, jax.random.key(0))
    names = dict(_named(wanted))
    for name in sorted(names.keys() | arrays.keys()):
        ours, theirs = names.get(name), arrays.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            raise errors.CheckpointMismatchError(
                f"bundle {path}: parameter {name}",
                expected="none" if ours is None else f"shape {ours.shape}",
                found="none" if theirs is None else f"shape {theirs.shape}",
            )
    leaves = [jax.numpy.asarray(arrays[name]) for name in names]
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)
