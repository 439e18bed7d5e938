"""Churned Heun and SDE-DPM-Solver++(2M): published steps, exact laws on a Gaussian, modes, cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_laws import MEAN, VARIANCE, gaussian, mixture, row_keys, start

from stemjax import errors
from stemjax.diffusion import ladders, rules, sampler
from stemjax.diffusion import stochastic_rules as stochastic

CHURN = stochastic.HeunChurn(gamma=0.2)
RULES = [CHURN, stochastic.DpmSolverPP2MSde(), stochastic.DpmSolverPP2MSde(eta=0.5)]
NAMES = ["churn", "sde", "sde-half"]


def _noises(rows, steps, genes):
    """The fresh noise that `sampler.sample` gives to these keys, [s b g]."""
    return [
        np.asarray(
            sampler.step_noise(row_keys(rows), jnp.uint32(step), genes, jnp.dtype(jnp.float64))
        )
        for step in range(steps)
    ]


def _at(denoise, x, sigma):
    return np.asarray(denoise(jnp.asarray(x), jnp.full(len(x), sigma)))


# --- the published steps ---


def _edm_algorithm_2(denoise, rungs, x, noises, *, gamma, s_noise, s_tmin, s_tmax):
    """Algorithm 2 of EDM, line by line."""
    for t, t_next, noise in zip(rungs[:-1], rungs[1:], noises):
        gamma_i = gamma if s_tmin <= t <= s_tmax else 0.0
        t_hat = t + gamma_i * t
        x_hat = x + np.sqrt(t_hat**2 - t**2) * (s_noise * noise)
        d = (x_hat - _at(denoise, x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next:
            d_next = (x - _at(denoise, x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d + d_next) / 2
    return x


@pytest.mark.parametrize(
    "fields",
    [
        {"gamma": 0.1},
        {"gamma": np.sqrt(2) - 1, "noise_scale": 1.007},
        # Its ends are rungs: both are raised.
        {"gamma": 0.3, "churn_min": 0.5, "churn_max": 4.0},
        {"gamma": 0.3, "noise_scale": 0.9, "churn_min": 3.0},
    ],
    ids=["plain", "most", "window", "top"],
)
def test_churned_heun_is_algorithm_2(key, fields):
    rungs = np.array([20.0, 9.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.0])
    with jax.enable_x64(True):
        x = start(key, 20.0, 16, 2)
        rule = stochastic.HeunChurn(**fields)
        got = sampler.sample(mixture, jnp.asarray(rungs), x, row_keys(16), rule=rule)
        expected = _edm_algorithm_2(
            mixture,
            rungs,
            np.asarray(x),
            _noises(16, 7, 2),
            gamma=fields["gamma"],
            s_noise=fields.get("noise_scale", 1.0),
            s_tmin=fields.get("churn_min", 0.0),
            s_tmax=fields.get("churn_max", np.inf),
        )
    # float64; the steps amplify rounding by 10 or so.
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("fields", [{"gamma": 0.0}, {"gamma": 0.3, "churn_min": 100.0}])
def test_without_churn_it_is_heun(key, fields):
    x, rungs = start(key, 80.0, 16, 2, jnp.float32), ladders.karras(12)
    got, heun = (
        sampler.sample(mixture, rungs, x, row_keys(16), rule=rule)
        for rule in (stochastic.HeunChurn(**fields), rules.Heun())
    )
    if fields["gamma"]:
        # The same numbers, but another program: rounding, in a state that starts near 200.
        np.testing.assert_allclose(got, heun, atol=1e-4)
    else:
        np.testing.assert_array_equal(got, heun)


def _k_diffusion_2m_sde(denoise, rungs, x, noises, eta):
    """k-diffusion's sample_dpmpp_2m_sde, solver_type midpoint, s_noise 1, in numpy."""
    old, h_last = None, None
    for sigma, sigma_next, noise in zip(rungs[:-1], rungs[1:], noises):
        denoised = _at(denoise, x, sigma)
        if sigma_next == 0:
            return denoised
        h = -np.log(sigma_next) + np.log(sigma)
        x = sigma_next / sigma * np.exp(-eta * h) * x - np.expm1(-h - eta * h) * denoised
        if old is not None:
            r = h_last / h
            x = x + 0.5 * -np.expm1(-h - eta * h) * (1 / r) * (denoised - old)
        if eta:
            x = x + noise * sigma_next * np.sqrt(-np.expm1(-2 * eta * h))
        old, h_last = denoised, h
    raise AssertionError("no last rung")


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 2.0])
def test_sde_is_k_diffusions_midpoint_form(key, eta):
    rungs = np.array([80.0, 31.0, 9.0, 4.0, 2.0, 0.5, 0.2, 0.01, 0.0])
    with jax.enable_x64(True):
        x = start(key, 80.0, 16, 2)
        rule = stochastic.DpmSolverPP2MSde(eta=eta)
        got = sampler.sample(mixture, jnp.asarray(rungs), x, row_keys(16), rule=rule)
        expected = _k_diffusion_2m_sde(mixture, rungs, np.asarray(x), _noises(16, 8, 2), eta)
    # float64.
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)


