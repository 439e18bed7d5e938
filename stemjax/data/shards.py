"""One slide's shards: whether they are as written, and which of their records can be read.

    shard file  --size, count, SHA-256-->  as written, or not
    not as written  --every record by itself-->  `Damage`: which cannot be read, and why

array_record hashes each chunk, so a flipped bit fails the records that it hits; but a whole file of
another making decodes well, and one cut at a multiple of 64 KiB reads as empty records without an
error. So the sum of each record is kept beside the shards, and tells which are those written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from stemjax.data import integrity
from stemjax.foreign import json_text

MARK = ".array_record-"
SUMS = "record_sums.json"

_SUM_DIGITS = 16  # 64 bits: enough to tell records apart, and little beside what a record takes
_AT_ONCE = 256
_THREADS = min(8, os.cpu_count() or 1)
# Random access, no threads of its own: what the data source opens its files with.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"

# Compiled code, of whose names no type checker knows.
_module: Any = array_record_module


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A shard that a slide has according to its dataset_info.json.

    Attributes:
      name: file name.
      first: row of its first record among the slide's.
      n: records.
    """

    name: str
    first: int
    n: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage:
    """A shard that is not as it was written.

    Attributes:
      slide: the slide's id.
      shard: file name.
      first: row of its first record among the slide's.
      n: records that it should have.
      what: what is wrong with the file.
      unreadable: records that cannot be read or are not those written, counted from 0 in the shard,
        and why; none where the damage lies in bytes that no record uses.
    """

    slide: str
    shard: str
    first: int
    n: int
    what: str
    unreadable: Mapping[int, str]

    @property
    def rows(self) -> tuple[int, ...]:
        """The slide's rows that cannot be read, ascending."""
        return tuple(self.first + number for number in sorted(self.unreadable))

    def __str__(self) -> str:
        if not self.unreadable:
            return f"{self.shard}: {self.what}, but all {self.n} records are as written"
        numbers = sorted(self.unreadable)
        why = self.unreadable[numbers[0]]
        if len(numbers) == self.n:
            reason = "" if why == self.what else f" ({why})"
            return f"{self.shard}: {self.what}; none of its {self.n} records can be read{reason}"
        plural = "s" * (len(numbers) > 1)
        return (
            f"{self.shard}: {self.what}; record{plural} {in_ranges(numbers)} of 0-{self.n - 1} "
            f"cannot be read ({why})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back."""
        return {**vars(self), "unreadable": list(self.unreadable.items())}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Damage:
        """The damage that `to_json` gave."""
        unreadable = {int(number): str(why) for number, why in values["unreadable"]}
        return cls(**{**values, "unreadable": unreadable})


def unreadable_rows(damage: Sequence[Damage]) -> dict[str, tuple[int, ...]]:
    """Rows that cannot be read, ascending, of the slides that have any, sorted by id.

    Args:
      damage: of any shards, a shard perhaps more than once: as several processes found it.
    """
    rows: dict[str, set[int]] = {}
    for one in damage:
        rows.setdefault(one.slide, set()).update(one.rows)
    return {slide: tuple(sorted(rows[slide])) for slide in sorted(rows) if rows[slide]}


def in_ranges(numbers: Sequence[int]) -> str:
    """Ascending whole numbers as people write them: 3, 5-9 and 8 more."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    said = [str(a) if a == b else f"{a}-{b}" for a, b in parts[:8]]
    more = sum(b - a + 1 for a, b in parts[8:])
    return ", ".join(said) + (f" and {more} more" if more else "")


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Any]:
    """A reader of a shard, which may be damaged: only reading from it tells."""
    reader = _module.ArrayRecordReader(str(path), options=_OPTIONS, file_reader_buffer_size=32768)
    try:
        yield reader
    finally:
        with contextlib.suppress(RuntimeError):  # closing says once more what reading said
            reader.close()


def write_sums(folder: pathlib.Path) -> None:
    """Write the sum of every record of the folder's shards, as they lie on the disk."""
    found = {}
    for path in sorted(folder.glob(f"*{MARK}*")):
        with opened(path) as reader:
            found[path.name] = [_sum(reader.read([i])[0]) for i in range(reader.num_records())]
    integrity.write_text(folder / SUMS, json.dumps(found, separators=(",", ":")) + "\n")


def find_damage(
    shards: Sequence[tuple[str, pathlib.Path, Shard]], *, hashed: bool = True
) -> list[Damage]:
    """The damaged ones among some shards, in their order; several are read at a time.

    Args:
      shards: slide, version folder and shard of each.
      hashed: compare hashes, which reads the files whole; else sizes and numbers of records alone.
    """
    if not hashed:  # a look at the end of each file, for which no thread is worth starting
        found = [_damage_of(*one, hashed=False) for one in shards]
    else:
        with futures.ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(lambda one: _damage_of(*one, hashed=True), shards))
    return [damage for damage in found if damage is not None]


