"""Validation in a run: how its averaged weights predict slides that it does not train on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from stemjax import distributed, mesh, tasks
from stemjax.data import records
from stemjax.eval import metrics as scores
from stemjax.train import spot_inputs
from stemjax.train.card import Card
from stemjax.typing import Params


class Validate(Protocol):
    """Scores of weights on the validation slides."""

    def __call__(
        self, ema: Params, progress: Callable[[int, int, str], None] | None = None
    ) -> dict[str, float]:
        """Returns the scores; ``progress`` may raise, to end it early."""
        ...


def make_validate(
    card: Card,
    task: tasks.Task,
    table: records.Table,
    source: records.Records,
    rows: int | None = None,
) -> Validate:
    """Returns ``validate(ema) -> {"val_mse", "val_mae", "val_pcc"}`` on the table's spots.

    The prediction is the conditional mean of the original view: one evaluation a spot, or one
    antithetic pair where no mean token is trained; a model of windows predicts each spot from the
    others. Errors are in the transform's space, PCC is the mean over genes.

    Args:
      card: what the weights mean.
      task: the model.
      table: the spots, or of ``rows`` spots this process's share, which all processes predict
        together.
      source: records of the slides.
      rows: spots in all; None is those of the table.
    """
    together = table.n if rows is None else rows
    shared = table.n < together
    predict = tasks.make_predictor(task, task.estimate)
    given = spot_inputs.make_inputs(card, table, source)
    keys = given.keys(card.experiment.seed)
    truth = card.space.forward(table.counts, table.total)

    def validate(
        ema: Params, progress: Callable[[int, int, str], None] | None = None
    ) -> dict[str, float]:
        drawn = given.of_spots(predict(mesh.bring_home(ema), given.tree, keys, progress=progress))
        found = card.space.values(drawn.mean(axis=0)), truth, table.mask
        if shared:
            found = tuple(distributed.gather_rows(part, together) for part in found)
        values, measured, mask = found
        pcc = scores.pcc_per_gene(values, measured, mask)
        return {
            "val_mse": scores.mse(values, measured, mask),
            "val_mae": scores.mae(values, measured, mask),
            "val_pcc": float(np.nanmean(pcc)),
        }

    return validate
