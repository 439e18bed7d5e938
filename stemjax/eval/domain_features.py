"""What spots are clustered by: predicted profiles, hidden features, or measured expression.

Measured expression, as it is or averaged with its neighbours, is what a clustering of predictions
has to be compared with: it needs no model, and sees what the model never saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Bool, Float, Int

from stemjax import errors
from stemjax.data import transforms
from stemjax.eval import joining, metrics, recovered
from stemjax.eval import truth as truths

if TYPE_CHECKING:
    import anndata

MEASURED, SMOOTHED, POSITION = "measured", "smoothed", "position"
"""Features that are no slot of the prediction."""

COMPONENTS = 30
"""Most principal components."""

_MOST_CLASSES = 50


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Features of the points of a slide that have them.

    Attributes:
      use: what they are: ``X``, a key of ``obsm``, ``measured``, ``smoothed`` or ``position``.
      rows: which points of the AnnData have them, [n].
      values: of those, [l f].
      about: what they were made from, plain values.
    """

    use: str
    rows: Bool[np.ndarray, " n"]
    values: Float[np.ndarray, "l f"]
    about: Mapping[str, Any]

    @property
    def space(self) -> str | None:
        """Value space of measured expression, or None of anything else."""
        return self.about.get("value_space")


def features(
    data: anndata.AnnData,
    use: str = "X",
    *,
    truth: truths.Truth | None = None,
    space: str | None = None,
    components: int = COMPONENTS,
    name: str = "the prediction",
) -> Features:
    """What ``use`` says of each point, ready to be clustered.

    ``X``: the predicted profile, each gene standardised. ``measured``: the measured counts of the
    same genes in a value space, standardised; from ``truth``, joined by barcode and gene, else from
    ``layers["counts"]``; measured spots only. ``smoothed``: those values averaged over the spot and
    its neighbours (4 on a square array, 6 on a hexagonal one), then standardised. ``position``: the
    array position of the measured spots, a floor. Anything else is a key of ``obsm``, such as
    hidden features: these are centred, since a network's scales mean something. All but positions
    are then brought to at most ``components`` principal components.

    Args:
      data: a prediction, or any AnnData with these slots.
      use: as above.
      truth: what was measured on the slide.
      space: value space of measured expression; None takes the prediction's, log2(count + 1) where
        it names none.
      components: most principal components.
      name: what errors call ``data``.

    Raises:
      ConfigError: no such value space.
      PredictionError: the slot is missing, not finite or constant, no measured counts are to be
        had, or positions are missing or occur twice.
    """
    if use == "X":
        of = list(data.obs_names), list(data.var_names)
        dense = joining.values(data.X, "X", name, of=of)
        return _reduced(use, np.ones(data.n_obs, bool), dense, components, name, genes=data.n_vars)
    if use == POSITION:
        rows = measured_points(data)
        array_xy = array_positions(data, rows, name=name)
        return Features(use=use, rows=rows, values=array_xy, about={})
    if use in (MEASURED, SMOOTHED):
        space, _ = value_spaces(data, space)
        rows, dense = _measured(data, truth, space, name)
        if use == SMOOTHED:
            dense = smooth(dense, array_positions(data, rows, name=name))
        about = {"genes": dense.shape[1], "value_space": space}
        return _reduced(use, rows, dense, components, name, **about)
    if use not in data.obsm:
        raise errors.PredictionError(
            f"{name} has no features {use!r}",
            expected=f"X, {MEASURED}, {SMOOTHED} or a key of obsm",
            found=f"{', '.join(data.obsm.keys()) or 'nothing'} in obsm",
        )
    given: Any = data.obsm[use]
    dense = given.toarray() if scipy.sparse.issparse(given) else np.asarray(given)
    finite = dense.dtype.kind in "iuf" and dense.ndim == 2 and np.isfinite(dense).all()
    if not finite:
        raise errors.PredictionError(
            f'{name}: obsm["{use}"]',
            expected="finite numbers, spots x features",
            found=f"type {dense.dtype}, shape {dense.shape}, or a value that is not finite",
        )
    rows, about = np.ones(data.n_obs, bool), {"width": dense.shape[1]}
    return _reduced(use, rows, dense.astype(np.float64), components, name, scaled=False, **about)


