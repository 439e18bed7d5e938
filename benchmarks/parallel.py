"""Several devices: jit on a mesh, as this package does it, beside `jax.shard_map` and `jax.pmap`.

    uv run python benchmarks/parallel.py --quick
    uv run python benchmarks/parallel.py --config configs/stem_published.py --json OUT

The same sampler and the same train step, three ways: ``jit`` over arrays placed by
`stemjax.mesh.Layout`, where XLA adds the communication; ``shard_map``, where each device's part and
the mean of the gradients are written out; and ``pmap``, the old way of that, with a copy of the
weights a device. Calls alternate between the ways, each waited for, and a ratio is the median over
rounds of the time of jit by the time of the other, with a bootstrap interval of 95 %.

What the ways compute is compared: samples of the same spots, and weights and moments after two
updates. The latter are of plain regression, since a random number of a training row depends on the
row's place among those of its device. Collectives are counted in the compiled program, by kind,
with the bytes of their results on a device; one in a loop counts at every turn.

A CPU plays ``--devices`` devices, which share its cores: there the times say what the ways cost on
top of the arithmetic, not what more devices are worth.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import harness
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import samplers
from jax.sharding import PartitionSpec

from stemjax import config, mesh, tasks
from stemjax.train import state as states
from stemjax.train import step as steps

WAYS = ("jit", "shard_map", "pmap")
PAIR = tasks.Sampling(mode="pair")
LABELS = {"pmap": "pmap (the old way)"}
WHOLE, SPLIT = PartitionSpec(), PartitionSpec(mesh.DATA)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run some work on all devices.

    Attributes:
      program: compiled.
      call: runs it once and returns arrays to wait for; training goes on from its own state.
      result: what the ways have to agree on, on the host.
    """

    program: Any
    call: Callable[[], Any]
    result: Callable[[], Any]


def make_samplers(
    task: Any, params: Any, layout: mesh.Layout, sampling: tasks.Sampling, *, spots: int, width: int
) -> dict[str, Way]:
    """Returns every way to draw for ``spots`` spots with embeddings ``width`` wide."""
    devices = layout.mesh.shape[mesh.DATA]
    cond = np.asarray(jax.random.normal(jax.random.key(3), (spots, width)))
    keys = jax.random.split(jax.random.key(4), spots)

    def run(params: Any, cond: jax.Array, keys: jax.Array) -> jax.Array:
        return jnp.swapaxes(task.predict(params, cond, keys, sampling=sampling), 0, 1)

    mapped = _mapped(run, layout, (WHOLE, SPLIT, SPLIT), SPLIT)
    placed = jax.device_put(params, layout.replicated)
    given = placed, *jax.device_put((cond, keys), layout.data)
    copies = (_copies(params, devices), _pieces(cond, devices), _pieces(keys, devices))
    jitted = {
        "jit": (jax.jit(run, out_shardings=layout.data), given),
        "shard_map": (jax.jit(mapped), given),
        "pmap": (jax.pmap(run), jax.block_until_ready(jax.pmap(lambda *a: a)(*copies))),
    }
    return {name: _sampler(function, given) for name, (function, given) in jitted.items()}


def _sampler(function: Any, given: tuple[Any, ...]) -> Way:
    program = function.lower(*given).compile()

    def result() -> np.ndarray:
        drawn = np.asarray(program(*given))
        return drawn.reshape(-1, *drawn.shape[-2:])

    return Way(program=program, call=lambda: program(*given), result=result)


