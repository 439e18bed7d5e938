"""Prediction for any number of spots: portions of few sizes, each one compiled program.

A program is compiled for a fixed number of spots, and slides have as many spots as they have. A
predictor therefore works in buckets: portions of its largest size, and for what is left the
smallest of three sizes that holds it, filled up with copies of the last spot. Whatever the number
of slides, at most three programs are compiled.
"""

from __future__ import annotations

import collections
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from stemjax import mesh
from stemjax.data import records
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

_CACHE_SHARE = 0.3
_USUAL_CACHE = 32 * 2**20
_USUAL_ROWS = 256


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
        devices = layout.pieces
        sizes = {devices * math.ceil(spots / (part * devices)) for part in BUCKETS}
        self.sizes = tuple(sorted(sizes, reverse=True))
        self._run, self._axis, self._layout = run, spots_axis, layout
        self._programs: dict[Any, jax.stages.Compiled] = {}

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return len(self._programs)

    def __call__(
        self, params: Any, cond: Any, keys: Key[Array, " b"], *, progress: Progress | None = None
    ) -> np.ndarray:
        """Returns what ``run`` makes of all spots, on the host.

        Args:
          params: weights.
          cond: array or tree of arrays with a row a spot.
          keys: one key a spot.
          progress: called with spots done, spots in all, and what they are.
        """
        params = jax.device_put(params, self._layout.replicated)
        parts: list[np.ndarray] = []
        for stop, made in self._portions(params, cond, keys):
            rows = stop - sum(map(len, parts))
            parts.append(np.moveaxis(np.asarray(made), self._axis, 0)[:rows])
            if progress is not None:
                progress(stop, len(keys), "spots")
        return np.moveaxis(np.concatenate(parts), 0, self._axis)

    def _portions(self, params: Any, cond: Any, keys: Array) -> Iterator[tuple[int, Array]]:
        """Yields where a portion ends and its result, the next one already under way."""
        waiting: collections.deque[tuple[int, Array]] = collections.deque()
        for start, stop, size in portions(len(keys), self.sizes):
            index = np.minimum(np.arange(start, start + size), stop - 1)
            given = (
                jax.tree.map(lambda a, i=index: jnp.asarray(a[i], jnp.float32), cond),
                keys[index],
            )
            given = jax.device_put(given, self._layout.data)
            waiting.append((stop, self._program(size, params, *given)(params, *given)))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting

    def _program(self, size: int, *given: Any) -> jax.stages.Compiled:
        leaves, tree = jax.tree.flatten(given)
        asked = (size, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if asked not in self._programs:
            with self._layout.in_force():
                self._programs[asked] = jax.jit(self._run).lower(*given).compile()
        return self._programs[asked]


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
