"""Sampling: speed, memory and quality of every way to a prediction, a row each.

    uv run python benchmarks/sampling.py --config configs/stem_published.py --quick --json OUT
    uv run python benchmarks/sampling.py --config configs/stem_published.py --json OUT
    uv run python benchmarks/sampling.py --ways mean,pair-heun-18 --batches 16,64 --product

A way is a mode and its sampler: ``mean``, ``pair-SAMPLER-STEPS``, ``drawsN-SAMPLER-STEPS``, with
``-independent`` for draws that are not in antithetic pairs. The rows are every way at the first of
each list, then the way ``--vary`` at each other batch, dtype, attention and panel; or the whole
product. A batch is how many (spot, draw) pairs go through the network at once.

Weights are random and not zero, the condition is random: speed does not depend on them, and the
zeros of a fresh network would. A loop of many steps is timed on ``timed_steps`` of them, all of
one cost; ``speed_from`` then says ``part``, and spots/s are those of the row's own evaluations at
the time that one evaluation took. Evaluations are counted by running the way on a network that
counts (`count_evaluations`). Quality is that of the same way, dtype and attention on the fixture
(`benchmarks/fixture.py`), not that of the random network.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from typing import Any

import fixture
import harness
import jax
import jax.numpy as jnp
import roofline
import samplers
from roofs import Roofs

from stemjax import config, errors, tasks
from stemjax.models import network

WAYS = (
    "mean,pair-dpmpp2m-8,draws20-dpmpp2m-4,draws20-dpmpp2m-6,draws20-dpmpp2m-8,draws20-dpmpp2m-12,"
    "draws20-heun-18,draws20-ddim-50,draws20-ddpm-250,draws20-ddpm-1000-independent"
)
QUICK_WAYS = "mean,pair-dpmpp2m-8,draws20-dpmpp2m-8"
WAY = re.compile(r"mean|(?P<mode>pair|draws\d+)-(?P<sampler>\w+)-(?P<steps>\d+)(-independent)?")
FAILURES = (errors.StemjaxError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError)
"""What a row may end in without ending the run: the row says so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What a row measures.

    Attributes:
      way: name of the way, see the module's docstring.
      batch: (spot, draw) pairs at once; a spot's draws stay together, so at least those of one.
      dtype: of the blocks' products.
      attention: form of the attention.
      genes: size of the panel.
    """

    way: str
    batch: int
    dtype: str
    attention: str
    genes: int

    @property
    def sampling(self) -> tasks.Sampling:
        """The way.

        Raises:
          ConfigError: a name that is none.
        """
        found = WAY.fullmatch(self.way)
        if found is None:
            raise errors.ConfigError(
                f"way {self.way!r}", expected="mean, pair-SAMPLER-STEPS or drawsN-SAMPLER-STEPS"
            )
        if self.way == "mean":
            return tasks.Sampling(mode="mean")
        draws = int(found["mode"].removeprefix("draws")) if found["mode"] != "pair" else 2
        return tasks.Sampling(
            mode="pair" if found["mode"] == "pair" else "draws",
            n_draws=draws,
            antithetic=not self.way.endswith("-independent") and draws % 2 == 0,
            sampler=found["sampler"],
            steps=int(found["steps"]),
        )

    @property
    def spots(self) -> int:
        """Spots at once."""
        return max(1, self.batch // self.sampling.draws)

    def experiment(self, base: config.Experiment) -> config.Experiment:
        """Returns the experiment with this row's network and the process that its way needs."""
        model = dataclasses.replace(base.model, dtype=self.dtype, attention=self.attention)
        diffusion = base.diffusion
        if self.sampling.sampler == "ddpm":
            diffusion = config.Diffusion(process="ddpm", mean_fraction=0.0)
        elif self.sampling.mode == "mean" and diffusion.process == "ddpm":
            diffusion = config.Diffusion()
        return dataclasses.replace(base, model=model, diffusion=diffusion)


