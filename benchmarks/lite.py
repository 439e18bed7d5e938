"""The lite denoisers beside the gene tokens: quality and cost at equal data and updates.

    uv run python benchmarks/lite.py --quick --json OUT       # two minutes, networks hardly trained
    uv run python benchmarks/lite.py --json OUT               # 40 minutes on two cores
    uv run python benchmarks/lite.py --place law              # one place of the three

Places. ``her2st``: B4, C2 and C4 train, every choice is made on C3 with seed 0, C5 is the test.
``law``: the drawn law of benchmarks/means.py with 200 genes. ``many``: the same with 1,000 genes,
fewer updates and one seed, for time and memory. All arms of a place see the same rows in the same
order for as many updates.

Arms. ``token``: the experiment of --config. ``vector`` and ``latents``: the two lite networks at
less than 1/50 of its FLOPs, learning rate and condition noise chosen on C3 by the energy score (the
token network's were chosen there too, for docs/results.md). ``wide``: the network of
configs/lite.py, which costs more than the small token network; on her2st, one seed. On the law,
where every row is new, ``vector`` is also trained on 8 times as many updates, in less than the time
of the token network's.

The line to reach: FLOPs of an evaluation at most 1/50 of the token network's, PCC of the mean token
at most .01 lower, energy score of 20 draws at most 2 % higher. Intervals are over spatial blocks,
the same blocks for both arms; on the law a spot is a block.

Networks and rows stay in --workdir, so that a run that was stopped goes on. With --workdir of
benchmarks/frontier.py the token networks on HER2ST are taken from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import samplers
from fewstep import places
from lite_verdict import SCORES, compare, summary, tables

from stemjax import config, configfile, tasks
from stemjax.data import integrity
from stemjax.eval import metrics

MEAN, DRAWS = tasks.Sampling(mode="mean"), tasks.Sampling(mode="draws")
PAIR = tasks.Sampling(mode="pair")
PLACES = ("her2st", "law", "many")
RATES, CONDITION_NOISE = (5e-4, 1e-3, 3e-3), (0.5, 1.0)
SIZES: dict[str, dict[str, Any]] = {
    "vector": {"width": 128, "depth": 3, "mlp_ratio": 2},
    "latents": {"width": 32, "depth": 3, "heads": 2, "latents": 8, "mlp_ratio": 4},
}
"""Below 1/50 of the token network of `harness.SMALL` at 200 genes and 236 features.

C3 chooses each one's learning rate and condition noise, which is what holds a small cohort's
network back from its training spots; the law's objective is its own and has no condition noise.
"""
LITE, PUBLISHED = "configs/lite.py", "configs/stem_published.py"
BINS = {"8 um bins of one area": 700_000, "2 um bins": 10_000_000}
# Measured on one H200, and the share of it that the plan counts on; see docs/lite.md.
H200_GEMM, H200_SHARE = 790e12, 0.4
LONGER = 8
"""Times the updates of an arm of the law, still a fraction of the token network's training."""
type Experiments = dict[str, config.Experiment]


class Law(places.Law):
    """The drawn law with any number of genes, judged by the energy score against true draws."""

    def __init__(
        self,
        name: str,
        workdir: pathlib.Path,
        experiment: config.Experiment,
        genes: int,
        spots: int,
    ) -> None:
        self.name = f"{name}_{genes}"
        self.workdir, self.experiment = workdir / self.name, experiment
        self.world = samplers.World(spots=spots, draws=2, genes=genes)

    def view(self, role: str) -> places.View:
        """As of the frontier's law, but the score and not the distance: its 2 % mean something."""
        true = np.asarray(self.world.true[300:308], np.float64)

        def energy(draws: np.ndarray, antithetic: bool) -> np.ndarray:
            each = [metrics.energy_score_per_spot(draws, t, antithetic=antithetic) for t in true]
            return np.mean(each, axis=0)

        return dataclasses.replace(super().view(role), energy=energy)


