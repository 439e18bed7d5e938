"""Figures: what is drawn where, in which colours, with which words; nothing overlaps."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys

import anndata
import made_slides
import matplotlib.text
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from matplotlib import collections
from matplotlib.backends import backend_agg
from PIL import Image

from stemjax import errors
from stemjax.data import genes, images, records, slides
from stemjax.eval import joining, plots
from stemjax.eval.plots import canvas

# anndata 0.13.4 asks pandas 3.1 for an option that pandas has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option is deprecated")

GENES = ("ACTB", "ERBB2", "G2")
MPP = 2.5
CONTRACT = dataclasses.replace(made_slides.CONTRACT, width=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Slide S with an H&E that is red in its left half, slide N without an image."""
    out = tmp_path_factory.mktemp("records")
    x, y = (v.ravel() for v in np.meshgrid(np.arange(10), np.arange(6)))
    counts = np.random.default_rng(0).poisson(6.0, (60, 2)).astype(np.int32)
    pixels = np.full((700, 1000, 3), 255, np.uint8)
    pixels[:, :500] = (200, 0, 0)
    for slide_id, image in (("S", images.ArrayImage(pixels)), ("N", None)):
        slide = slides.Slide(
            id=slide_id,
            patient="P",
            counts=scipy.sparse.csr_array(counts),
            genes=GENES[:2],  # G2 is not measured
            barcodes=tuple(f"b{i}" for i in range(60)),
            array_xy=np.stack([x, y], axis=1).astype(np.float32),
            pixel_xy=np.stack([x * 80 + 140, y * 80 + 150], axis=1).astype(np.float32),
            image=image,
            mpp=MPP,
            spot_diameter_um=100.0,
            sources={},
        )
        panel = genes.Panel(genes=GENES, rule="made", slides=())
        records.write_slide(out, slide, np.ones((60, 8, 1)), panel=panel, contract=CONTRACT)
    return records.open_records(out)


def predicted(source, slide="S", draws=None, **about):
    """Half the truth, its spots in another order than the records'."""
    table = source.load([slide])
    out = anndata.AnnData(
        X=np.log2(table.counts + 1).astype(np.float32) / 2,
        obs=pd.DataFrame(index=list(table.barcodes)),
        var=pd.DataFrame(index=list(GENES)),
    )
    if draws is not None:
        out.obsm["stemjax_draws"] = draws.transpose(1, 0, 2).astype(np.float32)
        out.layers["stemjax_std"] = draws.std(axis=0, ddof=1).astype(np.float32)
    out.uns["stemjax"] = {
        "slide": slide,
        "mode": "mean" if draws is None else "draws",
        "value_space": "log2p1",
        "train_slides": [],
        "evaluations_per_spot": 1 if draws is None else 8 * len(draws),
    } | about
    return out[::-1].copy()


def joined(source, *args, **kwargs):
    """The prediction with its truth."""
    return joining.join(predicted(source, *args, **kwargs), source)


