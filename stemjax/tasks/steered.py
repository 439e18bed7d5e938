"""A diffusion task whose denoiser is guided by a weaker one, or told some genes, or both."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from stemjax import errors
from stemjax import typing as st
from stemjax.diffusion import denoiser, guidance, inpaint
from stemjax.tasks import base
from stemjax.tasks.sampling import OF_ONE_PROCESS, ONE_EVALUATION, Sampling


class Inputs(NamedTuple):
    """What a steered prediction takes for each spot.

    Attributes:
      cond: the model's condition, [b c].
      values: measured expression in the model's space, [b g]; of use where ``known``.
    """

    cond: st.Array
    values: st.Array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Steered:
    """Draws of a trained task with another denoiser in its place.

    ``predict`` takes as parameters the pair (task's, weak's), the second None without ``weak``,
    and `Inputs` as condition.

    Attributes:
      task: the trained task.
      scale: strength of the guidance; 1 is none and costs nothing.
      weak: the lesser model of autoguidance, in the same space and on the same embeddings; None
        guides by the task's own null condition (classifier-free guidance).
      known: which genes are given, [g] bool, or None.
      method: how they are: ``moment`` or ``replacement`` (`inpaint.given`).
    """

    task: base.DiffusionTask
    scale: float = 1.0
    weak: base.DiffusionTask | None = None
    known: np.ndarray | None = None
    method: inpaint.Method = "moment"

    @property
    def row_bytes(self) -> int:
        """Bytes of the larger network's largest array for one row."""
        return max(self.task.row_bytes, self.weak.row_bytes if self.weak is not None else 0)

    def predict(
        self, params: Any, cond: Inputs, keys: Key[Array, " b"], *, sampling: Sampling
    ) -> Float[Array, "n b g"]:
        """Returns draws in the model's space, [n b g].

        Raises:
          ConfigError: a mode or sampler that does not go through the denoiser.
        """
        self._require(sampling)
        return base.draw_profiles(
            self.denoiser(params, cond, repeat=sampling.draws),
            keys,
            sampling=sampling,
            levels=self.task.levels,
            genes=self.task.genes,
        )

    def denoiser(self, params: Any, cond: Inputs, *, repeat: int = 1) -> denoiser.Denoiser:
        """Returns the steered D(x; sigma) for every spot ``repeat`` times in a row."""
        main, weak = params
        given = jnp.asarray(cond.cond)
        bound = self.task.denoiser(main, given, repeat=repeat)
        if self.scale != 1:
            if self.weak is None:
                null = guidance.null_condition(given)
                weaker = self.task.denoiser(main, null, repeat=repeat)
            else:
                weaker = self.weak.denoiser(weak, given, repeat=repeat)
            bound = guidance.guide(bound, weaker, self.scale)
        if self.known is not None:
            values = jnp.repeat(jnp.asarray(cond.values), repeat, axis=0)
            bound = inpaint.given(bound, values, self.known, method=self.method)
        return bound

    def evaluations(self, sampling: Sampling) -> int:
        """Returns the network evaluations that a spot costs, a derivative counted as two."""
        calls, bound = sampling.evaluations, 1
        extra = self.task.extra_evaluations
        if self.scale != 1:
            bound = 2
            extra += (self.weak or self.task).extra_evaluations
        if self.known is not None:
            bound *= inpaint.evaluations_per_call(self.known, self.method)
        return calls * bound + extra

    def _require(self, sampling: Sampling) -> None:
        if sampling.mode in ONE_EVALUATION or sampling.sampler in OF_ONE_PROCESS:
            raise errors.ConfigError(
                f"mode {sampling.mode} with sampler {sampling.sampler}",
                expected="pair or draws, with a sampler that follows a denoiser, where that is "
                "guided or genes are given",
                fix="use --mode draws",
            )
