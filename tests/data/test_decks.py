"""Rows dealt into decks: the same batches for any number of processes, and no row held in vain."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
import small_slides as made

from stemjax import errors, mesh
from stemjax.data import decks, pipeline, records, resident, space

N, BATCH, DECKS = 50, 24, 4
SLIDES = ("A", "B", "C")


def schedule_of(**changes):
    return pipeline.Schedule(**{"n": N, "batch": BATCH, "seed": 5, "decks": DECKS} | changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Records of three slides with 42 spots, and a space fitted on them."""
    folder = tmp_path_factory.mktemp("decks")
    for slide_id, n in zip(SLIDES, (13, 9, 20)):
        slide = made.make_slide(slide_id, n=n, names=made.GENES)
        vectors = made.make_embeddings(slide)
        records.write_slide(folder, slide, vectors, panel=made.PANEL, contract=made.CONTRACT)
    opened = records.open_records(folder)
    fitted = space.Space.fit(opened.tables(SLIDES), genes=opened.genes, transform="log2p1")
    return opened, fitted


def held_by(index, count, schedule):
    return decks.Held(schedule=schedule, process_index=index, process_count=count)


@pytest.mark.parametrize("n_decks", [1, 2, 3, 8])
def test_decks_are_all_rows_once_and_of_nearly_one_size(n_decks):
    schedule = schedule_of(decks=n_decks)
    dealt = [schedule.deck(number) for number in range(n_decks)]
    assert sorted(np.concatenate(dealt)) == list(range(N))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert all((np.diff(deck) > 0).all() for deck in dealt)


def test_the_dealing_is_by_chance_and_by_the_seed():
    first = [tuple(schedule_of(seed=seed).deck(0)) for seed in range(20)]
    assert len(set(first)) == 20
    # Contiguous rows are of one slide: a deck of neighbours would be of one patient.
    assert all(max(deck) > 3 * N // 4 and min(deck) < N // 4 for deck in first)


def test_each_part_of_a_batch_goes_through_its_own_deck():
    schedule, width = schedule_of(), BATCH // DECKS
    steps = 6 * 13 * 12  # whole epochs of decks of 12 and of 13
    batches = np.stack([schedule.rows(step) for step in range(steps)])
    for number in range(DECKS):
        deck = schedule.deck(number)
        seen = batches[:, number * width : (number + 1) * width].reshape(-1, len(deck))
        np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(deck, (len(seen), 1)))
        assert len({tuple(epoch) for epoch in seen[:50]}) == 50


def test_decks_are_shuffled_apart():
    schedule = schedule_of(n=48)
    places = [
        np.concatenate([schedule.local_places(s, i, DECKS)[0] for s in range(2)])
        for i in range(DECKS)
    ]
    assert len({tuple(order) for order in places}) == DECKS


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6, 8, 12, 24])
def test_processes_hold_what_their_slices_of_one_batch_ask_for(processes):
    schedule = schedule_of(variants=8)
    parts = [held_by(index, processes, schedule) for index in range(processes)]
    for step in range(30):
        slices = [schedule.local(step, index, processes) for index in range(processes)]
        np.testing.assert_array_equal(np.concatenate([r for r, _ in slices]), schedule.rows(step))
        for (rows, _), part in zip(slices, parts, strict=True):
            np.testing.assert_array_equal(part.rows[part.find(rows)], rows)
    # A share of the decks, or the one deck that a share of its part of the batch is of.
    if DECKS % processes == 0 or processes % DECKS == 0:
        most = -(-N // DECKS) * max(1, DECKS // processes)
        assert max(len(part.rows) for part in parts) <= most


@pytest.mark.parametrize(
    "changes", [{"decks": 0}, {"decks": 5}, {"decks": 24, "n": 23}], ids=["none", "batch", "rows"]
)
def test_decks_that_cannot_be_are_refused(changes):
    with pytest.raises(errors.ConfigError, match="decks"):
        schedule_of(**changes)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_view_of_a_share_hands_over_what_one_of_all_rows_would(prepared, processes):
    opened, fitted = prepared
    schedule = schedule_of(n=42, variants=8)
    whole = pipeline.choose_view(opened, SLIDES, fitted, residence="ram")
    for index in range(processes):
        held = held_by(index, processes, schedule)
        mine = pipeline.choose_view(opened, SLIDES, fitted, residence="ram", held=held)
        assert mine.n == 42
        both = (v.batches(schedule, 2, 9, index, processes) for v in (mine, whole))
        for found, expected in zip(*both, strict=True):
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])


