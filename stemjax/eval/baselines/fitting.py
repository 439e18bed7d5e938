"""All baselines of one test slide, fitted on the training slides' records."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from stemjax.data import transforms
from stemjax.eval import metrics
from stemjax.eval.baselines import floors, linear, neighbours, spread

if TYPE_CHECKING:
    from stemjax.data import records
    from stemjax.eval.baselines import perceptron

ROWS: tuple[str, ...] = (
    "constant mean",
    "coordinates kNN",
    "neighbour mean",
    "depth oracle",
    "ridge",
    "HEST probe",
    "embedding kNN",
    "MLP",
)
"""Names of all rows, in the order of the table."""

FLOORS = frozenset({"constant mean", "coordinates kNN", "neighbour mean", "depth oracle"})
"""Rows that know no image."""

SEES_TEST = frozenset({"neighbour mean", "depth oracle"})
"""Rows that use measurements of the test slide itself: no rivals of a model that sees an image."""

SLOW = frozenset({"HEST probe", "embedding kNN", "MLP"})
"""Rows that take seconds rather than tenths of one; what `fit` may be told to leave out first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """The baselines of one test slide.

    Attributes:
      rows: prediction [l g] by row name, in the order of `ROWS`; without "coordinates kNN" where
        no training slide is known to be of the test slide's patient, and without "neighbour mean"
        for a slide of one spot.
      forecasts: what some of the rows say of the spread, by row name: the quantiles of the training
        spots for "constant mean" (climatology), normal residuals for "ridge", the neighbours for
        "embedding kNN", quantiles for "MLP". NaN where the row is.
      ridge: how the ridge row was fitted.
      knn, mlp: how those rows were; None where left out.
      ranking: each gene's correlation under the ridge on held-out training slides
        (`linear.held_out_pcc`), [g]: to rank genes by for an honest PCC-k.
      trained: whether any training spot measured the gene, [g]; where not, every row is NaN.
    """

    rows: Mapping[str, Float[np.ndarray, "l g"]]
    forecasts: Mapping[str, metrics.Forecast]
    ridge: linear.Ridge
    knn: neighbours.EmbeddingKnn | None
    mlp: perceptron.Perceptron | None
    ranking: Float[np.ndarray, " g"]
    trained: np.ndarray

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the table must know of these rows, in sentences."""
        notes = [f"Ridge: alpha {self.ridge.alpha:g} by {self.ridge.folds}."]
        if self.ridge.alpha in (self.ridge.alphas[0], self.ridge.alphas[-1]):
            notes.append("Ridge's alpha is at the end of its grid.")
        if self.knn:
            notes.append(f"Embedding kNN: {self.knn.k} neighbours by {self.ridge.folds}.")
        if self.mlp:
            notes.append(f"MLP: stopped after {self.mlp.rounds} rounds by one fold of the same.")
        if "HEST probe" in self.rows:
            notes.append("HEST probe: no intercept, as published, so read its PCC and not its MSE.")
        if "coordinates kNN" not in self.rows:
            notes.append("No coordinates kNN: no training slide is known to be of this patient.")
        return tuple(notes)


def fit(
    train: records.Table,
    test: records.Table,
    *,
    value_space: str,
    patients: Mapping[str, str | None],
    seed: int = 0,
    leave_out: Collection[str] = (),
) -> Fitted:
    """Every baseline, fitted on the training slides' records, for the one slide of ``test``.

    Args:
      train: records of the training slides.
      test: records of the test slide; its counts are used by the rows in `SEES_TEST` alone.
      value_space: name of the transform that the targets are in.
      patients: patient of every slide of both tables.
      seed: of the MLP.
      leave_out: names of rows not to fit, for example `SLOW`; ridge is always fitted.

    Raises:
      ValueError: ``leave_out`` names no row, or ridge.
    """
    if unknown := set(leave_out) - set(ROWS) | {"ridge"} & set(leave_out):
        raise ValueError(f"cannot leave out {sorted(unknown)}; rows are {', '.join(ROWS)}")
    wanted = [name for name in ROWS if name not in leave_out]
    y = _values(train, value_space)
    x, test_x = train.embeddings[:, 0], test.embeddings[:, 0]
    fold, _ = linear.ridge_folds(train.slide_index, train.array_xy)
    rows = _floors(train, test, y, value_space=value_space, patients=patients)
    forecasts: dict[str, metrics.Forecast] = {
        "constant mean": spread.climatology(y, train.mask, spots=len(test.barcodes))
    }
    ridge = linear.ridge(
        x, y, train.mask, test_x, slide_index=train.slide_index, array_xy=train.array_xy
    )
    held_out = linear.ridge_held_out(x, y, train.mask, fold=fold, alpha=ridge.alpha)
    rows["ridge"] = ridge.prediction
    forecasts["ridge"] = spread.normal_residuals(ridge.prediction, held_out, y, train.mask)
    if "HEST probe" in wanted:
        rows["HEST probe"] = linear.hest_probe(x, y, train.mask, test_x)
    knn = mlp = None
    if "embedding kNN" in wanted:
        knn = neighbours.embedding_knn(x, y, train.mask, test_x, fold=fold)
        rows["embedding kNN"] = knn.prediction
        if len(knn.ensemble) > 1:
            forecasts["embedding kNN"] = metrics.Draws(values=knn.ensemble)
    if "MLP" in wanted:
        from stemjax.eval.baselines import perceptron

        mlp = perceptron.perceptron(x, y, train.mask, test_x, fold=fold, seed=seed)
        rows["MLP"] = mlp.prediction
        forecasts["MLP"] = metrics.Quantiles(levels=spread.QUANTILE_LEVELS, values=mlp.quantiles)
    return Fitted(
        rows={name: rows[name] for name in wanted if name in rows},
        forecasts={name: forecasts[name] for name in wanted if name in forecasts},
        ridge=ridge,
        knn=knn,
        mlp=mlp,
        ranking=linear.held_out_pcc(held_out, y, train.mask, fold=fold),
        trained=(np.asarray(train.mask) != 0).any(axis=0),
    )


def _values(table: records.Table, value_space: str) -> np.ndarray:
    forward = transforms.get_transform(value_space).forward
    return np.asarray(forward(table.counts, table.total), np.float64)


def _floors(
    train: records.Table,
    test: records.Table,
    y: np.ndarray,
    *,
    value_space: str,
    patients: Mapping[str, str | None],
) -> dict[str, np.ndarray]:
    """The rows that need no embedding."""
    constant = floors.constant_mean(y, train.mask, spots=len(test.barcodes))
    rows = {"constant mean": constant}
    patient = patients[test.slides[0]]
    same = [i for i, slide in enumerate(train.slides) if patient and patients[slide] == patient]
    near = np.isin(train.slide_index, same)
    knn = floors.coordinates_knn(train.array_xy[near], y[near], train.mask[near], test.array_xy)
    if knn is not None:
        # A gene that only other patients' slides measured: this patient's sections say nothing.
        rows["coordinates kNN"] = np.where(np.isnan(knn), constant, knn)
    if len(test.barcodes) > 1:
        own = _values(test, value_space)
        mean = floors.neighbour_mean(own, test.mask, test.array_xy)
        # Not measured by the neighbours: the training mean. In training by none: NaN as all rows.
        rows["neighbour mean"] = np.where(np.isnan(mean) | np.isnan(constant), constant, mean)
    rows["depth oracle"] = floors.depth_oracle(y, train.mask, train.total, test.total)
    return rows
