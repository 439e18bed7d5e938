"""Ladders against hand numbers, closed forms and DDPM's own betas."""

from __future__ import annotations

import numpy as np
import pytest

from stemjax import errors
from stemjax.diffusion import ladders

NAMES = sorted(ladders.LADDERS)


@pytest.mark.parametrize(
    ("sigma_min", "sigma_max", "rho", "expected"),
    [
        (1.0, 4.0, 1.0, [4.0, 2.5, 1.0, 0.0]),  # even spacing
        (1.0, 100.0, 2.0, [100.0, 30.25, 1.0, 0.0]),  # square roots 10, 5.5, 1
        (1.0, 64.0, 3.0, [64.0, 15.625, 1.0, 0.0]),  # cube roots 4, 2.5, 1
        (1.0, 2187.0, 7.0, [2187.0, 128.0, 1.0, 0.0]),  # seventh roots 3, 2, 1
    ],
)
def test_karras_hand_numbers(sigma_min, sigma_max, rho, expected):
    rungs = ladders.karras(3, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    # One rounding to float32.
    np.testing.assert_allclose(rungs, expected, rtol=1e-7, atol=0)


def test_karras_defaults_are_edm():
    rungs = np.asarray(ladders.karras(18))
    assert rungs.dtype == np.float32
    np.testing.assert_allclose(rungs[[0, 17, 18]], [80.0, 0.002, 0.0], rtol=1e-7)
    # The seventh roots of the rungs above zero are evenly spaced; float32 rounding of a rung is
    # 6e-8 of it, a seventh of that in its root, against a spacing of .12.
    roots = rungs[:-1].astype(np.float64) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17, rtol=1e-6)


def test_log_uniform_hand_numbers():
    rungs = ladders.log_uniform(4, sigma_min=0.01, sigma_max=10.0)
    np.testing.assert_allclose(rungs, [10.0, 1.0, 0.1, 0.01, 0.0], rtol=1e-7)
    # The limit of Karras' ladder as rho grows: what is left is of order ln(1000)² / rho.
    limit = ladders.karras(4, sigma_min=0.01, sigma_max=10.0, rho=1e6)
    np.testing.assert_allclose(rungs, limit, rtol=5e-5)


def test_vp_linear_hand_numbers():
    # beta = 2 throughout: 1 + sigma² = e^(2 t).
    rungs = ladders.vp_linear(3, sigma_min=1.0, sigma_max=np.sqrt(31.0), beta_min=2.0, beta_max=2.0)
    # 1 + sigma² = 32, 8, 2: evenly spaced logarithms.
    np.testing.assert_allclose(rungs, np.sqrt([31.0, 7.0, 1.0, 0.0]), rtol=1e-7)
    # The quadratic term: B(t) = t + t², so t = 2, 1.5, 1 have 1 + sigma² = e^6, e^3.75, e^2.
    top, middle, bottom = np.sqrt(np.expm1([6.0, 3.75, 2.0]))
    rungs = ladders.vp_linear(3, sigma_min=bottom, sigma_max=top, beta_min=1.0, beta_max=3.0)
    np.testing.assert_allclose(rungs, [top, middle, bottom, 0.0], rtol=1e-7)


def test_vp_linear_is_the_limit_of_ddpm():
    """Rung by rung against DDPM's 1000 betas: its step n, from 1, is at t = n / 1000."""

    def sigma(t):
        return np.sqrt(np.expm1(0.1 * t + 19.9 * t**2 / 2))

    rungs = ladders.vp_linear(1000, sigma_min=sigma(0.001), sigma_max=sigma(1.0))
    betas = np.linspace(1e-4, 0.02, 1000)
    n = np.arange(1, 1001)
    got = np.log1p(np.square(np.asarray(rungs, np.float64)[-2::-1]))  # -ln abar
    published = -np.cumsum(np.log1p(-betas))
    # Two discretisation errors: -ln(1 - beta) = beta + beta² / 2 + ..., in sum at most .067 of 10;
    # and the sum of the first n betas, which the integral exceeds by .00995 n (1000 - n) / 999000,
    # at most .0025.
    assert np.abs(got - published).max() < 0.07
    second_order = np.cumsum(betas**2 / 2 + betas**3 / 3)
    of_the_sum = 0.00995 * n * (1000 - n) / 999_000
    # What is left is beta^4 / 4, in sum 8e-6, and float32.
    np.testing.assert_allclose(got, published - second_order + of_the_sum, rtol=2e-7, atol=1e-5)


