"""``stemjax split``: folds of the slides of some records, into a manifest."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from stemjax import names
from stemjax.cli import options


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``split``."""
    parser = commands.add_parser(
        "split",
        help="write folds by patient or slide into a manifest",
        epilog="Train on one: --config.data.manifest=FILE --config.data.fold=NAME.",
    )
    options.add_records(parser)
    parser.add_argument(
        "--by",
        choices=("patient", "slide"),
        required=True,
        help="what stays together; by slide, other sections of a test patient may train",
    )
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--k", type=int, metavar="N", help="number of folds")
    how.add_argument(
        "--leave-one-out", action="store_true", help="one fold for each patient or slide"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the folds (default: %(default)s)"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=pathlib.Path,
        required=True,
        metavar="FILE",
        help=".csv or .json to write",
    )
    parser.set_defaults(run=_split)


def _split(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax.data import folds, records
    from stemjax.eval import tables

    patients = records.open_records(*names.split_names(args.records)).patients
    if args.leave_one_out:
        made = folds.leave_one_out(patients, by=args.by)
    else:
        made = folds.k_fold(patients, args.k, by=args.by, seed=args.seed)
    folds.write_manifest(made, args.output)
    cells = [
        [
            name,
            " ".join(split.test),
            ", ".join(sorted({split.patients[slide] or "unknown" for slide in split.test})),
            str(len(split.train)),
            split.kind,
        ]
        for name, split in made.items()
    ]
    head = ["fold", "test slides", "of patients", "training slides", "the number is about"]
    print(tables.markdown(head, cells))  # noqa: T201
    for name, split in made.items():
        for leak in split.leaks:
            print(f"LEAK in fold {name}: {leak}")  # noqa: T201
    print(f"wrote {args.output}")  # noqa: T201
