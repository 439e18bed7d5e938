"""Calibrations: what turns a model's predictions into intervals, stored beside its weights.

`stemjax.eval.conformal` fits and applies them. They lie here because they belong to a set of
weights, as its card does: in a bundle or a workdir, as ``calibration.json``::

    {"format": 1, "calibrations": [one for each way of sampling, ...]}
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from stemjax import errors
from stemjax.data import integrity, transforms
from stemjax.foreign import json_text

FORMAT = 1
FILE = "calibration.json"

SCALED = ("draws", "marginal")
"""Modes whose predictions carry a standard deviation, which the offsets are multiples of."""

_AGAIN = "calibrate again with `stemjax calibrate`"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Offsets that make intervals of one model's predictions, drawn in one way.

    The interval of level i for gene g is mean + offsets[i, :, g] x scale, where scale is the larger
    of the prediction's std and ``floor[g]``, and 1 where the mode gives no std.

    Attributes:
      levels: levels of the central intervals, rising, each between 0 and 1.
      offsets: lower and upper offset, in units of the scale, float64 [levels 2 g]; NaN for a gene
        without any spot.
      floor: smallest scale of each gene, value space, above 0, [g].
      spots: spots that each gene was fitted on, [g].
      slides: the slides that they are of.
      genes: the genes, in column order.
      value_space: name of the transform whose values the intervals are of.
      sampling: how predictions were drawn, as ``uns["stemjax"]`` says it.
      model: which weights, `checkpoint.Trained.identity`.
      raw: coverage of the model's own intervals on the spots, one a level; None where the mode has
        none.
      held_out: coverage of calibrated intervals on spots that the offsets were not fitted on, one a
        level; None where too few spots were left to fit that level.
      held_out_by: how those spots were held out, in words.

    Raises:
      CalibrationError: the parts contradict each other, or a number cannot be.
    """

    levels: tuple[float, ...]
    offsets: Float[np.ndarray, "levels 2 g"]
    floor: Float[np.ndarray, " g"]
    spots: Int[np.ndarray, " g"]
    slides: tuple[str, ...]
    genes: tuple[str, ...]
    value_space: str
    sampling: Mapping[str, Any]
    model: Mapping[str, Any]
    raw: tuple[float | None, ...] | None
    held_out: tuple[float | None, ...]
    held_out_by: str

    def __post_init__(self) -> None:
        for name, kind in (("offsets", np.float64), ("floor", np.float64), ("spots", np.int64)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), kind))
        if wrong := _contradiction(self):
            raise errors.CalibrationError("a calibration cannot be used", found=wrong, fix=_AGAIN)

    @property
    def scaled(self) -> bool:
        """Whether the offsets are multiples of the prediction's std, and not value units."""
        return self.sampling["mode"] in SCALED

    @property
    def absent(self) -> tuple[str, ...]:
        """Genes that no spot measured, which have no interval."""
        return tuple(gene for gene, n in zip(self.genes, self.spots) if n == 0)

    def describe(self) -> dict[str, Any]:
        """Returns in plain values what a prediction says of it; no offsets and no date."""
        measured = self.spots[self.spots > 0]
        return {
            "levels": list(self.levels),
            "slides": list(self.slides),
            "spots": [int(measured.min()), int(measured.max())],
            "genes_without": list(self.absent),
            "sampling": dict(self.sampling),
            "model": dict(self.model),
            "raw": None if self.raw is None else list(self.raw),
            "held_out": list(self.held_out),
            "held_out_by": self.held_out_by,
        }

    def to_json(self) -> dict[str, Any]:
        """Returns plain values that `from_json` takes back, bit for bit; NaN is null."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        offsets = self.offsets.astype(object)
        offsets[np.isnan(self.offsets)] = None
        return values | {
            "offsets": offsets.tolist(),
            "floor": self.floor.tolist(),
            "spots": self.spots.tolist(),
            "sampling": dict(self.sampling),
            "model": dict(self.model),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """Returns the calibration that `to_json` wrote.

        Raises:
          CalibrationError: a part is missing, or the parts contradict each other.
        """
        try:
            spots = np.asarray(values["spots"])
            if spots.dtype.kind != "i":
                raise ValueError(f"spots are {spots.dtype}, not whole numbers")
            return cls(
                levels=tuple(map(float, values["levels"])),
                offsets=np.asarray(values["offsets"], np.float64),
                floor=np.asarray(values["floor"], np.float64),
                spots=spots,
                slides=tuple(map(str, values["slides"])),
                genes=tuple(map(str, values["genes"])),
                value_space=str(values["value_space"]),
                sampling=dict(values["sampling"]),
                model=dict(values["model"]),
                raw=None if values["raw"] is None else _shares(values["raw"]),
                held_out=_shares(values["held_out"]),
                held_out_by=str(values["held_out_by"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise errors.CalibrationError(
                "a stored calibration is incomplete",
                found=f"{type(error).__name__}: {error}",
                fix=_AGAIN,
            ) from error


def _shares(values: Sequence[float | None]) -> tuple[float | None, ...]:
    return tuple(None if value is None else float(value) for value in values)


def _contradiction(made: Calibration) -> str:
    """What is wrong with a calibration, "" if nothing is."""
    levels, genes = np.asarray(made.levels), len(made.genes)
    if (
        not len(levels)
        or not (np.diff(levels) > 0).all()
        or not ((levels > 0) & (levels < 1)).all()
    ):
        return f"levels {made.levels}"
    shapes = (made.offsets.shape, made.floor.shape, made.spots.shape)
    if shapes != ((len(levels), 2, genes), (genes,), (genes,)):
        return f"shapes {shapes} for {len(levels)} levels and {genes} genes"
    if len(set(made.genes)) < genes or not genes:
        return "no genes, or one twice"
    if not made.slides or made.value_space not in transforms.TRANSFORMS:
        return f"slides {made.slides}, value space {made.value_space!r}"
    if not (np.isfinite(made.floor) & (made.floor > 0)).all():
        return f"a smallest scale of {made.floor.min()}"
    used = made.spots > 0
    if (made.spots < 0).any() or not used.any():
        return f"{made.spots.max()} spots at most"
    if (
        not np.isfinite(made.offsets[..., used]).all()
        or not np.isnan(made.offsets[..., ~used]).all()
    ):
        return "offsets that are not finite, or of genes without spots"
    lower, upper = made.offsets[:, 0][:, used], made.offsets[:, 1][:, used]
    if (
        (lower > upper).any()
        or (np.diff(lower, axis=0) > 0).any()
        or (np.diff(upper, axis=0) < 0).any()
    ):
        return "intervals that are not nested"
    for shares in (made.held_out, *([] if made.raw is None else [made.raw])):
        if len(shares) != len(levels) or not all(v is None or 0 <= v <= 1 for v in shares):
            return f"coverage {shares}"
    return "" if "mode" in made.sampling else "no mode of sampling"


def read(path: pathlib.Path) -> tuple[Calibration, ...]:
    """Returns the calibrations of a file; none where there is no file.

    Raises:
      CalibrationError: it cannot be read, is of another format, or a calibration cannot be used.
    """
    if not path.exists():
        return ()
    fix = f"delete {path.name} there and calibrate again"
    try:
        values = json_text.parse(path.read_text(encoding="utf-8"))
        found, stored = values["format"], values["calibrations"]
        # Files of before there were digests have none.
        found_digest = integrity.json_digest(stored)
        if (digest := values.get("sha256", found_digest)) != found_digest:
            raise errors.CalibrationError(
                "it is damaged",
                expected=f"calibrations of sha256 {str(digest)[:12]}...",
                found=f"{found_digest[:12]}...",
            )
        if found == FORMAT:
            return tuple(map(Calibration.from_json, stored))
    except errors.CalibrationError as error:
        raise errors.CalibrationError(
            f"{path}: {error.what}", expected=error.expected, found=error.found, fix=fix
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.CalibrationError(
            f"{path} cannot be read ({type(error).__name__}: {error})", fix=fix
        ) from error
    raise errors.CalibrationError(
        f"{path}: format",
        expected=str(FORMAT),
        found=repr(found),
        fix="use the stemjax version that wrote it",
    )


def write(calibrations: Iterable[Calibration], path: pathlib.Path) -> None:
    """Writes a file of calibrations, whole or not at all."""
    stored = [one.to_json() for one in calibrations]
    values = {"format": FORMAT, "sha256": integrity.json_digest(stored), "calibrations": stored}
    integrity.write_text(path, json.dumps(values, allow_nan=False) + "\n")


def replace(calibrations: Sequence[Calibration], new: Calibration) -> tuple[Calibration, ...]:
    """Returns the calibrations with a new one, without what it makes useless.

    That is an older one of the same sampling, and any of earlier steps of the same weights.
    """
    kept = [
        one
        for one in calibrations
        if (one.model == new.model and one.sampling != new.sampling)
        or one.model.get("weights") != new.model.get("weights")
    ]
    return (*kept, new)


def of_weights(
    calibrations: Sequence[Calibration],
    model: Mapping[str, Any],
    *,
    genes: Sequence[str],
    value_space: str,
) -> tuple[Calibration, ...]:
    """Returns those that belong to some weights.

    Raises:
      CalibrationError: one that claims to has other genes or another value space.
    """
    found = tuple(one for one in calibrations if one.model == model)
    for one in found:
        if one.genes != tuple(genes) or one.value_space != value_space:
            raise errors.CalibrationError(
                "a calibration does not fit its model",
                expected=f"the model's {len(genes)} genes in their order, {value_space}",
                found=f"{len(one.genes)} genes, {one.value_space}",
                fix=_AGAIN,
            )
    return found
