"""Recovery: hidden spots of a slide from the measured spots of the same slide.

These rows need no training slide, and so they are what a model must beat that is told some of a
slide's measurements. Everything is fitted on the measured spots alone: the values of the hidden
ones are in no argument of any fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Bool, Float

from stemjax import errors
from stemjax.eval import metrics
from stemjax.eval.baselines import linear, neighbours, smoothing, spread

RECOVERY_ROWS: tuple[str, ...] = (
    "constant mean",
    "nearest measured mean",
    "kriging",
    "component kriging",
    "ridge",
    "embedding kNN",
    "MLP",
    "ridge + neighbours",
)
"""Names of the rows of `recovery_rows`, in the order of the table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovered:
    """The rows of one slide's hidden spots.

    Attributes:
      rows: prediction [q g] by row name, in the order of `RECOVERY_ROWS`; without the rows on
        embeddings where there are none or they do not vary over the measured spots.
      forecasts: what rows say of the spread, by row name: the quantiles of the measured spots for
        "constant mean", the process for the kriging rows, normal residuals for the ridge rows, the
        neighbours for "embedding kNN", quantiles for "MLP".
      krigings: how the kriging rows were fitted, by row name.
      ridges: how the ridge rows were, by row name.
    """

    rows: Mapping[str, Float[np.ndarray, "q g"]]
    forecasts: Mapping[str, metrics.Forecast]
    krigings: Mapping[str, smoothing.Kriging]
    ridges: Mapping[str, linear.Ridge]


