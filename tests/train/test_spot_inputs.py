"""What a slide's spots are predicted from, and whose result is whose."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from stemjax import config, errors, tasks
from stemjax.data import hiding, shown, space
from stemjax.train import checkpoint, material, spot_inputs

WINDOWS = {
    "none": {},
    "neighbours": {"window": {"kind": "neighbours", "length": 9}},
    "rows": {"window": {"kind": "rows", "length": 7}, "model": {"kind": "histosge_published"}},
}
KINDS = tuple(WINDOWS)


@pytest.fixture(scope="module")
def cards(toy_records):
    """Cards of runs that recover T1 and train with all of T2, for each kind of window."""
    data = {"recover": "T1", "train": "T2", "hide_seed": 4, "residence": "ram"}
    return {
        kind: material.gather(config.resolve({**values, "data": data}), toy_records).card
        for kind, values in WINDOWS.items()
    }


def centres(params, tree, keys):
    """Stands for a model: of each row its first spot's embedding, which no other spot has."""
    del params, keys
    return (tree["cond"][:, 0] if isinstance(tree, dict) else tree)[None]


def tokens(params, tree, keys):
    """Stands for a model that is asked for every token."""
    del params, keys
    return tree["cond"][None]


def shuffled(table, seed=0):
    order = np.random.default_rng(seed).permutation(table.n)
    return shown.take_rows(table, order)


