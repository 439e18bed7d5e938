"""Consistency tuning as an experiment: from the data, as the package does it, or by the teacher.

With ``path`` teacher x_r is one Euler step of the denoiser's ODE from x_t (consistency
distillation, arXiv 2303.01469, Algorithm 2), so that the error has no part of chance, and nothing
of the data but the points to start from. ``data`` is `stemjax.tasks.ConsistencyTask`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from stemjax import tasks
from stemjax.diffusion import rules
from stemjax.models import network
from stemjax.typing import Params

type Path = Literal["data", "teacher"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tuning(tasks.ConsistencyTask):
    """The package's task, begun from a denoiser's weights, which may also be its teacher.

    Attributes:
      start: the denoiser's weights.
      path: where x_r comes from.
    """

    start: Params
    path: Path = "data"

    @property
    def network(self) -> network.Network:
        """The denoiser's network."""
        return self.edm.network

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns a copy of the denoiser's weights."""
        return jax.tree.map(jnp.copy, self.start)

    def partner(
        self,
        x0: Float[Array, "b g"],
        unit: Float[Array, "b g"],
        cond: Float[Array, "b c"],
        x_t: Float[Array, "b g"],
        t: Float[Array, " b"],
        r: Float[Array, " b"],
    ) -> Float[Array, "b g"]:
        """Returns the point at level r that shares its end with x_t."""
        if self.path == "data":
            return super().partner(x0, unit, cond, x_t, t, r)
        clean = self.edm.denoiser(self.start, cond)(x_t, t)
        return rules.towards(clean, x_t, (r / t)[:, None])
