"""The state of a run: arrays only."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from stemjax import tasks
from stemjax.config import Optim
from stemjax.typing import Params


@flax.struct.dataclass
class TrainState:
    """Everything that changes from step to step.

    Attributes:
      step: updates done.
      params: weights.
      ema: moving average of the weights: what predicts.
      opt: the optimiser's state.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt: Any


def make_optimizer(optim: Optim, steps: int) -> optax.GradientTransformation:
    """Returns clipping, then AdamW with warm-up, which skips updates that are not finite.

    Skipped updates are counted in the state (`skipped`); the loop stops the run on the first, so
    no checkpoint ever holds a weight that is not finite. Weight decay acts on kernels alone: biases
    and the table of gene names are where a gene's level lives.
    """
    rate: optax.Schedule
    if optim.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0, optim.learning_rate, optim.warmup, max(steps, optim.warmup + 1)
        )
    else:
        rate = optax.warmup_constant_schedule(0.0, optim.learning_rate, max(optim.warmup, 1))

    def kernels(params: Params) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", params
        )

    return optax.apply_if_finite(
        optax.chain(
            optax.clip_by_global_norm(optim.clip),
            optax.adamw(rate, weight_decay=optim.weight_decay, mask=kernels),
        ),
        max_consecutive_errors=2**30,
    )


def skipped(state: TrainState) -> Int[Array, ""]:
    """Returns how many updates were skipped because they were not finite."""
    return state.opt.total_notfinite


def init_state(
    task: tasks.Task, optimizer: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """Returns the state before the first step; the EMA starts at the weights."""
    params = task.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt=optimizer.init(params),
    )
