"""``stemjax verify``: whether files are as they were written."""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stemjax import errors
from stemjax.cli import options

if TYPE_CHECKING:
    from stemjax.data import artefacts

_MOST_LINES = 10


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``verify``."""
    parser = commands.add_parser(
        "verify",
        help="compare files with the hashes they were written with",
        description="Of workdirs of runs, checkpoint steps, records, bundles, programs, "
        "predictions, draws and folders of them: is every file as it was written?",
        epilog="Exit code 0: nothing is damaged; 1: something is. What carries no hash is named.",
    )
    parser.add_argument(
        "paths", nargs="+", type=pathlib.Path, metavar="PATH", help="file or folder"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")
    parser.set_defaults(run=_run)


def add_no_verify(parser: argparse.ArgumentParser) -> None:
    """Adds ``--no-verify`` to a command that reads predictions; `as_asked` heeds it."""
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="read predictions without comparing them with the hashes they carry: of a file that "
        "was changed in place on purpose",
    )


@contextlib.contextmanager
def as_asked(args: argparse.Namespace) -> Iterator[None]:
    """In the block predictions are compared with their hashes, unless ``--no-verify`` is given."""
    from stemjax.data import sealing

    if args.no_verify:
        _say("--no-verify: predictions are not compared with the hashes they carry")
    with sealing.unchecked(args.no_verify):
        yield


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax.data import artefacts

    where = {path: artefacts.find(path) for path in args.paths}
    started, found = time.monotonic(), []
    for given, paths in where.items():
        if not args.json and (len(paths) > 1 or paths[0] != given):
            _say(f"{given}: {artefacts.name_of(given)}")
        for path in paths:
            found.append(artefacts.check(path))
            if not args.json:
                _say_one(found[-1])
    seconds = time.monotonic() - started
    if args.json:
        _say(json.dumps(_plain(found, seconds), indent=1))
    else:
        _say(_total(found, seconds))
    _raise_for([one for one in found if one.state == "damaged"])


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _say_one(one: artefacts.Found) -> None:
    from stemjax.data import disk

    state = "DAMAGED" if one.state == "damaged" else one.state
    about = f", {one.files} file{'s' * (one.files != 1)}, {disk.in_words(one.size)}"
    _say(f"{state:<15}  {one.path}: {one.kind}{about if one.files else ''}")
    for lines, after in ((one.wrong, ""), (one.unlisted, ": not in its list of hashes")):
        for line in lines[:_MOST_LINES]:
            _say(f"{'':<15}    {line}{after}")
        if len(lines) > _MOST_LINES:
            _say(f"{'':<15}    and {len(lines) - _MOST_LINES} more{after}")


def _total(found: Sequence[artefacts.Found], seconds: float) -> str:
    from stemjax.data import disk

    states = [one.state for one in found]
    size = sum(one.size for one in found)
    counts = ", ".join(
        f"{states.count(state)} {state}"
        for state in ("whole", "damaged", "carries no hash")
        if state in states
    )
    rate = size / max(seconds, 1e-9) / 1e9
    return f"{counts}; {disk.in_words(size)} in {seconds:.1f} s, {rate:.2f} GB/s"


def _plain(found: Sequence[artefacts.Found], seconds: float) -> dict[str, Any]:
    return {
        "found": [
            {
                "path": str(one.path),
                "kind": one.kind,
                "state": one.state,
                "wrong": list(one.wrong),
                "unlisted": list(one.unlisted),
                "files": one.files,
                "bytes": one.size,
            }
            for one in found
        ],
        "seconds": round(seconds, 3),
    }


def _raise_for(damaged: Sequence[artefacts.Found]) -> None:
    """Raises the error of the first thing that is damaged, which names the others, too."""
    from stemjax.data import artefacts

    if not damaged:
        return
    kinds = {
        artefacts.STEP: (errors.CheckpointError, "go on from another step, or train again"),
        artefacts.CALIBRATION: (errors.CalibrationError, "delete it and calibrate again"),
        artefacts.RECORDS: (errors.RecordsError, "run `stemjax prepare` again"),
        artefacts.PREDICTION: (errors.PredictionError, "copy it again, or predict again"),
        "draws": (errors.PredictionError, "copy the folder again, or predict again"),
    }
    kind, fix = kinds.get(damaged[0].kind, (errors.BundleError, "copy it again, or make it anew"))
    listed = [f"{one.path} ({one.wrong[0]})" for one in damaged[:_MOST_LINES]]
    if len(damaged) > _MOST_LINES:
        listed.append(f"and {len(damaged) - _MOST_LINES} more")
    raise kind(
        "not as it was written" if len(damaged) == 1 else f"{len(damaged)} are not as written",
        found="; ".join(listed),
        fix=fix,
    )
