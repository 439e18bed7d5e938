"""Figures over genes: counts, medians, order and scale, against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from figure_parts import texts
from matplotlib import patches

from stemjax.eval import plots
from stemjax.eval.plots import panel

RNG = np.random.default_rng(1)


def test_pcc_histogram_counts_each_group_and_marks_its_median(figures):
    pcc = RNG.uniform(-0.2, 0.9, 61)
    pcc[:2] = np.nan
    groups = {"ridge": pcc - 0.1, "gone": np.full(61, np.nan), "ceiling": np.minimum(pcc + 0.2, 1)}
    assert plots.pcc_histogram(pcc, groups, name="stem", dpi=50) is not None
    axis = figures[0].axes[0]
    drawn = [p for p in axis.patches if isinstance(p, patches.StepPatch)]
    known = [pcc, groups["ridge"], groups["ceiling"]]
    assert len(drawn) == 3
    for patch, values in zip(drawn, known, strict=True):
        heights, edges, _ = patch.get_data()
        assert heights.sum() == 59
        np.testing.assert_allclose(np.diff(edges), 0.05)
        for low, high, height in zip(edges[:-1], edges[1:], heights, strict=True):
            inside = (values >= low) & ((values < high) | (high == edges[-1]))
            assert height == inside.sum()
    medians = [line.get_xdata()[0] for line in axis.get_lines()]
    np.testing.assert_allclose(medians, [np.nanmedian(values) for values in known])
    legend = [t.get_text() for t in figures[0].legends[0].get_texts()]
    assert legend[0] == f"stem: median {np.nanmedian(pcc):.2f}, 2 undefined"
    assert [text.split(":")[0] for text in legend] == ["stem", "ridge", "ceiling"]
    assert axis.get_ylabel() == "genes (of 61)"


def test_pcc_histogram_of_one_gene_of_twins_and_of_none():
    assert plots.pcc_histogram(np.full(3, np.nan), {"ridge": np.ones(3)}) is None
    assert plots.pcc_histogram(np.array([1.0]), {}, dpi=50) is not None
    with pytest.raises(ValueError, match="6 references"):
        plots.pcc_histogram(np.ones(1), {str(i): np.ones(1) for i in range(6)})


def test_a_reference_named_as_the_model_hides_nothing(figures):
    plots.pcc_histogram(np.array([0.1]), {"model": np.array([0.7])}, dpi=50)
    legend = [t.get_text() for t in figures[0].legends[0].get_texts()]
    assert legend == ["model: median 0.10", "model: median 0.70"]


def test_variation_curves_leave_out_what_was_not_measured(figures):
    measured, predicted = RNG.gamma(2.0, 1.0, (2, 30, 5))
    mask = np.array([1, 1, 0, 1, 1])
    plots.variation_curves(predicted, measured, units="log2(count + 1)", mask=mask, dpi=50)
    kept = mask == 1
    for axis, function in zip(figures[0].axes, (np.mean, np.var) * 2, strict=True):
        truth, found = function(measured[:, kept], axis=0), function(predicted[:, kept], axis=0)
        if "normalised" in axis.get_title():
            truth, found = truth / truth.sum(), found / found.sum()
        line, dots = axis.get_lines()
        order = np.argsort(truth)
        np.testing.assert_allclose(line.get_ydata(), truth[order])
        np.testing.assert_allclose(dots.get_ydata(), found[order])
    labels = [axis.get_ylabel() for axis in figures[0].axes]
    assert labels[:2] == ["mean, log2(count + 1)", "variance, log2(count + 1) squared"]


def test_one_spot_and_one_gene_have_curves():
    one = np.ones((1, 1))
    assert plots.variation_curves(one, one, units="u", draw=one, dpi=50).startswith(b"\x89PNG")


def test_morans_says_the_correlation_and_difference_of_genes_that_have_both(figures):
    measured, predicted = RNG.uniform(-0.1, 0.8, (2, 20))
    measured[0] = predicted[1] = np.nan
    plots.morans(predicted, measured, dpi=50)
    axis = figures[0].axes[0]
    diagonal, points = axis.get_lines()
    np.testing.assert_array_equal(points.get_xdata(), measured[2:])
    np.testing.assert_array_equal(points.get_ydata(), predicted[2:])
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    r = scipy.stats.pearsonr(measured[2:], predicted[2:]).statistic
    gap = np.mean(np.abs(predicted[2:] - measured[2:]))
    assert axis.get_title() == f"18 genes: r {r:.2f}, mean |difference| {gap:.2f}"
    assert axis.get_xlim() == axis.get_ylim()
    plots.morans(np.array([0.5, np.nan]), np.array([0.3, 0.1]), dpi=50)
    assert figures[1].axes[0].get_title() == "1 gene: r undefined, mean |difference| 0.20"
    assert plots.morans(np.array([np.nan]), np.array([0.3])) is None


def test_heat_maps_have_one_order_that_brings_modules_together_and_one_scale(figures):
    factors = RNG.standard_normal((200, 3))
    module = np.arange(12) % 3
    values = factors[:, module] + 0.3 * RNG.standard_normal((200, 12))
    measured, predicted = np.corrcoef(values.T), np.corrcoef(RNG.standard_normal((12, 50)))
    names = [f"G{i}" for i in range(12)]
    plots.gene_correlation(measured, predicted, names, dpi=50)
    left, right = (axis.images[0] for axis in figures[0].axes[:2])
    labels = [t.get_text() for t in figures[0].axes[0].get_yticklabels()]
    order = [names.index(label) for label in labels]
    assert sorted(order) == list(range(12))
    # Three modules, each in one run.
    assert np.count_nonzero(np.diff(module[order])) == 2
    np.testing.assert_array_equal(left.get_array(), measured[np.ix_(order, order)])
    np.testing.assert_array_equal(right.get_array(), predicted[np.ix_(order, order)])
    assert left.get_clim() == right.get_clim() == (-1.0, 1.0)


def test_undefined_pairs_are_grey_and_many_genes_have_no_names(figures):
    undefined = np.full((2, 2), np.nan)
    plots.gene_correlation(undefined, np.eye(2), ["a", "b"], dpi=50)
    left = figures[0].axes[0].images[0]
    assert left.get_array().mask.all()
    r, g, b, _ = left.to_rgba(left.get_array())[0, 0]
    assert r == g == b
    n = panel.LABELLED + 1
    plots.gene_correlation(np.eye(n), np.eye(n), [f"G{i}" for i in range(n)], dpi=50)
    assert not any(text.startswith("G") for text in texts(figures[1]))
    assert plots.gene_correlation(np.ones((1, 1)), np.ones((1, 1)), ["a"]) is None
