"""Quality against network evaluations, and whether a trained few-step generator moves the frontier.

    uv run python benchmarks/frontier.py --quick                  # minutes, networks hardly trained
    uv run python benchmarks/frontier.py --place law              # half an hour on two cores
    uv run python benchmarks/frontier.py --place her2st --records records/her2st   # an hour

Places. ``her2st``: B4, C2 and C4 train, every choice is made on C3, C5 is the test (records by
`stemjax prepare`, see the README). ``law``: the drawn law of benchmarks/means.py, fresh draws in
training, exact mean and true draws at hand. Three seeds of each network.

Models. ``edm``: the experiment's own. ``ddpm``: the published process at the same size, space and
updates. ``consistency`` and ``meanflow`` (benchmarks/fewstep) start from the edm network of their
seed. ``edm, longer`` is the edm network trained on as long as they are tuned.

Every row is one (model, seed, way): evaluations counted while it runs, time of a spot, scores with
intervals over blocks of spots. Choices are made once, by energy score on C3 with seed 0: which
kind of tuning, its last noise level, and the ladder of the solver that it has to beat. The rule:
a generator enters the package if it beats DPM-Solver++(2M) at equal evaluations on the energy
score, with the edm network and with the one trained longer, the interval over spots and seeds of
the paired difference leaving out 0.

Networks stay in --workdir and rows in --json, so that a run that was stopped goes on. Milliseconds
are of the first seed; --clock takes all of them anew, on a machine that has nothing else to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import harness
import samplers
from fewstep import places, rows, tuning

from stemjax import config, tasks

COLUMNS = {
    "pcc": "PCC", "mse": "MSE", "rvd": "RVD, mean", "rvd_draw": "RVD, one draw", "crps": "CRPS",
    "energy": "energy", "mean_error": "error of the mean",
}  # fmt: skip
DEFAULT = "dpmpp2m 8"
"""The package's draws: 8 steps, 20 draws, 160 evaluations."""
_WITH_INTERVAL = ("pcc", "mse", "energy")


type Ways = dict[str, dict[str, tasks.Sampling]]


def ways_of(run: rows.Run, kinds: Sequence[str]) -> Ways:
    """Returns the ways to draw from each trained denoiser and generator, by model and name.

    Args:
      run: of the place; it makes the choices of ladders that are not made yet.
      kinds: kinds of tuning.
    """
    solver = {f"dpmpp2m {n}, chosen ladder": run.solver(n) for n in rows.FEW}
    found = {"edm": rows.SOLVERS | solver, rows.LONGER: rows.EQUAL | solver}
    for kind in kinds:
        mean = rows.MEAN_TOKEN if kind.startswith("consistency") else {}
        found[kind] = {f"{n} steps": run.generator(kind, n) for n in rows.FEW} | mean
    return found


