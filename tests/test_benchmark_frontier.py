"""The frontier's evaluations, training, rows, choices, comparisons and tables."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from normal_flows import (
    COND,
    MEAN,
    STD,
    batch,
    chord,
    edm,
    flow,
    mean_flow_task,
)

from stemjax import config, tasks
from stemjax.diffusion import sampler
from stemjax.eval import metrics, scoring

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def modules():
    """The experiment's modules by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import frontier
        from fewstep import consistency, meanflow, places, rows, tuning

        yield {"frontier": frontier, "consistency": consistency, "meanflow": meanflow,
               "places": places, "rows": rows, "tuning": tuning}  # fmt: skip


def test_evaluations_are_counted(modules):
    count = modules["tuning"].evaluations
    ways = {tasks.Sampling(mode="mean"): 1, tasks.Sampling(mode="pair", steps=3): 6,
            tasks.Sampling(mode="draws", n_draws=4, sampler="heun", steps=2): 12}  # fmt: skip
    for sampling, expected in ways.items():
        assert count(edm(), {}, COND[:1], sampling) == expected
    two = tasks.Sampling(mode="draws", n_draws=6, steps=2, sigma_min=1.0)
    task = modules["consistency"].Tuning(edm=edm(flow), teacher={})
    own = dataclasses.replace(two, sampler="consistency")
    assert count(task, {}, COND[:1], own) == 12
    assert count(mean_flow_task(modules["meanflow"], chord), {}, COND[:1], two) == 12


class Learner:
    """A task that follows the batch's mean and notes the share of the run."""

    def __init__(self):
        self.seen = []

    def init(self, key):
        return {"layer": {"w": jnp.full(2, 5.0)}}

    def loss(self, params, batch, key):
        jax.debug.callback(lambda share: self.seen.append(float(share)), batch["progress"][0])
        loss = jnp.sum((params["layer"]["w"] - batch["x0"].mean(axis=0)) ** 2)
        return loss, {"loss": loss}


def test_training_shows_its_progress_and_weights_come_back_as_they_were(modules, tmp_path):
    tuning = modules["tuning"]
    task = Learner()
    optim = config.Optim(learning_rate=0.1, warmup=0, ema=0.9)
    made = ({k: v for k, v in batch(4, 0.0).items() if k != "progress"} for _ in range(100))
    params = tuning.train(task, made, updates=80, optim=optim, accumulate=1, seed=0)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(task.seen), np.arange(80) / 80, rtol=1e-6)
    target = batch(4, 0.0)["x0"].mean(axis=0)
    # 80 steps of .1 from 5, averaged over about 10 of them.
    np.testing.assert_allclose(params["layer"]["w"], target, atol=0.5)
    path = tmp_path / "folder" / "net.npz"
    assert tuning.load(path) is None
    tuning.save(path, params)
    jax.tree.map(np.testing.assert_array_equal, tuning.load(path), params)


class NormalPlace:
    """A place whose networks are exact for the normal law."""

    name = "normal"

    def __init__(self, places, spots=40):
        rng = np.random.default_rng(8)
        true = MEAN + STD * rng.standard_normal((spots, 2))
        apart = 2 * metrics.BLOCK * np.arange(spots)
        xy = np.stack([apart, 0 * apart], axis=1)
        self.ground = scoring.make_ground(
            true, total=np.ones(spots), array_xy=xy, resamples=50, seed=0
        )
        self.asked, self.places = [], places

    def network(self, model, seed):
        self.asked.append((model, seed))
        return self.places.Net(task=edm(), params={})

    def view(self, role):
        names = [str(i) for i in range(len(self.ground.true))]
        return self.places.View(
            cond=np.zeros((len(names), 1), np.float32),
            keys=lambda seed: sampler.spot_keys(seed, "S", names),
            ground=self.ground,
            values=lambda drawn: np.asarray(drawn, np.float64),
            mean=np.broadcast_to(MEAN, self.ground.true.shape),
            energy=lambda draws, pairs: metrics.energy_score_per_spot(
                draws, self.ground.true, antithetic=pairs
            ),
        )


@pytest.fixture
def run(modules, tmp_path):
    kept = []
    made = modules["rows"].Run(
        NormalPlace(modules["places"]), [], {}, lambda: kept.append(1),
        workdir=tmp_path, experiment=config.resolve({}), tuning_updates=1,
    )  # fmt: skip
    made.kept = kept
    return made


