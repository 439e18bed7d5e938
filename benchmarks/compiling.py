"""Start-up: seconds to trace, lower and compile each program, without and with the kept programs.

    uv run python benchmarks/compiling.py --quick
    uv run python benchmarks/compiling.py --json OUT        # both sizes below

Each figure is of a process of its own: a first one compiles and keeps the program
(`stemjax.compilation`), a second finds it. Shapes alone are given, so nothing is run. The row with
unrolled blocks has the same network without its scan over layers: what that scan is worth.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import harness
import jax
import jax.numpy as jnp
import numpy as np
import samplers

from stemjax import compilation, config, configfile, tasks
from stemjax.train import state as states
from stemjax.train import step as steps

CONFIGS = (harness.SMALL, "configs/stem_published.py")
SAMPLINGS = {
    "mean": tasks.Sampling(mode="mean"),
    "pair of 8 steps": tasks.Sampling(mode="pair"),
    "draw of 1000 steps": tasks.Sampling(
        mode="draws", n_draws=1, antithetic=False, sampler="ancestral", steps=1000
    ),
}
UNROLLED = "network, blocks unrolled"
PROGRAMS = ("network", UNROLLED, *SAMPLINGS, "train step")
PHASES = ("trace_s", "lower_s", "compile_s")


def program(
    name: str, experiment: config.Experiment, *, rows: int, genes: int, condition: int
) -> tuple[Any, tuple[Any, ...]]:
    """Returns one of `PROGRAMS` under jit, and the shapes of its arguments for ``rows`` spots."""
    task: Any = config.make_task(experiment, genes=genes, condition=condition)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    params = jax.eval_shape(task.init, jax.random.key(0))
    cond = jax.ShapeDtypeStruct((rows, condition), jnp.float32)
    values = jax.ShapeDtypeStruct((rows, genes), jnp.float32)
    if name in ("network", UNROLLED):
        level = jax.ShapeDtypeStruct((rows,), jnp.float32)
        return jax.jit(task.network.apply), (params, values, level, cond)
    if name == "train step":
        optimizer = states.make_optimizer(experiment.optim, steps=experiment.train.steps)
        init = functools.partial(states.init_state, task, optimizer)
        state = jax.eval_shape(lambda: init(jax.random.key(0)))
        step = steps.make_train_step(task, optimizer, ema=experiment.optim.ema, seed=0)
        batch = {"cond": cond, "x0": values, "mask": values}
        return jax.jit(step, donate_argnums=0), (state, batch)

    def run(params: Any, cond: jax.Array, keys: jax.Array) -> jax.Array:
        return task.predict(params, cond, keys, sampling=SAMPLINGS[name])

    return jax.jit(run), (params, cond, keys)


@contextlib.contextmanager
def _unrolled(name: str) -> Iterator[None]:
    """Has every scan of the network unrolled, if that is asked for."""
    scan = functools.partial(jax.lax.scan, unroll=True) if name == UNROLLED else jax.lax.scan
    with mock.patch.object(jax.lax, "scan", scan):
        yield


def take(asked: dict[str, Any]) -> dict[str, Any]:
    """Returns the times of one program in this process, which keeps it or finds it kept.

    Args:
      asked: ``program``, ``experiment`` (as JSON), ``rows``, ``genes``, ``condition`` and
        ``cache``, the folder of kept programs.
    """
    if compilation.enable_cache(asked["cache"]) is None:
        raise RuntimeError(f"programs cannot be kept in {asked['cache']}")
    sizes = {name: asked[name] for name in ("rows", "genes", "condition")}
    jitted, given = program(asked["program"], config.resolve(asked["experiment"]), **sizes)
    events: list[str] = []
    jax.devices()  # starting the backend is no part of it
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    clock = [time.perf_counter()]
    with _unrolled(asked["program"]):
        traced = jitted.trace(*given)
    clock.append(time.perf_counter())
    lowered = traced.lower()
    clock.append(time.perf_counter())
    compiled = lowered.compile()
    clock.append(time.perf_counter())
    found: dict[str, Any] = dict(zip(PHASES, np.diff(clock).tolist(), strict=True))
    found["found"] = "/jax/compilation_cache/cache_hits" in events
    memory = compiled.memory_analysis()
    return found | {
        "lines": compiled.as_text().count("\n"),
        "temp_bytes": None if memory is None else memory.temp_size_in_bytes,
    }


def _in_a_process(asked: dict[str, Any]) -> dict[str, Any]:
    switches = ("STEMJAX_CACHE", "JAX_COMPILATION_CACHE_DIR")
    done = subprocess.run(
        [sys.executable, __file__, "--one"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name not in switches},
    )
    if done.returncode:
        raise RuntimeError(f"{asked['program']}: the process failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(asked: dict[str, Any], *, repeats: int) -> dict[str, Any]:
    """Returns a row: medians of ``repeats`` first and second processes, and what was kept.

    Raises:
      RuntimeError: a first process found the program kept, or a second did not.
    """
    cold, warm, size = [], [], 0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            cache = pathlib.Path(folder, "cache")
            cold.append(_in_a_process({**asked, "cache": str(cache)}))
            warm.append(_in_a_process({**asked, "cache": str(cache)}))
            # Drawing keys and such is kept as well; the program is by far the largest.
            size = max(path.stat().st_size for path in cache.iterdir())
    if any(one["found"] for one in cold) or not all(one["found"] for one in warm):
        raise RuntimeError(f"{asked['program']}: the kept programs are not those asked for")
    row = {name: float(np.median([one[name] for one in cold])) for name in PHASES}
    row["cached_s"] = float(np.median([one["compile_s"] for one in warm]))
    facts = {name: cold[0][name] for name in ("lines", "temp_bytes")}
    return {"program": asked["program"], **row, **facts, "kept_bytes": size, "repeats": repeats}


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown, a table for each experiment."""
    parts = []
    head = ["program", "trace", "lower", "compile", "compile, kept", "kept kB", "lines of HLO"]
    for name in dict.fromkeys(line["experiment"] for line in result["lines"]):
        rows = [
            [
                line["program"],
                *(f"{line[key]:.2f}" for key in (*PHASES, "cached_s")),
                f"{line['kept_bytes'] / 1e3:.0f}",
                str(line["lines"]),
            ]
            for line in result["lines"]
            if line["experiment"] == name
        ]
        parts.append(f"**{name}**, seconds\n\n{samplers.markdown(head, rows)}")
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_arguments(parser)
    parser.add_argument("--rows", type=int, default=16, help="spots at a time")
    parser.add_argument("--repeats", type=int, help="pairs of processes a row")
    args, experiment = harness.parse(parser, argv)
    about, experiments = harness.surroundings(), [experiment]
    if not args.quick and args.config == parser.get_default("config"):
        other = str(harness.ROOT / CONFIGS[1])
        experiments.append(config.resolve(configfile.load(other, [])))
    repeats = args.repeats or (1 if args.quick else 3)
    sizes = {"rows": args.rows, "genes": args.genes, "condition": args.condition}
    lines = []
    for one in experiments:
        for name in PROGRAMS:
            asked = {"program": name, "experiment": config.as_json(one), **sizes}
            lines.append({"experiment": one.name, **measure(asked, repeats=repeats)})
    result = harness.result("compiling", about, experiment, lines, **sizes)
    print(tables(result))
    if args.json:
        harness.save(args.json, result)


if __name__ == "__main__":
    if sys.argv[1:] == ["--one"]:
        harness.emit(take(json.load(sys.stdin)))
    else:
        main()
