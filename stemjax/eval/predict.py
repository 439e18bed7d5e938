"""Prediction of a slide: records and a checkpoint in, AnnData out.

The AnnData has the slots that scanpy and squidpy users look in: X is the mean in the value space
(say log2(count + 1)), ``layers["stemjax_std"]`` the spread, ``layers["stemjax_se"]`` the standard
error of X, ``layers["stemjax_lower_90"]`` and ``layers["stemjax_upper_90"]`` a calibrated interval
(also 50, 80 and 95, where the model has a calibration for this sampling), ``obsm["stemjax_draws"]``
the draws (or ``layers["stemjax_q5"]`` and such, quantiles of draws that were not kept),
``obs["stemjax_nll"]`` how unlikely the measured profile is, ``obs["stemjax_measured"]`` whether
the model was shown the spot's measurement when others were predicted, ``obsm["X_stemjax"]`` hidden
features of models that have some, ``obsm["spatial"]`` spot
centres in full-resolution pixels, ``uns["spatial"]`` the H&E, and ``uns["stemjax"]`` everything
needed to repeat the prediction.
"""

from __future__ import annotations

import functools
import json
import pathlib
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stemjax import __version__, errors, tasks
from stemjax.data import records, space
from stemjax.eval import conformal, h5ad, labels, metrics, mismatch, recovered, steering
from stemjax.train import checkpoint, origin, spot_inputs

if TYPE_CHECKING:
    import anndata

DRAWS = "stemjax_draws"
STD = "stemjax_std"
STANDARD_ERROR = "stemjax_se"
MEASURED = recovered.MEASURED
FEATURES = "X_stemjax"
FEATURE_ROWS = 256
SCALE_TOLERANCE = 1.25
"""Patches may be so much larger or smaller than those of the training slides, unremarked."""
QUANTILE = "stemjax_q{:g}"
IMAGE = "hires"
"""Name of the image in ``uns["spatial"]``: the one that scanpy and squidpy plot unasked."""


def predict_slide(
    trained: checkpoint.Trained,
    source: records.Records,
    slide: str,
    sampling: tasks.Sampling,
    *,
    seed: int = 0,
    rows: int | None = None,
    summary: tasks.Summary | None = None,
    steer: steering.Steering | None = None,
    divergence: Literal["none", "exact", "hutchinson"] = "none",
    progress: Callable[[int, int, str], None] | None = None,
) -> anndata.AnnData:
    """Returns the predicted expression of a slide.

    A model with a calibration of this sampling gives intervals as well (`conformal`), unless the
    prediction is steered: nothing was calibrated for that. A model of windows predicts every spot
    from the other measured spots: those that were not hidden from its training.

    Args:
      trained: weights and what they mean, and their calibrations.
      source: records that hold the slide's embeddings.
      slide: its id.
      sampling: mode, sampler, steps and draws.
      seed: randomness is a function of (seed, slide, barcode).
      rows: (spot, draw) pairs on a device at a time; changes memory and speed, not results. None
        chooses.
      summary: what is kept of the draws, computed on the device, in place of the draws; for mode
        ``draws``.
      steer: guidance, or genes whose counts the prediction is told.
      divergence: ``exact`` or ``hutchinson`` adds the negative log likelihood of each measured
        profile, given its own patch and another's, to ``obs`` (`mismatch`).
      progress: called with spots done, spots in all, and the slide.

    Raises:
      RecordsError: the records lack the slide, or are damaged.
      EncoderMismatchError, GenePanelError: the records do not fit the model.
      ConfigError: a mode or sampler that the model was not trained for, or a summary without draws.
    """
    origin.require_fit(trained.card, source)
    source.require(slide)
    table = source.load((slide,))
    result = predict_rows(
        trained, source, table, sampling, seed=seed, rows=rows, summary=summary, steer=steer,
        progress=progress,
    )  # fmt: skip
    for name, column in labels.label_columns(source, slide, table.barcodes).items():
        result.obs[name] = column
    if divergence != "none":
        _require_alone(trained.card, "the likelihood of measured profiles")
        odds = mismatch.negative_log_likelihood(
            trained, table, divergence=divergence, seed=seed, rows=rows or 64, progress=progress
        )
        result.obs[mismatch.NLL], result.obs[mismatch.NLL_OTHER] = odds["own"], odds["other"]
    return result


