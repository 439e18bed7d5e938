"""Domains of sections: what trains, what is scored, means and paired differences, the page."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import scipy.sparse

from stemjax.data import genes, prepare, slides

ROOT = pathlib.Path(__file__).resolve().parents[1]
X, Y = (v.ravel() for v in np.meshgrid(np.arange(12), np.arange(9)))
REGION = np.where(Y > 5, "fat", np.where(X > 5, "gland", "stroma")).astype(object)
GENES = tuple(f"G{i}" for i in range(16))
NO_FEATURES = str(ROOT / "configs" / "stem_her2st.py")
SMALL = ("model.width=8", "model.heads=2", "train.steps=4", "train.log_every=4",
         "train.save_every=4", "window.length=9")  # fmt: skip


def section(name, patient, seed):
    """12 x 9 spots in three regions; the first three have no region that counts."""
    rng = np.random.default_rng(seed)
    profile = np.random.default_rng(7).normal(size=(3, len(GENES)))
    rate = np.exp(1.5 + 0.7 * profile[np.unique(REGION, return_inverse=True)[1]])
    regions = REGION.copy()
    regions[:3] = "undetermined"
    labels = {"cluster": tuple(REGION)}
    if name == "P1":
        labels["pathologist"] = tuple(regions)
    return slides.Slide(
        id=name,
        patient=patient,
        counts=scipy.sparse.csr_array(rng.poisson(rate).astype(np.int32)),
        genes=GENES,
        barcodes=tuple(f"{x}x{y}" for x, y in zip(X, Y, strict=True)),
        array_xy=np.stack([X, Y], axis=1).astype(np.float32),
        pixel_xy=(100.0 + 200.0 * np.stack([X, Y], axis=1)).astype(np.float32),
        image=None,
        mpp=1.0,
        spot_diameter_um=100.0,
        sources={},
        labels=labels,
    )


@pytest.fixture(scope="module")
def script():
    """The script as a module, with few resamples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import domains

        patch.setattr(domains, "RESAMPLES", 40)
        yield domains


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Records of P1, whose regions are known, and Q1."""
    made = {name: section(name, name[0], i) for i, name in enumerate(("P1", "Q1"))}
    panel = genes.Panel(genes=GENES, rule="made", slides=())
    out = tmp_path_factory.mktemp("domains") / "records"
    return out, prepare.prepare(made.__getitem__, list(made), out, genes=panel, encoder="none")


@pytest.fixture(scope="module")
def made(script, source):
    """What the command writes, and the experiments and predictions on its way."""
    path = source[0].parent / "out" / "domains.json"
    steps = {"experiments": [], "predictions": []}
    train, predict = script.loop.train_shown, script.predict.predict_slide

    def watched_train(experiment, *args):
        steps["experiments"].append(experiment)
        return train(experiment, *args)

    def watched_predict(*args, **options):
        steps["predictions"].append(predict(*args, **options))
        return steps["predictions"][-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.loop, "train_shown", watched_train)
        patch.setattr(script.predict, "predict_slide", watched_predict)
        small = [f"--config.{key}" for key in ("data.recover=P1", *SMALL)]
        script.main(["--records", str(source[0]), "--json", str(path), *small])
    return {"result": json.loads(path.read_text()), **steps}


@pytest.fixture(scope="module")
def result(made):
    """What the command writes."""
    return made["result"]


def test_a_model_is_trained_on_its_section_alone_and_nothing_is_hidden(made):
    for name, experiment, found in zip(
        ("P1", "Q1"), made["experiments"], made["predictions"], strict=True
    ):
        about = found.uns["stemjax"]
        assert (about["slide"], about["train_slides"], about["hidden"]) == (name, [name], "")
        assert found.obs["stemjax_measured"].all()
        assert found.obsm["X_stemjax"].shape[0] == found.n_obs == 108
        assert (experiment.model.width, experiment.train.steps) == (8, 4)  # what was asked for


def test_every_row_is_scored_on_the_labels_that_count(result):
    kinds = [(line["label"], line["section"], line["patient"]) for line in result["lines"]]
    assert kinds == [("pathologist", "P1", "P"), ("cluster", "P1", "P"), ("cluster", "Q1", "Q")]
    regions, clusters = result["lines"][:2]
    assert (regions["left_out"], clusters["left_out"]) == (["undetermined"], [])
    assert (regions["spots"], clusters["spots"]) == (105, 108)
    assert regions["classes"] == {"fat": 36, "gland": 36, "stroma": 33}
    for line in result["lines"]:
        uses = [row["use"] for row in line["rows"].values()]
        assert uses == [
            "X_stemjax", "X", "measured", "measured", "smoothed", "smoothed", "position",
        ]  # fmt: skip
        assert {row["k"] for row in line["rows"].values()} == {3}
        for row in line["rows"].values():
            value, low, high = row["ari"]
            assert low <= value <= high
        # Regions of 30 spots whose profiles differ: neighbours show them, place alone less well.
        scores = {name: row["ari"][0] for name, row in line["rows"].items()}
        assert scores["smoothed, log2(count + 1)"] > 0.8 > scores["position alone"]


def line(section, patient, **ari):
    """A line whose rows have the given ARI, half of it as NMI and AMI."""
    uses = {"hidden": "X_stemjax", "profile": "X", "place": "position"}
    rows = {
        name: {"use": uses[name], "k": 3, "ari": [v, v - 0.1, v + 0.1], "nmi": [v / 2], "ami": [v]}
        for name, v in ari.items()
    }
    return {"label": "cluster", "section": section, "patient": patient, "spots": 9,
            "classes": {"a": 5, "b": 4}, "left_out": [], "rows": rows}  # fmt: skip


def test_means_are_of_sections_and_differences_are_paired(script):
    rng = np.random.default_rng(0)
    place = rng.uniform(0.1, 0.9, 12)
    lines = [
        line(f"{'ABCDEF'[i // 2]}{i % 2}", "ABCDEF"[i // 2], hidden=v + 0.05, profile=u, place=v)
        for i, (v, u) in enumerate(zip(place, rng.uniform(0.1, 0.9, 12), strict=True))
    ]
    found = script.summary(lines)
    assert "40 resamples of the 6 patients" in found["unit"]
    value, low, high = found["rows"]["place"]["ari"]
    assert value == pytest.approx(place.mean())
    assert low < value < high
    assert found["rows"]["place"]["nmi"][0] == pytest.approx(place.mean() / 2)
    # Sections differ far more than the rows: only a paired interval knows the difference.
    less = found["differences"]["hidden"]["place"]
    assert less["ari"]["value"] == pytest.approx([0.05] * 3)
    assert (less["ari"]["verdict"], less["higher"]) == ("better", 12)
    other = found["differences"]["profile"]["place"]
    assert other["higher"] == sum(e["rows"]["profile"]["ari"][0] > e["rows"]["place"]["ari"][0]
                                  for e in lines)  # fmt: skip
    assert set(found["differences"]["hidden"]) == {"place"}  # rivals, not the model's own
    text = script.label_markdown("cluster", lines, found)
    assert "mean of 12 sections of 6 patients" in text
    assert "| place | +0.050 [+0.050, +0.050] better |" in text
    assert text.splitlines()[-1].startswith(f"| F1 | 9 | 2 | {place[-1] + 0.05:.2f} [")


def test_few_sections_have_no_interval_and_it_is_said(script, result):
    found = script.summary([line(f"A{i}", "A", hidden=0.5, place=0.25) for i in range(2)])
    assert found["rows"]["place"]["ari"] == [0.25]
    assert found["differences"]["hidden"]["place"]["ari"] == {
        "value": [0.25],
        "verdict": "unknown",
    }
    text = script.tables(result)
    assert "**Pathologist's regions**, mean of 1 section of 1 patient. No intervals" in text
    assert text.count("| ARI | spots | classes |") == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give --data, --records, or both"),
        (["--records", "{}", "--sections", "Z9"], "no section Z9; there are P1, Q1"),
        (["--records", "{}", "--config", NO_FEATURES], "a model with hidden features is needed"),
    ],
)
def test_what_cannot_be_is_explained(script, source, capsys, given, message):
    with pytest.raises(SystemExit):
        script.main([part.replace("{}", str(source[0])) for part in given])
    assert message in capsys.readouterr().err


def test_the_page_shows_the_results_that_are_committed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pages

    text = (ROOT / "docs" / "domains.md").read_text()
    assert "<!-- tables of domains -->" in text
    assert pages.filled(text) == text
    made = text.index("<!-- tables of")
    assert pages.filled(text[:made] + text[made:].replace("measured", "weighed")) == text
