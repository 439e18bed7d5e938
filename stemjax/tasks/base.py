"""What the loop and prediction see of a model, and the one way from a denoiser to profiles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Key

from stemjax.diffusion import denoiser, sampler
from stemjax.tasks.sampling import Sampling
from stemjax.typing import Batch, Params


@runtime_checkable
class Task(Protocol):
    """What the loop and prediction see of a model."""

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns fresh parameters."""
        ...

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the training loss and named parts of it."""
        ...

    def predict(
        self, params: Any, cond: Any, keys: Key[Array, " b"], *, sampling: Sampling
    ) -> Float[Array, "n b g"]:
        """Returns n draws a spot in the model's space (n = 1 for a mean).

        Row i depends on row i of ``cond`` and ``keys`` alone.
        """
        ...

    def evaluations(self, sampling: Sampling) -> int:
        """Returns the network evaluations that a spot costs."""
        ...

    @property
    def row_bytes(self) -> int:
        """Bytes of the largest array that one row makes on its way; 0 where that is unknown."""
        ...

    @property
    def estimate(self) -> Sampling:
        """The cheapest honest estimate of the conditional mean, for validation in training."""
        ...


class AnyTask(Task, Protocol):
    """A task of an experiment: what it is besides, for whoever predicts with it."""

    @property
    def genes(self) -> int:
        """Size of the panel."""
        ...

    @property
    def levels(self) -> tuple[float, float]:
        """Smallest and largest noise level that the model's ladders run between."""
        ...

    def sampling(self, **asked: Any) -> Sampling:
        """Returns how this model is sampled: the fields asked for, and its own defaults.

        Raises:
          ConfigError: as `Sampling`.
        """
        ...


@runtime_checkable
class Fitted(Protocol):
    """A task some of whose weights are a statistic of the rows that it is trained on."""

    def fit(self, params: Params, rows: Iterable[Float[np.ndarray, "n g"]]) -> Params:
        """Returns fresh parameters with those weights in their places.

        Args:
          params: as `Task.init` returns them.
          rows: blocks of the training rows' expression, in the model's space.
        """
        ...


@runtime_checkable
class Replicated(Protocol):
    """A task whose network can train with a copy of the weights a device (`models.replicas`)."""

    def per_replica(self) -> Task:
        """Returns the task for weights that have a leading axis of one copy a device."""
        ...


class DiffusionTask(AnyTask, Protocol):
    """A task that has a denoiser, so that it can be guided, told some genes, or asked for odds."""

    @property
    def extra_evaluations(self) -> int:
        """Network evaluations a spot that binding the denoiser costs, once."""
        ...

    def denoiser(
        self, params: Params, cond: Float[Array, "b c"], *, repeat: int = 1
    ) -> denoiser.Denoiser:
        """Returns D(x; sigma) for every spot ``repeat`` times in a row (spot-major).

        The rows of a spot share their sigma.
        """
        ...


def draw_profiles(
    denoise: denoiser.Denoiser,
    keys: Key[Array, " b"],
    *,
    sampling: Sampling,
    levels: tuple[float, float],
    genes: int,
) -> Float[Array, "n b g"]:
    """Returns the draws of modes ``pair`` and ``draws``, in the model's space.

    Args:
      denoise: a denoiser bound to each spot ``sampling.draws`` times in a row.
      keys: one key a spot.
      sampling: step rule, ladder and number of draws.
      levels: the model's own ends of the ladder.
      genes: size of the panel.

    Raises:
      ConfigError: the ladder cannot be made.
    """
    return sampler.draw(
        denoise,
        sampling.on(levels).rungs,
        keys,
        rule=sampling.rule,
        genes=genes,
        n_draws=sampling.draws,
        antithetic=sampling.in_pairs,
    )
