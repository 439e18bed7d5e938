"""Rows of a benchmark's table that need no training run: the constant, ridge and the probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from stemjax.eval import baselines

CONSTANT, RIDGE, PROBE, STEM = "constant mean", "ridge", "HEST probe", "Stem"
MODELS = {"ridge": RIDGE, "probe": PROBE, "stem": STEM}
"""Rows that may be asked for, by the name on the command line; the constant is always there."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """What a row is fitted on, and what it is asked for; y in the benchmark's value space.

    Attributes:
      train_x: embeddings of the original patches.
      train_y: expression; every gene is measured at every spot.
      train_slide: which slide a row is of, from 0 up.
      train_xy: where it lies, in any unit.
      test_x: embeddings of the test spots.
    """

    train_x: Float[np.ndarray, "n c"]
    train_y: Float[np.ndarray, "n g"]
    train_slide: Int[np.ndarray, " n"]
    train_xy: Float[np.ndarray, "n 2"]
    test_x: Float[np.ndarray, "l c"]


def predict(fold: Fold, models: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Predictions [l g] by row name, the constant first, and what to note of them.

    Args:
      fold: the data.
      models: keys of `MODELS`; ``stem``, which is trained, is passed over.
    """
    mask = np.ones(fold.train_y.shape, np.uint8)
    found = {CONSTANT: baselines.constant_mean(fold.train_y, mask, spots=len(fold.test_x))}
    notes = []
    if "ridge" in models:
        ridge = baselines.ridge(
            fold.train_x,
            fold.train_y,
            mask,
            fold.test_x,
            slide_index=fold.train_slide,
            array_xy=fold.train_xy,
        )
        found[RIDGE] = ridge.prediction
        notes.append(f"ridge: alpha {ridge.alpha:g} by {ridge.folds}")
    if "probe" in models:
        found[PROBE] = baselines.hest_probe(fold.train_x, fold.train_y, mask, fold.test_x)
    return found, notes
