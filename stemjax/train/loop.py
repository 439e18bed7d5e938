"""The loop: from an experiment and its records to a checkpoint that predicts.

Order of things, which resuming relies on: what a view hands over for steps k ... k + K - 1 -> K
updates in one call -> metrics, validation and checkpoint of step k + K. Metrics are fetched when
the next call has already been handed to the device, so that logging does not stall it.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax

from stemjax import config, distributed, errors, mesh, tasks
from stemjax.data import records
from stemjax.eval import metrics as scores
from stemjax.train import agreement, checkpoint, dispatch, runs, spot_inputs, writers
from stemjax.train import journal as journals
from stemjax.train import material as material_lib
from stemjax.train import origin as origins
from stemjax.train import state as states
from stemjax.train import step as steps
from stemjax.typing import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended.

    Attributes:
      workdir: its folder.
      step: updates done.
      best: validation metrics of the best EMA with its step, or None without validation.
      seconds: time in the loop, compilation and restoring apart.
      compile_seconds: time to compile.
    """

    workdir: pathlib.Path
    step: int
    best: dict[str, float] | None
    seconds: float
    compile_seconds: float


def make_validate(
    card: checkpoint.Card,
    task: tasks.Task,
    table: records.Table,
    source: records.Records,
    rows: int | None = None,
) -> Callable[[Params], dict[str, float]]:
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

    def validate(ema: Params) -> dict[str, float]:
        drawn = given.of_spots(predict(mesh.bring_home(ema), given.tree, keys))
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


def train(
    experiment: config.Experiment,
    source: records.Records,
    workdir: str | pathlib.Path,
    *,
    outputs: Sequence[writers.Writer] = (),
    layout: mesh.Layout | None = None,
    start: checkpoint.Trained | None = None,
    stop_at: int | None = None,
) -> Result:
    """Trains until ``experiment.train.steps`` updates are done, going on where the workdir stopped.

    Args:
      experiment: what to train.
      source: records of the slides.
      workdir: folder for checkpoints, metrics and the configuration.
      outputs: further places for metrics (a progress line, say); JSONL and TensorBoard are
        always written.
      layout: devices; by default all of this run's, arranged by ``config.mesh``.
      start: trained weights to start from, with their space; a run that goes on needs them only
        where its loss asks them (``diffusion.partner = "teacher"``).
      stop_at: leave after this many updates in all, as an interrupted run would.

    Raises:
      SplitError: slides held out do not fit the records or the panel.
      CheckpointMismatchError: the workdir belongs to another run, or ``start`` to another network.
      ConfigError, EncoderMismatchError, GenePanelError: ``start`` does not fit, or there is none
        and the process needs one.
      NonFiniteError: an update was not finite; the last checkpoint is from before it.
      DisagreementError: a process of this run would not do the same as the first.
    """
    workdir = pathlib.Path(workdir)
    layout = layout or mesh.make_layout(fsdp=experiment.mesh.fsdp, genes=experiment.mesh.genes)
    distributed.require_agreement(agreement.facts(experiment, source, workdir, start))
    if start is not None:
        origins.require_start(start, experiment, source)
    origin = origins.find(workdir, start)
    if origin is None and experiment.diffusion.process == "consistency":
        raise errors.ConfigError(
            "config.diffusion.process=consistency",
            expected="a trained model to start from",
            found="none",
            fix="stemjax train --start MODEL, a run or bundle of config.diffusion.process=edm",
        )
    material = material_lib.gather(experiment, source, layout, origin)
    optimizer = states.make_optimizer(experiment.optim, experiment.train.steps)
    with checkpoint.Checkpoints(workdir, material.card) as checkpoints:
        state = _start(material, optimizer, checkpoints, layout, origin)
        files: list[writers.Writer] = []
        if distributed.is_first():
            files = [
                writers.JsonLines(workdir / "metrics.jsonl", resume_step=int(state.step)),
                writers.TensorBoard(workdir / "tensorboard"),
            ]
        try:
            shown = [*files, *(outputs if distributed.is_first() else ())]
            journal = journals.Journal(shown, experiment.train, checkpoints.latest)
            last = min(experiment.train.steps, stop_at or experiment.train.steps)
            if int(state.step) < last and distributed.is_first():
                runs.note(workdir, int(state.step), layout)
            teacher = _teacher(experiment, origin) if int(state.step) < last else None
            programs = _programs(material, optimizer, layout, journal, teacher)
            return _loop(material, programs, checkpoints, state, journal, last)
        finally:
            for file in files:
                file.close()


