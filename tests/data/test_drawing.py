import dataclasses

import numpy as np
import pytest
from PIL import Image

from stemjax import errors
from stemjax.data import drawing, slides, synthetic, texture

LAW = synthetic.Law(seed=2)


def draw(seed, n_spots=20, **geometry):
    return drawing.draw_section(
        LAW, seed=seed, id=f"s{seed}", patient="P", n_spots=n_spots, **geometry
    )


def pixels_of(slide):
    return slide.image.read(0, 0, slide.image.width, slide.image.height)


def patches_of(slide, side=224):
    corners = np.rint(slide.pixel_xy - side / 2).astype(int)
    return np.stack([slide.image.read(x, y, side, side) for x, y in corners.tolist()])


@pytest.fixture(scope="module")
def sections():
    """Three sections for what needs many spots."""
    return [draw(seed, n_spots) for seed, n_spots in ((31, 170), (32, 170), (33, 90))]


@pytest.fixture(scope="module")
def patches(sections):
    """The patches [l 224 224 3] of those sections."""
    return [patches_of(slide) for slide, _ in sections]


def test_equal_arguments_draw_the_same_section_and_other_seeds_another():
    (first, z), (again, z_again), (other, z_other) = draw(1), draw(1), draw(2)
    assert np.array_equal(pixels_of(first), pixels_of(again))
    assert np.array_equal(first.counts.toarray(), again.counts.toarray())
    assert np.array_equal(z, z_again)
    assert not np.array_equal(first.counts.toarray(), other.counts.toarray())
    assert np.abs(z - z_other).max() > 0.1


def test_the_image_shows_the_state_and_nothing_else_of_the_law():
    section, z = draw(1)
    other_law = synthetic.Law(seed=99, n_genes=10)
    other, z_other = drawing.draw_section(other_law, seed=1, id="s", patient=None, n_spots=20)
    assert np.array_equal(pixels_of(section), pixels_of(other))
    assert np.array_equal(z, z_other)
    assert other.genes == other_law.genes


@pytest.mark.parametrize("n_spots", [1, 7, 60])
def test_spots_lie_on_the_array_under_tissue_with_their_patches_inside(n_spots):
    slide, z = draw(4, n_spots)
    assert slide.n_spots == len(z) == n_spots
    assert slide.barcodes[-1] == "{:.0f}x{:.0f}".format(*slide.array_xy[-1])
    if n_spots > 1:
        found = slides.pixel_size_from_pitch(slide.array_xy, slide.pixel_xy, 200.0)
        assert found == pytest.approx(slide.mpp, rel=1e-4)  # float32 coordinates
    assert slide.pixel_xy.min() >= 112
    assert (slide.pixel_xy <= np.array([slide.image.width, slide.image.height]) - 112).all()
    # Glass has 243 in all channels; the palest tissue, loose stroma, stays below in green.
    assert patches_of(slide)[..., 1].mean((1, 2)).max() < 225


def test_the_border_is_glass_and_the_tissue_is_pink_and_blue(sections, patches):
    for (slide, _), tissue in zip(sections, patches, strict=True):
        border = slide.image.read(0, 0, slide.image.width, 8).reshape(-1, 3)
        assert np.median(border, 0) == pytest.approx(drawing.GLASS, abs=2)  # sensor noise
        colours = tissue[:, ::4, ::4].reshape(-1, 3).astype(float)
        red, green, blue = colours.mean(0)
        assert green < red - 20
        assert green < blue - 20
        # Nuclei are blue: they take more red than blue light.
        dark = colours[colours.sum(1) < 330]
        assert (dark[:, 2] > dark[:, 0]).mean() > 0.95
        assert len(dark) > 0.05 * len(colours)


def test_the_image_determines_the_state_of_a_section_that_was_not_seen(sections, patches):
    encoder = texture.TextureEncoder()
    features = [encoder.encode(p)[:, 0].astype(float) for p in patches]
    states = [z for _, z in sections]
    seen = np.concatenate(features[:2])
    centre, scale = seen.mean(0), seen.std(0) + 1e-6
    design = (seen - centre) / scale
    target = np.concatenate(states[:2])
    gram = design.T @ design + 10 * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, design.T @ (target - target.mean(0)))
    guess = (features[2] - centre) / scale @ weights + target.mean(0)
    error = ((guess - states[2]) ** 2).mean(0) / states[2].var(0)
    # Measured .91 to .96 with these 340 spots, .94 to .98 with 1,200 of four sections.
    assert (1 - error).min() > 0.85, dict(zip(synthetic.STATES, (1 - error).round(3)))


def test_each_state_shows_where_it_should(sections, patches):
    z = np.concatenate([states for _, states in sections])
    light = np.concatenate(patches)[:, ::2, ::2].astype(np.float32)
    density = -np.log(np.maximum(light, 1) / np.float32(drawing.GLASS))
    found = {
        # Haematoxylin takes about as much green as red light, and eosin hardly any red.
        "fibre": (density[..., 1] - density[..., 0]).mean((1, 2)),
        # Lymphocytes are the darkest nuclei.
        "immune": (density[..., 0] > 1.35).mean((1, 2)),
    }
    for name, statistic in found.items():
        own = synthetic.STATES.index(name)
        related = [abs(np.corrcoef(statistic, z[:, k])[0, 1]) for k in range(z.shape[1])]
        assert related[own] > 0.6, (name, related)
        assert np.argmax(related) == own, (name, related)
    # More nests, more lymphocytes and larger nuclei each make the section bluer; fibres do not.
    design = np.column_stack([np.ones(len(z)), z])
    blue = (density[..., 0] - density[..., 1] / 4).mean((1, 2))  # eosin takes four times the green
    weights = np.linalg.lstsq(design, blue, rcond=None)[0][1:]
    fibre = synthetic.STATES.index("fibre")
    assert np.delete(weights, fibre).min() > 3 * abs(weights[fibre]), weights


