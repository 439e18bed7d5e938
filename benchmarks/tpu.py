"""What the TPU compiler makes of the published network, on a machine without a TPU.

    uv run --extra tpu python benchmarks/tpu.py --quick --json OUT
    uv run --extra tpu python benchmarks/tpu.py --json benchmarks/results/tpu.json

libtpu compiles for a chip that is not there. Every figure is the compiler's: seconds come from its
cost model, not from a clock, and only the seconds of compiling are measured (on whatever machine
this ran, under whatever load). What the model does not know:

* It counts the body of a loop once. Each program is therefore compiled a second time without its
  blocks; the difference is one block, and time and bytes are those of the rest plus ``depth`` of
  them. A sampler's step is a loop too, so all of its program is taken ``steps`` times, its few
  operations outside the loop included.
* Its seconds are a sum of rooflines, one an operation. One that it cannot rate adds -1 (sums come
  out short by whole seconds, and what remains fits the bytes). ``unrated`` counts these; the
  figure is the sum of the rest.
* Inside a Pallas kernel it goes by what the kernel declares: the products at the chip's rating and
  the bytes at its memory's, whichever is longer. Such a row is a lower bound.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import harness
import hlo
import jax
import jax.numpy as jnp
import machine
import samplers
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from stemjax import config, errors, tasks
from stemjax.models import layers
from stemjax.train import state as states
from stemjax.train import step as steps
from stemjax.typing import Batch

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
"""The smallest that the compiler knows; programs are compiled for one chip of it."""

PROGRAMS = ("forward-256", "forward-1024", "sampler-256", "train-256", "remat-256")
"""Kind and rows at once: one evaluation, a pair sampler of 8 steps, one update, and one with the
blocks computed again in the backward pass."""

SAMPLING = tasks.Sampling(mode="pair", sampler="dpmpp2m", steps=8)

TOO_LARGE = re.compile(r"required for HLO temporaries \(([\d.]+\w)\) exceeds .* \(([\d.]+\w)\)")

ENVIRONMENT = {
    # Without these libtpu asks a metadata server on the network which chip it is on.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    # No chip is opened, so several processes may compile at a time.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A program to compile.

    Attributes:
      chip: one of `TOPOLOGIES`.
      program: one of `PROGRAMS`.
      attention: form of the attention.
    """

    chip: str
    program: str
    attention: str

    @property
    def kind(self) -> str:
        """Forward, sampler, train or remat."""
        return self.program.split("-")[0]

    @property
    def rows(self) -> int:
        """Samples that go through the network at once."""
        return int(self.program.split("-")[1])

    @property
    def evaluations(self) -> int:
        """Forward passes' worth of work for each of them; an update is three, remat or not."""
        return {"forward": 1, "sampler": SAMPLING.steps, "train": 3, "remat": 3}[self.kind]


def program(
    row: Row, experiment: config.Experiment, genes: int, condition: int, device: Any
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns a row's function under `jax.jit` and the shapes of its arguments on a device."""
    model = dataclasses.replace(
        experiment.model, attention=row.attention, remat=row.kind == "remat"
    )
    experiment = dataclasses.replace(experiment, model=model)
    task: Any = config.make_task(experiment, genes=genes, condition=condition)
    where = SingleDeviceSharding(device)

    def placed(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
        )

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)

    key = jax.random.key(0)
    params = placed(jax.eval_shape(task.init, key))
    if row.kind == "forward":
        given = (params, array(row.rows, genes), array(row.rows), array(row.rows, condition))
        return jax.jit(task.network.apply), given
    if row.kind == "sampler":
        spots = row.rows // SAMPLING.draws
        keys = placed(jax.eval_shape(lambda: jax.random.split(key, spots)))

        def draw(params: Any, cond: jax.Array, keys: jax.Array) -> jax.Array:
            return task.predict(params, cond, keys, sampling=SAMPLING)

        return jax.jit(draw), (params, array(spots, condition), keys)
    optimizer = states.make_optimizer(experiment.optim, experiment.train.steps)
    state = placed(jax.eval_shape(lambda: states.init_state(task, optimizer, key)))
    update = steps.make_train_step(task, optimizer, ema=experiment.optim.ema, seed=0)
    batch = Batch(cond=array(row.rows, condition), x0=array(row.rows, genes),
                  mask=array(row.rows, genes))  # fmt: skip
    return jax.jit(update, donate_argnums=0), (state, batch)


@contextlib.contextmanager
def without_blocks() -> Iterator[None]:
    """Networks that are traced inside have no blocks; their parameters stay."""
    with mock.patch.object(layers, "run_blocks", lambda blocks, x, c, **options: x):
        yield


def cost(compiled: Any) -> tuple[float, float, int]:
    """Returns bytes accessed, seconds by the cost model, and operations that it did not rate."""
    found = compiled.cost_analysis()
    seconds = found["optimal_seconds"]
    unrated = max(0, -math.floor(seconds))
    return found["bytes accessed"], seconds + unrated, unrated


