"""``stemjax compare``: several evaluations in one table."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from stemjax.cli import options


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``compare``."""
    parser = commands.add_parser(
        "compare", help="several evaluations in one table, with paired intervals"
    )
    parser.add_argument(
        "results",
        nargs="+",
        type=pathlib.Path,
        metavar="FILE",
        help="JSON of `stemjax evaluate` or `stemjax report --format json`; the others are "
        "compared with the first",
    )
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, metavar="FILE", help="also write the table as JSON"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax.eval import compare, plain

    results: dict[str, dict] = {}
    for path in args.results:
        # Two files of one name in different folders are told apart by their folders.
        alone = sum(other.name == path.name for other in args.results) == 1
        results[path.stem if alone else str(path)] = compare.read(path)
    found = compare.compare(results)
    print(compare.table(found), end="")  # noqa: T201
    if args.output:
        plain.write_json(found, args.output)
        print(f"wrote {args.output}")  # noqa: T201
