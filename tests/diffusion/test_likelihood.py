"""Log likelihood by the flow against closed forms: Gaussians, a mixture, its order, its probes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from stemjax import errors
from stemjax.diffusion import denoiser, inpaint, ladders, likelihood

GENES = 5
_FACTOR = np.random.default_rng(5).standard_normal((GENES, GENES))
MEAN = np.array([0.3, -1.0, 0.7, 0.0, 2.0])
# Correlations up to .8, variances .3 to 5.
COVARIANCE = 0.6 * _FACTOR @ _FACTOR.T + 0.1 * np.eye(GENES)


def _gaussian(x, sigma, mean=MEAN, covariance=COVARIANCE):
    """E[x0 | x] for x0 ~ N(mean, covariance), the covariance full."""
    variances, axes = np.linalg.eigh(covariance)
    mean, variances, axes = (jnp.asarray(v, x.dtype) for v in (mean[None], variances[None], axes))
    shrink = variances / (variances + sigma[:, None] ** 2)
    return mean + ((x - mean) @ axes * shrink) @ axes.T


def _flow_law(low, high, mean=MEAN, covariance=COVARIANCE):
    """What the exact flow of that Gaussian makes of N(0, high² I): a normal law at level low.

    It takes x to mean + A (x - mean), A² = (C + low²)(C + high²)^-1, all of them commuting.
    """
    variances, axes = np.linalg.eigh(covariance)
    a = axes * np.sqrt((variances + low**2) / (variances + high**2)) @ axes.T
    return stats.multivariate_normal(mean - a @ mean, high**2 * a @ a.T)


def _rungs(steps, low=0.05, high=40.0):
    """A ladder of so many steps between levels above 0, with its 0 at the end."""
    return ladders.karras(steps + 1, sigma_min=low, sigma_max=high).astype(jnp.float64)


def _profiles(rows, seed=0):
    return np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, rows)


def _keys(rows):
    return jax.random.split(jax.random.key(7), rows)


def _network(x, sigma):
    """A denoiser whose Jacobian is full and not symmetric."""
    genes = x.shape[1]
    weights = np.random.default_rng(3).standard_normal((2, genes, genes)) / math.sqrt(genes)
    a, b = (jnp.asarray(w, x.dtype) for w in weights)
    return denoiser.make_denoiser(
        lambda x, level: jnp.tanh(x @ a + level[:, None] / 1000) @ b, sigma_data=1.0
    )(x, sigma)


def test_correlated_gaussian_in_closed_form():
    x = _profiles(16)
    with jax.enable_x64(True):
        got = likelihood.log_likelihood(_gaussian, _rungs(64), jnp.asarray(x), divergence="exact")
    # 1.5e-6 at 64 steps, falling with the 4th power (see the next test); ln p is -5 to -11.
    np.testing.assert_allclose(got, _flow_law(0.05, 40.0).logpdf(x), atol=5e-6)
    # The start at 40 has no mean and no variance of the data: each row's mean is off by |MEAN| / 40
    # = .06 standard deviations, of which it is at most 3.3 away here. At 40,000 that is 2e-4, and
    # what is left is the density of x0 + sigma_min n, and not that of x0.
    blurred, sharp = (
        stats.multivariate_normal(MEAN, COVARIANCE + low**2 * np.eye(GENES)).logpdf(x)
        for low in (0.05, 0.0)
    )
    np.testing.assert_allclose(got, blurred, atol=0.2)
    np.testing.assert_allclose(_flow_law(0.05, 4e4).logpdf(x), blurred, atol=3e-4)
    assert np.abs(sharp - blurred).max() > 1e-2


def test_order_of_convergence():
    x = _profiles(8)
    with jax.enable_x64(True):
        off = [
            likelihood.log_likelihood(_gaussian, _rungs(n), jnp.asarray(x), divergence="exact")
            - _flow_law(0.05, 40.0).logpdf(x)
            for n in (16, 32, 64, 128)
        ]
    logs = np.log2(np.sqrt(np.mean(np.square(off), axis=1)))
    # Order 4; a stage in the wrong place or with the wrong weight reads 1 to 2.
    assert -np.polyfit(np.arange(4), logs, 1)[0] == pytest.approx(4.0, abs=0.4)


def test_unit_normal_data_need_one_step():
    """What the scaling of x is for: the rest of the flow is then nothing at all."""
    x = np.random.default_rng(0).standard_normal((4, 3))
    with jax.enable_x64(True):
        got = likelihood.log_likelihood(
            lambda x, sigma: x / (1 + sigma[:, None] ** 2),
            jnp.asarray([80.0, 0.01]),
            jnp.asarray(x),
            divergence="exact",
        )
    # float64, exact but for rounding.
    np.testing.assert_allclose(
        got, _flow_law(0.01, 80.0, np.zeros(3), np.eye(3)).logpdf(x), rtol=1e-12
    )


def _mixture_score_terms(x, sigma):
    weights, modes, std = np.array([0.3, 0.7]), np.array([2.0, -1.0]), 0.2
    variance = std**2 + sigma**2
    return np.log(weights), modes, variance, std


def _mixture(x, sigma):
    """E[x0 | x] of two modes on a line."""
    logs, modes, variance, std = _mixture_score_terms(x, sigma[:, None])
    near = [log - (x - mode) ** 2 / (2 * variance) for log, mode in zip(logs, modes)]
    share = jax.nn.sigmoid(near[0] - near[1])
    means = [mode + std**2 / variance * (x - mode) for mode in modes]
    return share * means[0] + (1 - share) * means[1]


def test_two_modes_integrate_to_one_and_have_their_density():
    line = np.linspace(-4.0, 5.0, 1501)
    with jax.enable_x64(True):
        got = likelihood.log_likelihood(
            _mixture,
            _rungs(200, low=0.1, high=80.0),
            jnp.asarray(line)[:, None],
            divergence="exact",
        )
    density = np.exp(got)
    # The law at sigma_max is exactly normalised and the flow one to one: what is lost is the
    # rule's error, 1e-7 at 200 steps (7e-5 at 50).
    assert np.trapezoid(density, line) == pytest.approx(1.0, abs=1e-6)
    logs, modes, variance, _ = _mixture_score_terms(None, 0.1)
    exact = sum(
        np.exp(log) * stats.norm(mode, math.sqrt(variance)).pdf(line)
        for log, mode in zip(logs, modes)
    )
    # The start without the data's mean, -.1, and variance shifts the share of a mode by some
    # .1 / 80 of a density that reaches 1.25.
    np.testing.assert_allclose(density, exact, atol=3e-3)
    assert density[np.abs(line - 0.5) < 0.1].max() < 0.01


def test_density_given_some_genes():
    """A denoiser made of derivatives is differentiated once more: the conditional law's density."""
    known, x = np.array([False, True, True, False, False]), _profiles(4)
    x[:, known] = x[0, known]
    within, across = COVARIANCE[np.ix_(known, known)], COVARIANCE[:, known]
    slope = across @ np.linalg.inv(within)
    mean, covariance = MEAN + slope @ (x[0] - MEAN)[known], COVARIANCE - slope @ across.T
    with jax.enable_x64(True):
        denoise = inpaint.given(_gaussian, jnp.asarray(x), known, method="moment")
        got = likelihood.log_likelihood(denoise, _rungs(64), jnp.asarray(x), divergence="exact")
    # Order 4, but a known gene has no variance of its own, only sigma_min's: .05 on a scale of 1.
    expected = _flow_law(0.05, 40.0, mean, np.maximum(covariance, covariance.T)).logpdf(x)
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_hutchinson_is_unbiased_and_more_probes_spread_less():
    rows, x = 2000, _profiles(1)
    with jax.enable_x64(True):
        rungs, many = _rungs(10, low=0.5), jnp.asarray(np.repeat(x, rows, axis=0))
        [exact] = likelihood.log_likelihood(_gaussian, rungs, jnp.asarray(x), divergence="exact")
        one, four = (
            np.asarray(
                likelihood.log_likelihood(
                    _gaussian, rungs, many, divergence="hutchinson", keys=_keys(rows), probes=n
                )
            )
            for n in (1, 4)
        )
        exact = float(exact)
    assert one.std() > 0.1
    # 4 standard errors.
    assert abs(one.mean() - exact) < 4 * one.std() / math.sqrt(rows)
    assert abs(four.mean() - exact) < 4 * four.std() / math.sqrt(rows)
    # A ratio of two variances of 2,000 values each, of light tails: 4 errors of 4 sqrt(4 / 2000).
    assert one.var() / four.var() == pytest.approx(4.0, abs=0.72)