def test_vp_cosine_hand_numbers():
    # With s = 0, sigma = tan(t pi / 2): a twelfth of the circle apart, tan 60, 45 and 30 degrees.
    rungs = ladders.vp_cosine(3, sigma_min=np.sqrt(1 / 3), sigma_max=np.sqrt(3.0), s=0.0)
    np.testing.assert_allclose(rungs, [np.sqrt(3.0), 1.0, np.sqrt(1 / 3), 0.0], rtol=1e-7)


@pytest.mark.parametrize("s", [0.008, 0.1])
def test_vp_cosine_is_equation_17(s):
    def abar(t):
        f = np.cos((t + s) / (1 + s) * np.pi / 2) ** 2
        return f / np.cos(s / (1 + s) * np.pi / 2) ** 2

    t = np.linspace(0.999, 0.001, 50)
    sigma = np.sqrt(1 / abar(t) - 1)
    got = ladders.vp_cosine(50, sigma_min=sigma[-1], sigma_max=sigma[0], s=s)
    # float32; the ends are given in float64, where 1 / abar - 1 of 4e-5 loses five digits.
    np.testing.assert_allclose(got[:-1], sigma, rtol=2e-7)
    if s == 0.008:
        default = ladders.vp_cosine(50, sigma_min=sigma[-1], sigma_max=sigma[0])
        np.testing.assert_array_equal(default, got)


@pytest.mark.parametrize("steps", [1, 2, 8, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_ladder_falls_strictly_to_zero_between_exact_ends(name, steps):
    # The last pair is further than the cosine's angle resolves: its ends must be set, not computed.
    for sigma_min, sigma_max in [(0.002, 80.0), (0.0137, 79.3), (1e-5, 1e5), (1e-9, 1e9)]:
        rungs = np.asarray(ladders.LADDERS[name](steps, sigma_min=sigma_min, sigma_max=sigma_max))
        assert rungs.dtype == np.float32
        assert len(rungs) == steps + 1
        assert rungs[0] == np.float32(sigma_max)
        assert steps == 1 or rungs[-2] == np.float32(sigma_min)
        assert rungs[-1] == 0
        assert (np.diff(rungs) < 0).all()


def test_ladders_by_name():
    assert NAMES == ["karras", "log_uniform", "vp_cosine", "vp_linear"]
    for name in NAMES:
        np.testing.assert_array_equal(
            ladders.LADDERS[name](7, sigma_min=0.01, sigma_max=20.0),
            getattr(ladders, name)(7, sigma_min=0.01, sigma_max=20.0),
        )
    karras = ladders.karras(7, sigma_min=0.01, sigma_max=20.0, rho=7.0)
    np.testing.assert_array_equal(
        ladders.LADDERS["karras"](7, sigma_min=0.01, sigma_max=20.0), karras
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"sigma_min": 0.0}, "sigma_min=0.0"),
        ({"sigma_min": 1e-50}, "sigma_min=1e-50"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_max=2.0"),
        ({"sigma_max": float("inf")}, "sigma_max=inf"),
        ({"sigma_max": 1e200}, r"sigma_max=1e\+200"),
        ({"sigma_max": float("nan")}, "sigma_max=nan"),
        ({"sigma_min": 1.0, "sigma_max": 1 + 1e-9}, "tell apart"),
        ({"steps": 100, "sigma_min": 1.0, "sigma_max": 1 + 1e-6}, "100 steps"),
    ],
)
def test_ladder_that_cannot_work_is_named(name, wrong, named):
    with pytest.raises(errors.ConfigError, match=named):
        ladders.LADDERS[name](**{"steps": 8, "sigma_min": 0.002, "sigma_max": 80.0, **wrong})


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (ladders.karras, {"rho": 0.0}),
        (ladders.karras, {"rho": float("nan")}),
        (ladders.vp_linear, {"beta_min": 0.0}),
        (ladders.vp_linear, {"beta_max": 0.05}),
        (ladders.vp_linear, {"beta_max": float("inf")}),
        (ladders.vp_cosine, {"s": -0.1}),
        (ladders.vp_cosine, {"s": float("inf")}),
    ],
)
def test_shape_that_cannot_work_is_named(make, wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(errors.ConfigError, match=f"{name}={value}"):
        make(8, sigma_min=0.002, sigma_max=80.0, **wrong)
