"""Folders of steps: orbax writes them, hashes are put in before the commit, and checked before use.

    FOLDER/<step>/           committed: orbax renames its temporary folder as the last thing
                 SHA256SUMS.json   size and hash of every file, written before that

Orbax survives being killed, but restores weights with a flipped bit without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from stemjax import errors, mesh
from stemjax.data import disk, integrity

STEPS, BEST = "checkpoints", "best"
"""Folders of a workdir: of a run's last states, and of the EMA with the best validation."""

SET_ASIDE = "damaged"
"""Folder of a workdir for damaged steps, which a run that goes on moves out of its way."""

_PARTIAL = "*.orbax-checkpoint-tmp*"
_SURELY = 0.9
"""Share of the last step's size that has to be free; optimisers' first zeros pack well."""

_log = logging.getLogger(__name__)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of orbax's log says what we do not say: a full disk's traceback is none."""
    error = record.exc_info[1] if record.exc_info else None
    return not disk.is_full(error)


# Orbax logs what it raises, from a thread and with its whole way.
for _name_of_log in ("absl", "asyncio"):
    logging.getLogger(_name_of_log).addFilter(_is_news)


class _Hashed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Orbax's temporary folder, which gets its list of hashes before it is renamed."""

    async def finalize(self) -> None:
        """Completes the folder, hashes it, and lets orbax rename it."""
        folder = pathlib.Path(self.get())
        store = self._checkpoint_metadata_store
        if store is not None:
            # Orbax's own last changes, made before the hashes are.
            await asyncio.to_thread(store.wait_until_finished)
            await asyncio.to_thread(
                store.update,
                file_path=self.get() / _STEP_METADATA,
                commit_timestamp_nsecs=time.time_ns(),
            )
            await asyncio.to_thread(store.wait_until_finished)
            self._checkpoint_metadata_store = None
        said = f"Checkpoint commit was successful to {self._final_path}"
        (folder / ocp.path.atomicity.COMMIT_SUCCESS_FILE).write_text(said)
        if "orbax-checkpoint-tmp" not in folder.parent.name:  # a step, and not an item of one
            await asyncio.to_thread(integrity.write_manifest, folder)
        await super().finalize()


_STEP_METADATA = "_CHECKPOINT_METADATA"


def open_manager(folder: pathlib.Path, *, keep: int | None) -> ocp.CheckpointManager:
    """Returns orbax's manager of a folder; ``keep`` None is for reading and deletes nothing.

    Orbax has a read-only mode, but it warns three times at each use.
    """
    return ocp.CheckpointManager(
        folder.absolute(),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=keep is not None,
            cleanup_tmp_directories=keep is not None,
            create=keep is not None,
            temporary_path_class=_Hashed,
            # Processes wait for each other by a name and a step: two folders may save the same step
            # at once.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=folder.name
            ),
        ),
    )


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the committed steps of a folder, newest first."""
    if not folder.is_dir():
        return []
    found = [int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir()]
    return sorted(found, reverse=True)


def damage(folder: pathlib.Path, step: int) -> errors.CheckpointError | None:
    """Returns what is wrong with a step's files, or None where they are as they were written."""
    wrong = integrity.damage(folder / str(step))
    if not wrong:
        return None
    more = f"; and {len(wrong) - 3} more files" if len(wrong) > 3 else ""
    return errors.CheckpointError(
        f"checkpoint {folder / str(step)} is damaged",
        expected="its files as they were written",
        found="; ".join(wrong[:3]) + more,
    )


def newest_sound(
    folder: pathlib.Path,
) -> tuple[int | None, dict[int, errors.CheckpointError]]:
    """Returns the newest step whose files have their hashes, and what is wrong with newer ones."""
    wrong: dict[int, errors.CheckpointError] = {}
    for step in steps(folder):
        found = damage(folder, step)
        if found is None:
            return step, wrong
        wrong[step] = found
    return None, wrong


def tell(wrong: dict[int, errors.CheckpointError], instead: str) -> None:
    """Says which steps are damaged and what is used instead."""
    for error in wrong.values():
        _log.warning("[%s] %s %s", error.code, error, instead)


