"""Guided denoisers and given genes against closed forms of a Gaussian."""

from __future__ import annotations

import functools

import gaussian_toys as toys
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax import errors, tasks
from stemjax.diffusion import sampler
from stemjax.tasks import steered

DRAWS = tasks.Sampling(mode="draws", n_draws=4, sampler="heun", steps=40, ladder="log_uniform")
PARAMS = {"w": jnp.asarray(toys.W), "cov": jnp.asarray(toys.COV)}
OTHER = {"w": jnp.asarray(-toys.W[:, ::-1]), "cov": jnp.asarray(2 * np.eye(toys.GENES, dtype="f"))}
VALUES = np.random.default_rng(8).normal(size=(toys.SPOTS, toys.GENES)).astype(np.float32)
INPUTS = steered.Inputs(cond=toys.COND, values=VALUES)
KNOWN = np.array([False, True, False])


def _predict(task, params, cond, sampling):
    run = jax.jit(functools.partial(task.predict, sampling=sampling))
    return np.asarray(run(params, cond, toys.KEYS))


def _states(repeat=1):
    rng, rows = np.random.default_rng(2), toys.SPOTS * repeat
    sigma = np.geomspace(0.05, 50, rows).astype(np.float32)
    x = rng.standard_normal((rows, toys.GENES)) * np.hypot(1, sigma)[:, None]
    return jnp.asarray(x, jnp.float32), jnp.asarray(sigma)


def _own(x, sigma, params, cond=toys.COND, repeat=1):
    mean = np.repeat(cond @ np.asarray(params["w"]), repeat, axis=0)
    return np.asarray(toys.posterior_mean(x, sigma, mean, params["cov"]))


# D in float32 by way of c_in, c_out and sigma of a level of size 500, at states up to 50: 1e-5 of
# it, times the strength of the guidance.
ATOL = 2e-3


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("kind", ["edm", "residual", "ddpm"])
def test_guidance_by_the_null_condition(kind, scale):
    made = {"edm": toys.edm_task, "ddpm": toys.ddpm_task}.get(
        kind, functools.partial(toys.edm_task, residual=True)
    )()
    task = tasks.Steered(task=made, scale=scale)
    x, sigma = _states(repeat=2)
    found = task.denoiser((PARAMS, None), INPUTS, repeat=2)(x, sigma)
    strong = _own(x, sigma, PARAMS, repeat=2)
    weak = _own(x, sigma, PARAMS, cond=np.zeros_like(toys.COND), repeat=2)
    np.testing.assert_allclose(found, weak + scale * (strong - weak), atol=ATOL)
    assert np.abs(strong - weak).max() > 0.3


def test_guidance_by_a_weak_task_and_its_own_weights():
    task = tasks.Steered(task=toys.edm_task(), scale=2.5, weak=toys.edm_task(sigma_data=0.5))
    x, sigma = _states()
    found = task.denoiser((PARAMS, OTHER), INPUTS)(x, sigma)
    strong, weak = _own(x, sigma, PARAMS), _own(x, sigma, OTHER)
    np.testing.assert_allclose(found, weak + 2.5 * (strong - weak), atol=ATOL)


def test_guided_draws_go_to_the_guided_mean():
    # Twins of one width: guidance moves the mean to scale times it, and leaves the spread.
    task = tasks.Steered(task=toys.edm_task(), scale=2.0)
    found = _predict(task, (PARAMS, None), INPUTS, DRAWS)
    z = sampler.initial_noise(toys.KEYS, n_draws=4, genes=toys.GENES, antithetic=True)
    mean = 2 * toys.COND @ toys.W
    expected = np.stack([toys.flow(one, mean, toys.COV, 80.0) for one in np.asarray(z)])
    # As of unguided draws (test_stem_options): Heun in 40 steps.
    np.testing.assert_allclose(found, expected, atol=0.03)


@pytest.mark.parametrize("weak", [None, "weak"])
def test_scale_one_is_the_task_itself_to_the_bit_and_costs_nothing(weak):
    plain = toys.edm_task()
    task = tasks.Steered(task=plain, scale=1.0, weak=toys.edm_task() if weak else None)
    sampling = tasks.Sampling(mode="draws", n_draws=2, steps=3)
    found = _predict(task, (PARAMS, OTHER), INPUTS, sampling)
    np.testing.assert_array_equal(found, _predict(plain, PARAMS, toys.COND, sampling))
    assert task.evaluations(sampling) == plain.evaluations(sampling) == 6


