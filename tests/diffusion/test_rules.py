"""Deterministic rules and DDIM against closed forms: order, oracle, published steps, cost."""

from __future__ import annotations

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_laws import VARIANCE, gaussian, gaussian_flow, mixture, row_keys, start

from stemjax import errors
from stemjax.diffusion import ladders, rules, sampler

RULES = [rules.Ddim(), rules.Heun(), rules.DpmSolverPP2M(), rules.AdamsBashforth2()]
NAMES = ["ddim", "heun", "dpmpp2m", "ab2"]
ALL_RULES, ALL_NAMES = [*RULES, rules.Ddim(eta=1.0)], [*NAMES, "ancestral"]


def _karras(steps):
    # The smallest rung is far below the data's scale: at .1 the last jump would swamp the order.
    return ladders.karras(steps, sigma_min=1e-4, sigma_max=10.0).astype(jnp.float64)


def _limping(steps):
    """Rungs between the same ends in steps, of the seventh root, in ratio 1 to 2 by turns."""
    strides = np.where(np.arange(steps - 1) % 2, 2.0, 1.0)
    ramp = np.append(0.0, np.cumsum(strides)) / strides.sum()
    top, bottom = 10 ** (1 / 7), 1e-4 ** (1 / 7)
    return jnp.asarray(np.append((top + ramp * (bottom - top)) ** 7, 0.0))


def _error(rule, rungs, x):
    got = sampler.sample(gaussian, rungs, x, row_keys(len(x)), rule=rule)
    return np.sqrt(np.mean((got - gaussian_flow(x, 10.0)) ** 2))


@pytest.mark.parametrize("ladder", [_karras, _limping], ids=["karras", "limping"])
@pytest.mark.parametrize(("rule", "order"), list(zip(RULES, [1.0, 2.0, 2.0, 2.0])), ids=NAMES)
def test_order_of_convergence(key, rule, order, ladder):
    with jax.enable_x64(True):
        x = start(key, 10.0, 32, 3)
        logs = np.log2([_error(rule, ladder(steps), x) for steps in (16, 32, 64, 128)])
    slope = -np.polyfit(np.arange(4), logs, 1)[0]
    # Mutants of a second-order rule (wrong divisor, old level, no average) read 1.0 to 1.25; a
    # two-step rule with the weights of even steps is of order 2 on Karras' ladder, whose steps
    # change slowly, and of order 1 on the limping one.
    assert slope == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("rule", RULES[1:], ids=NAMES[1:])
def test_agrees_with_diffrax(key, rule):
    """Tsit5 on dx/dsigma = (x - D) / sigma at tight tolerance is the oracle."""
    with jax.enable_x64(True):
        x = start(key, 20.0, 16, 2)
        rungs = ladders.karras(400, sigma_min=1e-3, sigma_max=20.0).astype(jnp.float64)[:-1]

        def slope(sigma, x, args):
            return (x - mixture(x, jnp.broadcast_to(sigma, x.shape[:1]))) / sigma

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
        got = sampler.sample(mixture, rungs, x, row_keys(16), rule=rule)
        # Second order, 400 steps over ln(20 / .001) = 9.9: (9.9 / 400)^2 = 6e-4 of unit scale,
        # times the rule's constant of about 1 / 12; 5 / 12 for Adams-Bashforth.
        np.testing.assert_allclose(got, oracle, atol=2e-4)
        # What is compared is not trivial: both modes are reached.
        assert (oracle > 1.5).any()
        assert (oracle < -0.5).any()


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_stops_at_the_last_rung(key, rule):
    with jax.enable_x64(True):
        x = start(key, 10.0, 32, 3)
        rungs = ladders.karras(801, sigma_min=0.5, sigma_max=10.0).astype(jnp.float64)[:-1]
        got = sampler.sample(gaussian, rungs, x, row_keys(32), rule=rule)
    # 800 steps of ln 20 / 800 = .004 each, on a state of unit scale: .004 in first order (Euler),
    # .004^2 = 1.6e-5 in second.
    atol = 0.01 if isinstance(rule, rules.Ddim) else 3e-5
    np.testing.assert_allclose(got, gaussian_flow(x, 10.0, 0.5), atol=atol)


