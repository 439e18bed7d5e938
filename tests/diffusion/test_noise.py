"""Laws of the noise levels and loss weights against hand numbers and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from stemjax import errors
from stemjax.diffusion import denoiser, noise

DATA_WEIGHTS = {
    "edm": lambda sigma, sigma_data, gamma: noise.loss_weight(sigma, sigma_data),
    "min_snr": noise.min_snr,
    "soft_min_snr": noise.soft_min_snr,
}


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


def test_log_uniform_has_its_law(key):
    levels = noise.LogUniform(sigma_min=0.02, sigma_max=50.0).sample(key, (100, 200))
    assert levels.shape == (100, 200)
    logs, low, width = np.log(levels).ravel(), np.log(0.02), np.log(2500)
    # Kolmogorov-Smirnov on 20,000 values: a fixed key, so no flake; an end off by 3 % of the
    # width fails.
    assert stats.kstest(logs, stats.uniform(low, width).cdf).pvalue > 0.01
    # 4 standard errors of mean and variance; the fourth moment of a uniform law is width^4 / 80.
    count = logs.size
    assert abs(logs.mean() - (low + width / 2)) < 4 * width / np.sqrt(12 * count)
    error_of_variance = width**2 * np.sqrt((1 / 80 - 1 / 144) / count)
    assert abs(logs.var() - width**2 / 12) < 4 * error_of_variance
    # Inside its ends but for float32 rounding of a logarithm of up to 4 and of its exponential.
    assert 0.02 * (1 - 1e-6) <= levels.min() < 0.0201
    assert 49.8 < levels.max() <= 50 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("sigma_min", "sigma_max"),
    [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0)],
)
def test_log_uniform_that_cannot_work_is_named(sigma_min, sigma_max):
    with pytest.raises(errors.ConfigError, match=f"sigma_min={sigma_min}"):
        noise.LogUniform(sigma_min=sigma_min, sigma_max=sigma_max)


def test_loss_weight_hand_numbers_and_limit():
    sigma = jnp.asarray([0.5, 1.0, jnp.inf], jnp.float32)
    # sigma_data .5: (.25 + .25) / .0625 = 8, (1 + .25) / .25 = 5, and 1 / .25 = 4 at infinity.
    np.testing.assert_allclose(noise.loss_weight(sigma, 0.5), [8.0, 5.0, 4.0], rtol=1e-6)
    slope = jax.vmap(jax.grad(lambda s: noise.loss_weight(s, 0.5)))(sigma)
    # d/dsigma sigma^-2 = -2 sigma^-3.
    np.testing.assert_allclose(slope, [-16.0, -2.0, 0.0], rtol=1e-6)


def test_min_snr_hand_numbers():
    # sigma_data 2, gamma 4: the corner is at sigma = 1. SNR = 16, 4, 1, .25 and 0.
    sigma = jnp.asarray([0.5, 1.0, 2.0, 4.0, jnp.inf], jnp.float32)
    hard = noise.min_snr(sigma, 2.0, 4.0)
    np.testing.assert_allclose(hard, np.array([4, 4, 1, 0.25, 0]) / 4, rtol=1e-6)
    # SNR 4 / (SNR + 4) = 64 / 20, 16 / 8, 4 / 5, 1 / 4.25 and 0.
    soft = noise.soft_min_snr(sigma, 2.0, 4.0)
    np.testing.assert_allclose(soft, np.array([3.2, 2, 0.8, 1 / 4.25, 0]) / 4, rtol=1e-6)
    # c_out² = 4 sigma² / (4 + sigma²) = 1 / 4.25, .8, 2, 3.2 and 4.
    c_out_squared = np.array([1 / 4.25, 0.8, 2, 3.2, 4])
    for name, weight in [("min_snr", hard), ("soft_min_snr", soft)]:
        got = noise.network_weight(name, sigma, 2.0, 4.0)
        np.testing.assert_allclose(got, c_out_squared * weight, rtol=1e-6)


def test_defaults_of_gamma_are_the_papers():
    sigma = jnp.asarray([0.01], jnp.float32)
    # Far below the corner the weight is gamma / sigma_data²: 5 here, less 5e-4 of it if soft.
    for weight in (noise.min_snr, noise.soft_min_snr):
        np.testing.assert_allclose(weight(sigma, 1.0), 5.0, rtol=1e-3)
    for name in ("min_snr", "soft_min_snr"):
        got = noise.network_weight(name, sigma, 1.0)
        np.testing.assert_allclose(got, 5e-4, rtol=1e-3)


def test_k_diffusion_has_the_soft_weight_at_gamma_1():
    sigma = np.geomspace(1e-3, 1e3, 25)
    with jax.enable_x64(True):
        got = noise.network_weight("soft_min_snr", jnp.asarray(sigma), 0.7, 1.0)
    # k-diffusion's _weighting_soft_min_snr.
    expected = (sigma * 0.7) ** 2 / (sigma**2 + 0.7**2) ** 2
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
@pytest.mark.parametrize("name", noise.WEIGHTS)
def test_weight_of_the_network_is_that_of_the_denoiser(key, name, gamma):
    """Errors of D and of F = (D - c_skip x) / c_out, both written out, weigh the same."""
    sigma_data = 0.7
    key_x0, key_noise, key_output = jax.random.split(key, 3)
    with jax.enable_x64(True):
        sigma = jnp.asarray([0.05, 0.3, 0.7, 2.0, 80.0])
        x0, fresh, output = (
            jax.random.normal(k, (5, 4), jnp.float64) for k in (key_x0, key_noise, key_output)
        )
        x = x0 + sigma[:, None] * fresh
        c = denoiser.Preconditioning(sigma_data=sigma_data).scalings(sigma)
        c_skip, c_out = c.c_skip[:, None], c.c_out[:, None]
        by_denoiser = jnp.square(c_skip * x + c_out * output - x0)
        by_network = jnp.square(output - (x0 - c_skip * x) / c_out)
        in_data = DATA_WEIGHTS[name](sigma, sigma_data, gamma)[:, None] * by_denoiser
        in_network = noise.network_weight(name, sigma, sigma_data, gamma)[:, None] * by_network
        # float64; at sigma = .05 the difference x0 - c_skip x loses two digits.
        np.testing.assert_allclose(in_data, in_network, rtol=1e-10)


@pytest.mark.parametrize("sigma_data", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("name", noise.WEIGHTS)
def test_float32_weights_keep_their_digits_at_every_level(name, sigma_data):
    sigma = np.concatenate([[0.0], np.geomspace(1e-5, 1e5, 41), [1e-18, 1e15, np.inf]])
    single = jnp.asarray(sigma, jnp.float32)
    got = noise.network_weight(name, single, sigma_data, 5.0)
    slope = jax.vmap(jax.grad(lambda s: noise.network_weight(name, s, sigma_data, 5.0)))(single)
    assert got.dtype == jnp.float32
    exact = np.asarray(single, np.float64)
    with np.errstate(all="ignore"):
        snr = (sigma_data / exact) ** 2
        capped = np.minimum(snr, 5) if name == "min_snr" else 5 / (1 + 5 / snr)
        c_out_squared = 1 / (1 / exact**2 + 1 / sigma_data**2)
        expected = np.ones_like(exact) if name == "edm" else capped * c_out_squared / sigma_data**2
    # Some ten roundings of float32, of 6e-8 each; exactly 1 for EDM.
    np.testing.assert_allclose(got, expected, rtol=0 if name == "edm" else 1e-6)
    assert np.isfinite(slope).all()
    assert slope[-1] == 0  # at infinity


@pytest.mark.parametrize("name", noise.WEIGHTS[1:])
def test_data_space_weights_are_finite_from_zero_to_infinity(name):
    sigma = jnp.asarray([0.0, 1e-5, 1.0, 1e5, jnp.inf], jnp.float32)
    weight = DATA_WEIGHTS[name](sigma, 0.5, 5.0)
    slope = jax.vmap(jax.grad(lambda s: DATA_WEIGHTS[name](s, 0.5, 5.0)))(sigma)
    assert np.isfinite(slope).all()
    assert slope[-1] == 0
    # gamma / sigma_data² = 20 where there is no noise, 0 at infinity.
    np.testing.assert_allclose(weight[np.array([0, 1, 4])], [20.0, 20.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("inf"), float("nan")])
def test_gamma_that_cannot_work_is_named(gamma):
    sigma = jnp.ones(1, jnp.float32)
    for name in ("min_snr", "soft_min_snr"):
        with pytest.raises(errors.ConfigError, match="gamma"):
            DATA_WEIGHTS[name](sigma, 1.0, gamma)
        with pytest.raises(errors.ConfigError, match="gamma"):
            noise.network_weight(name, sigma, 1.0, gamma)


def test_unknown_weight_is_named():
    assert noise.WEIGHTS == ("edm", "min_snr", "soft_min_snr")
    with pytest.raises(errors.ConfigError, match="soft_min_snr, found 'snr'"):
        noise.network_weight("snr", jnp.ones(1, jnp.float32), 1.0, 5.0)
