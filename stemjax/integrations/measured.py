"""A prediction added to the measured AnnData of its slide, where scanpy and squidpy find it.

    layers["stemjax"]          predicted values; NaN for genes and spots without a prediction
    layers["stemjax_std"]      and every other layer of the prediction, under its own name
    obs["stemjax_..."]         the prediction's columns, and "stemjax_predicted"
    var["stemjax_predicted"]   whether the gene was predicted
    var["stemjax_pcc"]         its correlation with what was measured, where counts are there
    obsm["X_stemjax"]          hidden features, of models that have some
    uns["stemjax"]             what the prediction says of itself, the units, what is missing, notes

X is never touched. Layers are as large as X made dense: of a whole transcriptome it pays to cut the
measured object to the genes that were predicted first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse

from stemjax import errors
from stemjax.data import transforms
from stemjax.eval import metrics, predict, recovered
from stemjax.integrations import prediction as predictions

if TYPE_CHECKING:
    import anndata

_SYMBOLS = ("gene_symbols", "feature_name", "gene_name", "gene_names", "symbol", "gene_ids")
"""Columns of ``var`` that may hold the other kind of gene names."""


def annotate(
    measured: anndata.AnnData,
    prediction: anndata.AnnData | predictions.Prediction,
    *,
    key_added: str = "stemjax",
    genes: Sequence[str] | None = None,
) -> None:
    """Adds a prediction to a measured object in place, by barcode and gene name, never by row.

    What an earlier call has added under the same key is removed first.

    Args:
      measured: spots x genes of the same slide, changed.
      prediction: what `stemjax predict` wrote.
      key_added: name of the layer and the start of all other names.
      genes: of the prediction, to add; None takes all.

    Raises:
      PredictionError: the prediction cannot be used, or shares no barcode with the measured object.
      GenePanelError: they share no gene name, or one is there twice.
      ConfigError: the key is empty or has a "/", which h5ad and zarr have no place for.
    """
    if not key_added or "/" in key_added:
        raise errors.ConfigError('key_added without "/"', expected="a name", found=repr(key_added))
    if not isinstance(prediction, predictions.Prediction):
        prediction = predictions.of_anndata(prediction)
    wanted = prediction.genes if genes is None else prediction.choose(genes)
    rows, of_rows = _matched_spots(measured, prediction)
    columns, shared, missing = _matched_genes(measured, wanted, prediction.columns(wanted))
    _remove_earlier(measured, key_added)
    names: dict[str | None, str] = {None: key_added}
    for name in prediction.data.layers.keys():  # noqa: SIM118
        if name is not None:  # anndata 0.13 lists X as None
            names[name] = _renamed(name, key_added)
    for name, added in names.items():
        source = prediction.data.X if name is None else prediction.data.layers[name]
        layer = np.full(measured.shape, np.nan, np.float32)
        layer[np.ix_(rows, columns)] = predictions.dense(source)[np.ix_(of_rows, shared)]
        measured.layers[added] = layer
    obs = _write_obs(measured, prediction, rows, of_rows, key_added)
    in_var = np.zeros(measured.n_vars, bool)
    in_var[columns] = True
    measured.var[f"{key_added}_predicted"] = in_var
    notes = _notes(measured, prediction, rows, missing)
    scored, why = _write_pcc(measured, prediction, (rows, of_rows), (columns, shared), key_added)
    notes += why
    notes = [*map(str, prediction.about.get("warnings", ())), *notes]
    measured.uns[key_added] = dict(prediction.about) | {
        predictions.ANNOTATED: key_added,
        "units": prediction.units,
        "genes_missing": missing,
        "genes_added": len(columns),
        "spots_added": len(rows),
        "spots_without_prediction": measured.n_obs - len(rows),
        "spots_scored": scored,
        "added_layers": list(names.values()),
        "added_obs": obs,
        "warnings": notes,
    }


def _matched_spots(
    measured: anndata.AnnData, prediction: predictions.Prediction
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the measured object that were predicted, and those of the prediction."""
    names = list(map(str, measured.obs_names))
    if len(set(names)) < len(names):
        raise errors.PredictionError(
            "the measured object's barcodes are repeated",
            expected="each once",
            fix="cut it to one slide",
        )
    place = {barcode: row for row, barcode in enumerate(prediction.barcodes)}
    rows = [row for row, name in enumerate(names) if name in place]
    if not rows:
        raise errors.PredictionError(
            "the measured object and the prediction share no barcode",
            expected=f"barcodes such as {', '.join(prediction.barcodes[:2])} "
            f"(slide {prediction.slide})",
            found=", ".join(names[:2]) or "no spot",
            fix="give the slide that was predicted, with its barcodes as obs_names",
        )
    return np.array(rows), np.array([place[names[row]] for row in rows])


