"""The known field against dense Gaussian algebra, closed forms and its own draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import spatial
from sklearn.gaussian_process import kernels

from stemjax import errors
from stemjax.data import grids, known_field, processes


def small_field(family="matern", n_genes=4, **changes):
    """Two length scales with a process each; two features that show the first process alone."""
    values = {
        "n_genes": n_genes,
        "length_um": (150.0, 600.0),
        "processes": 1,
        "family": family,
        "n_features": 2,
        "shown": (0,),
    }
    return known_field.draw_field(7, **values | changes)


def split_lattice(side=6, hidden=14, seed=0):
    """(measured, hidden) positions of a square lattice with a pitch of 100 um."""
    xy = grids.grid_xy("square", side, side, 100.0)[1].astype(float)
    order = np.random.default_rng(seed).permutation(len(xy))
    return xy[order[hidden:]], xy[order[:hidden]]


def dense_covariance(field, xy):
    """Covariance of (values, features) of all spots by scikit-learn's kernels, spot-major."""
    total = 0.0
    weight = np.concatenate([field.loadings, field.features], axis=1)
    for length, row in zip(field.length_um, weight, strict=True):
        matern = field.family == "matern"
        kernel = kernels.Matern(length, nu=1.5) if matern else kernels.RBF(length)
        total = total + np.kron(kernel(xy), np.outer(row, row))
    noise = [*field.noise_std**2, *[field.feature_std**2] * field.features.shape[1]]
    return total + np.kron(np.eye(len(xy)), np.diag(noise))


@pytest.mark.parametrize("family", ["matern", "squared exponential"])
def test_the_covariance_of_many_sections_is_the_laws(family):
    field = small_field(family, n_genes=3)
    xy = np.array([[0.0, 0.0], [120.0, 40.0], [500.0, 90.0]])
    n = 6000
    drawn = np.array(
        [
            np.concatenate([field.sample(i, xy), field.embeddings(i, xy)], axis=1).ravel()
            for i in range(n)
        ]
    )
    expected = dense_covariance(field, xy)
    size = np.diag(expected)
    # Standard errors of a normal sample's covariances and means; 5 of them over 120 entries.
    error = np.sqrt((np.outer(size, size) + expected**2) / n)
    assert (np.abs(np.cov(drawn.T) - expected) < 5 * error).all()
    centre = np.tile([*field.mean, 0.0, 0.0], len(xy))
    assert (np.abs(drawn.mean(axis=0) - centre) < 5 * np.sqrt(size / n)).all()


@pytest.mark.parametrize("family", ["matern", "squared exponential"])
@pytest.mark.parametrize("image", [(False, False), (True, True), (False, True)])
@pytest.mark.parametrize("n_genes", [1, 4])  # 1: fewer genes than processes
def test_best_is_the_dense_conditional_expectation(family, image, n_genes):
    field = small_field(family, n_genes=n_genes)
    measured, query = split_lattice()
    xy, m = np.concatenate([measured, query]), len(measured)
    y, features = field.sample(3, xy), field.embeddings(3, xy)
    seen = np.zeros((len(xy), n_genes + 2), bool)
    seen[:m, :n_genes] = True
    seen[:m, n_genes:], seen[m:, n_genes:] = image
    asked = np.zeros(seen.shape, bool)
    asked[m:, :n_genes] = True
    covariance = dense_covariance(field, xy)
    known, wanted = seen.ravel(), asked.ravel()
    gain = np.linalg.solve(covariance[np.ix_(known, known)], covariance[np.ix_(known, wanted)])
    centred = np.concatenate([y - field.mean, features], axis=1).ravel()
    mean = field.mean + (gain.T @ centred[known]).reshape(len(query), -1)
    reduced = np.sum(gain * covariance[np.ix_(known, wanted)], axis=0)
    variance = (np.diag(covariance)[wanted] - reduced).reshape(len(query), -1)
    found = field.best(
        measured,
        y[:m],
        query,
        measured_embeddings=features[:m] if image[0] else None,
        query_embeddings=features[m:] if image[1] else None,
    )
    # Both in float64 on well-conditioned matrices (noise at least .3 of the variance).
    np.testing.assert_allclose(found[0], mean, atol=1e-9)
    np.testing.assert_allclose(found[1], variance, atol=1e-9)
    if image[0] == image[1]:
        mse = field.best_mse(measured, query, image=image[0])
        np.testing.assert_allclose(mse, variance.mean(), atol=1e-9)


