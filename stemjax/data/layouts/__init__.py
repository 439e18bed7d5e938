"""How slides lie on disk: a module for each layout, with ``list_slides`` and ``read_slide``."""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {"h5ad": "anndata_file", "spatialdata": "spatialdata_zarr"}
"""Modules that are not called as their layout is."""


def layout(name: str) -> Any:
    """Returns the module that reads a layout: ``list_slides`` and ``read_slide``."""
    module = _MODULES.get(name, name.replace("-", "_"))
    return importlib.import_module(f"stemjax.data.layouts.{module}")
