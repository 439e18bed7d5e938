"""The rows of the frontier: networks, choices, ways to draw, scores, and who beats whom."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from fewstep import consistency, meanflow, places, tuning
from stemjax import config, tasks
from stemjax.eval import metrics
from stemjax.models import stem

DRAWS = 20
FEW = (1, 2, 4)
"""Evaluations a draw of the trained generators."""


def drawn(**options: Any) -> tasks.Sampling:
    """Returns 20 draws, in antithetic pairs unless asked otherwise."""
    return tasks.Sampling(mode="draws", n_draws=DRAWS, **options)


MEAN_TOKEN = {"mean token": tasks.Sampling(mode="mean")}
SOLVERS: dict[str, tasks.Sampling] = {
    **MEAN_TOKEN,
    "pair, dpmpp2m 4": tasks.Sampling(mode="pair", steps=4),
    "pair, dpmpp2m 8": tasks.Sampling(mode="pair", steps=8),
    **{f"dpmpp2m {n}": drawn(steps=n) for n in (1, 2, 4, 6, 8, 12)},
    "heun 18": drawn(sampler="heun", steps=18),
    "ddim 50": drawn(sampler="ddim", steps=50),
}
EQUAL = MEAN_TOKEN | {f"dpmpp2m {n}": SOLVERS[f"dpmpp2m {n}"] for n in (*FEW, 8)}
PUBLISHED: dict[str, tasks.Sampling] = {
    "pair, dpmpp2m 8": SOLVERS["pair, dpmpp2m 8"],
    "dpmpp2m 8": SOLVERS["dpmpp2m 8"],
    "ddim 50": drawn(sampler="ddim", steps=50, ladder="ddpm", antithetic=False),
}
REFERENCE, REFERENCE_SEED = drawn(steps=18), 1000
KINDS: dict[str, tuple[str, consistency.Path]] = {
    "consistency, data": ("consistency", "data"),
    "consistency, teacher": ("consistency", "teacher"),
    "meanflow, teacher": ("meanflow", "teacher"),
}
LONGER = "edm, longer"
"""The denoiser trained on as long as a generator is tuned: what the updates alone are worth."""
# Ladders that are chosen among: of a generator, whose last level is where it is noised to last, and
# of the solver that it has to beat.
GENERATORS = tuple(
    {"sigma_min": low, "sigma_max": high} for low in (0.25, 0.5, 1.0, 2.0) for high in (20.0, 80.0)
)
SOLVER = tuple(
    {"sigma_min": low, "sigma_max": high}
    for low in (0.01, 0.1, 0.3, 1.0)
    for high in (5.0, 20.0, 80.0)
)


def ancestral(steps: int) -> tuple[str, tasks.Sampling]:
    """Returns the published way to draw, of so many steps, with its name."""
    return f"ancestral {steps}", drawn(sampler="ddpm", steps=steps, antithetic=False)


class Run:
    """The rows of one place: made once, kept in the result.

    Args:
      place: where.
      lines: rows that are there already, and where new ones go.
      chosen: choices that were made already, and where new ones go.
      keep: called after each row and choice.
      tuning_updates: updates of each tuning.
    """

    def __init__(
        self,
        place: places.Place,
        lines: list[dict[str, Any]],
        chosen: dict[str, Any],
        keep: Callable[[], None],
        *,
        workdir: pathlib.Path,
        experiment: config.Experiment,
        tuning_updates: int,
    ) -> None:
        self.place, self.lines, self.chosen, self.keep = place, lines, chosen, keep
        self.workdir, self.experiment = workdir / place.name, experiment
        self.tuning_updates = tuning_updates
        self._networks: dict[tuple[str, int], places.Net] = {}

    def network(self, model: str, seed: int) -> places.Net:
        """Returns the network of a model's name; the same object each time, as its programs are."""
        if (model, seed) not in self._networks:
            make = self._tuned if model in KINDS or model == LONGER else self.place.network
            self._networks[model, seed] = make(model, seed)
        return self._networks[model, seed]

    def _tuned(self, kind: str, seed: int) -> places.Net:
        """Returns what was tuned from a seed's edm network, tuning it unless it is kept already."""
        base = self.network("edm", seed)
        task = trained_on(base) if kind == LONGER else make_generator(kind, base, self.experiment)
        path = self.workdir / f"{kind.replace(', ', '_')}_{seed}.npz"
        params = tuning.load(path)
        if params is None:
            optim, train = self.experiment.optim, self.experiment.train
            params = tuning.train(
                task,
                self.place.batches(1000 + seed),
                updates=self.tuning_updates,
                optim=dataclasses.replace(optim, learning_rate=0.5 * optim.learning_rate),
                accumulate=train.accumulate,
                seed=1000 + seed,
            )
            tuning.save(path, params)
        return places.Net(task=task, params=params)

    def reference(self, view: places.View, seed: int) -> np.ndarray:
        """Returns the mean that others are compared with: exact, or 10 pairs of 18 steps of edm."""
        if view.mean is not None:
            return view.mean
        net = self.network("edm", seed)
        found = places.draw(net, view, REFERENCE, seed=REFERENCE_SEED)
        return found.mean(axis=0, dtype=np.float64)

    def rows(self, model: str, seed: int, ways: Mapping[str, tasks.Sampling]) -> None:
        """Makes the rows of a model and seed that are not there yet."""
        there = {(line["place"], line["model"], line["seed"], line["way"]) for line in self.lines}
        missing = [w for w in ways if (self.place.name, model, seed, w) not in there]
        if not missing:
            return
        net = self.network(model, seed)
        view = self.place.view("test")
        reference = self.reference(view, seed)
        for way in missing:
            sampling = ways[way]
            got = places.draw(net, view, sampling, seed=seed)
            scores, energy = places.judge(view, got, sampling, reference)
            line: dict[str, Any] = {"place": self.place.name, "model": model, "seed": seed}
            line |= {"way": way, "mode": sampling.mode, "draws": sampling.draws}
            line |= {"sampler": sampling.sampler, "steps": sampling.steps}
            line["evaluations"] = self.counted(net, view, model, way, sampling)
            line["ms_a_spot"] = milliseconds(net, view, sampling) if seed == 0 else None
            line["scores"] = {
                key: {"value": float(v[0]), "interval": metrics.interval(v[1:])}
                for key, v in scores.items()
            }
            line["energy_of_spots"] = None if energy is None else np.round(energy, 5).tolist()
            self.lines.append(line)
            harness.emit({**line, "energy_of_spots": None})
            self.keep()

    def clock(self, model: str, ways: Mapping[str, tasks.Sampling]) -> None:
        """Times the first seed's rows of a model again, which were made beside other work."""
        for line in self.lines:
            about = line["place"], line["model"], line["seed"]
            if about == (self.place.name, model, 0) and line["way"] in ways:
                net, view = self.network(model, 0), self.place.view("test")
                line["ms_a_spot"] = milliseconds(net, view, ways[line["way"]])
                self.keep()

    def counted(
        self, net: places.Net, view: places.View, model: str, way: str, sampling: tasks.Sampling
    ) -> int:
        """Returns the evaluations of a spot: counted for the first seed, and equal for all."""
        for line in self.lines:
            if (line["place"], line["model"], line["way"]) == (self.place.name, model, way):
                return line["evaluations"]
        return tuning.evaluations(net.task, net.params, view.cond[:1], sampling)

    def energy_on_choice(self, net: places.Net, sampling: tasks.Sampling) -> float:
        """Returns the mean energy of 20 draws on the spots for choices."""
        view = self.place.view("choice")
        got = places.draw(net, view, sampling, seed=0)
        energy = places.judge(view, got, sampling, got.mean(axis=0))[1]
        assert energy is not None
        return float(energy.mean())

    def choose(self, what: str, offered: Mapping[str, Callable[[], float]]) -> str:
        """Returns the name with the least energy; the table of all of them is kept."""
        if what not in self.chosen:
            found = {name: score() for name, score in offered.items()}
            best = min(found, key=lambda name: found[name])
            self.chosen[what] = {"chosen": best, "energy": found}
            harness.emit({"place": self.place.name, "choice": what, **self.chosen[what]})
            self.keep()
        return self.chosen[what]["chosen"]

    def on_best_ladder(
        self, what: str, net: places.Net, steps: int, offered: Sequence[Mapping[str, float]]
    ) -> tasks.Sampling:
        """Returns 20 draws of so many steps on the ladder that is best for them."""
        if steps == 1:  # from sigma_max to 0 at once: there is no sigma_min
            offered = [
                ladder for ladder in offered if ladder["sigma_min"] == offered[0]["sigma_min"]
            ]
        ladders = {json.dumps(ladder): ladder for ladder in offered}
        options = {"sampler": "consistency"} if what.startswith("consistency") else {}

        def score(ladder: Mapping[str, float]) -> Callable[[], float]:
            return lambda: self.energy_on_choice(net, drawn(steps=steps, **ladder, **options))

        best = self.choose(
            f"{what} {steps}, ladder", {name: score(ladder) for name, ladder in ladders.items()}
        )
        return drawn(steps=steps, **json.loads(best), **options)

    def solver(self, steps: int) -> tasks.Sampling:
        """Returns DPM-Solver++(2M) of so many steps on its best ladder."""
        return self.on_best_ladder("dpmpp2m", self.network("edm", 0), steps, SOLVER)

    def generator(self, kind: str, steps: int) -> tasks.Sampling:
        """Returns a generator's sampling of so many steps on its best ladder."""
        return self.on_best_ladder(kind, self.network(kind, 0), steps, GENERATORS)

    def kind(self, offered: Sequence[str]) -> str:
        """Returns the kind of tuning with the least energy, averaged over the numbers of steps."""

        def score(kind: str) -> Callable[[], float]:
            def energy() -> float:
                net = self.network(kind, 0)
                each = [self.energy_on_choice(net, self.generator(kind, n)) for n in FEW]
                return float(np.mean(each))

            return energy

        return self.choose("kind of tuning", {kind: score(kind) for kind in offered})


