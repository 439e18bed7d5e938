"""The state of a run: arrays only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from stemjax import tasks
from stemjax.config import Optim
from stemjax.typing import Params

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's decay rates of its moments, and what keeps it from dividing by zero."""


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

    Skipped updates are counted in the state (`skipped`) and looked into by the loop (`nonfinite`).
    Weight decay acts on kernels alone: biases
    and the table of gene names are where a gene's level lives.

    State and numbers are those of optax's ``apply_if_finite(chain(clip_by_global_norm, adamw))``,
    whose branch writes updates and moments to memory, reads them again, and makes the host of a
    GPU wait in every step. Here a value is chosen where it is computed.
    """
    rate: optax.Schedule
    if optim.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0, optim.learning_rate, optim.warmup, max(steps, optim.warmup + 1)
        )
    else:
        rate = optax.warmup_constant_schedule(0.0, optim.learning_rate, max(optim.warmup, 1))
    decay = optax.add_decayed_weights(optim.weight_decay, _kernels)
    adamw = optax.chain(optax.scale_by_adam(), decay, optax.scale_by_schedule(rate))
    whole = optax.apply_if_finite(
        optax.chain(optax.clip_by_global_norm(optim.clip), adamw), max_consecutive_errors=2**30
    )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        clip_state, (adam, decay_state, scheduled) = state.inner_state
        finite = _all_finite(updates)
        mu, nu = _moments(_clipped(updates, optim.clip), adam, finite)
        count, step_size = adam.count + 1, -jnp.asarray(rate(scheduled.count))
        direction = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + EPSILON),
            optax.tree.bias_correction(mu, BETAS[0], count),
            optax.tree.bias_correction(nu, BETAS[1], count),
        )
        direction, decay_state = decay.update(direction, decay_state, params)
        taken = finite.astype(jnp.int32)
        adam = adam._replace(count=adam.count + taken, mu=mu, nu=nu)
        scheduled = scheduled._replace(count=scheduled.count + taken)
        return jax.tree.map(lambda d: jnp.where(finite, step_size * d, 0), direction), (
            optax.ApplyIfFiniteState(
                notfinite_count=(1 - taken) * (state.notfinite_count + 1),
                last_finite=finite,
                total_notfinite=state.total_notfinite + 1 - taken,
                inner_state=(clip_state, (adam, decay_state, scheduled)),
            )
        )

    return optax.GradientTransformation(whole.init, update)


def _kernels(params: Any) -> Any:
    """Returns which arrays are kernels, by their names."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", params
    )


def _all_finite(gradient: Any) -> Bool[Array, ""]:
    # NaN and infinity both reach the maximum, which is one pass; a pass over truth values is two.
    largest = [jnp.max(jnp.abs(g)) for g in jax.tree.leaves(gradient)]
    return jnp.isfinite(jnp.stack(largest)).all()


def _clipped(gradient: Any, most: float) -> Any:
    norm = optax.tree.norm(gradient)
    # Both numbers are 1 where there is nothing to clip: x / 1 * 1 is x, bit for bit.
    divisor, factor = jnp.where(norm < most, 1.0, norm), jnp.where(norm < most, 1.0, most)
    return jax.tree.map(lambda g: g / divisor * factor, gradient)


def _moments(gradient: Any, adam: Any, finite: Bool[Array, ""]) -> tuple[Any, Any]:
    """Returns Adam's new moments, or the old ones where the gradient is not finite."""
    moved = (
        optax.tree.update_moment(gradient, adam.mu, BETAS[0], 1),
        optax.tree.update_moment_per_elem_norm(gradient, adam.nu, BETAS[1], 2),
    )
    # The weights follow from what is kept, not from what was moved, so that the new moments are
    # not worked out a second time for them, beside a copy of the old ones.
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, (adam.mu, adam.nu))


def skipped(state: TrainState) -> Int[Array, ""]:
    """Returns how many updates were skipped because they were not finite."""
    return state.opt.total_notfinite


@jax.jit
def is_finite(state: TrainState) -> Bool[Array, ""]:
    """Returns whether every number of a state is finite: what a checkpoint may hold."""
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def init_state(
    task: tasks.Task, optimizer: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """Returns the state before the first step; the EMA starts at the weights."""
    return begin_state(task.init(key), optimizer)


def fit_state(
    state: TrainState, task: tasks.Task, rows: Iterable[Float[np.ndarray, "n g"]]
) -> TrainState:
    """Returns a fresh state with the weights in place that are a statistic of the training rows.

    Args:
      state: as `init_state` returns it.
      task: the model; of one without such weights the state is returned as it is.
      rows: blocks of the training rows' expression, in the model's space.
    """
    if not isinstance(task, tasks.Fitted):
        return state
    params = task.fit(state.params, rows)
    return dataclasses.replace(state, params=params, ema=jax.tree.map(jnp.copy, params))


def begin_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step of a run from given weights."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt=optimizer.init(params),
    )
