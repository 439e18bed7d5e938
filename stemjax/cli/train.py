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
        "--config.data.test=C5. Running the same command again goes on from the last checkpoint.",
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
    options.add_processes(parser)
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import config, configfile, distributed, terminal
    from stemjax.data import records
    from stemjax.export import bundle
    from stemjax.train import loop

    experiment = config.resolve(configfile.load(args.config, rest))
    source = records.open_records(*names.split_names(experiment.data.records))
    start = bundle.open_model(args.start) if args.start else None
    line = terminal.TrainingLine(experiment.train.steps) if distributed.is_first() else None
    try:
        outputs = [line] if line else []
        result = loop.train(experiment, source, args.workdir, outputs=outputs, start=start)
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
