"""Schedules and views: every spot once an epoch, whatever the batch, the process or the storage."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import small_slides as made

from stemjax import errors
from stemjax.data import builder, pipeline, records, space


def rows_of(schedule, steps):
    return np.concatenate([schedule.rows(step) for step in range(steps)])


@pytest.mark.parametrize(("n", "batch"), [(10, 5), (10, 4), (7, 3), (5, 12), (3, 64), (1, 4)])
def test_every_epoch_holds_every_row_once(n, batch):
    schedule = pipeline.Schedule(n=n, batch=batch, seed=3)
    steps = 6 * n  # whole epochs: 6 * batch of them
    epochs = rows_of(schedule, steps).reshape(-1, n)
    assert len(epochs) == 6 * batch
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (len(epochs), 1)))


def test_the_order_changes_with_epoch_and_seed():
    orders = {
        tuple(pipeline.Schedule(n=20, batch=20, seed=seed).rows(epoch))
        for seed in range(5)
        for epoch in range(5)
    }
    # Grain's epoch 1 of seed 0 is epoch 0 of seed 1; none may be shared here.
    assert len(orders) == 25


def test_positions_in_the_batch_are_uniform():
    # Each row should come first equally often: chi-square of 10 cells over 4000 epochs.
    first = np.array([pipeline.Schedule(n=10, batch=10, seed=s).rows(0)[0] for s in range(4000)])
    counts = np.bincount(first, minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # the 99.9 % quantile with 9 degrees


def philox(key, counter):
    """Philox4x64-10 of Salmon et al., SC 2011 (section 4.3), on Python's whole numbers."""
    c, k, word = list(counter), list(key), 2**64
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], word)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], word)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) % word, (k[1] + 0xBB67AE8584CAA73B) % word]
    return c


def test_the_order_of_rows_is_the_documented_one():
    # A run must resume on the same spots after an upgrade of numpy: rows are sorted by Philox
    # words of key (seed, epoch) and stream 1, variants are words of key (seed, step) and stream 2.
    # Numpy counts before it draws: the first block has counter 1.
    schedule = pipeline.Schedule(n=6, batch=9, seed=7, variants=5)
    words = [[*philox((7, e), (1, 0, 0, 1)), *philox((7, e), (2, 0, 0, 1))] for e in (0, 1)]
    orders = [sorted(range(6), key=epoch.__getitem__) for epoch in words]
    assert schedule.rows(0).tolist() == orders[0] + orders[1][:3]
    blocks = [word for i in (1, 2, 3) for word in philox((7, 4), (i, 0, 0, 2))]
    assert schedule.variant(4).tolist() == [word % 5 for word in blocks[:9]]


def test_a_step_needs_no_step_before_it():
    ordered = pipeline.Schedule(n=11, batch=4, seed=1, variants=8)
    forward = [(ordered.rows(s), ordered.variant(s)) for s in range(30)]
    for step in (29, 0, 17, 3):
        fresh = pipeline.Schedule(n=11, batch=4, seed=1, variants=8)
        np.testing.assert_array_equal(fresh.rows(step), forward[step][0])
        np.testing.assert_array_equal(fresh.variant(step), forward[step][1])


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6, 12])
def test_processes_read_slices_of_one_global_batch(processes):
    schedule = pipeline.Schedule(n=50, batch=12, seed=5, variants=8)
    for step in range(9):
        parts = [schedule.local(step, index, processes) for index in range(processes)]
        assert {len(rows) for rows, _ in parts} == {12 // processes}
        np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), schedule.rows(step))
        np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), schedule.variant(step))


@pytest.mark.parametrize(("index", "count"), [(0, 5), (0, 24), (3, 3), (-1, 3), (0, 0)])
def test_a_batch_that_does_not_divide_is_refused(index, count):
    schedule = pipeline.Schedule(n=50, batch=12, seed=5)
    with pytest.raises(errors.ConfigError, match=f"12 rows does not divide among {count}"):
        schedule.local(0, index, count)


