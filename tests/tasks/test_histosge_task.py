"""HisToSGETask: its loss by hand, what training hides, what it predicts, and that it learns."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import window_toys as toys

from stemjax import errors, tasks
from stemjax.data import windows as windows_lib
from stemjax.models import network
from stemjax.tasks import windows

CORRECTED = ("cond", "x", "seen", "shown", "present", "xy")
PUBLISHED = ("cond", "place", "present")


class Spied:
    """A network of windows whose output is given, and that keeps its inputs by name."""

    def __init__(self, output, names=CORRECTED):
        self.calls, self._output, self._names = [], output, names
        self.network = network.Network(init=lambda key: {}, apply=self._apply)

    def _apply(self, params, *inputs):
        assert len(inputs) == len(self._names)
        given = {name: np.asarray(a) for name, a in zip(self._names, inputs)}
        self.calls.append(given)
        return jnp.asarray(self._output(given))


def _spied(output, **options):
    names = PUBLISHED if options.get("form") == "published" else CORRECTED
    spied, features = Spied(output, names), Spied(lambda given: 10 * given["cond"], names)
    task = tasks.HisToSGETask(
        network=spied.network, features=features.network, genes=toys.GENES, **options
    )
    return task, spied, features


def _told(values, batch):
    """Expression where it is shown, 0 elsewhere: what a network of windows may read of it."""
    return np.where(batch["shown"][..., None] > 0, values, 0)


def _assert_as_it_stands(given, batch):
    for name in CORRECTED:
        if name in ("x", "seen"):
            np.testing.assert_array_equal(_told(given[name], batch), _told(batch["x0"], batch))
        else:
            np.testing.assert_array_equal(given[name], batch[name], err_msg=name)


def _first(given):
    """A corrected network that says the cond of the first spot, once for all genes."""
    return np.repeat(given["cond"][:, 0, :1], toys.GENES, axis=1)


def _every(given):
    return np.repeat(given["cond"][..., :1], toys.GENES, axis=2)


# ------------------------------------------------------------------------------------------ loss


def test_the_corrected_loss_is_of_the_first_spot_over_its_measured_genes():
    task, _, _ = _spied(_first)
    batch = toys.batch(3)
    batch["cond"][:, 0, 0] = [1.0, 2.0, 0.0]
    batch["x0"][:, 0] = [[0.0, 3.0, 1.0], [2.0, 2.0, 5.0], [7.0, 8.0, 9.0]]
    batch["mask"][:, 0] = [[1, 1, 1], [1, 0, 1], [0, 0, 0]]
    loss, parts = task.loss({}, batch, jax.random.key(0))
    # (1 + 4 + 0) / 3, (0 + 9) / 2, and a spot of which nothing was measured has no error.
    np.testing.assert_allclose(loss, (5 / 3 + 9 / 2 + 0) / 3, rtol=1e-6)
    assert float(parts["loss"]) == float(loss)


def test_other_spots_of_a_window_have_no_part_in_the_corrected_loss():
    task, _, _ = _spied(_first)
    batch = toys.batch(3)
    loss, _ = task.loss({}, batch, jax.random.key(0))
    batch["x0"][:, 1:], batch["mask"][:, 1:] = 50.0, 0.0
    assert float(task.loss({}, batch, jax.random.key(0))[0]) == float(loss) > 0


def test_the_published_loss_is_of_every_spot_that_is_asked_for():
    task, _, _ = _spied(_every, form="published")
    batch = toys.batch(2, 3, every_asked=True)
    batch["cond"][..., 0] = [[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]
    batch["x0"][:] = np.array([[1.0, 0.0, 3.0], [2.0, 9.0, 9.0]])[..., None]
    batch["mask"][:] = 1
    batch["mask"][0, 2] = [1, 0, 0]
    batch["x0"][0, 2] = [5.0, 99.0, 99.0]
    batch["asked"][:] = [[1, 0, 1], [1, 0, 0]]
    loss, _ = task.loss({}, batch, jax.random.key(0))
    # 0, 4 that nobody asks for, and 4 over one gene; then 4, and two absent.
    np.testing.assert_allclose(loss, (0 + 4 + 4) / 3, rtol=1e-6)


def test_a_batch_that_asks_for_nothing_has_a_loss_of_zero():
    task, _, _ = _spied(_every, form="published")
    batch = toys.batch(2, 3, every_asked=True)
    batch["asked"][:] = 0
    assert float(task.loss({}, batch, jax.random.key(0))[0]) == 0.0


@pytest.mark.parametrize("form", ["corrected", "published"])
def test_genes_that_were_not_measured_do_not_count(form):
    task, _, _ = _spied(_first if form == "corrected" else _every, form=form)
    batch = toys.batch(3, every_asked=form == "published")
    batch["mask"][..., 1] = 0
    loss, _ = task.loss({}, batch, jax.random.key(0))
    batch["x0"][..., 1] = 1e6
    other, _ = task.loss({}, batch, jax.random.key(0))
    assert float(other) == float(loss) > 0
    batch["mask"][..., 1] = 1
    assert float(task.loss({}, batch, jax.random.key(0))[0]) > 1e9


# ----------------------------------------------------------------------------- hiding and noise


def test_as_it_stands_training_shows_the_network_what_the_batch_holds():
    task, spied, _ = _spied(_first)
    batch = toys.batch()
    task.loss({}, batch, jax.random.key(0))
    _assert_as_it_stands(spied.calls[0], batch)


def test_noise_is_on_what_tokens_see_and_never_on_what_is_interpolated():
    task, spied, _ = _spied(_first, noise=0.5, condition_noise=0.2)
    # As many features as genes: one key for both would draw the same numbers.
    batch = toys.batch(300, width=toys.GENES)
    task.loss({}, batch, jax.random.key(0))
    (given,) = spied.calls
    np.testing.assert_array_equal(_told(given["x"], batch), _told(batch["x0"], batch))
    told = batch["shown"] > 0
    seen, cond = (given[name] - batch[of] for name, of in (("seen", "x0"), ("cond", "cond")))
    seen, cond = seen[told], cond[told]
    for added, size in ((seen, 0.5), (cond, 0.2)):
        # 4 standard errors of a standard deviation and of a mean of thousands of values.
        assert abs(added.std() - size) < 4 * size / np.sqrt(2 * added.size)
        assert abs(added.mean()) < 4 * size / np.sqrt(added.size)
    # The two are drawn apart: 4 standard errors of a correlation.
    both = np.corrcoef(seen.ravel(), cond.ravel())[0, 1]
    assert abs(both) < 4 / np.sqrt(cond.size)
    for name in ("shown", "present", "xy"):
        np.testing.assert_array_equal(given[name], batch[name])


def test_prediction_hides_nothing_and_adds_no_noise():
    task, spied, features = _spied(_first, noise=0.5, condition_noise=0.2, hide=1.0)
    batch = toys.batch()
    keys = jax.random.split(jax.random.key(0), 4)
    task.predict({}, batch, keys, sampling=task.estimate)
    task.hidden({}, batch, keys)
    for given in (spied.calls[0], features.calls[0]):
        _assert_as_it_stands(given, batch)


@pytest.mark.parametrize("most", [0.5, 1.0])
def test_what_training_hides(most):
    n, tokens = 4000, 401
    shown = np.ones((n, tokens), np.float32)
    shown[:, 0] = 0
    shown[:, 201:] = np.random.default_rng(0).random((n, 200)) < 0.5
    left = np.asarray(windows.hide_some(jnp.asarray(shown), jax.random.key(4), most))
    assert set(np.unique(left)) == {0.0, 1.0}
    assert (left <= shown).all()  # what was not shown never is
    share = 1 - left.sum(axis=1) / shown.sum(axis=1)
    # Uniform from 0 to most: Kolmogorov's distance is below 1.95 / sqrt(n) in 999 of 1000. What
    # is hidden of 300 spots strays by .025 from a share of .5, over which a uniform law of width
    # most = .5 is blurred: .4 of .05 at its end.
    gap = scipy.stats.kstest(share / most, "uniform").statistic
    assert gap < 1.95 / np.sqrt(n) + 0.02
    # No spot is hidden more than another: 5 standard errors, of 400 spots.
    each = 1 - left[:, 1:].sum(axis=0) / shown[:, 1:].sum(axis=0)
    error = np.sqrt(most / 2 * (1 - most / 2) / shown[:, 1:].sum(axis=0))
    assert (np.abs(each - most / 2) < 5 * error).all()


def test_hiding_is_a_function_of_its_key():
    shown = jnp.asarray(toys.batch(50)["shown"])
    one, same, other = (
        np.asarray(windows.hide_some(shown, jax.random.key(k), 0.5)) for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).mean() > 0.05
    np.testing.assert_array_equal(windows.hide_some(shown, jax.random.key(1), 0.0), shown)


def test_the_loss_hides_by_the_key_of_its_step():
    task, spied, _ = _spied(_first, hide=0.9)
    batch = toys.batch(50)
    for key in (1, 1, 2):
        task.loss({}, batch, jax.random.key(key))
    one, same, other = (call["shown"] for call in spied.calls)
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert (one <= batch["shown"]).all()
    assert 0.2 < one.sum() / batch["shown"].sum() < 0.9


# ------------------------------------------------------------------------------------ prediction


def test_the_corrected_form_predicts_one_profile_a_window():
    task, _, _ = _spied(_first)
    batch, keys = toys.batch(), jax.random.split(jax.random.key(0), 4)
    found = task.predict({}, batch, keys, sampling=tasks.Sampling(mode="mean"))
    np.testing.assert_array_equal(found, _first(batch)[None])
    # The features of the spot that is asked for, of which `features` knows all.
    np.testing.assert_array_equal(task.hidden({}, batch, keys), 10 * batch["cond"][None, :, 0])


def test_the_published_form_predicts_every_spot_of_a_window():
    task, _, _ = _spied(_every, form="published")
    batch = toys.batch(every_asked=True)
    keys = jax.random.split(jax.random.key(0), 4)
    found = task.predict({}, batch, keys, sampling=tasks.Sampling(mode="mean"))
    np.testing.assert_array_equal(found, _every(batch)[None])
    np.testing.assert_array_equal(task.hidden({}, batch, keys), 10 * batch["cond"][None])


@pytest.mark.parametrize("mode", ["pair", "draws", "marginal"])
def test_draws_are_refused(mode):
    task, _, _ = _spied(_first)
    sampling, keys = tasks.Sampling(mode=mode), jax.random.split(jax.random.key(0), 4)
    for ask in (
        lambda: task.predict({}, toys.batch(), keys, sampling=sampling),
        lambda: task.sampling(mode=mode),
        lambda: task.evaluations(sampling),
    ):
        with pytest.raises(errors.ConfigError) as caught:
            ask()
        assert caught.value.what == f"mode {mode}"
        assert "stem_neighbours.py" in caught.value.fix
    assert task.evaluations(task.estimate) == 1
    assert task.sampling() == task.estimate == tasks.Sampling(mode="mean")


def _awake(task):
    """Parameters away from the initial ones, whose zeros would hide the network."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree.map(lambda a: rng.normal(0, 0.5, a.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("value", [1e9, np.nan], ids=["huge", "nan"])
