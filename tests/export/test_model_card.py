"""Model cards: every field filled, nothing made up, and what comes from files is only shown."""

from __future__ import annotations

import dataclasses
import html
import re

import jax
import markdown_it
import pytest
import test_bundle as made
from huggingface_hub import ModelCard

from stemjax import config, errors
from stemjax.data import embeddings, integrity
from stemjax.export import bundle, facts, model_card, published

RUN = {
    "from_step": 0,
    "date": "2026-11-28T10:00:00+00:00",
    "stemjax": "0.1.0",
    "code": "0123456789abcdef",
    "jax": "0.12.0",
    "flax": "0.12.12",
    "platform": "tpu",
    "device": "TPU v5 lite",
    "devices": 8,
    "processes": 2,
}
ROWS = [
    {
        "name": "prediction: mean",
        "sees_test": False,
        "scores": {
            "pcc_all": {"value": 0.3126, "interval": [0.25, 0.3751]},
            "mse": {"value": 1.25, "interval": None},
        },
    },
    {
        "name": "neighbour mean",
        "sees_test": True,
        "scores": {"pcc_all": {"value": None, "interval": None}},
    },
]
SCORES = {
    "checkpoint_step": 1234,
    "weights": "best",
    "mode": "mean",
    "slides": [{"slide": "X1", "patient": "R", "split": "test", "spots": 9}],
    "rows": ROWS,
    "intervals": {"sentence": "95 % intervals: 1,000 resamples of 12 blocks."},
}


@pytest.fixture(scope="module")
def trained():
    return made.make_trained()


@pytest.fixture(scope="module")
def whole(trained):
    """A model of which all is known."""
    scored = bundle.with_scores(trained, SCORES, "metrics.json")
    known = {"validation": {"val_mse": 1.5, "val_pcc": 0.25}, "runs": (RUN,)}
    return dataclasses.replace(scored, calibrations=(made.calibrate(trained),), **known)


def with_card(trained, **parts):
    return dataclasses.replace(trained, card=dataclasses.replace(trained.card, **parts))


def with_experiment(trained, **groups):
    values = config.as_json(trained.card.experiment)
    for group, part in groups.items():
        values[group] |= part
    found = with_card(trained, experiment=config.resolve(values))
    return dataclasses.replace(found, params=found.card.task.init(jax.random.key(0)))


# ---------------------------------------------------------------------------------- what it says


def test_every_field_says_what_the_model_is(whole):
    found = facts.describe(whole)
    leaves = sum(leaf.size for leaf in jax.tree.leaves(whole.params))
    pieces = {
        ("Model", "Name"): "toy",
        ("Model", "Infers"): "expression of 5 genes",
        ("Model", "Network"): "width 8, depth 2, 2 heads; diffusion in EDM's form",
        ("Model", "Parameters"): f"{leaves:,}",
        ("Model", "Weights"): "best, of step 1,234",
        ("Model", "Configuration"): whole.identity["config"],
        ("Genes", "Number"): "5",
        ("Genes", "First"): "G0, G1, G2, G3, G4",
        ("Genes", "Chosen by"): "toy",
        ("Genes", "Chosen on"): "T1",
        ("Genes", "Value space"): "log2(count + 1) (log2p1)",
        ("Genes", "Standardised"): "mean 0 and standard deviation 1",
        ("Slides", "Training"): "T1",
        ("Slides", "Validation"): "none",
        ("Slides", "Test"): "X1",
        ("Slides", "Kind of split"): "new patient",
        ("Slides", "Leakage"): "none known",
        ("Slides", "Patients"): "X1 is of patient R; of the other slides not stored",
        ("Slides", "Panel and test slides"): "no test slide",
        ("Encoder", "Name"): "toy",
        ("Encoder", "Width"): "6 features",
        ("Encoder", "Input"): "224 px a side, resized by lanczos",
        ("Encoder", "Field of view"): "max(224 px, spot diameter)",
        ("Encoder", "Pooling"): "UNI's class token",
        ("Encoder", "Source"): "stem",
        ("Encoder", "Revision"): "published",
        ("Encoder", "Licence"): "ask its publisher",
        ("Training", "Steps"): "1,234 updates behind these weights, of 300,000 planned",
        ("Training", "Batch"): "256 spots",
        ("Training", "Seed"): "0",
        ("Training", "Optimiser"): "decay 0.9999",
        ("Training", "Noise"): "ln sigma normal, mean -1.2, std 1.2; 10% of each batch",
        ("Training", "Hardware"): "8 x TPU v5 lite (tpu), 2 processes, from step 0 on",
        ("Training", "Versions"): "stemjax 0",
        ("Training", "Validation errors"): "val_mse 1.5, val_pcc 0.25",
        ("Sampling", "By default"): "mode mean, 1 evaluation a spot",
        ("Sampling", "Draws"): "pair 16 evaluations a spot (dpmpp2m, 8 steps), draws 160",
        ("Sampling", "Cost of an evaluation"): "floating-point operations",
        ("Evaluation", "Scores"): "on X1, mode mean. 95 % intervals: 1,000 resamples",
        ("Evaluation", "Calibrated intervals"): "mode mean on V1, coverage of held-out spots (leave"
        " one slide out): 90%: 90.0%",
    }
    assert {(s, name) for s, fields in found.items() for name in fields} == set(pieces)
    for (section, name), piece in pieces.items():
        assert piece in found[section][name], (section, name)
    text = model_card.make(whole)
    for (section, name), _ in pieces.items():
        assert f"| {name} | {model_card.escape(found[section][name])} |\n" in text