def test_variants_are_uniform_and_independent_of_the_rows():
    schedule = pipeline.Schedule(n=64, batch=64, seed=2, variants=8)
    pairs = np.zeros((8, 8))
    for step in range(500):
        rows, variants = schedule.rows(step), schedule.variant(step)
        np.add.at(pairs, (rows % 8, variants), 1)
    # Chi-square of 64 cells of 500 each; 63 degrees, 99.9 % quantile.
    assert ((pairs - 500) ** 2 / 500).sum() < 103.5


def test_one_variant_is_the_original():
    assert pipeline.Schedule(n=4, batch=9, seed=2).variant(3).tolist() == [0] * 9


@pytest.mark.parametrize(
    ("field", "value"), [("n", 0), ("batch", 0), ("variants", 0), ("seed", -1), ("seed", 2**64)]
)
def test_impossible_schedules_are_refused(field, value):
    values = {"n": 4, "batch": 2, "seed": 0, "variants": 1} | {field: value}
    with pytest.raises(errors.ConfigError, match=rf"{field}.* found {value}"):
        pipeline.Schedule(**values)


@pytest.fixture
def prepared(tmp_path):
    """Records of three slides, the second without two genes, and a space fitted on them."""
    for slide_id, n, names in (
        ("A", 13, made.GENES),
        ("B", 9, ("X", *made.GENES[2:])),
        ("C", 20, made.GENES),
    ):
        slide = made.make_slide(slide_id, n=n, names=names)
        vectors = made.make_embeddings(slide)
        records.write_slide(
            tmp_path, slide, vectors, panel=made.PANEL, contract=made.CONTRACT, shards=2
        )
    opened = records.open_records(tmp_path)
    fitted = space.Space.fit(opened.tables("ABC"), genes=opened.genes, transform="log1p_cp10k")
    return opened, fitted


@pytest.fixture(params=["ram", "stream"])
def view(prepared, request):
    return pipeline.choose_view(prepared[0], ["A", "B"], prepared[1], residence=request.param)


def assert_same(one, two):
    assert set(one) == set(two) == {"cond", "x0", "mask"}
    for name in one:
        assert one[name].dtype == two[name].dtype == np.float32
        np.testing.assert_array_equal(one[name], two[name])


def test_a_batch_shows_its_rows(prepared, view):
    opened, fitted = prepared
    table = opened.load(["A", "B"])
    schedule = pipeline.Schedule(n=view.n, batch=16, seed=4, variants=view.variants)
    batch = view.batch_at(schedule, 2)
    rows, variants = schedule.rows(2), schedule.variant(2)
    cp10k = np.log1p(1e4 * table.counts / np.maximum(table.total, 1)[:, None].astype(np.float64))
    x0 = (cp10k[rows] - fitted.expression.mean) / fitted.expression.std * table.mask[rows]
    np.testing.assert_allclose(batch["x0"], x0, atol=1e-5)  # float32 of values up to about 10
    np.testing.assert_array_equal(batch["mask"], table.mask[rows])
    assert (table.mask[rows] == 0).any()
    shown = table.embeddings[rows, variants].astype(np.float64)
    cond = (shown - fitted.condition.mean) / fitted.condition.std
    np.testing.assert_allclose(batch["cond"], cond, atol=1e-6)  # float32 of values of order 1


def test_both_views_are_equal_bit_for_bit(prepared):
    opened, fitted = prepared
    one = pipeline.choose_view(opened, ["C", "A", "B"], fitted, residence="ram")
    two = pipeline.choose_view(opened, ["A", "B", "C"], fitted, residence="stream")
    assert (one.n, one.variants) == (two.n, two.variants) == (42, 8)
    schedule = pipeline.Schedule(n=42, batch=30, seed=9, variants=8)
    for step in range(5):
        assert_same(one.batch_at(schedule, step), two.batch_at(schedule, step))
    pairs = zip(one.batches(schedule, 3, 9), two.batches(schedule, 3, 9), strict=True)
    for mine, theirs in pairs:
        assert_same(mine, theirs)


