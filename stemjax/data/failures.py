"""Slides that could not be prepared, kept beside the records until they are.

    OUT/failed/<split>.json       one slide each: its id, and the error in its parts

Every process of a job that prepares many slides writes here, so the folder lists all that is left
to mend, whichever process met it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import traceback

from stemjax import errors
from stemjax.data import builder, integrity
from stemjax.foreign import json_text

FOLDER = "failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a slide could not be prepared.

    Attributes:
      slide: its id.
      type: the error's class.
      code: a `StemjaxError`'s code; None of any other error.
      message: what it says.
      traceback: where it was raised; None of a `StemjaxError`, which says what to do.
    """

    slide: str
    type: str
    code: str | None
    message: str
    traceback: str | None

    def __str__(self) -> str:
        return f"{self.type}{f' [{self.code}]' if self.code else ''}: {self.message}"


def record(out: pathlib.Path, slide_id: str, error: Exception) -> Failure:
    """Write why the slide failed; replaces what was written of it earlier.

    The error itself is not kept: its traceback holds the slide's image and embeddings.
    """
    ours = isinstance(error, errors.StemjaxError)
    failure = Failure(
        slide=slide_id,
        type=type(error).__name__,
        code=error.code if ours else None,
        message=str(error),
        traceback=None if ours else "".join(traceback.format_exception(error)),
    )
    path = _path(out, slide_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    integrity.write_text(path, json.dumps(dataclasses.asdict(failure), indent=1) + "\n")
    return failure


def forget(out: pathlib.Path, slide_id: str) -> None:
    """Remove what was written of the slide, which is prepared now."""
    _path(out, slide_id).unlink(missing_ok=True)


def listed(out: pathlib.Path) -> list[Failure]:
    """What is left to mend in the folder, sorted by slide; files of other kinds are passed over."""
    found = []
    for path in (out / FOLDER).glob("*.json"):
        try:
            found.append(Failure(**json_text.parse(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, FileNotFoundError):  # none of ours, or mended just now
            continue
    return sorted(found, key=lambda failure: failure.slide)


def _path(out: pathlib.Path, slide_id: str) -> pathlib.Path:
    return out / FOLDER / f"{builder.split_name(slide_id)}.json"
