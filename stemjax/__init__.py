"""stemjax: spatially resolved gene expression from ordinary H&E histology.

    import stemjax as sj

    model = sj.load("demo")                     # or a bundle, or the workdir of a run
    adata = sj.read_visium("outs", need_image=True)
    sj.pp.encode(adata)                         # obsm["X_texture"]
    sj.tl.predict(adata, model)                 # layers["stemjax"]
    sj.pl.gene(adata, "ERBB2")

Research use only. Not for clinical or diagnostic use.
"""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

# Imports of the house stand inside the functions: `import stemjax` is light and touches no device.
if TYPE_CHECKING:
    import anndata

    from stemjax import pl, pp, tl
    from stemjax.data import records
    from stemjax.reading import (
        read,
        read_h5ad,
        read_hest,
        read_image,
        read_spatialdata,
        read_st,
        read_visium,
        read_visium_hd,
        read_xenium,
    )
    from stemjax.train.trained import Trained

_MODULES = ("pl", "pp", "tl")
__all__ = [
    "load",
    "pl",
    "pp",
    "read",
    "read_h5ad",
    "read_hest",
    "read_image",
    "read_spatialdata",
    "read_st",
    "read_visium",
    "read_visium_hd",
    "read_xenium",
    "report",
    "tl",
]


def __getattr__(name: str) -> Any:
    """The parts that are imported when they are first used."""
    if name in _MODULES:
        return importlib.import_module(f"stemjax.{name}")
    if name in __all__ and name.startswith("read"):
        return getattr(importlib.import_module("stemjax.reading"), name)
    raise AttributeError(f"module 'stemjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(path: str | pathlib.Path, *, weights: str = "auto", verify: bool = True) -> Trained:
    """Returns a trained model, checked.

    Args:
      path: a bundle (`stemjax export --format bundle`), the workdir of a run, or ``demo``: a small
        model of drawn tissue that comes with the package, for trying things offline.
      weights: of a workdir ``best``, ``last`` or ``auto``; a bundle has one set.
      verify: of a bundle, also compute its example and compare (a second or so). Hashes, names and
        shapes are checked in any case.

    Returns:
      Weights, genes, transform, encoder contract, calibrations and where they come from:
      `stemjax.train.trained.Trained`.

    Raises:
      BundleError, CheckpointError: there is none, it is damaged, or it computes something else than
        where it was written.
      CheckpointMismatchError: weights of another network than it says.
      CalibrationError: its calibrations are damaged or of other weights.
    """
    from stemjax.export import bundle

    return bundle.open_model(path, weights=weights, verify=verify)


def report(
    predictions: anndata.AnnData | Sequence[anndata.AnnData],
    truth: records.Records | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "report.html",
    *,
    genes: Sequence[str] = (),
    resamples: int = 500,
    seed: int = 0,
) -> pathlib.Path:
    """Writes one self-contained page: scores beside floors, alerts, maps, calibration.

    Args:
      predictions: of `stemjax.tl.predict(..., inplace=False)` or of `stemjax predict`.
      truth: records, their folders, or an .h5ad of raw counts; None writes maps without scores.
      out: the file.
      genes: of the maps; by default markers of the panel.
      resamples: for the intervals.
      seed: of the resamples.

    Returns:
      The file's path.

    Raises:
      PredictionError, RecordsError: the predictions do not fit the truth.

    Example:
      >>> sj.report(prediction, "records", "report.html")      # doctest: +SKIP
    """
    from stemjax.data import records as record_folders
    from stemjax.eval import evaluate, plain
    from stemjax.eval import report as reports
    from stemjax.eval import truth as truths

    path = pathlib.Path(out)
    several = list(predictions) if isinstance(predictions, Sequence) else [predictions]
    if truth is None:
        plain.write_text(path, reports.without_truth(several, genes=tuple(genes)))
        return path
    source = truth
    if not isinstance(source, record_folders.Records):
        source = truths.open_truth(os.fspath(source))
    done = evaluate.evaluate_all(several, source)
    found = evaluate.summarise(done, resamples=resamples, seed=seed)
    plain.write_text(path, reports.render(done, found, genes=tuple(genes)))
    return path
