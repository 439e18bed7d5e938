"""The options of StemTask on networks that are exact for a Gaussian, or that show what they saw."""

from __future__ import annotations

import functools

import gaussian_toys as toys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_networks

from stemjax import config, errors, tasks
from stemjax.diffusion import denoiser, noise, sampler

DRAWS = tasks.Sampling(mode="draws", n_draws=6, sampler="heun", steps=40, ladder="log_uniform")


def _batch(n: int, mask: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "cond": rng.standard_normal((n, toys.WIDTH)).astype(np.float32),
        "x0": rng.standard_normal((n, toys.GENES)).astype(np.float32),
        "mask": (rng.random((n, toys.GENES)) <= mask).astype(np.float32),
    }


def _spied(output, **options) -> tuple[tasks.StemTask, toys.Spied]:
    spied = toys.Spied(output)
    law = noise.LogNormal(mean=0.0, std=1.0)
    options = {"mean_fraction": 0.25} | options
    return tasks.StemTask(network=spied.network, genes=toys.GENES, noise=law, **options), spied


def _predict(task, sampling, **params):
    run = jax.jit(functools.partial(task.predict, sampling=sampling))
    return np.asarray(run(task.init(jax.random.key(0)) | params, toys.COND, toys.KEYS))


# ------------------------------------------------------------------------------------- residual


@pytest.mark.parametrize("sigma_data", [1.0, 0.6])
def test_a_residual_model_has_the_mean_of_its_mean_token(sigma_data):
    found = _predict(toys.edm_task(residual=True, sigma_data=sigma_data), tasks.Sampling())
    # The mean itself, not twice: centre and mean token are the same number. fp32 matmul of 2 terms.
    np.testing.assert_allclose(found, toys.COND[None] @ toys.W, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("residual", [False, True])
def test_draws_of_a_gaussian_are_those_of_the_exact_flow(residual):
    found = _predict(toys.edm_task(residual=residual, sigma_data=0.7), DRAWS)
    z = sampler.initial_noise(
        toys.KEYS, n_draws=DRAWS.n_draws, genes=toys.GENES, antithetic=DRAWS.in_pairs
    )
    mean = toys.COND @ toys.W
    expected = np.stack([toys.flow(one, mean, toys.COV, 80.0) for one in np.asarray(z)])
    # Heun in 40 steps of ln sigma .23 shrinks deviations by about 5e-3; without the centre in
    # either place, or with one of twice the size, they differ by the mean, of size 1.
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert np.abs(mean).max() > 0.5


def test_many_residual_draws_have_mean_and_covariance():
    task, n = toys.edm_task(residual=True), 1000
    sampling = tasks.Sampling(mode="draws", n_draws=n, steps=24, antithetic=False)
    draws = _predict(task, sampling)
    mean, variance = toys.COND @ toys.W, np.diag(toys.COV)
    # 4 standard errors of a mean; the ODE starts without the mean, which costs std / 80 of it.
    assert (np.abs(draws.mean(axis=0) - mean) < 4 * np.sqrt(variance / n) + 0.02).all()
    # 5000 deviations from the true means: 4 standard errors of a variance are 4 sqrt(2 / 5000),
    # and of a covariance less; the solver's own error in 24 steps is below 1 %.
    r = (draws - mean).reshape(-1, toys.GENES)
    error = np.abs(r.T @ r / len(r) - toys.COV)
    assert (error < (4 * np.sqrt(2 / len(r)) + 0.01) * np.sqrt(np.outer(variance, variance))).all()


def test_a_residual_model_costs_one_evaluation_more_but_for_its_mean():
    plain, residual = toys.edm_task(), toys.edm_task(residual=True)
    pair = tasks.Sampling(mode="pair")
    assert (plain.evaluations(pair), residual.evaluations(pair)) == (16, 17)
    assert residual.evaluations(DRAWS) == 6 * (2 * 40 - 1) + 1
    for mode in ("mean", "marginal"):
        assert residual.evaluations(tasks.Sampling(mode=mode)) == 1


def test_a_residual_model_learns_the_residual_and_not_through_its_centre():
    # The network is 3 w: mean token and centre are then 3 w, since sigma_data is 1.
    def apply(params, x, level, cond):
        return jnp.broadcast_to(3 * params["w"][None], x.shape)

    built = toy_networks.conditional(apply)
    law = noise.LogNormal(mean=0.0, std=1.0)
    task = tasks.StemTask(
        network=built, genes=toys.GENES, noise=law, mean_fraction=0.0, residual=True
    )
    params, batch, key = {"w": jnp.asarray([0.1, -0.2, 0.5])}, _batch(6), jax.random.key(4)

    def by_hand(w):
        residual = batch["x0"] - 3 * params["w"][None]
        losses = denoiser.denoising_loss(
            lambda x, level: jnp.broadcast_to(3 * w[None], x.shape),
            residual, jnp.asarray(batch["mask"]), jax.random.split(key)[1],
            noise=law, sigma_data=1.0, mean_fraction=0.0,
        )  # fmt: skip
        return jnp.mean(losses)

    value, slope = jax.value_and_grad(lambda p: task.loss(p, batch, key)[0])(params)
    expected, slope_by_hand = jax.value_and_grad(by_hand)(params["w"])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    # The centre is a constant in it: a gradient through it would come on top.
    np.testing.assert_allclose(slope["w"], slope_by_hand, rtol=1e-5)


# ------------------------------------------------------------------------------------- marginal


@pytest.mark.parametrize("sigma_data", [1.0, 0.6])
def test_the_marginal_mode_gives_mean_and_standard_deviation(sigma_data):
    task = toys.edm_task(marginal=True, sigma_data=sigma_data)
    found = _predict(task, tasks.Sampling(mode="marginal"))
    assert found.shape == (2, toys.SPOTS, toys.GENES)
    np.testing.assert_allclose(found[0], toys.COND @ toys.W, rtol=1e-5, atol=1e-6)
    spread = np.broadcast_to(np.sqrt(np.diag(toys.COV)), found[1].shape)
    np.testing.assert_allclose(found[1], spread, rtol=1e-5)
    # And the mean of mode mean is the first channel's.
    np.testing.assert_array_equal(_predict(task, tasks.Sampling())[0], found[0])


def test_a_second_channel_does_not_change_the_draws():
    sampling = tasks.Sampling(mode="draws", n_draws=2, steps=3)
    one, two = (_predict(toys.edm_task(marginal=value), sampling) for value in (False, True))
    # The same operations, which XLA may fuse otherwise: rounding of numbers up to 80.
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_the_marginal_loss_adds_the_likelihood_of_the_mean_tokens():
    def output(x, level, cond):
        return jnp.stack([0.5 * cond[:, :1] + x, 0.3 + 0.0 * x], axis=1)

    task, _ = _spied(output, marginal=True)
    batch = _batch(16)
    loss, parts = task.loss({}, batch, jax.random.key(0))
    r = 0.5 * batch["cond"][:4, :1] - batch["x0"][:4]  # 4 of 16; at x = 0
    expected = np.mean(0.5 * (r**2 * np.exp(-0.3) + 0.3))
    np.testing.assert_allclose(parts["loss_variance"], expected, rtol=1e-5)
    np.testing.assert_allclose(parts["loss_mean_token"], np.mean(r**2), rtol=1e-5)
    by_rows = 0.25 * (parts["loss_mean_token"] + expected) + 0.75 * parts["loss_noisy"]
    np.testing.assert_allclose(loss, by_rows, rtol=1e-5)
    plain, _ = _spied(lambda *inputs: output(*inputs)[:, 0])[0].loss({}, batch, jax.random.key(0))
    np.testing.assert_allclose(loss - plain, 0.25 * expected, rtol=1e-4)


def test_the_gradient_reaches_every_parameter_of_the_network():
    experiment = config.resolve(
        {
            "model": {"width": 8, "depth": 1, "heads": 2},
            "diffusion": {"mean_fraction": 0.25, "marginal": True, "residual": True},
        }
    )
    task = config.make_task(experiment, genes=toys.GENES, condition=toys.WIDTH)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    # Away from the initial zeros, behind which nothing is reached.
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(np.float32), shapes)
    grad = jax.jit(jax.grad(lambda p: task.loss(p, _batch(8), jax.random.key(2))[0]))(params)
    leaves = jax.tree_util.tree_leaves_with_path(grad)
    still = [jax.tree_util.keystr(path) for path, leaf in leaves if not np.any(leaf)]
    assert not still
    assert all(np.isfinite(leaf).all() for _, leaf in leaves)


