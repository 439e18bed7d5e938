"""Where metrics go: JSON lines and TensorBoard files, both without TensorFlow."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from stemjax.data import integrity

_log = logging.getLogger(__name__)


class Writer(Protocol):
    """Anything that takes named numbers at a step."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the numbers of a step."""
        ...

    def go_back(self, step: int) -> None:
        """Forgets what came after a step: those updates are done again."""
        ...

    def close(self) -> None:
        """Flushes and lets go of files."""
        ...


class JsonLines:
    """One JSON object a line; numbers that are not finite become null.

    Lines of steps after ``resume_step`` are dropped on opening: they belong to updates that a
    resumed run does again. Lines that a full disk does not take are kept, and written when it does:
    metrics end no run.
    """

    def __init__(self, path: pathlib.Path, *, resume_step: int = 0) -> None:
        self.path = path
        self._waiting: list[str] = []
        self._whole = 0
        self.go_back(resume_step)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line."""
        clean = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        self._waiting.append(json.dumps({"step": step, **clean}) + "\n")
        self._flush()

    def go_back(self, step: int) -> None:
        """Drops the lines of later steps."""
        self._flush()
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = "".join(line + "\n" for line in lines if _step(line) <= step)
            integrity.write_text(self.path, kept)
        self._whole = self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        """Writes what is left."""
        self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        try:
            with self.path.open("ab") as file:
                file.truncate(self._whole)  # of a line that went in half
                file.write("".join(self._waiting).encode())
            self._whole = self.path.stat().st_size
            self._waiting.clear()
        except OSError as error:
            if len(self._waiting) == 1:
                _log.warning("%s: %s; its lines are kept until there is space", self.path, error)


def has(path: pathlib.Path, step: int, name: str) -> bool:
    """Returns whether a file of JSON lines has a number of a step."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    return any(_step(line) == step and name in json.loads(line) for line in lines)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a crash


class TensorBoard:
    """TensorBoard event files, by tensorboardX's format and not by its thread.

    That thread dies of a full disk, and whoever hands it numbers then waits for ever. What does not
    fit is left out here: `JsonLines` has it all.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        from tensorboardX import event_file_writer

        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._told = folder, False
        self._events: Any = None
        with self._kept_going():
            self._events = event_file_writer.EventsWriter(str(folder / "events"))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds each number under its name."""
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2, summary_pb2

        if self._events is None:
            return
        # Their classes are made when they are imported: no type checker sees them.
        messages: Any = event_pb2
        summaries: Any = summary_pb2
        values = [summary.scalar(name, value).value[0] for name, value in scalars.items()]
        with self._kept_going():
            self._events.write_event(
                messages.Event(
                    wall_time=time.time(),
                    step=step,
                    summary=summaries.Summary(value=values),
                )
            )
            self._events.flush()

    def go_back(self, step: int) -> None:
        """Nothing: TensorBoard itself shows the last value of a step."""
        del step

    def close(self) -> None:
        """Closes the event file."""
        if self._events is not None:
            with self._kept_going():
                self._events.close()

    @contextlib.contextmanager
    def _kept_going(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._told:
                _log.warning("%s: %s; TensorBoard goes without some numbers", self._folder, error)
            self._told = True
