"""The files of slides' records: which folders hold slides, and what their metadata say."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stemjax import errors
from stemjax.data import builder, integrity

AGAIN = "Run `stemjax prepare` again with the same options: it writes only what is missing"


def slide_folders(root: pathlib.Path) -> list[pathlib.Path]:
    """Version folders of the slides under `root`, sorted; what is still being written is not."""
    found = (root / builder.DATASET).glob(f"*/{builder.VERSION}")
    return sorted(folder for folder in found if not folder.parent.name.startswith("."))


def read_metadata(folder: pathlib.Path) -> dict[str, Any]:
    """The metadata of a slide's version folder, once all sizes and small files are checked.

    Raises:
      RecordsError: files are damaged or missing, or another version of stemjax wrote them.
    """
    wrong = integrity.damage(folder, unhashed=builder.SHARD_MARK)
    if wrong:
        raise damaged(folder.parent.name, folder, wrong)
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    if metadata.get("format") != builder.FORMAT:
        raise errors.RecordsError(
            f"The records in {folder} have another format",
            expected=f"format {builder.FORMAT}",
            found=str(metadata.get("format")),
            fix="Prepare the slides again with this version of stemjax, into another folder",
        )
    return metadata


def slide_info(metadata: Mapping[str, Any]) -> builder.SlideInfo:
    """The slide part of a directory's metadata."""
    stored = dict(metadata["slide"])
    stored["notes"] = tuple(stored["notes"])
    return builder.SlideInfo(**stored)


def spot_labels(metadata: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Labels of the spots by name, in row order; none in records of slides without any."""
    return {name: tuple(values) for name, values in metadata.get("labels", {}).items()}


def damaged(slide: str, folder: pathlib.Path, wrong: Sequence[str]) -> errors.RecordsError:
    """The error of a slide whose files are not as they were written."""
    return errors.RecordsError(
        f"The records of slide {slide} in {folder} are damaged: {'; '.join(wrong)}", fix=AGAIN
    )
