"""The clock of all benchmarks: compile apart, warm up, time blocked calls, write one JSON line.

Nobody else in the repository calls a clock to make a claim. A speed-up is a ratio of two lines of
one run; a figure from a shared machine says so (``load`` is the load average when it was taken).
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from stemjax import __version__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one program.

    Attributes:
      compile: tracing, lowering and compiling.
      median: of the timed calls.
      quartiles: first and third of the timed calls.
      repeats: number of timed calls.
    """

    compile: float
    median: float
    quartiles: tuple[float, float]
    repeats: int


def measure(
    function: Callable[..., Any],
    arguments: Callable[[int], tuple[Any, ...]],
    *,
    repeats: int = 10,
    warm_up: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Returns the times of ``function`` under jit.

    Args:
      function: what is timed.
      arguments: makes the arguments of call i, on the device, before the clock starts.
      repeats: timed calls.
      warm_up: calls before them.
      clock: seconds; a test gives its own.
    """
    started = clock()
    program = jax.jit(function).lower(*arguments(0)).compile()
    compiled = clock() - started
    seconds = []
    for i in range(warm_up + repeats):
        given = jax.block_until_ready(arguments(i))
        started = clock()
        jax.block_until_ready(program(*given))
        if i >= warm_up:
            seconds.append(clock() - started)
    low, median, high = (float(q) for q in np.quantile(seconds, [0.25, 0.5, 0.75]))
    return Timing(compile=compiled, median=median, quartiles=(low, high), repeats=repeats)


def surroundings() -> dict[str, Any]:
    """Returns what a figure depends on: device, versions, commit, load."""
    device = jax.devices()[0]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "stemjax": __version__,
        "commit": commit.stdout.strip(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def matmul_rate(size: int = 2048, *, repeats: int = 10) -> float:
    """Returns the device's float32 matrix product rate in FLOP/s: the roof of the same run."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    timing = measure(lambda x: x @ x, lambda i: (a,), repeats=repeats)
    return 2 * size**3 / timing.median


def awake(params: Any) -> Any:
    """Returns fresh weights with a little noise: adaLN-Zero alone would leave most of them idle."""
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda p: p + 0.02 * jax.random.normal(next(keys), p.shape), params)


def emit(line: dict[str, Any], file: Any = None) -> None:
    """Writes one result as one line of JSON."""
    print(json.dumps(line), file=file or sys.stdout, flush=True)
