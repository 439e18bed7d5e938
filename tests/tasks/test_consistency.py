"""Consistency tuning on a normal law whose consistency function is known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_networks
from normal_flows import COND, MEAN, STD, batch, column, denoise, edm, flow

from stemjax import config, errors, tasks
from stemjax.diffusion import consistency, denoiser, noise, sampler


def tuned(function, mean_fraction=0.0):
    task = dataclasses.replace(edm(function), mean_fraction=mean_fraction)
    return tasks.ConsistencyTask(edm=task, path="data")


def test_the_boundary_holds_for_any_weights():
    """f(x; 0) = x: c_skip is 1 and c_out 0 there, whatever the network says."""
    wild = toy_networks.conditional(lambda params, x, level, cond: 7.0 + 100 * jnp.sin(9 * x))
    teacher = tasks.StemTask(network=wild, genes=2, noise=noise.LogNormal())
    task = tasks.ConsistencyTask(edm=teacher)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2)), jnp.float32)
    function = task.edm.denoiser({}, COND)
    np.testing.assert_array_equal(function(x, jnp.zeros(3)), x)
    assert float(jnp.abs(function(x, jnp.ones(3)) - x).max()) > 1


def test_the_gap_closes_in_doublings():
    gap = consistency.Gap(doublings=4)
    t = jnp.asarray([1e-4, 1.0, 1.9, 2.0, 80.0])
    first = gap.earlier(t, jnp.float32(0.0))
    # n(1e-4) = 5, n(1) = 3.15, n(1.9) = 2.04, n(2) = 1.95, n(80) = 1; r = t (1 - n / 2).
    np.testing.assert_allclose(first[:3], 0.0)
    assert 0 < float(first[3]) < 0.1
    assert float(first[4]) == pytest.approx(40.0)
    last = gap.earlier(t, jnp.float32(0.999))
    expected = 1 - np.array([5, 1 + 8 / (1 + np.e)]) / 16
    np.testing.assert_allclose(last[:2] / t[:2], expected, rtol=1e-4)
    shares = [gap.earlier(t, jnp.float32(p)) for p in (0.0, 0.2, 0.3, 0.6, 0.8)]
    assert all(bool((a <= b).all()) for a, b in zip(shares, shares[1:], strict=False))
    np.testing.assert_array_equal(shares[0], shares[1])  # within one doubling nothing moves
    assert bool((last < t).all())


def test_the_exact_function_has_no_consistency_error():
    errors = consistency.errors
    t, r = jnp.asarray([0.1, 1.0, 60.0]), jnp.asarray([0.0, 0.9, 3.0])
    x = jnp.asarray(np.random.default_rng(2).standard_normal((3, 2)), jnp.float32) * column(t)
    measured = jnp.ones((3, 2), bool)
    given = (x, t, flow(x, t, r), r, measured)
    assert float(errors(flow, *given, sigma_data=1.0).max()) < 1e-9
    assert float(errors(denoise, *given, sigma_data=1.0)[1:].min()) > 1e-4


def test_tuning_descends_to_the_mean_of_its_target_and_the_target_is_held():
    """f(x; t) = MEAN + p (x - MEAN), target with gain k p at r.

    The error's slope in p with the target held is 2 (p (STD² + t²) - k p (STD² + r t)) / c_out².
    Four points x0 = +-STD, n = +-1 have the law's second moments, so this is exact.
    """
    t, r, k = 2.0, 0.7, 0.9
    x0 = np.float32([[1, 1], [1, 1], [-1, -1], [-1, -1]]) * STD + MEAN
    n = np.float32([[1, 1], [-1, -1], [1, 1], [-1, -1]])

    def error(p):
        def function(x, sigma):
            return MEAN + jnp.where(column(sigma) == t, p, k * p) * (x - MEAN)

        levels = jnp.full(4, t), jnp.full(4, r)
        return consistency.errors(
            function, x0 + t * n, levels[0], x0 + r * n, levels[1], np.ones((4, 2), bool),
            sigma_data=1.0,
        ).mean()  # fmt: skip

    p, scale = 0.4, t**2 / (1 + t**2)
    expected = 2 * (p * (1 + t**2) - k * p * (1 + r * t)) / scale
    assert float(jax.grad(error)(p)) == pytest.approx(expected, rel=1e-5)


def test_a_gene_that_was_not_measured_has_no_part():
    def mixing(x, sigma):  # the other gene sees it
        return denoise(x, sigma) + 0.1 * x.mean(axis=1, keepdims=True)

    task = tuned(mixing)
    mask = np.ones((64, 2), np.float32)
    mask[:, 1] = 0
    given = batch(64, 0.9, mask)
    other = {**given, "x0": given["x0"] + 1e6 * (1 - mask)}
    losses = [float(task.loss({}, b, jax.random.key(2))[0]) for b in (given, other)]
    assert losses[0] == losses[1] > 0


def test_one_step_is_the_map_and_more_keep_the_law():
    task = tuned(flow)
    keys = sampler.spot_keys(0, "S", ["a", "b", "c"])

    def draws(**options):
        sampling = task.sampling(mode="draws", n_draws=2000, antithetic=False, **options)
        return np.asarray(task.predict({}, COND, keys, sampling=sampling))

    one = draws(steps=1)
    z = sampler.initial_noise(keys, n_draws=2000, genes=2, antithetic=False)
    x = 80 * z.reshape(-1, 2)
    # float32 through c_in and back: 1e-6 of 80 z, which the map divides by 80.
    np.testing.assert_allclose(one.reshape(-1, 2), flow(x, jnp.full(6000, 80.0)), atol=1e-4)
    for found in (one, draws(steps=2, sigma_min=1.0), draws(steps=4, sigma_min=0.5)):
        # 6,000 draws: 4 errors of 1 / sqrt(n) and sqrt(2 / n); MEAN / 80 is missing after one step.
        np.testing.assert_allclose(found.mean(axis=(0, 1)), MEAN[0], atol=0.052 + 1 / 80)
        np.testing.assert_allclose(found.var(axis=(0, 1)), STD[0] ** 2, atol=0.075)


def test_the_first_rows_are_mean_tokens_and_the_others_none():
    """The mean's rows see x = 0 at the mean token's level, and their loss is the denoiser's own."""
    seen = []

    def apply(params, x, level, cond):
        seen.append((np.asarray(x), np.asarray(level)))
        return params["w"] * jnp.ones_like(x)

    network = toy_networks.conditional(apply)
    task = tasks.ConsistencyTask(
        edm=tasks.StemTask(network=network, genes=2, noise=noise.LogNormal(), mean_fraction=0.25),
        path="data",
    )
    given, params = batch(8, 0.5), {"w": jnp.float32(0.5)}
    _, parts = task.loss(params, given, jax.random.key(0))
    tokens = [(x, level) for x, level in seen if len(x) == 2]
    assert len(tokens) == 1
    np.testing.assert_array_equal(tokens[0][0], 0.0)
    np.testing.assert_allclose(tokens[0][1], denoiser.MEAN_TOKEN, rtol=1e-6)
    wanted = ((0.5 - given["x0"][:2]) ** 2).mean()
    assert float(parts["loss_mean_token"]) == pytest.approx(float(wanted), rel=1e-5)
    # Two rows of eight are theirs, and the rest is the consistency error's.
    without = dataclasses.replace(task, edm=dataclasses.replace(task.edm, mean_fraction=0.0))
    _, alone = without.loss(params, given, jax.random.key(0))
    assert "loss_mean_token" not in alone
    found = task.predict(params, COND, None, sampling=task.sampling(mode="mean"))
    np.testing.assert_allclose(found, np.full((1, 3, 2), 0.5), rtol=1e-6)


