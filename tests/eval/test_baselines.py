"""Baselines: laws they must recover, scikit-learn, and figures measured on HER2ST."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import linear_model, model_selection, pipeline, preprocessing

from stemjax.data import genes as gene_panels
from stemjax.data import records, st
from stemjax.eval import baselines, metrics

ALPHAS = (0.1, 10.0, 1000.0)


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


def spots(rng, n, width=12, genes=5, slides=3):
    """Embeddings, targets, mask, slide of each row and array coordinates of a training set."""
    x = rng.normal(2.0, 3.0, (n, width))
    y = x @ rng.normal(size=(width, genes)) / 5 + rng.normal(0.0, 1.0, (n, genes))
    slide = np.sort(rng.integers(slides, size=n))
    xy = rng.integers(0, 30, (n, 2)).astype(np.float32)
    return x, y, np.ones((n, genes), np.uint8), slide, xy


def scikit_ridge(alpha):
    return pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.Ridge(alpha=alpha))


def test_constant_mean_counts_measured_spots_only():
    y = np.array([[1.0, 5.0, 7.0], [3.0, 100.0, 8.0]])
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    pred = baselines.constant_mean(y, mask, spots=2)
    np.testing.assert_array_equal(pred, [[2.0, 5.0, np.nan]] * 2)


def test_depth_oracle_recovers_a_line_in_log_depth(rng):
    total, test_total = rng.integers(100, 9000, 50), np.array([0, 63, 100_000])
    slope, start = np.array([0.8, -0.2, 0.0]), np.array([-3.0, 4.0, 1.0])
    y = start + np.log2(1.0 + total)[:, None] * slope
    mask = np.ones((50, 3))
    mask[:20, 1] = 0
    y[:20, 1] = 99.0
    pred = baselines.depth_oracle(y, mask, total, test_total)
    expected = start + np.log2(1.0 + test_total)[:, None] * slope
    np.testing.assert_allclose(pred, expected, atol=1e-10)  # an exact law: rounding only
    noisy = rng.normal(size=(50, 1))
    pred = baselines.depth_oracle(noisy, mask[:, :1], total, test_total)
    line = np.polyfit(np.log2(1.0 + total), noisy[:, 0], 1)
    np.testing.assert_allclose(pred[:, 0], np.polyval(line, np.log2(1.0 + test_total)), atol=1e-9)
    same = baselines.depth_oracle(noisy, mask[:, :1], np.full(50, 7), test_total)
    np.testing.assert_allclose(same, noisy.mean(), atol=1e-12)


def test_coordinates_of_an_identical_serial_section_give_pcc_1(rng):
    # Islands of 10 spots far apart, one expression each: the 10 nearest are the spot's own island.
    islands = rng.permutation(100)[:8] * 50.0
    xy = np.repeat(islands, 10)[:, None] + np.stack([np.arange(80) % 5, np.arange(80) % 2], axis=1)
    y = np.repeat(rng.normal(size=(8, 4)), 10, axis=0)
    mask = np.ones((80, 4))
    pred = baselines.coordinates_knn(xy, y, mask, xy)
    np.testing.assert_allclose(metrics.pcc_per_gene(pred, y), 1.0, atol=1e-12)
    # The nearest spot alone is the spot itself, whatever is measured there.
    x, y = np.meshgrid(np.arange(9), np.arange(9))
    xy, y = np.stack([x.ravel(), y.ravel()], axis=1), rng.normal(size=(81, 4))
    nearest = baselines.coordinates_knn(xy, y, np.ones((81, 4)), xy, k=1)
    np.testing.assert_array_equal(nearest, y)


def test_coordinates_knn_by_hand_with_ties_and_masks():
    xy = np.array([[0.0, 0], [1, 0], [-1, 0], [5, 0], [9, 0]])
    y = np.array([[1.0, 10], [2, 20], [6, 60], [50, 500], [90, 900]])
    mask = np.ones((5, 2))
    mask[[0, 2, 3], 1] = 0
    here = np.array([[0.0, 0.0]])
    # k = 2 ties two spots at distance 1: both count. Gene 1 was measured at 1 and 9 only.
    pred = baselines.coordinates_knn(xy, y, mask, here, k=2)
    np.testing.assert_allclose(pred, [[3.0, 460.0]])
    order = np.array([2, 4, 1, 0, 3])
    again = baselines.coordinates_knn(xy[order], y[order], mask[order], here, k=2)
    np.testing.assert_allclose(again, pred, rtol=1e-15)
    far = baselines.coordinates_knn(xy, y, mask, here, k=10)
    np.testing.assert_allclose(far, [[149 / 5, 460.0]])
    unmeasured = baselines.coordinates_knn(xy, y, mask * [1, 0], here, k=2)
    np.testing.assert_array_equal(unmeasured, [[3.0, np.nan]])
    assert baselines.coordinates_knn(xy[:0], y[:0], mask[:0], here) is None


@pytest.mark.parametrize("n", [90, 9], ids=["more spots than columns", "fewer"])
def test_ridge_is_scikit_learns(rng, n):
    x, y, mask, slide, xy = spots(rng, n, slides=2)
    x[:, 3] = 0.1  # constant: scaled by 1, as StandardScaler does
    test_x = rng.normal(2.0, 3.0, (20, 12))
    # Condition numbers up to 1e3: 1e3 times float64's rounding, a margin of a hundred.
    for alpha in ALPHAS:
        fitted = baselines.ridge(x, y, mask, test_x, slide_index=slide, array_xy=xy, alphas=[alpha])
        expected = scikit_ridge(alpha).fit(x, y).predict(test_x)
        np.testing.assert_allclose(fitted.prediction, expected, atol=1e-10)
        assert fitted.alpha == alpha


def test_ridge_chooses_alpha_over_slides_as_scikit_learn_does(rng):
    x, y, mask, slide, xy = spots(rng, 60)
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
    x, _, mask, slide, xy = spots(rng, 300)
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
    x, y, mask, slide, xy = spots(rng, 90)
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


def as_table(rng, slide_of_row, slides, counts, mask=None):
    n = len(counts)
    return records.Table(
        embeddings=rng.normal(size=(n, 8, 6)).astype(np.float16),
        counts=counts.astype(np.int32),
        total=counts.sum(axis=1).astype(np.int32) * 3,
        mask=np.ones(counts.shape, np.uint8) if mask is None else mask,
        slide_index=np.asarray(slide_of_row, np.int32),
        slides=slides,
        barcodes=tuple(f"s{i}" for i in range(n)),
        array_xy=rng.integers(0, 9, (n, 2)).astype(np.float32),
        pixel_xy=np.zeros((n, 2), np.float32),
    )


def test_fit_takes_the_patients_own_sections_for_coordinates(rng):
    train = as_table(rng, np.repeat([0, 1], 30), ("A1", "B1"), rng.poisson(5, (60, 4)))
    train.mask[:30, 3] = 0
    train.mask[:, 2] = 0
    test = as_table(rng, np.zeros(15), ("A2",), rng.poisson(5, (15, 4)))
    patients = {"A1": "A", "A2": "A", "B1": "B"}
    fitted = baselines.fit(train, test, value_space="log2p1", patients=patients)
    assert list(fitted.rows) == ["constant mean", "coordinates kNN", "depth oracle", "ridge"]
    assert fitted.trained.tolist() == [True, True, False, True]
    y = np.log2(train.counts + 1.0)
    own = baselines.coordinates_knn(train.array_xy[:30], y[:30], train.mask[:30], test.array_xy)
    # float32 transform against float64: 1e-7 relative of values up to 4.
    knn = fitted.rows["coordinates kNN"]
    np.testing.assert_allclose(knn[:, :2], own[:, :2], atol=1e-6)
    # Gene 3 was measured on the other patient's slide only: there its mean.
    np.testing.assert_allclose(knn[:, 3], y[30:, 3].mean(), atol=1e-6)
    for row in fitted.rows.values():
        assert np.isnan(row[:, 2]).all()
        assert np.isfinite(row[:, [0, 1, 3]]).all()
    # Other embeddings than the original patch's must not be looked at.
    variants = train.embeddings.copy()
    variants[:, 1:] = 1000.0
    changed = records.Table(**(vars(train) | {"embeddings": variants}))
    again = baselines.fit(changed, test, value_space="log2p1", patients=patients)
    np.testing.assert_array_equal(again.rows["ridge"], fitted.rows["ridge"])


@pytest.mark.parametrize("patient", ["C", None])
def test_fit_has_no_coordinates_row_for_a_new_or_unknown_patient(rng, patient):
    train = as_table(rng, np.repeat([0, 1], 30), ("A1", "B1"), rng.poisson(5, (60, 4)))
    test = as_table(rng, np.zeros(15), ("X",), rng.poisson(5, (15, 4)))
    patients = {"A1": "A", "B1": None, "X": patient}
    fitted = baselines.fit(train, test, value_space="log1p_cp10k", patients=patients)
    assert "coordinates kNN" not in fitted.rows
    assert any("coordinates kNN" in note for note in fitted.notes)
    assert f"{fitted.ridge.alpha:g}" in fitted.notes[0]


@pytest.mark.slow
@pytest.mark.her2st
def test_floors_on_her2st_are_those_measured_before(her2st):
    # field.md 1.6 (B1 of HER2ST, 300 genes of Stem's rule over 36 sections), measured by other
    # code. 29 sections are at hand, so some genes of the panel differ: PCC to .01, MSE to 2 %.
    sections = {
        section: st.read_slide(her2st, section, need_image=False)
        for section in st.list_slides(her2st)
    }
    panel = gene_panels.select_panel(list(sections.values()), n_genes=300)

    def arrays(*names):
        counts = [gene_panels.panel_counts(sections[name], panel.genes)[0] for name in names]
        total = [np.asarray(sections[name].counts.sum(axis=1)).ravel() for name in names]
        xy = np.concatenate([sections[name].array_xy for name in names])
        y = np.log2(np.concatenate(counts) + 1.0)
        return y, np.ones(y.shape), np.concatenate(total), xy

    true, _, test_total, test_xy = arrays("B1")
    assert true.shape == (295, 300)

    def scores(pred):
        return metrics.pcc_top(metrics.pcc_per_gene(pred, true)), metrics.mse(pred, true)

    y, mask, total, xy = arrays("B2")
    for k, pcc, mse in ((1, 0.5899, 1.3053), (10, 0.6625, 1.0069)):
        found = scores(baselines.coordinates_knn(xy, y, mask, test_xy, k=k))
        assert found[0] == pytest.approx(pcc, abs=0.01)
        assert found[1] == pytest.approx(mse, rel=0.02)
    y, mask, total, xy = arrays("B2", "B3", "B4", "B5", "B6")
    constant = baselines.constant_mean(y, mask, spots=295)
    assert scores(constant)[0] == 0.0
    assert scores(constant)[1] == pytest.approx(1.5583, rel=0.02)
    assert metrics.rvd(constant, true) == pytest.approx(1.0)
    y, mask, total, xy = arrays(*(name for name in sections if name != "B1"))
    depth = scores(baselines.depth_oracle(y, mask, total, test_total))
    assert depth[0] == pytest.approx(0.7326, abs=0.01)
    assert depth[1] == pytest.approx(0.9311, rel=0.02)
