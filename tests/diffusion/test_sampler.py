"""Samplers against closed forms: order, oracle, published steps, marginals, modes, pairs."""

from __future__ import annotations

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax import errors
from stemjax.diffusion import ladders, rules, sampler

RULES = [rules.Ddim(), rules.Heun(), rules.DpmSolverPP2M()]
ALL_RULES = [*RULES, rules.Ddim(eta=1.0)]
MEAN, VARIANCE = np.array([0.3, -1.0, 0.7]), np.array([0.25, 1.0, 4.0])


def _gaussian(x, sigma, mean=MEAN, variance=VARIANCE):
    """E[x0 | x] for x0 ~ N(mean, variance), gene by gene."""
    mean, variance = (
        jnp.asarray(np.broadcast_to(v, (1, x.shape[1])), x.dtype) for v in (mean, variance)
    )
    return mean + variance / (variance + sigma[:, None] ** 2) * (x - mean)


def _gaussian_flow(x, sigma, sigma_end=0.0):
    """Where the probability-flow ODE of the same data takes x from sigma to sigma_end."""
    shrink = np.sqrt((VARIANCE + sigma_end**2) / (VARIANCE + sigma**2))
    return MEAN + (np.asarray(x) - MEAN) * shrink


def _mixture(x, sigma, weights=(0.3, 0.7), modes=(2.0, -1.0), std=0.3):
    """E[x0 | x] for two modes on a diagonal of gene space."""
    variance = std**2 + sigma[:, None] ** 2
    distance = [jnp.sum((x - m) ** 2, axis=1, keepdims=True) / (2 * variance) for m in modes]
    share = jax.nn.sigmoid(jnp.log(weights[0] / weights[1]) - distance[0] + distance[1])
    means = [m + std**2 / variance * (x - m) for m in modes]
    return share * means[0] + (1 - share) * means[1]


def _start(key, sigma, rows, genes, dtype=jnp.float64):
    return sigma * jax.random.normal(key, (rows, genes), dtype)


def _keys(rows):
    return jax.random.split(jax.random.key(7), rows)


def _error(rule, steps, x):
    # The smallest rung is far below the data's scale: at .1 the last jump would swamp the order.
    rungs = ladders.karras(steps, sigma_min=1e-4, sigma_max=10.0).astype(jnp.float64)
    got = sampler.sample(_gaussian, rungs, x, _keys(len(x)), rule=rule)
    return np.sqrt(np.mean((got - _gaussian_flow(x, 10.0)) ** 2))


@pytest.mark.parametrize(
    ("rule", "order"), list(zip(RULES, [1.0, 2.0, 2.0])), ids=["ddim", "heun", "dpmpp2m"]
)
def test_order_of_convergence(key, rule, order):
    with jax.enable_x64(True):
        x = _start(key, 10.0, 32, 3)
        logs = np.log2([_error(rule, steps, x) for steps in (16, 32, 64, 128)])
    slope = -np.polyfit(np.arange(4), logs, 1)[0]
    # Mutants of a second-order rule (wrong divisor, old level, no average) read 1.0 to 1.25.
    assert slope == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("rule", [rules.Heun(), rules.DpmSolverPP2M()], ids=["heun", "2m"])
def test_agrees_with_diffrax(key, rule):
    """Tsit5 on dx/dsigma = (x - D) / sigma at tight tolerance is the oracle."""
    with jax.enable_x64(True):
        x = _start(key, 20.0, 16, 2)
        rungs = ladders.karras(400, sigma_min=1e-3, sigma_max=20.0).astype(jnp.float64)[:-1]

        def slope(sigma, x, args):
            return (x - _mixture(x, jnp.broadcast_to(sigma, x.shape[:1]))) / sigma

        oracle = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            diffrax.Tsit5(),
            t0=float(rungs[0]),
            t1=float(rungs[-1]),
            dt0=None,
            y0=x,
            stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-9),
            max_steps=20_000,
        ).ys[0]
        # The ladder stops above zero here, so x is compared at that rung.
        got = sampler.sample(_mixture, rungs, x, _keys(16), rule=rule)
        # Second order, 400 steps over ln(20 / .001) = 9.9: (9.9 / 400)^2 = 6e-4 of unit scale,
        # times the rule's constant of about 1 / 12.
        np.testing.assert_allclose(got, oracle, atol=2e-4)
        # What is compared is not trivial: both modes are reached.
        assert (oracle > 1.5).any()
        assert (oracle < -0.5).any()


