"""Prediction of a slide of a million spots: memory against the number of spots, and spots a second.

    uv run python benchmarks/cohort.py --quick
    uv run python benchmarks/cohort.py --json benchmarks/results/cohort.json

Records of made-up spots are predicted into a folder, as `stemjax predict --slides` does, by a small
network of configs/lite.py (width 128, 2 blocks; 50 genes, 64 features, one variant of each
embedding): the question is what the spots cost beside the network. Three ways: ``mean``;
``summary``, the moments of 4 draws in 2 steps; ``zarr``, the same draws kept in a store. Every
number of spots has a process of its own, since a process's peak is of its whole life: resident
memory is read when everything is ready to predict, at each tenth of the work, and at the end
(the kernel's VmRSS and its peak, VmHWM). What is above the start has to be flat.

The rate counts reading, network, parts and putting them together; compiling too, which is seconds.
Writing the records takes memory with the number of spots (1 kB each); that is not measured here.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import harness
import jax
import numpy as np
import scipy.sparse

from stemjax import config, tasks
from stemjax.data import embeddings, genes, records, slides, space, transforms
from stemjax.eval import cohort
from stemjax.train import checkpoint

SMALL = ("--config.model.width=128", "--config.model.depth=2")
SPOTS = (10_000, 100_000, 1_000_000)
FEW = tasks.Sampling(mode="draws", n_draws=4, steps=2)
MEAN = tasks.Sampling(mode="mean")
WAYS: dict[str, dict[str, Any]] = {
    "mean": {"sampling": MEAN},
    "summary": {"sampling": FEW, "summary": tasks.Summary(antithetic=True)},
    "zarr": {"sampling": FEW, "draws": "zarr"},
}
FAR = 10**7


def write_records(root: pathlib.Path, *, spots: int, count: int, panel: int, width: int) -> None:
    """Writes records of ``count`` slides with ``spots`` made-up spots together."""
    names = tuple(f"G{i:05d}" for i in range(panel))
    contract = embeddings.EncoderContract(
        name="made", width=width, input_px=224, fov_um=None, resize="none", mean=(), std=(),
        pooling="none", projection="none", source="benchmarks", revision="1",
    )  # fmt: skip
    ids = [f"made{i:04d}" for i in range(count)]
    chosen = genes.Panel(genes=names, rule="made", slides=tuple(ids))
    for number, (name, rows) in enumerate(zip(ids, np.array_split(np.arange(spots), count))):
        rng, side = np.random.default_rng(number), int(np.ceil(len(rows) ** 0.5))
        at = np.stack([np.arange(len(rows)) % side, np.arange(len(rows)) // side], axis=1)
        slide = slides.Slide(
            id=name,
            patient=None,
            counts=scipy.sparse.csr_array(rng.integers(0, 8, (len(rows), panel), np.int32)),
            genes=names,
            barcodes=tuple(f"s{i:09d}" for i in rows),
            array_xy=at,
            pixel_xy=32 * at,
            image=None,
            mpp=0.5,
            spot_diameter_um=16.0,
            sources={},
        )
        vectors = rng.standard_normal((len(rows), 1, width), np.float32).astype(np.float16)
        records.write_slide(root, slide, vectors, panel=chosen, contract=contract)


def make_model(source: records.Records, experiment: config.Experiment) -> checkpoint.Trained:
    """Returns a model of the records' genes that nobody trained."""

    def unit(n: int) -> transforms.Standardisation:
        return transforms.Standardisation(mean=np.ones(n, np.float32), std=np.ones(n, np.float32))

    fitted = space.Space(
        genes=source.genes,
        transform=experiment.data.transform,
        expression=unit(len(source.genes)),
        condition=unit(source.contract.width),
    )
    card = checkpoint.Card(
        experiment=experiment,
        space=fitted,
        contract=source.contract,
        split={"train": [], "val": [], "test": [], "kind": "none"},
        panel=source.panel.to_json(),
        versions={},
    )
    params = jax.device_get(harness.awake(card.task.init(jax.random.key(0))))
    return checkpoint.Trained(params=params, card=card, step=0, weights="last")


