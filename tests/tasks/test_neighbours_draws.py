"""NeighbourTask: draws, mean and spread against the closed form, whatever the company."""

from __future__ import annotations

import dataclasses

import gaussian_toys as exact
import jax
import jax.numpy as jnp
import neighbour_toys as near
import numpy as np
import pytest
import window_toys as toys

from stemjax import errors, tasks
from stemjax.data import windows as windows_lib
from stemjax.diffusion import denoiser, sampler
from stemjax.models import network


def _law(batch, params):
    """Centre, and mean of the rest given the condition."""
    return near.centre_by_hand(batch), near.joined_by_hand(batch) @ params["denoiser"]["w"]


@pytest.mark.parametrize("mean_fraction", [0.0, 0.25])
def test_the_mean_is_the_regression(mean_fraction):
    task, params = near.exact_task(mean_fraction=mean_fraction)
    batch = near.given()
    centre, rest = _law(batch, params)
    for asked in ({"mode": "mean"}, vars(task.estimate)):
        found = near.predict(task, params, batch, **asked)
        np.testing.assert_allclose(found, centre[None], rtol=1e-5, atol=1e-5)
    assert min(np.abs(centre).max(), np.abs(rest).max()) > 0.5


@pytest.mark.parametrize(("mode", "n"), [("draws", 6), ("pair", 2)])
def test_draws_are_those_of_the_exact_flow(mode, n):
    task, params = near.exact_task(sigma_data=0.7)
    batch = near.given()
    centre, rest = _law(batch, params)
    found = near.predict(
        task, params, batch, mode=mode, n_draws=6, sampler="heun", steps=40, ladder="log_uniform"
    )
    z = sampler.initial_noise(near.KEYS, n_draws=n, genes=toys.GENES, antithetic=True)
    expected = np.stack([centre + exact.flow(one, rest, exact.COV, 80.0) for one in np.asarray(z)])
    # Heun in 40 steps of ln sigma .23 shrinks deviations by about 5e-3.
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_many_draws_have_mean_and_covariance():
    task, params = near.exact_task()
    batch, n = near.given(), 1000
    draws = near.predict(task, params, batch, mode="draws", n_draws=n, steps=24, antithetic=False)
    mean, variance = sum(_law(batch, params)), np.diag(exact.COV)
    # 4 standard errors of a mean; the ODE starts without the mean, which costs std / 80 of it.
    assert (np.abs(draws.mean(axis=0) - mean) < 4 * np.sqrt(variance / n) + 0.02).all()
    # 4 standard errors of a variance are 4 sqrt(2 / 4000), and of a covariance less.
    r = (draws - mean).reshape(-1, toys.GENES)
    error = np.abs(r.T @ r / len(r) - exact.COV)
    assert (error < (4 * np.sqrt(2 / len(r)) + 0.01) * np.sqrt(np.outer(variance, variance))).all()


def test_the_marginal_mode_gives_mean_and_standard_deviation():
    task, params = near.exact_task(marginal=True)
    batch = near.given()
    found = near.predict(task, params, batch, mode="marginal")
    assert found.shape == (2, 4, toys.GENES)
    np.testing.assert_allclose(found[0], sum(_law(batch, params)), rtol=1e-5, atol=1e-5)
    spread = np.broadcast_to(np.sqrt(np.diag(exact.COV)), found[1].shape)
    np.testing.assert_allclose(found[1], spread, rtol=1e-5)  # the regression moves no spread