def test_states_vary_over_most_of_their_range_and_hardly_together(sections):
    z = np.concatenate([states for _, states in sections])
    assert z.min() >= 0
    assert z.max() <= 1
    assert (np.quantile(z, 0.95, 0) - np.quantile(z, 0.05, 0)).min() > 0.5
    # Smooth fields over three sections have some 40 independent values: 2.5 / sqrt(40) = .4.
    assert np.abs(np.corrcoef(z.T)[np.triu_indices(4, 1)]).max() < 0.45


def test_counts_follow_the_law_given_the_states(sections):
    z = np.concatenate([states for _, states in sections])
    values = np.log2(np.concatenate([slide.counts.toarray() for slide, _ in sections]) + 1)
    error = values - LAW.conditional_mean(z)
    score = error / np.sqrt(LAW.conditional_variance(z))
    # Spots are independent given their states: 48 standard scores, beyond 4.5 once in 3,000.
    assert np.abs(score.mean(0)).max() * np.sqrt(len(z)) < 4.5
    # The scores are nearly bounded (two modes), so their squares' deviation is at most about 1.5.
    assert np.abs((score**2).mean(0) - 1).max() < 4.5 * 1.5 / np.sqrt(len(z))
    share = 1 - (error**2).mean(0) / values.var(0)
    assert share.min() > 0.1
    assert np.median(share) > 0.25


def test_a_finer_pixel_size_draws_the_same_tissue():
    (coarse, _), (fine, _) = draw(6, 5), draw(6, 5, mpp=0.5)
    np.testing.assert_allclose(fine.pixel_xy, 2 * coarse.pixel_xy, rtol=1e-5)
    assert fine.spot_diameter_px == 2 * coarse.spot_diameter_px == 200
    small = [
        Image.fromarray(p).resize((200, 200), Image.Resampling.BOX) for p in patches_of(fine, 400)
    ]
    reds = [np.stack(list(p)).astype(float)[..., 0] for p in (small, patches_of(coarse, 200))]
    # What differs is noise, rounding of nuclei to pixels and the sharpness of their borders;
    # sections that only share their fields, with other nuclei, have .3.
    assert np.corrcoef(reds[0].ravel(), reds[1].ravel())[0, 1] > 0.8


def test_the_slide_says_that_it_was_drawn():
    slide, _ = draw(1)
    assert any("drawn, not measured" in note and "seed=2" in note for note in slide.notes)
    assert slide.patient == "P"
    assert slide.counts.dtype == np.int32


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("n_spots", 0),
        ("mpp", 0.1),
        ("mpp", float("nan")),
        ("pitch_um", 10.0),
        ("spot_diameter_um", 250.0),
    ],
)
def test_an_argument_out_of_range_is_named(field, value):
    arguments = {"seed": 1, "n_spots": 5} | {field: value}
    with pytest.raises(errors.ConfigError, match=field) as caught:
        drawing.draw_section(LAW, id="s", patient=None, **arguments)
    assert str(value) in str(caught.value)


def test_a_section_too_large_for_memory_is_refused_before_it_is_drawn():
    with pytest.raises(errors.ConfigError, match="mpp cannot be used: expected < 400 Mpx"):
        draw(1, 2000, mpp=0.25)


def test_an_unusable_id_is_refused():
    with pytest.raises(errors.SlideError, match="a/b"):
        drawing.draw_section(LAW, seed=1, id="a/b", patient=None, n_spots=3)


def test_the_law_is_not_changed_by_drawing():
    before = dataclasses.asdict(LAW)
    draw(8, 3)
    assert dataclasses.asdict(LAW) == before


def test_neighbouring_spots_are_alike_and_distant_ones_are_not(sections):
    near, far = [], []
    for slide, z in sections:
        where = slide.array_xy
        distance = np.hypot(*(where[:, None] - where[None]).transpose(2, 0, 1))
        likeness = (z - z.mean(0)) / z.std(0)
        product = (likeness[:, None] * likeness[None]).mean(-1)
        near.append(product[distance == 1].mean())
        far.append(product[(distance > 6) & (distance < 9)].mean())
    # exp(-200^2 / (4 280^2)) = .88 for the fields; nests add variance of their own to one state.
    assert min(near) > 0.6
    assert max(far) < 0.15


def test_sections_take_the_stains_almost_alike(sections, patches):
    # The same state must look the same in another section, or nothing could be learned from few.
    offsets = []
    for (_, z), tissue in zip(sections, patches, strict=True):
        light = tissue[:, ::2, ::2].astype(np.float32)
        absorbed = -np.log(np.maximum(light, 1) / np.float32(drawing.GLASS)).mean((1, 2))
        design = np.column_stack([np.ones(len(z)), z - 0.5])
        offsets.append(np.linalg.lstsq(design, absorbed, rcond=None)[0][0])
    # Holes differ too: an absorbance of .5 varies by about .02 between sections.
    assert np.ptp(offsets, axis=0).max() < 0.08
