"""An embedding is what its encoder, its patches and its pooling are; a width is no proof of it."""

import dataclasses
import pathlib

import embedded_slide as made
import pytest

from stemjax import errors
from stemjax.data import embedding_files
from stemjax.data.embedding_files import Wanted, contract_for

GOLDEN = pathlib.Path(__file__).parent / "golden"
SLIDE = made.make_slide()
POOLINGS = {  # name: pooling -> width; resnet50's are of UNI's width, as in TRIDENT
    "uni": {"cls": 1024},
    "resnet50": {"mean of layer 3": 1024},
    "h0_mini": {"cls": 768, "cls+mean": 1536},
    "conch": {"attention": 512},
    "gigapath": {"cls": 1536},
}
ALIASES = {"uni_v1": "uni", "UNI": "uni", "h0-mini": "h0_mini", "conch_v1": "conch"}


def known(name, *, patch_um, source, revision, pooling, projection, width):
    """A small registry, that speaks as the real one."""
    name = ALIASES.get(name, name)
    if name not in POOLINGS:
        raise errors.ConfigError(f"no encoder is called {name!r}", fix="Did you mean 'uni'?")
    widths = POOLINGS[name]
    pooling = pooling or next((one for one in widths if widths[one] == width), next(iter(widths)))
    if width not in (None, widths[pooling]):
        raise errors.EncoderMismatchError(
            f"{name!r} has no such width", expected=str(widths[pooling]), found=str(width)
        )
    crop = 224 / 256 if name == "gigapath" else 1
    return dataclasses.replace(
        made.CONTRACT,
        name=name,
        width=widths[pooling],
        fov_um=None if patch_um is None else patch_um * crop,
        pooling=pooling,
        projection=projection or "none",
        source=source,
        revision=revision,
    )


def make_file(name="trident.h5", *, width=1024, **changes):
    file = embedding_files.read(GOLDEN / name)
    return dataclasses.replace(file, shape=(*file.shape[:2], width), **changes)


def settle(file, slide=SLIDE, **wanted):
    return contract_for(file, slide, Wanted(known=known, **wanted))


def refused(match, file, slide=SLIDE, error=errors.EncoderMismatchError, **wanted):
    with pytest.raises(error, match=match) as caught:
        settle(file, slide, **wanted)
    assert file.path.name in caught.value.what
    return caught.value


def test_trident_says_it_all():
    settled = settle(make_file())
    assert settled.notes == ()
    assert settled.contract == dataclasses.replace(
        made.CONTRACT,
        name="uni",
        width=1024,
        fov_um=128.0,
        source="trident",
        revision="as in file",
    )
    assert settle(make_file(), encoder="UNI").contract == settled.contract


def test_field_of_view_is_measured_on_the_slide():
    file = make_file()  # 256 px at 20x: nominally 128 um
    assert contract_for(file, None, Wanted(known=known)).contract.fov_um == 128
    for mpp, fov in ((0.5, 128.0), (0.46, 117.76), (0.33, 84.48)):
        assert settle(file, made.make_slide(mpp=mpp)).contract.fov_um == pytest.approx(fov)
    # What the network sees of a patch: GigaPath cuts the middle 224 of 256.
    cropped = make_file(width=1536, stated={"name": "gigapath"})
    assert settle(cropped).contract.fov_um == 112


def test_wrong_pixel_size():
    file = make_file()
    for mpp in (0.25, 1.0):  # 40x and 10x slides, by a file that was told 20x
        error = refused("size of a pixel", file, made.make_slide(mpp=mpp), errors.PixelSizeError)
        assert "about 128 um" in error.expected
    stated = make_file(mpp=0.5)
    settle(stated, made.make_slide(mpp=0.51))
    error = refused("size of a pixel", stated, made.make_slide(mpp=0.46), errors.PixelSizeError)
    assert (error.expected, error.found) == ("0.46 um, as the slide", "0.5 um")


def test_a_stated_field_of_view():
    file = make_file()
    slide = made.make_slide(mpp=0.46)  # 117.8 um
    assert settle(file, slide, fov_um=120.0).contract.fov_um == 120
    error = refused("another piece of tissue", file, slide, fov_um=128.0)
    assert error.found == "117.8 um"
    settled = settle(file, slide, fov_um=128.0, allow_fov_mismatch=True)
    assert settled.contract.fov_um == 128
    assert settled.notes == ("patches of trident.h5 are 117.8 um wide, not 128 um",)
    # CLAM states no magnification: without a slide nothing says how wide a patch is.
    clam = make_file("clam.h5")
    refused("how much tissue", clam, None, encoder="uni")
    assert contract_for(clam, None, Wanted(encoder="uni", fov_um=128.0)).contract.fov_um == 128
    assert settle(clam, encoder="uni").contract.fov_um == 128
    # Stem's rule is None, and nothing else.
    stem = make_file("processed_data/1spot_uni_ebd/G1_uni.pt", stated={"name": "uni"})
    assert settle(stem).contract.fov_um is None
    refused("published rule", stem, fov_um=112.0)


