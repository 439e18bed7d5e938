"""What a person sees while work goes on: one live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TextIO

EVERY_SECONDS = 15.0
"""Time between plain lines of one piece of work."""


def is_live(stream: TextIO) -> bool:
    """Returns whether a stream is a terminal that can redraw a line."""
    return stream.isatty()


class Pace:
    """Rate of counted work and the time that is left, from what was done since the first call.

    What was done before that, by an earlier run say, does not count.

    Args:
      unit: what is counted.
      clock: seconds; a test gives its own.
    """

    def __init__(self, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.unit, self._clock = unit, clock
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> str:
        """Returns, say, ``1,250 spots/s, 01:02:03 left``; nothing before there is a rate."""
        now = self._clock()
        self._first = self._first or (done, now)
        made, seconds = done - self._first[0], now - self._first[1]
        if made <= 0 or seconds <= 0:
            return ""
        rate = made / seconds
        left = round((total - done) / rate)
        clock = f"{left // 3600:02d}:{left // 60 % 60:02d}:{left % 60:02d}"
        return f"{rate:,.{0 if rate >= 10 else 1}f} {self.unit}/s, {clock} left"


class Bar:
    """Progress of counted work; call it with (done, total, what).

    In a terminal it is a rich progress bar. Elsewhere it prints a line at the start of each
    ``what``, then one every `EVERY_SECONDS`, and one when it is done.

    Args:
      title: of the work.
      stream: where it is shown; None is stderr.
      unit: what is counted, of work whose rate and time left are shown as well.
    """

    def __init__(self, title: str, stream: TextIO | None = None, unit: str = "") -> None:
        self.title, self.stream = title, stream or sys.stderr
        self._pace = Pace(unit) if unit else None
        self._progress, self._task = None, None
        self._what, self._last = "", 0.0

    def __enter__(self) -> Bar:
        if is_live(self.stream):
            from rich import console, progress

            self._progress = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                console=console.Console(file=self.stream),
            )
            self._progress.start()
            self._task = self._progress.add_task(self.title, total=None)
        return self

    def __call__(self, done: int, total: int, what: str) -> None:
        """Shows that ``done`` of ``total`` pieces of ``what`` are done."""
        text, pace = f"{self.title} {what}", ""
        if self._pace is not None:
            pace = ", ".join(filter(None, (f" {self._pace.unit}", self._pace(done, total))))
        if self._progress is not None and self._task is not None:
            text += pace and f" ({pace.strip()})"
            self._progress.update(self._task, completed=done, total=total, description=text)
            return
        now = time.monotonic()
        if what != self._what or done >= total or now - self._last >= EVERY_SECONDS:
            self._what, self._last = what, now
            print(f"{text}: {done}/{total}{pace}", file=self.stream, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def wanted(show: bool | None) -> bool:
    """Returns whether progress is to be shown: where nobody says, in a terminal alone."""
    return is_live(sys.stderr) if show is None else show


@contextlib.contextmanager
def shown(title: str, show: bool | None) -> Iterator[Bar | None]:
    """Gives a bar, or None where nothing is to be shown.

    Args:
      title: of the work.
      show: None shows it in a terminal alone: a notebook or a log that did not ask stays quiet.
    """
    if not wanted(show):
        yield None
        return
    with Bar(title) as bar:
        yield bar


class TrainingLine:
    """A metrics writer for eyes: a live bar with loss, speed and time left, or plain lines.

    Args:
      steps: updates of the whole run.
      bar: a bar that is shown already; a terminal has room for one. None makes one.
    """

    def __init__(self, steps: int, bar: Bar | None = None) -> None:
        self.steps, self._own = steps, bar is None
        self._bar, self._last, self._val = bar or Bar("train").__enter__(), 0.0, ""
        self.stream = self._bar.stream

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the numbers of a step."""
        if "val_mse" in scalars:
            self._val = f"  val mse {scalars['val_mse']:.4f} pcc {scalars['val_pcc']:.4f}"
            if not is_live(self.stream):
                print(f"step {step}/{self.steps}{self._val}", file=self.stream, flush=True)
            return
        text = (
            f"loss {scalars['loss']:.4f}  {scalars['steps_per_second']:.1f} steps/s  "
            f"{scalars['spots_per_second']:.0f} spots/s"
        )
        if is_live(self.stream):
            self._bar(step, self.steps, text + self._val)
            return
        now = time.monotonic()
        if step >= self.steps or now - self._last >= EVERY_SECONDS:
            self._last = now
            left = time.strftime("%H:%M:%S", time.gmtime(scalars["eta_seconds"]))
            print(f"step {step}/{self.steps}  {text}  {left} left", file=self.stream, flush=True)

    def go_back(self, step: int) -> None:
        """Nothing: the next numbers say where the run is."""
        del step

    def close(self) -> None:
        """Ends the live bar, if it is its own."""
        if self._own:
            self._bar.__exit__(None, None, None)