def test_the_iterator_gives_the_steps_in_order(view):
    schedule = pipeline.Schedule(n=view.n, batch=8, seed=0, variants=8)
    batches = list(view.batches(schedule, 5, 30))
    assert len(batches) == 25
    for step, batch in enumerate(batches, start=5):
        assert_same(batch, view.batch_at(schedule, step))
    assert list(view.batches(schedule, 5, 5)) == []


def test_processes_share_the_iterator_s_batches(view):
    schedule = pipeline.Schedule(n=view.n, batch=8, seed=0, variants=8)
    parts = [list(view.batches(schedule, 2, 6, process_index=i, process_count=4)) for i in range(4)]
    for step in range(2, 6):
        whole = view.batch_at(schedule, step)
        for name in whole:
            joined = np.concatenate([part[step - 2][name] for part in parts])
            np.testing.assert_array_equal(joined, whole[name])


def test_leaving_early_leaves_no_thread_behind(view):
    before = set(threading.enumerate())
    batches = view.batches(pipeline.Schedule(n=view.n, batch=8, seed=0), 0, 10_000)
    next(iter(batches))
    assert set(threading.enumerate()) - before
    batches.close()
    # Not joined: a thread of a pool can be listed before it may be joined.
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_a_schedule_of_other_data_is_refused(view):
    for schedule in (
        pipeline.Schedule(n=view.n + 1, batch=8, seed=0),
        pipeline.Schedule(n=view.n, batch=8, seed=0, variants=9),
    ):
        with pytest.raises(errors.ConfigError, match="expected 22 rows and at most 8 variants"):
            view.batch_at(schedule, 0)
        with pytest.raises(errors.ConfigError, match="expected 22 rows and at most 8 variants"):
            next(iter(view.batches(schedule, 0, 1)))


def test_damage_while_streaming_reaches_the_training_loop(prepared):
    opened, fitted = prepared
    view = pipeline.StreamingView(opened, ["A"], fitted)
    for shard in opened.folders["A"].glob("*.array_record-*"):
        shard.write_bytes(b"")
    schedule = pipeline.Schedule(n=view.n, batch=8, seed=0)
    with pytest.raises(errors.RecordsError, match="slide A .*damaged.*array_record"):
        next(iter(view.batches(schedule, 0, 3)))


def test_rows_are_kept_in_ram_where_they_fit(prepared):
    opened, fitted = prepared
    # 22 spots of 8 variants of 5 float16, and of 8 genes as int32, float32, float32 and uint8.
    needed = pipeline.resident_bytes(opened, ["A", "B"])
    assert needed >= 22 * (8 * 5 * 2 + 8 * 13)
    views = [
        pipeline.choose_view(opened, ["A", "B"], fitted, budget_bytes=budget)
        for budget in (needed - 1, needed, None)
    ]
    kinds = [pipeline.StreamingView, pipeline.ResidentView, pipeline.ResidentView]
    assert [type(v) for v in views] == kinds
    with pytest.raises(errors.ConfigError, match="auto, device, ram or stream, found 'disk'"):
        pipeline.choose_view(opened, ["A"], fitted, residence="disk")


def test_the_memory_limit_is_a_machine_s():
    # At least what this process takes, at most what no machine has yet.
    assert 2**28 < pipeline.memory_limit() < 2**50


def test_records_of_a_damaged_slide_make_no_view(prepared):
    opened, fitted = prepared
    path = next((opened.folders["B"]).glob(f"*{builder.SHARD_MARK}*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1  # not the list of records, which opening reads
    path.write_bytes(data)
    fresh = records.open_records(opened.folders["B"].parents[2])
    for residence in ("ram", "stream"):
        with pytest.raises(errors.RecordsError, match="slide B"):
            pipeline.choose_view(fresh, ["A", "B"], fitted, residence=residence)
