"""Walks HDF5 files to see whether the HDF5 library survives them; `soundness` runs it as a script.

It imports nothing of stemjax. A request is a line of JSON with a path and a limit in seconds, the
answer a line with what was found. Each file is read in a fork of this process, which may crash. All
attributes, all indices of chunks, all text and all but the large arrays of numbers are read, which
is every structure that a reader meets.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import select
import signal
import sys
import time
from typing import Any

import h5py
import numpy as np

MOST_READ = 64 * 2**20  # bytes of an array of numbers
MOST_TEXTS = 1024  # read at once; each may be large
MOST_DEEP = 50  # groups within groups
FREE_BYTES, MOST_PACKED = 2**30, 1000
"""An honest file claims no more bytes than this, and this many times its own size."""
LEAST_OF_A_MEMBER = 8  # bytes that a dataset, a group or a link takes in a file, and more
MEMORY = 2 * 2**30  # that a fork may take
PATIENCE = 5  # seconds that may pass for one of the processor's


class Unsafe(Exception):
    """What no honest file needs; its arguments are what, expected and found."""


class Walk:
    """One pass through a file, which may not come by more than the file can hold.

    Args:
      size: of the file, bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.room = MOST_PACKED * size + FREE_BYTES
        self.members = size // LEAST_OF_A_MEMBER
        self.read: set[Any] = set()

    def group(self, group: Any, deep: int = 0) -> None:
        """Reads what a group holds; what lies in it twice is counted twice, and read once."""
        if deep > MOST_DEEP:
            raise Unsafe("its groups go too deep", f"at most {MOST_DEEP}", group.name)
        self.attributes(group)
        for name in group:
            self.members -= 1
            if self.members < 0:
                raise Unsafe(
                    "it holds the same parts over and over", f"{self.size:,} bytes", group.name
                )
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                found = f"{name!r} is a link to {link.filename!r}"
                raise Unsafe("it points to other files", "all parts in the file", found)
            if isinstance(link, h5py.SoftLink) and name not in group:
                continue  # to nowhere: readers do not see it
            one = group[name]
            if isinstance(one, h5py.Group):
                self.group(one, deep + 1)
            elif isinstance(one, h5py.Dataset):
                self.dataset(one)

    def attributes(self, node: Any) -> None:
        """Reads all attributes of a group or dataset."""
        for name in node.attrs:
            node.attrs.get(name)

    def dataset(self, dataset: Any) -> None:
        """Reads an array, or of a large one the index of its chunks."""
        name = dataset.name
        if dataset.is_virtual or dataset.external:
            found = f"{name!r} lies elsewhere"
            raise Unsafe("it points to other files", "all parts in the file", found)
        item = dataset.dtype.itemsize
        claimed = (dataset.size or 0) * item
        self.claim(name, claimed, dataset.shape)
        self.claim(name, math.prod(dataset.chunks or ()) * item, dataset.chunks, kept=False)
        if dataset.id in self.read:
            return
        self.read.add(dataset.id)
        self.attributes(dataset)
        if dataset.chunks:
            dataset.id.chunk_iter(lambda chunk: None)
        if dataset.dtype.hasobject and dataset.ndim and dataset.size:
            rows = max(MOST_TEXTS * len(dataset) // dataset.size, 1)
            for start in range(0, len(dataset), rows):
                texts = dataset[start : start + rows].reshape(-1)
                self.claim(name, sum(map(_length, texts)), dataset.shape)
        elif claimed <= MOST_READ:
            _ = dataset[()]

    def claim(self, name: str, claimed: int, shape: Any, *, kept: bool = True) -> None:
        """Takes some bytes of what the file may claim."""
        if claimed > self.room:
            found = f"{name!r} of shape {shape}, {claimed:,} bytes"
            expected = f"what {self.size:,} bytes can hold"
            raise Unsafe("it claims more than the file can hold", expected, found)
        self.room -= claimed if kept else 0


def _length(value: Any) -> int:
    """Bytes of a text, or numbers of an array, which lie elsewhere in the file; else 0."""
    if isinstance(value, np.void):
        return sum(_length(value[field]) for field in value.dtype.names or ())
    return len(value) if hasattr(value, "__len__") else 0


def look(path: str) -> dict[str, str]:
    """Reads a file to its end; returns what was found, of which ``kind`` is what to make of it."""
    try:
        with h5py.File(path, "r") as opened:
            Walk(os.path.getsize(path)).group(opened)
    except Unsafe as error:
        what, expected, found = error.args
        return {"kind": "unsafe", "what": what, "expected": expected, "found": found}
    except MemoryError:
        return {"kind": "damaged", "found": "it asks for more memory than its parts can need"}
    except Exception as error:  # noqa: BLE001 - h5py tells damage by all kinds of exceptions
        return {"kind": "damaged", "found": f"{type(error).__name__}: {error}"}
    return {"kind": "sound"}


def apart(path: str, limit: float) -> dict[str, str]:
    """`look` in a fork of this process, which may crash or hang."""
    end, start = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        with contextlib.suppress(ValueError, OSError):  # where the system has no such limit
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            most = _taken() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 1))
        with open(start, "wb") as pipe:
            pipe.write(json.dumps(look(path)).encode())
        os._exit(0)
    os.close(start)
    # Of the processor's time, which a loop uses up; on a machine with much to do that takes longer.
    told, until = b"", time.monotonic() + PATIENCE * limit
    with open(end, "rb", buffering=0) as pipe:
        while (left := until - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
            if not (more := pipe.read(65536)):
                break
            told += more
        else:
            os.kill(child, signal.SIGKILL)
            told = b""
    status = os.waitpid(child, 0)[1]
    if told:
        return json.loads(told)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU):
        found = f"reading its structure did not end within {limit:.0f} s"
    else:
        found = f"the HDF5 library crashes on it (exit status {os.waitstatus_to_exitcode(status)})"
    return {"kind": "damaged", "found": found}


def _taken() -> int:
    """Bytes of this process's address space."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def main() -> None:
    """Answers requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is for who asks
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.write(json.dumps(apart(request["path"], request["limit"])) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
