"""How a prediction is asked for: names, ladders, rules, costs, and what the command line says."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest

from stemjax import cli, errors, names, tasks
from stemjax.diffusion import ddpm, ladders, rules, stochastic_rules
from stemjax.eval import steering

LEVELS = (0.02, 60.0)


@pytest.mark.parametrize("sampler", names.SAMPLERS)
@pytest.mark.parametrize("ladder", names.LADDERS)
def test_every_sampler_and_ladder_make_rungs_that_fall_to_nothing(sampler, ladder):
    sampling = tasks.Sampling(mode="pair", sampler=sampler, ladder=ladder, steps=9).on(LEVELS)
    rungs = np.asarray(sampling.rungs)
    assert rungs.shape == (10,)
    assert (np.diff(rungs) < 0).all()
    assert rungs[-1] == 0
    if "ddpm" in (sampler, ladder):
        # The published process has its own ends: 1e-4 of beta, and the product of all of them.
        abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        ends = np.sqrt(1 / abar[[999, 0]] - 1)
    else:
        ends = LEVELS[::-1]
    np.testing.assert_allclose(rungs[[0, -2]], ends, rtol=1e-6)  # float32
    # The levels that are written into a prediction are those of the rungs.
    np.testing.assert_allclose((sampling.sigma_max, sampling.sigma_min), ends, rtol=1e-12)
    assert (sampling.ladder == "ddpm") == ("ddpm" in (sampler, ladder))


def test_ladders_differ_and_are_those_of_their_names():
    made = {
        name: np.asarray(tasks.Sampling(ladder=name, steps=9).on(LEVELS).rungs)
        for name in names.LADDERS
    }
    for one, other in itertools.combinations(made.values(), 2):
        assert np.abs(one - other).max() > 0.1
    for name in set(names.LADDERS) - {"ddpm"}:
        own = getattr(ladders, name)(9, sigma_min=LEVELS[0], sigma_max=LEVELS[1])
        np.testing.assert_array_equal(made[name], own)
    np.testing.assert_array_equal(made["ddpm"], ddpm.Process().ladder(9))
    curved = tasks.Sampling(steps=9, rho=3.0).on(LEVELS).rungs
    np.testing.assert_array_equal(
        curved, ladders.karras(9, sigma_min=LEVELS[0], sigma_max=LEVELS[1], rho=3.0)
    )


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, LEVELS),
        ({"sigma_min": 0.5}, (0.5, 60.0)),
        ({"sigma_max": 7.0}, (0.02, 7.0)),
        ({"sigma_min": 0.5, "sigma_max": 7.0}, (0.5, 7.0)),
    ],
)
def test_a_models_levels_fill_what_is_not_set(asked, found):
    sampling = tasks.Sampling(mode="draws", sampler="ddim", eta=0.3, steps=4, **asked)
    on = sampling.on(LEVELS)
    assert (on.sigma_min, on.sigma_max) == found
    # And nothing else.
    assert dataclasses.replace(on, sigma_min=None, sigma_max=None) == dataclasses.replace(
        sampling, sigma_min=None, sigma_max=None
    )
    assert on.on((1.0, 2.0)) == on


def test_rungs_need_levels():
    with pytest.raises(errors.ConfigError, match="noise levels"):
        _ = tasks.Sampling().rungs
    with pytest.raises(errors.ConfigError, match="sigma_min=90"):
        tasks.Sampling(sigma_min=90.0).on(LEVELS)
    with pytest.raises(errors.ConfigError, match="1 to 1000"):
        tasks.Sampling(ladder="ddpm", steps=1001).on(LEVELS)


@pytest.mark.parametrize(
    ("sampler", "options", "rule"),
    [
        ("dpmpp2m", {}, rules.DpmSolverPP2M()),
        ("dpmpp2m_sde", {}, stochastic_rules.DpmSolverPP2MSde(eta=1.0)),
        ("dpmpp2m_sde", {"eta": 0.0}, stochastic_rules.DpmSolverPP2MSde(eta=0.0)),
        ("dpmpp2m_sde", {"eta": 1.5}, stochastic_rules.DpmSolverPP2MSde(eta=1.5)),
        ("ddim", {}, rules.Ddim(eta=0.0)),
        ("ddim", {"eta": 0.4}, rules.Ddim(eta=0.4)),
        ("ancestral", {}, rules.Ddim(eta=1.0)),
        ("heun", {}, rules.Heun()),
        ("heun", {"churn": 2.0}, stochastic_rules.HeunChurn(gamma=0.25)),
        ("heun", {"churn": 80.0}, stochastic_rules.HeunChurn(gamma=math.sqrt(2) - 1)),
        ("ab2", {}, rules.AdamsBashforth2()),
    ],
)
def test_a_sampler_is_its_step_rule(sampler, options, rule):
    assert tasks.Sampling(sampler=sampler, steps=8, **options).rule == rule


@pytest.mark.parametrize("name", [n for n in names.SAMPLERS if n not in ("ddim", "dpmpp2m_sde")])
def test_samplers_without_an_eta_refuse_one(name):
    for eta in (0.0, 0.5):
        with pytest.raises(errors.ConfigError, match="only ddim and dpmpp2m_sde have one"):
            tasks.Sampling(sampler=name, eta=eta)


@pytest.mark.parametrize(
    ("sampler", "eta"),
    [("ddim", -0.1), ("ddim", 1.5), ("ddim", math.nan), ("dpmpp2m_sde", -1.0)]
    + [("dpmpp2m_sde", math.inf), ("dpmpp2m_sde", math.nan)],
)
def test_an_eta_out_of_its_range_is_refused_at_once(sampler, eta):
    with pytest.raises(errors.ConfigError, match="eta of D"):
        tasks.Sampling(sampler=sampler, eta=eta)


@pytest.mark.parametrize("name", [name for name in names.SAMPLERS if name != "heun"])
def test_only_heun_churns(name):
    assert tasks.Sampling(sampler=name, churn=0.0).churn == 0
    with pytest.raises(errors.ConfigError, match="every sampler but heun"):
        tasks.Sampling(sampler=name, churn=1.0)


@pytest.mark.parametrize("churn", [-1.0, math.inf, math.nan])
def test_a_churn_that_cannot_work_is_refused(churn):
    with pytest.raises(errors.ConfigError, match="churn"):
        tasks.Sampling(sampler="heun", churn=churn)


@pytest.mark.parametrize("where", [{"ladder": "ddpm"}, {"sampler": "ddpm"}])
def test_one_step_of_the_published_process_is_refused(where):
    # Its one kept step is the first, sigma .01: what came out would be the network's answer to
    # next to no noise around 0, and no draw.
    with pytest.raises(errors.ConfigError, match="at least 2"):
        tasks.Sampling(mode="pair", steps=1, **where)
    assert tasks.Sampling(mode="pair", steps=2, **where).on(LEVELS).sigma_max > 150


@pytest.mark.parametrize("sampler", names.SAMPLERS)
@pytest.mark.parametrize("steps", [2, 8])
def test_evaluations_of_each_sampler(sampler, steps):
    one = 2 * steps - 1 if sampler == "heun" else steps
    asked = {"sampler": sampler, "steps": steps}
    assert tasks.Sampling(mode="pair", **asked).evaluations == 2 * one
    assert tasks.Sampling(mode="draws", n_draws=6, **asked).evaluations == 6 * one
    for mode in tasks.ONE_EVALUATION:
        assert tasks.Sampling(mode=mode, **asked).evaluations == 1
    churned = tasks.Sampling(mode="pair", sampler="heun", steps=steps, churn=1.0)
    assert churned.evaluations == 2 * (2 * steps - 1)


def test_every_name_works_and_no_other():
    for mode in names.MODES:
        sampling = tasks.Sampling(mode=mode, n_draws=4)
        assert sampling.draws == {"pair": 2, "draws": 4}.get(mode, 1)
        assert sampling.in_pairs == (mode in ("pair", "draws"))
    for field in ("mode", "sampler", "ladder"):
        with pytest.raises(errors.ConfigError, match=f"sampling {field}") as error:
            tasks.Sampling(**{field: "other"})
        for name in getattr(names, f"{field.upper()}S"):
            assert name in str(error.value)
    assert set(names.LADDERS) == {*ladders.LADDERS, "ddpm"}


def test_independent_draws_may_be_odd_in_number():
    sampling = tasks.Sampling(mode="draws", n_draws=3, antithetic=False)
    assert (sampling.draws, sampling.in_pairs) == (3, False)
    assert tasks.Sampling(mode="pair", antithetic=False).in_pairs  # a pair is one by its name


# --------------------------------------------------------------------------------- command line


def _options() -> dict[str, str]:
    """Each option of ``stemjax predict`` with its help text, defaults filled in."""
    commands = next(a for a in cli.make_parser()._actions if a.dest == "command")
    parser = commands.choices["predict"]
    formatter = parser._get_formatter()
    return {a.dest: formatter._expand_help(a) for a in parser._actions if a.help}


def _default(text: str) -> str:
    return re.search(r"\(default: ([^);]*)[);]", text).group(1)


def test_the_help_states_the_defaults_of_sampling():
    options = _options()
    plain = tasks.Sampling()
    for name in ("mode", "n_draws", "sampler", "steps", "ladder", "churn"):
        stated = _default(options[name])
        assert type(getattr(plain, name))(stated) == getattr(plain, name), name
    for name in ("sigma_min", "sigma_max"):
        assert getattr(plain, name) is None
        assert _default(options[name]) == "the model's"
    # Each sampler with an eta is named with the one that it takes by itself.
    stated = dict(re.findall(r"(\w+) \(default: ([\d.]+)\)", options["eta"]))
    assert set(stated) == {"ddim", "dpmpp2m_sde"}
    for name, eta in stated.items():
        assert tasks.Sampling(sampler=name).rule.eta == float(eta)
    # What --independent turns off is on.
    assert plain.antithetic
    none = steering.Steering()
    assert float(_default(options["guidance"])) == none.scale
    assert _default(options["given_method"]) == none.method


def test_flags_that_are_not_given_leave_sampling_alone():
    needed = ["--checkpoint=x", "--records=x", "--slide=x", "-o=x"]
    args = cli.make_parser().parse_args(["predict", *needed])
    fields = {field.name for field in dataclasses.fields(tasks.Sampling)}
    for name in fields - {"rho"}:  # the one field without a flag
        assert getattr(args, name) is None, name
    assert not hasattr(args, "rho")
