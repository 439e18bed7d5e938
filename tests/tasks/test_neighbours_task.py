"""NeighbourTask: means and summary by hand, the loss, and who trains what."""

from __future__ import annotations

import gaussian_toys as exact
import jax
import jax.numpy as jnp
import neighbour_toys as near
import numpy as np
import pytest
import window_toys as toys

from stemjax import config, tasks
from stemjax.config import building
from stemjax.diffusion import denoiser

# ---------------------------------------------------------------------------- means and summary


def test_means_are_weighted_by_gaussians_of_the_distance():
    batch = near.given()
    found = near.exact_task()[0].means(batch)
    expected = near.means_by_hand(batch)
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.05  # the reaches differ
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32 sums of seven
    # The spot itself stands at distance 0 and is not among them.
    other = batch | {"x0": np.where(batch["asked"][..., None] > 0, 1e6, batch["x0"])}
    np.testing.assert_array_equal(near.exact_task()[0].means(other), found)


def test_far_neighbours_alone_still_have_weights():
    batch = near.given()
    batch["xy"][:, 1:] += 20_000.0  # exp(-d^2 / 2 r^2) is 0 in any precision there
    found = np.asarray(near.exact_task()[0].means(batch))
    relative = batch["xy"] - batch["xy"][:, :1]
    for b in range(4):
        square = np.square(relative[b].astype(np.float64)).sum(axis=1)
        square = np.where(batch["shown"][b] > 0, square, np.inf)
        weights = np.exp(-(square - square.min()) / (2 * near.REACHES[1] ** 2))
        expected = weights @ batch["x0"][b] / weights.sum()
        # Squares of 8e8 um^2 in float32 carry 64 um^2, 4e-4 of 2 x 300^2.
        np.testing.assert_allclose(found[b, 1], expected, atol=5e-3)


@pytest.mark.parametrize("value", [1e20, np.nan], ids=["huge", "nan"])
def test_expression_that_is_not_shown_is_not_read(value):
    task, params = near.exact_task()
    batch = near.given()
    spoilt = batch["x0"].copy()
    spoilt[batch["shown"] == 0] = value
    other = batch | {"x0": spoilt}
    whole = near.predict(task, params, batch, mode="draws", n_draws=2, steps=2)
    again = near.predict(task, params, other, mode="draws", n_draws=2, steps=2)
    np.testing.assert_array_equal(again, whole)


def test_where_nobody_is_shown_the_means_are_zero():
    task, params = near.exact_task()
    batch = near.given()
    batch["shown"][1:3] = 0
    found = np.asarray(task.means(batch))
    np.testing.assert_array_equal(found[1:3], np.zeros((2, 2, 3)))
    assert np.abs(found[0]).min() > 0
    summary = np.asarray(task.summary(batch))
    np.testing.assert_array_equal(summary[1:3], np.zeros((2, near.SUMMARY)))
    # The draws then have the embedding alone to go by: D at sigma = inf is their mean.
    mean = denoiser.conditional_mean(task.denoiser(params, batch), batch=4, genes=toys.GENES)
    expected = batch["cond"][1:3, 0] @ (exact.W + near.REGRESSION["v"])
    np.testing.assert_allclose(mean[1:3], expected, rtol=1e-5, atol=1e-5)
    grads = jax.jit(jax.grad(lambda p: task.loss(p, batch, jax.random.key(0))[0]))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_the_summary_by_hand():
    batch = near.given()
    task = near.exact_task()[0]
    found = np.asarray(task.summary(batch))
    assert (
        found.shape == (4, near.SUMMARY) == (4, tasks.summary_width(toys.GENES, len(near.REACHES)))
    )
    expected = near.joined_by_hand(batch)[:, toys.WIDTH :]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert (
        found[0, 2 * toys.GENES + 1] == 0 < found[1, 2 * toys.GENES + 1]
    )  # not shown, no distance
    np.testing.assert_allclose(found[:, -1], [6 / 7, 6 / 7, 1, 5 / 7], rtol=1e-6)


def test_the_summary_is_as_wide_as_the_network_of_a_configuration():
    experiment = config.resolve(
        {
            "model": {"kind": "lite", "width": 8, "depth": 1},
            "window": {"kind": "neighbours", "length": 8, "reaches": "100,300"},
        }
    )
    shape = building.network_shape(experiment, genes=toys.GENES, condition=toys.WIDTH)
    assert shape.condition == toys.WIDTH + near.SUMMARY
    task = config.make_task(experiment, genes=toys.GENES, condition=toys.WIDTH)
    assert isinstance(task, tasks.NeighbourTask)
    assert task.reaches_um == near.REACHES
    rows = near.given()["x0"].reshape(-1, toys.GENES)
    params = task.fit(task.init(jax.random.key(0)), iter([rows]))
    # A fresh denoiser says 0: the mean of all is the regression's.
    mean = denoiser.conditional_mean(task.denoiser(params, near.given()), batch=4, genes=toys.GENES)
    found = near.predict(task, params, near.given(), mode="mean")
    np.testing.assert_allclose(found[0], mean, rtol=1e-5, atol=1e-6)
    assert np.abs(found).max() > 0.1
    assert task.regression.form == "corrected"


