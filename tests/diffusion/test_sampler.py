"""What a sampler draws: antithetic pairs, step noise and initial noise, and their independence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_laws import MEAN, VARIANCE, gaussian, gaussian_flow, row_keys

from stemjax import errors
from stemjax.diffusion import ladders, rules, sampler


@pytest.mark.parametrize("rule", [rules.DpmSolverPP2M(), rules.Ddim(eta=1.0)], ids=["2m", "a"])
def test_pair_average_of_an_odd_denoiser_is_exactly_zero(rule):
    draws = sampler.draw(
        lambda x, sigma: gaussian(x, sigma, 0.0, VARIANCE),
        ladders.karras(8),
        row_keys(10),
        rule=rule,
        genes=3,
        n_draws=4,
        antithetic=True,
    )
    # Exact: rounding is symmetric about zero.
    np.testing.assert_array_equal(draws[0], -draws[1])
    np.testing.assert_array_equal(draws[2], -draws[3])
    assert (np.abs(draws[0] - draws[2]) > 1e-3).all()


def test_pair_average_of_a_linear_denoiser_is_the_mean():
    draws = sampler.draw(
        gaussian,
        ladders.karras(64),
        row_keys(10),
        rule=rules.DpmSolverPP2M(),
        genes=3,
        n_draws=2,
        antithetic=True,
    )
    # An affine map of +z and -z averages to its value at x = 0, which the exact flow takes to
    # this; the rule's own error falls as (ln(80 / .002) / 64)^2 = .03, times the 1 / 80 to which
    # the mean's part of the start amounts.
    expected = np.broadcast_to(gaussian_flow(np.zeros(3), 80.0), (10, 3))
    np.testing.assert_allclose(draws.mean(axis=0), expected, atol=4e-4)
    # That is the mean but for sigma_max < infinity: |mean| std / 80.
    np.testing.assert_allclose(expected, np.broadcast_to(MEAN, (10, 3)), atol=1.0 / 40)
    assert np.std(draws[0]) > 0.5


def test_step_noise_is_apart_from_initial_noise_and_from_other_draws():
    spots, genes, rungs = 400, 50, jnp.asarray([2.0, 1.0, 0.5, 0.0], jnp.float32)
    draws = sampler.draw(
        lambda x, sigma: x,  # then x moves by its fresh noise alone
        rungs,
        row_keys(spots),
        rule=rules.Ddim(eta=1.0),
        genes=genes,
        n_draws=2,
        antithetic=False,
    )
    start = 2 * sampler.initial_noise(row_keys(spots), n_draws=2, genes=genes, antithetic=False)
    moved = np.asarray(draws - start)
    # sigma_up^2 = sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2: 1 * 3 / 4 + .25 * .75 = .9375
    count = spots * genes
    assert moved.var() == pytest.approx(0.9375, abs=4 * 0.9375 * np.sqrt(2 / (2 * count)))
    # 4 standard errors of a correlation of independent values.
    for pair in [(moved[0], start[0]), (moved[1], start[1]), (moved[0], moved[1])]:
        assert abs(np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1]) < 4 / np.sqrt(count)


def test_initial_noise_is_unit_normal_and_extends(key):
    keys = jax.random.split(key, 100)
    four = sampler.initial_noise(keys, n_draws=4, genes=50, antithetic=False)
    # 20,000 values, 4 standard errors.
    assert abs(four.mean()) < 4 / np.sqrt(20_000)
    assert abs(four.var() - 1) < 4 * np.sqrt(2 / 20_000)
    rows = np.asarray(four).reshape(400, 50)
    off_diagonal = np.corrcoef(rows) - np.eye(400)
    assert np.abs(off_diagonal).max() < 6.5 / np.sqrt(50)  # 80,000 correlations of error .14
    two = sampler.initial_noise(keys, n_draws=2, genes=50, antithetic=False)
    np.testing.assert_array_equal(two, four[:2])
    paired = sampler.initial_noise(keys, n_draws=4, genes=50, antithetic=True)
    np.testing.assert_array_equal(paired[::2], four[::2])
    np.testing.assert_array_equal(paired[1::2], -paired[::2])


@pytest.mark.parametrize(("n_draws", "antithetic"), [(0, False), (3, True)])
def test_n_draws_that_cannot_work_is_named(key, n_draws, antithetic):
    keys = jax.random.split(key, 2)
    with pytest.raises(errors.ConfigError, match="n_draws"):
        sampler.initial_noise(keys, n_draws=n_draws, genes=2, antithetic=antithetic)
