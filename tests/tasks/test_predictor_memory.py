"""Out of memory in prediction: smaller portions, the same results, nothing done twice."""

from __future__ import annotations

import gc
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stemjax import errors, mesh
from stemjax.diffusion import sampler
from stemjax.tasks import predictor

GENES, SPOTS = 3, 37
# As XLA's allocators say it on an accelerator and on a CPU.
SAID = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 21474836480 bytes.\n  more"
KEYS = sampler.spot_keys(0, "S", [str(i) for i in range(SPOTS)])
COND = np.random.default_rng(0).normal(size=(SPOTS, GENES)).astype(np.float32)


def run(params, cond, keys):
    drawn = jax.vmap(lambda key: jax.random.normal(key, (2, GENES)))(keys)
    return jnp.moveaxis(params * cond[:, None, :] + drawn, 1, 0)


class Fetched:
    """A result whose computation failed, as an accelerator tells only when it is fetched."""

    def __array__(self, dtype=None, copy=None):
        raise jax.errors.JaxRuntimeError(SAID)


class Device:
    """Makes programs of more than so many spots fail, and counts what is done."""

    def __init__(self, monkeypatch, limit, when, said=SAID):
        self.limit, self.when, self.said = limit, when, said
        self.compiled, self.ran, self.alive = [], [], []
        dispatch = predictor.Predictor._dispatch
        program = predictor.Predictor._program

        def limited(one, params, cond, keys, index):
            made = dispatch(one, params, cond, keys, index)
            self.ran.append((int(index[0]), len(index)))
            self.alive.append(sum(array.size for array in jax.live_arrays()))
            if len(index) <= self.limit or when == "compile":
                return made
            if when == "fetch":
                return Fetched()
            raise jax.errors.JaxRuntimeError(self.said)

        def compiled(one, size, *given):
            if when == "compile" and size > self.limit:
                self.compiled.append(size)
                raise jax.errors.JaxRuntimeError(self.said)
            before = one.compilations
            found = program(one, size, *given)
            self.compiled += [size] * (one.compilations - before)
            return found

        monkeypatch.setattr(predictor.Predictor, "_dispatch", limited)
        monkeypatch.setattr(predictor.Predictor, "_program", compiled)


def make(spots, devices=1):
    layout = mesh.make_layout(jax.local_devices()[:devices])
    return predictor.Predictor(run, spots=spots, spots_axis=1, layout=layout)


@pytest.fixture(scope="module")
def whole():
    return make(64)(2.0, COND, KEYS)


@pytest.mark.parametrize("when", ["compile", "run", "fetch"])
@pytest.mark.parametrize("devices", [1, 4])
def test_memory_that_does_not_suffice_halves_the_portions(
    monkeypatch, caplog, whole, when, devices
):
    device, predict = Device(monkeypatch, 8, when), make(32, devices)
    seen = []
    with caplog.at_level(logging.WARNING, logger="stemjax"):
        found = predict(2.0, COND, KEYS, progress=lambda done, of, what: seen.append(done))
    # Bitwise: each spot's numbers meet no sum over a portion here.
    np.testing.assert_array_equal(found, whole)
    assert [record.message for record in caplog.records] == [
        "out of memory at 32 spots at a time, going on with 16",
        "out of memory at 16 spots at a time, going on with 8",
    ]
    assert predict.sizes[0] == 8
    assert seen == [8, 16, 24, 32, 37]
    # What was found out stays: no failure, no warning, no program more.
    compiled, ran = list(device.compiled), len(device.ran)
    caplog.clear()
    np.testing.assert_array_equal(predict(2.0, COND, KEYS), whole)
    assert (device.compiled, caplog.records) == (compiled, [])
    assert len(device.ran) - ran == 5


@pytest.mark.parametrize("when", ["run", "fetch"])
def test_portions_that_are_done_are_not_done_again(monkeypatch, whole, when):
    device, predict = Device(monkeypatch, 64, when), make(8)
    seen = []

    def squeeze(done, of, what):
        seen.append(done)
        if done == 16:  # another job has come to the device, say
            device.limit = 4

    found = predict(2.0, COND, KEYS, progress=squeeze)
    np.testing.assert_array_equal(found, whole)
    # The third portion was under way by then, and good.
    assert seen == [8, 16, 24, 28, 32, 36, 37]
    good = [(start, size) for start, size in device.ran if size <= (8 if start < 24 else 4)]
    assert good == [(0, 8), (8, 8), (16, 8), *[(start, 4) for start in (24, 28, 32)], (36, 1)]


