"""Preconditioning limits, the mean token, and the loss against its data-space form."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax import errors
from stemjax.diffusion import denoiser, noise

SIGMAS = [1e-3, 0.02, 0.5, 1.0, 7.0, 80.0, 1e4]


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Every row at one noise level."""

    sigma: float

    def sample(self, key, shape):
        return jnp.full(shape, self.sigma)


class Spy:
    """A network that keeps what it was shown; outputs a fixed function of it."""

    def __init__(self, output):
        self.output, self.calls = output, []

    def __call__(self, x, level):
        self.calls.append((x, level))
        return self.output(x, level)


def _normal(key, *shape):
    return jax.random.normal(key, shape, jnp.float32)


def test_scalings_hand_numbers():
    # The 3-4-5 triangle: r = 5.
    c = denoiser.Preconditioning(sigma_data=4.0).scalings(jnp.asarray([3.0, math.e], jnp.float32))
    np.testing.assert_allclose(
        [c.c_skip[0], c.c_out[0], c.c_in[0]], [16 / 25, 12 / 5, 1 / 5], rtol=1e-6
    )
    np.testing.assert_allclose(c.c_noise[1], 250.0, rtol=1e-6)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_scalings_give_unit_variance_and_least_amplification(sigma_data):
    with jax.enable_x64(True):
        sigma = jnp.asarray(SIGMAS, jnp.float64)
        c = denoiser.Preconditioning(sigma_data=sigma_data).scalings(sigma)

        def target_variance(c_skip):
            return ((1 - c_skip) * sigma_data) ** 2 + (c_skip * sigma) ** 2

        # float64; the target at sigma = 1e-3 loses (1 - c_skip) ~ 1e-7 to cancellation.
        np.testing.assert_allclose(c.c_in**2 * (sigma**2 + sigma_data**2), 1.0, rtol=1e-12)
        np.testing.assert_allclose(target_variance(c.c_skip) / c.c_out**2, 1.0, rtol=1e-8)
        for other in (0.99 * c.c_skip, 1.01 * c.c_skip):
            assert (target_variance(other) > target_variance(c.c_skip)).all()
        np.testing.assert_allclose(noise.loss_weight(sigma, sigma_data) * c.c_out**2, 1, rtol=1e-12)


def test_no_noise_means_nothing_to_do(key):
    x = _normal(key, 3, 5)
    denoise = denoiser.make_denoiser(lambda x, level: x + level[:, None], sigma_data=1.0)
    # Exact: c_skip is 1, c_out is 0 and the network's level is finite.
    np.testing.assert_array_equal(denoise(x, jnp.zeros(3, jnp.float32)), x)


@pytest.mark.parametrize("sigma", [jnp.inf, 1e30])
def test_infinite_noise_leaves_the_network_alone(key, sigma):
    weights = jnp.asarray([0.5, -2.0], jnp.float32)
    denoise = denoiser.make_denoiser(
        lambda x, level: x + level[:, None] * weights[None], sigma_data=3.0
    )
    sigmas = jnp.full(4, sigma, jnp.float32)
    expected = np.broadcast_to(3.0 * 250 * math.log(1e5) * weights[None], (4, 2))
    for x in (jnp.zeros((4, 2), jnp.float32), 1e3 * _normal(key, 4, 2)):
        np.testing.assert_allclose(denoise(x, sigmas), expected, rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 1e5, jnp.inf])
def test_gradients_are_finite_at_every_level(sigma):
    denoise = denoiser.make_denoiser(lambda x, level: jnp.sin(x + level[:, None]), sigma_data=0.5)
    x, sigmas = jnp.ones((2, 3), jnp.float32), jnp.full(2, sigma, jnp.float32)
    by_x, by_sigma = jax.grad(lambda *a: denoise(*a).sum(), argnums=(0, 1))(x, sigmas)
    assert np.isfinite(by_x).all()
    assert np.isfinite(by_sigma).all()
    if sigma == jnp.inf:
        assert not by_x.any()
        assert not by_sigma.any()


def test_noise_level_rises_and_keeps_the_mean_token_apart():
    with jax.enable_x64(True):
        sigma = jnp.asarray([0.0, 1e-6, *SIGMAS, 1e5, 1e9, jnp.inf], jnp.float64)
        level = np.asarray(denoiser.noise_level(sigma))
        np.testing.assert_allclose(level[2:-3], 250 * np.log(SIGMAS), rtol=1e-12)
        # 250 ln 1e5 = 250 * 11.512925 = 2878.2314
        np.testing.assert_allclose(level[-3:], 2878.2314, atol=1e-4)
        np.testing.assert_allclose(level[:2], -2878.2314, atol=1e-4)
    assert abs(denoiser.MEAN_TOKEN - 2878.2314) < 1e-4