def test_sde_without_noise_is_dpm_solver_pp_2m(key):
    x, rungs = start(key, 80.0, 16, 2, jnp.float32), ladders.karras(12)
    got, ode = (
        sampler.sample(mixture, rungs, x, row_keys(16), rule=rule)
        for rule in (stochastic.DpmSolverPP2MSde(eta=0.0), rules.DpmSolverPP2M())
    )
    np.testing.assert_array_equal(got, ode)


def test_first_sde_step_at_eta_1_is_ancestral_euler(key):
    with jax.enable_x64(True):
        x = start(key, 5.0, 8, 3)
        noise = jax.random.normal(jax.random.key(1), (8, 3), jnp.float64)
        levels = jnp.asarray([5.0, 1.5])
        got, expected = (
            rule.step(gaussian, rule.init(x), x, levels[0], levels[1], noise)[0]
            for rule in (stochastic.DpmSolverPP2MSde(eta=1.0), rules.Ddim(eta=1.0))
        )
        np.testing.assert_allclose(got, expected, rtol=1e-12)


# --- laws on a Gaussian, with no sampling error ---


def _law(rule, rungs, mean=MEAN, variance=VARIANCE):
    """Mean and variance of what a rule makes of x ~ N(mean, variance + rungs[0]²), each [g].

    The denoiser is affine, so what comes out is affine in the start and in each step's noise: a
    row for each of these, set to one standard deviation, gives its coefficient.
    """
    steps = len(rungs) - 1
    x = np.tile(mean, (steps + 2, 1))
    x[1] += np.sqrt(variance + rungs[0] ** 2)
    x = jnp.asarray(x)
    carry = rule.init(x)

    @jax.jit
    def move(carry, x, sigma, sigma_next, noise):
        return rule.step(
            lambda x, s: gaussian(x, s, mean, variance), carry, x, sigma, sigma_next, noise
        )

    for step in range(steps):
        noise = jnp.zeros_like(x).at[step + 2].set(1.0)
        x, carry = move(carry, x, rungs[step], rungs[step + 1], noise)
    return np.asarray(x[0]), np.sum(np.square(x[1:] - x[:1]), axis=0)


def _churn_10(steps):
    return stochastic.HeunChurn(gamma=min(10 / steps, np.sqrt(2) - 1))


