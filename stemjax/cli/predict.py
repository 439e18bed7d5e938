"""``stemjax predict``: expression of a slide on disk or in records, or of many, into .h5ad."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stemjax import errors, names
from stemjax.cli import cohort, encoding, options, reading
from stemjax.foreign import json_text

if TYPE_CHECKING:
    import anndata

    from stemjax import tasks, terminal
    from stemjax.train.trained import Trained


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``predict``."""
    parser = commands.add_parser(
        "predict",
        help="predict the expression of a slide, or of many, into .h5ad",
        description="Of SLIDE, an image or a folder in any layout: tissue, spots, patches, "
        "encoder, sampling. Or of slides that `stemjax prepare` wrote: --records.",
    )
    parser.add_argument(
        "path", nargs="?", type=pathlib.Path, metavar="SLIDE", help="a slide that has no records"
    )
    options.add_checkpoint(parser)
    parser.add_argument("--records", metavar="DIRS", help="record folders, comma-separated")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--slide", metavar="ID", help="one slide, into the file -o (default: the only one there is)"
    )
    which.add_argument(
        "--slides",
        metavar="IDS|all|test",
        help="many slides, comma-separated, all of the records, or the model's test slides: into "
        "the folder -o; what is there already is kept",
    )
    options.add_run(parser)
    parser.add_argument(
        "--likelihood",
        choices=("none", "exact", "hutchinson"),
        default="none",
        help="also write how unlikely each measured profile is given its patch, and given another "
        "spot's: by every gene's derivative, or estimated by 4 probes (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=pathlib.Path,
        required=True,
        metavar="FILE|DIR",
        help=".h5ad to write, or with --slides a folder",
    )
    cohort.add_flags(parser)
    options.add_processes(parser)
    encoding.add_flags(parser, default="the model's")
    reading.add_flags(parser, default=reading.AUTO)
    options.add_workers(parser)
    options.add_no_verify(parser)
    options.add_sampling(parser)
    _add_summary(parser)
    _add_steering(parser)
    parser.set_defaults(run=_run, wrong_usage=parser.error)


def _add_summary(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draws",
        choices=("h5ad", "zarr", "none"),
        help="with --mode draws, where they go: into the .h5ad; into a zarr store beside it, in "
        "chunks of spots; or nowhere, with mean, spread and quantiles kept (default: h5ad)",
    )
    parser.add_argument("--summary-only", action="store_true", help="the same as --draws none")
    parser.add_argument(
        "--quantiles",
        default="",
        metavar="LEVELS",
        help="with --draws none, quantiles of the draws to write, e.g. .05,.5,.95",
    )


def _summary(args: argparse.Namespace, sampling: tasks.Sampling) -> tasks.Summary | None:
    """What is kept of the draws, or None for the draws themselves."""
    from stemjax import tasks

    levels = names.split_names(args.quantiles)
    if args.summary_only and args.draws not in (None, "none"):
        raise errors.ConfigError(
            "--summary-only", expected="--draws none, or no --draws", found=f"--draws {args.draws}"
        )
    if not (args.summary_only or args.draws == "none"):
        if levels:
            raise errors.ConfigError(
                "--quantiles", expected="--summary-only or --draws none beside it"
            )
        return None
    try:
        quantiles = tuple(map(float, levels))
    except ValueError as error:
        raise errors.ConfigError(
            "--quantiles", expected="numbers from 0 to 1", found=args.quantiles
        ) from error
    return tasks.Summary(antithetic=sampling.in_pairs, quantiles=quantiles)


def _add_steering(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("steering", "what the prediction is given besides patches")
    group.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="SCALE",
        help="classifier-free guidance; with --guide, autoguidance; 1 is none and costs nothing "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--guide", type=pathlib.Path, metavar="DIR", help="a lesser model to guide away from"
    )
    group.add_argument(
        "--given",
        type=pathlib.Path,
        metavar="FILE",
        help="genes whose measured counts the prediction is told, one a line",
    )
    group.add_argument(
        "--given-method",
        choices=("moment", "replacement"),
        default="moment",
        help="moment: exact for a Gaussian law, two evaluations a gene given; replacement: one "
        "evaluation, and the other genes follow too weakly (default: %(default)s)",
    )


def _intervals(result: anndata.AnnData, args: argparse.Namespace, *, steered: bool) -> str:
    """A line on the calibrated intervals that were written, or why none were."""
    if text := result.uns["stemjax"].get("calibration"):
        about = json_text.parse(text)
        levels = "/".join(f"{100 * level:g}" for level in about["levels"])
        without = len(about["genes_without"])
        return f"calibrated intervals of {levels} %, by {', '.join(about['slides'])}" + (
            f"; none for {without} genes not measured there" if without else ""
        )
    if steered:
        return "no calibrated intervals: none are made for steered predictions"
    return (
        f"no calibrated intervals: `stemjax calibrate {args.checkpoint} --records DIRS`, with the "
        "same sampling, makes them"
    )


