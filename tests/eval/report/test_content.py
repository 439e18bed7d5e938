"""The report of evaluated slides: what stands on it, for ordinary and for odd data."""

from __future__ import annotations

import html.parser
import json
import re

import anndata
import numpy as np
import pandas as pd
import pytest
from made_slides import predicted, truth, write_source

from stemjax import errors
from stemjax.eval import evaluate, joining, plots, report
from stemjax.eval import truth as truths

FAST = ("MLP", "embedding kNN", "HEST probe")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("records"))


class Text(html.parser.HTMLParser):
    """The visible text, the tags and their attributes."""

    def __init__(self, page):
        super().__init__()
        self.words, self.tags, self.hidden = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.hidden = tag in ("style", "script")

    def handle_endtag(self, tag):
        self.hidden = False

    def handle_data(self, data):
        if not self.hidden:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def rendered(predictions, source, *, genes=(), **options):
    options = {"resamples": 20, "leave_out": FAST} | options
    done = evaluate.evaluate_all(predictions, source, seed=0, **options)
    result = evaluate.summarise(done, resamples=options["resamples"], seed=0)
    return report.render(done, result, genes=genes), result


def with_draws(source, slide="A2", **about):
    true = truth(source, slide)
    draws = true + np.random.default_rng(0).normal(0, 0.7, (8, *true.shape))
    return predicted(
        source, slide, draws.mean(axis=0), train=["B1"], mode="draws", draws=draws, **about
    )


def images(page):
    return [attrs["alt"] for tag, attrs in Text(page).tags if tag == "img"]


def test_every_part_stands_on_the_page(source):
    made = with_draws(source)
    low = np.asarray(made.X) - 1
    made.layers["stemjax_lower_90"], made.layers["stemjax_upper_90"] = low, low + 2
    made.obs["stemjax_nll"] = made.obs["stemjax_nll_other"] = 0.5
    page, result = rendered(made, source, genes=("G3", "G1"))
    text = Text(page).text
    first = result["rows"][0]["scores"]
    for part in (
        "Predicted expression: A2",
        "Research use only",
        "interpolation" if "interpolation" in page else "new patient",
        f"{first['pcc_all']['value']:.3f}",
        f"95 %: {first['mse']['interval'][0]:.3f} to {first['mse']['interval'][1]:.3f}",
        "ridge",
        "noise ceiling",
        "sees the test slide's own measurements",
        "20 resamples of 6 square blocks",
        "calibrated",
        result["fingerprint"],
    ):
        assert part in text, part
    shown = images(page)
    for what in (
        "PCC-all and MSE of every row",
        "G3 over the tissue",
        "G1 over the tissue",
        "Histogram of the genes' PCC",
        "Mean and variance over spots",
        "Coverage. as predicted",
        "Rank of the measurement",
        "Moran's I of each gene, predicted mean",
        "Moran's I of each gene, predicted draw",
        "Correlations of all pairs of genes over spots, measured and predicted mean",
        "Correlations of all pairs of genes over spots, measured and predicted draw",
    ):
        assert sum(alt.startswith(what) for alt in shown) == 1, what
    assert "G0 over the tissue" not in " ".join(shown)
    assert len(page.encode()) < 5e6


def test_each_score_is_the_results(source):
    """The numbers printed in the table of rows are those of the JSON, row by row."""
    page, result = rendered(with_draws(source), source)
    text = Text(page).text
    for row in result["rows"]:
        found = row["scores"]["mse"]
        low, high = found["interval"]
        assert f"{found['value']:.3f} [{low:.3f}, {high:.3f}]" in text
    less = next(row for row in result["rows"] if row["name"] == "ridge")["first_minus_row"]["mse"]
    assert f"{less['verdict']} {less['difference']:+.3f}" in text


def test_maps_show_what_was_measured_and_what_was_predicted(source, monkeypatch):
    shown, maps = [], plots.maps
    monkeypatch.setattr(
        plots, "maps", lambda *args, **kwargs: shown.append((args, kwargs)) or maps(*args, **kwargs)
    )
    made = with_draws(source)
    rendered(made, source, genes=("G3", "G1"))
    (names, measured, mean, tissue), options = shown[0]
    true = truth(source, "A2")[:, [3, 1]]
    assert names == ["G3", "G1"]
    np.testing.assert_allclose(measured, true, rtol=1e-6)
    np.testing.assert_allclose(mean, np.asarray(made.X)[:, [3, 1]], rtol=1e-6)
    np.testing.assert_allclose(
        options["spread"], np.asarray(made.layers["stemjax_std"])[:, [3, 1]], rtol=1e-6
    )
    np.testing.assert_allclose(tissue.xy[:2], [[200, 200], [400, 200]])  # um: 20 px of 10 um
    assert options["units"] == "log2(count + 1)"


