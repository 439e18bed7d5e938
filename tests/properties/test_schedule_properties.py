"""The order of rows: a function of (seed, step) that no split of the work changes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stemjax import config, errors
from stemjax.data import decks as decks_lib
from stemjax.data import schedule
from stemjax.train import dispatch


@st.composite
def schedules(draw, most_decks=6):
    decks = draw(st.integers(1, most_decks))
    return schedule.Schedule(
        n=draw(st.integers(decks, 80)),
        batch=decks * draw(st.integers(1, 12)),
        seed=draw(st.integers(0, 2**64 - 1)),
        variants=draw(st.integers(1, 8)),
        decks=decks,
    )


SCHEDULES, STEPS = schedules(), st.integers(0, 10**6)


@given(schedules(most_decks=1), st.integers(0, 50))
def test_every_epoch_is_a_permutation(made, epoch):
    first, last = epoch * made.n, (epoch + 1) * made.n
    steps = range(first // made.batch, -(-last // made.batch))
    rows = np.concatenate([made.rows(step) for step in steps])[first - steps[0] * made.batch :]
    assert sorted(rows[: made.n]) == list(range(made.n))


@given(SCHEDULES, STEPS, st.integers(1, 12))
def test_any_number_of_processes_parts_the_same_batch(made, step, processes):
    if made.batch % processes:
        return
    parts = [made.local(step, i, processes) for i in range(processes)]
    rows, variants = (np.concatenate(side) for side in zip(*parts, strict=True))
    assert rows.tolist() == made.rows(step).tolist()
    assert variants.tolist() == made.variant(step).tolist()
    assert ((variants >= 0) & (variants < made.variants)).all()


@given(SCHEDULES, STEPS, st.integers(1, 40))
def test_going_on_and_beginning_there_are_the_same(made, step, back):
    """A run that was at other steps before gives the rows of one that begins here."""
    again = schedule.Schedule(
        n=made.n, batch=made.batch, seed=made.seed, variants=made.variants, decks=made.decks
    )
    for earlier in range(max(step - back, 0), step):
        made.rows(earlier)
    assert made.rows(step).tolist() == again.rows(step).tolist()
    assert made.variant(step).tolist() == again.variant(step).tolist()


@given(SCHEDULES, STEPS, st.integers(1, 12))
def test_a_process_needs_its_decks_and_no_other_row(made, step, processes):
    dealt = np.concatenate([made.deck(deck) for deck in range(made.decks)])
    assert sorted(dealt) == list(range(made.n))
    sizes = [len(made.deck(deck)) for deck in range(made.decks)]
    assert max(sizes) - min(sizes) <= 1
    if made.batch % processes:
        return
    for index in range(processes):
        held = decks_lib.Held(schedule=made, process_index=index, process_count=processes)
        rows, _ = made.local(step, index, processes)
        assert set(rows) <= set(held.rows)
        assert held.rows[held.find(rows)].tolist() == rows.tolist()
        places, _ = made.local_places(step, index, processes)
        width = made.batch // made.decks
        begin = index * made.batch // processes
        decks = (begin + np.arange(len(rows))) // width
        assert [made.deck(d)[p] for d, p in zip(decks, places, strict=True)] == rows.tolist()


@given(SCHEDULES, st.integers(0, 30))
def test_each_deck_goes_round_before_it_repeats(made, epoch):
    width = made.batch // made.decks
    for deck in range(made.decks):
        own = made.deck(deck)
        first = epoch * len(own)
        steps = range(first // width, -(-(first + len(own)) // width))
        shown = np.concatenate([made.rows(s)[deck * width : (deck + 1) * width] for s in steps])
        start = first - steps[0] * width
        assert sorted(shown[start : start + len(own)]) == own.tolist()


WHOLE = st.integers(-3, 40)


@given(WHOLE, WHOLE, st.integers(-2, 2**65), WHOLE, WHOLE)
def test_numbers_that_cannot_work_are_refused_and_no_others(n, batch, seed, variants, decks):
    works = min(n, batch, variants, decks) >= 1 and 0 <= seed < 2**64
    works = works and batch % decks == 0 and n >= decks
    try:
        made = schedule.Schedule(n=n, batch=batch, seed=seed, variants=variants, decks=decks)
    except errors.ConfigError:
        assert not works
        return
    assert works
    assert made.rows(3).shape == made.variant(3).shape == (batch,)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 30))
def test_calls_take_every_step_once(first, last, length):
    calls = list(dispatch.plan_calls(first, last, length))
    assert [s for start, n in calls for s in range(start, start + n)] == list(range(first, last))
    assert all(n == 1 or (n == length and start % length == 0) for start, n in calls)
    # Single steps are at the ends alone: fewer than two calls' worth.
    assert sum(n == 1 for _, n in calls) < 2 * length or length == 1


RHYTHM = st.integers(1, 400)


@given(RHYTHM, RHYTHM, RHYTHM, RHYTHM)
def test_a_call_ends_where_the_loop_has_something_to_do(asked, log, save, validate):
    cfg = config.Train(
        steps_per_call=asked, log_every=log, save_every=save, validate_every=validate
    )
    found = dispatch.steps_per_call(cfg)
    assert 1 <= found <= asked
    assert not log % found + save % found + validate % found
    larger = range(found + 1, asked + 1)
    assert all(log % k + save % k + validate % k for k in larger)
