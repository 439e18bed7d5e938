"""The ``stemjax`` command: parses, resolves, calls.

Heavy libraries are imported inside the commands, so that ``--help`` answers at once and touches no
device. Exit codes: 0 done, 1 a problem that the message explains, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from stemjax import __version__, errors

NOTICE = "Research use only. Not for clinical or diagnostic use."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command and returns its exit code."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command != "train":
        parser.error(f"unknown argument {rest[0]}; see stemjax {args.command} --help")
    try:
        args.run(args, rest)
    except errors.StemjaxError as error:
        if args.debug:
            raise
        print(f"stemjax {args.command}: error [{error.code}]\n  {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("stemjax: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="stemjax",
        description=f"Spatially resolved gene expression from H&E histology. {NOTICE}",
    )
    parser.add_argument("--version", action="version", version=f"stemjax {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_prepare(commands)
    _add_train(commands)
    _add_predict(commands)
    _add_evaluate(commands)
    return parser


type Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _add_demo(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo", help="run everything offline on drawn sections with a known law (minutes)"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("stemjax_demo"),
        metavar="DIR",
        help="folder for prediction.h5ad, metrics.json and figures (default: %(default)s)",
    )
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import demo, terminal

    with terminal.Bar("demo") as bar:
        text = demo.run(
            args.out, progress=bar, outputs=lambda steps: terminal.TrainingLine(steps, bar)
        )
    print(text)  # noqa: T201


def _add_prepare(commands: Commands) -> None:
    parser = commands.add_parser(
        "prepare", help="slides in, records out: gene panel, patch embeddings, counts"
    )
    parser.add_argument(
        "--layout", choices=("st", "hest"), required=True, help="how DATA is laid out"
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
        "--encoder", default="texture", help="patch encoder (default: %(default)s, no download)"
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
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that embed patches (default: all cores)",
    )
    parser.set_defaults(run=_prepare)


def _prepare(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import terminal
    from stemjax.data import genes, hest, prepare, st

    layout = {"st": st, "hest": hest}[args.layout]
    with terminal.Bar("prepare") as bar:
        written = prepare.prepare(
            lambda slide: layout.read_slide(args.data, slide, mpp=args.mpp),
            _names(args.slides) or layout.list_slides(args.data),
            args.out,
            test=_names(args.test),
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
        print(  # noqa: T201
            f"  {info.id}: {info.n_spots} spots, {info.mpp:.3f} um/px, "
            f"patch {info.patch_um:.0f} um, patient {info.patient or 'unknown'}"
        )
        for note in info.notes:
            print(f"    note: {note}")  # noqa: T201


def _add_train(commands: Commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train an experiment of configs/",
        epilog="Any key of the configuration can be set: --config.train.steps=2000 "
        "--config.data.test=C5. Running the same command again goes on from the last checkpoint.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="experiment (Python, run)")
    parser.add_argument(
        "--workdir", type=pathlib.Path, required=True, metavar="DIR", help="run folder"
    )
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import config, configfile, terminal
    from stemjax.data import records
    from stemjax.train import loop

    experiment = config.resolve(configfile.load(args.config, rest))
    source = records.open_records(*config.split_names(experiment.data.records))
    line = terminal.TrainingLine(experiment.train.steps)
    try:
        result = loop.train(experiment, source, args.workdir, outputs=[line])
    finally:
        line.close()
    print(  # noqa: T201
        f"{args.workdir}: step {result.step}, {result.seconds:.0f} s in the loop, "
        f"{result.compile_seconds:.0f} s compiling"
    )
    if result.best is not None:
        print(  # noqa: T201
            f"  best on {experiment.data.val}: step {result.best['step']:.0f}, "
            f"MSE {result.best['val_mse']:.4f}, mean PCC {result.best['val_pcc']:.4f}"
        )


def _add_predict(commands: Commands) -> None:
    parser = commands.add_parser("predict", help="predict a slide's expression into an .h5ad")
    parser.add_argument(
        "--checkpoint", type=pathlib.Path, required=True, metavar="DIR", help="workdir of a run"
    )
    parser.add_argument(
        "--weights",
        choices=("auto", "best", "last"),
        default="auto",
        help="which EMA: the best on validation, the last, or the best where there is one "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--records", required=True, metavar="DIRS", help="record folders, comma-separated"
    )
    parser.add_argument("--slide", required=True, metavar="ID", help="slide to predict")
    parser.add_argument(
        "--mode",
        choices=("mean", "pair", "draws"),
        default="mean",
        help="mean: one evaluation a spot; pair: mean of one antithetic pair; draws: samples "
        "with spread (default: %(default)s)",
    )
    parser.add_argument(
        "--n-draws", type=int, default=20, metavar="N", help="samples a spot (default: %(default)s)"
    )
    parser.add_argument("--independent", action="store_true", help="draw without antithetic pairs")
    parser.add_argument(
        "--sampler",
        choices=("dpmpp2m", "ddim", "heun"),
        default="dpmpp2m",
        help="step rule (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=8, metavar="N", help="noise levels (default: %(default)s)"
    )
    parser.add_argument(
        "--eta", type=float, default=0.0, help="fresh noise of ddim, 0 to 1 (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--rows",
        type=int,
        default=256,
        metavar="N",
        help="(spot, draw) pairs on the device at a time; no effect on results "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="FILE", help=".h5ad to write"
    )
    parser.set_defaults(run=_predict)


def _predict(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import tasks, terminal
    from stemjax.data import records
    from stemjax.eval import predict
    from stemjax.train import checkpoint

    sampling = tasks.Sampling(
        mode=args.mode,
        sampler=args.sampler,
        steps=args.steps,
        n_draws=args.n_draws,
        antithetic=not args.independent,
        eta=args.eta,
    )
    trained = checkpoint.load(args.checkpoint, weights=args.weights)
    source = records.open_records(*_names(args.records))
    with terminal.Bar("predict") as bar:
        result = predict.predict_slide(
            trained, source, args.slide, sampling, seed=args.seed, rows=args.rows, progress=bar
        )
    predict.write(result, args.output)
    print(  # noqa: T201
        f"{args.output}: {result.n_obs} spots, {result.n_vars} genes, mode {args.mode}, "
        f"{sampling.evaluations} network evaluation{'s' * (sampling.evaluations != 1)} a spot"
    )


def _add_evaluate(commands: Commands) -> None:
    parser = commands.add_parser(
        "evaluate", help="score a prediction beside its floors, and draw figures"
    )
    parser.add_argument("prediction", type=pathlib.Path, help=".h5ad that `stemjax predict` wrote")
    parser.add_argument(
        "--truth", required=True, metavar="DIRS", help="record folders, comma-separated"
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a further prediction as a row of the table; may be given again",
    )
    parser.add_argument(
        "--regression",
        default="train",
        metavar="train|none|DIR",
        help="row of the same backbone as plain regression: train it beside the output for as "
        "many steps as the model, leave it out, or take it from a workdir (default: %(default)s)",
    )
    parser.add_argument("--gene", metavar="NAME", help="gene of the figure (default: a marker)")
    parser.add_argument(
        "--figures", type=pathlib.Path, metavar="DIR", help="default: figures/ beside the output"
    )
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="FILE", help="metrics.json"
    )
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import terminal
    from stemjax.data import records
    from stemjax.eval import evaluate, plots, predict, regression

    prediction = predict.read(args.prediction)
    source = records.open_records(*_names(args.truth))
    compare = {}
    for item in args.compare:
        name, _, file = item.partition("=")
        if not file:
            raise errors.PredictionError(
                f"--compare {item}", expected="NAME=FILE", fix="write, say, --compare mlp=mlp.h5ad"
            )
        compare[name] = predict.read(file)
    row = regression.backbone_row(
        prediction,
        source,
        args.regression,
        default_workdir=args.output.with_name(args.output.stem + "_regression"),
        line=terminal.TrainingLine,
    )
    compare |= row
    found = evaluate.evaluate(prediction, source, compare=compare)
    evaluate.write_metrics(found, args.output)
    folder = args.figures or args.output.parent / "figures"
    made = plots.write_figures(prediction, source, folder, gene=args.gene)
    print(evaluate.table(found))  # noqa: T201
    print("\n".join(f"wrote {path}" for path in (args.output, *made)))  # noqa: T201


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    sys.exit(main())
