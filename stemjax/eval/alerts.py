"""What must stand beside the numbers: alerts, worst first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from stemjax.data import splits
from stemjax.eval import joining, recovered

if TYPE_CHECKING:
    from stemjax.eval import slide_rows

type Level = Literal["error", "warning", "note"]

POOR_COVERAGE = 0.05
"""How far the coverage of the 90 % interval may be off before it is an alert."""

FAR_SHARE = 0.05
"""Share of spots out of range that is an alert: 1 % is expected."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alert:
    """One alert.

    Attributes:
      level: ``error``: the numbers are no test; ``warning``: they mislead unless one knows this;
        ``note``: worth knowing.
      title: in a few words.
      text: in a sentence or two.
    """

    level: Level
    title: str
    text: str


def find(each: Sequence[slide_rows.Evaluated], result: Mapping[str, Any]) -> list[Alert]:
    """The alerts of a result.

    Args:
      each: the evaluated slides.
      result: ``rows`` and ``slides`` of `evaluate.summarise`, numbers not yet plain.
    """
    found = [alert for one in each for alert in (*_split(one), *_missing(one), *_range(one))]
    for one in each:
        found += of_account(one.joined.about, one.joined.slide)
    found += _calibration(result["rows"][0]["scores"])
    found += _depth(result["rows"])
    if result["intervals"]["of"] == "nothing":
        found.append(
            Alert(level="warning", title="no intervals", text=result["intervals"]["sentence"])
        )
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(dict.fromkeys(found), key=lambda alert: order[alert.level])


def of_account(about: Mapping[str, Any], slide: str) -> list[Alert]:
    """What a prediction itself warns of, ``uns["stemjax"]["warnings"]``, as alerts."""
    return [
        Alert(level="warning", title="a doubtful prediction", text=f"{slide}: {warning}.")
        for warning in map(str, about.get("warnings", ()))
    ]


def _split(one: slide_rows.Evaluated) -> list[Alert]:
    kind, sentence = one.split
    found = []
    if kind == splits.RECOVERY:
        text = f"{sentence}. It says nothing of a slide without measurements."
        found.append(Alert(level="note", title=kind, text=text))
    elif kind.endswith("slide"):
        found.append(Alert(level="error", title="not a test slide", text=f"{sentence}."))
    elif kind == "interpolation within a patient":
        text = f"Slide {one.joined.slide}: {sentence}. This is no prediction for a new patient."
        found.append(Alert(level="warning", title="interpolation within a patient", text=text))
    elif kind != "new patient":
        text = f"Slide {one.joined.slide}: {sentence}."
        found.append(Alert(level="warning", title="patients unknown", text=text))
    if one.joined.context is None and recovered.sees_others(one.joined.about):
        text = f"Each spot of {one.joined.slide} is predicted from the measured spots around it, "
        text += "which the rivals on its image do not see; set it beside the neighbour mean."
        title = "predicted from the slide's own spots"
        found.append(Alert(level="warning", title=title, text=text))
    if one.joined.slide in one.panel_slides and one.joined.context is None:
        text = f"The counts of {one.joined.slide} helped to choose the genes."
        found.append(Alert(level="warning", title="panel chosen on the test slide", text=text))
    about = one.joined.about
    if not one.joined.ours:
        text = f"{one.joined.slide}: X is taken to be {joining.VALUE_SPACES[about['value_space']]}."
        found.append(Alert(level="note", title="another tool's prediction", text=text))
    # The rivals of hidden spots are fitted on the slide's measured ones.
    assumed = about.get("train_slides_assumed") and one.joined.context is None
    if assumed and about["train_slides"]:
        text = f"The rivals of {one.joined.slide} are fitted on all other slides of the truth: the "
        text += "prediction does not say which slides it was trained on."
        found.append(Alert(level="note", title="training slides assumed", text=text))
    return found


