"""What is needed of an AnnData on disk, in HDF5 or zarr, and no more of it.

Of a table of spots that is: raw counts, names, centres in ``obsm["spatial"]``, places on the array,
known labels, and of ``uns["spatial"]`` all but the images, which may be larger than the counts.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float

from stemjax import errors
from stemjax.data import gene_names, hiding, raw_counts, slides
from stemjax.data.hdf5 import soundness
from stemjax.data.layouts import centres as centres_lib
from stemjax.data.layouts import visium_array

LABELS = (
    "annotation",
    "pathologist_annotation",
    "cell_type",
    "region",
    "layer",
    "spatialLIBD",
    "ground_truth",
    "cluster",
    "leiden",
    "label",
)
"""Columns of obs that are kept as labels of the spots where they hold text or categories."""

_TRUE = ("1", "1.0", "True", "true")
_IDS = "gene_ids"
_SYMBOLS = ("gene_name", "gene_symbols", "gene_symbol", "feature_name", "symbol")
_COLUMNS = ("in_tissue", "array_row", "array_col")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of spots, those under tissue.

    Attributes:
      counts: raw counts [l g].
      genes: names of the columns.
      gene_ids: their Ensembl ids from ``var["gene_ids"]``, "" where unknown; empty where none is.
      barcodes: names of the rows, an array of strings.
      pixel_xy: ``obsm["spatial"]``; None where it was not asked for.
      array_xy: (column, row) on the array, NaN for what is no number; None where it is not there.
      obs: columns that were asked for by name.
      libraries: by library, its ``scalefactors`` and ``metadata``.
      labels: text by the label's name, "" where a spot has none.
      notes: what was left out or chosen, in words.
    """

    counts: scipy.sparse.csr_array
    genes: tuple[str, ...]
    gene_ids: tuple[str, ...]
    barcodes: np.ndarray
    pixel_xy: Float[np.ndarray, "l 2"] | None
    array_xy: Float[np.ndarray, "l 2"] | None
    obs: pd.DataFrame
    libraries: Mapping[str, Mapping[str, Any]]
    labels: Mapping[str, np.ndarray]
    notes: tuple[str, ...]


def read_h5ad(
    path: pathlib.Path,
    *,
    any_layer: bool = False,
    duplicates: gene_names.Duplicates = "error",
) -> Table:
    """The table in an h5ad; see `read_table`.

    Raises:
      SlideError: the file is damaged, lacks a part, or its counts are no raw counts.
    """
    soundness.require_sound(path)
    try:
        with h5py.File(path) as file:
            return read_table(file, path.name, any_layer=any_layer, duplicates=duplicates)
    except errors.StemjaxError:
        raise
    except Exception as error:  # h5py and anndata tell damage by all kinds of exceptions
        raise damaged(path.name, error) from error


