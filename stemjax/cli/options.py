"""What several sub-commands share: the type of their list, and flags that mean the same."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
from typing import Any

from stemjax import errors, names

type Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def share(text: str | None) -> tuple[int, int] | None:
    """Returns the numbers of a ``--shard I/N``, one process's share of the slides; None for none.

    Raises:
      ConfigError: there is no such share.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise errors.ConfigError(
            "--shard names one share of the slides",
            expected="I/N with I from 0 to N-1, such as 0/8",
            found=repr(text),
            fix="Say 0/N to (N-1)/N in N processes",
        )
    return int(found[1]), int(found[2])


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds ``--checkpoint`` and ``--weights``: the model."""
    parser.add_argument(
        "--checkpoint",
        type=pathlib.Path,
        required=True,
        metavar="DIR",
        help="workdir of a run, or a bundle",
    )
    add_weights(parser)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Adds ``--workers``: processes that embed patches."""
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that embed patches (default: all cores)",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds ``--weights``: which EMA of a run."""
    parser.add_argument(
        "--weights",
        choices=("auto", "best", "last"),
        default="auto",
        help="which EMA of a run: the best on validation, the last, or the best where there is one "
        "(default: %(default)s)",
    )


def add_records(parser: argparse.ArgumentParser) -> None:
    """Adds ``--records``: where the slides are."""
    parser.add_argument(
        "--records", required=True, metavar="DIRS", help="record folders, comma-separated"
    )


UNHASHED = "--no-verify: {} are not compared with their hashes"
"""What a command prints that was told to skip that."""


def add_no_verify(parser: argparse.ArgumentParser) -> None:
    """Adds ``--no-verify`` of a command that reads records or a run; it prints `UNHASHED` then."""
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="do not compare large files with their hashes (about 1 s a GB): a flipped bit is not "
        "seen then; sizes, counts and shapes still are",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds ``--seed`` and ``--rows`` of a prediction."""
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="(spot, draw) pairs on a device at a time; no effect on results (default: what fills "
        "an accelerator, or a CPU's cache)",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run of several processes; `start_processes` reads them."""
    group = parser.add_argument_group(
        "several processes",
        "one a host, or one a GPU, each with the same command. Under srun, mpirun and on TPU pods "
        "they find each other; elsewhere say where the first is",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where the first process listens for the others"
    )
    group.add_argument("--process-count", type=int, metavar="N", help="processes in all")
    group.add_argument(
        "--process-index", type=int, metavar="I", help="which of them this is, from 0 on"
    )
    group.add_argument(
        "--alone", action="store_true", help="do not look for others, whatever started this process"
    )


def start_processes(args: argparse.Namespace) -> int:
    """Connects this process with the others of its run, if the command can have others.

    Returns:
      Processes in all.

    Raises:
      ConfigError: the flags do not go together, or the others cannot be reached.
    """
    if not hasattr(args, "coordinator"):
        return 1
    from stemjax import distributed

    return distributed.start(
        coordinator=args.coordinator,
        process_count=args.process_count,
        process_index=args.process_index,
        detect=not args.alone,
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of what is drawn, and how; `sampling` reads them."""
    # No defaults here: what is not given is left to stemjax.tasks.Sampling.
    group = parser.add_argument_group("sampling", "what is drawn, and how")
    group.add_argument(
        "--mode",
        choices=names.MODES,
        help="mean: one evaluation a spot; marginal: mean and spread of each gene in one; pair: "
        "mean of one antithetic pair; draws: samples with joint structure (default: mean)",
    )
    group.add_argument("--n-draws", type=int, metavar="N", help="samples a spot (default: 20)")
    group.add_argument(
        "--independent",
        dest="antithetic",
        action="store_const",
        const=False,
        help="draw without antithetic pairs",
    )
    group.add_argument(
        "--sampler",
        choices=names.SAMPLERS,
        help="step rule (default: dpmpp2m; a consistency model's own)",
    )
    group.add_argument(
        "--steps", type=int, metavar="N", help="noise levels (default: 8; 1 of a consistency model)"
    )
    group.add_argument(
        "--ladder", choices=names.LADDERS, help="spacing of the noise levels (default: karras)"
    )
    group.add_argument(
        "--eta", type=float, help="fresh noise of ddim (default: 0) and dpmpp2m_sde (default: 1)"
    )
    group.add_argument("--churn", type=float, help="EDM's S_churn, for heun (default: 0)")
    group.add_argument(
        "--sigma-min", type=float, help="smallest noise level, model's space (default: the model's)"
    )
    group.add_argument(
        "--sigma-max", type=float, help="largest noise level, model's space (default: the model's)"
    )


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of `stemjax.tasks.Sampling` that the command line gives."""
    given = ("mode", "n_draws", "antithetic", "sampler", "steps", "ladder")
    given += ("eta", "churn", "sigma_min", "sigma_max")
    return {name: getattr(args, name) for name in given if getattr(args, name) is not None}
