"""Averages over slides, intervals by the unit that the data allow, and verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from stemjax.eval import combine


def unit(patients, blocks=(9,), resamples=2000):
    blocks = list(blocks) * (len(patients) if len(blocks) == 1 else 1)
    return combine.choose_unit(patients, blocks, resamples=resamples, seed=1)


@pytest.mark.parametrize(
    ("patients", "blocks", "resamples", "name", "count"),
    [
        (["a", "b", "c", "d", "e"], (9,), 100, "patients", 5),
        (["a", "a", "b", "b", "c"], (9,), 100, "slides", 5),
        (["a", "b", "c", "d", None], (9,), 100, "slides", 5),
        (["a", "b"], (9, 4), 100, "spatial blocks", 13),
        (["a"], (1,), 100, "nothing", 0),
        (["a", "b", "c", "d", "e"], (9,), 1, "nothing", 0),
    ],
)
def test_the_unit_is_the_largest_that_there_are_enough_of(patients, blocks, resamples, name, count):
    found = unit(patients, blocks, resamples)
    assert (found.name, found.count) == (name, count)
    assert found.resamples == (resamples if count else 0)
    assert found.sentence


def test_slides_are_averaged_and_resampled_as_such():
    points = np.array([0.1, 0.5, 0.3, 0.9, 0.2, 0.4])
    found = combine.combine([np.array([p]) for p in points], unit([None] * 6))
    assert found[0] == pytest.approx(points.mean())
    assert len(found) == 2001
    # The bootstrap's standard error of a mean is std / sqrt(n); 2,000 resamples know it to 2 %.
    assert found[1:].std() == pytest.approx(points.std() / np.sqrt(6), rel=0.08)


def test_slides_of_one_patient_are_drawn_together():
    """Five patients, one with ten slides: slides would give far too narrow an interval."""
    patients = ["a", "b", "c", "d", *["e"] * 10]
    points = np.array([0.0, 0.0, 0.0, 0.0, *[1.0] * 10])
    found = combine.combine([np.array([p]) for p in points], unit(patients))
    assert found[0] == pytest.approx(10 / 14)
    without_e = (4 / 5) ** 5  # share of resamples that never draw patient e
    assert np.mean(found[1:] == 0) == pytest.approx(without_e, abs=0.04)


def test_blocks_are_resampled_within_each_slide():
    rng = np.random.default_rng(0)
    slides = [rng.normal(size=101) for _ in range(2)]
    found = combine.combine(slides, unit(["a", "b"], resamples=100))
    np.testing.assert_allclose(found, np.mean(slides, axis=0))


def test_undefined_slides_are_left_out_and_nothing_is_nan_silently():
    found = combine.combine(
        [np.array([0.4]), np.array([np.nan]), np.array([0.2]), np.array([0.3]), np.array([0.1])],
        unit(["a", "a", None, None, None]),
    )
    assert found[0] == pytest.approx(0.25)
    alone = combine.combine([np.array([np.nan])] * 5, unit([None] * 5))
    assert np.isnan(alone).all()


def spread(mean, std, n=400):
    return np.concatenate([[mean], np.random.default_rng(0).normal(mean, std, n)])


@pytest.mark.parametrize(
    ("key", "ours", "theirs", "verdict"),
    [
        ("pcc_all", 0.5, 0.3, "better"),
        ("pcc_all", 0.3, 0.5, "worse"),
        ("mse", 0.5, 0.3, "worse"),
        ("mse", 0.3, 0.5, "better"),
        ("coverage_90", 0.91, 0.70, "better"),
        ("coverage_90", 0.99, 0.90, "worse"),
        ("sharpness", 0.1, 0.9, "unknown"),
    ],
)
def test_verdicts_go_by_the_side_that_is_better(key, ours, theirs, verdict):
    found = combine.difference(key, spread(ours, 0.01), spread(theirs, 0.01))
    assert found["verdict"] == verdict
    assert found["difference"] == pytest.approx(ours - theirs)


def test_pairs_are_told_apart_where_unpaired_rows_would_not_be():
    noise = np.random.default_rng(2).normal(0, 0.2, 500)
    ours = np.concatenate([[0.50], 0.50 + noise])
    theirs = np.concatenate([[0.48], 0.48 + noise])
    assert combine.difference("pcc_all", ours, theirs)["verdict"] == "better"
    shuffled = np.concatenate([[0.48], np.roll(theirs[1:], 7)])
    assert combine.difference("pcc_all", ours, shuffled)["verdict"] == "not distinguishable"


def test_without_resamples_there_is_no_verdict():
    found = combine.difference("mse", np.array([0.2]), np.array([0.4]))
    assert found["interval"] is None
    assert found["verdict"] == "unknown"