def test_the_hub_reads_its_front_matter(whole):
    data = ModelCard(model_card.make(whole, licence="apache-2.0")).data
    assert (data.license, data.library_name) == ("apache-2.0", "stemjax")
    assert data.tags[0] == "stemjax"
    assert "diffusion" in data.tags
    assert ModelCard(model_card.make(whole)).data.license == "other"
    for bad in ("", "Apache 2.0", "mit\ntags: [x]", "x" * 65):
        with pytest.raises(errors.ConfigError, match="an identifier as the hub has them"):
            model_card.make(whole, licence=bad)


def test_scores_stand_beside_their_floors(whole):
    lines = model_card.make(whole).splitlines()
    at = lines.index("|  | PCC-all | MSE |")
    assert lines[at + 2 : at + 4] == [
        r"| prediction: mean | 0.313 \[0.250, 0.375\] | 1.250 |",
        r"| neighbour mean \* | - | - |",
    ]
    assert r"\* sees the test slide's own measurements" in "\n".join(lines)


def test_what_one_must_know_is_on_every_card(trained):
    text = model_card.make(trained)
    assert text.count(model_card.NOTICE) == 1
    assert 'stemjax.load("PATH")' in text
    assert "The licence of these weights has not been stated" in text
    for title in ("Loading", "Intended use", "Out of scope", "Limits", "Licence", "Methods"):
        assert f"\n## {title}\n" in text
    for source in ("2501.15598", "2407.20518", "2206.00364"):
        assert source in text


def test_the_same_model_has_the_same_card(whole, tmp_path):
    bundle.write(whole, tmp_path / "one")
    bundle.write(bundle.load(tmp_path / "one"), tmp_path / "two")
    one, two = ((tmp_path / name / "README.md").read_bytes() for name in ("one", "two"))
    assert one == two == model_card.make(whole).encode()
    listed = (tmp_path / "one" / integrity.MANIFEST).read_text()
    assert '"README.md"' in listed


# --------------------------------------------------------------------- what is not known, and leaks


def test_what_is_not_known_is_said_to_be_unknown(trained):
    found = facts.describe(trained)
    assert found["Evaluation"]["Scores"].startswith("not evaluated")
    assert found["Evaluation"]["Calibrated intervals"] == "none"
    assert found["Training"]["Hardware"] == "unknown: no run is recorded"
    assert found["Training"]["Validation errors"].startswith("none")
    assert found["Slides"]["Patients"] == "of the other slides not stored with the model"
    limits = model_card.make(trained).partition("## Limits")[2]
    assert "Not evaluated" in limits
    assert "Not calibrated" in limits
    assert facts.scores(trained) == ([], [])


