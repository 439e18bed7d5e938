"""Which pixels a patch holds, and that embeddings depend on nothing but them."""

import dataclasses
import threading

import numpy as np
import pytest
from joblib.externals import loky
from numpy.testing import assert_array_equal
from scipy import sparse

from stemjax import errors
from stemjax.data import embeddings, images, patches, slides, texture

SIZE = 700


@pytest.fixture(scope="module", autouse=True)
def _workers_end():
    yield
    loky.get_reusable_executor().shutdown(wait=True)


class LockedImage(images.ArrayImage):
    """Cannot be sent to another process, counts what is read, and may be damaged."""

    def __init__(self, pixels, *, fails_after=10**9):
        super().__init__(pixels)
        self.lock = threading.Lock()
        self.reads = 0
        self.fails_after = fails_after

    def read(self, x, y, width, height):
        if self.reads == self.fails_after:
            raise errors.ImageError("broken.jpg is damaged")
        self.reads += 1
        return super().read(x, y, width, height)


@dataclasses.dataclass(frozen=True)
class MeanColour:
    """Mean colour in 0..1 as an embedding of width 3; the rest plants faults."""

    input_px: int = 224
    scale: float = 1.0
    width: int = 3
    bad_above: float = 2.0

    @property
    def contract(self):
        return dataclasses.replace(
            texture.CONTRACT, name="mean_colour", width=self.width, input_px=self.input_px
        )

    def encode(self, patches):
        assert patches.shape[1:] == (self.input_px, self.input_px, 3)
        mean = patches.mean((1, 2)).astype(np.float32)[:, None] / 255
        mean = np.where(mean[..., :1] > self.bad_above, np.nan, mean)
        return np.repeat(mean * np.float32(self.scale), embeddings.N_VARIANTS, 1)


