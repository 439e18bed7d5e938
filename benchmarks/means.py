"""Means and spreads at equal evaluations, against the exact conditional mean of the drawn law.

    uv run python benchmarks/means.py --quick     # a few minutes, networks hardly trained
    uv run python benchmarks/means.py             # half an hour on two cores

Each way to a mean (mean token, one antithetic pair, draws) is repeated with other seeds. Bias is
what stays when the repeats are averaged, variance is what differs between them; both are root mean
squares over spots and genes, in standard deviations of a gene. `exact` rows run on the law's own
denoiser, so their bias is the sampler's; the other rows are networks of one size, trained for
equally many updates on the same law, and their bias is the network's too.

Prints tables and writes JSON to benchmarks/results/; docs/means.md quotes the full run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, cast

import harness
import jax
import jax.numpy as jnp
import numpy as np
import samplers
from scipy import stats

from stemjax import config, mesh, tasks
from stemjax.data import exact, synthetic
from stemjax.diffusion import sampler
from stemjax.train import state as states
from stemjax.train import step as steps
from stemjax.typing import Batch

WAYS = {
    "mean token": tasks.Sampling(mode="mean"),
    "pair": tasks.Sampling(mode="pair"),
    "2 independent": tasks.Sampling(mode="draws", n_draws=2, antithetic=False),
    "10 pairs": tasks.Sampling(mode="draws", n_draws=20),
    "20 independent": tasks.Sampling(mode="draws", n_draws=20, antithetic=False),
}
ANCESTRAL = {
    "ancestral 50, 10 pairs": tasks.Sampling(
        mode="draws", n_draws=20, sampler="ddpm", steps=50, antithetic=True
    ),
    "ancestral 50, 20 independent": tasks.Sampling(
        mode="draws", n_draws=20, sampler="ddpm", steps=50, antithetic=False
    ),
}
NETWORKS: dict[str, dict[str, Any]] = {
    "edm": {},
    "edm, marginal": {"marginal": True},
    "edm, residual": {"residual": True, "sigma_data": 0.75},
    "ddpm": {"process": "ddpm", "mean_fraction": 0.0},
}
SPREAD_DRAWS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A task and the moving average of its weights."""

    task: tasks.DiffusionTask
    params: Any


def condition(z: np.ndarray) -> np.ndarray:
    """Returns the states with unit variance, [l 4]: what the networks are shown."""
    return ((z - 0.5) * np.sqrt(12)).astype(np.float32)


def train(world: samplers.World, options: dict[str, Any], *, updates: int) -> Trained:
    """Returns a network trained on fresh draws of the law."""
    base = {"noise_mean": 0.0, "noise_std": 1.4, "mean_fraction": 0.25}
    if options.get("process") == "ddpm":
        base = {}
    experiment = config.resolve(
        {
            "model": {"width": 64, "depth": 2, "heads": 2},
            "diffusion": base | options,
            "optim": {"learning_rate": 1e-3, "schedule": "cosine", "ema": 0.998},
        }
    )
    task = config.make_task(experiment, genes=world.genes, condition=len(synthetic.STATES))
    optimizer = states.make_optimizer(experiment.optim, updates)
    layout = mesh.make_layout(jax.local_devices()[:1])
    state = states.init_state(task, optimizer, jax.random.key(0))
    step = steps.make_train_step(task, optimizer, ema=experiment.optim.ema, seed=0, accumulate=8)
    rng, batch = np.random.default_rng(2), 256
    update = None
    for _ in range(updates):
        z = rng.uniform(0.03, 0.97, (batch, len(synthetic.STATES)))
        x0 = world.space.apply(world.law.sample_values(z, 1, rng)[0])
        host = Batch(cond=condition(z), x0=x0, mask=np.ones_like(x0))
        given = layout.put(host)
        if update is None:
            update = steps.compile_update(step, layout, state, given)
        state, _ = update(state, given)
    return Trained(task=cast(tasks.DiffusionTask, task), params=state.ema)


