"""The published process as a task, on networks whose eps is exact for a Gaussian."""

from __future__ import annotations

import functools

import gaussian_toys as toys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_networks

from stemjax import errors, names, tasks
from stemjax.diffusion import sampler

ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
STOCHASTIC = ("dpmpp2m_sde", "ancestral", "ddpm")


def _predict(task, sampling, keys=toys.KEYS, cond=toys.COND):
    run = jax.jit(functools.partial(task.predict, sampling=sampling))
    return np.asarray(run(task.init(jax.random.key(0)), cond, keys))


@pytest.mark.parametrize("mode", tasks.ONE_EVALUATION)
def test_modes_of_one_evaluation_are_refused_with_the_way_out(mode):
    with pytest.raises(errors.ConfigError, match=f"mode {mode}") as error:
        _predict(toys.ddpm_task(), tasks.Sampling(mode=mode))
    assert "--mode pair" in error.value.fix


def test_costs_are_those_of_sampling():
    task = toys.ddpm_task()
    assert task.extra_evaluations == 0
    assert task.evaluations(task.estimate) == 16
    assert task.estimate.mode == "pair"
    published = tasks.Sampling(mode="draws", sampler="ddpm", steps=1000, antithetic=False)
    assert task.evaluations(published) == 20_000
    heun = tasks.Sampling(mode="draws", sampler="heun", n_draws=2)
    assert task.evaluations(heun) == 2 * (2 * 8 - 1)


def test_the_levels_are_those_of_the_first_and_the_last_step():
    found = toys.ddpm_task().levels
    np.testing.assert_allclose(found, np.sqrt(1 / ABAR[[0, 999]] - 1), rtol=1e-12)
    np.testing.assert_allclose(found, (0.01, 157.4), rtol=1e-3)  # as documented, to three digits


# Each sampler and each ladder once or more; all 35 pairs would only compile longer.
SAMPLERS = [name for name in names.SAMPLERS if name != "consistency"]  # of another process
PAIRS = [*zip(SAMPLERS, names.LADDERS * 2), ("ddim", "ddpm"), ("dpmpp2m", "log_uniform")]


@pytest.mark.parametrize(("name", "ladder"), PAIRS)
def test_every_sampler_and_ladder_finds_the_mean(name, ladder):
    sampling = tasks.Sampling(mode="pair", sampler=name, ladder=ladder, steps=24)
    found = _predict(toys.ddpm_task(), sampling).mean(axis=0)
    mean = toys.COND @ toys.W
    # The pair's mean is the path from z = 0. The flow brings a share std / 157 of the start along,
    # .014 here; fresh noise forgets it. In 24 steps the solvers differ from it by up to 2e-3.
    if name not in STOCHASTIC:
        mean = toys.flow(np.zeros_like(mean), mean, toys.COV, 157.4)
    np.testing.assert_allclose(found, mean, atol=4e-3)


def test_the_denoiser_is_the_gaussians_own():
    task = toys.ddpm_task()
    params = task.init(jax.random.key(0))
    sigma = jnp.asarray([0.01, 0.1, 1.0, 10.0, 157.0] * 2, jnp.float32)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((10, toys.GENES)) * np.hypot(1, sigma)[:, None]).astype(np.float32)
    found = task.denoiser(params, toys.COND, repeat=2)(x, sigma)
    means = np.repeat(toys.COND @ toys.W, 2, axis=0)  # spot-major
    expected = toys.posterior_mean(x, sigma, means, toys.COV)
    # eps comes back through sigma: rounding of x = 157, of ln sigma and of the step's number.
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_an_odd_network_cancels_in_an_antithetic_pair():
    def apply(params, x, time, cond):
        eps = x @ jnp.asarray([[0.5, 0.1, 0.0], [-0.2, 0.3, 0.1], [0.0, 0.2, 0.4]])
        return jnp.stack([eps, jnp.full_like(eps, 0.5)], axis=1)

    task = tasks.DdpmTask(network=toy_networks.conditional(apply), genes=toys.GENES)
    draws = _predict(task, tasks.Sampling(mode="draws", sampler="ddpm", steps=5, n_draws=4))
    # Change of sign is exact in floating point, so the sum is 0 to the bit.
    np.testing.assert_array_equal(draws[0::2] + draws[1::2], 0)
    assert np.abs(draws[0] - draws[2]).min() > 1e-3
    free = tasks.Sampling(mode="draws", sampler="ddpm", steps=5, n_draws=4, antithetic=False)
    assert np.abs(np.diff(np.abs(_predict(task, free)), axis=0)).min() > 1e-4