def _check(args: argparse.Namespace) -> None:
    """Ends the command as wrong usage where the flags name no slide, or two ways to it."""
    if (args.path is None) == (args.records is None):
        what = "neither" if args.path is None else "both"
        args.wrong_usage(f"give SLIDE, an image or a folder, or --records: found {what}")
    if args.path is not None and args.slides is not None:
        args.wrong_usage("--slides needs --records: prepare the slides first")
    if args.records is not None and args.slides is None and args.slide is None:
        args.wrong_usage("--records needs --slide or --slides beside it")


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import tasks, terminal
    from stemjax.data import genes, records
    from stemjax.eval import cohort as cohort_lib
    from stemjax.eval import h5ad, predict, steering
    from stemjax.export import bundle

    _check(args)
    cohort.check(args)
    asked = options.sampling(args)
    sampling = tasks.Sampling(**asked)  # what cannot be is named before a model is read
    summary = _summary(args, sampling)
    if args.no_verify:
        print(options.UNHASHED.format("shards of records and steps of runs"), flush=True)  # noqa: T201
    trained = bundle.open_model(args.checkpoint, weights=args.weights, hashed=not args.no_verify)
    sampling = trained.card.task.sampling(**asked)
    steer = steering.Steering(
        scale=args.guidance,
        weak=bundle.open_model(args.guide) if args.guide else None,
        given=genes.read_gene_list(args.given).genes if args.given else (),
        method=args.given_method,
    )
    asked = {
        "seed": args.seed,
        "rows": args.rows,
        "summary": summary,
        "steer": steer,
        "divergence": args.likelihood,
    }
    if args.path is not None:
        with terminal.Bar("predict") as bar:
            result = _predict_new(trained, args, sampling, bar, asked)
        _finish(result, args, sampling, steered=not steer.is_none)
        return
    # Of many slides those that can be read are predicted.
    unreadable: dict[pathlib.Path, errors.RecordsError] = {}
    source = records.open_records(
        *names.split_names(args.records),
        damaged=None if args.slides is None else unreadable.__setitem__,
        hashed=not args.no_verify,
    )
    if args.slides is not None:
        draws = "zarr" if args.draws == "zarr" else "h5ad"
        job = cohort_lib.Job(
            trained=trained, source=source, sampling=sampling, draws=draws, **asked
        )
        cohort.run(job, args, unreadable)
        return
    spots = source.require(args.slide).n_spots
    h5ad.warn_if_short(args.output, trained, sampling, spots=spots, summary=summary)
    with terminal.Bar("predict") as bar:
        result = predict.predict_slide(trained, source, args.slide, sampling, **asked, progress=bar)
    _finish(result, args, sampling, steered=not steer.is_none)


def _predict_new(
    trained: Trained,
    args: argparse.Namespace,
    sampling: tasks.Sampling,
    bar: terminal.Bar,
    asked: dict[str, Any],
) -> anndata.AnnData:
    """The prediction of a slide that no records hold."""
    from stemjax.data import layouts
    from stemjax.eval import new_slide

    contract = trained.card.contract
    need_image = encoding.needs_image(args, args.encoder or contract.name)
    list_slides, read = reading.reader(args, args.path, need_image=need_image)
    encoder = encoding.make_for(args, contract)
    slide = args.slide
    if slide is None:
        slide = layouts.only_slide(list_slides(), args.path, say="--slide ID")
    bar(0, 1, f"reading {slide}")
    found = read(slide)
    for note in found.notes:
        print(f"{slide}: {note}")  # noqa: T201
    return new_slide.predict_new_slide(
        trained, found, encoder, sampling, workers=args.workers, progress=bar, **asked
    )


def _finish(
    result: anndata.AnnData,
    args: argparse.Namespace,
    sampling: tasks.Sampling,
    *,
    steered: bool,
) -> None:
    """Writes one slide's prediction, and says what it is."""
    import numpy as np

    from stemjax.eval import cohort as cohort_lib
    from stemjax.eval import draw_files, mismatch, predict

    if args.draws == "zarr":
        store = args.output.with_suffix(".draws.zarr")
        draw_files.move_out(result, store, block=cohort_lib.BLOCK)
        print(f"{store}: the draws")  # noqa: T201
    predict.write(result, args.output)
    calls = int(result.uns["stemjax"]["evaluations_per_spot"])
    print(  # noqa: T201
        f"{args.output}: {result.n_obs} spots, {result.n_vars} genes, mode {sampling.mode}, "
        f"{calls} network evaluation{'s' * (calls != 1)} a spot"
    )
    if predict.STANDARD_ERROR in result.layers:
        error = np.asarray(result.layers[predict.STANDARD_ERROR]).mean()
        print(f"  standard error of the mean of the draws: {error:.3f} on average")  # noqa: T201
    for warning in result.uns["stemjax"]["warnings"]:
        print(f"  WARNING: {warning}")  # noqa: T201
    print(f"  {_intervals(result, args, steered=steered)}")  # noqa: T201
    if mismatch.NLL in result.obs:
        own, other = (np.asarray(result.obs[key]) for key in (mismatch.NLL, mismatch.NLL_OTHER))
        print(  # noqa: T201
            f"  negative log likelihood: {own.mean():.3f} nats a gene; given another spot's patch "
            f"{other.mean():.3f}; its own explains it better in {(own < other).mean():.0%} of spots"
        )