def rows_of(args: argparse.Namespace) -> list[Row]:
    """Returns the rows that the flags ask for, none twice."""
    names = ("batch", "dtype", "attention", "genes")
    axes = dict(zip(names, (args.batches, args.dtypes, args.attention, args.panels)))
    base = {name: values[0] for name, values in axes.items()}
    rows = [Row(way=way, **base) for way in args.ways]
    if args.product:
        for name, values in axes.items():
            rows = [dataclasses.replace(row, **{name: v}) for row in rows for v in values]
    elif args.vary:
        rows += [
            Row(way=args.vary, **base | {name: value})
            for name, values in axes.items()
            for value in values
        ]
    return list(dict.fromkeys(rows))


def count_evaluations(task: Any, sampling: tasks.Sampling, *, spots: int = 2) -> float:
    """Returns the network evaluations a spot that a task really makes, counted while it runs.

    The task's network gives way to one that returns zeros and counts the rows that it is called
    with, at run time, so that the turns of a scan are counted one by one.
    """
    seen: list[int] = []

    def apply(params: Any, x: jax.Array, level: jax.Array, cond: jax.Array) -> jax.Array:
        jax.debug.callback(lambda first: seen.append(x.shape[0]), x[0, 0])
        two = isinstance(task, tasks.DdpmTask) or task.marginal
        return jnp.zeros((x.shape[0], 2, x.shape[1])) if two else jnp.zeros_like(x)

    def bind(params: Any, cond: jax.Array, *, repeat: int = 1) -> network.Bound:
        return lambda x, level: apply(params, x, level, cond)

    counting = dataclasses.replace(
        task, network=network.Conditional(init=lambda key: {}, apply=apply, bind=bind)
    )
    keys = jax.random.split(jax.random.key(0), spots)
    run = jax.jit(lambda cond, keys: counting.predict({}, cond, keys, sampling=sampling))
    jax.block_until_ready(run(jnp.zeros((spots, 3)), keys))
    jax.effects_barrier()
    return sum(seen) / spots


def time_row(row: Row, base: config.Experiment, args: argparse.Namespace) -> dict[str, Any]:
    """Returns times, compile times and memory of a row, and what they were taken on."""
    asked = row.sampling
    few = asked
    if asked.mode != "mean" and args.timed_steps:
        few = dataclasses.replace(asked, steps=min(asked.steps, args.timed_steps))
    experiment = row.experiment(base)
    task = config.make_task(experiment, genes=row.genes, condition=args.condition)
    params = harness.awake(task.init(jax.random.key(0)))

    def run(params: Any, cond: jax.Array, keys: jax.Array) -> jax.Array:
        return task.predict(params, cond, keys, sampling=few)

    def arguments(i: int) -> tuple:
        key = jax.random.fold_in(jax.random.key(2), i)
        cond = jax.random.normal(key, (row.spots, args.condition))
        return params, cond, jax.random.split(key, row.spots)

    timing = harness.measure(
        run, arguments, repeats=args.repeats, warm_up=args.warm_up, seconds=args.seconds
    )
    return {
        "steps": None if asked.mode == "mean" else asked.steps,
        "timed_steps": None if asked.mode == "mean" else few.steps,
        "speed_from": "whole" if few == asked else "part",
        "timed_evaluations": task.evaluations(few),
        "process": experiment.diffusion.process,
        "warm_up": args.warm_up,
        **timing.line,
        "cached_compile_s": harness.compile_cached(run, arguments(0)),
    }


