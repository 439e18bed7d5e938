"""Input: rows a second of every way from records to a step, and where the time goes.

    uv run python benchmarks/input.py --quick --json OUT
    uv run python benchmarks/input.py --config configs/stem_published.py --json OUT

Records are made for the purpose: 8 variants of float16 embeddings, ``--condition`` wide, and
``--genes`` counts. The paths, a batch at a time:

    schedule        row and variant numbers alone
    ram             gather, standardise and cast on the host
    ram_ahead       the same through the view's iterator: one thread ahead
    reader          bytes of whole records at random, without decoding them
    reader_decoded  the same, decoded into arrays
    tfds            the same by tfds's own reader and decoder
    stream          batches through grain's threads: reading, decoding, encoding
    put             a batch from the host to the devices
    put_numbers     row and variant numbers from the host to the devices
    device          numbers on the devices -> batches, gathered inside one program

Bytes are those of the float32 batch, whose sum a step would read; of the two readers, those of the
records; of numbers, their own.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import harness
import jax
import jax.numpy as jnp
import roofs
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from made_records import SLIDE, made_records

from stemjax import config, mesh
from stemjax.data import builder, pipeline, records, space
from stemjax.train import dispatch

VARIANTS = 8


def rates(rows: int, size: int, seconds: float) -> dict[str, float]:
    """Returns what a path does in a second.

    Args:
      rows: of a call.
      size: bytes of a call.
      seconds: of a call.
    """
    return {
        "rows_per_s": rows / seconds,
        "byte_per_s": size / seconds,
        "us_per_row": 1e6 * seconds / rows,
        "bytes_per_row": size / rows,
    }


def gather_many(view: Any, layout: mesh.Layout) -> Callable[[Any, Any], jax.Array]:
    """Returns (table, numbers [b, K]) -> a number that every value of the K batches is part of."""

    def gather(table: Any, handed: Any) -> jax.Array:
        def add(total: jax.Array, part: Any) -> tuple[jax.Array, None]:
            return total + sum(jnp.sum(v) for v in view.show(table, part).values()), None

        parts = {name: jnp.swapaxes(values, 0, 1) for name, values in handed.items()}
        return jax.lax.scan(add, jnp.zeros(()), parts)[0]

    return jax.jit(gather, out_shardings=layout.replicated)


class Paths:
    """The paths, each a function of the number of a call; in `rows` and `bytes` what one does.

    Args:
      opened: the records.
      folder: where they lie.
      batch: rows of a batch.
      many: batches of one call of the paths that take several.
      transform: of the expression.
    """

    def __init__(
        self,
        opened: records.Records,
        folder: pathlib.Path,
        *,
        batch: int,
        many: int,
        transform: str,
    ) -> None:
        self._layout, self._many = mesh.make_layout(), many
        fitted = space.Space.fit(opened.load([SLIDE]), genes=opened.genes, transform=transform)

        def view(residence: Any) -> Any:
            return pipeline.choose_view(
                opened, [SLIDE], fitted, residence=residence, sharding=self._layout.replicated
            )

        self._ram, self._stream, self._device = view("ram"), view("stream"), view("device")
        self._schedule = pipeline.Schedule(n=self._ram.n, batch=batch, seed=0, variants=VARIANTS)
        self._reader = opened.source([SLIDE])
        theirs: Any = tfds.builder_from_directory(opened.folders[SLIDE])
        self._tfds = theirs.as_data_source(split=opened.slides[SLIDE].split)
        shards = sorted(str(path) for path in folder.rglob(f"*{builder.SHARD_MARK}*"))
        self._raw = array_record_data_source.ArrayRecordDataSource(shards)
        self._open: list[Iterator[Any]] = []

    def paths(self) -> dict[str, tuple[Callable[[int], Any], int, int]]:
        """Returns name -> (call, rows of a call, bytes of a call)."""
        schedule, layout, many = self._schedule, self._layout, self._many
        host = self._ram.batch_at(schedule, 0)
        numbers = self._device.batch_at(schedule, 0)
        rows, size = schedule.batch, _size(host)
        wanted = [int(row) for row in schedule.rows(0)]
        record = sum(len(raw) for raw in self._raw.__getitems__(wanted))
        following = [self._device.batch_at(schedule, step) for step in range(many)]
        placed = layout.put(dispatch.stack(following))
        gather = gather_many(self._device, layout)
        ahead, streamed = (view.batches(schedule, 0, 10**6) for view in (self._ram, self._stream))
        self._open += [ahead, streamed]

        def take(batches: Iterator[Any]) -> None:
            # More than are made ahead, so that the clock sees them being made.
            for _ in itertools.islice(batches, many):
                pass

        def raw(i: int) -> Any:
            return self._raw.__getitems__([int(row) for row in schedule.rows(i)])

        return {
            "schedule": (lambda i: schedule.local(i), rows, _size(numbers)),
            "ram": (lambda i: self._ram.batch_at(schedule, i), rows, size),
            "ram_ahead": (lambda i: take(ahead), rows * many, size * many),
            "reader": (raw, rows, record),
            "reader_decoded": (lambda i: self._reader.gather(schedule.rows(i)), rows, record),
            "tfds": (
                lambda i: self._tfds.__getitems__(list(map(int, schedule.rows(i)))),
                rows,
                record,
            ),
            "stream": (lambda i: take(streamed), rows * many, size * many),
            "put": (lambda i: layout.put(host), rows, size),
            "put_numbers": (lambda i: layout.put(numbers), rows, _size(numbers)),
            "device": (lambda i: gather(self._device.table, placed), rows * many, size * many),
        }

    def close(self) -> None:
        """Ends the threads that make batches ahead."""
        for iterator in self._open:
            close: Callable[[], None] | None = getattr(iterator, "close", None)
            if close:
                close()


def _size(batch: Any) -> int:
    return sum(values.nbytes for values in batch.values())


def read_flags(argv: list[str] | None = None) -> tuple[argparse.Namespace, config.Experiment]:
    """Returns the flags, with the defaults that ``--quick`` changes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    harness.add_arguments(parser)
    parser.add_argument("--spots", type=int, help="rows of the records that are made")
    parser.add_argument("--batch", type=int, default=256, help="rows at a time")
    parser.add_argument("--many", type=int, default=16, help="batches of a call that takes several")
    parser.add_argument("--repeats", type=int, help="timed calls of a path, at least")
    parser.add_argument("--seconds", type=float, help="timed calls go on for as long")
    args, experiment = harness.parse(parser, argv)
    defaults = {
        "spots": 2048 if args.quick else 16384,
        "repeats": 10 if args.quick else 30,
        "seconds": 0.5 if args.quick else 5.0,
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args, experiment


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    import samplers

    rows = [
        [line["path"], f"{line['rows_per_s']:,.0f}", f"{line['byte_per_s'] / 1e6:,.0f}",
         f"{line['us_per_row']:.2g}", f"{line['bytes_per_row']:,.0f}"]
        for line in result["lines"]
    ]  # fmt: skip
    return (
        f"{result['spots']} spots of {VARIANTS} variants, {result['condition']} wide, "
        f"{result['genes']} genes; batches of {result['batch']}; memory copies at "
        f"{result['copy_byte_per_s'] / 1e9:.1f} GB/s in the same run.\n\n"
        + samplers.markdown(["path", "rows/s", "MB/s", "us a row", "bytes a row"], rows)
    )


def main() -> None:
    """Measures path by path, prints a line for each, writes the JSON."""
    args, experiment = read_flags()
    about, lines = harness.surroundings(), []
    facts = {name: getattr(args, name) for name in ("genes", "condition", "spots", "batch", "many")}
    facts["copy_byte_per_s"] = roofs.copy_rate(repeats=3 if args.quick else 10)
    with made_records(
        spots=args.spots, n_genes=args.genes, width=args.condition, variants=VARIANTS
    ) as (opened, folder):
        made = Paths(
            opened,
            folder,
            batch=args.batch,
            many=args.many,
            transform=experiment.data.transform,
        )
        try:
            for name, (call, rows, size) in made.paths().items():
                timing = harness.time_calls(
                    call, lambda i: (i,), repeats=args.repeats, seconds=args.seconds
                )
                line = {"path": name, **rates(rows, size, timing.median), **timing.line}
                lines.append(line)
                harness.emit(line)
        finally:
            made.close()
    if args.json:
        result = harness.result("input", about, experiment, lines, quick=args.quick, **facts)
        harness.save(args.json, result)


if __name__ == "__main__":
    main()
