"""Checkpoints of a run: orbax for the arrays, JSON for everything needed to use them.

A workdir holds::

    config.json          the experiment
    calibration.json     calibrations of intervals, once `stemjax calibrate` has run
    checkpoints/<step>/  state (weights, EMA, optimiser, step), model.json's content, hashes
    best/<step>/         EMA with the lowest validation error, same content
    damaged/             steps whose files were not as they were written, moved out of the way
    metrics.jsonl, tensorboard/
    nonfinite.jsonl      updates that were skipped, where there were any (`nonfinite`)
    .job/                which job has it (`lease`)
"""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from stemjax import config, distributed, errors, mesh, peers
from stemjax.data import disk, integrity
from stemjax.train import state as states
from stemjax.train import step_folders
from stemjax.train.card import Card
from stemjax.train.step_folders import BEST, STEPS
from stemjax.typing import Params

_log = logging.getLogger(__name__)

# What may change between the parts of a run, since no weight depends on it. Where the records and
# the manifest lie is not what they are: digests and the split itself are compared.
_NEUTRAL = {
    "data": (
        "records",
        "residence",
        "manifest",
        "fold",
        "leakage",
        "on_corrupt",
        "corrupt_share",
    ),
    "train": ("log_every", "keep", "steps_per_call", "remat", "rollback_after", "rollbacks"),
    "mesh": ("fsdp", "genes"),
}


