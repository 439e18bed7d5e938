"""Known genes against the exact conditional of a Gaussian, a mixture's modes, and their costs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax import errors
from stemjax.diffusion import denoiser, inpaint, ladders, rules, sampler

GENES = 6
_FACTOR = np.random.default_rng(11).standard_normal((GENES, 4))
# Correlations of either sign, up to .9; variances .3 to 3.
COVARIANCE = 0.5 * _FACTOR @ _FACTOR.T + 0.15 * np.eye(GENES)
MEAN = np.array([0.5, -1.0, 0.0, 2.0, 0.3, -0.4])
TWO = np.array([False, True, False, False, True, False])
THREE = np.array([True, True, False, False, False, True])


def _gaussian(x, sigma, mean=MEAN, covariance=COVARIANCE):
    """E[x0 | x] for x0 ~ N(mean, covariance), the covariance full."""
    variances, axes = np.linalg.eigh(covariance)
    mean, variances, axes = (jnp.asarray(v, x.dtype) for v in (mean[None], variances[None], axes))
    shrink = variances / (variances + sigma[:, None] ** 2)
    return mean + ((x - mean) @ axes * shrink) @ axes.T


def _conditional(known, values, noise=0.0):
    """Mean [b u] and covariance [u u] of the unknown genes given values [b k] plus noise."""
    across = COVARIANCE[np.ix_(~known, known)]
    within = COVARIANCE[np.ix_(known, known)] + noise * np.eye(known.sum())
    slope = across @ np.linalg.inv(within)
    mean = MEAN[~known] + (values - MEAN[known]) @ slope.T
    return mean, COVARIANCE[np.ix_(~known, ~known)] - slope @ across.T


def _conditional_denoiser(known, values, x, sigma, noise=0.0):
    """E[x0 | x, the known values] of the unknown genes, one row and level, in closed form.

    By Bayes' rule on the joint law of x0, x and the values; the known part of x says something
    only where the values themselves carry noise.
    """
    observe = np.concatenate([np.eye(GENES), np.eye(GENES)[known]])
    spread = np.diag(np.concatenate([np.full(GENES, sigma**2), np.full(known.sum(), noise)]))
    gain = COVARIANCE @ observe.T @ np.linalg.inv(observe @ COVARIANCE @ observe.T + spread)
    return (MEAN + gain @ (np.concatenate([x, values]) - observe @ MEAN))[~known]


def _run(denoise, values, known, x, sigma, **options):
    """`inpaint.given` and one call of it, compiled."""
    given = inpaint.given(denoise, jnp.asarray(values), known, **options)
    return np.asarray(jax.jit(given)(jnp.asarray(x), jnp.asarray(sigma)))


def _states(dtype=np.float64):
    """Six rows of noised profiles at their levels, and a profile of values for each."""
    rng = np.random.default_rng(2)
    sigma = np.array([0.02, 0.2, 0.7, 2.0, 9.0, 80.0])
    x0 = rng.multivariate_normal(MEAN, COVARIANCE, 6)
    x = x0 + sigma[:, None] * rng.standard_normal((6, GENES))
    return x.astype(dtype), sigma.astype(dtype), (x0 + 0.5).astype(dtype)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("known", [TWO, THREE], ids=["two", "three"])
def test_moment_is_the_exact_conditional_denoiser(known, noise):
    x, sigma, values = _states()
    with jax.enable_x64(True):
        got = _run(_gaussian, values, known, x, sigma, method="moment", ridge=noise)
    expected = [
        _conditional_denoiser(known, v[known], row, level, noise)
        for row, level, v in zip(x, sigma, values)
    ]
    # float64; the jitter of 10 eps of a trace, times a condition number of some tens.
    np.testing.assert_allclose(got[:, ~known], expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(got[:, known], values[:, known])
    # What is compared is far from the plain denoiser.
    with jax.enable_x64(True):
        plain = np.asarray(_gaussian(jnp.asarray(x), jnp.asarray(sigma)))
    assert np.abs(got - plain)[2:, ~known].max(axis=1).min() > 0.05


def test_moment_in_float32():
    x, sigma, values = _states(np.float32)
    got = _run(_gaussian, values, THREE, x, sigma, method="moment")
    assert got.dtype == np.float32
    expected = [
        _conditional_denoiser(THREE, v[THREE], row, level)
        for row, level, v in zip(*(a.astype(np.float64) for a in (x, sigma, values)))
    ]
    # eps = 1.2e-7 times 10 for the jitter, 3 for the trace, and a condition number of some tens.
    np.testing.assert_allclose(got[:, ~THREE], expected, atol=1e-4)
    np.testing.assert_array_equal(got[:, THREE], values[:, THREE])


def _draws(known, method, *, spots=2000, antithetic=False, n_draws=2):
    """Draws [n l g] at one profile of values, and those values."""
    values = (MEAN + np.array([1.0, -1.0, 0.5, 1.5, 1.2, -0.8])).astype(np.float32)
    rows = jnp.asarray(np.broadcast_to(values, (spots * n_draws, GENES)))
    draws = sampler.draw(
        inpaint.given(_gaussian, rows, known, method=method),
        ladders.karras(48, sigma_min=0.01),
        jax.random.split(jax.random.key(4), spots),
        rule=rules.DpmSolverPP2M(),
        genes=GENES,
        n_draws=n_draws,
        antithetic=antithetic,
    )
    return np.asarray(draws, np.float64), values


@pytest.mark.parametrize("known", [TWO, THREE], ids=["two", "three"])
def test_draws_have_the_conditional_law(known):
    draws, values = _draws(known, "moment")
    draws = draws.reshape(-1, GENES)
    # Known entries to rounding: the last step returns D itself.
    np.testing.assert_array_equal(draws[:, known], np.broadcast_to(values, draws.shape)[:, known])
    mean, covariance = _conditional(known, values[known])
    free, rows, std = draws[:, ~known], len(draws), np.sqrt(np.diag(covariance))
    # 4 standard errors of 4,000 rows, and what the start at 80 and 48 steps leave: mean / 80
    # standard deviations.
    assert (np.abs(free.mean(axis=0) - mean) < 4 * std / math.sqrt(rows) + 0.03 * std).all()
    bound = 4 * np.sqrt((np.outer(std, std) ** 2 + covariance**2) / rows)
    assert (np.abs(np.cov(free.T) - covariance) < bound + 0.01 * np.outer(std, std)).all()
    # The unconditional law is far outside.
    assert np.abs(MEAN[~known] - mean).max() > 0.3
    assert (np.diag(COVARIANCE)[~known] / np.diag(covariance)).max() > 1.5


def test_antithetic_pairs_of_a_gaussian_cancel_to_its_conditional_mean():
    draws, values = _draws(TWO, "moment", spots=20, antithetic=True)
    mean, _ = _conditional(TWO, values[TWO])
    # A Gaussian's flow is affine in the noise, so the mean of each pair is that of the start, 0,
    # carried along: the solver's error and mean / 80 are all that is left.
    expected = np.broadcast_to(mean, (20, GENES - 2))
    np.testing.assert_allclose(draws.mean(axis=0)[:, ~TWO], expected, atol=0.05)
    assert (draws.std(axis=(0, 1))[~TWO] > 0.2).all()


def test_replacement_is_biased_as_stated_and_moment_is_not():
    """Two genes, unit variance: the docstring's numbers by draws, and moment beside them."""

    def drawn(correlation, method, spots=4000):
        covariance = np.array([[1.0, correlation], [correlation, 1.0]])
        draws = sampler.draw(
            inpaint.given(
                lambda x, sigma: _gaussian(x, sigma, np.zeros(2), covariance),
                jnp.ones((spots * 2, 2), jnp.float32),
                np.array([True, False]),
                method=method,
            ),
            ladders.karras(48),
            jax.random.split(jax.random.key(4), spots),
            rule=rules.DpmSolverPP2M(),
            genes=2,
            n_draws=2,
            antithetic=True,
        )
        free = np.asarray(draws, np.float64)[..., 1]
        return free.mean() / correlation, free.var() / (1 - correlation**2)

    stated = {0.3: (0.34, 1.06), 0.6: (0.37, 1.3), 0.9: (0.49, 2.8), 0.99: (0.69, 10.4)}
    for correlation, (share, ratio) in stated.items():
        got, moment = (drawn(correlation, method) for method in ("replacement", "moment"))
        # The mean of pairs has no sampling error; the variance of 4,000 pairs has 2.2 %.
        assert got[0] == pytest.approx(share, abs=0.02)
        assert got[1] == pytest.approx(ratio, rel=0.1)
        assert moment[0] == pytest.approx(1.0, abs=0.02)
        assert moment[1] == pytest.approx(1.0, rel=0.1)
        assert abs(moment[0] - 1) < abs(got[0] - 1) / 10


