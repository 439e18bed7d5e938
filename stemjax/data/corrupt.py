"""What a run does about records that cannot be read: refuse them, or go without a few of them.

    Damage of every process --agree--> the same on all --leave_out--> records without those rows

The rows left out are a function of the files alone. Batches, the space and validation are then
those of records that were made without them, wherever the rows lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stemjax import errors
from stemjax.data import records as records_lib
from stemjax.data import shards
from stemjax.foreign import json_text

_LISTED = 20


def pack(damage: Sequence[shards.Damage]) -> bytes:
    """Damage as bytes, for other processes."""
    return json.dumps([one.to_json() for one in damage]).encode()


def agree(every: Iterable[bytes]) -> list[shards.Damage]:
    """The damage that any process found, in one order on all of them.

    Where each has a copy of the files of its own, a record that one of them cannot read is left out
    by all.

    Args:
      every: what each process packed.
    """
    found = [shards.Damage.from_json(one) for part in every for one in json_text.parse(part)]
    unlike = {json.dumps(one.to_json()): one for one in found}
    return sorted(unlike.values(), key=lambda one: (one.slide, one.shard, one.what, one.rows))


def leave_out(
    source: records_lib.Records,
    damage: Sequence[shards.Damage],
    *,
    used: Mapping[str, Sequence[str]],
    share: float,
) -> records_lib.Records:
    """The records without the rows that cannot be read.

    Args:
      source: the records.
      damage: of the slides in use.
      used: slides by what they are used for, such as training.
      share: largest share of the rows of each use that is left out.

    Raises:
      RecordsError: more cannot be read, or nothing is left of a slide.
    """
    rows = shards.unreadable_rows(damage)
    for use, slides in used.items():
        lost, n = sum(len(rows.get(slide, ())) for slide in slides), source.count(slides)
        if lost > share * n:
            raise errors.RecordsError(
                f"{lost} of {n} {use} rows cannot be read: {_listed(damage, slides)}",
                expected=f"at most the share config.data.corrupt_share={share:g}",
                found=f"{lost / n:.2g}",
                fix="Run `stemjax prepare` again with the same options: it writes damaged slides "
                "anew. Or raise config.data.corrupt_share, if so many may be left out",
            )
    return source.leave_out(damage)


def in_words(
    source: records_lib.Records,
    damage: Sequence[shards.Damage],
    *,
    used: Mapping[str, Sequence[str]],
) -> str:
    """What is left out, for the log; arguments as of `leave_out`."""
    rows, counts = shards.unreadable_rows(damage), []
    for use, slides in used.items():
        lost = sum(len(rows.get(slide, ())) for slide in slides)
        if lost:
            counts.append(f"{lost} of {source.count(slides)} {use} rows")
    skipped = " and ".join(counts) or "no row"
    every = [slide for slides in used.values() for slide in slides]
    return f"damaged records, {skipped} left out: {_listed(damage, every)}"


def about(source: records_lib.Records) -> dict[str, Any]:
    """What a card's split says of rows left out: nothing where there are none.

    ``skipped`` has their number by slide; ``skipped_rows`` a digest of which they are, so that a
    run does not go on with others.
    """
    left = {slide: list(rows) for slide, rows in (source.left_out or {}).items()}
    if not left:
        return {}
    digest = hashlib.sha256(json.dumps(left, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "skipped": {slide: len(rows) for slide, rows in left.items()},
        "skipped_rows": digest,
    }


def _listed(damage: Sequence[shards.Damage], slides: Sequence[str]) -> str:
    named = [f"slide {one.slide}, shard {one}" for one in damage if one.slide in set(slides)]
    more = f"; and {len(named) - _LISTED} more shards" if len(named) > _LISTED else ""
    return "; ".join(named[:_LISTED]) + more
