"""``stemjax demo``: everything offline, on drawn sections."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from stemjax.cli import options


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``demo``."""
    parser = commands.add_parser(
        "demo", help="run everything offline on drawn sections with a known law (minutes)"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("stemjax_demo"),
        metavar="DIR",
        help="folder for prediction.h5ad, metrics.json and figures (default: %(default)s)",
    )
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import demo, terminal

    with terminal.Bar("demo") as bar:
        text = demo.run(
            args.out, progress=bar, outputs=lambda steps: terminal.TrainingLine(steps, bar)
        )
    print(text)  # noqa: T201