@pytest.mark.parametrize("rule", ALL_RULES, ids=ALL_NAMES)
def test_last_step_returns_the_denoised_estimate(key, rule):
    x = start(key, 3.0, 5, 3, jnp.float32)
    rungs = jnp.asarray([3.0, 0.0], jnp.float32)
    got = sampler.sample(gaussian, rungs, x, row_keys(5), rule=rule)
    # The same float32 formula, compiled apart.
    np.testing.assert_allclose(got, gaussian(x, jnp.full(5, 3.0, jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_float32_state_follows_float64(key, rule):
    rungs = ladders.karras(18)
    with jax.enable_x64(True):
        x = start(key, 80.0, 32, 3)
        fine = sampler.sample(gaussian, rungs.astype(jnp.float64), x, row_keys(32), rule=rule)
    coarse = sampler.sample(gaussian, rungs, jnp.asarray(x, jnp.float32), row_keys(32), rule=rule)
    # x starts near 200, where float32 resolves 1e-5; the flow contracts that by 20 or more.
    np.testing.assert_allclose(coarse, fine, atol=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_pair_average_of_an_odd_denoiser_is_exactly_zero(rule):
    draws = sampler.draw(
        lambda x, sigma: gaussian(x, sigma, 0.0, VARIANCE),
        ladders.karras(8),
        row_keys(10),
        rule=rule,
        genes=3,
        n_draws=2,
        antithetic=True,
    )
    # Exact: rounding is symmetric about zero.
    np.testing.assert_array_equal(draws[0], -draws[1])
    assert (np.abs(draws[0]) > 1e-4).all()


MODE_RULES = [rules.DpmSolverPP2M(), rules.AdamsBashforth2(), rules.Ddim(eta=1.0)]


@pytest.mark.parametrize("rule", MODE_RULES, ids=["dpmpp2m", "ab2", "ancestral"])
def test_both_modes_with_their_weights(rule):
    spots, n_draws = 1000, 4
    draws = sampler.draw(
        mixture,
        ladders.karras(128),
        row_keys(spots),
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


# --- Adams-Bashforth ---


def _adams_bashforth(denoise, rungs, x):
    """x plus the integral of the line through the last two slopes, by quadrature; then D."""
    slopes = []
    for i, (sigma, sigma_next) in enumerate(zip(rungs[:-1], rungs[1:])):
        denoised = denoise(x, jnp.full(x.shape[0], sigma))
        slopes.append(np.asarray((x - denoised) / sigma))
        if sigma_next == 0:
            return denoised
        middle = (sigma + sigma_next) / 2  # the midpoint rule is exact for a line
        slope = slopes[i]
        if i:
            share = (middle - sigma) / (rungs[i - 1] - sigma)
            slope = slopes[i] + share * (slopes[i - 1] - slopes[i])
        x = x + (sigma_next - sigma) * slope
    raise AssertionError("no last rung")


def test_adams_bashforth_integrates_the_line_through_two_slopes(key):
    with jax.enable_x64(True):
        x = start(key, 80.0, 16, 2)
        rungs = ladders.karras(12).astype(jnp.float64)
        got = sampler.sample(mixture, rungs, x, row_keys(16), rule=rules.AdamsBashforth2())
        # float64, from 80 down.
        expected = _adams_bashforth(mixture, np.asarray(rungs), x)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)


def test_adams_bashforth_with_even_steps_by_hand():
    # D = x - sigma d with slopes d = 1, then 3: x = 10 - 1 * 1, then - (3/2 * 3 - 1/2 * 1) = 5.
    slopes = iter([1.0, 3.0])
    rule = rules.AdamsBashforth2()

    def denoise(x, sigma):
        return x - sigma[:, None] * next(slopes)

    x = jnp.full((1, 1), 10.0, jnp.float32)
    carry = rule.init(x)
    for sigma, sigma_next, expected in [(3.0, 2.0, 9.0), (2.0, 1.0, 5.0)]:
        levels = jnp.asarray([sigma, sigma_next], jnp.float32)
        x, carry = rule.step(denoise, carry, x, levels[0], levels[1], None)
        np.testing.assert_allclose(x, expected, rtol=1e-6)


# --- cost and company of the rules that `test_sampler_rows` does not know ---


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_adams_bashforth_runs_the_network_once_a_rung(key, steps):
    visited = []

    def counted(x, sigma):
        jax.debug.callback(lambda s: visited.append(float(s[0])), sigma)
        return gaussian(x, sigma)

    rule, rungs = rules.AdamsBashforth2(), ladders.karras(steps)
    x = start(key, 80.0, 2, 3, jnp.float32)
    jax.block_until_ready(sampler.sample(counted, rungs, x, row_keys(2), rule=rule))
    jax.effects_barrier()
    assert len(visited) == rule.evaluations(steps) == steps
    # In order of the run: callbacks of one scan may come late, so sorted.
    np.testing.assert_allclose(sorted(visited), sorted(rungs[:-1]), rtol=1e-6)


def test_adams_bashforth_row_does_not_see_its_company(key):
    def draws(rows):
        return sampler.draw(
            mixture,
            ladders.karras(8),
            row_keys(6)[np.array(rows)],
            rule=rules.AdamsBashforth2(),
            genes=2,
            n_draws=2,
            antithetic=False,
        )

    everyone = np.asarray(draws(range(6)))
    # Rounding only, of a state that starts near 200 (1e-5) and is contracted by 20 or more; a
    # row that came out near the boundary of the modes would show more, and none does.
    np.testing.assert_allclose(draws([4, 1]), everyone[:, [4, 1]], atol=1e-5)
    assert len(np.unique(everyone.reshape(-1, 2), axis=0)) == 12


# --- DDIM ---


def _euler(denoise, rungs, x):
    """Euler's rule on dx/dsigma = (x - D) / sigma, written out."""
    for sigma, sigma_next in zip(rungs[:-1], rungs[1:]):
        d = (x - denoise(x, jnp.full(x.shape[0], sigma))) / sigma
        x = x + (sigma_next - sigma) * d
    return x


def test_ddim_without_noise_is_euler(key):
    with jax.enable_x64(True):
        x = start(key, 80.0, 16, 2)
        rungs = ladders.karras(12).astype(jnp.float64)
        got = sampler.sample(mixture, rungs, x, row_keys(16), rule=rules.Ddim())
        np.testing.assert_allclose(got, _euler(mixture, rungs, x), rtol=1e-10)


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
            lambda x, sigma: gaussian(x, sigma, 0.0, 1.0),
            ladders.karras(steps),
            row_keys(spots),
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


def _k_diffusion_ancestral(denoise, rungs, x, noises, eta):
    """k-diffusion's sample_euler_ancestral, with its sigma_up and sigma_down, in numpy."""
    for sigma, sigma_next, noise in zip(rungs[:-1], rungs[1:], noises):
        sigma_up = min(
            sigma_next,
            eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5,
        )
        sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
        slope = (x - denoise(x, jnp.full(x.shape[0], sigma))) / sigma
        x = x + slope * (sigma_down - sigma)
        x = x + noise * sigma_up
    return x


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_ddim_is_ancestral_euler(key, eta):
    with jax.enable_x64(True):
        x = start(key, 80.0, 16, 2)
        rungs = ladders.karras(12).astype(jnp.float64)
        noises = [
            sampler.step_noise(row_keys(16), jnp.uint32(step), 2, x.dtype) for step in range(12)
        ]
        got = sampler.sample(mixture, rungs, x, row_keys(16), rule=rules.Ddim(eta=eta))
        expected = _k_diffusion_ancestral(mixture, np.asarray(rungs), x, noises, eta)
        # float64; sigma^2 - sigma_up^2 loses some digits in the published form.
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_eta_outside_is_named(eta):
    with pytest.raises(errors.ConfigError, match="eta"):
        rules.Ddim(eta=eta)
