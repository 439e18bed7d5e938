"""Reading compiled programs: which arrays they keep, in which layout, what they call and send.

A compiled module's text has one computation after another. The instructions of a fusion live in
registers; those of the entry, of loop bodies and of calls are arrays in memory.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

COMPUTATION = re.compile(r"^(?:ENTRY )?%(?P<name>[\w.\-]+) \(")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%[\w.\-]+ = (?P<result>.*?) (?P<operation>[\w\-]+)\(")
FUSED = re.compile(r"calls=%([\w.\-]+)")
ARRAY = re.compile(
    r"(?P<dtype>[a-z]+\d+)\[(?P<shape>[\d,]*)\]\{(?P<order>[\d,]*)(?::(?P<tiles>[^}]*))?\}"
)
TILE = re.compile(r"T\((\d+),(\d+)\)")
# S(5) is memory of the host.
HOST = re.compile(
    r" (?:infeed|outfeed|send|recv)(?:-done)?\(|callback|host_compute|MoveToHost|S\(5\)"
)
NO_BUFFER = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "call"}

KINDS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|condition|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+)(\d+)?(?:e\d\w*)?\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buffer:
    """An array that an instruction writes.

    Attributes:
      dtype: XLA's name, such as ``bf16``.
      shape: as the program has it.
      order: axes from the fastest to the slowest.
      tile: rows and columns of a tile of the two fastest axes; 1 where the layout has none.
    """

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, int] = (1, 1)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def padded(self, axis: int) -> int:
        """Returns the length that an axis takes in memory."""
        length = self.shape[axis]
        for place, step in zip(self.order[:2], reversed(self.tile)):
            if place == axis:
                return math.ceil(length / step) * step
        return length


def buffers(text: str) -> Iterator[Buffer]:
    """Yields the arrays that a compiled module writes, those inside fusions left out."""
    inside = set(FUSED.findall(text))
    skipped = False
    for line in text.splitlines():
        if opened := COMPUTATION.match(line):
            skipped = opened["name"] in inside
        found = INSTRUCTION.match(line)
        if skipped or not found or found["operation"] in NO_BUFFER:
            continue
        for array in ARRAY.finditer(found["result"]):
            tiles = TILE.search(array["tiles"] or "")
            yield Buffer(
                dtype=array["dtype"],
                shape=_numbers(array["shape"]),
                order=_numbers(array["order"]),
                tile=(int(tiles[1]), int(tiles[2])) if tiles else (1, 1),
            )


def score_buffers(text: str, *, rows: int, tokens: int) -> list[str]:
    """Returns the float32 arrays of attention scores or weights that go through memory.

    Args:
      text: of the compiled module.
      rows: samples in the batch.
      tokens: tokens a sample; an array of at least rows tokens^2 elements with two axes of that
        length is taken for scores.
    """
    found = {
        f"{array.dtype}[{','.join(map(str, array.shape))}]"
        for array in buffers(text)
        if array.dtype == "f32"
        and array.shape.count(tokens) >= 2
        and array.size >= rows * tokens**2
    }
    return sorted(found)


def token_padding(text: str, *, rows: int, tokens: int) -> dict[str, float]:
    """Returns what the token axis is padded to, with the share of its elements in each layout.

    Arrays of at least ``rows`` x ``tokens`` elements are counted, an array once for each
    instruction that writes it; an axis that another one separates from the tiles is not padded.
    """
    sizes: dict[int, int] = {}
    for array in buffers(text):
        if tokens in array.shape and array.size >= rows * tokens:
            axes = [axis for axis, length in enumerate(array.shape) if length == tokens]
            longest = max(array.padded(axis) for axis in axes)
            sizes[longest] = sizes.get(longest, 0) + array.size
    whole = sum(sizes.values())
    return {str(length): sizes[length] / whole for length in sorted(sizes)}


def has_float64(text: str) -> bool:
    """Returns whether any array is float64."""
    return re.search(r"\bf64\[", text) is not None


def host_traffic(text: str) -> list[str]:
    """Returns the traces of anything that leaves the device in mid-program."""
    return sorted({match.strip(" (") for match in HOST.findall(text)})


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Returns what a compiled program communicates: kind -> calls, bytes and places.

    Args:
      text: the program as `jax.stages.Compiled.as_text` gives it.

    ``calls`` and ``bytes`` are of one run of the program: the body of a loop counts once for each
    turn, where XLA knows their number, and else once. ``places`` counts the lines of the program.
    """
    parts: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            parts[name] = []
            entry = name if header[1] else entry
        elif name:
            parts[name].append(line)
    runs: collections.Counter[str] = collections.Counter()

    def visit(part: str, times: int) -> None:
        runs[part] += times
        for line in parts.get(part, ()):
            turns = _TURNS.search(line)
            inside = times * int(turns[1]) if turns and " while(" in line else times
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for other in called:
                visit(other, inside)

    visit(entry, 1)
    found: dict[str, dict[str, int]] = {}
    for part, lines in parts.items():
        for line in lines:
            if (one := _COLLECTIVE.match(line)) and runs[part]:
                row = found.setdefault(one[2], {"calls": 0, "bytes": 0, "places": 0})
                row["calls"] += runs[part]
                row["bytes"] += runs[part] * _bytes(one[1], started=bool(one[3]), kind=one[2])
                row["places"] += 1
    return found


def _bytes(shape: str, *, started: bool, kind: str) -> int:
    """Bytes of a result, which for most that are only started lists the operands before it."""
    sizes = []
    for letters, bits, dimensions in _ARRAY.findall(shape):
        count = math.prod(_numbers(dimensions))
        sizes.append(count * (1 if letters == "pred" else -(-int(bits or 8) // 8)))
    if started and kind != "all-reduce":
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
