"""The benchmark of lite networks: equal budgets, paired verdicts, what its numbers mean."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from stemjax import config, configfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def modules():
    """The script, and the module of its verdicts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import lite
        import lite_verdict

        yield lite, lite_verdict


@pytest.fixture(scope="module")
def experiment():
    """The small token network that the benchmark compares with."""
    return config.resolve(configfile.load(str(ROOT / "configs" / "stem_her2st.py"), []))


def test_every_candidate_costs_less_than_a_fiftieth_and_is_trained_alike(modules, experiment):
    lite, verdict = modules
    token = config.flops_per_evaluation(experiment, genes=200, condition=236)
    for family in lite.SIZES:
        for made in lite.candidates(experiment, family).values():
            flops = config.flops_per_evaluation(made, genes=200, condition=236)
            assert token / flops >= verdict.RATIO
            assert bool(made.model.latents) == (family == "latents")
            # Updates, batch, noise levels and data are the token network's.
            assert made.train.steps == experiment.train.steps
            assert made.train.batch == experiment.train.batch
            noise = made.diffusion.condition_noise
            assert made.diffusion == dataclasses.replace(
                experiment.diffusion, condition_noise=noise
            )
            assert made.data == experiment.data


def test_the_arms_of_a_place_follow_the_choice(modules, experiment):
    lite, _ = modules
    names = {family: list(lite.candidates(experiment, family)) for family in lite.SIZES}
    chosen = {family: {"chosen": offered[-1]} for family, offered in names.items()}
    arms = lite.arms_of("law", experiment, chosen)
    *given, longer = arms
    assert given == ["token", *lite.SIZES]
    train = dataclasses.replace(arms["vector"].train, steps=8 * experiment.train.steps)
    assert arms[longer] == dataclasses.replace(arms["vector"], train=train)
    assert list(lite.arms_of("many", experiment, chosen)) == given
    assert arms["token"] is experiment
    for family in lite.SIZES:
        assert arms[family] == lite.candidates(experiment, family)[names[family][-1]]
    wide = lite.arms_of("her2st", experiment, chosen)["wide"].model
    asked = config.resolve(configfile.load(str(ROOT / "configs" / "lite.py"), [])).model
    assert (wide.width, wide.depth, wide.mlp_ratio) == (asked.width, asked.depth, asked.mlp_ratio)
    assert wide.dtype == experiment.model.dtype


def _rows(pcc, energy, seeds=2):
    """Rows of seeds whose scores are these on all spots and on 200 resamples."""
    rng = np.random.default_rng(0)
    moved = np.concatenate([[0.0], rng.normal(size=200)])  # the same blocks for every row
    return [
        {
            "mean.pcc": list(pcc + 0.1 * moved + 0.01 * seed),
            "mean.mse": list(1 + 0 * moved),
            "draws.pcc": list(pcc + 0.1 * moved),
            "draws.crps": list(1 + 0 * moved),
            "draws.energy": list(energy * (1 + 0.1 * moved)),
        }
        for seed in range(seeds)
    ]


def test_a_difference_on_the_same_blocks_is_known_better_than_its_parts(modules):
    _, verdict = modules
    token = _rows(0.4, 8.0)
    found = verdict.compare(_rows(0.395, 8.08), token, 60.0)
    assert found["pcc"]["value"] == pytest.approx(-0.005)
    # Blocks that move both alike cancel: .1 of the score itself, nothing of the difference.
    assert found["pcc"]["interval"] == pytest.approx((-0.005, -0.005))
    assert found["energy"]["interval"] == pytest.approx((0.01, 0.01))
    low, high = verdict.summary(token)["mean.pcc"]["interval"]
    assert high - low > 0.3
    assert verdict.summary(token)["mean.pcc"]["std_over_seeds"] == pytest.approx(0.01 / 2**0.5)
    assert found["met"]
    assert set(found["verdict"].values()) == {"met"}


@pytest.mark.parametrize(
    ("pcc", "energy", "ratio", "missed"),
    [(0.385, 8.0, 60.0, "pcc"), (0.4, 8.2, 60.0, "energy"), (0.4, 8.0, 49.0, "flops")],
)
def test_each_line_of_the_target_can_be_missed(modules, pcc, energy, ratio, missed):
    _, verdict = modules
    found = verdict.compare(_rows(pcc, energy), _rows(0.4, 8.0), ratio)
    assert found["verdict"].pop(missed) == "missed"
    assert set(found["verdict"].values()) == {"met"}
    assert not found["met"]


