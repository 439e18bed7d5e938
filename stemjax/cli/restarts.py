"""``stemjax train --max-restarts N``: starts the command again when it dies, without a scheduler.

The command itself runs as a child. What ended it tells what to do: a signal that was sent to it on
purpose, wrong usage and a typed error that nothing but a person mends end the supervisor too, with
the same exit code; a crash, a kill and a lost peer start it again, after a pause that doubles.
"""

from __future__ import annotations

import contextlib
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from stemjax import stopping
from stemjax.cli import exits

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


def supervise(
    command: Sequence[str],
    *,
    most: int,
    progress: Callable[[], int | None],
    pause: float = FIRST_PAUSE_SECONDS,
) -> int:
    """Runs a command until it ends for good; returns its exit code.

    SIGTERM and SIGINT go on to the child, which saves and ends, and so does the supervisor.

    Args:
      command: what to run.
      most: starts after the first, at most, without progress between them.
      progress: returns how far the work is; a start that got further does not count.
      pause: seconds before the first start again.
    """
    tries, wait = 0, pause
    before = progress()
    while True:
        code = _run(command)
        if code is None:  # a signal came while nothing ran
            return exits.INTERRUPTED
        if code in exits.FINAL:
            return code
        now = progress()
        if now != before:
            tries, wait, before = 0, pause, now
        tries += 1
        if tries > most:
            stopping.say(f"ended {tries} times without progress ({_said(code)}): giving up")
            return code if code > 0 else 128 - code
        stopping.say(
            f"the run ended ({_said(code)}); starting it again in {wait:g} s, "
            f"{tries} of {most} times without progress"
        )
        if not _sleep(wait):
            return exits.INTERRUPTED
        wait = min(2 * wait, LONGEST_PAUSE_SECONDS)


def newest_step(workdir: pathlib.Path) -> int | None:
    """Returns the newest committed step of a workdir, or None; opens no file."""
    with contextlib.suppress(OSError):
        found = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
        return max(found, default=None)
    return None


def child(arguments: Sequence[str]) -> list[str]:
    """Returns the command line of a child, without what concerns the supervisor."""
    kept, skip = [], False
    for one in arguments:
        if skip:
            skip = False
        elif one == "--max-restarts":
            skip = True
        elif not one.startswith("--max-restarts="):
            kept.append(one)
    return [sys.executable, "-m", "stemjax.cli", *kept]


def _run(command: Sequence[str]) -> int | None:
    """Runs a child and hands signals on to it; its exit code, negative of a signal that killed it.

    It stands in a group of processes of its own: a Ctrl-C of the terminal reaches it once.
    """
    process: subprocess.Popen[bytes] | None = None
    asked: list[int] = []

    def hand_on(number: int, _frame: object) -> None:
        # A terminal that closes takes its programs along: the child saves first.
        number = signal.SIGTERM if number == signal.SIGHUP else number
        asked.append(number)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    with _handling(hand_on):
        process = subprocess.Popen(list(command), process_group=0)  # noqa: S603 - our own command line
        for number in tuple(asked):  # that came while it was being started
            process.send_signal(number)
        code = process.wait()
    if asked and code not in exits.FINAL:
        return 128 + asked[0]  # it was ended on purpose, and before it could say so
    return code


def _sleep(seconds: float) -> bool:
    """Waits; false where a signal came."""
    came = threading.Event()
    with _handling(lambda *_: came.set()):
        until = time.monotonic() + seconds
        while time.monotonic() < until and not came.is_set():
            time.sleep(0.05)
    return not came.is_set()


@contextlib.contextmanager
def _handling(handler: Callable[[int, object], None]) -> Iterator[None]:
    taken = (*stopping.SIGNALS, signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _said(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
