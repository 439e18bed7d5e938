"""The MLP baseline: laws it must learn, when it stops, its quantiles, one compilation."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from stemjax.eval import baselines, metrics
from stemjax.eval.baselines import perceptron

SMALL = perceptron.Training(width=32, batch=64, rounds=60, noise=0.0, learning_rate=3e-3)


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


def bent(rng, n, noise=0.3):
    """Embeddings, and targets that no linear function of them predicts; spread grows with x1."""
    x = rng.normal(size=(n, 3))
    parts = np.abs(x[:, 0]), x[:, 0] * x[:, 1], 5.0 + 0.0 * x[:, 2], x[:, 0] ** 2, x[:, 1] ** 2
    mean = np.stack(parts, axis=1)
    spread = noise * np.exp(0.7 * x[:, 1:2])
    return 10.0 + 4.0 * x, mean + spread * rng.normal(size=mean.shape), mean, spread


def fit(x, y, mask, test_x, fold, **options):
    return perceptron.perceptron(x, y, mask, test_x, fold=fold, training=SMALL, **options)


@pytest.fixture(scope="module")
def learned():
    rng = np.random.default_rng(7)
    x, y, _, _ = bent(rng, 3000)
    test = bent(rng, 2000)
    found = fit(x, y, np.ones(y.shape), test[0], np.arange(3000) % 5)
    return x, y, test, found


def test_it_learns_what_ridge_cannot(learned):
    x, y, (test_x, _, mean, _), found = learned
    curved = [0, 1, 3, 4]
    assert metrics.mse(found.prediction[:, curved], mean[:, curved]) < 0.15
    linear = baselines.ridge(
        x, y, np.ones(y.shape), test_x, slide_index=np.arange(3000) % 5, array_xy=x[:, :2]
    )
    assert metrics.mse(linear.prediction[:, curved], mean[:, curved]) > 0.8
    assert metrics.mse(found.prediction[:, 2:3], mean[:, 2:3]) < 0.02  # nothing to learn there


def test_its_quantiles_are_those_of_the_law(learned):
    _, _, (_, true, mean, spread), found = learned
    assert (np.diff(found.quantiles, axis=0) > 0).all()
    law = metrics.Quantiles(levels=baselines.QUANTILE_LEVELS, values=found.quantiles)
    for level in metrics.LEVELS:
        low, high = metrics.central(law, level)
        # 10,000 entries tell a coverage to .005; the network is the rest.
        assert np.mean((true >= low) & (true <= high)) == pytest.approx(level, abs=0.05)
    # The width follows the spot: three quarters of the log spread's slope or more.
    width = np.log(found.quantiles[7] - found.quantiles[1]).mean(axis=1)
    assert np.polyfit(np.log(spread[:, 0]), width, 1)[0] > 0.75
    exact = mean + spread * stats.norm.ppf(0.9)
    assert metrics.pcc_per_gene(found.quantiles[6], exact)[:2].min() > 0.95
    # And the score knows: better than climatology, no better than the law itself.
    score = law.crps(true).mean()
    best = metrics.Normal(mean=mean, std=np.broadcast_to(spread, mean.shape)).crps(true).mean()
    flat = baselines.climatology(true, np.ones(true.shape), spots=len(true)).crps(true).mean()
    assert best < score < 1.25 * best < 0.8 * flat


def test_fresh_heads_are_the_normal_law_and_never_cross(rng):
    mean, quantiles = perceptron._heads(jnp.zeros((2, 10, 3)))
    np.testing.assert_array_equal(mean, 0.0)
    normal = stats.norm.ppf(baselines.QUANTILE_LEVELS)
    np.testing.assert_allclose(quantiles[:, 0, 0], normal, atol=1e-6)  # float32
    wild = jnp.asarray(30 * rng.normal(size=(50, 10, 3)), jnp.float32)
    mean, quantiles = perceptron._heads(wild)
    np.testing.assert_array_equal(mean, wild[:, 0])
    # Steps below float32's rounding of the median may vanish, but never turn.
    assert (np.diff(quantiles, axis=0) >= 0).all()
    np.testing.assert_allclose(quantiles[4], wild[:, 5], rtol=1e-6)


def test_loss_is_squared_error_and_twice_the_pinball_loss(rng):
    from sklearn.metrics import mean_pinball_loss

    out = jnp.asarray(rng.normal(size=(20, 10, 4)), jnp.float32)
    y, weight = rng.normal(size=(20, 4)), rng.integers(0, 2, (20, 4))
    mean, quantiles = (np.asarray(v, np.float64) for v in perceptron._heads(out))
    use = weight != 0
    pinball = [
        mean_pinball_loss(y[use], q[use], alpha=p)
        for p, q in zip(baselines.QUANTILE_LEVELS, quantiles, strict=True)
    ]
    expected = np.mean((mean - y)[use] ** 2) + 2 * np.mean(pinball)
    found = perceptron._loss(out, jnp.asarray(y, jnp.float32), jnp.asarray(weight, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32 sums of 80


def test_noise_is_given_up_for_the_mean(rng):
    x, _, _, _ = bent(rng, 250)
    y = 3.0 + rng.normal(size=(250, 5))
    found = fit(x, y, np.ones(y.shape), x[:50], np.arange(250) % 5)
    assert found.rounds <= 2  # then it learns its own rows by heart
    error = metrics.mse(found.prediction, np.broadcast_to(y.mean(axis=0), (50, 5)))
    assert error < 0.2  # the noise has 1


def test_equal_seeds_give_equal_predictions_and_one_compilation(rng):
    x, y, _, _ = bent(rng, 250)
    fold, mask = np.arange(250) % 4, np.ones(y.shape)
    first = fit(x, y, mask, x[:50], fold, seed=3)
    config = perceptron.mlp.MlpConfig(genes=5, condition=3, outputs=10, width=32, depth=2)
    programs = perceptron._programs(config, SMALL)
    sizes = [program._cache_size() for program in programs]
    assert min(sizes) >= 1  # these are the programs that ran
    again = fit(x, y, mask, x[:50], fold, seed=3)
    other = fit(x, y, mask, x[:50], fold, seed=4)
    np.testing.assert_array_equal(first.prediction, again.prediction)
    np.testing.assert_array_equal(first.quantiles, again.quantiles)
    assert np.abs(first.prediction - other.prediction).max() > 1e-3
    fit(x, y[:, ::-1], mask, x[:50], np.arange(250) % 2, seed=5)  # other values, other folds
    assert [program._cache_size() for program in programs] == sizes


def test_what_was_not_measured_takes_no_part(rng):
    x, y, _, _ = bent(rng, 250)
    slide = np.arange(250) % 3
    mask = np.ones(y.shape)
    mask[slide == 0, 1] = 0
    mask[slide != 1, 3] = 0  # measured on one slide alone
    mask[:, 4] = 0
    found = fit(x, np.where(mask != 0, y, 1e6), mask, x[:50], slide)
    clean = fit(x, np.where(mask != 0, y, -1e6), mask, x[:50], slide)
    np.testing.assert_array_equal(found.prediction, clean.prediction)
    np.testing.assert_array_equal(found.quantiles, clean.quantiles)
    assert np.isnan(found.prediction[:, 4]).all()
    assert np.isnan(found.quantiles[:, :, 4]).all()
    assert np.abs(found.prediction[:, :4]).max() < 20
    assert np.isfinite(found.quantiles[:, :, :4]).all()


def test_one_fold_alone_gives_the_constant_mean(rng):
    x, y, _, _ = bent(rng, 250)
    found = fit(x, y, np.ones(y.shape), x[:50], np.zeros(250, int))
    assert found.rounds == 0
    assert np.isnan(found.held_out_loss)
    np.testing.assert_allclose(found.prediction, [y.mean(axis=0)] * 50, rtol=1e-5)  # float32
    normal = y.mean(axis=0) + y.std(axis=0) * stats.norm.ppf(0.9)
    np.testing.assert_allclose(found.quantiles[6, 0], normal, rtol=1e-4)


def test_the_held_out_fold_is_not_trained_on_and_the_best_round_is_kept(rng):
    # Fold 0 has a level of its own, which only its own rows could teach: training on the others
    # leads away from it, so the best is not to train.
    x, y, _, _ = bent(rng, 250)
    held = np.arange(250) % 5 == 0
    y[held] += 30.0
    found = fit(x, y, np.ones(y.shape), x[:50], (~held).astype(int))
    assert found.rounds == 0
    np.testing.assert_allclose(found.prediction, [y.mean(axis=0)] * 50, rtol=1e-5)
    # The loss of the constant start: squared error of 0, and the standard normal law's quantiles.
    z = ((y - y.mean(axis=0)) / y.std(axis=0))[held]
    levels = np.array(baselines.QUANTILE_LEVELS)[:, None, None]
    error = z - stats.norm.ppf(levels)
    pinball = np.maximum(levels * error, (levels - 1) * error)
    expected = np.mean(z**2) + 2 * np.mean(pinball)
    assert found.held_out_loss == pytest.approx(expected, rel=1e-5)  # float32


def test_training_stops_when_patience_ends(rng):
    x, y, _, _ = bent(rng, 250)
    fold, mask = np.arange(250) % 5, np.ones(y.shape)
    short = fit(x, y, mask, x[:50], fold)
    assert 0 < short.rounds < SMALL.rounds  # it learned, and would have learned by heart
