"""A prediction and the truth of its slide, joined by barcode and gene name, never by row.

Any AnnData of predicted values joins: stemjax's own, which says in ``uns["stemjax"]`` what it is
and must cover its slide whole, and another tool's with X and matching names alone, which is scored
on what it shares with the truth and said to lack the rest.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from stemjax import errors
from stemjax.data import records as spot_records
from stemjax.data import sealing
from stemjax.data.hdf5 import soundness
from stemjax.eval import metrics, recovered
from stemjax.eval import truth as truths

if TYPE_CHECKING:
    import anndata

VALUE_SPACES: Mapping[str, str] = {
    "log2p1": "log2(count + 1)",
    "log1p": "ln(count + 1)",
    "log1p_cp10k": "ln(1 + counts per 10,000)",
}
"""Units of each value space, as figures and tables print them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foreign:
    """What another tool's prediction does not say of itself.

    Attributes:
      slide: its slide; None looks for the one slide of the truth that has all its barcodes.
      value_space: the units of its X.
      train_slides: slides it was trained on, for the baselines; None takes every other slide.
    """

    slide: str | None = None
    value_space: str = "log2p1"
    train_slides: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined:
    """A prediction and the truth of its slide, on the same spots and genes in the same order.

    Attributes:
      mean: the prediction, value space, float64 [l g].
      true: the measured counts in the same value space, float64 [l g].
      mask: 1 where the slide measured the gene, [l g].
      std: standard deviation of the draws, [l g], or None.
      draws: single draws, [n l g], or None.
      intervals: lower and upper end, [l g] each, of the calibrated central interval by level.
      truth: the slide's measurements; its rows and columns are those of all of the above.
      context: what the prediction was shown, where only hidden spots are scored; else None.
      about: what the prediction says of itself, ``uns["stemjax"]``, or what was said of it.
      ours: whether stemjax made it.
      absent: spots and genes of the truth that the prediction lacks, by ``spots`` and ``genes``.
      unknown: spots and genes of the prediction that the truth lacks.
    """

    mean: np.ndarray
    true: np.ndarray
    mask: np.ndarray
    std: np.ndarray | None
    draws: np.ndarray | None
    intervals: Mapping[float, tuple[np.ndarray, np.ndarray]]
    truth: truths.Truth
    context: truths.Truth | None
    about: Mapping[str, Any]
    ours: bool
    absent: Mapping[str, tuple[str, ...]]
    unknown: Mapping[str, tuple[str, ...]]

    @property
    def genes(self) -> tuple[str, ...]:
        """Gene names."""
        return self.truth.genes

    @property
    def slide(self) -> str:
        """The slide's id."""
        return self.truth.slide

    @property
    def table(self) -> spot_records.Table | None:
        """The slide's records, with embeddings; None where the truth is a file of counts."""
        return self.truth.table

    @property
    def label(self) -> str:
        """How the prediction was made: ``mean``, ``pair`` or ``draws(n)``."""
        mode = str(self.about["mode"])
        return mode if self.draws is None else f"{mode}({len(self.draws)})"

    @property
    def in_pairs(self) -> bool:
        """Whether draws 2i and 2i + 1 are an antithetic pair."""
        if self.draws is None or len(self.draws) % 2:
            return False
        return bool(self.about.get("antithetic", False))

    @property
    def forecast(self) -> metrics.Forecast | None:
        """The predicted law of each entry, or None where only a mean was predicted."""
        if self.draws is not None and len(self.draws) > 1:
            return metrics.Draws(values=self.draws, antithetic=self.in_pairs)
        if self.std is not None and (self.std > 0).all():
            return metrics.Normal(mean=self.mean, std=self.std)
        return None


def read(path: str | pathlib.Path) -> anndata.AnnData:
    """Returns an AnnData file of predictions, stemjax's own or another tool's.

    Raises:
      PredictionError: there is none, it is damaged, or not what its hash is of (`sealing`).
    """
    import anndata

    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.PredictionError(
            f"no prediction at {path}", expected="an .h5ad file with predicted values in X"
        )
    soundness.require_sound(path, errors.PredictionError)
    sealing.require_whole(path)
    try:
        return anndata.read_h5ad(path)
    except Exception as error:
        raise errors.PredictionError(
            f"{path} cannot be read ({type(error).__name__}: {error})",
            fix="copy the file again, or predict again",
        ) from error


def names(values: Any) -> list[str]:
    """Names as h5ad gives them back: a list, an array of strings, one string or None."""
    return [] if values is None else [str(v) for v in np.atleast_1d(np.asarray(values, object))]


