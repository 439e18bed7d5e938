"""Prediction steered: guided by a weaker model, or told some genes that were measured."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from stemjax import errors, tasks
from stemjax.data import records
from stemjax.diffusion import inpaint
from stemjax.tasks import steered
from stemjax.train import checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steering:
    """What a prediction is given besides the patches.

    Attributes:
      scale: strength of guidance; 1 is none.
      weak: the lesser model of autoguidance; None guides by the null condition.
      given: names of genes whose measured counts the prediction is told.
      method: how it is told: ``moment`` (exact for a Gaussian law) or ``replacement`` (cheaper).
    """

    scale: float = 1.0
    weak: checkpoint.Trained | None = None
    given: tuple[str, ...] = ()
    method: inpaint.Method = "moment"

    @property
    def is_none(self) -> bool:
        """Whether nothing is asked for."""
        return self.scale == 1 and not self.given


def steer(
    steering: Steering, trained: checkpoint.Trained, cond: np.ndarray, table: records.Table
) -> tuple[tasks.Steered, tuple[Any, Any], steered.Inputs]:
    """Returns task, parameters and inputs of a steered prediction.

    Raises:
      ConfigError: the model was not trained for guidance by its null condition.
      CheckpointMismatchError: the weak model lives in another space.
      GenePanelError: a given gene is not in the panel, or all of it is given.
      RecordsError: a given gene was not measured on the slide.
    """
    card = trained.card
    if steering.scale != 1 and steering.weak is None and not _knows_null(card):
        raise errors.ConfigError(
            "guidance by the null condition",
            expected="a model trained with config.diffusion.condition_dropout > 0",
            fix="give a lesser model with --guide, or train with that option",
        )
    weak = steering.weak if steering.scale != 1 else None
    if weak is not None:
        _require_same_space(card, weak.card)
    known = _known(steering.given, card.space.genes, table)
    # Genes are given through derivatives, which fused attention stops.
    choose = (lambda card: card.task) if known is None else (lambda card: card.forward_task)
    task = tasks.Steered(
        task=choose(card),
        scale=steering.scale,
        weak=choose(weak.card) if weak is not None else None,
        known=known,
        method=steering.method,
    )
    values = card.space.encode_expression(table.counts, table.total, table.mask)
    params = (trained.params, weak.params if weak is not None else None)
    return task, params, steered.Inputs(cond=cond, values=values)


def _knows_null(card: checkpoint.Card) -> bool:
    return card.experiment.diffusion.condition_dropout > 0


def _require_same_space(ours: checkpoint.Card, theirs: checkpoint.Card) -> None:
    theirs.contract.require_same(ours.contract, where="the weak model and the model")
    if ours.space.to_json() != theirs.space.to_json():
        raise errors.CheckpointMismatchError(
            "the weak model of the guidance",
            expected="the genes, transform and standardisations of the model itself",
            found="others",
            fix="train it on the same records with the same data settings",
        )


def _nearest(unknown: Sequence[str], genes: Sequence[str]) -> str:
    near = [n for name in unknown[:3] for n in difflib.get_close_matches(name, genes, n=2)]
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return "`stemjax models info MODEL` prints the genes of a model"


def _known(given: Sequence[str], genes: Sequence[str], table: records.Table) -> np.ndarray | None:
    if not given:
        return None
    unknown = [name for name in given if name not in set(genes)]
    if unknown or len(set(given)) == len(genes):
        raise errors.GenePanelError(
            "genes given to a prediction",
            expected=f"some of the {len(genes)} of the panel, not all",
            found=f"unknown: {', '.join(unknown[:5])}" if unknown else "the whole panel",
            fix=_nearest(unknown, genes),
            case="D20",
        )
    known = np.isin(np.asarray(genes), np.asarray(given))
    unmeasured = known & (table.mask == 0).any(axis=0)
    if unmeasured.any():
        names = [gene for gene, missing in zip(genes, unmeasured) if missing]
        raise errors.RecordsError(
            "a gene given to the prediction",
            expected="counts in every spot of the slide",
            found=f"none in some for {', '.join(names[:5])}",
            fix="leave it out of --given",
        )
    return known
