"""Calibration of a model's intervals on slides that it was not fitted on (`conformal`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stemjax import errors, tasks
from stemjax.data import records, splits
from stemjax.eval import conformal, metrics, predict
from stemjax.train import calibration, checkpoint

if TYPE_CHECKING:
    import anndata


def choose_slides(
    card: checkpoint.Card, source: records.Records, asked: Sequence[str] = ()
) -> tuple[str, ...]:
    """Returns the slides to calibrate on, sorted: those asked for, else the model's validation.

    Raises:
      SplitError: a slide trained the model or is one of its test slides, is named twice, or none is
        left.
      RecordsError: there are no records of one.
    """
    slides = tuple(asked) or tuple(card.split["val"])
    if not slides:
        raise errors.SplitError(
            "the slides to calibrate on",
            expected="validation slides of the model",
            found="none",
            fix="name slides with --slides that neither trained the model nor test it",
        )
    if len(set(slides)) < len(slides):
        raise errors.SplitError("the slides to calibrate on", found="one twice")
    reasons = {"train": "its residuals are smaller than a new slide's",
               "test": "its own coverage would no longer be a test"}  # fmt: skip
    for role, why in reasons.items():
        if taken := sorted(set(slides) & set(card.split[role])):
            raise errors.SplitError(
                f"{', '.join(taken)} cannot calibrate this model: {why}",
                expected="validation slides, or slides outside of the model's split",
                found=f"a {role} slide",
            )
    for slide in slides:
        source.require(slide)
    return tuple(sorted(slides))


def relation(slide: str, card: checkpoint.Card, source: records.Records) -> str:
    """Returns a sentence on how a slide's patient is related to the training slides."""
    train = tuple(card.split["train"])
    if not train:
        return f"{slide}: the model does not name its training slides"
    patients = {s: source.patients.get(s) for s in (slide, *train)}
    kind = splits.Split(train=train, val=(), test=(slide,), patients=patients).kind
    own = patients[slide]
    if kind == "interpolation within a patient":
        shared = ", ".join(s for s in train if patients[s] == own)
        return (
            f"{slide}: patient {own} also gave training slides ({shared}), so its intervals can be "
            "too narrow for a new patient"
        )
    if kind == "new patient":
        return f"{slide}: no slide of patient {own} trained the model"
    return f"{slide}: whether its patient also gave training slides is not known"


def calibrate(
    trained: checkpoint.Trained,
    source: records.Records,
    sampling: tasks.Sampling,
    *,
    slides: Sequence[str] = (),
    seed: int = 0,
    rows: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> calibration.Calibration:
    """Returns the calibration of one way of sampling; nothing is stored (`bundle.add_calibration`).

    Args:
      trained: the model.
      source: records that hold the slides.
      sampling: how predictions are drawn, here and wherever the calibration is applied.
      slides: as `choose_slides`.
      seed: of the predictions.
      rows: (spot, draw) pairs on a device at a time; None chooses.
      progress: called with spots done, spots in all, and the slide.

    Raises:
      SplitError, RecordsError: as `choose_slides`.
      CalibrationError: as `conformal.fit`.
      EncoderMismatchError, GenePanelError, ConfigError: as `predict.predict_slide`.
    """
    card, plain = trained.card, dataclasses.replace(trained, calibrations=())
    held: list[conformal.Held] = []
    counted: list[conformal.Counted] = []
    for slide in choose_slides(card, source, slides):
        result = predict.predict_slide(
            plain, source, slide, sampling, seed=seed, rows=rows, progress=progress
        )
        table = source.load((slide,))
        one = conformal.Held(
            slide=slide,
            mean=np.asarray(result.X),
            std=predict.spread(result),
            true=card.space.forward(table.counts, table.total),
            mask=table.mask,
            array_xy=table.array_xy,
        )
        held.append(one)
        if (law := _forecast(result)) is not None:
            ends = [metrics.central(law, level) for level in metrics.LEVELS]
            lower, upper = (np.stack(side) for side in zip(*ends))
            counted.append(conformal.count_inside(lower, upper, one.true, one.mask))
    return conformal.fit(
        held,
        card.space,
        sampling=predict.describe_sampling(card, sampling),
        model=trained.identity,
        raw=functools.reduce(conformal.Counted.plus, counted).shares if counted else None,
    )


def _forecast(result: anndata.AnnData) -> metrics.Forecast | None:
    """The model's own law of each entry, None where the mode gives none."""
    if predict.DRAWS in result.obsm:
        drawn = np.asarray(result.obsm[predict.DRAWS]).transpose(1, 0, 2)
        return metrics.Draws(values=drawn) if len(drawn) > 1 else None
    std = predict.spread(result)
    return None if std is None else metrics.Normal(mean=np.asarray(result.X), std=std)


def table(made: calibration.Calibration, card: checkpoint.Card, source: records.Records) -> str:
    """Returns a calibration as lines to read: on what, coverage before and after, its claim."""
    about = made.describe()
    least, most = about["spots"]
    spots = f"{most}" if least == most else f"{least} to {most}"
    before = made.raw or (None,) * len(made.levels)
    lines = [
        f"mode {about['sampling']['mode']}: {len(made.genes) - len(made.absent)} genes on {spots} "
        f"spots of {', '.join(made.slides)}",
        *(f"  {relation(slide, card, source)}" for slide in made.slides),
        f"  {'interval':>8}  {'model':>7}  {'calibrated':>10}",
    ]
    for level, own, after in zip(made.levels, before, made.held_out):
        lines.append(f"  {level:>8.0%}  {_share(own):>7}  {_share(after):>10}")
    lines.append(f"  calibrated: coverage of spots held out, {made.held_out_by}")
    if None in made.held_out:
        lines.append("  -: too few spots are left to try that level, or the mode has no spread")
    elif made.raw is None:
        lines.append("  model: this mode has no intervals of its own")
    if made.absent:
        shown = ", ".join(made.absent[:5]) + (", ..." if len(made.absent) > 5 else "")
        lines.append(f"  no interval for {len(made.absent)} genes not measured there: {shown}")
    if set(made.slides) & set(card.split["val"]):
        lines.append(
            "  Validation spots took part in choosing the weights (early stopping), so the "
            "guarantee is approximate."
        )
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