def resident(name: str = "VmRSS") -> int:
    """Returns this process's resident bytes; with ``VmHWM`` their peak so far."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"the kernel does not say {name}")


def predict(
    root: pathlib.Path, way: str, experiment: config.Experiment, block: int
) -> dict[str, Any]:
    """Returns what predicting all slides of some records took, in this process."""
    source = records.open_records(root)
    job = cohort.Job(trained=make_model(source, experiment), source=source, **WAYS[way])
    jax.block_until_ready(jax.jit(lambda x: x @ x)(np.ones((8, 8), np.float32)))
    start, marks = resident(), []

    def note(done: int, total: int, what: str) -> None:
        if done * 10 >= total * (len(marks) + 1):
            marks.append(resident())

    with tempfile.TemporaryDirectory(dir=root) as folder:
        began = time.perf_counter()
        found = cohort.predict_cohort(job, list(source.slides), folder, block=block, progress=note)
        seconds = time.perf_counter() - began
        if found.failed or set(found.done) != set(source.slides):
            raise RuntimeError(f"not all slides were predicted: {found.failed}")
        files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
        written = sum(path.stat().st_size for path in files)
    return {
        "spots": found.spots,
        "slides": len(source.slides),
        "start_bytes": start,
        "marks_bytes": marks,
        "end_bytes": resident(),
        "peak_bytes": resident("VmHWM"),
        "above_start_bytes": resident("VmHWM") - start,
        "seconds": seconds,
        "spots_per_s": found.spots / seconds,
        "written_bytes": written,
    }


def measure(
    args: argparse.Namespace, rest: Sequence[str], root: pathlib.Path, spots: int
) -> Iterator[dict[str, Any]]:
    """Yields a line for each way, from a process of its own."""
    began = time.perf_counter()
    write_records(root, spots=spots, count=args.slides, panel=args.genes, width=args.condition)
    print(f"made {spots:,} spots in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    for way in args.way or WAYS:
        command = [sys.executable, __file__, *rest, "--config", args.config]
        command += ["--block", str(args.block), "--way", way, "--child", str(root)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        yield {"way": way, **json.loads(done.stdout.splitlines()[-1])}


def slopes(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns for each way how memory grows from its second-largest run to its largest.

    ``bytes_per_spot`` is that of the peaks above the start; ``far_bytes`` what is above the start
    at 10^7 spots if it goes on so, no projection below the largest run's.
    """
    found = {}
    for way in dict.fromkeys(line["way"] for line in lines):
        ordered = sorted((line for line in lines if line["way"] == way), key=lambda x: x["spots"])
        if len(ordered) < 2:
            continue
        less, more = ordered[-2:]
        grown = more["above_start_bytes"] - less["above_start_bytes"]
        slope = grown / (more["spots"] - less["spots"])
        far = more["above_start_bytes"] + max(0.0, slope) * (FAR - more["spots"])
        found[way] = {"bytes_per_spot": slope, "far_bytes": far}
    return found


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    import samplers

    rows = [
        [line["way"], f"{line['spots']:,}", f"{line['slides']}",
         *(f"{line[name] / 1e6:,.0f}" for name in
           ("start_bytes", "peak_bytes", "above_start_bytes", "end_bytes")),
         f"{line['spots_per_s']:,.0f}", f"{line['written_bytes'] / line['spots']:,.0f}"]
        for line in result["lines"]
    ]  # fmt: skip
    head = ["way", "spots", "slides", "MB at the start", "peak MB", "peak above the start",
            "MB at the end", "spots/s", "bytes written a spot"]  # fmt: skip
    text = (
        f"{result['genes']} genes, {result['condition']} features, units of {result['block']:,} "
        f"spots, every line a process of its own.\n\n{samplers.markdown(head, rows)}"
    )
    grown = [
        f"{way}: {about['bytes_per_spot']:,.1f} bytes a spot between its two largest runs, so "
        f"{about['far_bytes'] / 1e6:,.0f} MB above the start at 10^7 spots by a straight line "
        "(not run)"
        for way, about in result["slopes"].items()
    ]
    return "\n".join([text, "", *(f"- {line}" for line in grown)]).rstrip()


def main(argv: Sequence[str] | None = None) -> None:
    """Measures size by size, prints a line for each way, writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    harness.add_arguments(parser)
    parser.add_argument("--slides", type=int, default=1, help="slides that the spots are spread on")
    parser.add_argument("--block", type=int, default=cohort.BLOCK, help="spots of a unit")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="default: all")
    parser.add_argument("--spots", type=harness.numbers, help="comma-separated; default 1e4 to 1e6")
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.set_defaults(genes=50, condition=64, config=str(harness.ROOT / "configs" / "lite.py"))
    given = [*SMALL, *(sys.argv[1:] if argv is None else argv)]
    args, experiment = harness.parse(parser, given)
    if args.child:
        print(json.dumps(predict(args.child, args.way[0], experiment, args.block)))
        return
    about, lines = harness.surroundings(), []
    rest = [argument for argument in given if argument.startswith("--config.")]
    for spots in args.spots or (SPOTS[:2] if args.quick else SPOTS):
        with tempfile.TemporaryDirectory() as folder:
            for line in measure(args, rest, pathlib.Path(folder), spots):
                lines.append(line)
                harness.emit(line)
    facts = {name: getattr(args, name) for name in ("genes", "condition", "block", "quick")}
    found = harness.result("cohort", about, experiment, lines, slopes=slopes(lines), **facts)
    print(tables(found))
    if args.json:
        harness.save(args.json, found)


if __name__ == "__main__":
    main()
