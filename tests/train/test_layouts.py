"""The same update in any layout: losses, gradients and weights of one device, and what is sent."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from stemjax import config, mesh, tasks
from stemjax.train import state as states
from stemjax.train import step as steps

GENES, WIDTH, ROWS, UPDATES = 12, 24, 32, 3
LAYOUTS = ({}, {"fsdp": 2}, {"fsdp": 4}, {"genes": 2}, {"genes": 4}, {"fsdp": 2, "genes": 2})
NAMES = ["4x1x1", "2x2x1", "1x4x1", "2x1x2", "1x1x4", "1x2x2"]


def experiment(**changes):
    values = config.as_json(config.Experiment())
    values["model"] |= {"width": 32, "depth": 3, "heads": 2}
    values["optim"] |= {"learning_rate": 1e-2, "warmup": 1}
    for group, part in changes.items():
        values[group] |= part
    return config.resolve(values)


KINDS = {
    "edm": experiment(),
    "residual": experiment(diffusion={"residual": True, "mean_fraction": 0.5, "marginal": True}),
    "ddpm": experiment(diffusion={"process": "ddpm", "mean_fraction": 0.0}),
    "lite": experiment(model={"kind": "lite"}),
    "latents": experiment(model={"kind": "lite", "latents": 4}),
}


def awake(params):
    """Fresh weights with noise where they are zero: closed gates would hide the blocks."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: a + 0.1 * rng.standard_normal(a.shape).astype(a.dtype), params)


def layout_of(devices, **axes):
    return dataclasses.replace(mesh.make_layout(jax.devices()[:devices], **axes), split_from=1)


def prepare(kind, layout, parts):
    chosen = KINDS[kind]
    task = config.make_task(chosen, genes=GENES, condition=WIDTH)
    optimizer = states.make_optimizer(chosen.optim, 100)
    state = states.begin_state(awake(task.init(jax.random.key(0))), optimizer)
    state = jax.device_put(state, layout.shardings(state))
    rng = np.random.default_rng(0)
    batch = layout.put({
        "cond": rng.standard_normal((ROWS, WIDTH)).astype(np.float32),
        "x0": rng.standard_normal((ROWS, GENES)).astype(np.float32),
        "mask": (rng.random((ROWS, GENES)) < 0.9).astype(np.float32),
    })  # fmt: skip
    step = steps.make_train_step(task, optimizer, ema=0.9, seed=3, accumulate=parts, layout=layout)
    return steps.compile_update(step, layout, state, batch), state, batch


def run(kind, layout, parts=1):
    """Losses and gradient norms of some updates, and the mean gradient after them."""
    program, state, batch = prepare(kind, layout, parts)
    measured = []
    for _ in range(UPDATES):
        state, metrics = jax.block_until_ready(program(state, batch))
        measured.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.asarray(measured), jax.device_get(state.opt.inner_state[1][0].mu)


@functools.cache
def alone(kind, parts):
    return run(kind, layout_of(1), parts)


@pytest.mark.parametrize(
    ("axes", "parts"),
    [*((axes, 1) for axes in LAYOUTS), ({}, 4), ({"fsdp": 2, "genes": 2}, 4)],
    ids=[*NAMES, "4x1x1 in 4 parts", "1x2x2 in 4 parts"],
)
def test_every_layout_trains_like_one_device(axes, parts):
    measured, mean = run("edm", layout_of(4, **axes), parts)
    expected, wanted = alone("edm", parts)
    # The same float32 terms summed in another order: some ulp (1.2e-7), seen up to 4e-7.
    np.testing.assert_allclose(measured, expected, rtol=3e-6)
    # Not the weights: Adam moves one by its rate in the gradient's direction however small that is,
    # and the biases of keys, which the softmax cancels, have a gradient of rounding alone.
    for one, other in zip(jax.tree.leaves(mean), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)


@pytest.mark.parametrize("axes", [{}, {"fsdp": 2}], ids=["4x1x1", "2x2x1"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "edm"])
def test_other_models_do_too(kind, axes):
    measured, _ = run(kind, layout_of(4, **axes))
    np.testing.assert_allclose(measured, alone(kind, 1)[0], rtol=3e-6)


@pytest.fixture
def hlo(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
    import hlo

    return hlo


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("kind", ["edm", "ddpm", "lite"])
def test_data_parallel_adds_up_the_gradient_once(hlo, kind, parts):
    program, _, _ = prepare(kind, layout_of(4), parts)
    found = hlo.collectives(program.as_text())["all-reduce"]
    weights = config.make_task(KINDS[kind], genes=GENES, condition=WIDTH)
    shapes = jax.eval_shape(weights.init, jax.random.key(0))
    size = 4 * sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    # With the sum of the losses, once a part; nothing of the gradient's size besides.
    assert found["places"] <= 2
    assert size <= found["bytes"] < size + 4 * 32 * parts


def test_split_weights_are_gathered_layer_by_layer(hlo):
    layout = layout_of(4, fsdp=4)
    program, state, _ = prepare("edm", layout, 1)
    pieces = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }
    assert pieces["blocks/attn/qkv/kernel"] == P(None, None, "fsdp")
    assert pieces["blocks/mlp/fc2/kernel"] == P(None, "fsdp")
    found = hlo.collectives(program.as_text())
    # Forward and backward, each of the 3 layers anew: more calls than places in the program.
    assert found["all-gather"]["calls"] > found["all-gather"]["places"]
    # Gradients are summed twice a layer and once outside. Left to itself the compiler works with
    # pieces of the weights and sums and exchanges activations: 21 sums.
    assert found["all-reduce"]["calls"] <= 2 * 3 + 1
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert held < 0.3 * whole


def test_tasks_whose_loss_cuts_the_batch_are_left_to_the_compiler():
    tuned = experiment(
        diffusion={"process": "consistency", "noise": "loguniform"}, train={"validate_every": 0}
    )
    task = config.make_task(tuned, genes=GENES, condition=WIDTH)
    assert not isinstance(task, tasks.Replicated)
