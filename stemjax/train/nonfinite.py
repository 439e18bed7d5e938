"""Updates that were not finite: which they were, of which spots, and when a run goes back.

The update itself is skipped on the device (`state.make_optimizer`): weights, averages and moments
stay as they were. Whether it was comes home with the metrics, at their rhythm, so that no step
waits for the host. Some skipped updates in a row send the run back to its last checkpoint, where
what chance did to memory is undone; the same step twice is no chance, and ends it.
"""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from stemjax import config, distributed, errors
from stemjax.train import material as material_lib

FILE = "nonfinite.jsonl"
MOST_NAMED = 64
"""Spots of a batch that its line names, at most: those with values that are not finite first."""

_log = logging.getLogger(__name__)


class GoBack(Exception):
    """A run has to go back.

    Args:
      step: updates done when the first of the row was skipped.
      why: in words.
    """

    def __init__(self, step: int, why: str) -> None:
        self.step, self.why = step, why
        super().__init__(why)


class Watch:
    """Keeps what calls say of their updates, on the device, until `look`.

    Args:
      cfg: when a run goes back.
      material: its data, for naming a batch.
      workdir: where `FILE` goes.
    """

    def __init__(
        self, cfg: config.Train, material: material_lib.Material, workdir: pathlib.Path
    ) -> None:
        self._cfg, self._material, self._workdir = cfg, material, workdir
        self._kept: list[tuple[int, jax.Array]] = []
        self._row = 0
        self._back_from: list[int] = []

    def note(self, start: int, measured: dict[str, Any]) -> None:
        """Takes ``finite`` out of a call's metrics; the call did the updates from ``start`` on."""
        self._kept.append((start, measured.pop("finite")))

    def look(self) -> None:
        """Reports updates that were skipped since the last look.

        Raises:
          GoBack: too many in a row were.
        """
        kept, self._kept = self._kept, []
        flags = jax.device_get([flag for _, flag in kept])
        for (start, _), finite in zip(kept, flags):
            for step, good in enumerate(np.atleast_1d(finite), start):
                if good:
                    self._row = 0
                    continue
                self._row += 1
                self._report(step)
                if self._row >= self._cfg.rollback_after:
                    first, self._row = step - self._row + 1, 0
                    raise GoBack(
                        first,
                        f"{self._cfg.rollback_after} updates in a row from step {first} on were "
                        "not finite",
                    )

    def require_finite(self, finite: bool, step: int) -> None:
        """Sends a run back whose state holds a number that is not finite.

        Raises:
          GoBack: it does.
        """
        if not finite:
            raise GoBack(step, f"the weights of step {step} are not finite")

    def go_back(self, back: GoBack, saved: int | None) -> None:
        """Forgets what was kept, or ends the run where going back does not help.

        Args:
          back: why.
          saved: the step that is saved.

        Raises:
          NonFiniteError: it was here before, or went back too often.
        """
        self._kept, self._row = [], 0
        again = back.step in self._back_from
        if again or len(self._back_from) >= self._cfg.rollbacks:
            where = "nothing was saved yet" if saved is None else f"step {saved} is saved and whole"
            raise errors.NonFiniteError(
                f"{back.why}{', again' if again else ''}",
                expected="a finite loss and gradient",
                found=f"NaN or infinity (batches are listed in {self._workdir / FILE})",
                fix=f"{where}; lower config.optim.learning_rate, or look for values that are not "
                "finite in the spots listed",
            )
        self._back_from.append(back.step)
        whither = "the beginning" if saved is None else f"step {saved}"
        _log.warning("%s: going back to %s", back.why, whither)

    def _report(self, step: int) -> None:
        """Says which batch it was, and of which spots."""
        if not distributed.is_first():
            return
        told = {"step": step, "seed": self._material.schedule.seed, **self._batch(step)}
        bad = told["not_finite"]
        _log.warning(
            "update %d was not finite and is skipped: %s (%s)",
            step + 1,
            f"spots {', '.join(bad[:3])}" if bad else "every value of its batch is finite",
            self._workdir / FILE,
        )
        with (self._workdir / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")

    def _batch(self, step: int) -> dict[str, Any]:
        """Rows of this process's part of a batch, by slide and barcode."""
        view, schedule = self._material.view, self._material.schedule
        share, shares = jax.process_index(), jax.process_count()
        rows, variants = schedule.local(step, share, shares)
        handed = view.batch_at(schedule, step, share, shares)
        bad = _not_finite(view.show(view.table, handed), len(rows))
        names = self._names(rows)
        order = np.argsort(~bad, kind="stable")[:MOST_NAMED]
        return {
            "not_finite": [names[row] for row in np.flatnonzero(bad)[:MOST_NAMED]],
            "spots": [names[row] for row in order],
            "rows": [int(row) for row in rows],
            "variants": [int(variant) for variant in variants],
        }

    def _names(self, rows: np.ndarray) -> list[str]:
        if self._material.laid is not None:  # a row is a window of spots
            return [f"window {row}" for row in rows]
        table = self._material.shown.gather(rows)
        return [
            f"{table.slides[slide]}/{barcode}"
            for slide, barcode in zip(table.slide_index, table.barcodes)
        ]


def _not_finite(batch: Mapping[str, Any], rows: int) -> np.ndarray:
    """Which rows of a batch hold a value that is not finite."""
    bad = np.zeros(rows, bool)
    for name in ("cond", "x0"):
        values = np.asarray(jax.device_get(batch[name]))
        bad |= ~np.isfinite(values.reshape(rows, -1)).all(axis=1)
    return bad