type Draw = Callable[[tasks.Sampling, int], np.ndarray]


def network_draw(world: samplers.World, trained: Trained) -> Draw:
    """Returns (sampling, seed) -> draws [n l g] of a network; compiles once for each sampling."""
    cond = condition(world.z)

    @functools.cache
    def predictor(sampling: tasks.Sampling) -> tasks.Predictor:
        return tasks.make_predictor(trained.task, sampling, rows=2048)

    def draw(sampling: tasks.Sampling, seed: int) -> np.ndarray:
        return predictor(sampling)(trained.params, cond, spot_keys(world, seed))

    return draw


def exact_draw(world: samplers.World) -> Draw:
    """Returns (sampling, seed) -> draws [n l g] of the law's own denoiser."""

    @functools.cache
    def program(sampling: tasks.Sampling) -> Callable[[jax.Array], jax.Array]:
        denoise = exact.exact_denoiser(world.law, world.z, space=world.space, repeat=sampling.draws)

        def run(keys: jax.Array) -> jax.Array:
            if sampling.mode == "mean":
                zeros = jnp.zeros((world.spots, world.genes))
                return denoise(zeros, jnp.full(world.spots, jnp.inf))[None]
            return tasks.draw_profiles(
                denoise, keys, sampling=sampling, levels=samplers.LEVELS, genes=world.genes
            )

        return jax.jit(run)

    def draw(sampling: tasks.Sampling, seed: int) -> np.ndarray:
        return np.asarray(program(sampling)(spot_keys(world, seed)))

    return draw


def spot_keys(world: samplers.World, seed: int) -> jax.Array:
    """Returns one key a spot."""
    return sampler.spot_keys(seed, "law", [f"{i}" for i in range(world.spots)])


def judge_mean(
    world: samplers.World, draw: Draw, sampling: tasks.Sampling, *, repeats: int
) -> dict[str, float]:
    """Returns bias, standard deviation and error of a way to the mean."""
    repeats = 1 if sampling.mode == "mean" else repeats
    found = np.stack([draw(sampling, seed).mean(axis=0) for seed in range(repeats)])
    variance = found.var(axis=0, ddof=1).mean() if repeats > 1 else 0.0
    # The squared distance of an average of r repeats is bias² + variance / r.
    bias = ((found.mean(axis=0) - world.mean) ** 2).mean() - variance / repeats
    return {
        "bias": float(np.sqrt(max(0.0, bias))),
        "sd": float(np.sqrt(variance)),
        "error": float(np.sqrt(max(0.0, bias) + variance)),
    }


def judge_spread(world: samplers.World, values: np.ndarray) -> dict[str, float]:
    """Returns CRPS and 90 % coverage of draws [n l g], and their energy distance."""
    # The mean over true draws y of E|X - y| - E|X - X'| / 2, pairs of one draw left out.
    n = len(values)
    rank = np.sort(values, axis=0)
    weights = (2 * np.arange(1, n + 1) - n - 1)[:, None, None]
    within = 2 * (weights * rank).sum(axis=0) / (n * (n - 1))
    near = np.mean([np.abs(values - y).mean(axis=0) for y in world.true[:64]], axis=0)
    low, high = np.quantile(values, [0.05, 0.95], axis=0)
    inside = (world.true >= low) & (world.true <= high)
    return {
        "crps": float((near - within / 2).mean()),
        "coverage_90": float(inside.mean()),
        "energy_distance": world.distance(values)[0],
    }


