"""The loop: from an experiment and its records to a checkpoint that predicts."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax

from stemjax import config, distributed, errors, mesh
from stemjax.data import records
from stemjax.train import (
    agreement,
    checkpoint,
    dispatch,
    lease,
    nonfinite,
    preemption,
    rounds,
    runs,
    saving,
    writers,
)
from stemjax.train import journal as journals
from stemjax.train import material as material_lib
from stemjax.train import origin as origins
from stemjax.train import state as states
from stemjax.train import step as steps
from stemjax.typing import Params

METRICS = "metrics.jsonl"
"""File of a workdir with the numbers of its steps."""

_log = logging.getLogger(__name__)


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


def train(
    experiment: config.Experiment,
    source: records.Records,
    workdir: str | pathlib.Path,
    *,
    outputs: Sequence[writers.Writer] = (),
    layout: mesh.Layout | None = None,
    start: checkpoint.Trained | None = None,
    stop_at: int | None = None,
    steal: bool = False,
) -> Result:
    """Trains until ``experiment.train.steps`` updates are done, going on where the workdir stopped.

    SIGTERM and SIGINT save the state and end the run. Updates that are not finite are skipped, and
    send the run back to its last checkpoint where they are many (`nonfinite`).

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
      steal: take the workdir from a job that is dead and does not look it.

    Raises:
      SplitError: slides held out do not fit the records or the panel.
      CheckpointMismatchError: the workdir belongs to another run, or ``start`` to another network.
      CheckpointError: all steps of the workdir are damaged.
      ConfigError, EncoderMismatchError, GenePanelError: ``start`` does not fit, or there is none
        and the process needs one.
      NonFiniteError: updates were not finite, again after going back; the last checkpoint is whole.
      ResourceError: an update does not fit the memory, or the last state the disk.
      WorkdirInUseError: another live job has the workdir.
      DisagreementError: a process of this run would not do the same as the first.
      Stopped: a signal ended the run; its state is saved (`stemjax.stopping`).
    """
    workdir = pathlib.Path(workdir)
    layout = layout or mesh.make_layout(fsdp=experiment.mesh.fsdp, genes=experiment.mesh.genes)
    distributed.require_agreement(agreement.facts(experiment, source, workdir, start))
    if start is not None:
        origins.require_start(start, experiment, source)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(preemption.watched())
        with distributed.together():
            if distributed.is_first():
                workdir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lease.held(workdir, steal=steal, say=_log.warning))
        return _train(experiment, source, workdir, outputs, layout, start, stop_at, stop)


def _train(
    experiment: config.Experiment,
    source: records.Records,
    workdir: pathlib.Path,
    outputs: Sequence[writers.Writer],
    layout: mesh.Layout,
    start: checkpoint.Trained | None,
    stop_at: int | None,
    stop: preemption.Asked,
) -> Result:
    origin = origins.find(workdir, start)
    if origin is None and experiment.diffusion.process == "consistency":
        raise errors.ConfigError(
            "config.diffusion.process=consistency",
            expected="a trained model to start from",
            found="none",
            fix="stemjax train --start MODEL, a run or bundle of config.diffusion.process=edm",
        )
    stop.check()
    material = material_lib.gather(experiment, source, layout, origin)
    optimizer = states.make_optimizer(experiment.optim, experiment.train.steps)
    with saving.Checkpoints(workdir, material.card) as checkpoints:

        def begin() -> states.TrainState:
            return _start(material, optimizer, checkpoints, layout, origin)

        state = begin()
        metrics_file = workdir / METRICS
        last = min(experiment.train.steps, stop_at or experiment.train.steps)
        first = int(state.step)
        due = (
            bool(first)
            and first <= last
            and rounds.is_due(experiment.train.validate_every, first, last)
        )
        if due and distributed.is_first():
            due = not writers.has(metrics_file, first, "val_mse")
        due = bool(distributed.gather(np.array(due))[0])
        files: list[writers.Writer] = []
        if distributed.is_first():
            files = [
                writers.JsonLines(metrics_file, resume_step=first),
                writers.TensorBoard(workdir / "tensorboard"),
            ]
        try:
            shown = [*files, *(outputs if distributed.is_first() else ())]
            journal = journals.Journal(shown, experiment.train)
            if first < last and distributed.is_first():
                runs.note(workdir, first, layout)
            teacher = _teacher(experiment, origin) if first < last else None
            programs = _programs(material, optimizer, layout, journal, teacher)
            watch = nonfinite.Watch(experiment.train, material, workdir)
            run = rounds.Run(
                material=material, programs=programs, checkpoints=checkpoints, journal=journal,
                watch=watch, stop=stop, last=last,
            )  # fmt: skip
            best = run.go_on(state, begin, validate_first=due)
            return Result(
                workdir=workdir,
                step=max(first, last),
                best=best,
                seconds=journal.seconds,
                compile_seconds=journal.compile_seconds,
            )
        finally:
            for file in files:
                file.close()


def _start(
    material: material_lib.Material,
    optimizer: optax.GradientTransformation,
    checkpoints: saving.Checkpoints,
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
