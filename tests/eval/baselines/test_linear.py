"""Ridge and HEST's probe against scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import training_sets
from sklearn import linear_model, model_selection, pipeline, preprocessing

from stemjax.eval import baselines, metrics

ALPHAS = baselines.ALPHAS


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


def scikit_ridge(alpha):
    return pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.Ridge(alpha=alpha))


@pytest.mark.parametrize("n", [90, 9], ids=["more spots than columns", "fewer"])
def test_ridge_is_scikit_learns(rng, n):
    x, y, mask, slide, xy = training_sets.spots(rng, n, slides=2)
    x[:, 3] = 0.1  # constant: scaled by 1, as StandardScaler does
    test_x = rng.normal(2.0, 3.0, (20, 12))
    # Condition numbers up to 1e3: 1e3 times float64's rounding, a margin of a hundred.
    for alpha in ALPHAS:
        fitted = baselines.ridge(x, y, mask, test_x, slide_index=slide, array_xy=xy, alphas=[alpha])
        expected = scikit_ridge(alpha).fit(x, y).predict(test_x)
        np.testing.assert_allclose(fitted.prediction, expected, atol=1e-10)
        assert fitted.alpha == alpha


def test_ridge_chooses_alpha_over_slides_as_scikit_learn_does(rng):
    x, y, mask, slide, xy = training_sets.spots(rng, 60)
    test_x = rng.normal(2.0, 3.0, (4, 12))
    fitted = baselines.ridge(x, y, mask, test_x, slide_index=slide, array_xy=xy, alphas=ALPHAS)
    errors = []
    for alpha in ALPHAS:
        pred = model_selection.cross_val_predict(
            scikit_ridge(alpha), x, y, groups=slide, cv=model_selection.LeaveOneGroupOut()
        )
        errors.append(metrics.mse(pred, y))
    np.testing.assert_allclose(fitted.errors, errors, rtol=1e-10)
    assert fitted.alpha == ALPHAS[int(np.argmin(errors))]
    assert fitted.folds == "leave one slide out"
    np.testing.assert_allclose(
        fitted.prediction, scikit_ridge(fitted.alpha).fit(x, y).predict(test_x), atol=1e-10
    )


def test_ridge_recovers_a_linear_law_and_gives_up_on_noise(rng):
    x, _, mask, slide, xy = training_sets.spots(rng, 300)
    weights, test_x = rng.normal(size=(12, 5)), rng.normal(2.0, 3.0, (50, 12))
    law = baselines.ridge(x, 7 + x @ weights, mask, test_x, slide_index=slide, array_xy=xy)
    assert law.alpha == min(baselines.ALPHAS)
    # The smallest penalty shrinks by about alpha / n = 0.1 / 300 of values of size 10.
    np.testing.assert_allclose(law.prediction, 7 + test_x @ weights, atol=0.02)
    noise = rng.normal(size=(300, 5))
    nothing = baselines.ridge(x, noise, mask, test_x, slide_index=slide, array_xy=xy)
    assert nothing.alpha >= 1e3
    # Nothing but each gene's mean is left, to 1 / sqrt(300) or so of its spread.
    np.testing.assert_allclose(nothing.prediction, [noise.mean(axis=0)] * 50, atol=0.15)


def test_ridge_fits_each_gene_on_the_slides_that_measured_it(rng):
    x, y, mask, slide, xy = training_sets.spots(rng, 90)
    mask[slide == 0, 1] = 0
    mask[slide != 2, 2] = 0
    mask[:, 4] = 0
    test_x = rng.normal(2.0, 3.0, (6, 12))
    y[mask == 0] = 1e6  # a count that is no measurement must not matter
    fitted = baselines.ridge(x, y, mask, test_x, slide_index=slide, array_xy=xy, alphas=[10.0])
    for gene, rows in ((0, slide >= 0), (1, slide != 0), (2, slide == 2), (3, slide >= 0)):
        expected = scikit_ridge(10.0).fit(x[rows], y[rows, gene]).predict(test_x)
        np.testing.assert_allclose(fitted.prediction[:, gene], expected, atol=1e-10)
    assert np.isnan(fitted.prediction[:, 4]).all()
    assert fitted.errors[0] < 10  # held-out entries that were not measured are not scored


def test_folds_of_one_slide_are_contiguous_strips():
    x, y = np.meshgrid(np.arange(20), np.arange(6))
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    fold, what = baselines.ridge_folds(np.zeros(120, int), xy)
    assert "5 contiguous strips" in what
    assert np.bincount(fold).tolist() == [24] * 5
    np.testing.assert_array_equal(fold, xy[:, 0] // 4)
    turned, _ = baselines.ridge_folds(np.zeros(120, int), xy[:, ::-1])
    np.testing.assert_array_equal(turned, fold)
    fold, what = baselines.ridge_folds(np.array([7, 7, 3, 9, 3]), xy[:5])
    assert fold.tolist() == [1, 1, 0, 2, 0]


def test_held_out_ridge_is_scikit_learns_cross_val_predict(rng):
    x, y, mask, slide, _ = training_sets.spots(rng, 60)
    held_out = baselines.ridge_held_out(x, y, mask, fold=slide, alpha=10.0)
    expected = model_selection.cross_val_predict(
        scikit_ridge(10.0), x, y, groups=slide, cv=model_selection.LeaveOneGroupOut()
    )
    np.testing.assert_allclose(held_out, expected, atol=1e-10)  # as for the fits themselves
    pcc = baselines.held_out_pcc(held_out, y, mask, fold=slide)
    each = [
        [np.corrcoef(expected[slide == s, g], y[slide == s, g])[0, 1] for s in range(3)]
        for g in range(5)
    ]
    np.testing.assert_allclose(pcc, np.mean(each, axis=1), atol=1e-10)


def test_held_out_pcc_leaves_out_folds_where_it_is_not_defined(rng):
    x, y, mask, slide, _ = training_sets.spots(rng, 90)
    mask[slide == 1, 0] = 0
    mask[slide != 2, 1] = 0  # one fold alone: no fit can predict it
    y[slide == 0, 2] = 3.0  # constant there
    mask[:, 3] = 0
    held_out = baselines.ridge_held_out(x, y, mask, fold=slide, alpha=10.0)
    assert np.isnan(held_out[slide == 2, 1]).all()
    pcc = baselines.held_out_pcc(held_out, y, mask, fold=slide)

    def mean(gene, folds):
        return np.mean(
            [np.corrcoef(held_out[slide == s, gene], y[slide == s, gene])[0, 1] for s in folds]
        )

    expected = [mean(0, (0, 2)), np.nan, mean(2, (1, 2)), np.nan, mean(4, (0, 1, 2))]
    np.testing.assert_allclose(pcc, expected, atol=1e-12)
    one = baselines.ridge_held_out(x, y, mask, fold=np.zeros(90, int), alpha=1.0)
    assert np.isnan(one).all()
    assert np.isnan(baselines.held_out_pcc(one, y, mask, fold=np.zeros(90, int))).all()


def closed_form_probe(x, y, test_x, *, alpha, components):
    """HEST's probe by singular vectors and normal equations, in float64."""
    z, test_z = (x - x.mean(axis=0)) / x.std(axis=0), (test_x - x.mean(axis=0)) / x.std(axis=0)
    directions = np.linalg.svd(z, full_matrices=False)[2][:components].T
    z, test_z = z @ directions, test_z @ directions
    return test_z @ np.linalg.solve(z.T @ z + alpha * np.eye(components), z.T @ y)


