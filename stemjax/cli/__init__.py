"""The ``stemjax`` command: parses, resolves, calls.

Heavy libraries are imported inside the commands, so that ``--help`` answers at once and touches no
device. Exit codes: 0 done, 1 a problem that the message explains, 2 wrong usage, 130 interrupted,
141 nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

from stemjax import __version__, errors
from stemjax.cli import (
    bench,
    calibrate,
    compare,
    convert,
    demo,
    densify,
    domains,
    encode,
    evaluate,
    exchange,
    models,
    options,
    predict,
    prepare,
    recover,
    report,
    serve,
    split,
    train,
)

NOTICE = "Research use only. Not for clinical or diagnostic use."

_COMPILE = (
    "demo",
    "train",
    "calibrate",
    "predict",
    "evaluate",
    "report",
    "bench",
)
_COMPILE += ("recover", "densify", "serve", "models", "push", "pull")
"""Commands that run networks."""

_CONFIGURED = ("train", "recover")
"""Commands that take keys of a configuration."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command and returns its exit code."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in _CONFIGURED:
        parser.error(f"unknown argument {rest[0]}; see stemjax {args.command} --help")
    try:
        with _plain_log():
            options.start_processes(args)
            if args.command in _COMPILE:
                from stemjax import compilation

                compilation.enable_cache()
            args.run(args, rest)
    except errors.StemjaxError as error:
        if args.debug:
            raise
        print(f"stemjax {args.command}: error [{error.code}]\n  {error}", file=sys.stderr)  # noqa: T201
        return 1
    except BrokenPipeError:
        # Whoever read the output has left, as `head` does. Python would complain at its end too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # The disk and its permissions: what the system says, and of which file, is all there is.
        if args.debug:
            raise
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"stemjax {args.command}: error\n  {what}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("stemjax: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    return 0


@contextlib.contextmanager
def _plain_log() -> Iterator[None]:
    """Shows the package's own warnings as plain lines, whatever imported libraries set up."""
    log, handler = logging.getLogger("stemjax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    before, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.propagate = before
        log.removeHandler(handler)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="stemjax",
        description=f"Spatially resolved gene expression from H&E histology. {NOTICE}",
    )
    parser.add_argument("--version", action="version", version=f"stemjax {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, encode, prepare, split, train, calibrate, predict):
        command.add(commands)
    for command in (recover, densify, domains):
        command.add(commands)
    for command in (evaluate, report, convert, compare, bench, exchange, models, serve):
        command.add(commands)
    return parser
