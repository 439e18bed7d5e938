"""The optimiser: optax's numbers, in fewer passes over memory."""

from __future__ import annotations

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stemjax import config
from stemjax.train import state as states

OPTIM = dataclasses.replace(
    config.Optim(), learning_rate=1e-2, warmup=3, schedule="cosine", weight_decay=0.1, clip=2.0
)


def by_optax(optim: config.Optim, steps: int) -> optax.GradientTransformation:
    """The same from optax's own parts."""
    rate = optax.warmup_cosine_decay_schedule(0.0, optim.learning_rate, optim.warmup, steps)
    return optax.apply_if_finite(
        optax.chain(
            optax.clip_by_global_norm(optim.clip),
            optax.adamw(rate, weight_decay=optim.weight_decay, mask={"kernel": True, "b": False}),
        ),
        max_consecutive_errors=2**30,
    )


def run(optimizer: optax.GradientTransformation, gradients: list):
    params = {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.ones(5)}
    state, seen = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen, state


def gradients(sizes: list[float]) -> list:
    rng = np.random.default_rng(3)
    return [
        {
            "kernel": jnp.asarray(size * rng.standard_normal((3, 4)), jnp.float32),
            "b": jnp.asarray(size * rng.standard_normal(5), jnp.float32),
        }
        for size in sizes
    ]


def test_updates_and_state_are_those_of_optax():
    # Norms of about 4, .04 and 4e6: clipped and not. Two of the seven are not finite.
    given = gradients([1.0, 0.01, 1.0, 1e6, 0.01, 0.01, 1.0])
    given[2]["kernel"] = given[2]["kernel"].at[1, 2].set(jnp.nan)
    given[4]["b"] = given[4]["b"].at[0].set(-jnp.inf)
    ours, state = run(states.make_optimizer(OPTIM, 8), given)
    theirs, reference = run(by_optax(OPTIM, 8), given)
    # A compiler may round a product and a sum at once in one program and not in the other.
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6, atol=1e-8)
    chex.assert_trees_all_close(state, reference, rtol=1e-6, atol=1e-8)
    assert jax.tree.structure(state) == jax.tree.structure(reference)
    chex.assert_trees_all_equal(ours[2], ours[1])
    assert (int(state.total_notfinite), int(state.notfinite_count)) == (2, 0)
    moved = [float(jnp.abs(a["b"] - b["b"]).max()) for a, b in zip(ours[1:], ours)]
    # The first has rate 0, two are skipped: all others move by about the rate.
    assert [size > 1e-4 for size in moved] == [True, False, True, False, True, True]


def passes(optimizer: optax.GradientTransformation) -> tuple[float, str]:
    """Bytes a parameter that an update reads and writes, and the program."""
    size = 4096
    abstract = {"kernel": jax.ShapeDtypeStruct((size,), jnp.float32)}
    abstract["b"] = abstract["kernel"]

    def update(state, params, ema, gradient):
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, ema, params)
        return state, params, ema

    state = jax.eval_shape(optimizer.init, abstract)
    program = jax.jit(update, donate_argnums=(0, 1, 2)).lower(state, abstract, abstract, abstract)
    compiled = program.compile()
    return compiled.cost_analysis()["bytes accessed"] / (2 * size), compiled.as_text()


def test_an_update_is_one_pass_for_each_moment_and_the_weights():
    found, text = passes(states.make_optimizer(OPTIM, 8))
    # Largest value 4, norm 4, clipping 8, moments 12 each, weights 16, average 12; scalars.
    assert found == pytest.approx(68, abs=1.5)
    assert passes(by_optax(OPTIM, 8))[0] > 85
    assert not re.findall(r" conditional\(", text)
    # Nothing of the size of the weights is copied.
    assert not re.findall(r"f32\[4096\]\S* copy\(", text)
