"""A slide that no records hold is predicted as one that records hold, and an image alone too."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import sparse

import stemjax
from stemjax import demo, errors, tasks
from stemjax.data import drawing, embeddings, genes, no_image, prepare, texture
from stemjax.eval import evaluate, new_slide, predict

MEAN = tasks.Sampling(mode="mean")


@pytest.fixture(scope="module")
def model():
    return stemjax.load("demo")


@pytest.fixture(scope="module")
def section():
    slide, _ = drawing.draw_section(demo.LAW, seed=900, id="mine", patient=None, n_spots=24)
    return slide


def alone(slide):
    """The slide's image and spots, without a count."""
    return dataclasses.replace(
        slide, counts=sparse.csr_array((slide.n_spots, 0)), genes=(), measured=False
    )


@pytest.fixture(scope="module")
def records(section, tmp_path_factory):
    panel = genes.Panel(genes=demo.LAW.genes, rule="all", slides=())
    folder = tmp_path_factory.mktemp("records")
    return prepare.prepare(lambda _: section, ("mine",), folder, genes=panel)


@pytest.fixture(scope="module")
def usual(model, records):
    return predict.predict_slide(model, records, "mine", MEAN)


@pytest.mark.parametrize("measured", [True, False])
def test_it_is_predicted_as_from_records(model, section, usual, measured):
    slide = section if measured else alone(section)
    found = new_slide.predict_new_slide(model, slide, texture.TextureEncoder(), MEAN)
    assert_array_equal(found.X, usual.X)
    assert list(found.obs_names) == list(usual.obs_names)
    assert_array_equal(found.obsm["spatial"], usual.obsm["spatial"])
    assert ("stemjax_measured" in found.obs) == (not measured)
    if not measured:
        assert not found.obs["stemjax_measured"].any()


def test_records_of_an_image_alone(section, tmp_path, records):
    slide = dataclasses.replace(alone(section), id="alone")
    panel = genes.Panel(genes=demo.LAW.genes, rule="all", slides=())
    source = prepare.prepare(lambda _: slide, ("alone",), tmp_path, genes=panel, variants=1)
    table = source.load(["alone"])
    assert not source.slides["alone"].measured
    assert not table.mask.any()
    assert not table.counts.any()
    # The embeddings are those of the measured slide, of which there are eight.
    assert_array_equal(table.embeddings[:, 0], records.load(["mine"]).embeddings[:, 0])
    assert table.embeddings.shape[1] == 1
    assert records.slides["mine"].measured


def test_records_of_fewer_variants_are_no_records_of_more(section, tmp_path):
    panel = genes.Panel(genes=demo.LAW.genes, rule="all", slides=())
    args = {"genes": panel}
    prepare.prepare(lambda _: section, ("mine",), tmp_path, variants=2, **args)
    prepare.prepare(lambda _: section, ("mine",), tmp_path, variants=1, **args)  # there are enough
    with pytest.raises(errors.RecordsError, match="flips and turns were 2 and are 8"):
        prepare.prepare(lambda _: section, ("mine",), tmp_path, **args)


def test_nothing_is_scored_or_chosen_on_an_image_alone(model, section, tmp_path, usual):
    slide = alone(section)
    with pytest.raises(errors.GenePanelError, match="image alone"):
        prepare.prepare(lambda _: slide, ("mine",), tmp_path / "a", n_genes=5)
    panel = genes.Panel(genes=demo.LAW.genes, rule="all", slides=())
    source = prepare.prepare(lambda _: slide, ("mine",), tmp_path / "b", genes=panel, variants=1)
    with pytest.raises(errors.PredictionError, match="not measured"):
        evaluate.evaluate(usual, source)


def test_another_encoder_is_refused_before_a_patch_is_read(model, section):
    class Other(texture.TextureEncoder):
        @property
        def contract(self):
            return dataclasses.replace(texture.CONTRACT, revision="0")

        def encode(self, patches):
            raise AssertionError("it was asked to encode")

    for encoder in (Other(), no_image.NoImageEncoder()):
        with pytest.raises(errors.EncoderMismatchError):
            new_slide.predict_new_slide(model, section, encoder, MEAN)


def test_patches_of_another_scale_are_remarked(model, section):
    card = dataclasses.replace(model.card, patch_um=(224.0, 224.0))
    scaled = dataclasses.replace(model, card=card)
    slide = alone(section)
    encoder = texture.TextureEncoder()
    fine = new_slide.predict_new_slide(scaled, slide, encoder, MEAN)
    assert not fine.uns["stemjax"]["warnings"]
    half = dataclasses.replace(slide, mpp=0.5, spot_diameter_um=50.0)
    (warning,) = new_slide.predict_new_slide(scaled, half, encoder, MEAN).uns["stemjax"]["warnings"]
    assert "112 um" in warning
    assert "224 um" in warning


def test_embeddings_may_be_brought_along(model, section, usual):
    """An embedder's values are taken as they are, and its files are sources of the slide."""
    values = np.repeat(texture.TextureEncoder().encode(_patches(section))[:, :1], 1, 1)

    class Files:
        contract = texture.CONTRACT

        def embed(self, slide, *, variants, workers, progress):
            assert slide.sources["e.h5"] == "abc"
            assert variants == 1
            return values.astype(np.float16)

        def covered(self, slide):
            return dataclasses.replace(slide, sources={**slide.sources, "e.h5": "abc"})

    assert isinstance(Files(), embeddings.Embedder)
    found = new_slide.predict_new_slide(model, alone(section), Files(), MEAN)
    assert_array_equal(found.X, usual.X)


def _patches(slide):
    from stemjax.data import patches

    return patches.read_patches(slide, range(slide.n_spots), side=224, out_px=224)
