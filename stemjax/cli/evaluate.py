"""``stemjax evaluate``: a prediction beside its floors."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from stemjax import errors, names
from stemjax.cli import options


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``evaluate``."""
    parser = commands.add_parser(
        "evaluate", help="score a prediction beside its floors, and draw figures"
    )
    parser.add_argument("prediction", type=pathlib.Path, help=".h5ad that `stemjax predict` wrote")
    parser.add_argument(
        "--truth", required=True, metavar="DIRS", help="record folders, comma-separated"
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a further prediction as a row of the table; may be given again",
    )
    parser.add_argument(
        "--regression",
        default="train",
        metavar="train|none|DIR",
        help="row of the same backbone as plain regression: train it beside the output for as "
        "many steps as the model, leave it out, or take it from a workdir (default: %(default)s)",
    )
    parser.add_argument("--gene", metavar="NAME", help="gene of the figure (default: a marker)")
    parser.add_argument(
        "--figures", type=pathlib.Path, metavar="DIR", help="default: figures/ beside the output"
    )
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="FILE", help="metrics.json"
    )
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import terminal
    from stemjax.data import records
    from stemjax.eval import evaluate, plots, predict, regression

    prediction = predict.read(args.prediction)
    source = records.open_records(*names.split_names(args.truth))
    compare = {}
    for item in args.compare:
        name, _, file = item.partition("=")
        if not file:
            raise errors.PredictionError(
                f"--compare {item}", expected="NAME=FILE", fix="write, say, --compare mlp=mlp.h5ad"
            )
        compare[name] = predict.read(file)
    row = regression.backbone_row(
        prediction,
        source,
        args.regression,
        default_workdir=args.output.with_name(args.output.stem + "_regression"),
        line=terminal.TrainingLine,
    )
    compare |= row
    found = evaluate.evaluate(prediction, source, compare=compare)
    evaluate.write_metrics(found, args.output)
    folder = args.figures or args.output.parent / "figures"
    made = plots.write_figures(prediction, source, folder, gene=args.gene)
    print(evaluate.table(found))  # noqa: T201
    print("\n".join(f"wrote {path}" for path in (args.output, *made)))  # noqa: T201