def test_only_the_memory_is_mended(monkeypatch):
    device, predict = Device(monkeypatch, 8, "run", said="INTERNAL: a bug"), make(32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        predict(2.0, COND, KEYS)
    assert predict.sizes[0] == 32
    assert len(device.ran) == 1


@pytest.mark.parametrize("when", ["compile", "run", "fetch"])
@pytest.mark.parametrize("devices", [1, 4])
def test_one_spot_a_device_is_the_least(monkeypatch, when, devices):
    device, predict = Device(monkeypatch, 0, when), make(32, devices)
    with pytest.raises(errors.ResourceError, match=r"one spot.*allocate 21474836480 bytes\.\)"):
        predict(2.0, COND, KEYS)
    tried = device.compiled if when == "compile" else [size for _, size in device.ran]
    assert sorted(set(tried), reverse=True) == [
        size for size in (32, 16, 8, 4, 2, 1) if size >= devices
    ]


class Memory:
    """A device of so many bytes, for programs that need so many a spot."""

    def __init__(self, monkeypatch, there, a_spot):
        self.asked = []
        monkeypatch.setattr(predictor.resident, "device_memory", lambda: there)
        monkeypatch.setattr(predictor, "memory_bytes", self.bytes_of)
        self.a_spot = a_spot

    def bytes_of(self, program):
        size = program.in_avals[0][1].shape[0]
        self.asked.append(size)
        return size * self.a_spot


@pytest.mark.parametrize("ahead", [False, True])
def test_what_failed_is_let_go_of_before_the_next_try(monkeypatch, ahead):
    if ahead:
        Memory(monkeypatch, there=256 * 2**21, a_spot=2**20 + 2**19)
    device = Device(monkeypatch, 256, "run")
    cond = np.zeros((2048, 4096), np.float32)
    keys = sampler.spot_keys(0, "S", [str(i) for i in range(2048)])

    def wide(params, cond, keys):
        return cond[None, :, :1] * params

    layout = mesh.make_layout(jax.local_devices()[:1])
    predict = predictor.Predictor(wide, spots=2048, spots_axis=1, layout=layout)
    gc.disable()  # a cycle would keep the arrays until the collector comes
    try:
        before = sum(array.size for array in jax.live_arrays())
        predict(1.0, cond, keys)
    finally:
        gc.enable()
    sizes = [size for _, size in device.ran]
    tried = [256] if ahead else [2048, 1024, 512, 256]
    assert sizes[: len(tried)] == tried
    for size, alive in zip(tried, device.alive):
        # This portion's condition (a copy in flight at most), and not those before it.
        assert alive - before < 1.4 * size * 4096


def test_a_portion_that_cannot_fit_is_not_tried(monkeypatch, caplog, whole):
    gib = 2**30
    memory = Memory(monkeypatch, there=16 * gib, a_spot=gib)
    device, predict = Device(monkeypatch, 64, "run"), make(32)
    found = predict(2.0, COND, KEYS)
    np.testing.assert_array_equal(found, whole)
    # 16 of 16 GiB are too many: some of it is never free.
    assert [size for _, size in device.ran] == [8, 8, 8, 8, 8]
    assert memory.asked == [32, 16, 8]
    assert "out of memory at 32 spots at a time, going on with 16" in caplog.text


def test_what_one_spot_needs_is_said(monkeypatch):
    Memory(monkeypatch, there=3 * 2**30, a_spot=2**32)
    with pytest.raises(errors.ResourceError) as caught:
        make(4)(2.0, COND, KEYS)
    assert re.search(r"expected 4\.00 GiB, found 3\.00 GiB, of which 90% can", str(caught.value))


def test_memory_counts_arguments_results_and_what_lies_between():
    def quadratic(x):
        return jnp.sort(x @ x.T, axis=0).sum(axis=1)

    program = jax.jit(quadratic).lower(jnp.zeros((512, 8))).compile()
    needed = predictor.memory_bytes(program)
    # x 16 KiB, the sums 2 KiB, at least one 512 x 512 between: 1 MiB.
    assert 2**20 + 2**14 < needed < 2**23


def test_a_network_gives_the_same_up_to_the_rounding_of_other_shapes(monkeypatch):
    weights = np.random.default_rng(1).normal(size=(GENES, 16)).astype(np.float32)

    def network(params, cond, keys):
        return jnp.tanh(cond @ params)[None] @ params.T

    layout = mesh.make_layout(jax.local_devices()[:1])

    def fresh(spots):
        return predictor.Predictor(network, spots=spots, spots_axis=1, layout=layout)

    whole, small = (fresh(spots)(weights, COND, KEYS) for spots in (32, 8))
    Device(monkeypatch, 8, "run")
    found = fresh(32)(weights, COND, KEYS)
    # Bitwise what the smaller portions give; float32 sums of 16 terms beside the larger.
    np.testing.assert_array_equal(found, small)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)
