"""Space: hand-made lattices, double loops, closed forms, scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
from scipy import stats
from skimage import metrics as skimage_metrics

from stemjax.data.layouts import st
from stemjax.eval import metrics

EXACT = 1e-12  # float64 sums over some hundred spots, with a margin


def square(width, height):
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)


def visium(width, height):
    """Doubled coordinates (column, row), as Space Ranger writes them."""
    return np.array([(2 * c + r % 2, r) for r in range(height) for c in range(width)])


def by_hand(xy, offsets):
    """Neighbours by exact offsets, every spot against every other."""
    apart = xy[None, :] - xy[:, None]
    return sum((apart == offset).all(axis=-1) for offset in offsets).astype(float)


SQUARE = [(0, 1), (1, 0), (0, -1), (-1, 0)]
DOUBLED = [(2, 0), (-2, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]


def test_neighbours_on_square_and_doubled_arrays_are_those_by_hand(rng):
    xy = square(9, 7)[rng.permutation(63)[:50]] + [3, 11]  # holes, any order, any origin
    np.testing.assert_array_equal(metrics.neighbours(xy).toarray(), by_hand(xy, SQUARE))
    for start in ([0, 0], [5, 3], [5, 2]):  # parity even and odd
        xy = visium(8, 9)[rng.permutation(72)[:60]] + start
        np.testing.assert_array_equal(metrics.neighbours(xy).toarray(), by_hand(xy, DOUBLED))
    inside = metrics.neighbours(visium(8, 9)).sum(axis=1).reshape(9, 8)[1:-1, 1:-1]
    np.testing.assert_array_equal(inside, 6)


@pytest.mark.parametrize("turn", [0.0, 0.4])
@pytest.mark.parametrize("lattice", ["square", "hexagonal"])
def test_neighbours_in_pixels_are_those_of_the_array(rng, lattice, turn):
    # Pixels: any scale, origin and rotation, jitter of 5 % of the spacing.
    if lattice == "square":
        cells = xy = square(14, 12)
        expected = by_hand(cells, SQUARE)
    else:
        cells = visium(12, 14)
        xy = cells * [0.5, math.sqrt(3) / 2]
        expected = by_hand(cells, DOUBLED)
    turned = xy @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    np.testing.assert_array_equal(metrics.neighbours(300 * turned - 70).toarray(), expected)
    jittered = 300 * (turned + 0.05 * rng.normal(size=xy.shape))
    found = metrics.neighbours(jittered).toarray()
    # A pair's distance errs by .05 sqrt(2): 1.225 is 3.2 of those from 1 and 2.7 from 1.414.
    assert (found != expected).sum() < 0.01 * expected.sum()
    np.testing.assert_array_equal(found, found.T)


def test_pixels_that_are_all_even_are_not_taken_for_doubled_columns():
    xy = square(10, 6)
    for pixels in (300 + 200 * xy, 2 * xy):
        np.testing.assert_array_equal(metrics.neighbours(pixels).toarray(), by_hand(xy, SQUARE))


def test_few_spots_have_few_neighbours():
    assert metrics.neighbours(np.zeros((0, 2))).shape == (0, 0)
    assert metrics.neighbours(np.zeros((1, 2))).nnz == 0
    assert metrics.neighbours(np.array([[0, 0], [0, 7]])).toarray().tolist() == [[0, 1], [1, 0]]
    lonely = np.concatenate([square(3, 3), [[9, 9]]])
    assert metrics.neighbours(lonely).toarray()[-1].sum() == 0
    with pytest.raises(ValueError, match="same position"):
        metrics.neighbours(np.array([[1, 2], [3, 4], [1, 2]]))
    with pytest.raises(ValueError, match="finite"):
        metrics.neighbours(np.array([[1, np.nan], [3, 4]]))


@pytest.mark.her2st
@pytest.mark.parametrize("section", ["A3", "E2"])
def test_a_real_sections_pixels_have_the_neighbours_of_its_array(her2st, section):
    slide = st.read_slide(her2st, section, need_image=False)
    on_array, in_pixels = (metrics.neighbours(xy) for xy in (slide.array_xy, slide.pixel_xy))
    expected = by_hand(np.round(slide.array_xy).astype(int), SQUARE)
    np.testing.assert_array_equal(on_array.toarray(), expected)
    # The spots' centres in the image were found one by one: neighbours lie .7 to 1.3 of the median
    # apart, so that some pairs are lost and some diagonals taken for neighbours.
    assert (in_pixels.toarray() != expected).sum() < 0.03 * expected.sum()


def slow_morans_i(x, w):
    z, total, pairs = x - np.mean(x), 0.0, 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            total += w[i, j] * z[i] * z[j]
            pairs += w[i, j]
    return len(x) / pairs * total / sum(z**2)


def test_morans_i_is_the_double_loop(rng):
    values = rng.normal(5.0, 1.0, (40, 3))
    weights = scipy.sparse.random_array((40, 40), density=0.2, rng=rng).tolil()
    weights.setdiag(0)  # any weights: neither binary nor symmetric
    found = metrics.morans_i(values, weights.tocsr())
    expected = [slow_morans_i(values[:, g], weights.toarray()) for g in range(3)]
    np.testing.assert_allclose(found, expected, atol=EXACT)
    mask = rng.random((40, 3)) < 0.6
    values[~mask] = np.nan
    found = metrics.morans_i(values, weights.tocsr(), mask)
    for g in range(3):
        some = np.flatnonzero(mask[:, g])
        expected = slow_morans_i(values[some, g], weights.toarray()[np.ix_(some, some)])
        assert found[g] == pytest.approx(expected, abs=EXACT)


def test_morans_i_by_hand():
    chain = metrics.neighbours(np.array([[0, 0], [1, 0], [2, 0], [3, 0]]))
    # 1, 2, 3, 4: z = -1.5, -.5, .5, 1.5; pairs 2 (.75 - .25 + .75), S0 = 6: 4 / 6 x 2.5 / 5.
    # 1, 0, 0, 1: z = +-.5; pairs 2 (-.25 + .25 - .25): 4 / 6 x -.5 / 1.
    values = np.array([[1.0, 1, 0.1], [2, 0, 0.1], [3, 0, 0.1], [4, 1, 0.1]])
    np.testing.assert_allclose(metrics.morans_i(values, chain), [1 / 3, -1 / 3, np.nan])
    # squidpy and libpysal with transformation "r": rows divided by their sums, 1 at the ends and
    # 1/2 inside, so S0 = 4: 4 / 4 x (.75 + (.75 - .25) / 2 x 2 + .75) / 5.
    rows = scipy.sparse.diags_array(1 / chain.sum(axis=1)) @ chain
    assert metrics.morans_i(values, rows.tocsr())[0] == pytest.approx(2 / 5)
    board = square(8, 8)
    colours = (board.sum(axis=1) % 2).astype(float)[:, None]
    assert metrics.morans_i(colours, metrics.neighbours(board))[0] == pytest.approx(-1.0)
    nowhere = metrics.neighbours(np.array([[0, 0], [1, 0], [9, 9], [20, 20]]))
    mask = np.array([[1], [0], [1], [1]])
    assert np.isnan(metrics.morans_i(values[:, :1], nowhere, mask)).all()
    with pytest.raises(ValueError, match="do not fit"):
        metrics.morans_i(values[:3], chain)


def test_morans_i_of_noise_averages_to_its_expectation(rng):
    board = metrics.neighbours(square(6, 5))
    found = metrics.morans_i(rng.normal(size=(30, 4000)), board)
    assert found.mean() == pytest.approx(-1 / 29, abs=4 * found.std() / math.sqrt(4000))


def test_agreement_of_morans_i(rng):
    xy = square(12, 10)
    weights = metrics.neighbours(xy)
    smooth = np.stack([np.sin(xy @ [a, 0.2]) for a in (0.1, 0.4, 0.8, 1.2, 2.0)], axis=1)
    true = smooth + 0.4 * rng.normal(size=smooth.shape)
    true[:, 4] = 7.0
    told = metrics.morans_agreement(smooth, true, weights)
    x, y = metrics.morans_i(smooth, weights), metrics.morans_i(true, weights)
    assert told.r == pytest.approx(stats.pearsonr(x[:4], y[:4]).statistic, abs=EXACT)
    assert told.difference == pytest.approx(np.abs(x - y)[:4].mean())
    np.testing.assert_array_equal(np.isnan(told.pred), [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(told.true, y)
    # A constant prediction is not left out: it has the expectation of no order at all.
    smooth[:, 1] = 3.0
    told = metrics.morans_agreement(smooth, true, weights)
    assert told.pred[1] == pytest.approx(-1 / 119)
    np.testing.assert_array_equal(told.true, y)
    same = metrics.morans_agreement(true, true, weights)
    assert (same.r, same.difference) == pytest.approx((1.0, 0.0))
    none = metrics.morans_agreement(true[:, 4:], true[:, 4:], weights)
    assert math.isnan(none.r)
    assert math.isnan(none.difference)
    assert metrics.ssc(smooth, true, weights) == told.r


def test_ssim_on_a_full_lattice_is_scikit_images(rng):
    xy = square(13, 11)
    true = rng.normal(3.0, 1.0, (143, 3))
    pred = 0.7 * true + 0.3 * rng.normal(size=true.shape)
    order = rng.permutation(143)
    local = metrics.ssim_map(pred[order], true[order], xy[order] + [4, 9])
    for g in range(3):
        images = (side[:, g].reshape(11, 13) for side in (pred, true))
        _, expected = skimage_metrics.structural_similarity(
            *images, data_range=np.ptp(true[:, g]), full=True
        )
        np.testing.assert_allclose(local[:, g], expected.ravel()[order], atol=EXACT)
    mean = metrics.ssim_per_gene(pred[order], true[order], xy[order])
    np.testing.assert_allclose(mean, local.mean(axis=0), atol=EXACT)
    np.testing.assert_allclose(metrics.ssim_per_gene(true, true, xy), 1.0, atol=EXACT)


def test_ssim_counts_only_spots_and_continues_images_by_the_nearest(rng):
    xy = square(9, 9)
    # A hole, and a missing strip of the border whose cells have one nearest spot each.
    hole = (np.abs(xy - 4).max(axis=1) <= 1) | ((xy[:, 0] == 8) & (xy[:, 1] < 7))
    true = rng.normal(3.0, 1.0, (81, 1))
    pred = true + 0.5 * rng.normal(size=true.shape)
    found = metrics.ssim_per_gene(pred[~hole], true[~hole], xy[~hole])
    # A spot that is there and not measured is as good as none, whatever it holds.
    values = np.where(hole[:, None], np.nan, pred), np.where(hole[:, None], 1e6, true)
    other = metrics.ssim_per_gene(*values, xy, ~hole[:, None])
    np.testing.assert_allclose(other, found, atol=EXACT)
    images = []
    for side in (pred, true):
        image = side.reshape(9, 9).copy()
        for x, y in xy[hole]:
            away = np.linalg.norm(xy[~hole] - [x, y], axis=1)
            # Which of several nearest spots is taken is not stated: such a cell is left open.
            image[y, x] = (
                np.nan if np.sum(away <= away.min() + 1e-9) > 1 else side[~hole][np.argmin(away), 0]
            )
        images.append(image)
    local = metrics.ssim_map(pred[~hole], true[~hole], xy[~hole], window=3)[:, 0]
    _, expected = skimage_metrics.structural_similarity(
        *(np.nan_to_num(image) for image in images),
        win_size=3,
        data_range=np.ptp(true[~hole]),
        full=True,
    )
    # Spots whose window holds no cell with two nearest spots.
    unclear = np.pad(np.isnan(images[0]), 1, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(unclear, (3, 3)).any(axis=(2, 3))
    clear = ~windows.ravel()[~hole]
    beside = (xy[~hole, 0] == 7) & (xy[~hole, 1] < 5)
    assert clear[beside].all()
    assert clear.sum() > beside.sum()
    np.testing.assert_allclose(local[clear], expected.ravel()[~hole][clear], atol=EXACT)


def test_ssim_of_a_hexagonal_array_is_that_of_its_rows(rng):
    xy, cells = visium(8, 9), square(8, 9)
    true = rng.normal(3.0, 1.0, (72, 2))
    pred = true + rng.normal(size=true.shape)
    np.testing.assert_array_equal(
        metrics.ssim_map(pred, true, xy + [4, 2]), metrics.ssim_map(pred, true, cells)
    )


def test_ssim_where_it_is_not_defined(rng):
    true = rng.normal(3.0, 1.0, (20, 3))
    pred = true + rng.normal(size=true.shape)
    # Two rows are no image for a window of three; four are, and the window shrinks to three.
    assert np.isnan(metrics.ssim_per_gene(pred, true, square(10, 2))).all()
    narrow = metrics.ssim_map(pred, true, square(5, 4))
    np.testing.assert_array_equal(narrow, metrics.ssim_map(pred, true, square(5, 4), window=3))
    true[:, 1] = 0.1
    mask = np.array([1, 1, 0])
    found = metrics.ssim_per_gene(pred, true, square(5, 4), mask)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True])
    # A constant prediction has no structure: only its level agrees.
    flat = metrics.ssim_per_gene(np.full((20, 1), true[:, 0].mean()), true[:, :1], square(5, 4))
    assert flat[0] < 0.1
    with pytest.raises(ValueError, match="not pixels"):
        metrics.ssim_map(pred, true, square(5, 4) * 0.4)
    with pytest.raises(ValueError, match="not pixels"):
        metrics.ssim_map(pred, true, square(5, 4) * 300.0)
    with pytest.raises(ValueError, match="odd"):
        metrics.ssim_map(pred, true, square(5, 4), window=4)
    with pytest.raises(ValueError, match="19 positions for 20"):
        metrics.ssim_map(pred, true, square(5, 4)[1:])