def test_an_imported_checkpoint_claims_nothing_of_its_training(trained):
    """Its configuration has defaults of ours, which did not train it."""
    empty = {"train": [], "val": [], "test": [], "kind": "unknown"}
    versions = {"stemjax": "0", "imported_from": "0300000.pt", "imported_sha256": "ab" * 32}
    experiment = config.Experiment(
        model=trained.card.experiment.model,
        diffusion=config.Diffusion(process="ddpm", mean_fraction=0.0),
    )
    model = with_card(trained, split=empty, versions=versions, experiment=experiment)
    found = facts.describe(model)
    for name in ("Training", "Validation", "Test", "Kind of split"):
        assert found["Slides"][name] == "unknown"
    assert found["Slides"]["Leakage"].startswith("unknown")
    for name in ("Batch", "Seed", "Optimiser"):
        assert found["Training"][name].startswith("unknown: imported")
    assert "planned" not in found["Training"]["Steps"]
    assert found["Training"]["Noise"] == "1,000 linear betas (DDPM)"
    assert "ab" * 32 in found["Training"]["Versions"]
    assert found["Sampling"]["Mode mean"].startswith("not trained")
    assert "What it was trained on is not recorded" in model_card.make(model)


@pytest.mark.parametrize(
    ("kind", "words", "limit"),
    [
        ("interpolation within a patient", "LEAK: a patient of the test slides also", True),
        ("recovery within a slide", "about interpolation within a slide", True),
        ("patient unknown", "unknown: not all slides have a patient", False),
        ("no test slide", "no slide was held out", False),
        ("new patient", "none known", False),
        ("something new", "unknown: what the split is", False),
    ],
)
def test_a_leak_is_marked(trained, kind, words, limit):
    model = with_card(trained, split={**trained.card.split, "kind": kind})
    assert words in facts.describe(model)["Slides"]["Leakage"]
    said = "on a patient it has never seen" in model_card.make(model)
    assert said == limit == facts.is_within_patient(model)


def test_a_panel_that_saw_the_test_slide_is_marked(trained):
    panel = {**trained.card.panel, "slides": ["T1", "X1"]}
    text = facts.describe(with_card(trained, panel=panel))["Slides"]["Panel and test slides"]
    assert text == "LEAK: the genes were also chosen on X1, held out for the test"


def test_weights_that_began_with_others_say_so(trained):
    start = {"config": "0", "step": 50, "weights": "best", "slides": ["S1", "S2"]}
    split = {**trained.card.split, "recover": ["T1"]}
    found = facts.describe(with_card(trained, start=start, split=split))
    assert found["Training"]["Began with"] == "the weights of another run, step 50"
    assert found["Slides"]["Seen before"] == "by the weights it began with: S1, S2"
    assert found["Slides"]["Recovered"] == "a share of the spots of T1 was hidden"


def test_other_models_are_called_what_they_are(trained):
    lite = facts.describe(with_experiment(trained, model={"kind": "lite"}))
    assert lite["Model"]["Network"].startswith("lite (the whole profile through one vector), width")
    window = {"kind": "neighbours", "length": 7, "components": 3}
    spots = with_experiment(trained, model={"kind": "histosge"}, window=window)
    found = facts.describe(spots)
    assert found["Model"]["Network"].startswith("HisToSGE (a transformer over spots)")
    assert found["Model"]["Infers"].endswith("and measured spots around it (windows of 7 spots)")
    assert found["Sampling"]["Draws"] == "no draws: it predicts a mean"
    assert found["Training"]["Noise"].startswith("none")
    assert "\n- histosge\n" in model_card.make(spots)
    uniform = facts.describe(with_experiment(trained, diffusion={"noise": "loguniform"}))
    assert uniform["Training"]["Noise"].startswith("ln sigma uniform, sigma 0.01 to 80")


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("UNI", "hest", "CC BY-NC-ND 4.0"),
        ("uni+conch", "stem", "CC BY-NC-ND 4.0"),
        ("ctranspath", "trident", "GPL-3.0"),
        ("texture", "stemjax", "no weights of others"),
        ("texture", "someone", "not known here: ask its publisher"),
    ],
)
def test_an_encoder_has_its_licence(trained, name, source, words):
    contract = dataclasses.replace(trained.card.contract, name=name, source=source)
    said = facts.describe(with_card(trained, contract=contract))["Encoder"]["Licence"]
    assert words in said
    assert ("ask its publisher" in said) == (source != "stemjax")


