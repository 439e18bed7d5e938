"""``stemjax report``: one self-contained page of a prediction, or its numbers as CSV or JSON."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from stemjax.cli import options, scoring, verify


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``report``."""
    parser = commands.add_parser(
        "report", help="one self-contained page: scores, floors, alerts, maps, calibration"
    )
    scoring.add_flags(parser, truth_required=False)
    parser.add_argument(
        "--genes",
        metavar="NAMES",
        help="genes of the maps, comma-separated (default: markers of the panel)",
    )
    parser.add_argument(
        "--format",
        choices=("html", "csv", "json"),
        help="default: by the output's name, html where that says nothing",
    )
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="FILE", help="file to write"
    )
    verify.add_no_verify(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    with verify.as_asked(args):
        _report(args)


def _report(args: argparse.Namespace) -> None:
    from stemjax import errors, names
    from stemjax.eval import evaluate, joining, plain, report, tables

    suffix = args.output.suffix.lower()[1:]
    kind = args.format or (suffix if suffix in ("csv", "json") else "html")
    genes = tuple(names.split_names(args.genes)) if args.genes else ()
    if args.truth is None:
        if kind != "html":
            raise errors.PredictionError(
                f"scores as {kind}", expected="--truth", fix="say what was measured with --truth"
            )
        pages = [joining.read(path) for path in args.predictions]
        plain.write_text(args.output, report.without_truth(pages, genes=genes))
        print(f"wrote {args.output}: no truth was given, so it holds no scores")  # noqa: T201
        return
    asked = scoring.evaluation(args)
    done = evaluate.evaluate_all(**asked)
    found = evaluate.summarise(done, resamples=args.resamples, seed=args.seed)
    if kind == "json":
        plain.write_json(found, args.output)
    elif kind == "csv":
        plain.write_text(args.output, tables.to_csv(found))
    else:
        plain.write_text(args.output, report.render(done, found, genes=genes))
    for alert in found["alerts"]:
        if alert["level"] != "note":
            print(f"{alert['level'].upper()}: {alert['title']}. {alert['text']}")  # noqa: T201
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e3:,.0f} kB)")  # noqa: T201
