"""Cases of writers: killed, or out of disk, while they write what others will read."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.faults import artefacts, children, digests, patched, verdicts
from tests.faults.scene import Scene, unfinished


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A command that writes.

    Attributes:
      fact: its name among the undisturbed results.
      argv: the command, given where to write.
      place: name of what it writes.
      digest: of what it wrote.
      older: what may stand there before, among the artefacts; None where nothing may.
    """

    fact: str
    argv: Callable[[pathlib.Path], Sequence[str]]
    place: str
    digest: Callable[[pathlib.Path], Any]
    older: str | None = None


def _works(art: artefacts.Artefacts) -> dict[str, Work]:
    f, records = art.folder, art.records
    mean = str(f / "predictions" / "mean.h5ad")

    def convert(to: str) -> Callable[[pathlib.Path], Sequence[str]]:
        return lambda out: ["convert", mean, "--to", to, "-o", str(out)]

    cohort = ("--slides", "all", "--block", "8")
    export = ["export", str(f / "run"), "--format", "bundle", "-o"]
    return {
        "prepare": Work(
            fact="prepare",
            argv=lambda out: artefacts.prepare_argv(f, out),
            place="records",
            digest=digests.of_folder,
        ),
        "predict": Work(
            fact="predict-mean",
            argv=lambda out: artefacts.predict_argv(f / "run", records, out),
            place="prediction.h5ad",
            digest=digests.of_h5,
            older="predictions/last.h5ad",
        ),
        "cohort": Work(
            fact="cohort",
            argv=lambda out: artefacts.predict_argv(f / "bundle", records, out, *cohort),
            place="cohort",
            digest=artefacts.of_cohort,
        ),
        "export": Work(
            fact="export",
            argv=lambda out: [*export, str(out)],
            place="bundle",
            digest=digests.of_folder,
            older="older-bundle",
        ),
        "qupath": Work(
            fact="convert-qupath",
            argv=convert("qupath"),
            place="spots.geojson",
            digest=digests.of_file,
            older="older.geojson",
        ),
        "ome-zarr": Work(
            fact="convert-ome-zarr",
            argv=convert("ome-zarr"),
            place="image.zarr",
            digest=digests.of_folder,
        ),
    }


def kill(scene: Scene, name: str) -> str:
    """``kill -9`` while it writes; then the same command again, to the end."""
    work = _works(scene.art)[scene.pick("qupath", "ome-zarr") if name == "convert" else name]
    out = scene.folder / "out" / work.place
    out.parent.mkdir()
    before = _put_older(scene, work, out, scene.chance(0.6))
    event, said = _moment(scene, work, out)
    scene.notes.append(f"kill -9 {said}")
    child = scene.start(work.argv(out), "first")
    with children.ending(child):
        if child.until(event):
            time.sleep(scene.rng.random() * 0.02)
        child.send(signal.SIGKILL)
        first = child.wait()
    if first.code not in (0, -signal.SIGKILL):
        verdicts.require_done(first)
    _require_old_or_new(scene, work, out, before, first)
    _again(scene, work, out, first)
    return f"{work.fact} killed {said}"


def _moment(scene: Scene, work: Work, out: pathlib.Path) -> tuple[Callable[[], bool], str]:
    if scene.chance(0.5):
        seconds = scene.rng.random() * 1.05 * scene.art.seconds(work.fact)
        end = time.monotonic() + seconds
        return lambda: time.monotonic() >= end, f"after {seconds:.2f} s"
    number, seen, before = int(scene.rng.integers(1, 4)), set(), _look(out)

    def under_way() -> bool:
        seen.update(unfinished(out.parent))
        return len(seen) >= number or (out.suffix != "" and _look(out) != before)

    return under_way, "while it wrote"


