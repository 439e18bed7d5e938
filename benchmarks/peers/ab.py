"""stemjax beside PyTorch in one run: same weights, spots and noise, by turns, the ratio of times.

    uv run python benchmarks/peers/ab.py --torch-python PYTHON --quick      # a minute or two
    uv run python benchmarks/peers/ab.py --torch-python PYTHON --json benchmarks/results/peers.json

PYTHON is the interpreter of an environment of its own, since torch stays out of the package's:
``python -m venv DIR && DIR/bin/pip install "torch>=2.6" numpy`` (Python 3.11 or later). It runs
`torch_driver.py`, an independent implementation as published (eager, TF32 on a GPU, fused
attention) and at its best (``torch.compile``, max-autotune on a GPU and freezing on a CPU, and
bfloat16), with the same few-step solver.

First both sides must give the same numbers; if they do not, nothing is timed. Then every round
times each side's variants one after the other, ours and theirs by turns: equal evaluations first
(one forward pass, a pair of 8 steps of DPM-Solver++), defaults second (our pair, draws and mean
against the published 20 draws of 1000 steps, whose time is that of some of its steps, multiplied).
Ratios are geometric means over rounds with a bootstrap interval, paired by round.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

# `harness` and `peers` are beside this folder, where Python does not look by itself.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import harness

from peers import protocol, rounds, sides, tables
from stemjax import config

CONFIG = harness.ROOT / "configs" / "stem_published.py"
DRIVER = pathlib.Path(__file__).resolve().parent / "torch_driver.py"
DRAWS, STEPS, KEPT = 20, 1000, 8
LIMITS = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2}
"""Largest difference of one forward pass by precision, relative to its largest value."""
OURS = ("float32", "bfloat16")
QUICK = {"width": 64, "depth": 2, "heads": 2}
DEFAULTS = {"pair": None, "draws": 100.0, "mean": 10_000.0}
"""Our modes, and how many times faster than the published protocol they have to be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is done.

    Attributes:
      batches: rows of the forward passes.
      spots: spots that are drawn for.
      chunk: rows that PyTorch works on at a time; stemjax takes what its predictor chooses.
      published: rows and steps of the published loop in one timed call.
      rounds: rounds.
      window: seconds a turn.
    """

    batches: tuple[int, ...]
    spots: int
    chunk: int
    published: tuple[int, int]
    rounds: int
    window: float


def make_jobs(plan: Plan, levels: tuple[float, float], torch: Sequence[str]) -> list[rounds.Job]:
    """Returns what is timed, in the order of the tables; ``torch`` are the variants there."""
    both = {"ours": OURS, "torch": tuple(torch)}
    jobs = [
        rounds.Job(
            name=f"forward {batch}",
            values={"kind": "forward", "batch": batch, "chunk": plan.chunk},
            variants=both,
            spots=batch,
            evaluations=1,
        )
        for batch in plan.batches
    ]
    solver = {"rule": "dpmpp2m", "steps": 8, "low": levels[0], "high": levels[1]}
    edm = {"process": "edm", "sigma_data": 1.0}
    pair = {"kind": "pair", **edm, **solver, "spots": plan.spots, "chunk": plan.chunk}
    rows, steps = plan.published
    few = max(1, plan.spots // 8)
    ours = {"ours": OURS}
    made = [
        ("pair", pair, both, plan.spots, 16),
        ("draws", {**edm, **solver, "kind": "draws", "draws": DRAWS, "spots": few}, ours, few, 160),
        ("mean", {**edm, "kind": "mean", "spots": plan.spots}, ours, plan.spots, 1),
        (
            "published",
            {"kind": "published", "rows": rows, "steps": steps, "draws": DRAWS},
            {"torch": ("eager",)},
            rows,
            steps,
        ),
    ]
    return jobs + [
        rounds.Job(
            name=name, values=values, variants=variants, spots=spots, evaluations=evaluations
        )
        for name, values, variants, spots, evaluations in made
    ]


def agreement(
    ours: rounds.Side,
    theirs: rounds.Side,
    jobs: Sequence[rounds.Job],
    *,
    levels: dict[str, tuple[float, float]],
    torch: Sequence[str],
    tf32: bool,
) -> list[rounds.Difference]:
    """Returns how far each variant's numbers lie from ours in float32.

    Both "exact" variants must agree on everything that is drawn; the others on one forward pass,
    each within what its precision allows, and their draws are stated without judgement.
    """
    small = {"spots": 2, "steps": 8, "chunk": 4, "sigma_data": 1.0}
    exact: list[dict[str, Any]] = [
        {**small, "kind": "pair", "process": process, "rule": rule, "low": low, "high": high}
        for process, (low, high) in levels.items()
        for rule in ("ddim", "dpmpp2m")
    ]
    exact += [
        {"kind": "ancestral", "process": "ddpm", "kept": KEPT, "spots": 2},
        {"kind": "mean", "process": "edm", "sigma_data": 1.0, "spots": 2},
    ]
    found = []
    for job in exact:
        name = " ".join(str(job[k]) for k in ("kind", "process", "rule") if k in job)
        reference, other = ours.run("exact", job), theirs.run("exact", job)
        what = name, "torch", "exact"
        found.append(rounds.compare(what, reference, other, LIMITS["float32"]))
    forward = [job for job in jobs if job.values["kind"] == "forward"]
    pair = [job for job in jobs if job.name == "pair"]
    plain = LIMITS["tf32" if tf32 else "float32"]
    for job in (forward[len(forward) // 2], *pair):
        reference = ours.run("exact", job.values)
        asked = [("torch", theirs, v) for v in ("exact", *torch)] + [
            ("ours", ours, v) for v in OURS
        ]
        for side, runner, variant in asked:
            limit = LIMITS["bfloat16"] if variant.startswith("bf") else plain
            limit = LIMITS["float32"] if variant == "exact" else limit
            judged = variant == "exact" or job is not pair[0]
            result = runner.run(variant, job.values)
            what = job.name, side, variant
            found.append(rounds.compare(what, reference, result, limit if judged else None))
    return found


def ratios(
    jobs: Sequence[rounds.Job], seconds: dict[rounds.Key, list[float]], *, on_cpu: bool
) -> list[dict[str, Any]]:
    """Returns the ratios, equal evaluations first, then defaults; targets beside them."""
    found = []

    def add(section: str, what: str, a: rounds.Key, b: rounds.Key, target: float | None,
            scale: float = 1.0) -> None:  # fmt: skip
        ratio = rounds.compare_times(seconds[a], [scale * s for s in seconds[b]])
        line = {"section": section, "job": a[0], "against": what, "ours": a[2], "theirs": b[2]}
        found.append({**line, **dataclasses.asdict(ratio), "target": target,
                      "verdict": ratio.verdict(target)})  # fmt: skip

    for job in jobs:
        if set(job.variants) != {"ours", "torch"}:
            continue
        eager = (job.name, "ours", "float32"), (job.name, "torch", "eager")
        add("equal", "PyTorch as published, float32", *eager, 2.0 if on_cpu else None)
        best = _best(seconds, job.name, "ours"), _best(seconds, job.name, "torch")
        add("equal", "PyTorch at its best", *best, 1.0)
    published = ("published", "torch", "eager")
    by_name = {job.name: job for job in jobs}
    for name, target in DEFAULTS.items():
        scale = _per_spot(by_name["published"]) / _per_spot(by_name[name])
        add("default", "published 20 x 1000", _best(seconds, name, "ours"), published, target,
            scale)  # fmt: skip
    return found


def _best(seconds: dict[rounds.Key, list[float]], job: str, side: str) -> rounds.Key:
    """The fastest variant of a side."""
    keys = [key for key in seconds if key[:2] == (job, side)]
    return min(keys, key=lambda key: float(np.median(seconds[key])))


def _per_spot(job: rounds.Job) -> float:
    """Seconds a spot for each second of a call; the published loop's call is multiplied up."""
    if job.name == "published":
        return (STEPS / job.evaluations) * (DRAWS / job.spots)
    return 1 / job.spots


