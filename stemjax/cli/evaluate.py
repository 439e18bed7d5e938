"""``stemjax evaluate``: predictions beside their floors, rivals and ceiling."""

from __future__ import annotations

import argparse
import hashlib
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stemjax.cli import options, scoring, verify

if TYPE_CHECKING:
    from stemjax.eval import shares


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``evaluate``."""
    parser = commands.add_parser(
        "evaluate", help="score predictions beside floors, rivals and ceiling; draw figures"
    )
    scoring.add_flags(parser, truth_required=True)
    parser.add_argument(
        "--regression",
        default="train",
        metavar="train|none|DIR",
        help="row of the same backbone as plain regression: train it beside the output for as "
        "many steps as the model, leave it out, or take it from a workdir; a prediction of another "
        "tool has no backbone (default: %(default)s)",
    )
    parser.add_argument("--gene", metavar="NAME", help="gene of the figure (default: a marker)")
    parser.add_argument(
        "--figures", type=pathlib.Path, metavar="DIR", help="default: figures/ beside the output"
    )
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="FILE", help="metrics.json"
    )
    verify.add_no_verify(parser)
    options.add_processes(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    with verify.as_asked(args):
        _evaluate(args)


def _evaluate(args: argparse.Namespace) -> None:
    from stemjax import distributed, terminal
    from stemjax.eval import evaluate, plain, shares, tables

    distributed.require_agreement(_asked(args))
    with distributed.together():
        job = _job(args)
    distributed.require_agreement(_digest(job))
    results = shares.gather(job, shares.evaluate_share(job, line=terminal.TrainingLine))
    found = {}
    with distributed.together():
        if distributed.is_first():
            found = evaluate.tabulate(results, resamples=args.resamples, seed=args.seed)
            plain.write_json(found, args.output)
    folder = args.figures or args.output.parent / "figures"
    made = shares.draw_figures(job, folder, gene=args.gene)
    if distributed.is_first():
        print(tables.table(found))  # noqa: T201
        print("\n".join(f"wrote {path}" for path in (args.output, *made)))  # noqa: T201


def _job(args: argparse.Namespace) -> shares.Job:
    from stemjax.eval import shares

    scoring.require_one_slide(args)
    files, compare = tuple(args.predictions), scoring.compared(args)
    shares.require_files(files, compare)
    return shares.Job(
        files=files,
        compare=compare,
        regression=args.regression,
        workdir=args.output.with_name(args.output.stem + "_regression"),
        **scoring.scored(args),
    )


def _asked(args: argparse.Namespace) -> dict[str, str]:
    """What has to be asked of all processes alike: every flag, of one code and its libraries."""
    import importlib.metadata

    from stemjax.train import runs

    own = ("coordinator", "process_count", "process_index", "alone", "debug", "run")
    flags = {name: repr(value) for name, value in vars(args).items() if name not in own}
    libraries = ("jax", "jaxlib", "numpy", "scipy", "scikit-learn")
    return {
        **{name if name == "predictions" else f"--{name}": flags[name] for name in flags},
        "version of stemjax": runs.code_digest(),
        "set of libraries": " ".join(
            f"{name} {importlib.metadata.version(name)}" for name in libraries
        ),
    }


def _digest(job: shares.Job) -> dict[str, str]:
    """What the truth holds, where it is records."""
    records = job.source.records
    held = {} if records is None else {one: info.digest for one, info in records.slides.items()}
    return {"set of records": hashlib.sha256(repr(held).encode()).hexdigest()}
