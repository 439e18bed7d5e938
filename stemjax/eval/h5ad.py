"""AnnData files: written whole or not at all, with a hash of what they hold, on any disk."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import scipy.sparse

from stemjax.data import disk, integrity, sealing
from stemjax.eval import metrics

if TYPE_CHECKING:
    import anndata

    from stemjax import tasks
    from stemjax.train.trained import Trained

_log = logging.getLogger(__name__)


def write(data: anndata.AnnData, path: str | pathlib.Path) -> None:
    """Writes an h5ad file and seals it (`sealing`); an older one stands until it is whole.

    Raises:
      ResourceError: the disk is full, or does not give back what was written.
    """
    with integrity.published_file(pathlib.Path(path), needed=unpacked_bytes(data)) as partial:
        with disk.opened_for_hdf5(partial) as opened, h5py.File(opened, "w") as file:
            write_into(file, data, compression="gzip")
        sealing.seal(partial, same_as=dense_arrays(data))


def write_into(file: h5py.File, data: anndata.AnnData, *, compression: str | None) -> None:
    """Writes all of an AnnData into an empty file, as ``write_h5ad`` does.

    Text columns with fewer values than rows become categorical in the AnnData, too.
    """
    import anndata

    data.strings_to_categoricals()
    packed: dict[str, Any] = {} if compression is None else {"compression": compression}
    anndata.io.write_elem(file, "/", data, dataset_kwargs=packed)
    if data.raw is None and "raw" in file:
        del file["raw"]  # a null that older versions of anndata do not know


def dense_arrays(data: anndata.AnnData) -> dict[str, np.ndarray]:
    """Returns the arrays of an AnnData that lie in its file as they are, by their paths."""
    named: dict[str, Any] = {"X": data.X}
    for group in ("layers", "obsm"):
        named |= {f"{group}/{name}": each for name, each in getattr(data, group).items()}
    return {
        name: each
        for name, each in named.items()
        if isinstance(each, np.ndarray) and each.dtype.kind in "biuf"
    }


def unpacked_bytes(data: anndata.AnnData) -> int:
    """Returns about how many bytes the file takes at most, before it is compressed."""
    total = 2**17 + _nested_bytes(data.uns)
    arrays: tuple[Any, ...] = (data.X, *data.layers.values(), *data.obsm.values())
    for each in arrays:
        if scipy.sparse.issparse(each):
            total += sum(part.nbytes for part in (each.data, each.indices, each.indptr))
        else:
            total += int(getattr(each, "nbytes", 0))
    return total + 64 * (data.n_obs * (1 + data.obs.shape[1]) + data.n_vars)


def warn_if_short(
    out: pathlib.Path,
    trained: Trained,
    sampling: tasks.Sampling,
    *,
    spots: int,
    summary: tasks.Summary | None = None,
) -> None:
    """Warns, before hours of sampling, where predictions of so many spots do not fit on the disk.

    Args:
      out: where they will be.
      trained: the model.
      sampling: how it is sampled.
      spots: of all predictions.
      summary: what is kept of draws, in place of them.
    """
    arrays = {"marginal": 2, "draws": 3}.get(sampling.mode, 1)
    if sampling.mode == "draws":
        arrays += sampling.draws if summary is None else len(summary.quantiles)
    if trained.calibrations:
        arrays += 2 * len(metrics.LEVELS)
    needed = 4 * spots * len(trained.card.space.genes) * arrays
    free = disk.free_bytes(out)
    if needed > free:
        _log.warning(
            "%s: the predictions will take about %s, and %s are free",
            out,
            disk.in_words(needed),
            disk.in_words(free),
        )


def _nested_bytes(value: Any) -> int:
    """Bytes of the arrays in a tree of mappings."""
    if isinstance(value, Mapping):
        return sum(map(_nested_bytes, value.values()))
    return int(getattr(value, "nbytes", 0))
