"""What attention costs at 1,000 to 20,000 genes, form by form.

    uv run python benchmarks/long_panels.py --quick --json OUT
    uv run --extra tpu python benchmarks/long_panels.py --json benchmarks/results/long_panels.json

One layer's attention alone. On the CPU, time and memory are measured, each row in a process of its
own. For a TPU they are the compiler's, without a chip, and two things are added to its bytes:

* It counts the body of a loop once. ``chunked`` is its whole program, plus one chunk's program for
  each chunk but one.
* It counts the arguments of a Pallas kernel once. The grid of ``splash`` reads keys and values
  again for each block of queries, and in the gradient queries and slopes for each block of keys.

Scores of a chunk may stay in a TPU's VMEM, which the count does not tell from its memory.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import importlib.util
import math
import multiprocessing
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import harness
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import samplers
import tpu
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from stemjax.models import attention, long_attention

KINDS = ("forward", "gradient")
CHIP = "v5e"
HEADS = {"384": (6, 64), "1024": (8, 128)}
"""Width of a token -> heads and their width, for a TPU."""

CPU_HEADS = (2, 64)
CPU_WRITTEN = 10_000
"""Most genes whose scores are written out on the CPU: 20,000 want 13 GB for one sample."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One program.

    Attributes:
      genes: tokens.
      samples: rows of the batch.
      heads: attention heads.
      width: of a head.
      form: of the attention.
      kind: forward or gradient, which has the forward pass in it.
      devices: over which the genes are split.
    """

    genes: int
    samples: int
    heads: int
    width: int
    form: str
    kind: str
    devices: int = 1

    @property
    def dimensions(self) -> tuple[int, int, int]:
        """Shape of the fused projection."""
        return self.samples, self.genes, 3 * self.heads * self.width


def program(row: Row) -> Callable[..., jax.Array]:
    """Returns attention, or its pullback of (projection, cotangent), without attention's output."""

    def forward(qkv: jax.Array) -> jax.Array:
        return attention.attend(qkv, heads=row.heads, implementation=row.form)

    def gradient(qkv: jax.Array, cotangent: jax.Array) -> jax.Array:
        return jax.vjp(forward, qkv)[1](cotangent)[0]

    return forward if row.kind == "forward" else gradient