def some_draws():
    return np.random.default_rng(1).normal(3.0, 1.0, (5, 60, 3))


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Calls a figure function and returns the Figure that it saved, laid out, and the file."""

    def draw(function, *args, name="f.png"):
        figures = []
        save = canvas.save
        monkeypatch.setattr(canvas, "save", lambda f, p: (figures.append(f), save(f, p)))
        function(*args, tmp_path / name)
        monkeypatch.setattr(canvas, "save", save)
        figures[0].set_dpi(canvas.DPI)  # what was saved: another resolution moves text by a pixel
        backend_agg.FigureCanvasAgg(figures[0]).draw()
        return figures[0], tmp_path / name

    return draw


def words(figure):
    """Every text that is shown, with its box in pixels."""
    renderer = figure.canvas.get_renderer()
    found = figure.findobj(lambda a: isinstance(a, matplotlib.text.Text) and a.get_text().strip())
    # Tick labels are kept, but not drawn, where the axis is off or the tick out of view.
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not axes.axison or not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    shown = [t for t in found if t.get_visible() and t not in hidden]
    return [(t.get_text(), t.get_fontsize(), t.get_window_extent(renderer)) for t in shown]


def spots(axis):
    return next(c for c in axis.collections if isinstance(c, collections.EllipseCollection))


def test_marker_is_the_first_known_gene_else_the_most_variable():
    assert plots.default_marker(["IGKC", "X", "KRT19", "ERBB2"]) == "ERBB2"
    assert plots.default_marker(["IGKC", "X", "KRT19"]) == "KRT19"
    assert plots.default_marker(["X", "Y"]) == "X"
    assert plots.default_marker(["X", "Y"], np.array([[9.0, 0.0], [9.0, 1.0]])) == "Y"


def test_marker_figure_draws_spots_in_place_with_one_colour_scale(source, drawn):
    figure, _ = drawn(plots.marker_figure, joined(source), "ERBB2")
    measured, pred = (spots(axis) for axis in figure.axes[:2])
    table = source.load(["S"])
    values = np.log2(table.counts[:, 1] + 1)
    np.testing.assert_allclose(measured.get_array(), values, rtol=1e-6)
    np.testing.assert_allclose(pred.get_array(), values / 2, rtol=1e-6)
    assert measured.norm is pred.norm
    assert measured.get_cmap().name == pred.get_cmap().name
    low, high = np.quantile(np.concatenate([values, values / 2]), [0.01, 0.99])
    assert (measured.norm.vmin, measured.norm.vmax) == pytest.approx((low, high))
    for panel in (measured, pred):
        np.testing.assert_allclose(panel.get_offsets(), table.pixel_xy * MPP)
        np.testing.assert_allclose(panel.get_widths(), 100.0)
        np.testing.assert_allclose(panel.get_heights(), 100.0)


def test_image_and_spots_share_one_frame(source, drawn):
    figure, path = drawn(plots.marker_figure, joined(source), "ERBB2")
    axis = figure.axes[0]
    assert axis.images[0].get_extent() == pytest.approx([0.0, 2500.0, 1750.0, 0.0])
    # The H&E's red half ends at 1,250 um. Look half way between two rows of spots.
    height, width = figure.canvas.get_width_height()[::-1]
    seen = np.asarray(Image.open(path).convert("RGB"), float)
    up = seen.shape[0] / height

    def colour(x_um, y_um):
        column, row = axis.transData.transform((x_um, y_um)) * up
        return seen[int(seen.shape[0] - row), int(column)]

    between = (150 + 40) * MPP
    assert colour(1220.0, between)[1] < 200
    assert colour(1280.0, between).min() > 240
    # At a spot's centre is the colour of its value.
    table, shown = source.load(["S"]), spots(axis)
    expected = np.array(shown.cmap(shown.norm(np.log2(table.counts[17, 1] + 1)))[:3]) * 255
    x, y = table.pixel_xy[17] * MPP
    np.testing.assert_allclose(colour(x, y), expected, atol=2)
    # Its diameter is 100 um of the drawing, to the pixel that is looked at and its antialiasing.
    (left, _), (right, _) = axis.transData.transform([(0.0, 0.0), (1000.0, 0.0)]) * up
    pixel = 1000.0 / (right - left)
    assert pixel < 5.0
    np.testing.assert_allclose(colour(x + 50 - 2 * pixel, y), expected, atol=2)
    assert np.abs(colour(x + 50 + 2 * pixel, y) - expected).max() > 40
    # All spots and a margin are in view, the image's rows go down.
    left, right = axis.get_xlim()
    bottom, top = axis.get_ylim()
    assert left < (140 - 20) * MPP
    assert right > (140 + 9 * 80 + 20) * MPP
    assert top < (150 - 20) * MPP < (150 + 5 * 80 + 20) * MPP < bottom


@pytest.mark.parametrize("draws", [None, some_draws()], ids=["mean", "draws"])
def test_words_of_the_marker_figure_are_there_and_apart(source, drawn, draws):
    figure, _ = drawn(plots.marker_figure, joined(source, draws=draws), "ERBB2")
    told = words(figure)
    text = "\n".join(t for t, _, _ in told)
    said = ["ERBB2, slide S: PCC 1.00", "measured", "predicted", "log2(count + 1)", "500 µm"]
    if draws is None:
        said += ["mean, 1 network evaluation a spot"]
    else:
        said += ["average of 5 draws, 40 network evaluations a spot", "standard deviation"]
    for part in said:
        assert part in text
    assert min(size for _, size, _ in told) >= 10
    frame = figure.bbox
    for (a, _, box), (b, _, other) in itertools.combinations(told, 2):
        # One pixel of antialiasing may touch.
        apart = box.x1 <= other.x0 + 1 or other.x1 <= box.x0 + 1
        apart = apart or box.y1 <= other.y0 + 1 or other.y1 <= box.y0 + 1
        assert apart, (a, b)
    for text, _, box in told:
        assert frame.x0 <= box.x0, text
        assert box.x1 <= frame.x1, text
        assert frame.y0 <= box.y0, text
        assert box.y1 <= frame.y1, text


def test_spread_panel_shows_the_standard_deviation_of_the_draws(source, drawn):
    draws = some_draws()
    figure, _ = drawn(plots.marker_figure, joined(source, draws=draws), "ERBB2")
    spread = spots(figure.axes[2])
    np.testing.assert_allclose(spread.get_array(), draws[:, :, 1].std(axis=0, ddof=1), rtol=1e-5)
    assert spread.norm.vmin == 0.0
    assert spread.get_cmap().name != spots(figure.axes[0]).get_cmap().name


def test_a_slide_without_an_image_is_drawn_on_white(source, drawn):
    figure, path = drawn(plots.marker_figure, joined(source, "N"), "ERBB2")
    assert not figure.axes[0].images
    assert len(spots(figure.axes[0]).get_offsets()) == 60
    assert Image.open(path).convert("RGB").getpixel((3, 3)) == (255, 255, 255)


def test_gene_variation_figure_shows_truth_prediction_and_one_draw(source, drawn):
    draws = some_draws()
    figure, _ = drawn(plots.gene_variation_figure, joined(source, draws=draws))
    true = np.log2(source.load(["S"]).counts[:, :2] + 1.0)
    assert len(figure.axes) == 4
    for axis, function in zip(figure.axes, (np.mean, np.var) * 2, strict=True):
        lines = {line.get_label(): line.get_ydata() for line in axis.get_lines()}
        expected, order = function(true, axis=0), np.argsort(function(true, axis=0))
        factor = 0.5 if function is np.mean else 0.25
        one = np.var(draws[0][:, order], axis=0)
        pred, expected = factor * expected[order], expected[order]
        if "normalised" in axis.get_title():
            pred, expected, one = pred / pred.sum(), expected / expected.sum(), one / one.sum()
        # float32 in the file.
        np.testing.assert_allclose(lines["measured"], expected, rtol=1e-6)
        np.testing.assert_allclose(lines["predicted, draws(5)"], pred, rtol=1e-5)
        assert ("one draw" in lines) == (function is np.var)
        if function is np.var:
            np.testing.assert_allclose(lines["one draw"], one, rtol=1e-5)
    text = "\n".join(t for t, _, _ in words(figure))
    for part in ("slide S", "log2(count + 1)", "genes, by measured variance", "share of"):
        assert part in text


@pytest.mark.parametrize(
    ("gene", "said"),
    [("ERRB2", ("'ERRB2'", "ERBB2")), ("G2", ("G2", "not measured on slide S"))],
)
def test_genes_that_cannot_be_drawn_are_refused(source, tmp_path, gene, said):
    with pytest.raises(errors.GenePanelError) as caught:
        plots.marker_figure(joined(source), gene, tmp_path / "f.png")
    for part in said:
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_figures_are_written_whole_or_not_at_all(source, tmp_path, monkeypatch, drawn):
    _, path = drawn(plots.gene_variation_figure, joined(source), name="f.pdf")
    assert path.read_bytes().startswith(b"%PDF")
    with pytest.raises(errors.ConfigError, match=r"f\.odt.*\.png"):
        plots.gene_variation_figure(joined(source), tmp_path / "f.odt")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        plots.gene_variation_figure(joined(source), tmp_path / "f.pdf")
    assert [p.name for p in tmp_path.iterdir()] == ["f.pdf"]


def test_importing_the_room_loads_neither_matplotlib_nor_anndata():
    code = (
        "import sys; import stemjax.eval.plots, stemjax.eval.evaluate, stemjax.eval.baselines;"
        "print(sorted({'matplotlib', 'anndata', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