def points_of(table, number=12):
    """Points half-way between spots and their neighbours to the right; nothing is measured."""
    points = shown.take_rows(table, np.arange(number))
    return dataclasses.replace(
        points,
        barcodes=tuple(f"p{i}" for i in range(number)),
        pixel_xy=points.pixel_xy + np.array([90, 30], np.float32),
        array_xy=points.array_xy + np.float32(0.5),
        counts=np.full_like(points.counts, 7000),
        total=np.full_like(points.total, 56000),
        mask=np.zeros_like(points.mask),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slides", [("T1",), ("T1", "V1", "X1")])
def test_results_are_in_the_table_s_order(cards, toy_records, kind, slides):
    card, table = cards[kind], toy_records.load(slides)
    given = spot_inputs.make_inputs(card, table, toy_records)
    run = tokens if kind == "rows" else centres
    made = tasks.by_portions(run, rows=16, spots_axis=1)({}, given.tree, given.keys(0))
    wanted = card.space.encode_condition(table.embeddings[:, 0])
    assert len(np.unique(wanted, axis=0)) == table.n
    np.testing.assert_array_equal(given.of_spots(made)[0], wanted)
    rows = {"none": table.n, "neighbours": table.n, "rows": 9 * len(slides)}[kind]
    assert len(given.asking) == made.shape[1] == rows


@pytest.mark.parametrize("kind", KINDS)
def test_several_draws_keep_their_spots(cards, toy_records, kind):
    given = spot_inputs.make_inputs(cards[kind], toy_records.load(["T1"]), toy_records)
    shape = (3, len(given.asking), 7, 8) if kind == "rows" else (3, len(given.asking), 8)
    made = np.random.default_rng(0).normal(size=shape)
    found = given.of_spots(made)
    assert found.shape == (3, 60, 8)
    for draw in range(3):
        np.testing.assert_array_equal(found[draw], given.of_spots(made[draw : draw + 1])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_keys_follow_seed_slide_and_barcode(cards, toy_records, kind):
    card = cards[kind]

    def keys(table, seed=0):
        given = spot_inputs.make_inputs(card, table, toy_records)
        data = np.asarray(jax.random.key_data(given.keys(seed)))
        assert len(data) == len(given.asking)
        spots = [(table.slides[table.slide_index[i]], table.barcodes[i]) for i in given.asking]
        return dict(zip(spots, map(tuple, data.tolist()), strict=True))

    alone, both = keys(toy_records.load(["T1"])), keys(toy_records.load(["T1", "X1"]))
    assert alone == {spot: key for spot, key in both.items() if spot[0] == "T1"}
    assert len(set(both.values())) == len(both)
    mixed = keys(shuffled(toy_records.load(["T1"])))
    same = set(alone) & set(mixed)
    assert len(same) == (60 if kind != "rows" else len(same)) > 0
    assert all(alone[spot] == mixed[spot] for spot in same)
    other = keys(toy_records.load(["T1"]), seed=1)
    assert not set(other.values()) & set(alone.values())


def seen_by(given):
    """Of each row of the tree the rows of spots that are shown."""
    shown_to = given.tree["shown"] > 0
    index = given.tree["x0"].index
    return [set(rows[marks].tolist()) for rows, marks in zip(index, shown_to, strict=True)]


def test_neighbours_are_the_nearest_measured_spots(cards, toy_records):
    card, table = cards["neighbours"], toy_records.load(["T1", "T2"])
    measured = np.random.default_rng(1).random(table.n) < 0.6
    given = spot_inputs.make_inputs(card, table, toy_records, measured=measured)
    far = np.linalg.norm(table.pixel_xy[:, None] - table.pixel_xy[None], axis=-1)
    far[table.slide_index[:, None] != table.slide_index[None]] = np.inf
    far[:, ~measured] = np.inf
    np.fill_diagonal(far, np.inf)
    for row, seen in enumerate(seen_by(given)):
        assert len(seen) == 8
        assert row not in seen
        assert measured[list(seen)].all()
        assert far[row, list(seen)].max() <= np.sort(far[row])[7]
    expected = card.space.encode_expression(table.counts, table.total, table.mask)
    index = given.tree["x0"].index
    np.testing.assert_array_equal(given.tree["x0"][:], expected[index])
    # On both slides a pixel is a micrometre.
    np.testing.assert_array_equal(given.tree["xy"][:], table.pixel_xy[index])
    np.testing.assert_array_equal(given.tree["place"][:], table.array_xy[index])


def test_rows_are_shown_nothing(cards, toy_records):
    given = spot_inputs.make_inputs(cards["rows"], toy_records.load(["T1"]), toy_records)
    assert not given.tree["shown"].any()
    assert given.tree["asked"].sum() == 60


def test_a_hidden_spot_s_counts_are_seen_by_none(cards, toy_records):
    card, table = cards["neighbours"], toy_records.load(["T1"])
    measured = spot_inputs.measured_spots(card, table)
    counts = np.where(measured[:, None], table.counts, 1_000_000).astype(np.int32)
    other = dataclasses.replace(table, counts=counts)
    trees = [
        spot_inputs.make_inputs(card, rows, toy_records, measured=measured).tree
        for rows in (table, other)
    ]
    for name in trees[0]:
        one, two = (np.asarray(tree[name][:]) for tree in trees)
        if name == "x0":
            visible = trees[0]["shown"][..., None] > 0
            assert (one != two).any()
            one, two = (np.where(visible, values, 0) for values in (one, two))
        np.testing.assert_array_equal(one, two)


def test_the_order_of_spots_changes_no_neighbourhood(cards, toy_records):
    table = toy_records.load(["T1"])
    stray = np.random.default_rng(2).uniform(-20, 20, table.pixel_xy.shape)
    table = dataclasses.replace(table, pixel_xy=(table.pixel_xy + stray).astype(np.float32))
    found = []
    for rows in (table, shuffled(table)):
        given = spot_inputs.make_inputs(cards["neighbours"], rows, toy_records)
        found.append(
            {
                rows.barcodes[i]: {rows.barcodes[j] for j in seen}
                for i, seen in enumerate(seen_by(given))
            }
        )
    assert found[0] == found[1]


def test_points_see_measured_spots_and_never_each_other(cards, toy_records):
    card, spots = cards["neighbours"], toy_records.load(["T1"])
    points, own = points_of(spots), spot_inputs.measured_spots(card, spots)
    measured = shown.take_rows(spots, np.flatnonzero(own))
    every = spot_inputs.joined_tables(spots, points)
    given = spot_inputs.make_inputs(
        card, every, toy_records, measured=np.concatenate([own, np.zeros(12, bool)])
    )
    asked = range(60, 72)
    assert len(given.asking) == 72
    seen = [{every.barcodes[j] for j in rows} for rows in seen_by(given)]
    assert all(rows <= set(measured.barcodes) and len(rows) == 8 for rows in seen)
    for point, row in zip(range(12), asked, strict=True):
        square = ((measured.pixel_xy - points.pixel_xy[point]) ** 2).sum(axis=1)
        assert seen[row] == {measured.barcodes[j] for j in np.argsort(square)[:8]}


def test_points_joined_to_spots_leave_their_windows_of_rows_as_they_are(cards, toy_records):
    card, spots = cards["rows"], toy_records.load(["T1"])
    points = dataclasses.replace(points_of(spots), total=np.zeros(12, np.int32))
    alone = spot_inputs.make_inputs(card, spots, toy_records)
    every = spot_inputs.joined_tables(spots, points)
    given = spot_inputs.make_inputs(card, every, toy_records)
    index = given.tree["cond"].index
    # 60 spots fill eight windows and four places of a ninth.
    np.testing.assert_array_equal(index[:9], alone.tree["cond"].index)
    assert index[9:].ravel().tolist() == [*range(60, 72), -1, -1]
    wanted = card.space.encode_condition(every.embeddings[:, 0])
    np.testing.assert_array_equal(given.of_spots(given.tree["cond"][:][None])[0], wanted)


def test_joined_tables_hold_both_in_order(toy_records):
    first, second = toy_records.load(["V1", "X1"]), toy_records.load(["T1", "V1"])
    second = dataclasses.replace(second, barcodes=tuple(f"again {b}" for b in second.barcodes))
    both = spot_inputs.joined_tables(first, second)
    assert both.slides == ("T1", "V1", "X1")
    assert both.barcodes == first.barcodes + second.barcodes
    names = [both.slides[number] for number in both.slide_index]
    assert names == ["V1"] * 60 + ["X1"] * 60 + ["T1"] * 60 + ["V1"] * 60
    assert both.embeddings.shape == (240, 1, 6)
    for field in ("counts", "total", "mask", "array_xy", "pixel_xy"):
        parts = [getattr(table, field) for table in (first, second)]
        np.testing.assert_array_equal(getattr(both, field), np.concatenate(parts))
    np.testing.assert_array_equal(both.embeddings[:, 0], np.concatenate(
        [first.embeddings[:, 0], second.embeddings[:, 0]]))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_tells_what_was_hidden(cards, toy_records, kind):
    card = checkpoint.Card.from_json(json.loads(json.dumps(cards[kind].to_json())))
    assert spot_inputs.hiding_of(card, "T1") == hiding.Hiding(share=0.5, seed=4)
    assert spot_inputs.hiding_of(card, "T2") is None
    assert spot_inputs.hiding_of(card, "X1") is None
    table = toy_records.load(["T1"])
    hidden = hiding.Hiding(share=0.5, seed=4).hidden(
        "T1", table.barcodes, np.asarray(table.pixel_xy, np.float64), 200.0
    )
    np.testing.assert_array_equal(spot_inputs.measured_spots(card, table), ~hidden)
    assert hidden.sum() == 30
    assert spot_inputs.measured_spots(card, toy_records.load(["T2"])).all()
    assert card.split["kind"] == "recovery within a slide"
    assert (card.split["train"], card.split["recover"]) == (["T1", "T2"], ["T1"])


def test_a_card_without_recovery_says_nothing_of_it(toy_records):
    experiment = config.resolve({"data": {"test": "X1", "residence": "ram"}})
    card = material.gather(experiment, toy_records).card
    assert "hiding" not in card.split
    assert "recover" not in card.split
    assert spot_inputs.hiding_of(card, "T1") is None


def test_a_run_s_space_is_of_measured_spots_alone(cards, toy_records):
    tables = [toy_records.load([slide]) for slide in ("T1", "T2")]
    given = {"genes": toy_records.genes, "transform": "log2p1"}
    every = space.Space.fit(tables, **given)
    card = cards["neighbours"]
    measured = [
        shown.take_rows(t, np.flatnonzero(spot_inputs.measured_spots(card, t))) for t in tables
    ]
    assert card.space.transform == "log2p1"
    assert card.space.to_json() == space.Space.fit(measured, **given).to_json()
    assert card.space.to_json() != every.to_json()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_on_what_its_card_calls_measured(cards, toy_records, kind):
    data = {"recover": "T1", "train": "T2", "hide_seed": 4, "residence": "ram"}
    found = material.gather(config.resolve({**WINDOWS[kind], "data": data}), toy_records)
    tables = [toy_records.load([slide]) for slide in ("T1", "T2")]
    measured = [
        shown.take_rows(t, np.flatnonzero(spot_inputs.measured_spots(found.card, t)))
        for t in tables
    ]
    x0 = np.concatenate(
        [found.card.space.encode_expression(t.counts, t.total, t.mask) for t in measured]
    )
    batches = [
        found.view.batch_at(found.schedule, step)
        for step in range(-(-found.schedule.n // found.schedule.batch))
    ]
    rows = [
        batch["x0"][batch["present"] > 0] if kind != "none" else batch["x0"] for batch in batches
    ]
    seen = {row.tobytes() for row in np.concatenate(rows)}
    assert len(x0) == 90
    np.testing.assert_array_equal(np.concatenate(list(found.rows())), x0)
    assert seen == {row.tobytes() for row in x0}
    assert found.schedule.n == found.view.n == {"rows": 5 + 9}.get(kind, 90)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residence", ["stream", "device"])
def test_material_is_the_same_wherever_it_lies(toy_records, kind, residence):
    def gathered(where):
        data = {"recover": "T1,X1", "hide": "blocks", "hide_block": 2.0, "residence": where}
        return material.gather(config.resolve({**WINDOWS[kind], "data": data}), toy_records)

    one, two = gathered("ram"), gathered(residence)
    for step in range(2):
        mine, theirs = (
            found.view.show(found.view.table, found.view.batch_at(found.schedule, step))
            for found in (one, two)
        )
        assert set(mine) == set(theirs)
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])


def test_a_test_slide_beside_slides_to_recover_is_still_no_training_slide(toy_records):
    data = {"recover": "T1", "test": "X1", "residence": "ram"}
    found = material.gather(config.resolve({"data": data}), toy_records)
    assert found.card.split["train"] == ["T1"]
    assert found.card.split["kind"] == "new patient"
    assert found.schedule.n == 30
    # A panel may have been chosen on slides to recover; on test slides it may not.
    with pytest.raises(errors.SplitError, match="test slide V1: expected a gene panel"):
        material.gather(config.resolve({"data": {**data, "test": "V1"}}), toy_records)


def test_validation_sees_its_own_slide_whole(cards, toy_records):
    # Slides that are not recovered have no hidden spots, whatever the card hides elsewhere.
    table = toy_records.load(["V1"])
    assert spot_inputs.measured_spots(cards["neighbours"], table).all()
    given = spot_inputs.make_inputs(cards["neighbours"], table, toy_records)
    assert all(len(seen) == 8 for seen in seen_by(given))
