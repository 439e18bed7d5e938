"""The benchmark harness: what is inside the clock, and what is not."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import harness

    return harness


def test_compile_and_warm_up_are_outside_the_timed_calls(harness):
    ticks, made = iter(range(1000)), []

    def arguments(i):
        made.append(i)
        return (jnp.full((2,), float(i)),)

    timing = harness.measure(
        lambda x: x + 1, arguments, repeats=4, warm_up=2, clock=lambda: next(ticks)
    )
    # Every pair of readings is one tick apart: compile 1, each timed call 1.
    assert (timing.compile, timing.median, timing.repeats) == (1, 1.0, 4)
    assert made == [0, *range(6)]  # one for lowering, then new arguments at every call
    # 2 readings to compile; warm-up reads once a call (its start), timed calls twice.
    assert next(ticks) == 2 + 2 + 2 * 4


def test_the_quick_benchmark_prints_lines_that_add_up(harness):
    command = [sys.executable, "benchmarks/sampling.py", "--quick", "--width", "16", "--depth", "1",
               "--genes", "10", "--condition", "4", "--spots", "4"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["mode"], line["evaluations_per_spot"]) for line in lines] == [
        ("mean", 1),
        ("pair", 16),
    ]
    for line in lines:
        assert line["spots_per_s"] == pytest.approx(4 / line["median_s"])
        work = 4 * line["evaluations_per_spot"]
        assert line["us_per_evaluation"] == pytest.approx(1e6 * line["median_s"] / work)
        assert line["device"]
        assert line["repeats"] >= 10
