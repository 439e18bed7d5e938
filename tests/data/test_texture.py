"""Features of drawn patches, whose colours, nuclei and fibres are known, and of real ones."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from skimage import color, feature

from stemjax import errors
from stemjax.data import embeddings, images, texture

PINK, PURPLE = (228, 178, 205), (92, 60, 130)
ENCODER = texture.TextureEncoder()
ROW, COLUMN = np.mgrid[:224, :224]


def flat(colour):
    return np.full((224, 224, 3), colour, np.uint8)


def drawn(nuclei, *, axes=(10, 10)):
    """Pink stroma with dark ellipses of half axes (rows, columns) at those (row, column)."""
    patch = flat(PINK)
    for row, column in nuclei:
        patch[((ROW - row) / axes[0]) ** 2 + ((COLUMN - column) / axes[1]) ** 2 <= 1] = PURPLE
    return patch


def tissue(seed):
    """A patch without symmetry: stroma, an empty corner, nuclei of several sizes, noise."""
    rng = np.random.default_rng(seed)
    patch = flat(PINK).astype(np.float64)
    patch[rng.uniform(30, 140) > ROW + 0.5 * COLUMN] = 244
    for _ in range(60):
        row, column = rng.uniform(0, 224, 2)
        a, b = rng.uniform(3, 12, 2)
        patch[((ROW - row) / a) ** 2 + ((COLUMN - column) / b) ** 2 <= 1] = PURPLE
    patch = ndimage.gaussian_filter(patch, (1, 1, 0)) + rng.normal(0, 6, patch.shape)
    return np.clip(np.rint(patch), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("variant", range(8))
def test_variant_is_the_encoding_of_the_turned_patch(variant):
    patches = np.stack([tissue(seed) for seed in range(3)])
    turned = np.stack([embeddings.apply_variant(patch, variant) for patch in patches])
    derived, encoded = ENCODER.encode(patches)[:, variant], ENCODER.encode(turned)[:, 0]
    # Masks and patterns are exact; what float32 sums and filters round in another order is 1e-5.
    np.testing.assert_allclose(derived, encoded, rtol=0, atol=2e-5)


def test_quadrants_move_with_the_patch():
    patch = flat(PINK)
    patch[20:90, 30:80] = PURPLE  # upper left
    codes = ENCODER.encode(patch[None])[0]
    nuclei = codes[:, -4:].reshape(8, 2, 2)
    # A quarter turn against the clock takes upper left to lower left, and so on.
    corner = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 1), (0, 0), (1, 0), (1, 1)]
    for variant, place in enumerate(corner):
        expected = np.zeros((2, 2))
        expected[place] = np.sqrt(70 * 50 / 112**2)
        # The exact blur of the mask moves its border by part of a pixel of 2.
        np.testing.assert_allclose(nuclei[variant], expected, atol=0.03)
    np.testing.assert_array_equal(codes[:, :-16], np.broadcast_to(codes[0, :-16], (8, 220)))


def test_stains_agree_with_skimage():
    colours = np.array([PINK, PURPLE, (255, 255, 255), (10, 200, 90)], np.uint8)
    for colour in colours:
        ours = texture.measure(flat(colour))["mean"].reshape(5, 3)
        # skimage divides the logarithm by log(1e-6), that is by 6 in decimal logarithms.
        theirs = 6 * color.rgb2hed((colour[None, None] + 1.0) / 256)[0, 0, :2]
        # Densities are rounded to 1/2048; the largest sum of weights of a stain is 3.5.
        assert np.abs(ours[3:] - np.maximum(theirs, 0)[:, None])[theirs > 0].max(initial=0) < 2e-3
        np.testing.assert_allclose(ours[:3, 1], -np.log10((colour + 1.0) / 256), atol=5e-4)
        # A flat patch has the same mean in disc, ring and corners.
        np.testing.assert_allclose(ours, ours[:, :1] * np.ones(3), atol=1e-6)


def test_regions_are_disc_ring_and_corners():
    distance = np.hypot(ROW - 111.5, COLUMN - 111.5)
    areas = []
    for inner, outer in ((0, 72), (72, 112), (112, 200)):
        patch = flat((255, 255, 255))
        patch[(distance > inner) & (distance <= outer)] = (0, 0, 0)
        areas.append(texture.measure(patch)["mean"].reshape(5, 3)[0] / np.log10(256))
    # Each picture darkens its own region and no other, but for blocks of 2 x 2 that a circle cuts.
    np.testing.assert_allclose(areas, np.eye(3), atol=0.03)


@pytest.mark.parametrize("count", [3, 12])
def test_nuclei_are_counted_and_measured(count):
    places = [(24 + 58 * (i // 4), 24 + 58 * (i % 4)) for i in range(count)]
    groups = texture.measure(drawn(places))
    nuclei = groups["nuclei"]
    assert np.expm1(nuclei[0]) == pytest.approx(count)
    central = sum(np.hypot(r - 111.5, c - 111.5) < 72 for r, c in places)
    assert np.expm1(nuclei[1]) == pytest.approx(central)
    # Radius 10 px is 5 at half resolution; the border of the mask is good to half a pixel.
    assert np.exp(nuclei[2] / 2) == pytest.approx(5 * np.sqrt(np.pi), abs=0.5 * np.sqrt(np.pi))
    # Pixels cut a disc of radius 5 unevenly, by half a pixel along one diagonal.
    assert nuclei[9] == pytest.approx(1.0, abs=0.1)
    assert groups["blobs"][5] ** 2 == pytest.approx(count)  # the largest of the three sizes
    # Haematoxylin within: the flat dark colour's own, less the blurred border.
    full = texture.measure(flat(PURPLE))["mean"][9]
    assert 0.85 * full < nuclei[12] <= full


def test_long_nuclei_are_long():
    places = [(40 + 48 * i, 60 + 100 * j) for i in range(4) for j in range(2)]
    for axes in ((8, 20), (20, 8)):
        nuclei = texture.measure(drawn(places, axes=axes))["nuclei"]
        # Square root of the ratio of the variances along both axes: 8 / 20.
        assert nuclei[9] == pytest.approx(0.4, abs=0.05)


def test_cover_of_empty_and_of_stroma():
    patch = flat(PINK)
    patch[:, :112] = 250
    background, lumen, nuclei, stroma = texture.measure(patch)["cover"].reshape(7, 3)[:4, 0] ** 2
    assert background == pytest.approx(0.5, abs=0.01)
    # Lumen is what is empty over 9 pixels, up to the border's own 4 of the disc's 72.
    assert 0.5 - 4 / 56 < lumen < background
    assert nuclei == 0
    assert stroma == pytest.approx(0.5, abs=0.01)


def test_fibres_are_coherent():
    stripes = np.where(np.sin((ROW + 0.3 * COLUMN) / 4) > 0, 230, 120).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 2, (56, 56)).repeat(4, 0).repeat(4, 1)
    parallel = texture.measure(np.repeat(stripes[..., None], 3, 2))["fibres"].reshape(6, 3)
    blocks = (120 + 110 * noise).astype(np.uint8)
    random = texture.measure(np.repeat(blocks[..., None], 3, 2))["fibres"].reshape(6, 3)
    assert parallel[:3, 1].min() > 0.95  # brightness: one direction
    # Over the widest window (8 pixels, about 4 blocks of 2) directions cancel.
    assert random[2, 1] < 0.3


def test_detail_finds_the_scale():
    def band(period):
        wave = 175 + 50 * np.sin(2 * np.pi * COLUMN / period)
        patch = np.repeat(np.rint(wave).astype(np.uint8)[..., None], 3, 2)
        return int(np.argmax(texture.measure(patch)["detail"].reshape(6, 3)[:, 0]))

    # A difference of Gaussians s, t of a wave of w radians a pixel weighs
    # exp(-s^2 w^2 / 2) - exp(-t^2 w^2 / 2); w = 4 pi / period at half resolution.
    for period in (8, 16, 32, 64):
        scales = np.array([0, 1, 1.6, 2.5, 4, 6.4, 10])
        passed = np.exp(-((scales * 4 * np.pi / period) ** 2) / 2)
        assert band(period) == int(np.argmax(passed[:-1] - passed[1:]))


def test_patterns_agree_with_skimage():
    # Along constant rows skimage's interpolated diagonals compare as our pixels do.
    profile = np.random.default_rng(1).permutation(112) + 60
    grey = np.broadcast_to(profile, (112, 112)).astype(np.uint8)
    patch = np.repeat(grey.repeat(2, 0).repeat(2, 1)[..., None], 3, 2)
    ours = texture.measure(patch)["pattern"][:10] ** 2
    theirs = feature.local_binary_pattern(grey, 8, 1, "uniform")[1:-1, 1:-1]
    np.testing.assert_allclose(ours, np.bincount(theirs.astype(int).ravel(), minlength=10) / 110**2)


def test_patterns_of_flat_and_chequered():
    every = np.zeros((3, 10))
    every[:, 8] = 1  # no neighbour is darker
    np.testing.assert_array_equal(texture.measure(flat(PINK))["pattern"].reshape(3, 10), every)
    board = np.where((ROW // 2 + COLUMN // 2) % 2, 200, 100).astype(np.uint8)
    shares = texture.measure(np.repeat(board[..., None], 3, 2))["pattern"].reshape(3, 10) ** 2
    # Radius 1: around a bright square four neighbours in turn are darker, around a dark one none.
    np.testing.assert_allclose(shares[0], [0, 0, 0, 0, 0, 0, 0, 0, 0.5, 0.5])
    # Radius 2: on the axes and diagonals (2, 0), (1, 1) all squares have the centre's colour.
    np.testing.assert_allclose(shares[1], every[1])


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (128, 128, 128), (255, 0, 0)])
def test_blank_patches_are_finite(colour):
    half = flat(colour)
    half[:, 112:] = 255
    codes = ENCODER.encode(np.stack([flat(colour), half]))
    assert np.isfinite(codes).all()
    assert np.abs(codes).max() < 100


def test_noise_is_finite():
    codes = ENCODER.encode(np.random.default_rng(2).integers(0, 256, (2, 224, 224, 3), np.uint8))
    assert np.isfinite(codes).all()
    assert np.abs(codes).max() < 100


def test_float16_keeps_what_tells_patches_apart():
    codes = ENCODER.encode(np.stack([tissue(seed) for seed in range(12)]))[:, 0]
    spread = codes.std(0)
    error = np.abs(codes.astype(np.float16) - codes).max(0)
    # Half a unit of float16 at 1..2 is 5e-4: a fortieth of a spread of .02, the least that counts.
    assert (error <= np.maximum(spread, 0.02) / 40).all()


def test_each_patch_by_itself():
    patches = np.stack([tissue(seed) for seed in range(4)])
    together = ENCODER.encode(patches)
    np.testing.assert_array_equal(ENCODER.encode(patches[2:3])[0], together[2])
    np.testing.assert_array_equal(ENCODER.encode(patches[::-1])[::-1], together)
    assert len(ENCODER.encode(patches[:0])) == 0


def test_groups_are_the_columns():
    groups = texture.measure(tissue(0))
    assert {name: values.size for name, values in groups.items()} == texture.GROUPS
    np.testing.assert_array_equal(
        np.concatenate(list(groups.values())).astype(np.float32),
        ENCODER.encode(tissue(0)[None])[0, 0],
    )
    assert ENCODER.contract.width == sum(texture.GROUPS.values())


@pytest.mark.parametrize(
    "patches",
    [
        np.zeros((1, 256, 256, 3), np.uint8),
        np.zeros((1, 224, 224, 3), np.float32),
        np.zeros((224, 224, 3), np.uint8),
    ],
    ids=["size", "type", "one"],
)
def test_wrong_patches(patches):
    with pytest.raises(errors.ImageError, match=r"uint8 of shape \(n, 224, 224, 3\)") as caught:
        ENCODER.encode(patches)
    assert str(patches.shape) in str(caught.value)


def test_revision_changes_with_the_features():
    """Embeddings of two versions must not meet in one model: a change needs a new revision.

    The numbers are this code's own. After a change of the features give `CONTRACT` a new revision
    and add its line; lines of older revisions stay, so that none is used again.
    """
    known = {
        "1": (0.14, -2.396, 0.138, 0.14, 2.017, -3.962, 0.239, 0.63)
        + (0.254, 0.26, 0.222, 0.255, 0.13, 2.063, 9.355, -0.873)
    }
    # Whole-number arithmetic, so that the patch is the same on every machine.
    wave = (ROW * ROW + 3 * ROW * COLUMN + 7 * COLUMN) // 61 % 160
    patch = np.stack([250 - wave, 230 - wave, 245 - wave // 2], 2).astype(np.uint8)
    patch[ROW < 40] = 250
    groups = texture.measure(patch)
    mean = {name: float(np.mean(values)) for name, values in groups.items()}
    expected = dict(zip(groups, known[ENCODER.contract.revision], strict=True))
    # Logarithms differ by the machine's last bits; a mask by a pixel of 12,544.
    assert mean == pytest.approx(expected, abs=2e-3)


@pytest.mark.her2st
@pytest.mark.slow
def test_features_predict_expression(her2st):
    """Ridge from section C2 to C3 (the same patient) beats the mean colour by a wide margin."""
    (patches, train), (others, test) = (_section(her2st, name) for name in ("C2", "C3"))
    known = train.columns.intersection(test.columns)
    top = train[known].mean().nlargest(200).index
    x, y = (np.log2(counts[top].to_numpy() + 1) for counts in (train, test))

    def score(features, unseen):
        mean, std = features.mean(0), np.maximum(features.std(0), 1e-6)
        a, b = (features - mean) / std, (unseen - mean) / std
        gram = a.T @ a + 200 * np.eye(a.shape[1])  # about one spot's worth of every feature
        guess = b @ np.linalg.solve(gram, a.T @ (x - x.mean(0)))
        return np.mean([np.corrcoef(guess[:, g], y[:, g])[0, 1] for g in range(200)])

    codes = score(*(ENCODER.encode(p)[:, 0].astype(np.float64) for p in (patches, others)))
    colour = score(*(p.mean((1, 2)) for p in (patches, others)))
    # Measured .654 and .528.
    assert codes > colour + 0.1


def _section(folder, name):
    """Patches and counts of the spots that have both."""
    counts = pd.read_csv(folder / f"ST-cnts/{name}.tsv.gz", sep="\t", index_col=0)
    spots = pd.read_csv(folder / f"ST-spotfiles/{name}_selection.tsv", sep="\t")
    spots.index = [f"{x}x{y}" for x, y in zip(spots["x"], spots["y"])]
    spots = spots.loc[counts.index.intersection(spots.index)]
    (path,) = (folder / "ST-imgs" / name[0] / name).glob("*.jpg")
    image = images.open_image(path)
    corners = (spots[["pixel_x", "pixel_y"]].to_numpy() - 112).round().astype(int)
    return np.stack([image.read(x, y, 224, 224) for x, y in corners]), counts.loc[spots.index]
