"""Training: updates with and without the input pipeline, and what memory and time cost each other.

    uv run python benchmarks/training.py --config configs/stem_published.py --quick --json OUT
    uv run python benchmarks/training.py --config configs/stem_published.py --json OUT

A row is a way to feed the step and a form of the step. Feed ``none`` gives every update the same
batch, which lies on the device: the step without an input pipeline. ``ram``, ``stream`` and
``device`` are the views of `stemjax.data.pipeline` on records made for the purpose, driven as the
training loop drives them: the host hands over calls without waiting for the device, so the clock
is stopped after ``--updates`` of them and not after each. ``of_none`` is a row's rate as a share of
the row without input and of equal form: what is missing to 1 is what the input costs.

The rows are every feed in the first form, then each other value of calls, batch, accumulate, remat
and dtype on the device feed, which is what an accelerator trains with. FLOP are 3 times those of a
forward pass by formula; what remat computes again is not counted as work.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import harness
import jax
from made_records import SLIDE, made_records
from roofs import Roofs

from stemjax import config, errors, mesh
from stemjax.data import pipeline, space
from stemjax.train import dispatch
from stemjax.train import state as states
from stemjax.train import step as steps

FEEDS = ("none", "ram", "stream", "device")
AXES = ("calls", "batch", "accumulate", "remat", "dtype")
FAILURES = (errors.StemjaxError, ValueError, jax.errors.JaxRuntimeError)
"""What a row may end in without ending the run: the row says so."""

type Programs = dict[Any, tuple[jax.stages.Compiled, float]]
"""(rows on the device?, form) -> compiled call, and the seconds that compiling it took."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What a row measures.

    Attributes:
      feed: where batches come from, one of `FEEDS`.
      calls: updates a call of the device.
      batch: spots an update, over all devices.
      accumulate: parts of a batch, one after another.
      remat: ``none`` or ``blocks``.
      dtype: of the blocks' products.
    """

    feed: str
    calls: int
    batch: int
    accumulate: int
    remat: str
    dtype: str

    @property
    def form(self) -> tuple[Any, ...]:
        """The form of the step: all but the feed."""
        return tuple(getattr(self, name) for name in AXES)

    def experiment(self, base: config.Experiment) -> config.Experiment:
        """Returns the experiment in this row's form."""
        model = dataclasses.replace(base.model, dtype=self.dtype, remat=self.remat == "blocks")
        train = dataclasses.replace(base.train, batch=self.batch, accumulate=self.accumulate)
        return dataclasses.replace(base, model=model, train=train)


def rows_of(args: argparse.Namespace) -> list[Row]:
    """Returns the rows that the flags ask for, none twice."""
    values = {name: getattr(args, name) for name in AXES}
    first = {name: found[0] for name, found in values.items()}
    rows = [Row(feed=feed, **first) for feed in args.feeds]
    rows += [
        Row(feed=feed, **first | {name: value})
        for name, found in values.items()
        for value in found[1:]
        for feed in args.vary
    ]
    return list(dict.fromkeys(rows))


class Run:
    """A row's step with what feeds it: `advance` is what is timed.

    Attributes:
      program: the compiled call.
      compile_s: seconds of tracing and compiling it.

    Args:
      row: the form.
      base: the experiment.
      view: where the rows lie.
      schedule: which of them a step shows.
      programs: those compiled before; a new one is added.
      genes: size of the panel.
      condition: embedding width.
    """

    def __init__(
        self,
        row: Row,
        base: config.Experiment,
        view: pipeline.View,
        schedule: pipeline.Schedule,
        programs: Programs,
        *,
        genes: int,
        condition: int,
    ) -> None:
        experiment, self._row, self._view = row.experiment(base), row, view
        self._layout = mesh.make_layout()
        task = config.make_task(experiment, genes=genes, condition=condition)
        optimizer = states.make_optimizer(experiment.optim, experiment.train.steps)

        def init(key: jax.Array) -> states.TrainState:
            fresh = states.init_state(task, optimizer, key)
            return dataclasses.replace(fresh, params=harness.awake(fresh.params))

        key = jax.random.key(0)
        shardings = self._layout.shardings(jax.eval_shape(init, key))
        self._state = jax.jit(init, out_shardings=shardings)(key)
        step = steps.make_train_step(
            task, optimizer, ema=experiment.optim.ema, seed=0, accumulate=row.accumulate
        )
        self._handed = view.batches(schedule, 0, 10**6)
        self._given = self._put()
        call = dispatch.make_call(step, view.show)
        # Views of the host hand over the same arrays: their rows of one form share a program.
        kind = (bool(view.table), row.form)
        if kind not in programs:
            made: list[jax.stages.Compiled] = []

            def compile_once() -> None:
                made.append(
                    steps.compile_update(call, self._layout, self._state, view.table, self._given)
                )

            seconds = harness.time_calls(compile_once, repeats=1, warm_up=0).median
            programs[kind] = made[0], seconds
        self.program, self.compile_s = programs[kind]

    def advance(self, calls: int) -> steps.Metrics:
        """Returns the metrics after so many calls; the host runs ahead of the device."""
        metrics: steps.Metrics = {}
        for _ in range(calls):
            given = self._given if self._row.feed == "none" else self._put()
            self._state, metrics = self.program(self._state, self._view.table, given)
        return metrics

    def _put(self) -> dict[str, Any]:
        return self._layout.put(
            dispatch.stack(list(itertools.islice(self._handed, self._row.calls)))
        )

    def close(self) -> None:
        """Ends the threads that make batches ahead."""
        close: Callable[[], None] | None = getattr(self._handed, "close", None)
        if close:
            close()


