"""The clock of all benchmarks: compile apart, warm up, time blocked calls, write one JSON.

Nobody else in the repository calls a clock to make a claim. A speed-up is a ratio of two lines of
one run; a figure from a shared machine says so (``load`` and ``load_end`` are the load averages
before and after).

A script is made of `add_arguments`, `parse`, `measure` (or `build` and `time_program`, or
`time_calls` for plain Python), `result` and `save`; `benchmarks/sampling.py` shows them all.
`surroundings` and `rating` come from `benchmarks/machine.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from machine import device_peak_bytes, surroundings

from stemjax import config, configfile
from stemjax.data import integrity
from stemjax.names import split_names

SCHEMA = 1
ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SMALL = "configs/stem_her2st.py"
"""The experiment of a benchmark that names none: sized for two CPU cores."""

__all__ = [
    "Built", "Memory", "Timing", "add_arguments", "awake", "build", "compile_cached",
    "device_peak_bytes", "emit", "measure", "parse", "result", "save", "surroundings",
    "time_calls", "time_program",
]  # fmt: skip

type Clock = Callable[[], float]
type Arguments = Callable[[int], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """What the compiler reserves for one program, in bytes on one device.

    Attributes:
      temp: intermediate values.
      argument: arguments.
      output: results.
      peak: most of all of them at once, as the compiler plans it; None where it does not say.
    """

    temp: int
    argument: int
    output: int
    peak: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one program.

    Attributes:
      median: of the timed calls.
      quartiles: first and third of the timed calls.
      p10: tenth percentile of the timed calls.
      p90: ninetieth percentile.
      p99: ninety-ninth percentile; of fewer than 100 calls, close to the slowest.
      repeats: number of timed calls.
      lower: tracing and lowering; 0 of a program that came compiled, or of plain Python.
      compile: XLA's compiling, without the above.
      memory: what the compiled program needs; None of plain Python.
    """

    median: float
    quartiles: tuple[float, float]
    p10: float
    p90: float
    p99: float
    repeats: int
    lower: float = 0.0
    compile: float = 0.0
    memory: Memory | None = None

    @property
    def line(self) -> dict[str, Any]:
        """The same as the keys of a result's line; seconds end in _s, bytes in _bytes."""
        found: dict[str, Any] = {f"{name}_s": getattr(self, name) for name in _SECONDS}
        found["repeats"] = self.repeats
        if self.memory is not None:
            parts = dataclasses.asdict(self.memory).items()
            found |= {f"{name}_bytes": value for name, value in parts}
        return found


_SECONDS = ("median", "quartiles", "p10", "p90", "p99", "lower", "compile")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """A compiled program with the seconds that it took.

    Attributes:
      program: takes what the function takes.
      lower: seconds of tracing and lowering.
      compile: seconds of XLA's compiling.
      memory: what it needs; None where the backend does not say.
    """

    program: Any
    lower: float
    compile: float
    memory: Memory | None


def build(
    function: Callable[..., Any],
    given: tuple[Any, ...],
    *,
    options: Mapping[str, Any] | None = None,
    clock: Clock = time.perf_counter,
) -> Built:
    """Returns a function compiled for these arguments.

    Args:
      function: a plain function, which is compiled anew every time, or one under `jax.jit` with
        shardings or donations of its own, of which JAX remembers what it compiled before.
      given: its arguments, or their shapes (`jax.ShapeDtypeStruct`).
      options: of the compiler.
      clock: seconds; a test gives its own.
    """
    jitted: Any = function
    if not hasattr(function, "lower"):
        # JAX keeps what it compiled for a function: this one it has not seen.
        jitted = jax.jit(lambda *arguments: function(*arguments))
    started = clock()
    lowered = jitted.lower(*given)
    middle = clock()
    program = lowered.compile(compiler_options=dict(options) if options else None)
    ended = clock()
    return Built(
        program=program, lower=middle - started, compile=ended - middle, memory=_memory(program)
    )


