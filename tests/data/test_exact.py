"""The exact denoiser of the drawn law against its moments, a sum written out anew, and draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from stemjax import errors
from stemjax.data import exact, synthetic, transforms

LAW = synthetic.Law(n_genes=3, seed=4)


def _states(n: int) -> np.ndarray:
    return np.random.default_rng(n).uniform(0.05, 0.95, (n, 4))


def _space(law: synthetic.Law) -> transforms.Standardisation:
    z = _states(40)
    mean, variance = law.conditional_mean(z), law.conditional_variance(z)
    return transforms.Standardisation(
        mean=mean.mean(axis=0), std=np.sqrt(variance.mean(axis=0) + mean.var(axis=0))
    )


def _denoise(law, z, x, sigma, repeat=1):
    run = jax.jit(exact.exact_denoiser(law, z, space=_space(law), repeat=repeat))
    return np.asarray(run(jnp.asarray(x, jnp.float32), jnp.asarray(sigma, jnp.float32)))


def _written_out(law, z, x, sigma):
    """E[x0 | x] of one spot, float64: a loop over modes and Gauss-Hermite depths, and count lists.

    The law as its docstring has it: a gene is lost, and its count 0, with its dropout.
    """
    own, space = law.coefficients, _space(law)
    between = synthetic.log_rates(law, z[None])[0]
    depths, weights = special.roots_hermitenorm(64) if law.depth_std else (np.zeros(1), np.ones(1))
    count = np.arange(600)
    values = (np.log2(count + 1)[:, None] - space.mean.astype(float)) / space.std.astype(float)
    odds = np.exp(-((x - values) ** 2) / (2 * sigma**2))  # [k g]
    total, weighted = 0.0, np.zeros(len(x))
    for mode in (-0.5, 0.5):
        for depth, weight in zip(depths, weights):
            rate = np.exp(between + mode * own.switch + law.depth_std * depth)
            p = (1 - own.dropout) * stats.poisson.pmf(count[:, None], rate[None])
            p[0] += own.dropout
            each = (odds * p).sum(axis=0)
            joint = weight * np.prod(each)
            total += joint
            weighted += joint * (odds * p * values).sum(axis=0) / each
    return weighted / total


@pytest.mark.parametrize("law", [LAW, synthetic.Law(), synthetic.Law(n_genes=3, depth_std=0.0)])
def test_at_infinite_noise_it_is_the_conditional_mean(law):
    z, space = _states(7), _space(law)
    x = np.random.default_rng(0).standard_normal((7, law.n_genes))
    found = _denoise(law, z, x, np.full(7, np.inf))
    expected = (law.conditional_mean(z) - space.mean) / space.std
    # As documented: 1e-4 of a gene's standard deviation, float32 sums over 100 counts.
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found, _denoise(law, z, 0 * x, np.full(7, np.inf)))


@pytest.mark.parametrize("depth_std", [0.3, 0.0])
@pytest.mark.parametrize("sigma", [0.15, 0.7, 3.0])
def test_it_is_the_sum_over_modes_depths_and_counts(depth_std, sigma):
    law = synthetic.Law(n_genes=3, seed=4, depth_std=depth_std)
    z, rng, space = _states(4), np.random.default_rng(1), _space(law)
    x0 = space.apply(law.sample_values(z, 1, rng)[0])
    x = (x0 + sigma * rng.standard_normal(x0.shape)).astype(np.float32)
    found = _denoise(law, z, x, np.full(4, sigma))
    expected = np.stack([_written_out(law, *row, sigma) for row in zip(z, x.astype(float))])
    # As documented; both quadratures of the depth are good to 1e-6 with three genes.
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_genes_tell_of_each_other():
    # Nodes and not genes are independent: a gene's mean follows what another one shows of the mode.
    z, x = _states(1), np.zeros((1, 3))
    moved = x + np.array([[0.0, 1.0, 0.0]])
    one, other = (_denoise(LAW, z, value, np.full(1, 0.5)) for value in (x, moved))
    assert np.abs(one - other)[0, [0, 2]].max() > 0.02


def test_its_error_is_orthogonal_to_all_that_x_tells():
    law, n, sigma = synthetic.Law(n_genes=6), 4000, 0.6
    z, rng, space = _states(2), np.random.default_rng(3), _space(law)
    x0 = space.apply(law.sample_values(z, n, rng)).swapaxes(0, 1).reshape(2 * n, 6)
    x = (x0 + sigma * rng.standard_normal(x0.shape)).astype(np.float32)
    error = x0 - _denoise(law, z, x, np.full(2 * n, sigma), repeat=n)
    for name, f in {
        "one": np.ones_like(x),
        "x": x,
        "neighbour": np.roll(np.tanh(x), 1, axis=1),
        "d": x0 - error,
    }.items():
        products = (error * f).reshape(2, n, 6)
        share = products.mean(axis=1) / (products.std(axis=1) / np.sqrt(n))
        # 48 numbers in all, each of unit normal law: 4 standard errors.
        assert np.abs(share).max() < 4, name
    # And it does better than the best that knows each gene alone, x's own linear share.
    linear = x0 - x * (x0 * x).mean(axis=0) / (x * x).mean(axis=0)
    assert (error**2).mean() < (linear**2).mean()


def test_repeated_rows_are_spot_major():
    z, rng = _states(3), np.random.default_rng(5)
    x, sigma = rng.standard_normal((6, 3)), np.geomspace(0.1, 5, 6)
    both = _denoise(LAW, z, x, sigma, repeat=2)
    for row in range(6):
        alone = _denoise(LAW, z[row // 2][None], x[row][None], sigma[row][None])
        # Tables of other lengths, since each stops at its own highest count: float32 sums.
        np.testing.assert_allclose(both[row], alone[0], atol=1e-5)
    assert np.abs(both - _denoise(LAW, z[[0, 1, 2, 0, 1, 2]], x, sigma)).max() > 0.05


def test_with_little_noise_it_is_the_nearest_count():
    z, space = _states(4), _space(LAW)
    x0 = space.apply(LAW.sample_values(z, 1, np.random.default_rng(2))[0])
    # Counts here stay below 60, whose neighbours are .02 of log2 apart and more.
    np.testing.assert_allclose(_denoise(LAW, z, x0, np.full(4, 1e-3)), x0, atol=1e-4)


def test_states_out_of_range_are_refused():
    with pytest.raises(errors.ConfigError, match="states"):
        exact.exact_denoiser(LAW, np.full((1, 4), 1.5), space=_space(LAW))