def _about(
    prediction: anndata.AnnData,
    source: truths.Source,
    name: str,
    foreign: Foreign,
    like: Joined | None,
) -> Mapping[str, Any]:
    """What is known of the prediction: its own account, or what ``foreign`` says."""
    about = prediction.uns.get("stemjax")
    if about is None:
        told = foreign.slide or (None if like is None else like.slide)
        slide = told or _find_slide(prediction, source, name)
        train = foreign.train_slides
        others = tuple(other for other in source.slides if other != slide)
        about = {
            "slide": slide,
            "mode": "mean",
            "value_space": foreign.value_space,
            "train_slides": others if train is None else train,
            "train_slides_assumed": train is None,
        }
    if "layer" in about:
        raise errors.PredictionError(
            f"{name} is a measured slide that a prediction was added to: X are counts",
            expected="the prediction itself",
            fix="Evaluate what `stemjax predict`, or predict(inplace=False), gave",
        )
    lacking = [k for k in ("slide", "mode", "value_space", "train_slides") if k not in about]
    if lacking:
        raise errors.PredictionError(
            f'{name}: uns["stemjax"] lacks {", ".join(lacking)}',
            fix="Evaluate a file written by `stemjax predict`, or drop that entry to have X alone "
            "evaluated",
        )
    if about["value_space"] not in VALUE_SPACES:
        raise errors.PredictionError(
            f"{name}: unknown value space",
            expected=" or ".join(VALUE_SPACES),
            found=str(about["value_space"]),
            fix="Evaluate with the version of stemjax that wrote it",
        )
    return about


def _find_slide(prediction: anndata.AnnData, source: truths.Source, name: str) -> str:
    """The slide of the truth that has the prediction's barcodes."""
    have = set(map(str, prediction.obs_names))
    if len(source.slides) == 1:
        return source.slides[0]
    shared = {slide: len(have & set(source.load(slide).barcodes)) for slide in source.slides}
    most = max(shared.values())
    best = [slide for slide, n in shared.items() if n == most]
    if most == 0 or len(best) > 1:
        raise errors.PredictionError(
            f"{name}: its slide",
            expected="barcodes of one of the slides, or its id",
            found="barcodes of none of them"
            if most == 0
            else f"barcodes that {', '.join(sorted(best)[:5])} have alike",
            fix="say which with --slide",
        )
    return best[0]


def _place(entries: Sequence[str], what: str, name: str) -> dict[str, int]:
    """Row of each entry; each must be there once."""
    place = {entry: i for i, entry in enumerate(entries)}
    if len(place) < len(entries):
        seen: set[str] = set()
        twice = sorted({e for e in entries if e in seen or seen.add(e)})
        raise errors.PredictionError(
            f"{name}: {what} are repeated",
            expected="each once",
            found=f"{len(entries) - len(place)} repeated (e.g. {', '.join(twice[:3])})",
        )
    return place


def _match(
    have: Sequence[str],
    want: Sequence[str],
    what: str,
    name: str,
    *,
    whole: bool,
    more: bool = False,
) -> tuple[list[int], list[int], tuple[str, ...], tuple[str, ...]]:
    """Rows of the truth and of the prediction that go together, and what either lacks.

    A prediction that must hold the ``whole`` truth may hold ``more`` only where that is said.
    """
    place = _place(have, what, name)
    absent = tuple(entry for entry in want if entry not in place)
    known = set(want)
    extra = tuple(entry for entry in place if entry not in known)
    kept = [i for i, entry in enumerate(want) if entry in place]
    if (whole and (absent or (extra and not more))) or not kept:
        example = ", ".join((absent or extra)[:3])
        raise errors.PredictionError(
            f"{name}: {what} differ from the truth's",
            expected=f"{len(want)}, each once",
            found=f"{len(absent)} missing and {len(extra)} extra (e.g. {example})",
            fix="Predict again from these records"
            if whole
            else f"Name the {what} as the truth does ({', '.join(map(repr, want[:2]))})",
        )
    return kept, [place[want[i]] for i in kept], absent, extra