def test_its_denoiser_is_the_posterior_mean_of_the_whole():
    task, params = near.exact_task()
    batch = near.given()
    x = np.random.default_rng(0).standard_normal((8, toys.GENES)).astype(np.float32)
    sigma = np.repeat(np.float32([0.1, 0.5, 2.0, 30.0]), 2)
    found = task.denoiser(params, batch, repeat=2)(jnp.asarray(x), jnp.asarray(sigma))
    mean = np.repeat(sum(_law(batch, params)), 2, axis=0)
    expected = exact.posterior_mean(x, sigma, mean.astype(np.float32), exact.COV)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)  # float32, c_in undone
    whole = denoiser.conditional_mean(task.denoiser(params, batch), batch=4, genes=toys.GENES)
    np.testing.assert_allclose(whole, sum(_law(batch, params)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("asked", [{"mode": "mean"}, {"mode": "draws", "n_draws": 4, "steps": 3}])
def test_a_row_does_not_depend_on_its_company(asked):
    task, params = near.exact_task()
    batch = toys.batch(11)
    keys = sampler.spot_keys(3, "S", [str(i) for i in range(11)])
    sampling = tasks.Sampling(**asked)
    whole = tasks.make_predictor(task, sampling, rows=64)(params, batch, keys)
    small = tasks.make_predictor(task, sampling, rows=8)(params, batch, keys)
    order = np.random.default_rng(0).permutation(11)
    turned = {name: values[order] for name, values in batch.items()}
    other = tasks.make_predictor(task, sampling, rows=12)(params, turned, keys[order])
    # The same sums in other matmul shapes, fp32: a few ulp of values of size about 80.
    np.testing.assert_allclose(small, whole, atol=2e-4)
    np.testing.assert_allclose(other, whole[:, order], atol=2e-4)
    assert np.abs(whole[:, 0] - whole[:, 1]).max() > 0.01
    # A list of `Taken`, as a slide's windows come, is as good as the arrays.
    rows = np.arange(11 * 8).reshape(11, 8)
    flat = {n: v.reshape(-1, v.shape[-1]) for n, v in batch.items() if v.ndim == 3}
    lazy = batch | {n: windows_lib.Taken(values=v, index=rows) for n, v in flat.items()}
    taken = tasks.make_predictor(task, sampling, rows=64)(params, lazy, keys)
    np.testing.assert_array_equal(taken, whole)


@pytest.mark.parametrize(
    ("options", "asked", "text"),
    [
        ({"mean_fraction": 0.0, "marginal": True}, {"mode": "marginal"}, "mean token"),
        ({}, {"mode": "marginal"}, "config.diffusion.marginal"),
        ({}, {"mode": "draws", "sampler": "ddpm"}, "--sampler dpmpp2m"),
    ],
)
def test_modes_that_it_was_not_trained_for_are_refused(options, asked, text):
    task, params = near.exact_task(**options)
    with pytest.raises(errors.ConfigError) as error:
        near.predict(task, params, near.given(), **asked)
    assert text in f"{error.value} {error.value.fix}"


def test_it_costs_the_regression_beside_its_diffusion():
    task, _ = near.exact_task()
    assert task.evaluations(tasks.Sampling(mode="pair")) == 17
    assert task.evaluations(tasks.Sampling(mode="marginal")) == 2
    assert (task.evaluations(task.estimate), task.extra_evaluations) == (1, 1)
    assert (task.levels, task.genes, task.row_bytes) == ((0.01, 80.0), toys.GENES, 0)


def test_parameters_of_both_come_from_keys_of_their_own():
    def init(key):
        return {"w": jax.random.normal(key, (3,))}

    built = network.Network(init=init, apply=lambda *inputs: jnp.zeros(3))
    regression = tasks.HisToSGETask(network=built, features=built, genes=3)
    edm = exact.edm_task()
    edm = dataclasses.replace(edm, network=dataclasses.replace(edm.network, init=init))
    task = tasks.NeighbourTask(regression=regression, edm=edm, reaches_um=near.REACHES)
    one, same, other = (task.init(jax.random.key(k)) for k in (1, 1, 2))
    assert set(one) == {"regression", "denoiser"}
    np.testing.assert_array_equal(one["denoiser"]["w"], same["denoiser"]["w"])
    drawn = [p[name]["w"] for p in (one, other) for name in ("regression", "denoiser")]
    assert len(np.unique(np.stack(drawn))) == 12
