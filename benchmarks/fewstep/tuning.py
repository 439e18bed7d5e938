"""The loop that trains the frontier's networks by the package's step, and where they are kept."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from stemjax import config, errors, mesh, tasks
from stemjax.train import state as states
from stemjax.train import step as steps
from stemjax.typing import Batch, Params


def train(
    task: tasks.Task,
    batches: Iterable[Batch],
    *,
    updates: int,
    optim: config.Optim,
    accumulate: int,
    seed: int,
) -> Params:
    """Returns the moving average of the weights after ``updates`` updates from ``task.init``.

    Args:
      task: what to train.
      batches: at least ``updates`` of them, of one shape.
      updates: number of updates.
      optim: optimiser, schedule and moving average.
      accumulate: parts of a batch, one after another.
      seed: of weights and noise.

    Raises:
      NonFiniteError: an update was not finite.
    """
    optimizer, layout = states.make_optimizer(optim, updates), mesh.make_layout(jax.devices()[:1])
    state = states.init_state(task, optimizer, jax.random.key(seed))
    step = steps.make_train_step(
        task, optimizer, ema=optim.ema, seed=seed, accumulate=accumulate, updates=updates
    )
    update = None
    for _, batch in zip(range(updates), batches, strict=False):
        given = layout.put(batch)
        if update is None:
            update = steps.compile_update(step, layout, state, given)
        state, _ = update(state, given)
    if int(state.step) != updates or int(states.skipped(state)):
        raise errors.NonFiniteError(
            "training of a network of the frontier",
            expected=f"{updates} finite updates",
            found=f"{int(state.step)}, of which {int(states.skipped(state))} not finite",
            fix="lower the learning rate",
        )
    return state.ema


def save(path: pathlib.Path, params: Params) -> None:
    """Writes weights, whole or not at all."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    named = {jax.tree_util.keystr(k, simple=True, separator="/"): np.asarray(v) for k, v in flat}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        np.savez(file, **cast(dict[str, Any], named))
    os.replace(partial, path)


def load(path: pathlib.Path) -> Params | None:
    """Returns the weights that `save` wrote, or None where there are none yet."""
    if not path.exists():
        return None
    params: Params = {}
    with np.load(path, allow_pickle=False) as stored:
        for name in stored.files:
            *folders, last = name.split("/")
            place = params
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = jnp.asarray(stored[name])
    return params


def counting(network: Any, rows: list[int]) -> Any:
    """Returns a network that adds the rows of each evaluation to a list, outside of jit."""

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(x: Array, *inputs: Array) -> Array:
            rows.append(x.shape[0])
            return call(x, *inputs)

        return evaluate

    def apply(params: Params, *inputs: Array) -> Array:
        return noted(functools.partial(network.apply, params))(*inputs)

    if not hasattr(network, "bind"):
        return dataclasses.replace(network, apply=apply)

    def bind(params: Params, cond: Array, **options: Any) -> Callable[..., Any]:
        return noted(network.bind(params, cond, **options))

    return dataclasses.replace(network, apply=apply, bind=bind)


def evaluations(task: Any, params: Params, cond: np.ndarray, sampling: tasks.Sampling) -> int:
    """Returns how often the network is evaluated for one spot: counted while Python runs it.

    Args:
      task: a task with a field ``network``, or with an ``edm`` that has it and does its work.
      params: weights.
      cond: the condition of the spot, [1 c].
      sampling: how it is drawn.
    """
    rows: list[int] = []
    if "network" in {field.name for field in dataclasses.fields(task)}:
        counted = dataclasses.replace(task, network=counting(task.network, rows))
    else:
        edm = dataclasses.replace(task.edm, network=counting(task.network, rows))
        counted = dataclasses.replace(task, edm=edm)
    keys = jax.random.split(jax.random.key(0), 1)
    with jax.disable_jit():  # a scan is then a loop, and every evaluation a call
        counted.predict(params, jnp.asarray(cond, jnp.float32), keys, sampling=sampling)
    return sum(rows)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and standard deviation (divisor n - 1; 0 of one) of a number over seeds."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
