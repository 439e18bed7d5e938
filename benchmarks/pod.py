"""What the TPU compiler makes of training on whole slices, on a machine without a TPU.

    uv run --extra tpu python benchmarks/pod.py --topology v5e:2x4 v5p:8x8x16 --json OUT
    uv run --extra tpu python benchmarks/pod.py --json benchmarks/results/pod.json

Three experiments of `configs/` are compiled for topologies that are not there: the published size
on data parallel chips, a billion weights split over chips, and 10,000 genes split over chips. Every
row is compiled in a process of its own, which is ended after ``--limit`` seconds. A row holds what
the compiler plans (memory, bytes, collectives), and a projection from it (`benchmarks/links.py`).
Measured are the seconds of compiling alone.

Bytes and model seconds are those of `benchmarks/tpu.py`: the rest of a program and so many of its
blocks. What a Pallas kernel moves is what it declares; splash attention declares nothing.
``v5e:2x4*2`` is two slices of that shape with the data centre's network between them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import harness
import hlo
import jax
import jax.numpy as jnp
import links
import machine
import numpy as np
import pod_tables
import tpu
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from stemjax import config, configfile, errors, mesh
from stemjax.train import dispatch
from stemjax.train import state as states
from stemjax.train import step as steps
from stemjax.typing import Batch

TOPOLOGIES = ("v5e:2x4", "v5e:16x16", "v5e:16x16*2", "v5p:4x4x4", "v5p:8x8x16", "v6e:4x4",
              "v6e:16x16")  # fmt: skip
PROGRAMS = ("train", "sampler")
VARIANTS = 8
"""Embeddings of a stored spot: the original and seven flips and rotations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """An experiment on a pod.

    Attributes:
      file: of `configs/`.
      genes: size of the panel.
      attention: form that a TPU takes; ``auto`` would go by the platform of this process.
      fsdp: chips that share the weights, by kind of chip.
      split: chips that share the genes of a spot.
      rows: samples that such a group of chips works on at once, by kind of chip, in training.
      drawn: profiles that a chip draws at once. A sampler holds all weights and whole spots. 0 is
        none: it would be another size's.
      options: of the compiler, in training.
    """

    file: str
    genes: int
    attention: str
    fsdp: dict[str, int]
    split: int
    rows: dict[str, int]
    drawn: int
    options: dict[str, bool] = dataclasses.field(default_factory=dict)


OFFLOAD = {
    f"xla_tpu_enable_sparse_core_collective_offload_{kind}": True
    for kind in ("all_gather", "reduce_scatter", "all_reduce")
}

