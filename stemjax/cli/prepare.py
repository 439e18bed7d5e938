"""``stemjax prepare``: slides in, records out."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stemjax import errors, names
from stemjax.cli import encoding, options, reading

if TYPE_CHECKING:
    from stemjax.data import genes, records


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``prepare``."""
    # Without abbreviations: --shard and --shards are two things, and neither is guessed.
    parser = commands.add_parser(
        "prepare",
        help="slides in, records out: gene panel, patch embeddings, counts",
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="PATH", help="slides")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="records")
    parser.add_argument(
        "--slides", default="", metavar="IDS", help="comma-separated slides (default: all)"
    )
    parser.add_argument(
        "--test",
        default="",
        metavar="IDS",
        help="comma-separated slides that are written but never seen by the gene panel",
    )
    panel = parser.add_mutually_exclusive_group()
    panel.add_argument("--genes", type=pathlib.Path, metavar="FILE", help="gene list, one a line")
    panel.add_argument(
        "--n-genes",
        type=int,
        default=200,
        metavar="N",
        help="size of the panel chosen by Stem's rule (default: %(default)s)",
    )
    parser.add_argument(
        "--n-variable",
        type=int,
        default=2000,
        metavar="N",
        help="the most variable genes of each slide that the panel is chosen among; a number above "
        "the genome's lets abundant markers in that vary little for their mean "
        "(default: %(default)s, as published)",
    )
    parser.add_argument(
        "--panel-slides",
        choices=("train", "all"),
        default="train",
        help="slides that choose the panel; 'all' is as published and lets test slides in "
        "(default: %(default)s)",
    )
    panel.add_argument(
        "--model",
        metavar="DIR",
        help="workdir or bundle whose genes, in their order, are the panel",
    )
    parser.add_argument(
        "--orthologues",
        type=pathlib.Path,
        metavar="FILE",
        help="table of human and mouse genes, for a panel of the other species",
    )
    parser.add_argument(
        "--aliases",
        type=pathlib.Path,
        metavar="FILE",
        help="table of other names of genes, such as retired symbols",
    )
    encoding.add_flags(parser, default="texture, no download")
    reading.add_flags(parser, default=reading.AUTO)
    parser.add_argument(
        "--variants",
        type=int,
        default=8,
        metavar="N",
        help="flips and turns of each patch that training draws among (default: %(default)s)",
    )
    parser.add_argument(
        "--shards",
        type=_files,
        metavar="N",
        help="files that each slide's records are spread over (default: one per 128 MB); which "
        "slides are written is --shard",
    )
    share = parser.add_mutually_exclusive_group()
    share.add_argument(
        "--shard",
        metavar="I/N",
        help="write only share I of N of the slides, I from 0 to N-1: one of N processes, each "
        "started with the same options otherwise; how a slide is stored is --shards",
    )
    share.add_argument(
        "--panel-only",
        action="store_true",
        help="choose and write the gene panel, and no slide: once, before N processes with --shard",
    )
    options.add_workers(parser)
    parser.set_defaults(run=_prepare)


def _files(text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(
        f"expected a number of files a slide, found {text!r}; a share of the slides is --shard I/N"
    )


def _prepare(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import terminal
    from stemjax.data import prepare

    part = options.share(args.shard)
    need_image = encoding.needs_image(args, args.encoder or "texture")
    list_slides, read = reading.reader(args, args.data, need_image=need_image)
    ids = names.split_names(args.slides) or tuple(list_slides())
    panel = {
        "test": names.split_names(args.test),
        "genes": _given_panel(args),
        "n_genes": args.n_genes,
        "n_variable": args.n_variable,
        "panel_slides": args.panel_slides,
    }
    with terminal.Bar("prepare") as bar:
        if args.panel_only:
            chosen = prepare.choose_panel(read, ids, args.out, **panel, progress=bar)
            _say(f"{args.out}: a panel of {len(chosen.genes)} genes ({chosen.rule}), no slide")
            return
        try:
            written = prepare.prepare(
                read,
                ids,
                args.out,
                part=part,
                **panel,
                **_tables(args),
                encoder=encoding.make(args),
                variants=args.variants,
                shards=args.shards,
                workers=args.workers,
                progress=bar,
            )
        except errors.SlidesFailedError as error:
            if error.written:
                _describe(prepare.open_slides(args.out, error.written), args.out)
            raise
    if part is not None and not written.slides:
        _say(f"{args.out}: nothing to do for shard {args.shard}, there are {len(ids)} slides")
        return
    _describe(written, f"{args.out}" + (f", shard {args.shard}" if part else ""))


def _tables(args: argparse.Namespace) -> dict[str, Any]:
    """Tables of gene names that are given."""
    from stemjax.data import orthologues

    return {
        "orthologues": orthologues.read_orthologues(args.orthologues) if args.orthologues else None,
        "aliases": orthologues.read_aliases(args.aliases) if args.aliases else None,
    }


def _given_panel(args: argparse.Namespace) -> genes.Panel | None:
    """The panel that is given; None where one is to be chosen."""
    from stemjax.data import genes

    if args.genes:
        return genes.read_gene_list(args.genes)
    if args.model:
        from stemjax.eval import new_slide
        from stemjax.export import bundle

        return new_slide.panel_of(bundle.open_model(args.model).card)
    return None


def _describe(written: records.Records, where: object) -> None:
    """Prints what the records hold, a slide a line."""
    _say(f"{where}: {len(written.slides)} slides, {len(written.genes)} genes")
    for info in written.slides.values():
        patch = f"patch {info.patch_um:.0f} um" if info.patch_um else "no patch"
        _say(
            f"  {info.id}: {info.n_spots} spots, {info.mpp:.3f} um/px, "
            f"{patch}, patient {info.patient or 'unknown'}"
        )
        for name, values in written.labels(info.id).items():
            _say(f"    label: {name}, {sum(map(bool, values))} spots")
        for note in info.notes:
            _say(f"    note: {note}")


def _say(line: str) -> None:
    print(line)  # noqa: T201
