"""Damage to a file of a folder, as disks, copies and people do it."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Sequence

import numpy as np

_MANY = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage:
    """What was done to which file.

    Attributes:
      how: name of the damage.
      path: the file.
    """

    how: str
    path: pathlib.Path

    def names(self, root: pathlib.Path) -> tuple[str, ...]:
        """What a message may call the file: its name, or its path from a folder on."""
        inside = self.path.relative_to(root).as_posix() if self.path != root else self.path.name
        return tuple(dict.fromkeys((self.path.name, inside)))


def _flip_bit(path: pathlib.Path, rng: np.random.Generator) -> bool:
    data = bytearray(path.read_bytes())
    if not data:
        return False
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return True


def _overwrite(path: pathlib.Path, rng: np.random.Generator) -> bool:
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    if not data.size:
        return False
    places = rng.integers(len(data), size=min(_MANY, len(data)))
    data[places] ^= rng.integers(1, 256, size=len(places)).astype(np.uint8)
    path.write_bytes(data.tobytes())
    return True


def _truncate(path: pathlib.Path, rng: np.random.Generator) -> bool:
    size = path.stat().st_size
    if not size:
        return False
    with path.open("r+b") as file:
        file.truncate(int(rng.integers(size)))
    return True


def _zero(path: pathlib.Path, rng: np.random.Generator) -> bool:
    data = bytearray(path.read_bytes())
    first = int(rng.integers(max(1, len(data))))
    last = min(len(data), first + 4096)
    if not any(data[first:last]):
        return False
    data[first:last] = bytes(last - first)
    path.write_bytes(data)
    return True


def _delete(path: pathlib.Path, rng: np.random.Generator) -> bool:
    path.unlink()
    return True


SINGLE: dict[str, Callable[[pathlib.Path, np.random.Generator], bool]] = {
    "bit": _flip_bit,
    "bytes": _overwrite,
    "truncate": _truncate,
    "zero": _zero,
    "delete": _delete,
}

_SWAP, _DOUBLE = "swap", "double"
HOW = ("bit", "bit", "bytes", "truncate", "zero", "delete", _SWAP, _DOUBLE)
"""Kinds of damage; a bit twice, since it is the one that nothing else notices."""


def files(root: pathlib.Path) -> list[pathlib.Path]:
    """The files of a folder, or the file, in the order of their names."""
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*") if path.is_file())


def inflict(
    root: pathlib.Path,
    rng: np.random.Generator,
    *,
    among: Sequence[pathlib.Path] | None = None,
    how: Sequence[str] = HOW,
) -> Damage:
    """Damages one file of a folder, and returns what was done.

    Args:
      root: folder or file.
      rng: chooses the file and the damage.
      among: the files to choose from; None takes all of the folder.
      how: the kinds of damage to choose from.
    """
    chosen = list(files(root) if among is None else among)
    while True:
        path, kind = chosen[rng.integers(len(chosen))], how[int(rng.integers(len(how)))]
        if kind in SINGLE:
            if SINGLE[kind](path, rng):
                return Damage(how=kind, path=path)
        elif kind == _SWAP:
            others = [one for one in chosen if one.read_bytes() != path.read_bytes()]
            if others:
                shutil.copyfile(others[rng.integers(len(others))], path)
                return Damage(how=kind, path=path)
        elif root.is_dir():
            twin = path.with_name(f"{path.stem}-again{path.suffix}")
            shutil.copyfile(path, twin)
            return Damage(how=kind, path=twin)