def speeds(row: Row, line: dict[str, Any], work: roofline.Work, roof: dict) -> dict[str, Any]:
    """Returns rates and shares of a timed row.

    Args:
      row: the row.
      line: with ``median_s``, ``timed_evaluations`` and ``evaluations_per_spot``.
      work: FLOP and bytes of one evaluation.
      roof: what `roofs.roof` measured.
    """
    one = line["median_s"] / (row.spots * line["timed_evaluations"])
    rate, known = work.flop / one, roof["rating"]
    matmul = roof["matmul_flop_per_s"][row.dtype]
    spots = 1 / (one * line["evaluations_per_spot"])
    return {
        "spots_per_s": spots,
        "draws_per_s": spots * row.sampling.draws,
        "evaluations_per_s": 1 / one,
        "us_per_evaluation": 1e6 * one,
        "flop_per_evaluation": work.flop,
        "byte_per_evaluation": work.byte,
        "flop_per_s": rate,
        "share_of_matmul": rate / matmul,
        "share_of_rating": rate / known["bfloat16"] if known else None,
        "floor_ratio": one / work.floor(matmul=matmul, copy=roof["copy_byte_per_s"]),
    }


def measure(row: Row, base: config.Experiment, args: argparse.Namespace, measured: Roofs) -> dict:
    """Returns the line of a row; one that cannot run says why in ``failed``."""
    sampling, identity = row.sampling, dataclasses.asdict(row)
    line = identity | {
        "mode": sampling.mode,
        "sampler": None if sampling.mode == "mean" else sampling.sampler,
        "draws": sampling.draws,
        "antithetic": sampling.in_pairs,
        "spots": row.spots,
        "rows": row.spots * sampling.draws,
    }
    try:
        roof = measured.around()
        line |= time_row(row, base, args)
        beside = roof()
        line["matmul_flop_per_s"] = beside["matmul_flop_per_s"][row.dtype]
        experiment = row.experiment(base)
        task = config.make_task(experiment, genes=3, condition=3)
        line["evaluations_per_spot"] = task.evaluations(sampling)
        line["evaluations_counted"] = count_evaluations(task, sampling)
        if line["evaluations_counted"] != line["evaluations_per_spot"]:
            raise RuntimeError(
                f"{row.way} made {line['evaluations_counted']} evaluations a spot, "
                f"not {line['evaluations_per_spot']}"
            )
        work = roofline.work(
            experiment, genes=row.genes, condition=args.condition, rows=line["rows"]
        )
        line |= speeds(row, line, work, beside)
        line["quality"] = fixture.quality(
            line["process"], sampling, dtype=row.dtype, attention=row.attention
        )
    except FAILURES as error:
        line["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return line


def read_flags(argv: list[str] | None = None) -> tuple[argparse.Namespace, config.Experiment]:
    """Returns the flags, with the defaults that depend on device and ``--quick``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    harness.add_arguments(parser)
    parser.add_argument(
        "--ways", type=harness.names, help="comma-separated; default: ten, or three"
    )
    parser.add_argument("--batches", type=harness.numbers, help="rows at once; default 16 on a CPU")
    parser.add_argument("--dtypes", type=harness.names, help="default: the experiment's first")
    parser.add_argument("--attention", type=harness.names, help="default: the experiment's first")
    parser.add_argument(
        "--panels", type=harness.numbers, help="sizes of panel; default --genes first"
    )
    parser.add_argument("--vary", help="the way that the other values are tried on")
    parser.add_argument("--product", action="store_true", help="every way at every value")
    parser.add_argument("--timed-steps", type=int, help="steps of the timed loop; 0: all")
    parser.add_argument("--repeats", type=int, help="timed calls, at least")
    parser.add_argument("--warm-up", type=int, help="untimed calls before them")
    parser.add_argument("--seconds", type=float, help="timed calls go on for as long")
    args, experiment = harness.parse(parser, argv)
    cpu, quick, model = jax.default_backend() == "cpu", args.quick, experiment.model

    def other(first: Any, others: tuple[Any, ...]) -> list[Any]:
        return [first] if quick else [first, *(value for value in others if value != first)]

    forms = {"cpu": (), "tpu": ("xla", "flash")}.get(jax.default_backend(), ("xla", "cudnn"))
    defaults = {
        "ways": harness.names(QUICK_WAYS if quick else WAYS),
        "batches": other(16, (1, 64)) if cpu else other(1024, (1, 200, 4096)),
        "dtypes": other(model.dtype, ("float32", "bfloat16")),
        "attention": other(model.attention, forms),
        "panels": other(args.genes, (50, 200, 1000)),
        "vary": "" if quick else "pair-dpmpp2m-8",
        "timed_steps": 2 if quick else 4 if cpu else 20,
        "repeats": 3 if quick else 20,
        "warm_up": 1 if quick else 3,
        "seconds": 0.3 if quick else 5.0,
    }
    harness.fill(args, defaults)
    return args, experiment


def cell(value: Any, digits: int = 3) -> str:
    """Returns a number of a table; nothing for None."""
    return "" if value is None else f"{value:.{digits}g}"


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown: speed, quality, cold start and memory."""
    roof = result["roof"]
    lines = [line for line in result["lines"] if "failed" not in line]
    place = ["way", "rows", "dtype", "attention", "genes"]
    parts = [
        f"Network: width {result['model']['width']}, depth {result['model']['depth']}, condition "
        f"{result['condition']}. The roof of the same run: "
        + ", ".join(
            f"{rate / 1e9:.0f} GFLOP/s {dtype}" for dtype, rate in roof["matmul_flop_per_s"].items()
        )
        + f", {roof['copy_byte_per_s'] / 1e9:.1f} GB/s."
    ]

    def add(title: str, head: list[str], cells: Any) -> None:
        rows = [[str(line[name]) for name in place] + cells(line) for line in lines]
        parts.append(f"**{title}**\n\n" + samplers.markdown([*place, *head], rows))

    add(
        "Speed (* from part of the steps)",
        ["evaluations a spot", "spots/s", "draws/s", "evaluations/s", "us an evaluation",
         "of matmul", "of rating", "x floor"],  # fmt: skip
        lambda line: [
            str(line["evaluations_per_spot"]) + ("*" if line["speed_from"] == "part" else ""),
            *(cell(line[k]) for k in ("spots_per_s", "draws_per_s", "evaluations_per_s",
                                      "us_per_evaluation", "share_of_matmul",
                                      "share_of_rating", "floor_ratio")),
        ],
    )  # fmt: skip
    names = ("pcc", "mse", "rvd", "rvd_draws", "crps", "energy", "mean_rms")
    add("Quality on the fixture", list(names),
        lambda line: [cell(line["quality"][name]) for name in names])  # fmt: skip
    rows = [[name, *(cell(found[k]) for k in names)] for name, found in result["quality"].items()]
    parts.append("**References of the fixture**\n\n" + samplers.markdown(["of", *names], rows))
    add("Cold start and memory",
        ["lower s", "compile s", "with a warm cache s", "temporary MB"],
        lambda line: [cell(line[k]) for k in ("lower_s", "compile_s", "cached_compile_s")]
        + [cell(line["temp_bytes"] / 1e6)])  # fmt: skip
    failed = [f"- {line['way']}, {line['rows']} rows, {line['dtype']}, {line['attention']}, "
              f"{line['genes']} genes: {line['failed']}"
              for line in result["lines"] if "failed" in line]  # fmt: skip
    if failed:
        parts.append("Rows that did not run:\n\n" + "\n".join(failed))
    return "\n\n".join(parts)


def main() -> None:
    """Measures row by row; what is measured so far is on disk after each."""
    args, experiment = read_flags()
    about, measured = harness.surroundings(), Roofs(repeats=5 if args.quick else 10)
    facts = {
        "quick": args.quick,
        "model": dataclasses.asdict(experiment.model),
        "condition": args.condition,
        "quality": fixture.load().references(),
        "quality_of": "the networks of benchmarks/fixture.py",
    }
    lines: list[dict[str, Any]] = []
    for row in rows_of(args):
        lines.append(measure(row, experiment, args, measured))
        harness.emit(lines[-1])
        found = harness.result("sampling", about, experiment, lines, roof=measured.mean, **facts)
        if args.json:
            harness.save(args.json, found)


if __name__ == "__main__":
    main()