def test_conditional_mean_is_one_evaluation_of_the_mean_token():
    bias = jnp.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], jnp.float32)  # stands for the condition
    network = Spy(lambda x, level: bias)
    mean = denoiser.conditional_mean(denoiser.make_denoiser(network, sigma_data=2.0), 2, 3)
    np.testing.assert_allclose(mean, 2 * bias, rtol=1e-6)
    [(x, level)] = network.calls
    np.testing.assert_array_equal(x, np.zeros((2, 3)))
    np.testing.assert_allclose(level, denoiser.MEAN_TOKEN, rtol=1e-6)


def test_scalings_stay_fp32_around_a_bf16_network(key):
    x, sigma = _normal(key, 4, 8), jnp.full(4, 0.01, jnp.float32)
    denoise = denoiser.make_denoiser(lambda x, level: x.astype(jnp.bfloat16), sigma_data=1.0)
    # bfloat16 errs by 2^-9 of a value up to 4, times c_out = .01; x itself must not be rounded.
    expected = np.asarray(x, np.float64) * (1 / 1.0001 + 0.01 / 1.0001)
    np.testing.assert_allclose(denoise(x, sigma), expected, atol=0.01 * 4 * 2**-9)
    half = denoise(x.astype(jnp.bfloat16), sigma)
    assert half.dtype == jnp.float32


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, float("nan"), float("inf")])
def test_sigma_data_that_cannot_work_is_named(sigma_data):
    with pytest.raises(errors.ConfigError, match="sigma_data"):
        denoiser.make_denoiser(lambda x, level: x, sigma_data=sigma_data)


# --- the loss ---


def test_loss_is_the_weighted_data_space_loss(key):
    sigma_data, (b, g) = 0.7, (64, 5)
    key_x0, key_mask, key_loss = jax.random.split(key, 3)
    with jax.enable_x64(True):
        x0 = jax.random.normal(key_x0, (b, g), jnp.float64)
        mask = jax.random.bernoulli(key_mask, 0.7, (b, g)).astype(jnp.float64)
        x0 = x0 * mask
        network = Spy(lambda x, level: jnp.tanh(2 * x) - level[:, None] / 1000)
        losses = denoiser.denoising_loss(
            network,
            x0,
            mask,
            key_loss,
            noise=noise.LogNormal(),
            sigma_data=sigma_data,
            mean_fraction=0.0,
        )
        [(scaled, level)] = network.calls
        sigma = jnp.exp(level / 250)
        x = scaled * jnp.sqrt(sigma**2 + sigma_data**2)[:, None]
        denoised = denoiser.make_denoiser(network.output, sigma_data=sigma_data)(x, sigma)
        squared = mask * (denoised - x0) ** 2
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        expected = weight * squared.sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)
        # float64, through an exp and a difference divided by sigma^2 of order 1e-5.
        np.testing.assert_allclose(losses, expected, rtol=1e-8)
        # Each row has a level of its own, and its noise is unit normal: 320 values, 4 errors.
        assert len(np.unique(level)) == b
        unit = np.asarray((x - x0) / sigma[:, None])
        assert abs(unit.mean()) < 4 / math.sqrt(b * g)
        assert abs(unit.var() - 1) < 4 * math.sqrt(2 / (b * g))


@pytest.mark.parametrize(("fraction", "rows"), [(0.0, 0), (0.2, 2), (0.3, 2), (0.9, 7), (1.0, 8)])
def test_mean_token_rows_come_first_and_regress_x0(key, fraction, rows):
    assert denoiser.mean_token_rows(8, fraction) == rows
    key_x0, key_loss = jax.random.split(key)
    x0 = _normal(key_x0, 8, 3)
    network = Spy(lambda x, level: jnp.full_like(x, 0.25))
    losses = denoiser.denoising_loss(
        network,
        x0,
        jnp.ones_like(x0),
        key_loss,
        noise=noise.LogNormal(),
        sigma_data=2.0,
        mean_fraction=fraction,
    )
    [(x, level)] = network.calls
    np.testing.assert_array_equal(np.asarray(level) > 2800, np.arange(8) < rows)
    assert not np.asarray(x[:rows]).any()
    # D = sigma_data F = .5, so the loss is the regression error (x0 - .5)^2 / sigma_data^2.
    expected = np.mean((np.asarray(x0) - 0.5) ** 2, axis=1)[:rows] / 4
    np.testing.assert_allclose(losses[:rows], expected, rtol=1e-5)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_mean_fraction_outside_is_named(fraction):
    with pytest.raises(errors.ConfigError, match="mean_fraction"):
        denoiser.mean_token_rows(8, fraction)


def _mlp_loss(params, x0, mask, key, mean_fraction=0.25):
    def network(x, level):
        hidden = jnp.tanh(x @ params["a"] + level[:, None] / 1000)
        return hidden @ params["b"]

    return denoiser.denoising_loss(
        network,
        x0,
        mask,
        key,
        noise=noise.LogNormal(),
        sigma_data=1.0,
        mean_fraction=mean_fraction,
    )


def _mlp(key):
    key_a, key_b = jax.random.split(key)
    return {"a": _normal(key_a, 4, 6), "b": _normal(key_b, 6, 4)}