SIZES = {
    "published": Size(
        file="stem_published.py", genes=200, attention="flash", split=1, drawn=256,
        fsdp={"v5e": 1, "v5p": 1, "v6e": 1}, rows={"v5e": 256, "v5p": 256, "v6e": 256},
    ),
    "large": Size(
        file="stem_large.py", genes=200, attention="flash", split=1, drawn=64,
        fsdp={"v5e": 8, "v5p": 8, "v6e": 8}, rows={"v5e": 128, "v5p": 512, "v6e": 256},
    ),
    # The same with collectives left to the sparse cores, which v5e has not.
    "large_offload": Size(
        file="stem_large.py", genes=200, attention="flash", split=1, drawn=0,
        fsdp={"v5e": 8, "v5p": 8, "v6e": 8}, rows={"v5e": 0, "v5p": 512, "v6e": 256},
        options=OFFLOAD,
    ),
    "10k_genes": Size(
        file="stem_10k_genes.py", genes=10_000, attention="splash", split=4, drawn=8,
        fsdp={"v5e": 1, "v5p": 1, "v6e": 1}, rows={"v5e": 16, "v5p": 64, "v6e": 32},
    ),
    # As many spots a chip, and whole: what splitting them costs.
    "10k_genes_whole": Size(
        file="stem_10k_genes.py", genes=10_000, attention="splash", split=1, drawn=0,
        fsdp={"v5e": 1, "v5p": 1, "v6e": 1}, rows={"v5e": 4, "v5p": 16, "v6e": 8},
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A program to compile for a topology.

    Attributes:
      size: one of `SIZES`.
      program: one of `PROGRAMS`.
      topology: libtpu's name, with ``*N`` for N slices.
      depth: blocks, where not those of the experiment.
    """

    size: str
    program: str
    topology: str
    depth: int | None = None

    @property
    def plan(self) -> Size:
        """The experiment."""
        return SIZES[self.size]

    @property
    def chip(self) -> str:
        """The kind of chip."""
        return self.topology.split(":")[0]

    @property
    def train(self) -> bool:
        """Whether it is an update."""
        return self.program == "train"

    @property
    def axes(self) -> dict[str, int]:
        """Arguments of `mesh.make_layout`."""
        if not self.train:
            return {"fsdp": 1, "genes": 1}
        return {"fsdp": self.plan.fsdp[self.chip], "genes": self.plan.split}

    @property
    def rows(self) -> int:
        """Samples of one group of chips that shares a spot's genes."""
        return self.plan.rows[self.chip] if self.train else self.plan.drawn

    def devices(self) -> list[Any]:
        """Returns the devices of the topology, which are described and do not exist."""
        name, _, slices = self.topology.partition("*")
        options = {"num_slices": int(slices)} if slices else {}
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
        return list(found.devices)

    def experiment(self) -> config.Experiment:
        """Returns the experiment with what a TPU would choose."""
        found = config.resolve(configfile.load(str(harness.ROOT / "configs" / self.plan.file), []))
        model = dataclasses.replace(
            found.model,
            attention=self.plan.attention,
            remat=self.train and found.train.remat == "blocks",
            depth=self.depth or found.model.depth,
        )
        return dataclasses.replace(found, model=model)


def program(
    row: Row, experiment: config.Experiment, layout: mesh.Layout, condition: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns a row's function under `jax.jit` and the placed shapes of its arguments."""
    task: Any = config.make_task(experiment, genes=row.plan.genes, condition=condition)
    rows = row.rows * layout.pieces
    key = jax.random.key(0)

    def placed(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            tree, shardings,
        )  # fmt: skip

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout.data)

    if not row.train:
        params = jax.eval_shape(task.init, key)
        spots = rows // tpu.SAMPLING.draws
        keys = jax.eval_shape(lambda: jax.random.split(key, spots))

        def draw(params: Any, cond: jax.Array, keys: jax.Array) -> jax.Array:
            return task.predict(params, cond, keys, sampling=tpu.SAMPLING)

        out = NamedSharding(layout.mesh, PartitionSpec(None, layout.row_axes))
        return jax.jit(draw, out_shardings=out), (
            placed(params, layout.shardings(params)),
            array(spots, condition),
            placed(keys, layout.data),
        )
    optimizer = states.make_optimizer(experiment.optim, experiment.train.steps)
    state = jax.eval_shape(lambda: states.init_state(task, optimizer, key))
    update = steps.make_train_step(task, optimizer, ema=experiment.optim.ema, seed=0, layout=layout)
    batch = Batch(
        cond=array(rows, condition),
        x0=array(rows, row.plan.genes),
        mask=array(rows, row.plan.genes),
    )
    shardings = layout.shardings(state)
    jitted = jax.jit(update, donate_argnums=0, out_shardings=(shardings, layout.replicated))
    return jitted, (placed(state, shardings), batch)


def compile_row(row: Row, *, condition: int) -> dict[str, Any]:
    """Returns what the compiler says of a row, and a projection; what does not fit says only so."""
    devices, experiment = row.devices(), row.experiment()
    layout = mesh.make_layout(devices, **row.axes)
    about = describe(row, layout, experiment, condition)
    function, given = program(row, experiment, layout, condition)
    try:
        with layout.in_force():
            built = harness.build(function, given, options=row.plan.options)
    except jax.errors.JaxRuntimeError as error:
        if (too_large := tpu.TOO_LARGE.search(str(error))) is None:
            raise
        return {**about, "does_not_fit": f"{too_large[1]} of {too_large[2]}"}
    if built.memory is None:
        raise RuntimeError("the TPU compiler did not say what memory its program needs")
    function, given = program(row, experiment, layout, condition)
    with tpu.without_blocks(), layout.in_force():
        rest = harness.build(function, given, options=row.plan.options)
    (bytes_once, seconds_once, unrated), (bytes_rest, seconds_rest, _) = (
        tpu.cost(each.program) for each in (built, rest)
    )
    depth = experiment.model.depth
    times = 1 if row.train else tpu.SAMPLING.steps
    moved = times * (bytes_rest + depth * (bytes_once - bytes_rest))
    text = built.program.as_text()
    tokens = row.plan.genes // row.axes["genes"]
    return {
        **about,
        "compile_s": built.compile,
        "memory": dispatch.memory_bytes(built.program),
        **dataclasses.asdict(
            built.memory or harness.Memory(temp=0, argument=0, output=0, peak=None)
        ),
        "limit": memory_limit(devices[0]),
        "bytes_accessed": moved,
        "model_s": times * (seconds_rest + depth * (seconds_once - seconds_rest)),
        "unrated": unrated,
        "token_padding": hlo.token_padding(text, rows=row.rows, tokens=tokens),
        "float64": hlo.has_float64(text),
        "uncounted_loops": hlo.uncounted_loops(text),
        **projected(text, layout, about, moved),
    }


def describe(
    row: Row, layout: mesh.Layout, experiment: config.Experiment, condition: int
) -> dict[str, Any]:
    """Returns what is known of a row before it is compiled; FLOPs are those of one chip."""
    devices = _devices(layout)
    each = config.flops_per_evaluation(experiment, genes=row.plan.genes, condition=condition)
    useful = 3 if row.train else tpu.SAMPLING.steps
    # An update whose blocks are computed again has a forward pass more.
    executed = useful + (row.train and experiment.model.remat)
    share = row.rows / row.axes["genes"]
    task: Any = config.make_task(experiment, genes=row.plan.genes, condition=condition)
    shapes = jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0)))
    return {
        **dataclasses.asdict(row),
        "depth": experiment.model.depth,
        "attention": row.plan.attention,
        "remat": experiment.model.remat,
        "genes": row.plan.genes,
        "parameters": sum(leaf.size for leaf in shapes),
        "chips": len(devices),
        "chips_a_host": len(devices) // len({device.process_index for device in devices}),
        "device_kind": devices[0].device_kind,
        "mesh": dict(layout.mesh.shape),
        "rows": row.rows,
        "rows_a_chip": share,
        "batch": row.rows * layout.pieces,
        "flop": share * useful * each,
        "executed_flop": share * executed * each,
        "row_bytes": {
            "numbers": 8,
            "handed": 4 * (condition + 2 * row.plan.genes),
            "stored": 2 * VARIANTS * condition + 5 * row.plan.genes,
        },
    }  # fmt: skip