def read_table(
    group: Any,
    name: str,
    *,
    any_layer: bool = False,
    centres: bool = True,
    columns: Collection[str] = (),
    duplicates: gene_names.Duplicates = "error",
) -> Table:
    """The table in an open group of HDF5 or zarr.

    Args:
      group: the group.
      name: what errors call it.
      any_layer: whether, where X holds no counts, ``layers["counts"]`` or ``raw.X`` may be them.
      centres: whether ``obsm["spatial"]`` is needed.
      columns: of obs, to be kept as they are.
      duplicates: what becomes of genes that share a name, see `stemjax.data.gene_names.add_up`.

    Raises:
      SlideError: a part is missing or does not fit, or there are no raw counts.
      Exception: of any kind, where the storage is damaged.
    """
    from anndata.io import read_elem  # imports for seconds, so only here

    read: Callable[[Any], Any] = read_elem
    if centres:
        _require_spatial(name, group)
    obs = _frame(read, group["obs"], (*_COLUMNS, *LABELS, *columns))
    counts, var, notes = _raw_counts(read, group, name, any_layer, obs)
    pixel_xy = None
    if centres:
        pixel_xy = np.asarray(read(group["obsm/spatial"]), np.float64)
        if pixel_xy.shape != (len(obs), 2):
            raise centres_lib.misshapen(name, pixel_xy.shape, len(obs), len(var))
    if counts.shape != (len(obs), len(var)):
        raise errors.SlideError(
            f"{name}: the parts do not fit {len(obs)} spots and {len(var)} genes",
            expected=f"counts ({len(obs)}, {len(var)})",
            found=f"counts {counts.shape}",
            fix="Write the file again with anndata",
        )
    genes, ids, named = _names(var)
    notes += named
    if len(set(genes)) < len(genes):
        where = f"slide {name.removesuffix('.h5ad')}"
        summed = gene_names.add_up(counts, genes, ids, duplicates=duplicates, where=where)
        counts, genes, ids = summed.counts, summed.genes, summed.gene_ids
        notes += summed.notes
    if pixel_xy is not None and (np.abs(pixel_xy) >= visium_array.MOST_PX).any():
        raise errors.SlideError(
            f"{name}: obsm['spatial'] holds what are no pixels",
            expected="spot centres in level-0 pixels",
            found=f"{np.abs(pixel_xy).max():g}",
            fix="Copy or download the file again",
        )
    under = np.ones(len(obs), bool)
    if "in_tissue" in obs:
        under = obs["in_tissue"].astype(str).isin(_TRUE).to_numpy(bool)
    array_xy = None
    if "array_row" in obs and "array_col" in obs:
        texts = [obs[c].astype(str) for c in ("array_col", "array_row")]
        numbers = [np.array(pd.to_numeric(c, errors="coerce"), float) for c in texts]
        array_xy = np.stack(numbers, axis=1)[under]
    return Table(
        counts=counts[np.flatnonzero(under)],
        genes=genes,
        gene_ids=ids,
        barcodes=np.array([str(name) for name in obs.index], object)[under],
        pixel_xy=None if pixel_xy is None else pixel_xy[under],
        array_xy=array_xy,
        obs=obs.loc[under, [c for c in columns if c in obs]],
        libraries=_libraries(read, group),
        labels={label: values[under] for label, values in _labels(obs).items()},
        notes=slides.left_out(int((~under).sum()), "not under tissue (in_tissue is not 1)") + notes,
    )


def spacing(xy: Float[np.ndarray, "l 2"]) -> float:
    """Median distance to the nearest other spot; 1 where there is none, or a place is unknown."""
    return hiding.spot_distance(xy) if np.isfinite(xy).all() else 1.0


def damaged(name: str, error: Exception) -> errors.SlideError:
    """The error of a table that cannot be read."""
    return errors.SlideError(
        f"{name} is damaged, incomplete or no AnnData file",
        found=f"{type(error).__name__}: {str(error)[:300]}",
        fix="Copy or download the file again",
    )


def _frame(read: Callable[[Any], Any], group: Any, columns: Collection[str]) -> pd.DataFrame:
    """The rows' names, and the columns that are there, of a table on disk."""
    attributes = dict(group.attrs)
    if attributes.get("encoding-version") != "0.2.0" or not hasattr(group, "keys"):
        return read(group)  # an old form, whose columns refer to each other
    index = pd.Index(np.asarray(read(group[attributes["_index"]]), object).astype(str))
    found = {name: read(group[name]) for name in columns if name in group}
    sizes = {name: len(values) for name, values in found.items() if len(values) != len(index)}
    if sizes:
        raise ValueError(f"{len(index)} rows, but columns of {sizes}")
    return pd.DataFrame({name: pd.Series(v, index=index) for name, v in found.items()}, index=index)


def _require_spatial(name: str, group: Any) -> None:
    found = sorted(group["obsm"]) if "obsm" in group else []
    if "spatial" not in found:
        raise centres_lib.missing(name, found, list(group["obs"]) if "obs" in group else [])


