"""Consistency tuning and MeanFlow on a normal law, where both functions are known."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from normal_flows import (
    COND,
    batch,
    chord,
    column,
    denoise,
    edm,
    flow,
    mean_flow_task,
)

from stemjax import config, tasks
from stemjax.diffusion import noise, sampler

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def modules():
    """The experiment's modules by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import frontier
        from fewstep import consistency, meanflow, places, rows, tuning

        yield {"frontier": frontier, "consistency": consistency, "meanflow": meanflow,
               "places": places, "rows": rows, "tuning": tuning}  # fmt: skip


@pytest.mark.parametrize(("path", "expected"), [("teacher", 0.0), ("data", 1.0)])
def test_with_r_at_zero_tuning_is_the_denoisers_own_objective(modules, path, expected):
    """In the first doubling, below t = ln 7: the denoiser itself is the target, or the spot.

    Of a spot, the denoiser leaves t² / (1 + t²) = c_out² of variance, 1 in units of the network.
    """
    task = modules["consistency"].Tuning(
        edm=edm(), teacher={}, path=path, noise=noise.LogUniform(sigma_min=0.05, sigma_max=1.9)
    )
    _, parts = task.loss({}, batch(4096, 0.0), jax.random.key(1))
    # 8,192 squares of a unit normal: 4 errors of sqrt(2 / 8192).
    assert float(parts["loss_squared"]) == pytest.approx(expected, abs=0.065)
    if path == "teacher":
        assert float(parts["loss_squared"]) < 1e-8


def test_the_exact_average_velocity_satisfies_its_identity(modules):
    errors = modules["meanflow"].identity_errors
    t, r = jnp.asarray([0.1, 0.5, 0.9, 0.6]), jnp.asarray([0.02, 0.1, 0.3, 0.6])
    z = jnp.asarray(np.random.default_rng(3).standard_normal((4, 2)), jnp.float32)
    velocity = (z - denoise(z / column(1 - t), t / (1 - t))) / column(t)
    measured = jnp.ones((4, 2), bool)
    # float32 and division by t = .1: 1e-7 / .01 squared, and the slope of a root.
    assert float(errors(chord, z, velocity, t, r, measured).max()) < 1e-6
    # Held constant along the chord it is no average velocity, unless the chord is a point.
    constant = errors(lambda x, sigma, r: denoise(x, sigma), z, velocity, t, r, measured)
    assert float(constant[1:3].min()) > 1e-3
    assert float(constant[3]) < 1e-9


def test_meanflow_loss_is_zero_at_the_exact_network_and_the_variance_of_v_without_chords(modules):
    chords = mean_flow_task(modules["meanflow"], chord, path="teacher", apart=0.5)
    _, parts = chords.loss({}, batch(512, 0.5), jax.random.key(3))
    assert float(parts["loss_squared"]) < 1e-5
    # v = (z - E[x0|z]) / t against n - x0: the variance left is sigma² / (1 + sigma²) / t², at
    # sigma = 1, t = 1/2 it is 2. 8,192 squares of a normal: 4 errors of 2 sqrt(2 / 8192).
    near = noise.LogUniform(sigma_min=0.999, sigma_max=1.001)
    points = mean_flow_task(
        modules["meanflow"],
        lambda x, sigma, r: denoise(x, sigma),
        path="data",
        apart=0.0,
        noise=near,
    )
    _, parts = points.loss({}, batch(4096, 0.5), jax.random.key(4))
    assert float(parts["loss_squared"]) == pytest.approx(2.0, abs=0.13)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_chords_lead_where_the_flow_does_in_any_number_of_steps(modules, steps):
    task = mean_flow_task(modules["meanflow"], chord)
    keys = sampler.spot_keys(0, "S", ["a", "b", "c"])
    sampling = tasks.Sampling(mode="draws", n_draws=4, steps=steps, sigma_min=0.5)
    found = np.asarray(task.predict({}, COND, keys, sampling=sampling))
    z = sampler.initial_noise(keys, n_draws=4, genes=2, antithetic=True).reshape(-1, 2)
    expected = np.asarray(flow(80 * z, jnp.full(12, 80.0))).reshape(found.shape)
    # The last chord ends at the lowest level, .002, and not at 0: .002 of noise of at most 4.
    np.testing.assert_allclose(found, expected, atol=0.008)


def test_the_two_time_network_starts_as_the_denoisers_and_learns_everywhere(modules):
    experiment = config.resolve({"model": {"width": 16, "depth": 1, "heads": 2}})
    base = config.make_task(experiment, genes=5, condition=3)
    keys = jax.random.split(jax.random.key(5), 4)
    start = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(keys[0], p.shape), base.init(keys[1])
    )
    net = modules["places"].Net(task=base, params=start)
    task = modules["rows"].make_generator("meanflow, teacher", net, experiment)
    params = task.init(keys[2])
    for name, value in start.items():
        if name != "noise":
            jax.tree.map(np.testing.assert_array_equal, params["body"][name], value)
    rng = np.random.default_rng(6)
    given = {"x0": rng.standard_normal((8, 5)), "cond": rng.standard_normal((8, 3)),
             "mask": np.ones((8, 5)), "progress": np.zeros(8)}  # fmt: skip
    given = {name: jnp.asarray(value, jnp.float32) for name, value in given.items()}
    slopes = jax.jit(jax.grad(lambda p: task.loss(p, given, keys[3])[0]))(params)
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.isfinite(slope).all(), path
        assert float(jnp.abs(slope).max()) > 0, path
    # Both levels matter to it.
    point, x, one = task.point(params, given["cond"]), given["x0"], jnp.ones(8)
    near, far = point(x, one, 0.5 * one), point(x, one, 0.1 * one)
    assert float(jnp.abs(near - far).max()) > 1e-4
    # What lies below the lowest level is that level.
    np.testing.assert_array_equal(point(x, one, 0.0 * one), point(x, one, 0.001 * one))
