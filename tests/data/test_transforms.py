"""Transforms and standardisation: by hand, there and back, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stemjax import errors
from stemjax.data import transforms


def test_transforms_by_hand():
    counts, total = np.array([[0, 1, 7], [3, 0, 2**20 - 1]]), np.array([1000, 2**21])
    # float32: the logarithms of small whole numbers are exact or half a unit off
    np.testing.assert_allclose(
        transforms.get_transform("log2p1").forward(counts, total),
        [[0, 1, 3], [2, 0, 20]],
        rtol=1e-7,
    )
    cp10k = transforms.get_transform("log1p_cp10k").forward(counts, total)
    expected = np.log(1 + 1e4 * counts / total[:, None])
    np.testing.assert_allclose(cp10k, expected, rtol=3e-7)  # float32, three operations
    assert cp10k.dtype == np.float32
    natural = transforms.get_transform("log1p").forward(counts, total)
    np.testing.assert_allclose(natural, np.log(counts + 1.0), rtol=1e-7)
    # The depth of the spot does not enter.
    np.testing.assert_array_equal(natural, transforms.Transform("log1p").forward(counts, total * 0))


@pytest.mark.parametrize("name", transforms.TRANSFORMS)
def test_inverse_returns_the_counts(name):
    rng = np.random.default_rng(5)
    counts = rng.poisson(rng.gamma(0.5, 40, (30, 20)))
    total = counts.sum(axis=1) + rng.integers(0, 5000, 30)
    total[4], counts[4] = 0, 0  # a spot without any count
    transform = transforms.get_transform(name)
    values = transform.forward(counts, total)
    assert (values[4] == 0).all()
    # float32 logarithm and exponential: 1e-7 of values up to 12 is 1e-6 of the count
    np.testing.assert_allclose(transform.inverse(values, total), counts, rtol=3e-6, atol=1e-5)
    assert (transform.inverse(-values - 0.1, total) == 0).all()
    assert np.isnan(transform.inverse(values * np.nan, total)).all()


def test_cp10k_takes_depth_out_and_log2_does_not():
    counts, total = np.array([[2, 4, 8]]), np.array([500])
    for name, same in (("log1p_cp10k", True), ("log2p1", False), ("log1p", False)):
        forward = transforms.get_transform(name).forward
        deep = forward(counts * 4, total * 4)
        assert np.allclose(forward(counts, total), deep, rtol=1e-6) == same


def test_unknown_transform_lists_those_there_are():
    with pytest.raises(errors.ConfigError, match="log2p1 or log1p_cp10k or log1p, found 'log'"):
        transforms.get_transform("log")


def test_standardisation_of_measured_entries():
    rng = np.random.default_rng(8)
    x = rng.normal(5, 3, (500, 4)).astype(np.float32)
    mask = (rng.random((500, 4)) < 0.7).astype(np.uint8)
    mask[:, 3] = 0
    x[:, 2] = 0.1  # constant, and not a binary fraction: rounding is not a deviation
    fitted = transforms.Standardisation.fit(np.where(mask, x, 1e6).astype(np.float32), mask)
    for column in (0, 1):
        values = x[mask[:, column] == 1, column].astype(float)
        # stored in float32
        np.testing.assert_allclose(fitted.mean[column], values.mean(), rtol=1e-6)
        np.testing.assert_allclose(fitted.std[column], values.std(), rtol=1e-6)
    assert fitted.std[2:].tolist() == [1.0, 1.0]
    assert fitted.mean[3] == 0
    standard = fitted.apply(x)
    measured = standard[mask[:, 0] == 1, 0]
    # 350 float32 values of about 1
    assert abs(measured.mean()) < 1e-6
    assert abs(measured.std() - 1) < 1e-6
    assert (np.abs(standard[:, 2]) < 1e-6).all()


def test_standardisation_in_blocks(monkeypatch):
    x = np.random.default_rng(9).normal(1e3, 1, (1001, 3))
    whole = transforms.Standardisation.fit(x)
    monkeypatch.setattr(transforms, "_CHUNK", 100)
    blocks = transforms.Standardisation.fit(x)
    # A constant that sums inexactly leaves a deviation of rounding, which is no deviation.
    assert transforms.Standardisation.fit(np.full((1001, 1), 0.1)).std.tolist() == [1.0]
    np.testing.assert_allclose(blocks.std, x.std(axis=0), rtol=1e-6)  # float32
    np.testing.assert_array_equal(blocks.mean, whole.mean)


def test_standardisation_there_and_back():
    rng = np.random.default_rng(10)
    fitted = transforms.Standardisation.fit(rng.gamma(2, 3, (50, 6)))
    x = rng.normal(0, 2, (3, 50, 6)).astype(np.float32)  # also with a leading axis of draws
    # float32: one subtraction and one division of values up to 30
    np.testing.assert_allclose(fitted.apply(fitted.invert(x)), x, atol=1e-5)
    stored = transforms.Standardisation.from_json(json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_array_equal(stored.mean, fitted.mean)
    np.testing.assert_array_equal(stored.std, fitted.std)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0, 1.0], [1.0], r"shapes \(2,\) and \(1,\)"),
        ([0.0], [0.0], "smallest std 0.0"),
        ([np.nan], [1.0], "finite"),
        ([1.0], [np.inf], "finite"),
    ],
)
def test_standardisation_that_cannot_be_used(mean, std, message):
    with pytest.raises(errors.RecordsError, match=message):
        transforms.Standardisation(mean=np.array(mean), std=np.array(std))
    with pytest.raises(errors.RecordsError, match="incomplete.*'std'"):
        transforms.Standardisation.from_json({"mean": mean})
    with pytest.raises(errors.RecordsError, match="mask does not fit"):
        transforms.Standardisation.fit(np.ones((3, 2)), np.ones(2))
