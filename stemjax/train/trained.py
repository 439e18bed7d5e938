"""Weights that predict, and what they mean: what a run leaves and a bundle holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from stemjax import config
from stemjax.train import calibration
from stemjax.train.card import Card
from stemjax.typing import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """Weights that predict, and what they mean.

    Attributes:
      params: the EMA.
      card: configuration, space, encoder contract and split.
      step: updates behind the weights.
      weights: ``best`` or ``last``.
      calibrations: what makes intervals of predictions, one for each way of sampling.
      validation: errors on the validation slides that chose the weights, where some did.
      runs: where and by what they were trained, one for each start of the run (`train.runs`).
      scores: what `stemjax evaluate` said of them, where it is known.
    """

    params: Params
    card: Card
    step: int
    weights: str
    calibrations: tuple[calibration.Calibration, ...] = ()
    validation: Mapping[str, float] | None = None
    runs: tuple[Mapping[str, Any], ...] = ()
    scores: Mapping[str, Any] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Which weights these are, in plain values."""
        digest = config.digest(self.card.experiment)
        return {"config": digest, "step": self.step, "weights": self.weights}

    def with_calibrations(self, stored: Sequence[calibration.Calibration]) -> Trained:
        """Returns the model with those of some calibrations that belong to its weights.

        Raises:
          CalibrationError: one that claims to belong has other genes or another value space.
        """
        space = self.card.space
        own = calibration.of_weights(
            stored, self.identity, genes=space.genes, value_space=space.transform
        )
        return dataclasses.replace(self, calibrations=own)