def _start(
    material: material_lib.Material,
    optimizer: optax.GradientTransformation,
    checkpoints: checkpoint.Checkpoints,
    layout: mesh.Layout,
    origin: origins.Origin | None,
) -> states.TrainState:
    task = material.card.task

    def init(key: jax.Array) -> states.TrainState:
        return states.init_state(task, optimizer, jax.random.wrap_key_data(key))

    # Host arrays are the same on all processes; a key would lie on a device of one of them.
    key = np.asarray(jax.random.key_data(jax.random.key(material.card.experiment.seed)))
    abstract = jax.eval_shape(init, key)
    if checkpoints.latest() is not None:
        return checkpoints.restore(abstract, layout)
    if origin is not None:
        params = origins.require_params(origin, "its first weights: there is no checkpoint yet")
        origins.require_network(params, task)
        begin = jax.jit(
            lambda params: states.begin_state(params, optimizer),
            out_shardings=layout.shardings(abstract),
        )
        return begin(jax.device_get(params))
    # Initialised under jit with the layout's shardings: never whole on one device.
    state = jax.jit(init, out_shardings=layout.shardings(abstract))(key)
    return states.fit_state(state, task, material.rows())


def _programs(
    material: material_lib.Material,
    optimizer: optax.GradientTransformation,
    layout: mesh.Layout,
    journal: journals.Journal,
    teacher: Params | None,
) -> dispatch.Programs:
    card, experiment = material.card, material.card.experiment

    def make_step(remat: bool) -> dispatch.Step:
        model = dataclasses.replace(experiment.model, remat=remat)
        return steps.make_train_step(
            config.make_task(
                dataclasses.replace(experiment, model=model),
                genes=len(card.space.genes),
                condition=card.contract.width,
            ),
            optimizer,
            ema=experiment.optim.ema,
            seed=experiment.seed,
            accumulate=experiment.train.accumulate,
            updates=experiment.train.steps,
            layout=layout,
        )

    policy = "blocks" if experiment.model.remat else experiment.train.remat
    return dispatch.Programs(
        make_step, material.view, layout, journal, policy=policy, teacher=teacher
    )


def _teacher(experiment: config.Experiment, origin: origins.Origin | None) -> Params | None:
    """Returns the weights that the loss asks beside those that it trains, if it does."""
    diffusion = experiment.diffusion
    if origin is None or (diffusion.process, diffusion.partner) != ("consistency", "teacher"):
        return None
    return origins.require_params(origin, "the teacher of its loss")


def _loop(
    material: material_lib.Material,
    programs: dispatch.Programs,
    checkpoints: checkpoint.Checkpoints,
    state: states.TrainState,
    journal: journals.Journal,
    last: int,
) -> Result:
    experiment = material.card.experiment
    cfg, first = experiment.train, int(state.step)
    best = checkpoints.best_metrics()
    validate = None
    if material.val is not None and cfg.validate_every:
        validate = make_validate(
            material.card, material.card.task, material.val, material.source, material.val_rows
        )
    share, shares = programs.layout.share
    handed = material.view.batches(
        material.schedule, first, last, process_index=share, process_count=shares
    )
    for start, updates in dispatch.plan_calls(first, last, dispatch.steps_per_call(cfg)):
        state, measured = programs.run(state, start, list(itertools.islice(handed, updates)))
        journal.flush()  # metrics of the call before, now that this one is under way
        number = start + updates
        if number % cfg.log_every == 0 or number == last:
            journal.note(number, measured)
        to_save = number % cfg.save_every == 0 or number == last
        to_validate = validate is not None and (number % cfg.validate_every == 0 or number == last)
        if not (to_save or to_validate):
            continue
        journal.flush()
        journal.require_finite(number, int(states.skipped(state)))
        with journal.paused():
            if to_validate and validate is not None:
                found = validate(state.ema)
                journal.write(number, found)
                if best is None or found["val_mse"] < best["val_mse"]:
                    best = {"step": float(number), **found}
                    checkpoints.save_best(state.ema, number, best)
            if to_save:
                checkpoints.save(state, number)
    return Result(
        workdir=checkpoints.workdir,
        step=max(first, last),
        best=best,
        seconds=journal.seconds,
        compile_seconds=journal.compile_seconds,
    )


def train_shown(
    experiment: config.Experiment,
    source: records.Records,
    workdir: str | pathlib.Path,
    line: Callable[[int], writers.Writer] | None,
) -> checkpoint.Trained:
    """Trains as `train` while a writer shows it, and returns the weights.

    Args:
      experiment: as `train`.
      source: as `train`.
      workdir: as `train`.
      line: makes the writer, given the number of steps; None shows nothing.

    Raises:
      SplitError, CheckpointMismatchError: as `train`.
    """
    output = line(experiment.train.steps) if line else None
    try:
        train(experiment, source, workdir, outputs=[output] if output else [])
    finally:
        if output:
            output.close()
    return checkpoint.load(workdir)
