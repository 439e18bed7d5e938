"""``python -m tests.faults``: what the package says, case by case."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from tests.faults import artefacts, cases, children, patched, playing, pool, scene, verdicts


def main(argv: Sequence[str] | None = None) -> int:
    """Plays the cases asked for; returns 0 if all survived."""
    args = _parse(argv)
    if args.list:
        for kind, weight in cases.KINDS.items():
            say(f"{kind:28s} {weight} of {cases.DECK}")
        return 0
    # A terminal's Ctrl-C and `kill` end it alike: what it started and mounted goes with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    children.import_all()
    playing.require_all_kinds()
    with workplace(args.folder) as (folder, mark):
        art = artefacts.make(folder / "artefacts", mark)
        stage = playing.Stage(
            art=art,
            folder=folder / "cases",
            mark=mark,
            sabotage=tuple(args.sabotage),
            can_mount=scene.can_mount(folder / "mount"),
            keep=args.folder is not None,
        )
        how = "a tmpfs of few kB" if stage.can_mount else "RLIMIT_FSIZE, for nothing can be mounted"
        say(f"full disks are played by {how}")
        found = list(_play(_chosen(args), stage, args))
        if args.retry:
            found = _once_more(found, stage, args)
    counts = collections.Counter(verdict.outcome for verdict in found)
    if args.json:
        args.json.write_text(json.dumps(_report(args, found), indent=1) + "\n")
    numbers = " ".join(f"{name} {counts[name]}" for name in verdicts.OUTCOMES)
    say(f"cases {len(found)} {numbers}")
    return 0 if counts[verdicts.SURVIVED] == len(found) else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--cases", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", default="", metavar="KIND", help="kinds that begin with this")
    parser.add_argument("--case", type=int, metavar="NUMBER", help="play this one again, verbose")
    parser.add_argument("--numbers", metavar="N,N", help="play these")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    parser.add_argument(
        "--retry",
        action="store_true",
        help="play lost cases once more, one at a time, and say so: timing follows the machine's "
        "load, damage does not; a silent case is never played again",
    )
    parser.add_argument("--list", action="store_true", help="show the kinds and their weights")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="write what happened")
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        help="work here, reuse the artefacts, keep the folders of cases that did not survive",
    )
    parser.add_argument(
        "--sabotage", action="append", default=[], choices=sorted(patched.SABOTAGE),
        help="switch a safeguard of the product off: the harness has to see it",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        cases.require_kind(args.only)
    except ValueError as error:
        parser.error(str(error))
    return args


def _chosen(args: argparse.Namespace) -> list[cases.Case]:
    if args.case is not None:
        return [cases.choose(args.seed, args.case)]
    if args.numbers:
        return [cases.choose(args.seed, int(number)) for number in args.numbers.split(",")]
    return list(itertools.islice(cases.of_kind(args.seed, args.only), args.cases))


def _play(
    chosen: list[cases.Case], stage: playing.Stage, args: argparse.Namespace
) -> Iterator[playing.Verdict]:
    started = time.monotonic()
    verbose = args.case is not None
    for done, verdict in enumerate(pool.play_all(chosen, stage, args.jobs), start=1):
        say(
            f"[{done}/{len(chosen)} {time.monotonic() - started:.0f} s] case {verdict.number} "
            f"{verdict.kind}: {verdict.outcome} ({verdict.seconds:.1f} s): {verdict.what}"
        )
        if verdict.outcome != verdicts.SURVIVED or verbose:
            say("    " + verdict.evidence.replace("\n", "\n    "))
        yield verdict


def _once_more(
    found: list[playing.Verdict], stage: playing.Stage, args: argparse.Namespace
) -> list[playing.Verdict]:
    """Replaces lost cases by what becomes of them when nothing else runs beside."""
    lost = [one.number for one in found if one.outcome == verdicts.LOST]
    if not lost:
        return found
    say(f"once more, alone: {', '.join(map(str, lost))}")
    alone = argparse.Namespace(**{**vars(args), "jobs": 1})
    again = {
        one.number: one
        for one in _play([cases.choose(args.seed, number) for number in lost], stage, alone)
    }
    return [again.get(one.number, one) for one in found]


def _report(args: argparse.Namespace, found: list[playing.Verdict]) -> dict[str, object]:
    kinds: dict[str, collections.Counter[str]] = {}
    for verdict in found:
        kinds.setdefault(verdict.kind, collections.Counter())[verdict.outcome] += 1
    return {
        "seed": args.seed,
        "cases": len(found),
        "seconds": round(sum(verdict.seconds for verdict in found), 1),
        "kinds": {
            kind: {name: kinds[kind][name] for name in verdicts.OUTCOMES} for kind in sorted(kinds)
        },
        "failed": [
            dataclasses.asdict(verdict) for verdict in found if verdict.outcome != verdicts.SURVIVED
        ],
    }


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)  # noqa: T201


@contextlib.contextmanager
def workplace(folder: pathlib.Path | None) -> Iterator[tuple[pathlib.Path, str]]:
    """Gives a folder and a mark; at the end no process with it runs, and nothing is mounted."""
    given, mark = folder, secrets.token_hex(8)
    place = pathlib.Path(tempfile.mkdtemp(prefix="stemjax-faults-")) if given is None else given
    place.mkdir(parents=True, exist_ok=True)
    place = place.resolve()
    try:
        yield place, mark
    finally:
        children.kill_left(mark)
        scene.unmount_all(place)
        if given is None:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    # One thread, or forking would be a gamble; numbers of a core are what the product computes too.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted; nothing is left running or mounted")
        sys.exit(130)