def changed(
    experiment: config.Experiment, model: Mapping[str, Any], rate: float, condition_noise: float
) -> config.Experiment:
    """Returns the experiment with a lite network, its learning rate and its condition noise."""
    return dataclasses.replace(
        experiment,
        model=config.Model(kind="lite", dtype=experiment.model.dtype, **model),
        diffusion=dataclasses.replace(experiment.diffusion, condition_noise=condition_noise),
        optim=dataclasses.replace(experiment.optim, learning_rate=rate),
        # Parts of a batch spare a CPU's caches what tokens write there; a profile fits anyway.
        train=dataclasses.replace(experiment.train, accumulate=1),
    )


def candidates(experiment: config.Experiment, family: str) -> Experiments:
    """Returns name -> experiment of what is chosen from."""
    return {
        f"rate {rate:g}, condition noise {noise:g}": changed(experiment, SIZES[family], rate, noise)
        for rate in RATES
        for noise in CONDITION_NOISE
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Where networks come from and where rows are kept.

    Attributes:
      workdir: networks, rows and choices.
      records: records of HER2ST.
      genes: place -> genes of the law there.
      spots: judged spots of the law.
    """

    workdir: pathlib.Path
    records: pathlib.Path
    genes: Mapping[str, int]
    spots: int

    def place(self, name: str, arm: str, experiment: config.Experiment) -> places.Place:
        """Returns a place whose network is that of an experiment, kept under its own name."""
        folder = self.workdir / f"{arm}_{config.digest(experiment)}"
        if name == "her2st":
            # Where benchmarks/frontier.py keeps the same network.
            folder = self.workdir if arm == "token" else folder
            return places.Her2st(self.records, folder, experiment)
        return Law(name, folder, experiment, self.genes[name], self.spots)

    def row(
        self, name: str, arm: str, seed: int, experiment: config.Experiment, role: str = "test"
    ) -> dict[str, list[float]]:
        """Returns the scores of a trained network, each on all spots and then on each resample.

        Keys are those of `SCORES`; kept in the workdir under everything that they depend on.
        """
        about = f"{name}_{self.genes.get(name, 0)}_{self.spots}_{role}_{arm}_{seed}"
        path = self.workdir / "rows" / f"{about}_{config.digest(experiment)}.json"
        if path.exists():
            return json.loads(path.read_text())
        place = self.place(name, arm, experiment)
        net = place.network("edm", seed)
        view, found = place.view(role), {}
        for way, sampling in (("mean", MEAN), ("draws", DRAWS)):
            got = places.draw(net, view, sampling, seed=seed)
            reference = view.mean if view.mean is not None else got.mean(axis=0)
            scores, _ = places.judge(view, got, sampling, reference)
            found |= {f"{way}.{key}": np.round(v, 7).tolist() for key, v in scores.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        integrity.write_text(path, json.dumps(found))
        harness.emit({"place": name, "arm": arm, "role": role, "seed": seed,
                      **{key: found[key][0] for key in SCORES}})  # fmt: skip
        return found

    def choose(self, experiment: config.Experiment, family: str) -> dict[str, Any]:
        """Returns the candidate of a family with the least energy score on C3, and all of them."""
        energy = {
            name: self.row("her2st", family, 0, made, role="choice")["draws.energy"][0]
            for name, made in candidates(experiment, family).items()
        }
        return {"family": family, "chosen": min(energy, key=lambda n: energy[n]), "energy": energy}


def clock(
    nets: Mapping[str, places.Net], sampling: tasks.Sampling, spots: Mapping[str, int],
    condition: int, rounds: int,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Returns milliseconds a spot of each network, called in turn, with what a call reserves.

    Args:
      nets: the networks.
      sampling: how they are sampled.
      spots: spots of a call, by network.
      condition: width of the embeddings, which are random: time does not depend on them.
      rounds: timed calls of each.
    """

    def arguments(name: str) -> tuple[Any, ...]:
        n = spots[name]
        cond = np.random.default_rng(0).standard_normal((n, condition), np.float32)
        return nets[name].params, jnp.asarray(cond), jax.random.split(jax.random.key(0), n)

    def program(net: places.Net) -> Any:
        return lambda params, cond, keys: net.task.predict(params, cond, keys, sampling=sampling)

    given = {name: arguments(name) for name in nets}
    built = {name: harness.build(program(net), given[name]) for name, net in nets.items()}
    times: dict[str, list[float]] = {name: [] for name in nets}
    for turn in range(rounds):
        for name in nets:
            timing = harness.time_program(
                built[name], lambda i, name=name: given[name], repeats=1, warm_up=int(turn == 0)
            )
            times[name].append(1e3 * timing.median / spots[name])
    found = {}
    for name, each in times.items():
        memory = built[name].memory
        found[name] = {
            "ms": float(np.median(each)),
            "quartiles": [float(q) for q in np.quantile(each, [0.25, 0.75])],
            "spots": spots[name],
            "temp_bytes": None if memory is None else memory.temp,
        }
    return found


def measure_place(
    bench: Bench, name: str, arms: Experiments, *, seeds: int, rounds: int
) -> list[dict[str, Any]]:
    """Returns a line for each arm of a place."""
    count = {arm: 1 if arm == "wide" else seeds for arm in arms}
    rows = {
        arm: [bench.row(name, arm, seed, made) for seed in range(count[arm])]
        for arm, made in arms.items()
    }
    nets = {arm: bench.place(name, arm, made).network("edm", 0) for arm, made in arms.items()}
    params = nets["token"].params
    condition, genes = params["condition"]["fc1"]["kernel"].shape[0], nets["token"].task.genes
    few = 2 if genes > 500 else 16
    times = {
        "mean": clock(nets, MEAN, dict.fromkeys(nets, 64), condition, rounds),
        "draws": clock(nets, DRAWS, dict.fromkeys(nets, few), condition, rounds),
    }
    flops = {
        arm: config.flops_per_evaluation(made, genes=genes, condition=condition)
        for arm, made in arms.items()
    }
    lines = []
    for arm, made in arms.items():
        ratio = flops["token"] / flops[arm]
        line = {"place": name, "arm": arm, "model": dataclasses.asdict(made.model)}
        line |= {"genes": genes, "condition": condition, "seeds": count[arm]}
        line |= {"updates": made.train.steps, "batch": made.train.batch}
        line |= {"learning_rate": made.optim.learning_rate, "flops": flops[arm], "ratio": ratio}
        line |= {"embedding_flops": 2 * condition * (condition + made.model.width)}
        line |= {"scores": summary(rows[arm]), "time": {k: v[arm] for k, v in times.items()}}
        line["target"] = None if arm == "token" else compare(rows[arm], rows["token"], ratio)
        lines.append(line)
        harness.emit(line)
    return lines


def measure_scale(*, genes: int, condition: int, quick: bool) -> list[dict[str, Any]]:
    """Returns what 700,000 and 10,000,000 bins take with configs/lite.py and the published size.

    Hours here are bins times the measured time of a spot; seconds of an H200 are arithmetic:
    FLOPs over a named share of its measured matrix product rate, and nothing else.
    """
    nets, flops = {}, {}
    for name, path in (("lite", LITE), ("token", PUBLISHED)):
        experiment = config.resolve(configfile.load(str(harness.ROOT / path), []))
        task = config.make_task(experiment, genes=genes, condition=condition)
        nets[name] = places.Net(task=task, params=harness.awake(task.init(jax.random.key(0))))
        flops[name] = config.flops_per_evaluation(experiment, genes=genes, condition=condition)
    lines = []
    for sampling in (MEAN,) if quick else (MEAN, PAIR):
        # A call of the tokens that fits the caches; a profile needs rows to fill a product.
        spots = {"lite": 256, "token": 8 if sampling is MEAN else 2}
        times = clock(nets, sampling, spots, condition, 1 if quick else 5)
        for name, net in nets.items():
            work = net.task.evaluations(sampling) * flops[name]
            line = {"network": name, "mode": sampling.mode, "flops_a_spot": work, **times[name]}
            line["bins"] = {
                what: {
                    "bins": bins,
                    "hours_here": bins * times[name]["ms"] / 3.6e6,
                    "h200_s": bins * work / (H200_SHARE * H200_GEMM),
                }
                for what, bins in BINS.items()
            }
            lines.append(line)
            harness.emit(line)
    return lines


def prepare(
    args: argparse.Namespace, experiment: config.Experiment
) -> tuple[Bench, dict[str, config.Experiment]]:
    """Returns the bench, and the token network's experiment at each place."""
    quick = args.quick
    bench = Bench(
        workdir=args.workdir,
        records=args.records,
        genes={"law": 24, "many": 48} if quick else {"law": 200, "many": 1000},
        spots=4 if quick else 64,
    )
    updates = dict.fromkeys(PLACES, 12 if quick else experiment.train.steps)
    if not quick:
        updates["many"] = args.many_updates
    found = {}
    for name in args.place:
        steps, optim, train = updates[name], experiment.optim, experiment.train
        found[name] = dataclasses.replace(
            experiment,
            optim=dataclasses.replace(optim, warmup=min(optim.warmup, steps // 3)),
            train=dataclasses.replace(
                train, steps=steps, save_every=min(train.save_every, steps),
                log_every=min(train.log_every, steps),
            ),
        )  # fmt: skip
    return bench, found


def arms_of(
    name: str, experiment: config.Experiment, chosen: Mapping[str, Mapping[str, Any]]
) -> Experiments:
    """Returns the experiments of a place; a family that was not chosen has its first candidate."""
    arms = {"token": experiment}
    for family in SIZES:
        offered = candidates(experiment, family)
        arms[family] = offered[
            chosen[family]["chosen"] if family in chosen else next(iter(offered))
        ]
    if name == "her2st":
        wide = config.resolve(configfile.load(str(harness.ROOT / LITE), []))
        keys = ("width", "depth", "mlp_ratio", "latents")
        model = {key: getattr(wide.model, key) for key in keys}
        noise = wide.diffusion.condition_noise
        arms["wide"] = changed(experiment, model, wide.optim.learning_rate, noise)
    if name == "law":
        vector = arms["vector"]
        train = dataclasses.replace(vector.train, steps=LONGER * vector.train.steps)
        arms[f"vector, {LONGER} times the updates"] = dataclasses.replace(vector, train=train)
    return arms


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, measures, prints the tables, writes the JSON after each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_arguments(parser)
    parser.add_argument("--place", action="append", choices=PLACES, help="default: all")
    parser.add_argument("--records", type=pathlib.Path, default=pathlib.Path("records/her2st"))
    parser.add_argument("--workdir", type=pathlib.Path, help="where networks and rows are kept")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each arm")
    parser.add_argument("--many-updates", type=int, default=300, help="updates at 1,000 genes")
    args, experiment = harness.parse(parser, argv)
    name = "lite_quick" if args.quick else "lite"
    args.place = args.place or (["law"] if args.quick else list(PLACES))
    args.workdir = args.workdir or harness.ROOT / "runs" / name
    path, about = args.json or harness.RESULTS / f"{name}.json", harness.surroundings()
    kept = json.loads(path.read_text()) if path.exists() else {}
    lines = [line for line in kept.get("lines", []) if line["place"] not in args.place]
    chosen, scale = kept.get("chosen", {}), kept.get("scale", [])
    bench, made = prepare(args, experiment)

    def keep() -> dict[str, Any]:
        found = harness.result("lite", about, experiment, lines, chosen=chosen, scale=scale)
        harness.save(path, found)
        return found

    if not args.quick:
        # Networks that the choice trained are those of seed 0 later on.
        given = prepare(argparse.Namespace(**{**vars(args), "place": ["her2st"]}), experiment)[1]
        for family in SIZES:
            chosen[family] = bench.choose(given["her2st"], family)
            keep()
    for place, given in made.items():
        seeds = 1 if args.quick or place == "many" else args.seeds
        lines += measure_place(
            bench, place, arms_of(place, given, chosen), seeds=seeds, rounds=1 if args.quick else 5
        )
        keep()
    scale[:] = measure_scale(genes=args.genes, condition=args.condition, quick=args.quick)
    print(tables(keep()))
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
