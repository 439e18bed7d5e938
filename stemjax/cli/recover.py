"""``stemjax recover``: hide spots of a slide, train on the others, predict and score the hidden."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from stemjax.cli import options, scoring


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``recover``."""
    parser = commands.add_parser(
        "recover",
        help="hide a share of a slide's spots, train on the others, predict and score the hidden",
        epilog="Any key of the configuration can be set, as with `stemjax train`. Running the same "
        "command again goes on from the last checkpoint.",
    )
    options.add_records(parser)
    parser.add_argument("--slide", required=True, metavar="ID", help="slide to recover")
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="experiment (Python, run), such as "
        "configs/histosge.py",
    )  # fmt: skip
    parser.add_argument(
        "--workdir", type=pathlib.Path, required=True, metavar="DIR", help="run folder"
    )
    parser.add_argument(
        "--hide",
        choices=("spots", "blocks"),
        help="single spots, or whole squares of the array, which is harder (default: the "
        "configuration's, spots)",
    )
    parser.add_argument(
        "--share", type=float, metavar="S", help="share to hide (default: the configuration's, .5)"
    )
    parser.add_argument("--hide-seed", type=int, metavar="N", help="chooses the spots")
    parser.add_argument(
        "--train",
        metavar="IDS",
        help="slides that train beside it, comma-separated (default: none)",
    )
    options.add_run(parser)
    options.add_sampling(parser)
    scoring.add_leave_out(parser)
    parser.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="also write the scores there"
    )
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="FILE", help=".h5ad to write"
    )
    parser.set_defaults(run=_run)


def _overrides(args: argparse.Namespace) -> dict[str, object]:
    """Keys of the configuration that the flags set."""
    given = {"hide": args.hide, "hide_share": args.share, "hide_seed": args.hide_seed}
    given |= {"train": args.train}
    kept = {name: value for name, value in given.items() if value is not None}
    return {"records": args.records, "recover": args.slide, **kept}


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import config, configfile, names, terminal
    from stemjax.data import records
    from stemjax.eval import evaluate, plain, predict, tables
    from stemjax.train import loop

    values = configfile.load(args.config, rest)
    values.data.update(_overrides(args))
    experiment = config.resolve(values)
    asked, leave_out = options.sampling(args), scoring.left_out(args)
    source = records.open_records(*names.split_names(args.records))
    source.require(args.slide)
    trained = loop.train_shown(experiment, source, args.workdir, terminal.TrainingLine)
    sampling = trained.card.task.sampling(**asked)
    with terminal.Bar("predict") as bar:
        result = predict.predict_slide(
            trained, source, args.slide, sampling, seed=args.seed, rows=args.rows, progress=bar
        )
    predict.write(result, args.output)
    found = evaluate.evaluate(result, source, leave_out=leave_out)
    if args.json:
        plain.write_json(found, args.json)
    print(tables.table(found))  # noqa: T201
    every = found["slides"][0]["all_spots"]
    print(  # noqa: T201
        f"on all {every['spots']:.0f} spots, the measured ones too (as published, no test): "
        f"PCC {tables.number(every['pcc'], 3)}, MSE {tables.number(every['mse'], 3)}"
    )
    written = [path for path in (args.output, args.json) if path]
    print("\n".join(f"wrote {path}" for path in written))  # noqa: T201
