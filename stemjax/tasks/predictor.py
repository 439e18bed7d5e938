"""Prediction for any number of spots: portions of few sizes, each one compiled program.

A program is compiled for a fixed number of spots, and slides have as many spots as they have. A
predictor therefore works in buckets: portions of its largest size, and for what is left the
smallest of three sizes that holds it, filled up with copies of the last spot. Whatever the number
of slides, at most three programs are compiled.

Where the device's memory does not hold a portion, the predictor halves its sizes, says so, and goes
on with the spots that are not done yet. It keeps to the smaller sizes from then on.
"""

from __future__ import annotations

import collections
import functools
import logging
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from stemjax import errors, mesh
from stemjax.data import records, resident
from stemjax.diffusion import sampler
from stemjax.tasks.base import Task
from stemjax.tasks.sampling import Sampling

type Progress = Callable[[int, int, str], None]

type Reduce = Callable[[Float[Array, "n b g"]], Float[Array, "k b g"]]
"""Draws of some spots -> what is kept of them, computed where the draws are."""

BUCKETS = (1, 4, 16)
"""The sizes of a predictor's portions: its largest, a quarter and a sixteenth of it."""

MOST_ROWS = 4096
"""Rows at a time on an accelerator: more fill it no better and only cost memory."""

_USABLE = 0.9  # of a device's memory: the rest is for its fragments and for libraries
_CACHE_SHARE = 0.3
_USUAL_CACHE = 32 * 2**20
_USUAL_ROWS = 256
_LONGEST_SAID = 200
_log = logging.getLogger(__name__)


class _TooLargeError(Exception):
    """A portion that the memory does not hold, before or after it was tried."""

    def __init__(self, size: int, needed: int = 0, said: str = "") -> None:
        self.size, self.needed, self.said = size, needed, said
        super().__init__(said)


