"""Noise levels against hand numbers and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from stemjax import errors
from stemjax.diffusion import ladders, noise


@pytest.mark.parametrize(
    ("sigma_min", "sigma_max", "rho", "expected"),
    [
        (1.0, 4.0, 1.0, [4.0, 2.5, 1.0, 0.0]),  # even spacing
        (1.0, 100.0, 2.0, [100.0, 30.25, 1.0, 0.0]),  # square roots 10, 5.5, 1
        (1.0, 64.0, 3.0, [64.0, 15.625, 1.0, 0.0]),  # cube roots 4, 2.5, 1
        (1.0, 2187.0, 7.0, [2187.0, 128.0, 1.0, 0.0]),  # seventh roots 3, 2, 1
    ],
)
def test_ladder_hand_numbers(sigma_min, sigma_max, rho, expected):
    rungs = ladders.karras(3, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    # One rounding to float32.
    np.testing.assert_allclose(rungs, expected, rtol=1e-7, atol=0)


def test_ladder_defaults_are_edm():
    rungs = np.asarray(ladders.karras(18))
    assert rungs.dtype == np.float32
    np.testing.assert_allclose(rungs[[0, 17, 18]], [80.0, 0.002, 0.0], rtol=1e-7)
    # The seventh roots of the rungs above zero are evenly spaced; float32 rounding of a rung is
    # 6e-8 of it, a seventh of that in its root, against a spacing of .12.
    roots = rungs[:-1].astype(np.float64) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 8, 1000])
def test_ladder_falls_strictly_to_zero(steps):
    rungs = np.asarray(ladders.karras(steps))
    assert len(rungs) == steps + 1
    assert rungs[0] == 80
    assert rungs[-1] == 0
    assert (np.diff(rungs) < 0).all()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 8, "sigma_min": 0.0}, "sigma_min=0.0"),
        ({"steps": 8, "sigma_min": 3.0, "sigma_max": 2.0}, "sigma_max=2.0"),
        ({"steps": 8, "sigma_max": float("inf")}, "sigma_max=inf"),
        ({"steps": 8, "rho": 0.0}, "rho=0.0"),
        ({"steps": 8, "sigma_max": float("nan")}, "sigma_max=nan"),
    ],
)
def test_ladder_that_cannot_work_is_named(wrong, named):
    with pytest.raises(errors.ConfigError, match=named):
        ladders.karras(**wrong)


def test_log_normal_has_its_law(key):
    levels = noise.LogNormal(mean=0.3, std=0.7).sample(key, (100, 200))
    assert levels.shape == (100, 200)
    # Kolmogorov-Smirnov on 20,000 values: a fixed key, so no flake; a mean off by .02 fails.
    test = stats.kstest(np.log(levels).ravel(), stats.norm(0.3, 0.7).cdf)
    assert test.pvalue > 0.01


def test_log_normal_defaults_are_edm(key):
    logs = np.log(noise.LogNormal().sample(key, (40_000,)))
    # 4 standard errors: 1.2 / 200 of the mean, 1.2 / 283 of the standard deviation.
    assert abs(logs.mean() + 1.2) < 4 * 1.2 / 200
    assert abs(logs.std() - 1.2) < 4 * 1.2 / 283


@pytest.mark.parametrize("wrong", [{"std": -1.0}, {"mean": float("nan")}, {"std": float("inf")}])
def test_log_normal_that_cannot_work_is_named(wrong):
    with pytest.raises(errors.ConfigError, match="LogNormal"):
        noise.LogNormal(**wrong)


def test_loss_weight_hand_numbers_and_limit():
    sigma = jnp.asarray([0.5, 1.0, jnp.inf], jnp.float32)
    # sigma_data .5: (.25 + .25) / .0625 = 8, (1 + .25) / .25 = 5, and 1 / .25 = 4 at infinity.
    np.testing.assert_allclose(noise.loss_weight(sigma, 0.5), [8.0, 5.0, 4.0], rtol=1e-6)
    slope = jax.vmap(jax.grad(lambda s: noise.loss_weight(s, 0.5)))(sigma)
    # d/dsigma sigma^-2 = -2 sigma^-3.
    np.testing.assert_allclose(slope, [-16.0, -2.0, 0.0], rtol=1e-6)