def lines(
    jobs: Sequence[rounds.Job], seconds: dict[rounds.Key, list[float]]
) -> list[dict[str, Any]]:
    """Returns a line for each job, side and variant."""
    by_name = {job.name: job for job in jobs}
    found = []
    for (name, side, variant), times in seconds.items():
        job = by_name[name]
        median = float(np.median(times))
        published = name == "published"
        found.append(
            {
                "job": name,
                "side": side,
                "variant": variant,
                "rows_or_spots": job.spots,
                "evaluations_per_call": job.evaluations * job.spots,
                "evaluations_per_spot": DRAWS * STEPS if published else job.evaluations,
                "round_s": times,
                "median_s": median,
                "us_per_evaluation": 1e6 * median / (job.evaluations * job.spots),
                "seconds_per_spot": median * _per_spot(job),
                "extrapolated": published,
                "steps_timed": job.evaluations if published else None,
            }
        )
    return found


def measure(
    plan: Plan, experiment: config.Experiment, args: argparse.Namespace, child: protocol.Child,
    folder: pathlib.Path,
) -> dict[str, Any]:  # fmt: skip
    """Returns the result: the numbers compared first, then times and ratios.

    Raises:
      DifferentNumbersError: the two sides do not compute the same.
      PeerError: the other interpreter cannot.
    """
    about, threads = harness.surroundings(), len(os.sched_getaffinity(0))
    hello = child.ask("hello", threads=threads)
    if hello["threads"] != threads:
        raise protocol.PeerError(f"torch took {hello['threads']} threads, not {threads}")
    inputs = sides.make_inputs(
        genes=args.genes,
        condition=args.condition,
        rows=max(plan.batches),
        spots=max(plan.spots, 2),
        kept=KEPT,
    )
    ours, theirs = sides.Ours(experiment, inputs), sides.Theirs(child, folder)
    size = {k: getattr(experiment.model, k) for k in ("width", "depth", "heads", "mlp_ratio")}
    loaded = theirs.load(ours, {"genes": args.genes, "condition": args.condition, **size})
    tell(f"torch {hello['torch']}, {threads} threads on each side")
    wanted = [name for name in hello["variants"] if name != "exact"]
    jobs = make_jobs(plan, ours.levels["edm"], wanted)
    unavailable = _prepare(jobs, {"ours": ours, "torch": theirs})
    usable = [name for name in wanted if name not in unavailable]
    jobs = make_jobs(plan, ours.levels["edm"], usable)
    differences = agreement(
        ours, theirs, jobs, levels=ours.levels, torch=usable, tf32=hello["platform"] != "cpu"
    )
    for found in differences:
        tell(f"  {' '.join(found.what)}: max abs {found.largest:.3g}, {found.relative:.3g}")
    rounds.require_same(differences)
    seconds = rounds.alternate(
        jobs, {"ours": ours, "torch": theirs}, rounds=plan.rounds, window=plan.window, tell=tell
    )
    return harness.result(
        "peers",
        about,
        experiment,
        lines(jobs, seconds),
        plan=dataclasses.asdict(plan),
        network={"genes": args.genes, "condition": args.condition, **size},
        parameters=loaded["parameters"],
        threads_ours=threads,
        threads_torch=hello["threads"],
        torch=hello,
        unavailable=unavailable,
        agreement=[{**dataclasses.asdict(d), "same": d.same} for d in differences],
        ratios=ratios(jobs, seconds, on_cpu=about["platform"] == "cpu"),
        extrapolation=f"published: {plan.published[1]} of {STEPS} steps timed at "
        f"{plan.published[0]} rows, times {STEPS}/{plan.published[1]} and {DRAWS} draws",
    )


