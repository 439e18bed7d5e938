"""Sampling speed: modes and samplers on one network, as JSON lines.

    uv run python benchmarks/sampling.py --quick
    uv run python benchmarks/sampling.py --width 384 --depth 12 --heads 6 --condition 1536

Weights are random and not zero, the condition is random: speed does not depend on them, and the
zeros of a fresh network would. Quality stands in docs/results.md, for networks that were trained.
"""

from __future__ import annotations

import argparse

import harness
import jax

from stemjax import config, tasks
from stemjax.models import stem

MODES = (
    tasks.Sampling(mode="mean"),
    tasks.Sampling(mode="pair"),
    tasks.Sampling(mode="draws"),
    tasks.Sampling(mode="draws", sampler="heun", steps=18),
    tasks.Sampling(mode="draws", sampler="ddim", steps=50),
)


def main() -> None:
    """Prints the roof, then one line a mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("width", 64), ("depth", 2), ("heads", 2), ("genes", 200)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--condition", type=int, default=236, help="embedding width")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--spots", type=int, default=16, help="spots at a time")
    parser.add_argument("--quick", action="store_true", help="mean and pair alone, a minute")
    args = parser.parse_args()

    experiment = config.resolve(
        {
            "model": {
                "width": args.width,
                "depth": args.depth,
                "heads": args.heads,
                "dtype": args.dtype,
            }
        }
    )
    task = config.make_task(experiment, genes=args.genes, condition=args.condition)
    params = harness.awake(task.init(jax.random.key(0)))
    flops = stem.flops_per_evaluation(
        stem.StemConfig(
            genes=args.genes,
            width=args.width,
            depth=args.depth,
            heads=args.heads,
            condition=args.condition,
        )
    )
    about, roof = harness.surroundings(), harness.matmul_rate()
    for sampling in MODES[:2] if args.quick else MODES:

        def run(
            params: dict, cond: jax.Array, keys: jax.Array, how: tasks.Sampling = sampling
        ) -> jax.Array:
            return task.predict(params, cond, keys, sampling=how)

        def arguments(i: int) -> tuple:
            key = jax.random.fold_in(jax.random.key(2), i)
            cond = jax.random.normal(key, (args.spots, args.condition))
            return params, cond, jax.random.split(key, args.spots)

        timing = harness.measure(run, arguments)
        work = sampling.evaluations * args.spots
        harness.emit(
            {
                **about,
                "benchmark": "sampling",
                "network": vars(args),
                "config": config.digest(experiment),
                "mode": sampling.mode,
                "sampler": sampling.sampler,
                "steps": sampling.steps,
                "evaluations_per_spot": sampling.evaluations,
                "compile_s": timing.compile,
                "median_s": timing.median,
                "quartiles_s": timing.quartiles,
                "repeats": timing.repeats,
                "spots_per_s": args.spots / timing.median,
                "us_per_evaluation": 1e6 * timing.median / work,
                "flop_per_evaluation": flops,
                "matmul_flop_per_s": roof,
                "share_of_matmul": flops * work / timing.median / roof,
            }
        )


if __name__ == "__main__":
    main()