def join(
    prediction: anndata.AnnData,
    source: truths.Source | spot_records.Records,
    *,
    name: str = "prediction",
    like: Joined | None = None,
    foreign: Foreign | None = None,
) -> Joined:
    """The prediction's values and the truth, joined by barcode and gene name, never by row.

    stemjax's own predictions must hold every spot and gene of the slide; another tool's are joined
    on what both have. Of a prediction that says which spots it was shown (``obs`` of
    `recovered.MEASURED`) the others alone are joined. Errors call the prediction ``name``; with
    ``like``, slide and value space must be that one's.

    Raises:
      PredictionError: ``uns["stemjax"]`` is incomplete, the slide is not in the truth, names are
        repeated, none is shared, one of ours lacks some, a value is not finite, or with ``like``
        it was shown a spot that is scored.
    """
    if not isinstance(source, truths.Source):
        source = truths.of_records(source)
    about, ours = (
        _about(prediction, source, name, foreign or Foreign(), like),
        "stemjax" in prediction.uns,
    )
    for key in ("slide", "value_space"):
        if like is not None and str(about[key]) != str(like.about[key]):
            raise errors.PredictionError(
                f"{name}: another {key} than the prediction's",
                expected=str(like.about[key]),
                found=str(about[key]),
                fix="Compare predictions of one slide in one value space",
            )
    slide = str(about["slide"])
    if slide not in source.slides:
        raise errors.PredictionError(
            f"{name}: the truth lacks its slide",
            expected=f"one of {', '.join(sorted(source.slides))}",
            found=slide,
            fix="Open the records that hold it as well",
        )
    if like is None:
        truth, context = recovered.parted(prediction, source.load(slide), name)
    else:
        truth, context = like.truth, like.context
        if recovered.MEASURED in prediction.obs:  # else it was shown none, and nothing is read
            recovered.require_unseen(prediction, truth, source.load(slide), name)
    # A prediction of hidden spots or new points holds measured spots too, which are not scored.
    partly = context is not None or recovered.MEASURED in prediction.obs
    whole = ours and source.records is not None
    rows, spots, no_spots, more_spots = _match(
        list(map(str, prediction.obs_names)), truth.barcodes, "spots", name, whole=whole,
        more=partly,
    )  # fmt: skip
    columns, genes, no_genes, more_genes = _match(
        truth.named(list(map(str, prediction.var_names))), truth.genes, "genes", name, whole=whole
    )
    if like is not None and (no_spots or no_genes):
        raise errors.PredictionError(
            f"{name} lacks {len(no_spots)} spots and {len(no_genes)} genes of the prediction",
            expected="the same spots and genes in every row of the table",
            fix="leave it out, or cut the prediction to what both have",
        )

    def aligned(given: Any, what: str) -> np.ndarray:
        """Values in the truth's order, [l g] or [l n g]."""
        dense = values(
            given, what, name, of=(list(prediction.obs_names), list(prediction.var_names))
        )
        return dense[spots][..., genes]

    std, draws = prediction.layers.get("stemjax_std"), prediction.obsm.get("stemjax_draws")
    if std is not None:
        std = aligned(std, 'layers["stemjax_std"]')
    if draws is not None:
        draws = aligned(draws, 'obsm["stemjax_draws"]').transpose(1, 0, 2)
    truth = recovered.cut(truth, rows, columns)
    if context is not None:
        context = recovered.cut(context, list(range(len(context.barcodes))), columns)
    return Joined(
        mean=aligned(prediction.X, "X"),
        true=truth.values(str(about["value_space"])),
        mask=np.broadcast_to(truth.measured, (len(rows), len(columns))).astype(np.uint8),
        std=std,
        draws=draws,
        intervals=_intervals(prediction, spots, genes),
        truth=truth,
        context=context,
        about=about,
        ours=ours,
        absent={"spots": no_spots, "genes": no_genes},
        unknown={"spots": () if partly else more_spots, "genes": more_genes},
    )


def values(
    given: Any, what: str, name: str, *, of: tuple[Sequence[str], Sequence[str]]
) -> np.ndarray:
    """A matrix of a prediction as float64; ``of`` are the names of its spots and genes.

    Raises:
      PredictionError: there is none, or a value is not finite.
    """
    if given is None:
        raise errors.PredictionError(
            f"{name} has no {what}", expected=f"predicted values in {what}"
        )
    dense = given.toarray() if scipy.sparse.issparse(given) else np.asarray(given)
    if dense.dtype.kind not in "iuf":
        raise errors.PredictionError(
            f"{name}: {what}", expected="numbers", found=f"values of type {dense.dtype}"
        )
    dense = dense.astype(np.float64)
    if bad := int(np.sum(~np.isfinite(dense))):
        where = np.argwhere(~np.isfinite(dense))[0]
        raise errors.PredictionError(
            f"{name}: {what} holds {bad} NaN or infinite values",
            expected="a finite value for every spot and gene",
            found=f"the first at spot {of[0][where[0]]!r}, gene {of[1][where[-1]]!r}",
        )
    return dense


def _intervals(
    prediction: anndata.AnnData, spots: list[int], genes: list[int]
) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """The calibrated intervals by level; NaN for genes that could not be calibrated."""
    found = {}
    for level in metrics.LEVELS:
        ends = [
            prediction.layers.get(f"stemjax_{end}_{level * 100:g}") for end in ("lower", "upper")
        ]
        if all(end is not None for end in ends):
            low, high = (np.asarray(end)[np.ix_(spots, genes)].astype(np.float64) for end in ends)
            found[level] = low, high
    return found
