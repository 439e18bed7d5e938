"""Forecasts in three forms: closed forms, scoringrules, numerical integrals, limits and atoms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules
from scipy import integrate, special, stats

from stemjax.eval import metrics

EXACT = 1e-12  # float64, a few operations


def atoms(rng, spots=40, genes=3):
    """Quantiles [9 l g] at .1 .. .9 with equal ones among them, as counts of 0 give."""
    values = np.sort(rng.normal(1.0, 1.0, (9, spots, genes)), axis=0)
    values[:4, ::3] = np.maximum(values[:4, ::3], values[3, ::3])  # an atom at the lower end
    values[5:7, 1::3] = values[5, 1::3]  # one inside
    values[:, 5] = 2.0  # nothing but an atom
    return metrics.Quantiles(levels=tuple(np.arange(1, 10) / 10), values=values)


def law_of(quantiles, spot, gene):
    """F(x-) and F(x) of the law made of one entry's quantiles, in plain Python."""
    levels, values = quantiles.levels, quantiles.values[:, spot, gene]

    def below(x):
        if x <= values[0]:
            return 0.0
        if x > values[-1]:
            return 1.0
        i = max(i for i in range(len(values)) if values[i] < x)
        return levels[i] + (levels[i + 1] - levels[i]) * (x - values[i]) / (
            values[i + 1] - values[i]
        )

    def at(x):
        if x < values[0]:
            return 0.0
        if x >= values[-1]:
            return 1.0
        i = max(i for i in range(len(values)) if values[i] <= x)
        return levels[i] + (levels[i + 1] - levels[i]) * (x - values[i]) / (
            values[i + 1] - values[i]
        )

    return below, at


def test_forms_say_what_they_are(rng):
    draws = metrics.Draws(values=rng.normal(size=(20, 4, 2)))
    normal = metrics.Normal(mean=np.zeros((4, 2)), std=np.ones((4, 2)))
    forms = [one.form for one in (draws, normal, atoms(rng))]
    assert forms == ["20 draws", "normal law", "9 quantiles"]


def test_quantiles_of_draws_are_numpys_weibull_rule(rng):
    values = rng.normal(size=(20, 6, 3))
    values[:, 0] = np.round(values[:, 0])
    draws = metrics.Draws(values=values)
    for p in (0.0, 0.01, 0.025, 1 / 21, 0.1, 0.5, 0.77, 20 / 21, 0.99, 1.0):
        expected = np.quantile(values, p, axis=0, method="weibull")
        np.testing.assert_allclose(draws.quantile(p), expected, atol=EXACT)
    np.testing.assert_allclose(draws.std, np.std(values, axis=0, ddof=1), atol=EXACT)


def test_intervals_of_draws_cover_a_further_draw(rng):
    # Between draws i and j of n sorted ones: (j - i) / (n + 1), whatever the law.
    values = rng.exponential(size=(20, 40_000, 1))
    true, draws = rng.exponential(size=(40_000, 1)), metrics.Draws(values=values)
    for level in (0.5, 0.8, 0.9):
        share = metrics.coverage(*metrics.central(draws, level), true)
        error = math.sqrt(level * (1 - level) / 40_000)
        # Between two draws the rule is linear in p and the law is not: .002 at this curvature.
        assert share == pytest.approx(level, abs=4 * error + 0.002)
    # Twenty draws reach no further than 19 / 21.
    widest = metrics.coverage(*metrics.central(draws, 0.99), true)
    assert widest == pytest.approx(19 / 21, abs=4 * math.sqrt(19 / 21 * 2 / 21 / 40_000))


def test_crps_of_draws_is_scoringrules_fair(rng):
    # More spots than are worked on at once.
    values, true = rng.normal(size=(20, 1500, 10)), rng.normal(size=(1500, 10))
    values[:, :700] = np.round(values[:, :700])  # ties among draws, and with the truth
    true[:700] = np.round(true[:700])
    found = metrics.Draws(values=values).crps(true)
    some = [0, 699, 700, 1400, 1499]
    expected = scoringrules.crps_ensemble(true[some], values[:, some], m_axis=0, estimator="fair")
    np.testing.assert_allclose(found[some], expected, atol=EXACT)
    one_gene = metrics.energy_score_per_spot(values[..., :1], true[:, :1])
    np.testing.assert_allclose(found[:, 0], one_gene, atol=EXACT)


def test_pit_of_draws_is_the_truths_rank(rng):
    values = np.array([1.0, 2.0, 2.0, 5.0]).reshape(4, 1, 1) * np.ones((4, 6, 1))
    true = np.array([0.5, 1.0, 1.5, 2.0, 3.0, 9.0])[:, None]
    # Ranks 1, 1.5, 2, 3, 4, 5 of five; less a half, over five.
    expected = np.array([0.1, 0.2, 0.3, 0.5, 0.7, 0.9])[:, None]
    np.testing.assert_allclose(metrics.Draws(values=values).pit(true), expected, atol=EXACT)
    everything = rng.normal(size=(10, 20_000, 1))
    pit = metrics.Draws(values=everything[1:]).pit(everything[0])
    # Ten values as likely as each other: mean 1/2, variance (1 - 1/100) / 12.
    assert pit.mean() == pytest.approx(0.5, abs=4 * 0.29 / math.sqrt(20_000))
    assert pit.var() == pytest.approx(0.99 / 12, rel=0.03)