def miscount(folder: pathlib.Path, shard: Shard) -> str | None:
    """What the end of a shard's file, read alone, says against its number of records."""
    with opened(folder / shard.name) as reader:
        found = reader.num_records()
        if reader.ok() and found == shard.n:
            return None
        if reader.ok() and found:
            return f"{found} records instead of {shard.n}"
        return _why_not(reader, 0)


def failing(folder: pathlib.Path, shard: Shard, numbers: Sequence[int]) -> tuple[int, str] | None:
    """The first of some records of a shard that cannot be read, and why."""
    with opened(folder / shard.name) as reader:
        found = ((number, _why_not(reader, number)) for number in numbers)
        return next(((number, why) for number, why in found if why), None)


def _damage_of(slide: str, folder: pathlib.Path, shard: Shard, *, hashed: bool) -> Damage | None:
    what = _wrong(folder, shard, hashed=hashed)
    if what is None:
        return None
    return Damage(
        slide=slide,
        shard=shard.name,
        first=shard.first,
        n=shard.n,
        what=what,
        unreadable=_unreadable(folder, shard, what),
    )


def _wrong(folder: pathlib.Path, shard: Shard, *, hashed: bool) -> str | None:
    """What is wrong with the file of a shard; None where nothing is."""
    listed = integrity.read_manifest(folder)
    size, digest = listed[shard.name]
    path = folder / shard.name
    try:
        if not path.is_file():
            return "missing"
        if (found := path.stat().st_size) != size:
            return f"{found} bytes instead of {size}"
        if not hashed:
            return miscount(folder, shard)
        now = integrity.sha256(path)
    except OSError as error:  # a bad sector, say
        return error.strerror or str(error)
    if now == digest:
        return miscount(folder, shard)
    others = [name for name, entry in listed.items() if entry.sha256 == now]
    if others:
        return f"it holds what {others[0]} should"
    return f"sha256 {now[:12]}... instead of {digest[:12]}..."


def _unreadable(folder: pathlib.Path, shard: Shard, what: str) -> dict[int, str]:
    """Which records of a damaged shard cannot be read or are not those written, and why."""
    if not (folder / shard.name).is_file():
        return dict.fromkeys(range(shard.n), what)
    if wrong := miscount(folder, shard):
        return dict.fromkeys(range(shard.n), wrong)
    sums = _sums(folder).get(shard.name)
    if sums is None or len(sums) != shard.n:
        # Another file under this name would decode as well as the one that was written.
        why = f"without {SUMS}, which older versions did not write, none can be vouched for"
        return dict.fromkeys(range(shard.n), why)
    found: dict[int, str] = {}
    with opened(folder / shard.name) as reader:
        for start in range(0, shard.n, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, shard.n))
            found.update(_unlike(reader, numbers, sums))
    return found


def _unlike(reader: Any, numbers: range, sums: Sequence[str]) -> dict[int, str]:
    try:
        records = reader.read(list(numbers))
        if [_sum(record) for record in records] == list(sums[numbers.start : numbers.stop]):
            return {}
    except RuntimeError:  # one of them fails all
        pass
    found = {}
    for number in numbers:
        why = _why_not(reader, number)
        if why is None and _sum(reader.read([number])[0]) != sums[number]:
            why = "another record than was written"
        if why is not None:
            found[number] = why
    return found


def _why_not(reader: Any, number: int) -> str | None:
    """Why a record cannot be read, in a few words; None if it can."""
    try:
        records = reader.read([number])
    except RuntimeError as error:
        return reason(error)
    # A file that was cut at a multiple of 64 KiB gives empty records and no error.
    return None if records and records[0] else "the file ends before its list of records"


def reason(error: Exception) -> str:
    """What array_record says of a damaged file, without addresses in it and paths."""
    said = re.sub(r"^(Corrupted|Invalid) Riegeli/records file: ", "", str(error))
    return re.split(r" \(computed|[;,] (?:chunk|block|at|opening|current) ", said)[0] or "unknown"


def _sums(folder: pathlib.Path) -> dict[str, list[str]]:
    path = folder / SUMS
    return json_text.parse(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _sum(record: bytes) -> str:
    return hashlib.sha256(record).hexdigest()[:_SUM_DIGITS]