@pytest.mark.parametrize("name", ["hest.h5", "clam.h5"])
def test_a_file_without_a_name_asks_for_one(name):
    assert "encoder=" in refused("which encoder", make_file(name)).fix
    assert settle(make_file(name), encoder="uni_v1").contract.name == "uni"
    # A mere name in obsm is a hint: without a registry it will do, with one only if known.
    cells = make_file("anndata.h5", fov_um=112.0)
    assert settle(cells).contract.name == "uni"
    strange = dataclasses.replace(cells, guess="features")
    assert "'features'" in refused("which encoder", strange).what
    assert contract_for(strange, SLIDE).contract.name == "features"
    assert settle(strange, encoder="uni").contract.name == "uni"


def test_same_width_other_encoder():
    # resnet50 of TRIDENT and UNI both give 1,024.
    file = make_file(stated={"name": "resnet50"})
    error = refused("another encoder than is asked for", file, encoder="uni")
    assert (error.expected, error.found) == (
        "the encoder 'uni'",
        "'resnet50' by its own account, 1024 features",
    )
    ours, theirs = settle(make_file()).contract, settle(file).contract
    with pytest.raises(errors.EncoderMismatchError, match="field 'name'"):
        theirs.require_same(ours, where="here")
    # Without a registry the spelling decides.
    with pytest.raises(errors.EncoderMismatchError, match="another encoder"):
        contract_for(file, SLIDE, Wanted(encoder="uni"))
    contract_for(file, SLIDE, Wanted(encoder="ResNet-50"))


def test_same_width_other_projection():
    trident = settle(make_file(width=512, stated={"name": "conch_v1"})).contract
    said = {"name": "conch", "projection": "proj_contrast"}
    lazyslide = settle(make_file(width=512, stated=said)).contract
    assert trident.width == lazyslide.width
    with pytest.raises(errors.EncoderMismatchError, match="field 'projection'"):
        lazyslide.require_same(trident, where="here")


def test_same_encoder_other_pooling():
    short = settle(make_file(width=768, stated={"name": "h0-mini"})).contract
    long = settle(make_file(width=1536, stated={"name": "h0-mini"})).contract
    assert (short.pooling, long.pooling) == ("cls", "cls+mean")
    with pytest.raises(errors.EncoderMismatchError, match="field 'width'"):
        long.require_same(short, where="here")
    assert "768" in refused("no such width", make_file(width=1000), encoder="h0-mini").expected


def test_an_encoder_of_ones_own():
    file = make_file("hest.h5", width=40)
    with pytest.raises(errors.ConfigError, match="'mine'"):
        settle(file, encoder="mine")
    settled = contract_for(file, SLIDE, Wanted(encoder="mine", known=lambda name, **_: None))
    assert (settled.contract.name, settled.contract.pooling) == ("mine", "as in file")
    assert "nothing is known of the encoder 'mine'" in settled.notes[0]
    whole = dataclasses.replace(made.CONTRACT, name="mine", width=40)
    assert settle(file, encoder=whole).contract == whole
    refused("width is not that", make_file("hest.h5", width=41), encoder=whole)
    # Its field of view is what the network sees: of a patch of 128 um, GigaPath's is 112 um.
    seen = dataclasses.replace(made.CONTRACT, name="gigapath", width=1536, fov_um=112.0)
    tiles = make_file(width=1536, stated={"name": "gigapath"})
    assert settle(tiles, encoder=seen).contract == seen
    refused("another piece", tiles, encoder=dataclasses.replace(seen, fov_um=128.0))
    # TRIDENT calls it what its author did; no registry knows, so the user's word stands.
    custom = make_file(stated={"name": "custom_encoder"})
    assert settle(custom, encoder="uni").contract.name == "uni"
    assert settle(custom).contract.name == "custom_encoder"


def test_fields_over_what_is_known():
    settled = settle(make_file(), fields={"revision": "a1", "pooling": "cls"})
    assert settled.contract.revision == "a1"
    with pytest.raises(errors.EncoderMismatchError, match="width"):
        Wanted(fields={"width": 3})


def test_our_own_file_brings_its_contract():
    file = embedding_files.read(GOLDEN / "stemjax.h5")
    for encoder in (None, "UNI", made.CONTRACT):
        wanted = Wanted(encoder=encoder, known=known if encoder is None else None)
        assert contract_for(file, SLIDE, wanted).contract == made.CONTRACT
    other = dataclasses.replace(made.CONTRACT, pooling="mean")
    with pytest.raises(errors.EncoderMismatchError, match="field 'pooling'"):
        contract_for(file, SLIDE, Wanted(encoder=other))
    with pytest.raises(errors.EncoderMismatchError, match="another encoder"):
        contract_for(file, SLIDE, Wanted(encoder="virchow"))
    with pytest.raises(errors.PixelSizeError):
        contract_for(file, made.make_slide(mpp=0.25))


def test_encoders_side_by_side():
    file = make_file(
        "processed_data/1spot_uni_ebd/G1_uni.pt",
        width=1536,
        stated={"name": "uni+conch", "widths": (1024, 512)},
    )
    contract = settle(file).contract
    assert (contract.name, contract.width) == ("uni+conch", 1536)
    assert (contract.pooling, contract.projection) == ("cls+attention", "none+none")
    assert len(contract.mean) == 6
    wrong = dataclasses.replace(file, stated={"name": "uni+conch", "widths": (512, 1024)})
    refused("no such width", wrong)
