"""Scores of partitions from contingency tables, against scikit-learn on the spots themselves."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from stemjax.eval import metrics
from stemjax.eval.metrics import partitions

SCORES = {
    "ari": (partitions.adjusted_rand, sk.adjusted_rand_score),
    "nmi": (partitions.normalised_mutual_information, sk.normalized_mutual_info_score),
    "ami": (partitions.adjusted_mutual_information, sk.adjusted_mutual_info_score),
}
XY = np.stack(np.meshgrid(np.arange(20.0), np.arange(15.0)), -1).reshape(-1, 2)
RNG = np.random.default_rng(0)
FIRST = RNG.integers(4, size=300)
SECOND = np.where(RNG.random(300) < 0.5, FIRST, RNG.integers(6, size=300))


def resamples(count=20, xy=XY):
    return metrics.resample(metrics.spatial_blocks(xy), count=count, seed=1)


@pytest.mark.parametrize("key", SCORES)
def test_the_slide_and_each_resample_score_as_scikit_learn_says_of_their_spots(key):
    ours, theirs = SCORES[key]
    drawn = resamples()
    found = ours(partitions.contingency(FIRST, SECOND, drawn))
    assert 0.1 < found[0] < 0.9
    for times, value in zip(drawn.times, found, strict=True):
        spots = np.repeat(np.arange(300), times[drawn.blocks].astype(int))
        # Both in float64; of sums of a few hundred terms 12 digits are left.
        assert value == pytest.approx(theirs(FIRST[spots], SECOND[spots]), abs=1e-12)


@pytest.mark.parametrize("key", SCORES)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (FIRST, (FIRST + 1) % 4),  # the same partition by other names
        (FIRST, np.zeros(300, int)),
        (np.zeros(300, int), FIRST),
        (np.zeros(300, int), np.zeros(300, int)),
        (FIRST, np.arange(300)),
        (np.arange(300), np.arange(300)),
    ],
)
def test_limits_are_scikit_learns(key, first, second):
    ours, theirs = SCORES[key]
    found = ours(partitions.contingency(first, second, resamples(0)))
    assert found.shape == (1,)
    assert found[0] == pytest.approx(theirs(first, second), abs=1e-12)


def test_a_class_that_a_resample_lacks_takes_no_part():
    drawn = resamples(0)
    table = partitions.contingency(FIRST, SECOND, drawn)
    padded = np.pad(table, ((0, 0), (0, 2), (1, 0)))
    for ours, _ in SCORES.values():
        assert ours(padded)[0] == pytest.approx(ours(table)[0], abs=1e-14)


def test_shuffled_spots_score_nothing_once_adjusted():
    found = {key: [] for key in SCORES}
    for seed in range(60):
        other = np.random.default_rng(seed).permutation(SECOND)
        table = partitions.contingency(FIRST, other, resamples(0))
        for key, (ours, _) in SCORES.items():
            found[key].append(ours(table)[0])
    for key in ("ari", "ami"):  # four standard errors of the mean of 60
        assert abs(np.mean(found[key])) < 4 * np.std(found[key]) / np.sqrt(60)
    assert np.mean(found["nmi"]) > 0.01  # what is taken off