@pytest.mark.parametrize("rule", RULES, ids=["ddim", "heun", "dpmpp2m"])
def test_stops_at_the_last_rung(key, rule):
    with jax.enable_x64(True):
        x = _start(key, 10.0, 32, 3)
        rungs = ladders.karras(801, sigma_min=0.5, sigma_max=10.0).astype(jnp.float64)[:-1]
        got = sampler.sample(_gaussian, rungs, x, _keys(32), rule=rule)
    # 800 steps of ln 20 / 800 = .004 each, on a state of unit scale: .004 in first order (Euler),
    # .004^2 = 1.6e-5 in second.
    atol = 0.01 if isinstance(rule, rules.Ddim) else 3e-5
    np.testing.assert_allclose(got, _gaussian_flow(x, 10.0, 0.5), atol=atol)


@pytest.mark.parametrize("rule", ALL_RULES, ids=["ddim", "heun", "dpmpp2m", "ancestral"])
def test_last_step_returns_the_denoised_estimate(key, rule):
    x = _start(key, 3.0, 5, 3, jnp.float32)
    rungs = jnp.asarray([3.0, 0.0], jnp.float32)
    got = sampler.sample(_gaussian, rungs, x, _keys(5), rule=rule)
    # The same float32 formula, compiled apart.
    np.testing.assert_allclose(got, _gaussian(x, jnp.full(5, 3.0, jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=["ddim", "heun", "dpmpp2m"])
def test_float32_state_follows_float64(key, rule):
    rungs = ladders.karras(18)
    with jax.enable_x64(True):
        x = _start(key, 80.0, 32, 3)
        fine = sampler.sample(_gaussian, rungs.astype(jnp.float64), x, _keys(32), rule=rule)
    coarse = sampler.sample(_gaussian, rungs, jnp.asarray(x, jnp.float32), _keys(32), rule=rule)
    # x starts near 200, where float32 resolves 1e-5; the flow contracts that by 20 or more.
    np.testing.assert_allclose(coarse, fine, atol=1e-5)


# --- DDIM ---


def _euler(denoise, rungs, x):
    """Euler's rule on dx/dsigma = (x - D) / sigma, written out."""
    for sigma, sigma_next in zip(rungs[:-1], rungs[1:]):
        d = (x - denoise(x, jnp.full(x.shape[0], sigma))) / sigma
        x = x + (sigma_next - sigma) * d
    return x


def test_ddim_without_noise_is_euler(key):
    with jax.enable_x64(True):
        x = _start(key, 80.0, 16, 2)
        rungs = ladders.karras(12).astype(jnp.float64)
        got = sampler.sample(_mixture, rungs, x, _keys(16), rule=rules.Ddim())
        np.testing.assert_allclose(got, _euler(_mixture, rungs, x), rtol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("t", [20, 400, 999])
def test_ddim_step_is_the_published_one(key, eta, t):
    """One step on DDPM's linear schedule, in the variance-preserving form of the papers.

    DDIM eq. 12 and 16; at eta = 1 its mean and variance are DDPM's posterior (Ho et al. 2020,
    eq. 7), which is what is written here.
    """
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    before, after, beta = abar[t], abar[t - 1], 1 - abar[t] / abar[t - 1]
    sigma, sigma_next = np.sqrt(1 / before - 1), np.sqrt(1 / after - 1)
    with jax.enable_x64(True):
        key_x, key_x0, key_noise = jax.random.split(key, 3)
        x_vp, x0, fresh = (jax.random.normal(k, (4, 3)) for k in (key_x, key_x0, key_noise))
        got, _ = rules.Ddim(eta=eta).step(
            lambda x, sigma: x0, (), x_vp / np.sqrt(before), jnp.asarray(sigma),
            jnp.asarray(sigma_next),
            fresh if eta else None,
        )  # fmt: skip
        if eta == 1:
            mean = (
                np.sqrt(after) * beta / (1 - before) * x0
                + np.sqrt(1 - beta) * (1 - after) / (1 - before) * x_vp
            )
            std = np.sqrt((1 - after) / (1 - before) * beta)
        else:
            std = eta * np.sqrt((1 - after) / (1 - before)) * np.sqrt(1 - before / after)
            eps = (x_vp - np.sqrt(before) * x0) / np.sqrt(1 - before)
            mean = np.sqrt(after) * x0 + np.sqrt(1 - after - std**2) * eps
        # float64; sigma^2 - sigma_next^2 loses three digits.
        np.testing.assert_allclose(got * np.sqrt(after), mean + std * fresh, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_ddim_keeps_the_marginal_variance(eta):
    spots, genes = 2000, 100

    def variance(steps):
        draws = sampler.draw(
            lambda x, sigma: _gaussian(x, sigma, 0.0, 1.0),
            ladders.karras(steps),
            _keys(spots),
            rule=rules.Ddim(eta=eta),
            genes=genes,
            n_draws=1,
            antithetic=False,
        )
        return np.var(np.asarray(draws))

    # First order: twice the fine one less the coarse one is of second order in 1 / steps. That
    # leaves about .01, and 3 standard errors of 2 v1 - v2 are 3 sqrt(5) sqrt(2 / 2e5) = .021.
    # A step noise wrong by a tenth is off by .2.
    assert 2 * variance(200) - variance(100) == pytest.approx(1.0, abs=0.031)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_eta_outside_is_named(eta):
    with pytest.raises(errors.ConfigError, match="eta"):
        rules.Ddim(eta=eta)


# --- what is drawn ---


@pytest.mark.parametrize("rule", [rules.DpmSolverPP2M(), rules.Ddim(eta=1.0)], ids=["2m", "a"])
def test_both_modes_with_their_weights(rule):
    spots, n_draws = 1000, 4
    draws = sampler.draw(
        _mixture,
        ladders.karras(128),
        _keys(spots),
        rule=rule,
        genes=2,
        n_draws=n_draws,
        antithetic=False,
    )
    points = np.asarray(draws).reshape(-1, 2)
    near = [np.abs(points - mode).max(axis=1) < 1.2 for mode in (2.0, -1.0)]
    # A mode is 4 standard deviations (.3) wide; a few may lie between.
    assert np.mean(near[0] | near[1]) > 0.995
    # 4 binomial errors of 4,000 draws are .029; the start at sigma = 80 instead of infinity moves
    # the boundary between the modes by its offset / 80 and the weight by about .003.
    assert np.mean(near[0]) == pytest.approx(0.3, abs=0.032)
    # Within a mode, the spread of the data: 128 ancestral steps lose .05 of it (first order in the
    # step), and 4 standard errors of 5,600 values are .04.
    assert np.std(points[near[1]]) == pytest.approx(0.3, rel=0.09)


@pytest.mark.parametrize("rule", ALL_RULES, ids=["ddim", "heun", "dpmpp2m", "ancestral"])
def test_pair_average_of_an_odd_denoiser_is_exactly_zero(rule):
    draws = sampler.draw(
        lambda x, sigma: _gaussian(x, sigma, 0.0, VARIANCE),
        ladders.karras(8),
        _keys(10),
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
        _gaussian,
        ladders.karras(64),
        _keys(10),
        rule=rules.DpmSolverPP2M(),
        genes=3,
        n_draws=2,
        antithetic=True,
    )
    # An affine map of +z and -z averages to its value at x = 0, which the exact flow takes to
    # this; the rule's own error falls as (ln(80 / .002) / 64)^2 = .03, times the 1 / 80 to which
    # the mean's part of the start amounts.
    expected = np.broadcast_to(_gaussian_flow(np.zeros(3), 80.0), (10, 3))
    np.testing.assert_allclose(draws.mean(axis=0), expected, atol=4e-4)
    # That is the mean but for sigma_max < infinity: |mean| std / 80.
    np.testing.assert_allclose(expected, np.broadcast_to(MEAN, (10, 3)), atol=1.0 / 40)
    assert np.std(draws[0]) > 0.5


def test_step_noise_is_apart_from_initial_noise_and_from_other_draws():
    spots, genes, rungs = 400, 50, jnp.asarray([2.0, 1.0, 0.5, 0.0], jnp.float32)
    draws = sampler.draw(
        lambda x, sigma: x,  # then x moves by its fresh noise alone
        rungs,
        _keys(spots),
        rule=rules.Ddim(eta=1.0),
        genes=genes,
        n_draws=2,
        antithetic=False,
    )
    start = 2 * sampler.initial_noise(_keys(spots), n_draws=2, genes=genes, antithetic=False)
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
