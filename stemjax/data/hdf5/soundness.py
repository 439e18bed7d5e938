"""Whether an HDF5 file can be opened without harm: another process tries it first.

Most HDF5 files carry no checksums of their structure, and the HDF5 library (2.0) crashes or loops
on some damaged ones: of 300 mutations of two small files each, one ended the process and one never
came back. A run over many slides would die of one file without a word about which. The same pass
finds what no honest file needs: parts in other files, and claims of more than it can hold.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from stemjax import errors

LEAST_SECONDS = 8.0
BYTES_A_SECOND = 20 * 2**20  # a slow network file system; only structure and small arrays are read

_MAGIC = b"\x89HDF\r\n\x1a\n"
_CUT_OFF = re.compile(r"truncated file: eof = (\d+), .*stored_eof = (\d+)")
_PROBE = pathlib.Path(__file__).with_name("probe.py")
_asking = threading.Lock()


def require_sound(
    path: str | os.PathLike[str], kind: type[errors.StemjaxError] = errors.SlideError
) -> None:
    """Returns if the HDF5 library reads the file's structure and comes back.

    A file is tried once, until it changes. That takes some milliseconds, the first of a process a
    third of a second. What is absent or no HDF5 at all is left to the reader, who says so.

    Args:
      path: the file.
      kind: of the error where it is damaged.

    Raises:
      StemjaxError: of that kind; it crashes the library, does not end, or is damaged or cut off.
      UnsafeFileError: a part of it lies in another file, or it claims more than it can hold.
    """
    path = pathlib.Path(path)
    if not _has_signature(path):
        return
    state = path.stat()
    found = _harm(str(path.resolve()), state.st_mtime_ns, state.st_size)
    if found["kind"] == "unsafe":
        raise errors.UnsafeFileError(
            f"{path}: {found['what']}",
            expected=_shown(found["expected"]),
            found=_shown(found["found"]),
            fix="Get the file from who made it, or write it anew in one piece",
        )
    if found["kind"] == "damaged":
        text, cut = found["found"], _CUT_OFF.search(found["found"])
        if cut:
            text = f"{int(cut[1]):,} of {int(cut[2]):,} bytes"
        raise kind(
            f"{path} is damaged or incomplete",
            found=_shown(text),
            fix="Copy or download the file again, or write it anew",
            case="D21",
        )


@functools.lru_cache(maxsize=1024)
def _harm(path: str, changed: int, size: int) -> Mapping[str, str]:
    """What happens to a process that reads the file.

    Args:
      path: of the file.
      changed: when it was written; a file written again is tried again.
      size: in bytes.
    """
    del changed
    request = {"path": path, "limit": LEAST_SECONDS + size / BYTES_A_SECOND}
    with _asking:
        for _ in range(2):
            with contextlib.suppress(OSError, ValueError):  # it was ended from outside
                server = _server(os.getpid())
                server.stdin.write(json.dumps(request) + "\n")
                server.stdin.flush()
                return json.loads(server.stdout.readline())
            _server.cache_clear()
    return {"kind": "damaged", "found": "the process that tries files ended twice"}


@functools.cache
def _server(owner: int) -> Any:
    """The process that tries files; one for each process (``owner``) that asks."""
    del owner
    server: Any = subprocess.Popen(  # noqa: S603 - this interpreter, on a file of this package
        [sys.executable, "-I", str(_PROBE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    atexit.register(_end, server, os.getpid())
    server.stdout.readline()
    return server


def _end(server: Any, owner: int) -> None:
    """Lets the process go that tries files; a fork of its owner does not."""
    if os.getpid() != owner:
        return
    server.kill()
    server.wait()
    for pipe in (server.stdin, server.stdout):
        with contextlib.suppress(OSError):  # the rest of a request to one that died
            pipe.close()


def _has_signature(path: pathlib.Path) -> bool:
    """Whether the library would take the file for HDF5: the mark at 0, 512, 1024, 2048 bytes..."""
    try:
        with path.open("rb") as file:
            place, size = 0, os.fstat(file.fileno()).st_size
            while place < size:
                file.seek(place)
                if file.read(len(_MAGIC)) == _MAGIC:
                    return True
                place = 2 * place or 512
    except OSError:
        pass
    return False


def _shown(text: str) -> str:
    """Text of a file for a message: printable, at most 200 characters."""
    text = ascii(text)[1:-1]
    return text if len(text) <= 200 else text[:197] + "..."
