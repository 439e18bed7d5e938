"""Scores of a row: those of the metrics library on the slide, and the same on resamples."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from stemjax.eval import metrics, scoring

SIDE, GENES = 12, 7


@pytest.fixture(scope="module")
def slide():
    """Array positions, truth [144 7] with its last gene constant, a prediction, draws."""
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)
    state = rng.normal(size=(SIDE * SIDE, 3)) + 0.2 * xy[:, :1]
    true = np.log2(1 + rng.poisson(np.exp(1 + 0.4 * state @ rng.normal(size=(3, GENES)))))
    true[:, -1] = 2.0
    draws = true + rng.normal(size=(6, *true.shape)) * np.linspace(0.3, 1.5, GENES)
    return xy.astype(float), true, draws


def make(slide, *, resamples=0, **options):
    xy, true, _ = slide
    return scoring.make_ground(
        true, total=1 + np.arange(len(true)), array_xy=xy, resamples=resamples, seed=3, **options
    )


def test_scores_on_the_slide_are_those_of_the_library(slide):
    xy, true, draws = slide
    centre, ranking = true.mean(axis=0) + 0.3, np.arange(GENES, dtype=float)
    ground = make(slide, train_mean=centre, ranking=ranking)
    mean = draws.mean(axis=0)
    found = scoring.score(
        ground, mean, forecast=metrics.Draws(values=draws), draws=draws,
        intervals={0.9: (mean - 1, mean + 1)},
    )  # fmt: skip
    pcc = metrics.pcc_per_gene(mean, true)
    lattice = metrics.neighbours(xy)
    depth = np.log2(2.0 + np.arange(len(true)))
    forecast = metrics.Draws(values=draws)
    low, high = metrics.central(forecast, 0.8)
    expected = {
        "pcc_all": metrics.pcc_top(pcc),
        "spearman": np.nanmean(metrics.spearman_per_gene(mean, true)),
        "pcc_depth": np.nanmean(metrics.partial_pcc_per_gene(mean, true, depth)),
        "pcc_spot": np.nanmean(metrics.pcc_per_spot(mean, true, centre=centre)),
        "mse": metrics.mse(mean, true),
        "mae": metrics.mae(mean, true),
        "rvd": metrics.rvd(mean, true),
        "r2": np.nanmean(metrics.r2_per_gene(mean, true)),
        "r2_train": np.mean(metrics.r2_per_gene(mean, true, baseline=centre)),
        "gsc": metrics.gsc(mean, true),
        "ssc": metrics.ssc(mean, true, lattice),
        "moran_error": metrics.morans_agreement(mean, true, lattice).difference,
        "ssim": np.nanmean(metrics.ssim_per_gene(mean, true, xy)),
        "wasserstein": np.mean(metrics.wasserstein_per_gene(mean, true)),
        "crps": forecast.crps(true).mean(),
        "energy": metrics.energy_score(draws, true),
        "variogram": metrics.variogram_score(draws, true),
        "sharpness": forecast.std.mean(),
        "coverage_80": metrics.coverage(low, high, true),
        "width_80": np.mean(high - low),
        "coverage_90_calibrated": metrics.coverage(mean - 1, mean + 1, true),
        "width_90_calibrated": 2.0,
    }
    assert {key: found.values[key][0] for key in expected} == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(found.genes["pcc"], pcc)


def test_a_constant_prediction_is_scored_as_the_library_does(slide):
    xy, true, _ = slide
    constant = np.tile(true.mean(axis=0), (len(true), 1))
    values, lattice = scoring.score(make(slide), constant).values, metrics.neighbours(xy)
    assert values["pcc_all"][0] == values["gsc"][0] == values["ssc"][0] == 0.0
    assert values["rvd"][0] == 1.0
    agreement = metrics.morans_agreement(constant, true, lattice)
    assert values["moran_error"][0] == pytest.approx(agreement.difference)


def test_spots_off_any_lattice_have_no_ssim_and_all_else(slide):
    xy, true, draws = slide
    ground = scoring.make_ground(
        true, total=np.ones(len(true)), array_xy=xy * 0.3, resamples=0, seed=0
    )
    found = scoring.score(ground, draws[0])
    assert "ssim" not in found.values
    assert found.values["gsc"][0] == pytest.approx(metrics.gsc(draws[0], true))


def test_every_key_has_a_column_and_every_column_is_made(slide):
    _, true, draws = slide
    ground = make(slide, train_mean=true.mean(axis=0), ranking=np.arange(GENES, dtype=float))
    intervals = dict.fromkeys(metrics.LEVELS, (true - 1, true + 1))
    found = scoring.score(
        ground, true, forecast=metrics.Draws(values=draws), draws=draws, intervals=intervals
    )
    # Ten genes and more are not on this slide.
    few = {f"pcc_{k}{end}" for k in (10, 50, 200) for end in ("", "_train")}
    assert set(found.values) | few == set(scoring.COLUMNS)


def test_a_resample_is_scored_as_the_slide_made_of_its_blocks(slide):
    """Independent: the spots of each resample are copied out and scored by the library."""
    xy, true, draws = slide
    ground = make(slide, resamples=6)
    mean = draws.mean(axis=0)
    found = scoring.score(ground, mean, forecast=metrics.Draws(values=draws), structure=False)
    blocks = ground.resamples.blocks
    assert len(ground.resamples.times) == 7
    for row, times in enumerate(ground.resamples.times):
        spots = np.concatenate(
            [np.flatnonzero(blocks == b) for b, n in enumerate(times) for _ in range(int(n))]
        )
        x, y, some = mean[spots], true[spots], draws[:, spots]
        expected = {
            "pcc_all": metrics.pcc_top(metrics.pcc_per_gene(x, y)),
            "mse": metrics.mse(x, y),
            "mae": metrics.mae(x, y),
            "rvd": metrics.rvd(x, y),
            "r2": np.nanmean(metrics.r2_per_gene(x, y)),
            "crps": metrics.Draws(values=some).crps(y).mean(),
            "calibration_error": metrics.calibration_error(
                metrics.Draws(values=some).pit(y), levels=np.arange(1, 7) / 7
            ),
        }
        got = {key: found.values[key][row] for key in expected}
        assert got == pytest.approx(expected, rel=1e-9)


def test_gene_structure_of_a_resample_is_that_of_its_spots(slide):
    _, true, draws = slide
    ground = make(slide, resamples=4)
    mean = draws.mean(axis=0)
    found = scoring.score(ground, mean).values["gsc"]
    for row, times in enumerate(ground.resamples.times):
        spots = np.repeat(np.arange(len(true)), times[ground.resamples.blocks].astype(int))
        # Resamples add up float32 products: 1e-7 of values near 1.
        assert found[row] == pytest.approx(metrics.gsc(mean[spots], true[spots]), abs=1e-5)


def test_distances_of_distributions_on_a_grid_stay_near_the_exact_ones(slide):
    _, true, draws = slide
    ground = make(slide, resamples=5)
    found = scoring.score(ground, draws[0]).values["wasserstein"]
    for row, times in enumerate(ground.resamples.times):
        spots = np.repeat(np.arange(len(true)), times[ground.resamples.blocks].astype(int))
        exact = np.mean(
            [scipy.stats.wasserstein_distance(draws[0][spots, g], true[spots, g])
             for g in range(GENES)]
        )  # fmt: skip
        # The grid has a step of a hundredth of the range.
        assert found[row] == pytest.approx(exact, rel=0.03)


def test_the_genes_of_pcc_k_stay_those_of_the_slide(slide):
    """Ranked anew, the best genes of a resample would always score higher than these."""
    rng = np.random.default_rng(1)
    true = rng.normal(size=(144, 30))
    ground = scoring.make_ground(true, total=np.ones(144), array_xy=slide[0], resamples=40, seed=0)
    mean = rng.normal(size=true.shape)
    values = scoring.score(ground, mean, structure=False).values
    pcc = ground.correlation(mean)
    best = np.argsort(-pcc[0])[:10]
    np.testing.assert_allclose(values["pcc_10"], pcc[:, best].mean(axis=1))
    assert (np.sort(pcc[1:], axis=1)[:, -10:].mean(axis=1) > values["pcc_10"][1:]).all()


def test_pcc_k_ranked_on_training_takes_the_genes_told(slide):
    rng = np.random.default_rng(2)
    true = rng.normal(size=(144, 30))
    ranking = np.where(np.arange(30) < 12, np.arange(30), -1.0)
    ranking[3] = np.nan
    ground = scoring.make_ground(
        true, total=np.ones(144), array_xy=slide[0], resamples=0, seed=0, ranking=ranking
    )
    mean = rng.normal(size=true.shape)
    found = scoring.score(ground, mean, structure=False).values["pcc_10_train"][0]
    told = [0, 1, 2, *range(4, 12)][1:]  # the ten highest of those that are known
    assert found == pytest.approx(metrics.pcc_per_gene(mean, true)[told].mean())


def test_a_line_in_depth_has_nothing_beyond_depth(slide):
    ground = make(slide)
    line = np.outer(ground.depth, np.linspace(1, 2, GENES))
    values = scoring.score(ground, line, structure=False).values
    assert values["pcc_depth"][0] == 0.0
    assert abs(values["pcc_all"][0]) > 0.05


def test_single_draws_are_scored_one_by_one(slide):
    _, true, draws = slide
    ground = make(slide)
    found = scoring.score_draws(ground, draws)
    assert found.values["rvd"][0] == pytest.approx(metrics.rvd_of_draws(draws, true))
    assert found.values["mse"][0] == pytest.approx(np.mean((draws - true) ** 2))
    first = [metrics.gsc(draw, true) for draw in draws[:4]]
    assert found.values["gsc"][0] == pytest.approx(np.mean(first))


def test_one_spot_or_one_gene_gives_numbers_or_nan_and_no_warning():
    for shape in ((1, 3), (30, 1), (1, 1)):
        rng = np.random.default_rng(0)
        true, draws = rng.normal(size=shape), rng.normal(size=(4, *shape))
        xy = np.stack([np.arange(shape[0]), np.zeros(shape[0])], axis=1)
        ground = scoring.make_ground(
            true, total=np.ones(shape[0]), array_xy=xy, resamples=10, seed=0
        )
        values = scoring.score(
            ground, draws[0], forecast=metrics.Draws(values=draws), draws=draws
        ).values
        assert values["mse"][0] == pytest.approx(np.mean((draws[0] - true) ** 2))
        assert np.isnan(values["pcc_all"][0]) == (shape[0] == 1)
        assert np.isnan(values["gsc"]).all()


def test_the_ceiling_of_noiseless_counts_is_one_and_of_noise_alone_near_zero(slide):
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(30), np.arange(30)), axis=-1).reshape(-1, 2)
    for spread, expected, tolerance in ((2.0, 1.0, 0.01), (0.0, 0.0, 0.25)):
        rate = 500 * np.exp(spread * rng.normal(size=(900, 6)))
        counts = rng.poisson(rate)
        halves = [(h := rng.binomial(counts, 0.5), counts - h)]
        halves = [tuple(np.log2(1.0 + half) for half in pair) for pair in halves]
        true = np.log2(1.0 + counts)
        ground = scoring.make_ground(
            true, total=counts.sum(axis=1), array_xy=xy, resamples=20, seed=0
        )
        again = np.log2(1.0 + rng.poisson(counts))
        values = scoring.score_ceiling(ground, halves, again).values
        # Of six genes without signal, r has a standard error of 1/30, its root up to .25.
        assert values["pcc_all"][0] == pytest.approx(expected, abs=tolerance)
        assert values["mse"][0] == pytest.approx(np.mean((again - true) ** 2))
