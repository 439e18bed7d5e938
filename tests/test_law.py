"""On a known law: the mean is the conditional mean, and draws have the law's spread and modes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from stemjax import config, mesh, tasks
from stemjax.data import pipeline, records, space, synthetic
from stemjax.diffusion import sampler
from stemjax.eval import metrics
from stemjax.train import state as states
from stemjax.train import step as steps

LAW = synthetic.Law(seed=7, n_genes=24)
TRAIN, TEST, DRAWS = 6000, 200, 20


def _spots(n: int, seed: int) -> tuple[records.Table, np.ndarray]:
    """Spots whose embedding is their state itself, and those states."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.05, 0.95, (n, len(synthetic.STATES)))
    counts = LAW.sample_counts(z, rng).counts
    table = records.Table(
        embeddings=z[:, None].astype(np.float16),
        counts=counts,
        total=counts.sum(1).astype(np.int32),
        mask=np.ones(counts.shape, np.uint8),
        slide_index=np.zeros(n, np.int32),
        slides=("law",),
        barcodes=tuple(str(i) for i in range(n)),
        array_xy=np.zeros((n, 2), np.float32),
        pixel_xy=np.zeros((n, 2), np.float32),
    )
    # float16 is what the model sees, so the truth is that of the rounded state.
    return table, np.asarray(table.embeddings[:, 0], np.float64)


@dataclasses.dataclass(frozen=True)
class Fitted:
    task: tasks.StemTask
    params: dict
    space: space.Space


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    values = config.default_config()
    values.model.width, values.model.depth, values.model.heads = 48, 3, 2
    values.diffusion.noise_mean, values.diffusion.noise_std = 0.0, 1.4
    values.diffusion.mean_fraction = 0.25
    values.optim.learning_rate, values.optim.schedule = 2e-3, "cosine"
    values.optim.warmup, values.optim.ema = 100, 0.995
    values.train.batch, values.train.accumulate, values.train.steps = 256, 8, 2000
    experiment = config.resolve(values)
    table, _ = _spots(TRAIN, seed=1)
    fitted = space.Space.fit(table, genes=LAW.genes, transform="log2p1")
    task = config.make_task(experiment, genes=LAW.n_genes, condition=table.embeddings.shape[2])
    optimizer = states.make_optimizer(experiment.optim, experiment.train.steps)
    layout = mesh.make_layout(jax.devices()[:1])
    state = jax.jit(
        lambda key: states.init_state(task, optimizer, key), out_shardings=layout.replicated
    )(jax.random.key(0))
    step = steps.make_train_step(
        task, optimizer, ema=experiment.optim.ema, seed=0, accumulate=experiment.train.accumulate
    )
    schedule = pipeline.Schedule(n=table.n, batch=experiment.train.batch, seed=0, variants=1)
    update = None
    for host in pipeline.ResidentView(table, fitted).batches(schedule, 0, experiment.train.steps):
        batch = layout.put(host)
        update = update or steps.compile_update(step, layout, state, batch)
        state, _ = update(state, batch)
    return Fitted(task=task, params=jax.block_until_ready(state.ema), space=fitted)


def _predict(fitted: Fitted, table: records.Table, sampling: tasks.Sampling) -> np.ndarray:
    keys = sampler.spot_keys(5, "law", table.barcodes)
    cond = fitted.space.encode_condition(table.embeddings[:, 0])
    predict = tasks.make_predictor(fitted.task, sampling, rows=512)
    return fitted.space.values(predict(fitted.params, cond, keys))


@pytest.mark.slow
def test_one_evaluation_gives_the_conditional_mean(fitted):
    table, z = _spots(4000, seed=2)
    truth = fitted.space.forward(table.counts, table.total)
    mean = _predict(fitted, table, tasks.Sampling(mode="mean"))[0]
    exact = LAW.conditional_mean(z)
    mask = np.ones(truth.shape)
    # The bound: within 5 % of the error that the exact conditional mean makes.
    assert metrics.mse(mean, truth, mask) < 1.05 * metrics.mse(exact, truth, mask)
    # The constant is 1.4 times as far off, so 5 % is not had for nothing.
    assert metrics.mse(np.tile(truth.mean(0), (len(truth), 1)), truth, mask) > 1.3 * metrics.mse(
        exact, truth, mask
    )


@pytest.mark.slow
def test_an_antithetic_pair_is_near_the_conditional_mean_too(fitted):
    table, z = _spots(1000, seed=3)
    exact = LAW.conditional_mean(z)
    pair = _predict(fitted, table, tasks.Sampling(mode="pair")).mean(0)
    independent = _predict(
        fitted, table, tasks.Sampling(mode="draws", n_draws=2, antithetic=False)
    ).mean(0)
    # Pairs cut the error of the average: measured 3 times in performance.md 2.5 D; 1.5 is asked.
    ratio = np.sqrt(np.mean((independent - exact) ** 2) / np.mean((pair - exact) ** 2))
    assert ratio > 1.5


@pytest.mark.slow
def test_draws_have_the_laws_spread(fitted):
    table, z = _spots(TEST, seed=4)
    sampling = tasks.Sampling(mode="draws", n_draws=DRAWS, antithetic=False)
    ours = _predict(fitted, table, sampling)
    rng = np.random.default_rng(6)
    one, two = LAW.sample_values(z, DRAWS, rng), LAW.sample_values(z, DRAWS, rng)

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        # The biased form (n^2 in every term) is positive between two samples of one law, which is
        # what makes a ratio of the two distances meaningful.
        total = 0.0
        for i in range(TEST):
            u = metrics.energy_distance(x[:, i], y[:, i])
            within = [np.linalg.norm(a[:, None, i] - a[None, :, i], axis=-1).mean() for a in (x, y)]
            total += u + sum(w / (DRAWS - 1) for w in within)
        return total / TEST

    assert distance(ours, two) < 1.2 * distance(one, two)


@pytest.mark.slow
def test_draws_show_both_modes_and_the_mean_neither(fitted):
    table, z = _spots(TEST, seed=4)
    ours = _predict(fitted, table, tasks.Sampling(mode="draws", n_draws=DRAWS))
    score = LAW.mode_contrast(ours)
    true = LAW.mode_contrast(LAW.sample_values(z, DRAWS, np.random.default_rng(7)))
    # Shares of clear cases on either side, against the law's own: 4,000 draws, so a share near
    # one half has a standard error of .008; .05 leaves room for the model.
    for low, high in ((-np.inf, -0.5), (0.5, np.inf)):
        ours_share = np.mean((score > low) & (score < high))
        true_share = np.mean((true > low) & (true < high))
        assert ours_share == pytest.approx(true_share, abs=0.05)
    mean = LAW.mode_contrast(_predict(fitted, table, tasks.Sampling(mode="mean"))[0])
    assert np.abs(mean).mean() < 0.35
