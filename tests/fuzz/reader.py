"""The process that reads damaged files for the tests, and the ways in which files are damaged."""

from __future__ import annotations

import collections
import copy
import json
import os
import pathlib
import subprocess
import sys

import h5py
import numpy as np

PLAIN = [None, True, 0, -1, 1.5, 2**70, float("nan"), float("inf"), "", "x", [], {}, [1], {"a": 1}]
PLAIN += [[[]], "../../x", "\u0000", "9" * 50, ["A", "A"], [None], 1e308]


class Reader:
    """Asks `fork_server`, and counts what became of the files."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1",
                 "OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
        assert self.server.stdout.readline() == "ready\n"

    def ask(self, do, *given, **options):
        """What became of reading: outcome and text."""
        request = {"do": do, "given": [str(one) for one in given], **options}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(timeout=30)
        self.server.stdout.close()

    def try_all(self, path, damaged, do, *given, then=lambda: None):
        """Every damaged content in turn in place of a file, which is put back; how often what."""
        whole = path.read_bytes()
        counts = collections.Counter()
        try:
            for number, make in enumerate(damaged):
                make(path, whole)
                then()
                found = self.ask(do, *given)
                counts[found["outcome"]] += 1
                kept = path.with_name(f"damaged-{number}-{path.name}")
                assert found["outcome"] in ("read", "refused"), (str(kept), found)
        finally:
            path.write_bytes(whole)
            then()
        return counts


def with_bytes(rng):
    """One to eight bytes are others; one file in eight is cut off too."""

    def make(path, whole):
        raw = bytearray(whole)
        if rng.random() < 0.125:
            raw = raw[: rng.integers(len(raw) + 1)]
        for place in rng.integers(0, max(len(raw), 1), rng.integers(1, 9)):
            if raw:
                raw[place] ^= rng.integers(1, 256)
        path.write_bytes(bytes(raw))

    return make


def with_values(rng):
    """In JSON one to three values are others, left out or too many."""

    def make(path, whole):
        holder = [json.loads(whole)]
        for _ in range(rng.integers(1, 4)):
            parent, key = _place(holder, rng)
            kind = rng.integers(4)
            if kind == 0 and parent is not holder:
                del parent[key]
            elif kind == 1 and isinstance(parent, dict):
                parent[["more", "", "format"][rng.integers(3)]] = _plain(rng)
            else:
                parent[key] = _plain(rng)
        path.write_text(json.dumps(holder[0]), encoding="utf-8")

    return make


def _plain(rng):
    return copy.deepcopy(PLAIN[rng.integers(len(PLAIN))])


def _place(holder, rng):
    """A container in a plain value, and a key of it; the deeper the rarer."""
    parent, key = holder, 0
    while isinstance(inner := parent[key], dict | list) and len(inner) and rng.random() < 0.8:
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        parent, key = inner, keys[int(rng.integers(len(keys)))]
    return parent, key


def with_lines(rng):
    """In a text one to three pieces are left out, doubled, or others."""

    def make(path, whole):
        raw = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(len(raw) + 1))
            stop = start + int(rng.integers(20))
            other = [b"", raw[start:stop] * 2, b"\n", b",", b"\xff", b"\0", b'"', b"1e999", b"-7"]
            raw[start:stop] = other[rng.integers(len(other))]
        path.write_bytes(bytes(raw))

    return make


def with_nodes(rng):
    """In HDF5 one or two datasets, groups or attributes are others or left out."""

    def make(path, whole):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as opened:
            for _ in range(rng.integers(1, 3)):
                names: list[str] = []
                opened.visit(names.append)
                if not names:
                    break
                name = names[rng.integers(len(names))]
                if rng.random() < 0.3 and len(opened[name].attrs):
                    attributes = opened[name].attrs
                    which = sorted(attributes)[rng.integers(len(attributes))]
                    del attributes[which]
                    if rng.random() < 0.7:
                        attributes[which] = NODES[rng.integers(len(NODES))]
                    continue
                before = dict(opened[name].attrs)
                del opened[name]
                if rng.random() < 0.7:
                    opened[name] = NODES[rng.integers(len(NODES))]
                    if rng.random() < 0.5:
                        opened[name].attrs.update(before)

    return make


NODES = [
    3,
    -1.5,
    "text",
    b"\xff\xfe",
    np.zeros(0),
    np.zeros((2, 2), np.float32),
    np.full((3, 4), np.nan),
    np.array([1, 2, 3]),
    np.array([b"a", b"b"]),
    np.zeros((2, 3, 4), np.int8),
    np.float32(np.inf),
    True,
]
