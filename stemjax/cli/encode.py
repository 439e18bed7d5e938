"""``stemjax encode``: patches of slides into files of embeddings, which any tool reads."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stemjax import errors
from stemjax.cli import encoding, options, reading

if TYPE_CHECKING:
    from stemjax.data import embeddings, slides


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``encode``."""
    parser = commands.add_parser(
        "encode",
        help="embed the patches of slides, or of images alone, into .h5 files",
        description="Each SLIDE is an image, or a folder of slides in any layout. Every slide "
        "becomes ID.h5 with `embeddings`, `barcodes` and `coords` as HEST-bench has them, and the "
        "encoder's contract; `stemjax prepare --embeddings` reads it. A file that is there and of "
        "the same encoder and slide is kept.",
    )
    parser.add_argument("slides", nargs="*", type=pathlib.Path, metavar="SLIDE", help="see above")
    parser.add_argument(
        "--list", action="store_true", help="the encoders, with widths, licences and access"
    )
    parser.add_argument(
        "--fetch",
        metavar="REVISION",
        help="download the weights from the hub at this commit (40 hexadecimal digits; HF_TOKEN in "
        "the environment for gated ones), tell where they are, and embed slides if any are given",
    )
    encoding.add_encoder(parser, default="texture")
    parser.add_argument(
        "--weights",
        dest="encoder_weights",
        type=pathlib.Path,
        metavar="FILE",
        help="the same as --encoder-weights",
    )
    reading.add_flags(parser, default=reading.AUTO)
    parser.add_argument(
        "--variants",
        type=int,
        default=1,
        metavar="N",
        help="flips and turns of each patch: 8 for training with them (default: %(default)s)",
    )
    options.add_workers(parser)
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, metavar="DIR", help="folder of the .h5 files"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    if args.list:
        _list()
        return
    if args.fetch:
        _fetch(args)
        if not args.slides:
            return
    if not args.slides or args.output is None:
        raise errors.ConfigError(
            "stemjax encode",
            expected="slides to embed and -o DIR, or --list",
            found="no slides" if not args.slides else "no -o DIR",
        )
    encoder = encoding.make(args)
    readers = [reading.reader(args, path, need_image=True) for path in args.slides]
    work = [(list_slides(), read) for list_slides, read in readers]
    ids = [slide for slides, _ in work for slide in slides]
    if twice := sorted({slide for slide in ids if ids.count(slide) > 1}):
        raise errors.SlideError(
            f"slides {', '.join(twice[:5])} would be written to one file",
            expected="each slide under a name of its own",
            fix="embed them into folders of their own",
        )
    failed: dict[str, str] = {}
    for slides, read in work:
        for slide in slides:
            try:
                _encode(args, encoder, slide, read)
            except errors.StemjaxError as error:
                if len(ids) == 1:
                    raise
                failed[slide] = str(error)
                _say(f"{slide}: failed, {error}")
    if failed:
        raise errors.SlidesFailedError(
            f"{len(failed)} of {len(ids)} slides could not be embedded",
            failed=failed,
            written=[slide for slide in ids if slide not in failed],
            fix="Mend them and give the same command again: it embeds what is missing",
        )


def _encode(
    args: argparse.Namespace,
    encoder: embeddings.Encoder | embeddings.Embedder,
    slide_id: str,
    read: Callable[[str], slides.Slide],
) -> None:
    from stemjax import terminal
    from stemjax.data import patches
    from stemjax.data.embedding_files import own

    path = args.output / f"{slide_id}.h5"
    slide = read(slide_id)
    for note in slide.notes:
        _say(f"{slide_id}: {note}")
    if own.is_written(path, slide, encoder.contract, variants=args.variants):
        _say(f"{path}: there already, {slide.n_spots} spots")
        return
    with terminal.Bar("encode", unit="patches") as bar:
        values = patches.embed_slide(
            slide, encoder, variants=args.variants, workers=args.workers, progress=bar
        )
    args.output.mkdir(parents=True, exist_ok=True)
    own.write(path, values, slide, encoder.contract)
    side = patches.patch_side_px(slide, encoder.contract)
    _say(
        f"{path}: {slide.n_spots} spots x {values.shape[2]} features of {encoder.contract.name}, "
        f"patches of {side} px = {side * slide.mpp:.0f} um"
    )


def _list() -> None:
    rows = [("NAME", "WIDTH", "INPUT", "FIELD", "HERE", "ACCESS", "LICENCE", "HUB"), *_rows()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        _say("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[-1]]).rstrip())


def _rows() -> list[tuple[str, ...]]:
    from stemjax import encoders

    return [
        (
            row.name,
            str(row.width),
            f"{row.input_px} px",
            f"{row.fov_um:g} um" if row.fov_um else "stem's",
            "built in" if row.built_in else "weights" if row.available else "files",
            row.access,
            row.licence,
            row.hub,
        )
        for row in encoders.list_entries()
    ]


def _fetch(args: argparse.Namespace) -> None:
    from stemjax import encoders
    from stemjax.encoders import hub

    if not args.encoder:
        raise errors.ConfigError("--fetch", expected="--encoder beside it, to say whose weights")
    if args.encoder_weights is not None:
        raise errors.ConfigError("--fetch", expected="no --weights beside it: it brings them")
    args.encoder_weights = hub.download(encoders.resolve(args.encoder).name, revision=args.fetch)
    _say(f"{args.encoder_weights}: weights of {args.encoder}")


def _say(line: str) -> None:
    print(line)  # noqa: T201
