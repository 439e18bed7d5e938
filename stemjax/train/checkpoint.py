"""Checkpoints: orbax for the arrays, JSON for everything needed to use them.

A workdir holds::

    config.json          the experiment
    calibration.json     calibrations of intervals, once `stemjax calibrate` has run
    checkpoints/<step>/  state (weights, EMA, optimiser, step) and model.json's content
    best/<step>/         EMA with the lowest validation error, same content
    metrics.jsonl, tensorboard/

Nothing here executes what a checkpoint says: the experiment inside is JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from stemjax import config, distributed, errors, mesh
from stemjax.train import calibration, runs
from stemjax.train import state as states
from stemjax.train.card import Card
from stemjax.train.trained import Trained
from stemjax.typing import Params

# What may change between the parts of a run, since no weight depends on it. Where the records and
# the manifest lie is not what they are: digests and the split itself are compared.
_NEUTRAL = {
    "data": ("records", "residence", "manifest", "fold", "leakage"),
    "train": ("log_every", "keep", "steps_per_call", "remat"),
    "mesh": ("fsdp", "genes"),
}


def _manager(folder: pathlib.Path, *, keep: int | None) -> ocp.CheckpointManager:
    """Returns orbax's manager of a folder; ``keep`` None is for reading and deletes nothing.

    Orbax has a read-only mode, but it warns three times at each use.
    """
    return ocp.CheckpointManager(
        folder.absolute(),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=keep is not None,
            cleanup_tmp_directories=keep is not None,
            create=keep is not None,
            # Processes wait for each other by a name and a step: two folders may save the same step
            # at once.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=folder.name
            ),
        ),
    )


class Checkpoints:
    """The checkpoints of one workdir.

    Use as a context manager: leaving it waits for what is being written.

    Args:
      workdir: the run's folder; made if absent.
      card: what the weights mean.

    Raises:
      CheckpointMismatchError: the workdir belongs to another configuration or other data.
    """

    def __init__(self, workdir: pathlib.Path, card: Card) -> None:
        self.workdir, self.card = workdir, card
        workdir.mkdir(parents=True, exist_ok=True)
        if distributed.is_first():
            self._begin_run()
        distributed.wait(f"config.json of {workdir}")
        self._require_same_run()
        self._steps = _manager(workdir / "checkpoints", keep=card.experiment.train.keep)
        self._best = _manager(workdir / "best", keep=1)

    def _begin_run(self) -> None:
        path = self.workdir / "config.json"
        if not path.exists():
            partial = path.with_name(path.name + ".tmp")
            partial.write_text(json.dumps(self.card.to_json(), indent=1))
            os.replace(partial, path)

    def _require_same_run(self) -> None:
        path, ours = self.workdir / "config.json", self.card.to_json()
        try:
            theirs = json.loads(path.read_text())
        except ValueError as error:
            raise errors.CheckpointMismatchError(
                f"{path} is not JSON ({error})", fix="use another --workdir"
            ) from error
        lines = config.differences(_identity(theirs), _identity(json.loads(json.dumps(ours))))
        if lines:
            shown = "; ".join(line if len(line) < 160 else line[:157] + "..." for line in lines[:5])
            raise errors.CheckpointMismatchError(
                f"workdir {self.workdir} belongs to another run",
                expected="the same configuration and data",
                found=shown + (f"; and {len(lines) - 5} more" if len(lines) > 5 else ""),
                fix="use another --workdir, or the configuration that it was started with",
            )

    def latest(self) -> int | None:
        """Returns the newest step that was committed, or None."""
        return self._steps.latest_step()

    def save(self, state: states.TrainState, step: int) -> None:
        """Begins to write the state; orbax copies it before this returns."""
        if self._steps.latest_step() == step:
            return
        self._steps.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), card=ocp.args.JsonSave(self.card.to_json())
            ),
        )

    def save_best(self, ema: Params, step: int, metrics: dict[str, float]) -> None:
        """Writes the EMA with the best validation so far, and its metrics."""
        self._best.save(
            step,
            args=ocp.args.Composite(
                ema=ocp.args.StandardSave(ema),
                card=ocp.args.JsonSave(self.card.to_json()),
                metrics=ocp.args.JsonSave(metrics),
            ),
        )

    def best_metrics(self) -> dict[str, float] | None:
        """Returns the metrics of the best EMA so far, or None."""
        step = self._best.latest_step()
        if step is None:
            return None
        args = ocp.args.Composite(metrics=ocp.args.JsonRestore())
        return self._best.restore(step, args=args)["metrics"]

    def restore(self, like: states.TrainState, layout: mesh.Layout) -> states.TrainState:
        """Returns the newest state, laid out as ``layout`` says.

        Raises:
          CheckpointError: it cannot be read.
        """
        step = self.latest()
        abstract = _abstract(like, layout)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            return self._steps.restore(step, args=args)["state"]
        except Exception as error:
            raise _damaged(self.workdir / "checkpoints" / str(step), error) from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc: object) -> None:
        for manager in (self._steps, self._best):
            manager.wait_until_finished()
            manager.close()


def _identity(card: dict[str, Any]) -> dict[str, Any]:
    """Returns the card without what may change between the parts of a run."""
    kept = {name: value for name, value in card.items() if name != "versions"}
    experiment = kept.get("experiment")
    if isinstance(experiment, dict):
        # An older version's experiment lacks keys: they meant what their defaults mean.
        with contextlib.suppress(errors.ConfigError):
            experiment = config.as_json(config.resolve(experiment))
        kept["experiment"] = {
            group: {k: v for k, v in part.items() if k not in _NEUTRAL.get(group, ())}
            if isinstance(part, dict)
            else part
            for group, part in experiment.items()
        }
    return kept


def _damaged(folder: pathlib.Path, error: Exception) -> errors.CheckpointError:
    return errors.CheckpointError(
        f"checkpoint {folder} cannot be read ({type(error).__name__}: {error})",
        fix="delete that step to go on from an older one",
    )


def _abstract(like: Any, layout: mesh.Layout) -> Any:
    shapes = jax.eval_shape(lambda: like) if not _is_abstract(like) else like
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        shapes,
        layout.shardings(shapes),
    )


def _is_abstract(tree: Any) -> bool:
    return all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


@contextlib.contextmanager
def _opened(folder: pathlib.Path) -> Iterator[ocp.CheckpointManager]:
    manager = _manager(folder, keep=None)
    try:
        yield manager
    finally:
        manager.close()


def load(workdir: str | pathlib.Path, *, weights: str = "auto") -> Trained:
    """Returns the weights of a workdir: the best EMA where validation chose one, else the last.

    Args:
      workdir: folder that `stemjax train` wrote.
      weights: ``best``, ``last``, or ``auto``.

    Raises:
      CheckpointError: there is none, or it is damaged.
      CalibrationError: calibration.json is damaged.
      ConfigError: ``weights`` is none of the three.
    """
    workdir = pathlib.Path(workdir)
    if weights not in ("auto", "best", "last"):
        raise errors.ConfigError("weights", expected="auto, best or last", found=repr(weights))
    order = {"auto": ("best", "checkpoints"), "best": ("best",), "last": ("checkpoints",)}[weights]
    for name in order:
        folder = workdir / name
        if not folder.is_dir():
            continue
        with _opened(folder) as manager:
            step = manager.latest_step()
            if step is None:
                continue
            try:
                trained = _read(manager, step, best=name == "best")
            except errors.StemjaxError:
                raise
            except Exception as error:
                raise _damaged(folder / str(step), error) from error
            trained = dataclasses.replace(trained, runs=runs.read(workdir, until=trained.step))
            return trained.with_calibrations(calibration.read(workdir / calibration.FILE))
    raise errors.CheckpointError(
        f"no {'' if weights == 'auto' else weights + ' '}checkpoint in {workdir}",
        expected="a folder that `stemjax train --workdir` wrote",
        found="nothing"
        if not workdir.is_dir()
        else ", ".join(sorted(os.listdir(workdir))) or "nothing",
    )


def _read(manager: ocp.CheckpointManager, step: int, *, best: bool) -> Trained:
    values = manager.restore(step, args=ocp.args.Composite(card=ocp.args.JsonRestore()))["card"]
    card = Card.from_json(values)
    task, layout = card.task, mesh.make_layout(jax.local_devices()[:1])
    validation = None
    if best:
        abstract = _abstract(jax.eval_shape(task.init, jax.random.key(0)), layout)
        args = ocp.args.Composite(
            ema=ocp.args.StandardRestore(abstract), metrics=ocp.args.JsonRestore()
        )
        found = manager.restore(step, args=args)
        params, validation = found["ema"], found["metrics"]
    else:
        optimizer = states.make_optimizer(card.experiment.optim, card.experiment.train.steps)
        like = jax.eval_shape(
            lambda key: states.init_state(task, optimizer, key), jax.random.key(0)
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(like, layout)))
        params = manager.restore(step, args=args)["state"].ema
    return Trained(
        params=params,
        card=card,
        step=step,
        weights="best" if best else "last",
        validation=validation,
    )
