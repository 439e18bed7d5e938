"""Conformal calibration: exact coverage on known laws, its order statistics, its refusals."""

from __future__ import annotations

import fractions
import math

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stemjax import errors
from stemjax.data import space, transforms
from stemjax.eval import conformal, metrics
from stemjax.train import calibration

LEVELS = metrics.LEVELS
SAMPLING, MODEL = {"mode": "marginal"}, {"config": "0", "step": 1, "weights": "best"}


def make_space(std, transform="log2p1"):
    genes = len(std)
    return space.Space(
        genes=tuple(f"G{i}" for i in range(genes)),
        transform=transform,
        expression=transforms.Standardisation(mean=np.zeros(genes), std=np.asarray(std)),
        condition=transforms.Standardisation(mean=np.zeros(1), std=np.ones(1)),
    )


def make_held(mean, std, true, mask=None, slide="V1", xy=None):
    return conformal.Held(
        slide=slide,
        mean=mean,
        std=std,
        true=true,
        mask=np.ones(true.shape, np.uint8) if mask is None else mask,
        array_xy=np.stack([np.arange(len(true)), np.zeros(len(true))], 1) if xy is None else xy,
    )


def fit(slides, std, mode="marginal", **options):
    return conformal.fit(slides, make_space(std), sampling={"mode": mode}, model=MODEL, **options)


