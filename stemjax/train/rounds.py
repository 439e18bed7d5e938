"""The rounds of a run: call after call, with what is due between them.

Order of things, which resuming relies on: what a view hands over for steps k ... k + K - 1 -> K
updates in one call -> metrics, checkpoint and validation of step k + K. Metrics are fetched when
the next call has already been handed to the device, so that logging does not stall it.

Everything is compiled before the first update, and a state is saved before it is validated: where
the main thread can be away for minutes, there is nothing that another thread could not save.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable

from stemjax import stopping
from stemjax.train import dispatch, nonfinite, preemption, saving, validation
from stemjax.train import journal as journals
from stemjax.train import material as material_lib
from stemjax.train import state as states


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is made of.

    Attributes:
      material: its data.
      programs: its compiled calls.
      checkpoints: where states go.
      journal: where numbers go.
      watch: what becomes of updates that are not finite.
      stop: whether a signal came.
      last: the step to end at.
    """

    material: material_lib.Material
    programs: dispatch.Programs
    checkpoints: saving.Checkpoints
    journal: journals.Journal
    watch: nonfinite.Watch
    stop: preemption.Asked
    last: int

    def go_on(
        self,
        state: states.TrainState,
        begin: Callable[[], states.TrainState],
        *,
        validate_first: bool,
    ) -> dict[str, float] | None:
        """Trains to the last step, and returns the metrics of the best EMA.

        Args:
          state: the state to begin with; is given up.
          begin: returns the state of the last checkpoint, or the first one where there is none.
          validate_first: whether the state still is to be validated.

        Raises:
          NonFiniteError: going back did not help.
          ResourceError: the last state does not fit the disk, or an update the memory.
          Stopped: a signal came; the state is saved.
        """
        validate = self._make_validate()
        best = self.checkpoints.best_metrics()
        while True:
            holder = _Holder(state)
            del state
            try:
                return self._rounds(holder, validate, best, validate_first)
            except nonfinite.GoBack as back:
                del holder
                state = begin()  # waits for what is being written
                saved = self.checkpoints.latest()
                self.watch.go_back(back, saved)
                self.journal.go_back(saved or 0)
                best, validate_first = self.checkpoints.best_metrics(), False
            except stopping.Stopped as stopped:
                raise stopping.Stopped(stopped.number, self._save(holder)) from None

    def _make_validate(self) -> validation.Validate | None:
        found = self.material
        if found.val is None or not found.card.experiment.train.validate_every:
            return None
        return validation.make_validate(
            found.card, found.card.task, found.val, found.source, found.val_rows
        )

    def _rounds(
        self,
        now: _Holder,
        validate: validation.Validate | None,
        best: dict[str, float] | None,
        validate_first: bool,
    ) -> dict[str, float] | None:
        cfg, first = self.material.card.experiment.train, now.step
        handed = self.material.view.batches(
            self.material.schedule,
            first,
            self.last,
            process_index=self.programs.layout.share[0],
            process_count=self.programs.layout.share[1],
        )
        if validate_first and validate is not None:
            best = self._validate(now, validate, best)
        length = dispatch.steps_per_call(cfg)
        lengths = {updates for _, updates in dispatch.plan_calls(first, self.last, length)}
        if lengths:
            with self.stop.interruptible():
                one = next(handed)
            handed = itertools.chain([one], handed)
            with self.stop.abandonable(lambda: self._said(first)):
                self.programs.prepare(now.state, first, lengths, one)
        for start, updates in dispatch.plan_calls(first, self.last, length):
            self.stop.check()
            with self.stop.interruptible():
                given = list(itertools.islice(handed, updates))
            state, measured = self.programs.run(now.state, start, given)
            now.put(state, start + updates)
            del state
            self.journal.flush()  # metrics of the call before, now that this one is under way
            self.watch.note(start, measured)
            number = now.step
            if is_due(cfg.log_every, number, self.last):
                self.watch.look()
                self.journal.note(number, measured)
            to_save = is_due(cfg.save_every, number, self.last)
            to_validate = is_due(cfg.validate_every, number, self.last)
            to_validate = to_validate and validate is not None
            if not (to_save or to_validate):
                continue
            self.watch.look()
            self.watch.require_finite(bool(states.is_finite(now.state)), number)
            self.journal.flush()
            with self.journal.paused():
                if number == self.last:
                    self.checkpoints.finish(now.state, number)
                elif to_save:
                    self.checkpoints.save(now.state, number)
                if to_validate and validate is not None:
                    best = self._validate(now, validate, best)
        return best

    def _validate(
        self, now: _Holder, validate: validation.Validate, best: dict[str, float] | None
    ) -> dict[str, float] | None:
        """Validates a state, and keeps its EMA where it is the best."""
        with self.stop.abandonable(lambda: self._save(now)):
            found = validate(now.state.ema, lambda *_: self.stop.check())
        if best is None or found["val_mse"] < best["val_mse"]:
            best = {"step": float(now.step), **found}
            self.checkpoints.save_best(now.state.ema, now.step, best)
        # The line comes last: a run that goes on validates a step that has none.
        self.journal.write(now.step, found)
        return best

    def _save(self, now: _Holder) -> str:
        """Saves a state that a signal interrupts, and says so."""
        started = time.perf_counter()
        self.journal.flush()
        if now.step and self.checkpoints.latest() != now.step:
            if not bool(states.is_finite(now.state)):
                return self._said(self.checkpoints.latest() or 0)
            self.checkpoints.finish(now.state, now.step)
        self.checkpoints.settle()
        return self._said(now.step, time.perf_counter() - started)

    def _said(self, step: int, seconds: float | None = None) -> str:
        took = "" if seconds is None else f" in {seconds:.1f} s"
        what = f"step {step} is saved{took}" if step else "no update was done yet"
        return f"{what}; run the same command again to go on"


def is_due(every: int, step: int, last: int) -> bool:
    """Returns whether what has a rhythm comes at a step: also at the last; never with 0."""
    return bool(every) and (step % every == 0 or step == last)


class _Holder:
    """The one reference to a state: a call gives its arrays up, and a signal saves what is here."""

    def __init__(self, state: states.TrainState) -> None:
        self.state, self.step = state, int(state.step)

    def put(self, state: states.TrainState, step: int) -> None:
        self.state, self.step = state, step
