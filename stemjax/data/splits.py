"""Which slides train, which validate, which test: and what a number on the test slides may claim.

A number about a slide of a patient who also gave a training slide is interpolation within that
patient, not prediction for a new one. A split therefore carries the patients, names its kind and
its leaks, and says which test slides helped to choose the gene panel. Splits in numbers, for
cross-validation and in files, are `stemjax.data.folds`.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from stemjax import errors

type Kind = Literal[
    "interpolation within a patient",
    "new patient",
    "patient unknown",
    "no test slide",
    "recovery within a slide",
]

RECOVERY: Kind = "recovery within a slide"

ROLES = ("train", "val", "test")
"""What a slide can be in a split: the fields of `Split`, as files and messages name them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Slides by role; every known slide has exactly one.

    Attributes:
      train: slides that weights are fitted on, sorted.
      val: slides that choices (early stopping, hyper-parameters) are made on, sorted.
      test: slides that only the final numbers look at, sorted.
      patients: patient of each slide of the four, None where it is unknown.
      recover: slides of which some spots train and the others are to be recovered, sorted.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    patients: Mapping[str, str | None]
    recover: tuple[str, ...] = ()

    @property
    def fitted(self) -> tuple[str, ...]:
        """Slides whose spots, all or some, weights are fitted on, sorted."""
        return tuple(sorted({*self.train, *self.recover}))

    @property
    def shared_patients(self) -> tuple[str, ...]:
        """Patients of test slides who also have a training or validation slide, sorted."""
        seen = {self.patients[slide] for slide in self.fitted + self.val}
        return tuple(sorted({p for p in map(self.patients.get, self.test) if p and p in seen}))

    @property
    def kind(self) -> Kind:
        """What a number on the test slides is about.

        One shared patient makes the whole number an interpolation. Without one, a patient that is
        unknown on either side could still be shared, so "new patient" is said only where all the
        patients are known.
        """
        if not self.test:
            return RECOVERY if self.recover else "no test slide"
        if self.shared_patients:
            return "interpolation within a patient"
        if any(self.patients[slide] is None for slide in self.fitted + self.val + self.test):
            return "patient unknown"
        return "new patient"

    @property
    def leaks(self) -> tuple[str, ...]:
        """Each shared patient with the slides on both sides, in words; empty where there is none.

        Such as "patient B: test B1, train B2 B3, val B4".
        """
        found = []
        for patient in self.shared_patients:
            sides = []
            for role, slides in (("test", self.test), ("train", self.fitted), ("val", self.val)):
                own = [s for s in slides if self.patients[s] == patient]
                sides += [f"{role} {' '.join(own)}"] if own else []
            found.append(f"patient {patient}: {', '.join(sides)}")
        return tuple(found)

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
    recover: Sequence[str] = (),
    train: Sequence[str] = (),
) -> Split:
    """Split with every slide of `patients` that has no other role in training.

    Args:
      patients: every known slide with its patient, None where unknown.
      test: slides held out for the final numbers.
      val: slides held out for choices.
      recover: slides that train with some of their spots; then no slide but those of ``train``
        trains beside them.
      train: slides that train, where not every other one does.

    Raises:
      SplitError: a slide is unknown, named twice, in two lists, or none is left to train on.
    """
    known = tuple(patients)
    named = {"test": test, "val": val, "recover": recover, "train": train}
    for role, slides in named.items():
        for slide in slides:
            require_known(slide, known, where=f"The {role} slides")
        twice = sorted({slide for slide in slides if list(slides).count(slide) > 1})
        if twice:
            raise errors.SplitError(
                f"The {role} slides name {', '.join(twice)} more than once",
                fix="Name each slide once",
            )
    for first, second in itertools.combinations(named, 2):
        both = sorted(set(named[first]) & set(named[second]))
        if both:
            raise errors.SplitError(
                f"{', '.join(both)} would be both a {first} and a {second} slide",
                fix="Leave each slide in one of the lists: choices made on a test slide leak",
            )
    rest = "train" if not (recover or train) else "none"
    roles = {slide: role for role, slides in named.items() for slide in slides}
    roles = {slide: roles.get(slide, rest) for slide in known}
    return split_by_role({k: v for k, v in roles.items() if v != "none"}, patients)


def split_by_role(roles: Mapping[str, str], patients: Mapping[str, str | None]) -> Split:
    """Split in which each slide has the role given; slides without a role take no part.

    Args:
      roles: role of each slide, one of `ROLES` or ``recover``.
      patients: patient of each of them, None where unknown; of others too, which are left out.

    Raises:
      SplitError: no slide is left to train on.
    """
    names = (*ROLES, "recover")
    by_role = {name: sorted(s for s, role in roles.items() if role == name) for name in names}
    if not by_role["train"] and not by_role["recover"]:
        raise errors.SplitError(
            "No training slide is left",
            expected="at least one slide in neither test nor val",
            found=f"{len(by_role['test'])} test and {len(by_role['val'])} val slides "
            f"of {len(roles)}",
            fix="Hold out fewer slides, or prepare more",
        )
    return Split(
        train=tuple(by_role["train"]),
        val=tuple(by_role["val"]),
        test=tuple(by_role["test"]),
        recover=tuple(by_role["recover"]),
        patients={slide: patients[slide] for slide in sorted(roles)},
    )


def require_apart(split: Split) -> None:
    """Nothing, if no test slide is of a patient who also has a training or validation slide.

    Patients that are unknown cannot be shown to be on both sides, so they pass; `Split.kind` is
    then "patient unknown".

    Raises:
      SplitError: names every shared patient with the slides on both sides.
    """
    if not split.leaks:
        return
    raise errors.SplitError(
        f"Test slides share a patient with training: {'; '.join(split.leaks)}",
        expected="every patient on one side of the split",
        found=f"{', '.join(split.shared_patients)} on both",
        fix="Hold out all slides of the patient (`stemjax split --by patient`), or accept a number "
        "about interpolation within a patient with --config.data.leakage=mark",
        case="D19",
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