@pytest.mark.parametrize(("antithetic", "v"), [(True, -1.0), (False, 0.3)])
def test_sampler_ddpm_takes_ancestral_steps_on_the_respaced_process(antithetic, v):
    steps, n_draws, task = 6, 4, toys.ddpm_task(v)
    asked = {"sampler": "ddpm", "steps": steps, "n_draws": n_draws, "antithetic": antithetic}
    found = _predict(task, tasks.Sampling(mode="draws", **asked))
    params = task.init(jax.random.key(0))
    # Improved DDPM by hand in float64: kept steps, their betas, eq. 7 and the learned variance.
    times = np.round(np.linspace(0, 999, steps)).astype(int)
    abar = ABAR[times]
    before = np.append(1.0, abar[:-1])
    betas = 1 - abar / before
    tilde = betas * (1 - before) / (1 - abar)
    tilde[0] = tilde[1]
    units = np.asarray(
        sampler.initial_noise(toys.KEYS, n_draws=n_draws, genes=toys.GENES, antithetic=antithetic)
    )
    network_of = jax.jit(task.network.apply)
    for draw in range(n_draws):
        own = draw - draw % 2 if antithetic else draw
        sign = -1.0 if antithetic and draw % 2 else 1.0
        x = units[draw].astype(np.float64)
        for number, i in enumerate(reversed(range(steps))):
            time = jnp.full(toys.SPOTS, float(times[i]))
            output = np.asarray(network_of(params, x.astype(np.float32), time, toys.COND))
            eps, w = output[:, 0], (output[:, 1] + 1) / 2
            x0 = (x - np.sqrt(1 - abar[i]) * eps) / np.sqrt(abar[i])
            mean = np.sqrt(before[i]) * betas[i] / (1 - abar[i]) * x0
            mean += np.sqrt(1 - betas[i]) * (1 - before[i]) / (1 - abar[i]) * x
            std = np.exp((w * np.log(betas[i]) + (1 - w) * np.log(tilde[i])) / 2)
            noise = np.stack(
                [
                    jax.random.normal(
                        jax.random.fold_in(
                            jax.random.fold_in(jax.random.fold_in(key, own), 1), number
                        ),
                        (toys.GENES,),
                    )
                    for key in toys.KEYS
                ]
            )
            x = mean + (i > 0) * std * sign * noise
        # float32: x0 at the first step is a difference of numbers of size 157.
        np.testing.assert_allclose(found[draw], x, atol=1e-3)