def value_spaces(data: anndata.AnnData, space: str | None = None) -> tuple[str, str]:
    """The value spaces that measured expression is compared in: one with and one without depth.

    In log2(count + 1) a clustering follows the spots' depth, which makes it a weak rival; which of
    the two is the stronger is not known beforehand.

    Args:
      data: a prediction.
      space: the first of the two; None takes the prediction's, log2(count + 1) where it names none.
    """
    own = space or str(dict(data.uns.get("stemjax", {})).get("value_space", "log2p1"))
    return own, "log2p1" if own == "log1p_cp10k" else "log1p_cp10k"


def truth_of(
    data: anndata.AnnData, source: truths.Source, *, name: str = "the prediction"
) -> truths.Truth:
    """What was measured on the slide of an AnnData.

    The slide is ``uns["stemjax"]["slide"]``, else the only one of the source, else the one key of
    ``uns["spatial"]``.

    Raises:
      PredictionError: none of these names a slide of the source.
      RecordsError: its records are damaged.
    """
    spatial = data.uns.get("spatial", {})
    named = dict(data.uns.get("stemjax", {})).get("slide")
    slide = named or (source.slides[0] if len(source.slides) == 1 else next(iter(spatial), None))
    if slide not in source.slides:
        raise errors.PredictionError(
            f"{name}: the truth lacks its slide",
            expected=f"one of {', '.join(sorted(source.slides))}",
            found="no slide named" if slide is None else str(slide),
            fix='open the records that hold it, or name it in uns["stemjax"]["slide"]',
        )
    return source.load(str(slide))


def measured_points(data: anndata.AnnData) -> Bool[np.ndarray, " n"]:
    """Which points were measured; all where ``obs`` does not tell."""
    if recovered.MEASURED not in data.obs:
        return np.ones(data.n_obs, bool)
    return np.asarray(data.obs[recovered.MEASURED].astype(str).str.lower() == "true")


def labels(
    data: anndata.AnnData,
    column: str,
    *,
    ignore: Collection[str] = (),
    name: str = "the prediction",
) -> tuple[tuple[str, ...], Int[np.ndarray, " n"]]:
    """The classes of a column of ``obs``, sorted, and the class of each point.

    -1 where a point has no label (NaN or an empty string), was not measured, or has one of
    ``ignore``.

    Raises:
      PredictionError: there is no such column, fewer than two classes are left, or ``ignore``
        names none of them.
    """
    if column not in data.obs:
        raise errors.PredictionError(
            f"{name} has no label {column!r}",
            expected="a column of obs",
            found=f"label-like columns {', '.join(label_columns(data)) or 'none'}",
            fix="choose one of them, or add the labels to obs",
        )
    given = data.obs[column]
    text = given.astype(object).where(given.notna(), "").astype(str).str.strip().to_numpy(object)
    text[~measured_points(data)] = ""
    present = set(text) - {""}
    if unknown := sorted(set(ignore) - present):
        raise errors.PredictionError(
            f"{name}: no spot has the label {', '.join(unknown)} that is to be left out",
            expected=f"some of {', '.join(sorted(present)[:12])}",
        )
    classes = tuple(sorted(present - set(ignore)))
    if len(classes) < 2:
        raise errors.PredictionError(
            f"{name}: column {column!r}",
            expected="two or more labels among the measured spots",
            found=", ".join(classes) or "none",
        )
    place = {entry: i for i, entry in enumerate(classes)}
    return classes, np.array([place.get(entry, -1) for entry in text], np.int64)


def label_columns(data: anndata.AnnData) -> list[str]:
    """Columns of ``obs`` that look like labels: 2 to 50 texts or categories."""
    found = []
    for column in data.obs.columns:
        given: Any = data.obs[column]
        kind, classes = given.dtype, given.nunique()
        texts = isinstance(kind, pd.CategoricalDtype) or pd.api.types.is_string_dtype(kind)
        if texts and 2 <= classes <= _MOST_CLASSES:
            found.append(str(column))
    return found


def array_positions(
    data: anndata.AnnData, rows: Bool[np.ndarray, " n"], *, name: str
) -> Float[np.ndarray, "l 2"]:
    """(column, row) of some points on the array, or their pixels in units of the spots' distance.

    Raises:
      PredictionError: there are none, or two points are in one place.
    """
    import anndata

    # Not data[rows]: a view would copy draws, and the pitch is that of these points alone.
    obs = pd.DataFrame(index=data.obs_names[rows])
    for column in ("array_row", "array_col"):
        if column in data.obs:
            obs[column] = np.asarray(data.obs[column])[rows]
    places = anndata.AnnData(obs=obs, uns={"spatial": data.uns.get("spatial", {})})
    if "spatial" in data.obsm:
        places.obsm["spatial"] = np.asarray(data.obsm["spatial"])[rows]
    xy = truths.of_positions(places, where=name).array_xy
    if twice := len(xy) - len(np.unique(xy, axis=0)):
        raise errors.PredictionError(
            f"{name}: positions of the spots",
            expected="each spot in a place of its own",
            found=f"{twice} in another's",
        )
    return xy


