"""Where an export may be written: nothing but an older one of its own kind is ever replaced."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from stemjax import errors


def in_the_way(path: pathlib.Path, is_ours: Callable[[str], bool], *, mark: str | None) -> str:
    """Returns what stands at a path besides an older export; "" if nothing.

    Args:
      path: where an export is to be.
      is_ours: whether a file of this name is one that such an export has.
      mark: the file that tells an older one, which alone may be deleted; None asks for none.
    """
    if not path.is_dir():
        return "a file" if path.exists() else ""
    inside = {file.name for file in path.iterdir()}
    others = {name for name in inside if not is_ours(name)}
    if others or (inside and mark is not None and mark not in inside):
        return f"a folder with other files ({sorted(others or inside)[0]})"
    return ""


def require_free(path: pathlib.Path, found: str, *, older: str) -> None:
    """Checks that nothing is in the way.

    Args:
      path: where an export is to be.
      found: what `in_the_way` says.
      older: what may be replaced, in words.

    Raises:
      BundleError: something is.
    """
    if found:
        raise errors.BundleError(
            f"{path} is in the way",
            expected=f"nothing there, an empty folder or {older}",
            found=found,
            fix="name another output",
        )
