"""``stemjax calibrate``: intervals that hold what they say, stored with the model."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from stemjax import names
from stemjax.cli import options


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``calibrate``."""
    parser = commands.add_parser(
        "calibrate", help="calibrate a model's intervals on validation slides"
    )
    parser.add_argument(
        "model",
        type=pathlib.Path,
        metavar="MODEL",
        help="workdir of a run, or a bundle; the calibration is stored in it",
    )
    options.add_weights(parser)
    options.add_records(parser)
    parser.add_argument(
        "--slides",
        default="",
        metavar="IDS",
        help="slides to calibrate on, comma-separated: none that trained or tests the model "
        "(default: its validation slides)",
    )
    options.add_run(parser)
    options.add_sampling(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import tasks, terminal
    from stemjax.data import records
    from stemjax.eval import calibrate
    from stemjax.export import bundle

    asked = options.sampling(args)
    tasks.Sampling(**asked)  # what cannot be is named before a model is read
    trained = bundle.open_model(args.model, weights=args.weights)
    sampling = trained.card.task.sampling(**asked)
    source = records.open_records(*names.split_names(args.records))
    with terminal.Bar("calibrate") as bar:
        made = calibrate.calibrate(
            trained,
            source,
            sampling,
            slides=names.split_names(args.slides),
            seed=args.seed,
            rows=args.rows,
            progress=bar,
        )
    file = bundle.add_calibration(trained, made, args.model)
    print(f"{file}: {calibrate.table(made, trained.card, source)}")  # noqa: T201
