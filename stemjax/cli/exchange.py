"""``stemjax import-torch`` and ``stemjax export``: models in and out."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from stemjax.cli import options
from stemjax.foreign import json_text


def add(commands: options.Commands) -> None:
    """Adds the sub-commands ``import-torch`` and ``export``."""
    parser = commands.add_parser(
        "import-torch",
        help="read an official Stem checkpoint (.pt) into a bundle; no torch, nothing executed",
    )
    parser.add_argument("file", type=pathlib.Path, metavar="FILE", help="the .pt file")
    parser.add_argument(
        "--genes",
        type=pathlib.Path,
        required=True,
        metavar="FILE",
        help="the run's selected_gene_list.txt: the genes in the order of training",
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "model"),
        default="ema",
        help="which of its weights; published sampling uses ema (default: %(default)s)",
    )
    parser.add_argument(
        "--heads",
        type=int,
        metavar="N",
        help="attention heads, which no tensor tells (default: width / 64, as published)",
    )
    parser.add_argument(
        "--encoder",
        type=pathlib.Path,
        metavar="FILE",
        help="JSON with the encoder contract of the embeddings that it was trained on (default: "
        "UNI and CONCH side by side, 1536 wide)",
    )
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="BUNDLE", help="folder to write"
    )
    parser.set_defaults(run=_import)

    parser = commands.add_parser("export", help="write a model for other programs")
    parser.add_argument(
        "model", type=pathlib.Path, metavar="DIR", help="workdir of a run, or a bundle"
    )
    parser.add_argument(
        "--format",
        choices=("bundle", "stablehlo", "torch", "torch-edm"),
        required=True,
        help="bundle: a folder of safetensors and JSON; stablehlo: a program of one way of "
        "sampling, which needs jax and not stemjax; torch: a .pt that the original code loads "
        "(models of the published process only); torch-edm: a folder with a PyTorch module that "
        "loads it (Stem and lite models of the EDM process)",
    )
    options.add_weights(parser)
    group = parser.add_argument_group("bundle")
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the weights; bfloat16 halves the size (default: float32)",
    )
    group.add_argument(
        "--metrics",
        type=pathlib.Path,
        metavar="FILE",
        help="metrics.json of `stemjax evaluate` on this model's predictions, to go with it",
    )
    options.add_sampling(parser)
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="PATH", help="what to write"
    )
    parser.set_defaults(run=_export)


def _import(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import errors
    from stemjax.data import embeddings, genes
    from stemjax.export import bundle, published
    from stemjax.models import stem

    contract = None
    if args.encoder is not None:
        try:
            values = json_text.parse(args.encoder.read_text(encoding="utf-8"))
            contract = embeddings.EncoderContract.from_json(values)
        except (OSError, ValueError) as error:
            raise errors.EncoderMismatchError(
                f"the encoder contract {args.encoder} cannot be read ({error})",
                expected="a JSON file with the fields of EncoderContract",
            ) from error
        except errors.EncoderMismatchError as error:
            raise errors.EncoderMismatchError(
                f"{args.encoder}: {error.what}", expected=error.expected, found=error.found
            ) from error
    trained = published.read(
        args.file,
        genes.read_gene_list(args.genes),
        weights=args.weights,
        heads=args.heads,
        contract=contract,
    )
    bundle.write(trained, args.output)
    model, panel = trained.card.experiment.model, trained.card.space.genes
    size = stem.StemConfig(
        genes=len(panel),
        condition=trained.card.contract.width,
        channels=2,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
    )
    print(  # noqa: T201
        f"{args.output}: {stem.parameter_count(size):,} parameters, {len(panel)} genes, width "
        f"{size.width}, depth {size.depth}, {size.heads} heads, weights {args.weights}, "
        f"step {trained.step}"
    )
    print(  # noqa: T201
        f"  embeddings: {trained.card.contract.name}, {size.condition} wide; expression: "
        "log2(count + 1)"
    )


def _export(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax.data import disk, integrity
    from stemjax.export import bundle, program, published, torch_edm

    _require_used(args)
    trained = bundle.open_model(args.model, weights=args.weights)
    n, added = len(trained.calibrations), ""
    if args.format == "bundle":
        if args.metrics is not None:
            trained = bundle.with_scores(trained, _scores(args.metrics), str(args.metrics))
        bundle.write(trained, args.output, dtype=args.dtype or "float32")
    elif args.format == "stablehlo":
        sampling = trained.card.task.sampling(**options.sampling(args))
        program.write(trained, args.output, sampling=sampling)
    else:
        write = {"torch": published.write, "torch-edm": torch_edm.write}[args.format]
        with disk.writing(args.output, fix=integrity.FREE_SPACE):
            write(trained, args.output)
    if n:
        places = {"torch": "a .pt", "torch-edm": "torch-edm", "stablehlo": "a program"}
        place = places.get(args.format)
        dropped = f" left out: {place} has no place for them" if place else ""
        added = f", {n} calibration{'s' * (n != 1)} of intervals{dropped}"
    print(  # noqa: T201
        f"{args.output}: {args.format}, step {trained.step}, weights {trained.weights}{added}"
    )


def _require_used(args: argparse.Namespace) -> None:
    """Refuses flags of another format than the one that is written."""
    from stemjax import errors

    given = {"bundle": [f"--{name}" for name in ("dtype", "metrics") if getattr(args, name)]}
    given["stablehlo"] = [f"--{name.replace('_', '-')}" for name in options.sampling(args)]
    for format_, flags in given.items():
        if flags and args.format != format_:
            raise errors.ConfigError(
                f"{', '.join(flags)} with --format {args.format}", expected=f"--format {format_}"
            )


def _scores(path: pathlib.Path) -> dict[str, Any]:
    from stemjax import errors

    try:
        return dict(json_text.parse(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise errors.BundleError(
            f"{path} cannot be read ({error})", expected="metrics.json of `stemjax evaluate`"
        ) from error
