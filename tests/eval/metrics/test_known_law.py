"""On laws that are known, the exact forecast is calibrated and scores best.

The drawn law (`data.synthetic`): counts given a spot's state, with a hidden mode, a depth and
dropout; its distribution is summed here by itself. And a Gaussian, whose expected scores have
closed forms.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import special, stats

from stemjax.data import synthetic
from stemjax.eval import metrics

SPOTS, COUNTS = 500, 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    law: synthetic.Law
    z: np.ndarray
    true: np.ndarray  # log2(count + 1), [l g]
    cdf: np.ndarray  # P(count <= k | z), [l g k]

    def quantiles(self, levels):
        """The exact quantiles: the least count with at least this probability at or below it."""
        counts = [np.argmax(self.cdf >= level, axis=-1) for level in levels]
        return metrics.Quantiles(levels=tuple(levels), values=np.log2(np.stack(counts) + 1.0))


@pytest.fixture(scope="module")
def known():
    law = synthetic.Law(n_genes=6, seed=5)
    rng = np.random.default_rng(11)
    z = rng.uniform(0.15, 0.85, (SPOTS, len(synthetic.STATES)))
    own, log_rate = law.coefficients, synthetic.log_rates(law, z)
    node, weight = special.roots_hermitenorm(16)
    weight, k = weight / weight.sum() / 2, np.arange(COUNTS)
    cdf = np.zeros((SPOTS, law.n_genes, COUNTS))
    for mode in (0, 1):
        for e, share in zip(node, weight):
            rate = np.exp(log_rate + (mode - 0.5) * own.switch + law.depth_std * e)
            cdf += share * special.pdtr(k, rate[..., None])
    cdf = own.dropout[:, None] + (1 - own.dropout[:, None]) * cdf
    counts = law.sample_counts(z, rng).counts
    assert counts.max() < COUNTS
    return Known(law=law, z=z, true=np.log2(counts + 1.0), cdf=cdf)


def test_intervals_of_the_exact_law_cover_what_they_hold(known):
    for level in metrics.LEVELS:
        forecast = known.quantiles([(1 - level) / 2, (1 + level) / 2])
        lower, upper = metrics.central(forecast, level)
        inside = metrics.covered(lower, upper, known.true)
        low, high = (np.round(2**end - 1).astype(int)[..., None] for end in (lower, upper))
        held = np.take_along_axis(known.cdf, high, -1) - np.where(
            low > 0, np.take_along_axis(known.cdf, np.maximum(low - 1, 0), -1), 0.0
        )
        held = held[..., 0]
        # A discrete law's interval holds its level or more, by at most an atom at each end.
        assert (held >= level - 1e-12).all()
        assert held.mean() < level + 0.12
        # Spots are independent given their states, so each gene has its own binomial error.
        error = np.sqrt(np.sum(held * (1 - held), axis=0))
        np.testing.assert_array_less(np.abs(inside.sum(axis=0) - held.sum(axis=0)), 4 * error)
        assert metrics.coverage(lower, upper, known.true) == inside.mean()


def test_the_laws_own_draws_have_flat_ranks_and_their_intervals_the_level(known):
    draws = known.law.sample_values(known.z, 19, np.random.default_rng(3))
    for gene in range(known.law.n_genes):
        one = slice(gene, gene + 1)
        ranks = metrics.rank_histogram(draws[..., one], known.true[:, one], seed=gene)
        assert stats.chisquare(ranks).pvalue > 1e-4
    forecast = metrics.Draws(values=draws)
    for level in (0.5, 0.8, 0.9):
        # At 19 draws these levels lie on draws, so only atoms add to the level.
        inside = metrics.covered(*metrics.central(forecast, level), known.true)
        error = math.sqrt(level * (1 - level) / SPOTS)
        share = inside.mean(axis=0)
        assert (share > level - 4 * error).all()
        assert (share < level + 0.2).all()


def test_scores_are_least_for_the_exact_law(known):
    draws = known.law.sample_values(known.z, 20, np.random.default_rng(7)).astype(np.float64)
    mean = known.law.conditional_mean(known.z)
    others = {
        "biased": draws + 0.3,
        "too narrow": mean + 0.6 * (draws - mean),
        "too wide": mean + 1.5 * (draws - mean),
        "a regression's mean": np.repeat(mean[None], 20, axis=0),
    }

    def crps(values):
        return metrics.Draws(values=values).crps(known.true).mean(axis=1)

    def energy(values):
        return metrics.energy_score_per_spot(values, known.true)

    for score in (crps, energy):
        best = score(draws)
        for name, values in others.items():
            worse = score(values) - best
            assert worse.mean() > 4 * worse.std() / math.sqrt(SPOTS), name


def test_joint_scores_see_lost_dependence_and_crps_does_not(known):
    draws = known.law.sample_values(known.z, 20, np.random.default_rng(7)).astype(np.float64)
    # Each gene's draws in an order of its own: the right law of every gene, no mode in common.
    apart = np.random.default_rng(8).permuted(draws, axis=0)
    crps = [metrics.Draws(values=values).crps(known.true) for values in (draws, apart)]
    np.testing.assert_allclose(*crps, atol=1e-12)
    for score in (metrics.variogram_score_per_spot, metrics.energy_score_per_spot):
        worse = score(apart, known.true) - score(draws, known.true)
        assert worse.mean() > 4 * worse.std() / math.sqrt(SPOTS)


@pytest.mark.parametrize("form", ["normal law", "60 draws", "199 quantiles"])
def test_crps_of_a_gaussian_forecast_has_its_expected_value(rng, form):
    spots = 4000
    mean = rng.normal(size=(spots, 1))
    true = mean + rng.normal(size=(spots, 1))
    noise, levels = rng.normal(size=(60, spots, 1)), np.arange(1, 200) / 200

    def scores(shift, stretch):
        centre = mean + shift
        if form == "normal law":
            forecast = metrics.Normal(mean=centre, std=np.full((spots, 1), stretch))
        elif form == "60 draws":
            forecast = metrics.Draws(values=centre + stretch * noise)
        else:
            steps = stretch * stats.norm.ppf(levels)[:, None, None]
            forecast = metrics.Quantiles(levels=tuple(levels), values=centre + steps)
        assert forecast.form == form
        return forecast.crps(true)[:, 0]

    best = scores(0.0, 1.0)
    for shift, stretch in ((0.0, 1.0), (0.4, 1.0), (0.0, 0.6), (0.0, 1.6), (-0.3, 1.3)):
        found = scores(shift, stretch)
        # X - y ~ N(b, 1 + s²): E|X - y| is a folded normal's mean; E|X - X'| / 2 = s / sqrt(pi).
        spread = math.sqrt(1 + stretch**2)
        expected = stats.foldnorm.mean(abs(shift) / spread, scale=spread)
        expected -= stretch / math.sqrt(math.pi)
        # The law of 199 quantiles ends at its outermost ones: a tail of 1/200, where the truth has
        # at most .06, over a width of about one std: some 1e-4.
        ends = 2e-3 if form == "199 quantiles" else 0.0
        within = 4 * found.std() / math.sqrt(spots) + ends
        assert found.mean() == pytest.approx(expected, abs=within)
        if (shift, stretch) != (0.0, 1.0):
            worse = found - best
            assert worse.mean() > 4 * worse.std() / math.sqrt(spots)