# ------------------------------------------------------------------------------------------ loss


def _mask(batch):
    batch["mask"][0, 0], batch["mask"][1, 0] = [1, 0, 1], [0, 0, 1]
    return batch


def _row(batch):
    """What is diffused: the spot itself less the regression, given what is told of the others."""
    return {
        "cond": near.joined_by_hand(batch).astype(np.float32),
        "x0": (batch["x0"][:, 0] - near.centre_by_hand(batch)).astype(np.float32),
        "mask": batch["mask"][:, 0],
    }


def test_the_loss_by_hand():
    task, params = near.exact_task(mean_fraction=0.25, condition_noise=0.1)
    batch, key = _mask(near.given()), jax.random.key(3)
    loss, parts = jax.jit(task.loss)(params, batch, key)
    inner, by_inner = task.edm.loss(params["denoiser"], _row(batch), jax.random.split(key, 3)[2])
    rows = zip(near.centre_by_hand(batch), batch["x0"][:, 0], batch["mask"][:, 0])
    fit = np.mean([np.mean((c - x)[m > 0] ** 2) for c, x, m in rows])
    np.testing.assert_allclose(parts["loss_regression"], fit, rtol=1e-5)
    # float32: EDM's targets divide by noise levels down to about .1.
    np.testing.assert_allclose(loss, inner + fit, rtol=1e-4)
    assert float(parts["loss"]) == float(loss)
    for name in ("loss_mean_token", "loss_noisy"):
        np.testing.assert_allclose(parts[name], by_inner[name], rtol=1e-4)
        assert parts[name] > 0.1


def test_genes_that_were_not_measured_do_not_count():
    task, params = near.exact_task(mean_fraction=0.25)
    batch, key = _mask(near.given()), jax.random.key(3)
    run = jax.jit(task.loss)
    loss, _ = run(params, batch, key)
    batch["x0"][0, 0, 1] = batch["x0"][1, 0, 0] = 1e6
    np.testing.assert_array_equal(run(params, batch, key)[0], loss)


def test_each_part_of_the_loss_trains_its_own_weights():
    task, params = near.exact_task(mean_fraction=0.25)
    batch, key = _mask(near.given()), jax.random.key(3)
    grads = jax.jit(jax.grad(lambda p: task.loss(p, batch, key)[0]))(params)
    # The regression: least squares over the measured genes, and nothing of the diffusion.
    mask = batch["mask"][:, 0]
    off = (
        2 * (near.centre_by_hand(batch) - batch["x0"][:, 0]) * mask / mask.sum(1, keepdims=True) / 4
    )
    by_hand = {
        "v": batch["cond"][:, 0].T @ off,
        "c": (off * near.pooled_by_hand(batch)).sum(axis=0),
    }
    for name, expected in by_hand.items():
        assert np.abs(expected).min() > 1e-3
        np.testing.assert_allclose(grads["regression"][name], expected, rtol=1e-4, atol=1e-6)

    # The denoiser: the diffusion loss of the rest, which does depend on the regression.
    def diffusion(p, shift):
        row = _row(batch)
        row["x0"] = row["x0"] - shift[None]
        return task.edm.loss(p, row, jax.random.split(key, 3)[2])[0]

    inner, through = jax.jit(jax.grad(diffusion, argnums=(0, 1)))(params["denoiser"], jnp.zeros(3))
    assert np.abs(through).max() > 1e-2  # a gradient that is stopped
    for one, other in zip(jax.tree.leaves(grads["denoiser"]), jax.tree.leaves(inner)):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-4)


def test_training_hides_neighbours_by_the_key_of_its_step():
    task, spied = near.spied_task(lambda x, level, cond: 0.0 * x, hide=0.9, mean_fraction=0.0)
    batch, params = toys.batch(40), {"denoiser": {}, "regression": near.REGRESSION}
    plain, unhidden = near.spied_task(lambda x, level, cond: 0.0 * x, mean_fraction=0.0)
    for key in (1, 1, 2):
        task.loss(params, batch, jax.random.key(key))
    plain.loss(params, batch, jax.random.key(1))
    one, same, other = (cond for _, _, cond in spied.calls)
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    ((_, _, whole),) = unhidden.calls
    np.testing.assert_allclose(whole, near.joined_by_hand(batch), rtol=1e-5, atol=1e-6)
    assert (one[:, -1] <= whole[:, -1]).all()
    assert (one[:, -1] < whole[:, -1]).mean() > 0.5
    # Marks and distances go together.
    marks, told = one[:, -5:-1], one[:, -9:-5]
    assert ((told > 0) == (marks > 0)).mean() > 0.95  # a distance may be 0
    np.testing.assert_allclose(told, whole[:, -9:-5] * marks, rtol=1e-6)
