"""The corpus: importing it registers every case (`boxes.CASES`). No case is stored as a file."""

from __future__ import annotations

import hostile_images
import hostile_models
import hostile_predictions
import hostile_slides
import hostile_stores
import hostile_tables
from boxes import CASES

__all__ = ["CASES", "MODULES"]

MODULES = (
    hostile_images,
    hostile_models,
    hostile_predictions,
    hostile_slides,
    hostile_stores,
    hostile_tables,
)
