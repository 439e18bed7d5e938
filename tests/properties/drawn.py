"""What properties are drawn from: plain values, changes to valid ones, damaged text and bytes."""

from __future__ import annotations

import contextlib
import copy
import json

from hypothesis import strategies as st

from stemjax import errors

TEXT = st.text(max_size=8)
NUMBERS = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([10**3, 2**31, 2**63, 10**30, -(10**20)]),
    st.floats(allow_nan=True, allow_infinity=True),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
JSON = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
"""Whatever Python's JSON reader gives, NaN and infinity included."""


def places(value, path=()):
    """Paths of all values within one."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(min(len(value), 4)):
            yield from places(value[i], (*path, i))


def at(value, path):
    for key in path:
        value = value[key]
    return value


@st.composite
def changed(draw, value, most=2):
    """A plain value with one or two of its parts replaced, left out or added to."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(sorted(places(value), key=repr)))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(JSON)
            continue
        parent, key = at(value, path[:-1]), path[-1]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "drop", "add"]))
        if kind == "replace":
            parent[key] = draw(JSON)
        elif kind == "drop":
            del parent[key]
        elif isinstance(parent, dict):
            parent[draw(TEXT)] = draw(JSON)
        else:
            parent.append(draw(JSON))
    return value


CELLS = st.one_of(
    st.sampled_from(["", " ", "0", "1", "-1", "1.5", "nan", "inf", "1e309", '"', "\t", ",", "\n"]),
    st.sampled_from(["99999999999999999999", "0x1", "TRUE", "\x00", "\ufeff", "\u2028", "#", "'"]),
    TEXT,
)


@st.composite
def damaged_text(draw, text):
    """A text with some of its pieces replaced, doubled or cut out."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 12)))
        middle = draw(st.one_of(CELLS, st.just(text[start:stop] * 2)))
        text = text[:start] + middle + text[stop:]
    return text


@st.composite
def damaged_bytes(draw, raw):
    """Bytes of which one to eight are others, some put in, or the end cut off."""
    raw = bytearray(raw)
    for _ in range(draw(st.integers(1, 8))):
        if raw:
            raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    if draw(st.integers(0, 7)) == 0:
        place = draw(st.integers(0, len(raw)))
        raw = raw[:place] + draw(st.binary(max_size=8)) + raw[place:]
    if draw(st.integers(0, 7)) == 0:
        raw = raw[: draw(st.integers(0, len(raw)))]
    return bytes(raw)


def as_text(value):
    """JSON as Python writes it, with NaN and infinity."""
    return json.dumps(value)


def encoded(text):
    """UTF-8 of any text, lone surrogates included."""
    return text.encode("utf-8", "surrogatepass")


def or_refused(call, *given, **options):
    """What a call returns, and None if it refuses with a typed error; others are not caught."""
    with contextlib.suppress(errors.StemjaxError):
        return call(*given, **options)
    return None