@pytest.mark.parametrize("published", [True, False], ids=["published", "corrected"])
def test_what_is_asked_for_does_not_tell_itself(published, value):
    task, batch = toys.histosge_task(published), toys.batch(every_asked=published)
    params, keys = _awake(task), jax.random.split(jax.random.key(0), 4)
    mean = jax.jit(functools.partial(task.predict, sampling=task.estimate))
    hidden = jax.jit(task.hidden)

    def both(batch):
        return mean(params, batch, keys), hidden(params, batch, keys)

    whole = both(batch)
    asked = batch["asked"] > 0
    spoilt = batch["x0"].copy()
    spoilt[asked] = value
    for one, other in zip(both(batch | {"x0": spoilt}), whole):
        np.testing.assert_array_equal(one, other)
    assert np.abs(whole[0]).max() > 0.1
    told = both(batch | {"x0": batch["x0"] + 1})
    # The published network sees no expression at all, the corrected one that of the others.
    assert (np.abs(told[0] - whole[0]).max() > 0.1) is not published


@pytest.mark.parametrize("published", [True, False], ids=["published", "corrected"])
def test_a_window_is_predicted_alike_in_any_company(published):
    task, batch = toys.histosge_task(published), toys.batch(11, every_asked=published)
    params, keys = _awake(task), jax.random.split(jax.random.key(0), 11)
    predict = functools.partial(tasks.make_predictor, task, task.estimate)
    whole = predict(rows=64)(params, batch, keys)
    order = np.random.default_rng(0).permutation(11)
    turned = {name: values[order] for name, values in batch.items()}
    # The same sums in other matmul shapes, fp32: a few ulp of values of size about 1.
    np.testing.assert_allclose(predict(rows=4)(params, batch, keys), whole, atol=2e-5)
    np.testing.assert_allclose(predict(rows=8)(params, turned, keys), whole[:, order], atol=2e-5)
    assert whole.shape == ((1, 11, 8, 3) if published else (1, 11, 3))
    assert np.abs(whole[:, 0] - whole[:, 1]).max() > 0.01