LAWS = {
    "normal": stats.norm(),
    "heavy": stats.t(3),
    "lopsided": stats.expon(),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", [39, 40, 57, 400])
def test_each_tail_misses_as_often_as_the_theory_says(law, n):
    """Averaged over sets of n scores: the j-th of n has F(s_j) of mean j / (n + 1) in any law."""
    sets = 6000
    scores = LAWS[law].rvs(size=(n, sets), random_state=np.random.default_rng(n))
    found = LAWS[law].cdf(conformal.offsets(scores, np.ones((n, sets))))
    for i, level in enumerate(LEVELS):
        half = fractions.Fraction(str(level)) / 2 + fractions.Fraction(1, 2)
        k = math.ceil((n + 1) * half)
        assert k >= (n + 1) * half > k - 1
        for side, rank in ((0, n + 1 - k), (1, k)):
            # F(s_rank) is Beta(rank, n + 1 - rank): 5 standard errors of its mean over the sets.
            wanted = stats.beta(rank, n + 1 - rank)
            error = 5 * wanted.std() / np.sqrt(sets)
            assert abs(found[i, side].mean() - wanted.mean()) < error, (level, side)
        # Together at least the level, and at most two order statistics more.
        inside = (found[i, 1] - found[i, 0]).mean()
        assert level - 5 * 0.5 / np.sqrt(n * sets) < inside < level + 2 / (n + 1) + 0.001


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("wrong", [0.5, 2.0])
def test_a_wrong_spread_is_mended_gene_by_gene(law, wrong):
    """The std is off by a factor, by its inverse for the last gene, the mean by half a std."""
    rng, n, tests = np.random.default_rng(3), 400, 20_000
    scale = np.array([0.5, 1.0, 3.0, 1.0])
    factor = np.array([wrong, wrong, wrong, 1 / wrong])

    def draw(size, slide):
        mean = 30 + 10 * rng.random((size, 4))  # far from 0, where ends are cut off
        spread = scale * (0.5 + rng.random((size, 4)))  # spots differ
        true = mean + spread * LAWS[law].rvs(size=(size, 4), random_state=rng)
        return make_held(mean + 0.5 * spread, factor * spread, true, slide=slide)

    # A floor far below every std plays no part.
    made = fit([draw(n, "V1")], 0.1 * scale)
    test = draw(tests, "X1")
    lower, upper = conformal.intervals(test.mean, test.std, made.offsets, made.floor)
    raw = metrics.Normal(mean=test.mean, std=test.std)
    pooled_offsets = conformal.offsets(
        conformal.score(draw(n, "V2"), made.floor).reshape(-1, 1), np.ones((4 * n, 1))
    )
    pooled = conformal.intervals(
        test.mean, test.std, np.repeat(pooled_offsets, 4, axis=2), made.floor
    )
    uncovered = 0
    for i, level in enumerate(LEVELS):
        k = math.ceil((n + 1) * (1 + fractions.Fraction(str(level))) / 2)
        between = 2 * k - n - 1
        # What one calibration set covers is Beta(between, n + 1 - between), of which the tests show
        # a binomial share: .00001 in each tail, 48 comparisons.
        law_of_share = stats.betabinom(tests, between, n + 1 - between)
        low, high = law_of_share.ppf([1e-5, 1 - 1e-5]) / tests
        share = np.mean((lower[i] <= test.true) & (test.true <= upper[i]), axis=0)
        assert ((low <= share) & (share <= high)).all(), (level, share, low, high)
        ends = metrics.central(raw, level)
        before = np.mean((ends[0] <= test.true) & (test.true <= ends[1]), axis=0)
        uncovered += ((before < low) | (before > high)).sum()
        if level >= 0.8:
            one = np.mean((pooled[0][i] <= test.true) & (test.true <= pooled[1][i]), axis=0)
            assert not low <= one[3] <= high, (level, one)
    # Of another shape than the normal law's, a wrong spread can be right at a level by chance.
    assert uncovered == 16 if law == "normal" else uncovered >= 10


def test_counts_with_many_zeros_are_covered_too():
    """One prediction for all spots and 70 % zeros: an end that is a zero must hold the zeros."""
    rng, n = np.random.default_rng(5), 200
    # Means and deviations whose differences round either way.
    mean, std = rng.uniform(0.1, 3, 50).astype(np.float32), rng.uniform(0.2, 1, 50)

    def draw(size):
        counts = rng.poisson(3, (size, 50)) * (rng.random((size, 50)) < 0.3)
        true = np.log2(counts.astype(np.float32) + np.float32(1))
        shape = np.ones((size, 1), np.float32)
        return make_held(mean * shape, (std * shape).astype(np.float32), true)

    made, test = fit([draw(n)], np.ones(50)), draw(4000)
    result = anndata.AnnData(X=test.mean, obs=pd.DataFrame(index=[str(i) for i in range(4000)]))
    conformal.write_intervals(result, test.std, made)
    for level in LEVELS:
        lower, upper = (result.layers[name] for name in conformal.layer_names(level))
        assert lower.dtype == upper.dtype == np.float32
        assert lower.min() == 0
        share = np.mean((lower <= test.true) & (test.true <= upper), axis=0)
        # At least the level on average over 50 genes; a set of 200 is off by .035 at most (1 sd).
        assert share.mean() > level - 0.01
        assert share.min() > level - 5 * 0.035
    # An upper end at a shared value holds it, and goes not up to the next count.
    ends = result.layers["stemjax_upper_50"][0]
    assert np.allclose(np.exp2(ends), np.round(np.exp2(ends)), atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_offsets_are_those_of_a_slow_search(seed):
    rng = np.random.default_rng(seed)
    scores, mask = rng.standard_normal((60, 7)), rng.random((60, 7)) < 0.8
    scores[rng.random((60, 7)) < 0.2] = 0.25  # ties
    mask[:, 2], mask[:, 3] = 0, 1
    mask[:, 4] = np.arange(60) < 20  # enough for 90 %, not for 95 %
    scores[mask == 0] = np.nan
    found = conformal.offsets(scores, mask)
    assert found.shape == (4, 2, 7)
    for g in range(7):
        own = sorted(s for s, m in zip(scores[:, g], mask[:, g]) if m)
        for i, level in enumerate(LEVELS):
            tail = (1 - fractions.Fraction(str(level))) / 2
            # The least value with at most a tail of n + 1 above it, and the mirror image.
            above = [s for r, s in enumerate(own, 1) if len(own) + 1 - r <= tail * (len(own) + 1)]
            below = [s for r, s in enumerate(own, 1) if r <= tail * (len(own) + 1)]
            high, low = (min(above), max(below)) if above else (np.inf, -np.inf)
            np.testing.assert_array_equal(found[i, :, g], [low, high] if own else [np.nan] * 2)
    assert np.isinf(found[3, :, 4]).all()
    assert np.isfinite(found[2, :, 4]).all()


@pytest.mark.parametrize(("level", "spots"), [(0.5, 3), (0.8, 9), (0.9, 19), (0.95, 39)])
def test_the_fewest_spots_of_a_level(level, spots):
    assert conformal.spots_needed(level) == spots
    for n, finite in ((spots - 1, False), (spots, True)):
        scores = np.arange(float(n))[:, None]
        found = conformal.offsets(scores, np.ones((n, 1)), (level,))
        assert np.isfinite(found).all() == finite


def test_ranks_are_exact():
    # 25 x (1 + .68) / 2 is 21, which floats miss.
    found = conformal.offsets(np.arange(1.0, 25.0)[:, None], np.ones((24, 1)), (0.68,))
    np.testing.assert_array_equal(found[0, :, 0], [4, 21])


def test_scores_and_ends_by_hand():
    floor = np.array([0.4, 0.4])
    mean, std = np.array([[1.0, 2.0]]), np.array([[0.0, 2.0]])
    held = make_held(mean, std, np.array([[2.0, 1.0]]))
    np.testing.assert_allclose(conformal.score(held, floor), [[2.5, -0.5]])
    np.testing.assert_allclose(conformal.score(held._replace(std=None), floor), [[1.0, -1.0]])
    offsets = np.array([[[-1.0, -2.0], [1.0, 3.0]]])
    lower, upper = conformal.intervals(mean, std, offsets, floor)
    # 1e-5 outward, and no lower than 0.
    np.testing.assert_allclose(lower, [[[0.6 - 1e-5, 0.0]]], atol=1e-12)
    np.testing.assert_allclose(upper, [[[1.4 + 1e-5, 8.0 + 1e-5]]], atol=1e-12)


def _slide(seed, shift=0.0, spots=200, slide="V1", **fields):
    true = 50 + shift + np.random.default_rng(seed).standard_normal((spots, 3))
    return make_held(np.full((spots, 3), 50.0), np.ones((spots, 3)), true, slide=slide, **fields)


def test_held_out_coverage_is_of_slides_that_were_not_fitted_on():
    floor = np.full(3, 0.1)
    alike = [_slide(seed) for seed in range(4)]
    shares, how = conformal.hold_out(alike, floor)
    # 2,400 entries, each fitted on 600 spots a gene: 4 sd of both together.
    np.testing.assert_allclose(shares, LEVELS, atol=4 * np.hypot(0.5 / 49, 0.5 / 24))
    assert how == "leave one slide out"
    # Each of two slides lies outside of whatever the other says.
    shares, _ = conformal.hold_out([_slide(0), _slide(1, shift=30.0)], floor)
    assert shares == (0.0,) * 4


def test_one_slide_is_cut_across_its_longer_side():
    columns, rows = (a.reshape(-1) for a in np.meshgrid(np.arange(20), np.arange(10)))
    floor, xy = np.full(3, 0.1), np.stack([columns, rows], 1).astype(float)
    right = _slide(0, shift=30.0 * (columns >= 10)[:, None], xy=xy)
    shares, how = conformal.hold_out([right], floor)
    assert shares == (0.0,) * 4  # the halves are told apart
    assert how == "each half of the slide by the other"
    np.testing.assert_equal(
        conformal.hold_out([right._replace(array_xy=xy[:, ::-1])], floor)[0], shares
    )
    below = _slide(0, shift=30.0 * (rows >= 5)[:, None], xy=xy)
    assert min(conformal.hold_out([below], floor)[0]) > 0.3
    # Halves of 30: not enough for 95 %; of 5 not for 80 %.
    assert [v is None for v in conformal.hold_out([_slide(0, spots=60)], floor)[0]] == [0, 0, 0, 1]
    assert [v is None for v in conformal.hold_out([_slide(0, spots=10)], floor)[0]] == [0, 1, 1, 1]


def test_a_gene_that_no_spot_measured_has_no_interval_and_no_other_gene_lacks_one():
    mask = np.ones((200, 3), np.uint8)
    mask[:, 1] = 0
    held = _slide(0, mask=mask)
    held.true[:, 1] = np.nan  # what is not measured plays no part
    made = fit([held], np.ones(3))
    assert made.absent == ("G1",)
    assert made.spots.tolist() == [200, 0, 200]
    result = anndata.AnnData(X=np.full((5, 3), 50, np.float32))
    conformal.write_intervals(result, np.ones((5, 3)), made)
    for level in LEVELS:
        for name in conformal.layer_names(level):
            np.testing.assert_array_equal(np.isnan(result.layers[name]), [[False, True, False]] * 5)
    assert set(result.layers) - {None} == {  # anndata lists X among them, as None
        f"stemjax_{end}_{level}" for end in ("lower", "upper") for level in (50, 80, 90, 95)
    }


def test_intervals_of_higher_levels_hold_those_of_lower_ones():
    rng = np.random.default_rng(0)
    made = fit([_slide(1), _slide(2, slide="V2")], np.ones(3))
    mean, std = rng.uniform(-1, 2, (50, 3)), rng.uniform(0, 2, (50, 3))
    lower, upper = conformal.intervals(mean, std, made.offsets, made.floor)
    assert (np.diff(lower, axis=0) <= 0).all()
    assert (np.diff(upper, axis=0) >= 0).all()
    assert (lower >= 0).all()
    assert (lower <= upper).all()


def test_modes_without_a_spread_are_offset_in_value_units():
    true = 50 + 3 * np.random.default_rng(0).standard_normal((300, 1))
    held = make_held(np.full((300, 1), 50.0), None, true)
    made = fit([held], np.ones(1), mode="mean")
    assert not made.scaled
    result = anndata.AnnData(X=np.full((2, 1), 50, np.float32))
    # A std that happens to be there is not used.
    conformal.write_intervals(result, np.full((2, 1), 9.0), made)
    upper = result.layers["stemjax_upper_90"][0, 0]
    assert upper == pytest.approx(50 + np.sort(true[:, 0] - 50)[285], abs=1e-4)  # 301 x .95 = 286


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held._replace(mask=held.mask * (np.arange(200)[:, None] < [200, 200, 38])),
         ["at least 39", "1 of 3 genes (G2 38)", "--slides"]),
        (lambda held: held._replace(mask=0 * held.mask), ["none that measured any gene"]),
        (lambda held: held._replace(mean=np.where(np.arange(3) == 1, np.nan, held.mean)),
         ["200 that are not"]),
        (lambda held: held._replace(std=np.full((200, 3), np.inf), mean=held.mean * np.inf),
         ["600 that are not"]),
    ],
)  # fmt: skip
def test_what_cannot_be_calibrated_is_refused(change, words):
    with pytest.raises(errors.CalibrationError) as caught:
        fit([change(_slide(0))], np.ones(3))
    assert caught.value.code == "SJ-E02"
    for word in words:
        assert word in str(caught.value)


def test_the_calibration_of_a_sampling_is_found_by_it():
    one = fit([_slide(0)], np.ones(3), mode="marginal")
    two = fit([_slide(0)], np.ones(3), mode="draws")
    assert conformal.find((one, two), {"mode": "draws"}) is two
    assert conformal.find((one, two), {"mode": "pair"}) is None
    assert isinstance(one, calibration.Calibration)
    np.testing.assert_allclose(one.floor, 0.1)
