"""Plays one case: makes its scene, disturbs, judges, and clears away."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
import time
import traceback
from collections.abc import Callable

from tests.faults import (
    artefacts,
    cases,
    storage,
    training,
    trouble,
    verdicts,
    writers,
)
from tests.faults.scene import Scene, unmount_all

_PLAYS: dict[str, Callable[[Scene], str]] = {
    "training/kill": training.kill,
    "training/kill-compiling": functools.partial(training.kill, what="compiling"),
    "training/kill-saving": functools.partial(training.kill, what="checkpoints"),
    "training/kill-best": functools.partial(training.kill, what="best"),
    "training/signal": training.tell,
    "training/twice": training.tell_twice,
    "training/signal-kill": training.tell_and_kill,
    "training/validating": training.validating,
    "training/two-jobs": training.two_jobs,
    "training/restarts": trouble.restarts,
    "training/nan-batch": functools.partial(trouble.not_finite, where="batch"),
    "training/nan-gradient": functools.partial(trouble.not_finite, where="gradient"),
    "training/nan-params": functools.partial(trouble.not_finite, where="params"),
    "training/full": trouble.full,
    "training/peer-stopped": functools.partial(trouble.lose_peer, how="stopped"),
    "training/peer-killed": functools.partial(trouble.lose_peer, how="killed"),
    **{f"storage/{name}": play for name, play in storage.KINDS.items()},
    **{
        f"writers/{how.__name__}-{name}": functools.partial(how, name=name)
        for how, names in (
            (writers.kill, ("prepare", "predict", "cohort", "export", "convert")),
            (writers.full, ("prepare", "predict", "export")),
        )
        for name in names
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a case came to.

    Attributes:
      number: of the case.
      kind: of the case.
      outcome: ``survived``, ``lost`` or ``silent``.
      what: what was done and what happened, in a line.
      evidence: the commands that show it, and what they printed.
      seconds: that it took.
    """

    number: int
    kind: str
    outcome: str
    what: str
    evidence: str
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What all cases of a run have in common.

    Attributes:
      art: the undisturbed things.
      folder: where cases have their folders.
      mark: of the run's processes.
      sabotage: what is switched off.
      can_mount: whether file systems can be mounted.
      keep: leaves the folders of cases that did not survive.
    """

    art: artefacts.Artefacts
    folder: pathlib.Path
    mark: str
    sabotage: tuple[str, ...] = ()
    can_mount: bool = True
    keep: bool = False


def play(case: cases.Case, stage: Stage) -> Verdict:
    """Plays a case; whatever happens, a verdict comes back and nothing is left mounted."""
    folder = stage.folder / f"case{case.number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scene = Scene(
        case=case,
        rng=case.generator(),
        folder=folder,
        art=stage.art,
        mark=stage.mark,
        sabotage=stage.sabotage,
        can_mount=stage.can_mount,
    )
    started, outcome, evidence = time.monotonic(), verdicts.SURVIVED, ""
    try:
        what = _PLAYS[case.kind](scene)
    except verdicts.Failed as failed:
        outcome, what = failed.outcome, ": ".join([*scene.notes, failed.why])
        evidence = "\n".join(done.describe() for done in failed.evidence)
    except Exception as error:  # noqa: BLE001 - a case that cannot be played has not survived
        outcome, what = verdicts.LOST, f"the case itself failed: {type(error).__name__}: {error}"
        evidence = traceback.format_exc()
    finally:
        unmount_all(folder)
    if outcome == verdicts.SURVIVED or not stage.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return Verdict(
        number=case.number,
        kind=case.kind,
        outcome=outcome,
        what=what,
        evidence=evidence,
        seconds=time.monotonic() - started,
    )


def require_all_kinds() -> None:
    """Checks that there is a play for every kind, and no other.

    Raises:
      ValueError: there is not.
    """
    if set(_PLAYS) != set(cases.KINDS):
        raise ValueError(f"kinds without a play: {sorted(set(_PLAYS) ^ set(cases.KINDS))}")
