"""Prediction for any number of spots: equal portions through one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from stemjax.data import records
from stemjax.diffusion import sampler
from stemjax.tasks.base import Task
from stemjax.tasks.sampling import Sampling

type Progress = Callable[[int, int, str], None]


class Predictor(Protocol):
    """Prediction for any number of spots."""

    def __call__(
        self, params: Any, cond: Any, keys: Key[Array, " b"], *, progress: Progress | None = None
    ) -> np.ndarray:
        """Returns draws in the model's space on the host, [n b g]."""
        ...


def make_predictor(task: Task, sampling: Sampling, *, rows: int) -> Predictor:
    """Returns ``predict(params, cond [b c], keys [b]) -> [n b g]`` on the host, for any b.

    Spots go through the device in equal portions of at most ``rows`` (spot, draw) pairs, the last
    one padded, so that one program is compiled whatever the number of spots. A spot's result
    depends on its embedding and key alone, so the portions do not show in it beyond rounding.
    ``cond`` may be any tree of arrays with a row a spot, as `Steered` takes.
    """

    def run(params: Any, cond: Any, keys: Key[Array, " b"]) -> Array:
        return task.predict(params, cond, keys, sampling=sampling)

    return by_portions(run, rows=max(1, rows // sampling.draws), spots_axis=1)


def by_portions(run: Callable[..., Array], *, rows: int, spots_axis: int) -> Predictor:
    """Returns ``run`` compiled once and called for at most ``rows`` spots at a time.

    Args:
      run: (params, tree of arrays with a row a spot, keys [b]) -> array with an axis of spots.
      rows: spots a call.
      spots_axis: which axis of the result that is.
    """
    portion = jax.jit(run)

    def predict(
        params: Any, cond: Any, keys: Key[Array, " b"], *, progress: Progress | None = None
    ) -> np.ndarray:
        spots = len(keys)
        size = max(1, min(rows, spots))
        parts = []
        for start in range(0, spots, size):
            index = np.minimum(np.arange(start, start + size), spots - 1)
            taken = jax.tree.map(lambda a, i=index: jnp.asarray(a[i], jnp.float32), cond)
            found = np.moveaxis(np.asarray(portion(params, taken, keys[index])), spots_axis, 0)
            parts.append(found[: spots - start])
            if progress is not None:
                progress(min(start + size, spots), spots, "spots")
        return np.moveaxis(np.concatenate(parts), 0, spots_axis)

    return predict


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