def test_a_tie_survives_storage_in_single_precision():
    counts = np.array([0.0, 2.0, 2.0, 6.0]).reshape(4, 1, 1)
    stored = metrics.Draws(values=np.log2(counts + 1).astype(np.float32))
    true = np.log2(np.array([[2.0]]) + 1)
    assert float(stored.values[1, 0, 0]) != true[0, 0]
    assert stored.pit(true) == pytest.approx(0.5)
    assert stored.quantile(0.5).dtype == stored.crps(true).dtype == np.float64


def test_normal_law_is_scipys_and_its_crps_the_integral(rng):
    mean, std = rng.normal(size=(5, 2)), rng.uniform(0.3, 2.0, (5, 2))
    true = mean + 2 * rng.normal(size=(5, 2))
    normal = metrics.Normal(mean=mean, std=std)
    np.testing.assert_allclose(normal.quantile(0.9), stats.norm.ppf(0.9, mean, std), atol=EXACT)
    np.testing.assert_allclose(normal.pit(true), stats.norm.cdf(true, mean, std), atol=EXACT)
    np.testing.assert_array_equal(normal.std, std)
    found = normal.crps(true)
    for i in np.ndindex(5, 2):
        law = stats.norm(mean[i], std[i])
        left = integrate.quad(lambda x, law=law: law.cdf(x) ** 2, -30, true[i])[0]
        right = integrate.quad(lambda x, law=law: law.sf(x) ** 2, true[i], 30)[0]
        assert found[i] == pytest.approx(left + right, abs=1e-7)  # quad's own tolerance


def test_normal_law_without_spread_is_one_point():
    mean = np.array([[1.0, 1.0, 1.0, 1.0]])
    true = np.array([[0.5, 1.0, 4.0, 4.0]])
    point = metrics.Normal(mean=mean, std=np.array([[0.0, 0.0, 0.0, 1e-9]]))
    np.testing.assert_allclose(point.crps(true), [[0.5, 0.0, 3.0, 3.0]], atol=1e-8)
    np.testing.assert_array_equal(point.pit(true), [[0.0, 0.5, 1.0, 1.0]])
    np.testing.assert_array_equal(point.quantile(0.975)[0, :3], [1.0, 1.0, 1.0])


def test_quantiles_of_quantiles_are_linear_between_and_flat_beyond():
    values = np.array([1.0, 2.0, 6.0]).reshape(3, 1, 1)
    made = metrics.Quantiles(levels=(0.1, 0.5, 0.9), values=values)
    wanted = {0.0: 1, 0.05: 1, 0.1: 1, 0.3: 1.5, 0.5: 2, 0.6: 3, 0.9: 6, 0.99: 6, 1.0: 6}
    for p, value in wanted.items():
        assert made.quantile(p)[0, 0] == pytest.approx(value)


def test_intervals_end_at_atoms_and_not_beside_them():
    # (1 - .95) / 2 > .025 and (1 + .9) / 2 x 20 < 19 in float64: both would miss by 1e-16.
    levels = (0.025, 0.05, 0.95, 0.975)
    values = np.log2(np.array([0.0, 2, 5, 9]) + 1).reshape(4, 1, 1)
    made = metrics.Quantiles(levels=levels, values=values)
    assert metrics.central(made, 0.95) == (values[0], values[3])
    assert metrics.central(made, 0.9) == (values[1], values[2])
    draws = metrics.Draws(values=np.log2(np.arange(19.0) + 1).reshape(19, 1, 1))
    for level, rank in ((0.5, 5), (0.8, 2), (0.9, 1)):
        ends = np.log2(float(rank)), np.log2(20.0 - rank)
        assert metrics.central(draws, level) == ends


def test_std_of_quantiles_is_that_of_draws_from_their_law(rng):
    made = atoms(rng, spots=8)
    p = (np.arange(200_000) + 0.5) / 200_000  # as even as draws can be
    for spot in range(8):
        drawn = np.interp(p, made.levels, made.values[:, spot, 0])
        # The middle rule errs by the step (5e-6) at the ends of the linear pieces.
        assert made.std[spot, 0] == pytest.approx(drawn.std(), abs=1e-4)
    far = metrics.Quantiles(levels=made.levels, values=made.values + 1e6)
    # The values themselves are rounded to 1e6 x 1e-16; squares about 0 would lose 1e-4.
    np.testing.assert_allclose(far.std, made.std, atol=1e-9)
    assert made.std[5, 0] == 0.0