# ---------------------------------------------------------------------------- what comes from files

HOSTILE = [
    "[click](http://evil.example)",
    "http://evil.example/x",
    "www.evil.example",
    "<script>alert(1)</script>",
    "![x](data:image/png;base64,AA)",
    "a | b | c",
    "line\n# heading\n---\nlicense: mit",
    "`code` **bold** _em_ ~~no~~ $x^2$",
    "&lt;b&gt; &#60;",
    "\x1b[31mred\x07\u202egpj.exe",
    "mail@evil.example",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_from_files_are_only_shown(trained, text):
    split = {**trained.card.split, "train": [text], "test": [text]}
    panel = {**trained.card.panel, "rule": text, "slides": [text]}
    contract = dataclasses.replace(trained.card.contract, revision=text, source=text)
    experiment = dataclasses.replace(trained.card.experiment, name=text)
    model = with_card(trained, split=split, panel=panel, contract=contract, experiment=experiment)
    card = model_card.make(model)
    plain, safe = model_card.make(trained), model_card.escape(text)
    assert f"| Training | {safe} |\n" in card
    assert f"| Revision | {safe} |\n" in card
    # As many lines as the card of harmless names has, but for the leak that the panel is.
    assert card.count("\n") == plain.count("\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", card)
    assert ModelCard(card).data.license == "other"
    # A reader of Markdown shows the text as it was, and nothing else.
    page = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(card)
    cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page, re.DOTALL)]
    assert cells[cells.index("Training") + 1] == facts.clean(text)
    assert html.unescape(re.findall("<h1>(.*)</h1>", page)[0]) == facts.clean(text)
    assert not re.search("<(a|img|script|em|del|b)[ >]", page.replace("<strong>", ""))
    assert page.count("<code") == markdown_it.MarkdownIt().enable("table").render(plain).count(
        "<code"
    )
    # The hub's reader also makes links of bare addresses, and formulas.
    bare = re.sub(r"\\.", "", safe)
    assert not re.search(r"://|www\.|[$@~]", bare)
    for section in facts.describe(model).values():
        for said in section.values():
            assert said.isprintable()


def test_long_lists_and_long_names_are_cut(trained):
    split = {**trained.card.split, "train": [f"S{i}" for i in range(500)], "val": ["v" * 500]}
    found = facts.describe(with_card(trained, split=split))["Slides"]
    assert found["Training"].endswith(", S19 and 480 more")
    assert found["Validation"] == "v" * 77 + "..."


@pytest.mark.parametrize(
    "scores",
    [
        {"rows": 3},
        {"rows": [1, {"name": "x"}, {"name": "x", "scores": 2}]},
        {"rows": [{"name": "x", "scores": {"pcc_all": "high"}}], "slides": [3], "intervals": 4},
        {"rows": [{"name": "x", "scores": {"mse": {"value": "<b>", "interval": ["a", 2]}}}]},
    ],
)
def test_scores_of_another_form_are_no_numbers(trained, scores):
    model = dataclasses.replace(trained, scores=scores)
    assert "<b>" not in model_card.make(model)
    assert all(set(row[1:]) == {"-"} for row in facts.scores(model)[1])


def test_a_card_that_makes_no_sense_is_named(trained):
    model = with_card(trained, split=["T1"])
    with pytest.raises(errors.BundleError, match="beside the weights cannot be read"):
        facts.describe(model)


def test_the_published_encoder_is_in_the_table():
    assert isinstance(published.UNI_CONCH, embeddings.EncoderContract)
    said = facts.licence(published.UNI_CONCH.name, published.UNI_CONCH.source)
    assert "CC BY-NC-ND" in said
