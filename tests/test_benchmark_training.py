"""benchmarks/training.py and benchmarks/input.py: what their numbers mean, on known cases."""

from __future__ import annotations

import json
import pathlib
import types

import jax
import numpy as np
import pytest

from stemjax import config, mesh
from stemjax.data import pipeline, space

ROOT = pathlib.Path(__file__).resolve().parents[1]
GENES, CONDITION, SPOTS = 6, 5, 40


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import input as inputs
        import made_records
        import training

        yield types.SimpleNamespace(inputs=inputs, made_records=made_records, training=training)


@pytest.fixture(scope="module")
def made(scripts):
    with scripts.made_records.made_records(
        spots=SPOTS, n_genes=GENES, width=CONDITION
    ) as (opened, folder):  # fmt: skip
        yield opened, folder


def row(scripts, feed, **other):
    form = {"calls": 1, "batch": 8, "accumulate": 1, "remat": "none", "dtype": "float32"}
    return scripts.training.Row(feed=feed, **form | other)


def test_every_feed_once_and_every_other_value_on_the_device(scripts):
    flags = ["--quick", "--calls=1,4", "--batch=8", "--accumulate=1,2", "--remat=none,blocks",
             "--dtype=float32"]  # fmt: skip
    args, _ = scripts.training.read_flags(flags)
    assert scripts.training.rows_of(args) == [
        *(row(scripts, feed) for feed in ("none", "ram", "stream", "device")),
        row(scripts, "device", calls=4),
        row(scripts, "device", accumulate=2),
        row(scripts, "device", remat="blocks"),
    ]


def test_rates_and_shares_are_those_of_the_updates(scripts):
    roof = {"matmul_flop_per_s": {"bfloat16": 1e12}, "rating": {"bfloat16": 4e12}}
    line = {"updates": 20, "batch": 256, "dtype": "bfloat16", "median_s": 4.0}
    found = scripts.training.rates(line, 10**8, roof)
    assert (found["steps_per_s"], found["examples_per_s"]) == (5.0, 1280.0)
    # 1280 examples of 1e8 FLOP on all devices of the process, of one device's rates.
    each = 1.28e11 / jax.device_count()
    assert found["share_of_matmul"] == pytest.approx(each / 1e12)
    assert found["share_of_rating"] == pytest.approx(each / 4e12)


def test_a_share_of_no_input_is_taken_of_the_same_form(scripts):
    def line(feed, batch, rate):
        form = dict.fromkeys(scripts.training.AXES, 1) | {"batch": batch}
        return {"feed": feed, **form, "examples_per_s": rate}

    lines = [line("none", 8, 10.0), line("ram", 8, 9.0), line("device", 16, 20.0)]
    lines.append({**line("stream", 8, 0.0), "failed": "no"})
    found = scripts.training.with_shares(lines)
    assert [entry.get("of_none") for entry in found] == [1.0, 0.9, None, None]


@pytest.mark.slow
def test_every_feed_trains_on_the_schedule_s_rows(scripts, made, monkeypatch):
    """Losses after equal updates are equal for the three views, and others without input."""
    # The tests' four devices, each step blocked, are for correctness alone: one will do here.
    one = mesh.make_layout(jax.devices()[:1])
    monkeypatch.setattr(scripts.training.mesh, "make_layout", lambda: one)
    base = config.resolve(
        {
            "model": {"width": 8, "depth": 1, "heads": 2},
            "diffusion": {"mean_fraction": 1.0},
            "optim": {"learning_rate": 0.05, "warmup": 0},
        }
    )
    opened, _ = made
    fitted = space.Space.fit(opened.tables(["made"]), genes=opened.genes, transform="log2p1")
    losses, programs = {}, {}
    for feed in ("none", "ram", "device"):
        residence = "ram" if feed == "none" else feed
        view = pipeline.choose_view(opened, ["made"], fitted, residence=residence)
        schedule = pipeline.Schedule(n=SPOTS, batch=8, seed=0, variants=8)
        run = scripts.training.Run(
            row(scripts, feed), base, view, schedule, programs, genes=GENES, condition=CONDITION
        )
        losses[feed] = [float(run.advance(2)["loss"]) for _ in range(2)]
        run.close()
    assert len(programs) == 2  # the rows without input and from RAM are one
    np.testing.assert_allclose(losses["ram"], losses["device"], rtol=1e-5)
    assert abs(losses["none"][0] - losses["ram"][0]) > 1e-3