def test_the_variance_trains_the_second_channel_alone():
    def apply(params, x, level, cond):
        channels = jnp.stack([params["mean"], params["s"]])
        return jnp.broadcast_to(channels[None], (x.shape[0], 2, toys.GENES))

    built = toy_networks.conditional(apply)
    options = {"genes": toys.GENES, "noise": noise.LogNormal(), "mean_fraction": 1.0}
    task = tasks.StemTask(network=built, marginal=True, **options)
    params = {"mean": jnp.asarray([0.1, 0.5, -1.0]), "s": jnp.asarray([0.5, -0.5, 2.0])}
    batch = _batch(16)
    slope = jax.grad(lambda p: task.loss(p, batch, jax.random.key(0))[0])(params)
    r = np.asarray(params["mean"]) - batch["x0"]
    np.testing.assert_allclose(slope["mean"], 2 * r.mean(axis=0) / 3, rtol=1e-5)
    # (1 - r² exp(-s)) / 2, a third of a row's mean each.
    expected = (1 - (r**2).mean(axis=0) * np.exp(-np.asarray(params["s"]))) / 2 / 3
    np.testing.assert_allclose(slope["s"], expected, rtol=1e-4)


# ------------------------------------------------------------------- condition, weights, refusals


def _linear(x, level, cond):
    return 0.5 * cond[:, :1] + 0.1 * x