def trained_on(base: places.Net) -> Any:
    """Returns the task of a trained denoiser, started from its weights."""
    start = dataclasses.replace(
        base.task.network, init=lambda key: jax.tree.map(jnp.copy, base.params)
    )
    return dataclasses.replace(base.task, network=start)


def make_generator(kind: str, base: places.Net, experiment: config.Experiment) -> Any:
    """Returns the task of one of `KINDS` for a trained denoiser."""
    name, path = KINDS[kind]
    if name == "consistency":
        return consistency.Tuning(edm=base.task, teacher=base.params, path=path)
    condition = base.params["condition"]["fc1"]["kernel"].shape[0]
    asked = dataclasses.asdict(experiment.model)
    known = {field.name for field in dataclasses.fields(stem.StemConfig)}
    shape = stem.StemConfig(
        genes=base.task.genes,
        condition=condition,
        **{name: value for name, value in asked.items() if name in known},
    )
    return meanflow.MeanFlowTask(
        network=meanflow.make_two_time(shape), teacher=base.task, start=base.params, path=path
    )


def milliseconds(net: places.Net, view: places.View, sampling: tasks.Sampling) -> float:
    """Returns the time of a spot, of as many at a time as the predictor takes."""
    predict = tasks.make_predictor(net.task, sampling)
    spots = min(predict.sizes[0], len(view.cond))
    cond, keys = view.cond[:spots], view.keys(1)[:spots]
    long = sampling.draws * sampling.steps > 2000
    timing = harness.time_calls(
        lambda: predict(net.params, cond, keys),
        repeats=3 if long else 10,
        warm_up=1 if long else 3,
    )
    return 1e3 * timing.median / spots