def coordinates():
    """An image whose red is the column and green the row, both modulo 251; blue is the 251s."""
    row, column = np.mgrid[:SIZE, :SIZE]
    return np.stack([column % 251, row % 251, column // 251 * 10 + row // 251], 2).astype(np.uint8)


def make_slide(image, centres, *, diameter_um=100.0):
    n = len(centres)
    return slides.Slide(
        id="S1",
        patient="p",
        counts=sparse.csr_array(np.ones((n, 2), np.int32)),
        genes=("A", "B"),
        barcodes=tuple(f"bc{i}" for i in range(n)),
        array_xy=np.stack([np.arange(n), np.zeros(n)], 1).astype(np.float32),
        pixel_xy=np.asarray(centres, np.float32),
        image=image,
        mpp=0.69,
        spot_diameter_um=diameter_um,
        sources={},
    )


def ramp_slide(n=7):
    """Spots along an image that brightens to the right, so that each patch has its own mean."""
    ramp = np.broadcast_to(np.arange(SIZE)[None, :, None] // 3, (SIZE, SIZE, 3)).astype(np.uint8)
    return make_slide(images.ArrayImage(ramp), [(120 + 70 * i, 300) for i in range(n)])


@pytest.mark.parametrize(("diameter_um", "side"), [(55.0, 224), (100.0, 224), (200.0, 290)])
def test_side_is_the_published_rule(diameter_um, side):
    slide = make_slide(None, [(10, 10)], diameter_um=diameter_um)
    assert patches.patch_side_px(slide) == side  # 200 um / .69 = 289.9 px


@pytest.mark.parametrize(
    ("centre", "left", "top"),
    [((300, 400), 188, 288), ((300.4, 400.4), 188, 288), ((300.6, 399.5), 189, 288)],
)
def test_patch_holds_the_pixels_around_the_centre(centre, left, top):
    pixels = coordinates()
    slide = make_slide(images.ArrayImage(pixels), [(350, 350), centre])
    (patch,) = patches.read_patches(slide, [1], side=224, out_px=224)
    assert_array_equal(patch, pixels[top : top + 224, left : left + 224])


def test_rows_come_in_the_order_asked_for():
    slide = ramp_slide()
    forth = patches.read_patches(slide, [0, 3, 5], side=224, out_px=224)
    back = patches.read_patches(slide, np.array([5, 3, 0]), side=224, out_px=224)
    assert_array_equal(back[::-1], forth)
    assert forth[0].mean() < forth[1].mean() < forth[2].mean()


def test_beyond_the_image_is_white():
    pixels = coordinates()
    slide = make_slide(images.ArrayImage(pixels), [(10, 690), (350, 350)])
    (patch,) = patches.read_patches(slide, [0], side=224, out_px=224)
    # The square starts at column 10 - 112 = -102 and row 690 - 112 = 578.
    assert (patch[:, :102] == 255).all()
    assert (patch[122:] == 255).all()
    assert_array_equal(patch[:122, 102:], pixels[578:, :122])


def test_resampling_keeps_a_ramp():
    row, column = np.mgrid[:SIZE, :SIZE]
    pixels = np.stack([column // 3, row // 3, (row + column) // 6], 2).astype(np.uint8)
    slide = make_slide(images.ArrayImage(pixels), [(350, 350)])
    (patch,) = patches.read_patches(slide, [0], side=448, out_px=224)
    # Output pixel i covers columns 126 + 2i and 127 + 2i, so its centre is 126.5 + 2i.
    middle = (126.5 + 2 * np.arange(224)) / 3
    inner = slice(6, -6)  # the kernel reaches 6 pixels and is cut at the border
    # Rounding down to grey levels takes 1/3 on average, rounding of the result 1/2.
    assert np.abs(patch[100, inner, 0] - middle[inner]).max() <= 1
    assert np.abs(patch[inner, 100, 1] - middle[inner]).max() <= 1
    assert np.abs(patch[inner, inner, 2][10] - (middle[16] + middle[inner]) / 2).max() <= 1


def test_resampling_is_lanczos():
    pixels = np.full((SIZE, SIZE, 3), 100, np.uint8)
    pixels[:, 350:] = 200
    slide = make_slide(images.ArrayImage(pixels), [(350, 350)])
    (patch,) = patches.read_patches(slide, [0], side=224, out_px=448)
    # Beside a step Lanczos overshoots; nearest, box and bilinear resampling cannot.
    assert patch.max() > 205
    assert patch.min() < 95


def test_embeddings_follow_the_barcodes(monkeypatch):
    monkeypatch.setattr(patches, "CHUNK", 3)
    slide = ramp_slide(7)
    got = patches.embed_slide(slide, MeanColour())
    # The mean column of a patch is its centre less half a pixel; grey is a third, less 1/3.
    grey = ((slide.pixel_xy[:, 0] - 0.5) / 3 - 1 / 3) / 255
    assert got.shape == (7, 8, 3)
    assert got.dtype == np.float16
    # float16 rounds .5 to .00025; the ramp's steps of 3 columns to .01 grey levels.
    np.testing.assert_allclose(got[:, 5, 1], grey, atol=5e-4)


def test_patches_have_the_encoders_size():
    slide = ramp_slide(2)
    np.testing.assert_allclose(
        patches.embed_slide(slide, MeanColour(input_px=112)),
        patches.embed_slide(slide, MeanColour()),
        atol=0.5 / 255,  # rounding to grey levels
    )


def test_workers_and_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    image = LockedImage(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))
    slide = make_slide(image, rng.uniform(0, SIZE, (7, 2)))
    encoder = texture.TextureEncoder()
    alone = patches.embed_slide(slide, encoder)
    monkeypatch.setattr(patches, "CHUNK", 2)
    assert_array_equal(patches.embed_slide(slide, encoder), alone)
    # The image has a lock, which cannot be sent: pixels are read here.
    assert_array_equal(patches.embed_slide(slide, encoder, workers=2), alone)
    assert image.reads == 3 * 7


def test_progress_and_memory(monkeypatch):
    monkeypatch.setattr(patches, "CHUNK", 3)
    image = LockedImage(coordinates())
    slide = make_slide(image, [(200 + 40 * i, 300) for i in range(7)])
    seen = []
    patches.embed_slide(
        slide, MeanColour(), progress=lambda done, total, what: seen.append((done, image.reads))
    )
    # When 3 spots are done no more than 3 have been read: nothing piles up.
    assert seen == [(3, 3), (6, 6), (7, 7)]


@pytest.mark.parametrize("workers", [1, 2])
def test_image_that_fails_late(monkeypatch, workers):
    monkeypatch.setattr(patches, "CHUNK", 1)
    image = LockedImage(coordinates(), fails_after=8)
    slide = make_slide(image, [(200 + 20 * i, 300) for i in range(12)])
    with pytest.raises(errors.ImageError, match=r"broken\.jpg"):
        patches.embed_slide(slide, MeanColour(), workers=workers)


def test_slide_without_image():
    slide = make_slide(None, [(10, 10)])
    for call in (
        lambda: patches.embed_slide(slide, MeanColour()),
        lambda: patches.read_patches(slide, [0], side=224, out_px=224),
    ):
        with pytest.raises(errors.ImageError, match="image or embeddings") as caught:
            call()
        assert "'S1'" in str(caught.value)


@pytest.mark.parametrize("workers", [1, 2])
def test_nan_is_named_by_barcode(monkeypatch, workers):
    monkeypatch.setattr(patches, "CHUNK", 3)
    # Spots 5 and 6 are the brightest: their means are about 156 and 179 of 255.
    with pytest.raises(errors.ImageError, match=r"spots bc5, bc6\b") as caught:
        patches.embed_slide(ramp_slide(7), MeanColour(bad_above=0.6), workers=workers)
    assert caught.value.found == "2 such spots of 7"
    assert "'S1'" in str(caught.value)


def test_too_large_for_float16():
    with pytest.raises(errors.ImageError, match="65,504"):
        patches.embed_slide(ramp_slide(2), MeanColour(scale=1e6))


def test_encoder_that_breaks_its_contract():
    with pytest.raises(errors.EncoderMismatchError, match="mean_colour") as caught:
        patches.embed_slide(ramp_slide(2), MeanColour(width=4))
    assert caught.value.expected == "embeddings of shape (2, 8, 4)"
    assert caught.value.found == "(2, 8, 3)"


def test_no_worker():
    with pytest.raises(errors.ConfigError, match="workers") as caught:
        patches.embed_slide(ramp_slide(2), MeanColour(), workers=0)
    assert caught.value.found == "0"


def test_a_field_of_view_decides_the_side():
    slide = make_slide(images.ArrayImage(coordinates()), [(350, 350)])
    wide = dataclasses.replace(texture.CONTRACT, fov_um=300.0 * slide.mpp, input_px=100)
    assert patches.patch_side_px(slide, wide) == 300
    assert patches.patch_side_px(slide, texture.CONTRACT) == patches.patch_side_px(slide)


@pytest.mark.parametrize("resize", list(patches.FILTERS))
def test_patches_are_brought_to_size_by_the_contract_s_filter(resize):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    slide = make_slide(images.ArrayImage(pixels), [(350, 350)])
    got = patches.read_patches(slide, [0], side=64, out_px=24, resize=resize)[0]
    filter_ = getattr(Image.Resampling, resize.upper())
    expected = Image.fromarray(pixels[318:382, 318:382]).resize((24, 24), filter_)
    assert_array_equal(got, np.asarray(expected))
    with pytest.raises(errors.EncoderMismatchError, match="nearest"):
        patches.read_patches(slide, [0], side=64, out_px=24, resize="nearest")


@pytest.mark.parametrize(("batch", "workers"), [(3, 1), (4, 3), (50, 2)])
def test_batches_are_the_slide_in_order(batch, workers):
    slide = ramp_slide(8)
    contract = dataclasses.replace(texture.CONTRACT, input_px=32)
    batches = list(patches.patch_batches(slide, contract, batch=batch, workers=workers))
    assert [row for rows, _ in batches for row in rows] == list(range(8))
    assert max(len(rows) for rows, _ in batches) <= batch
    side = patches.patch_side_px(slide)
    whole = patches.read_patches(slide, range(8), side=side, out_px=32)
    assert_array_equal(np.concatenate([pixels for _, pixels in batches]), whole)


def test_only_so_many_batches_wait():
    image = LockedImage(coordinates())
    slide = make_slide(image, [(350, 350)] * 40)
    reading = patches.patch_batches(slide, texture.CONTRACT, batch=2, workers=1, ahead=2)
    next(reading)
    reading.close()
    assert image.reads <= 2 * (1 + 2 + 1)


def test_a_damaged_image_ends_the_batches():
    image = LockedImage(coordinates(), fails_after=5)
    slide = make_slide(image, [(350, 350)] * 12)
    with pytest.raises(errors.ImageError, match="damaged"):
        list(patches.patch_batches(slide, texture.CONTRACT, batch=2, workers=1))


def test_as_many_variants_as_are_asked_for():
    slide = ramp_slide(3)
    every = patches.embed_slide(slide, MeanColour())
    assert_array_equal(patches.embed_slide(slide, MeanColour(), variants=2), every[:, :2])
    for wrong in (0, 9):
        with pytest.raises(errors.ConfigError, match="variants"):
            patches.embed_slide(slide, MeanColour(), variants=wrong)