def test_crps_of_quantiles_is_the_integral_over_their_law(rng):
    made = atoms(rng)
    true = rng.normal(1.0, 2.0, (40, 3))
    true[::4] = made.values[3, ::4]  # on a quantile, of which some are atoms
    found, (nodes, weights) = made.crps(true), special.roots_legendre(3)
    for spot in range(40):
        y, (_, at) = true[spot, 0], law_of(made, spot, 0)
        knots = np.unique([*made.values[:, spot, 0], y])
        expected = 0.0
        for low, high in zip(knots[:-1], knots[1:]):
            # A square of a line: three Gauss nodes are exact, and touch neither end.
            squares = [(at(x) - (x >= y)) ** 2 for x in low + (high - low) * (nodes + 1) / 2]
            expected += (high - low) / 2 * (weights @ squares)
        assert found[spot, 0] == pytest.approx(expected, abs=1e-11)


def test_crps_of_many_quantiles_tends_to_the_mean_pinball_loss_and_the_closed_form():
    levels = (np.arange(2000) + 0.5) / 2000
    values = stats.norm.ppf(levels)[:, None, None] * np.ones((1, 7, 1))
    true = np.linspace(-3, 3, 7)[:, None]
    found = metrics.Quantiles(levels=tuple(levels), values=values).crps(true)
    pinball = scoringrules.crps_quantile(true, values, levels, m_axis=0)
    # Half a step of the levels (2.5e-4) times the tails' width of about 3.
    np.testing.assert_allclose(found, pinball, atol=1e-3)
    np.testing.assert_allclose(found, scoringrules.crps_normal(true, 0.0, 1.0), atol=1e-3)


def test_pit_of_quantiles_counts_half_an_atom(rng):
    made = atoms(rng)
    for shift in (0.0, 1e-9, -1e-9, 0.3, -0.3):
        true = made.values[5] + shift
        found = made.pit(true)
        for spot in range(40):
            below, at = law_of(made, spot, 0)
            y, values = true[spot, 0], made.values[:, spot, 0]
            expected = (below(y) + at(y)) / 2
            if y < values[0] or y > values[-1]:
                expected = 0.05 if y < values[0] else 0.95  # half of what is left out there
            # 1e-9 from a quantile the law has moved by 1e-9 times its density.
            assert found[spot, 0] == pytest.approx(expected, abs=1e-12)
    lowest = made.pit(made.values[0])
    # Zeros: the four lowest quantiles equal, an atom of .4; the truth there lies at half of it.
    assert lowest[0, 0] == pytest.approx(0.2)
    assert lowest[5, 0] == pytest.approx(0.5)


def test_what_is_not_known_stays_unknown(rng):
    true = rng.normal(size=(4, 2))
    true[0, 0] = np.nan
    values = rng.normal(size=(9, 4, 2))
    values[3, 1, 1] = np.nan
    normal = metrics.Normal(mean=values[3], std=np.ones((4, 2)))
    quantiles = metrics.Quantiles(levels=tuple(np.arange(1, 10) / 10), values=np.sort(values, 0))
    for forecast in (metrics.Draws(values=values), normal):
        for found in (forecast.crps(true), forecast.pit(true)):
            assert np.isnan(found).sum() == 2
            assert np.isnan(found[[0, 1], [0, 1]]).all()
        assert np.isnan(forecast.quantile(0.3)[1, 1])
        assert np.isfinite(forecast.quantile(0.3)[0]).all()
    assert np.isnan(quantiles.crps(true)[0, 0])
    assert np.isnan(quantiles.pit(true)[0, 0])
    assert np.isnan(quantiles.pit(true)[1, 1])


def test_forecasts_that_cannot_be_are_refused(rng):
    values = np.sort(rng.normal(size=(3, 4, 2)), axis=0)
    with pytest.raises(ValueError, match="two draws or more"):
        metrics.Draws(values=values[:1])
    with pytest.raises(ValueError, match="1 below 0"):
        metrics.Normal(mean=np.zeros((1, 2)), std=np.array([[1.0, -0.1]]))
    with pytest.raises(ValueError, match="alike"):
        metrics.Normal(mean=np.zeros((1, 2)), std=np.ones(2))
    for levels in ((0.5,), (0.5, 0.1, 0.9), (0.1, 0.1, 0.9), (10, 50, 90)):
        with pytest.raises(ValueError, match="must rise"):
            metrics.Quantiles(levels=levels, values=values)
    with pytest.raises(ValueError, match="2 levels, but values"):
        metrics.Quantiles(levels=(0.1, 0.9), values=values)
    with pytest.raises(ValueError, match="in 8 places"):
        metrics.Quantiles(levels=(0.1, 0.5, 0.9), values=values[[0, 2, 1]])
    for level in (0, 1, 90):
        with pytest.raises(ValueError, match="between 0 and 1"):
            metrics.central(metrics.Draws(values=values), level)
