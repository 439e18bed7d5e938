"""Rows on the devices: the host's batches, gathered without a word between devices."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
import small_slides as made

from stemjax import mesh
from stemjax.data import pipeline, records, resident, space

COLLECTIVES = r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Records of two slides, the second without two genes, and a space fitted on them."""
    folder = tmp_path_factory.mktemp("resident")
    for slide_id, n, names in (("A", 13, made.GENES), ("B", 9, ("X", *made.GENES[2:]))):
        slide = made.make_slide(slide_id, n=n, names=names)
        vectors = made.make_embeddings(slide)
        # The ends of float16: subnormal numbers and the largest.
        vectors[0, :, 0], vectors[1, :, 1] = 6e-8, 65504
        records.write_slide(folder, slide, vectors, panel=made.PANEL, contract=made.CONTRACT)
    opened = records.open_records(folder)
    fitted = space.Space.fit(opened.tables("AB"), genes=opened.genes, transform="log2p1")
    return opened, fitted


def views(prepared, layout):
    opened, fitted = prepared
    host = pipeline.choose_view(opened, ["A", "B"], fitted, residence="ram")
    device = pipeline.choose_view(
        opened, ["A", "B"], fitted, residence="device", sharding=layout.replicated
    )
    return host, device


@pytest.mark.parametrize("count", [1, 4])
def test_batches_are_the_host_s_bit_for_bit(prepared, count):
    layout = mesh.make_layout(jax.devices()[:count])
    host, device = views(prepared, layout)
    schedule = pipeline.Schedule(n=22, batch=16, seed=9, variants=8)
    show = jax.jit(device.show)
    both = zip(host.batches(schedule, 3, 9), device.batches(schedule, 3, 9), strict=True)
    for batch, numbers in both:
        shown = jax.block_until_ready(show(device.table, layout.put(numbers)))
        assert set(shown) == {"cond", "x0", "mask"}
        for name in shown:
            assert shown[name].dtype == batch[name].dtype
            assert shown[name].sharding.is_equivalent_to(layout.data, 2)
            np.testing.assert_array_equal(shown[name], batch[name])


def test_a_step_is_handed_8_bytes_a_row(prepared):
    _, device = views(prepared, mesh.make_layout(jax.devices()[:1]))
    schedule = pipeline.Schedule(n=22, batch=16, seed=9, variants=8)
    handed = device.batch_at(schedule, 5, process_index=1, process_count=2)
    assert sum(values.nbytes for values in handed.values()) == 8 * 8
    np.testing.assert_array_equal(handed["row"], schedule.rows(5)[8:])
    np.testing.assert_array_equal(handed["variant"], schedule.variant(5)[8:])


def gathering(device, layout, table):
    """The program of three gathered batches, on the layout's devices."""

    def gather(table, handed):
        parts = {name: values.T for name, values in handed.items()}
        return jax.lax.map(lambda part: device.show(table, part)["cond"], parts)

    handed = layout.put({name: np.zeros((16, 3), np.int32) for name in ("row", "variant")})
    return jax.jit(gather).lower(table, handed).compile().as_text()


def test_devices_gather_without_a_collective(prepared):
    layout = mesh.make_layout()
    _, device = views(prepared, layout)
    assert all(values.sharding.is_fully_replicated for values in device.table.values())
    assert not re.findall(COLLECTIVES, gathering(device, layout, device.table))
    # A table that is split over the devices needs them: the search finds what it looks for.
    split = {**device.table, "cond": jax.device_put(np.zeros((24, 8, 5), np.float16), layout.data)}
    assert re.findall(COLLECTIVES, gathering(device, layout, split))


def test_the_bytes_are_those_that_lie_on_a_device(prepared):
    opened, _ = prepared
    _, device = views(prepared, mesh.make_layout())
    first = sum(values.addressable_shards[0].data.nbytes for values in device.table.values())
    assert resident.table_bytes(opened, ["A", "B"]) == first


def test_rows_lie_on_the_device_where_they_fit(prepared):
    opened, fitted = prepared
    table = resident.table_bytes(opened, ["A", "B"])
    ram = pipeline.resident_bytes(opened, ["A", "B"])

    def kind(ram: int | None, device: int | None) -> type:
        return type(
            pipeline.choose_view(opened, ["A", "B"], fitted, budget_bytes=ram, device_bytes=device)
        )

    assert kind(None, table) is resident.DeviceView
    assert kind(None, table - 1) is pipeline.ResidentView
    # They pass through RAM on their way.
    assert kind(ram - 1, table) is pipeline.StreamingView
    # A CPU's memory is the RAM, where a gather by the host costs the step nothing.
    assert kind(None, None) is pipeline.ResidentView
