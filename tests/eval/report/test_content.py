"""The report of evaluated slides: what stands on it, for ordinary and for odd data."""

from __future__ import annotations

import html.parser
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