def _raw_counts(
    read: Callable[[Any], Any], group: Any, name: str, any_layer: bool, obs: pd.DataFrame
) -> tuple[scipy.sparse.csr_array, pd.DataFrame, tuple[str, ...]]:
    """Counts, the table of genes, and a note where X is not what holds them."""
    layers = sorted(group["layers"]) if "layers" in group else []
    columns = (_IDS, *_SYMBOLS)
    counts, var = _matrix(read(group["X"])), _frame(read, group["var"], columns)
    if not raw_counts.find_bad(counts.data).any():
        return counts, var, ()
    if any_layer:
        others: dict[str, tuple[Any, str, Any]] = {}
        if "counts" in layers:
            others["layers['counts']"] = (group["layers"], "counts", group["var"])
        raw: Any = group["raw"] if "raw" in group else ()  # noqa: SIM401 (groups have no get)
        if hasattr(raw, "keys") and "X" in raw and "var" in raw:
            others["raw.X"] = (raw, "X", raw["var"])
        for where, (parent, key, its_var) in others.items():
            other = _matrix(read(parent[key]))
            if not raw_counts.find_bad(other.data).any():
                note = f"counts from {where}: X holds other values"
                return other, _frame(read, its_var, columns), (note,)
    raise _no_counts(name, counts, (obs.index, var.index), layers, any_layer)


def _names(var: pd.DataFrame) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names of the genes, their Ensembl ids (empty where none is known), and a note.

    Where the table calls genes by their ids and has symbols beside them, they go by the symbols, as
    panels do; a symbol that several genes share says less than their ids, which stay.
    """
    names = tuple(str(gene) for gene in var.index)
    beside = next((column for column in _SYMBOLS if column in var), None)
    if beside is None or gene_names.naming_of(names).kind != "ensembl":
        return names, _gene_ids(var), ()
    symbols = [str(symbol) for symbol in var[beside]]
    times = collections.Counter(symbols)
    called = tuple(
        name if times[symbol] > 1 or gene_names.is_blank(symbol) else symbol
        for name, symbol in zip(names, symbols, strict=True)
    )
    known = sum(name != other for name, other in zip(called, names, strict=True))
    note = f"{known:,} of {len(names):,} genes go by var[{beside!r}]: their names are Ensembl ids"
    return called, names, (note,) if known else ()


def _gene_ids(var: pd.DataFrame) -> tuple[str, ...]:
    """The genes' Ensembl ids, "" for what is none; empty where none is known."""
    if _IDS not in var:
        return ()
    ids = [str(one) if str(one).startswith("ENS") else "" for one in var[_IDS]]
    return tuple(ids) if any(ids) else ()


def _matrix(values: Any) -> scipy.sparse.csr_array:
    counts = raw_counts.as_rows(values)
    counts.check_format(full_check=True)  # an index beyond the table would be read past its end
    return counts


def _no_counts(
    name: str,
    counts: scipy.sparse.csr_array,
    called: tuple[pd.Index, pd.Index],
    layers: list[str],
    any_layer: bool,
) -> errors.SlideError:
    """The error of X without raw counts; ``called`` are the names of spots and genes."""
    fix = "Store the raw counts in X"
    if any_layer:
        fix += " or in layers['counts']"
    elif "counts" in layers:
        fix += ": layers['counts'] may be them (adata.X = adata.layers['counts'])"
    spots, genes = (tuple(map(str, names)) for names in called)
    found = raw_counts.refusal(counts, where=name, slot="X", spots=spots, genes=genes, fix=fix)
    assert found is not None
    return found


def _labels(obs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Text of the columns of `LABELS` by name, "" where a spot has none.

    Numbers are no labels: a column called "label" may be a score.
    """
    found = {}
    for name in LABELS:
        if name not in obs:
            continue
        column: Any = obs[name]
        text = pd.api.types.infer_dtype(column, skipna=True) == "string"
        if not (text or isinstance(column.dtype, pd.CategoricalDtype)):
            continue
        known = column.notna().to_numpy(bool)
        values = np.where(known, column.astype(str).to_numpy(object), "")
        if (values != "").any():
            found[name] = values
    return found


def _libraries(read: Callable[[Any], Any], group: Any) -> dict[str, dict[str, Any]]:
    """Of each library in ``uns["spatial"]``, what is no image."""
    spatial: Any = group["uns/spatial"] if "uns" in group and "spatial" in group["uns"] else ()
    if not hasattr(spatial, "keys"):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for library in sorted(spatial):
        parts = spatial[library]
        wanted = ("scalefactors", "metadata") if hasattr(parts, "keys") else ()
        read_parts = {part: read(parts[part]) for part in wanted if part in parts}
        found[library] = {
            part: values for part, values in read_parts.items() if isinstance(values, Mapping)
        }
    return found