def recovery_rows(
    measured: Bool[np.ndarray, " l"],
    xy_um: Float[np.ndarray, "l 2"],
    y: Float[np.ndarray, "l g"],
    embeddings: Float[np.ndarray, "l c"] | None = None,
    *,
    seed: int = 0,
    leave_out: Collection[str] = (),
) -> Recovered:
    """Every row for the hidden spots of one slide, fitted on its measured spots.

    "ridge", "embedding kNN" and "MLP" are those of `stemjax.eval.baselines`, trained on the
    measured spots. "ridge + neighbours" has, beside the embedding, the mean of the four nearest
    measured spots of every gene: for a measured spot without itself, as a hidden spot does not know
    itself either. Penalties, neighbours and rounds are chosen over contiguous strips of the
    measured spots (`linear.ridge_folds`).

    Args:
      measured: which spots are measured.
      xy_um: positions, um.
      y: values in any value space, of genes that the slide measured; those of hidden spots are
        never looked at and may be NaN.
      embeddings: of every spot (original patch), or None.
      seed: of the kriging and the MLP.
      leave_out: names of rows not to fit.

    Returns:
      The rows for the hidden spots, in their order.

    Raises:
      SlideError: no spot is measured, none is hidden, or the arrays do not fit or are not finite.
      ValueError: ``leave_out`` names no row.
    """
    if unknown := set(leave_out) - set(RECOVERY_ROWS):
        raise ValueError(f"no row {sorted(unknown)}; rows are {', '.join(RECOVERY_ROWS)}")
    hidden = ~np.asarray(measured, bool)
    lengths = [len(v) for v in (hidden, xy_um, y, embeddings) if v is not None]
    if hidden.ndim != 1 or len(set(lengths)) > 1 or not hidden.any():
        raise errors.SlideError(
            "hidden spots cannot be recovered",
            expected="one row a spot in all arrays, and at least one spot that is not measured",
            found=f"rows {lengths}, {int(hidden.sum())} spots not measured",
        )
    rows_of = np.flatnonzero(~hidden)
    rows_of = rows_of[smoothing.order_of(np.asarray(xy_um)[rows_of])]
    xy, target, query = smoothing.checked(xy_um[rows_of], y[rows_of], xy_um[hidden])
    known = _Known(xy=xy, y=target, query=query, seed=seed)
    wanted = [name for name in RECOVERY_ROWS if name not in leave_out]
    rows: dict[str, np.ndarray] = {
        "constant mean": np.broadcast_to(target.mean(axis=0), (len(query), target.shape[1])),
        "nearest measured mean": smoothing.nearest_measured_mean(xy, target, query),
    }
    forecasts: dict[str, metrics.Forecast] = {
        "constant mean": spread.climatology(target, known.mask, spots=len(query))
    }
    ways = {"kriging": smoothing.kriging, "component kriging": smoothing.component_kriging}
    krigings = {
        name: way(xy, target, query, seed=seed) for name, way in ways.items() if name in wanted
    }
    for name, found in krigings.items():
        rows[name] = found.mean
        forecasts[name] = metrics.Normal(mean=found.mean, std=found.std)
    ridges: dict[str, linear.Ridge] = {}
    if embeddings is not None:
        x, test_x = (np.asarray(embeddings[of], np.float64) for of in (rows_of, hidden))
        if (np.ptp(x, axis=0) > 0).any():
            ridges = _embedding_rows(known, x, test_x, wanted, rows, forecasts)
    return Recovered(
        rows={name: rows[name] for name in wanted if name in rows},
        forecasts={name: forecasts[name] for name in wanted if name in forecasts},
        krigings=krigings,
        ridges=ridges,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Known:
    """What the rows on embeddings know beside them: measured spots sorted by position."""

    xy: np.ndarray
    y: np.ndarray
    query: np.ndarray
    seed: int

    @property
    def mask(self) -> np.ndarray:
        return np.ones(self.y.shape, np.uint8)

    @property
    def fold(self) -> np.ndarray:
        return linear.ridge_folds(np.zeros(len(self.y), int), self.xy)[0]


def _embedding_rows(
    known: _Known,
    x: np.ndarray,
    test_x: np.ndarray,
    wanted: Collection[str],
    rows: dict[str, np.ndarray],
    forecasts: dict[str, metrics.Forecast],
) -> dict[str, linear.Ridge]:
    """Adds the rows on embeddings to ``rows`` and ``forecasts``; how the ridge rows were fitted."""
    inputs = {"ridge": (x, test_x)}
    if "ridge + neighbours" in wanted:
        inputs["ridge + neighbours"] = (
            np.concatenate([x, smoothing.mean_of_others(known.xy, known.y)], axis=1),
            np.concatenate([test_x, rows["nearest measured mean"]], axis=1),
        )
    ridges = {}
    for name, (train, test) in inputs.items():
        if name in wanted:
            ridges[name], forecasts[name] = _ridge(known, train, test)
            rows[name] = ridges[name].prediction
    if "embedding kNN" in wanted:
        knn = neighbours.embedding_knn(x, known.y, known.mask, test_x, fold=known.fold)
        rows["embedding kNN"] = knn.prediction
        if len(knn.ensemble) > 1:
            forecasts["embedding kNN"] = metrics.Draws(values=knn.ensemble)
    if "MLP" in wanted:
        from stemjax.eval.baselines import perceptron

        mlp = perceptron.perceptron(
            x, known.y, known.mask, test_x, fold=known.fold, seed=known.seed
        )
        rows["MLP"] = mlp.prediction
        forecasts["MLP"] = metrics.Quantiles(levels=spread.QUANTILE_LEVELS, values=mlp.quantiles)
    return ridges


def _ridge(
    known: _Known, x: np.ndarray, test_x: np.ndarray
) -> tuple[linear.Ridge, metrics.Forecast]:
    """A ridge on these columns, and normal residuals about it."""
    one_slide = np.zeros(len(x), int)
    fitted = linear.ridge(x, known.y, known.mask, test_x, slide_index=one_slide, array_xy=known.xy)
    held_out = linear.ridge_held_out(x, known.y, known.mask, fold=known.fold, alpha=fitted.alpha)
    return fitted, spread.normal_residuals(fitted.prediction, held_out, known.y, known.mask)
