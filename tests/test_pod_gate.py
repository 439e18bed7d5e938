"""What training on a slice sends stays what it was: one sum of gradients, or pieces of layers.

The gate needs libtpu: `JAX_PLATFORMS=cpu uv run --extra tpu pytest -m tpu -n 0`. It compiles for
eight chips of v5e in processes of their own, without the flags of this suite, and opens no TPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
BASELINE = ROOT / "benchmarks" / "results" / "pod.json"
TOPOLOGY = "v5e:2x4"
SHALLOW = 2
"""Blocks of the billion-weight network here: compiling takes as long, but checks are by layer."""

MEGABYTE = 10**6

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu absent: uv run --extra tpu"
    ),
]


def compiled(folder, *flags):
    """The row that the flags ask for, compiled now."""
    out = folder / "pod.json"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "benchmarks/pod.py", "--topology", TOPOLOGY, "--program", "train"]
    done = subprocess.run(
        [*command, *flags, "--json", str(out)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = json.loads(out.read_text())["lines"]
    assert "projected" in line, line
    return line


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published size, data parallel."""
    return compiled(tmp_path_factory.mktemp("published"), "--size", "published")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The large size, its weights split over the eight chips."""
    flags = ("--size", "large", "--depth", str(SHALLOW))
    return compiled(tmp_path_factory.mktemp("large"), *flags)


def of_kind(line, kind):
    return [one for one in line["collectives"] if one["kind"] == kind]


def test_data_parallel_sums_the_gradient_once_and_sends_nothing_else(published):
    (summed,) = of_kind(published, "all-reduce")
    size = 4 * published["parameters"]
    # Beside the gradient there are a few sums of losses.
    assert size <= summed["bytes"] <= size + 64 * 1024
    # The compiler makes one or two tuples of it; were it summed in the loop, there would be 12.
    assert summed["calls"] == summed["places"] <= 2
    others = [one for one in published["collectives"] if one is not summed]
    assert sum(one["bytes"] for one in others) < MEGABYTE, others


def test_memory_a_chip_stays(published):
    lines = json.loads(BASELINE.read_text())["lines"]
    (before,) = [
        line
        for line in lines
        if (line["topology"], line["size"], line["program"]) == (TOPOLOGY, "published", "train")
    ]
    # The compiler gives the same figures every time; 5 % leaves room for a new version of it.
    for figure in ("temp", "memory"):
        assert 0.95 * before[figure] <= published[figure] <= 1.05 * before[figure], figure


def test_every_loop_was_counted(published, large):
    assert published["uncounted_loops"] == large["uncounted_loops"] == 0


def test_split_weights_are_gathered_and_their_gradients_scattered_in_the_loop(large):
    gathered, scattered = of_kind(large, "all-gather"), of_kind(large, "reduce-scatter")
    for found in (gathered, scattered):
        # More calls than places in the program: they stand in the loop over layers.
        assert sum(one["calls"] for one in found) > sum(one["places"] for one in found)
        assert {one["devices"] for one in found} == {8}
    assert any(one["overlapped"] for one in gathered)
    # Forward and backward, in bfloat16, of the blocks at least.
    blocks = SHALLOW * 18 * 1536**2
    assert sum(one["bytes"] for one in gathered) > 2 * 2 * blocks * 0.6
    assert 8 * sum(one["bytes"] for one in scattered) > 2 * blocks * 0.9


def test_no_layers_gradient_is_summed_whole(large):
    # Matrices of a block are 4.7 MB and more in bfloat16; what is summed at every turn is biases.
    # The embeddings of condition and noise level, outside the loop, are summed once (59 MB).
    looped = [one for one in of_kind(large, "all-reduce") if one["calls"] > one["places"]]
    kernel = 2 * 1536**2
    assert all(one["bytes"] - one["largest"] < kernel for one in looped), looped