def compile_row(
    row: Row, experiment: config.Experiment, *, genes: int, condition: int
) -> dict[str, Any]:
    """Returns what the compiler says of a row; of one that does not fit the chip, only that."""
    device = topologies.get_topology_desc(
        platform="tpu", topology_name=TOPOLOGIES[row.chip]
    ).devices[0]
    about = {
        **dataclasses.asdict(row),
        "topology": TOPOLOGIES[row.chip],
        "device_kind": device.device_kind,
        "rows": row.rows,
    }
    try:
        built = harness.build(*program(row, experiment, genes, condition, device))
    except jax.errors.JaxRuntimeError as error:
        if (too_large := TOO_LARGE.search(str(error))) is None:
            raise
        return {**about, "does_not_fit": f"{too_large[1]} of {too_large[2]}"}
    with without_blocks():
        rest = harness.build(*program(row, experiment, genes, condition, device))
    (bytes_once, seconds_once, unrated), (bytes_rest, seconds_rest, _) = (
        cost(each.program) for each in (built, rest)
    )
    depth = experiment.model.depth
    times = SAMPLING.steps if row.kind == "sampler" else 1
    moved = times * (bytes_rest + depth * (bytes_once - bytes_rest))
    seconds = times * (seconds_rest + depth * (seconds_once - seconds_rest))
    work = row.rows * row.evaluations
    flop = work * config.flops_per_evaluation(experiment, genes=genes, condition=condition)
    rating = machine.RATINGS[device.device_kind]
    text = built.program.as_text()
    return {
        **about,
        "compile_s": built.compile,
        "flop": flop,
        "model_s": seconds,
        "unrated": unrated,
        "us_per_evaluation": 1e6 * seconds / work,
        "share_of_rating": flop / seconds / rating.bfloat16,
        "bytes_accessed": moved,
        "bytes_once": bytes_once,
        "bytes_without_blocks": bytes_rest,
        "memory_s": moved / rating.memory,
        **dataclasses.asdict(_known(built.memory)),
        "score_buffers": hlo.score_buffers(text, rows=row.rows, tokens=genes),
        "token_padding": hlo.token_padding(text, rows=row.rows, tokens=genes),
        "float64": hlo.has_float64(text),
        "host": hlo.host_traffic(text),
    }


def _known(memory: harness.Memory | None) -> harness.Memory:
    if memory is None:
        raise RuntimeError("the TPU compiler did not say what memory its program needs")
    return memory


def rows_of(args: argparse.Namespace) -> list[Row]:
    """Returns the rows that the flags ask for."""
    if args.quick:
        args.chips, args.programs = ["v5e"], ["forward-256", "sampler-256"]
    return [
        Row(chip=chip, program=name, attention=attention)
        for chip in args.chips
        for name in args.programs
        for attention in args.attention
    ]


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    head = ["chip", "program", "rows", "attention", "us a row and evaluation", "share of rating",
            "GB accessed", "temporary MB", "scores in memory", "tokens padded to", "unrated",
            "compile s"]  # fmt: skip
    cells = []
    for line in result["lines"]:
        name = [line["chip"], line["program"].split("-")[0], str(line["rows"]), line["attention"]]
        if "does_not_fit" in line:
            cells.append([*name, "does not fit", "", "", line["does_not_fit"], "", "", "", ""])
            continue
        padding = ", ".join(
            f"{length} ({share:.0%})" for length, share in line["token_padding"].items()
        )
        cells.append([
            *name, f"{line['us_per_evaluation']:.1f}", f"{line['share_of_rating']:.0%}",
            f"{line['bytes_accessed'] / 1e9:.1f}", f"{line['temp'] / 1e6:.0f}",
            "yes" if line["score_buffers"] else "no", padding, str(line["unrated"]),
            f"{line['compile_s']:.0f}",
        ])  # fmt: skip
    return "**By the compiler's cost model, nothing of it measured but the last column**\n\n" + (
        samplers.markdown(head, cells)
    )


def main() -> None:
    """Compiles every row, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    harness.add_arguments(parser)
    parser.set_defaults(config=str(harness.ROOT / "configs" / "stem_published.py"))
    for name, values in (("chips", TOPOLOGIES), ("programs", PROGRAMS)):
        parser.add_argument(
            f"--{name}", type=lambda text: text.split(","), default=list(values), metavar="A,B"
        )
    parser.add_argument(
        "--attention", type=lambda text: text.split(","), default=["xla", "flash"], metavar="A,B"
    )
    args, experiment = harness.parse(parser)
    if importlib.util.find_spec("libtpu") is None:
        raise errors.ConfigError(
            "the TPU compiler", expected="the package libtpu", found="none",
            fix="Run with `uv run --extra tpu`",
        )  # fmt: skip
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    about, lines = harness.surroundings(), []
    for row in rows_of(args):
        line = compile_row(row, experiment, genes=args.genes, condition=args.condition)
        harness.emit(line)
        lines.append(line)
    result = harness.result("tpu", about, experiment, lines, genes=args.genes,
                            condition=args.condition)  # fmt: skip
    if args.json:
        harness.save(args.json, result)
    print(tables(result))


if __name__ == "__main__":
    main()
