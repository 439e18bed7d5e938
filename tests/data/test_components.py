"""Principal components of rows that come in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import decomposition

from stemjax import errors
from stemjax.data import components


def _rows(n=60, genes=9, seed=0):
    """Rows whose genes vary together, about a mean that is not 0."""
    rng = np.random.default_rng(seed)
    scales = np.geomspace(4, 0.5, genes)
    return (3 + (rng.normal(size=(n, genes)) * scales) @ rng.normal(size=(genes, genes))).astype(
        np.float32
    )


def test_they_are_those_of_scikit_learn():
    rows = _rows()
    found = components.find_components([rows], 4)
    expected = decomposition.PCA(4, svd_solver="full").fit(rows.astype(np.float64))
    np.testing.assert_allclose(found.centre, expected.mean_, rtol=1e-6)
    signs = np.sign(np.sum(found.loadings * expected.components_, axis=1))
    np.testing.assert_allclose(found.loadings, expected.components_ * signs[:, None], atol=1e-5)
    assert found.loadings.dtype == found.centre.dtype == np.float32


def test_a_sign_is_fixed():
    found = components.find_components([_rows()], 9)
    for loading in found.loadings:
        assert loading[np.abs(loading).argmax()] > 0


def test_blocks_do_not_matter():
    rows = _rows()
    whole = components.find_components([rows], 3)
    parts = components.find_components((part for part in np.split(rows, [1, 7, 40])), 3)
    # Sums in float64, in another order.
    np.testing.assert_allclose(parts.loadings, whole.loadings, atol=1e-6)
    np.testing.assert_allclose(parts.centre, whole.centre, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 3])
def test_fewer_rows_have_fewer_components(n):
    rows = _rows(n=n)
    found = components.find_components([rows], 5)
    sizes = np.linalg.norm(found.loadings, axis=1)
    np.testing.assert_allclose(sizes, [1.0] * (n - 1) + [0.0] * (6 - n), atol=1e-6)
    back = found.centre + (rows - found.centre) @ found.loadings.T @ found.loadings
    np.testing.assert_allclose(back, rows, atol=1e-4)


def test_rows_that_do_not_vary_have_none():
    found = components.find_components([np.full((5, 3), 7.0)], 2)
    np.testing.assert_array_equal(found.loadings, np.zeros((2, 3)))
    np.testing.assert_array_equal(found.centre, np.full(3, 7.0))


def test_no_rows_and_too_many_components_are_refused():
    with pytest.raises(errors.RecordsError, match="no training rows"):
        components.find_components([], 2)
    with pytest.raises(errors.ConfigError) as caught:
        components.find_components([_rows()], 10)
    assert caught.value.found == "10"
