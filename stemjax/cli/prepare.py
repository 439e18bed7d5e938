"""``stemjax prepare``: slides in, records out."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from stemjax import names
from stemjax.cli import options


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``prepare``."""
    parser = commands.add_parser(
        "prepare", help="slides in, records out: gene panel, patch embeddings, counts"
    )
    parser.add_argument(
        "--layout", choices=options.LAYOUTS, required=True, help="how DATA is laid out"
    )
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR", help="slides")
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
    parser.add_argument(
        "--encoder",
        default="texture",
        help="patch encoder: texture, or none for slides without an image "
        "(default: %(default)s, no download)",
    )
    parser.add_argument(
        "--mpp",
        type=float,
        metavar="UM",
        help="pixel size in um/px, where the files do not say it (default: metadata, spot pitch)",
    )
    parser.add_argument(
        "--shards", type=int, metavar="N", help="shards a slide (default: one per 128 MB)"
    )
    options.add_workers(parser)
    parser.set_defaults(run=_prepare)


def _prepare(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import terminal
    from stemjax.data import genes, no_image, prepare

    layout = options.layout(args.layout)
    with terminal.Bar("prepare") as bar:
        written = prepare.prepare(
            lambda slide: layout.read_slide(
                args.data, slide, mpp=args.mpp, need_image=args.encoder != no_image.CONTRACT.name
            ),
            names.split_names(args.slides) or layout.list_slides(args.data),
            args.out,
            test=names.split_names(args.test),
            genes=genes.read_gene_list(args.genes) if args.genes else None,
            n_genes=args.n_genes,
            n_variable=args.n_variable,
            panel_slides=args.panel_slides,
            encoder=args.encoder,
            shards=args.shards,
            workers=args.workers,
            progress=bar,
        )
    print(f"{args.out}: {len(written.slides)} slides, {len(written.genes)} genes")  # noqa: T201
    for info in written.slides.values():
        patch = f"patch {info.patch_um:.0f} um" if info.patch_um else "no patch"
        print(  # noqa: T201
            f"  {info.id}: {info.n_spots} spots, {info.mpp:.3f} um/px, "
            f"{patch}, patient {info.patient or 'unknown'}"
        )
        for name, values in written.labels(info.id).items():
            print(f"    label: {name}, {sum(map(bool, values))} spots")  # noqa: T201
        for note in info.notes:
            print(f"    note: {note}")  # noqa: T201