def set_aside(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Moves a damaged step to WORKDIR/damaged, where nothing reads it; returns where it is."""
    aside = folder.parent / SET_ASIDE
    aside.mkdir(exist_ok=True)
    number = 0
    while (target := aside / f"{folder.name}-{step}{f'-{number}' if number else ''}").exists():
        number += 1
    (folder / str(step)).rename(target)
    return target


def require_space(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Refuses a step that clearly does not fit, before orbax begins to write it.

    What the newest step takes on the disk is what the next one will: of what it fails in, orbax
    leaves threads that go on failing.

    Raises:
      OSError: there is less free.
    """
    newest = next(iter(steps(folder)), None)
    if newest is None:
        return
    taken = sum(file.stat().st_size for file in (folder / str(newest)).rglob("*"))
    if disk.free_bytes(folder) < _SURELY * taken:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextlib.contextmanager
def quiet_failures() -> Iterator[None]:
    """In the block threads of a failed save, whose event loop is closed, print no traceback."""
    usual = sys.unraisablehook

    def hook(found: Any) -> None:
        if not (found.exc_type is RuntimeError and str(found.exc_value) == "Event loop is closed"):
            usual(found)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = usual


def remove_partial(folder: pathlib.Path) -> None:
    """Removes what a save that failed has left."""
    for path in folder.glob(_PARTIAL):
        shutil.rmtree(path, ignore_errors=True)


def require_same_shapes(item: pathlib.Path, wanted: Any) -> None:
    """Compares what a checkpoint says of its arrays with what the model has, before any is read.

    Args:
      item: the folder of one tree of arrays, such as ``checkpoints/100/state``.
      wanted: abstract arrays of the model.

    Raises:
      CheckpointMismatchError: an array is missing, unknown, or of another shape or type.
    """
    metadata: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(item.absolute()))
    stored = {_name(path): leaf for path, leaf in _leaves(metadata.tree)}
    ours = {_name(path): leaf for path, leaf in _leaves(wanted)}
    wrong = [f"{name} is missing" for name in ours if name not in stored]
    wrong += [f"{name} is unknown to the model" for name in stored if name not in ours]
    for name, leaf in ours.items():
        found = stored.get(name)
        if found is None:
            continue
        theirs = tuple(found.shape), np.dtype(found.dtype)
        if theirs != (tuple(leaf.shape), np.dtype(leaf.dtype)):
            wrong.append(
                f"{name} is {_said(*theirs)}, the model wants {_said(leaf.shape, leaf.dtype)}"
            )
    if wrong:
        raise errors.CheckpointMismatchError(
            f"checkpoint {item} does not fit the model",
            expected="the arrays of its configuration",
            found="; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" * (len(wrong) > 3)),
            fix="use the configuration it was trained with, or another --workdir",
        )


def unreadable(folder: pathlib.Path, error: Exception) -> errors.CheckpointError:
    """Returns the error of a step that orbax cannot read."""
    return errors.CheckpointError(
        f"checkpoint {folder} cannot be read ({type(error).__name__}: {error})",
        fix="move that step away to go on from an older one",
    )


def all_damaged(
    folder: pathlib.Path, wrong: dict[int, errors.CheckpointError]
) -> errors.CheckpointError:
    """Returns the error of a folder in which no step is sound."""
    newest = next(iter(wrong.values()))
    others = ", ".join(map(str, list(wrong)[1:]))
    return errors.CheckpointError(
        newest.what,
        expected=newest.expected,
        found=f"{newest.found}" + (f"; steps {others} are damaged too" if others else ""),
        fix="copy the folder again from where it is whole, or move it away to begin anew",
    )


def abstract(like: Any, layout: mesh.Layout) -> Any:
    """Returns a tree's shapes, types and places on the devices."""
    shapes = jax.eval_shape(lambda: like) if not _is_abstract(like) else like
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        shapes,
        layout.shardings(shapes),
    )


def _is_abstract(tree: Any) -> bool:
    return all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))


def _name(path: Any) -> str:
    """A leaf's place, the same for attributes, keys and numbers: params/blocks/qkv/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _said(shape: Any, dtype: Any) -> str:
    size = int(np.prod(np.asarray(shape, np.float64))) * np.dtype(dtype).itemsize
    return f"{tuple(map(int, shape))} {np.dtype(dtype).name} ({disk.in_words(size)})"
