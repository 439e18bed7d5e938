"""How slides lie on disk: a module for each layout, with ``list_slides`` and ``read_slide``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

from stemjax import errors

_MODULES = {"h5ad": "anndata_file", "spatialdata": "spatialdata_zarr"}
"""Modules that are not called as their layout is."""


def layout(name: str) -> Any:
    """Returns the module that reads a layout: ``list_slides`` and ``read_slide``."""
    module = _MODULES.get(name, name.replace("-", "_"))
    return importlib.import_module(f"stemjax.data.layouts.{module}")


def only_slide(there: Sequence[str], path: str | os.PathLike[str], *, say: str) -> str:
    """Returns the one slide that there is at a path.

    Args:
      there: ids of the slides.
      path: where they are.
      say: how to name one, for the error.

    Raises:
      ConfigError: there are several, or none.
    """
    if len(there) != 1:
        raise errors.ConfigError(
            f"which slide of {path}", expected=say, found=", ".join(there[:10]) or "no slide"
        )
    return there[0]