def judge_marginal(world: samplers.World, mean: np.ndarray, std: np.ndarray) -> dict[str, float]:
    """Returns the same of independent normal laws with these means and deviations [l g]."""
    score = (world.true[:64] - mean) / std
    crps = std * (
        score * (2 * stats.norm.cdf(score) - 1) + 2 * stats.norm.pdf(score) - 1 / np.sqrt(np.pi)
    )
    rng = np.random.default_rng(3)
    drawn = mean + std * rng.standard_normal((SPREAD_DRAWS, *mean.shape))
    inside = np.abs((world.true - mean) / std) <= stats.norm.ppf(0.95)
    return {
        "crps": float(crps.mean()),
        "coverage_90": float(inside.mean()),
        "energy_distance": world.distance(drawn)[0],
    }


def measure(world: samplers.World, *, updates: int, repeats: int) -> dict[str, list]:
    """Returns the lines of both tables."""
    means, spreads = [], []
    exactly = exact_draw(world)
    # `judge_spread` takes draws for independent; antithetic ones lie further apart.
    many = tasks.Sampling(mode="draws", n_draws=SPREAD_DRAWS, antithetic=False)

    def add(lines: list, **line: Any) -> None:
        lines.append(line)
        harness.emit(line)

    add(spreads, model="exact", way="true draws", evaluations=0, **judge_spread(
        world, world.true[-SPREAD_DRAWS:].astype(np.float64)))  # fmt: skip
    for way, sampling in WAYS.items():
        found = judge_mean(world, exactly, sampling, repeats=repeats)
        add(means, model="exact", way=way, evaluations=sampling.evaluations, **found)
    add(spreads, model="exact", way="64 draws", evaluations=many.evaluations,
        **judge_spread(world, exactly(many, 0)))  # fmt: skip
    for name, options in NETWORKS.items():
        trained = train(world, options, updates=updates)
        draw, task = network_draw(world, trained), trained.task
        ways = WAYS if name != "ddpm" else WAYS | ANCESTRAL
        for way, sampling in ways.items():
            if way == "mean token" and name == "ddpm":
                continue
            found = judge_mean(world, draw, sampling, repeats=repeats)
            add(means, model=name, way=way, evaluations=task.evaluations(sampling), **found)
        add(spreads, model=name, way="64 draws", evaluations=task.evaluations(many),
            **judge_spread(world, draw(many, 0)))  # fmt: skip
        if options.get("marginal"):
            mean, std = draw(tasks.Sampling(mode="marginal"), 0)
            add(spreads, model=name, way="mode marginal", evaluations=1,
                **judge_marginal(world, mean, std))  # fmt: skip
    mean, std = world.mean, world.std
    add(spreads, model="exact", way="exact mean and std, normal", evaluations=0,
        **judge_marginal(world, mean, std))  # fmt: skip
    return {"means": means, "spreads": spreads}


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    head = ["model", "way", "evaluations", "bias", "sd", "error"]
    rows = [
        [line["model"], line["way"], str(line["evaluations"])]
        + [f"{line[key]:.4f}" for key in head[3:]]
        for line in result["means"]
    ]
    parts = ["**Ways to the mean**\n\n" + samplers.markdown(head, rows)]
    head = ["model", "way", "evaluations", "crps", "coverage_90", "energy_distance"]
    rows = [
        [line["model"], line["way"], str(line["evaluations"])]
        + [f"{line[key]:.4f}" for key in head[3:]]
        for line in result["spreads"]
    ]
    parts.append("**Ways to the spread**\n\n" + samplers.markdown(head, rows))
    return "\n\n".join(parts)


def main() -> None:
    """Trains, measures, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few updates, spots and repeats")
    parser.add_argument("--json", type=pathlib.Path, help="default: in benchmarks/results")
    args = parser.parse_args()
    world = samplers.World(spots=8 if args.quick else 16, draws=8)
    updates, repeats = (150, 3) if args.quick else (2000, 10)
    result = {
        **harness.surroundings(),
        "benchmark": "means",
        "law": {"genes": world.genes, "spots": world.spots},
        "updates": updates,
        "repeats": repeats,
        **measure(world, updates=updates, repeats=repeats),
    }
    path = args.json or samplers.RESULTS / ("means_quick.json" if args.quick else "means.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result))
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