def test_one_gene_and_two_spots_by_hand():
    field = known_field.KnownField(
        mean=np.array([18.0]),
        loadings=np.array([[0.8]]),
        noise_std=np.array([0.6]),
        length_um=np.array([200.0]),
        features=np.zeros((1, 0)),
    )
    here, there = np.array([[0.0, 0.0]]), np.array([[0.0, 200.0]])
    rho = (1 + np.sqrt(3)) * np.exp(-np.sqrt(3))
    mean, variance = field.best(here, np.array([[20.0]]), there)
    # Variance of a value .64 + .36 = 1, covariance .64 rho.
    np.testing.assert_allclose(mean, [[18.0 + 0.64 * rho * 2.0]], rtol=1e-12)
    np.testing.assert_allclose(variance, [[1 - (0.64 * rho) ** 2]], rtol=1e-12)
    np.testing.assert_allclose(field.kriging_mse(here, there), variance[0, 0], rtol=1e-12)
    # The measured value itself as the prediction: two noises and twice the process' difference.
    copied = field.linear_mse(np.array([[1.0]]), here, there)
    np.testing.assert_allclose(copied, 2 * 0.36 + 2 * 0.64 * (1 - rho), rtol=1e-12)
    # Nothing at all as the prediction: the mean's square and the variance.
    none = field.linear_mse(np.array([[0.0]]), here, there)
    np.testing.assert_allclose(none, 18.0**2 + 1.0, rtol=1e-12)
    nobody = np.zeros((0, 2))
    mean, variance = field.best(nobody, np.zeros((0, 1)), there)
    np.testing.assert_allclose([mean[0, 0], variance[0, 0]], [18.0, 1.0], rtol=1e-12)


def test_without_noise_a_measured_spot_is_known():
    drawn = small_field()
    field = known_field.KnownField(
        mean=drawn.mean,
        loadings=drawn.loadings,
        noise_std=np.full(4, 1e-4),
        length_um=drawn.length_um,
        features=drawn.features,
    )
    measured, _ = split_lattice()
    y = field.sample(1, measured)
    mean, variance = field.best(measured, y, measured)
    # The process is known to the noise of 1e-4, and the noise of another measurement is left.
    np.testing.assert_allclose(mean, y, atol=1e-3)
    assert variance.max() < 3e-8


def errors_over_sections(field, measured, query, predict, n):
    """Mean squared error of a prediction on each of ``n`` sections."""
    xy, m, found = np.concatenate([measured, query]), len(measured), []
    for seed in range(n):
        y, features = field.sample(seed, xy), field.embeddings(seed, xy)
        found.append(np.mean((predict(y[:m], features[:m], features[m:]) - y[m:]) ** 2))
    return np.array(found)


def assert_expected(found, expected):
    """Four standard errors of the mean over sections; and they are small enough to tell."""
    error = found.std() / np.sqrt(len(found))
    assert error < 0.02 * expected
    assert abs(found.mean() - expected) < 4 * error


def test_the_best_errors_are_those_over_many_sections():
    field = small_field(n_genes=8)
    measured, query = split_lattice()
    alone = errors_over_sections(
        field, measured, query, lambda y, a, b: field.best(measured, y, query)[0], 400
    )
    assert_expected(alone, field.best_mse(measured, query))
    with_image = errors_over_sections(
        field,
        measured,
        query,
        lambda y, a, b: field.best(measured, y, query, measured_embeddings=a, query_embeddings=b)[
            0
        ],
        400,
    )
    assert_expected(with_image, field.best_mse(measured, query, image=True))
    away = spatial.distance.cdist(query, measured)
    # The four nearest; which of those tied with the fourth is this test's affair.
    weights = 0.25 * (np.argsort(np.argsort(away, axis=1), axis=1) < 4)
    mean = errors_over_sections(field, measured, query, lambda y, a, b: weights @ y, 400)
    assert_expected(mean, field.linear_mse(weights, measured, query))


