"""The same backbone as plain regression: the baseline that a diffusion model's mean must meet.

With every row of every batch trained as the mean token (mean_fraction = 1) the Stem task is mean
squared error regression from the embedding, with the same network, optimiser, data order and
number of updates. So the row costs no second trainer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py

from stemjax import config, distributed, errors, tasks
from stemjax.data import records, sealing
from stemjax.data.hdf5 import soundness
from stemjax.eval import predict
from stemjax.foreign import json_text
from stemjax.train import checkpoint, loop, writers

if TYPE_CHECKING:
    import anndata

ROW = "regression backbone"


class Origin(NamedTuple):
    """What made a prediction.

    Attributes:
      slide: that was predicted.
      model: the model's card, as JSON.
    """

    slide: str
    model: str


def read_origin(path: pathlib.Path) -> Origin | None:
    """Returns what made the prediction in a file, without reading it; None for another tool's.

    Raises:
      PredictionError: there is none, or it is damaged.
    """
    soundness.require_sound(path, errors.PredictionError)
    sealing.require_whole(path)
    try:
        with h5py.File(path, "r") as file:
            about: Any = file.get("uns/stemjax", {})
            if not {"slide", "model"} <= set(about):
                return None
            slide, model = (about[name].asstr()[()] for name in Origin._fields)
            return Origin(slide=str(slide), model=str(model))
    except Exception as error:  # h5py tells damage by all kinds of exceptions
        raise errors.PredictionError(
            f"{path} cannot be read ({type(error).__name__}: {error})",
            fix="copy the file again, or predict again",
        ) from error


def _card(text: str) -> checkpoint.Card:
    try:
        return checkpoint.Card.from_json(json_text.parse(text))
    except ValueError as error:
        raise errors.PredictionError(
            f'uns["stemjax"]["model"] of a prediction cannot be read ({str(error)[:120]})',
            fix="copy the file again, or predict again",
        ) from error


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


def _by_names(card: checkpoint.Card) -> config.Experiment:
    """The experiment with its slides by name: a manifest stays where the model was trained."""
    data = card.experiment.data
    if not data.manifest:
        return card.experiment
    roles = ("train", "val", "test")  # a manifest has no slides to recover
    named = {role: ",".join(card.split.get(role, ())) for role in roles}
    return dataclasses.replace(
        card.experiment, data=dataclasses.replace(data, manifest="", fold="", **named)
    )


def backbone_row(
    prediction: anndata.AnnData,
    source: records.Records,
    choice: str,
    *,
    default_workdir: pathlib.Path,
    line: Callable[[int], writers.Writer] | None = None,
) -> dict[str, anndata.AnnData]:
    """Returns the regression's prediction of the same slide under its row's name, or nothing.

    Args:
      prediction: the model's prediction; its card says what to train.
      source: as `backbone_rows`, and so are the others.
      choice: ``train``, ``none``, or a workdir.
      default_workdir: where ``train`` puts the run.
      line: shows the training.
    """
    about = prediction.uns["stemjax"]
    made = [Origin(slide=str(about["slide"]), model=str(about["model"]))]
    rows = backbone_rows(
        made, source, choice, mine=(0,), default_workdir=default_workdir, line=line
    )
    return {ROW: rows[0]} if rows else {}


def backbone_rows(
    made: Sequence[Origin],
    source: records.Records,
    choice: str,
    *,
    mine: Collection[int],
    default_workdir: pathlib.Path,
    line: Callable[[int], writers.Writer] | None = None,
) -> dict[int, anndata.AnnData]:
    """Returns the regression's predictions of the slides of some predictions, by their number.

    Predictions of one model share its regression; several models, such as those of the folds of a
    manifest, have one each, in folders of ``default_workdir`` named by the model's hash. All
    processes of a run train each of them together. Beside a model that is a plain regression
    itself none is trained; where any is, there is no row.

    Args:
      made: of all predictions, the same on all processes.
      source: records of the training slides and of the slides predicted.
      choice: ``train`` (into ``default_workdir``, going on where it stopped), ``none``, or the
        workdir of a run.
      mine: numbers of the predictions whose slides this process predicts.
      default_workdir: where ``train`` puts the run.
      line: makes a writer that shows the training, given its number of steps.
    """
    if choice == "none":
        return {}
    models = [one.model if choice == "train" else choice for one in made]
    distinct, cards, rows = dict.fromkeys(models), {}, {}
    if choice == "train":
        cards = {model: _card(model) for model in distinct}
    if any(isinstance(card.task, tasks.HisToSGETask) for card in cards.values()):
        return {}
    for model in distinct:
        if choice == "train":
            own = _folder(default_workdir, model, alone=len(distinct) == 1)
            experiment = as_regression(_by_names(cards[model]))
            trained = loop.train_shown(experiment, source, own, line)
        else:
            trained = checkpoint.load(choice)
        with distributed.together():
            for number in mine:
                if models[number] == model:
                    rows[number] = predict.predict_slide(
                        trained, source, made[number].slide, tasks.Sampling(mode="mean")
                    )
    return rows


def _folder(default_workdir: pathlib.Path, model: str, *, alone: bool) -> pathlib.Path:
    if alone:
        return default_workdir
    return default_workdir / hashlib.sha256(model.encode()).hexdigest()[:8]
