"""Which slides train, which validate, which test: and what a number on the test slides may claim.

A number about a slide of a patient who also gave a training slide is interpolation within that
patient, not prediction for a new one. A split therefore carries the patients, names its kind, and
says which test slides helped to choose the gene panel.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from stemjax import errors

type Kind = Literal[
    "interpolation within a patient", "new patient", "patient unknown", "no test slide"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Slides by role; every known slide has exactly one.

    Attributes:
      train: slides that weights are fitted on, sorted.
      val: slides that choices (early stopping, hyper-parameters) are made on, sorted.
      test: slides that only the final numbers look at, sorted.
      patients: patient of each slide of the three, None where it is unknown.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    patients: Mapping[str, str | None]

    @property
    def shared_patients(self) -> tuple[str, ...]:
        """Patients of test slides who also have a training or validation slide, sorted."""
        seen = {self.patients[slide] for slide in self.train + self.val}
        return tuple(sorted({p for p in map(self.patients.get, self.test) if p and p in seen}))

    @property
    def kind(self) -> Kind:
        """What a number on the test slides is about.

        One shared patient makes the whole number an interpolation. Without one, a patient that is
        unknown on either side could still be shared, so "new patient" is said only where all the
        patients are known.
        """
        if not self.test:
            return "no test slide"
        if self.shared_patients:
            return "interpolation within a patient"
        if any(self.patients[slide] is None for slide in self.train + self.val + self.test):
            return "patient unknown"
        return "new patient"

    def seen_by_panel(self, panel_slides: Iterable[str]) -> tuple[str, ...]:
        """Test slides among those that the gene panel was selected on, sorted.

        A number on such a slide is flattered: its own counts helped to choose the genes.
        """
        return tuple(sorted(set(self.test) & set(panel_slides)))


def make_split(
    patients: Mapping[str, str | None],
    *,
    test: Sequence[str] = (),
    val: Sequence[str] = (),
) -> Split:
    """Split with every slide of `patients` that is neither in `test` nor in `val` in training.

    Args:
      patients: every known slide with its patient, None where unknown.
      test: slides held out for the final numbers.
      val: slides held out for choices.

    Raises:
      SplitError: a slide is unknown, named twice, in both lists, or none is left to train on.
    """
    known = tuple(patients)
    for role, slides in (("test", test), ("val", val)):
        for slide in slides:
            require_known(slide, known, where=f"The {role} slides")
        twice = sorted({slide for slide in slides if list(slides).count(slide) > 1})
        if twice:
            raise errors.SplitError(
                f"The {role} slides name {', '.join(twice)} more than once",
                fix="Name each slide once",
            )
    both = sorted(set(test) & set(val))
    if both:
        raise errors.SplitError(
            f"{', '.join(both)} would be both a test and a val slide",
            fix="Leave each slide in one of the two lists: choices made on a test slide leak",
        )
    train = sorted(set(known) - set(test) - set(val))
    if not train:
        raise errors.SplitError(
            "No training slide is left",
            expected="at least one slide in neither test nor val",
            found=f"{len(test)} test and {len(val)} val slides of {len(known)}",
            fix="Hold out fewer slides, or prepare more",
        )
    return Split(
        train=tuple(train),
        val=tuple(sorted(val)),
        test=tuple(sorted(test)),
        patients=dict(sorted(patients.items())),
    )


def require_known(slide: str, known: Sequence[str], *, where: str) -> None:
    """Nothing, if `slide` is among `known`.

    Args:
      slide: the slide asked for.
      known: the slides there are.
      where: the start of the message, such as "The test slides".

    Raises:
      SplitError: names the slide, the nearest known ones and how many there are.
    """
    if slide in known:
        return
    near = difflib.get_close_matches(slide, known, n=3)
    listed = ", ".join(sorted(known)[:8]) + (", ..." if len(known) > 8 else "")
    raise errors.SplitError(
        f"{where} name {slide!r}, which is not among the {len(known)} slides",
        fix=f"Did you mean {' or '.join(near)}?" if near else f"Use one of {listed}",
    )