def test_kriging_mse_is_that_of_each_gene_as_a_law_of_its_own():
    field = small_field(n_genes=5)
    measured, query = split_lattice()
    alone = [
        known_field.KnownField(
            mean=field.mean[g : g + 1],
            loadings=field.loadings[:, g : g + 1],
            noise_std=field.noise_std[g : g + 1],
            length_um=field.length_um,
            features=field.features,
        ).best_mse(measured, query)
        for g in range(5)
    ]
    np.testing.assert_allclose(field.kriging_mse(measured, query), np.mean(alone), rtol=1e-9)


def test_who_knows_more_errs_less():
    field = known_field.draw_field(1, n_genes=30, n_features=5, shown=(0, 2))
    measured, query = split_lattice(side=8, hidden=30)
    weights = np.full((len(query), len(measured)), 1 / len(measured))
    ladder = [
        float(np.mean(field.noise_std**2)),
        field.best_mse(measured, query, image=True),
        field.best_mse(measured, query),
        field.kriging_mse(measured, query),
        field.linear_mse(weights, measured, query),
    ]
    # Each step is far beyond rounding: at least 1 % of the variance of 1.
    assert (np.diff(ladder) > 0.01).all()
    more, fewer = measured, measured[:10]
    assert field.best_mse(more, query) < field.best_mse(fewer, query) - 0.01


def test_a_section_is_a_function_of_the_set_of_positions():
    field = small_field()
    xy = split_lattice()[0]
    order = np.random.default_rng(5).permutation(len(xy))
    np.testing.assert_array_equal(field.sample(2, xy[order]), field.sample(2, xy)[order])
    np.testing.assert_array_equal(field.embeddings(2, xy[order]), field.embeddings(2, xy)[order])
    assert np.abs(field.sample(3, xy) - field.sample(2, xy)).mean() > 0.5
    # Features show the first process alone, whose value all genes of the section share.
    process = processes.Processes(length_um=field.length_um).draw(2, xy[np.lexsort(xy.T[::-1])])
    features = field.embeddings(2, xy[np.lexsort(xy.T[::-1])])
    assert np.corrcoef(process[:, 0], features[:, 0])[0, 1] ** 2 > 0.4
    assert np.corrcoef(process[:, 1], features[:, 0])[0, 1] ** 2 < 0.4


def test_the_laws_of_a_seed_are_equal_and_of_others_not():
    first, again, other = (known_field.draw_field(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.loadings, again.loadings)
    assert np.abs(first.loadings - other.loadings).max() > 0.1
    # Every gene's variance is 1, in the shares asked for.
    total = np.sum(first.loadings**2, axis=0) + first.noise_std**2
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)
    assert 0.3 <= (first.noise_std**2).min() < 0.4
    assert 0.7 < (first.noise_std**2).max() <= 0.8


def test_counts_keep_the_values_to_a_thousandth_of_the_noise():
    field = known_field.draw_field(0)
    values = field.sample(0, grids.grid_xy("square", 20, 20, 100.0)[1])
    counts = field.to_counts(values)
    assert counts.dtype == np.int32
    moved = np.abs(np.log2(counts + 1.0) - values)
    assert (moved < known_field.ROUNDING_SHARE * field.noise_std).all()
    # The bound of the docstring, with its second-order term; and rounding does move values.
    assert (moved <= 0.7214 * np.exp2(-values) * (1 + np.exp2(-values))).all()
    assert moved.max() > 0.3 * 0.7214 * np.exp2(-values).max()
    lowest = np.log2(0.7214 / (known_field.ROUNDING_SHARE * field.noise_std))
    field.to_counts(lowest[None] + 0.01)
    for bad in (lowest[None] - 0.01, values + 30):
        with pytest.raises(errors.ConfigError, match="values for counts"):
            field.to_counts(bad)


