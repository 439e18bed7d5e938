"""Tasks: the loss's parts, prediction in portions, spot-keyed randomness."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_networks

from stemjax import config, errors, mesh, tasks
from stemjax.diffusion import noise, sampler
from stemjax.eval import metrics
from stemjax.tasks import predictor

GENES, WIDTH = 5, 3


def _linear_task(**changes) -> tasks.StemTask:
    """A task whose network is F = level-free linear map of the condition plus a share of x."""

    def init(key):
        return {"w": jax.random.normal(key, (WIDTH, GENES))}

    def apply(params, x, level, cond):
        return cond @ params["w"] + 0.1 * x + 0.0 * level[:, None]

    return tasks.StemTask(
        network=toy_networks.conditional(apply, init),
        genes=GENES,
        noise=noise.LogNormal(mean=0.0, std=1.0),
        **changes,
    )


def _stem_task() -> tasks.StemTask:
    experiment = config.resolve(
        {"model": {"width": 16, "depth": 2, "heads": 2}, "diffusion": {"mean_fraction": 0.25}}
    )
    return config.make_task(experiment, genes=GENES, condition=WIDTH)


def _awake(task: tasks.StemTask, key: jax.Array) -> dict:
    """Parameters away from the initial ones, whose zeros would hide the network."""
    params = task.init(key)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
    moved = [leaf + 0.2 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys)]
    return jax.tree.unflatten(tree, moved)


def _batch(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "cond": rng.standard_normal((n, WIDTH)).astype(np.float32),
        "x0": rng.standard_normal((n, GENES)).astype(np.float32),
        "mask": np.ones((n, GENES), np.float32),
    }


def test_the_loss_is_the_mean_of_its_parts_by_their_rows(key):
    task = _linear_task(mean_fraction=0.25)
    loss, parts = task.loss(task.init(key), _batch(16), key)
    # 4 of 16 rows are mean tokens; float32 sums of 80 terms.
    expected = 0.25 * parts["loss_mean_token"] + 0.75 * parts["loss_noisy"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_plain_regression_is_the_mean_squared_error_from_the_condition(key):
    task, batch = _linear_task(mean_fraction=1.0), _batch(16)
    params = task.init(key)
    loss, parts = task.loss(params, batch, key)
    expected = np.mean((batch["cond"] @ np.asarray(params["w"]) - batch["x0"]) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert "loss_noisy" not in parts


def test_stock_edm_has_no_mean_token(key):
    task = _linear_task(mean_fraction=0.0)
    _, parts = task.loss(task.init(key), _batch(16), key)
    assert "loss_mean_token" not in parts


def test_the_mean_of_a_linear_network_is_its_condition_alone(key):
    task = _linear_task(sigma_data=2.0)
    params, cond = task.init(key), _batch(7)["cond"]
    keys = sampler.spot_keys(0, "S", [str(i) for i in range(7)])
    mean = task.predict(params, cond, keys, sampling=tasks.Sampling(mode="mean"))
    assert mean.shape == (1, 7, GENES)
    # D(0; inf) = sigma_data F.
    np.testing.assert_allclose(mean[0], 2.0 * cond @ params["w"], rtol=1e-5)


@pytest.mark.parametrize("mode", ["mean", "pair", "draws"])
def test_prediction_does_not_depend_on_portions_or_company(key, mode):
    task = _stem_task()
    params, cond = _awake(task, key), _batch(11)["cond"]
    keys = sampler.spot_keys(3, "S", [str(i) for i in range(11)])
    sampling = tasks.Sampling(mode=mode, n_draws=4, steps=3)
    whole = tasks.make_predictor(task, sampling, rows=64)(params, cond, keys)
    small = tasks.make_predictor(task, sampling, rows=8)(params, cond, keys)
    order = np.random.default_rng(0).permutation(11)
    turned = tasks.make_predictor(task, sampling, rows=12)(params, cond[order], keys[order])
    assert whole.shape == (sampling.draws, 11, GENES)
    # The same sums in other matmul shapes, fp32: a few ulp of values of size about 10.
    np.testing.assert_allclose(small, whole, atol=2e-4)
    np.testing.assert_allclose(turned, whole[:, order], atol=2e-4)
    assert np.abs(whole[:, 0] - whole[:, 1]).max() > 0.01  # spots differ, so order is tested


@pytest.mark.parametrize(
    ("spots", "sizes", "expected"),
    [
        (11, (4, 1), [(0, 4, 4), (4, 8, 4), (8, 11, 4)]),
        (9, (4, 1), [(0, 4, 4), (4, 8, 4), (8, 9, 1)]),
        (100, (64, 16, 4), [(0, 64, 64), (64, 100, 64)]),
        (67, (64, 16, 4), [(0, 64, 64), (64, 67, 4)]),
        (5, (64, 16, 4), [(0, 5, 16)]),
        (64, (64, 16, 4), [(0, 64, 64)]),
    ],
)
def test_portions_by_hand(spots, sizes, expected):
    assert list(predictor.portions(spots, sizes)) == expected


def test_a_job_of_many_slides_compiles_three_programs_at_most(key):
    task = _stem_task()
    params = _awake(task, key)
    layout = mesh.make_layout(jax.local_devices()[:1])
    predict = tasks.make_predictor(task, tasks.Sampling(mode="mean"), rows=32, layout=layout)
    assert (predict.sizes, predict.compilations) == ((32, 8, 2), 0)
    cond, keys = _batch(70)["cond"], sampler.spot_keys(0, "S", [str(i) for i in range(70)])
    whole = jax.jit(functools.partial(task.predict, sampling=tasks.Sampling(mode="mean")))(
        params, cond, keys
    )
    seen = []
    for n in (70, 33, 1, 5, 31, 64, 2, 9, 40):
        # float32, the same products in other shapes.
        np.testing.assert_allclose(
            predict(params, cond[:n], keys[:n]), whole[:, :n], rtol=1e-4, atol=1e-4
        )
        seen.append(predict.compilations)
    # 70 = 32 + 32 + 6 (8); 33 = 32 + 1 (2); all others fit into these.
    assert seen == [2, 3, *[3] * 7]


@pytest.mark.parametrize("mode", ["mean", "draws"])
def test_four_devices_predict_what_one_does(key, mode):
    task = _stem_task()
    params, cond = _awake(task, key), _batch(11)["cond"]
    keys = sampler.spot_keys(3, "S", [str(i) for i in range(11)])
    sampling = tasks.Sampling(mode=mode, n_draws=4, steps=3)
    devices = jax.local_devices()
    assert len(devices) == 4
    found = []
    for count in (1, 4):
        predict = tasks.make_predictor(
            task, sampling, rows=4, layout=mesh.make_layout(devices[:count])
        )
        assert all(size % count == 0 for size in predict.sizes)
        found.append(predict(params, cond, keys))
    # The same sums in other matmul shapes, fp32: a few ulp of values of size about 10.
    np.testing.assert_allclose(*found, atol=2e-4)


def test_the_same_prediction_has_the_same_predictor():
    task, mean = _stem_task(), tasks.Sampling(mode="mean")
    first = tasks.make_predictor(task, mean, rows=4)
    assert tasks.make_predictor(task, tasks.Sampling(mode="mean"), rows=4) is first
    assert tasks.make_predictor(task, mean, rows=5) is not first
    assert tasks.make_predictor(_stem_task(), mean, rows=4) is not first


def test_rows_at_a_time_fit_the_cache_or_fill_the_accelerator(monkeypatch):
    class Device:
        platform, stats = "cpu", None

        def memory_stats(self):
            return self.stats

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    monkeypatch.setattr(predictor, "_last_cache", lambda: 32 * 2**20)
    published = 200 * 1536 * 4
    assert predictor.rows_at_a_time(published) == 8  # 9.8 MB of 33.6
    assert predictor.rows_at_a_time(10**9) == 1
    Device.platform, Device.stats = "gpu", {"bytes_limit": 139 * 2**30}
    assert predictor.rows_at_a_time(published // 2) == 4096
    Device.stats = {"bytes_limit": 2**30}
    assert predictor.rows_at_a_time(published // 2) == 218  # 2^30 / (8 x 614,400)


def test_progress_counts_spots(key):
    task, seen = _stem_task(), []
    layout = mesh.make_layout(jax.local_devices()[:1])
    predict = tasks.make_predictor(task, tasks.Sampling(mode="mean"), rows=4, layout=layout)
    keys = sampler.spot_keys(0, "S", [str(i) for i in range(10)])
    predict(
        task.init(key),
        _batch(10)["cond"],
        keys,
        progress=lambda done, total, what: seen.append((done, total)),
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize("antithetic", [True, False])
def test_a_summary_is_that_of_the_draws(antithetic):
    draws = np.random.default_rng(0).normal(2.0, 3.0, (6, 4, 5)).astype(np.float32)
    found = tasks.Summary(antithetic=antithetic, quantiles=(0.05, 0.5))(draws)
    exact = draws.astype(np.float64)
    expected = [
        exact.mean(axis=0),
        exact.std(axis=0, ddof=1),
        metrics.draw_standard_error(draws, antithetic=antithetic),
        *np.quantile(exact, (0.05, 0.5), axis=0),
    ]
    np.testing.assert_allclose(found, np.stack(expected), rtol=2e-5)  # float32 sums of six


def test_a_summary_of_one_pair_has_no_standard_error():
    draws = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    found = np.asarray(tasks.Summary(antithetic=True)(draws))
    assert np.isnan(found[2]).all()
    assert np.isfinite(found[:2]).all()


@pytest.mark.parametrize("levels", [(0.5, 0.1), (0.5, 0.5), (-0.1,), (1.5,), (float("nan"),)])
def test_quantile_levels_that_do_not_rise_are_named(levels):
    with pytest.raises(errors.ConfigError, match="quantiles of the draws"):
        tasks.Summary(antithetic=False, quantiles=levels)


def test_row_keys_follow_slide_and_barcode_not_position(toy_records):
    both, alone = toy_records.load(["T1", "T2"]), toy_records.load(["T2"])
    rows = np.flatnonzero(both.slide_index == both.slides.index("T2"))
    ours = jax.random.key_data(tasks.row_keys(4, both)[rows])
    np.testing.assert_array_equal(ours, jax.random.key_data(tasks.row_keys(4, alone)))
    data = jax.random.key_data(tasks.row_keys(4, both))
    assert len({tuple(row) for row in np.asarray(data)}) == both.n
    assert not jnp.array_equal(data, jax.random.key_data(tasks.row_keys(5, both)))


@pytest.mark.parametrize(
    ("mode", "name", "evaluations"),
    [
        ("mean", "dpmpp2m", 1),
        ("pair", "dpmpp2m", 16),
        ("draws", "dpmpp2m", 160),
        ("draws", "ddim", 160),
        ("draws", "heun", 300),  # 20 draws of 2 x 8 - 1
    ],
)
def test_evaluations_a_spot(mode, name, evaluations):
    assert tasks.Sampling(mode=mode, sampler=name).evaluations == evaluations


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"mode": "median"}, "mean or marginal or pair or draws"),
        ({"sampler": "euler"}, "dpmpp2m or dpmpp2m_sde or ddim or ancestral or heun"),
        ({"steps": 0}, "steps=0"),
        ({"eta": 0.5}, "only ddim and dpmpp2m_sde have one"),
        ({"mode": "draws", "n_draws": 3}, "an even number, found 3"),
    ],
)
def test_sampling_that_cannot_work_is_refused(values, text):
    with pytest.raises(errors.ConfigError) as error:
        tasks.Sampling(**values)
    assert text in str(error.value)