@pytest.mark.parametrize(
    ("make_rule", "order", "limping"),
    [
        (_churn_10, 2.0, False),
        (lambda steps: CHURN, 1.0, False),
        (lambda steps: stochastic.DpmSolverPP2MSde(), 2.0, False),
        (lambda steps: stochastic.DpmSolverPP2MSde(), 2.0, True),
        (lambda steps: stochastic.DpmSolverPP2MSde(eta=2.0), 2.0, True),
    ],
    ids=["churn", "fixed-gamma", "sde", "sde-limping", "sde-2-limping"],
)
def test_weak_order_on_a_gaussian(make_rule, order, limping):
    """Limping steps are in ratio 1 to 2 by turns, so that h / h_prev counts."""
    counts = (64, 128, 256)
    with jax.enable_x64(True):
        wrong = []
        for steps in counts:
            strides = np.where(np.arange(steps - 1) % 2, 1.0 + limping, 1.0)
            ramp = np.append(0.0, np.cumsum(strides)) / strides.sum()
            top, bottom = 10 ** (1 / 7), 1e-4 ** (1 / 7)
            rungs = jnp.asarray(np.append((top + ramp * (bottom - top)) ** 7, 0.0))
            mean, variance = _law(make_rule(steps), rungs)
            # The mean starts at its fixed point; float64 leaves it there.
            np.testing.assert_allclose(mean, MEAN, atol=1e-12)
            wrong.append(np.abs(variance - VARIANCE).max())
    slope = -np.polyfit(np.arange(len(counts)), np.log2(wrong), 1)[0]
    assert slope == pytest.approx(order, abs=0.25)
    assert wrong[-1] < 0.25  # of 4: it is the right variance that they tend to


@pytest.mark.parametrize("eta", [0.3, 1.0, 2.5])
def test_sde_keeps_the_marginals_of_a_point_exactly(eta):
    """For x0 known, D is x0 and the step is the SDE's exact solution: x stays N(x0, sigma²)."""
    with jax.enable_x64(True):
        rungs = jnp.asarray([7.0, 3.0, 2.9, 0.1])
        mean, variance = _law(
            stochastic.DpmSolverPP2MSde(eta=eta), rungs, variance=np.zeros_like(VARIANCE)
        )
    np.testing.assert_allclose(mean, MEAN, rtol=1e-12)
    np.testing.assert_allclose(variance, 0.1**2, rtol=1e-9)


# --- what is drawn ---


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_mean_and_variance_of_each_gene(rule):
    draws = sampler.draw(
        gaussian,
        ladders.karras(200),
        row_keys(20_000),
        rule=rule,
        genes=3,
        n_draws=1,
        antithetic=False,
    )
    values = np.asarray(draws[0], np.float64)
    with jax.enable_x64(True):
        rungs = ladders.karras(200).astype(jnp.float64)
        _, variance = _law(rule, rungs)
    # The rule's own variance at 200 steps, which the tests above hold against the truth: within
    # 1 % of it here. 4 standard errors of 20,000 values; the start at mean 0 instead of MEAN is
    # off by 1 / 80 of a standard deviation at most, which shrinks with the state.
    np.testing.assert_allclose(variance, VARIANCE, rtol=0.01)
    error = np.sqrt(VARIANCE / len(values))
    assert (np.abs(values.mean(axis=0) - MEAN) < 4 * error + np.abs(MEAN) / 80).all()
    assert (np.abs(values.var(axis=0) / variance - 1) < 4 * np.sqrt(2 / len(values))).all()
    # Genes and rows are independent: 4 standard errors of a correlation.
    between = np.corrcoef(np.vstack([values.T, np.roll(values, 1, axis=0).T]))
    assert np.abs(between - np.eye(6)).max() < 4 / np.sqrt(len(values))


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_both_modes_with_their_weights(rule):
    draws = sampler.draw(
        mixture,
        ladders.karras(128),
        row_keys(4000),
        rule=rule,
        genes=2,
        n_draws=1,
        antithetic=False,
    )
    points = np.asarray(draws[0])
    near = [np.abs(points - mode).max(axis=1) < 1.2 for mode in (2.0, -1.0)]
    # A mode is 4 standard deviations (.3) wide; a few may lie between.
    assert np.mean(near[0] | near[1]) > 0.995
    # 4 binomial errors of 4,000 draws are .029, and .003 for a start at sigma = 80, not infinity.
    assert np.mean(near[0]) == pytest.approx(0.3, abs=0.032)
    # 4 standard errors of 5,600 values are .04; the rules err by .02.
    assert np.std(points[near[1]]) == pytest.approx(0.3, rel=0.06)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
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


