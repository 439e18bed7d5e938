"""``stemjax densify``: expression at points between a slide's spots."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stemjax import errors, names
from stemjax.cli import encoding, options, reading

if TYPE_CHECKING:
    from stemjax.eval import densify


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``densify``."""
    parser = commands.add_parser(
        "densify",
        help="predict expression at points between a slide's spots, on the array's own geometry",
    )
    options.add_checkpoint(parser)
    options.add_records(parser)
    parser.add_argument("--slide", required=True, metavar="ID", help="slide to densify")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--factor",
        type=int,
        metavar="N",
        help="so many points where there was one: 4, 9, 16, ... (default: 4)",
    )
    group.add_argument("--pitch", type=float, metavar="UM", help="distance between points in um")
    group.add_argument(
        "--points",
        metavar="FILE",
        help="points of a table with columns x_um and y_um, or x and y in full-resolution pixels",
    )
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        metavar="PATH",
        help="the slide's files, as `prepare` was given them; needed where the encoder sees the "
        "image",
    )
    encoding.add_encoder(parser, default="the records'")
    reading.add_flags(parser, default=reading.AUTO)
    options.add_workers(parser)
    options.add_run(parser)
    options.add_sampling(parser)
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="FILE", help=".h5ad to write"
    )
    parser.set_defaults(run=_run)


def _reader(args: argparse.Namespace) -> densify.Read | None:
    if args.data is None:
        if args.layout != reading.AUTO:
            raise errors.ConfigError(
                f"--layout {args.layout}", expected="--data PATH beside it", found="none"
            )
        return None
    return reading.reader(args, args.data, need_image=True)[1]


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import terminal
    from stemjax.data import records
    from stemjax.eval import densify, predict
    from stemjax.export import bundle

    trained = bundle.open_model(args.checkpoint, weights=args.weights)
    sampling = trained.card.task.sampling(**options.sampling(args))
    source = records.open_records(*names.split_names(args.records))
    read = _reader(args)
    encoder = None if read is None else encoding.make_for(args, source.contract)
    factor = args.factor
    if (factor, args.pitch, args.points) == (None, None, None):
        factor = 4
    chosen = densify.choose_points(
        source,
        args.slide,
        factor=factor,
        pitch_um=args.pitch,
        file=args.points,
    )
    with terminal.Bar("densify") as bar:
        asked = densify.points_table(
            source, args.slide, chosen, read, encoder=encoder, workers=args.workers, progress=bar
        )
        result = densify.predict_points(
            trained, source, args.slide, asked, sampling, seed=args.seed, rows=args.rows,
            progress=bar,
        )  # fmt: skip
    predict.write(result, args.output)
    beside = len(chosen.names) - asked.n
    print(  # noqa: T201
        f"{args.output}: {result.n_obs - asked.n} spots and {asked.n} points "
        f"{chosen.spacing_um:.0f} um apart, {result.n_vars} genes, mode {sampling.mode}"
        + (f"; {beside} points beside the image left out" if beside else "")
    )