def test_hutchinson_of_a_diagonal_jacobian_has_no_variance():
    with jax.enable_x64(True):
        x, rungs = jnp.asarray(_profiles(3)), _rungs(10)

        def denoise(x, sigma):
            return _gaussian(x, sigma, covariance=np.diag(np.diag(COVARIANCE)))

        exact = likelihood.log_likelihood(denoise, rungs, x, divergence="exact")
        probed = likelihood.log_likelihood(
            denoise, rungs, x, divergence="hutchinson", keys=_keys(3)
        )
    # Each sign squared is 1. Equal variances would make even a correlated law's spread vanish.
    np.testing.assert_allclose(probed, exact, rtol=1e-10)


@pytest.mark.parametrize("genes", [1, 8, 11, 19])
def test_derivatives_are_the_jacobian(key, genes):
    """For numbers of genes that fill their chunks and that do not."""
    with jax.enable_x64(True):
        x, sigma = jax.random.normal(key, (3, genes), jnp.float64), jnp.asarray([0.1, 1.0, 9.0])
        denoised, columns = likelihood.derivatives(
            _network,
            x,
            sigma,
            count=genes,
            direction=lambda gene: jnp.zeros_like(x).at[:, gene].set(1),
            keep=lambda _, slope: slope,
        )
        expected = jax.vmap(jax.jacfwd(lambda x, s: _network(x[None], s[None])[0]))(x, sigma)
        np.testing.assert_allclose(denoised, _network(x, sigma), rtol=1e-12)
        np.testing.assert_allclose(columns, jnp.moveaxis(expected, 2, 0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_a_row_is_the_same_in_any_company(divergence):
    x, keys = np.random.default_rng(1).standard_normal((6, 11)).astype(np.float32), _keys(6)

    def of(rows):
        rows = np.array(rows)
        return np.asarray(
            likelihood.log_likelihood(
                _network,
                ladders.karras(9),
                jnp.asarray(x[rows]),
                divergence=divergence,
                keys=keys[rows],
                probes=2,
            )
        )

    everyone = of(range(6))
    # Rounding: terms of ln p are up to 11 ln 40,000 = 117, at 1e-7 each, over 32 stages.
    np.testing.assert_allclose(of([4, 1]), everyone[[4, 1]], atol=1e-4)
    assert np.diff(np.sort(everyone)).min() > 1e-2


def test_probes_are_a_function_of_the_rows_key():
    x = jnp.zeros((4, 11), jnp.float32)
    keys = _keys(3)[np.array([0, 1, 0, 2])]
    got = np.asarray(
        likelihood.log_likelihood(
            _network, ladders.karras(5), x, divergence="hutchinson", keys=keys
        )
    )
    # The same profile and key give the same number, to rounding; other keys give others.
    np.testing.assert_allclose(got[0], got[2], atol=1e-4)
    assert np.abs(got[[1, 3]] - got[0]).min() > 1e-2


def test_float32_follows_float64():
    x = np.random.default_rng(1).standard_normal((6, 40))
    rungs = ladders.karras(13)
    coarse = likelihood.log_likelihood(
        _network, rungs, jnp.asarray(x, jnp.float32), divergence="exact"
    )
    assert coarse.dtype == jnp.float32
    with jax.enable_x64(True):
        fine = likelihood.log_likelihood(_network, rungs, jnp.asarray(x), divergence="exact")
    assert fine.dtype == jnp.float64
    # 1e-7 of 40 ln 40,000 = 424 is 4e-5, and a few such roundings; measured 2e-5.
    np.testing.assert_allclose(coarse, fine, atol=2e-4)


def test_the_rung_at_zero_is_passed_over_and_costs_nothing():
    visited = []

    def counted(x, sigma):
        jax.debug.callback(lambda s: visited.append(float(s[0])), sigma)
        return _network(x, sigma)

    x, rungs = jnp.ones((2, 11), jnp.float32), ladders.karras(4, sigma_min=0.1, sigma_max=10.0)
    plain = likelihood.log_likelihood(_network, rungs[:-1], x, divergence="exact")

    # The ladder as a traced array takes the same way; each compiled apart, to rounding.
    traced = jax.jit(
        lambda rungs, x: likelihood.log_likelihood(counted, rungs, x, divergence="exact")
    )(rungs, x)
    jax.block_until_ready(traced)
    jax.effects_barrier()
    np.testing.assert_allclose(traced, plain, rtol=1e-5)
    assert min(visited) == pytest.approx(0.1)
    assert max(visited) == pytest.approx(10.0)
    # 3 steps of 4 stages, each in 2 chunks of directions that share one value of the network.
    assert len(visited) == 3 * 4 * 2
    for ladder in (rungs, rungs[:-1]):
        # 3 steps, 4 stages, 11 or 2 derivatives at two evaluations each.
        assert likelihood.evaluations(ladder, "exact", genes=11) == 3 * 4 * 11 * 2
        assert likelihood.evaluations(ladder, "hutchinson", genes=11, probes=2) == 3 * 4 * 2 * 2


def test_half_precision_is_computed_in_float32():
    x = jnp.ones((2, 3), jnp.bfloat16)
    got = likelihood.log_likelihood(_network, ladders.karras(4), x, divergence="exact")
    assert got.dtype == jnp.float32


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("divergence", {"divergence": "skilling"}),
        ("probes", {"divergence": "hutchinson", "probes": 0}),
        ("keys", {"divergence": "hutchinson", "keys": None}),
        ("keys", {"divergence": "hutchinson", "keys": "three"}),
        ("ladder", {"rungs": [3.0, 0.0]}),
        ("ladder", {"rungs": [1.0, 2.0, 0.0]}),
        ("ladder", {"rungs": [2.0, 1.0, -1.0]}),
        ("ladder", {"rungs": [2.0, 0.0, 0.0]}),
        ("ladder", {"rungs": [np.inf, 1.0]}),
        ("ladder", {"rungs": [2.0, np.nan, 1.0]}),
    ],
)
def test_what_cannot_work_is_named(match, change):
    arguments = {"divergence": "exact", "rungs": [2.0, 1.0], "keys": "two", "probes": 1} | change
    rungs = jnp.asarray(arguments.pop("rungs"), jnp.float32)
    keys = {"two": _keys(2), "three": _keys(3), None: None}[arguments.pop("keys")]
    with pytest.raises(errors.ConfigError, match=match):
        likelihood.log_likelihood(
            _network, rungs, jnp.ones((2, 3), jnp.float32), keys=keys, **arguments
        )
