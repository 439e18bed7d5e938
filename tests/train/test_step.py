"""One update: gradient parts, the moving average, decay, randomness by step."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stemjax import config, mesh
from stemjax.train import state as states
from stemjax.train import step as steps

GENES, WIDTH = 5, 3


def _experiment(**changes) -> config.Experiment:
    values = config.as_json(config.Experiment())
    values["model"] |= {"width": 16, "depth": 2, "heads": 2}
    values["diffusion"] |= {"mean_fraction": 1.0}
    values["optim"] |= {"learning_rate": 1e-2, "warmup": 1, "ema": 0.9}
    for group, part in changes.items():
        values[group] |= part
    return config.resolve(values)


def _batch(n: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "cond": rng.standard_normal((n, WIDTH)).astype(np.float32),
        "x0": rng.standard_normal((n, GENES)).astype(np.float32),
        "mask": np.ones((n, GENES), np.float32),
    }


def _made(experiment, *, accumulate=1, sgd=False):
    task = config.make_task(experiment, genes=GENES, condition=WIDTH)
    optimizer = states.make_optimizer(experiment.optim, steps=100)
    if sgd:  # a plain gradient step shows the gradient itself; Adam would hide its scale
        optimizer = optax.apply_if_finite(optax.sgd(1.0), max_consecutive_errors=2**30)
    state = states.init_state(task, optimizer, jax.random.key(0))
    step = steps.make_train_step(
        task, optimizer, ema=experiment.optim.ema, seed=3, accumulate=accumulate
    )
    return state, jax.jit(step)


@pytest.mark.parametrize("parts", [2, 8])
def test_parts_give_the_gradient_of_the_whole(parts):
    state, whole = _made(_experiment(), sgd=True)
    _, portioned = _made(_experiment(), accumulate=parts, sgd=True)
    one, measured = whole(state, _batch())
    two, measured_parts = portioned(state, _batch())
    # The same 16 rows summed in another order, float32.
    chex.assert_trees_all_close(one.params, two.params, atol=1e-6)
    np.testing.assert_allclose(measured["loss"], measured_parts["loss"], rtol=1e-5)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), one.params, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_parts_draw_different_noise():
    noisy = _experiment(diffusion={"mean_fraction": 0.0})
    state, step = _made(noisy, accumulate=2, sgd=True)
    rows = _batch(4)
    # Rows i and i + 1 are in different parts here; equal rows would otherwise give equal parts.
    same = {name: np.repeat(value[:1], 4, axis=0) for name, value in rows.items()}
    _, measured = step(state, same)
    task = config.make_task(noisy, genes=GENES, condition=WIDTH)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), 0)
    half = {name: value[:2] for name, value in same.items()}
    first, _ = task.loss(state.params, half, key)
    assert abs(float(first) - float(measured["loss"])) > 1e-4


def test_the_average_ramps_up_and_then_decays_at_its_rate():
    state, step = _made(_experiment())
    new, _ = step(state, _batch())
    # Step 0: decay min(.9, 1 / 10).
    expected = jax.tree.map(lambda e, p: 0.1 * e + 0.9 * p, state.ema, new.params)
    chex.assert_trees_all_close(new.ema, expected, atol=1e-6)
    late = dataclasses.replace(state, step=jnp.asarray(1000, jnp.int32))
    new, _ = step(late, _batch())
    expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, late.ema, new.params)
    chex.assert_trees_all_close(new.ema, expected, atol=1e-6)


def test_a_step_draws_by_its_number_alone():
    noisy = _experiment(diffusion={"mean_fraction": 0.0})
    state, step = _made(noisy)
    _, once = step(state, _batch())
    _, again = step(state, _batch())
    _, later = step(dataclasses.replace(state, step=state.step + 1), _batch())
    assert float(once["loss"]) == float(again["loss"])
    assert float(once["loss"]) != float(later["loss"])


def test_decay_shrinks_kernels_alone():
    decayed = _experiment(optim={"weight_decay": 0.5, "learning_rate": 0.1})
    plain = _experiment(optim={"weight_decay": 0.0, "learning_rate": 0.1})
    results = []
    for experiment in (decayed, plain):
        state, step = _made(experiment)
        for _ in range(2):  # the warm-up's first step has rate 0
            state, _ = step(state, _batch())
        results.append(jax.tree_util.tree_leaves_with_path(state.params))
    for (path, with_decay), (_, without) in zip(*results):
        differs = float(jnp.abs(with_decay - without).max()) > 1e-6
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("kernel"):
            assert not differs, name
        elif float(jnp.abs(without).max()) > 0.1:
            assert differs, name


def test_a_gradient_that_is_not_finite_changes_no_weight_and_is_counted():
    state, step = _made(_experiment())
    bad = _batch()
    bad["cond"][2, 1] = np.inf
    new, measured = step(state, bad)
    chex.assert_trees_all_equal(new.params, state.params)
    assert (int(measured["skipped"]), int(new.step)) == (1, 1)


def test_the_compiled_step_gives_back_the_memory_of_its_state():
    state, _ = _made(_experiment())
    layout = mesh.make_layout(jax.devices()[:1])
    state = jax.device_put(state, layout.replicated)
    experiment = _experiment()
    task = config.make_task(experiment, genes=GENES, condition=WIDTH)
    optimizer = states.make_optimizer(experiment.optim, steps=100)
    step = steps.make_train_step(task, optimizer, ema=0.9, seed=3)
    batch = layout.put(_batch())
    new, _ = steps.compile_update(step, layout, state, batch)(state, batch)
    jax.block_until_ready(new)
    gone = [leaf.is_deleted() for leaf in jax.tree.leaves(state.params)]
    assert all(gone)


def test_the_rate_warms_up_and_follows_its_schedule():
    optim = dataclasses.replace(_experiment().optim, schedule="cosine", warmup=10, weight_decay=0.0)
    params = {"kernel": jnp.zeros((1,))}
    gradient = {"kernel": jnp.ones((1,))}
    optimizer = states.make_optimizer(optim, steps=100)
    opt, sizes = optimizer.init(params), []
    for _ in range(100):
        update, opt = optimizer.update(gradient, opt, params)
        sizes.append(-float(update["kernel"][0]))
    # Adam's update of a constant gradient is its rate; eps 1e-8 and fp32 leave 1e-5.
    np.testing.assert_allclose(sizes[5], 0.5e-2, rtol=1e-4)
    np.testing.assert_allclose(sizes[10], 1e-2, rtol=1e-4)
    np.testing.assert_allclose(sizes[55], 0.5e-2, rtol=1e-3)  # half of the cosine
    assert sizes[99] < 1e-5
