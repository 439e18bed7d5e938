"""Guidance against Gaussian closed forms, its interval, its cost; leaving conditions out."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax import errors
from stemjax.diffusion import guidance, ladders, rules, sampler

STRONG, WEAK, STD = np.array([1.0, -2.0, 0.5]), np.array([0.2, 0.4, -0.6]), 0.7


def _gaussian(mean, variance=STD**2):
    """E[x0 | x] for x0 ~ N(mean, variance), each gene by itself."""

    def denoise(x, sigma):
        centre = jnp.asarray(mean, x.dtype)[None]
        return centre + variance / (variance + sigma[:, None] ** 2) * (x - centre)

    return denoise


class Counted:
    """A denoiser that counts how often it runs, also inside of a compiled program."""

    def __init__(self, denoise):
        self.denoise, self.runs = denoise, 0

    def _count(self, _):
        self.runs += 1

    def __call__(self, x, sigma):
        jax.debug.callback(self._count, sigma[0])
        return self.denoise(x, sigma)


def _draw(denoise, rungs, spots=500):
    return sampler.draw(
        denoise,
        rungs,
        jax.random.split(jax.random.key(1), spots),
        rule=rules.DpmSolverPP2M(),
        genes=3,
        n_draws=2,
        antithetic=True,
    )


@pytest.mark.parametrize("scale", [-0.5, 0.3, 1.7, 3.0])
def test_guided_gaussians_of_one_width_move_their_mean(key, scale):
    """D is linear in the mean, so guiding by a shifted twin is D of the extrapolated mean."""
    with jax.enable_x64(True):
        x, sigma = jax.random.normal(key, (4, 3), jnp.float64), jnp.asarray([0.01, 0.3, 1.0, 80.0])
        got = guidance.guide(_gaussian(STRONG), _gaussian(WEAK), scale)(x, sigma)
        expected = _gaussian(WEAK + scale * (STRONG - WEAK))(x, sigma)
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_draws_of_guided_gaussians():
    """The whole flow: the law of the extrapolated mean, and of the same width."""
    draws = np.asarray(
        _draw(guidance.guide(_gaussian(STRONG), _gaussian(WEAK), 2.0), ladders.karras(64))
    )
    # A pair's mean has no error but the solver's (1e-3 at 64 steps) and the start's,
    # std mean / sigma_max = .7 * 4.4 / 80 = .04 at most.
    middle = np.broadcast_to(2 * STRONG - WEAK, draws.shape[1:])
    np.testing.assert_allclose(draws.mean(axis=0), middle, atol=0.05)
    # 500 independent rows of 3 genes: 4 standard errors of a standard deviation, and the solver's.
    assert draws.std(axis=(0, 1)) == pytest.approx(STD, abs=4 * STD / math.sqrt(2 * 500) + 0.01)


def test_guidance_by_a_wider_twin_narrows():
    """What autoguidance does: D's slope rises above that of the strong one, sigma by sigma.

    At one level the guided slope is b + w (a - b), a = v / (v + sigma²) and b = u / (u + sigma²);
    with ds / dln sigma = s (1 - slope) the spread of the draws follows in closed form, powers of
    the two flows' own: s = (v / (v + S²))^(w/2) (u / (u + S²))^((1-w)/2) S at sigma = 0.
    """
    v, u, w, top = 0.49, 0.81, 2.0, 80.0
    centred = np.zeros(3)
    guided = guidance.guide(_gaussian(centred, v), _gaussian(centred, u), w)
    with jax.enable_x64(True):
        x = jnp.full((1, 3), top)
        rungs = ladders.karras(400, sigma_min=1e-4, sigma_max=top).astype(jnp.float64)
        got = sampler.sample(guided, rungs, x, jax.random.split(jax.random.key(0), 1),
                             rule=rules.DpmSolverPP2M())  # fmt: skip
    spread = top * (v / (v + top**2)) ** (w / 2) * (u / (u + top**2)) ** ((1 - w) / 2)
    # Second order, 400 steps over ln(8e5): (13.6 / 400)^2 = 1e-3, with its constant 1e-4.
    np.testing.assert_allclose(got, spread, rtol=3e-4)
    assert spread < 0.62 < math.sqrt(v)


def test_scale_one_and_zero_are_the_denoisers_themselves():
    strong, weak = _gaussian(STRONG), _gaussian(WEAK)
    assert guidance.guide(strong, weak, 1.0) is strong
    assert guidance.guide(strong, weak, 1, sigma_min=0.1, sigma_max=3.0) is strong
    assert guidance.guide(strong, weak, 0.0) is weak


def test_scale_zero_in_an_interval_is_the_weak_one_there():
    guided = guidance.guide(_gaussian(STRONG), _gaussian(WEAK), 0.0, sigma_max=1.0)
    x, sigma = jnp.ones((2, 3), jnp.float32), jnp.asarray([0.5, 2.0], jnp.float32)
    expected = [_gaussian(WEAK)(x, sigma)[0], _gaussian(STRONG)(x, sigma)[1]]
    np.testing.assert_allclose(guided(x, sigma), expected, rtol=1e-6)


def test_the_interval_holds_row_by_row(key):
    strong, weak = _gaussian(STRONG), _gaussian(WEAK)
    sigma = jnp.asarray([0.05, 0.1, 0.11, 1.0, 2.0, 2.01, 80.0], jnp.float32)
    x = jax.random.normal(key, (7, 3), jnp.float32)
    guided = guidance.guide(strong, weak, 2.5, sigma_min=0.1, sigma_max=2.0)
    within = np.array([False, False, True, True, True, False, False])[:, None]
    full = weak(x, sigma) + 2.5 * (strong(x, sigma) - weak(x, sigma))
    expected = np.where(within, full, strong(x, sigma))
    # The lower end is open and the upper closed. Rounding of one difference.
    np.testing.assert_allclose(guided(x, sigma), expected, rtol=1e-5, atol=1e-6)
    assert (np.abs(np.asarray(full) - np.asarray(strong(x, sigma))).max(axis=1) > 1e-3).all()
    # A row alone, whose company no longer decides whether the weak one runs.
    for row in range(7):
        alone = guided(x[row : row + 1], sigma[row : row + 1])
        np.testing.assert_allclose(alone, expected[row : row + 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("scale", "interval", "runs"),
    [
        (2.0, {}, (8, 8)),
        (1.0, {}, (8, 0)),
        (0.0, {}, (0, 8)),
        # 4.5, 1.8 and .62 of the rungs 40, 20.7, 10, 4.5, 1.8, .62, .18, .04.
        (2.0, {"sigma_min": 0.3, "sigma_max": 5.0}, (8, 3)),
        (2.0, {"sigma_min": 100.0}, (8, 0)),
    ],
)
def test_the_network_runs_as_often_as_stated(scale, interval, runs):
    strong, weak = Counted(_gaussian(STRONG)), Counted(_gaussian(WEAK))
    rungs = ladders.karras(8, sigma_min=0.04, sigma_max=40.0)
    within = (rungs > interval.get("sigma_min", 0)) & (rungs <= interval.get("sigma_max", np.inf))
    jax.block_until_ready(
        jax.jit(lambda: _draw(guidance.guide(strong, weak, scale, **interval), rungs, spots=2))()
    )
    jax.effects_barrier()
    assert (strong.runs, weak.runs) == runs
    if scale == 2:
        assert int(within.sum()) == runs[1]


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("scale", {"scale": math.nan}),
        ("scale", {"scale": math.inf}),
        ("interval", {"scale": 2.0, "sigma_min": -1.0}),
        ("interval", {"scale": 2.0, "sigma_min": 2.0, "sigma_max": 2.0}),
        ("interval", {"scale": 1.0, "sigma_min": 3.0, "sigma_max": 2.0}),
        ("interval", {"scale": 2.0, "sigma_max": math.nan}),
    ],
)
def test_what_cannot_work_is_named(match, arguments):
    with pytest.raises(errors.ConfigError, match=match):
        guidance.guide(_gaussian(STRONG), _gaussian(WEAK), **arguments)


# --- the null condition ---


def test_null_condition_is_zero(key):
    cond = jax.random.normal(key, (3, 4), jnp.bfloat16)
    null = guidance.null_condition(cond)
    assert null.dtype == cond.dtype
    np.testing.assert_array_equal(null, np.zeros((3, 4)))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.85])
def test_a_fraction_of_rows_loses_its_condition(key, fraction):
    rows = 4000
    key_cond, key_drop = jax.random.split(key)
    cond = jax.random.normal(key_cond, (rows, 3), jnp.float32)
    got = np.asarray(guidance.drop_condition(cond, key_drop, fraction))
    dropped = (got == 0).all(axis=1)
    # A row is lost whole or kept whole, as it was.
    np.testing.assert_array_equal(got[~dropped], np.asarray(cond)[~dropped])
    # 4 binomial errors.
    bound = 4 * math.sqrt(fraction * (1 - fraction) / rows)
    assert abs(dropped.mean() - fraction) < bound
    # Rows independently of each other: a neighbour says nothing.
    together = np.mean(dropped[1:] & dropped[:-1])
    assert abs(together - fraction**2) < 4 * fraction * math.sqrt(2 / rows)


def test_dropping_follows_its_key(key):
    cond = jnp.ones((64, 2), jnp.float32)
    first, second = jax.random.split(key)
    again = guidance.drop_condition(cond, first.copy(), 0.5)
    np.testing.assert_array_equal(guidance.drop_condition(cond, first, 0.5), again)
    assert (guidance.drop_condition(cond, second, 0.5) != again).any()


def test_dropping_none_and_all(key):
    cond = jnp.full((50, 2), jnp.nan, jnp.float32)
    assert guidance.drop_condition(cond, key, 0.0) is cond
    # The key was not used, so that the check against using one twice lets it through; and zeros
    # take the place of anything.
    np.testing.assert_array_equal(guidance.drop_condition(cond, key, 1.0), np.zeros((50, 2)))


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_fraction_outside_is_named(key, fraction):
    with pytest.raises(errors.ConfigError, match="fraction"):
        guidance.drop_condition(jnp.ones((2, 2), jnp.float32), key, fraction)
