"""The benchmarks of several devices and of compiling: what they count, and that the ways agree."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from stemjax import config, mesh, tasks

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPLIT, WHOLE = PartitionSpec("data"), PartitionSpec()
GENES, WIDTH = 6, 4


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import compiling
        import hlo
        import parallel

        yield parallel, compiling, hlo


@pytest.fixture(scope="module")
def experiment():
    values = config.as_json(config.Experiment())
    values["model"] |= {"width": 16, "depth": 2, "heads": 2}
    values["diffusion"] |= {"mean_fraction": 1.0}
    values["optim"] |= {"warmup": 1, "learning_rate": 1e-2}
    return config.resolve(values)


def communicating(function, taken, given, *arguments) -> str:
    layout = mesh.make_layout()
    mapped = jax.shard_map(
        function, mesh=layout.mesh, in_specs=taken, out_specs=given, check_vma=False
    )
    return jax.jit(mapped).lower(*arguments).compile().as_text()


def test_collectives_are_counted_by_kind_with_their_bytes(scripts):
    _, _, hlo = scripts
    x = jnp.ones((8, 5))  # 2 rows a device
    summed = communicating(lambda x: jax.lax.psum(x, "data"), SPLIT, WHOLE, x)
    assert hlo.collectives(summed) == {"all-reduce": {"calls": 1, "bytes": 40, "places": 1}}
    whole = communicating(lambda x: jax.lax.all_gather(x, "data"), SPLIT, WHOLE, x)
    assert hlo.collectives(whole) == {"all-gather": {"calls": 1, "bytes": 160, "places": 1}}
    alone = communicating(lambda x: 2 * x, SPLIT, SPLIT, x)
    assert hlo.collectives(alone) == {}


def test_a_collective_in_a_loop_counts_at_every_turn(scripts):
    _, _, hlo = scripts

    def looped(x):
        def inner(c, _):
            return jax.lax.pmean(jnp.sin(c), "data"), None

        def outer(c, _):
            return jax.lax.scan(inner, c, None, length=3)[0], None

        return jax.lax.scan(outer, x, None, length=7)[0]

    text = communicating(looped, SPLIT, WHOLE, jnp.ones((8, 5), jnp.bfloat16))
    (found,) = hlo.collectives(text).values()
    assert found["calls"] == 21 * found["places"]
    # 2 rows of 5 bfloat16, which a CPU may sum as float32.
    assert found["bytes"] in (21 * 20, 21 * 40)


def test_what_is_only_started_counts_its_result_once(scripts):
    """As GPU programs print it: an asynchronous gather lists operand and result."""
    _, _, hlo = scripts
    text = "\n".join(
        [
            "HloModule step",
            "ENTRY %main (p: f32[2]) -> f32[8] {",
            "  %p = f32[2]{0} parameter(0)",
            "  %ag = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), dimensions={0}",
            "  %done = f32[8]{0} all-gather-done(%ag)",
            "  %ar = (f32[8]{0}, bf16[4]{0}) all-reduce-start(%done, %p), to_apply=%add",
            "  ROOT %end = f32[8]{0} all-reduce-done(%ar)",
            "}",
        ]
    )
    assert hlo.collectives(text) == {
        "all-gather": {"calls": 1, "bytes": 32, "places": 1},
        "all-reduce": {"calls": 1, "bytes": 40, "places": 1},
    }


def test_the_ways_draw_the_same_without_a_word_between_devices(scripts, experiment):
    parallel, _, hlo = scripts
    task = config.make_task(experiment, genes=GENES, condition=WIDTH)
    params = parallel.harness.awake(task.init(jax.random.key(0)))
    layout, asked = mesh.make_layout(), tasks.Sampling(mode="pair", steps=3)
    ways = parallel.make_samplers(task, params, layout, asked, spots=8, width=WIDTH)
    drawn = {name: way.result() for name, way in ways.items()}
    assert drawn["jit"].shape == (8, 2, GENES)
    assert np.abs(drawn["jit"][0] - drawn["jit"][1]).max() > 0.01  # rows differ: order matters
    for name, way in ways.items():
        assert hlo.collectives(way.program.as_text()) == {}, name
        # Float32 with matrices of other shapes, after three steps from 80 standard deviations.
        np.testing.assert_allclose(drawn[name], drawn["jit"], atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_the_ways_train_the_same_and_reduce_the_gradient(scripts, experiment):
    parallel, _, hlo = scripts
    layout = mesh.make_layout()
    ways = parallel.make_trainings(
        experiment, layout, batch=16, genes=GENES, condition=WIDTH, parts=1
    )
    # Adam's first update is the rate's size whatever the gradient's; equal to rounding is far less.
    gaps = parallel.difference(ways)
    assert all(gap < 1e-4 for gap in gaps.values()), gaps
    task = config.make_task(experiment, genes=GENES, condition=WIDTH)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    # The mean token's x is 0, so XLA knows that the kernel which x meets has no gradient.
    leaves = jax.tree.leaves(shapes)
    gradient = 4 * (
        sum(leaf.size for leaf in leaves) - shapes["tokens"]["value"]["fc1"]["kernel"].size
    )
    for name, way in ways.items():
        found = hlo.collectives(way.program.as_text())
        assert set(found) == {"all-reduce"}, name
        # The gradient once, and a few numbers of metrics.
        assert gradient <= found["all-reduce"]["bytes"] < 1.05 * gradient + 100, name


def test_a_ratio_is_that_of_the_times_of_each_round(scripts, monkeypatch):
    parallel, _, _ = scripts
    text = communicating(lambda x: 2 * x, SPLIT, SPLIT, jnp.ones((8, 5)))
    program = type("Program", (), {"as_text": lambda self: text})()
    # The machine slows down with every round; jit takes half of the other's time in each.
    ticks = {"jit": iter(range(1, 20)), "pmap": iter(range(2, 40, 2))}
    ways = {
        name: parallel.Way(program=program, call=lambda n=name: n, result=lambda: None)
        for name in ticks
    }

    def time_calls(call, **_):
        return parallel.harness.Timing(
            median=float(next(ticks[call()])), quartiles=(0, 0), p10=0, p90=0, p99=0, repeats=1
        )

    monkeypatch.setattr(parallel.harness, "time_calls", time_calls)
    found = parallel.compare(ways, rounds=5)
    assert found["jit"]["ratio"] == 1
    assert found["pmap"]["ratio"] == 0.5
    assert found["pmap"]["ratio_interval"] == [0.5, 0.5]
    assert found["jit"]["median_s"] == 5  # rounds 3 to 7: two do not count
    lines = [
        {"work": "pair", "way": name, "rows": 8, "spots_per_s": 8.0, "difference": 0.0, **line}
        for name, line in found.items()
    ]
    made = parallel.tables({"devices": 4, "device": "cpu", "lines": lines})
    assert "| pair | pmap (the old way) | 8 | 0.50 (0.50 to 0.50) | 0 | none |" in made


def test_a_second_process_finds_the_program_that_the_first_kept(scripts, experiment, monkeypatch):
    _, compiling, _ = scripts
    monkeypatch.setenv("STEMJAX_CACHE", "off")  # of the user, not of the measurement
    asked = {"program": "mean", "experiment": config.as_json(experiment)}
    row = compiling.measure(asked | {"rows": 2, "genes": GENES, "condition": WIDTH}, repeats=1)
    assert row["kept_bytes"] > 1000
    assert all(row[name] > 0 for name in (*compiling.PHASES, "cached_s"))
    made = compiling.tables({"lines": [{"experiment": "small", **row}]})
    assert f"| mean | {row['trace_s']:.2f} |" in made
    assert json.dumps(row)


def test_unrolled_blocks_are_a_larger_program_of_the_same_network(scripts, experiment):
    _, compiling, _ = scripts
    sizes = {"rows": 2, "genes": GENES, "condition": WIDTH}
    whiles = {}
    for name in ("network", compiling.UNROLLED):
        jitted, given = compiling.program(name, experiment, **sizes)
        with compiling._unrolled(name):
            whiles[name] = jitted.trace(*given).lower().as_text().count("stablehlo.while")
    assert whiles == {"network": 1, compiling.UNROLLED: 0}