def test_what_is_not_asked_for_is_the_models_own():
    task = tuned(flow)
    assert (task.sampling(mode="draws").sampler, task.sampling().steps) == ("consistency", 1)
    found = task.sampling(steps=4, sigma_min=1.0).on(task.levels)
    np.testing.assert_allclose(np.asarray(found.rungs)[[0, 3, 4]], [80.0, 1.0, 0.0], rtol=1e-6)
    assert edm().sampling(mode="draws") == tasks.Sampling(mode="draws")
    assert task.evaluations(task.sampling(mode="draws", n_draws=6, steps=2)) == 12
    assert task.evaluations(task.sampling(mode="mean")) == 1


@pytest.mark.parametrize(
    ("task", "options", "match"),
    [
        (tuned(flow), {"sampler": "dpmpp2m"}, "consistency model"),
        (edm(), {"sampler": "consistency"}, "process = consistency"),
    ],
)
def test_a_sampler_of_another_process_is_refused(task, options, match):
    keys = sampler.spot_keys(0, "S", ["a", "b", "c"])
    with pytest.raises(errors.ConfigError, match=match):
        task.predict({}, COND, keys, sampling=tasks.Sampling(mode="draws", **options))


def test_the_teacher_leads_to_the_other_point():
    """With the exact denoiser it is Euler's step, whose end the exact function does not share."""
    task = dataclasses.replace(tuned(flow), path="teacher").taught({})
    x, t, r = column([4.0, -2.0]) * jnp.ones((2, 2)), jnp.full(2, 3.0), jnp.full(2, 1.5)
    tuned_partner = task.partner(x, x, COND[:2], x, t, r)
    edm_task = dataclasses.replace(edm(), mean_fraction=0.0)
    exact = tasks.ConsistencyTask(edm=edm_task).taught({})
    found = exact.partner(x, x, COND[:2], x, t, r)
    clean = denoise(x, t)
    np.testing.assert_allclose(found, clean + 0.5 * (x - clean), rtol=1e-5)
    assert float(jnp.abs(found - tuned_partner).max()) > 0.01


def test_there_is_no_denoiser_to_guide():
    with pytest.raises(errors.ConfigError, match="tuned from"):
        tuned(flow).denoiser({}, COND)


FITTING = {"process": "consistency", "noise": "loguniform"}


@pytest.mark.parametrize(
    ("diffusion", "train", "match"),
    [
        ({"noise": "lognormal"}, {}, r"diffusion\.noise"),
        ({"residual": True}, {}, "residual"),
        ({"condition_dropout": 0.1}, {}, "condition_dropout"),
        ({}, {"validate_every": 10}, "validate_every"),
    ],
)
def test_an_experiment_that_cannot_be_tuned_is_refused(diffusion, train, match):
    plain = {"validate_every": 0}
    made = config.resolve({"diffusion": FITTING, "train": plain})
    with pytest.raises(errors.ConfigError, match="partner"):
        config.resolve({"diffusion": {"partner": "data"}})
    task = config.make_task(made, genes=3, condition=4)
    assert isinstance(task, tasks.ConsistencyTask)
    assert task.noise == noise.LogUniform(sigma_min=0.01, sigma_max=80.0)
    with pytest.raises(errors.ConfigError, match=match):
        config.resolve({"diffusion": FITTING | diffusion, "train": plain | train})