def predict_rows(
    trained: checkpoint.Trained,
    source: records.Records,
    table: records.Table,
    sampling: tasks.Sampling,
    *,
    seed: int = 0,
    rows: int | None = None,
    summary: tasks.Summary | None = None,
    steer: steering.Steering | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> anndata.AnnData:
    """Returns the prediction of a slide's rows with their intervals, but no labels.

    Of a model that sees a spot's patch alone the rows may be some of the slide; a model of windows,
    or one that recovers the slide, needs all of them.

    Args:
      trained: weights and what they mean, and their calibrations.
      source: records that hold the slide.
      table: rows of one slide.
      sampling: as `predict_slide`, and so are the others.
      seed: randomness is a function of (seed, slide, barcode).
      rows: (spot, draw) pairs on a device at a time.
      summary: what is kept of the draws.
      steer: guidance, or genes whose counts the prediction is told.
      progress: called with spots done, spots in all, and the slide.

    Raises:
      RecordsError, ConfigError: as `predict_slide`.
    """
    result = predict_table(
        trained, source, table, sampling, measured=spot_inputs.measured_spots(trained.card, table),
        seed=seed, rows=rows, summary=summary, steer=steer, progress=progress,
    )  # fmt: skip
    made = conformal.find(trained.calibrations, describe_sampling(trained.card, sampling))
    if made is not None and (steer is None or steer.is_none):
        conformal.write_intervals(result, spread(result), made)
        result.uns["stemjax"]["calibration"] = json.dumps(made.describe())
    return result


def predict_table(
    trained: checkpoint.Trained,
    source: records.Records,
    table: records.Table,
    sampling: tasks.Sampling,
    *,
    measured: np.ndarray,
    seed: int = 0,
    rows: int | None = None,
    summary: tasks.Summary | None = None,
    steer: steering.Steering | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> anndata.AnnData:
    """Returns the predicted expression at the rows of a table: spots of a slide, or points on it.

    Args:
      trained: weights and what they mean.
      source: records that hold the slide.
      table: rows of one slide.
      sampling: mode, sampler, steps and draws.
      measured: which of them were measured, [l]. Models of windows are shown these; where some
        are not, or such a model predicts, ``obs["stemjax_measured"]`` tells which.
      seed: as `predict_slide`.
      rows: as `predict_slide`.
      summary: as `predict_slide`.
      steer: as `predict_slide`.
      progress: as `predict_slide`.

    Raises:
      RecordsError, ConfigError: as `predict_slide`.
    """
    import anndata
    import pandas as pd

    info, card = source.require(table.slides[0]), trained.card
    task: Any = card.task
    params: Any = trained.params
    given = spot_inputs.make_inputs(card, table, source, measured=measured)
    inputs: Any = given.tree
    steer = steer or steering.Steering()
    if not steer.is_none:
        _require_alone(card, "steering")
        task, params, inputs = steering.steer(steer, trained, inputs, table)
    if summary is not None and (sampling.mode, sampling.in_pairs) != ("draws", summary.antithetic):
        raise errors.ConfigError(
            "a summary of draws",
            expected="mode draws, in pairs where the summary says so",
            found=f"mode {sampling.mode}, {'in pairs' if sampling.in_pairs else 'independent'}",
        )
    predict = tasks.make_predictor(task, sampling, rows=rows, reduce=summary)
    keys = given.keys(seed)
    drawn = given.of_spots(predict(params, inputs, keys, progress=progress))
    result = anndata.AnnData(
        obs=pd.DataFrame(
            {
                "in_tissue": 1,
                "array_row": table.array_xy[:, 1],
                "array_col": table.array_xy[:, 0],
            },
            index=pd.Index(list(table.barcodes)),
        ),
        var=pd.DataFrame(index=pd.Index(list(card.space.genes))),
    )
    if not measured.all() or card.experiment.window.kind != "none":
        result.obs[MEASURED] = measured
    if summary is None:
        fill(result, drawn, sampling, card.space)
    else:
        fill_summary(result, drawn, summary, card.space)
    if isinstance(task, tasks.HisToSGETask):
        result.obsm[FEATURES] = given.of_spots(_hidden(task)(params, inputs, keys))[0]
    result.obsm["spatial"] = np.asarray(table.pixel_xy, np.float64)
    factors = {
        "spot_diameter_fullres": info.spot_diameter_um / info.mpp,
        "microns_per_pixel": info.mpp,
        # Of no image too: squidpy scales positions and spots by it, with img=False as well.
        f"tissue_{IMAGE}_scalef": 1.0,
    }
    images = {}
    if info.thumbnail_scale is not None:
        images[IMAGE], factors[f"tissue_{IMAGE}_scalef"] = source.thumbnail(info.id)
    result.uns["spatial"] = {info.id: {"images": images, "scalefactors": factors}}
    hiding = spot_inputs.hiding_of(card, info.id)
    result.uns["stemjax"] = provenance(trained, info, sampling, seed) | {
        "evaluations_per_spot": task.evaluations(sampling),
        "guidance": float(steer.scale),
        "guide": "" if steer.weak is None else json.dumps(steer.weak.identity),
        "given_genes": list(steer.given),
        "given_method": steer.method if steer.given else "",
        "hidden": "" if hiding is None else json.dumps(hiding.to_json()),
    }
    return result


@functools.lru_cache(maxsize=8)
def _hidden(task: tasks.HisToSGETask) -> tasks.Predictor:
    """The predictor of a model's features, the same for all slides: it holds its programs."""
    return tasks.by_portions(task.hidden, rows=FEATURE_ROWS, spots_axis=1)


def _require_alone(card: checkpoint.Card, what: str) -> None:
    """Raises where a model sees other spots, for what is defined for single spots only."""
    if card.experiment.window.kind != "none":
        raise errors.ConfigError(
            f"{what} with config.window.kind={card.experiment.window.kind}",
            expected="a model that sees a spot's patch alone",
            fix="leave it out, or take a model of config.window.kind=none",
        )


def fill(
    result: anndata.AnnData, drawn: np.ndarray, sampling: tasks.Sampling, fitted: space.Space
) -> None:
    """Writes mean, spread, standard error and draws into a prediction, in the value space.

    Args:
      result: the prediction, without X.
      drawn: what the task returned, in the model's space, [n l g].
      sampling: how it was drawn.
      fitted: the model's space.
    """
    if sampling.mode == "marginal":
        result.X = fitted.values(drawn[0]).astype(np.float32)
        result.layers[STD] = (drawn[1] * fitted.expression.std).astype(np.float32)
        return
    draws = fitted.values(drawn)
    result.X = draws.mean(axis=0).astype(np.float32)
    if sampling.mode == "draws":
        n = len(draws)
        result.layers[STD] = draws.std(axis=0, ddof=1 if n > 1 else 0).astype(np.float32)
        if n > (2 if sampling.in_pairs else 1):
            error = metrics.draw_standard_error(draws, antithetic=sampling.in_pairs)
            result.layers[STANDARD_ERROR] = error.astype(np.float32)
        result.obsm[DRAWS] = np.ascontiguousarray(draws.transpose(1, 0, 2), dtype=np.float32)


def fill_summary(
    result: anndata.AnnData, found: np.ndarray, summary: tasks.Summary, fitted: space.Space
) -> None:
    """Writes mean, spread, standard error and quantiles of draws that were not kept.

    Args:
      result: the prediction, without X.
      found: what the summary returned, in the model's space, [k l g].
      summary: what it is.
      fitted: the model's space.
    """
    scale = np.asarray(fitted.expression.std, np.float32)
    result.X = fitted.values(found[0])
    result.layers[STD] = found[1] * scale
    if np.isfinite(found[2]).all():
        result.layers[STANDARD_ERROR] = found[2] * scale
    for level, values in zip(summary.quantiles, found[3:], strict=True):
        result.layers[QUANTILE.format(100 * level)] = fitted.values(values)


def spread(result: anndata.AnnData) -> np.ndarray | None:
    """Returns a prediction's standard deviations, [l g], or None where its mode has none."""
    return np.asarray(result.layers[STD]) if STD in result.layers else None


def describe_sampling(card: checkpoint.Card, sampling: tasks.Sampling) -> dict[str, Any]:
    """Returns how a prediction is drawn, in plain values: what is run, not what was asked for.

    Two ways of sampling with the same values give predictions of one law.
    """
    one = sampling.mode in tasks.ONE_EVALUATION
    on = tasks.Sampling(mode=sampling.mode) if one else sampling.on(card.task.levels)
    return {
        "mode": on.mode,
        "sampler": "" if one else on.sampler,
        "steps": 0 if one else on.steps,
        "ladder": "" if one else on.ladder,
        "n_draws": 0 if one else on.draws,
        "antithetic": on.in_pairs,
        # What the step rule adds, and not what was asked for: None is 1 for dpmpp2m_sde.
        "eta": 0.0 if one else float(getattr(on.rule, "eta", 0.0)),
        "churn": float(on.churn),
        "sigma_min": 0.0 if on.sigma_min is None else float(on.sigma_min),
        "sigma_max": 0.0 if on.sigma_max is None else float(on.sigma_max),
        "rho": float(on.rho),
    }


def provenance(
    trained: checkpoint.Trained, info: records.SlideInfo, sampling: tasks.Sampling, seed: int
) -> dict[str, Any]:
    """Returns ``uns["stemjax"]``: plain values that say how a prediction was made."""
    card = trained.card
    return {
        "slide": info.id,
        "patient": info.patient or "",
        **describe_sampling(card, sampling),
        "seed": seed,
        "value_space": card.space.transform,
        "train_slides": list(card.split["train"]),
        "val_slides": list(card.split["val"]),
        "test_slides": list(card.split["test"]),
        "split_kind": card.split["kind"],
        "checkpoint_step": trained.step,
        "weights": trained.weights,
        "stemjax_version": __version__,
        "model": json.dumps(card.to_json()),
        "warnings": list(warnings(card, info)),
        "notes": list(info.notes),
        "notice": "Research use only. Not for clinical or diagnostic use.",
    }


def warnings(card: checkpoint.Card, info: records.SlideInfo) -> tuple[str, ...]:
    """Returns what makes a model doubtful on a slide, in words: patches of another scale.

    Where the encoder's contract has no field of view, a patch is so many pixels, whatever they
    span: then a slide of another pixel size shows the model other tissue than it learned from.
    """
    if card.patch_um is None or not info.patch_um:
        return ()
    low, high = card.patch_um
    if low / SCALE_TOLERANCE <= info.patch_um <= high * SCALE_TOLERANCE:
        return ()
    span = f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"
    return (
        f"patches of {info.patch_um:.0f} um at {info.mpp:.3g} um/px, but the model was trained on "
        f"patches of {span} um: expect it to be wrong, or read the image at another scale",
    )


def write(prediction: anndata.AnnData, path: str | pathlib.Path) -> None:
    """Writes an h5ad file, whole or not at all, with a hash of what it holds.

    Raises:
      ResourceError: the disk is full.
    """
    h5ad.write(prediction, path)


def beside(path: pathlib.Path) -> pathlib.Path:
    """Returns a new hidden name in the same folder, for what is still being written."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
