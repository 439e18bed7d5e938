"""``stemjax train``: an experiment of configs/."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from stemjax import names
from stemjax.cli import options


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``train``."""
    parser = commands.add_parser(
        "train",
        help="train an experiment of configs/",
        epilog="Any key of the configuration can be set: --config.train.steps=2000 "
        "--config.data.test=C5. Running the same command again goes on from the last checkpoint. "
        "SIGTERM and Ctrl-C save first; exit code 143 or 130 then.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="experiment (Python, run)")
    parser.add_argument(
        "--workdir", type=pathlib.Path, required=True, metavar="DIR", help="run folder"
    )
    parser.add_argument(
        "--start",
        metavar="MODEL",
        help="run or bundle whose weights and space the run starts from (default: random weights)",
    )
    parser.add_argument(
        "--steal-lock",
        action="store_true",
        help="take DIR from a job that is dead and does not look it",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        metavar="N",
        help="start again when the run crashes, is killed or loses a process, N times at most "
        "without progress in between; for machines without a scheduler",
    )
    options.add_no_verify(parser)
    options.add_processes(parser)
    parser.set_defaults(run=_train, supervise=_supervise)


def _supervise(args: argparse.Namespace, argv: Sequence[str]) -> int | None:
    """Runs the command as a child where restarts are asked for; returns its exit code."""
    if args.max_restarts is None:
        return None
    from stemjax.cli import restarts

    return restarts.supervise(
        restarts.child(argv),
        most=args.max_restarts,
        progress=lambda: restarts.newest_step(args.workdir),
    )


def _train(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import config, configfile, distributed, terminal
    from stemjax.data import records
    from stemjax.export import bundle
    from stemjax.train import loop

    experiment = config.resolve(configfile.load(args.config, rest))
    source = records.open_records(
        *names.split_names(experiment.data.records),
        on_corrupt=experiment.data.on_corrupt,
        hashed=not args.no_verify,
    )
    if args.no_verify and distributed.is_first():
        print(options.UNHASHED.format("shards of records"), flush=True)  # noqa: T201
    start = bundle.open_model(args.start) if args.start else None
    line = terminal.TrainingLine(experiment.train.steps) if distributed.is_first() else None
    try:
        outputs = [line] if line else []
        result = loop.train(
            experiment, source, args.workdir, outputs=outputs, start=start, steal=args.steal_lock
        )
    finally:
        if line:
            line.close()
    if not distributed.is_first():
        return
    print(  # noqa: T201
        f"{args.workdir}: step {result.step}, {result.seconds:.0f} s in the loop, "
        f"{result.compile_seconds:.0f} s compiling"
    )
    if result.best is not None:
        print(  # noqa: T201
            f"  best on {experiment.data.val or f'val of fold {experiment.data.fold}'}: "
            f"step {result.best['step']:.0f}, "
            f"MSE {result.best['val_mse']:.4f}, mean PCC {result.best['val_pcc']:.4f}"
        )