class Checkpoints:
    """The checkpoints of one workdir, which the run holds alone (`lease`).

    Use as a context manager: leaving it waits for what is being written. Damaged steps are named,
    and moved to ``damaged/`` in the workdir, so that the run goes on from the newest good one.

    Args:
      workdir: the run's folder; made if absent.
      card: what the weights mean.

    Raises:
      CheckpointMismatchError: the workdir belongs to another configuration or other data.
      CheckpointError: there are steps, and all of them are damaged.
    """

    def __init__(self, workdir: pathlib.Path, card: Card) -> None:
        self.workdir, self.card = workdir, card
        workdir.mkdir(parents=True, exist_ok=True)
        with distributed.together():
            if distributed.is_first():
                self._begin_run()
        self._require_same_run()
        with distributed.together():
            if distributed.is_first():
                self._set_aside_damaged()
        self._steps = step_folders.open_manager(workdir / STEPS, keep=card.experiment.train.keep)
        self._best = step_folders.open_manager(workdir / BEST, keep=1)
        self._writing: int | None = None
        self._bytes = 0
        self._last = False
        self._quiet = step_folders.quiet_failures()

    def _begin_run(self) -> None:
        path = self.workdir / "config.json"
        if not path.exists():
            integrity.write_text(path, json.dumps(self.card.to_json(), indent=1))

    def _require_same_run(self) -> None:
        path, ours = self.workdir / "config.json", self.card.to_json()
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            found = _identity(theirs)
        except (ValueError, AttributeError) as error:
            raise errors.CheckpointMismatchError(
                f"{path} is damaged: it is not JSON of a run ({error})",
                fix="move it away: the checkpoints say themselves what they are of; or use another "
                "--workdir",
            ) from error
        lines = config.differences(found, _identity(json.loads(json.dumps(ours))))
        if lines:
            shown = "; ".join(line if len(line) < 160 else line[:157] + "..." for line in lines[:5])
            raise errors.CheckpointMismatchError(
                f"workdir {self.workdir} belongs to another run",
                expected="the same configuration and data",
                found=shown + (f"; and {len(lines) - 5} more" if len(lines) > 5 else ""),
                fix="use another --workdir, or the configuration that it was started with",
            )

    def _set_aside_damaged(self) -> None:
        """Leaves the newest steps in place that have their hashes, and moves damaged ones away."""
        for name in (STEPS, BEST):
            folder = self.workdir / name
            sound, wrong = step_folders.newest_sound(folder)
            if sound is None and wrong and name == STEPS:
                raise step_folders.all_damaged(folder, wrong)
            for step, error in wrong.items():
                aside = step_folders.set_aside(folder, step)
                instead = "there is none before it" if sound is None else f"using step {sound}"
                step_folders.tell({step: error}, f"Moved to {aside}; {instead}.")

    def latest(self) -> int | None:
        """Returns the newest step that was committed, or None."""
        return self._steps.latest_step()

    def save(self, state: states.TrainState, step: int) -> None:
        """Begins to write the state; orbax copies it before this returns.

        Where the disk is full that is said, older steps stay, and the run goes on: `finish` insists
        that the last state is there.
        """
        if self._steps.latest_step() == step:
            return
        self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), card=ocp.args.JsonSave(self.card.to_json())
        )
        self.settle()
        self._writing = step
        try:
            step_folders.require_space(self.workdir / STEPS, self.workdir / STEPS / str(step))
            self._steps.save(step, args=args)
        except Exception as error:
            if not disk.is_full(error) or jax.process_count() > 1:
                raise
            self._not_written()

    def settle(self) -> bool:
        """Waits for the save under way; whether it succeeded. A full disk is said."""
        try:
            self._steps.wait_until_finished()
        except Exception as error:
            if not disk.is_full(error) or jax.process_count() > 1:
                raise
            self._not_written()
            return False
        if self._writing is not None:
            peers.saved(self._writing)
        self._writing = None
        return True

    def _not_written(self) -> None:
        step, self._writing = self._writing, None
        step_folders.remove_partial(self.workdir / STEPS)
        self._steps.reload()
        if self._last:
            return
        saved = self.latest()
        whole = "nothing is saved yet" if saved is None else f"step {saved} is intact"
        path = self.workdir / STEPS / str(step)
        told = disk.full(
            path, self._bytes, fix=f"Free space, or set --config.train.keep lower; {whole}"
        )
        _log.warning("[%s] %s Training goes on; the next save tries again.", told.code, told)

    def finish(self, state: states.TrainState, step: int) -> None:
        """Returns when the state of this step is committed.

        Raises:
          ResourceError: the disk is full; older steps are intact.
        """
        self._last = True  # there is no next save to try again: the error below says it all
        try:
            for _ in range(2):  # what was being written may have been an earlier step
                self.save(state, step)
                if self.settle() and self.latest() == step:
                    return
        finally:
            self._last = False
        saved = self.latest()
        raise disk.full(
            self.workdir / STEPS / str(step),
            self._bytes,
            fix=("" if saved is None else f"Step {saved} is intact. ")
            + "Free space and run the same command again",
        )

    def save_best(self, ema: Params, step: int, metrics: dict[str, float]) -> None:
        """Writes the EMA with the best validation so far, and its metrics, and waits for it.

        A full disk is said, and the best before stays.
        """
        args = ocp.args.Composite(
            ema=ocp.args.StandardSave(ema),
            card=ocp.args.JsonSave(self.card.to_json()),
            metrics=ocp.args.JsonSave(metrics),
        )
        if self._best.latest_step() == step:
            return
        try:
            self._best.save(step, args=args)
            self._best.wait_until_finished()
        except Exception as error:
            if not disk.is_full(error) or jax.process_count() > 1:
                raise
            step_folders.remove_partial(self.workdir / BEST)
            self._best.reload()
            needed = sum(leaf.nbytes for leaf in jax.tree.leaves(ema))
            told = disk.full(
                self.workdir / BEST / str(step), needed, fix="Free space: the best before stays"
            )
            _log.warning("[%s] %s", told.code, told)

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
          CheckpointMismatchError: its arrays are not those of the model.
          CheckpointError: it cannot be read.
        """
        self.settle()
        step = self.latest()
        abstract = step_folders.abstract(like, layout)
        folder = self.workdir / STEPS / str(step)
        try:
            step_folders.require_same_shapes(folder / "state", abstract)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            return self._steps.restore(step, args=args)["state"]
        except errors.StemjaxError:
            raise
        except Exception as error:
            raise step_folders.unreadable(folder, error) from error

    def __enter__(self) -> Checkpoints:
        self._quiet.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        for manager in (self._steps, self._best):
            with contextlib.suppress(Exception) if exc[0] else contextlib.nullcontext():
                manager.wait_until_finished()
            manager.close()
        self._quiet.__exit__(None, None, None)


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
