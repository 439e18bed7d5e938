"""Weights over noise levels, residuals about a centre, and the log variance beside the mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax.diffusion import denoiser, noise

ROWS, GENES, SIGMA_DATA, GAMMA = 12, 4, 0.7, 1.5


@pytest.fixture
def batch(key):
    """(x0, mask) with some genes of some rows not measured, and a key for the noise."""
    key_x, key_mask, key_noise = jax.random.split(key, 3)
    x0 = jax.random.normal(key_x, (ROWS, GENES), jnp.float32)
    mask = jax.random.bernoulli(key_mask, 0.8, (ROWS, GENES)).astype(jnp.float32)
    return x0, mask.at[:, 0].set(1.0), key_noise


def _noised(batch, **options):
    options = {"mean_fraction": 0.25, "sigma_data": SIGMA_DATA} | options
    law = noise.LogNormal(mean=0.0, std=1.5)
    x0, mask, key = batch
    # A clone, since two noisings with one key are compared.
    return denoiser.add_noise(x0, mask, jax.random.clone(key), noise=law, **options)


def _min_snr(sigma, sigma_data):
    return noise.network_weight("min_snr", sigma, sigma_data, GAMMA)


def _output(noised):
    return jnp.tanh(noised.x) + 0.01 * noised.level[:, None] / 250


def test_weighted_loss_is_the_min_snr_weight_times_the_error_of_d(batch):
    noised = _noised(batch, weigh=_min_snr)
    output = _output(noised)
    losses = np.asarray(denoiser.row_losses(output, noised))

    # Float64, from what the network saw and gave: sigma by its level, D by EDM's equation 7, and
    # the weight by its definition in data space, min(SNR, gamma) / sigma_data².
    sigma = np.exp(np.asarray(noised.level[3:], np.float64) / 250)[:, None]
    r = np.hypot(sigma, SIGMA_DATA)
    x = np.asarray(noised.x[3:], np.float64) * r
    d = (SIGMA_DATA / r) ** 2 * x + sigma * SIGMA_DATA / r * np.asarray(output[3:], np.float64)
    x0, mask = (np.asarray(value[3:], np.float64) for value in batch[:2])
    error = (mask * (d - x0) ** 2).sum(axis=1) / mask.sum(axis=1)
    weight = np.minimum((SIGMA_DATA / sigma[:, 0]) ** 2, GAMMA) / SIGMA_DATA**2
    # float32 levels of size 500 give sigma to 1e-6; D - x0 at small sigma cancels a digit or two.
    np.testing.assert_allclose(losses[3:], weight * error, rtol=1e-4)
    top = GAMMA / SIGMA_DATA**2
    assert (weight == top).any()  # both sides of gamma
    assert (weight < 0.1 * top).any()


def test_mean_tokens_weigh_one_whatever_the_weight(batch):
    plain, weighed = _noised(batch), _noised(batch, weigh=_min_snr)
    np.testing.assert_array_equal(weighed.weight[:3], 1)
    assert (np.asarray(weighed.weight[3:]) < 1).all()
    np.testing.assert_array_equal(plain.weight, 1)
    output = _output(plain)
    np.testing.assert_array_equal(
        denoiser.row_losses(output, weighed)[:3], denoiser.row_losses(output, plain)[:3]
    )


def test_a_centre_moves_the_noisy_rows_alone(batch):
    x0, mask, key = batch
    centre = 2 + 0.5 * x0
    plain, centred = _noised(batch), _noised(batch, centre=centre)
    for one, other in zip(plain[:3], centred[:3]):
        np.testing.assert_array_equal(one[:3], other[:3])
    # The noisy rows are those of the residual as x0, to the bit: the same key and operations.
    residual = _noised((x0 - centre, mask, key))
    for one, other in zip(residual[:3], centred[:3]):
        np.testing.assert_array_equal(one[3:], other[3:])
    assert np.abs(np.asarray(plain.x - centred.x))[3:].max() > 0.1
    # A gene that was not measured is 0 after the centre is taken off, not minus the centre.
    where = ~np.asarray(mask[3:] > 0)
    np.testing.assert_array_equal(np.asarray(plain.x[3:])[where], np.asarray(centred.x[3:])[where])


def test_the_likelihood_of_the_variance_leaves_the_mean_alone(batch):
    noised = _noised(batch)
    s = jax.random.normal(jax.random.key(1), (ROWS, GENES), jnp.float32)

    def total(output, s):
        return jnp.sum(denoiser.variance_losses(output, s, noised))

    by_output, by_s = jax.grad(total, argnums=(0, 1))(_output(noised), s)
    np.testing.assert_array_equal(by_output, 0)
    measured = np.asarray(noised.measured)
    np.testing.assert_array_equal(np.asarray(by_s)[~measured], 0)
    assert (np.asarray(by_s)[measured] != 0).all()
    assert (~measured).any()


def test_the_best_log_variance_is_that_of_the_mean_square(batch):
    x0, _, key = batch
    noised = _noised((x0, jnp.ones_like(x0), key), mean_fraction=1.0)
    output = _output(noised)
    r = np.asarray(output, np.float64) - np.asarray(x0, np.float64) / SIGMA_DATA
    best = jnp.asarray(np.log((r**2).mean(axis=0)), jnp.float32)[None]

    def loss(s):
        return jnp.mean(denoiser.variance_losses(output, jnp.broadcast_to(s, x0.shape), noised))

    # A sum of 12 float32 terms of size 1 that cancel.
    np.testing.assert_allclose(jax.grad(loss)(best), 0, atol=1e-6)
    assert loss(best) < min(loss(best + 0.1), loss(best - 0.1))
    # At its best it is half of 1 + s, for each gene.
    np.testing.assert_allclose(loss(best), np.mean(1 + np.asarray(best)) / 2, rtol=1e-5)


def test_a_gene_not_measured_has_no_part_in_the_likelihood(batch):
    x0, mask, _ = batch
    noised = _noised(batch)
    off = jnp.where(noised.measured, 0.0, 7.0)
    output, s = _output(noised), jax.random.normal(jax.random.key(1), (ROWS, GENES), jnp.float32)
    one = denoiser.variance_losses(output, s, noised)
    other = denoiser.variance_losses(output + off, s + off, noised)
    np.testing.assert_array_equal(one, other)
    # And the mean is over the measured ones: by hand for each row, float32 against float64.
    r = np.asarray(output - noised.target, np.float64)
    terms = 0.5 * (r**2 * np.exp(-np.asarray(s, np.float64)) + np.asarray(s, np.float64))
    by_hand = (np.asarray(mask) * terms).sum(axis=1) / np.asarray(mask).sum(axis=1)
    np.testing.assert_allclose(one, by_hand, rtol=1e-5, atol=1e-6)


def test_a_denoiser_about_a_centre_is_that_of_the_moved_gaussian(key):
    key_centre, key_x = jax.random.split(key)
    variance = jnp.asarray([[0.2, 1.0, 2.0, 0.5]], jnp.float32)
    centre = 3 * jax.random.normal(key_centre, (ROWS, GENES), jnp.float32)
    x = jax.random.normal(key_x, (ROWS, GENES), jnp.float32)
    sigma = jnp.geomspace(0.01, 50.0, ROWS, dtype=jnp.float32)

    def about_zero(x, sigma):
        return variance / (variance + sigma[:, None] ** 2) * x

    found = denoiser.centred(about_zero, centre)(x, sigma)
    noise_variance = sigma[:, None] ** 2
    # The mean of two Gaussians' product, weighed by their precisions.
    expected = (variance * x + noise_variance * centre) / (variance + noise_variance)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