def _mixture(x, sigma, weights=(0.3, 0.7), std=0.3):
    """E[x0 | x] of two modes in 3 genes; the first gene tells them apart, so do the others."""
    modes = jnp.asarray([[2.0, 1.5, -1.0], [-1.0, -1.5, 1.0]], x.dtype)
    variance = std**2 + sigma[:, None] ** 2
    distance = [jnp.sum((x - m[None]) ** 2, axis=1, keepdims=True) / (2 * variance) for m in modes]
    share = jax.nn.sigmoid(math.log(weights[0] / weights[1]) - distance[0] + distance[1])
    means = [m[None] + std**2 / variance * (x - m[None]) for m in modes]
    return share * means[0] + (1 - share) * means[1]


def _share_of_the_rare_mode(denoise, spots=1000):
    draws = sampler.draw(
        denoise,
        ladders.karras(48),
        jax.random.split(jax.random.key(9), spots),
        rule=rules.DpmSolverPP2M(),
        genes=3,
        n_draws=1,
        antithetic=False,
    )
    points = np.asarray(draws)[0, :, 1:]
    near = [np.abs(points - mode).max(axis=1) < 1.0 for mode in ([1.5, -1.0], [-1.5, 1.0])]
    return near[0].mean(), near[1].mean()


def test_a_known_gene_tells_the_mode():
    values = jnp.broadcast_to(jnp.asarray([2.0, jnp.nan, jnp.nan], jnp.float32), (1000, 3))
    known = np.array([True, False, False])
    prior = _share_of_the_rare_mode(_mixture)
    assert prior[0] == pytest.approx(0.3, abs=0.06)
    assert prior[1] == pytest.approx(0.7, abs=0.06)
    told = _share_of_the_rare_mode(inpaint.given(_mixture, values, known, method="moment"))
    assert told[0] > 0.95
    replaced = _share_of_the_rare_mode(inpaint.given(_mixture, values, known, method="replacement"))
    assert 0.3 < replaced[0] < told[0]