def test_a_view_of_a_share_holds_no_more(prepared):
    opened, fitted = prepared
    held = held_by(1, 2, schedule_of(n=42))
    view = pipeline.choose_view(opened, SLIDES, fitted, residence="ram", held=held)
    kept = sum(v.nbytes for v in (view._embeddings, view._x0, view._mask))
    whole = pipeline.choose_view(opened, SLIDES, fitted, residence="ram")
    everything = sum(v.nbytes for v in (whole._embeddings, whole._x0, whole._mask))
    assert len(held.rows) == 20  # two decks of 10, of 42 rows
    assert kept * 42 == everything * 20


def on_devices(prepared, count, schedule):
    layout = mesh.make_layout(jax.devices()[:count])
    opened, fitted = prepared
    view = pipeline.choose_view(
        opened, SLIDES, fitted, residence="device", sharding=layout.replicated,
        held=held_by(0, 1, schedule), spread=layout.data,
    )  # fmt: skip
    return layout, view


@pytest.mark.parametrize("count", [1, 2, 4])
def test_batches_of_devices_are_the_host_s_bit_for_bit(prepared, count):
    schedule = schedule_of(n=42, variants=8)
    layout, view = on_devices(prepared, count, schedule)
    host = pipeline.choose_view(*prepared[:1], SLIDES, prepared[1], residence="ram")
    show = jax.jit(view.show)
    both = zip(host.batches(schedule, 0, 9), view.batches(schedule, 0, 9), strict=True)
    for batch, numbers in both:
        shown = jax.block_until_ready(show(view.table, layout.put(numbers)))
        assert set(shown) == set(batch)
        for name in shown:
            assert shown[name].sharding.is_equivalent_to(layout.data, 2)
            np.testing.assert_array_equal(shown[name], batch[name])


def test_a_device_holds_its_decks_and_asks_no_other(prepared):
    opened, _ = prepared
    schedule = schedule_of(n=42)
    layout, view = on_devices(prepared, 4, schedule)
    numbers = layout.put(view.batch_at(schedule, 3))
    text = jax.jit(view.show).lower(view.table, numbers).compile().as_text()
    assert not re.findall(r"(all-reduce|all-gather|all-to-all|collective-permute)", text)
    first = sum(values.addressable_shards[0].data.nbytes for values in view.table.values())
    assert first == resident.table_bytes(opened, SLIDES, rows=11)  # of 42 rows in 4 decks


def test_where_rows_lie_is_chosen_for_the_share(prepared):
    opened, _ = prepared
    schedule = schedule_of(n=42)

    def chosen(ram, device, **more):
        return pipeline.choose_residence(
            opened, SLIDES, budget_bytes=ram, device_bytes=device, **more
        )

    held = held_by(0, 4, schedule)
    mine = pipeline.resident_bytes(opened, SLIDES, rows=len(held.rows))
    of_device = resident.table_bytes(opened, SLIDES, rows=held.length)
    assert chosen(mine, 0, held=held) == "ram"
    assert chosen(mine - 1, 0, held=held) == "stream"
    assert chosen(mine, 0) == "stream"
    assert chosen(mine, of_device, held=held, pieces=4) == "device"
    assert chosen(mine, of_device - 1, held=held, pieces=4) == "ram"
    # Decks that the devices do not divide lie whole on each of them.
    assert chosen(mine, of_device, held=held) == "ram"
