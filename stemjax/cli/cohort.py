"""``stemjax predict --slides``: many slides into a folder."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from stemjax import errors, names
from stemjax.cli import options

if TYPE_CHECKING:
    from stemjax.eval import cohort as cohort_lib

ALL, TEST = "all", "test"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that only the prediction of many slides takes."""
    group = parser.add_argument_group("many slides", "with --slides")
    group.add_argument(
        "--block",
        type=int,
        metavar="N",
        help="spots of a slide that are read, predicted and stored at a time; bounds the memory "
        "and has no effect on results (default: 16384)",
    )
    group.add_argument(
        "--shard",
        metavar="I/N",
        help="do share I of N, from 0/N to (N-1)/N, and leave the others to other processes, which "
        "may run elsewhere on the same folder (default: all, or this process's share of the "
        "distributed run that it is part of)",
    )


def check(args: argparse.Namespace) -> None:
    """Checks what can be wrong before a model is read.

    Raises:
      ConfigError: flags that do not go together, or a share that is none.
    """
    if args.slides is None:
        for flag in ("block", "shard"):
            if getattr(args, flag) is not None:
                raise errors.ConfigError(f"--{flag}", expected="--slides beside it")
        return
    if args.output.exists() and not args.output.is_dir():
        raise errors.ConfigError(
            f"-o {args.output}", expected="a folder, for --slides", found="a file"
        )
    options.share(args.shard)


def run(
    job: cohort_lib.Job,
    args: argparse.Namespace,
    unreadable: Mapping[pathlib.Path, errors.RecordsError],
) -> None:
    """Predicts the slides that were asked for.

    Args:
      job: what is asked of each.
      args: of the command.
      unreadable: folders of slides that could not be opened, with the reason.

    Raises:
      SlidesFailedError: some could not be predicted; the others were.
    """
    from stemjax import distributed, terminal
    from stemjax.data import builder, failures
    from stemjax.eval import cohort, written

    missing = {builder.slide_of(folder): error for folder, error in unreadable.items()}
    asked = _asked(job, args.slides, missing)
    slides = [slide for slide in asked if slide not in missing]
    failed = {slide: str(missing[slide]) for slide in asked if slide in missing}
    for slide in failed:
        failures.record(args.output, slide, missing[slide])
    outcome = None
    if slides:
        earlier = sum(written.is_done(args.output, s, job.request(s)) for s in slides)
        _say(f"{earlier} of {len(asked)} slides done earlier, {len(asked) - earlier} to do")
        with terminal.Bar("predict", unit="spots") as bar:
            outcome = cohort.predict_cohort(
                job,
                slides,
                args.output,
                block=cohort.BLOCK if args.block is None else args.block,
                part=options.share(args.shard),
                progress=bar,
            )
        failed |= outcome.failed
        rate = outcome.spots / max(outcome.seconds, 1e-9)
        _say(
            f"{args.output}: {len(outcome.done)} slides finished, {outcome.spots:,} spots in "
            f"{outcome.seconds:.1f} s, {rate:,.0f} spots/s; {args.output / written.INDEX} lists all"
        )
        if outcome.waiting:
            _say(f"  parts by other processes are not there yet: {', '.join(outcome.waiting)}")
    # A process that ended would take the connection of those that still predict with it.
    distributed.wait("the other shares of the slides")
    if failed:
        raise errors.SlidesFailedError(
            f"{len(failed)} of {len(asked)} slides could not be predicted",
            failed=failed,
            written=() if outcome is None else (*outcome.earlier, *outcome.done),
            fix="Mend them and give the same command again: it predicts what is missing",
        )


def _asked(job: cohort_lib.Job, text: str, unreadable: Mapping[str, object]) -> list[str]:
    """The ids of the slides that are asked for, sorted."""
    if text == ALL:
        return sorted({*job.source.slides, *unreadable})
    if text == TEST:
        return sorted(job.trained.card.split["test"])
    found = names.split_names(text)
    if len(set(found)) < len(found) or not found:
        raise errors.ConfigError(
            "--slides", expected="all, test, or ids, each once", found=text or "nothing"
        )
    return sorted(found)


def _say(line: str) -> None:
    print(line)  # noqa: T201
