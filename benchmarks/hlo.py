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

import numpy as np

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
BETWEEN_SLICES = "between-slices"
"""What a TPU program hands to the data centre's network, for a sum over slices."""

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_RECEIVED = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = \((.*?), u32.*? recv\(.*xla_megascale")
_SCATTERED = re.compile(r"^\s+ROOT %?[\w.\-]+ = (.*?) [\w\-]+\(")
_CALLED = re.compile(r"(?:calls|to_apply|condition|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ENDED = re.compile(r" async-(?:update|done)\(")
_STARTED = ("async-start", "call-start")  # the second on a TPU's other cores
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"\b([a-z]+)(\d+)?(?:e\d\w*)?\[([\d,]*)\]")

_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")

_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LOOP = re.compile(r" while\(%?([\w.\-]+)\).*?condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_DEFINED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\(([^)]*)\)(.*)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Communication:
    """Something that devices send each other, as one line of a program has it.

    Attributes:
      kind: one of `KINDS`, or `BETWEEN_SLICES`.
      bytes: of the result on a device, for one call.
      calls: in one run of the program.
      group: devices of the first group, as places in the program's order of devices; empty where
        the program does not say, which is all of them.
      overlapped: whether the program goes on with other work before it waits for the result.
    """

    kind: str
    bytes: int
    calls: int
    group: tuple[int, ...] = ()
    overlapped: bool = False


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

    ``calls`` and ``bytes`` are of one run of the program, ``places`` counts its lines; the rest as
    in `communications`.
    """
    found: dict[str, dict[str, int]] = {}
    for one in communications(text):
        row = found.setdefault(one.kind, {"calls": 0, "bytes": 0, "places": 0})
        row["calls"] += one.calls
        row["bytes"] += one.calls * one.bytes
        row["places"] += 1
    return found


def communications(text: str) -> list[Communication]:
    """Returns what a compiled program communicates, a line of the program each.

    Args:
      text: the program as `jax.stages.Compiled.as_text` gives it.

    The body of a loop counts once for each turn, where the number of turns is known or can be read
    from its condition, and else once (`uncounted_loops`). A program for TPU has two forms of its
    own. A collective that overlaps with other work stands in the fusion that starts it, in those
    that go on with it and in the one that ends it: it counts where it starts. A sum of which each
    device keeps its piece is a computation ``all-reduce-scatter``: it counts as reduce-scatter.
    """
    parts, entry = _computations(text)
    runs, fused = _runs(parts, entry)
    started = {
        channel
        for lines in parts.values()
        if any("AsyncCollectiveStart" in line for line in lines)
        for channel in _channels(lines)
    }
    found = []
    for part, lines in parts.items():
        if not runs[part]:
            continue
        starts = any("AsyncCollectiveStart" in line for line in lines)
        scatters = part.startswith("all-reduce-scatter")
        for line in lines:
            if received := _RECEIVED.match(line):
                size = _bytes(received[1], started=False, kind=BETWEEN_SLICES)
                found.append(Communication(kind=BETWEEN_SLICES, bytes=size, calls=runs[part]))
            one = _COLLECTIVE.match(line)
            if not one or (part in fused and not starts and started & _channels([line])):
                continue
            kind, shape = one[2], one[1]
            if scatters:
                kind, shape = "reduce-scatter", _result(lines, otherwise=shape)
            found.append(
                Communication(
                    kind=kind,
                    bytes=_bytes(shape, started=bool(one[3]), kind=one[2]),
                    calls=runs[part],
                    group=_group(line),
                    overlapped=starts or bool(one[3]) or fused.get(part) in _STARTED,
                )
            )
    return found


def uncounted_loops(text: str) -> int:
    """Returns the number of loops that communicate and whose turns `communications` cannot tell."""
    parts, _ = _computations(text)

    def communicates(part: str) -> bool:
        lines = parts.get(part, ())
        return any(_COLLECTIVE.match(line) for line in lines) or any(
            communicates(other) for line in lines for other in _CALLED.findall(line)
        )

    return sum(
        communicates(loop[3]) and _turns(line, lines, parts) is None
        for lines in parts.values()
        for line in lines
        if (loop := _LOOP.search(line))
    )


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the entry."""
    parts: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            parts[name] = []
            entry = name if header[1] else entry
        elif name:
            parts[name].append(line)
    return parts, entry


def _runs(
    parts: dict[str, list[str]], entry: str
) -> tuple[collections.Counter[str], dict[str, str]]:
    """How often each computation runs; and which operation calls those that are fused."""
    runs: collections.Counter[str] = collections.Counter()
    fused: dict[str, str] = {}

    def visit(part: str, times: int) -> None:
        runs[part] += times
        for line in parts.get(part, ()):
            if _ENDED.search(line):
                continue
            turns = _turns(line, parts[part], parts) if " while(" in line else None
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for operation in ("fusion", *_STARTED):
                if f" {operation}(" in line:
                    fused.update(dict.fromkeys(called, operation))
            for other in called:
                visit(other, times * (turns or 1))

    visit(entry, 1)
    return runs, fused


def _turns(line: str, around: list[str], parts: dict[str, list[str]]) -> int | None:
    """Turns of a loop: as the program says, or of a counter that goes up to a constant."""
    if known := _TURNS.search(line):
        return int(known[1])
    if (loop := _LOOP.search(line)) is None:
        return None
    condition, body, before = (_definitions(p) for p in (parts[loop[2]], parts[loop[3]], around))
    operation, compared, rest = condition["ROOT"]
    if operation != "compare" or "direction=LT" not in rest or len(compared) != 2:
        return None
    limit = _constant(compared[1], condition)
    place = re.search(r"index=(\d+)", condition.get(compared[0], ("", [], ""))[2])
    if limit is None or place is None:
        return None
    initial = before.get(loop[1], ("", [], ""))[1]
    start = _constant(initial[int(place[1])], before) if int(place[1]) < len(initial) else None
    after = body["ROOT"][1]
    new = body.get(after[int(place[1])], ("", [], "")) if int(place[1]) < len(after) else None
    added = [_constant(name, body) for name in new[1]] if new and new[0] == "add" else []
    step = next((number for number in added if number), 1)
    return math.ceil((limit - (start or 0)) / step)


def _definitions(lines: list[str]) -> dict[str, tuple[str, list[str], str]]:
    """Name -> operation, operands and what follows; the last one also as ROOT."""
    found = {"ROOT": ("", [""], "")}
    for line in lines:
        if one := _DEFINED.match(line):
            operands = [name.strip().lstrip("%") for name in _uncommented(one[4]).split(",")]
            found[one[2]] = (one[3], operands, one[5])
            if one[1]:
                found["ROOT"] = found[one[2]]
    return found


def _constant(name: str, definitions: dict[str, tuple[str, list[str], str]]) -> int | None:
    """The number that a name stands for, also where it was copied."""
    operation, operands, _ = definitions.get(name, ("", [""], ""))
    if operation == "constant" and operands[0].lstrip("-").isdigit():
        return int(operands[0])
    return _constant(operands[0], definitions) if operation in ("copy", "bitcast") else None


def _group(line: str) -> tuple[int, ...]:
    """The first group of devices that a collective's line names."""
    if listed := _LISTED.search(line):
        return _numbers(listed[1])
    if counted := _COUNTED.search(line):
        shape, order = _numbers(counted[2]), _numbers(counted[3] or "")
        places = np.arange(math.prod(shape)).reshape(shape).transpose(order or None)
        return tuple(places.reshape(_numbers(counted[1]))[0].tolist())
    if named := _NAMED.search(line):
        axes = {
            name.strip("' "): int(length)
            for name, length in (axis.split("=") for axis in named[1].split(","))
        }
        chosen = {name.strip("' ") for name in named[2].split(",")}
        places = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
        cut = tuple(slice(None) if name in chosen else 0 for name in axes)
        return tuple(np.ravel(places[cut]).tolist())
    return ()


def _channels(lines: list[str]) -> set[str]:
    return {
        match[1] for line in lines if _COLLECTIVE.match(line) for match in _CHANNEL.finditer(line)
    }


def _result(lines: list[str], *, otherwise: str) -> str:
    """The shape of what a computation returns."""
    return next((found[1] for line in lines if (found := _SCATTERED.match(line))), otherwise)


def _uncommented(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text)


def _bytes(shape: str, *, started: bool, kind: str) -> int:
    """Bytes of a result, which for most that are only started lists the operands before it."""
    sizes = []
    if started:  # the context of a start, on a TPU, is no result
        shape = shape.replace("u32[]", "")
    for letters, bits, dimensions in _ARRAY.findall(shape):
        count = math.prod(_numbers(dimensions))
        sizes.append(count * (1 if letters == "pred" else -(-int(bits or 8) // 8)))
    if started and kind != "all-reduce":
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
