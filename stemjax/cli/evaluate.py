"""``stemjax evaluate``: predictions beside their floors, rivals and ceiling."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from stemjax.cli import options, scoring


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``evaluate``."""
    parser = commands.add_parser(
        "evaluate", help="score predictions beside floors, rivals and ceiling; draw figures"
    )
    scoring.add_flags(parser, truth_required=True)
    parser.add_argument(
        "--regression",
        default="train",
        metavar="train|none|DIR",
        help="row of the same backbone as plain regression: train it beside the output for as "
        "many steps as the model, leave it out, or take it from a workdir; a prediction of another "
        "tool has no backbone (default: %(default)s)",
    )
    parser.add_argument("--gene", metavar="NAME", help="gene of the figure (default: a marker)")
    parser.add_argument(
        "--figures", type=pathlib.Path, metavar="DIR", help="default: figures/ beside the output"
    )
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="FILE", help="metrics.json"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import terminal
    from stemjax.eval import evaluate, plain, plots, regression, tables

    asked = scoring.evaluation(args)
    source, predictions = asked["source"], asked["predictions"]
    if all("stemjax" in one.uns for one in predictions) and source.records is not None:
        asked["compare"] |= regression.backbone_rows(
            predictions,
            source.records,
            args.regression,
            default_workdir=args.output.with_name(args.output.stem + "_regression"),
            line=terminal.TrainingLine,
        )
    done = evaluate.evaluate_all(**asked)
    found = evaluate.summarise(done, resamples=args.resamples, seed=args.seed)
    plain.write_json(found, args.output)
    folder, made = args.figures or args.output.parent / "figures", []
    for _, one in done:
        own = folder if len(done) == 1 else folder / one.joined.slide
        made += plots.write_figures(one.joined, own, gene=args.gene)
    print(tables.table(found))  # noqa: T201
    print("\n".join(f"wrote {path}" for path in (args.output, *made)))  # noqa: T201
