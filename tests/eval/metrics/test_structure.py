"""Structure of genes: numpy, scipy, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stemjax.eval import metrics

EXACT = 1e-12  # float64 sums over some hundred spots, with a margin


def linked(rng, spots=150, genes=6):
    """Genes that go together through two hidden factors."""
    factors = rng.normal(size=(spots, 2)) @ rng.normal(size=(2, genes))
    return 4 + factors + 0.8 * rng.normal(size=(spots, genes))


def test_correlations_of_genes_are_numpys(rng):
    values = linked(rng)
    np.testing.assert_allclose(metrics.gene_correlation(values), np.corrcoef(values.T), atol=EXACT)
    mask = rng.random(values.shape) < 0.7
    values[~mask] = np.nan
    found = metrics.gene_correlation(values, mask)
    for i in range(6):
        for j in range(6):
            both = mask[:, i] & mask[:, j]
            expected = stats.pearsonr(values[both, i], values[both, j]).statistic
            assert found[i, j] == pytest.approx(expected, abs=EXACT)


def test_constant_and_unmeasured_genes_correlate_with_none(rng):
    values = linked(rng, genes=4)
    values[:, 1] = 0.1
    found = metrics.gene_correlation(values, np.array([1, 1, 0, 1]))
    assert np.isnan(found[[1, 2]]).all()
    assert np.isnan(found[:, [1, 2]]).all()
    assert found[0, 0] == found[3, 3] == 1.0
    values[7, 0] = np.nan
    with pytest.raises(ValueError, match="holds 1 NaN"):
        metrics.gene_correlation(values)


def test_gsc_is_the_correlation_of_the_pairs(rng):
    true = linked(rng)
    pred = true + rng.normal(size=true.shape)
    pairs = np.triu_indices(6, k=1)
    x, y = (np.corrcoef(side.T)[pairs] for side in (pred, true))
    assert metrics.gsc(pred, true) == pytest.approx(stats.pearsonr(x, y).statistic, abs=EXACT)
    # Neither the genes' levels and spreads nor the spots' places matter: only who goes with whom.
    order = rng.permutation(150)
    moved = 3 * pred[order] - np.arange(6)
    assert metrics.gsc(moved, true) == pytest.approx(metrics.gsc(pred, true), abs=EXACT)
    assert metrics.gsc(true, true) == pytest.approx(1.0)
    # Genes shuffled one by one have the right values each and no structure at all: 15 pairs of
    # noise, so |r| is below 4 / sqrt(14) with room and far from 1.
    shuffled = rng.permuted(true, axis=0)
    assert abs(metrics.gsc(shuffled, true)) < 0.75


def test_gsc_of_constant_genes(rng):
    true = linked(rng)
    pred = true + rng.normal(size=true.shape)
    true[:, 2] = 5.0
    kept = [0, 1, 3, 4, 5]
    expected = metrics.gsc(pred[:, kept], true[:, kept])
    assert metrics.gsc(pred, true) == pytest.approx(expected, abs=EXACT)
    assert metrics.gsc(pred, true, np.array([1, 1, 0, 1, 1, 1])) == pytest.approx(expected)
    # A constant prediction of a gene counts as no correlation: it is not left out.
    pred[:, 0] = 1.0
    r = np.nan_to_num(metrics.gene_correlation(pred)[np.ix_(kept, kept)])
    pairs = np.triu_indices(5, k=1)
    y = np.corrcoef(true[:, kept].T)[pairs]
    assert metrics.gsc(pred, true) == pytest.approx(stats.pearsonr(r[pairs], y).statistic)
    assert metrics.gsc(np.ones_like(true), true) == 0.0
    assert math.isnan(metrics.gsc(pred[:, :2], true[:, :2]))
