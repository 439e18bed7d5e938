"""What all figures share: names that are not ours, the reader's settings, the bytes."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from stemjax.eval import plots
from stemjax.eval.plots import canvas

HOSTILE = ("<script>alert(1)</script>", "_x", "$\\frac$", "a" * 300, "中🧬\n\x00\ud800", "", "$")


@canvas.own_style
def shown(name):
    """The pixels of a figure that says the name as title, tick and legend entry."""
    figure = canvas.new_figure(4.0, 2.0)
    axis = figure.subplots()
    (line,) = axis.plot([0, 1], [0, 1])
    axis.set_title(canvas.label(name))
    axis.set_yticks([0], [canvas.label(name)])
    canvas.legend_below(figure, [(name, line)], 1)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [canvas.label(name, 60)]
    return canvas.png(figure, 50)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_any_name_can_be_shown(name):
    # Warnings are errors: a missing glyph, a formula or a hidden entry would be one.
    assert shown(name).startswith(b"\x89PNG")
    assert len(canvas.label(name)) <= 34


def test_a_name_is_shown_as_it_is_and_a_long_one_by_its_ends():
    assert canvas.label("HLA-DRB1") == "HLA-DRB1"
    # Matplotlib shows an escaped dollar as a dollar: the same picture as with formulas off.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = canvas.new_figure(2.0, 1.0)
        figure.text(0.1, 0.5, "a$b$")
        plain = canvas.png(figure)
    figure = canvas.new_figure(2.0, 1.0)
    figure.text(0.1, 0.5, canvas.label("a$b$"))
    assert canvas.png(figure) == plain
    long = canvas.label("start" + "x" * 100 + "end", 12)
    assert long == "start…xxxend"


def test_figures_do_not_depend_on_the_readers_matplotlibrc():
    pcc = np.linspace(-0.2, 0.8, 30)
    expected = plots.pcc_histogram(pcc, {"ridge": pcc / 2})
    theirs = {"axes.facecolor": "black", "font.size": 30.0, "text.color": "red"}
    with matplotlib.rc_context(theirs):
        assert plots.pcc_histogram(pcc, {"ridge": pcc / 2}) == expected
        assert matplotlib.rcParams["font.size"] == 30.0
    other = plots.pcc_histogram(pcc + 0.1, {"ridge": pcc / 2})
    assert other != expected


def test_png_says_its_resolution_and_neither_date_nor_program():
    figure = canvas.new_figure(3.0, 2.0)
    for palette in (False, True):
        with Image.open(io.BytesIO(canvas.png(figure, 100, palette=palette))) as image:
            assert image.size == (300, 200)
            # PNG holds whole pixels a metre.
            assert image.info["dpi"] == pytest.approx((100, 100), abs=0.02)
            assert set(image.info) <= {"dpi", "transparency"}


def pale_picture():
    """Few hues, like faded H&E, a corner of bright shades, axes and white."""
    y, x = np.mgrid[:200, :300] / 50.0
    picture = 0.85 + 0.1 * np.stack([np.sin(x), np.sin(x + y), np.cos(y)], axis=-1)
    picture[:60, :60] = np.linspace(0, 1, 60)[:, None] * (1.0, 0.2, 0.1)
    figure = canvas.new_figure(6.0, 4.0)
    figure.subplots().imshow(picture)
    return figure


def test_a_palette_keeps_white_and_comes_near_to_every_shade():
    full, few = (
        np.asarray(
            Image.open(io.BytesIO(canvas.png(pale_picture(), palette=p))).convert("RGB"), int
        )
        for p in (False, True)
    )
    shades = np.unique(few.reshape(-1, 3), axis=0)
    assert len(shades) <= 256
    assert (few[0] == 255).all()
    # The picture is a sheet of 52 x 52 shades: 256 of them are 3 apart at best.
    assert np.abs(full - few).mean() < 4
    # Each pixel has the nearest shade of the palette.
    distance = ((full[::37, ::41].reshape(-1, 1, 3) - shades) ** 2).sum(-1)
    taken = ((full - few)[::37, ::41].reshape(-1, 3) ** 2).sum(-1)
    np.testing.assert_array_equal(taken, distance.min(axis=1))