def make_trainings(
    experiment: config.Experiment,
    layout: mesh.Layout,
    *,
    batch: int,
    genes: int,
    condition: int,
    parts: int,
) -> dict[str, Way]:
    """Returns every way to train, in ``parts`` parts of a batch; a call is an update."""
    task = config.make_task(experiment, genes=genes, condition=condition)
    optimizer = states.make_optimizer(experiment.optim, steps=1000)
    start = jax.device_get(
        jax.jit(lambda key: states.init_state(task, optimizer, key))(jax.random.key(0))
    )
    start = dataclasses.replace(start, params=jax.device_get(harness.awake(start.params)))
    rng = np.random.default_rng(5)
    rows = {
        "cond": rng.standard_normal((batch, condition), np.float32),
        "x0": rng.standard_normal((batch, genes), np.float32),
        "mask": np.ones((batch, genes), np.float32),
    }
    options = {"ema": experiment.optim.ema, "seed": 0, "accumulate": parts}

    def mean_of_devices(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return optimizer.update(jax.lax.pmean(updates, mesh.DATA), state, params)

    alone = steps.make_train_step(
        task, optax.GradientTransformation(optimizer.init, mean_of_devices), **options
    )

    def local(state: Any, rows: Any) -> tuple[Any, Any]:
        state, metrics = alone(state, rows)
        return state, jax.lax.pmean(metrics, mesh.DATA)

    mapped = _mapped(local, layout, (WHOLE, SPLIT), (WHOLE, WHOLE))
    whole = steps.make_train_step(task, optimizer, **options)
    shardings = layout.shardings(start), layout.replicated
    devices = layout.mesh.shape[mesh.DATA]
    pieces = {name: _pieces(values, devices) for name, values in rows.items()}

    def place() -> Any:
        return jax.device_put(start, shardings[0])

    def copy() -> Any:
        return jax.pmap(lambda a: a)(_copies(start, devices))

    jitted = jax.jit(whole, donate_argnums=0, out_shardings=shardings)
    return {
        "jit": _training(jitted, place, layout.put(rows)),
        "shard_map": _training(jax.jit(mapped, donate_argnums=0), place, layout.put(rows)),
        "pmap": _training(
            jax.pmap(local, axis_name=mesh.DATA, donate_argnums=0),
            copy,
            jax.pmap(lambda a: a)(pieces),
            copied=True,
        ),
    }


def _training(function: Any, place: Callable[[], Any], rows: Any, *, copied: bool = False) -> Way:
    held = {"state": place()}
    program = function.lower(held["state"], rows).compile()

    def call() -> Any:
        held["state"], metrics = program(held["state"], rows)
        return held["state"], metrics

    def result() -> Any:
        state = place()
        # The warm-up's first rate is 0.
        for _ in range(2):
            state, _ = jax.block_until_ready(program(state, rows))
        # With the moments, since Adam's updates would hide a wrong scale of the gradient.
        kept = state.params, state.opt
        return jax.tree.map(lambda a: np.asarray(a)[0] if copied else np.asarray(a), kept)

    return Way(program=program, call=call, result=result)


def _mapped(function: Any, layout: mesh.Layout, taken: Any, given: Any) -> Any:
    # With the check on, a gradient by whole weights would be summed over the devices already.
    return jax.shard_map(
        function, mesh=layout.mesh, in_specs=taken, out_specs=given, check_vma=False
    )


def _copies(tree: Any, devices: int) -> Any:
    return jax.tree.map(lambda a: np.broadcast_to(a, (devices, *np.shape(a))), tree)


def _pieces(rows: Any, devices: int) -> Any:
    return rows.reshape(devices, -1, *rows.shape[1:])


def compare(ways: Mapping[str, Way], *, rounds: int) -> dict[str, dict[str, Any]]:
    """Returns for each way its times, the ratio to the first with interval, and what it moves.

    Args:
      ways: by name; the first is the base of the ratios.
      rounds: calls of each, one way after another in each round, after two that do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 2):
        for name, way in ways.items():
            taken = harness.time_calls(way.call, repeats=1, warm_up=0).median
            if turn >= 2:
                seconds[name].append(taken)
    base, rng = np.asarray(seconds[next(iter(ways))]), np.random.default_rng(0)
    picks = rng.integers(rounds, size=(2000, rounds))
    found = {}
    for name, way in ways.items():
        ratios = base / np.asarray(seconds[name])
        interval = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
        found[name] = {
            "median_s": float(np.median(seconds[name])),
            "quartiles_s": [float(q) for q in np.quantile(seconds[name], [0.25, 0.75])],
            "repeats": rounds,
            "ratio": float(np.median(ratios)),
            "ratio_interval": [float(q) for q in interval],
            "collectives": hlo.collectives(way.program.as_text()),
        }
    return found


def difference(ways: Mapping[str, Way]) -> dict[str, float]:
    """Returns the largest absolute difference of each way's result from the first's."""
    results = {name: jax.tree.leaves(way.result()) for name, way in ways.items()}
    first = next(iter(results.values()))
    return {
        name: max(
            float(np.abs(np.subtract(a, b, dtype=np.float64)).max())
            for a, b in zip(first, leaves, strict=True)
        )
        for name, leaves in results.items()
    }


def measure_all(
    experiment: config.Experiment, args: argparse.Namespace, layout: mesh.Layout
) -> list[dict[str, Any]]:
    """Returns a line for each work and way."""
    devices, lines = layout.mesh.shape[mesh.DATA], []
    task = config.make_task(experiment, genes=args.genes, condition=args.condition)
    params = harness.awake(task.init(jax.random.key(0)))
    per_device = args.per_device or (4 if jax.default_backend() == "cpu" else 256)
    count = per_device * devices

    def add(work: str, rows: str, ways: dict[str, Way], gaps: dict[str, float]) -> None:
        for name, line in compare(ways, rounds=args.rounds).items():
            line |= {f"{rows}_per_s": count / line["median_s"], "difference": gaps[name]}
            lines.append({"work": work, "way": name, "rows": count, **line})

    for sampling in (PAIR,) if args.quick else dict.fromkeys((task.estimate, PAIR)):
        ways = make_samplers(task, params, layout, sampling, spots=count, width=args.condition)
        add(sampling.mode, "spots", ways, difference(ways))
    sizes = {"batch": count, "genes": args.genes, "condition": args.condition}
    plain = dataclasses.replace(
        experiment,
        diffusion=config.Diffusion(mean_fraction=1.0),
        # A rate at which differences are not lost in the rounding of the weights.
        optim=dataclasses.replace(experiment.optim, warmup=1, learning_rate=1e-2),
    )
    for parts in (1,) if args.quick else (1, 4):
        gaps = difference(make_trainings(plain, layout, parts=parts, **sizes))
        ways = make_trainings(experiment, layout, parts=parts, **sizes)
        add("train" if parts == 1 else f"train in {parts} parts", "examples", ways, gaps)
    return lines


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    rows = []
    for line in result["lines"]:
        rate = line.get("spots_per_s") or line.get("examples_per_s")
        low, high = line["ratio_interval"]
        moved = [
            f"{row['calls']} {kind} ({row['bytes'] / 1e6:.3g} MB)"
            for kind, row in line["collectives"].items()
        ]
        rows.append(
            [
                line["work"],
                LABELS.get(line["way"], line["way"]),
                f"{rate:.4g}",
                f"{line['ratio']:.2f} ({low:.2f} to {high:.2f})",
                f"{line['difference']:.1g}",
                ", ".join(moved) or "none",
            ]
        )
    head = ["work", "way", "rows/s", "speed by jit's", "difference", "collectives in a run"]
    about = (
        f"{result['devices']} devices ({result['device']}), {result['lines'][0]['rows']} rows a "
        "run over all of them"
    )
    return f"{about}:\n\n{samplers.markdown(head, rows)}"


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_arguments(parser)
    parser.add_argument("--devices", type=int, default=4, help="devices that a CPU plays")
    parser.add_argument("--per-device", type=int, help="rows; default 4 on a CPU, 256 elsewhere")
    parser.add_argument("--rounds", type=int, help="timed calls of each way")
    args, experiment = harness.parse(parser, argv)
    args.rounds = args.rounds or (5 if args.quick else 20)
    # Before anything asks for a device: afterwards it would be an error. No effect elsewhere.
    jax.config.update("jax_num_cpu_devices", args.devices)
    about, layout = harness.surroundings(), mesh.make_layout()
    lines = measure_all(experiment, args, layout)
    facts = {"genes": args.genes, "condition": args.condition}
    result = harness.result("parallel", about, experiment, lines, **facts)
    print(tables(result))
    if args.json:
        harness.save(args.json, result)


if __name__ == "__main__":
    main()
