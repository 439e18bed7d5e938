import numpy as np
import pytest

from stemjax.data import random_fields


def test_smooth_noise_has_unit_variance_and_gaussian_correlation():
    reach, lag = 12.0, 15
    rng = np.random.default_rng(0)
    fields = np.stack([random_fields.smooth(rng, (150, 130), reach) for _ in range(60)])
    assert fields.shape == (60, 150, 130)
    # About 60 * 150 * 130 / (4 pi reach^2) = 650 independent values: standard error of the
    # variance sqrt(2 / 650) = .055; interpolation between coarse entries costs below .02.
    assert (fields**2).mean() == pytest.approx(1, abs=0.17)
    expected = np.exp(-(lag**2) / (4 * reach**2))
    for shifted, start in (
        (fields[:, lag:], fields[:, :-lag]),
        (fields[..., lag:], fields[..., :-lag]),
    ):
        found = (shifted * start).mean() / (fields**2).mean()
        assert found == pytest.approx(expected, abs=0.06)


def test_opposite_borders_are_independent():
    rng = np.random.default_rng(1)
    fields = np.stack([random_fields.smooth(rng, (100, 100), 10.0) for _ in range(400)])
    for first, last in ((fields[:, 0], fields[:, -1]), (fields[:, :, 0], fields[:, :, -1])):
        # 400 fields with about 3 independent values on a border; a wrapped field would have .99.
        assert abs(np.corrcoef(first.ravel(), last.ravel())[0, 1]) < 0.15


def test_a_tile_is_periodic_and_smoothed_differently_along_its_axes():
    tile = random_fields.tile(np.random.default_rng(2), 2.0, 9.0)
    assert tile.std() == pytest.approx(1, abs=0.03)  # 1024^2 / (4 pi 18) = 4,600 values
    across = (tile * np.roll(tile, 4, 0)).mean()
    along = (tile * np.roll(tile, 4, 1)).mean()
    assert across == pytest.approx(np.exp(-16 / (4 * 4)), abs=0.05)
    assert along == pytest.approx(np.exp(-16 / (4 * 81)), abs=0.05)
    # The step over the border is like any other: a tile that does not wrap would jump by 1.4.
    assert np.abs(tile[0] - tile[-1]).mean() < 2 * np.abs(tile[5] - tile[4]).mean()


def test_enlarging_reproduces_a_ramp_at_the_coordinates_it_promises():
    y, x = np.mgrid[0:30, 0:40].astype(np.float32)
    out = random_fields.enlarge(3 * y - 2 * x, (80, 90), step=0.25, top=5.0)
    row = 5 + (np.arange(80) + 0.5)[:, None] * 0.25
    column = (np.arange(90) + 0.5)[None, :] * 0.25
    np.testing.assert_allclose(out, 3 * row - 2 * column, atol=1e-4)  # float32, values up to 80


def test_strips_join_to_the_whole():
    field = np.random.default_rng(3).standard_normal((20, 20)).astype(np.float32)
    whole = random_fields.enlarge(field, (64, 40), step=0.25)
    parts = [random_fields.enlarge(field, (32, 40), step=0.25, top=top) for top in (0.0, 8.0)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_look_up_and_window_wrap_around():
    side = random_fields.SIDE
    tile = np.arange(side * side, dtype=np.float32).reshape(side, side)
    row = np.array([[0.9, -0.1, side + 2.5], [-side - 3.0, 5.0, 6.99]])
    column = np.array([[-1.0, 0.0, 1.0], [2.0, 3.0 * side, -7.2]])
    expected = tile[np.floor(row).astype(int) % side, np.floor(column).astype(int) % side]
    assert np.array_equal(random_fields.look_up(tile, row, column), expected)
    rolled = np.roll(tile, (-1000, -17), (0, 1))
    assert np.array_equal(random_fields.window(tile, 1000, 17, (60, 50)), rolled[:60, :50])
