"""Whether an HDF5 file can be opened without harm: another process tries it first.

Most HDF5 files carry no checksums of their structure, and the HDF5 library (2.0) crashes or loops
on some damaged ones: of 300 mutations of two small files each, one ended the process and one never
came back. A run over many slides would die of one file without a word about which.
"""

from __future__ import annotations

import functools
import pathlib
import subprocess
import sys

from stemjax.data.embedding_files import probe
from stemjax.data.embedding_files.file import COPY_AGAIN, refused, shown

LEAST_SECONDS = 20.0
BYTES_A_SECOND = 20 * 2**20  # a slow network file system; only structure and small arrays are read


def require_sound(path: pathlib.Path) -> None:
    """Returns if the HDF5 library reads the file's structure and comes back.

    A file is tried once, until it changes. It takes about a third of a second.

    Raises:
      EncoderMismatchError: it crashes, does not end, or refuses the file.
    """
    state = path.stat()
    harm = _harm(str(path.resolve()), state.st_mtime_ns, state.st_size)
    if harm:
        raise refused(path, "it is damaged or incomplete", found=harm, fix=COPY_AGAIN)


@functools.lru_cache(maxsize=1024)
def _harm(path: str, changed: int, size: int) -> str:
    """What happens to a process that reads the file; empty where nothing does.

    Args:
      path: of the file.
      changed: when it was written; a file written again is tried again.
      size: in bytes.
    """
    del changed
    command = [sys.executable, "-I", str(pathlib.Path(probe.__file__)), path]
    limit = LEAST_SECONDS + size / BYTES_A_SECOND
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"reading its structure did not end within {limit:.0f} s"
    if done.returncode == 1:
        return shown(done.stdout.decode(errors="replace"))
    if done.returncode:
        return f"the HDF5 library crashes on it (exit status {done.returncode})"
    return ""