@pytest.mark.parametrize("method", ["moment", "replacement"])
@pytest.mark.parametrize("name", ["dpmpp2m", "dpmpp2m_sde", "ab2"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_given_genes_come_out_as_given_in_every_draw(method, name, scale):
    task = tasks.Steered(task=toys.edm_task(), scale=scale, known=KNOWN, method=method)
    sampling = tasks.Sampling(mode="draws", n_draws=4, steps=3, sampler=name)
    found = _predict(task, (PARAMS, None), INPUTS, sampling)
    # The last step returns D, whose known entries are the values: one rounding of D + 0 (x - D).
    for draw in found:
        np.testing.assert_allclose(draw[:, KNOWN], VALUES[:, KNOWN], rtol=1e-6)
    others = found[..., ~KNOWN]
    assert np.abs(others - VALUES[:, ~KNOWN]).max() > 0.1
    assert np.abs(others[0] - others[2]).max() > 0.05


@pytest.mark.parametrize("known", [KNOWN, np.array([True, False, True])])
@pytest.mark.parametrize("residual", [False, True])
def test_moment_draws_the_conditional_of_a_gaussian(known, residual):
    task = tasks.Steered(task=toys.edm_task(residual=residual), known=known, method="moment")
    found = _predict(task, (PARAMS, None), INPUTS, DRAWS)[..., ~known]
    k, u = np.flatnonzero(known), np.flatnonzero(~known)
    cov, mean = toys.COV.astype(np.float64), (toys.COND @ toys.W).astype(np.float64)
    gain = cov[np.ix_(u, k)] @ np.linalg.inv(cov[np.ix_(k, k)])
    mean_given = mean[:, u] + (VALUES - mean)[:, k] @ gain.T
    cov_given = cov[np.ix_(u, u)] - gain @ cov[np.ix_(k, u)]
    z = np.asarray(sampler.initial_noise(toys.KEYS, n_draws=4, genes=toys.GENES, antithetic=True))
    expected = np.stack([toys.flow(one[:, u], mean_given, cov_given, 80.0) for one in z])
    # As of draws without given genes: Heun in 40 steps.
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert np.abs(mean_given - mean[:, u]).max() > 0.3  # the values do matter


def test_values_of_unknown_genes_are_not_read():
    task = tasks.Steered(task=toys.edm_task(), known=KNOWN)
    sampling = tasks.Sampling(mode="pair", steps=3)
    other = np.where(KNOWN, VALUES, 99.0).astype(np.float32)
    one, two = (
        _predict(task, (PARAMS, None), INPUTS._replace(values=v), sampling) for v in (VALUES, other)
    )
    np.testing.assert_array_equal(one, two)


def test_every_row_of_a_steered_portion_is_its_own():
    task = tasks.Steered(task=toys.edm_task(), scale=1.5, known=KNOWN)
    sampling = tasks.Sampling(mode="draws", n_draws=2, steps=3)
    whole, small = (
        tasks.make_predictor(task, sampling, rows=rows)((PARAMS, None), INPUTS, toys.KEYS)
        for rows in (64, 4)
    )
    assert whole.shape == (2, toys.SPOTS, toys.GENES)
    np.testing.assert_allclose(small, whole, atol=1e-4)  # rounding of states up to 80


TWO_KNOWN = np.array([True, False, True])


@pytest.mark.parametrize(
    ("options", "residual", "evaluations"),
    [
        ({}, False, 32),  # 4 draws of 8 steps
        ({}, True, 32 + 1),
        ({"scale": 2.0}, False, 64),
        ({"scale": 2.0}, True, 64 + 2),  # a mean for the condition and one for the null
        ({"scale": 2.0, "weak": toys.edm_task()}, True, 64 + 1),
        ({"weak": toys.edm_task(residual=True)}, True, 32 + 1),  # scale 1: it never runs
        ({"known": TWO_KNOWN, "method": "replacement"}, False, 32),
        ({"known": TWO_KNOWN, "method": "moment"}, False, 32 * 4),  # two derivatives, two each
        ({"known": TWO_KNOWN, "scale": 2.0}, True, 32 * 8 + 2),
    ],
)
def test_evaluations_of_a_spot(options, residual, evaluations):
    task = tasks.Steered(task=toys.edm_task(residual=residual), **options)
    assert task.evaluations(tasks.Sampling(mode="draws", n_draws=4)) == evaluations


@pytest.mark.parametrize(
    "sampling", [{"mode": "mean"}, {"mode": "marginal"}, {"mode": "draws", "sampler": "ddpm"}]
)
@pytest.mark.parametrize("made", [toys.edm_task, toys.ddpm_task])
def test_ways_that_pass_by_the_denoiser_are_refused(made, sampling):
    task = tasks.Steered(task=made(), scale=2.0)
    with pytest.raises(errors.ConfigError, match="pair or draws") as error:
        _predict(task, (PARAMS, None), INPUTS, tasks.Sampling(**sampling))
    assert "--mode draws" in error.value.fix
