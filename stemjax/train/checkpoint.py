"""The weights of a run's workdir, read to be used.

Nothing here executes what a checkpoint says: the experiment inside is JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp

from stemjax import errors, mesh
from stemjax.train import calibration, runs, step_folders
from stemjax.train import state as states
from stemjax.train.card import Card
from stemjax.train.step_folders import BEST, STEPS
from stemjax.train.trained import Trained


@contextlib.contextmanager
def _opened(folder: pathlib.Path) -> Iterator[ocp.CheckpointManager]:
    manager = step_folders.open_manager(folder, keep=None)
    try:
        yield manager
    finally:
        manager.close()


def load(workdir: str | pathlib.Path, *, weights: str = "auto", verify: bool = True) -> Trained:
    """Returns the weights of a workdir: the best EMA where validation chose one, else the last.

    A damaged step is named in the log, and the newest good one used: of ``best``, which keeps one
    step, with ``weights="auto"`` the last weights.

    Args:
      workdir: folder that `stemjax train` wrote.
      weights: ``best``, ``last``, or ``auto``.
      verify: compare every file with its hash; without, sizes and shapes alone are checked by
        orbax and a flipped bit in a weight is not seen.

    Raises:
      CheckpointError: there is none, or all are damaged.
      CheckpointMismatchError: its arrays are not those of its configuration.
      CalibrationError: calibration.json is damaged.
      ConfigError: ``weights`` is none of the three.
    """
    workdir = pathlib.Path(workdir)
    if weights not in ("auto", "best", "last"):
        raise errors.ConfigError("weights", expected="auto, best or last", found=repr(weights))
    order = {"auto": (BEST, STEPS), "best": (BEST,), "last": (STEPS,)}[weights]
    damaged: dict[pathlib.Path, dict[int, errors.CheckpointError]] = {}
    for name in order:
        folder = workdir / name
        step, wrong = _choose(folder, verify=verify)
        if wrong:
            damaged[folder] = wrong
        if step is None:
            continue
        for other, said in damaged.items():
            step_folders.tell(said, f"Using step {step} of {folder.name} instead of {other.name}.")
        with _opened(folder) as manager:
            try:
                trained = _read(manager, folder / str(step), best=name == BEST)
            except errors.StemjaxError:
                raise
            except Exception as error:
                raise step_folders.unreadable(folder / str(step), error) from error
        trained = dataclasses.replace(trained, runs=runs.read(workdir, until=trained.step))
        return trained.with_calibrations(calibration.read(workdir / calibration.FILE))
    if damaged:
        raise step_folders.all_damaged(*next(iter(damaged.items())))
    raise errors.CheckpointError(
        f"no {'' if weights == 'auto' else weights + ' '}checkpoint in {workdir}",
        expected="a folder that `stemjax train --workdir` wrote",
        found="nothing"
        if not workdir.is_dir()
        else ", ".join(sorted(os.listdir(workdir))) or "nothing",
    )


def _choose(
    folder: pathlib.Path, *, verify: bool
) -> tuple[int | None, dict[int, errors.CheckpointError]]:
    """The step to use of a folder, and what is wrong with newer ones."""
    if verify:
        return step_folders.newest_sound(folder)
    return next(iter(step_folders.steps(folder)), None), {}


def _read(manager: ocp.CheckpointManager, folder: pathlib.Path, *, best: bool) -> Trained:
    step = int(folder.name)
    values = manager.restore(step, args=ocp.args.Composite(card=ocp.args.JsonRestore()))["card"]
    card = Card.from_json(values)
    task, layout = card.task, mesh.make_layout(jax.local_devices()[:1])
    validation = None
    if best:
        abstract = step_folders.abstract(jax.eval_shape(task.init, jax.random.key(0)), layout)
        step_folders.require_same_shapes(folder / "ema", abstract)
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
        abstract = step_folders.abstract(like, layout)
        step_folders.require_same_shapes(folder / "state", abstract)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        params = manager.restore(step, args=args)["state"].ema
    return Trained(
        params=params,
        card=card,
        step=step,
        weights="best" if best else "last",
        validation=validation,
    )