def test_better_than_the_tokens_is_met_and_an_open_interval_says_so(modules):
    _, verdict = modules
    token, ours = _rows(0.4, 8.0), _rows(0.5, 7.0)
    assert verdict.compare(ours, token, 60.0)["met"]
    noise = np.random.default_rng(1).normal(size=200)
    for row in ours:
        row["mean.pcc"][1:] = list(np.array(token[0]["mean.pcc"][1:]) + noise)
    words = verdict.compare(ours, token, 60.0)["verdict"]["pcc"]
    assert words == "met, but the interval holds both"


def test_an_arm_of_fewer_seeds_is_compared_on_those_alone(modules):
    _, verdict = modules
    found = verdict.compare(_rows(0.4, 8.0, seeds=1), _rows(0.4, 8.0, seeds=3), 60.0)
    # Seeds 1 and 2 of the token network are .01 and .02 better.
    assert found["pcc"]["value"] == pytest.approx(0.0)


@pytest.fixture(scope="module")
def measured(modules, experiment, tmp_path_factory):
    """One tiny place measured twice: the lines, and the rows that were made in between."""
    lite, _ = modules
    small = dataclasses.replace(
        experiment,
        model=config.Model(width=8, depth=1, heads=2),
        optim=dataclasses.replace(experiment.optim, warmup=1),
        train=dataclasses.replace(experiment.train, steps=2, batch=16, accumulate=2),
    )
    folder = tmp_path_factory.mktemp("lite")
    bench = lite.Bench(workdir=folder, records=folder, genes={"law": 6}, spots=3)
    arms = {"token": small, "latents": lite.changed(
        small, {"width": 8, "depth": 1, "heads": 2, "latents": 2}, 1e-3, 0.0)}  # fmt: skip
    lines = lite.measure_place(bench, "law", arms, seeds=1, rounds=1)
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.is_file()}
    return bench, arms, lines, made


@pytest.mark.slow
def test_a_line_states_cost_and_quality_of_its_network(measured):
    _, arms, (token, latents), _ = measured
    for line, made in ((token, arms["token"]), (latents, arms["latents"])):
        assert line["flops"] == config.flops_per_evaluation(made, genes=6, condition=4)
        assert line["ratio"] == token["flops"] / line["flops"]
        assert line["time"]["mean"]["ms"] > 0
        # A CRPS of 20 draws is below the mean absolute error of one of them, about 1.1.
        assert 0.2 < line["scores"]["draws.crps"]["value"] < 1.1
    # Hardly trained, both stand near the constant: standardised genes have variance 1.
    assert token["scores"]["mean.mse"]["value"] == pytest.approx(1.0, rel=0.5)
    assert token["target"] is None
    assert latents["target"]["flops_ratio"] == latents["ratio"]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(modules, measured):
    lite, _ = modules
    bench, arms, lines, made = measured
    kept = [bench.row("law", arm, 0, given) for arm, given in arms.items()]
    for row, line in zip(kept, lines):
        assert row["mean.pcc"][0] == pytest.approx(line["scores"]["mean.pcc"]["value"])
    again = {path: path.stat().st_mtime_ns for path in bench.workdir.rglob("*.*") if path.is_file()}
    assert again == made  # nothing was trained or judged again
    other = dataclasses.replace(arms["latents"], seed=1)
    assert bench.place("law", "latents", other).workdir != bench.place(
        "law", "latents", arms["latents"]
    ).workdir  # fmt: skip


@pytest.mark.slow
def test_the_tables_hold_every_line_and_the_plan(modules, measured):
    _, verdict = modules
    lines = json.loads(json.dumps(measured[2]))
    bins = {"8 um bins": {"bins": 700_000, "hours_here": 1.25, "h200_s": 0.3}}
    scale = [{"network": "lite", "mode": "mean", "flops_a_spot": 108e6, "ms": 6.5, "bins": bins}]
    chosen = {"vector": {"chosen": "a", "energy": {"a": 7.5, "b": 7.75}}}
    text = verdict.tables({"lines": lines, "scale": scale, "chosen": chosen})
    for cell in ("law: 6 genes, 4 features, 2 updates of 16 spots", "| vector | a | 7.5000 |",
                 "| 1.25 | 0.3 |", "700,000 8 um bins", "1/1 |"):  # fmt: skip
        assert cell in text, cell
    for line in lines:
        value = line["scores"]["draws.energy"]["value"]
        assert f"{value:.3f}" in text
    assert lines[1]["target"]["verdict"]["pcc"] in text