def projected(
    text: str, layout: mesh.Layout, about: dict[str, Any], moved: float
) -> dict[str, Any]:
    """Returns a program's collectives with their times, and the step that comes of them."""
    devices = _devices(layout)
    kind = about["device_kind"]
    rating, network = machine.RATINGS[kind], links.NETWORKS[kind]
    places = [tuple(device.coords) for device in devices]
    slices = [getattr(device, "slice_index", 0) or 0 for device in devices]
    sent: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in hlo.communications(text):
        name = {
            "kind": one.kind,
            "devices": len(one.group) or len(devices) // len(set(slices)),
            "overlapped": one.overlapped,
        }
        line = sent.setdefault(
            tuple(name.values()), {**name, "places": 0, "calls": 0, "bytes": 0, "s": 0.0}
        )
        line["places"] += 1
        line["calls"] += one.calls
        line["bytes"] += one.calls * one.bytes
        line["largest"] = max(line.get("largest", 0), one.bytes)
        line["s"] += links.seconds(one, places, slices, network)
    step = links.Step(
        arithmetic=about["executed_flop"] / rating.bfloat16 / links.ATTAINABLE,
        memory=moved / rating.memory,
        overlapped=sum(line["s"] for line in sent.values() if line["overlapped"]),
        exposed=sum(line["s"] for line in sent.values() if not line["overlapped"]),
    )
    drawn = tpu.SAMPLING.draws if about["program"] == "sampler" else 1
    return {
        "collectives": list(sent.values()),
        "projected": {
            **dataclasses.asdict(step),
            "step_s": step.total,
            "efficiency": step.efficiency,
            "least_efficiency": step.least_efficiency,
            "share_of_rating": about["flop"] / step.total / rating.bfloat16,
            "spots_s_chip": about["rows_a_chip"] / drawn / step.total,
        },
    }


