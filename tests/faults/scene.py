"""Where a case plays: a folder of its own, its commands, and a small disk where one is wanted."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tests.faults import artefacts, cases, children, digests, patched, verdicts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """What a case is given.

    Attributes:
      case: which it is.
      rng: chooses everything that it does.
      folder: its own, empty.
      art: the undisturbed things.
      mark: by which what it leaves running is found.
      sabotage: what is switched off in its commands (`patched.SABOTAGE`).
      can_mount: whether a file system of a few kB can be mounted for a full disk.
      notes: what was done so far, for the verdict of a case that does not survive.
    """

    case: cases.Case
    rng: np.random.Generator
    folder: pathlib.Path
    art: artefacts.Artefacts
    mark: str
    sabotage: tuple[str, ...] = ()
    can_mount: bool = True
    notes: list[str] = dataclasses.field(default_factory=list)

    def start(
        self,
        argv: Sequence[str],
        name: str,
        *,
        patches: Sequence[Callable[[], None]] = (),
        after: Callable[[], Any] | None = None,
        cache: pathlib.Path | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> children.Child:
        """Starts a command; ``cache`` is where compiled programs go, the artefacts' by default."""
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        given = artefacts.environment(cache or self.art.cache) | {children.MARK: self.mark}
        return children.Child(
            argv,
            cwd=self.folder,
            logs=logs / name,
            env={**given, **(env or {})},
            patches=[*(patched.SABOTAGE[one] for one in self.sabotage), *patches],
            after=after,
        )

    def run(
        self, argv: Sequence[str], name: str, limit: float = children.LIMIT_S, **given: Any
    ) -> verdicts.Done:
        """Runs a command to its end; the keywords are `start`'s."""
        child = self.start(argv, name, **given)
        with children.ending(child):
            return child.wait(limit)

    def call(self, function: Callable[[], Any], name: str) -> verdicts.Done:
        """Calls a function of the harness in a process of its own, and returns how it ended."""
        return self.run((), name, after=function)

    def chance(self, share: float) -> bool:
        """Whether something of this probability happens."""
        return bool(self.rng.random() < share)

    def pick(self, *of: Any) -> Any:
        """Returns one of some things."""
        return of[int(self.rng.integers(len(of)))]

    @contextlib.contextmanager
    def small_disk(self, folder: pathlib.Path, size: int) -> Iterator[Callable[[], None]]:
        """Mounts a file system of so many bytes on a folder; gives what makes it large."""
        folder.mkdir(parents=True, exist_ok=True)
        kb = max(4, size // 1024)
        _mount("-t", "tmpfs", "-o", f"size={kb}k", "tmpfs", str(folder))
        try:
            yield lambda: _mount("-o", "remount,size=256m", str(folder))
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def _mount(*argv: str) -> None:
    subprocess.run(["mount", *argv], check=True, capture_output=True)


def can_mount(folder: pathlib.Path) -> bool:
    """Whether a small file system can be mounted there."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _mount("-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)
        folder.rmdir()
    return True


def unmount_all(root: pathlib.Path) -> int:
    """Unmounts everything under a folder; returns how much there was."""
    lines = pathlib.Path("/proc/mounts").read_text().splitlines()
    places = [line.split()[1].replace("\\040", " ") for line in lines]
    under = [place for place in places if place.startswith(f"{root.resolve()}/")]
    for place in sorted(under, reverse=True):
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)
    return len(under)


def lines_of(path: pathlib.Path) -> int:
    """Whole lines of a file that is still written; 0 where there is none."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def last_start(workdir: pathlib.Path) -> int | None:
    """The step that the newest start of a run went on from, or None before any."""
    path = workdir / "runs.jsonl"
    if not path.exists():
        return None
    found = None
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found = int(json.loads(line)["from_step"])
    return found


def last_logged(workdir: pathlib.Path) -> int:
    """The newest step in a run's metrics; 0 before any."""
    lines = digests.of_metrics(workdir)
    return int(lines[-1][0]) if lines else 0


def last_committed(workdir: pathlib.Path) -> int:
    """The newest step that a run has committed; 0 before any."""
    steps = digests.of_steps(workdir / "checkpoints")
    return steps[-1] if steps else 0


def unfinished(folder: pathlib.Path) -> list[str]:
    """Names under a folder that are of something still being written."""
    if not folder.is_dir():
        return []
    found = []
    for path in folder.rglob("*"):
        if "tmp" in path.name or ".old" in path.name:
            found.append(path.relative_to(folder).as_posix())
    return sorted(found)