def test_masked_genes_have_no_part_in_loss_or_gradient(key):
    key_params, key_x0, key_loss = jax.random.split(key, 3)
    params, x0 = _mlp(key_params), _normal(key_x0, 8, 4)
    mask = jnp.ones_like(x0).at[0, 1].set(0.0).at[5].set(0.0)  # row 0 a mean token, 5 a noisy row

    def loss_and_slope(x0):
        losses = _mlp_loss(params, x0, mask, key_loss.copy())
        slope = jax.grad(lambda p: _mlp_loss(p, x0, mask, key_loss.copy()).sum())(params)
        return losses, slope

    losses, slope = loss_and_slope(x0)
    assert np.isfinite(losses).all()
    assert losses[5] == 0  # nothing measured
    for junk in (1e6, jnp.nan):
        other_losses, other_slope = loss_and_slope(jnp.where(mask > 0, x0, junk))
        np.testing.assert_array_equal(losses, other_losses)
        jax.tree.map(np.testing.assert_array_equal, slope, other_slope)


def test_loss_averages_over_measured_genes_only(key):
    x0 = jnp.asarray([[3.0, 1.0, 100.0], [2.0, 0.0, 0.0]], jnp.float32)
    mask = jnp.asarray([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], jnp.float32)
    losses = denoiser.denoising_loss(
        lambda x, level: jnp.zeros_like(x),
        x0,
        mask,
        key,
        noise=noise.LogNormal(),
        sigma_data=1.0,
        mean_fraction=1.0,
    )
    np.testing.assert_allclose(losses, [(9 + 1) / 2, 4 / 3], rtol=1e-6)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_loss_gradient_is_finite_and_reaches_what_it_should(key, fraction):
    key_params, key_x0, key_loss = jax.random.split(key, 3)
    params, x0 = _mlp(key_params), _normal(key_x0, 8, 4)
    slope = jax.grad(
        lambda p: _mlp_loss(p, x0, jnp.ones_like(x0), key_loss.copy(), fraction).sum()
    )(params)
    assert np.isfinite(slope["a"]).all()
    assert (np.asarray(slope["b"]) != 0).all()
    # Mean tokens show the network x = 0, so nothing reaches the weights that multiply x.
    assert (np.asarray(slope["a"]) == 0).all() == (fraction == 1.0)


def test_target_keeps_its_precision_at_tiny_noise(key):
    key_x0, key_loss = jax.random.split(key)
    x0 = _normal(key_x0, 100, 200)
    losses = denoiser.denoising_loss(
        lambda x, level: jnp.zeros_like(x),
        x0,
        jnp.ones_like(x0),
        key_loss,
        noise=Fixed(1e-8),
        sigma_data=1.0,
        mean_fraction=0.0,
    )
    # The target tends to -n, of variance 1: 4 standard errors of 20,000 squares. The difference
    # (x0 - c_skip x) / c_out in float32 would be 0, since x0 + 1e-8 n rounds to x0.
    assert abs(losses.mean() - 1) < 4 * math.sqrt(2 / 20_000)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_loss_is_least_at_tweedies_denoiser(key, sigma):
    """D = x + sigma² grad log p(x; sigma) is E[x0 | x]: its residual is orthogonal to any f(x)."""
    sigma_data, rows = 1.5, 100_000
    key_mode, key_within, key_loss = jax.random.split(key, 3)
    side = jnp.where(jax.random.bernoulli(key_mode, 0.3, (rows, 1)), 2.0, -1.0)
    x0 = side.astype(jnp.float32) + 0.4 * _normal(key_within, rows, 1)

    def log_density(x):
        variance = 0.16 + sigma**2
        return jnp.logaddexp(
            math.log(0.3) - (x - 2) ** 2 / (2 * variance),
            math.log(0.7) - (x + 1) ** 2 / (2 * variance),
        )

    def losses(theta):
        def network(scaled, level):
            r = math.sqrt(sigma**2 + sigma_data**2)
            x = scaled[:, 0] * r
            tweedie = x + sigma**2 * jax.vmap(jax.grad(log_density))(x)
            tweedie = tweedie + theta[0] + theta[1] * x + theta[2] * jnp.sin(2 * x)
            skip = sigma_data**2 / r**2
            return ((tweedie - skip * x) / (sigma * sigma_data / r))[:, None]

        return denoiser.denoising_loss(
            network,
            x0,
            jnp.ones_like(x0),
            key_loss.copy(),
            noise=Fixed(sigma),
            sigma_data=sigma_data,
            mean_fraction=0.0,
        )

    slopes = np.asarray(jax.jacfwd(losses)(jnp.zeros(3, jnp.float32)), np.float64)
    errors_of_mean = slopes.std(axis=0) / math.sqrt(rows)
    # 4 standard errors; a denoiser off by .03 in any of the three directions is outside.
    assert (np.abs(slopes.mean(axis=0)) < 4 * errors_of_mean).all()
