"""Recovery of hidden spots: hand-made cases, and the known field, whose best error is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import spatial

from stemjax import errors
from stemjax.data import grids, known_field, processes
from stemjax.eval import baselines, metrics


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


def halves(lattice: grids.Kind = "square", rows=14, columns=14, seed=0):
    """(positions, measured): a lattice with a pitch of 100 um, a random half of it measured."""
    xy = grids.grid_xy(lattice, rows, columns, 100.0)[1].astype(float)
    measured = np.zeros(len(xy), bool)
    measured[np.random.default_rng(seed).permutation(len(xy))[: len(xy) // 2]] = True
    return xy, measured


def one_process(n_genes, *, noise=0.4, length=350.0, mean=18.0):
    """A field of one process that all genes show alike, up to sign."""
    sign = np.where(np.arange(n_genes) % 2, -1.0, 1.0)
    return known_field.KnownField(
        mean=mean + np.arange(n_genes) / 10,
        loadings=np.sqrt(1 - noise) * sign[None],
        noise_std=np.full(n_genes, np.sqrt(noise)),
        length_um=np.array([length]),
        features=np.zeros((1, 0)),
    )


def separate_processes(n_genes, *, noise=0.4, length=350.0):
    """A field in which every gene has a process of its own, all with one covariance."""
    return known_field.KnownField(
        mean=18.0 + np.arange(n_genes) / 10,
        loadings=np.sqrt(1 - noise) * np.eye(n_genes),
        noise_std=np.full(n_genes, np.sqrt(noise)),
        length_um=np.full(n_genes, length),
        features=np.zeros((n_genes, 0)),
    )


def each_alone(field, measured_xy, measured_y, query_xy):
    """The exact expectation of each gene given its own measured values."""
    found = [
        known_field.KnownField(
            mean=field.mean[[g]],
            loadings=field.loadings[:, [g]],
            noise_std=field.noise_std[[g]],
            length_um=field.length_um,
            features=field.features,
        ).best(measured_xy, measured_y[:, [g]], query_xy)[0]
        for g in range(len(field.mean))
    ]
    return np.concatenate(found, axis=1)


def test_nearest_measured_mean_by_hand():
    xy = np.array([[0.0, 0], [200, 0], [0, 200], [500, 0], [90, 900]])
    y = np.array([[1.0, 10], [2, 20], [6, 60], [50, 500], [90, 900]])
    here = np.array([[0.0, 100.0], [450, 0], [100, 1e4]])
    one = baselines.nearest_measured_mean(xy, y, here, k=1)
    # The first lies between two, which both count.
    np.testing.assert_allclose(one, [[3.5, 35], [50, 500], [90, 900]])
    many = baselines.nearest_measured_mean(xy, y, here, k=9)
    np.testing.assert_allclose(many, [[149 / 5, 298]] * 3)


def test_the_six_neighbours_of_visium_tie_though_positions_are_rounded():
    # In whole pixels, as files have them: 100 um apart up to .7 um.
    xy = grids.grid_xy("hexagonal", 7, 7, 100.0)[1].astype(float).round()
    hidden = int(np.argmin(np.linalg.norm(xy - xy.mean(axis=0), axis=1)))
    away = np.linalg.norm(xy - xy[hidden], axis=1)
    assert len(set(away[(away > 0) & (away < 110)])) > 1
    y = np.arange(len(xy), dtype=float)[:, None] ** 2
    others = np.arange(len(xy)) != hidden
    pred = baselines.nearest_measured_mean(xy[others], y[others], xy[[hidden]])
    six = y[(away > 0) & (away < 110)]
    assert len(six) == 6
    np.testing.assert_allclose(pred, [six.mean(axis=0)], rtol=1e-12)


def test_the_neighbour_means_error_is_the_closed_form_of_its_weights():
    field = known_field.draw_field(2, n_genes=10, length_um=(150.0, 500.0), processes=1)
    xy, measured = halves(rows=9, columns=9)
    away = spatial.distance.cdist(xy[~measured], xy[measured])
    near = away <= np.sort(away, axis=1)[:, 3:4] * 1.001
    weights = near / near.sum(axis=1, keepdims=True)
    expected = field.linear_mse(weights, xy[measured], xy[~measured])
    found = []
    for seed in range(300):
        y = field.sample(seed, xy)
        pred = baselines.nearest_measured_mean(xy[measured], y[measured], xy[~measured])
        found.append(np.mean((pred - y[~measured]) ** 2))
    error = np.std(found) / np.sqrt(len(found))
    assert error < 0.01 * expected
    assert abs(np.mean(found) - expected) < 4 * error


@pytest.mark.parametrize("lattice", ["square", "hexagonal"])
def test_kriging_is_the_exact_expectation_under_its_fitted_kernels(lattice):
    field = known_field.draw_field(3, n_genes=20)
    xy, measured = halves(lattice)
    y = field.sample(0, xy)
    found = baselines.kriging(xy[measured], y[measured], xy[~measured], groups=3)
    assert sorted(np.concatenate([k.genes for k in found.kernels])) == list(range(20))
    centre, scale = y[measured].mean(axis=0), y[measured].std(axis=0)
    for kernel in found.kernels:
        genes, n = kernel.genes, len(kernel.genes)
        law = known_field.KnownField(
            mean=centre[genes],
            loadings=np.diag(scale[genes]) * np.sqrt(kernel.process),
            noise_std=scale[genes] * np.sqrt(kernel.noise),
            length_um=np.full(n, kernel.length_um),
            features=np.zeros((n, 0)),
        )
        mean, variance = law.best(xy[measured], y[measured][:, genes], xy[~measured])
        # scikit-learn adds 1e-10 to the diagonal; both solve well-conditioned systems.
        np.testing.assert_allclose(found.mean[:, genes], mean, atol=1e-6)
        np.testing.assert_allclose(found.std[:, genes], np.sqrt(variance), atol=1e-6)


def test_a_group_of_one_kernel_comes_as_near_the_best_as_kriging_can():
    field = separate_processes(24)
    xy, measured = halves(rows=16, columns=16)
    # Genes are independent here, so all of them together know no more than each alone.
    best = field.kriging_mse(xy[measured], xy[~measured])
    floor = np.mean(field.noise_std**2)
    excess, lengths, neighbours = [], [], []
    for seed in range(4):
        y = field.sample(seed, xy)
        args = xy[measured], y[measured], xy[~measured]
        found = baselines.kriging(*args, groups=1)
        exact = each_alone(field, *args)
        excess.append(np.mean((found.mean - exact) ** 2))
        neighbours.append(np.mean((baselines.nearest_measured_mean(*args) - exact) ** 2))
        lengths.append(found.kernels[0].length_um)
    # Beyond the best error, which no one can leave out, the gene's mean (from 128 correlated
    # spots) and the three parameters cost a few hundredths of it; the nearest spots' mean a fifth.
    assert np.mean(excess) < 0.03 * best
    assert np.mean(neighbours) > 5 * np.mean(excess)
    assert best > floor + 0.05
    # 24 x 128 values tell the length scale within a quarter.
    assert 0.75 * 350 < np.mean(lengths) < 1.25 * 350


def test_nobody_beats_the_best_error():
    field = known_field.draw_field(
        4, n_genes=30, length_um=(200.0, 600.0), processes=1, n_features=6, shown=(0,)
    )
    xy, measured = halves(rows=12, columns=12)
    best = field.best_mse(xy[measured], xy[~measured])
    seeing = field.best_mse(xy[measured], xy[~measured], image=True)
    scores: dict[str, list[float]] = {}
    for seed in range(6):
        y, x = field.sample(seed, xy), field.embeddings(seed, xy)
        found = baselines.recovery_rows(measured, xy, y, x, leave_out=("MLP",))
        for name, row in found.rows.items():
            scores.setdefault(name, []).append(float(np.mean((row - y[~measured]) ** 2)))
    mean = {name: np.mean(values) for name, values in scores.items()}
    error = {name: np.std(values) / np.sqrt(6) for name, values in scores.items()}
    for name in baselines.RECOVERY_ROWS[:4]:
        assert mean[name] > best - 3 * error[name], name
    for name in ("ridge", "embedding kNN", "ridge + neighbours"):
        assert mean[name] > seeing - 3 * error[name], name
    # Kriging smooths better than the nearest spots, and both inputs together beat either.
    assert mean["kriging"] < mean["nearest measured mean"] < mean["constant mean"]
    assert mean["ridge + neighbours"] < min(mean["ridge"], mean["nearest measured mean"])
    # Genes share two processes here: components come nearer the best than genes alone can.
    assert mean["component kriging"] < field.kriging_mse(xy[measured], xy[~measured])
    assert mean["kriging"] < 1.1 * field.kriging_mse(xy[measured], xy[~measured])


def test_component_kriging_comes_near_the_best_of_all_genes_together():
    field = known_field.draw_field(0, n_genes=60, length_um=(200.0, 800.0), processes=1)
    xy, measured = halves(rows=16, columns=16)
    args = xy[measured], xy[~measured]
    best, alone = field.best_mse(*args), field.kriging_mse(*args)
    scores, inside = [], []
    for seed in range(4):
        y = field.sample(seed, xy)
        found = baselines.component_kriging(args[0], y[measured], args[1])
        scores.append(np.mean((found.mean - y[~measured]) ** 2))
        inside.append(np.abs(found.mean - y[~measured]) < 1.6449 * found.std)
    excess = np.mean(scores) - best
    # Sampling error of the difference: the noise of 30,720 values, and it is the same for both.
    assert -0.01 < excess < 0.5 * (alone - best)
    assert abs(np.mean(inside) - 0.9) < 0.02
    y = field.sample(9, xy)
    found = baselines.component_kriging(args[0], y[measured], args[1])
    constant = np.concatenate([np.full((len(xy), 1), 7.0), y], axis=1)
    again = baselines.component_kriging(args[0], constant[measured], args[1])
    np.testing.assert_allclose(again.mean[:, 0], 7.0, rtol=1e-12)
    np.testing.assert_allclose(again.mean[:, 1:], found.mean, atol=1e-6)
    two = baselines.component_kriging(xy[:2], y[:2], xy[2:])
    assert np.isfinite(two.mean).all()
    one = baselines.component_kriging(xy[:1], y[:1], xy[2:])
    np.testing.assert_allclose(one.mean, np.broadcast_to(y[:1], one.mean.shape), rtol=1e-12)


def test_without_noise_the_measured_spots_come_back():
    xy, measured = halves(rows=12, columns=12)
    y = processes.Processes(length_um=np.full(2, 1500.0)).draw(0, xy)
    found = baselines.kriging(xy[measured], y[measured], xy[measured], groups=1)
    # The noise is fitted too: near its bound, 1e-5 of a variance near 1, which is .003 of a value.
    assert found.kernels[0].noise < 1e-4
    assert found.kernels[0].length_um > 500
    np.testing.assert_allclose(found.mean, y[measured], atol=0.02)
    hidden = baselines.kriging(xy[measured], y[measured], xy[~measured], groups=1)
    assert 1.5 * found.std.max() < hidden.std.mean() < 0.2


def test_genes_without_a_spatial_process_are_not_smoothed_with_those_that_have_one(rng):
    xy, measured = halves(rows=14, columns=14)
    smooth = separate_processes(6, noise=0.2).sample(0, xy)
    noise = rng.normal(size=(len(xy), 6))
    y = np.concatenate([noise, smooth], axis=1)[:, rng.permutation(12)]
    found = baselines.kriging(xy[measured], y[measured], xy[~measured], groups=2)
    first, second = found.kernels
    spatial_genes = np.flatnonzero(y.mean(axis=0) > 5)
    assert sorted(second.genes) == list(spatial_genes)
    # A process much shorter than the pitch is noise by another name: compare at the pitch.
    at_pitch = [
        k.process
        * float(
            processes.Processes(length_um=np.array([k.length_um])).correlations(xy[:1], xy[1:2])[
                0, 0, 0
            ]
        )
        for k in found.kernels
    ]
    assert at_pitch[0] < 0.1 < 0.5 < at_pitch[1]
    error = np.mean((found.mean - y[~measured])[:, first.genes] ** 2)
    assert error < 1.1 * np.var(y[~measured][:, first.genes])


def test_the_forecast_covers_what_it_says():
    field = separate_processes(24)
    xy, measured = halves(rows=16, columns=16)
    y = field.sample(9, xy)
    found = baselines.kriging(xy[measured], y[measured], xy[~measured])
    inside = np.abs(y[~measured] - found.mean) < 1.6449 * found.std
    # 128 x 24 values: standard error .005, several times that as neighbours share their errors.
    assert abs(inside.mean() - 0.9) < 0.03
    wide = found.std.mean(axis=1)
    near = spatial.KDTree(xy[measured]).query(xy[~measured])[0]
    assert np.corrcoef(wide, near)[0, 1] > 0.4  # far from what is measured less is known


def test_the_order_of_rows_does_not_matter(rng):
    field = known_field.draw_field(5, n_genes=12)
    xy, measured = halves("hexagonal", 10, 10)
    y = field.sample(0, xy)
    a, b, query = xy[measured], y[measured], xy[~measured]
    mine, theirs = rng.permutation(len(a)), rng.permutation(len(query))
    for max_fit in (600, 30):
        first = baselines.kriging(a, b, query, max_fit=max_fit, groups=3)
        again = baselines.kriging(a[mine], b[mine], query[theirs], max_fit=max_fit, groups=3)
        # Queries are products of matrices whose rounding depends on their place.
        np.testing.assert_allclose(again.mean, first.mean[theirs], rtol=1e-9)
        np.testing.assert_allclose(again.std, first.std[theirs], rtol=1e-9)
    near = baselines.nearest_measured_mean(a, b, query)
    np.testing.assert_array_equal(
        baselines.nearest_measured_mean(a[mine], b[mine], query[theirs]), near[theirs]
    )
    order = rng.permutation(len(xy))
    x = rng.normal(size=(len(xy), 5))
    rows = baselines.recovery_rows(measured, xy, y, x, leave_out=("MLP",)).rows
    turned = baselines.recovery_rows(
        measured[order], xy[order], y[order], x[order], leave_out=("MLP",)
    ).rows
    # Row of each hidden spot among the hidden ones, then in the turned order.
    place = np.cumsum(~measured) - 1
    back = place[order[~measured[order]]]
    for name, row in rows.items():
        np.testing.assert_allclose(turned[name], row[back], rtol=1e-9, err_msg=name)


def test_fitting_on_some_spots_predicts_from_all():
    field = separate_processes(8)
    xy, measured = halves(rows=16, columns=16)
    y = field.sample(0, xy)
    args = xy[measured], y[measured], xy[~measured]
    every, some, other = (
        baselines.kriging(*args, groups=1, max_fit=n, seed=seed)
        for n, seed in ((600, 0), (60, 0), (60, 1))
    )
    assert some.kernels[0].length_um != every.kernels[0].length_um
    assert some.kernels[0].length_um != other.kernels[0].length_um
    exact = field.best(*args)[0]
    # A kernel from 60 of 128 spots is nearly as good; a prediction from 60 spots is not.
    only = baselines.kriging(args[0][::2], args[1][::2], args[2], groups=1)
    error = [np.mean((found.mean - exact) ** 2) for found in (some, only)]
    # Between 11 and 40 times on the three sections looked at.
    assert error[0] < 0.2 * error[1]


@pytest.mark.parametrize("leave_out", [("MLP",), ("kriging", "component kriging", "embedding kNN")])
def test_hidden_values_change_nothing_and_measured_ones_do(rng, leave_out):
    field = known_field.draw_field(6, n_genes=5, n_features=4, shown=(0, 3))
    xy, measured = halves(rows=8, columns=8)
    y, x = field.sample(0, xy), field.embeddings(0, xy)
    first = baselines.recovery_rows(measured, xy, y, x, leave_out=leave_out)
    wanted = [name for name in baselines.RECOVERY_ROWS if name not in leave_out]
    assert list(first.rows) == wanted
    hidden = y.copy()
    hidden[~measured] = np.nan
    again = baselines.recovery_rows(measured, xy, hidden, x, leave_out=leave_out)
    for name in wanted:
        np.testing.assert_array_equal(again.rows[name], first.rows[name], err_msg=name)
        assert first.rows[name].shape == (32, 5)
        assert np.isfinite(first.rows[name]).all()
    other = baselines.recovery_rows(
        measured, xy, y + rng.normal(size=y.shape), x, leave_out=leave_out
    )
    for name in wanted:
        assert np.abs(other.rows[name] - first.rows[name]).max() > 0.01, name
    assert set(first.forecasts) == set(wanted) - {"nearest measured mean"}
    for name, forecast in first.forecasts.items():
        scores = forecast.crps(y[~measured])
        # In a forecast of unit variance a CRPS is near .56 at most, and a mean's error more.
        assert 0.1 < np.mean(scores) < 0.9, name
    assert set(first.ridges) == {"ridge", "ridge + neighbours"}


def test_a_measured_spots_own_value_is_not_among_its_neighbours():
    xy, measured = halves(rows=12, columns=12)
    rng = np.random.default_rng(1)
    # White noise: a training row that saw itself would get the weight of a perfect predictor.
    y, x = rng.normal(size=(len(xy), 3)), rng.normal(size=(len(xy), 2))
    found = baselines.recovery_rows(
        measured, xy, y, x, leave_out=("MLP", "kriging", "component kriging")
    )
    spread = np.std(found.rows["ridge + neighbours"], axis=0)
    assert spread.max() < 0.35
    residual = found.forecasts["ridge + neighbours"]
    assert isinstance(residual, metrics.Normal)
    assert residual.std.min() > 0.8


def test_embeddings_that_do_not_vary_have_no_rows():
    field = one_process(3)
    xy, measured = halves(rows=6, columns=6)
    y = field.sample(0, xy)
    for x in (None, np.ones((36, 4)), np.zeros((36, 0))):
        found = baselines.recovery_rows(measured, xy, y, x)
        assert list(found.rows) == list(baselines.RECOVERY_ROWS[:4])
        assert found.ridges == {}
    np.testing.assert_allclose(
        found.rows["constant mean"], np.broadcast_to(y[measured].mean(axis=0), (18, 3))
    )


def test_constant_genes_and_few_spots_have_answers():
    xy, measured = halves(rows=6, columns=6)
    y = np.concatenate([np.zeros((36, 1)), one_process(2).sample(0, xy)], axis=1)
    found = baselines.kriging(xy[measured], y[measured], xy[~measured])
    np.testing.assert_array_equal(found.mean[:, 0], 0.0)
    assert 0 < found.std[:, 0].max() < 0.01
    assert [list(k.genes) for k in found.kernels] in ([[1], [2]], [[2], [1]])
    one = baselines.kriging(xy[:1], y[:1], xy[1:])
    np.testing.assert_array_equal(one.mean, np.broadcast_to(y[:1], (35, 3)))
    two = baselines.kriging(xy[:2], y[:2], xy[2:])
    assert np.isfinite(two.mean).all()
    assert one.kernels == ()


def test_arrays_that_cannot_be_used_are_refused():
    xy, measured = halves(rows=6, columns=6)
    y = one_process(3).sample(0, xy)
    with pytest.raises(errors.SlideError, match="not finite"):
        baselines.kriging(xy, np.where(y > 18, np.nan, y), xy)
    with pytest.raises(errors.SlideError, match="one position"):
        baselines.kriging(0 * xy, y, xy)
    with pytest.raises(errors.SlideError, match=r"values \(35, 3\)"):
        baselines.nearest_measured_mean(xy, y[1:], xy)
    with pytest.raises(errors.SlideError, match="at least one measured spot"):
        baselines.nearest_measured_mean(xy[:0], y[:0], xy)
    with pytest.raises(errors.SlideError, match="0 spots not measured"):
        baselines.recovery_rows(np.ones(36, bool), xy, y)
    with pytest.raises(errors.SlideError, match="at least one measured spot"):
        baselines.recovery_rows(np.zeros(36, bool), xy, y)
    with pytest.raises(errors.SlideError, match="one row a spot"):
        baselines.recovery_rows(measured, xy, y, np.zeros((35, 2)))
    with pytest.raises(ValueError, match="no row"):
        baselines.recovery_rows(measured, xy, y, leave_out=("cubic",))