def test_a_mean_alone_says_that_it_has_no_spread(source):
    page, _ = rendered(predicted(source, "A2", truth(source, "A2"), train=["B1"]), source)
    assert "has a mean and no spread" in Text(page).text
    assert not any(alt.startswith(("Coverage", "Rank")) for alt in images(page))


def test_several_slides_have_a_table_of_their_own(source):
    made = [predicted(source, s, 0.8 * truth(source, s), train=["B1"]) for s in ("A1", "A2")]
    page, result = rendered(made, source)
    text = Text(page).text
    assert "Predicted expression: A1, A2" in text
    assert "The figures below show the first, A1" in text
    for slide in result["slides"]:
        assert f"{slide['scores']['prediction: mean']['mse']:.3f}" in text


def test_a_gene_that_is_not_there_is_refused_with_the_nearest(source):
    with pytest.raises(errors.GenePanelError, match="gene 'G33' cannot be shown.*did you mean"):
        rendered(with_draws(source), source, genes=("G33",))


ODD = ("<script>alert(1)</script>", 'A"b', "it's", "Ünïcode", "x" * 200, "{{ 7 * 7 }}")


def odd(spots=30, genes=ODD, *, constant=(), **held):
    """A truth without an image and another tool's prediction of it, with odd names."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(5.0, size=(spots, len(genes)))
    counts[:, list(constant)] = 3
    names = [f'spot "{i}" <b>\'' for i in range(spots)]
    side = int(np.ceil(np.sqrt(spots)))
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:spots]
    data = anndata.AnnData(
        X=counts.astype(np.float32),
        obs=pd.DataFrame({"array_row": xy[:, 1], "array_col": xy[:, 0]}, index=names),
        var=pd.DataFrame(index=list(genes)),
    )
    data.obsm["spatial"] = xy * 30.0
    made = anndata.AnnData(
        X=np.log2(counts + 1.0) + rng.normal(0, 0.5, counts.shape),
        obs=pd.DataFrame(index=names),
        var=pd.DataFrame(index=list(genes)),
    )
    place = truths.of_anndata(data, name="odd", where="truth")
    return truths.Source(slides=("odd",), records=None, _file=place), made


def test_names_are_text_and_nothing_else():
    source, made = odd()
    page, result = rendered(made, source, genes=ODD)
    found = Text(page)
    assert "script" not in {tag for tag, _ in found.tags}
    assert "b" not in {tag for tag, _ in found.tags}
    assert "<script>alert" not in page
    assert "<script>alert(1)</script>" in found.text
    assert "{{ 7 * 7 }}" in found.text  # a name is no template
    alts = images(page)
    assert any("<script>alert(1)</script> over the tissue" in alt for alt in alts)
    assert [row["name"] for row in result["rows"][1:]] == [
        "neighbour mean",
        "depth oracle",
        "noise ceiling",
    ]
    assert "file of counts, without embeddings" in found.text
    assert "px" not in [tag for tag, _ in found.tags]


@pytest.mark.parametrize(
    ("spots", "genes", "constant"),
    [(1, ODD, ()), (30, ODD[:1], ()), (1, ODD[:1], ()), (2, ODD, ()), (30, ODD, range(6))],
)
def test_little_data_gives_a_report_without_a_silent_nan(spots, genes, constant):
    source, made = odd(spots, genes, constant=constant)
    page, result = rendered(made, source)
    text = Text(page).text
    assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)
    mse = result["rows"][0]["scores"]["mse"]["value"]
    assert f"{mse:.3f}" in text
    if spots == 1 or len(constant):
        assert result["rows"][0]["scores"]["pcc_all"]["value"] is None
    if spots <= 2:
        assert "a single block of spots cannot be resampled" in text
    if len(constant):
        assert "6 of 6 genes do not vary" in text


def test_a_nan_prediction_is_an_error_that_names_it():
    source, made = odd()
    made.X[3, 1] = np.nan
    with pytest.raises(errors.PredictionError, match=r'X holds 1 NaN.*gene \'A"b\''):
        rendered(made, source)


def test_without_a_truth_there_are_maps_and_no_scores(source):
    made = with_draws(source)
    made.obsm["spatial"] = np.asarray(source.load(["A2"]).pixel_xy, float)
    page = report.without_truth([made], genes=("G2",))
    text = Text(page).text
    assert "Nothing here says how good the prediction is" in text
    assert images(page) == ["G2 over the tissue, predicted."]
    assert "PCC" not in text
    assert "A2: mode draws" in text
    del made.obsm["spatial"]
    with pytest.raises(errors.PredictionError, match="no spot coordinates"):
        report.without_truth([made])


HIDDEN = np.random.default_rng(5).permutation(108) < 40


def caught_maps(monkeypatch):
    """What is drawn as maps: arguments and options of each call."""
    shown, maps = [], plots.maps
    monkeypatch.setattr(
        plots, "maps", lambda *args, **kwargs: shown.append((args, kwargs)) or maps(*args, **kwargs)
    )
    return shown


def test_a_recovered_slide_shows_what_was_given_and_what_was_hidden(source, monkeypatch):
    drawn = caught_maps(monkeypatch)
    made = with_draws(
        source, hidden=json.dumps({"how": "blocks", "share": 0.4, "seed": 3, "block": 5.0})
    )
    made.obs["stemjax_measured"] = ~HIDDEN
    page, result = rendered(made, source, genes=("G3", "G1"))
    (names, measured, mean, tissue), options = drawn[0]
    true, table = truth(source, "A2")[:, [3, 1]], source.load(["A2"])
    assert names == ["G3", "G1"]
    np.testing.assert_allclose(measured, true[HIDDEN], rtol=1e-6)
    np.testing.assert_allclose(mean, np.asarray(made.X)[HIDDEN][:, [3, 1]], rtol=1e-6)
    np.testing.assert_allclose(options["spread"].shape, (40, 2))
    np.testing.assert_allclose(tissue.xy, 10.0 * table.pixel_xy[HIDDEN])
    np.testing.assert_allclose(options["shown"].values, true[~HIDDEN], rtol=1e-6)
    np.testing.assert_allclose(options["shown"].xy, 10.0 * table.pixel_xy[~HIDDEN])
    assert options["shown"].diameter == tissue.diameter == 100.0
    text = Text(page).text
    every = result["slides"][0]["all_spots"]
    for part in (
        "68 of 108 spots were shown to the model, 40 were hidden from it",
        f"On all 108 spots of A2, the shown ones too (as published, no test): "
        f"PCC {every['pcc']:.3f}, MSE {every['mse']:.3f}.",
        "nearest measured mean",
        "than ridge + neighbours",
        "40% of the slide, squares of 5 x 5 spots, seed 3",
    ):
        assert part in text, part
    assert "G3 over the tissue: what the model was shown; hidden spots:" in " ".join(images(page))
    plain = Text(rendered(with_draws(source), source, genes=("G3",))[0]).text
    assert "On all 108 spots" not in plain
    assert "shown to the model" not in plain
    assert drawn[1][1]["shown"] is None


def dense(source, *, factor=2, **about):
    """A prediction of A2 with points between its spots, and what was measured."""
    table = source.load(["A2"])
    xy, rng = np.asarray(table.pixel_xy, float), np.random.default_rng(1)
    steps = np.stack(np.meshgrid(np.arange(factor), np.arange(factor)), -1).reshape(-1, 2)[1:]
    between = (xy[:, None] + 20.0 / factor * steps).reshape(-1, 2)
    n = 108 + len(between)
    made = anndata.AnnData(
        X=rng.normal(3, 1, (n, 14)).astype(np.float32),
        obs=pd.DataFrame({"stemjax_measured": np.arange(n) < 108}, index=list(map(str, range(n)))),
        var=pd.DataFrame(index=list(source.genes)),
    )
    made.obsm["spatial"] = np.concatenate([xy, between])
    factors = {"spot_diameter_fullres": 10.0, "microns_per_pixel": 10.0}
    made.uns["spatial"] = {"A2": {"images": {}, "scalefactors": factors}}
    made.uns["stemjax"] = {"slide": "A2", "value_space": "log2p1", "mode": "mean"} | about
    made.uns["stemjax"]["points"] = json.dumps({"spots": 108, "points": len(between)})
    observed = np.full((n, 14), np.nan, np.float32)
    observed[:108] = truth(source, "A2")
    made.layers["stemjax_observed"] = observed
    return made


@pytest.mark.parametrize(("factor", "diameter"), [(2, 80.0), (4, 40.0), (1, 100.0)])
def test_points_between_the_spots_are_mapped_beside_what_was_measured(
    source, monkeypatch, factor, diameter
):
    """Spots 200 um apart and 100 um wide; dots of the prediction never touch."""
    drawn = caught_maps(monkeypatch)
    made = dense(source, factor=factor)
    page = report.without_truth([made], genes=("G2", "G0"))
    (names, measured, mean, tissue), options = drawn[0]
    assert names == ["G2", "G0"]
    assert measured is None
    np.testing.assert_allclose(mean, np.asarray(made.X)[:, [2, 0]], rtol=1e-6)
    np.testing.assert_allclose(tissue.xy, 10.0 * made.obsm["spatial"])
    assert tissue.diameter == pytest.approx(diameter)
    assert options["shown"].diameter == 100.0
    np.testing.assert_allclose(options["shown"].values, truth(source, "A2")[:, [2, 0]], rtol=1e-6)
    np.testing.assert_allclose(options["shown"].xy, 10.0 * made.obsm["spatial"][:108])
    text = Text(page).text
    points = 108 * (factor**2 - 1)
    if points:
        assert f"108 measured spots; {points} inferred: {points} points between. 14 genes" in text
        assert "is inferred and was never measured" in text
    else:
        assert "108 measured spots, each predicted from the others. 14 genes" in text
    assert images(page)[0] == "G2 over the tissue, measured, and predicted."


def test_hidden_spots_and_points_are_counted_apart(source, monkeypatch):
    drawn = caught_maps(monkeypatch)
    hidden = json.dumps({"how": "spots", "share": 0.4, "seed": 3, "block": 5.0})
    made = dense(source, hidden=hidden)
    measured = np.concatenate([~HIDDEN, np.zeros(324, bool)])
    made.obs["stemjax_measured"] = measured
    made.layers["stemjax_observed"][~measured] = np.nan
    text = Text(report.without_truth([made], genes=("G2",))).text
    assert "68 measured spots; 364 inferred: 40 hidden spots and 324 points between." in text
    assert "hidden 40% of the slide, single spots, seed 3" in text
    given = drawn[0][1]["shown"]
    np.testing.assert_allclose(given.values, truth(source, "A2")[~HIDDEN][:, [2]], rtol=1e-6)
    # Without the layer, a recovered slide is mapped alone and counted all the same.
    del made.layers["stemjax_observed"]
    text = Text(report.without_truth([made], genes=("G2",))).text
    assert drawn[1][1]["shown"] is None
    assert "68 measured spots; 364 inferred" in text
    made.uns["stemjax"]["points"] = "{"
    with pytest.raises(errors.PredictionError, match=r'"points"\] cannot be read'):
        report.without_truth([made])


def test_the_same_input_gives_the_same_page(source):
    made = with_draws(source)
    assert rendered(made, source)[0] == rendered(made, source)[0]


def test_foreign_values_and_assumptions_are_told(source):
    data = anndata.AnnData(
        X=truth(source, "B1"),
        obs=pd.DataFrame(index=list(source.load(["B1"]).barcodes)),
        var=pd.DataFrame(index=list(source.genes)),
    )
    page, _ = rendered(data, source, foreign=joining.Foreign(slide="B1"))
    text = Text(page).text
    assert "another tool's prediction" in text
    assert "training slides assumed" in text
    assert "ridge" in text


def test_a_page_says_what_the_prediction_warns_of_and_that_nothing_was_measured(source):
    made = with_draws(source)
    made.obsm["spatial"] = np.asarray(source.load(["A2"]).pixel_xy, float)
    made.obs["stemjax_measured"] = np.zeros(made.n_obs, bool)
    made.uns["stemjax"]["warnings"] = ["patches of 112 um <at> 0.5 um/px"]
    text = report.without_truth([made], genes=("G2",))
    assert "patches of 112 um &lt;at&gt; 0.5 um/px" in text
    assert f"{made.n_obs} spots of an image alone: nothing was measured here" in Text(text).text