def _prepare(jobs: Sequence[rounds.Job], runners: dict[str, Any]) -> dict[str, str]:
    """Compiles and warms all up; returns why a variant of the other side cannot be had."""
    unavailable: dict[str, str] = {}
    for job in jobs:
        for side, variant in rounds.order(job):
            if side == "torch" and variant in unavailable:
                continue
            answer = runners[side].prepare(variant, job.values)
            if "unavailable" in answer:
                unavailable[variant] = answer["unavailable"]
            tell(f"  {job.name}, {side} {variant}: {answer.get('first', 'not available')}")
    return unavailable


def tell(text: str) -> None:
    """Shows progress on standard error, so that standard output has the tables alone."""
    print(text, file=sys.stderr, flush=True)


def make_plan(args: argparse.Namespace, *, on_cpu: bool) -> Plan:
    """Returns how much the arguments ask for."""
    if args.quick:
        return Plan(batches=(2 * args.spots,), spots=args.spots, chunk=2 * args.spots,
                    published=(DRAWS, 2), rounds=args.rounds, window=0.05)  # fmt: skip
    # As published, 200 rows are 10 spots; on a CPU, where a row's time is the same in a smaller
    # batch, one spot is enough. There PyTorch too works on few rows at a time.
    return Plan(
        batches=(1, 16, 64),
        spots=args.spots,
        chunk=16 if on_cpu else 2 * args.spots,
        published=(DRAWS if on_cpu else 10 * DRAWS, 8),
        rounds=args.rounds,
        window=0.5,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables, and writes the JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    harness.add_arguments(parser)
    parser.set_defaults(config=str(CONFIG), genes=None, condition=None)
    parser.add_argument("--torch-python", required=True, metavar="PATH", help="see above")
    parser.add_argument("--spots", type=int, help="spots of a pair; 8, or 2 with --quick")
    parser.add_argument("--rounds", type=int, default=5, help="at least 5, or 2 with --quick")
    args, experiment = harness.parse(parser, argv)
    if args.rounds < (2 if args.quick else 5):
        parser.error(f"--rounds {args.rounds} is too few for an interval")
    small = (24, 32, 2) if args.quick else (200, 1536, 8)
    for name, value in zip(("genes", "condition", "spots"), small):
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.quick:
        values = config.as_json(experiment)
        experiment = config.resolve({**values, "model": {**values["model"], **QUICK}})
    plan = make_plan(args, on_cpu=jax.default_backend() == "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        command = [args.torch_python, "-u", str(DRIVER)]
        threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
        try:
            with protocol.Child(command, log=folder / "log", environment=threads) as child:
                result = measure(plan, experiment, args, child, folder)
        except (protocol.PeerError, rounds.DifferentNumbersError) as problem:
            sys.exit(str(problem))
    if args.json is not None:
        harness.save(args.json, result)
    print(tables.tables(result))


if __name__ == "__main__":
    main()