def measure(run: rows.Run, *, seeds: Sequence[int], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Makes the rows of the edm networks and of the generators; returns who beats whom.

    Args:
      run: of the place.
      seeds: of the networks; the first makes the choices.
      kinds: kinds of tuning to choose among.
    """
    chosen = run.kind(kinds)
    ways = ways_of(run, kinds)
    for seed in seeds:
        for model, mine in ways.items():
            if model not in kinds or model == chosen or seed == seeds[0]:
                run.rows(model, seed, mine)
    resamples = run.place.view("test").ground.resamples
    mine = [line for line in run.lines if line["place"] == run.place.name]
    found = []
    for kind, n, model in itertools.product(kinds, rows.FEW, ("edm", rows.LONGER)):
        for way in (f"dpmpp2m {n}, chosen ladder", f"dpmpp2m {n}", DEFAULT):
            compared = rows.paired(mine, (kind, f"{n} steps"), (model, way), resamples)
            about = {"place": run.place.name, "model": kind, "steps": n}
            found.append(about | {"rival": [model, way]} | compared)
    return found


def measure_published(
    run: rows.Run, *, seeds: Sequence[int], ancestral: int, full: int
) -> list[dict[str, Any]]:
    """Makes the rows of the published process, the dearest one last; returns how the defaults fare.

    Args:
      run: of the place, its rows of ``edm`` made.
      seeds: of the networks.
      ancestral: steps of the published sampler.
      full: how many of the seeds are drawn from with it.

    Returns:
      The energy of the default 20 draws of 8 steps less that of each dearer way.
    """
    published, way = rows.ancestral(ancestral)
    for seed in seeds:
        run.rows("ddpm", seed, rows.PUBLISHED)
    for seed in seeds[:full]:
        run.rows("ddpm", seed, {published: way})
    resamples = run.place.view("test").ground.resamples
    mine = [line for line in run.lines if line["place"] == run.place.name]
    rivals = ("ddpm", published), ("ddpm", "ddim 50"), ("edm", "heun 18"), ("edm", "ddim 50")
    return [
        {"place": run.place.name, "rival": list(rival)}
        | rows.paired(mine, ("edm", DEFAULT), rival, resamples)
        for rival in rivals
    ]


def verdict(compared: Sequence[Mapping[str, Any]], place: str, kind: str) -> str:
    """Returns in words whether a kind of generator is worth shipping, and why."""
    mine = [line for line in compared if (line["place"], line["model"]) == (place, kind)]
    if not mine:
        return f"**{place}**, {kind}: nothing was compared."
    said = []
    for n in rows.FEW:
        equal = [line for line in mine if line["steps"] == n and line["rival"][1] != DEFAULT]
        wins = all(line["verdict"] == "better" for line in equal)
        said.append((n, wins))
    won = [str(n) for n, wins in said if wins]
    lost = [str(n) for n, wins in said if not wins]
    parts = []
    if won:
        parts.append(f"at {', '.join(won)} evaluations it beats DPM-Solver++(2M) of as many")
    if lost:
        rest = "" if won else " beat DPM-Solver++(2M) of as many evaluations"
        parts.append(f"at {', '.join(lost)} it does not{rest}")
    behind = {
        line["steps"] for line in mine if line["rival"][1] == DEFAULT and line["verdict"] == "worse"
    }
    level = [str(n) for n in rows.FEW if n not in behind]
    worth = (
        f"with {', '.join(level)} it is not worse than DPM-Solver++(2M) of 8"
        if level
        else "with any of them it is worse than DPM-Solver++(2M) of 8"
    )
    ship = "It meets the rule" if won else "It does not meet the rule"
    return f"**{place}**, {kind}: {'; '.join(parts)}; {worth}. {ship} for shipping here."


def tables(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    parts = []
    for place in dict.fromkeys(line["place"] for line in result["lines"]):
        energy = places.ENERGY[place]
        mine = [line for line in result["lines"] if line["place"] == place]
        head = ["model", "way", "seeds", "evaluations", "ms a spot"]
        head += [energy if key == "energy" else title for key, title in COLUMNS.items()]
        keys = dict.fromkeys((line["model"], line["way"]) for line in mine)
        cells = [
            _cells([line for line in mine if (line["model"], line["way"]) == key]) for key in keys
        ]
        parts.append(f"**{place}**\n\n" + samplers.markdown(head, cells))
        chosen = result["chosen"].get(place, {})
        choices = [[what, _named(found["chosen"]), f"{min(found['energy'].values()):.4f}"]
                   for what, found in chosen.items()]  # fmt: skip
        parts.append(samplers.markdown(["choice", "chosen", energy], choices))
        compared = [line for line in result["compared"] if line["place"] == place]
        lines = [
            [f"{line['model']}, {line['steps']} steps", " ".join(line["rival"]),
             f"{line['difference']:+.4f} {_bounds(line['interval'], '+.4f')}", line["verdict"]]
            for line in compared if line["model"] == chosen["kind of tuning"]["chosen"]
        ]  # fmt: skip
        head = ["generator", "less", f"{energy} [95 %]", "verdict"]
        parts.append(samplers.markdown(head, lines))
        kinds = dict.fromkeys(line["model"] for line in compared)
        parts.append("\n\n".join(verdict(compared, place, kind) for kind in kinds))
        dearer = [
            [" ".join(line["rival"]), str(line["seeds"]),
             f"{line['difference']:+.4f} {_bounds(line['interval'], '+.4f')}", line["verdict"]]
            for line in result["defaults"] if line["place"] == place
        ]  # fmt: skip
        head = [f"edm {DEFAULT} less", "seeds", f"{energy} [95 %]", "verdict"]
        parts.append(samplers.markdown(head, dearer))
    parts.append(
        "Mean ± standard deviation over seeds; [95 %] intervals over blocks of spots, their ends "
        "averaged over seeds; those of differences over blocks and seeds."
    )
    return "\n\n".join(parts)


def _cells(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the cells of one model and way from its seeds' rows."""
    first = lines[0]
    times = [line["ms_a_spot"] for line in lines if line["ms_a_spot"] is not None]
    cells = [first["model"], first["way"], str(len(lines)), str(first["evaluations"])]
    cells.append(f"{times[0]:.3g}" if times else "")
    for key in COLUMNS:
        scores = [line["scores"][key] for line in lines if key in line["scores"]]
        if not scores:
            cells.append("")
            continue
        mean, sd = tuning.spread([score["value"] for score in scores])
        cell = f"{mean:.3f} ± {sd:.3f}" if len(scores) > 1 else f"{mean:.3f}"
        if key in _WITH_INTERVAL and all(score["interval"] for score in scores):
            ends = [tuning.spread([score["interval"][i] for score in scores])[0] for i in (0, 1)]
            cell += " " + _bounds(ends, ".3f")
        cells.append(cell)
    return cells


def _bounds(interval: Sequence[float], form: str) -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def _named(choice: str) -> str:
    """Returns a choice as a table prints it: a ladder without JSON's marks."""
    if not choice.startswith("{"):
        return choice
    return ", ".join(f"{key} {value:g}" for key, value in json.loads(choice).items())


def prepare(
    args: argparse.Namespace, experiment: config.Experiment
) -> dict[str, tuple[places.Place, config.Experiment, int]]:
    """Returns each place asked for, with its experiment and the updates of a tuning."""
    found: dict[str, tuple[places.Place, config.Experiment, int]] = {}
    quick = args.quick
    if quick:
        model = dataclasses.replace(experiment.model, width=16, depth=1, heads=2)
        experiment = dataclasses.replace(experiment, model=model)
    train = experiment.train
    if "her2st" in args.place:
        steps = 6 if quick else train.steps
        here = dataclasses.replace(
            experiment,
            optim=dataclasses.replace(experiment.optim, warmup=min(experiment.optim.warmup, steps)),
            train=dataclasses.replace(
                train, steps=steps, save_every=min(train.save_every, steps),
                log_every=min(train.log_every, steps),
            ),
        )  # fmt: skip
        sections = places.Her2st(args.records, args.workdir, here, 40 if quick else None)
        found["her2st"] = sections, here, 8 if quick else args.tuning
    if "law" in args.place:
        steps = 40 if quick else 1000
        optim = dataclasses.replace(
            experiment.optim, learning_rate=1e-3, schedule="cosine", ema=0.998
        )
        here = dataclasses.replace(
            experiment,
            optim=optim,
            train=dataclasses.replace(train, steps=steps, batch=256, accumulate=8),
        )
        law = places.Law(args.workdir, here, spots=8 if quick else 64)
        found["law"] = law, here, 16 if quick else 1000
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, measures what is missing, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=str(harness.ROOT / harness.SMALL), metavar="FILE",
                        help="experiment, with --config.KEY=VALUE as in stemjax train")  # fmt: skip
    parser.add_argument("--place", action="append", choices=("her2st", "law"), help="default: both")
    parser.add_argument("--records", type=pathlib.Path, default=pathlib.Path("records/her2st"))
    parser.add_argument("--workdir", type=pathlib.Path, help="where networks are kept")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each model")
    parser.add_argument("--tuning", type=int, default=400, help="updates of a tuning on HER2ST")
    parser.add_argument("--ancestral", type=int, default=1,
                        help="seeds that the published 20 x 1000 is drawn with")  # fmt: skip
    parser.add_argument(
        "--clock", action="store_true", help="also time every row again, one after another"
    )
    parser.add_argument("--quick", action="store_true", help="minutes, networks hardly trained")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="go on with it if there")
    args, experiment = harness.parse(parser, argv)
    name = "frontier_quick" if args.quick else "frontier"
    args.place = args.place or ["her2st", "law"]
    args.workdir = args.workdir or harness.ROOT / "runs" / name
    path = args.json or harness.RESULTS / f"{name}.json"
    about = harness.surroundings()
    kept = json.loads(path.read_text()) if path.exists() else {}
    lines, chosen = kept.get("lines", []), kept.get("chosen", {})
    compared, defaults = kept.get("compared", []), kept.get("defaults", [])

    def keep() -> None:
        facts = {"chosen": chosen, "compared": compared, "defaults": defaults}
        facts |= {"tuning_updates": args.tuning}
        harness.save(path, harness.result("frontier", about, experiment, lines, **facts))

    for place_name, (place, here, updates) in prepare(args, experiment).items():
        run = rows.Run(
            place, lines, chosen.setdefault(place_name, {}), keep,
            workdir=args.workdir, experiment=here, tuning_updates=updates,
        )  # fmt: skip
        seeds = range(1 if args.quick else args.seeds)
        kinds = list(rows.KINDS)[: 1 if args.quick else None]
        found = measure(run, seeds=seeds, kinds=kinds)
        compared[:] = [line for line in compared if line["place"] != place_name] + found
        keep()
        steps, full = (50, 1) if args.quick else (1000, args.ancestral)
        found = measure_published(run, seeds=seeds, ancestral=steps, full=full)
        defaults[:] = [line for line in defaults if line["place"] != place_name] + found
        keep()
        if args.clock:
            published = rows.PUBLISHED | dict([rows.ancestral(steps)])
            for model, ways in (ways_of(run, kinds) | {"ddpm": published}).items():
                run.clock(model, ways)
    print(tables(json.loads(path.read_text())))
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