def measure_here(row: Row, repeats: int) -> dict[str, Any]:
    """Returns time and memory of a row in this process, which should be new."""
    jax.config.update("jax_platforms", "cpu")
    qkv = jax.random.normal(jax.random.key(0), row.dimensions)
    given = (qkv,) if row.kind == "forward" else (qkv, qkv[..., : qkv.shape[2] // 3])
    compiled = jax.jit(program(row)).lower(*given).compile()
    before = _peak_bytes()
    timing = harness.time_calls(compiled, lambda _: given, repeats=repeats, seconds=1.0, warm_up=1)
    return {
        **dataclasses.asdict(row),
        "device": "cpu",
        "seconds": timing.median,
        "quartiles": timing.quartiles,
        "repeats": timing.repeats,
        "peak_bytes": _peak_bytes() - before,
    }


def _peak_bytes() -> int:
    # Not `getrusage`, whose peak a process inherits from the one that started it.
    found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError("this system does not say how much memory a process held at most")
    return 1024 * int(found[1])


def compile_row(row: Row) -> dict[str, Any]:
    """Returns what the TPU compiler says of a row; bytes are those of one device."""
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=tpu.TOPOLOGIES[CHIP]
    ).devices[: row.devices]
    mesh = Mesh(np.asarray(devices), ("genes",), axis_types=(AxisType.Auto,))
    where = NamedSharding(mesh, PartitionSpec(None, "genes"))

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where)

    b, g, m = row.dimensions
    given = [array(b, g, m)] + ([array(b, g, m // 3)] if row.kind == "gradient" else [])
    with jax.set_mesh(mesh):
        built = harness.build(jax.jit(program(row)), tuple(given))
    if built.memory is None:
        raise RuntimeError("the TPU compiler did not say what memory its program needs")
    counted, _, _ = tpu.cost(built.program)
    again = {"chunked": _other_chunks, "splash": _read_again}.get(row.form)
    return {
        **dataclasses.asdict(row),
        "device": CHIP,
        "bytes": counted + (again(row, devices[0]) if again else 0.0),
        "counted_bytes": counted,
        "temp": built.memory.temp,
        "compile_s": built.compile,
        "collectives": sorted(hlo.collectives(built.program.as_text())),
    }


def _other_chunks(row: Row, device: Any) -> float:
    """Returns the bytes of all chunks of `chunked` but one."""
    queries = row.genes // row.devices
    length = long_attention.chunk_length(queries, row.genes, row.heads)
    where = jax.sharding.SingleDeviceSharding(device)
    q, k = (
        jax.ShapeDtypeStruct((1, row.heads, tokens, row.width), jnp.bfloat16, sharding=where)
        for tokens in (length, row.genes)
    )

    def pullback(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
        return jax.vjp(jax.checkpoint(attention.written_out), q, k, v)[1](cotangent)

    forward = harness.build(jax.jit(attention.written_out), (q, k, k)).program
    moved = tpu.cost(forward)[0]
    if row.kind == "gradient":
        moved += tpu.cost(harness.build(jax.jit(pullback), (q, k, k, q)).program)[0]
    return (row.samples * math.ceil(queries / length) - 1) * moved


def _read_again(row: Row, device: Any) -> float:
    """Returns the bytes that the grid of `splash` reads more than once."""
    (q_block, q_length), (k_block, k_length) = (
        long_attention.block_lengths(tokens) for tokens in (row.genes // row.devices, row.genes)
    )
    pair = 2 * 2 * 128 * math.ceil(row.width / 128)  # bfloat16, lanes filled up
    of_keys = (q_length // q_block - 1) * k_length * pair
    of_queries = (k_length // k_block - 1) * q_length * pair
    times = (1, 0) if row.kind == "forward" else (2, 1)
    return row.samples * row.heads * (times[0] * of_keys + times[1] * of_queries)


def rows_here(quick: bool) -> list[Row]:
    """Returns the rows to be measured on the CPU."""
    sizes = [(200, 4), (2000, 1)] if quick else [
        (genes, samples) for genes in (200, 1000, 2000, 5000, 10_000) for samples in (1, 4)
    ] + [(20_000, 1)]  # fmt: skip
    heads, width = CPU_HEADS
    return [
        Row(genes=genes, samples=samples, heads=heads, width=width, form=form, kind=kind)
        for genes, samples in sizes
        for kind in KINDS
        for form in ("xla", "chunked")
        if form == "chunked" or genes * math.sqrt(samples) <= CPU_WRITTEN
    ]


def rows_compiled() -> list[Row]:
    """Returns the rows for the TPU compiler."""
    rows = [
        Row(genes=genes, samples=1, heads=heads, width=width, form=form, kind=kind)
        for heads, width in HEADS.values()
        for genes in (2048, 10_000, 20_000)
        for kind in KINDS
        for form in ("xla", "chunked", "splash")
        if form != "xla" or genes == 2048
    ]
    heads, width = HEADS["384"]
    return rows + [
        Row(genes=genes, samples=1, heads=heads, width=width, form="splash", kind=kind, devices=4)
        for genes in (10_000, 20_000)
        for kind in KINDS
    ]


def tables(result: dict[str, Any]) -> str:
    """Returns the page's tables of a result."""
    here = [line for line in result["lines"] if line["device"] == "cpu"]
    there = [line for line in result["lines"] if line["device"] != "cpu"]
    heads, width = CPU_HEADS
    head = ["genes", "samples", "pass", "form", "ms", "peak MB"]
    body = [
        [f"{line['genes']:,}", str(line["samples"]), line["kind"], line["form"],
         f"{1e3 * line['seconds']:.1f}", f"{line['peak_bytes'] / 1e6:.0f}"]
        for line in here
    ]  # fmt: skip
    parts = [
        f"**Measured on this CPU: {heads} heads of {width}, float32**",
        samplers.markdown(head, body),
    ]
    if there:
        head = ["genes", "chips", "heads", "pass", "form", "MB moved", "temporary MB",
                "compile s", "collectives"]  # fmt: skip
        body = [
            [f"{line['genes']:,}", str(line["devices"]), f"{line['heads']} of {line['width']}",
             line["kind"], line["form"], f"{line['bytes'] / 1e6:,.0f}",
             f"{line['temp'] / 1e6:.0f}", f"{line['compile_s']:.0f}",
             ", ".join(line["collectives"])]
            for line in there
        ]  # fmt: skip
        parts += [
            f"**By the TPU compiler, nothing of it measured: {CHIP}, one sample, bfloat16, "
            "a chip's share**",
            samplers.markdown(head, body),
        ]
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    """Measures here, asks the TPU compiler where there is one, and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four rows, on the CPU alone")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="write the result here")
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    about, lines = harness.surroundings(), []

    def add(line: dict[str, Any]) -> None:
        harness.emit(line)
        lines.append(line)

    spawn = multiprocessing.get_context("spawn")
    for row in rows_here(args.quick):
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
            add(process.submit(measure_here, row, args.repeats).result())
    if not args.quick and importlib.util.find_spec("libtpu"):
        for name, value in tpu.ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        for row in rows_compiled():
            add(compile_row(row))
    result = harness.result("long_panels", about, None, lines)
    if args.json:
        harness.save(args.json, result)
    print(tables(result))


if __name__ == "__main__":
    main()
