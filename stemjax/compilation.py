"""Compiled programs kept on disk, so that the second command starts where the first one did.

JAX can keep what it compiled in a folder, but leaves out whatever compiled within a second, which
on small models is everything, and keeps nothing unless it is told where. `enable_cache` tells it.

What is kept is machine code that later runs in this process, so the folder must be the user's own:
one that somebody else owns or may write to is refused. JAX files a program under a hash of the
program, of its own version and of the processor's instruction set, so a home folder that several
kinds of machine share is safe. Writers take no lock: an entry that was cut short fails its
checksum, JAX says so and compiles again.

Environment: ``STEMJAX_CACHE=off`` turns this off, ``STEMJAX_CACHE=DIR`` chooses the folder, and
JAX's own ``JAX_COMPILATION_CACHE_DIR`` is left as it is set.
"""

from __future__ import annotations

import logging
import os
import pathlib
import stat
import tempfile

import jax

OFF = ("off", "0", "no", "false")
"""Values of ``STEMJAX_CACHE`` that keep nothing."""

MAX_BYTES = 2 * 1024**3
"""Size above which the entries that were not used for longest are removed."""

_log = logging.getLogger(__name__)


def enable_cache(
    folder: str | os.PathLike[str] | None = None, *, max_bytes: int = MAX_BYTES
) -> pathlib.Path | None:
    """Keeps every program that is compiled from now on, and uses those kept before.

    Args:
      folder: where; made with mode 0700 if it is not there. None is ``STEMJAX_CACHE``, else
        ``stemjax/xla`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``).
      max_bytes: bound on the folder's size, kept at this call; a process adds to it what it
        compiles.

    Returns:
      The folder in use. None if nothing is kept, because ``STEMJAX_CACHE`` says so or the folder
      cannot be trusted or written to; the latter is a warning in the log, never an error.
    """
    asked = os.environ.get("STEMJAX_CACHE", "").strip()
    if asked.lower() in OFF:
        return None
    own = jax.config.jax_compilation_cache_dir
    if own and folder is None and not asked:
        _keep_small_programs()
        return pathlib.Path(own)
    chosen = pathlib.Path(folder or asked or _default_folder()).expanduser().absolute()
    problem = _problem(chosen)
    if problem:
        _log.warning(
            "compiled programs are not kept, so every start compiles again: %s. Set STEMJAX_CACHE "
            "to a folder of your own, or to off",
            problem,
        )
        return None
    # jax_compilation_cache_max_size would do this at every write, but only with the package
    # filelock: without it JAX keeps nothing at all.
    _shrink(chosen, max_bytes)
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    _keep_small_programs()
    return chosen


def _default_folder() -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification asks that a relative path be ignored.
    base = pathlib.Path(home) if os.path.isabs(home) else pathlib.Path("~/.cache")
    return base / "stemjax" / "xla"


def _keep_small_programs() -> None:
    """Lifts JAX's lower bounds on what is worth keeping, unless the user set them."""
    for name, value in (
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _problem(folder: pathlib.Path) -> str | None:
    """Makes the folder; returns why it cannot be used, or None."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        real = folder.resolve(strict=True)
        user = os.geteuid()
        status = real.stat()
        if status.st_uid != user:
            return f"{folder} belongs to another user ({status.st_uid}, not {user})"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"others may write to {folder} (mode {stat.S_IMODE(status.st_mode):o})"
        for parent in real.parents:
            above = parent.stat()
            if above.st_uid not in (user, 0):
                return f"{parent}, which holds {folder}, belongs to another user ({above.st_uid})"
            if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
                return f"anybody may replace {folder}: {parent} is open to all"
        with tempfile.TemporaryFile(dir=real):
            return None
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"


def _shrink(folder: pathlib.Path, max_bytes: int) -> None:
    """Removes the files that were not used for longest until the rest fits."""
    found = []
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except OSError:
            continue  # another process removed it
        if stat.S_ISREG(status.st_mode):
            # Reading moves the access time once a day at most: fine enough to tell what is unused.
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
