"""Training rows: every spot that is not hidden, however it is read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scattered_slides as made

from stemjax.data import hiding, shown, windows


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Records of A, B and C."""
    return made.write_source(tmp_path_factory.mktemp("shown"))


def named(table):
    return [
        (table.slides[number], barcode)
        for number, barcode in zip(table.slide_index, table.barcodes, strict=True)
    ]


def expected(source, partly):
    """Slide and barcode of the rows that are not hidden, in the records' order."""
    rows = named(source.load(["A", "B", "C"]))
    hidden = {
        (slide, barcode)
        for slide in partly
        for barcode in made.hidden_barcodes(made.make_slide(slide))
    }
    assert len(hidden) == 12 * len(partly)  # 0.4 of 30 spots each
    return [row for row in rows if row not in hidden]


@pytest.mark.parametrize("partly", [("A", "B"), ("C",), ()])
def test_the_rows_are_those_not_hidden(source, partly):
    given = made.rows_shown(source, partly=partly)
    wanted = expected(source, partly)
    assert named(given.load()) == wanted
    assert given.n == len(given) == len(wanted)


def test_nothing_is_hidden_without_a_rule(source):
    # ``partly`` alone hides nothing.
    given = made.rows_shown(source, partly=("A",), rule=None)
    assert named(given.load()) == named(source.load(["A", "B", "C"]))
    assert [table.n for table in given.tables()] == [30, 30, 30]
    assert given.kept.tolist() == list(range(90))


def test_tables_one_table_and_rows_at_random_agree(source):
    given = made.rows_shown(source)
    whole, tables = given.load(), list(given.tables())
    assert [table.slides for table in tables] == [("A",), ("B",), ("C",)]
    rows = np.random.default_rng(0).integers(0, given.n, 40)
    some, picked = given.gather(rows), shown.take_rows(whole, rows)
    assert named(some) == named(picked)
    assert sum((named(table) for table in tables), []) == named(whole)
    for field in ("embeddings", "counts", "total", "mask", "array_xy", "pixel_xy"):
        joined = np.concatenate([getattr(table, field) for table in tables])
        np.testing.assert_array_equal(joined, getattr(whole, field))
        np.testing.assert_array_equal(getattr(some, field), getattr(picked, field))


def test_rows_bring_all_of_their_values_along(source):
    table = source.load(["A", "B", "C"])
    rows = np.array([60, 3, 3, 41])
    taken = shown.take_rows(table, rows)
    for field in dataclasses.fields(table):
        value, whole = getattr(taken, field.name), getattr(table, field.name)
        if isinstance(whole, np.ndarray):
            np.testing.assert_array_equal(value, whole[rows])
    assert taken.barcodes == tuple(table.barcodes[row] for row in rows)
    assert (taken.slides, taken.n) == (table.slides, 4)


def test_the_slides_may_be_named_in_any_order(source):
    one = made.rows_shown(source)
    two = dataclasses.replace(one, slides=("A", "B", "C"), partly=("B", "A"))
    np.testing.assert_array_equal(one.kept, two.kept)
    assert named(one.load()) == named(two.load())


def test_a_slide_hides_the_same_spots_whatever_trains_beside_it(source):
    alone = shown.Shown(records=source, slides=("B",), hiding=made.HIDING, partly=("B",))
    beside = [row for row in named(made.rows_shown(source).load()) if row[0] == "B"]
    assert named(alone.load()) == beside


def test_positions_are_in_um_of_the_rows(source):
    given = made.rows_shown(source)
    found, table = given.positions, given.load()
    assert len(set(made.MPP.values())) == 3
    for slide, mpp in made.MPP.items():
        of_slide = table.slide_index == table.slides.index(slide)
        np.testing.assert_array_equal(found.slide[of_slide], "ABC".index(slide))
        np.testing.assert_array_equal(
            found.xy_um[of_slide], table.pixel_xy[of_slide].astype(np.float64) * mpp
        )
    np.testing.assert_array_equal(found.place, table.array_xy)
    assert len(found.slide) == given.n
    # The same of one table that holds all three slides.
    np.testing.assert_array_equal(windows.positions_um(table, source.slides), found.xy_um)


def test_hidden_rows_are_the_rule_s_in_the_table_s_order(source):
    table = source.load(["B"])
    places = np.asarray(table.pixel_xy, np.float64)
    blocks = hiding.Hiding(how="blocks", share=0.4, block=2.0)
    for rule in (made.HIDING, blocks):
        found = shown.hidden_rows(table, rule)
        pitch = hiding.spot_distance(places)
        np.testing.assert_array_equal(found, rule.hidden("B", table.barcodes, places, pitch))
        order = np.random.default_rng(1).permutation(table.n)
        mixed = shown.hidden_rows(shown.take_rows(table, order), rule)
        np.testing.assert_array_equal(mixed, found[order])
