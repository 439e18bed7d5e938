"""Windows: the nearest measured spots by brute force, and nothing of what is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from stemjax import errors
from stemjax.data import windows

SIZES = (40, 1, 25, 6)


@pytest.fixture(scope="module")
def strewn():
    """Spots of four slides at random: positions, numbers of slides, measured rows."""
    rng = np.random.default_rng(7)
    slide = np.repeat(np.arange(4), SIZES)
    # All slides cover the same square: only their numbers keep them apart.
    xy = rng.uniform(0, 1000, (sum(SIZES), 2))
    context = np.flatnonzero(rng.random(sum(SIZES)) < 0.5)
    assert 40 not in context  # the slide of one spot has none measured
    return xy, slide, context


def lattice():
    """A square lattice, where many spots are equally far."""
    x, y = np.meshgrid(np.arange(9), np.arange(8))
    return 100.0 * np.stack([x.ravel(), y.ravel()], axis=1)


def by_hand(xy, slide, context, query, length):
    """A neighbourhood by comparison with every row."""
    found = []
    for row in np.argsort(np.round(np.linalg.norm(xy - xy[query], axis=1), 3), kind="stable"):
        if row != query and row in set(context) and slide[row] == slide[query]:
            found.append(int(row))
    found = [int(query), *found[: length - 1]]
    return found + [-1] * (length - len(found))


@pytest.mark.parametrize("length", [2, 5, 12, 30])
def test_neighbourhoods_are_the_nearest_measured_spots(strewn, length):
    xy, slide, context = strewn
    made = windows.neighbourhoods(xy, slide, context, length=length)
    expected = [by_hand(xy, slide, context, row, length) for row in range(len(xy))]
    assert made.index.dtype == np.int32
    assert made.index.tolist() == expected
    assert made.asked.tolist() == [[True] + [False] * (length - 1)] * len(xy)
    assert made.n == len(xy)
    # Some windows have fewer neighbours than places for them.
    assert (made.index < 0).any()


@pytest.mark.parametrize("length", range(2, 30))
def test_of_equally_near_spots_the_lower_rows_are_taken(length):
    # At most lengths the lattice has more spots at the last distance than there is room for.
    xy, slide, every = lattice(), np.zeros(72, int), np.arange(72)
    made = windows.neighbourhoods(xy, slide, every, length=length)
    assert made.index.tolist() == [by_hand(xy, slide, every, row, length) for row in range(72)]


def test_equally_near_spots_do_not_depend_on_the_unit_s_rounding():
    # In thirds of a micrometre, where equal distances differ in the last bit.
    xy, slide, every = lattice() * 0.3333333333 + 17.77, np.zeros(72, int), np.arange(72)
    made = windows.neighbourhoods(xy, slide, every, length=10)
    assert made.index.tolist() == [by_hand(xy, slide, every, row, 10) for row in range(72)]


def test_a_spot_is_never_its_own_neighbour(strewn):
    xy, slide, context = strewn
    made = windows.neighbourhoods(xy, slide, context, length=9)
    measured = np.isin(np.arange(len(xy)), context)
    assert measured.any()
    assert not measured.all()
    np.testing.assert_array_equal(made.index[:, 0], np.arange(len(xy)))
    assert not (made.index[:, 1:] == made.index[:, :1]).any()
    # Nor where many spots lie at one place.
    same = windows.neighbourhoods(np.zeros((30, 2)), np.zeros(30, int), np.arange(30), length=5)
    assert not (same.index[:, 1:] == same.index[:, :1]).any()
    assert (same.index >= 0).all()


def test_no_window_reaches_over_to_another_slide(strewn):
    xy, slide, context = strewn
    index = windows.neighbourhoods(xy, slide, context, length=40).index
    own = np.broadcast_to(slide[:, None], index.shape)
    np.testing.assert_array_equal(slide[index][index >= 0], own[index >= 0])


def test_a_slide_alone_has_the_same_windows(strewn):
    xy, slide, context = strewn
    rows = np.flatnonzero(slide == 2)
    alone = windows.neighbourhoods(
        xy[rows], slide[rows], np.flatnonzero(np.isin(rows, context)), length=8
    )
    among = windows.neighbourhoods(xy, slide, context, length=8, queries=rows)
    np.testing.assert_array_equal(np.where(alone.index < 0, -1, rows[alone.index]), among.index)


def test_the_order_of_rows_does_not_matter(strewn):
    xy, slide, context = strewn
    before = windows.neighbourhoods(xy, slide, context, length=7).index
    order = np.random.default_rng(3).permutation(len(xy))
    place = np.argsort(order)
    mixed = windows.neighbourhoods(xy[order], slide[order], place[context], length=7).index
    named = np.where(mixed < 0, -1, order[mixed])
    np.testing.assert_array_equal(named[place], before)


def test_queries_get_windows_in_their_order(strewn):
    xy, slide, context = strewn
    every = windows.neighbourhoods(xy, slide, context, length=6)
    queries = np.array([70, 3, 40, 3, 55])
    made = windows.neighbourhoods(xy, slide, context, length=6, queries=queries)
    np.testing.assert_array_equal(made.index, every.index[queries])


def test_a_window_may_hold_the_spot_alone(strewn):
    xy, slide, context = strewn
    made = windows.neighbourhoods(xy, slide, context, length=1)
    assert made.index.tolist() == [[row] for row in range(len(xy))]
    nothing = windows.neighbourhoods(xy, slide, context[:0], length=4)
    assert nothing.index.tolist() == [[row, -1, -1, -1] for row in range(len(xy))]


@pytest.mark.parametrize("length", [1, 4, 7, 100])
def test_consecutive_windows_hold_each_row_once(length):
    slide = np.repeat(np.arange(4), SIZES)
    made = windows.consecutive(slide, length=length)
    present = made.index >= 0
    np.testing.assert_array_equal(made.index[present], np.arange(len(slide)))
    np.testing.assert_array_equal(made.asked, present)
    assert made.n == sum(-(-size // length) for size in SIZES)
    for window in made.index:
        rows = window[window >= 0]
        assert len(set(slide[rows])) == 1
        # Filled up at the end, never before.
        assert window.tolist() == rows.tolist() + [-1] * (length - len(rows))


@pytest.mark.parametrize("kind", ["neighbours", "rows"])
def test_each_row_has_its_place(strewn, kind):
    xy, slide, _ = strewn
    made = windows.make_windows(kind, xy, slide, length=7)
    place = made.place_of(len(xy))
    np.testing.assert_array_equal(made.index[place[:, 0], place[:, 1]], np.arange(len(xy)))
    assert made.asked[place[:, 0], place[:, 1]].all()


def test_a_row_without_a_place_is_refused(strewn):
    xy, slide, context = strewn
    made = windows.consecutive(slide, length=7)
    for rows in (len(slide) - 1, len(slide) + 1):
        with pytest.raises(ValueError, match=f"{len(slide)} tokens are asked for, of {rows} rows"):
            made.place_of(rows)
    twice = windows.neighbourhoods(xy, slide, context, length=3, queries=np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="3 tokens are asked for, of 3 rows"):
        twice.place_of(3)


def test_a_kind_makes_its_windows(strewn):
    xy, slide, context = strewn
    queries = np.array([5, 8])
    made = windows.make_windows("neighbours", xy, slide, length=4, context=context, queries=queries)
    expected = windows.neighbourhoods(xy, slide, context, length=4, queries=queries)
    np.testing.assert_array_equal(made.index, expected.index)
    every = windows.make_windows("neighbours", xy, slide, length=4)
    full = windows.neighbourhoods(xy, slide, np.arange(len(xy)), length=4)
    np.testing.assert_array_equal(every.index, full.index)
    rows = windows.make_windows("rows", xy, slide, length=4)
    np.testing.assert_array_equal(rows.index, windows.consecutive(slide, length=4).index)
    with pytest.raises(errors.ConfigError, match="neighbours or rows, found 'columns'"):
        windows.make_windows("columns", xy, slide, length=4)


def test_rows_are_taken_and_zeros_where_there_is_none():
    values = np.arange(1, 25).reshape(8, 3).astype(np.float32)
    index = np.array([[2, -1, 0], [7, 7, -1]], np.int32)
    taken = windows.Taken(values=values, index=index)
    eager = np.zeros((2, 3, 3), np.float32)
    eager[0, 0], eager[0, 2], eager[1, :2] = values[2], values[0], values[7]
    assert len(taken) == 2
    for asked in (slice(None), np.array([1, 0, 1]), slice(1, 2)):
        np.testing.assert_array_equal(taken[asked], eager[asked])
        assert taken[asked].dtype == np.float32
    np.testing.assert_array_equal(windows.take(np.ones(8, bool), index), index >= 0)
    # What is taken is a copy.
    taken[:][...] = -5
    assert (values > 0).all()


@pytest.mark.parametrize("kind", ["neighbours", "rows"])
def test_only_measured_spots_that_are_not_asked_for_are_shown(strewn, kind):
    xy, slide, _ = strewn
    rng = np.random.default_rng(5)
    measured = rng.random(len(xy)) < 0.4
    # A context that holds unmeasured rows too: what is shown does not rest on it.
    made = windows.make_windows(kind, xy, slide, length=9)
    given = {"x0": rng.normal(size=(len(xy), 4)).astype(np.float32)}
    tree = windows.inputs(made, given, measured)
    assert set(tree) == {"x0", "present", "asked", "shown"}
    for window in range(made.n):
        for token in range(9):
            row = made.index[window, token]
            asked = row >= 0 and (kind == "rows" or token == 0)
            shown = row >= 0 and not asked and measured[row]
            marks = [tree[name][window, token] for name in ("present", "asked", "shown")]
            assert marks == [row >= 0, asked, shown]
    assert {tree[name].dtype for name in ("present", "asked", "shown")} == {np.dtype("float32")}
    assert bool(tree["shown"].any()) == (kind == "neighbours")
    np.testing.assert_array_equal(tree["x0"][:], windows.take(given["x0"], made.index))


def test_a_token_asked_for_beside_none_is_no_token():
    made = windows.Windows(index=np.array([[0, -1]], np.int32), asked=np.ones((1, 2), bool))
    tree = windows.inputs(made, {}, np.ones(1, bool))
    assert tree["asked"].tolist() == [[1.0, 0.0]]
    assert tree["shown"].tolist() == [[0.0, 0.0]]