def measure(
    row: Row, base: config.Experiment, make_view: Callable[[str], pipeline.View],
    programs: Programs, args: argparse.Namespace, measured: Roofs,
) -> dict[str, Any]:  # fmt: skip
    """Returns the line of a row; one that cannot run says why in ``failed``."""
    line: dict[str, Any] = dataclasses.asdict(row)
    try:
        view = make_view("ram" if row.feed == "none" else row.feed)
        schedule = pipeline.Schedule(n=view.n, batch=row.batch, seed=0, variants=view.variants)
        run = Run(row, base, view, schedule, programs, genes=args.genes, condition=args.condition)
        try:
            calls = max(1, args.updates // row.calls)
            roof = measured.around()
            timing = harness.time_calls(
                run.advance,
                lambda i: (calls,),
                repeats=args.repeats,
                warm_up=args.warm_up,
                seconds=args.seconds,
            )
            beside = roof()
        finally:
            run.close()
        flops = 3 * config.flops_per_evaluation(
            row.experiment(base), genes=args.genes, condition=args.condition
        )
        line |= {"updates": calls * row.calls, "compile_s": run.compile_s}
        line |= {name: timing.line[name] for name in ("median_s", "quartiles_s", "repeats")}
        line |= rates(line, flops, beside) | memory(run.program)
    except FAILURES as error:
        line["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return line


def rates(line: dict[str, Any], flops: int, roof: dict[str, Any]) -> dict[str, Any]:
    """Returns what a row does in a second, and the shares of what the device could do.

    Args:
      line: with ``updates``, ``batch``, ``dtype`` and ``median_s``.
      flops: of one spot's part of an update.
      roof: what `roofs.roof` measured, for one device.
    """
    updates = line["updates"] / line["median_s"]
    rate, known = updates * line["batch"] * flops, roof["rating"]
    devices = jax.device_count()
    return {
        "steps_per_s": updates,
        "examples_per_s": updates * line["batch"],
        "flop_per_example": flops,
        "flop_per_s": rate,
        "share_of_matmul": rate / devices / roof["matmul_flop_per_s"][line["dtype"]],
        "share_of_rating": rate / devices / known["bfloat16"] if known else None,
    }


def memory(program: jax.stages.Compiled) -> dict[str, Any]:
    """Returns the bytes on each device: in use, temporary, and of a state that lies there twice."""
    found: Any = program.memory_analysis()
    return {
        "memory_bytes": dispatch.memory_bytes(program),
        "temp_bytes": found.temp_size_in_bytes,
        "argument_bytes": found.argument_size_in_bytes,
        "not_in_place_bytes": found.output_size_in_bytes - found.alias_size_in_bytes,
    }


def with_shares(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines with each row's rate as a share of the row without input, where it ran."""

    def form(line: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(line[name] for name in AXES)

    alone = {
        form(line): line["examples_per_s"]
        for line in lines
        if line["feed"] == "none" and "failed" not in line
    }
    return [
        line if "failed" in line or form(line) not in alone
        else line | {"of_none": line["examples_per_s"] / alone[form(line)]}
        for line in lines
    ]  # fmt: skip


def read_flags(argv: list[str] | None = None) -> tuple[argparse.Namespace, config.Experiment]:
    """Returns the flags, with the defaults that depend on device and ``--quick``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    harness.add_arguments(parser)
    parser.add_argument("--feeds", type=harness.names, help="default: " + ",".join(FEEDS))
    parser.add_argument("--calls", type=harness.numbers, help="updates a call")
    parser.add_argument("--batch", type=harness.numbers, help="spots an update")
    parser.add_argument("--accumulate", type=harness.numbers, help="parts of a batch")
    parser.add_argument("--remat", type=harness.names, help="none, blocks")
    parser.add_argument("--dtype", type=harness.names, help="default: the experiment's first")
    parser.add_argument(
        "--vary", type=harness.names, help="feeds that the other values are tried on"
    )
    parser.add_argument("--spots", type=int, help="rows of the records that are made")
    parser.add_argument("--updates", type=int, help="updates that the clock runs over")
    parser.add_argument("--repeats", type=int, help="times of them, at least")
    parser.add_argument("--warm-up", type=int, help="untimed times before them")
    parser.add_argument("--seconds", type=float, help="times go on for as long")
    args, experiment = harness.parse(parser, argv)
    cpu, quick, dtype = jax.default_backend() == "cpu", args.quick, experiment.model.dtype
    brief, other = quick and cpu, "float32" if dtype == "bfloat16" else "bfloat16"
    defaults: dict[str, Any] = {
        "feeds": list(FEEDS),
        "calls": [1] if brief else [1, 2] if cpu else [1, 10],
        "batch": [8] if brief else [16, 64] if cpu else [256, 1024],
        "accumulate": [1] if quick else [1, 4],
        "remat": ["none"] if quick else ["none", "blocks"],
        # On a CPU bfloat16 takes 2.4 times as long, and a quick run says so for nobody.
        "dtype": ["float32" if cpu else dtype] if quick else [dtype, other],
        "vary": ["device"],
        "spots": 256 if quick else 4096,
        "updates": 1 if brief else 2 if cpu else 20,
        "repeats": 2 if quick else 10,
        "warm_up": 1,
        "seconds": 0.0 if quick else 3.0,
    }
    harness.fill(args, defaults)
    if unknown := [feed for feed in (*args.feeds, *args.vary) if feed not in FEEDS]:
        parser.error(f"no feed {unknown[0]!r}: {', '.join(FEEDS)}")
    return args, experiment


@contextlib.contextmanager
def _views(
    base: config.Experiment, args: argparse.Namespace
) -> Iterator[Callable[[str], pipeline.View]]:
    """Yields residence -> view of the records that it makes; one view of each is made."""
    with made_records(spots=args.spots, n_genes=args.genes, width=args.condition) as (opened, _):
        fitted = space.Space.fit(
            opened.load([SLIDE]), genes=opened.genes, transform=base.data.transform
        )
        views: dict[str, pipeline.View] = {}

        def make_view(residence: Any) -> pipeline.View:
            if residence not in views:
                views[residence] = pipeline.choose_view(
                    opened,
                    [SLIDE],
                    fitted,
                    residence=residence,
                    sharding=mesh.make_layout().replicated,
                )
            return views[residence]

        yield make_view


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    import samplers

    def cell(value: Any, digits: int = 3) -> str:
        return "" if value is None else f"{value:.{digits}g}"

    lines = [line for line in with_shares(result["lines"]) if "failed" not in line]
    keys = ("examples_per_s", "steps_per_s", "of_none", "share_of_matmul", "share_of_rating",
            "compile_s")  # fmt: skip
    head = ["feed", *AXES, "examples/s", "steps/s", "of no input", "of matmul", "of rating",
            "compile s", "memory MB", "temporary MB"]  # fmt: skip
    cells = [
        [str(line["feed"]), *(str(line[name]) for name in AXES)]
        + [cell(line.get(key)) for key in keys]
        + [cell(line[key] / 1e6) for key in ("memory_bytes", "temp_bytes")]
        for line in lines
    ]
    rates = ", ".join(
        f"{rate / 1e9:.0f} GFLOP/s {dtype}"
        for dtype, rate in result["roof"]["matmul_flop_per_s"].items()
    )
    parts = [
        f"Network: width {result['model']['width']}, depth {result['model']['depth']}, "
        f"{result['genes']} genes, condition {result['condition']}. Matrix products of the same "
        f"run: {rates}.",
        samplers.markdown(head, cells),
    ]
    failed = [
        f"- {line['feed']}, {', '.join(f'{name} {line[name]}' for name in AXES)}: {line['failed']}"
        for line in result["lines"]
        if "failed" in line
    ]
    if failed:
        parts.append("Rows that did not run:\n\n" + "\n".join(failed))
    return "\n\n".join(parts)


def main() -> None:
    """Measures row by row; what is measured so far is on disk after each."""
    args, experiment = read_flags()
    about, measured = harness.surroundings(), Roofs(repeats=5 if args.quick else 10)
    facts = {
        "quick": args.quick,
        "model": dataclasses.asdict(experiment.model),
        "genes": args.genes,
        "condition": args.condition,
        "spots": args.spots,
    }
    lines: list[dict[str, Any]] = []
    programs: Programs = {}
    with _views(experiment, args) as make_view:
        for row in rows_of(args):
            lines.append(measure(row, experiment, make_view, programs, args, measured))
            harness.emit(lines[-1])
            if args.json:
                found = with_shares(lines)
                harness.save(
                    args.json,
                    harness.result(
                        "training", about, experiment, found, roof=measured.mean, **facts
                    ),
                )


if __name__ == "__main__":
    main()
