"""Every sampler at equal evaluations, on a law whose exact denoiser is known.

    uv run python benchmarks/samplers.py --quick     # two minutes on two cores
    uv run python benchmarks/samplers.py             # half an hour

The denoiser is the drawn law's own (`stemjax.data.exact`), so what is left is the sampler's error:
energy distance of its draws from true ones, error of their mean, error of their spread, all in
standard deviations of a gene. The time is that of the network of configs/stem_her2st.py with the
same genes, a profile at a time, since the exact denoiser's own time means nothing.

Prints tables and writes JSON to benchmarks/results/; docs/samplers.md quotes the full run.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
from typing import Any

import harness
import jax
import numpy as np
from scipy import stats

from stemjax import config, tasks
from stemjax.data import exact, synthetic, transforms
from stemjax.diffusion import sampler
from stemjax.eval import metrics

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
BUDGETS = (1, 2, 4, 8, 18, 35, 50, 250, 1000)
QUICK_BUDGETS = (1, 2, 4, 8, 18, 35)
LEVELS = (0.01, 80.0)
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": {"sampler": "ddim"},
    "ancestral": {"sampler": "ancestral"},
    "ab2": {"sampler": "ab2"},
    "dpmpp2m": {"sampler": "dpmpp2m"},
    "dpmpp2m_sde": {"sampler": "dpmpp2m_sde"},
    "heun": {"sampler": "heun"},
    "heun churn 10": {"sampler": "heun", "churn": 10.0},
}
LADDERS = ("karras", "log_uniform", "vp_linear", "vp_cosine")
QUANTITIES = {
    "energy_distance": "energy distance from true draws",
    "mean_error": "error of the mean (RMS, sampling error taken off)",
    "spread_error": "error of the spread (ratio of standard deviations less 1)",
    "ms": "ms a profile on the network of configs/stem_her2st.py",
}


class World:
    """Spots of the law, their exact denoiser, moments and true draws, in standardised space."""

    def __init__(self, *, spots: int, draws: int, genes: int = 24) -> None:
        self.law = synthetic.Law(n_genes=genes)
        points = stats.qmc.Halton(len(synthetic.STATES), scramble=False).random(spots)
        self.z = 0.03 + 0.94 * points
        self.spots, self.draws, self.genes = spots, draws, genes
        mean, variance = self.law.conditional_mean(self.z), self.law.conditional_variance(self.z)
        scale = np.sqrt(mean.var(axis=0) + variance.mean(axis=0))
        self.space = transforms.Standardisation(
            mean=mean.mean(axis=0).astype(np.float32), std=scale.astype(np.float32)
        )
        self.mean = (mean - self.space.mean) / self.space.std
        self.std = np.sqrt(variance) / self.space.std
        rng = np.random.default_rng(1)
        self.true = self.space.apply(self.law.sample_values(self.z, 512, rng))
        self.others = self.space.apply(self.law.sample_values(self.z, draws, rng))
        self.keys = sampler.spot_keys(0, "law", [f"{i}" for i in range(spots)])

    @functools.cached_property
    def denoise(self) -> Any:
        """The exact denoiser; its tables take half a gigabyte a spot at 200 genes."""
        return exact.exact_denoiser(self.law, self.z, space=self.space, repeat=self.draws)

    def distance(self, draws: np.ndarray) -> tuple[float, float]:
        """Returns the energy distance of draws [n l g] from true ones, mean and its error."""
        each = [metrics.energy_distance(draws[:, i], self.true[:, i]) for i in range(self.spots)]
        return float(np.mean(each)), float(np.std(each, ddof=1) / np.sqrt(self.spots))

    def score(self, sampling: tasks.Sampling) -> dict[str, float]:
        """Returns the errors of a sampler's draws."""
        denoise = self.denoise  # made here, where nothing is traced

        @jax.jit
        def run(keys: jax.Array) -> jax.Array:
            return sampler.draw(
                denoise,
                sampling.on(LEVELS).rungs,
                keys,
                rule=sampling.rule,
                genes=self.genes,
                n_draws=self.draws,
                antithetic=False,
            )

        draws = np.asarray(run(self.keys), np.float64)
        off = (draws.mean(axis=0) - self.mean) ** 2 - draws.var(axis=0, ddof=1) / self.draws
        spread = np.sqrt(draws.var(axis=0, ddof=1).mean() / (self.std**2).mean())
        distance, error = self.distance(draws)
        return {
            "energy_distance": distance,
            "energy_distance_se": error,
            "mean_error": float(np.sqrt(max(0.0, off.mean()))),
            "spread_error": float(spread - 1),
        }


def milliseconds(sampling: tasks.Sampling, genes: int) -> dict[str, float]:
    """Returns the time of a profile on a network, and that of compiling."""
    experiment = config.resolve({"model": {"width": 64, "depth": 2, "heads": 2}})
    task = config.make_task(experiment, genes=genes, condition=236)
    params = harness.awake(task.init(jax.random.key(0)))
    profiles = 16

    def run(params: dict, cond: jax.Array, keys: jax.Array) -> jax.Array:
        return task.predict(params, cond, keys, sampling=sampling)

    def arguments(i: int) -> tuple:
        key = jax.random.fold_in(jax.random.key(2), i)
        return params, jax.random.normal(key, (profiles, 236)), jax.random.split(key, profiles)

    few = sampling.steps > 100
    timing = harness.measure(run, arguments, repeats=3 if few else 10, warm_up=1 if few else 3)
    return {"ms": 1e3 * timing.median / profiles, "compile_s": timing.compile}


