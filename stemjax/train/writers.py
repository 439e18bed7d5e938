"""Where metrics go: JSON lines and TensorBoard files, both without TensorFlow."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Protocol


class Writer(Protocol):
    """Anything that takes named numbers at a step."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the numbers of a step."""
        ...

    def close(self) -> None:
        """Flushes and lets go of files."""
        ...


class JsonLines:
    """One JSON object a line; numbers that are not finite become null.

    Lines of steps after ``resume_step`` are dropped on opening: they belong to updates that a
    resumed run does again.
    """

    def __init__(self, path: pathlib.Path, *, resume_step: int = 0) -> None:
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= resume_step]
            partial = path.with_name(path.name + ".tmp")
            partial.write_text("".join(line + "\n" for line in kept))
            os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line and flushes it."""
        clean = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a crash


class TensorBoard:
    """TensorBoard event files through tensorboardX."""

    def __init__(self, folder: pathlib.Path) -> None:
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(folder), write_to_disk=True)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds each number under its name."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, global_step=step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()
