"""A prediction and the truth of its slide, joined by barcode and gene name, never by row."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from stemjax import errors
from stemjax.data import transforms

if TYPE_CHECKING:
    import anndata

    from stemjax.data import records as spot_records

VALUE_SPACES: Mapping[str, str] = {
    "log2p1": "log2(count + 1)",
    "log1p_cp10k": "ln(1 + counts per 10,000)",
}
"""Units of each value space, as figures and tables print them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined:
    """A prediction and the truth of its slide, on the same spots and genes in the same order.

    Attributes:
      mean: the prediction, value space, float64 [l g].
      true: the measured counts in the same value space, float64 [l g].
      mask: 1 where the slide measured the gene, [l g].
      std: standard deviation of the draws, [l g], or None.
      draws: single draws, [n l g], or None.
      table: the slide's records; its order of spots is the order of all of the above.
      genes: gene names, in the records' order.
      slide: the slide's id.
      about: what the prediction says of itself, ``uns["stemjax"]``.
    """

    mean: np.ndarray
    true: np.ndarray
    mask: np.ndarray
    std: np.ndarray | None
    draws: np.ndarray | None
    table: spot_records.Table
    genes: tuple[str, ...]
    slide: str
    about: Mapping[str, Any]

    @property
    def label(self) -> str:
        """How the prediction was made: ``mean``, ``pair`` or ``draws(n)``."""
        mode = str(self.about["mode"])
        return mode if self.draws is None else f"{mode}({len(self.draws)})"


def names(values: Any) -> list[str]:
    """Names as h5ad gives them back: a list, an array of strings, one string or None."""
    return [] if values is None else [str(v) for v in np.atleast_1d(np.asarray(values, object))]


def _about(prediction: anndata.AnnData, name: str) -> Mapping[str, Any]:
    """uns["stemjax"] with the keys that evaluation cannot do without."""
    about = prediction.uns.get("stemjax", {})
    lacking = [k for k in ("slide", "mode", "value_space", "train_slides") if k not in about]
    if lacking:
        raise errors.PredictionError(
            f'{name}: uns["stemjax"] lacks {", ".join(lacking)}',
            fix="Evaluate a file written by `stemjax predict`",
        )
    if about["value_space"] not in VALUE_SPACES:
        raise errors.PredictionError(
            f"{name}: unknown value space",
            expected=" or ".join(VALUE_SPACES),
            found=str(about["value_space"]),
            fix="Evaluate with the version of stemjax that wrote it",
        )
    return about


def _rows(have: Sequence[str], want: Sequence[str], what: str) -> np.ndarray:
    """Row in ``have`` of each entry of ``want``; both must hold the same entries, each once."""
    place = {entry: i for i, entry in enumerate(have)}
    missing = [entry for entry in want if entry not in place]
    extra, twice = sorted(place.keys() - set(want)), len(have) - len(place)
    if missing or extra or twice:
        example = f" (e.g. {', '.join((missing or extra)[:3])})" if missing or extra else ""
        raise errors.PredictionError(
            f"{what} differ from the records'",
            expected=f"{len(want)}, each once",
            found=f"{len(missing)} missing, {len(extra)} extra and {twice} repeated{example}",
            fix="Predict again from these records",
        )
    return np.array([place[entry] for entry in want], np.int64)


def join(
    prediction: anndata.AnnData,
    records: spot_records.Records,
    *,
    name: str = "prediction",
    like: Joined | None = None,
) -> Joined:
    """The prediction's values and the truth, joined by barcode and gene name, never by row.

    Errors call the prediction ``name``; with ``like``, slide and value space must be that one's.

    Raises:
      PredictionError: ``uns["stemjax"]`` is incomplete, the slide is not in the records, spots or
        genes are missing, extra or twice there, or a value is not finite.
    """
    about = _about(prediction, name)
    for key in ("slide", "value_space"):
        if like is not None and str(about[key]) != str(like.about[key]):
            raise errors.PredictionError(
                f"{name}: another {key} than the prediction's",
                expected=str(like.about[key]),
                found=str(about[key]),
                fix="Compare predictions of one slide in one value space",
            )
    slide = str(about["slide"])
    if slide not in records.slides:
        raise errors.PredictionError(
            f"{name}: the records lack its slide",
            expected=f"one of {', '.join(sorted(records.slides))}",
            found=slide,
            fix="Open the records that hold it as well",
        )
    table = records.load([slide])
    spots = _rows(list(prediction.obs_names), table.barcodes, f"{name}: spots")
    columns = _rows(list(prediction.var_names), records.genes, f"{name}: genes")

    def aligned(values: Any, what: str) -> np.ndarray:
        """Values in the records' order, [l g] or [n l g]."""
        values = values.toarray() if scipy.sparse.issparse(values) else np.asarray(values)
        values = np.asarray(values[spots][..., columns], np.float64)
        if bad := np.sum(~np.isfinite(values)):
            raise errors.PredictionError(f"{name}: {what} holds {bad} NaN or infinite values")
        return values

    std, draws = prediction.layers.get("stemjax_std"), prediction.obsm.get("stemjax_draws")
    if std is not None:
        std = aligned(std, 'layers["stemjax_std"]')
    if draws is not None:
        draws = aligned(draws, 'obsm["stemjax_draws"]').transpose(1, 0, 2)
    transform = transforms.get_transform(str(about["value_space"]))
    return Joined(
        mean=aligned(prediction.X, "X"),
        true=np.asarray(transform.forward(table.counts, table.total), np.float64),
        mask=np.asarray(table.mask),
        std=std,
        draws=draws,
        table=table,
        genes=tuple(records.genes),
        slide=slide,
        about=about,
    )
