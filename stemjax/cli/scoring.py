"""Flags that `stemjax evaluate` and `stemjax report` share, and what they open."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from stemjax import errors, names


def add_flags(parser: argparse.ArgumentParser, *, truth_required: bool) -> None:
    """Adds what is scored, against what, and how; `evaluation` reads it."""
    parser.add_argument(
        "predictions",
        nargs="+",
        type=pathlib.Path,
        metavar="FILE",
        help=".h5ad of `stemjax predict` or of another tool (predicted values in X, barcodes and "
        "gene names); one for each slide",
    )
    parser.add_argument(
        "--truth",
        required=truth_required,
        metavar="DIRS|FILE",
        help="what was measured: record folders, comma-separated, or one .h5ad of raw counts",
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="NAME=FILE[,FILE...]",
        help="a further prediction of the same slides as a row of the table; may be given again",
    )
    group = parser.add_argument_group(
        "another tool's prediction", "what a file without uns['stemjax'] does not say of itself"
    )
    group.add_argument("--slide", metavar="ID", help="its slide (default: by its barcodes)")
    group.add_argument(
        "--value-space",
        choices=names.VALUE_SPACES,
        default="log2p1",
        help="units of its X: log2(count + 1), ln(count + 1) or ln(1 + counts per 10,000) "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--train",
        metavar="IDS",
        help="slides it was trained on, for the rivals (default: all others of the truth)",
    )
    group = parser.add_argument_group("scoring")
    group.add_argument(
        "--resamples",
        type=int,
        default=500,
        metavar="N",
        help="for the intervals; 0 for none (default: %(default)s)",
    )
    group.add_argument("--seed", type=int, default=0, help="of resamples and baselines")
    add_leave_out(group)


def add_leave_out(parser: argparse._ActionsContainer) -> None:
    """Adds the rivals that are not fitted; `left_out` reads them."""
    parser.add_argument(
        "--leave-out",
        default="",
        metavar="NAMES",
        help="rivals not to fit, comma-separated, such as 'MLP,embedding kNN'",
    )


def left_out(args: argparse.Namespace) -> list[str]:
    """Returns the rivals that are not fitted.

    Raises:
      ConfigError: a name that is none of a rival that takes time.
    """
    from stemjax.eval import baselines

    found = list(names.split_names(args.leave_out))
    if unknown := sorted(set(found) - baselines.SLOW):
        raise errors.ConfigError(
            f"--leave-out {', '.join(unknown)}",
            expected=f"some of {', '.join(sorted(baselines.SLOW))}: the others take no time",
        )
    return found


def evaluation(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `stemjax.eval.evaluate.evaluate_all` that the flags say."""
    from stemjax.eval import joining

    require_one_slide(args)
    read = [joining.read(path) for path in args.predictions]
    given = compared(args).items()
    compare = {name: [joining.read(path) for path in paths] for name, paths in given}
    return {"predictions": read, "compare": compare, **scored(args)}


def scored(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what the flags say of the truth and of how to score, whatever is predicted."""
    from stemjax.eval import joining, truth

    train = None if args.train is None else tuple(names.split_names(args.train))
    return {
        "source": truth.open_truth(args.truth),
        "resamples": args.resamples,
        "seed": args.seed,
        "foreign": joining.Foreign(
            slide=args.slide, value_space=args.value_space, train_slides=train
        ),
        "leave_out": left_out(args),
    }


def require_one_slide(args: argparse.Namespace) -> None:
    """Checks that ``--slide`` has one prediction beside it.

    Raises:
      PredictionError: it has several.
    """
    if args.slide is not None and len(args.predictions) > 1:
        raise errors.PredictionError(
            "--slide names one slide", expected="one prediction", found=str(len(args.predictions))
        )


def compared(args: argparse.Namespace) -> dict[str, list[pathlib.Path]]:
    """Returns the files of further predictions by row name.

    Raises:
      PredictionError: a ``--compare`` is not NAME=FILE.
    """
    found = {}
    for item in args.compare:
        name, _, files = item.partition("=")
        if not name or not files:
            raise errors.PredictionError(
                f"--compare {item}", expected="NAME=FILE", fix="write, say, --compare mlp=mlp.h5ad"
            )
        found[name] = [pathlib.Path(file) for file in names.split_names(files)]
    return found
