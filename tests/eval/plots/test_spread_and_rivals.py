"""Figures of the spread and of what beats what: points and intervals where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from figure_parts import texts
from matplotlib import patches

from stemjax.eval import plots

NOMINAL = np.array([0.5, 0.8, 0.9, 0.95])
BEFORE, AFTER = np.array([0.3, 0.6, 0.7, 0.8]), np.array([0.49, 0.81, 0.9, 0.96])


def legend(figure):
    return [t.get_text() for t in figure.legends[0].get_texts()]


def test_reliability_has_each_coverage_with_its_interval(figures):
    ends = np.stack([AFTER - 0.03, AFTER + 0.01], axis=1)
    coverage = {"before": BEFORE, "after": AFTER, "unknown": np.full(4, np.nan)}
    plots.reliability(NOMINAL, coverage, intervals={"after": ends}, dpi=50)
    axis = figures[0].axes[0]
    assert legend(figures[0]) == ["before", "after"]
    first, second = axis.containers
    np.testing.assert_array_equal(first.lines[0].get_ydata(), BEFORE)
    np.testing.assert_array_equal(second.lines[0].get_ydata(), AFTER)
    # Moved sideways by less than half of the distance of two levels, so that both are seen.
    assert np.abs(second.lines[0].get_xdata() - NOMINAL).max() < 0.01
    assert (first.lines[0].get_xdata() < second.lines[0].get_xdata()).all()
    bars = np.array(second.lines[2][0].get_segments())[:, :, 1]
    np.testing.assert_allclose(bars, ends)
    assert [t for t in texts(figures[0]) if t in ("50", "80", "90", "95")].count("95") >= 1
    # All points are in view.
    assert axis.get_ylim()[0] < 0.3
    assert axis.get_xlim()[0] < 0.49


def test_reliability_of_nothing_is_none_and_of_too_many_an_error():
    assert plots.reliability(NOMINAL, {}) is None
    assert plots.reliability(NOMINAL, {"a": np.full(4, np.nan)}) is None
    with pytest.raises(ValueError, match="6 curves"):
        plots.reliability(NOMINAL, {str(i): AFTER for i in range(6)})
    nothing_inside = {"a": np.zeros(4), "b": np.array([0.0, np.nan, 0.5, 1.0])}
    assert plots.reliability(NOMINAL, nothing_inside, dpi=50) is not None


@pytest.mark.parametrize("draw", [plots.rank_histogram, plots.pit_histogram])
def test_histograms_are_relative_to_their_mean(figures, draw):
    counts = np.array([10, 30, 20, 40, 100])
    assert draw(counts, band=(30.0, 60.0), dpi=50) is not None
    axis = figures[0].axes[0]
    (bars,) = (p for p in axis.patches if isinstance(p, patches.StepPatch))
    heights, edges, _ = bars.get_data()
    np.testing.assert_allclose(heights, counts / 40.0)
    if draw is plots.rank_histogram:
        np.testing.assert_array_equal(edges, [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5])
        assert axis.get_xlabel() == "rank among 4 draws"
    else:
        np.testing.assert_allclose(edges, [0, 0.2, 0.4, 0.6, 0.8, 1.0])
    (band,) = (p for p in axis.patches if isinstance(p, patches.Rectangle))
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.75, 1.5))
    assert legend(figures[0]) == ["found", "calibrated", "calibrated, 95 %"]
    assert axis.get_ylim()[1] > 2.5


def test_histograms_of_nothing_are_none(figures):
    for draw in (plots.rank_histogram, plots.pit_histogram):
        assert draw(np.zeros(5)) is None
        assert draw(np.array([])) is None
        assert draw(np.array([3.0]), dpi=50) is not None
    assert legend(figures[0]) == ["found", "calibrated"]


def test_forest_sets_each_score_in_its_row_and_panel(figures):
    points = np.array([[0.3, 1.2], [0.4, 1.1], [np.nan, 1.5], [0.5, 1.0]])
    ends = np.stack([points - 0.1, points + 0.2], axis=2)
    ends[3, 0] = np.nan
    names, kinds = ["floor_", "stem", "mean", "depth"], ["floor", "model", "floor", "oracle"]
    plots.forest(names, kinds, points, ends, ["PCC", "MSE"], dpi=50)
    markers = {}
    for column, axis in enumerate(figures[0].axes):
        assert axis.get_xlabel() == ["PCC", "MSE"][column]
        bars = {}
        for line in axis.get_lines():
            x, y = line.get_xdata(), line.get_ydata()
            if len(x) == 2 and y[0] == y[1]:
                bars[y[0]] = tuple(x)
            elif line.get_marker() not in ("None", ""):
                assert x[0] == points[y[0], column]
                markers.setdefault(kinds[y[0]], set()).add(line.get_marker())
        has = [r for r in range(4) if np.isfinite(ends[r, column]).all()]
        assert bars == {row: tuple(ends[row, column]) for row in has}
        # The band down the panel is the model's interval.
        (band,) = axis.patches
        found = (band.get_x(), band.get_x() + band.get_width())
        assert found == pytest.approx(tuple(ends[1, column]))
        top, bottom = axis.get_ylim()[::-1]
        assert top < 0 < 3 < bottom
    assert len({next(iter(m)) for m in markers.values()}) == 3
    ticks = figures[0].axes[0].get_yticklabels()
    assert [t.get_text() for t in ticks] == names
    assert [t.get_fontweight() for t in ticks] == ["normal", "bold", "normal", "normal"]
    assert texts(figures[0]).count("undefined") == 1
    assert legend(figures[0]) == [plots.KINDS[k][2] for k in ("model", "floor", "oracle")]


def test_forest_without_a_score_is_none():
    nothing = np.full((1, 2), np.nan)
    unknown = np.full((1, 2, 2), np.nan)
    assert plots.forest(["a"], ["model"], nothing, unknown, ["x", "y"]) is None
    assert plots.forest(["a"], ["floor"], np.ones((1, 2)), unknown, ["x", "y"], dpi=50) is not None
