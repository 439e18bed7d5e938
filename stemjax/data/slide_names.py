"""Names in slides from anywhere: the slide's id, its spots' barcodes and its genes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from stemjax import errors, names

LONGEST = 400
"""Letters of a barcode or a gene's name; where a gene has several ids, they are joined in one."""

# Controls, marks that turn the direction of writing or are not seen, halves of letters, and what
# breaks lines: of use to nobody but who wants a name to be read as another.
_UNSEEN = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def require_id(slide_id: str) -> None:
    """Checks that a slide's id can be part of a file name.

    Raises:
      SlideError: it cannot on every system, see `stemjax.names.is_id`.
    """
    if not names.is_id(slide_id):
        raise errors.SlideError(
            "slide id cannot be used",
            expected=f"1 to {names.LONGEST_ID} of A-Z a-z 0-9 _ . -, a letter, digit or _ first, "
            "no dot last, few dots and underscores, and no device of Windows such as CON",
            found=repr(slide_id)[:200],
            fix="Rename the slide's files",
        )


def strange(given: Sequence[str]) -> list[str]:
    """Returns the names that are longer than `LONGEST` or hold letters that are not seen."""
    # Joined first: to look at each of 30,000 genes takes longer than all other checks.
    if not _UNSEEN.search("|".join(given)) and max(map(len, given), default=0) <= LONGEST:
        return []
    return [name for name in given if _UNSEEN.search(name) or len(name) > LONGEST]


def require_names(given: Sequence[str], what: str, slide_id: str) -> None:
    """Checks the names of a slide's rows or columns: each once, and each can be seen.

    Args:
      given: the names.
      what: "barcode" or "gene".
      slide_id: for the message.

    Raises:
      SlideError: one occurs twice, is longer than `LONGEST`, or holds letters that are not seen.
    """
    if wrong := strange(given):
        raise errors.SlideError(
            f"slide {slide_id}: {len(wrong)} {what} names cannot be used",
            expected=f"at most {LONGEST} letters each, none of which controls a terminal, breaks a "
            "line or turns the direction of writing",
            found=ascii(wrong[0])[:120],
            fix="Rename these rows or columns; a damaged file may have such names, too",
        )
    if len(set(given)) == len(given):
        return
    values, times = np.unique(np.asarray(given, str), return_counts=True)
    order = np.argsort(-times, kind="stable")[: int((times > 1).sum())]
    doubled = [f"{values[i]} x{times[i]}" for i in order]
    more = f" and {len(doubled) - 3} more" if len(doubled) > 3 else ""
    raise errors.SlideError(
        f"slide {slide_id}: {what} names are not unique",
        expected=f"each {what} once",
        found=", ".join(doubled[:3]) + more,
        fix=f"Rename or add up the rows or columns that share a {what} name",
        case="D08" if what == "gene" else None,
    )