def paired(
    lines: Sequence[Mapping[str, Any]],
    ours: tuple[str, str],
    theirs: tuple[str, str],
    resamples: metrics.Resamples,
) -> dict[str, Any]:
    """Returns the difference of two rows' energies, ours minus theirs, over spots and seeds.

    Every resample draws blocks of spots and seeds, the same for both rows.

    Args:
      lines: rows of one place.
      ours: model and way of the one.
      theirs: model and way of the other.
      resamples: of blocks of the spots.
    """
    found = {
        (line["model"], line["way"], line["seed"]): np.asarray(line["energy_of_spots"])
        for line in lines
        if line["energy_of_spots"] is not None
    }
    seeds = sorted(s for model, way, s in found if (model, way) == ours and (*theirs, s) in found)
    apart = np.stack([found[*ours, s] - found[*theirs, s] for s in seeds], axis=1)
    each = resamples.mean(apart)  # [1+r seeds]
    rng = np.random.default_rng(0)
    again = rng.integers(len(seeds), size=(len(each) - 1, len(seeds)))
    resampled = np.take_along_axis(each[1:], again, axis=1).mean(axis=1)
    interval = metrics.interval(resampled)
    assert interval is not None
    verdict = "not distinguishable"
    if interval[1] < 0:
        verdict = "better"
    elif interval[0] > 0:
        verdict = "worse"
    return {"difference": float(each[0].mean()), "interval": interval, "verdict": verdict,
            "seeds": len(seeds)}  # fmt: skip
