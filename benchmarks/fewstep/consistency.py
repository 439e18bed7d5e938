"""Consistency tuning as an experiment: the package's task with weights to start from."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from stemjax import tasks
from stemjax.models import network
from stemjax.typing import Params

type Path = Literal["data", "teacher"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tuning(tasks.ConsistencyTask):
    """The package's task, begun from its teacher's weights whichever path it takes."""

    @property
    def network(self) -> network.Network:
        """The denoiser's network."""
        return self.edm.network

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns a copy of the denoiser's weights."""
        return jax.tree.map(jnp.copy, self.teacher)