@pytest.mark.parametrize("method", ["replacement", "moment"])
def test_what_stands_in_unknown_places_is_ignored(method):
    x, sigma, values = _states(np.float32)
    got = _run(_gaussian, values, TWO, x, sigma, method=method)
    for junk in (np.nan, np.inf, 1e30):
        held = np.where(TWO, values, np.float32(junk))
        other = _run(_gaussian, held, TWO, x, sigma, method=method)
        np.testing.assert_array_equal(other, got)


def test_replacement_overwrites_and_leaves_the_rest():
    x, sigma, values = (jnp.asarray(a) for a in _states(np.float32))
    got = inpaint.given(_gaussian, values, TWO, method="replacement")(x, sigma)
    np.testing.assert_array_equal(got, np.where(TWO, values, _gaussian(x, sigma)))


@pytest.mark.parametrize("method", ["replacement", "moment"])
def test_rows_that_know_different_genes(method):
    """Each as if alone, and a row that knows nothing gets the plain denoiser."""
    x, sigma, values = _states()
    known = np.stack([TWO, THREE, ~TWO, np.zeros(GENES, bool), np.ones(GENES, bool), TWO])
    with jax.enable_x64(True):
        got = _run(_gaussian, np.where(known, values, np.nan), known, x, sigma, method=method)
        for row in (0, 1, 2, 5):
            one = slice(row, row + 1)
            alone = _run(_gaussian, values[one], known[row], x[one], sigma[one], method=method)
            # float64; the jitter knows the same trace in both.
            np.testing.assert_allclose(got[one], alone, rtol=1e-9, atol=1e-11)
        plain = _gaussian(jnp.asarray(x), jnp.asarray(sigma))
        np.testing.assert_allclose(got[3], plain[3], rtol=1e-12)
    np.testing.assert_array_equal(got[4], values[4])


