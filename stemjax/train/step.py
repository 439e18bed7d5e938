"""One update, as a pure function that is compiled once for a layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from stemjax import mesh, tasks
from stemjax.train import state as states
from stemjax.typing import Batch, Params

type Metrics = dict[str, Float[Array, ""]]


def make_train_step(
    task: tasks.Task,
    optimizer: optax.GradientTransformation,
    *,
    ema: float,
    seed: int,
    accumulate: int = 1,
    updates: int | None = None,
    layout: mesh.Layout | None = None,
) -> Callable[[states.TrainState, Batch], tuple[states.TrainState, Metrics]]:
    """Returns ``step(state, batch) -> (state, metrics)``.

    The gradient is the mean over ``accumulate`` parts of the batch, worked through one after
    another. The key of a step is ``fold_in(key(seed), step)``: a resumed run draws what an
    unbroken one would have drawn. Metrics are those of the weights before the update. With
    ``updates``, the length of the run, the batch says how much of it is done (`Batch`). Where the
    batch holds a teacher, it is the task ``taught`` by it that is trained.

    With a ``layout`` whose axis ``data`` is longer than 1, each of its devices adds up its own
    gradient, and the sum over them is taken once an update, of tasks that are `tasks.Replicated`;
    of others the compiler takes it where it arises. The numbers are the same up to rounding.
    """

    def step(state: states.TrainState, batch: Batch) -> tuple[states.TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        learner: Any = task
        teacher = batch.get("teacher")
        if teacher is not None:
            learner = learner.taught(teacher)
            batch = Batch(cond=batch["cond"], x0=batch["x0"], mask=batch["mask"])
        if updates is not None:
            share = state.step.astype(jnp.float32) / updates
            batch = {**batch, "progress": jnp.full(batch["x0"].shape[0], share)}
        grads, metrics = _gradient(learner, state.params, batch, key, accumulate, layout)
        change, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, change)
        count = state.step.astype(jnp.float32)
        # A fixed decay of .9999 would still be mostly the initial weights after 1,000 steps.
        decay = jnp.minimum(ema, (1 + count) / (10 + count))
        averaged = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
        new = dataclasses.replace(state, step=state.step + 1, params=params, ema=averaged, opt=opt)
        metrics = {
            **metrics,
            "grad_norm": optax.tree.norm(grads),
            "skipped": states.skipped(new).astype(jnp.float32),
            "finite": new.opt.last_finite.astype(jnp.float32),
        }
        return new, metrics

    return step


def _gradient(
    task: tasks.Task,
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    parts: int,
    layout: mesh.Layout | None,
) -> tuple[Params, Metrics]:
    replicas = 1 if layout is None else layout.mesh.shape[mesh.DATA]
    if layout is None or replicas == 1 or not isinstance(task, tasks.Replicated):
        return _mean_of_parts(task, params, batch, key, parts)
    # One copy a device is no more than each has anyway.
    copies = jax.tree.map(
        lambda leaf, where: jax.lax.with_sharding_constraint(
            jnp.broadcast_to(leaf[None], (replicas, *leaf.shape)),
            NamedSharding(layout.mesh, PartitionSpec(mesh.DATA, *where.spec)),
        ),
        params,
        layout.shardings(params),
    )
    grads, metrics = _mean_of_parts(task.per_replica(), copies, batch, key, parts)
    return jax.tree.map(lambda grad: jnp.sum(grad, axis=0), grads), metrics


def _mean_of_parts(
    task: tasks.Task, params: Params, batch: Batch, key: Key[Array, ""], parts: int
) -> tuple[Params, Metrics]:
    gradient = jax.grad(task.loss, has_aux=True)
    if parts == 1:
        return gradient(params, batch, key)

    def portioned(rows: Array) -> Array:
        # Part i takes rows i, i + parts, ...: a device's contiguous rows serve every part.
        return jnp.swapaxes(rows.reshape(-1, parts, *rows.shape[1:]), 0, 1)

    def add(total: Any, part: tuple[Array, Batch]) -> tuple[Any, None]:
        number, portion = part
        found = gradient(params, portion, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, found), None

    rows = jax.tree.map(portioned, dict(batch))
    zero = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype),
        jax.eval_shape(gradient, params, jax.tree.map(lambda a: a[0], rows), key),
    )
    total, _ = jax.lax.scan(add, zero, (jnp.arange(parts), rows))
    return jax.tree.map(lambda a: a / parts, total)


def compile_update(
    update: Callable[..., tuple[states.TrainState, Metrics]],
    layout: mesh.Layout,
    state: states.TrainState,
    *given: Any,
) -> jax.stages.Compiled:
    """Returns ``update(state, *given)`` compiled for these shapes and this layout.

    The state is donated. Compiled ahead of time, so that a change of shape in mid-run is an error
    and not a silent second compilation.
    """
    shardings = (layout.shardings(state), layout.replicated)
    program = jax.jit(update, donate_argnums=0, out_shardings=shardings)
    with layout.in_force():
        return program.lower(state, *given).compile()
