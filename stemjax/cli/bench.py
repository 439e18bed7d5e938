"""``stemjax bench``: HEST-Benchmark and the splits of Stem, from their own files."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stemjax import errors, names
from stemjax.cli import options

if TYPE_CHECKING:
    from stemjax import config

_MODELS = ("ridge", "probe", "stem")


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``bench`` with ``hest`` and ``stem``."""
    parser = commands.add_parser("bench", help="run a known benchmark from its own files")
    which = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    hest = which.add_parser("hest", help="HEST-Benchmark: the probe, its floors and our model")
    _add_shared(hest, "folder of the benchmark, which holds the tasks' folders")
    hest.add_argument(
        "--task", required=True, metavar="T", help="task or tasks, such as IDC or IDC,PRAD"
    )
    hest.add_argument(
        "--embeddings",
        metavar="DIR",
        help="folder of <id>.h5 with embeddings and barcodes; {task} in it stands for the task "
        "(default: embed the patches with the built-in encoder)",
    )
    hest.add_argument(
        "--metadata",
        type=pathlib.Path,
        metavar="FILE",
        help="HEST's table (HEST_v1_1_0.csv), for the patients (default: unknown)",
    )
    hest.set_defaults(run=_hest)

    stem = which.add_parser("stem", help="the four splits of Stem, from a HEST-1k download")
    _add_shared(stem, "folder of the download, which holds st, wsis and metadata")
    stem.add_argument(
        "--dataset", required=True, choices=("her2st", "kidney", "prad", "mouse_brain")
    )
    stem.add_argument(
        "--panel",
        choices=("train", "published"),
        default="train",
        help="slides that choose the genes: without the test slide, or all as published, which "
        "flatters (default: %(default)s)",
    )
    stem.add_argument(
        "--allow-missing", action="store_true", help="go on without training slides that lack"
    )
    stem.set_defaults(run=_stem)


def _add_shared(parser: argparse.ArgumentParser, root: str) -> None:
    parser.add_argument("--root", type=pathlib.Path, required=True, metavar="DIR", help=root)
    parser.add_argument(
        "--models",
        default="ridge,probe",
        metavar="NAMES",
        help=f"of {', '.join(_MODELS)}; stem is trained (default: %(default)s; the constant mean "
        "is always there)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="experiment for stem (Python, run); its records and split are the benchmark's "
        "(default: a small one)",
    )
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        default=pathlib.Path("stemjax_bench"),
        metavar="DIR",
        help="folder for records and runs (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that embed patches (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=pathlib.Path, metavar="OUT", help="also write every number as JSON"
    )


def _hest(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import terminal
    from stemjax.eval.bench import hest, hest_table

    tasks = names.split_names(args.task)
    if not tasks:
        raise errors.ConfigError("--task names no task", expected="such as IDC or IDC,PRAD")
    with terminal.Bar("bench") as bar:
        wanted = hest.Options(
            embeddings=args.embeddings,
            models=_models(args.models),
            experiment=_experiment(args.config),
            workdir=args.workdir,
            metadata=args.metadata,
            workers=args.workers,
            line=lambda steps: terminal.TrainingLine(steps, bar),
            progress=bar,
        )
        found = [hest.run_task(args.root / task, wanted) for task in tasks]
    _show(hest_table.table(found), hest.as_json(found), args.json)


def _stem(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from stemjax import terminal
    from stemjax.eval.bench import stem, stem_table

    with terminal.Bar("bench") as bar:
        wanted = stem.Options(
            panel=args.panel,
            allow_missing=args.allow_missing,
            models=_models(args.models),
            experiment=_experiment(args.config),
            workdir=args.workdir,
            workers=args.workers,
            line=lambda steps: terminal.TrainingLine(steps, bar),
            progress=bar,
        )
        found = stem.run(args.root, args.dataset, wanted)
    _show(stem_table.table(found), stem.as_json(found), args.json)


def _models(text: str) -> tuple[str, ...]:
    given = names.split_names(text)
    unknown = [name for name in given if name not in _MODELS]
    if unknown:
        raise errors.ConfigError(
            f"--models {text}", expected=f"of {', '.join(_MODELS)}", found=", ".join(unknown)
        )
    return given


def _experiment(path: str | None) -> config.Experiment | None:
    from stemjax import config, configfile

    return None if path is None else config.resolve(configfile.load(path, ()))


def _show(text: str, values: Mapping[str, Any], path: pathlib.Path | None) -> None:
    from stemjax.eval import plain

    print(text, end="")  # noqa: T201
    if path is not None:
        plain.write_json(values, path)
        print(f"wrote {path}")  # noqa: T201