def _missing(one: slide_rows.Evaluated) -> list[Alert]:
    found, slide = [], one.joined.slide
    for what, lacking in one.joined.absent.items():
        if lacking:
            whole = len(one.joined.truth.barcodes if what == "spots" else one.joined.genes)
            text = f"{slide}: {len(lacking)} of {whole + len(lacking)} {what} of the truth are not "
            text += f"predicted (e.g. {', '.join(lacking[:3])}); all rows are scored without them."
            found.append(Alert(level="warning", title=f"missing {what}", text=text))
    for what, extra in one.joined.unknown.items():
        if extra:
            text = f"{slide}: {len(extra)} predicted {what} are not in the truth (e.g. "
            text += f"{', '.join(extra[:3])}); they are left out."
            found.append(Alert(level="note", title=f"unknown {what}", text=text))
    if not one.scored.any():
        text = f"{slide}: no gene was measured, trained on and not told to the prediction."
        found.append(Alert(level="error", title="no gene to score", text=text))
    constant = int((~one.ground.defined[0]).sum())
    if constant:
        text = f"{slide}: {constant} of {one.ground.true.shape[1]} genes do not vary over its "
        text += "spots; they have no correlation and no share in PCC, R², RVD and structure."
        found.append(Alert(level="note", title="constant genes", text=text))
    return found


def _range(one: slide_rows.Evaluated) -> list[Alert]:
    """Values that no count gives, and patches unlike any in training."""
    found, slide, mean = [], one.joined.slide, one.joined.mean
    below = float((mean < 0).mean())
    top = one.joined.true.max() + 1.0
    above = (mean > 2 * top).any(axis=1)
    if above.any():
        text = f"{slide}: {int(above.sum())} spots are predicted at more than twice the largest "
        text += "measured value: is the value space right?"
        found.append(Alert(level="warning", title="values out of range", text=text))
    if below > 0.01:
        text = f"{slide}: {below:.0%} of predicted values are below 0, which no count gives."
        found.append(Alert(level="note", title="negative values", text=text))
    if one.out_of_range is not None and one.out_of_range > FAR_SHARE:
        text = f"{slide}: the patches of {one.out_of_range:.0%} of its spots are unlike any in "
        text += "training (further from every training spot than 99 % of those are from their "
        text += "nearest)."
        found.append(Alert(level="warning", title="spots out of range", text=text))
    return found


def _calibration(scores: Mapping[str, Mapping[str, Any]]) -> list[Alert]:
    for key, how in (("coverage_90_calibrated", "calibrated"), ("coverage_90", "predicted")):
        if key in scores:
            value = scores[key]["value"]
            if abs(value - 0.9) <= POOR_COVERAGE:
                return []
            text = f"The {how} 90 % intervals hold {value:.1%} of the measured values."
            if how == "predicted":
                text += " `stemjax calibrate` makes intervals from validation slides."
            return [Alert(level="warning", title="poor calibration", text=text)]
    return []


def _depth(rows: Sequence[Mapping[str, Any]]) -> list[Alert]:
    """Whether the correlation is that of sequencing depth."""
    scores = rows[0]["scores"]
    if "pcc_all" not in scores or "pcc_depth" not in scores:
        return []
    plain, left = scores["pcc_all"]["value"], scores["pcc_depth"]["value"]
    found = []
    if plain > 0.05 and left < plain / 2:
        text = f"Given each spot's depth, PCC-all falls from {plain:.3f} to {left:.3f}: most of it "
        text += "is how many molecules a spot gave, not which genes."
        found.append(Alert(level="warning", title="depth-driven PCC", text=text))
    oracle = next((row for row in rows if row["name"] == "depth oracle"), None)
    if oracle is not None and oracle["scores"]["pcc_all"]["value"] > plain:
        text = "A line in each spot's total count alone has PCC-all "
        text += f"{oracle['scores']['pcc_all']['value']:.3f}, the prediction {plain:.3f}."
        found.append(Alert(level="note", title="below the depth oracle", text=text))
    return found