def test_a_thousand_published_steps_draw_the_gaussian():
    spots = 150
    cond = np.tile(toys.COND[:1], (spots, 1))
    keys = sampler.spot_keys(1, "T", [str(i) for i in range(spots)])
    sampling = tasks.Sampling(mode="draws", sampler="ddpm", steps=1000, n_draws=4, antithetic=False)
    draws = _predict(toys.ddpm_task(), sampling, keys, cond).reshape(-1, toys.GENES)
    mean, variance = (toys.COND[:1] @ toys.W)[0], np.diag(toys.COV).astype(np.float64)
    # What the lower variance bound leaves of the covariance, by the recursion of the linear
    # map: x_(t-1) = a x_t + noise, along each eigenvector.
    values, vectors = np.linalg.eigh(toys.COV.astype(np.float64))
    left = np.ones_like(values)
    for i in reversed(range(1000)):
        before = ABAR[i - 1] if i else 1.0
        beta = 1 - ABAR[i] / before
        x0_from_x = np.sqrt(ABAR[i]) * values / (ABAR[i] * values + 1 - ABAR[i])
        a = np.sqrt(before) * beta / (1 - ABAR[i]) * x0_from_x
        a = a + np.sqrt(1 - beta) * (1 - before) / (1 - ABAR[i])
        left = a**2 * left + (beta * (1 - before) / (1 - ABAR[i]) if i else 0.0)
    discretised = np.diag(vectors * left @ vectors.T)
    n = len(draws)
    # The steps' own error of the variance, known from the recursion, is below 2 %.
    np.testing.assert_allclose(discretised, variance, rtol=0.02)
    # 4 standard errors of mean and variance of n Gaussian draws.
    assert (np.abs(draws.mean(axis=0) - mean) < 4 * np.sqrt(variance / n)).all()
    error = np.abs(draws.var(axis=0, ddof=1) - discretised)
    assert (error < 4 * discretised * np.sqrt(2 / n)).all()


def test_the_loss_is_finite_and_the_sum_of_its_parts():
    task = toys.ddpm_task()
    rng = np.random.default_rng(0)
    rows = 4000
    cond = rng.standard_normal((rows, toys.WIDTH)).astype(np.float32)
    noise = rng.multivariate_normal(np.zeros(toys.GENES), toys.COV, rows)
    batch = {
        "cond": cond,
        "x0": (cond @ toys.W + noise).astype(np.float32),
        "mask": np.ones((rows, toys.GENES), np.float32),
    }
    params = task.init(jax.random.key(0))
    loss, parts = jax.jit(task.loss)(params, batch, jax.random.key(1))
    assert set(parts) == {"loss", "loss_mse", "loss_bound"}
    assert all(np.isfinite(value) for value in parts.values())
    np.testing.assert_allclose(loss, parts["loss_mse"] + parts["loss_bound"], rtol=1e-6)
    np.testing.assert_array_equal(loss, parts["loss"])
    # What is left of eps when its mean given x_t is known: abar v / (abar v + 1 - abar) for an
    # eigenvalue v, over all steps. eps² of a row varies by less than 2, 4 standard errors.
    values = np.linalg.eigvalsh(toys.COV)
    rest = np.mean(ABAR[:, None] * values / (ABAR[:, None] * values + 1 - ABAR[:, None]))
    np.testing.assert_allclose(parts["loss_mse"], rest, atol=4 * 2 / np.sqrt(rows * toys.GENES))
    # Another network is worse: this one knows nothing and has an error of 1.
    zero = tasks.DdpmTask(
        network=toy_networks.conditional(lambda p, x, t, c: jnp.zeros((len(x), 2, toys.GENES))),
        genes=toys.GENES,
    )
    _, of_zero = jax.jit(zero.loss)({}, batch, jax.random.key(1))
    # The mean of 12000 squares of unit normals, 4 standard errors.
    np.testing.assert_allclose(of_zero["loss_mse"], 1.0, atol=4 * np.sqrt(2 / 12_000))


def test_a_gene_not_measured_has_no_part_in_the_loss():
    task, rng = toys.ddpm_task(), np.random.default_rng(0)
    x0 = rng.standard_normal((toys.SPOTS, toys.GENES)).astype(np.float32)
    mask = np.array([1, 0, 1] * toys.SPOTS, np.float32).reshape(x0.shape)
    params = task.init(jax.random.key(0))
    losses = [
        task.loss(params, {"cond": toys.COND, "x0": value, "mask": mask}, jax.random.key(1))[0]
        for value in (x0, np.where(mask > 0, x0, 1e3).astype(np.float32))
    ]
    np.testing.assert_array_equal(*losses)