def test_rows_are_made_once_and_say_what_they_are(modules, run, monkeypatch, capsys):
    monkeypatch.setattr(modules["rows"], "milliseconds", lambda *given: 1.5)
    ways = {"mean token": tasks.Sampling(mode="mean"),
            "dpmpp2m 8": tasks.Sampling(mode="draws", n_draws=6, steps=8)}  # fmt: skip
    run.rows("edm", 0, ways)
    assert [(line["way"], line["evaluations"]) for line in run.lines] == [
        ("mean token", 1), ("dpmpp2m 8", 48)
    ]  # fmt: skip
    mean, drawn = run.lines
    # The exact mean is MEAN at every spot: no error, constant over spots, variance 2 off.
    assert mean["scores"]["mean_error"]["value"] < 1e-4
    assert mean["scores"]["rvd"]["value"] == pytest.approx(1.0)
    assert "energy" not in mean["scores"]
    assert mean["energy_of_spots"] is None
    # Three pairs of draws whose law is the truth's: 40 x 2 variances of 40 values, 4 errors.
    assert drawn["scores"]["rvd_draw"]["value"] < 0.4
    assert drawn["scores"]["energy"]["value"] == pytest.approx(np.mean(drawn["energy_of_spots"]))
    assert len(run.kept) == 2
    asked = len(run.place.asked)
    run.rows("edm", 0, ways)
    assert (len(run.lines), len(run.kept), len(run.place.asked)) == (2, 2, asked)
    assert json.loads(capsys.readouterr().out.splitlines()[0])["way"] == "mean token"


def test_the_first_seed_s_rows_can_be_timed_again(modules, run, monkeypatch, capsys):
    monkeypatch.setattr(modules["rows"], "milliseconds", lambda *given: 1.5)
    ways = {"mean token": tasks.Sampling(mode="mean")}
    for seed in (0, 1):
        run.rows("edm", seed, ways)
    other = {**run.lines[0], "model": "ddpm"}
    run.lines.append(other)
    monkeypatch.setattr(modules["rows"], "milliseconds", lambda *given: 0.5)
    run.clock("edm", {"heun 18": tasks.Sampling(mode="pair"), **ways})
    assert [line["ms_a_spot"] for line in run.lines] == [0.5, None, 1.5]


def test_every_model_has_its_ways_and_the_tables_of_ways_stay_as_they_are(modules, run):
    rows = modules["rows"]
    kinds = list(rows.KINDS)
    for what in ("dpmpp2m", *kinds):
        for n in rows.FEW:
            ladder = json.dumps({"sigma_min": 0.5, "sigma_max": 20.0})
            run.chosen[f"{what} {n}, ladder"] = {"chosen": ladder, "energy": {ladder: 1.0}}
    run.network = lambda model, seed: None  # every choice has been made
    before = dict(rows.SOLVERS), dict(rows.EQUAL), dict(rows.MEAN_TOKEN)
    first = modules["frontier"].ways_of(run, kinds)
    assert first == modules["frontier"].ways_of(run, kinds)
    assert before == (rows.SOLVERS, rows.EQUAL, rows.MEAN_TOKEN)
    assert set(first) == {"edm", rows.LONGER, *kinds}
    assert set(first["edm"]) - set(rows.SOLVERS) == {
        f"dpmpp2m {n}, chosen ladder" for n in (1, 2, 4)
    }
    # A consistency network keeps its mean token; a mean flow has none.
    assert "mean token" in first["consistency, teacher"]
    assert set(first["meanflow, teacher"]) == {"1 steps", "2 steps", "4 steps"}
    assert first["consistency, data"]["2 steps"].sampler == "consistency"


def test_a_choice_takes_the_least_energy_and_stays(run, capsys):
    assert run.choose("level", {"a": lambda: 2.0, "b": lambda: 1.0}) == "b"
    assert run.choose("level", {"a": lambda: 0.0, "b": lambda: 1.0}) == "b"
    assert run.chosen["level"]["energy"] == {"a": 2.0, "b": 1.0}


def lines_of(differences):
    """Rows whose spots differ by given numbers, one list a seed."""
    rng = np.random.default_rng(9)
    found = []
    for seed, apart in enumerate(differences):
        base = rng.uniform(5, 9, len(apart))
        for model, energy in (("ours", base + apart), ("edm", base)):
            found.append({"model": model, "way": "w", "seed": seed, "place": "law",
                          "energy_of_spots": energy.tolist()})  # fmt: skip
    return found


