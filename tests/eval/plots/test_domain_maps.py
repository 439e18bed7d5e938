"""Maps of categories: which colour where, what the legend says, colours that can be told apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from figure_parts import opened, texts
from matplotlib import collections, colors
from skimage import color

from stemjax import errors
from stemjax.eval import plots
from stemjax.eval.plots import domains

GRID = np.stack(np.meshgrid(np.arange(8), np.arange(5)), -1).reshape(-1, 2)
PIXELS = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
PLACE = plots.Tissue(xy=200.0 * GRID + 300.0, diameter=100.0, image=(PIXELS, 0.2))
THREE = [["a", "b", "c"][x // 3] for x, _ in GRID]

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
CONES = {
    "three cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def discs(axis):
    return [c for c in axis.collections if isinstance(c, collections.EllipseCollection)]


def shades(axis):
    """Hexadecimal colour at each position of the first discs."""
    first = discs(axis)[0]
    return {
        tuple(at): colors.to_hex(face)
        for at, face in zip(first.get_offsets(), first.get_facecolors(), strict=True)
    }


@pytest.mark.parametrize("cones", CONES)
def test_colours_can_be_told_apart_and_from_the_paper(cones):
    rgb = np.array([colors.to_rgb(c) for c in (*domains.COLOURS, "#ede6ed")])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(CONES[cones]).T, 0, 1)
    seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = color.rgb2lab(seen[None])[0]
    apart = color.deltaE_ciede2000(lab[:, None], lab[None])
    assert apart[np.triu_indices(len(rgb), 1)].min() > 10.0


def test_each_spot_has_the_colour_of_its_category_and_the_legend_counts_them(figures):
    png = domains.domain_maps({"regions": THREE}, PLACE, title="S1", dpi=80)
    (axis,) = figures[0].axes
    found = shades(axis)
    for at, category in zip(PLACE.xy, THREE, strict=True):
        assert found[tuple(at)] == domains.COLOURS["abc".index(category)]
    np.testing.assert_array_equal(discs(axis)[0].get_widths(), 100.0)
    legend = axis.get_legend()
    assert [t.get_text() for t in legend.get_texts()] == ["a (15)", "b (15)", "c (10)"]
    assert {"S1", "regions", "200 µm"} <= set(texts(figures[0]))
    assert axis.images[0].get_extent() == [0.0, 2000.0, 1500.0, 0.0]
    assert opened(png).size[0] == round(6.4 * 80)


def test_the_second_map_takes_the_colours_of_what_lies_there_in_the_first(figures):
    # The same regions by other names, one of them split in two; one lies where there is no domain.
    first = ["d" if y == 4 else c for (_, y), c in zip(GRID, THREE)]
    names = {"a": "2", "b": "0", "c": "1", "d": None}
    other = ["7" if x == 0 and c == "a" else names[c] for (x, _), c in zip(GRID, first)]
    domains.domain_maps({"regions": first, "domains": other}, PLACE, dpi=60)
    first, second = (shades(axis) for axis in figures[0].axes)
    for at, category in zip(map(tuple, PLACE.xy), other, strict=True):
        if category is None:
            assert at not in second
        elif category != "7":
            assert second[at] == first[at]
        else:  # a colour that the first map does not use
            assert second[at] not in set(first.values())
    legend = figures[0].axes[1].get_legend()
    assert [t.get_text() for t in legend.get_texts()] == [
        "0 (12)",
        "1 (8)",
        "2 (8)",
        "7 (4)",
        "none (8)",
    ]


def test_a_spot_without_a_category_is_an_empty_ring_and_counted(figures):
    some = [None if i in (2, 5) else c for i, c in enumerate(THREE)]
    domains.domain_maps({"regions": some}, dataclasses.replace(PLACE, image=None), dpi=60)
    (axis,) = figures[0].axes
    assert len(shades(axis)) == 38
    ring = discs(axis)[-1]
    np.testing.assert_array_equal(ring.get_offsets(), PLACE.xy[[2, 5]])
    assert len(ring.get_facecolors()) == 0
    assert axis.get_legend().get_texts()[-1].get_text() == "none (2)"
    assert not axis.images


def test_after_twelve_categories_colours_come_again_with_a_dot(figures):
    many = [str(i % 26) for i in range(40)]
    domains.domain_maps({"many": many}, PLACE, dpi=60)
    (axis,) = figures[0].axes
    found = [shades(axis)[tuple(at)] for at in PLACE.xy]
    assert found[:12] == list(domains.COLOURS) == found[12:24]
    white, black = discs(axis)[1:]
    np.testing.assert_array_equal(white.get_offsets(), PLACE.xy[[*range(12, 24), 38, 39]])
    np.testing.assert_array_equal(black.get_offsets(), PLACE.xy[[24, 25]])
    assert colors.to_hex(white.get_facecolors()[0]) == "#ffffff"
    said = [t.get_text() for t in axis.get_legend().get_texts()]
    assert said[1:3] == ["1 (2)", "2 (2)"]  # whole numbers in their order
    with pytest.raises(errors.ConfigError, match="at most 36 categories.*found 40"):
        domains.domain_maps({"many": [str(i) for i in range(40)]}, PLACE)


def test_maps_are_files_of_any_kind_and_the_same_twice(tmp_path):
    panels = {"$x$ <i>": ["_a" if x else None for x, _ in GRID], "domains": THREE}
    for name in ("map.png", "map.svg"):
        domains.write_domain_maps(panels, PLACE, tmp_path / name, title="S")
        assert (tmp_path / name).stat().st_size > 5000
    one, again = (domains.domain_maps(panels, PLACE, dpi=50) for _ in range(2))
    assert one == again
    with pytest.raises(errors.ConfigError, match="cannot write a figure"):
        domains.write_domain_maps(panels, PLACE, tmp_path / "map.txt")


def test_nothing_has_a_category(figures):
    domains.domain_maps({"none": [None] * 40}, PLACE, dpi=60)
    assert figures[0].axes[0].get_legend().get_texts()[0].get_text() == "none (40)"