@pytest.mark.parametrize("rule", RULES[1:], ids=NAMES[1:])
def test_last_sde_step_returns_the_denoised_estimate(key, rule):
    x = start(key, 3.0, 5, 3, jnp.float32)
    rungs = jnp.asarray([3.0, 0.0], jnp.float32)
    got = sampler.sample(gaussian, rungs, x, row_keys(5), rule=rule)
    # The same float32 formula, compiled apart.
    np.testing.assert_allclose(got, gaussian(x, jnp.full(5, 3.0, jnp.float32)), rtol=1e-6)


def test_last_churned_step_returns_the_denoised_estimate_of_the_raised_state(key):
    with jax.enable_x64(True):
        x = start(key, 3.0, 5, 3)
        rule = stochastic.HeunChurn(gamma=0.25)
        got = sampler.sample(gaussian, jnp.asarray([3.0, 0.0]), x, row_keys(5), rule=rule)
        # 3 (1 + 1/4) = 3.75, and 3.75² - 3² = 2.25².
        raised = np.asarray(x) + 2.25 * _noises(5, 1, 3)[0]
        np.testing.assert_allclose(got, _at(gaussian, raised, 3.75), rtol=1e-12)


# --- cost and company ---


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_network_runs_as_often_as_stated(key, rule, steps):
    visited = []

    def counted(x, sigma):
        jax.debug.callback(lambda s: visited.append(float(s[0])), sigma)
        return gaussian(x, sigma)

    rungs = ladders.karras(steps)
    x = start(key, 80.0, 2, 3, jnp.float32)
    jax.block_until_ready(sampler.sample(counted, rungs, x, row_keys(2), rule=rule))
    jax.effects_barrier()
    churn = isinstance(rule, stochastic.HeunChurn)
    assert len(visited) == rule.evaluations(steps) == (2 * steps - 1 if churn else steps)
    # Once at each rung above zero, raised by the churn; Heun once more at those after the first.
    expected = [1.2 * r for r in rungs[:-1]] + list(rungs[1:-1]) if churn else list(rungs[:-1])
    np.testing.assert_allclose(sorted(visited), sorted(map(float, expected)), rtol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_row_is_the_same_in_any_company(rule):
    def draws(rows, n_draws=4):
        return np.asarray(
            sampler.draw(
                gaussian,
                ladders.karras(8),
                row_keys(6)[np.array(rows)],
                rule=rule,
                genes=3,
                n_draws=n_draws,
                antithetic=True,
            )
        )

    everyone = draws(range(6))
    # Rounding only: float32 of a state that starts near 200 and is contracted by 20 or more.
    np.testing.assert_allclose(draws([4, 1], n_draws=2), everyone[:2, [4, 1]], atol=1e-5)
    assert len(np.unique(everyone.reshape(-1, 3).round(3), axis=0)) == 24


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"gamma": -0.1}, "gamma"),
        ({"gamma": 0.42}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"gamma": 0.1, "noise_scale": -1.0}, "noise_scale"),
        ({"gamma": 0.1, "noise_scale": float("inf")}, "noise_scale"),
        ({"gamma": 0.1, "churn_min": -1.0}, "churn_min=-1.0"),
        ({"gamma": 0.1, "churn_min": 2.0, "churn_max": 1.0}, "churn_max=1.0"),
    ],
)
def test_churn_that_cannot_work_is_named(wrong, named):
    with pytest.raises(errors.ConfigError, match=named):
        stochastic.HeunChurn(**wrong)


@pytest.mark.parametrize("eta", [-0.1, float("inf"), float("nan")])
def test_eta_that_cannot_work_is_named(eta):
    with pytest.raises(errors.ConfigError, match="eta"):
        stochastic.DpmSolverPP2MSde(eta=eta)