class Predictor:
    """``predict(params, cond, keys)`` for any number of spots, on the host.

    A spot's result depends on its inputs and key alone, so the portions do not show in it beyond
    the rounding of other matrix shapes.

    Args:
      run: (params, tree of arrays with a row a spot, keys [b]) -> array with an axis of spots.
      spots: spots in a portion, at most; rounded up to a multiple of the devices.
      spots_axis: which axis of the result the spots are.
      layout: devices; a portion is split over all of them.

    Attributes:
      sizes: spots in a portion, largest first.
      compilations: programs compiled so far.
    """

    def __init__(
        self, run: Callable[..., Array], *, spots: int, spots_axis: int, layout: mesh.Layout
    ) -> None:
        self.sizes = _sizes(spots, layout.pieces)
        self.compilations = 0
        self._run, self._axis, self._layout = run, spots_axis, layout
        self._programs: dict[Any, jax.stages.Compiled] = {}

    def __call__(
        self, params: Any, cond: Any, keys: Key[Array, " b"], *, progress: Progress | None = None
    ) -> np.ndarray:
        """Returns what ``run`` makes of all spots, on the host.

        Args:
          params: weights.
          cond: array or tree of arrays with a row a spot.
          keys: one key a spot.
          progress: called with spots done, spots in all, and what they are.

        Raises:
          ResourceError: the memory does not hold a portion of one spot a device.
        """
        params = jax.device_put(params, self._layout.replicated)
        parts: list[np.ndarray] = []
        done, is_done = 0, False
        while not is_done:
            try:
                for stop, part in self._fetched(params, cond, keys, done):
                    parts.append(np.moveaxis(part, self._axis, 0)[: stop - done])
                    done = stop
                    if progress is not None:
                        progress(stop, len(keys), "spots")
                is_done = True
            except _TooLargeError as error:
                self._shrink(error)
            # Only now, with the error, are the arrays of the portions under way let go of.
        return np.moveaxis(np.concatenate(parts), 0, self._axis)

    def _fetched(
        self, params: Any, cond: Any, keys: Array, first: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields where a portion ends and its result, the next one already under way."""
        waiting: collections.deque[tuple[int, int, Array]] = collections.deque()

        def fetch() -> tuple[int, np.ndarray]:
            # An accelerator runs a program later than it is asked to: an error may come here.
            stop, size, made = waiting.popleft()
            return stop, _within_memory(size, np.asarray, made)

        failed: _TooLargeError | None = None
        for start, stop, size in portions(len(keys) - first, self.sizes):
            index = first + np.minimum(np.arange(start, start + size), stop - 1)
            try:
                made = _within_memory(size, self._dispatch, params, cond, keys, index)
            except _TooLargeError as error:
                # The one before it may be good. The traceback would hold on to arrays of this one.
                failed = error.with_traceback(None)
                break
            waiting.append((first + stop, size, made))
            del made
            if len(waiting) > 1:
                yield fetch()
        while waiting:
            yield fetch()
        if failed is not None:
            raise failed

    def _dispatch(self, params: Any, cond: Any, keys: Array, index: np.ndarray) -> Array:
        given = jax.tree.map(lambda a: jnp.asarray(a[index], jnp.float32), cond), keys[index]
        given = jax.device_put(given, self._layout.data)
        return self._program(len(index), params, *given)(params, *given)

    def _program(self, size: int, *given: Any) -> jax.stages.Compiled:
        leaves, tree = jax.tree.flatten(given)
        asked = (size, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if asked not in self._programs:
            with self._layout.in_force():
                program = jax.jit(self._run).lower(*given).compile()
            self.compilations += 1
            needed, room = memory_bytes(program), _USABLE * resident.device_memory()
            if room and needed > room:
                raise _TooLargeError(size, needed)
            self._programs[asked] = program
        return self._programs[asked]

    def _shrink(self, error: _TooLargeError) -> None:
        """Halves the size that was too large, and with it all others."""
        devices, there = self._layout.pieces, resident.device_memory()
        if error.size <= devices:
            needed, found = "enough for one spot", f"less ({error.said})"
            if error.needed:
                needed = f"{error.needed / 2**30:.2f} GiB"
                found = f"{there / 2**30:.2f} GiB, of which {_USABLE:.0%} can be used"
            raise errors.ResourceError(
                "one spot at a time is too much for the device's memory",
                expected=needed,
                found=found,
                fix="Draw fewer samples of a spot, or take a device of more memory",
            )
        self.sizes = _sizes(devices * max(1, error.size // devices // 2), devices)
        self._programs = {k: one for k, one in self._programs.items() if k[0] in self.sizes}
        _log.warning(
            "out of memory at %d spots at a time, going on with %d", error.size, self.sizes[0]
        )


def _sizes(spots: int, devices: int) -> tuple[int, ...]:
    sizes = {devices * math.ceil(spots / (part * devices)) for part in BUCKETS}
    return tuple(sorted(sizes, reverse=True))


def _within_memory(size: int, function: Callable[..., Any], *given: Any) -> Any:
    """Returns what a function does with a portion, and tells what memory does not hold apart."""
    try:
        return function(*given)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).strip().splitlines()[0][:_LONGEST_SAID]
    # Without that error, whose traceback holds the arrays that are too many.
    raise _TooLargeError(size, said=said)


def memory_bytes(program: jax.stages.Compiled) -> int:
    """Returns the bytes that a program needs on each device while it runs, arguments included."""
    found = program.memory_analysis()
    if found is None:
        return 0
    written = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + written + found.temp_size_in_bytes


def make_predictor(
    task: Task,
    sampling: Sampling,
    *,
    rows: int | None = None,
    reduce: Reduce | None = None,
    layout: mesh.Layout | None = None,
) -> Predictor:
    """Returns ``predict(params, cond [b c], keys [b]) -> [n b g]`` on the host, for any b.

    The same arguments give the same predictor, with the programs that it has compiled already.
    ``cond`` may be any tree of arrays with a row a spot, as `Steered` takes.

    Args:
      task: the model.
      sampling: what is drawn.
      rows: (spot, draw) pairs on a device at a time, at most; None chooses (`rows_at_a_time`).
      reduce: what is kept of the draws, say their moments (`summary.make_summary`).
      layout: devices; this process's by default.
    """
    return _cached(task, sampling, rows, reduce, layout or mesh.local_layout())


# A predictor holds its compiled programs: a few are all that a job needs.
@functools.lru_cache(maxsize=8)
def _cached(
    task: Task, sampling: Sampling, rows: int | None, reduce: Reduce | None, layout: mesh.Layout
) -> Predictor:
    def run(params: Any, cond: Any, keys: Key[Array, " b"]) -> Array:
        found = task.predict(params, cond, keys, sampling=sampling)
        return found if reduce is None else reduce(found)

    devices = layout.pieces
    each = rows_at_a_time(task.row_bytes) if rows is None else rows
    spots = max(1, each * devices // sampling.draws)
    return Predictor(run, spots=spots, spots_axis=1, layout=layout)


def by_portions(run: Callable[..., Array], *, rows: int, spots_axis: int) -> Predictor:
    """Returns a predictor of any function, on this process's devices.

    Args:
      run: (params, tree of arrays with a row a spot, keys [b]) -> array with an axis of spots.
      rows: spots a call, at most.
      spots_axis: which axis of the result that is.
    """
    return Predictor(run, spots=max(1, rows), spots_axis=spots_axis, layout=mesh.local_layout())


def portions(spots: int, sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yields start, stop and size of each portion: stop - start spots in a program for ``size``.

    Args:
      spots: spots in all.
      sizes: sizes that there are programs for, largest first.
    """
    for start in range(0, spots, sizes[0]):
        stop = min(start + sizes[0], spots)
        yield start, stop, min(size for size in sizes if size >= stop - start)


def rows_at_a_time(row_bytes: int) -> int:
    """Returns how many rows of a network this machine's devices work on best at a time.

    On a CPU the arrays of a block should stay in the last cache, of which the largest may take a
    third (measured, docs/throughput.md). An accelerator wants many rows and has the memory for
    about eight such arrays at a time.

    Args:
      row_bytes: the network's largest array for one row (`Conditional.row_bytes`); 0 is unknown.
    """
    device = jax.local_devices()[0]
    if not row_bytes:
        return _USUAL_ROWS
    if device.platform == "cpu":
        return max(1, int(_CACHE_SHARE * _last_cache()) // row_bytes)
    limit = (device.memory_stats() or {}).get("bytes_limit", 2**34)
    return max(1, min(MOST_ROWS, limit // (8 * row_bytes)))


def _last_cache() -> int:
    """Bytes of the CPU's last cache, or what is usual where the system does not say."""
    try:
        text = pathlib.Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return _USUAL_CACHE


def row_keys(seed: int, table: records.Table) -> Key[Array, " b"]:
    """Returns a key for each spot of a table, a function of (seed, slide, barcode) alone."""
    parts = []
    for number, slide in enumerate(table.slides):
        rows = np.flatnonzero(table.slide_index == number)
        if rows.size:
            barcodes = [table.barcodes[row] for row in rows]
            parts.append((rows, sampler.spot_keys(seed, slide, barcodes)))
    order = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")
    return jnp.concatenate([keys for _, keys in parts])[order]