def _network(x, sigma):
    """A denoiser that no law has: its slopes are neither symmetric nor positive."""
    a, b = (
        jnp.asarray(np.random.default_rng(s).standard_normal((GENES, GENES)), x.dtype)
        for s in (0, 1)
    )
    return denoiser.make_denoiser(lambda x, level: jnp.tanh(x @ a) @ b, sigma_data=1.0)(x, sigma)


def test_a_slope_that_is_no_covariance_does_no_harm(key):
    x = 80.0 * jax.random.normal(key, (200, GENES), jnp.float32)
    values, sigma = jnp.zeros((200, GENES), jnp.float32), np.ones(200, np.float32)
    # The slope is -1 everywhere: Cholesky fails, and the damped pull is the residual at most.
    for slope in (-1.0, -1e-6):
        got = _run(lambda x, _, slope=slope: slope * x, values, THREE, x, sigma, method="moment")
        assert np.isfinite(got).all()
        assert (np.abs(got) <= 2 * np.abs(slope * np.asarray(x)).max()).all()
    draws = sampler.draw(
        inpaint.given(_network, values, THREE, method="moment", ridge=0.1),
        ladders.karras(16),
        jax.random.split(jax.random.key(4), 200),
        rule=rules.DpmSolverPP2M(),
        genes=GENES,
        n_draws=1,
        antithetic=False,
    )
    assert np.isfinite(draws).all()


def test_error_in_the_slope_does_not_throw_draws_off():
    """The docstring's numbers: an exact D plus a small network, whose slope is no covariance."""
    genes, spots, rng = 40, 300, np.random.default_rng(0)
    factor, known = rng.standard_normal((genes, 5)), np.arange(genes) < 15
    covariance = 0.14 * factor @ factor.T + 0.3 * np.eye(genes)
    a, b = (rng.standard_normal((genes, genes)).astype(np.float32) / 6.3 for _ in range(2))
    values = rng.multivariate_normal(np.zeros(genes), covariance, spots)
    slope = covariance[:, known] @ np.linalg.inv(covariance[np.ix_(known, known)])
    rows = jnp.asarray(np.repeat(values, 2, axis=0), jnp.float32)

    def wrong(x, sigma):
        scale = jnp.hypot(jnp.ones_like(sigma), sigma)[:, None]
        error = jnp.tanh(2 * x / scale @ a) @ b * (sigma[:, None] / scale)
        return _gaussian(x, sigma, np.zeros(genes), covariance) + 0.1 * error

    def off(method):
        draws = sampler.draw(
            inpaint.given(wrong, rows, known, method=method),
            ladders.karras(32),
            jax.random.split(jax.random.key(1), spots),
            rule=rules.DpmSolverPP2M(),
            genes=genes,
            n_draws=2,
            antithetic=True,
        )
        error = (draws.mean(axis=0) - values[:, known] @ slope.T)[:, ~known]
        return np.sqrt(np.mean(np.square(error)))

    # .18 against .38 where what is not symmetric is taken for slope, and .46.
    assert off("moment") < 0.25
    assert off("replacement") > 0.4