def test_paths_deliver_the_rows_that_they_are_said_to(scripts, made):
    opened, folder = made
    paths = scripts.inputs.Paths(opened, folder, batch=8, many=3, transform="log2p1")
    found = paths.paths()
    whole = 8 * 4 * (CONDITION + 2 * GENES)
    read = ("reader", "reader_decoded", "tfds")
    assert {name: entry[1:] for name, entry in found.items() if name not in read} == {
        "schedule": (8, 64),
        "ram": (8, whole),
        "ram_ahead": (24, 3 * whole),
        "stream": (24, 3 * whole),
        "put": (8, whole),
        "put_numbers": (8, 64),
        "device": (24, 3 * whole),
    }
    schedule = pipeline.Schedule(n=SPOTS, batch=8, seed=0, variants=8)
    fitted = space.Space.fit(opened.tables(["made"]), genes=opened.genes, transform="log2p1")
    host = pipeline.choose_view(opened, ["made"], fitted, residence="ram")
    batches = [host.batch_at(schedule, step) for step in range(3)]
    total = sum(values.sum(dtype=np.float64) for batch in batches for values in batch.values())
    # float32 sums of 408 numbers of order 1.
    assert float(found["device"][0](0)) == pytest.approx(total, rel=1e-5)
    raw = found["reader"][0](2)
    assert sum(map(len, found["reader"][0](0))) == found["reader"][2]
    assert len(raw) == 8
    decoded = found["reader_decoded"][0](2)
    np.testing.assert_array_equal(decoded.counts, opened.load(["made"]).counts[schedule.rows(2)])
    theirs = [spot["counts"] for spot in found["tfds"][0](2)]
    np.testing.assert_array_equal(decoded.counts, theirs)
    assert found["tfds"][1:] == found["reader_decoded"][1:]
    paths.close()


def test_rates_of_a_path(scripts):
    found = scripts.inputs.rates(rows=50, size=2000, seconds=0.25)
    expected = {"rows_per_s": 200, "byte_per_s": 8000, "us_per_row": 5000, "bytes_per_row": 40}
    assert found == expected


def test_tables_hold_every_line(scripts):
    form = {"calls": 1, "batch": 8, "accumulate": 1, "remat": "none", "dtype": "float32"}
    ran = {"examples_per_s": 4321.0, "steps_per_s": 2.5, "share_of_matmul": 0.4,
           "share_of_rating": None, "compile_s": 3.0, "memory_bytes": 10**9,
           "temp_bytes": 10**8}  # fmt: skip
    facts = {"model": {"width": 384, "depth": 12}, "genes": 200, "condition": 1536,
             "roof": {"matmul_flop_per_s": {"float32": 1e11}}}  # fmt: skip
    lines = [{"feed": "none", **form, **ran}, {"feed": "device", **form, "failed": "too large"}]
    text = scripts.training.tables({**facts, "lines": json.loads(json.dumps(lines))})
    assert "4.32e+03" in text
    assert "device, calls 1, batch 8, accumulate 1, remat none, dtype float32: too large" in text
    path = {"path": "stream", **scripts.inputs.rates(50, 2000, 0.25)}
    facts |= {"spots": 9, "batch": 8, "copy_byte_per_s": 1e10, "lines": [path]}
    assert "| stream | 200 |" in scripts.inputs.tables(facts)