@pytest.mark.parametrize("residual", [False, True])
def test_a_share_of_rows_sees_the_null_condition(residual):
    task, spied = _spied(_linear, condition_dropout=0.3, condition_noise=0.2, residual=residual)
    batch, rows = _batch(2000), 2000
    task.loss({}, batch, jax.random.key(0))
    conds = [cond for _, _, cond in spied.calls]
    assert len(conds) == 1 + residual
    null = (conds[-1] == 0).all(axis=1)
    # 4 standard errors of a share of 2000 rows.
    assert abs(null.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / rows)
    # The noise is on the others and never on the null condition; .2 to 4 standard errors.
    added = (conds[-1] - batch["cond"])[~null]
    assert abs(added.std() - 0.2) < 4 * 0.2 / np.sqrt(2 * added.size)
    # The centre of a residual is taken with the condition that the row is shown.
    for cond in conds[1:]:
        np.testing.assert_array_equal(cond, conds[0])
    # Rows drop out whatever their place: mean tokens too.
    assert 0 < null[:500].mean() < 1


@pytest.mark.parametrize("condition_noise", [0.0, 0.2])
def test_without_dropout_the_loss_is_what_it_was_to_the_bit(condition_noise):
    task, _ = _spied(_linear, condition_dropout=0.0, condition_noise=condition_noise)
    batch, key = _batch(16, mask=0.8), jax.random.key(7)
    loss, _ = task.loss({}, batch, key)
    # The loss before there was any option, operation by operation.
    key_condition, key_rows = jax.random.split(key)
    cond = jnp.asarray(batch["cond"])
    if condition_noise:
        cond += condition_noise * jax.random.normal(key_condition, cond.shape)
    losses = denoiser.denoising_loss(
        lambda x, level: _linear(x, level, cond),
        jnp.asarray(batch["x0"]), jnp.asarray(batch["mask"]), key_rows,
        noise=task.noise, sigma_data=1.0, mean_fraction=0.25,
    )  # fmt: skip
    np.testing.assert_array_equal(loss, jnp.mean(losses))


# Weights of the squared error of D by definition (arXiv 2206.00364, 2303.09556, 2401.11605).
WEIGHTS = {
    "edm": lambda snr, gamma: snr + 1,
    "min_snr": np.minimum,
    "soft_min_snr": lambda snr, gamma: snr * gamma / (snr + gamma),
}


@pytest.mark.parametrize("name", noise.WEIGHTS)
def test_each_weight_is_taken_by_its_name_and_gamma(name):
    task, spied = _spied(_linear, weight=name, weight_gamma=2.0, sigma_data=0.8)
    batch = _batch(16)
    _, parts = task.loss({}, batch, jax.random.key(3))
    x, level, cond = spied.calls[0]
    sigma = np.exp(level[4:].astype(np.float64) / 250)[:, None]
    r = np.hypot(sigma, 0.8)
    output = np.asarray(_linear(x, level, cond))[4:]
    d = (0.8 / r) ** 2 * (x[4:] * r) + sigma * 0.8 / r * output
    snr = (0.8 / sigma[:, 0]) ** 2
    weight = WEIGHTS[name](snr, 2.0) / 0.8**2
    expected = np.mean(weight * ((d - batch["x0"][4:]) ** 2).mean(axis=1))
    # Levels of size 500 in float32 give sigma to 1e-6; D - x0 cancels a digit or two.
    np.testing.assert_allclose(parts["loss_noisy"], expected, rtol=1e-4)


def test_every_weight_has_its_formula_here():
    assert set(WEIGHTS) == set(noise.WEIGHTS)


@pytest.mark.parametrize(
    ("options", "sampling", "text"),
    [
        ({"mean_fraction": 0.0}, {"mode": "mean"}, "use --mode pair"),
        ({"mean_fraction": 0.0, "marginal": True}, {"mode": "marginal"}, "mean token"),
        ({}, {"mode": "marginal"}, "config.diffusion.marginal"),
        ({}, {"mode": "draws", "sampler": "ddpm"}, "--sampler dpmpp2m"),
        ({}, {"mode": "pair", "sampler": "ddpm"}, "config.diffusion.process = ddpm"),
    ],
)
def test_modes_that_a_model_was_not_trained_for_are_refused(options, sampling, text):
    task = toys.edm_task(**options)
    with pytest.raises(errors.ConfigError) as error:
        _predict(task, tasks.Sampling(**sampling))
    assert text in f"{error.value} {error.value.fix}"


def test_the_estimate_is_the_mean_token_where_there_is_one():
    with_token, without = toys.edm_task(), toys.edm_task(mean_fraction=0.0)
    assert (with_token.estimate.mode, without.estimate.mode) == ("mean", "pair")
    assert with_token.evaluations(with_token.estimate) == 1
    assert _predict(without, without.estimate).shape == (2, toys.SPOTS, toys.GENES)
    assert with_token.levels == without.levels == (0.01, 80.0)
