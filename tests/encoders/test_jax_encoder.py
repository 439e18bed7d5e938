"""Embedding with an encoder in JAX: variants, batches, devices, slides, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import made_weights
import numpy as np
import pytest
import scipy.sparse
import small_encoders as small

from stemjax import encoders, errors, mesh
from stemjax.data import embeddings, images, patches, slides
from stemjax.encoders import encoder as encoder_lib
from stemjax.encoders import registry
from stemjax.models.vit import network

SIDE = small.SIDE
# Two orders of the same float32 sums, magnified by a LayerNorm of small values.
ROUNDING = 1e-5
PUBLISHED = registry.resolve


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file of weights, and small encoders in the place of the published ones."""

    def resolve(name):
        entry = PUBLISHED(name)
        spec = small.spec(entry.name, entry.pooling)
        sizes = {"cls": 24, "mean": 24, "cls+mean": 48, "attention": 16}
        widths = {pooling: sizes[pooling] for pooling in entry.widths}
        return dataclasses.replace(entry, spec=spec, input_px=SIDE, widths=widths)

    monkeypatch.setattr(encoder_lib.registry, "resolve", resolve)
    return small.save(small.state("virchow2"), tmp_path / "virchow2.safetensors")


def make(weights, name="virchow2", devices=1, **more):
    more = {"dtype": "float32", "batch": 2} | more
    layout = mesh.make_layout(jax.devices()[:devices])
    return encoders.make_encoder(name, weights=weights, layout=layout, **more)


def some_slide(spots=5, mpp=1.0):
    """A slide of noise: no patch is another's, nor its own mirror image."""
    pixels = made_weights.pixels(1, 200)[0]
    xy = np.stack([40 + 23.0 * np.arange(spots), 60 + 13.0 * np.arange(spots)], axis=1)
    return slides.Slide(
        id="noise",
        patient=None,
        counts=scipy.sparse.csr_array(np.ones((spots, 1), np.int32)),
        genes=("G",),
        barcodes=tuple(f"s{i}" for i in range(spots)),
        array_xy=xy.astype(np.float32),
        pixel_xy=xy.astype(np.float32),
        image=images.ArrayImage(pixels),
        mpp=mpp,
        spot_diameter_um=20.0,
        sources={},
    )


def by_hand(encoder, turned):
    """Embeddings of patches [n s s 3], normalised in numpy, from the network itself."""
    mean, std = (
        np.array(values, np.float32) for values in (encoder.contract.mean, encoder.contract.std)
    )
    given = (turned.astype(np.float32) / 255 - mean) / std
    network_ = network.make_vit(encoder.spec)
    return np.asarray(network_.apply(jax.device_get(encoder.params), jnp.asarray(given)))


def test_variants_on_the_device_are_those_of_numpy():
    pixels = made_weights.pixels(3, 6)
    found = np.asarray(encoder_lib.turned(jnp.asarray(pixels), 8))
    for variant in range(8):
        for patch, turned in zip(pixels, found[variant], strict=True):
            np.testing.assert_array_equal(turned, embeddings.apply_variant(patch, variant))


def test_encode_gives_all_variants_normalised_as_the_contract_says(weights):
    encoder = make(weights)
    pixels = made_weights.pixels(3, SIDE)
    found = encoder.encode(pixels)
    assert found.shape == (3, 8, 48)
    assert found.dtype == np.float32
    for variant in range(8):
        turned = np.stack([embeddings.apply_variant(patch, variant) for patch in pixels])
        np.testing.assert_allclose(found[:, variant], by_hand(encoder, turned), atol=ROUNDING)
    assert np.abs(found[:, 1] - found[:, 0]).max() > 0.1


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_results_do_not_depend_on_the_batch_and_one_program_serves_all(batch, weights):
    pixels = made_weights.pixels(5, SIDE)
    wanted = make(weights, batch=5).encode(pixels)
    encoder = make(weights, batch=batch)
    np.testing.assert_allclose(encoder.encode(pixels), wanted, atol=ROUNDING)
    np.testing.assert_allclose(encoder.encode(pixels[:2]), wanted[:2], atol=ROUNDING)
    assert encoder.encode(pixels[:0]).shape == (0, 8, 48)
    assert encoder.programs == 1


def test_four_devices_give_what_one_gives(weights):
    pixels = made_weights.pixels(11, SIDE)
    one, four = make(weights, batch=4), make(weights, devices=4, batch=1)
    np.testing.assert_allclose(four.encode(pixels), one.encode(pixels), atol=ROUNDING)
    leaf = jax.tree.leaves(four.params)[0]
    assert len(leaf.sharding.device_set) == 4
    assert leaf.is_fully_replicated
    slide = some_slide()
    np.testing.assert_allclose(
        four.embed(slide).astype(np.float32), one.embed(slide).astype(np.float32), rtol=2e-3,
        atol=1e-3,  # a step of float16 near 1
    )  # fmt: skip


def test_a_slide_is_embedded_as_its_patches_are(weights):
    encoder = make(weights, fov_um=30.0)
    slide, told = some_slide(), []
    assert isinstance(encoder, embeddings.Embedder)
    found = patches.embed_slide(
        slide, encoder, variants=3, progress=lambda *words: told.append(words)
    )
    assert found.dtype == np.float16
    side = patches.patch_side_px(slide, encoder.contract)
    assert side == 30
    crops = patches.read_patches(slide, range(5), side=side, out_px=SIDE, resize="bicubic")
    np.testing.assert_allclose(found, encoder.encode(crops)[:, :3], rtol=2e-3, atol=1e-3)
    assert [words[:2] for words in told] == [(2, 5), (4, 5), (5, 5)]
    assert encoder.programs == 2  # of three variants, and of eight


