"""Slides without an image: zeros for embeddings, and records that say so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import small_slides as made

from stemjax import errors
from stemjax.data import embeddings, no_image, patches, prepare, records, texture

NAMES = tuple(f"G{i}" for i in range(30))


class Unreadable:
    """An image that fails as soon as its pixels are asked for."""

    width, height, source = 400, 260, "broken.jpg"

    def read(self, x, y, width, height):
        raise errors.ImageError("broken.jpg is damaged")


def test_the_encoder_is_found_by_name_and_looks_at_nothing():
    encoder = embeddings.get_encoder("none")
    assert encoder.contract == no_image.CONTRACT
    crops = np.random.default_rng(0).integers(0, 256, (3, 1, 1, 3), np.uint8)
    np.testing.assert_array_equal(encoder.encode(crops), np.zeros((3, 8, 1)))
    again = embeddings.EncoderContract.from_json(encoder.contract.to_json())
    assert again == encoder.contract
    with pytest.raises(errors.EncoderMismatchError, match="'texture' and 'none'"):
        texture.CONTRACT.require_same(encoder.contract, where="here")


@pytest.mark.parametrize("image", [None, Unreadable()])
def test_no_pixel_is_read(image):
    slide = dataclasses.replace(made.make_slide("A1"), image=image)
    found = patches.embed_slide(slide, no_image.NoImageEncoder(), workers=2)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, np.zeros((12, embeddings.N_VARIANTS, 1)))
    with pytest.raises(errors.ImageError):
        patches.embed_slide(slide, texture.TextureEncoder())


def test_slides_with_and_without_an_image_are_prepared_together(tmp_path):
    slides = {
        name: made.make_slide(name, n=6, names=NAMES, image=name == "B") for name in ("A", "B")
    }
    written = prepare.prepare(slides.__getitem__, ("A", "B"), tmp_path, n_genes=4, encoder="none")
    assert [info.patch_um for info in written.slides.values()] == [0.0, 0.0]
    # Zeros are what this encoder says, not what a failed patch leaves.
    assert [info.notes for info in written.slides.values()] == [(), ()]
    assert written.slides["A"].thumbnail_scale is None
    assert written.thumbnail("B")[0].shape == (260, 300, 3)
    table = written.load(["A", "B"])
    assert table.embeddings.shape == (12, 8, 1)
    assert not table.embeddings.any()
    columns = [NAMES.index(gene) for gene in written.genes]
    np.testing.assert_array_equal(table.counts[:6], slides["A"].counts.toarray()[:, columns])


def test_records_of_another_encoder_do_not_mix_in(tmp_path):
    slide = made.make_slide("A", n=6, names=NAMES, image=True)
    prepare.prepare(lambda _: slide, ("A",), tmp_path / "none", n_genes=4, encoder="none")
    with pytest.raises(errors.RecordsError, match="records of another encoder"):
        prepare.prepare(lambda _: slide, ("A",), tmp_path / "none", n_genes=4)
    other = dataclasses.replace(slide, id="B")
    prepare.prepare(lambda _: other, ("B",), tmp_path / "texture", n_genes=4)
    with pytest.raises(errors.EncoderMismatchError, match="field 'name'"):
        records.open_records(tmp_path / "none", tmp_path / "texture")
