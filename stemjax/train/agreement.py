"""What the processes of a run have to agree on before they begin."""

from __future__ import annotations

import hashlib
import importlib.metadata
import pathlib

import stemjax
from stemjax import config
from stemjax.data import records
from stemjax.train import checkpoint
from stemjax.train.runs import code_digest

_OF_A_MACHINE = {"data": ("records", "manifest")}
"""Where files lie may differ from machine to machine; what they hold may not."""


def facts(
    experiment: config.Experiment,
    source: records.Records,
    workdir: pathlib.Path,
    start: checkpoint.Trained | None,
) -> dict[str, str]:
    """Returns what has to be the same on all processes, by name (`distributed.require_agreement`).

    Each key of the configuration, so that the one that differs is named; the records' digests; the
    code and the libraries that do the arithmetic; the folder, which all write into; the weights to
    start from.
    """
    keys = {
        f"config.{group}.{key}": repr(value)
        for group, part in config.as_json(experiment).items()
        if isinstance(part, dict)
        for key, value in part.items()
        if key not in _OF_A_MACHINE.get(group, ())
    }
    slides = "\n".join(f"{slide} {info.digest}" for slide, info in source.slides.items())
    libraries = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        **keys,
        "config.seed": str(experiment.seed),
        "set of records": f"{len(source.slides)} slides, digest {_digest(slides.encode())}",
        "version of stemjax": f"{stemjax.__version__}, digest of the code {code_digest()}",
        "set of libraries": " ".join(
            f"{name} {importlib.metadata.version(name)}" for name in libraries
        ),
        "workdir": str(workdir.absolute()),
        "start": "" if start is None else repr(start.identity),
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
