"""A run's journal: when metrics are fetched, and how fast the loop is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

import jax

from stemjax import config
from stemjax.train import writers


class Journal:
    """Takes a call's metrics on the device, and hands them to the writers one call later.

    Fetching at once would make the host wait for the step, and the device then for the host.
    Compilation, validation and saving are not in the rates.

    Args:
      outputs: where numbers go.
      cfg: length and rhythm of the run.
    """

    def __init__(self, outputs: Sequence[writers.Writer], cfg: config.Train) -> None:
        self._outputs, self._cfg = outputs, cfg
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._total, self._since = 0.0, None
        self._mark, self._mark_step = 0.0, None
        self.compile_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds in the loop so far, pauses apart."""
        return self._total + (time.perf_counter() - self._since if self._since else 0.0)

    @contextlib.contextmanager
    def compiling(self, step: int) -> Iterator[None]:
        """Measures compilation; the loop's clock starts after the first, at ``step``."""
        started = time.perf_counter()
        with self.paused():
            yield
        self.compile_seconds += time.perf_counter() - started
        if self._mark_step is None:
            self._mark_step = step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock."""
        self._total, self._since = self.seconds, None
        yield
        self._since = time.perf_counter()

    def note(self, step: int, measured: Mapping[str, jax.Array]) -> None:
        """Keeps a step's metrics, still on the device, for `flush`."""
        self._pending = (step, measured)

    def flush(self) -> None:
        """Writes the metrics kept, with steps/s, spots/s and the time left."""
        if self._pending is None:
            return
        (step, measured), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(dict(measured)).items()}
        if not values["skipped"]:
            del values["skipped"]
        now = self.seconds
        rate = (step - (self._mark_step or 0)) / max(now - self._mark, 1e-9)
        self._mark, self._mark_step = now, step
        values["steps_per_second"] = rate
        values["spots_per_second"] = rate * self._cfg.batch
        values["eta_seconds"] = (self._cfg.steps - step) / rate
        self.write(step, values)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hands numbers of a step to every writer."""
        for output in self._outputs:
            output.write_scalars(step, values)

    def go_back(self, step: int) -> None:
        """Lets go of everything after a step to which the run went back."""
        self._pending = None
        self._mark, self._mark_step = self.seconds, step
        for output in self._outputs:
            output.go_back(step)
