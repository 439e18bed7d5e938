"""What a set of weights means: the card that every checkpoint, bundle and prediction carries."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from stemjax import config, errors, tasks
from stemjax.data import embeddings, space, splits
from stemjax.models import attention

FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What a set of weights means: stored as JSON inside every checkpoint.

    Attributes:
      experiment: the run's configuration.
      space: genes, transform and standardisations.
      contract: the encoder whose embeddings the model takes.
      split: train, val and test slides, and what kind of test that is.
      panel: how the genes were chosen, and on which slides.
      versions: stemjax, jax and flax.
      patch_um: smallest and largest side of a patch among the training slides, um; None where it is
        not known, or there were no patches.
      start: of a run that went on from another's weights, which those were, and what they had
        seen; else None.
    """

    experiment: config.Experiment
    space: space.Space
    contract: embeddings.EncoderContract
    split: dict[str, Any]
    panel: dict[str, Any]
    versions: dict[str, str]
    patch_um: tuple[float, float] | None = None
    start: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        values = {
            "format": FORMAT,
            "experiment": config.portable(self.experiment),
            "space": self.space.to_json(),
            "contract": self.contract.to_json(),
            "split": self.split,
            "panel": self.panel,
            "versions": self.versions,
        }
        if self.patch_um is not None:
            values["patch_um"] = list(self.patch_um)
        return values if self.start is None else {**values, "start": self.start}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Card:
        """Returns the card that `to_json` wrote.

        Raises:
          CheckpointError: another format, or a part is missing.
        """
        if not isinstance(values, dict):
            raise errors.CheckpointError(
                "checkpoint card", expected="an object", found=type(values).__name__
            )
        if values.get("format") != FORMAT:
            raise errors.CheckpointError(
                "checkpoint format",
                expected=str(FORMAT),
                found=repr(values.get("format")),
                fix="use the stemjax version that wrote it",
            )
        try:
            return cls(
                experiment=config.resolve(values["experiment"]),
                space=space.Space.from_json(values["space"]),
                contract=embeddings.EncoderContract.from_json(values["contract"]),
                split=_split(_object(values, "split")),
                panel=_object(values, "panel"),
                versions=_object(values, "versions"),
                patch_um=_range(values.get("patch_um")),
                start=_start(values.get("start")),
            )
        except KeyError as error:
            raise errors.CheckpointError(
                "checkpoint card", expected=f"a part named {error}", found="none"
            ) from error

    @functools.cached_property
    def task(self) -> tasks.AnyTask:
        """The task that the weights belong to."""
        return self._make_task(self.experiment)

    @functools.cached_property
    def forward_task(self) -> tasks.AnyTask:
        """The same with attention that `jax.jvp` can pass, which fused kernels stop."""
        form = attention.portable(len(self.space.genes))
        model = dataclasses.replace(self.experiment.model, attention=form)
        return self._make_task(dataclasses.replace(self.experiment, model=model))

    def _make_task(self, experiment: config.Experiment) -> tasks.AnyTask:
        genes, condition = len(self.space.genes), self.contract.width
        return config.make_task(experiment, genes=genes, condition=condition)


def _object(values: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(values[name], dict):
        raise errors.CheckpointError(
            f"checkpoint card: {name}", expected="an object", found=type(values[name]).__name__
        )
    return values[name]


def _split(found: dict[str, Any]) -> dict[str, Any]:
    for role in splits.ROLES:
        slides = found.get(role)
        if not isinstance(slides, list) or not all(isinstance(one, str) for one in slides):
            raise errors.CheckpointError(
                f"checkpoint card: split.{role}", expected="slides", found=repr(slides)[:80]
            )
    if not isinstance(found.get("kind"), str):
        raise errors.CheckpointError(
            "checkpoint card: split.kind", expected="text", found=repr(found.get("kind"))[:80]
        )
    return found


def _range(found: Any) -> tuple[float, float] | None:
    if found is None:
        return None
    if isinstance(found, list) and len(found) == 2 and all(type(v) in (int, float) for v in found):
        return float(found[0]), float(found[1])
    raise errors.CheckpointError(
        "checkpoint card: patch_um", expected="two lengths in um, or nothing", found=repr(found)
    )


def _start(found: Any) -> dict[str, Any] | None:
    if found is None or (isinstance(found, dict) and isinstance(found.get("slides"), list)):
        return found
    raise errors.CheckpointError(
        "checkpoint card: start", expected="what the run began with, or nothing", found=repr(found)
    )
