"""Folders from anywhere, looked over before a library opens them.

A link in a folder may lead to any file of the machine, whose bytes would then be read as pixels or
weights. A zarr array may name the codec ``pickle``, by which reading a chunk runs code: zarr 3.4
refuses that by itself, versions before do not.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from stemjax import errors
from stemjax.foreign import json_text

MAX_METADATA_BYTES = 64 * 2**20
"""Largest file of metadata that is read; consolidated ones of large stores have some MB."""

_METADATA = (".zarray", ".zmetadata", "zarr.json")
_RUNS_CODE = ("pickle", "numcodecs.pickle")


def links_outside(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the links in a folder that lead out of it, or nowhere: "NAME: where to"."""
    top = pathlib.Path(folder).resolve()
    found = []
    for where, names in _walk(top):
        for name in names:
            path = where / name
            if path.is_symlink() and not (path.exists() and path.resolve().is_relative_to(top)):
                found.append(f"{path.relative_to(top).as_posix()}: a link to {path.readlink()}")
    return sorted(found)


def require_closed(folder: str | os.PathLike[str]) -> None:
    """Checks that no link in a folder leads out of it.

    Raises:
      UnsafeFileError: one does.
    """
    if leading := links_outside(folder):
        raise errors.UnsafeFileError(
            f"{folder}: a link in it leads outside",
            expected="files of its own",
            found=ascii(leading[0])[1:-1][:200],
            fix="If the links are yours, copy the folder with what they lead to: cp -rL",
        )


def require_harmless_zarr(folder: str | os.PathLike[str]) -> None:
    """Checks a zarr store before it is opened: no link out of it, no codec that runs code.

    Raises:
      UnsafeFileError: there is one, or metadata of more than `MAX_METADATA_BYTES`.
    """
    require_closed(folder)
    for where, names in _walk(pathlib.Path(folder)):
        for name in names:
            if name in _METADATA:
                _require_harmless(where / name)


def _require_harmless(path: pathlib.Path) -> None:
    size = path.stat().st_size
    if size > MAX_METADATA_BYTES:
        raise errors.UnsafeFileError(
            f"{path}: metadata of a zarr store",
            expected=f"at most {MAX_METADATA_BYTES:,} bytes",
            found=f"{size:,}",
            fix="Leave it out",
        )
    text = path.read_bytes()
    try:
        told = json_text.parse(text)
    except ValueError:
        return  # zarr refuses it, too
    if named := next(_codecs(told), None):
        raise errors.UnsafeFileError(
            f"{path.parent} is stored by the codec {named}, which runs code when it is read",
            expected="numbers and text: no Python objects",
            found="nothing of it was read",
            fix="Write it again from where it can be trusted, without object arrays",
        )


def _codecs(told: Any) -> Iterator[str]:
    """Yields the codecs that run code anywhere in metadata."""
    waiting = [told]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
            for key in ("id", "name", "object_codec_id"):
                name = one.get(key)
                if isinstance(name, str) and name.lower() in _RUNS_CODE:
                    yield name
        elif isinstance(one, list):
            waiting += one


def _walk(top: pathlib.Path) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """Yields each folder and the names in it; links are named and not followed."""
    for where, folders, files in os.walk(top, followlinks=False):
        yield pathlib.Path(where), [*folders, *files]
