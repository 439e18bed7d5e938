"""The benchmarks of samplers and means: what their numbers mean, on cases with known answers."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from stemjax import tasks

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import means
        import samplers

        yield samplers, means


@pytest.fixture(scope="module")
def world(scripts):
    return scripts[0].World(spots=3, draws=16, genes=6)


def test_a_budget_is_spent_and_not_exceeded(scripts):
    samplers, _ = scripts
    for name, asked in samplers.SAMPLERS.items():
        for budget in samplers.BUDGETS:
            found = samplers.with_budget(asked, budget)
            assert found is not None, (name, budget)
            assert budget - 1 <= found.evaluations <= budget
    # Two evaluations a step and one at the last: 35 is exact, 18 leaves one over.
    assert samplers.with_budget({"sampler": "heun"}, 35).steps == 18
    assert samplers.with_budget({"sampler": "heun"}, 18).evaluations == 17


def test_one_evaluation_is_the_mean_and_many_are_the_law(scripts, world):
    """One step from sigma_max lands on D there: the mean, without spread. 35 steps have it."""
    one = world.score(tasks.Sampling(mode="draws", n_draws=1, antithetic=False, steps=1))
    assert one["spread_error"] < -0.95
    # D at sigma = 80 sees x: its own spread is std² / 80, here .02.
    assert one["mean_error"] < 0.02
    many = world.score(tasks.Sampling(mode="draws", n_draws=1, antithetic=False, steps=35))
    # The spread of 3 x 6 x 16 draws is known to 1 / sqrt(2 * 288) = .04, and genes of a spot go
    # together (depth, mode): 4 errors of .06.
    assert abs(many["spread_error"]) < 0.24
    assert many["energy_distance"] < 0.3 * one["energy_distance"]


def test_true_draws_have_no_distance_and_shifted_ones_have(world):
    distance, error = world.distance(world.others)
    # 3 spots of 16 draws.
    assert abs(distance) < 4 * error + 0.15
    assert world.distance(world.others + 1.0)[0] > 0.5


def test_bias_and_variance_are_told_apart(scripts, world):
    _, means = scripts

    def draw(sampling, seed):
        noise = np.random.default_rng(seed).standard_normal((1, *world.mean.shape))
        return world.mean + 0.3 + 0.2 * noise

    found = means.judge_mean(world, draw, tasks.Sampling(mode="pair"), repeats=200)
    # 200 repeats of 18 values: the average is known to .2 / 60 and the deviation to 1 in 85.
    assert found["bias"] == pytest.approx(0.3, abs=0.015)
    assert found["sd"] == pytest.approx(0.2, rel=0.05)
    assert found["error"] == pytest.approx(np.hypot(0.3, 0.2), rel=0.05)


def test_normal_and_sampled_scores_of_one_law_agree(scripts, world):
    """The closed form's CRPS equals that of many draws of the same normal law."""
    _, means = scripts
    closed = means.judge_marginal(world, world.mean, world.std)
    rng = np.random.default_rng(0)
    drawn = world.mean + world.std * rng.standard_normal((2000, *world.mean.shape))
    sampled = means.judge_spread(world, drawn)
    # 2,000 draws: the pair term is known to about 1 %, quantiles to .005 of probability.
    assert sampled["crps"] == pytest.approx(closed["crps"], rel=0.01)
    assert sampled["coverage_90"] == pytest.approx(closed["coverage_90"], abs=0.01)
    # The law itself is not normal: its own draws score better.
    true = means.judge_spread(world, world.true[64:].astype(np.float64))
    assert true["crps"] < closed["crps"]


def test_tables_hold_every_line(scripts):
    samplers, _ = scripts
    lines = [
        {"sampler": "ddim", "ladder": "karras", "budget": 8, "evaluations": 8, "steps": 8,
         "energy_distance": 0.1, "energy_distance_se": 0.01, "mean_error": 0.2,
         "spread_error": -0.3, "ms": 4.0},
        {"sampler": "dpmpp2m", "ladder": "vp_cosine", "budget": 8, "evaluations": 8, "steps": 8,
         "energy_distance": 0.5, "energy_distance_se": 0.01},
    ]  # fmt: skip
    text = samplers.tables(
        {"lines": lines, "load_of_times": 0.5, "energy_distance_of_true_draws": (0.001, 0.002)}
    )
    for cell in ("| ddim | 0.1000 |", "| ddim | 0.2000 |", "| ddim | -0.300 |", "| ddim | 4 |",
                 "| vp_cosine | 0.5000 |", "+0.0010 +- 0.0020"):  # fmt: skip
        assert cell in text


@pytest.mark.parametrize("name", ["samplers", "means"])
def test_the_pages_show_the_results_that_are_committed(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pages

    text = (ROOT / "docs" / f"{name}.md").read_text()
    assert text.count("| --- |") >= 2  # tables stand there
    assert pages.filled(text) == text
    assert pages.filled(text.replace("| 0.0", "| 0.9")) == text  # and come from the results