def _look(path: pathlib.Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or another one takes its place."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _put_older(scene: Scene, work: Work, out: pathlib.Path, wanted: bool) -> str | None:
    """Puts an older result in the place; returns its digest."""
    if work.older is None or not wanted:
        return None
    artefacts.copy(scene.art.folder / work.older, out)
    return _bytes(out)


def _require_old_or_new(
    scene: Scene, work: Work, out: pathlib.Path, before: str | None, first: verdicts.Done
) -> None:
    """Checks that what lies in the place is the older result or the new one, whole.

    Raises:
      Lost: it is neither.
    """
    if work.place in ("cohort", "records"):  # a slide at a time, each of which is asked below
        _require_whole_parts(scene, work, out, first)
        return
    if not out.exists():
        if before is not None:
            raise verdicts.Lost("the older result is gone", first)
        return
    if _bytes(out) == before:
        return
    found = scene.call(functools.partial(work.digest, out), "whole")
    if found.code or found.extra != scene.art.facts[work.fact]:
        raise verdicts.Lost(f"{work.place} is neither the older one nor the new one", first, found)


def _require_whole_parts(scene: Scene, work: Work, out: pathlib.Path, first: verdicts.Done) -> None:
    if not out.exists():
        return
    found = scene.call(functools.partial(work.digest, out), "whole")
    wanted, parts = scene.art.facts[work.fact], found.extra
    if found.code or not isinstance(parts, dict):
        raise verdicts.Lost("what was finished of it cannot be read", first, found)
    for name, digest in parts.items():
        hidden = any(part.startswith(".") for part in pathlib.PurePath(name).parts)
        if not hidden and digest != wanted.get(name):
            raise verdicts.Lost(f"{name} is there and not as it should be", first)


def _again(scene: Scene, work: Work, out: pathlib.Path, *before: verdicts.Done) -> None:
    """Gives the command again, and checks that nothing shows that it was disturbed."""
    after = functools.partial(work.digest, out)
    done = scene.run(work.argv(out), "again", after=after)
    if done.code == 1 and "is in the way" in done.err:
        # The kill came when the result stood already, and what stands is not written over.
        whole = scene.call(after, "whole").extra
        verdicts.require_same(whole, scene.art.facts[work.fact], work.place, *before, done)
        return
    verdicts.require_done(done)
    found, wanted = done.extra, scene.art.facts[work.fact]
    if left := unfinished(out.parent):
        raise verdicts.Lost(f"left over: {', '.join(left[:3])}", *before, done)
    verdicts.require_same(found, wanted, work.place, *before, done)


def full(scene: Scene, name: str) -> str:
    """The disk is full: a typed error, the older result whole, nothing left that takes room."""
    work, disk = _works(scene.art)[name], scene.folder / "disk"
    size = _size(scene.art, work)
    room = int(size * (0.05 + 0.85 * scene.rng.random()))
    older = work.older is not None and scene.chance(0.6)
    if not scene.can_mount:
        disk.mkdir()
        patch = functools.partial(patched.limit_file_size, max(512, room // 4))
        return _full(scene, work, disk / work.place, None, [patch])
    taken = _bytes_in(scene.art.folder / str(work.older)) if older else 0
    with scene.small_disk(disk, room + taken) as grow:
        return _full(scene, work, disk / work.place, grow, [], older=older)


def _full(
    scene: Scene,
    work: Work,
    out: pathlib.Path,
    grow: Callable[[], None] | None,
    patches: Sequence[Callable[[], None]],
    *,
    older: bool = False,
) -> str:
    before = _put_older(scene, work, out, older)
    first = scene.run(work.argv(out), "first", patches=patches)
    verdicts.require_plain(first, {0, 1, 75})
    if first.code and first.typed != "SJ-R01":
        raise verdicts.Lost(f"a full disk is error {first.typed}, not SJ-R01", first)
    if first.code and (left := unfinished(out.parent)):
        raise verdicts.Lost(f"it left {', '.join(left[:3])} on the full disk", first)
    _require_old_or_new(scene, work, out, before, first)
    if grow is not None:
        grow()
    _again(scene, work, out, first)
    return f"{work.fact}: code {first.code}"


def _size(art: artefacts.Artefacts, work: Work) -> int:
    places = {"prepare": "records", "predict-mean": "predictions/mean.h5ad", "export": "bundle"}
    return _bytes_in(art.folder / places[work.fact])


def _bytes_in(path: pathlib.Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _bytes(path: pathlib.Path) -> str:
    found = digests.of_folder(path) if path.is_dir() else digests.of_file(path)
    return str(found)