# -------------------------------------------------------------------------------------- learning


def _field(published):
    """A smooth field of three genes on 12 x 12 spots, above 0; embeddings tell a little of it."""
    rng = np.random.default_rng(2)
    place = np.stack(np.meshgrid(np.arange(12), np.arange(12)), axis=-1).reshape(-1, 2)
    waves = 2 * np.pi * place / 12.0
    x0 = 1 + np.sin(np.stack([waves[:, 0], waves[:, 1] + 1, waves.sum(axis=1)], axis=1))
    cond = np.stack([x0[:, 0] + x0[:, 1], x0[:, 2]], axis=1) + rng.normal(0, 1, (144, 2))
    kind = "rows" if published else "neighbours"
    slide = np.zeros(144, np.int64)
    made = windows_lib.make_windows(kind, 100.0 * place, slide, length=9)
    arrays = {"cond": cond, "x0": x0, "mask": np.ones((144, 3)), "xy": 100.0 * place}
    arrays = {k: v.astype(np.float32) for k, v in (arrays | {"place": place}).items()}
    tree = windows_lib.inputs(made, arrays, np.ones(144, bool))
    return {name: np.asarray(values[:]) for name, values in tree.items()}, x0.astype(np.float32)


@pytest.mark.parametrize("published", [True, False], ids=["published", "corrected"])
def test_a_smooth_field_is_learnt(published):
    task = toys.histosge_task(published, width=16)
    batch, x0 = _field(published)
    optimizer = optax.adam(1e-2)
    params = task.fit(task.init(jax.random.key(0)), iter([x0[:50], x0[50:]]))

    def step(carry, key):
        params, opt = carry
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch, key)
        updates, opt = optimizer.update(grads, opt)
        return (optax.apply_updates(params, updates), opt), loss

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys))
    keys = jax.random.split(jax.random.key(1), 60)
    _, losses = run((params, optimizer.init(params)), keys)
    constant = x0.var(axis=0).mean()
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < 0.3 * constant