def compile_cached(function: Callable[..., Any], given: tuple[Any, ...]) -> float:
    """Returns the seconds that XLA's compiling takes when the persistent cache has the program.

    The cache is a fresh folder with no lower limit on the time that is worth storing; the process
    is left with the settings that it had.
    """
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
             "jax_persistent_cache_min_entry_size_bytes")  # fmt: skip
    before = {name: getattr(jax.config, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, value in zip(names, (folder, 0.0, -1)):
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            build(lambda *arguments: function(*arguments), given)
            if not any(pathlib.Path(folder).iterdir()):
                raise RuntimeError("the compiler stored nothing in the persistent cache")
            return build(lambda *arguments: function(*arguments), given).compile
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def measure(
    function: Callable[..., Any],
    arguments: Arguments,
    *,
    repeats: int = 10,
    warm_up: int = 3,
    seconds: float = 0.0,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Returns the times of ``function`` under jit.

    Args:
      function: what is timed; one that is under `jax.jit` already keeps its settings.
      arguments: makes the arguments of call i, on the device, before the clock starts.
      repeats: timed calls, at least.
      warm_up: calls before them.
      seconds: calls go on until the timed ones, with the making of their arguments, lasted as long.
      clock: seconds; a test gives its own.
    """
    built = build(function, arguments(0), clock=clock)
    return time_program(
        built, arguments, repeats=repeats, warm_up=warm_up, seconds=seconds, clock=clock
    )


def time_program(
    built: Built,
    arguments: Arguments,
    *,
    repeats: int = 10,
    warm_up: int = 3,
    seconds: float = 0.0,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Returns the times of a compiled program; the rest as in `measure`."""
    timing = time_calls(
        built.program, arguments, repeats=repeats, warm_up=warm_up, seconds=seconds, clock=clock
    )
    return dataclasses.replace(
        timing, lower=built.lower, compile=built.compile, memory=built.memory
    )


def time_calls(
    call: Callable[..., Any],
    arguments: Arguments = lambda i: (),
    *,
    repeats: int = 10,
    warm_up: int = 3,
    seconds: float = 0.0,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Returns the times of any callable, plain Python too; the rest as in `measure`.

    Arrays anywhere in what it returns are waited for inside the clock.
    """
    found: list[float] = []
    first, i = 0.0, 0
    while True:
        given = jax.block_until_ready(arguments(i))
        started = clock()
        jax.block_until_ready(call(*given))
        if i >= warm_up:
            ended = clock()
            first = first if found else started
            found.append(ended - started)
            if len(found) >= repeats and ended - first >= seconds:
                break
        i += 1
    p10, low, median, high, p90, p99 = (
        float(q) for q in np.quantile(found, [0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
    )
    return Timing(
        median=median, quartiles=(low, high), p10=p10, p90=p90, p99=p99, repeats=len(found)
    )


def _memory(program: Any) -> Memory | None:
    found = program.memory_analysis()
    if found is None:
        return None
    return Memory(
        temp=found.temp_size_in_bytes,
        argument=found.argument_size_in_bytes,
        output=found.output_size_in_bytes,
        peak=getattr(found, "peak_memory_in_bytes", 0) or None,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every benchmark of a network takes; read them with `parse`."""
    parser.add_argument(
        "--config",
        default=str(ROOT / SMALL),
        metavar="FILE",
        help=f"experiment, with --config.KEY=VALUE as in stemjax train; default {SMALL}",
    )
    parser.add_argument("--genes", type=int, default=200, help="size of the panel")
    parser.add_argument("--condition", type=int, default=1536, help="embedding width")
    parser.add_argument("--quick", action="store_true", help="about a minute on two cores")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="write the result here")


def names(text: str) -> list[str]:
    """Returns the values of a flag that takes several, comma-separated."""
    return list(split_names(text))


def numbers(text: str) -> list[int]:
    """Returns the numbers of a flag that takes several, comma-separated."""
    return [int(name) for name in names(text)]


def fill(args: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Gives the flags that were left out their defaults, where these depend on other flags."""
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, config.Experiment]:
    """Returns the arguments, and the experiment that they name.

    Raises:
      ConfigError: no such file, an unknown key, or a value of another type.
    """
    args, rest = parser.parse_known_args(argv)
    if unknown := [argument for argument in rest if not argument.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args, config.resolve(configfile.load(args.config, rest))


def result(
    name: str,
    about: dict[str, Any],
    experiment: config.Experiment | None,
    lines: list[dict[str, Any]],
    **facts: Any,
) -> dict[str, Any]:
    """Returns what `save` writes.

    Args:
      name: of the benchmark.
      about: `surroundings()` from before the first figure.
      experiment: what was measured; None where the lines name their own.
      lines: one a row.
      **facts: what holds for all lines.
    """
    digest = None if experiment is None else config.digest(experiment)
    found: dict[str, Any] = {"schema": SCHEMA, "benchmark": name, **about}
    found |= {"load_end": os.getloadavg()[0], "config": digest}
    return {**found, "device_peak_bytes": device_peak_bytes(), **facts, "lines": lines}


def save(path: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes a result, whole or not at all; numbers that are none of JSON's are an error."""
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    integrity.write_text(path, text)


def awake(params: Any) -> Any:
    """Returns fresh weights with a little noise: adaLN-Zero alone would leave most of them idle."""
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda p: p + 0.02 * jax.random.normal(next(keys), p.shape), params)


def emit(line: dict[str, Any], file: Any = None) -> None:
    """Writes one result as one line of JSON."""
    print(json.dumps(line), file=file or sys.stdout, flush=True)
