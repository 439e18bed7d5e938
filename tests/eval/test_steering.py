"""Steered predictions of a slide: refusals, slots, and what a prediction says of itself."""

from __future__ import annotations

import dataclasses
import functools

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import toy_networks

from stemjax import errors, tasks
from stemjax.data import transforms
from stemjax.diffusion import noise
from stemjax.eval import metrics, mismatch, predict, steering
from stemjax.train import checkpoint
from stemjax.train import material as material_lib

DRAWS = tasks.Sampling(mode="draws", n_draws=4, steps=3)
GIVEN = ("TOY01", "TOY06")
GIVEN_COLUMNS = [1, 6]


class LinearCard(checkpoint.Card):
    """A card whose network is a map of 6 features and 8 genes, so that it compiles at once."""

    @functools.cached_property
    def task(self) -> tasks.StemTask:
        def apply(params, x, level, cond):
            mean = jnp.tanh(cond @ params["w"] + 0.5 * x @ params["u"])
            if not self.experiment.diffusion.marginal:
                return mean
            return jnp.stack([mean, jnp.broadcast_to(params["s"][None], mean.shape)], axis=1)

        return tasks.StemTask(
            network=toy_networks.conditional(apply),
            genes=len(self.space.genes),
            noise=noise.LogNormal(),
            marginal=self.experiment.diffusion.marginal,
        )

    @property
    def forward_task(self):
        return self.task


@pytest.fixture(scope="module")
def card(toy_records, toy_experiment) -> checkpoint.Card:
    """The card of a model that knows the null condition."""
    diffusion = dataclasses.replace(toy_experiment.diffusion, condition_dropout=0.1)
    return material_lib.gather(
        dataclasses.replace(toy_experiment, diffusion=diffusion), toy_records
    ).card


def _linear(card: checkpoint.Card, seed: int = 0, **diffusion) -> checkpoint.Trained:
    rng = np.random.default_rng(seed)
    params = {"w": rng.standard_normal((6, 8)), "u": rng.standard_normal((8, 8)) / 3}
    params["s"] = rng.standard_normal(8)
    params = jax.tree.map(lambda a: a.astype(np.float32), params)
    experiment = dataclasses.replace(
        card.experiment, diffusion=dataclasses.replace(card.experiment.diffusion, **diffusion)
    )
    fields = {field.name: getattr(card, field.name) for field in dataclasses.fields(card)}
    linear = LinearCard(**fields | {"experiment": experiment})
    return checkpoint.Trained(params=params, card=linear, step=1, weights="last")


def _measured(trained, toy_records):
    table = toy_records.load(["X1"])
    return trained.card.space.forward(table.counts, table.total)


