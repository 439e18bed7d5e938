"""Runs that start from trained weights: what has to fit, and what comes with the weights.

Weights mean something in their own space: a run that starts from them takes over genes and
standardisation with them and fits neither anew.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from stemjax import config, errors, tasks
from stemjax.data import records, space, splits
from stemjax.foreign import json_text
from stemjax.train import checkpoint
from stemjax.typing import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a run's weights come from.

    Attributes:
      about: which weights those are (`checkpoint.Trained.identity`) and the slides they have seen.
      space: genes, transform and standardisations.
      params: the weights; None in a run that goes on from its own checkpoints.
    """

    about: dict[str, Any]
    space: space.Space
    params: Params | None


def find(workdir: pathlib.Path, start: checkpoint.Trained | None) -> Origin | None:
    """Returns where a run's weights come from: those given, or those that it was begun with.

    Args:
      workdir: the run's folder.
      start: trained weights to start from; None begins afresh, or goes on as the run was begun.

    Returns:
      None for a run that starts from random weights.
    """
    if start is not None:
        seen = sorted({*start.card.split["train"], *(start.card.start or {}).get("slides", ())})
        about = {**start.identity, "slides": seen}
        return Origin(about=about, space=start.card.space, params=start.params)
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        card = checkpoint.Card.from_json(json_text.parse(path.read_text(encoding="utf-8")))
    except (ValueError, errors.StemjaxError):
        return None  # Checkpoints says what is wrong with it
    if card.start is None:
        return None
    return Origin(about=card.start, space=card.space, params=None)


def require_params(origin: Origin, purpose: str) -> Params:
    """Returns the weights to start from.

    Raises:
      ConfigError: the run was begun with them, and they were not given again.
    """
    if origin.params is None:
        raise errors.ConfigError(
            "a run that starts from trained weights",
            expected=f"those of step {origin.about.get('step')} again, as {purpose}",
            found="none",
            fix="give --start again",
        )
    return origin.params


def require_fit(card: checkpoint.Card, source: records.Records) -> None:
    """Checks that records hold what a model takes.

    Raises:
      EncoderMismatchError: the embeddings are of another encoder or geometry.
      GenePanelError: the records hold another panel, or the same genes in another order.
    """
    source.contract.require_same(card.contract, where="the records and the checkpoint")
    ours, theirs = tuple(card.space.genes), tuple(source.genes)
    if ours != theirs:
        missing = [gene for gene in ours if gene not in set(theirs)]
        raise errors.GenePanelError(
            "the checkpoint and the records have different gene panels",
            expected=f"the checkpoint's {len(ours)} genes in their order",
            found=f"{len(theirs)} genes, without {', '.join(missing[:5])}"
            if missing
            else f"{len(theirs)} genes in another order or number",
            fix="prepare the records with --genes and the checkpoint's list",
        )


def require_start(
    start: checkpoint.Trained, experiment: config.Experiment, source: records.Records
) -> None:
    """Checks that a run can start from trained weights.

    Raises:
      EncoderMismatchError, GenePanelError: as `require_fit`.
      ConfigError: the experiment makes other arrays of the records than those weights take.
    """
    require_fit(start.card, source)
    # What goes into the network and what its output means: an equal shape does not tell.
    same = {
        "data": ("transform", "standardise_expression", "standardise_condition"),
        "diffusion": ("sigma_data", "residual", "marginal"),
        "window": ("kind", "reaches"),
    }
    for group, names in same.items():
        theirs, ours = getattr(start.card.experiment, group), getattr(experiment, group)
        for name in names:
            if getattr(theirs, name) != getattr(ours, name):
                raise errors.ConfigError(
                    f"config.{group}.{name}",
                    expected=f"{getattr(theirs, name)!r}, as in the model to start from",
                    found=repr(getattr(ours, name)),
                )
    begun, tuned = start.card.experiment.diffusion, experiment.diffusion
    allowed = ("edm",) if tuned.process == "consistency" else (tuned.process,)
    if begun.process not in allowed:
        raise errors.ConfigError(
            f"config.diffusion.process={tuned.process} from trained weights",
            expected=f"a model of the process {allowed[0]}",
            found=f"one of the process {begun.process}",
        )


def require_unseen(about: dict[str, Any], split: splits.Split) -> None:
    """Checks that the weights to start from have not seen a slide that this run holds out.

    Nor one that it is to recover, even in part: which of its spots they saw is not known here.

    Raises:
      SplitError: they have.
    """
    seen = sorted(set(about["slides"]) & {*split.test, *split.val, *split.recover})
    if seen:
        raise errors.SplitError(
            f"slide {', '.join(seen)}, held out here",
            expected="weights to start from that have not seen it",
            found="weights that were trained on it",
            fix="hold out the same slides in both runs",
        )


def require_network(params: Params, task: tasks.Task) -> None:
    """Checks that weights are those of a task's network.

    Raises:
      CheckpointMismatchError: another name or shape.
    """

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        name = jax.tree_util.keystr
        return {name(path, simple=True, separator="/"): np.shape(leaf) for path, leaf in leaves}

    wanted = shapes(jax.eval_shape(task.init, jax.random.key(0)))
    found = shapes(params)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise errors.CheckpointMismatchError(
                f"the weights to start from: {name}",
                expected=str(wanted.get(name, "none")),
                found=str(found.get(name, "none")),
                fix="take the model's size and kind from the experiment that they belong to",
            )
