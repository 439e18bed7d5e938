"""The same backbone as plain regression: the baseline that a diffusion model's mean must meet.

With every row of every batch trained as the mean token (mean_fraction = 1) the Stem task is mean
squared error regression from the embedding, with the same network, optimiser, data order and
number of updates. So the row costs no second trainer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stemjax import config, tasks
from stemjax.data import records
from stemjax.eval import predict
from stemjax.train import checkpoint, loop, writers

if TYPE_CHECKING:
    import anndata

ROW = "regression backbone"


def as_regression(experiment: config.Experiment) -> config.Experiment:
    """Returns the experiment with the diffusion loss replaced by plain regression."""
    return dataclasses.replace(
        experiment,
        name=f"{experiment.name}_regression",
        diffusion=config.Diffusion(
            mean_fraction=1.0,
            sigma_data=experiment.diffusion.sigma_data,
            condition_noise=experiment.diffusion.condition_noise,
        ),
    )


def backbone_row(
    prediction: anndata.AnnData,
    source: records.Records,
    choice: str,
    *,
    default_workdir: pathlib.Path,
    line: Callable[[int], writers.Writer] | None = None,
) -> dict[str, anndata.AnnData]:
    """Returns the regression's prediction of the same slide under its row's name.

    None is trained beside a model that is a plain regression itself.

    Args:
      prediction: the model's prediction; its card says what to train.
      source: records of the training slides and of the slide predicted.
      choice: ``train`` (into ``default_workdir``, going on where it stopped), ``none``, or the
        workdir of a run.
      default_workdir: where ``train`` puts the run.
      line: makes a writer that shows the training, given its number of steps.
    """
    if choice == "none":
        return {}
    if choice == "train":
        card = checkpoint.Card.from_json(json.loads(prediction.uns["stemjax"]["model"]))
        if isinstance(card.task, tasks.HisToSGETask):
            return {}
        trained = loop.train_shown(as_regression(card.experiment), source, default_workdir, line)
    else:
        trained = checkpoint.load(choice)
    slide = str(prediction.uns["stemjax"]["slide"])
    return {ROW: predict.predict_slide(trained, source, slide, tasks.Sampling(mode="mean"))}


def backbone_rows(
    predictions: Sequence[anndata.AnnData],
    source: records.Records,
    choice: str,
    *,
    default_workdir: pathlib.Path,
    line: Callable[[int], writers.Writer] | None = None,
) -> dict[str, list[anndata.AnnData]]:
    """Returns `backbone_row` of each prediction, under the row's name.

    Predictions of one model share its regression; several models, such as those of the folds of a
    manifest, have one each, in folders of ``default_workdir`` named by the model's hash.
    """
    models = [str(prediction.uns["stemjax"]["model"]) for prediction in predictions]
    found: dict[str, list[anndata.AnnData]] = {}
    for prediction, model in zip(predictions, models, strict=True):
        own = default_workdir
        if len(set(models)) > 1:
            own = default_workdir / hashlib.sha256(model.encode()).hexdigest()[:8]
        row = backbone_row(prediction, source, choice, default_workdir=own, line=line)
        for name, made in row.items():
            found.setdefault(name, []).append(made)
    return {name: rows for name, rows in found.items() if len(rows) == len(predictions)}
