"""The device's side of the service: rows of some requests in, arrays of profiles out.

It computes what `stemjax.eval.predict` does, with the same functions, so that a spot has the same
profile here and there. Every array that reaches the device has one of a few sizes, which `warm`
goes through: from then on nothing is compiled.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float32, Key

from stemjax import mesh, tasks
from stemjax.diffusion import sampler
from stemjax.eval import conformal, predict
from stemjax.serving import menu as menus
from stemjax.train import checkpoint

MEAN, STD, STANDARD_ERROR, DRAWS = "mean", "std", "standard_error", "draws"

type Arrays = dict[str, np.ndarray]
"""Profiles by what they are, spots first; the ends of intervals as `conformal.layer_names`."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Spots of one request.

    Attributes:
      cond: the standardised embeddings, [r c].
      seed: of the request.
      slide: their slide.
      barcodes: their barcodes.
    """

    cond: Float32[np.ndarray, "r c"]
    seed: int
    slide: str
    barcodes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.barcodes)

    def part(self, start: int, stop: int) -> Rows:
        """Returns some of the spots."""
        return dataclasses.replace(
            self, cond=self.cond[start:stop], barcodes=self.barcodes[start:stop]
        )


class Engine:
    """A model with the programs of a menu. Not for several threads at once.

    Args:
      trained: the model.
      menu: the ways of sampling to compile.
      max_batch: spots in a batch, at most; less where the device's memory or cache wants less.
    """

    def __init__(self, trained: checkpoint.Trained, menu: menus.Menu, *, max_batch: int) -> None:
        layout = mesh.local_layout()
        self._card, self._menu = trained.card, menu
        self._params = jax.device_put(trained.params, layout.replicated)
        self._predictors = {
            sampling: _predictor(trained.card.task, sampling, layout, max_batch)
            for sampling in menu.compiled
        }

    @property
    def compilations(self) -> int:
        """Programs of the model compiled so far."""
        return sum(predictor.compilations for predictor in self._predictors.values())

    def sizes(self, sampling: tasks.Sampling) -> tuple[int, ...]:
        """Returns the numbers of spots that there are programs for, largest first."""
        return self._predictors[sampling].sizes

    def capacity(self, order: menus.Order) -> int:
        """Returns the most spots that `profiles` takes at a time."""
        return self.sizes(order.drawn)[0]

    def warm(self) -> None:
        """Compiles and runs every program once."""
        orders = [
            menus.Order(mode=one.mode, sampling=one, drawn=one, calibration=None)
            for one in self._menu.compiled
        ]
        for order in orders:
            for size in self.sizes(order.drawn):
                cond = np.zeros((size, self._card.contract.width), np.float32)
                names = tuple(map(str, range(size)))
                self.profiles(order, [Rows(cond=cond, seed=0, slide="warm", barcodes=names)])

    def profiles(self, order: menus.Order, parts: Sequence[Rows]) -> Arrays:
        """Returns the profiles of the parts' spots, one part after the other.

        Args:
          order: what is wanted of all of them.
          parts: no more spots together than `capacity`.
        """
        rows = sum(map(len, parts))
        sizes = (size for size in self.sizes(order.drawn) if size >= rows)
        size = min(sizes, default=rows)  # they shrink where memory runs out
        # Filled up with copies of the last spot, as `tasks.Predictor` does; a row of the result
        # depends on nothing but its own condition and key.
        index = np.minimum(np.arange(size), rows - 1)
        cond = np.concatenate([part.cond for part in parts])[index]
        made = self._predictors[order.drawn](self._params, cond, _keys(parts, size))
        drawn = made[: order.sampling.draws] if order.mode == "draws" else made
        return self._written(order, drawn[:, :rows])

    def _written(self, order: menus.Order, drawn: np.ndarray) -> Arrays:
        """What `stemjax predict` would write of the draws, [n r g], by name."""
        fitted = self._card.space
        result = anndata.AnnData(
            obs=pd.DataFrame(index=pd.Index(list(map(str, range(drawn.shape[1]))))),
            var=pd.DataFrame(index=pd.Index(list(fitted.genes))),
        )
        predict.fill(result, drawn, order.sampling, fitted)
        found = {MEAN: np.asarray(result.X)}
        for name, layer in ((STD, predict.STD), (STANDARD_ERROR, predict.STANDARD_ERROR)):
            if layer in result.layers:
                found[name] = np.asarray(result.layers[layer])
        if order.mode == "draws":
            found[DRAWS] = np.asarray(result.obsm[predict.DRAWS])
        if order.calibration is not None:
            conformal.write_intervals(result, predict.spread(result), order.calibration)
            for level in order.calibration.levels:
                for name in conformal.layer_names(level):
                    found[name] = np.asarray(result.layers[name])
        return found


def _predictor(
    task: Any, sampling: tasks.Sampling, layout: mesh.Layout, max_batch: int
) -> tasks.Predictor:
    """The predictor of at most so many spots, or of what the device likes best if that is less."""
    usual = tasks.make_predictor(task, sampling, layout=layout)
    if usual.sizes[0] <= max_batch:
        return usual
    rows = max(1, max_batch // layout.pieces) * sampling.draws
    return tasks.make_predictor(task, sampling, rows=rows, layout=layout)


def _keys(parts: Sequence[Rows], size: int) -> Key[Array, " b"]:
    """A key a spot, filled up to ``size`` with copies of the last, as functions of fixed shapes."""
    asked = collections.defaultdict(list)
    names = [(part.seed, part.slide, barcode) for part in parts for barcode in part.barcodes]
    for row, (seed, slide, _) in enumerate(names):
        asked[seed, slide].append(row)
    data = np.empty((size, 0), np.uint32)
    for (seed, slide), where in asked.items():
        barcodes = [names[row][2] for row in where]
        barcodes += barcodes[-1:] * (size - len(where))
        made = np.asarray(jax.random.key_data(sampler.spot_keys(seed, slide, barcodes)))
        if not data.shape[1]:
            data = np.empty(made.shape, made.dtype)
        data[where] = made[: len(where)]
    data[len(names) :] = data[len(names) - 1]
    return jax.random.wrap_key_data(jnp.asarray(data))
