"""What is offered, and what is refused with the words that help."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from stemjax import config, errors, tasks
from stemjax.serving import menu


def changed(trained, **groups):
    """The model with another experiment."""
    values = config.as_json(trained.card.experiment)
    for group, keys in groups.items():
        values[group] = {**values[group], **keys}
    card = dataclasses.replace(trained.card, experiment=config.resolve(values))
    return dataclasses.replace(trained, card=card, calibrations=())


def test_a_model_offers_what_it_was_trained_for(trained):
    assert menu.make_menu(changed(trained)).modes == ("mean", "draws")
    both = menu.make_menu(changed(trained, diffusion={"marginal": True}))
    assert both.modes == ("mean", "marginal", "draws")
    without = menu.make_menu(changed(trained, diffusion={"mean_fraction": 0.0}))
    assert without.modes == ("pair", "draws")
    made = menu.make_menu(trained)
    assert made.modes == ("mean", "draws", "intervals")
    # The calibrated way of drawing is compiled beside the usual one, the mean once.
    assert [(one.mode, one.steps, one.draws) for one in made.compiled] == [
        ("mean", 8, 1), ("draws", 8, 20), ("draws", 2, 4),
    ]  # fmt: skip


def test_every_number_of_steps_and_draws_is_offered_the_first_by_default(trained):
    made = menu.make_menu(
        trained, modes=("draws", "pair"), n_draws=(4, 12), steps=(3, 2), more={"sampler": "ddim"}
    )
    first = made.order(None, draws=None, steps=None)
    assert (first.mode, first.sampling.steps, first.sampling.n_draws) == ("draws", 3, 4)
    for draws, drawn in ((2, 4), (4, 4), (6, 12), (12, 12)):
        found = made.order("draws", draws=draws, steps=2)
        assert (found.sampling.n_draws, found.drawn.n_draws) == (draws, drawn)
        assert (found.drawn.steps, found.drawn.sampler) == (2, "ddim")
        assert found.drawn in made.compiled
    assert made.order("pair", draws=None, steps=2).drawn.mode == "pair"
    assert len(made.plain) == 6


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (("marginal", None, None), "mode: expected one that is served: mean, pair, draws, interv"),
        (("draws", 3, None), "even number, found 3"),
        (("draws", 6, None), "draws: expected at most 4, found 6"),
        (("draws", None, 8), "steps: expected a number that is served: 2, found 8"),
        (("mean", None, 2), "steps in mode mean"),
        (("pair", 2, None), "draws in mode pair"),
        (("intervals", 2, None), r"calibrated: mode draws \(4 draws, 2 steps of dpmpp2m\); mode m"),
        (("intervals", None, 3), "found 3 steps"),
    ],
)
def test_what_is_not_on_the_menu_is_named(offer, order, words):
    mode, draws, steps = order
    with pytest.raises((errors.ConfigError, errors.CalibrationError), match=words):
        offer.order(mode, draws=draws, steps=steps)


def test_intervals_are_of_the_spread_first_and_of_what_is_asked(offer):
    found = offer.order("intervals", draws=None, steps=None)
    assert (found.sampling.mode, found.sampling.n_draws) == ("draws", 4)
    assert found.calibration.sampling["mode"] == "draws"
    assert found.drawn in offer.compiled
    assert len(offer.compiled) == 3  # it shares the program of the same sampling without intervals
    assert offer.order("intervals", draws=4, steps=2) == found


def test_a_calibration_of_a_sampling_that_is_no_more_is_left_out(trained):
    first = trained.calibrations[0]
    strange = dataclasses.replace(first, sampling={**first.sampling, "sampler": "leapfrog"})
    other = dataclasses.replace(first, sampling={**first.sampling, "churn": 3.0})
    for kept in (strange, other):
        made = menu.make_menu(dataclasses.replace(trained, calibrations=(kept,)))
        assert made.calibrated == ()
        assert "intervals" not in made.modes


def test_a_calibration_of_any_sampling_finds_it_again(trained):
    sampling = tasks.Sampling(
        mode="draws", n_draws=3, antithetic=False, steps=3, sampler="ddim", eta=0.3, sigma_max=20.0
    )
    about = menu.predict.describe_sampling(trained.card, sampling)
    made = dataclasses.replace(trained.calibrations[1], sampling=about)
    offered = menu.make_menu(dataclasses.replace(trained, calibrations=(made,)))
    found = offered.order("intervals", draws=3, steps=3).drawn
    assert menu.predict.describe_sampling(trained.card, found) == about
    np.testing.assert_array_equal(
        found.on(trained.card.task.levels).rungs, sampling.on(trained.card.task.levels).rungs
    )


def test_a_model_that_needs_whole_slides_is_refused(trained):
    rows = changed(trained, window={"kind": "neighbours", "length": 8})
    with pytest.raises(errors.ConfigError, match="sees a spot's patch alone") as caught:
        menu.make_menu(rows)
    assert "stemjax predict" in caught.value.fix


def test_what_the_server_is_started_with_has_to_work(trained):
    with pytest.raises(errors.ConfigError, match="mode marginal"):
        menu.make_menu(trained, modes=("mean", "marginal"))
    with pytest.raises(errors.ConfigError, match="sampler ddpm"):
        menu.make_menu(trained, modes=("draws",), more={"sampler": "ddpm"})
    with pytest.raises(errors.ConfigError, match="sampling mode"):
        menu.make_menu(trained, modes=("median",))