@pytest.mark.parametrize(
    ("n", "width", "components"), [(400, 300, 256), (60, 300, 60), (90, 12, 12), (30, 12, 12)]
)
def test_hest_probe_is_its_closed_form(rng, n, width, components):
    x, y, mask, _, _ = training_sets.spots(rng, n, width=width)
    y -= y.mean(axis=0)
    test_x = rng.normal(2.0, 3.0, (20, width))
    pred = baselines.hest_probe(x, y, mask, test_x)
    alpha = 100 / (components * 5)
    # 60 rows span 59 directions about their mean: the 60th component is rounding alone.
    expected = closed_form_probe(x, y, test_x, alpha=alpha, components=min(components, n - 1))
    # lsqr stops where the residual's share left to explain is 1e-4.
    tolerance = 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(pred, expected, atol=tolerance)
    others = [closed_form_probe(x, y, test_x, alpha=a, components=min(components, n - 1))
              for a in (0.2 * alpha, 5 * alpha)]  # fmt: skip
    far = [np.abs(other - expected).max() for other in others]
    if width == 12:  # no more columns than the law has: here alpha is seen
        assert min(far) > 3 * tolerance


def test_hest_probe_knows_no_level(rng):
    x, y, mask, _, _ = training_sets.spots(rng, 200)
    centre = x.mean(axis=0, keepdims=True)
    pred = baselines.hest_probe(x, y + 1000.0, mask, centre)
    np.testing.assert_allclose(pred, 0.0, atol=1e-3)  # float32 mean of the columns


def test_hest_probe_fits_each_gene_where_it_was_measured(rng):
    x, y, mask, slide, _ = training_sets.spots(rng, 90)
    mask[slide == 0, 1] = 0
    mask[:, 4] = 0
    for gene in range(5):
        y[:, gene] -= y[mask[:, gene] != 0, gene].mean() if gene < 4 else 0.0
    y[mask == 0] = 1e6
    test_x = rng.normal(2.0, 3.0, (6, 12))
    pred = baselines.hest_probe(x, y, mask, test_x)
    assert np.isnan(pred[:, 4]).all()
    for genes, rows in (([0, 2, 3], slide >= 0), ([1], slide != 0)):
        expected = closed_form_probe(
            x[rows], y[rows][:, genes], test_x, alpha=100 / (12 * 4), components=12
        )
        np.testing.assert_allclose(pred[:, genes], expected, atol=0.02)  # as above, values near 3
