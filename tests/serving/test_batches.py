"""The queue and its thread, with a device that only says what it was given."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from live import wait_for

from stemjax.serving import batches, refusals


class Spots:
    """Numbered spots."""

    def __init__(self, numbers):
        self.numbers = list(numbers)

    def __len__(self):
        return len(self.numbers)

    def part(self, start, stop):
        return Spots(self.numbers[start:stop])


class Device:
    """Doubles the numbers, when it may; remembers each batch."""

    def __init__(self):
        self.free, self.batches, self.warmed, self.fault = threading.Event(), [], 0, None

    def run(self, order, parts):
        assert self.free.wait(20)
        self.batches.append((order, [part.numbers for part in parts]))
        if self.fault:
            raise self.fault
        return {"twice": 2 * np.concatenate([part.numbers for part in parts])}

    def warm(self):
        self.warmed += 1


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def make(device):
    """Makes a batcher of batches of at most 8 that is ready."""
    made = []

    def start(**given):
        options = {"capacity": lambda order: 8, "queue": 50, "max_wait_s": 0.0, **given}
        batcher = batches.Batcher(device.run, warm=device.warm, **options)
        made.append(batcher)
        batcher.start()
        wait_for(lambda: batcher.ready)
        return batcher

    yield start
    device.free.set()
    for batcher in made:
        batcher.stop()


def held(batcher, order="other"):
    """Has the device hold a first batch, so that what follows waits."""
    job = batcher.submit(order, Spots([0]))
    wait_for(lambda: batcher.length == 0)
    return job


def test_what_waits_shares_a_batch_and_everyone_gets_their_own(make, device):
    batcher = make()
    held(batcher)
    jobs = [batcher.submit("a", Spots([number, number + 0.5])) for number in (1, 2, 3)]
    device.free.set()
    for number, job in zip((1, 2, 3), jobs):
        np.testing.assert_array_equal(job.future.result(20)["twice"], [2 * number, 2 * number + 1])
    assert device.batches[1:] == [("a", [[1, 1.5], [2, 2.5], [3, 3.5]])]
    assert device.warmed == 1


def test_other_orders_share_no_batch_and_the_oldest_goes_first(make, device):
    batcher = make()
    held(batcher)
    jobs = [batcher.submit(order, Spots([n])) for n, order in enumerate("abacb")]
    device.free.set()
    for n, job in enumerate(jobs):
        assert job.future.result(20)["twice"] == [2 * n]
    assert device.batches[1:] == [("a", [[0], [2]]), ("b", [[1], [4]]), ("c", [[3]])]


def test_a_large_request_goes_in_parts_and_lets_small_ones_through(make, device):
    batcher = make()
    held(batcher)
    large = batcher.submit("a", Spots(range(20)))
    small = batcher.submit("a", Spots([100]))
    device.free.set()
    np.testing.assert_array_equal(large.future.result(20)["twice"], 2 * np.arange(20))
    assert small.future.result(20)["twice"] == [200]
    sizes = [sum(map(len, parts)) for _, parts in device.batches[1:]]
    assert sizes == [8, 8, 5]
    assert device.batches[2] == ("a", [[100], [8, 9, 10, 11, 12, 13, 14]])


def test_a_batch_waits_for_company_but_not_for_long_and_not_when_it_is_full(make, device):
    device.free.set()
    batcher = make(max_wait_s=5.0)
    began = time.monotonic()
    jobs = [batcher.submit("a", Spots([n])) for n in range(8)]
    for job in jobs:
        job.future.result(20)
    assert time.monotonic() - began < 4  # it was full
    assert [len(parts) for _, parts in device.batches] == [8]
    brief = make(max_wait_s=0.2)
    began = time.monotonic()
    brief.submit("a", Spots([1])).future.result(20)
    assert 0.19 < time.monotonic() - began < 4


def test_a_full_queue_refuses_and_loses_nothing(make, device):
    batcher = make(queue=3)
    jobs = [held(batcher), *(batcher.submit("a", Spots([n])) for n in (1, 2, 3))]
    for _ in range(2):
        with pytest.raises(refusals.BusyError, match="queue is full: found 3") as caught:
            batcher.submit("a", Spots([4]))
        assert (caught.value.status, caught.value.code) == (503, "SJ-S06")
        assert caught.value.headers == {"Retry-After": "1"}
    assert batcher.length == 3
    device.free.set()
    assert [job.future.result(20)["twice"].tolist() for job in jobs] == [[0], [2], [4], [6]]
    batcher.submit("a", Spots([4])).future.result(20)


def test_the_wait_that_is_told_is_the_work_that_waits(make, device):
    batcher = make(queue=1)
    held(batcher)
    batcher.submit("a", Spots(range(40)))
    for a_spot, told in ((0.1, "4"), (0.26, "11"), (9.0, "60")):
        batcher._seconds_a_spot = a_spot
        with pytest.raises(refusals.BusyError) as caught:
            batcher.submit("a", Spots([1]))
        assert caught.value.headers["Retry-After"] == told


def test_what_nobody_waits_for_is_not_computed(make, device):
    batcher = make()
    held(batcher)
    gone, kept = batcher.submit("a", Spots([1])), batcher.submit("a", Spots([2]))
    gone.abandoned = True
    device.free.set()
    assert kept.future.result(20)["twice"] == [4]
    assert device.batches[1:] == [("a", [[2]])]
    assert not gone.future.done()


def test_a_failed_batch_fails_its_requests_and_no_others(make, device, caplog):
    batcher = make()
    first = held(batcher)
    large = batcher.submit("a", Spots(range(20)))
    device.fault = ArithmeticError("device")
    device.free.set()
    for job in (first, large):
        with pytest.raises(ArithmeticError, match="device"):
            job.future.result(20)
    assert "a batch of 8 spots failed" in caplog.text
    wait_for(lambda: batcher.length == 0)  # no part of what failed is tried again
    assert len(device.batches) == 2
    device.fault = None
    assert batcher.submit("a", Spots([7])).future.result(20)["twice"] == [14]


def test_stopping_finishes_what_was_accepted_and_refuses_more(make, device):
    batcher = make(max_wait_s=60.0)
    held_one = batcher.submit("b", Spots(range(8)))
    wait_for(lambda: batcher.length == 0)
    jobs = [batcher.submit("a", Spots([n])) for n in range(3)]
    ending = threading.Thread(target=batcher.stop)
    ending.start()
    wait_for(lambda: not batcher.ready)
    with pytest.raises(refusals.BusyError, match="stopping"):
        batcher.submit("a", Spots([1]))
    device.free.set()
    ending.join(20)
    assert not ending.is_alive()
    assert held_one.future.done()
    # Nobody waits a minute for company that cannot come.
    assert [job.future.result(0)["twice"].tolist() for job in jobs] == [[0], [2], [4]]


def test_nothing_is_accepted_before_everything_is_compiled(device):
    warming, failed = threading.Event(), []

    def warm():
        assert warming.wait(20)
        raise MemoryError("too large")

    batcher = batches.Batcher(
        device.run, capacity=lambda order: 8, warm=warm, queue=3, max_wait_s=0,
        on_failed=lambda: failed.append(True),
    )  # fmt: skip
    batcher.start()
    with pytest.raises(refusals.BusyError, match="compiled") as caught:
        batcher.submit("a", Spots([1]))
    assert caught.value.headers == {"Retry-After": "5"}
    warming.set()
    wait_for(lambda: failed)
    assert isinstance(batcher.failure, MemoryError)
    assert not batcher.ready
    batcher.stop()


def test_every_batch_is_told(make, device):
    told = []
    device.free.set()
    batcher = make(observe=told.append, max_wait_s=5.0)
    for job in [batcher.submit("a", Spots([1, 2, 3, 4])) for _ in range(2)]:
        job.future.result(20)
    wait_for(lambda: told)
    assert [(batch.spots, batch.requests) for batch in told] == [(8, 2)]
    assert 0 <= told[0].seconds < 5