def test_differences_are_paired_over_spots_and_seeds(modules):
    paired = modules["rows"].paired
    resamples = metrics.resample(np.arange(50), count=400, seed=0)
    noisy = np.random.default_rng(10).normal(size=(3, 50))
    noisy -= noisy.mean(axis=1, keepdims=True)

    def verdict(differences):
        return paired(lines_of(differences), ("ours", "w"), ("edm", "w"), resamples)

    # The spots' own energies differ by far more than this, and cancel.
    better = verdict(np.full((3, 50), -0.01))
    assert better["verdict"] == "better"
    assert better["difference"] == pytest.approx(-0.01)
    assert verdict(np.full((3, 50), 0.01))["verdict"] == "worse"
    assert verdict(noisy)["verdict"] == "not distinguishable"
    # Seeds count too: two of three networks are slightly worse, whatever the mean says.
    split = np.repeat([[-0.3], [0.05], [0.05]], 50, axis=1)
    found = verdict(split)
    assert found["difference"] == pytest.approx(-0.2 / 3)
    assert found["verdict"] == "not distinguishable"


def test_the_verdict_is_said_in_words_and_tables_hold_it(modules):
    compared = []
    for n in (1, 2, 4):
        for rival, said in ((f"dpmpp2m {n}, chosen ladder", "better" if n < 4 else "worse"),
                            (f"dpmpp2m {n}", "better"), ("dpmpp2m 8", "worse")):  # fmt: skip
            compared.append({"place": "law", "model": "consistency, data", "steps": n,
                             "rival": ["edm", rival], "verdict": said, "difference": -0.5,
                             "interval": [-0.6, -0.4], "seeds": 3})  # fmt: skip
    text = modules["frontier"].verdict(compared, "law", "consistency, data")
    assert "at 1, 2 evaluations it beats" in text
    assert "at 4 it does not" in text
    assert "worse than DPM-Solver++(2M) of 8" in text
    assert "It meets the rule" in text
    lost = [{**line, "verdict": "worse"} for line in compared]
    assert "It does not meet the rule" in modules["frontier"].verdict(
        lost, "law", "consistency, data"
    )
    score = {"value": 0.25, "interval": [0.2, 0.3]}
    lines = [
        {"place": "law", "model": "edm", "way": "dpmpp2m 8", "seed": seed, "evaluations": 160,
         "ms_a_spot": 2.5 if seed == 0 else None, "energy_of_spots": None,
         "scores": {"pcc": {**score, "value": 0.25 + 0.1 * seed}, "crps": score}}
        for seed in range(3)
    ]  # fmt: skip
    ladder = json.dumps({"sigma_min": 0.1, "sigma_max": 40.0})
    kind = {"chosen": "consistency, data", "energy": {"consistency, data": 0.5}}
    ladders = {"chosen": ladder, "energy": {ladder: 1.5}}
    chosen = {"law": {"kind of tuning": kind, "dpmpp2m 4, ladder": ladders}}
    defaults = [{"place": "law", "rival": ["ddpm", "ancestral 1000"], "verdict": "better",
                 "difference": -0.25, "interval": [-0.3, -0.2], "seeds": 1}]  # fmt: skip
    page = modules["frontier"].tables(
        {"lines": lines, "chosen": chosen, "compared": compared, "defaults": defaults}
    )
    # Mean and deviation of .25, .35, .45 over seeds.
    for cell in ("| edm | dpmpp2m 8 | 3 | 160 | 2.5 | 0.350 ± 0.100 [0.200, 0.300] |",
                 "| dpmpp2m 4, ladder | sigma_min 0.1, sigma_max 40 | 1.5000 |",
                 "| consistency, data, 4 steps | edm dpmpp2m 8 | -0.5000 [-0.6000, -0.4000] |",
                 "| ddpm ancestral 1000 | 1 | -0.2500 [-0.3000, -0.2000] | better |",
                 text):  # fmt: skip
        assert cell in page


def test_the_law_is_no_distance_from_its_own_draws(modules, tmp_path):
    law = modules["places"].Law(tmp_path, config.resolve({}), spots=4)
    view = law.view("test")
    own = law.world.true[100:160].astype(np.float64)
    near, far = view.energy(own, False), view.energy(own + 1.0, False)
    # 60 and 32 draws a spot of distances about 5: errors near .1 a spot.
    assert np.abs(near).max() < 0.5
    assert far.min() > 1.0
    direct = [metrics.energy_distance(own[:, i], law.world.true[1:33, i]) for i in range(4)]
    np.testing.assert_allclose(near, direct, rtol=1e-6)
    assert not np.array_equal(law.view("choice").ground.true, view.ground.true)
