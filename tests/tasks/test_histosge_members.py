"""Members of a HisToSGETask: each for itself, and what those say that left a spot out."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import window_toys as toys

from stemjax import tasks
from stemjax.models import network


@pytest.mark.parametrize("published", [True, False], ids=["published", "corrected"])
def test_members_are_tasks_of_their_own_side_by_side(published):
    one, batch = toys.histosge_task(published), toys.batch(every_asked=published)
    one = dataclasses.replace(one, hide=0.5, noise=0.3)
    three = dataclasses.replace(one, members=3)
    params = jax.jit(three.init)(jax.random.key(5))
    each = [jax.tree.map(lambda a, i=i: a[i], params) for i in range(3)]
    kernels = np.stack([p["fc1" if published else "feature"]["kernel"] for p in each])
    assert len(np.unique(kernels.reshape(3, -1), axis=0)) == 3  # they start apart
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + rng.normal(0, 0.3, a.shape).astype(np.float32), params)
    each = [jax.tree.map(lambda a, i=i: a[i], params) for i in range(3)]

    key, keys = jax.random.key(7), jax.random.split(jax.random.key(0), 4)
    own, whole = jax.jit(one.loss), jax.jit(three.loss)
    losses = [own(p, batch, k)[0] for p, k in zip(each, jax.random.split(key, 3))]
    loss, parts = whole(params, batch, key)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)  # other matrix shapes
    assert float(parts["loss"]) == float(loss)
    assert np.std(losses) > 1e-3
    alone, found = (
        jax.jit(functools.partial(t.predict, sampling=t.estimate)) for t in (one, three)
    )
    alone = np.stack([alone(p, batch, keys) for p in each])
    found = found(params, batch, keys)
    np.testing.assert_allclose(found, alone.mean(axis=0), atol=1e-5)
    assert alone.std(axis=0).max() > 0.1
    hidden = [jax.jit(one.hidden)(p, batch, keys) for p in each]
    together = jax.jit(three.hidden)(params, batch, keys)
    np.testing.assert_allclose(together, np.concatenate(hidden, axis=-1), atol=1e-5)


MEMBERS, BAG = 6, 0.4


def _constants(bag=BAG):
    """Members that each say a number of their own."""

    def apply(params, cond, x, seen, shown, present, xy):
        return jnp.broadcast_to(params["c"], (cond.shape[0], toys.GENES))

    built = network.Network(init=lambda key: {"c": jnp.zeros(())}, apply=apply)
    return tasks.HisToSGETask(
        network=built, features=built, genes=toys.GENES, members=MEMBERS, bag=bag
    )


PARAMS = {"c": 10.0 + np.arange(MEMBERS, dtype=np.float32)}


def _trained_on(task, batch):
    """Which members a window trains, [m b]: those whose gradient it gives, alone in its batch."""

    def slope(window):
        alone = jax.tree.map(lambda a: a[None], window)
        return jax.grad(lambda p: task.loss(p, alone, jax.random.key(0))[0])(PARAMS)["c"]

    return np.asarray(jax.jit(jax.vmap(slope))(batch)).T != 0


def test_each_member_leaves_out_a_share_of_the_spots_by_where_they_lie():
    task, batch = _constants(), toys.batch(2000, 4)
    batch["xy"] = np.random.default_rng(0).uniform(0, 6000, (2000, 4, 2)).astype(np.float32)
    trained = _trained_on(task, batch)
    # 4 standard errors of a share of 2000 spots, and of a correlation.
    share = 1 - trained.mean(axis=1)
    assert (np.abs(share - BAG) < 4 * np.sqrt(BAG * (1 - BAG) / 2000)).all()
    apart = np.corrcoef(trained)[~np.eye(MEMBERS, dtype=bool)]
    assert np.abs(apart).max() < 4 / np.sqrt(2000)
    # It is the place of the first spot alone that decides, at every step.
    other = toys.batch(2000, 4, seed=9)
    other["xy"][:, 0] = batch["xy"][:, 0]
    np.testing.assert_array_equal(_trained_on(task, other), trained)
    # Spots of one row or one column of an array are not left out together.
    for axis in (0, 1):
        line = {name: values.copy() for name, values in batch.items()}
        line["xy"][:, 0, axis] = 300.0
        found = 1 - _trained_on(task, line).mean(axis=1)
        assert (np.abs(found - BAG) < 4 * np.sqrt(BAG * (1 - BAG) / 2000)).all()
    assert _trained_on(_constants(0.0), batch).all()


def test_a_member_that_is_not_trained_on_a_spot_has_no_part_in_its_loss():
    task, batch = _constants(), toys.batch(9)
    trained = _trained_on(task, batch)
    error = np.square(PARAMS["c"][:, None, None] - batch["x0"][None, :, 0]).mean(axis=-1)
    by_member = [row[kept].mean() if kept.any() else 0.0 for row, kept in zip(error, trained)]
    loss, _ = jax.jit(task.loss)(PARAMS, batch, jax.random.key(0))
    assert 0 < trained.mean() < 1
    np.testing.assert_allclose(loss, np.mean(by_member), rtol=1e-5)


def test_what_is_left_of_a_spot_is_left_by_members_that_have_not_seen_it():
    task, batch = _constants(), toys.batch(40)
    trained = _trained_on(task, batch)
    out = ~trained
    out[:, trained.all(axis=0)] = True  # where all have seen it, it is all of them
    expected = (out * PARAMS["c"][:, None]).sum(axis=0) / out.sum(axis=0)
    assert trained.all(axis=0).any()
    assert expected.std() > 0.1
    found = np.asarray(jax.jit(task.left_out_mean)(PARAMS, batch))
    np.testing.assert_allclose(found, np.repeat(expected[:, None], 3, axis=1), rtol=1e-6)
    # Prediction takes all members, wherever the spot lies.
    np.testing.assert_allclose(task.mean(PARAMS, batch), np.full((40, 3), 12.5), rtol=1e-6)