@pytest.mark.parametrize("method", ["moment", "replacement"])
def test_given_genes_of_a_slide_are_predicted_as_measured(card, toy_records, method):
    trained = _linear(card)
    steer = steering.Steering(scale=1.5, given=GIVEN, method=method)
    result = predict.predict_slide(trained, toy_records, "X1", DRAWS, steer=steer)
    measured = _measured(trained, toy_records)
    # Standardised and back in float32, values up to 10, and a mean of four of them.
    np.testing.assert_allclose(
        result.X[:, GIVEN_COLUMNS], measured[:, GIVEN_COLUMNS], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(result.layers["stemjax_std"][:, GIVEN_COLUMNS], 0, atol=1e-5)
    others = [column for column in range(8) if column not in GIVEN_COLUMNS]
    assert np.abs(result.X - measured)[:, others].mean() > 0.1
    about = result.uns["stemjax"]
    assert about["guidance"] == 1.5
    assert list(about["given_genes"]) == list(GIVEN)
    assert about["given_method"] == method
    # 4 draws of 3 steps, a guided denoiser of 2, and 2 derivatives of 2 each.
    assert about["evaluations_per_spot"] == 12 * 2 * (4 if method == "moment" else 1)


def test_the_flax_network_can_be_told_genes(card, toy_records):
    model = dataclasses.replace(card.experiment.model, width=8, depth=1)
    small = dataclasses.replace(card, experiment=dataclasses.replace(card.experiment, model=model))
    shapes = jax.eval_shape(small.task.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: rng.normal(0, 0.2, a.shape).astype(np.float32), shapes)
    trained = checkpoint.Trained(params=params, card=small, step=1, weights="last")
    result = predict.predict_slide(
        trained, toy_records, "X1", tasks.Sampling(mode="pair", steps=2),
        steer=steering.Steering(scale=2.0, given=GIVEN),
    )  # fmt: skip
    measured = _measured(trained, toy_records)[:, GIVEN_COLUMNS]
    np.testing.assert_allclose(result.X[:, GIVEN_COLUMNS], measured, rtol=1e-5, atol=1e-5)
    assert np.isfinite(result.X).all()


def test_guidance_by_another_model_uses_its_weights(card, toy_records):
    trained, weak = _linear(card), _linear(card, seed=1)
    table = toy_records.load(["X1"])
    cond = trained.card.space.encode_condition(table.embeddings[:, 0])
    steer = steering.Steering(scale=3.0, weak=weak)
    task, params, inputs = steering.steer(steer, trained, cond, table)
    x = jnp.ones((table.n, 8), jnp.float32)
    sigma = jnp.full(table.n, 0.7, jnp.float32)
    plain = trained.card.task
    strong, lesser = (plain.denoiser(p, cond)(x, sigma) for p in (trained.params, weak.params))
    found = task.denoiser(params, inputs)(x, sigma)
    # float32 differences of numbers of size 3, times 3.
    np.testing.assert_allclose(found, lesser + 3 * (strong - lesser), atol=1e-4)
    assert np.abs(strong - lesser).max() > 0.1


def test_no_steering_is_the_plain_prediction(card, toy_records):
    trained = _linear(card)
    assert steering.Steering().is_none
    assert steering.Steering(weak=trained).is_none  # at scale 1 it has no part
    assert not steering.Steering(given=GIVEN).is_none
    assert not steering.Steering(scale=0.5).is_none
    plain, none = (
        predict.predict_slide(trained, toy_records, "X1", DRAWS, steer=steer)
        for steer in (None, steering.Steering())
    )
    np.testing.assert_array_equal(plain.X, none.X)
    about = plain.uns["stemjax"]
    assert (about["guidance"], about["given_genes"], about["given_method"]) == (1.0, [], "")
    assert about["evaluations_per_spot"] == 12


def _steer(trained, toy_records, steer, change=lambda table: table):
    table = change(toy_records.load(["X1"]))
    cond = trained.card.space.encode_condition(table.embeddings[:, 0])
    return steering.steer(steer, trained, cond, table)


def test_guidance_by_a_null_condition_that_was_not_trained_is_refused(card, toy_records):
    trained = _linear(card, condition_dropout=0.0)
    with pytest.raises(errors.ConfigError, match="condition_dropout > 0") as error:
        _steer(trained, toy_records, steering.Steering(scale=2.0))
    assert "--guide" in error.value.fix
    # With a weak model, or without guidance, it is not needed.
    _steer(trained, toy_records, steering.Steering(scale=2.0, weak=_linear(card)))
    _steer(trained, toy_records, steering.Steering(given=GIVEN))


def test_a_weak_model_of_another_space_is_refused(card, toy_records):
    trained, space = _linear(card), card.space
    moved = transforms.Standardisation(mean=space.expression.mean + 1, std=space.expression.std)
    other = dataclasses.replace(
        _linear(card).card, space=dataclasses.replace(space, expression=moved)
    )
    weak = dataclasses.replace(_linear(card), card=other)
    with pytest.raises(errors.CheckpointMismatchError, match="weak model"):
        _steer(trained, toy_records, steering.Steering(scale=2.0, weak=weak))
    contract = dataclasses.replace(card.contract, pooling="cls")
    weak = dataclasses.replace(weak, card=dataclasses.replace(trained.card, contract=contract))
    with pytest.raises(errors.EncoderMismatchError, match="pooling"):
        _steer(trained, toy_records, steering.Steering(scale=2.0, weak=weak))


def test_given_genes_must_be_some_of_the_panel(card, toy_records):
    trained = _linear(card)
    with pytest.raises(errors.GenePanelError, match="unknown: OTHER"):
        _steer(trained, toy_records, steering.Steering(given=("TOY01", "OTHER")))
    with pytest.raises(errors.GenePanelError, match="the whole panel"):
        _steer(trained, toy_records, steering.Steering(given=card.space.genes))
    most = steering.Steering(given=card.space.genes[:-1])
    task, _, _ = _steer(trained, toy_records, most)
    np.testing.assert_array_equal(task.known, [True] * 7 + [False])


def test_a_given_gene_that_was_not_measured_is_named(card, toy_records):
    def without(table):
        mask = table.mask.copy()
        mask[3, 6] = 0  # in one spot
        return dataclasses.replace(table, mask=mask)

    trained = _linear(card)
    with pytest.raises(errors.RecordsError, match="TOY06"):
        _steer(trained, toy_records, steering.Steering(given=GIVEN), without)
    _steer(trained, toy_records, steering.Steering(given=("TOY01",)), without)


# ------------------------------------------------------------------------------ slots, provenance


def _filled(space, drawn, sampling):
    index = pd.Index([str(i) for i in range(drawn.shape[1])])
    result = anndata.AnnData(obs=pd.DataFrame(index=index), shape=drawn.shape[1:])
    predict.fill(result, drawn, sampling, space)
    return result


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_standard_error_is_that_of_pairs_or_of_draws(card, antithetic):
    drawn = np.random.default_rng(0).standard_normal((6, 9, 8)).astype(np.float32)
    sampling = tasks.Sampling(mode="draws", n_draws=6, antithetic=antithetic)
    result = _filled(card.space, drawn, sampling)
    values = card.space.values(drawn)
    error = metrics.draw_standard_error(values, antithetic=antithetic)
    np.testing.assert_allclose(result.layers["stemjax_se"], error, rtol=1e-6)
    np.testing.assert_allclose(result.layers["stemjax_std"], values.std(axis=0, ddof=1), rtol=1e-5)
    # From the model's space by hand: half of a pair's sum is the unit.
    units = (drawn[::2] + drawn[1::2]) / 2 if antithetic else drawn
    by_hand = units.std(axis=0, ddof=1) / np.sqrt(len(units)) * card.space.expression.std
    np.testing.assert_allclose(result.layers["stemjax_se"], by_hand, rtol=1e-4)


@pytest.mark.parametrize(("n", "antithetic"), [(2, True), (1, False)])
def test_one_pair_or_one_draw_has_no_standard_error(card, n, antithetic):
    drawn = np.ones((n, 9, 8), np.float32)
    sampling = tasks.Sampling(mode="draws", n_draws=n, antithetic=antithetic)
    assert "stemjax_se" not in _filled(card.space, drawn, sampling).layers
    pair = _filled(card.space, np.ones((2, 9, 8), np.float32), tasks.Sampling(mode="pair"))
    assert "stemjax_std" not in pair.layers


def test_the_marginal_mode_writes_a_spread_in_value_space(card, toy_records):
    trained = _linear(card, marginal=True)
    result = predict.predict_slide(trained, toy_records, "X1", tasks.Sampling(mode="marginal"))
    std = card.space.expression.std
    expected = np.exp(trained.params["s"] / 2) * std
    spread = np.broadcast_to(expected, result.shape)
    np.testing.assert_allclose(result.layers["stemjax_std"], spread, rtol=1e-5)
    mean = predict.predict_slide(trained, toy_records, "X1", tasks.Sampling(mode="mean"))
    np.testing.assert_allclose(result.X, mean.X, atol=1e-5)
    assert "stemjax_se" not in result.layers
    about = result.uns["stemjax"]
    assert (about["mode"], about["evaluations_per_spot"], about["ladder"]) == ("marginal", 1, "")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, {"ladder": "karras", "sigma_min": 0.01, "sigma_max": 80.0, "eta": 0.0}),
        ({"sampler": "heun", "churn": 2.0, "sigma_min": 0.1}, {"churn": 2.0, "sigma_min": 0.1}),
        ({"sampler": "dpmpp2m_sde"}, {"eta": 1.0}),
        ({"sampler": "dpmpp2m_sde", "eta": 0.3}, {"eta": 0.3}),
        ({"sampler": "ddim", "ladder": "vp_cosine"}, {"eta": 0.0, "ladder": "vp_cosine"}),
        ({"sampler": "ancestral"}, {"eta": 1.0}),
        ({"ladder": "ddpm"}, {"ladder": "ddpm", "sigma_min": 0.01, "sigma_max": 157.4}),
    ],
)
def test_the_account_says_what_was_run_and_not_what_was_asked(card, toy_records, asked, found):
    sampling = tasks.Sampling(mode="draws", n_draws=6, steps=5, **asked)
    trained = checkpoint.Trained(params={}, card=card, step=1, weights="last")
    about = predict.provenance(trained, toy_records.require("X1"), sampling, 3)
    for name, value in found.items():
        assert about[name] == (pytest.approx(value, rel=1e-3) if value != str(value) else value)
    assert (about["n_draws"], about["steps"], about["antithetic"]) == (6, 5, True)


def test_the_odds_of_profiles_are_written_beside_them(card, toy_records):
    trained = _linear(card)
    sampling, table = tasks.Sampling(mode="pair", steps=2), toy_records.load(["X1"])
    result = predict.predict_slide(
        trained, toy_records, "X1", sampling, seed=2, divergence="hutchinson"
    )
    odds = mismatch.negative_log_likelihood(trained, table, seed=2)
    # Portions of 256 and of 64 rows: rounding.
    np.testing.assert_allclose(result.obs["stemjax_nll"], odds["own"], atol=1e-4)
    np.testing.assert_allclose(result.obs["stemjax_nll_other"], odds["other"], atol=1e-4)
    plain = predict.predict_slide(trained, toy_records, "X1", sampling, seed=2)
    assert "stemjax_nll" not in plain.obs
    np.testing.assert_array_equal(plain.X, result.X)