def smooth(
    values: Float[np.ndarray, "l g"], array_xy: Float[np.ndarray, "l 2"]
) -> Float[np.ndarray, "l g"]:
    """Mean over each spot and its neighbours on the array, all with the same weight."""
    near = metrics.neighbours(array_xy)
    count = np.asarray(near.sum(axis=1)).reshape(-1, 1)
    return (values + near @ values) / (1.0 + count)


def _measured(
    data: anndata.AnnData, truth: truths.Truth | None, space: str, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which points have measured expression, and theirs, value space, [l g]."""
    rows = measured_points(data)
    if truth is None:
        return rows, _of_layer(data, rows, space, name)
    place = {barcode: i for i, barcode in enumerate(truth.barcodes)}
    spots = np.array([place.get(str(barcode), -1) for barcode in data.obs_names], np.int64)
    known = {gene: i for i, gene in enumerate(truth.genes) if truth.measured[i]}
    genes = [known[str(gene)] for gene in data.var_names if str(gene) in known]
    rows = rows & (spots >= 0)
    if not rows.any() or not genes:
        raise errors.PredictionError(
            f"{name} and what was measured on slide {truth.slide} share no "
            + ("spots" if not rows.any() else "genes"),
            expected="barcodes and gene names of the same slide",
            found=f"{', '.join(map(str, data.obs_names[:2]))} beside {truth.barcodes[0]}"
            if not rows.any()
            else f"{', '.join(map(str, data.var_names[:2]))} beside {truth.genes[0]}",
        )
    return rows, truth.values(space)[np.ix_(spots[rows], genes)]


def _of_layer(data: anndata.AnnData, rows: np.ndarray, space: str, name: str) -> np.ndarray:
    """Measured values of the file's own counts; depth is then the sum over its genes."""
    if "counts" not in data.layers:
        raise errors.PredictionError(
            f"{name} holds no measured expression",
            expected='raw counts in layers["counts"], or --truth',
            fix="name the record folders with --truth, or cluster X",
        )
    of = list(data.obs_names[rows]), list(data.var_names)
    counts = joining.values(data.layers["counts"][rows], 'layers["counts"]', name, of=of)
    if (counts < 0).any() or (counts != np.rint(counts)).any():
        raise errors.PredictionError(
            f'{name}: layers["counts"]', expected="raw counts: whole numbers from 0 up"
        )
    forward = transforms.get_transform(space).forward
    return np.asarray(forward(counts, counts.sum(axis=1)), np.float64)


def _reduced(
    use: str,
    rows: np.ndarray,
    dense: np.ndarray,
    components: int,
    name: str,
    *,
    scaled: bool = True,
    **about: Any,
) -> Features:
    """Principal components of centred, and maybe standardised, columns."""
    from sklearn import decomposition

    std = dense.std(axis=0)
    # A constant column comes out with a deviation of rounding's size.
    varied = std > metrics.ROUNDING * np.maximum(np.abs(dense).max(axis=0, initial=0.0), 1.0)
    if len(dense) < 3 or not varied.any():
        raise errors.PredictionError(
            f"{name}: {use} cannot be clustered",
            expected="three or more spots that are not all alike",
            found=f"{len(dense)} spots, {int(varied.sum())} features that vary",
        )
    centred = dense[:, varied] - dense[:, varied].mean(axis=0)
    if scaled:
        centred = centred / std[varied]
    kept = min(components, *centred.shape)
    # Of many spots the genes' covariance is the smaller matrix; neither solver draws at random.
    tall = centred.shape[0] > centred.shape[1]
    solver = decomposition.PCA(kept, svd_solver="covariance_eigh" if tall else "full")
    values = solver.fit_transform(centred)
    share = float(solver.explained_variance_ratio_.sum())
    about |= {"components": kept, "variance_explained": share}
    return Features(use=use, rows=rows, values=values, about=about)
