"""Digests of results, by which a disturbed one is held against the undisturbed one."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import numpy as np

# What says when or how fast something was made, which no two runs have in common.
_VOLATILE = ("seconds", "date", "created", "runs", "content_hash", "sha256")


def of_file(path: pathlib.Path) -> str:
    """Digest of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def of_folder(folder: pathlib.Path) -> dict[str, str]:
    """Digest of every file under a folder by its name, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): of_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def of_steps(folder: pathlib.Path) -> list[int]:
    """The steps of a checkpoint folder that were committed, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def of_arrays(folder: pathlib.Path) -> str:
    """Digest of the arrays that orbax stored in a folder, with their names; uses a device."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(folder.absolute())
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def of_run(workdir: pathlib.Path) -> dict[str, Any]:
    """The newest step of a run with digests of its state and best weights, and all losses."""
    steps, best = (of_steps(workdir / name) for name in ("checkpoints", "best"))
    found: dict[str, Any] = {"step": steps[-1] if steps else None}
    if steps:
        found["state"] = of_arrays(workdir / "checkpoints" / str(steps[-1]) / "state")
    if best:
        found["best"] = [best[-1], of_arrays(workdir / "best" / str(best[-1]) / "ema")]
    return found | {"losses": of_metrics(workdir)}


def of_h5(path: pathlib.Path) -> str:
    """Digest of the values and attributes of an HDF5 file, but for those that tell the time."""
    import h5py

    found = hashlib.sha256()

    def take(name: str, node: Any) -> None:
        if any(word in name.split("/") for word in _VOLATILE):
            return
        found.update(name.encode())
        for key in sorted(node.attrs):
            if key not in _VOLATILE:
                found.update(f"{key}={_plain(node.attrs[key])}".encode())
        if isinstance(node, h5py.Dataset):
            found.update(f"{node.dtype} {node.shape}".encode())
            found.update(_plain(node[()]).encode())

    with h5py.File(path, "r") as file:
        file.visititems(take)
    return found.hexdigest()


def of_zarr(path: pathlib.Path) -> str:
    """Digest of the values and attributes of a zarr array."""
    import zarr

    array: Any = zarr.open_array(str(path), mode="r")
    found = hashlib.sha256(np.asarray(array[:]).tobytes())
    about = {k: v for k, v in dict(array.attrs).items() if k not in _VOLATILE}
    found.update(json.dumps(about, sort_keys=True, default=str).encode())
    return found.hexdigest()


def of_metrics(workdir: pathlib.Path) -> list[list[float]]:
    """Step and loss of every line of a run's metrics; a line cut short ends the list."""
    found = []
    path = workdir / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:
            break
        if "loss" in values:
            loss = values["loss"]  # null is one that was not finite
            found.append([int(values["step"]), float("nan") if loss is None else float(loss)])
    return found


def _plain(value: Any) -> str:
    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        return hashlib.sha256(repr(array.tolist()).encode()).hexdigest()
    return hashlib.sha256(array.tobytes()).hexdigest()
