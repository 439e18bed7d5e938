"""How slides lie on disk: a module for each layout, with ``list_slides`` and ``read_slide``."""

from __future__ import annotations

import importlib
from typing import Any


def layout(name: str) -> Any:
    """Returns the module that reads a layout: ``list_slides`` and ``read_slide``."""
    return importlib.import_module(f"stemjax.data.layouts.{name.replace('-', '_')}")