def _devices(layout: mesh.Layout) -> list[Any]:
    """The devices of a layout in the order in which a program numbers them."""
    return list(np.asarray(cast(Mesh, layout.mesh).devices).flat)


@functools.cache
def memory_limit(device: Any) -> str:
    """Returns the memory of a device that the compiler gives a program, as it says it."""
    wide = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda *a: (a[0] @ a[1]) @ (a[2] @ a[3])).lower(*[wide] * 7).compile()
    except jax.errors.JaxRuntimeError as error:
        if found := tpu.TOO_LARGE.search(str(error)):
            return found[2]
        raise
    raise RuntimeError("the compiler took a program of 112 GiB")


def compile_apart(row: Row, *, condition: int, limit: float) -> dict[str, Any]:
    """Returns what `compile_row` gives in a process of its own, or why there is nothing."""
    command = [sys.executable, __file__, "--row", json.dumps(dataclasses.asdict(row)),
               "--condition", str(condition)]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {**dataclasses.asdict(row), "cut": f"not compiled after {limit:.0f} s"}
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return {**dataclasses.asdict(row), "cut": why[:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Compiles every row, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", nargs="+", default=list(TOPOLOGIES), metavar="NAME")
    parser.add_argument("--size", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--program", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    parser.add_argument("--depth", type=int, help="blocks, in place of the experiment's")
    parser.add_argument("--condition", type=int, default=1536, help="embedding width")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds a row may take")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="write the result here")
    parser.add_argument("--keep", action="store_true", help="keep the other rows of OUT")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        raise errors.ConfigError(
            "the TPU compiler", expected="the package libtpu", found="none",
            fix="Run with `uv run --extra tpu`",
        )  # fmt: skip
    for name, value in tpu.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    if args.row:
        harness.emit(compile_row(Row(**json.loads(args.row)), condition=args.condition))
        return
    about, found = harness.surroundings(), {}
    if args.keep and args.json and args.json.is_file():
        found = {name_of(line): line for line in json.loads(args.json.read_text())["lines"]}
    for topology, size, name in itertools.product(args.topology, args.size, args.program):
        row = Row(size=size, program=name, topology=topology, depth=args.depth)
        if not row.rows:
            continue
        line = compile_apart(row, condition=args.condition, limit=args.limit)
        harness.emit(line)
        found[name_of(line)] = line
        if args.json:
            harness.save(args.json, whole(about, found, args.condition))
    print(pod_tables.tables(whole(about, found, args.condition)))


def whole(
    about: dict[str, Any], found: dict[tuple[str, str, str], dict[str, Any]], condition: int
) -> dict[str, Any]:
    """Returns the result of rows by name, in the order of the tables."""
    lines = [found[name] for name in sorted(found, key=_order)]
    return harness.result("pod", about, None, lines, condition=condition)


def name_of(line: dict[str, Any]) -> tuple[str, str, str]:
    """Returns what tells a row from the others: topology, size and program."""
    return line["topology"], line["size"], line["program"]


def _order(name: tuple[str, str, str]) -> tuple[int, ...]:
    known: tuple[list[str], ...] = (list(TOPOLOGIES), list(SIZES), list(PROGRAMS))
    return tuple(
        order.index(part) if part in order else len(order)
        for order, part in zip(known, name, strict=True)
    )


if __name__ == "__main__":
    main()