@pytest.mark.parametrize("sigma", [0.0, 1e-3, 1e4, np.inf])
def test_levels_at_the_ends_stay_finite(sigma):
    x, _, values = (jnp.asarray(a) for a in _states(np.float32))
    denoise = denoiser.make_denoiser(lambda x, level: jnp.sin(x), sigma_data=1.0)
    for ridge in (0.0, 0.1):
        given = inpaint.given(denoise, values, TWO, method="moment", ridge=ridge)
        got = jax.jit(given)(x, jnp.full(6, sigma, jnp.float32))
        assert np.isfinite(got).all()
    # A D that does not move has no slope to go by.
    given = inpaint.given(lambda x, s: jnp.full_like(x, 3.0), values, TWO, method="moment")
    got = jax.jit(given)(x, jnp.full(6, sigma, jnp.float32))
    np.testing.assert_array_equal(got, np.where(TWO, values, 3.0))


@pytest.mark.parametrize("method", ["replacement", "moment"])
def test_a_row_is_the_same_in_any_company(method):
    x, sigma, values = _states(np.float32)

    def of(rows):
        return _run(_gaussian, values[rows], THREE, x[rows], sigma[rows], method=method)

    everyone = of(np.arange(6))
    # Rounding, of states up to 200.
    np.testing.assert_allclose(of(np.array([4, 1])), everyone[[4, 1]], atol=1e-4)
    np.testing.assert_allclose(of(np.array([3])), everyone[[3]], atol=1e-4)


def test_the_cost_is_as_stated():
    runs = []

    def counted(x, sigma):
        jax.debug.callback(lambda _: runs.append(None), sigma[0])
        return _gaussian(x, sigma)

    x, sigma, values = (jnp.asarray(a) for a in _states(np.float32))
    either = np.stack([TWO, THREE, TWO, THREE, TWO, THREE])
    for known, method, stated, count in (
        (TWO, "replacement", 1, 1),
        (TWO, "moment", 4, 1),
        (THREE, "moment", 6, 1),
        # Genes 1 and 4, and 0, 1 and 5: four in all.
        (either, "moment", 8, 1),
    ):
        runs.clear()
        _run(counted, values, known, x, sigma, method=method)
        jax.effects_barrier()
        assert inpaint.evaluations_per_call(known, method) == stated
        # Derivatives taken at once share one value of the network: stated is an upper bound.
        assert len(runs) == count


def test_values_may_be_traced():
    x, sigma, values = (jnp.asarray(a) for a in _states(np.float32))
    inside = jax.jit(lambda v: inpaint.given(_gaussian, v, TWO, method="moment")(x, sigma))(values)
    outside = inpaint.given(_gaussian, values, TWO, method="moment")(x, sigma)
    # Compiled apart, of states up to 200.
    np.testing.assert_allclose(inside, outside, atol=1e-4)


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("method", {"method": "repaint"}),
        ("none known", {"known": np.zeros(GENES, bool)}),
        ("all known", {"known": np.ones((4, GENES), bool)}),
        ("shape", {"known": np.stack([TWO, TWO])}),
        ("bool", {"known": TWO.astype(int)}),
        ("bool", {"known": TWO.tolist()}),
        ("row 2, gene 4", {"values": (2, 4, np.nan)}),
        ("finite", {"values": (0, 1, np.inf)}),
        ("ridge", {"ridge": -1.0}),
        ("ridge", {"ridge": np.nan}),
    ],
)
def test_what_cannot_work_is_named(match, change):
    arguments = {"known": TWO, "method": "moment"} | change
    values = np.zeros((4, GENES), np.float32)
    if "values" in change:
        row, gene, number = arguments.pop("values")
        values[row, gene] = number
    with pytest.raises(errors.ConfigError, match=match):
        inpaint.given(_gaussian, jnp.asarray(values), **arguments)


@pytest.mark.parametrize("method", ["replacement", "moment"])
def test_a_state_of_other_shape_is_named(method):
    denoise = inpaint.given(_gaussian, jnp.zeros((4, GENES), jnp.float32), TWO, method=method)
    with pytest.raises(errors.ConfigError, match="shape of the state"):
        denoise(jnp.zeros((8, GENES), jnp.float32), jnp.ones(8, jnp.float32))
    with pytest.raises(errors.ConfigError, match="method"):
        inpaint.evaluations_per_call(TWO, "both")
