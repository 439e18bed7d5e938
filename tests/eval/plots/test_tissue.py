"""Maps of genes: what is drawn where, on which scale, with what is missing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from figure_parts import opened, texts
from matplotlib import collections

from stemjax.eval import plots
from stemjax.eval.plots import tissue as maps_of

SPOTS, GENES = 40, ("ERBB2", "<i>")
RNG = np.random.default_rng(0)
MEASURED = RNG.gamma(2.0, 1.0, (SPOTS, 2))
PREDICTED = 0.5 * MEASURED + 1.0
SPREAD = RNG.gamma(2.0, 0.2, (SPOTS, 2))
GRID = np.stack(np.meshgrid(np.arange(8), np.arange(5)), -1).reshape(-1, 2)
PIXELS = RNG.integers(0, 255, (3000, 4000, 3), dtype=np.uint8)
PLACE = plots.Tissue(xy=200.0 * GRID + 300.0, diameter=100.0, image=(PIXELS, 2.0))


def spots(axis):
    (found,) = (c for c in axis.collections if isinstance(c, collections.EllipseCollection))
    return found


def test_each_gene_has_a_figure_of_its_own_columns(figures):
    made = plots.maps(GENES, MEASURED, PREDICTED, PLACE, units="u", spread=SPREAD)
    assert len(made) == len(figures) == 2
    for column, (figure, png) in enumerate(zip(figures, made, strict=True)):
        measured, predicted, spread = (spots(axis) for axis in figure.axes[:3])
        np.testing.assert_array_equal(measured.get_array(), MEASURED[:, column])
        np.testing.assert_array_equal(predicted.get_array(), PREDICTED[:, column])
        np.testing.assert_array_equal(spread.get_array(), SPREAD[:, column])
        both = np.concatenate([MEASURED[:, column], PREDICTED[:, column]])
        assert measured.norm is predicted.norm
        expected = np.quantile(both, [0.01, 0.99])
        assert (measured.norm.vmin, measured.norm.vmax) == pytest.approx(tuple(expected))
        assert (spread.norm.vmin, spread.norm.vmax) == (0.0, SPREAD[:, column].max())
        for panel in (measured, predicted, spread):
            np.testing.assert_array_equal(panel.get_offsets(), PLACE.xy)
            np.testing.assert_array_equal(panel.get_widths(), 100.0)
        assert f"{GENES[column]}: PCC 1.00" in texts(figure)
        assert opened(png).size[0] == 1440  # 10 inches at 144 pixels


def test_without_measurement_or_spread_there_are_fewer_panels(figures):
    plots.maps(GENES[:1], None, PREDICTED, PLACE, units="u", spread=SPREAD)
    plots.maps(GENES[:1], None, PREDICTED, PLACE, units="u")
    for figure, titles in zip(figures, (["predicted", "predicted spread"], ["predicted"])):
        drawn = [axis for axis in figure.axes if axis.images]
        assert [axis.get_title() for axis in drawn] == titles
        np.testing.assert_array_equal(spots(drawn[0]).get_array(), PREDICTED[:, 0])
        assert not any("PCC" in text for text in texts(figure))


def rings(axis):
    (found,) = (c for c in axis.collections[1:] if isinstance(c, collections.EllipseCollection))
    return found


HIDDEN = GRID[:, 0] < 4
PART = dataclasses.replace(PLACE, xy=PLACE.xy[HIDDEN])


def test_what_was_shown_is_a_panel_of_its_own_and_the_others_are_rings(figures):
    shown = plots.Shown(xy=PLACE.xy[~HIDDEN], diameter=100.0, values=9 + MEASURED[~HIDDEN])
    values = [v[HIDDEN] for v in (MEASURED, PREDICTED, SPREAD)]
    plots.maps(GENES, *values[:2], PART, units="u", spread=values[2], shown=shown)
    for column, figure in enumerate(figures):
        axes = figure.axes[:4]
        assert [axis.get_title() for axis in axes] == [
            "shown", "hidden: measured", "hidden: predicted", "predicted spread",
        ]  # fmt: skip
        drawn = [axis.collections[0] for axis in axes]
        np.testing.assert_array_equal(drawn[0].get_array(), shown.values[:, column])
        for panel, expected in zip(drawn[1:], values, strict=True):
            np.testing.assert_array_equal(panel.get_array(), expected[:, column])
        for axis in axes:
            filled = ~HIDDEN if axis is axes[0] else HIDDEN
            np.testing.assert_array_equal(axis.collections[0].get_offsets(), PLACE.xy[filled])
            np.testing.assert_array_equal(rings(axis).get_offsets(), PLACE.xy[~filled])
            assert len(rings(axis).get_facecolors()) == 0
            # All panels show the same part of the tissue, that of all spots.
            assert axis.get_xlim() == axes[0].get_xlim()
            assert axis.get_xlim()[0] < PLACE.xy[:, 0].min() - 50
            assert axis.get_xlim()[1] > PLACE.xy[:, 0].max() + 50
        # One colour scale for what was shown, measured and predicted.
        assert drawn[0].norm is drawn[1].norm is drawn[2].norm
        assert drawn[0].norm.vmax > 9
        assert drawn[3].norm is not drawn[0].norm
        assert any("PCC 1.00" in text for text in texts(figure))  # of the hidden spots


def test_points_between_have_dots_of_their_own_size_and_no_rings(figures):
    small = dataclasses.replace(PLACE, diameter=40.0)
    shown = plots.Shown(xy=PART.xy, diameter=100.0, values=MEASURED[HIDDEN])
    plots.maps(GENES[:1], None, PREDICTED, small, units="u", shown=shown)
    first, second = figures[0].axes[:2]
    assert [axis.get_title() for axis in (first, second)] == ["measured", "predicted"]
    assert first.images  # the H&E lies under both
    assert second.images
    np.testing.assert_array_equal(spots(first).get_widths(), 100.0)
    np.testing.assert_array_equal(spots(first).get_array(), MEASURED[HIDDEN, 0])
    np.testing.assert_array_equal(spots(second).get_widths(), 40.0)
    np.testing.assert_array_equal(spots(second).get_offsets(), PLACE.xy)
    assert first.get_xlim() == second.get_xlim()


def test_a_large_image_is_made_smaller_and_stays_where_it_was(figures):
    factor = 7
    small = maps_of.fit_image(PLACE, 450)  # 1,608 um at 2 pixels a um are 3,216 pixels
    pixels, scale = small.image
    assert scale == 2.0 / factor
    np.testing.assert_allclose(
        pixels[3, 5],
        PIXELS[3 * factor : 4 * factor, 5 * factor : 6 * factor].mean(axis=(0, 1)),
        atol=0.5001,  # rounded to whole shades
    )
    plots.maps(GENES[:1], MEASURED, PREDICTED, PLACE, units="u", dpi=90)
    extent = figures[0].axes[0].images[0].get_extent()
    # The last block of pixels may be incomplete: at most one block of 3.5 um is added.
    assert extent[0] == extent[3] == 0.0
    assert 2000.0 <= extent[1] < 2003.5
    assert 1500.0 <= extent[2] < 1503.5


@pytest.mark.parametrize(("unit", "said"), [("um", "200 µm"), ("px", "200 px")])
def test_the_scale_bar_is_in_the_unit_of_the_coordinates(figures, unit, said):
    place = dataclasses.replace(PLACE, unit=unit, image=None)
    plots.maps(GENES[:1], MEASURED, PREDICTED, place, units="u")
    assert said in texts(figures[0])
    assert not figures[0].axes[0].images


def test_what_is_missing_is_grey_and_takes_no_part_in_the_scale(figures):
    measured = MEASURED.copy()
    measured[3, 0] = np.nan
    plots.maps(GENES[:1], measured, PREDICTED, PLACE, units="u", dpi=60)
    drawn = spots(figures[0].axes[0])
    assert drawn.get_array().mask.nonzero()[0].tolist() == [3]
    assert np.isfinite([drawn.norm.vmin, drawn.norm.vmax]).all()
    shade = drawn.to_rgba(drawn.get_array())[3]
    assert shade[0] == shade[1] == shade[2]
    assert any("PCC undefined (some values are missing)" in text for text in texts(figures[0]))


def test_one_spot_constant_genes_and_no_genes(figures):
    one = plots.Tissue(xy=np.full((1, 2), 7.0), diameter=55.0)
    assert plots.maps((), np.ones((1, 0)), np.ones((1, 0)), one, units="u") == ()
    zero = np.zeros((1, 1))
    assert len(plots.maps(("G",), zero, zero, one, units="u", spread=zero, dpi=60)) == 1
    assert (spots(figures[0].axes[0]).norm.vmin, spots(figures[0].axes[0]).norm.vmax) == (0.0, 1.0)
    assert any("PCC undefined" in text for text in texts(figures[0]))
    nothing = np.full((1, 1), np.nan)
    assert len(plots.maps(("G",), nothing, nothing, one, units="u", spread=nothing, dpi=60)) == 1
