"""Batches of windows: equal wherever the rows lie, and of hidden spots nothing in any of them."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import scattered_slides as made

from stemjax import errors, mesh
from stemjax.data import laid, pipeline, resident, windows

NAMES = {"cond", "x0", "mask", "xy", "place", "present", "asked", "shown"}
KINDS = ("neighbours", "rows")
LENGTH = 7  # no slide's rows divide by it


class Prepared:
    """Training rows, their space, and the windows of both kinds."""

    def __init__(self, folder, *, absurd=()):
        self.source = made.write_source(folder, absurd=absurd)
        self.shown = made.rows_shown(self.source)
        self.space = made.fitted_space(self.shown)
        self.laid = {kind: laid.lay_windows(self.shown, kind, LENGTH) for kind in KINDS}

    def view(self, kind, residence, **options):
        return pipeline.choose_view(
            self.source,
            ["A", "B", "C"],
            self.space,
            residence=residence,
            shown=self.shown,
            windows=None if kind is None else self.laid[kind],
            **options,
        )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Of slides A and B 12 spots are hidden each: 66 rows train."""
    return Prepared(tmp_path_factory.mktemp("windows"))


def schedule_of(view, batch=10, seed=9):
    return pipeline.Schedule(n=view.n, batch=batch, seed=seed, variants=view.variants)


def batches(view, schedule, steps):
    """What the step sees of each of some steps, on the host."""
    show = jax.jit(view.show)
    return [jax.device_get(show(view.table, view.batch_at(schedule, step))) for step in steps]


def assert_same(one, two):
    assert set(one) == set(two)
    for name in one:
        assert np.asarray(one[name]).dtype == np.asarray(two[name]).dtype == np.float32
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_views_are_equal_bit_for_bit(prepared, kind):
    views = [prepared.view(kind, residence) for residence in ("ram", "stream", "device")]
    types = [pipeline.ResidentView, pipeline.StreamingView, resident.DeviceView]
    assert [type(view) for view in views] == types
    rows = {"neighbours": 66, "rows": 3 + 3 + 5, None: 66}[kind]
    assert {(view.n, view.variants) for view in views} == {(rows, 8)}
    schedule = schedule_of(views[0])
    first, *others = (batches(view, schedule, range(12)) for view in views)
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            assert set(mine) == (NAMES if kind else {"cond", "x0", "mask"})
            assert_same(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 4])
def test_devices_share_the_windows_of_a_batch(prepared, kind, count):
    layout = mesh.make_layout(jax.devices()[:count])
    host = prepared.view(kind, "ram")
    device = prepared.view(kind, "device", sharding=layout.replicated)
    schedule = schedule_of(host, batch=8)
    show = jax.jit(device.show)
    for batch, numbers in zip(
        host.batches(schedule, 2, 7), device.batches(schedule, 2, 7), strict=True
    ):
        assert numbers["row"].nbytes == numbers["variant"].nbytes == 8 * 4
        found = jax.block_until_ready(show(device.table, layout.put(numbers)))
        for values in found.values():
            assert values.sharding.is_equivalent_to(layout.data, values.ndim)
        assert_same(found, batch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_shows_the_spots_of_its_windows(prepared, kind):
    view = prepared.view(kind, "ram")
    schedule = schedule_of(view)
    table, fitted = prepared.shown.load(), prepared.space
    index = prepared.laid[kind].windows.index
    gaps = False
    for step in range(6):
        batch = view.batch_at(schedule, step)
        for i, (window, variant) in enumerate(
            zip(schedule.rows(step), schedule.variant(step), strict=True)
        ):
            for token, row in enumerate(index[window]):
                here = {name: values[i, token] for name, values in batch.items()}
                if row < 0:
                    gaps = True
                    assert all(not np.any(values) for values in here.values())
                    continue
                alone = fitted.batch(prepared.shown.gather(np.array([row])), np.array([variant]))
                for name in ("cond", "x0", "mask"):
                    np.testing.assert_array_equal(here[name], alone[name][0])
                slide = table.slides[table.slide_index[row]]
                # Micrometres of up to 600 in float32.
                np.testing.assert_allclose(
                    here["xy"], table.pixel_xy[row] * made.MPP[slide], rtol=1e-6
                )
                np.testing.assert_array_equal(here["place"], table.array_xy[row])
                asked = kind == "rows" or token == 0
                assert (here["present"], here["asked"]) == (1, asked)
                assert here["shown"] == (not asked)
    assert gaps == (kind == "rows")


def test_windows_with_less_than_their_length_of_spots(prepared):
    # More places than a slide has rows: also the nearest windows have empty ones.
    wide = laid.lay_windows(prepared.shown, "neighbours", 25)
    assert ((wide.windows.index < 0).sum(axis=1) == [7] * 36 + [0] * 30).all()
    views = [
        pipeline.choose_view(
            prepared.source, "ABC", prepared.space, residence=where,
            shown=prepared.shown, windows=wide,
        )
        for where in ("ram", "stream", "device")
    ]  # fmt: skip
    schedule = schedule_of(views[0], batch=30)
    first, *others = (batches(view, schedule, range(3)) for view in views)
    for batch in first:
        absent = batch["present"] == 0
        assert absent.any()
        assert not any(np.any(values[absent]) for values in batch.values())
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            assert_same(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_every_training_spot_is_asked_for_once_an_epoch(prepared, kind):
    view = prepared.view(kind, "ram")
    schedule = schedule_of(view, batch=view.n)
    for epoch in range(2):
        batch = view.batch_at(schedule, epoch)
        asked = batch["asked"] > 0
        found = np.concatenate([batch["x0"], batch["place"]], axis=-1)[asked]
        table = prepared.shown.load()
        x0 = prepared.space.encode_expression(table.counts, table.total, table.mask)
        wanted = np.concatenate([x0, table.array_xy], axis=-1)
        np.testing.assert_array_equal(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)])