def _matched_genes(
    measured: anndata.AnnData, wanted: Sequence[str], at: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Columns of the measured object and of the prediction, and genes that the former lacks."""
    names = list(map(str, measured.var_names))
    asked, place, twice = set(wanted), {}, set()
    for column, name in enumerate(names):
        if name in asked:
            twice |= {name} & place.keys()
            place[name] = column
    if twice:
        raise errors.GenePanelError(
            f"the measured object names {len(twice)} predicted genes more than once",
            expected="each once",
            found=", ".join(sorted(twice)[:3]),
            fix="call var_names_make_unique() on it",
        )
    if not place:
        held = [name for name in _SYMBOLS if name in measured.var]
        there = [name for name in held if asked & set(map(str, measured.var[name]))]
        raise errors.GenePanelError(
            "the measured object and the prediction share no gene name",
            expected=f"names such as {', '.join(wanted[:2])}",
            found=", ".join(names[:2]) or "no gene",
            fix=f"var[{there[0]!r}] has them: set var_names to that" if there else None,
        )
    pairs = [
        (place[gene], column) for gene, column in zip(wanted, at, strict=True) if gene in place
    ]
    missing = [gene for gene in wanted if gene not in place]
    return np.array([a for a, _ in pairs]), np.array([b for _, b in pairs]), missing


def _renamed(name: str, key_added: str) -> str:
    """A layer's or column's name under the key: ``stemjax_std`` is ``KEY_std``."""
    return f"{key_added}_{name.removeprefix('stemjax_')}"


def _remove_earlier(measured: Any, key_added: str) -> None:
    """Removes what an earlier call added: its layers would else stand beside new ones."""
    earlier = measured.uns.get(key_added)
    if not isinstance(earlier, Mapping) or predictions.ANNOTATED not in earlier:
        return
    for name in map(str, np.atleast_1d(np.asarray(earlier["added_layers"], object))):
        if name in measured.layers:
            del measured.layers[name]
    added = [f"{key_added}_predicted", f"{key_added}_pcc"]
    measured.var = measured.var.drop(columns=added, errors="ignore")
    added = list(map(str, np.atleast_1d(np.asarray(earlier["added_obs"], object))))
    measured.obs = measured.obs.drop(columns=added, errors="ignore")
    measured.obsm.pop(f"X_{key_added}", None)


def _write_obs(
    measured: anndata.AnnData,
    prediction: predictions.Prediction,
    rows: np.ndarray,
    of_rows: np.ndarray,
    key_added: str,
) -> list[str]:
    """Writes the prediction's columns and features of spots; returns the columns' names."""
    index = np.full(measured.n_obs, -1)
    index[rows] = of_rows
    there = index >= 0
    measured.obs[f"{key_added}_predicted"] = there
    added = [f"{key_added}_predicted"]
    for name, column in prediction.data.obs.items():
        if not str(name).startswith("stemjax_"):
            continue
        values = column.array.take(index, allow_fill=True) if _has_missing(column) else None
        if values is None:  # truth values and whole numbers need a type that may be missing
            values = pd.array(column, dtype="boolean" if column.dtype == bool else "Int64").take(
                index, allow_fill=True
            )
        renamed = _renamed(str(name), key_added)
        measured.obs[renamed] = pd.Series(values, index=measured.obs_names)
        added.append(renamed)
    features: Any = prediction.data.obsm.get(predict.FEATURES)
    if features is not None:
        spread = np.full((measured.n_obs, *features.shape[1:]), np.nan, np.float32)
        spread[rows] = np.asarray(features)[of_rows]
        measured.obsm[f"X_{key_added}"] = spread
    return added


def _has_missing(column: pd.Series) -> bool:
    """Whether a column's type has a missing value: all but plain truth values and integers."""
    return column.dtype.kind not in "biu" or not isinstance(column.dtype, np.dtype)


def _notes(
    measured: anndata.AnnData,
    prediction: predictions.Prediction,
    rows: np.ndarray,
    missing: Sequence[str],
) -> list[str]:
    found = []
    if without := measured.n_obs - len(rows):
        found.append(f"{without} of {measured.n_obs} measured spots have no prediction: NaN there")
    if unknown := len(prediction.barcodes) - len(rows):
        found.append(f"{unknown} predicted spots are not in the measured object: left out")
    if missing:
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        found.append(f"{len(missing)} predicted genes are not in the measured object: {listed}")
    if predict.DRAWS in prediction.data.obsm:
        found.append("the draws are left out: they are in the prediction's file")
    return found


def _write_pcc(
    measured: anndata.AnnData,
    prediction: predictions.Prediction,
    spots: tuple[np.ndarray, np.ndarray],
    genes: tuple[np.ndarray, np.ndarray],
    key_added: str,
) -> tuple[int, list[str]]:
    """Writes each gene's correlation over the spots that may be scored; returns their number.

    Those are the predicted spots, or of a prediction that was shown some, those that it was not.
    """
    rows, of_rows = spots
    shown = recovered.flags(prediction.data, "the prediction")
    notes = []
    if shown is not None and not shown[of_rows].all():
        kept = ~shown[of_rows]
        notes.append(f"{key_added}_pcc is over the {kept.sum()} spots that were hidden from it")
        rows, of_rows = rows[kept], of_rows[kept]
    found = _counts(measured, rows, genes[0])
    if found is None:
        return 0, [*notes, f"no {key_added}_pcc: the measured object holds no raw counts"]
    counts, total = found
    true = transforms.get_transform(prediction.value_space).forward(counts, total)
    mean = predictions.dense(prediction.data.X)[np.ix_(of_rows, genes[1])]
    pcc = np.full(measured.n_vars, np.nan)
    if len(rows) > 1:
        pcc[genes[0]] = metrics.pcc_per_gene(
            mean.astype(np.float64), np.asarray(true, np.float64), np.isfinite(mean)
        )
    measured.var[f"{key_added}_pcc"] = pcc
    if prediction.slide in map(str, np.atleast_1d(prediction.about.get("train_slides", []))):
        notes.append(f"{key_added}_pcc is of a slide that the model was trained on")
    return len(rows), notes


def _counts(
    measured: anndata.AnnData, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Raw counts of some spots and genes and the spots' totals over all genes, if there are any.

    Looked for in layers["counts"] and in X: whole numbers from 0 up.
    """
    candidates: list[Any] = [measured.layers.get("counts"), measured.X]
    for values in candidates:
        if values is None:
            continue
        values = values[rows]
        stored = values.data if scipy.sparse.issparse(values) else np.asarray(values)
        if stored.dtype.kind not in "iuf" or not np.isfinite(stored).all():
            continue
        if (stored < 0).any() or (np.rint(stored) != stored).any():
            continue
        total = np.asarray(values.sum(axis=1), np.float64).reshape(-1)
        picked = predictions.dense(values[:, columns])
        return np.rint(picked).astype(np.int64), total
    return None
