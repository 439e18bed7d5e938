"""What the table of several slides needs of each: scores and plain values, as bytes where asked.

An evaluated slide holds predictions, fitted models and the truth. Of these the table needs little,
which can leave the process that evaluated the slide.

evaluated slide -> `of_slide` -> (bytes -> another process ->) `stemjax.eval.evaluate.tabulate`
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from stemjax.eval import alerts, joining, metrics, mismatch, plain, slide_rows
from stemjax.foreign import json_text

if TYPE_CHECKING:
    import anndata

# What the result repeats of the prediction's own account.
_CARRIED = ("mode", "value_space", "sampler", "steps", "n_draws", "antithetic", "seed")
_CARRIED += ("evaluations_per_spot", "checkpoint_step", "weights", "stemjax_version")
_TOLD = "told"
# The alerts that a table adds to those of its slides need a table.
_NO_TABLE = {"rows": [{"scores": {}}], "intervals": {"of": ""}}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RowScores:
    """One row of a slide's table.

    Attributes:
      name: of the row.
      source: as `slide_rows.Row`.
      sees_test: as `slide_rows.Row`.
      scores: by the keys of `scoring.COLUMNS`: the slide's and each resample's, [1+r].
    """

    name: str
    source: str
    sees_test: bool
    scores: Mapping[str, Float[np.ndarray, " r"]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SlideResult:
    """One slide's part of the table, in plain values (as JSON has them) but for the scores.

    Attributes:
      identity: what results that are paired must share: slide, barcodes, columns scored, genes,
        value space.
      blocks: number of spatial blocks.
      about: what the prediction says of itself.
      described: what the slide is, what was left out, and its own scores.
      alerts: those of the slide alone.
      notes: what a reader must know of the rows, in sentences.
      rows: the prediction first.
    """

    identity: list[Any]
    blocks: int
    about: Mapping[str, Any]
    described: Mapping[str, Any]
    alerts: tuple[alerts.Alert, ...]
    notes: tuple[str, ...]
    rows: tuple[RowScores, ...]

    @property
    def slide(self) -> str:
        """The slide's id."""
        return self.described["slide"]

    @property
    def patient(self) -> str | None:
        """Whose slide it is, or None where that is unknown."""
        return self.described["patient"]

    def row(self, name: str) -> RowScores | None:
        """The row of that name, or None."""
        return next((row for row in self.rows if row.name == name), None)

    def to_bytes(self) -> bytes:
        """Returns the whole as an .npz: arrays of scores, the rest as JSON."""
        rows = [{**_fields(row, but="scores"), "keys": list(row.scores)} for row in self.rows]
        told = _fields(self, but="rows") | {"alerts": [vars(a) for a in self.alerts], "rows": rows}
        arrays: dict[str, Any] = {
            str(i): np.array([*row.scores.values()]) for i, row in enumerate(self.rows)
        }
        arrays[_TOLD] = np.frombuffer(json.dumps(told).encode(), np.uint8)
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()


def _fields(of: RowScores | SlideResult, *, but: str) -> dict[str, Any]:
    return {name: value for name, value in vars(of).items() if name != but}


def from_bytes(content: bytes) -> SlideResult:
    """Returns what `SlideResult.to_bytes` wrote, to the last bit."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        told = json_text.parse(arrays[_TOLD].tobytes())
        rows = [
            RowScores(scores=dict(zip(row.pop("keys"), arrays[str(i)], strict=True)), **row)
            for i, row in enumerate(told.pop("rows"))
        ]
    found = tuple(alerts.Alert(**alert) for alert in told.pop("alerts"))
    return SlideResult(alerts=found, notes=tuple(told.pop("notes")), rows=tuple(rows), **told)


def of_slide(
    prediction: anndata.AnnData, one: slide_rows.Evaluated, *, resamples: int, seed: int
) -> SlideResult:
    """What the table needs of an evaluated slide.

    Args:
      prediction: that was evaluated.
      one: its rows.
      resamples: that they were scored with.
      seed: of the resamples.
    """
    joined = one.joined
    return SlideResult(
        identity=plain.plain([
            joined.slide,
            joined.truth.barcodes,
            np.flatnonzero(one.scored),
            joined.genes,
            str(joined.about["value_space"]),
        ]),
        blocks=one.ground.resamples.times.shape[1],
        about=plain.plain({key: joined.about.get(key) for key in _CARRIED}),
        described=plain.plain(_describe(prediction, one, resamples=resamples, seed=seed)),
        alerts=tuple(alerts.find([one], _NO_TABLE)),
        notes=one.notes,
        rows=tuple(
            RowScores(
                name=row.name,
                source=row.source,
                sees_test=row.sees_test,
                scores={k: np.asarray(v, np.float64) for k, v in row.scored.values.items()},
            )
            for row in one.rows
        ),
    )  # fmt: skip


def _describe(
    prediction: anndata.AnnData, one: slide_rows.Evaluated, *, resamples: int, seed: int
) -> dict[str, Any]:
    """What one slide is, what was left out, and its own scores."""
    joined, truth, first = one.joined, one.joined.truth, one.rows[0].scored
    trained = np.ones(len(one.scored), bool) if one.fitted is None else one.fitted.trained
    given = np.isin(joined.genes, joining.names(joined.about.get("given_genes")))
    pcc = np.full(len(one.scored), np.nan)
    pcc[one.scored] = first.genes["pcc"]
    spread = None
    if joined.draws is not None and len(joined.draws) > 1:
        spread = draw_summary(joined.draws[..., one.scored], antithetic=joined.in_pairs)
    blocks = one.ground.resamples.blocks
    return {
        "slide": joined.slide,
        "patient": truth.patient,
        "split_kind": one.split[0],
        "split": one.split[1],
        "spots": len(truth.barcodes),
        "all_spots": one.all_spots,
        "genes": {
            "panel": len(joined.genes),
            "scored": np.sum(~np.isnan(pcc)),
            "not_measured": np.sum(~truth.measured),
            "not_in_training": np.sum(truth.measured & ~trained),
            "given": np.sum(given),
            "constant_in_truth": np.sum(one.scored & np.isnan(pcc)),
            "not_predicted": len(joined.absent["genes"]),
        },
        "spots_not_predicted": len(joined.absent["spots"]),
        "scores": {
            row.name: {key: values[0] for key, values in row.scored.values.items()}
            for row in one.rows
        },
        "gene_pcc": dict(zip(joined.genes, pcc, strict=True)),
        "draws": spread,
        # A single block of spots cannot be resampled.
        "mismatch": mismatch.summary(
            prediction, truth.barcodes, blocks,
            resamples=resamples if resamples > 1 and blocks.any() else 0, seed=seed,
        ),
        "ridge": one.fitted
        and {k: v for k, v in vars(one.fitted.ridge).items() if k != "prediction"},
    }  # fmt: skip


def draw_summary(draws: np.ndarray, *, antithetic: bool) -> dict[str, Any]:
    """Number of draws and the standard error of their average (root mean square), or None."""
    n, error = len(draws), None
    if n >= 4 and n % 2 == 0 if antithetic else n >= 2:
        each = metrics.draw_standard_error(draws, antithetic=antithetic)
        error = float(np.sqrt(np.mean(each**2)))
    return {"n": n, "antithetic": antithetic, "standard_error": error}