def with_budget(asked: dict[str, Any], budget: int) -> tasks.Sampling | None:
    """Returns a sampler with as many steps as the budget pays for exactly, or None."""
    steps = budget
    if asked["sampler"] == "heun":
        steps = (budget + 1) // 2  # two evaluations a step, one at the last
    found = tasks.Sampling(mode="draws", n_draws=1, antithetic=False, steps=steps, **asked)
    # Heun pays for an odd number only: an even budget leaves one evaluation over.
    return found if budget - found.evaluations <= 1 else None


def measure(world: World, budgets: tuple[int, ...]) -> list[dict[str, Any]]:
    """Returns a line for each sampler and budget, and for each ladder."""
    lines = []
    for name, asked in SAMPLERS.items():
        for budget in budgets:
            sampling = with_budget(asked, budget)
            if sampling is None:
                continue
            line = {"sampler": name, "ladder": "karras", "budget": budget}
            line |= {"evaluations": sampling.evaluations, "steps": sampling.steps}
            lines.append(line | world.score(sampling))
            harness.emit(lines[-1])
    for ladder in LADDERS[1:]:
        for budget in (4, 8, 18):
            sampling = with_budget({"sampler": "dpmpp2m", "ladder": ladder}, budget)
            if sampling is not None:
                line = {"sampler": "dpmpp2m", "ladder": ladder, "budget": budget}
                line |= {"evaluations": sampling.evaluations, "steps": sampling.steps}
                lines.append(line | world.score(sampling))
                harness.emit(lines[-1])
    return lines


def add_times(result: dict[str, Any]) -> None:
    """Adds the times to a result's lines, all of them in one go and under the load it notes."""
    result["load_of_times"] = harness.surroundings()["load"]
    for line in result["lines"]:
        if line["ladder"] == "karras":
            sampling = with_budget(SAMPLERS[line["sampler"]], line["budget"])
            line |= milliseconds(sampling, result["law"]["genes"]) if sampling else {}


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    parts, lines = [], result["lines"]
    main = [line for line in lines if line["ladder"] == "karras"]
    budgets = sorted({line["budget"] for line in main})
    for key, title in QUANTITIES.items():
        found = {(line["sampler"], line["budget"]): line.get(key) for line in main}
        rows = [
            [name, *(_cell(found.get((name, budget)), key) for budget in budgets)]
            for name in SAMPLERS
        ]
        if key == "ms":
            title += f", at load {result['load_of_times']:.1f}"
        parts.append(f"**{title}**, by evaluations\n\n" + markdown(["sampler", *budgets], rows))
    steps = sorted({line["budget"] for line in lines if line["ladder"] != "karras"})
    found = {
        (line["ladder"], line["budget"]): line["energy_distance"]
        for line in lines
        if line["sampler"] == "dpmpp2m"
    }
    rows = [
        [name, *(_cell(found.get((name, n)), "energy_distance") for n in steps)] for name in LADDERS
    ]
    parts.append(
        "**energy distance of dpmpp2m on other ladders**, by evaluations\n\n"
        + markdown(["ladder", *steps], rows)
    )
    floor, error = result["energy_distance_of_true_draws"]
    typical = np.median([line["energy_distance_se"] for line in main if line["budget"] >= 8])
    parts.append(
        f"As many true draws are {floor:+.4f} +- {error:.4f} from the others; the error of the "
        f"energy distances from 8 evaluations up is {typical:.4f} (over spots; deterministic "
        "samplers start from the same noise, so their errors go together)."
    )
    return "\n\n".join(parts)


def _cell(value: float | None, key: str) -> str:
    if value is None:
        return ""
    return {"spread_error": f"{value:+.3f}", "ms": f"{value:.3g}"}.get(key, f"{value:.4f}")


def markdown(head: list[Any], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [[str(cell) for cell in row] for row in [head, *rows]]
    lines.insert(1, ["---"] * len(head))
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def main() -> None:
    """Measures, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer spots, draws and budgets")
    parser.add_argument("--json", type=pathlib.Path, help="default: in benchmarks/results")
    parser.add_argument("--times", action="store_true", help="take only the times again")
    args = parser.parse_args()
    path = args.json or RESULTS / ("samplers_quick.json" if args.quick else "samplers.json")
    if args.times:
        result = json.loads(path.read_text())
    else:
        world = World(spots=6, draws=24) if args.quick else World(spots=16, draws=48)
        result = {
            **harness.surroundings(),
            "benchmark": "samplers",
            "law": {"genes": world.genes, "spots": world.spots, "draws": world.draws},
            "levels": LEVELS,
            "energy_distance_of_true_draws": world.distance(world.others),
            "lines": measure(world, QUICK_BUDGETS if args.quick else BUDGETS),
        }
    add_times(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result))
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
