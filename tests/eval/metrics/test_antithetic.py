"""Scores of antithetic draws: what they would be for independent ones, on average."""

from __future__ import annotations

import numpy as np
import pytest

from stemjax.eval import metrics

SPOTS, GENES = 4000, 3


@pytest.fixture(scope="module")
def pairs():
    """Truths of N(0, 1), and eight draws of that law in four mirrored pairs."""
    rng = np.random.default_rng(5)
    true, half = rng.normal(size=(SPOTS, GENES)), rng.normal(size=(4, SPOTS, GENES))
    return true, np.stack([half, -half], axis=1).reshape(8, SPOTS, GENES)


def test_crps_is_that_of_the_law_where_pairs_are_known_to_be_pairs(pairs):
    true, draws = pairs
    exact = metrics.Normal(mean=np.zeros(true.shape), std=np.ones(true.shape)).crps(true)
    known = metrics.Draws(values=draws, antithetic=True).crps(true) - exact
    error = 4 * known.std() / np.sqrt(known.size)
    assert abs(known.mean()) < error
    unknown = metrics.Draws(values=draws).crps(true) - exact
    # Partners are 2|z| apart, 1.596 on average; independent draws 2 / sqrt(pi) = 1.128. One in
    # seven pairs is of partners, and the CRPS takes off half of the mean distance.
    expected = -(2 * np.sqrt(2 / np.pi) - 2 / np.sqrt(np.pi)) / 7 / 2
    assert unknown.mean() == pytest.approx(expected, abs=error)
    assert abs(expected) > 3 * error


def test_energy_score_of_one_gene_is_the_crps(pairs):
    true, draws = pairs
    crps = metrics.Draws(values=draws[..., :1], antithetic=True).crps(true[:, :1])[:, 0]
    energy = metrics.energy_score_per_spot(draws[..., :1], true[:, :1], antithetic=True)
    np.testing.assert_allclose(energy, crps, atol=1e-12)


def test_energy_score_takes_distances_of_unlike_origin(pairs):
    true, draws = (v[..., :50, :] for v in pairs)
    found = metrics.energy_score_per_spot(draws, true, antithetic=True)
    for spot in range(50):
        x = draws[:, spot]
        apart = [
            np.linalg.norm(x[i] - x[j])
            for i in range(8)
            for j in range(i + 1, 8)
            if i // 2 != j // 2
        ]
        near = np.linalg.norm(x - true[spot], axis=1).mean()
        assert found[spot] == pytest.approx(near - np.mean(apart) / 2)


def test_one_pair_alone_has_nothing_to_leave_out(pairs):
    true, draws = pairs
    one = draws[:2]
    np.testing.assert_array_equal(
        metrics.Draws(values=one, antithetic=True).crps(true), metrics.Draws(values=one).crps(true)
    )


def test_antithetic_draws_come_in_pairs(pairs):
    true, draws = pairs
    with pytest.raises(ValueError, match="pairs, found 3"):
        metrics.Draws(values=draws[:3], antithetic=True)
    with pytest.raises(ValueError, match="pairs, found 3"):
        metrics.energy_score_per_spot(draws[:3], true, antithetic=True)
