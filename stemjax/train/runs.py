"""Where and by what a run was trained: a line of ``runs.jsonl`` in its workdir for every start."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import platform
from typing import Any

import jax
import numpy as np

import stemjax
from stemjax import mesh
from stemjax.foreign import json_text

FILE = "runs.jsonl"


def note(workdir: pathlib.Path, step: int, layout: mesh.Layout) -> None:
    """Adds a line: that this process goes on from a step, with what code on what devices."""
    devices = np.asarray(layout.mesh.devices).ravel()  # pyright: ignore[reportAttributeAccessIssue]
    line = {
        "from_step": step,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "stemjax": stemjax.__version__,
        "code": code_digest(),
        **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
        "python": platform.python_version(),
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "mesh": dict(layout.mesh.shape),
    }
    with (workdir / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(workdir: pathlib.Path, *, until: int) -> tuple[dict[str, Any], ...]:
    """Returns the lines of a workdir that began before a step; none where there is no file.

    A line that a killed process left half is passed over.
    """
    try:
        lines = (workdir / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    found = []
    for line in lines:
        try:
            one = json_text.parse(line)
        except ValueError:
            continue
        if isinstance(one, dict) and type(step := one.get("from_step")) is int and step < until:
            found.append(one)
    return tuple(found)


@functools.cache
def code_digest() -> str:
    """Returns a digest of the package's source files."""
    root = pathlib.Path(stemjax.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]