@pytest.mark.parametrize(("lattice", "n_near"), [("square", 4), ("hexagonal", 6)])
def test_a_slide_lies_on_its_lattice_and_follows_the_law(lattice, n_near):
    field = known_field.draw_field(0, n_genes=6)
    slide = field.make_slide(4, lattice=lattice, rows=7, columns=9, pitch_um=150.0, patient="P")
    assert (slide.id, slide.patient, slide.n_spots) == ("field4", "P", 63)
    assert (slide.genes, slide.image, slide.mpp) == (field.genes, None, 1.0)
    xy = slide.pixel_xy.astype(float)
    away = spatial.distance.cdist(xy, xy)
    np.fill_diagonal(away, np.inf)
    # float32 positions up to 1,500 um: 1e-4 um.
    np.testing.assert_allclose(away.min(axis=1), 150.0, atol=1e-3)
    middle = int(np.argmin(np.linalg.norm(xy - xy.mean(axis=0), axis=1)))
    assert np.sum(away[middle] < 151.0) == n_near
    # Neighbours in um are neighbours on the array, where Visium counts every second column.
    step = np.abs(slide.array_xy[away[middle] < 151.0] - slide.array_xy[middle]).sum(axis=1)
    assert set(step) == ({1.0} if lattice == "square" else {2.0})
    values = field.sample(4, slide.pixel_xy)
    np.testing.assert_allclose(np.log2(slide.counts.toarray() + 1.0), values, atol=1e-3 * 0.55)


def test_a_smooth_process_can_be_drawn_on_a_large_slide():
    # A squared exponential's matrix is singular in float64: the jitter alone makes it regular.
    xy = grids.grid_xy("hexagonal", 30, 30, 100.0)[1]
    drawn = processes.Processes(length_um=np.array([2000.0]), family="squared exponential").draw(
        0, xy
    )
    near = np.argsort(spatial.distance.cdist(xy, xy), axis=1)[:, 1]
    # Neighbours differ by pitch / length = .05 standard deviations.
    assert 0.01 < np.std(drawn[:, 0] - drawn[near, 0]) < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_std": np.zeros(4)}, "noise_std"),
        ({"mean": np.zeros(3)}, "arrays"),
        ({"features": np.zeros((3, 2))}, "arrays"),
        ({"length_um": np.array([1.0, 0.0])}, "Gaussian processes"),
        ({"family": "cubic"}, "Gaussian processes"),
        ({"feature_std": 0.0}, "feature_std"),
    ],
)
def test_a_law_that_does_not_fit_is_refused(change, message):
    field = small_field()
    values = {
        name: getattr(field, name)
        for name in ("mean", "loadings", "noise_std", "length_um", "features")
    }
    with pytest.raises(errors.ConfigError, match=message):
        known_field.KnownField(**values | change)


def test_arrays_of_another_law_are_refused():
    field = small_field()
    measured, query = split_lattice()
    y = field.sample(0, measured)
    cubic: Any = "cubic"
    with pytest.raises(errors.ConfigError, match="measured_y"):
        field.best(measured, y[:, :3], query)
    with pytest.raises(errors.ConfigError, match="query_embeddings"):
        field.best(measured, y, query, query_embeddings=np.zeros((3, 2)))
    with pytest.raises(errors.ConfigError, match="grid of spots"):
        grids.grid_xy(cubic, 3, 3, 100.0)
    with pytest.raises(errors.ConfigError, match="grid of spots"):
        field.make_slide(0, rows=0)
    with pytest.raises(errors.ConfigError, match="shown"):
        known_field.draw_field(0, n_features=2, shown=(9,))
    with pytest.raises(errors.ConfigError, match="noise_share"):
        known_field.draw_field(0, noise_share=(0.0, 0.5))