def test_threads_change_no_number_and_an_error_ends_them(weights):
    encoder, slide = make(weights), some_slide()
    one = encoder.embed(slide, variants=2)
    np.testing.assert_array_equal(encoder.embed(slide, variants=2, workers=3), one)
    with pytest.raises(errors.ImageError, match="no image"):
        encoder.embed(dataclasses.replace(slide, image=None))


def test_the_next_batch_is_under_way_before_a_result_is_fetched(weights, monkeypatch):
    encoder, order = make(weights), []
    dispatch, fetched = encoder._dispatch, encoder_lib._fetched

    def dispatching(*given):
        order.append("dispatch")
        return dispatch(*given)

    def fetching(*given):
        order.append("fetch")
        return fetched(*given)

    monkeypatch.setattr(encoder, "_dispatch", dispatching)
    monkeypatch.setattr(encoder_lib, "_fetched", fetching)
    encoder.encode(made_weights.pixels(6, SIDE))
    assert order == ["dispatch", "dispatch", "fetch", "dispatch", "fetch", "fetch"]


def test_bfloat16_stays_near_float32(weights):
    pixels = made_weights.pixels(2, SIDE)
    exact, rounded = (
        make(weights, dtype=dtype).encode(pixels) for dtype in ("float32", "bfloat16")
    )
    # As in test_encoder_agreement: ten or so roundings of 2^-9.
    assert 1e-4 < np.abs(exact - rounded).max() / np.abs(exact).max() < 3e-2


def test_arithmetic_follows_the_device_unless_it_is_named(weights):
    assert make(weights, dtype=None).dtype == "float32"
    assert make(weights, dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(errors.ConfigError, match="bfloat16 or float32, found 'float16'"):
        make(weights, dtype="float16")


def test_the_contract_names_the_weights_and_the_field_of_view(weights, tmp_path):
    encoder = make(weights)
    contract = encoder.contract
    assert (contract.name, contract.source, contract.pooling) == ("virchow2", "stemjax", "cls+mean")
    assert contract.fov_um == 112.0
    assert make(weights, fov_um=None).contract.fov_um is None
    assert make(weights, fov_um=55.5).contract.fov_um == 55.5
    (source,) = encoder.sources(some_slide()).items()
    assert source[0] == "virchow2/virchow2.safetensors"
    assert contract.revision == f"sha256:{source[1][:16]}"
    changed = small.state("virchow2")
    changed["norm.bias"] = changed["norm.bias"] + np.float32(0.01)
    other = make(small.save(changed, tmp_path / "other.safetensors"))
    with pytest.raises(errors.EncoderMismatchError, match="revision"):
        other.contract.require_same(contract, where="here")


def test_poolings_and_conch_s_projection_are_options(weights, tmp_path):
    cls = make(weights, pooling="cls")
    pixels = made_weights.pixels(2, SIDE)
    both = make(weights).encode(pixels)
    np.testing.assert_allclose(cls.encode(pixels), both[..., :24], atol=ROUNDING)
    assert make(weights, name="virchow2-cls").contract.pooling == "cls"
    path = small.save(small.state("conch"), tmp_path / "conch.safetensors")
    plain, projected = (make(path, "conch", projection=p) for p in (None, "proj_contrast"))
    assert plain.contract.projection == "none"
    matrix = small.state("conch")["proj_contrast"]
    np.testing.assert_allclose(
        projected.encode(pixels), plain.encode(pixels) @ matrix, atol=ROUNDING
    )


def test_a_program_for_any_number_of_patches_and_any_platform(weights):
    encoder = make(weights, devices=2)
    run, side = encoders.as_program(encoder)
    (b,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(
        jax.ShapeDtypeStruct((b, side, side, 3), jnp.uint8)
    )
    assert exported.nr_devices == 1
    pixels = made_weights.pixels(3, SIDE)
    np.testing.assert_allclose(exported.call(pixels), encoder.encode(pixels)[:, 0], atol=ROUNDING)


def test_no_weights_no_network_and_no_sense_are_told_apart(weights):
    with pytest.raises(errors.ConfigError, match="no weights here") as caught:
        make(None, "uni")
    for part in ("MahmoodLab/UNI", "gated", "hf download", "--fetch"):
        assert part in str(caught.value)
    with pytest.raises(errors.CheckpointError, match="no such file"):
        make(weights.with_name("gone.safetensors"))
    with pytest.raises(errors.EncoderMismatchError, match="tensor"):
        make(weights, "h0_mini")
    for wrong in ({"batch": 0}, {"batch": -1}, {"fov_um": 0.0}, {"fov_um": float("nan")}):
        with pytest.raises(errors.ConfigError, match="batch|field of view"):
            make(weights, **wrong)
    with pytest.raises(errors.ConfigError, match="1 to 8"):
        make(weights).embed(some_slide(), variants=9)
    for bad in (made_weights.pixels(1, 16), made_weights.pixels(1, SIDE).astype(np.float32)):
        with pytest.raises(errors.ImageError, match=r"\(n, 24, 24, 3\)"):
            make(weights).encode(bad)


def test_an_encoder_known_by_files_alone_says_what_to_do():
    with pytest.raises(errors.ConfigError, match="TRIDENT or LazySlide.*--embeddings"):
        encoders.make_encoder("ctranspath", weights="w.pth")
