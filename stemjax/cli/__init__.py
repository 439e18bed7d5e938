"""The ``stemjax`` command: parses, resolves, calls.

Heavy libraries are imported inside the commands, so that ``--help`` answers at once and touches no
device. Exit codes: `exits`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence

from stemjax import __version__, errors, stopping
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
    exits,
    models,
    options,
    predict,
    prepare,
    recover,
    report,
    serve,
    split,
    train,
    verify,
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
    """Runs one sub-command and returns its exit code (`exits`)."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in _CONFIGURED:
        parser.error(f"unknown argument {rest[0]}; see stemjax {args.command} --help")
    if hasattr(args, "supervise"):
        code = args.supervise(args, sys.argv[1:] if argv is None else argv)
        if code is not None:
            return code
    code, said = _ended(args, rest)
    if "stemjax.peers" in sys.modules:  # a run of several processes may hear how this one ended
        from stemjax import peers

        peers.end(code, said)
    return code


def _ended(args: argparse.Namespace, rest: Sequence[str]) -> tuple[int, str]:
    """Runs the command; its exit code, and what other processes of the run have to hear."""
    try:
        with _plain_log():
            return _run(args, rest), ""
    except errors.StemjaxError as error:
        if args.debug:
            raise
        return _told(args.command, error)
    except stopping.Stopped as stopped:
        stopping.say(f"stemjax {args.command}: {stopped}")
        return stopped.exit_code, stopped.number.name
    except KeyboardInterrupt:
        stopping.say(f"stemjax {args.command}: interrupted")
        return exits.INTERRUPTED, "SIGINT"
    except BrokenPipeError:
        # Whoever read the output has left, as `head` does. Python would complain at its end too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.NOBODY_READS, "nobody reads its output"
    except OSError as error:
        # The disk and its permissions: what the system says, and of which file, is all there is.
        if args.debug:
            raise
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"stemjax {args.command}: error\n  {what}", file=sys.stderr)  # noqa: T201
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return exits.TRY_AGAIN if full else exits.PROBLEM, what
    except Exception as error:  # noqa: BLE001 - told with its traceback, under an exit code of its own
        if (lost := _lost_peer(error)) is not None:
            return _told(args.command, lost)
        traceback.print_exception(error)
        return exits.CRASH, f"{type(error).__name__}: {error}"


def _run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    processes = options.start_processes(args)
    if args.command in _COMPILE:
        from stemjax import compilation

        compilation.enable_cache()
    # Several processes that train leave SIGTERM to JAX's runtime, which lets them agree on a step.
    theirs = args.command == "train" and processes > 1
    with contextlib.nullcontext() if theirs else stopping.listening(ending=True):
        args.run(args, rest)
    return exits.DONE


def _told(command: str, error: errors.StemjaxError) -> tuple[int, str]:
    """Says what is wrong; the exit code, and the same for other processes."""
    print(f"stemjax {command}: error [{error.code}]\n  {error}", file=sys.stderr)  # noqa: T201
    print(f"  See {error.reference}", file=sys.stderr)  # noqa: T201
    return exits.of(error), f"[{error.code}] {error}"


def _lost_peer(error: Exception) -> errors.StemjaxError | None:
    """What an error of JAX's comes from where another process of the run has gone."""
    if "jax" not in sys.modules:
        return None
    from stemjax import peers

    return peers.explain(error)


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
    for command in (evaluate, report, convert, compare, bench, exchange, models, serve, verify):
        command.add(commands)
    return parser