@pytest.mark.parametrize("kind", [*KINDS, None])
@pytest.mark.parametrize("residence", ["ram", "stream", "device"])
def test_hidden_spots_reach_no_batch(prepared, tmp_path, kind, residence):
    # The same slides, but what is hidden is absurd: in the space of the model, too, it would show.
    absurd = Prepared(tmp_path, absurd=("A", "B"))
    hidden = absurd.source.load(["A"])
    assert (hidden.counts == made.ABSURD).any(axis=1).sum() == 12
    assert absurd.space.to_json() == prepared.space.to_json()
    one, two = prepared.view(kind, residence), absurd.view(kind, residence)
    schedule = schedule_of(one, batch=33)
    for mine, theirs in zip(
        batches(one, schedule, range(4)), batches(two, schedule, range(4)), strict=True
    ):
        assert_same(mine, theirs)


def test_spots_of_slides_that_are_not_recovered_do_reach_it(prepared, tmp_path):
    # The comparison of the test above finds what it looks for.
    absurd = Prepared(tmp_path, absurd=("C",))
    assert absurd.space.to_json() != prepared.space.to_json()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residence", ["ram", "stream", "device"])
def test_processes_read_slices_of_one_batch(prepared, kind, residence):
    view = prepared.view(kind, residence)
    schedule = schedule_of(view, batch=12)
    whole = [view.batch_at(schedule, step) for step in range(2, 6)]
    parts = [list(view.batches(schedule, 2, 6, process_index=i, process_count=4)) for i in range(4)]
    for step, batch in enumerate(whole):
        for name in batch:
            joined = np.concatenate([part[step][name] for part in parts])
            assert len(joined) == 12
            np.testing.assert_array_equal(joined, batch[name])


@pytest.mark.parametrize("residence", ["ram", "stream", "device"])
def test_a_schedule_counts_windows(prepared, residence):
    view = prepared.view("rows", residence)
    rows = pipeline.Schedule(n=prepared.shown.n, batch=8, seed=0)
    with pytest.raises(errors.ConfigError, match="expected 11 rows"):
        view.batch_at(rows, 0)
    with pytest.raises(errors.ConfigError, match="expected 11 rows"):
        next(iter(view.batches(rows, 0, 1)))


def test_windows_are_laid_over_training_rows_in_um(prepared):
    positions, made_windows = prepared.shown.positions, prepared.laid["neighbours"].windows
    expected = windows.neighbourhoods(
        positions.xy_um, positions.slide, np.arange(66), length=LENGTH
    )
    np.testing.assert_array_equal(made_windows.index, expected.index)
    with pytest.raises(errors.ConfigError, match="neighbours or rows, found 'none'"):
        laid.lay_windows(prepared.shown, "none", LENGTH)
