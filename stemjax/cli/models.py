"""``stemjax models``, ``stemjax push`` and ``stemjax pull``: what a model is, and sharing it."""

from __future__ import annotations

import argparse
import pathlib
import textwrap
from collections.abc import Mapping, Sequence

from stemjax.cli import options

_WIDTH = 100
_INDENT = 24
_COLUMNS = 4
"""Of the table of scores, which has more in the model card."""


def add(commands: options.Commands) -> None:
    """Adds the sub-commands ``models``, ``push`` and ``pull``."""
    parser = commands.add_parser("models", help="what a bundle or a run's model is")
    inner = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    info = inner.add_parser(
        "info", help="check a model and print its genes, slides, encoder, training and scores"
    )
    info.add_argument("model", type=pathlib.Path, metavar="MODEL", help="a bundle, or a workdir")
    options.add_weights(info)
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)

    parser = commands.add_parser("push", help="put a bundle on the hub, private by default")
    parser.add_argument(
        "bundle", type=pathlib.Path, metavar="BUNDLE", help="folder of stemjax export"
    )
    parser.add_argument(
        "address",
        metavar="hub:OWNER/NAME[@BRANCH]",
        help="where to; the repository is made if there is none (branch: main)",
    )
    parser.add_argument("--public", action="store_true", help="everybody may read it")
    parser.add_argument(
        "--license",
        metavar="ID",
        help="licence of the weights for the model card, as the hub has it: apache-2.0, ... "
        "(default: the card goes as it is)",
    )
    parser.set_defaults(run=_push)

    parser = commands.add_parser("pull", help="fetch a bundle from the hub, every file checked")
    parser.add_argument(
        "address",
        metavar="hub:OWNER/NAME@REVISION",
        help="REVISION is a commit; of a branch or tag the commit is looked up and printed",
    )
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="DIR", help="folder to write"
    )
    parser.set_defaults(run=_pull)


def _info(args: argparse.Namespace, rest: Sequence[str]) -> None:
    import json

    from stemjax.export import bundle, facts, model_card

    trained = bundle.open_model(args.model, weights=args.weights)
    sections = facts.describe(trained)
    head, rows = facts.scores(trained)
    if args.json:
        table = [dict(zip(["row", *head[1:]], row)) for row in rows]
        print(json.dumps({**sections, "Scores": table}, indent=1))  # noqa: T201
        return
    name = facts.clean(args.model, most=400)
    checked = "a run's workdir"
    if bundle.is_bundle(args.model) or str(args.model) in bundle.SHIPPED:
        checked = "hashes, names and shapes are right, and it computes its example"
    print(f"{name}: {checked}")  # noqa: T201
    for section, fields in sections.items():
        print(_block(section, fields))  # noqa: T201
    if head:
        few = [line[:_COLUMNS] for line in (head, *rows)]
        print(f"\n{_aligned(few[0], few[1:])}")  # noqa: T201
        if any(row[0].endswith(" *") for row in rows):
            print("  * sees the test slide's own measurements: a floor or ceiling")  # noqa: T201
    print(f"\n{model_card.NOTICE}")  # noqa: T201


def _push(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax.export import hub

    address = hub.Address.parse(args.address)
    pinned = hub.push(args.bundle, address, public=args.public, licence=args.license)
    seen = "public" if args.public else "private"
    print(f"{args.bundle} -> {pinned} ({seen})")  # noqa: T201
    print(f"  stemjax pull {pinned} -o DIR")  # noqa: T201


def _pull(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax.export import hub

    address = hub.Address.parse(args.address)
    pinned = hub.pull(address, args.output)
    if pinned != address:
        print(f"{address} is {pinned} now: name that one to get the same again")  # noqa: T201
    print(f"{pinned} -> {args.output}: every file as its list says, example computed")  # noqa: T201


def _block(section: str, fields: Mapping[str, str]) -> str:
    """A section's fields, names to the left, text beside them."""
    lines = [f"\n{section}"]
    for name, text in fields.items():
        room = " " * _INDENT
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=f"  {name}".ljust(_INDENT), subsequent_indent=room
        ) or [f"  {name}"]
    return "\n".join(lines)


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in (head, *rows)
    ]
    return "\n".join(f"  {line}" for line in lines)
